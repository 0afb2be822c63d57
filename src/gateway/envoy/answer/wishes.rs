//! What a policy can ask of Envoy and of no other proxy: metadata whose keys begin with a verb.
//!
//! | key | what Envoy does |
//! |---|---|
//! | `query.set.NAME` | the query parameter has this value, and no other |
//! | `query.remove.NAME` | the query parameter goes |
//! | `response.set.NAME`, `response.append.NAME` | a header of the response to whoever asked |
//!
//! Names and values of query parameters are as they are meant: they are percent-encoded here. Headers have to be headers,
//! or the policy's answer is invalid as a whole.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{There, header, invalid};
use crate::decision::Metadatum;
use crate::gateway::envoy::messages::{HeaderValueOption, QueryParameter};
use crate::gateway::verdict::Down;

/// RFC 3986: unreserved characters stay. Envoy puts into the query what it gets.
const IN_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Headers that frame a message, or that only a proxy sets.
const NOT_A_POLICYS: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Metadata, sorted by what it is for.
#[derive(Debug, Default)]
pub(super) struct Wishes<'a> {
    query_set: Vec<(&'a str, &'a str)>,
    query_removed: Vec<&'a str>,
    response: Vec<(&'a str, &'a str, There)>,
    metadata: Vec<&'a Metadatum>,
}

impl<'a> Wishes<'a> {
    pub(super) fn of(metadata: &'a [Metadatum]) -> Result<Self, Down> {
        let mut wishes = Self::default();
        for one in metadata {
            let (key, value) = (one.key.as_str(), one.value.as_str());
            if let Some(name) = key.strip_prefix("query.set.") {
                wishes.query_set.push((named(key, name)?, value));
            } else if let Some(name) = key.strip_prefix("query.remove.") {
                wishes.query_removed.push(named(key, name)?);
            } else if let Some(name) = key.strip_prefix("response.set.") {
                check_header(key, name, value)?;
                wishes.response.push((name, value, There::Goes));
            } else if let Some(name) = key.strip_prefix("response.append.") {
                check_header(key, name, value)?;
                wishes.response.push((name, value, There::Stays));
            } else {
                wishes.metadata.push(one);
            }
        }
        // Envoy removes last.
        let Self { query_set, query_removed, .. } = &mut wishes;
        query_removed.retain(|name| !query_set.iter().any(|(set, _)| set == name));
        Ok(wishes)
    }

    /// What is for Envoy's filters and log.
    pub(super) fn metadata(&self) -> impl Iterator<Item = &'a Metadatum> {
        self.metadata.iter().copied()
    }

    pub(super) fn response_headers(&self) -> impl Iterator<Item = HeaderValueOption> {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        self.response.iter().map(move |(name, value, there)| header(bytes(name), bytes(value), *there))
    }

    pub(super) fn query_set(&self) -> Vec<QueryParameter> {
        let set = self.query_set.iter();
        set.map(|(name, value)| QueryParameter { key: encoded(name), value: encoded(value) }).collect()
    }

    pub(super) fn query_removed(&self) -> Vec<Bytes> {
        self.query_removed.iter().map(|name| encoded(name)).collect()
    }
}

fn encoded(text: &str) -> Bytes {
    Bytes::from(utf8_percent_encode(text, IN_QUERY).to_string())
}

fn named<'a>(key: &str, name: &'a str) -> Result<&'a str, Down> {
    if name.is_empty() {
        Err(invalid(format!("metadata {key:?} names no query parameter")))
    } else {
        Ok(name)
    }
}

/// Metadata has not been looked at as headers are: a line break in it would begin whatever the policy likes.
fn check_header(key: &str, name: &str, value: &str) -> Result<(), Down> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
        return Err(invalid(format!("metadata {key:?} names no header")));
    }
    if NOT_A_POLICYS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(invalid(format!(
            "metadata {key:?}: that header belongs to the connection, not to a policy"
        )));
    }
    if value.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
        return Err(invalid(format!("metadata {key:?}: its value has a control character")));
    }
    Ok(())
}
