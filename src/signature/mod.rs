//! Who vouches for a bundle: signatures and provenance in the forms that the ecosystem knows, over its digest.
//!
//! Whatever is attached to a bundle goes in, and [`Evidence`] comes out: which trusted keys (or identities) really
//! signed exactly this digest, and which of them say how it was built. Whether that is enough is [`crate::trust`]'s to say.
//!
//! ```text
//! attachment --[sigstore]--> signature over a statement --[dsse, check]--> a trusted key made it
//!                                                         --[intoto]-----> it is about this bundle
//!                                                         --[provenance]-> built by whom, from what
//!            --[sigstore]--> signature over the bundle index itself
//!            --[cosign]----> signature over a payload that names its digest
//! ```
//!
//! To vouch for a bundle ([`sign`]) and to say how it was built ([`attest`]) are two acts: neither stands for the other.

mod check;
pub mod cosign;
pub mod dsse;
mod evidence;
pub mod intoto;
#[cfg(feature = "keyless")]
mod keyless;
#[cfg(not(feature = "keyless"))]
#[path = "no_keyless.rs"]
mod keyless;
mod provenance;
pub mod sigstore;

pub use check::{ATTACHED_MAX, Anchors, Material, Subject, check};
pub use evidence::{Evidence, Provenance, Signer};
pub use keyless::{KEYLESS, KeylessRoot};
pub use provenance::{BUILD_TYPE, BuildFacts, FactsError, GitSource};

use dsse::Signed;
use sigstore::{Bundle, Content};

use crate::artifact::SigningKey;

/// A signature could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("attest build: {0}")]
    Facts(#[from] FactsError),
    #[error("sign bundle: the statement {0}")]
    Statement(#[from] intoto::StatementError),
    #[error("sign bundle: the result {0}")]
    Bundle(#[from] sigstore::SigstoreError),
}

/// A signature by an identity that does not hold, or nothing to check it against.
#[derive(Debug, thiserror::Error)]
pub enum KeylessError {
    #[error("this program checks keys only; build it with the feature \"keyless\"")]
    NotBuiltIn,
    #[error(
        "is signed by a certificate, and the trust policy pins no root for it; add [keyless] with trusted_root"
    )]
    NoRoot,
    #[error("is not a trusted root as sigstore clients have it: {0}")]
    Root(String),
    #[error("is signed by a certificate, which does not hold: {0}")]
    Signature(String),
}

/// Vouches for a bundle: a sigstore bundle to be attached to it. The same key and bundle give the same bytes.
///
/// # Errors
/// When JSON cannot be written, which does not happen.
pub fn sign(subject: &Subject<'_>, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    let nothing_more = serde_json::Map::new();
    let payload = intoto::statement(subject.index, intoto::SIGN, nothing_more)?;
    wrap(Content::Statement(Signed::new(intoto::PAYLOAD_TYPE, payload, key)), key)
}

/// Says how a bundle was built: a sigstore bundle to be attached to it, with SLSA provenance.
///
/// # Errors
/// When the facts are not ones.
pub fn attest(subject: &Subject<'_>, facts: &BuildFacts, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    let payload = intoto::statement(subject.index, intoto::PROVENANCE, facts.predicate()?)?;
    wrap(Content::Statement(Signed::new(intoto::PAYLOAD_TYPE, payload, key)), key)
}

/// Vouches for a bundle by a signature over its index's own bytes, as `cosign sign-blob` does.
///
/// # Errors
/// When JSON cannot be written, which does not happen.
pub fn sign_message(subject: &Subject<'_>, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    wrap(Content::Message { digest: subject.index, signature: key.sign(subject.bytes) }, key)
}

fn wrap(content: Content, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    let bytes = Bundle::new(content, &key.public_key()).to_bytes()?;
    // What would not be read again is not written: a statement may be too long.
    Bundle::from_bytes(&bytes)?;
    Ok(bytes)
}
