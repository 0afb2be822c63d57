//! Bytes as people write them: text where they are text, hexadecimal digits where not.

use std::fmt;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

/// In JSON `"text"`, `{"text": ".."}` or `{"hex": "00ff"}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub(super) fn from_hex(digits: &str) -> Result<Self, &'static str> {
        hex::decode(digits).map(Self).map_err(|_| "\"hex\" has to be pairs of hexadecimal digits")
    }

    /// `{"text": ..}` or `{"hex": ..}`, for places where people expect to be told which.
    #[must_use]
    pub fn as_object(&self) -> Value {
        match std::str::from_utf8(&self.0) {
            Ok(text) => json!({ "text": text }),
            Err(_) => json!({ "hex": hex::encode(&self.0) }),
        }
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => self.as_object().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, {\"text\": \"..\"} or {\"hex\": \"..\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                Ok(text.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bytes, A::Error> {
                let bytes = match map.next_key::<String>()?.as_deref() {
                    Some("text") => map.next_value::<String>()?.as_str().into(),
                    Some("hex") => {
                        Bytes::from_hex(&map.next_value::<String>()?).map_err(de::Error::custom)?
                    }
                    Some(other) => return Err(de::Error::unknown_field(other, &["text", "hex"])),
                    None => return Err(de::Error::invalid_length(0, &self)),
                };
                match map.next_key::<String>()? {
                    None => Ok(bytes),
                    Some(_) => Err(de::Error::custom("bytes are \"text\" or \"hex\", not both")),
                }
            }
        }
        deserializer.deserialize_any(Shape)
    }
}
