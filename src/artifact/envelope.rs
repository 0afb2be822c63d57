//! How a signature travels: a DSSE envelope, in one exact form.
//!
//! The signature covers the payload's bytes and its type, so nothing of the payload is parsed before it is known to be
//! signed. What the signature does not cover (the JSON around it, key identifiers) may only have the one form that
//! [`Envelope::to_bytes`] writes: no white space, no other order, no unknown or doubled field. So there is one
//! envelope for one signature, and every changed byte of it is a refusal.

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};

use super::{KeyId, PublicKey, SIGNED_STATEMENT_MAX};

/// What the payload is: a statement of this version.
pub const PAYLOAD_TYPE: &str = "application/vnd.portcullis.statement.v0+json";
/// Most signatures on one statement, so that checking them stays cheap.
pub const SIGNATURES_MAX: usize = 8;

/// What of an envelope is fixed by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub payload_type: &'static str,
    /// Most bytes that are read.
    pub longest: usize,
}

/// A host's statement.
pub const STATEMENT: Kind = Kind { payload_type: PAYLOAD_TYPE, longest: SIGNED_STATEMENT_MAX };

/// A payload and who signed it, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub payload: Vec<u8>,
    pub signatures: Vec<Signature>,
}

/// One signature, and which key it says it is from: a hint, since nothing vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    pub key: String,
    pub bytes: Vec<u8>,
}

