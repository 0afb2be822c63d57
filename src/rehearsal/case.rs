//! Files of cases: requests, and the answers that must come.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::answer::Answer;
use super::question::Question;
use crate::engine::Snapshot;

/// Longest file of cases that is read, bytes.
pub const CASES_MAX: usize = 16 << 20;
/// Where texts are that a case names as `{token:NAME}`, beside the file of cases.
pub const TOKENS: &str = "fixtures/tokens.json";

/// A file of cases, read.
#[derive(Debug)]
pub struct Cases {
    pub path: PathBuf,
    pub cases: Vec<Case>,
}

/// One request, and the answer that must come.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it is about; unique in its file.
    pub name: String,
    /// When the request was received.
    pub clock: Option<Clock>,
    /// Of its random numbers.
    pub seed: Option<Seed>,
    /// Longest it may take, microseconds, if that is less than the policy's own limit.
    pub deadline_us: Option<u32>,
    /// What the policy may look up.
    pub data: Option<Map<String, Value>>,
    /// Tables below that, the first upon the second: bundles of data, or what such are built of. Paths are from the folder that
    /// the file of cases is in.
    pub tables: Option<Vec<PathBuf>>,
    pub input: Question,
    pub expect: Answer,
    /// Those tables, read.
    #[serde(skip)]
    pub layers: Vec<Arc<Snapshot>>,
    /// Where in the file it is, from 1; 0 where that is not known.
    #[serde(skip)]
    pub line: usize,
}

/// Nanoseconds since 1970. As JSON seconds, or a time like `"2026-01-01T00:00:00Z"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clock(pub u64);

/// As JSON a number, or 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

/// Why cases cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CasesError {
    #[error("{}:{line}:{column}: {why}", path.display())]
    At { path: PathBuf, line: usize, column: usize, why: String },
    #[error("{}:{line}: case {name:?}: {why}", path.display())]
    Case { path: PathBuf, line: usize, name: String, why: String },
    #[error("read cases {path:?}: there are none in it")]
    None { path: PathBuf },
}

/// What is said once for all cases of a file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    clock: Option<Clock>,
    seed: Option<Seed>,
    deadline_us: Option<u32>,
    data: Option<Map<String, Value>>,
    tables: Option<Vec<PathBuf>>,
    cases: Vec<Case>,
}

/// One of the texts that cases name. What else is said of it is for those who made it.
#[derive(Deserialize)]
struct Token {
    name: String,
    token: String,
}

impl Cases {
    /// Reads a file's text: a list of cases, or an object with the list as `cases` and what holds for all of them.
    /// `tokens` is the text of [`TOKENS`], where there is such a file.
    ///
    /// # Errors
    /// The first thing that is wrong, and where.
    pub fn read(path: &Path, text: &[u8], tokens: Option<&[u8]>) -> Result<Self, CasesError> {
        let at = |path: &Path, error: &serde_json::Error| {
            let whole = error.to_string();
            let why = whole.split(" at line ").next().unwrap_or(&whole).to_owned();
            CasesError::At { path: path.into(), line: error.line(), column: error.column(), why }
        };
        let is_list = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        let whole = if is_list {
            serde_json::from_slice(text).map(|cases| Whole { cases, ..Whole::default() })
        } else {
            serde_json::from_slice::<Whole>(text)
        };
        let whole = whole.map_err(|error| at(path, &error))?;
        let tokens: Vec<Token> = match tokens {
            Some(text) => {
                let beside = path.with_file_name(TOKENS);
                serde_json::from_slice(text).map_err(|error| at(&beside, &error))?
            }
            None => Vec::new(),
        };
        let mut cases = whole.cases;
        if cases.is_empty() {
            return Err(CasesError::None { path: path.into() });
        }
        let mut names = BTreeSet::new();
        for case in &mut cases {
            case.line = line_of(text, &case.name);
            let wrong =
                |why| CasesError::Case { path: path.into(), line: case.line, name: case.name.clone(), why };
            if !names.insert(case.name.clone()) {
                return Err(wrong("another case has that name; reports go by it".to_owned()));
            }
            fill_in(&mut case.input, &tokens).map_err(wrong)?;
            case.clock = case.clock.or(whole.clock);
            case.seed = case.seed.or(whole.seed);
            case.deadline_us = case.deadline_us.or(whole.deadline_us);
            if case.data.is_none() {
                case.data.clone_from(&whole.data);
            }
            if case.tables.is_none() {
                case.tables.clone_from(&whole.tables);
            }
        }
        Ok(Self { path: path.into(), cases })
    }

