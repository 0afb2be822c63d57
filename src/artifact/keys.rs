//! Keys in files: PKCS#8 for the private half, SPKI for the public half, both PEM, so that other tools can make and
//! read them. Ed25519 and ECDSA on P-256 with SHA-256.

use std::fmt;

use ed25519_dalek as ed25519;
use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::spki::SubjectPublicKeyInfoRef;
use ed25519_dalek::pkcs8::{
    self as pkcs8, Document, EncodePrivateKey as _, EncodePublicKey as _, KeypairBytes, ObjectIdentifier,
    PrivateKeyInfoRef, SecretDocument, spki,
};
use p256::ecdsa;
use p256::ecdsa::signature::Verifier as _;
use p256::pkcs8::LineEnding;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Digest;

const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    Ed25519,
    /// ECDSA with SHA-256, signatures in DER.
    P256,
}

/// The private half. It is wiped from memory when dropped, and shows nothing of itself in `Debug`.
pub struct SigningKey {
    private: Private,
    public: PublicKey,
}

enum Private {
    Ed25519(ed25519::SigningKey),
    P256(ecdsa::SigningKey),
}

/// The public half: what a worker is given to check signatures with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: Public,
    spki: Vec<u8>,
    id: KeyId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Public {
    Ed25519(ed25519::VerifyingKey),
    P256(ecdsa::VerifyingKey),
}

/// The SHA-256 of a public key's SPKI DER, as 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

/// A key that is not one, or not one that is used here.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("read {what}: {cause}; expected PEM that starts with \"-----BEGIN {label}-----\"")]
    Malformed { what: &'static str, label: &'static str, cause: String },
    #[error("read {what}: algorithm {oid} is not used here; make an Ed25519 or a P-256 key")]
    Algorithm { what: &'static str, oid: String },
    #[error("make signing key: {0}")]
    Randomness(getrandom::Error),
    #[error("write {what}: {cause}")]
    Encode { what: &'static str, cause: String },
}

/// A signature that is not this key's, or not over these bytes, or not in the one form it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature does not match")]
pub struct BadSignature;

const PRIVATE: (&str, &str) = ("signing key", "PRIVATE KEY");
const PUBLIC: (&str, &str) = ("public key", "PUBLIC KEY");

fn malformed((what, label): (&'static str, &'static str), cause: impl fmt::Display) -> KeyError {
    KeyError::Malformed { what, label, cause: cause.to_string() }
}

impl SigningKey {
    fn new(private: Private) -> Result<Self, KeyError> {
        let public = PublicKey::new(match &private {
            Private::Ed25519(key) => Public::Ed25519(key.verifying_key()),
            Private::P256(key) => Public::P256(*key.verifying_key()),
        })?;
        Ok(Self { private, public })
    }

    /// A new Ed25519 key from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn generate_ed25519() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(KeyError::Randomness)?;
        Self::new(Private::Ed25519(ed25519::SigningKey::from_bytes(&seed)))
    }

    /// A new P-256 key from the kernel's random numbers.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn generate_p256() -> Result<Self, KeyError> {
        let mut scalar = Zeroizing::new([0; 32]);
        loop {
            getrandom::fill(scalar.as_mut_slice()).map_err(KeyError::Randomness)?;
            // Zero and what is not below the group's order are refused: one draw in 2^32.
            if let Ok(key) = ecdsa::SigningKey::from_slice(scalar.as_slice()) {
                return Self::new(Private::P256(key));
            }
        }
    }

    /// A key from PKCS#8 in PEM ("BEGIN PRIVATE KEY"), not encrypted.
    ///
    /// # Errors
    /// When it is not that, or of another algorithm.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let (label, document) = SecretDocument::from_pem(pem).map_err(|error| malformed(PRIVATE, error))?;
        if label != PRIVATE.1 {
            return Err(malformed(PRIVATE, format_args!("it is a {label:?}")));
        }
        let info =
            PrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|error| malformed(PRIVATE, error))?;
        let key = match info.algorithm.oid {
            ED25519 => {
                Private::Ed25519(info.try_into().map_err(|error: pkcs8::Error| malformed(PRIVATE, error))?)
            }
            EC_PUBLIC_KEY => {
                Private::P256(info.try_into().map_err(|error: pkcs8::Error| malformed(PRIVATE, error))?)
            }
            oid => return Err(KeyError::Algorithm { what: PRIVATE.0, oid: oid.to_string() }),
        };
        Self::new(key)
    }

    /// PKCS#8 in PEM. The text is wiped when dropped.
    ///
    /// # Errors
    /// When encoding fails, which it does not for a key that this type made.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let pem = match &self.private {
            // Version 1, without the public half: OpenSSL 3.0 does not read version 2.
            Private::Ed25519(key) => {
                KeypairBytes { secret_key: key.to_bytes(), public_key: None }.to_pkcs8_pem(LineEnding::LF)
            }
            Private::P256(key) => key.to_pkcs8_pem(LineEnding::LF),
        };
        pem.map_err(|error| KeyError::Encode { what: PRIVATE.0, cause: error.to_string() })
    }

    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.private {
            Private::Ed25519(_) => Algorithm::Ed25519,
            Private::P256(_) => Algorithm::P256,
        }
    }

    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.public.clone()
    }

    /// The signature of `message`: 64 bytes for Ed25519, DER for P-256. The same message gives the same signature.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.private {
            Private::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
            Private::P256(key) => {
                let signature: ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
        }
    }
}

