//! What has stopped to count: keys, bundles, sources and machine code, in a signed list whose version only grows.
//!
//! A list replaces the one before as a whole. It counts if one of the trust policy's revocation signers signed it, with a key
//! that counts now and that the list in force does not revoke. A list that has been accepted stays in force until a newer
//! one is: that its signer's time is over, or that the file is gone, revives nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::policy::TrustPolicy;
use crate::artifact::envelope::{Envelope, EnvelopeError, Kind, Signature, pre_authentication_of};
use crate::artifact::{Digest, KeyId, PublicKey, SigningKey};
use crate::signature::Signer;

/// Largest signed list that is read, bytes: some thousand entries.
pub const REVOCATIONS_MAX: usize = 2 << 20;
/// How far a list may be ahead of the one before. Versions only go up, so whoever had a key for a day and signed a list with
/// the highest number of all would leave nobody a next one, not even to revoke that key. Times in seconds fit in.
const AHEAD_MAX: u64 = 1 << 32;
/// Longest reason, bytes.
const REASON_MAX: usize = 200;
const LIST: Kind =
    Kind { payload_type: "application/vnd.portcullis.revocations.v1+json", longest: REVOCATIONS_MAX };

/// A list as it is signed: compact JSON with the fields in this order, entries sorted, each thing once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationList {
    /// Grows with every list, from 1 on.
    pub version: u64,
    pub revoked: Vec<Revoked>,
}

/// One thing that has stopped to count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    pub what: Revokes,
    pub reason: String,
    pub date: Timestamp,
}

/// What is revoked. Written `{"key":"<64 hex digits>"}` or `{"digest":"sha256:.."}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Revokes {
    /// Whatever this key signed counts as not signed.
    Key(KeyId),
    /// A bundle (its index), a source or machine code: nothing with it in it is loaded.
    Digest(Digest),
}

/// The list that is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    version: u64,
    /// Of the signed bytes.
    digest: Option<Digest>,
    entries: BTreeMap<Revokes, Revoked>,
}

/// A list that does not come into force.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    #[error("revocation list {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("revocation list is not one: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error(
        "revocation list is not in the exact form that `portcullis policy revoke` writes; make and sign it with that"
    )]
    NotCanonical,
    #[error("revocation list has {what} {found:?}, which is {why}")]
    Entry { what: &'static str, found: String, why: &'static str },
    #[error("trust policy names nobody who may revoke: add [revocation] with signers")]
    NobodyMay,
    #[error("revocation list is signed by {} key that may revoke now: sign it with the key of {}", if *.signatures == 0 { "no" } else { "none, or not well, of a" }, .signers.join(" or "))]
    NotSigned { signatures: usize, signers: Vec<String> },
    #[error(
        "revocation list has version {found}, and {least} is the least that counts: sign one with a higher version"
    )]
    Version { found: u64, least: u64 },
    #[error(
        "revocation list has version {found}, too far ahead: {most} is the most that counts now, so that there can always be \
         a next one; sign one with a lower version"
    )]
    Ahead { found: u64, most: u64 },
    #[error(
        "revocation list differs from the one in force and has the same version, {version}: sign one with a higher version"
    )]
    SameVersion { version: u64 },
}

impl Revocations {
    /// Nothing was ever revoked.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The list that comes into force after `self`. The same bytes again stay in force, whoever's time is over.
    ///
    /// # Errors
    /// When they are not signed by who may, are no list, or are older than the one in force.
    pub fn verify(
        &self,
        bytes: &[u8],
        policy: &TrustPolicy,
        now: Timestamp,
    ) -> Result<Self, RevocationError> {
        if self.digest == Some(Digest::of(bytes)) {
            return Ok(self.clone());
        }
        let rule = policy.revocation.as_ref().ok_or(RevocationError::NobodyMay)?;
        let envelope = Envelope::read(LIST, bytes)?;
        let keys: Vec<_> = policy.keys().cloned().collect();
        let good = envelope.signed_by(LIST, &keys);
        if !good.iter().any(|key| self.key(key).is_none() && policy.may_revoke(key, &rule.signers, now)) {
            let (signatures, signers) = (envelope.signatures.len(), rule.signers.clone());
            return Err(RevocationError::NotSigned { signatures, signers });
        }
        let list = RevocationList::from_payload(&envelope.payload)?;
        let least = rule.minimum_version.max(self.version).max(1);
        if list.version < least {
            return Err(RevocationError::Version { found: list.version, least });
        }
        let most = least.saturating_add(AHEAD_MAX);
        if list.version > most {
            return Err(RevocationError::Ahead { found: list.version, most });
        }
        if list.version == self.version {
            return Err(RevocationError::SameVersion { version: list.version });
        }
        Ok(Self::of(list, bytes))
    }