    /// Every table that a case names.
    #[must_use]
    pub fn tables(&self) -> BTreeSet<PathBuf> {
        let named = self.cases.iter().flat_map(|case| case.tables.iter().flatten());
        named.map(|table| self.path.with_file_name(table)).collect()
    }

    /// Reads each table that is named, once.
    ///
    /// # Errors
    /// The first that cannot be read.
    pub fn lay_out<E>(&mut self, read: impl Fn(&Path) -> Result<Snapshot, E>) -> Result<(), E> {
        let mut found = BTreeMap::new();
        for path in self.tables() {
            let table = Arc::new(read(&path)?);
            found.insert(path, table);
        }
        for case in &mut self.cases {
            let paths = case.tables.iter().flatten().map(|table| self.path.with_file_name(table));
            case.layers = paths.filter_map(|path| found.get(&path).cloned()).collect();
        }
        Ok(())
    }
}

/// Puts tokens where headers name them: `{token:NAME}`.
fn fill_in(question: &mut Question, tokens: &[Token]) -> Result<(), String> {
    const OPEN: &str = "{token:";
    let Question::Http(http) = question else { return Ok(()) };
    for header in &mut http.headers {
        let Ok(text) = std::str::from_utf8(&header.value.0) else { continue };
        if !text.contains(OPEN) {
            continue;
        }
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (name, after) = after.split_once('}').ok_or_else(|| format!("{OPEN:?} has no end"))?;
            let token = tokens
                .iter()
                .find(|token| token.name == name)
                .ok_or_else(|| format!("there is no token {name:?} in {TOKENS} beside its file"))?;
            filled.push_str(before);
            filled.push_str(&token.token);
            rest = after;
        }
        filled.push_str(rest);
        header.value.0 = filled.into_bytes();
    }
    Ok(())
}

/// The line with `"name": "<name>"`.
fn line_of(text: &[u8], name: &str) -> usize {
    let Ok(text) = std::str::from_utf8(text) else { return 0 };
    let quoted = Value::from(name).to_string();
    let is_name = |before: &str| {
        before.trim_end().strip_suffix(':').is_some_and(|rest| rest.trim_end().ends_with("\"name\""))
    };
    let found = text
        .match_indices(&quoted)
        .map(|(at, _)| text.get(..at).unwrap_or_default())
        .find(|before| is_name(before));
    found.map_or(0, |before| before.matches('\n').count() + 1)
}

