//! Rego values as text: JSON with sets (`{1, 2}`, `set()`) and with keys that need not be strings.
//!
//! It is what values travel in between OPA's code and ours, and JSON is the subset that policies read and write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter, Write as _};

use crate::value::{Number, Value};

/// Values within values. OPA's own reader recurses without a limit, so nothing deeper may reach it from a request.
pub const DEPTH_MAX: usize = 100;

/// Where reading stopped, bytes from the start, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub at: usize,
    pub why: &'static str,
}

impl Display for Unreadable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.why, self.at)
    }
}

/// Reads what OPA's `opa_value_dump` wrote.
///
/// # Errors
/// If it is not a value, all of it.
pub fn parse_value(text: &str) -> Result<Value, Unreadable> {
    Reader { text, at: 0, rego: true }.whole()
}

/// Reads JSON, and nothing but JSON. Of two entries with one key the last one counts.
///
/// # Errors
/// If it is not JSON, all of it, or too deep.
pub fn parse_json(text: &str) -> Result<Value, Unreadable> {
    Reader { text, at: 0, rego: false }.whole()
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    rego: bool,
}

impl<'a> Reader<'a> {
    fn whole(mut self) -> Result<Value, Unreadable> {
        let value = self.value(0)?;
        self.space();
        if self.at == self.text.len() { Ok(value) } else { Err(self.unreadable("more than one value")) }
    }

