//! What people have, as entries of a table.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use clap::ValueEnum;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::unique::{Place, Unique, escaped};
use crate::cli::files::{self, FileError};
use crate::table::{BuildError, Builder, VALUE_MAX};

/// Largest document, bytes: it is in memory while it is taken apart.
const DOCUMENT_MAX: usize = 1 << 30;
/// Longest line, bytes: a value in base64, and its key.
const LINE_MAX: u64 = 2 << 20;
/// Folders in each other.
const FOLDERS_MAX: usize = 32;

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Form {
    /// One JSON object
    Document,
    /// One JSON object a line, with "key" and "value" or "base64"
    Lines,
    /// Files
    Folder,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum EntriesError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("read {path:?}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("read {path:?}: line {line}: {why}")]
    Line { path: PathBuf, line: usize, why: String },
    #[error("read {path:?}: {source}")]
    Table { path: PathBuf, source: BuildError },
    #[error("read {path:?}: {why}")]
    Folder { path: PathBuf, why: String },
}

/// Reads all of a source.
pub(in crate::cli) fn read(path: &Path, form: Option<Form>, depth: u8) -> Result<Builder, EntriesError> {
    let lines = path.extension().is_some_and(|extension| extension == "ndjson" || extension == "jsonl");
    let form = form.unwrap_or(match (path.is_dir(), lines) {
        (true, _) => Form::Folder,
        (false, true) => Form::Lines,
        (false, false) => Form::Document,
    });
    let mut table = Builder::default();
    match form {
        Form::Document => document(path, depth, &mut table)?,
        Form::Lines => read_lines(path, &mut table)?,
        Form::Folder => folder(path, "", 0, &mut table)?,
    }
    Ok(table)
}

fn document(path: &Path, depth: u8, table: &mut Builder) -> Result<(), EntriesError> {
    let bytes = files::read(path, DOCUMENT_MAX)?;
    let json = |source| EntriesError::Json { path: path.into(), source };
    let mut reader = serde_json::Deserializer::from_slice(&bytes);
    let mut wrong = None;
    let taken = Document { depth, table, wrong: &mut wrong }.deserialize(&mut reader);
    match (wrong, taken) {
        (Some(source), _) => Err(EntriesError::Table { path: path.into(), source }),
        (None, taken) => taken.and_then(|()| reader.end()).map_err(json),
    }
}

/// Takes an object apart, one key after the other: only one value at a time is in memory as a tree.
struct Document<'a> {
    depth: u8,
    table: &'a mut Builder,
    wrong: &'a mut Option<BuildError>,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object, each of whose keys is an entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Unique(Place::Key(&Place::Top, &key)))?;
            if let Err(error) = take_apart(self.table, escaped(&key), value, self.depth) {
                let said = A::Error::custom(&error);
                *self.wrong = Some(error);
                return Err(said);
            }
        }
        Ok(())
    }
}

/// An object is taken apart as deep as is asked for; what is left is the value.
fn take_apart(table: &mut Builder, key: String, value: Value, depth: u8) -> Result<(), BuildError> {
    match value {
        Value::Object(inner) if depth > 1 => inner.into_iter().try_for_each(|(name, value)| {
            take_apart(table, format!("{key}/{}", escaped(&name)), value, depth - 1)
        }),
        value => table.add(key, value.to_string()),
    }
}

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    /// Null is a value too.
    #[serde(default, deserialize_with = "there")]
    value: Option<Value>,
    base64: Option<String>,
}

fn there<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Unique(Place::Key(&Place::Top, "value")).deserialize(deserializer).map(Some)
}