/// An envelope that is not one.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("is {found} bytes long, at most {longest} are read")]
    TooLong { found: usize, longest: usize },
    #[error("is not a DSSE envelope: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("has payload type {found:?}, expected {expected:?}")]
    PayloadType { found: String, expected: &'static str },
    #[error("has {0} signatures, at most {SIGNATURES_MAX} are looked at")]
    TooManySignatures(usize),
    #[error("field {0:?} is not base64")]
    Base64(&'static str),
    #[error("is not in the exact form that `portcullis` writes; sign again")]
    NotCanonical,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EnvelopeJson {
    payload_type: String,
    payload: String,
    signatures: Vec<SignatureJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureJson {
    keyid: String,
    sig: String,
}

impl Envelope {
    /// Takes the envelope of a statement apart. Says nothing about whether its signatures are good.
    ///
    /// # Errors
    /// When it has any other form than the one [`Self::to_bytes`] writes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Self::read(STATEMENT, bytes)
    }

    /// The one form that the envelope of a statement has.
    ///
    /// # Errors
    /// When writing JSON fails, which it does not for strings.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        self.write(STATEMENT)
    }

    /// Takes an envelope apart. Says nothing about whether its signatures are good.
    ///
    /// # Errors
    /// When it has any other form than the one [`Self::write`] gives it, or another payload type.
    pub fn read(kind: Kind, bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > kind.longest {
            return Err(EnvelopeError::TooLong { found: bytes.len(), longest: kind.longest });
        }
        let json: EnvelopeJson = serde_json::from_slice(bytes).map_err(EnvelopeError::Malformed)?;
        if json.payload_type != kind.payload_type {
            let found = json.payload_type.chars().take(80).collect();
            return Err(EnvelopeError::PayloadType { found, expected: kind.payload_type });
        }
        if json.signatures.len() > SIGNATURES_MAX {
            return Err(EnvelopeError::TooManySignatures(json.signatures.len()));
        }
        let payload = Base64::decode_vec(&json.payload).map_err(|_| EnvelopeError::Base64("payload"))?;
        let signatures = json
            .signatures
            .into_iter()
            .map(|signature| {
                let bytes = Base64::decode_vec(&signature.sig).map_err(|_| EnvelopeError::Base64("sig"))?;
                Ok(Signature { key: signature.keyid, bytes })
            })
            .collect::<Result<_, EnvelopeError>>()?;
        let envelope = Self { payload, signatures };
        if envelope.write(kind)? != bytes {
            return Err(EnvelopeError::NotCanonical);
        }
        Ok(envelope)
    }

    /// The one form an envelope has: compact JSON and a final newline.
    ///
    /// # Errors
    /// When writing JSON fails, which it does not for strings.
    pub fn write(&self, kind: Kind) -> Result<Vec<u8>, EnvelopeError> {
        let json = EnvelopeJson {
            payload_type: kind.payload_type.into(),
            payload: Base64::encode_string(&self.payload),
            signatures: self
                .signatures
                .iter()
                .map(|signature| SignatureJson {
                    keyid: signature.key.clone(),
                    sig: Base64::encode_string(&signature.bytes),
                })
                .collect(),
        };
        let mut bytes = serde_json::to_vec(&json).map_err(EnvelopeError::Malformed)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Whose signatures are good, of these keys: each once, in the order of the signatures.
    #[must_use]
    pub fn signed_by(&self, kind: Kind, keys: &[PublicKey]) -> Vec<KeyId> {
        let message = pre_authentication_of(kind.payload_type, &self.payload);
        let mut good = Vec::new();
        for signature in &self.signatures {
            let key = keys.iter().find(|key| key.id().as_str() == signature.key);
            if let Some(key) = key
                && !good.contains(&key.id())
                && key.verify(&message, &signature.bytes).is_ok()
            {
                good.push(key.id());
            }
        }
        good
    }
}

/// What is signed for a statement.
#[must_use]
pub fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    pre_authentication_of(PAYLOAD_TYPE, payload)
}

/// What is signed for `payload`: DSSE's pre-authentication encoding, which binds the type and both lengths.
#[must_use]
pub fn pre_authentication_of(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            payload: b"{}".to_vec(),
            signatures: vec![Signature { key: "k".into(), bytes: vec![1, 2, 3, 4] }],
        }
    }

    #[test]
    fn an_envelope_has_one_form() {
        let text = concat!(
            r#"{"payloadType":"application/vnd.portcullis.statement.v0+json","payload":"e30=","#,
            r#""signatures":[{"keyid":"k","sig":"AQIDBA=="}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(envelope().to_bytes().unwrap()).unwrap(), text);
        assert_eq!(Envelope::from_bytes(text.as_bytes()).unwrap(), envelope());

        let changes = [
            (r#"{"payloadType""#, r#"{ "payloadType""#, "exact form"),
            ("}\n", "}", "exact form"),
            ("}\n", "} ", "exact form"),
            (r#""keyid":"k""#, r#""keyid":"\u006b""#, "exact form"),
            (r#""keyid":"k","sig""#, r#""keyid":"k","keyid":"k","sig""#, "duplicate field"),
            (r#""payload":"#, r#""payload":"","payload":"#, "duplicate field"),
            (r#"{"keyid""#, r#"{"x":1,"keyid""#, "unknown field"),
            (r#","signatures""#, r#","x":1,"signatures""#, "unknown field"),
            ("AQIDBA==", "AQIDBB==", "field \"sig\" is not base64"),
            ("AQIDBA==", "AQIDBA=", "field \"sig\" is not base64"),
            ("e30=", "e31=", "field \"payload\" is not base64"),
            ("statement.v0", "statement.v1", "payload type"),
            ("}\n", "}\n{}", "trailing"),
        ];
        for (from, to, why) in changes {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            let error = Envelope::from_bytes(changed.as_bytes()).expect_err(&changed).to_string();
            assert!(error.contains(why), "{changed}: {error}");
        }
    }

    #[test]
    fn limits_come_before_parsing() {
        let long = vec![b' '; SIGNED_STATEMENT_MAX + 1];
        assert!(matches!(Envelope::from_bytes(&long), Err(EnvelopeError::TooLong { .. })));
        let mut many = envelope();
        many.signatures = vec![many.signatures[0].clone(); SIGNATURES_MAX + 1];
        let bytes = many.to_bytes().unwrap();
        assert!(matches!(Envelope::from_bytes(&bytes), Err(EnvelopeError::TooManySignatures(9))));
    }

    #[test]
    fn pre_authentication_binds_type_and_length() {
        assert_eq!(
            pre_authentication(b"hello"),
            b"DSSEv1 44 application/vnd.portcullis.statement.v0+json 5 hello"
        );
    }
}