/// Which key, never what is in it.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

impl PublicKey {
    fn new(key: Public) -> Result<Self, KeyError> {
        let spki = match &key {
            Public::Ed25519(key) => key.to_public_key_der(),
            Public::P256(key) => key.to_public_key_der(),
        }
        .map_err(|error| KeyError::Encode { what: PUBLIC.0, cause: error.to_string() })?
        .into_vec();
        let id = KeyId(hex::encode(Digest::of(&spki).as_bytes()));
        Ok(Self { key, spki, id })
    }

    /// A key from SPKI in PEM ("BEGIN PUBLIC KEY").
    ///
    /// # Errors
    /// When it is not that, of another algorithm, or an Ed25519 key of small order, for which anyone can make signatures.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let (label, document) = Document::from_pem(pem).map_err(|error| malformed(PUBLIC, error))?;
        if label != PUBLIC.1 {
            return Err(malformed(PUBLIC, format_args!("it is a {label:?}")));
        }
        let info = SubjectPublicKeyInfoRef::try_from(document.as_bytes())
            .map_err(|error| malformed(PUBLIC, error))?;
        let key = match info.algorithm.oid {
            ED25519 => {
                let key: ed25519::VerifyingKey =
                    info.try_into().map_err(|error: spki::Error| malformed(PUBLIC, error))?;
                if key.is_weak() {
                    return Err(malformed(PUBLIC, "it has a small order, so anyone can sign for it"));
                }
                Public::Ed25519(key)
            }
            EC_PUBLIC_KEY => {
                Public::P256(info.try_into().map_err(|error: spki::Error| malformed(PUBLIC, error))?)
            }
            oid => return Err(KeyError::Algorithm { what: PUBLIC.0, oid: oid.to_string() }),
        };
        Self::new(key)
    }

    /// SPKI in PEM.
    ///
    /// # Errors
    /// When encoding fails, which it does not for a key that this type made.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let encode = |cause: String| KeyError::Encode { what: PUBLIC.0, cause };
        Document::try_from(self.spki.as_slice())
            .and_then(|document| document.to_pem(PUBLIC.1, LineEnding::LF))
            .map_err(|error| encode(error.to_string()))
    }

    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.key {
            Public::Ed25519(_) => Algorithm::Ed25519,
            Public::P256(_) => Algorithm::P256,
        }
    }

    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id.clone()
    }

    /// Whether `signature` is this key's over exactly `message`.
    ///
    /// # Errors
    /// [`BadSignature`] for every other reason too: an attacker learns nothing, and there is nothing to tell apart.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        match &self.key {
            Public::Ed25519(key) => {
                let signature = ed25519::Signature::from_slice(signature).map_err(|_| BadSignature)?;
                key.verify_strict(message, &signature).map_err(|_| BadSignature)
            }
            Public::P256(key) => {
                let signature = ecdsa::Signature::from_der(signature).map_err(|_| BadSignature)?;
                key.verify(message, &signature).map_err(|_| BadSignature)
            }
        }
    }
}

impl KeyId {
    /// Whether it is 64 lower-case hex digits, as every key's is.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.0.len() == 64 && self.0.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 hex digits, for tables that people read.
    #[must_use]
    pub fn short(&self) -> String {
        self.0.chars().take(12).collect()
    }
}

/// Text that is not the identifier of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {0:?}: expected the 64 hex digits that `portcullis policy keygen` shows")]
pub struct InvalidKeyId(String);

impl std::str::FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        let key = Self(text.to_owned());
        if key.is_whole() { Ok(key) } else { Err(InvalidKeyId(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
