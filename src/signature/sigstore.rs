//! The sigstore bundle, version 0.3: one signature and what is needed to check it, as one piece of JSON.
//!
//! What we write has one form, byte for byte the one that the ecosystem's own library gives it. What is read may have any
//! order and white space, since other tools write it as they please; but every field must be known, and everything in
//! it must be true: a hint names the key that made the signature or is empty, base64 has its one form. So a changed byte of a
//! bundle of ours is always a refusal. Entries of a transparency log and time stamps are neither needed nor looked at
//! where a key signed: the key is what is trusted.

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dsse::{EnvelopeJson, Signed, base64};
use crate::artifact::{Digest, KeyId, PublicKey};

/// What a sigstore bundle says it is, and is attached as.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Largest bundle that is read, bytes. One with a log entry has 10 KiB; a long provenance some more.
pub const BUNDLE_MAX: usize = 256 << 10;

/// The one digest that is used for messages.
const SHA256: &str = "SHA2_256";

/// A sigstore bundle, taken apart, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub signer: ClaimedSigner,
    pub content: Content,
}

/// Who is said to have signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimedSigner {
    /// Holder of a key; the hint is empty or says which.
    Key { hint: String },
    /// The owner of an identity, by a certificate ("keyless").
    Certificate,
}

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Statement(Signed),
    /// The bundle index's own bytes.
    Message {
        digest: Digest,
        signature: Vec<u8>,
    },
}

/// Not a sigstore bundle, or not one in a form that is used here.
#[derive(Debug, thiserror::Error)]
pub enum SigstoreError {
    #[error("is {0} bytes long, at most {BUNDLE_MAX} are read")]
    TooLong(usize),
    #[error("is not a sigstore bundle: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("is a {0:?}, expected a {MEDIA_TYPE:?}; sign with a tool that writes bundles of version 0.3")]
    Version(String),
    #[error("names no signer, or more than one")]
    Signer,
    #[error("has no signature, or one of each kind")]
    Content,
    #[error("has {0} signatures, expected exactly one; attach a bundle for each")]
    Signatures(usize),
    #[error("field {0:?} is not base64")]
    Base64(&'static str),
    #[error("has a message digest by {0:?}, expected {SHA256:?}")]
    Algorithm(String),
    #[error("has a message digest that is not 32 bytes long")]
    Digest,
    #[error("cannot be written: {0}")]
    Write(#[source] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BundleJson {
    media_type: String,
    verification_material: MaterialJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message_signature: Option<MessageJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dsse_envelope: Option<EnvelopeJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MaterialJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<PublicKeyJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x509_certificate_chain: Option<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tlog_entries: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp_verification_data: Option<TimestampsJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicKeyJson {
    #[serde(default)]
    hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TimestampsJson {
    #[serde(default)]
    rfc3161_timestamps: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MessageJson {
    message_digest: DigestJson,
    signature: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DigestJson {
    algorithm: String,
    digest: String,
}

impl Bundle {
    /// A bundle of ours.
    #[must_use]
    pub fn new(content: Content, key: &PublicKey) -> Self {
        Self { signer: ClaimedSigner::Key { hint: hint(&key.id()) }, content }
    }

    /// Takes a bundle apart. Says nothing about whether its signature is good.
    ///
    /// # Errors
    /// When it is too long, of another version, or has anything in it that is not known.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SigstoreError> {
        if bytes.len() > BUNDLE_MAX {
            return Err(SigstoreError::TooLong(bytes.len()));
        }
        let json: BundleJson = serde_json::from_slice(bytes).map_err(SigstoreError::Malformed)?;
        if json.media_type != MEDIA_TYPE {
            return Err(SigstoreError::Version(json.media_type.chars().take(80).collect()));
        }
        let material = json.verification_material;
        let signer = match (material.public_key, material.certificate, material.x509_certificate_chain) {
            (Some(key), None, None) => ClaimedSigner::Key { hint: key.hint },
            (None, Some(_), None) | (None, None, Some(_)) => ClaimedSigner::Certificate,
            _ => return Err(SigstoreError::Signer),
        };
        let content = match (json.dsse_envelope, json.message_signature) {
            (Some(envelope), None) => Content::Statement(Signed::from_json(envelope)?),
            (None, Some(message)) => message.read()?,
            _ => return Err(SigstoreError::Content),
        };
        Ok(Self { signer, content })
    }

    /// The one form that a bundle of ours has.
    ///
    /// # Errors
    /// When writing JSON fails, which it does not for strings, or the signer is not a key.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SigstoreError> {
        let ClaimedSigner::Key { hint } = &self.signer else { return Err(SigstoreError::Signer) };
        let (dsse_envelope, message_signature) = match &self.content {
            Content::Statement(signed) => (Some(signed.to_json()), None),
            Content::Message { digest, signature } => (None, Some(MessageJson::new(digest, signature))),
        };
        let json = BundleJson {
            media_type: MEDIA_TYPE.to_owned(),
            verification_material: MaterialJson {
                public_key: Some(PublicKeyJson { hint: hint.clone() }),
                certificate: None,
                x509_certificate_chain: None,
                tlog_entries: Vec::new(),
                timestamp_verification_data: None,
            },
            message_signature,
            dsse_envelope,
        };
        serde_json::to_vec(&json).map_err(SigstoreError::Write)
    }
}

impl MessageJson {
    fn new(digest: &Digest, signature: &[u8]) -> Self {
        let digest = Base64::encode_string(digest.as_bytes());
        Self {
            message_digest: DigestJson { algorithm: SHA256.to_owned(), digest },
            signature: Base64::encode_string(signature),
        }
    }

    fn read(&self) -> Result<Content, SigstoreError> {
        let DigestJson { algorithm, digest } = &self.message_digest;
        if algorithm != SHA256 {
            return Err(SigstoreError::Algorithm(algorithm.chars().take(80).collect()));
        }
        let digest = base64("digest", digest)?.try_into().map_err(|_| SigstoreError::Digest)?;
        let signature = base64("signature", &self.signature)?;
        Ok(Content::Message { digest: Digest::from_bytes(digest), signature })
    }
}

/// How the ecosystem names a key in a bundle: base64 of the SHA-256 of its SPKI, of which [`KeyId`] is the hex.
#[must_use]
pub fn hint(key: &KeyId) -> String {
    Base64::encode_string(&hex::decode(key.as_str()).unwrap_or_default())
}
