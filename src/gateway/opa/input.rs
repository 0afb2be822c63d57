//! The input, as exactly the bytes that it was sent as. A policy reads it itself: what it is turned into here, and back, could
//! be something else to whoever acts on the decision.

use std::str::from_utf8;

use serde::de::{Deserialize, IgnoredAny};
use serde_json::Deserializer;

use super::answer::Refused;

/// What stands for an input that was not sent.
pub(super) const NONE: &str = "null";

/// The input of a request whose body is `{"input": ...}`, or nothing.
pub(super) fn of_envelope(body: Option<&[u8]>) -> Result<&str, Refused> {
    let Some(body) = body else { return Ok(NONE) };
    let mut rest = Rest(body);
    let mut input = None;
    rest.take(b'{')?;
    if !rest.takes(b'}') {
        loop {
            let (key, _): (String, _) = rest.value()?;
            rest.take(b':')?;
            let (_, value): (IgnoredAny, _) = rest.value()?;
            if key == "input" {
                if input.replace(value).is_some() {
                    return Err(Refused::parameter("body: the key \"input\" comes more than once"));
                }
            } else if key.eq_ignore_ascii_case("input") {
                // OPA would take it, and of two of them one.
                return Err(Refused::parameter("body: the key has to be \"input\", in lower case"));
            }
            if !rest.takes(b',') {
                rest.take(b'}')?;
                break;
            }
        }
    }
    rest.end()?;
    input.map_or(Ok(NONE), |input| utf8("body", input))
}

/// Of one that is the whole body, or a parameter.
pub(super) fn of_whole<'a>(what: &str, body: Option<&'a [u8]>) -> Result<&'a str, Refused> {
    let Some(body) = body else { return Ok(NONE) };
    let mut rest = Rest(body);
    let (_, input): (IgnoredAny, _) = rest.value()?;
    rest.end()?;
    utf8(what, input)
}

fn utf8<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Refused> {
    from_utf8(bytes).map_err(|_| Refused::parameter(format!("{what}: it is not UTF-8")))
}

/// What of a document is still to be read. serde_json reads the values, and says where they end; it has a type for the text of
/// a value only with a feature that all who share it would be built with.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// The next value, and its bytes.
    fn value<T: Deserialize<'a>>(&mut self) -> Result<(T, &'a [u8]), Refused> {
        self.skip_space();
        let mut values = Deserializer::from_slice(self.0).into_iter();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(Refused::parameter(format!("input: no JSON: {error}"))),
            None => return Err(Refused::parameter("input: no JSON: it ends too early")),
        };
        let (bytes, rest) = self.0.split_at_checked(values.byte_offset()).unwrap_or((self.0, &[]));
        self.0 = rest;
        Ok((value, bytes))
    }

    fn take(&mut self, byte: u8) -> Result<(), Refused> {
        if self.takes(byte) {
            return Ok(());
        }
        Err(Refused::parameter(format!("input: no JSON object: {:?} is missing", char::from(byte))))
    }

    fn takes(&mut self, byte: u8) -> bool {
        self.skip_space();
        match self.0.split_first() {
            Some((first, rest)) if *first == byte => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    fn end(&mut self) -> Result<(), Refused> {
        self.skip_space();
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Refused::parameter("input: something follows the document"))
        }
    }

    /// JSON's, which is less than ASCII's.
    fn skip_space(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_stay_as_they_are() {
        for (body, input) in [
            (r#"{"input": {"b" : 1.0, "a":1e2, "a": "\u0041"}  }"#, r#"{"b" : 1.0, "a":1e2, "a": "\u0041"}"#),
            ("{\"input\":\t 12345678901234567890123 , \"x\": [{\"input\": 2}]}", "12345678901234567890123"),
            (r#"{"\u0069nput": "a"}"#, r#""a""#),
            (r#"{"input": null}"#, "null"),
            ("{}", "null"),
            (r#"{"inputs": 1}"#, "null"),
        ] {
            assert_eq!(of_envelope(Some(body.as_bytes())).unwrap(), input, "{body}");
        }
        assert_eq!(of_envelope(None).unwrap(), "null");
        assert_eq!(of_whole("body", Some(b" [1, 2]\n")).unwrap(), "[1, 2]");
        assert_eq!(of_whole("body", None).unwrap(), "null");
    }

    #[test]
    fn what_could_be_two_inputs_is_refused() {
        for body in [
            r#"{"input": 1, "input": 1}"#,
            r#"{"input": 1, "\u0069nput": 2}"#,
            r#"{"Input": 1}"#,
            r#"{"input": 1, "INPUT": 2}"#,
            r#"{"input": 1} {"input": 2}"#,
            r#"{"input": 1}x"#,
            r#"[{"input": 1}]"#,
            r#""input""#,
            r#"{"input": }"#,
            r#"{"input": 01}"#,
            r#"{"input": 1"#,
            r#"{"input": 1,}"#,
            r#"{"input": 1 "a": 2}"#,
            r#"{,"input": 1}"#,
            r#"{input: 1}"#,
            r#"{1: 1, "input": 1}"#,
            "{\"input\":\x0c1}",
            r#"{"input": NaN}"#,
            "input: 1",
            " ",
        ] {
            assert_eq!(of_envelope(Some(body.as_bytes())).unwrap_err().status(), 400, "{body}");
        }
        for body in [&b"1 2"[..], b"", b"{", b"\"\xff\"", b"tru"] {
            assert_eq!(of_whole("body", Some(body)).unwrap_err().status(), 400, "{body:?}");
        }
        assert!(of_envelope(Some(b"{\"input\": \"\xff\"}")).is_err());
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = "[".repeat(500_000) + &"]".repeat(500_000);
        assert_eq!(of_envelope(Some(format!("{{\"input\": {deep}}}").as_bytes())).unwrap(), deep);
        assert!(of_envelope(Some(format!("{{\"other\": {deep}}}").as_bytes())).is_ok());
    }

    proptest! {
        /// Whatever is taken is JSON to serde_json as well, with that input; and what it takes is, but for doubled keys.
        #[test]
        fn an_envelope_is_what_a_parser_of_json_takes_for_one(
            text in "\\{ ?\"(input|a|\\\\u0061)\" ?: ?([0-9]{1,3}|\"[a-z]\"|\\[\\]|\\{\"input\":1\\}|-|tru)[,}] ?(\"b\":1)?[}\\]] ?x?")
        {
            use serde_json::Value;
            let ours = of_envelope(Some(text.as_bytes()));
            let theirs = serde_json::from_str::<Value>(&text);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}: {:?}", text, ours);
            if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                let input = theirs.get("input").cloned().unwrap_or(Value::Null);
                prop_assert_eq!(serde_json::from_str::<Value>(ours).unwrap(), input);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}\":,a-z0-9 ]{0,64}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = of_envelope(Some(bytes));
                let _ = of_whole("body", Some(bytes));
            }
        }
    }
}
