//! YAML, as JSON: what has no place there (tags, keys that are no text, binary) fails.

use std::collections::BTreeMap;

use yaml_rust2::{Yaml, YamlLoader};

use crate::arguments::{Arguments, members};
use crate::text::{DEPTH_MAX, write_json};
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("yaml.marshal", 1, marshal),
    pure("yaml.unmarshal", 1, unmarshal),
    pure("yaml.is_valid", 1, is_valid),
];

/// Booleans to readers of an older YAML.
const YAML_1_1: [&str; 4] = ["y", "Y", "n", "N"];

fn is_valid(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(arguments.get(0)?.as_str().is_some_and(|text| parse(text).is_ok()).into())
}

fn unmarshal(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    parse(arguments.string(0)?)
}

fn parse(text: &str) -> Answer {
    let documents =
        YamlLoader::load_from_str(text).map_err(|error| Failure::new(format!("yaml: {error}")))?;
    documents.first().map_or(Ok(Value::Null), |document| convert(document, 0))
}

fn convert(yaml: &Yaml, depth: usize) -> Answer {
    if depth > DEPTH_MAX {
        return Err(Failure::new("yaml: values nested too deep"));
    }
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(bool) => (*bool).into(),
        Yaml::Integer(int) => (*int).into(),
        Yaml::Real(text) => {
            let float = yaml.as_f64().filter(|float| float.is_finite());
            Value::from(float.ok_or_else(|| Failure::new(format!("yaml: no number: {text}")))?)
        }
        Yaml::String(text) => match text.as_str() {
            // What YAML 1.1 reads as booleans, as Go's reader does.
            "yes" | "Yes" | "YES" | "on" | "On" | "ON" => true.into(),
            "no" | "No" | "NO" | "off" | "Off" | "OFF" => false.into(),
            text => text.into(),
        },
        Yaml::Array(items) => items.iter().map(|item| convert(item, depth + 1)).collect::<Result<_, _>>()?,
        Yaml::Hash(entries) => {
            let mut object = BTreeMap::new();
            for (key, value) in entries {
                let key = match convert(key, depth + 1)? {
                    key @ Value::String(_) => key,
                    key @ (Value::Number(_) | Value::Bool(_)) => write_json(&key).into(),
                    _ => return Err(Failure::new("yaml: a key that is no text")),
                };
                object.insert(key, convert(value, depth + 1)?);
            }
            Value::Object(object)
        }
        Yaml::Alias(_) | Yaml::BadValue => return Err(Failure::new("yaml: no value")),
    })
}

fn marshal(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let mut out = String::new();
    write(&mut out, arguments.get(0)?, 0, false);
    Ok(out.into())
}

/// Writes a value in block style. `inline` is true behind a dash, where the first line is begun already.
fn write(out: &mut String, value: &Value, indent: usize, inline: bool) {
    let pad = |out: &mut String, first: bool| {
        if !(first && inline) {
            out.push_str(&" ".repeat(indent));
        }
    };
    match (value, members(value)) {
        (_, Some(items)) if !items.is_empty() => {
            for (index, item) in items.into_iter().enumerate() {
                pad(out, index == 0);
                out.push_str("- ");
                write(out, item, indent + 2, true);
            }
        }
        (Value::Object(object), _) if !object.is_empty() => {
            for (index, (key, value)) in object.iter().enumerate() {
                pad(out, index == 0);
                let key = key.as_str().map_or_else(|| write_json(key), str::to_owned);
                out.push_str(&scalar(&key));
                out.push(':');
                match (value, members(value)) {
                    (_, Some(items)) if !items.is_empty() => {
                        out.push('\n');
                        write(out, value, indent, false);
                    }
                    (Value::Object(inner), _) if !inner.is_empty() => {
                        out.push('\n');
                        write(out, value, indent + 2, false);
                    }
                    _ => {
                        out.push(' ');
                        write(out, value, indent, true);
                    }
                }
            }
        }
        (Value::String(text), _) => {
            out.push_str(&scalar(text));
            out.push('\n');
        }
        _ => {
            out.push_str(&write_json(value));
            out.push('\n');
        }
    }
}

/// Plain where a reader gets the same string back, else in quotes.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || " _./-+@".contains(c);
    let safe = !text.is_empty()
        && text.chars().all(plain)
        && text.chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '/')
        && !text.ends_with(' ');
    if safe && parse(text) == Ok(text.into()) && !YAML_1_1.contains(&text) {
        return text.to_owned();
    }
    if text.chars().any(|c| c < ' ') { write_json(&text.into()) } else { json_or_single(text) }
}

fn json_or_single(text: &str) -> String {
    // As Go's writer: double quotes where the plain form would be another scalar, single ones where it would be none.
    let other = !matches!(parse(text), Err(_) | Ok(Value::String(_) | Value::Object(_) | Value::Array(_)));
    if text.is_empty() || other || YAML_1_1.contains(&text) {
        write_json(&text.into())
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}