impl<'de> Deserialize<'de> for Clock {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl Visitor<'_> for Shape {
            type Value = Clock;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds since 1970, or a time like \"2026-01-01T00:00:00Z\"")
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Clock, E> {
                let ns = seconds.checked_mul(1_000_000_000);
                ns.map(Clock).ok_or_else(|| E::custom("a clock does not go that far"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Clock, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

impl std::str::FromStr for Clock {
    type Err = String;

    /// A time like `2026-01-01T00:00:00Z`.
    fn from_str(text: &str) -> Result<Self, String> {
        let time: jiff::Timestamp =
            text.parse().map_err(|_| "expected a time like 2026-01-01T00:00:00Z".to_owned())?;
        u64::try_from(time.as_nanosecond())
            .map(Self)
            .map_err(|_| "a clock begins in 1970 and ends in 2554".to_owned())
    }
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(self.0.into()) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} ns", self.0),
        }
    }
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or 64 hexadecimal digits")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Seed, E> {
                Ok(Seed::from(number))
            }

            fn visit_str<E: de::Error>(self, digits: &str) -> Result<Seed, E> {
                digits.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Seed, A::Error> {
                Err(de::Error::invalid_type(de::Unexpected::Seq, &self))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

impl From<u64> for Seed {
    fn from(number: u64) -> Self {
        let mut seed = [0; 32];
        for (to, from) in seed.iter_mut().zip(number.to_le_bytes()) {
            *to = from;
        }
        Self(seed)
    }
}

impl std::str::FromStr for Seed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(number) = text.parse::<u64>() {
            return Ok(number.into());
        }
        let mut seed = [0; 32];
        hex::decode_to_slice(text, &mut seed).map_err(|_| "expected a number, or 64 hexadecimal digits")?;
        Ok(Self(seed))
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Cases, String> {
        let tokens = br#"[{"name": "t", "note": "x", "token": "a.b.c"}]"#;
        Cases::read(Path::new("cases.json"), text.as_bytes(), Some(tokens)).map_err(|error| error.to_string())
    }

    const ONE: &str = r#"{"name": "one", "input": {"http": {"headers": [["a", "Bearer {token:t}"]]}}, "expect": {"outcome": "allow"}}"#;

    #[test]
    fn a_file_is_a_list_or_an_object_that_says_what_holds_for_all() {
        let list = read(&format!("[\n{ONE},\n{}]", ONE.replace("one", "two"))).unwrap();
        assert_eq!(
            list.cases.iter().map(|case| (case.name.as_str(), case.line)).collect::<Vec<_>>(),
            [("one", 2), ("two", 3)]
        );
        let Question::Http(http) = &list.cases[0].input else { panic!("not http") };
        assert_eq!(http.headers[0].value, "Bearer a.b.c".into());
        let all = read(&format!(
            r#"{{"clock": 7, "seed": 258, "data": {{"k": 1}}, "cases": [{ONE}, {}]}}"#,
            ONE.replace("\"one\"", "\"two\", \"clock\": \"1970-01-01T00:00:01.5Z\"")
        ))
        .unwrap();
        assert_eq!(all.cases[0].clock, Some(Clock(7_000_000_000)));
        assert_eq!(all.cases[1].clock, Some(Clock(1_500_000_000)));
        assert_eq!(&all.cases[1].seed.unwrap().0[..3], [2, 1, 0]);
        assert_eq!(all.cases[0].data, all.cases[1].data);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let with =
            |what: &str, instead: &str| read(&format!("[\n  {}\n]", ONE.replace(what, instead))).unwrap_err();
        assert_eq!(
            with("\"input\"", "\"imput\""),
            "cases.json:2:25: unknown field `imput`, expected one of `name`, `clock`, `seed`, `deadline_us`, `data`, `tables`, `input`, `expect`"
        );
        let error = with("\"headers\"", "\"haeders\"");
        assert!(error.starts_with("cases.json:2:46: unknown field `haeders`"), "{error}");
        let error = with("\"outcome\"", "\"outkome\"");
        assert!(error.starts_with("cases.json:2:") && error.contains("`outkome`"), "{error}");
        let error = with("\"name\"", "\"clock\": -1, \"name\"");
        assert!(error.contains("expected seconds since 1970, or a time like"), "{error}");
        let error = with("\"name\"", "\"seed\": \"0x\", \"name\"");
        assert!(error.contains("expected a number, or 64 hexadecimal digits"), "{error}");
        assert_eq!(
            with("{token:t}", "{token:u}"),
            "cases.json:2: case \"one\": there is no token \"u\" in fixtures/tokens.json beside its file"
        );
        assert_eq!(
            read(&format!("[{ONE},\n{ONE}]")).unwrap_err(),
            "cases.json:1: case \"one\": another case has that name; reports go by it"
        );
        assert_eq!(read("[]").unwrap_err(), "read cases \"cases.json\": there are none in it");
        assert!(read("{\"case\": []}").unwrap_err().starts_with("cases.json:1:7: unknown field `case`"));
    }

    #[test]
    fn clocks_and_seeds_read_as_what_was_written() {
        for clock in [Clock(0), Clock(1_767_225_600_000_000_001)] {
            let json = serde_json::to_string(&clock).unwrap();
            assert_eq!(serde_json::from_str::<Clock>(&json).unwrap(), clock, "{json}");
        }
        let seed = Seed([9; 32]);
        assert_eq!(serde_json::from_str::<Seed>(&serde_json::to_string(&seed).unwrap()).unwrap(), seed);
    }
}