fn read_lines(path: &Path, table: &mut Builder) -> Result<(), EntriesError> {
    let file = fs::File::open(path).map_err(|source| FileError::Open { path: path.into(), source })?;
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    for line in 1_usize.. {
        let wrong = |why: String| EntriesError::Line { path: path.into(), line, why };
        text.clear();
        let read = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut text);
        let read = read.map_err(|source| FileError::Read { path: path.into(), source })?;
        if read == 0 {
            break;
        }
        if text.last() != Some(&b'\n') && text.len() as u64 == LINE_MAX {
            return Err(wrong(format!("is longer than {LINE_MAX} bytes")));
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let Line { key, value, base64 } =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let value = match (value, base64) {
            (None, Some(base64)) => {
                Base64::decode_vec(&base64).map_err(|error| wrong(format!("base64: {error}")))?
            }
            (Some(value), None) => value.to_string().into_bytes(),
            (None, None) => return Err(wrong("has neither \"value\" nor \"base64\"".to_owned())),
            (Some(_), Some(_)) => return Err(wrong("has both \"value\" and \"base64\"".to_owned())),
        };
        table.add(key, value).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

fn folder(path: &Path, prefix: &str, depth: usize, table: &mut Builder) -> Result<(), EntriesError> {
    let wrong = |why: String| EntriesError::Folder { path: path.into(), why };
    if depth > FOLDERS_MAX {
        return Err(wrong(format!("more than {FOLDERS_MAX} folders in each other")));
    }
    for entry in fs::read_dir(path).map_err(|error| wrong(error.to_string()))? {
        let entry = entry.map_err(|error| wrong(error.to_string()))?;
        let name =
            entry.file_name().into_string().map_err(|name| wrong(format!("name {name:?} is not text")))?;
        let (below, key) = (entry.path(), format!("{prefix}{name}"));
        let kind = entry.file_type().map_err(|error| wrong(error.to_string()))?;
        if kind.is_dir() {
            folder(&below, &format!("{key}/"), depth.saturating_add(1), table)?;
        } else if kind.is_file() {
            let bytes = files::read(&below, VALUE_MAX)?;
            table.add(key, bytes).map_err(|source| EntriesError::Table { path: below, source })?;
        } else {
            return Err(wrong(format!("{name:?} is neither a file nor a folder")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Table;

    fn entries(name: &str, text: &str, depth: u8) -> Result<String, String> {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        let table = read(&path, None, depth).map_err(|error| error.to_string())?;
        let table = Table::check(table.build()).unwrap();
        let shown = |(key, value): (&str, &[u8])| format!("{key}={}", String::from_utf8_lossy(value));
        Ok(table.entries("", None).map(shown).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_document_is_taken_apart_as_deep_as_is_asked_for() {
        let text = r#"{"users": {"bob": {"age": 7}, "ann/x": [1, {"a": 2}], "~": null}, "limit": 1.5, "name": "x y"}"#;
        assert_eq!(
            entries("d.json", text, 1).unwrap(),
            r#"limit=1.5 name="x y" users={"ann/x":[1,{"a":2}],"bob":{"age":7},"~":null}"#
        );
        assert_eq!(
            entries("d.json", text, 2).unwrap(),
            r#"limit=1.5 name="x y" users/ann~1x=[1,{"a":2}] users/bob={"age":7} users/~0=null"#
        );
        assert_eq!(
            entries("d.json", text, 9).unwrap(),
            r#"limit=1.5 name="x y" users/ann~1x=[1,{"a":2}] users/bob/age=7 users/~0=null"#
        );
        for (text, why) in [
            ("[]", "expected an object, each of whose keys is an entry"),
            ("{\"a\":1} x", "trailing characters"),
            ("{\"a\":1,\"a\":2}", "key \"a\" is there twice"),
            ("{\"a\":{\"b\":1,\"b\":1}}", "key \"b\" is there twice in \"/a\""),
            (r#"{"x/y":[0,{"c":{"d":1,"\u0064":2}}]}"#, r#"key "d" is there twice in "/x~1y/1/c""#),
            ("{\"\":1}", "expected 1 to 1024"),
        ] {
            let error = entries("d.json", text, 1).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn lines_have_a_key_and_a_value_or_bytes() {
        let text = "{\"key\":\"b\",\"value\":{\"x\": 1}}\n\n{\"key\":\"a\",\"base64\":\"YQ==\"}\n{\"key\":\"c\",\"value\":null}";
        assert_eq!(entries("l.ndjson", text, 1).unwrap(), "a=a b={\"x\":1} c=null");
        for (text, why) in [
            ("{\"key\":\"a\",\"value\":1,\"more\":2}", "line 1: unknown field"),
            (
                "{\"key\":\"a\",\"value\":1}\n{\"key\":\"a\",\"value\":1}\n",
                "line 2: key \"a\" is there twice",
            ),
            ("{\"key\":\"a\",\"value\":1,\"base64\":\"\"}", "has both"),
            ("{\"key\":\"a\",\"base64\":\"?\"}", "base64"),
            ("{\"key\":\"a\"}", "has neither"),
            (
                "{\"key\":\"a\",\"value\":[{\"b\":1,\"b\":2}]}",
                "line 1: key \"b\" is there twice in \"/value/0\"",
            ),
        ] {
            let error = entries("l.jsonl", text, 1).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_folders_files_are_entries_by_their_paths() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("eu")).unwrap();
        fs::write(home.path().join("eu/de"), b"\xff\x00").unwrap();
        fs::write(home.path().join("all"), b"").unwrap();
        let table = Table::check(read(home.path(), None, 1).unwrap().build()).unwrap();
        assert_eq!(table.get("eu/de"), Some(b"\xff\x00".as_slice()));
        assert_eq!((table.get("all"), table.len()), (Some(b"".as_slice()), 2));
        std::os::unix::fs::symlink("/etc/passwd", home.path().join("eu/link")).unwrap();
        let error = read(home.path(), None, 1).unwrap_err().to_string();
        assert!(error.contains("\"link\" is neither a file nor a folder"), "{error}");
    }
}
