//! JSON Patch (RFC 6902), on Rego's values: sets take part, their members being their own keys.

use crate::arguments::Arguments;
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[pure("json.patch", 2, patch)];

fn patch(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let mut document = arguments.get(0)?.clone();
    for operation in arguments.array(1)? {
        let word = |name: &str| operation.get(name).and_then(Value::as_str);
        let field = |name: &str| {
            operation.get(name).ok_or_else(|| Failure::new(format!("missing '{name}' attribute")))
        };
        let path = path(field("path")?)?;
        match word("op").ok_or_else(|| Failure::new("missing 'op' attribute"))? {
            "add" => put(&mut document, &path, field("value")?.clone())?,
            "replace" => {
                take(&mut document, &path)?;
                put(&mut document, &path, field("value")?.clone())?;
            }
            "remove" => drop(take(&mut document, &path)?),
            "move" => {
                let value = take(&mut document, &self::path(field("from")?)?)?;
                put(&mut document, &path, value)?;
            }
            "copy" => {
                let value = find(&document, &self::path(field("from")?)?).ok_or_else(missing)?.clone();
                put(&mut document, &path, value)?;
            }
            "test" => {
                if find(&document, &path) != Some(field("value")?) {
                    return Err(Failure::new("value from EditTree != patch value"));
                }
            }
            other => return Err(Failure::new(format!("unrecognized op '{other}'"))),
        }
    }
    Ok(document)
}

fn missing() -> Failure {
    Failure::new("path does not exist")
}

/// A JSON pointer, with or without its first slash, or an array of keys.
fn path(value: &Value) -> Result<Vec<Value>, Failure> {
    match value {
        Value::String(pointer) => {
            if pointer.is_empty() {
                return Ok(Vec::new());
            }
            // With nothing behind its slash it names what is under the empty string.
            let pointer = pointer.trim_start_matches('/');
            Ok(pointer.split('/').map(|part| part.replace("~1", "/").replace("~0", "~").into()).collect())
        }
        Value::Array(keys) => Ok(keys.clone()),
        _ => Err(Failure::new("path must be a string or an array")),
    }
}

fn index(key: &Value, len: usize) -> Option<usize> {
    let index = match key {
        Value::String(text) if text == "-" => len,
        Value::String(text) => {
            let canonical = text == "0" || !text.starts_with('0');
            canonical.then(|| text.parse().ok()).flatten()?
        }
        other => usize::try_from(other.as_int()?).ok()?,
    };
    (index <= len).then_some(index)
}

fn find<'a>(document: &'a Value, path: &[Value]) -> Option<&'a Value> {
    path.iter().try_fold(document, |value, key| match value {
        Value::Object(object) => object.get(key),
        Value::Array(items) => items.get(index(key, items.len())?),
        Value::Set(items) => items.get(key),
        _ => None,
    })
}

fn put(document: &mut Value, path: &[Value], value: Value) -> Result<(), Failure> {
    let Some((key, rest)) = path.split_first() else {
        *document = value;
        return Ok(());
    };
    if !rest.is_empty() {
        return within(document, key, |inner| put(inner, rest, value));
    }
    match document {
        Value::Object(object) => {
            object.insert(key.clone(), value);
        }
        Value::Array(items) => {
            let at = index(key, items.len()).ok_or_else(missing)?;
            items.insert(at, value);
        }
        Value::Set(items) if *key == value => {
            items.insert(value);
        }
        _ => return Err(missing()),
    }
    Ok(())
}

fn take(document: &mut Value, path: &[Value]) -> Result<Value, Failure> {
    let Some((key, rest)) = path.split_first() else {
        return Ok(std::mem::replace(document, Value::Null));
    };
    if !rest.is_empty() {
        return within(document, key, |inner| take(inner, rest));
    }
    match document {
        Value::Object(object) => object.remove(key).ok_or_else(missing),
        Value::Array(items) => {
            let at = index(key, items.len()).filter(|at| *at < items.len()).ok_or_else(missing)?;
            Ok(items.remove(at))
        }
        Value::Set(items) => items.take(key).ok_or_else(missing),
        _ => Err(missing()),
    }
}

/// Does something to what is under `key`. A member of a set that changes becomes another member.
fn within<T>(
    document: &mut Value,
    key: &Value,
    change: impl FnOnce(&mut Value) -> Result<T, Failure>,
) -> Result<T, Failure> {
    match document {
        Value::Object(object) => change(object.get_mut(key).ok_or_else(missing)?),
        Value::Array(items) => {
            let at = index(key, items.len()).ok_or_else(missing)?;
            change(items.get_mut(at).ok_or_else(missing)?)
        }
        Value::Set(items) => {
            let mut member = items.take(key).ok_or_else(missing)?;
            let result = change(&mut member);
            items.insert(member);
            result
        }
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_value;

    #[test]
    fn a_patch_is_applied_as_a_whole_or_not_at_all() {
        let document = parse_value(r#"{"a":[1,2]}"#).unwrap();
        let good =
            parse_value(r#"[{"op":"add","path":"/a/1","value":9},{"op":"remove","path":"a/0"}]"#).unwrap();
        let bad = parse_value(r#"[{"op":"remove","path":"/b"}]"#).unwrap();
        struct Nobody;
        impl Host for Nobody {
            fn now_ns(&self) -> u64 {
                0
            }
            fn seed(&self) -> [u8; 16] {
                [0; 16]
            }
            fn log(&self, _: &str) {}
        }
        let patched = patch(&Nobody, Arguments(&[document.clone(), good])).unwrap();
        assert_eq!(patched, parse_value(r#"{"a":[9,2]}"#).unwrap());
        assert_eq!(patch(&Nobody, Arguments(&[document, bad])), Err(missing()));
    }
}
