//! The in-toto statement, version 1: "of these bytes I say this". It speaks of exactly one bundle, by its digest, or it is
//! not used: a good signature over a statement about something else says nothing.

use std::fmt;

use serde::de::{self, DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::artifact::Digest;

/// The payload type of a DSSE envelope with a statement.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// "I vouch for it": what signing means.
pub const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
/// "This is how it was built."
pub const PROVENANCE: &str = "https://slsa.dev/provenance/v1";

const STATEMENT: &str = "https://in-toto.io/Statement/v1";

/// A statement that is not one, or not about this bundle.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("is not an in-toto statement: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("is a {0:?}, expected a {STATEMENT:?}")]
    Version(String),
    #[error("is about {0} subjects, expected exactly one; make a statement for each")]
    Subjects(usize),
    #[error("is about {found}, and this bundle is {expected}")]
    Subject { found: Digest, expected: Digest },
    #[error("cannot be written: {0}")]
    Write(#[source] serde_json::Error),
}

/// Fields in the order of the specification. Others that it allows are left alone: all of it is signed.
#[derive(Serialize, Deserialize)]
struct StatementJson<P> {
    #[serde(rename = "_type")]
    version: String,
    subject: Vec<SubjectJson>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Option<P>,
}

#[derive(Serialize, Deserialize)]
struct SubjectJson {
    digest: OnlySha256,
}

/// `{"sha256": ..}` and nothing beside it: of two digests one could be somebody else's.
struct OnlySha256(Digest);

/// Which kind of statement it is, if it is one about `subject`.
///
/// # Errors
/// When it is not.
pub fn predicate_type(payload: &[u8], subject: &Digest) -> Result<String, StatementError> {
    read::<IgnoredAny>(payload, subject).map(|statement| statement.predicate_type)
}

/// What it says of `subject`, if it says anything.
///
/// # Errors
/// When it is no statement about `subject`, or says something else.
pub fn predicate<P: DeserializeOwned>(payload: &[u8], subject: &Digest) -> Result<Option<P>, StatementError> {
    read(payload, subject).map(|statement| statement.predicate)
}

/// The payload that says `predicate` of `subject`. The same gives the same bytes.
///
/// # Errors
/// When writing JSON fails, which it does not for strings.
pub fn statement(
    subject: Digest,
    predicate_type: &str,
    predicate: impl Serialize,
) -> Result<Vec<u8>, StatementError> {
    let statement = StatementJson {
        version: STATEMENT.to_owned(),
        subject: vec![SubjectJson { digest: OnlySha256(subject) }],
        predicate_type: predicate_type.to_owned(),
        predicate: Some(predicate),
    };
    serde_json::to_vec(&statement).map_err(StatementError::Write)
}

fn read<P: DeserializeOwned>(payload: &[u8], subject: &Digest) -> Result<StatementJson<P>, StatementError> {
    let statement: StatementJson<P> = serde_json::from_slice(payload).map_err(StatementError::Malformed)?;
    if statement.version != STATEMENT {
        return Err(StatementError::Version(statement.version.chars().take(80).collect()));
    }
    match statement.subject.as_slice() {
        [only] if only.digest.0 == *subject => Ok(statement),
        [only] => Err(StatementError::Subject { found: only.digest.0, expected: *subject }),
        several => Err(StatementError::Subjects(several.len())),
    }
}

impl Serialize for OnlySha256 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map([("sha256", hex::encode(self.0.as_bytes()))])
    }
}

impl<'de> Deserialize<'de> for OnlySha256 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Only;
        impl<'de> Visitor<'de> for Only {
            type Value = OnlySha256;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a subject with a SHA-256 digest and no other")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OnlySha256, A::Error> {
                let first = map.next_entry::<String, String>()?;
                let (Some((algorithm, digits)), None) = (first, map.next_entry::<String, IgnoredAny>()?)
                else {
                    return Err(de::Error::custom("subject has no digest or several, expected one sha256"));
                };
                if algorithm != "sha256" {
                    return Err(de::Error::custom("subject has another digest than sha256"));
                }
                format!("sha256:{digits}").parse().map(OnlySha256).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_map(Only)
    }
}
