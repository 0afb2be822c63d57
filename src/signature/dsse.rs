//! A DSSE envelope as it stands inside a sigstore bundle: what is signed, of which type, by one signature.
//!
//! What is signed and how is [`crate::artifact::envelope`]'s; here is only the JSON of it that the ecosystem writes, whose
//! fields other tools put in another order. What the signature does not cover is bounded, must be known, and is used for
//! nothing but finding the key.

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};

use super::sigstore::SigstoreError;
use crate::artifact::SigningKey;
use crate::artifact::envelope::pre_authentication_of;

/// What was signed, and the one signature of it, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub payload_type: String,
    pub payload: Vec<u8>,
    pub signature: Vec<u8>,
    /// Which key it says it is from; may be empty.
    pub key: String,
}

/// As protobuf writes it, fields in the order of the ecosystem's own library.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct EnvelopeJson {
    payload: String,
    payload_type: String,
    signatures: Vec<SignatureJson>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureJson {
    sig: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    keyid: String,
}

impl Signed {
    /// Signs `payload` as what `payload_type` says.
    #[must_use]
    pub fn new(payload_type: &str, payload: Vec<u8>, key: &SigningKey) -> Self {
        let signature = key.sign(&pre_authentication_of(payload_type, &payload));
        // Which key it is stands in the bundle already.
        Self { payload_type: payload_type.to_owned(), payload, signature, key: String::new() }
    }

    /// The bytes that the signature is over.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        pre_authentication_of(&self.payload_type, &self.payload)
    }

    pub(super) fn from_json(json: EnvelopeJson) -> Result<Self, SigstoreError> {
        let count = json.signatures.len();
        let mut signatures = json.signatures.into_iter();
        let (Some(signature), None) = (signatures.next(), signatures.next()) else {
            return Err(SigstoreError::Signatures(count));
        };
        Ok(Self {
            payload_type: json.payload_type,
            payload: base64("payload", &json.payload)?,
            signature: base64("sig", &signature.sig)?,
            key: signature.keyid,
        })
    }

    pub(super) fn to_json(&self) -> EnvelopeJson {
        let sig = Base64::encode_string(&self.signature);
        EnvelopeJson {
            payload: Base64::encode_string(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: vec![SignatureJson { sig, keyid: self.key.clone() }],
        }
    }
}

/// The one base64 that bytes have: standard alphabet, padded, no bit left over.
pub(super) fn base64(field: &'static str, text: &str) -> Result<Vec<u8>, SigstoreError> {
    Base64::decode_vec(text).map_err(|_| SigstoreError::Base64(field))
}