    fn unreadable(&self, why: &'static str) -> Unreadable {
        Unreadable { at: self.at, why }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Steps over `byte`, if it is there.
    fn take(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, Unreadable> {
        if self.rest().starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            Err(self.unreadable("no value"))
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Unreadable> {
        if depth > DEPTH_MAX {
            return Err(self.unreadable("values nested too deep"));
        }
        self.space();
        match self.peek() {
            Some(b'n') => self.word("null", Value::Null),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b's') if self.rego => self.word("set()", Value::Set(BTreeSet::new())),
            Some(b'"') => self.string().map(Value::String),
            Some(b'[') => self.array(depth),
            Some(b'{') => self.object_or_set(depth),
            Some(b'-' | b'0'..=b'9') => self.number().map(Value::Number),
            _ => Err(self.unreadable("no value")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Unreadable> {
        self.at += 1;
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Ok(Value::Array(items));
            }
            if !self.take(b',') {
                return Err(self.unreadable("no comma"));
            }
        }
    }

    fn object_or_set(&mut self, depth: usize) -> Result<Value, Unreadable> {
        self.at += 1;
        if self.take(b'}') {
            return Ok(Value::Object(BTreeMap::new()));
        }
        let (mut object, mut set) = (BTreeMap::new(), BTreeSet::new());
        loop {
            self.space();
            let key = match self.peek() {
                Some(b'"') => Value::String(self.string()?),
                _ if self.rego => self.value(depth + 1)?,
                _ => return Err(self.unreadable("no string as a key")),
            };
            if set.is_empty() && self.take(b':') {
                object.insert(key, self.value(depth + 1)?);
            } else if self.rego && object.is_empty() {
                set.insert(key);
            } else {
                return Err(self.unreadable("no colon"));
            }
            if self.take(b'}') {
                return Ok(if object.is_empty() { Value::Set(set) } else { Value::Object(object) });
            }
            if !self.take(b',') {
                return Err(self.unreadable("no comma"));
            }
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<Number, Unreadable> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || (zero && whole > 1) {
            return Err(self.unreadable("no number"));
        }
        let mut float = false;
        if self.peek() == Some(b'.') {
            self.at += 1;
            float = true;
            if self.digits() == 0 {
                return Err(self.unreadable("no digits after the point"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            float = true;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return Err(self.unreadable("no digits in the exponent"));
            }
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        if !float && let Ok(int) = text.parse() {
            return Ok(Number::Int(int));
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Number::Float(number)),
            _ => Err(self.unreadable("a number too large")),
        }
    }

    fn string(&mut self) -> Result<String, Unreadable> {
        self.at += 1;
        let mut string = String::new();
        loop {
            let rest = self.rest();
            let plain = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
            let Some(plain) = plain else { return Err(self.unreadable("a string without an end")) };
            string.push_str(rest.get(..plain).unwrap_or_default());
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                _ => return Err(self.unreadable("a control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Unreadable> {
        let letter = self.text.as_bytes().get(self.at + 1).copied();
        self.at += 2;
        Ok(match letter {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.unreadable("an unknown escape")),
        })
    }

    /// Four hexadecimal digits, or two times four for what UTF-16 has in two halves. A half alone is the replacement
    /// character, as Go reads it.
    fn unicode(&mut self) -> Result<char, Unreadable> {
        let first = self.hex()?;
        if (0xd800..0xdc00).contains(&first) && self.rest().starts_with("\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Result<u32, Unreadable> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let digits = digits.ok_or_else(|| self.unreadable("no four hexadecimal digits"))?;
        self.at += 4;
        u32::from_str_radix(digits, 16).map_err(|_| self.unreadable("no four hexadecimal digits"))
    }
}

/// How values are written: the separators, and what JSON does not have.
#[derive(Clone, Copy)]
struct Style {
    comma: &'static str,
    colon: &'static str,
    /// Sets are arrays, and every key is a string.
    json: bool,
}

/// As Rego prints a value, with spaces: what `sprintf` shows.
impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        append(&mut text, self, Style { comma: ", ", colon: ": ", json: false });
        f.write_str(&text)
    }
}

/// As `opa_value_parse` reads it.
#[must_use]
pub fn write_value(value: &Value) -> String {
    let mut text = String::new();
    append(&mut text, value, Style { comma: ",", colon: ":", json: false });
    text
}

/// As JSON, without spaces; sets become arrays, and keys that are no strings become strings of their text.
#[must_use]
pub fn write_json(value: &Value) -> String {
    let mut text = String::new();
    append_json(&mut text, value);
    text
}

/// The same, behind what `text` has already.
pub fn append_json(text: &mut String, value: &Value) {
    append(text, value, Style { comma: ",", colon: ":", json: true });
}

fn append(text: &mut String, value: &Value, style: Style) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => append_shown(text, number),
        Value::String(string) => append_string(text, string),
        Value::Array(items) => list(text, ('[', ']'), items.iter(), style),
        Value::Set(items) if style.json => list(text, ('[', ']'), items.iter(), style),
        Value::Set(items) if items.is_empty() => text.push_str("set()"),
        Value::Set(items) => list(text, ('{', '}'), items.iter(), style),
        Value::Object(object) => {
            text.push('{');
            for (index, (key, value)) in object.iter().enumerate() {
                if index > 0 {
                    text.push_str(style.comma);
                }
                match key {
                    Value::String(_) => append(text, key, style),
                    _ if style.json => append_string(text, &write_json(key)),
                    _ => append(text, key, style),
                }
                text.push_str(style.colon);
                append(text, value, style);
            }
            text.push('}');
        }
    }
}

fn list<'a>(
    text: &mut String,
    (open, close): (char, char),
    items: impl Iterator<Item = &'a Value>,
    style: Style,
) {
    text.push(open);
    for (index, item) in items.enumerate() {
        if index > 0 {
            text.push_str(style.comma);
        }
        append(text, item, style);
    }
    text.push(close);
}

fn append_shown(text: &mut String, shown: &impl Display) {
    // Writing to a string never fails.
    let _ = write!(text, "{shown}");
}

/// A JSON string.
pub fn append_string(text: &mut String, string: &str) {
    text.push('"');
    append_escaped(text, string);
    text.push('"');
}

/// What stands between the quotes of a JSON string. Control characters are the only ones that have to be escaped; what
/// lies between two of them is copied as it is.
pub fn append_escaped(text: &mut String, string: &str) {
    let mut rest = string;
    while let Some(plain) = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | ..b' ' | 0x7f)) {
        let (copied, special) = rest.split_at(plain);
        text.push_str(copied);
        let (special, after) = special.split_at(1);
        match special {
            "\"" => text.push_str("\\\""),
            "\\" => text.push_str("\\\\"),
            "\n" => text.push_str("\\n"),
            "\r" => text.push_str("\\r"),
            "\t" => text.push_str("\\t"),
            control => control.bytes().for_each(|byte| append_shown(text, &format_args!("\\u{byte:04x}"))),
        }
        rest = after;
    }
    text.push_str(rest);
}

impl Display for Number {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Int(int) => write!(f, "{int}"),
            // Without an exponent: OPA's reader of numbers takes either.
            Self::Float(float) => write!(f, "{float}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in
            ["null", "[]", "{}", "set()", "{1,2,[]}", r#"{"a":{"b":[1,-2,2.5,"\n\"ü"]}}"#, r#"{[1]:set()}"#]
        {
            assert_eq!(write_value(&parse_value(text).unwrap()), text);
        }
        let value = parse_value(r#"{"b":{2,1},1:true}"#).unwrap();
        assert_eq!(value.to_string(), r#"{1: true, "b": {1, 2}}"#);
        assert_eq!(write_json(&value), r#"{"1":true,"b":[1,2]}"#);
    }

    #[test]
    fn json_is_json() {
        for text in [
            "",
            "01",
            "1.",
            "[1,]",
            "{1:2}",
            "{\"a\"}",
            "set()",
            "\"\u{1}\"",
            "\"\\x\"",
            "1 2",
            "nul",
            "-",
            "1e",
        ] {
            assert!(parse_json(text).is_err(), "{text}");
        }
        assert_eq!(parse_json(r#""\ud83d\ude00\u00e4\ud800""#).unwrap(), Value::from("😀ä\u{fffd}"));
        assert_eq!(parse_json("[1.0,1]").unwrap(), parse_json("[1,1e0]").unwrap());
        let deep = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse_json(&deep(DEPTH_MAX)).is_ok());
        assert_eq!(parse_json(&deep(DEPTH_MAX + 2)).unwrap_err().why, "values nested too deep");
    }

    #[test]
    fn order_is_regos() {
        let text = r#"{null,false,true,-1,1.5,2,"a","b",[],[1],{},{"a":1},set()}"#;
        assert_eq!(write_value(&parse_value(text).unwrap()), text);
    }
}
