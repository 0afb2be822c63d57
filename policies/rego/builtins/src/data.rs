//! The tenant's data snapshots. OPA does not know these functions by itself: who calls them compiles with
//! `policies/rego/capabilities.json` or by `portcullis policy build`, which tells OPA of them.

use std::collections::BTreeMap;

use crate::arguments::Arguments;
use crate::text::parse_json;
use crate::value::Value;
use crate::{Answer, Builtin, Capability, Failure, Host, with};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    with(Capability::Data, "portcullis.data.get", 1, get),
    with(Capability::Data, "portcullis.data.entries", 1, entries),
];

/// The value of a key; undefined where there is none.
fn get(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let key = arguments.string(0)?;
    value(host.data(key).ok_or_else(|| Failure::new("no such key"))?)
}

/// All entries whose keys begin like this, as an object.
fn entries(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let prefix = arguments.string(0)?;
    let (mut found, mut after) = (BTreeMap::new(), None);
    loop {
        let next = host.entries(prefix, after.as_deref());
        let Some((last, _)) = next.last() else { return Ok(Value::Object(found)) };
        after = Some(last.clone());
        for (key, bytes) in next {
            found.insert(Value::String(key), value(bytes)?);
        }
    }
}

/// JSON as what it says, other text as a string.
fn value(bytes: Vec<u8>) -> Answer {
    let text = String::from_utf8(bytes).map_err(|_| Failure::new("its value is no text"))?;
    Ok(parse_json(&text).unwrap_or(Value::String(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(BTreeMap<&'static str, &'static [u8]>);

    impl Host for Table {
        fn now_ns(&self) -> u64 {
            0
        }

        fn seed(&self) -> [u8; 16] {
            [0; 16]
        }

        fn log(&self, _: &str) {}

        fn data(&self, key: &str) -> Option<Vec<u8>> {
            self.0.get(key).map(|value| value.to_vec())
        }

        /// Two at a time.
        fn entries(&self, prefix: &str, after: Option<&str>) -> Vec<(String, Vec<u8>)> {
            let all = self.0.iter().filter(|(key, _)| key.starts_with(prefix));
            let rest = all.filter(|(key, _)| after.is_none_or(|after| **key > after));
            rest.take(2).map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect()
        }
    }

    fn called(name: &str, argument: Value) -> Option<Value> {
        let table: [(&str, &[u8]); 5] = [
            ("a/1", b"{\"x\":[1]}"),
            ("a/2", b"plain"),
            ("a/3", b"\"text\""),
            ("b/1", b"7"),
            ("bytes", b"\xff"),
        ];
        let function = crate::find(name)?;
        function.call(&Table(table.into_iter().collect()), &[argument]).ok()
    }

    #[test]
    fn values_are_what_their_json_says_and_missing_ones_undefined() {
        let get = |key: &str| called("portcullis.data.get", key.into());
        assert_eq!(get("a/1"), parse_json("{\"x\":[1]}").ok());
        assert_eq!(get("a/2"), Some("plain".into()));
        assert_eq!(get("a/3"), Some("text".into()));
        assert_eq!([get("a"), get(""), get("bytes")], [None, None, None]);
        assert_eq!(called("portcullis.data.get", Value::Null), None);
    }

    #[test]
    fn entries_come_page_by_page_until_there_are_none() {
        let entries = |prefix: &str| called("portcullis.data.entries", prefix.into());
        let expected = r#"{"a/1":{"x":[1]},"a/2":"plain","a/3":"text"}"#;
        assert_eq!(entries("a/"), parse_json(expected).ok());
        assert_eq!(entries("c"), Some(Value::Object(BTreeMap::new())));
        assert_eq!(entries(""), None, "one of them is no text");
    }
}
