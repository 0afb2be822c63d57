//! cosign's older form, "simple signing", which is only read: a layer whose bytes name an image by its digest, and whose
//! annotation is a signature over those bytes.

use std::collections::BTreeMap;

use base64ct::{Base64, Encoding};
use serde::Deserialize;

use crate::artifact::Digest;

/// What such a layer is attached as.
pub const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Largest payload that is read, bytes.
pub const PAYLOAD_MAX: usize = 64 << 10;

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const TYPE: &str = "cosign container image signature";

/// Not a signature in that form, or not of this bundle.
#[derive(Debug, thiserror::Error)]
pub enum SimpleSigningError {
    #[error("is {0} bytes long, at most {PAYLOAD_MAX} are read")]
    TooLong(usize),
    #[error("has no annotation {SIGNATURE:?}")]
    NoSignature,
    #[error("annotation {SIGNATURE:?} is not base64")]
    Base64,
    #[error("has a certificate; only sigstore bundles are read without a key, so sign with a newer cosign")]
    Certificate,
    #[error("is not what cosign signs: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("says it is a {0:?}, expected a {TYPE:?}")]
    Type(String),
    #[error("is about {found}, and this bundle is {expected}")]
    Subject { found: Digest, expected: Digest },
}

/// What is not named here is not needed: all of it is signed.
#[derive(Deserialize)]
struct PayloadJson {
    critical: CriticalJson,
}

#[derive(Deserialize)]
struct CriticalJson {
    image: ImageJson,
    r#type: String,
}

#[derive(Deserialize)]
struct ImageJson {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

/// The signature of `payload`, unchecked.
///
/// # Errors
/// When there is none.
pub fn signature(annotations: &BTreeMap<String, String>) -> Result<Vec<u8>, SimpleSigningError> {
    if annotations.contains_key(CERTIFICATE) {
        return Err(SimpleSigningError::Certificate);
    }
    let signature = annotations.get(SIGNATURE).ok_or(SimpleSigningError::NoSignature)?;
    Base64::decode_vec(signature).map_err(|_| SimpleSigningError::Base64)
}

/// That `payload`, whose signature is good, is about `subject`.
///
/// # Errors
/// When it is not.
pub fn is_about(payload: &[u8], subject: &Digest) -> Result<(), SimpleSigningError> {
    let PayloadJson { critical } = serde_json::from_slice(payload).map_err(SimpleSigningError::Malformed)?;
    if critical.r#type != TYPE {
        return Err(SimpleSigningError::Type(critical.r#type.chars().take(80).collect()));
    }
    if critical.image.digest != *subject {
        return Err(SimpleSigningError::Subject { found: critical.image.digest, expected: *subject });
    }
    Ok(())
}