    /// The list that a registry kept, from its own state: it was verified when it came into force.
    ///
    /// # Errors
    /// When it is no list.
    pub fn kept(bytes: &[u8]) -> Result<Self, RevocationError> {
        RevocationList::peek(bytes).map(|list| Self::of(list, bytes))
    }

    fn of(list: RevocationList, bytes: &[u8]) -> Self {
        let entries = list.revoked.into_iter().map(|entry| (entry.what.clone(), entry)).collect();
        Self { version: list.version, digest: Some(Digest::of(bytes)), entries }
    }

    /// 0: there is none.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many things are revoked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Why a key does not count any more, if it does not.
    #[must_use]
    pub fn key(&self, key: &KeyId) -> Option<&Revoked> {
        self.entries.get(&Revokes::Key(key.clone()))
    }

    /// Why a bundle, a source or machine code may not be used any more, if it may not.
    #[must_use]
    pub fn digest(&self, digest: &Digest) -> Option<&Revoked> {
        self.entries.get(&Revokes::Digest(*digest))
    }
}

impl RevocationList {
    /// The next list: this one, and one thing more. What is revoked already keeps its first reason and date.
    #[must_use]
    pub fn and(&self, what: Revokes, reason: &str, date: Timestamp) -> Self {
        let mut revoked = self.revoked.clone();
        if let Err(place) = revoked.binary_search_by(|entry| entry.what.cmp(&what)) {
            revoked.insert(place, Revoked { what, reason: reason.to_owned(), date });
        }
        Self { version: self.version.saturating_add(1), revoked }
    }

    /// Signs it: the bytes of a `revocations.json`.
    ///
    /// # Errors
    /// When it would not be read again.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, RevocationError> {
        let payload = serde_json::to_vec(self).map_err(RevocationError::Malformed)?;
        let bytes = key.sign(&pre_authentication_of(LIST.payload_type, &payload));
        let signature = Signature { key: key.public_key().id().to_string(), bytes };
        let signed = Envelope { payload, signatures: vec![signature] }.write(LIST)?;
        Self::peek(&signed)?;
        Ok(signed)
    }

    /// Reads a list without asking who signed it, to make the next one of it or to show it. Nothing may be decided by it.
    ///
    /// # Errors
    /// When it is no list.
    pub fn peek(bytes: &[u8]) -> Result<Self, RevocationError> {
        Self::from_payload(&Envelope::read(LIST, bytes)?.payload)
    }

    /// That this key signed a list, whoever else may.
    ///
    /// # Errors
    /// When it did not.
    pub fn check_signed_by(bytes: &[u8], key: &PublicKey) -> Result<(), RevocationError> {
        let envelope = Envelope::read(LIST, bytes)?;
        match envelope.signed_by(LIST, std::slice::from_ref(key)).is_empty() {
            false => Ok(()),
            true => {
                let signatures = envelope.signatures.len();
                Err(RevocationError::NotSigned { signatures, signers: vec![key.id().to_string()] })
            }
        }
    }

    fn from_payload(payload: &[u8]) -> Result<Self, RevocationError> {
        let list: Self = serde_json::from_slice(payload).map_err(RevocationError::Malformed)?;
        for (entry, next) in list.revoked.iter().zip(list.revoked.iter().skip(1)) {
            if entry.what >= next.what {
                let found = next.what.to_string();
                return Err(RevocationError::Entry {
                    what: "entry",
                    found,
                    why: "not in order, or there twice",
                });
            }
        }
        for entry in &list.revoked {
            entry.look()?;
        }
        if serde_json::to_vec(&list).map_err(RevocationError::Malformed)? != payload {
            return Err(RevocationError::NotCanonical);
        }
        Ok(list)
    }
}

impl Revoked {
    fn look(&self) -> Result<(), RevocationError> {
        let refuse = |what, found: &str, why| {
            let found = found.chars().take(80).collect();
            Err(RevocationError::Entry { what, found, why })
        };
        match &self.what {
            Revokes::Key(key) if !key.is_whole() => {
                refuse("key", key.as_str(), "not 64 lower-case hex digits")
            }
            _ if self.reason.is_empty() => refuse("reason", "", "empty"),
            _ if self.reason.len() > REASON_MAX => refuse("reason", &self.reason, "longer than 200 bytes"),
            _ if self.reason.chars().any(char::is_control) => {
                refuse("reason", &self.reason, "not one line of text")
            }
            _ => Ok(()),
        }
    }
}

impl TrustPolicy {
    /// Whether this key belongs to one of `signers` and counts now.
    fn may_revoke(&self, key: &KeyId, signers: &[String], now: Timestamp) -> bool {
        let signer = Signer::Key(key.clone());
        let named = signers.iter().filter_map(|name| self.signers.get(name));
        let mut means = named.flat_map(|signer| &signer.means);
        means.any(|means| means.is(&signer) && means.counts(now))
    }
}

impl std::fmt::Display for Revokes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(key) => write!(f, "key {key}"),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}
