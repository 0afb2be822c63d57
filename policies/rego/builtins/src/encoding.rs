//! Hexadecimal, base64, URL queries, and JSON with indentation.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64ct::{Base64UrlUnpadded, Encoding as _};

use crate::arguments::{Arguments, members};
use crate::text::{append_string, write_json};
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("base64url.encode_no_pad", 1, base64url_encode),
    pure("hex.encode", 1, hex_encode),
    pure("hex.decode", 1, hex_decode),
    pure("urlquery.encode", 1, query_encode),
    pure("urlquery.decode", 1, query_decode),
    pure("urlquery.encode_object", 1, query_encode_object),
    pure("urlquery.decode_object", 1, query_decode_object),
    pure("json.marshal_with_options", 2, marshal_with_options),
];

fn base64url_encode(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(Base64UrlUnpadded::encode_string(arguments.string(0)?.as_bytes()).into())
}

/// Base64 for URLs, whether it is padded or not.
pub(crate) fn base64url(text: &str) -> Result<Vec<u8>, Failure> {
    let unpadded = text.trim_end_matches('=');
    let decoded = Base64UrlUnpadded::decode_vec(unpadded);
    // The bits that the last character has too many of are nobody's; OPA reads over them.
    let decoded = decoded.ok().or_else(|| Base64UrlUnpadded::decode_vec(&without_spare_bits(unpadded)?).ok());
    decoded.ok_or_else(|| Failure::new("illegal base64url string"))
}

/// The same with those bits of the last character zero that belong to no byte.
fn without_spare_bits(text: &str) -> Option<String> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let kept = match text.len() % 4 {
        2 => 0x30,
        3 => 0x3c,
        _ => return None,
    };
    let (start, last) = text.split_at_checked(text.len() - 1)?;
    let last = ALPHABET.get(ALPHABET.find(last)? & kept..)?.chars().next()?;
    Some(format!("{start}{last}"))
}

/// A Rego string is text; bytes that are none show as Go shows them.
pub(crate) fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hex_encode(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(hex(arguments.string(0)?.as_bytes()).into())
}

fn hex_decode(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    unhex(arguments.string(0)?).map(|bytes| text(bytes).into()).ok_or_else(|| Failure::new("not hexadecimal"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    rest.is_empty().then_some(())?;
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

/// Undoes the escapes of a query: `+` is a space.
pub fn unescape(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit =
                    || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit()? << 4 | digit()?
            }
            byte => byte,
        });
    }
    Some(text(bytes))
}

fn query_encode(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(escape(arguments.string(0)?).into())
}

fn query_decode(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    unescape(arguments.string(0)?).map(Value::from).ok_or_else(|| Failure::new("invalid URL escape"))
}

fn query_encode_object(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let wrong = || Failure::new("values must be string, array[string], or set[string]");
    let mut pairs = Vec::new();
    for (key, value) in arguments.object(0)? {
        let key = key.as_str().map_or_else(|| write_json(key), str::to_owned);
        let values = match value {
            Value::String(_) => vec![value],
            other => members(other).ok_or_else(wrong)?,
        };
        for value in values {
            pairs.push(format!("{}={}", escape(&key), escape(value.as_str().ok_or_else(wrong)?)));
        }
    }
    Ok(pairs.join("&").into())
}

fn query_decode_object(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    parse_query(arguments.string(0)?).map(Value::Object).ok_or_else(|| Failure::new("invalid query"))
}

/// The parameters of a query, each with all its values.
pub fn parse_query(query: &str) -> Option<BTreeMap<Value, Value>> {
    let mut object: BTreeMap<Value, Value> = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return None;
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let values = object.entry(unescape(key)?.into()).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(values) = values {
            values.push(unescape(value)?.into());
        }
    }
    Some(object)
}

fn marshal_with_options(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (mut prefix, mut indent, mut implied, mut pretty) = ("", "\t", false, None);
    for (key, value) in arguments.object(1)? {
        match (key.as_str(), value) {
            (Some("prefix"), Value::String(text)) => (prefix, implied) = (text, true),
            (Some("indent"), Value::String(text)) => (indent, implied) = (text, true),
            (Some("pretty"), Value::Bool(wanted)) => pretty = Some(*wanted),
            (key, _) => return Err(Failure::new(format!("object contained unknown key {key:?}"))),
        }
    }
    let value = arguments.get(0)?;
    if !pretty.unwrap_or(implied) {
        return Ok(write_json(value).into());
    }
    let mut out = prefix.to_owned();
    indented(&mut out, value, prefix, indent, 0);
    Ok(out.into())
}

fn indented(out: &mut String, value: &Value, prefix: &str, indent: &str, depth: usize) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(prefix);
        out.push_str(&indent.repeat(depth));
    };
    if let Some(items) = members(value) {
        out.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            line(out, depth + 1);
            indented(out, item, prefix, indent, depth + 1);
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(']');
    } else if let Value::Object(object) = value {
        out.push('{');
        for (index, (key, value)) in object.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            line(out, depth + 1);
            let key = key.as_str().map_or_else(|| write_json(key), str::to_owned);
            append_string(out, &key);
            out.push_str(": ");
            indented(out, value, prefix, indent, depth + 1);
        }
        if !object.is_empty() {
            line(out, depth);
        }
        out.push('}');
    } else {
        out.push_str(&write_json(value));
    }
}
