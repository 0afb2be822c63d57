//! What a policy may look up while it is tried: a JSON object, whose keys are the keys.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::engine::{Data, HostCall};

/// As it stands in a file: a text is its own bytes, `{"hex": ".."}` the bytes that it says, and everything else is JSON.
pub type Facts = Map<String, Value>;

/// What cannot be looked up.
#[derive(Debug, thiserror::Error)]
#[error("data {key:?}: \"hex\" has to be pairs of hexadecimal digits")]
pub struct FactsError {
    key: String,
}

/// A snapshot of them.
///
/// # Errors
/// When one says that it is bytes and is not.
pub fn facts(facts: &Facts) -> Result<Data, FactsError> {
    let mut entries = Vec::with_capacity(facts.len());
    for (key, value) in facts {
        let bytes = bytes(value).ok_or_else(|| FactsError { key: key.clone() })?;
        entries.push((key.clone(), bytes));
    }
    Ok(Data::of(entries))
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        Value::Object(object) if object.len() == 1 && object.contains_key("hex") => {
            hex::decode(object.get("hex")?.as_str()?).ok()
        }
        other => Some(other.to_string().into_bytes()),
    }
}

/// What was looked up and found: as much of the data as the same policy needs to do the same again. A listing is whole up to
/// its last key, and what is known besides comes after that, so it comes out the same.
#[must_use]
pub fn facts_read(calls: &[HostCall]) -> Option<Facts> {
    let mut found = BTreeMap::new();
    let mut asked = false;
    for call in calls {
        match call {
            HostCall::DataGet { key, value } => {
                asked = true;
                found.extend(value.as_ref().map(|value| (key.clone(), value.clone())));
            }
            HostCall::DataEntries { entries, .. } => {
                asked = true;
                found.extend(entries.iter().map(|one| (one.key.clone(), one.value.clone())));
            }
            _ => {}
        }
    }
    let written = |(key, value): (String, Vec<u8>)| match String::from_utf8(value) {
        Ok(text) => (key, Value::String(text)),
        Err(error) => (key, serde_json::json!({ "hex": hex::encode(error.into_bytes()) })),
    };
    asked.then(|| found.into_iter().map(written).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Listed;

    fn read(json: &str) -> Result<Data, FactsError> {
        facts(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn values_are_texts_bytes_or_json() {
        let data = read(r#"{"b": {"hex": "00ff"}, "a": "text", "c": {"d": [1, null]}, "d": 7}"#).unwrap();
        let all: Vec<_> =
            data.entries("", None).map(|(key, value)| (key.to_owned(), value.to_vec())).collect();
        let expected: [(&str, &[u8]); 4] =
            [("a", b"text"), ("b", &[0, 255]), ("c", br#"{"d":[1,null]}"#), ("d", b"7")];
        assert_eq!(all, expected.map(|(key, value)| (key.to_owned(), value.to_vec())));
        let error = read(r#"{"k": {"hex": "0"}}"#).unwrap_err().to_string();
        assert_eq!(error, "data \"k\": \"hex\" has to be pairs of hexadecimal digits");
    }

    #[test]
    fn what_was_read_is_enough_to_read_it_again() {
        let calls = [
            HostCall::DataGet { key: "x".into(), value: Some(vec![255]) },
            HostCall::DataGet { key: "missing".into(), value: None },
            HostCall::DataEntries {
                prefix: "a".into(),
                after: None,
                limit: 1,
                entries: vec![Listed { key: "a1".into(), value: b"one".to_vec() }],
            },
        ];
        let read = facts_read(&calls).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), r#"{"a1":"one","x":{"hex":"ff"}}"#);
        let again = facts(&read).unwrap();
        assert_eq!((again.get("x"), again.get("missing")), (Some(&[255][..]), None));
        assert_eq!(facts_read(&[HostCall::Clock { ns: 1 }]), None);
    }
}
