//! A token in the compact form of RFC 7515, and whether one of our keys has signed it.

use alloc::string::String;
use alloc::vec::Vec;

use base64ct::{Base64UrlUnpadded, Encoding};
use p256::ecdsa::signature::Verifier;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::keys::{self, PublicKey};

/// A payload that is worth reading: one of our keys has signed it.
pub(crate) struct Signed {
    pub(crate) payload: Vec<u8>,
    pub(crate) kid: &'static str,
}

/// What the header may say. A key in it (`jwk`, `jku`, `x5c`) is not looked at: keys come from this policy only.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
}

/// The key is chosen by `kid` alone and fixes the algorithm. `alg` must agree with it; it never chooses anything.
pub(crate) fn verify(token: &str) -> Result<Signed, &'static str> {
    let (message, signature) = token.rsplit_once('.').ok_or("token is not three parts")?;
    let (header, payload) = message.split_once('.').ok_or("token is not three parts")?;
    let decode = |part| Base64UrlUnpadded::decode_vec(part).map_err(|_| "token is not base64url");
    let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);

    let header: Header = serde_json::from_slice(&header).map_err(|_| "token header not understood")?;
    if header.typ.is_some_and(|typ| !is_token_type(&typ)) {
        return Err("token is of another type");
    }
    if header.crit.is_some() {
        return Err("token needs an extension");
    }
    let key = keys::find(&header.kid).ok_or("key unknown")?;
    if !key.public.algorithms().contains(&&*header.alg) {
        return Err("algorithm is not the key's");
    }
    if !key.public.has_signed(message.as_bytes(), &signature) {
        return Err("signature wrong");
    }
    Ok(Signed { payload, kid: key.kid })
}

fn is_token_type(typ: &str) -> bool {
    ["jwt", "at+jwt", "application/at+jwt"].iter().any(|known| known.eq_ignore_ascii_case(typ))
}

impl PublicKey {
    /// The names of the one algorithm that this kind of key is for: RFC 7518, RFC 8037 and RFC 9864.
    fn algorithms(&self) -> &'static [&'static str] {
        match self {
            Self::P256(_) => &["ES256"],
            Self::Ed25519(_) => &["EdDSA", "Ed25519"],
        }
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(point) => p256::ecdsa::VerifyingKey::from_sec1_bytes(point)
                .and_then(|key| key.verify(message, &p256::ecdsa::Signature::from_slice(signature)?))
                .is_ok(),
            Self::Ed25519(point) => ed25519_dalek::VerifyingKey::from_bytes(point)
                .and_then(|key| key.verify_strict(message, &ed25519_dalek::Signature::from_slice(signature)?))
                .is_ok(),
        }
    }
}
