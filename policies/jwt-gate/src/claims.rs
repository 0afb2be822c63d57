//! What a token says, once it is known who says it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

const ISSUER: &str = "https://issuer.example.test/";
const AUDIENCE: &str = "https://api.example.test/";
/// By how much the issuer's clock and ours may differ, seconds.
const LEEWAY: u64 = 30;
/// The longest subject, bytes.
const SUBJECT_MAX: usize = 256;

/// A claim that is there twice is an error: readers differ on which one counts.
#[derive(Deserialize)]
pub(crate) struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: Seconds,
    nbf: Option<Seconds>,
    iat: Option<Seconds>,
    #[serde(default)]
    scope: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Claims {
    /// Takes the claims if they are for us and `now`, in seconds since 1970, is within their time.
    pub(crate) fn check(payload: &[u8], now: u64) -> Result<Self, &'static str> {
        let claims: Self = serde_json::from_slice(payload).map_err(|_| "claims not understood")?;
        if claims.iss != ISSUER {
            return Err("issuer unknown");
        }
        if !claims.aud.holds(AUDIENCE) {
            return Err("token is for another audience");
        }
        if now >= claims.exp.0.saturating_add(LEEWAY) {
            return Err("token expired");
        }
        let soon = now.saturating_add(LEEWAY);
        if claims.nbf.as_ref().is_some_and(|nbf| soon < nbf.0) {
            return Err("token not valid yet");
        }
        if claims.iat.as_ref().is_some_and(|iat| soon < iat.0) {
            return Err("token from the future");
        }
        if !is_header_safe(&claims.sub) || claims.sub.len() > SUBJECT_MAX {
            return Err("subject unusable");
        }
        if !claims.scope.split(' ').all(|scope| scope.is_empty() || is_header_safe(scope)) {
            return Err("scope unusable");
        }
        Ok(claims)
    }

    pub(crate) fn has_scope(&self, wanted: &str) -> bool {
        self.scope.split(' ').any(|scope| scope == wanted)
    }

    pub(crate) fn subject(&self) -> &str {
        &self.sub
    }

    pub(crate) fn scope(&self) -> &str {
        &self.scope
    }

    /// In seconds since 1970.
    pub(crate) fn expires(&self) -> u64 {
        self.exp.0
    }
}

/// These go into headers for the server behind: visible ASCII, at least one character, and nothing else.
fn is_header_safe(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Audience {
    fn holds(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Many(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

/// Seconds since 1970. A fraction is dropped; what is before 1970 or no number is an error.
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecondsVisitor)
    }
}

struct SecondsVisitor;

impl Visitor<'_> for SecondsVisitor {
    type Value = Seconds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seconds since 1970")
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Seconds, E> {
        Ok(Seconds(seconds))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked; the fraction is dropped"
    )]
    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Seconds, E> {
        if (0.0..9e15).contains(&seconds) {
            Ok(Seconds(seconds as u64))
        } else {
            Err(E::custom("out of range"))
        }
    }
}
