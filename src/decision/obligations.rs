//! What a proxy has to do with a request or its answer besides letting it through, and what none of it may be.
//!
//! A worker checks this when a guest has returned. Whoever gets an answer checks it again, since a worker that was taken
//! over says what it likes: a line break in a value, written by a proxy to a connection that others share, would reach
//! beyond the worker's own class.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Most headers or metadata of one kind.
pub const ENTRIES_MAX: usize = 128;
/// Longest name of a header, bytes.
pub const HEADER_NAME_MAX: usize = 256;

/// Headers that belong to a connection or to a message's framing: setting one would desynchronise a proxy.
const NOT_A_POLICYS: [&str; 12] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What the proxy has to do with the request or its answer. What is decoded is bounded; whether it is fit to be heeded
/// says [`Self::check`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obligations {
    /// Status for the client, 100 to 599; for denials mostly.
    pub status: Option<u16>,
    #[serde(deserialize_with = "entries")]
    pub headers_set: Vec<HeaderValue>,
    #[serde(deserialize_with = "entries")]
    pub headers_append: Vec<HeaderValue>,
    #[serde(deserialize_with = "entries")]
    pub headers_remove: Vec<String>,
    pub body: Option<Bytes>,
    #[serde(deserialize_with = "entries")]
    pub metadata: Vec<Metadatum>,
}

/// A header a policy wants set: name is a token, value is text without control characters (both checked).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderValue {
    pub name: String,
    pub value: Bytes,
}

/// A key and a value for the proxy's log or its later filters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadatum {
    pub key: String,
    pub value: String,
}

/// Why obligations are not heeded, and with them the answer they came in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("status {0} is not 100 to 599")]
    Status(u16),
    #[error("{list} has {length} entries, at most {ENTRIES_MAX} are taken")]
    Entries { list: &'static str, length: usize },
    #[error("{list}: {name:?} is not a header name")]
    Name { list: &'static str, name: String },
    #[error("{list}: {name:?} belongs to the connection, not to a policy")]
    Reserved { list: &'static str, name: String },
    /// A CR or LF would end the header and begin whatever the policy likes.
    #[error("{list}: value of {name:?} has a control character")]
    Control { list: &'static str, name: String },
    /// Bytes as HTTP has them, but what is not text means one thing to one proxy and another to the next.
    #[error("{list}: value of {name:?} is not UTF-8")]
    Text { list: &'static str, name: String },
}

impl Obligations {
    /// Heeded only as a whole: one bad header is the end of all.
    ///
    /// # Errors
    ///
    /// The first thing that a proxy must not be asked to do.
    pub fn check(&self) -> Result<(), Unfit> {
        if let Some(status) = self.status.filter(|status| !(100..=599).contains(status)) {
            return Err(Unfit::Status(status));
        }
        for (list, headers) in [("headers-set", &self.headers_set), ("headers-append", &self.headers_append)]
        {
            bounded(list, headers.len())?;
            headers.iter().try_for_each(|header| header.check(list))?;
        }
        bounded("headers-remove", self.headers_remove.len())?;
        self.headers_remove.iter().try_for_each(|name| check_name("headers-remove", name))?;
        bounded("metadata", self.metadata.len())
    }
}

impl HeaderValue {
    fn check(&self, list: &'static str) -> Result<(), Unfit> {
        check_name(list, &self.name)?;
        if self.value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            return Err(Unfit::Control { list, name: self.name.clone() });
        }
        if std::str::from_utf8(&self.value).is_err() {
            return Err(Unfit::Text { list, name: self.name.clone() });
        }
        Ok(())
    }
}

fn bounded(list: &'static str, length: usize) -> Result<(), Unfit> {
    if length > ENTRIES_MAX { Err(Unfit::Entries { list, length }) } else { Ok(()) }
}

/// A token as RFC 9110 has it, and not one that frames the message.
fn check_name(list: &'static str, name: &str) -> Result<(), Unfit> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > HEADER_NAME_MAX || !name.bytes().all(token) {
        return Err(Unfit::Name { list, name: name.chars().take(64).collect() });
    }
    if NOT_A_POLICYS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(Unfit::Reserved { list, name: name.to_owned() });
    }
    Ok(())
}

/// A list that ends before it costs more than it may: an empty entry is two bytes on the wire and fifty in memory.
fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    at_most::<ENTRIES_MAX, D, T>(deserializer)
}

/// The same of a list of something else.
pub(crate) fn at_most<'de, const MAX: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Bounded<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = seq.next_element()? {
                if entries.len() == MAX {
                    return Err(A::Error::invalid_length(MAX.saturating_add(1), &self));
                }
                entries.push(entry);
            }
            Ok(entries)
        }
    }

    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &[u8]) -> HeaderValue {
        HeaderValue { name: name.to_owned(), value: Bytes::copy_from_slice(value) }
    }

    fn with(header: HeaderValue) -> [Obligations; 2] {
        [
            Obligations { headers_set: vec![header.clone()], ..Obligations::default() },
            Obligations { headers_append: vec![header], ..Obligations::default() },
        ]
    }

    #[test]
    fn what_a_proxy_may_be_asked_to_do_is_fit() {
        assert_eq!(Obligations::default().check(), Ok(()));
        for obligations in with(header("x-user", "J\u{f6}rg\tK".as_bytes())) {
            assert_eq!(obligations.check(), Ok(()));
        }
        let all = Obligations {
            status: Some(451),
            headers_remove: vec!["authorization".to_owned(); ENTRIES_MAX],
            body: Some(Bytes::from_static(b"any\r\nbytes\0")),
            ..Obligations::default()
        };
        assert_eq!(all.check(), Ok(()));
    }

    #[test]
    fn one_bad_entry_is_the_end_of_all() {
        let long = "x".repeat(HEADER_NAME_MAX + 1);
        let names = ["", "a b", "a\r\nb", "a:b", ":path", "Content-Length", "host", "h\u{f6}st", &long];
        for name in names {
            for obligations in with(header(name, b"v")) {
                assert!(obligations.check().is_err(), "{name:?}");
            }
            let removed = Obligations { headers_remove: vec![name.to_owned()], ..Obligations::default() };
            assert!(removed.check().is_err(), "{name:?}");
        }
        for value in [b"a\r\nb: c".as_slice(), b"a\nb", b"\0", b"\x7f", b"\xff"] {
            for obligations in with(header("x-user", value)) {
                assert!(obligations.check().is_err(), "{value:?}");
            }
        }
        for status in [0, 99, 600, u16::MAX] {
            let obligations = Obligations { status: Some(status), ..Obligations::default() };
            assert_eq!(obligations.check(), Err(Unfit::Status(status)));
        }
    }

    #[test]
    fn no_list_is_decoded_that_is_longer_than_it_may_be() {
        let of =
            |count| Obligations { headers_remove: vec!["a".to_owned(); count], ..Obligations::default() };
        let decoded =
            |count| postcard::from_bytes::<Obligations>(&postcard::to_allocvec(&of(count)).unwrap()).is_ok();
        assert!(decoded(ENTRIES_MAX));
        assert!(!decoded(ENTRIES_MAX + 1));
        assert_eq!(
            of(ENTRIES_MAX + 1).check().unwrap_err().to_string(),
            "headers-remove has 129 entries, at most 128 are taken"
        );
    }
}
