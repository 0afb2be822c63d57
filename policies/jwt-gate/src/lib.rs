//! Lets requests through that carry a valid bearer token with the scope of their route.
//!
//! In the order of reading: the one `authorization` header, the token's signature, its claims, the route. The first
//! thing that is wrong decides; nothing a token says is believed before its signature is checked.

#![no_std]

extern crate alloc;

mod claims;
mod keys;
mod routes;
mod token;

use alloc::format;
use alloc::string::String;

use guest::{Answer, CacheScope, Decision, HttpRequest, Policy, Request, clock};

use crate::claims::Claims;

/// The longest `authorization` header that is looked at, in bytes.
const HEADER_MAX: usize = 8 << 10;
/// How long an answer may be reused at most, in milliseconds; never past the token's end.
const CACHE_MS_MAX: u32 = 30_000;

struct JwtGate;

impl Policy for JwtGate {
    fn decide(request: Request) -> Answer {
        let Request::Http(request) = request else {
            return Ok(Decision::deny(400, "expected an http request"));
        };
        Ok(match check(&request, clock::now() / 1_000_000_000) {
            Ok(passed) => passed.allow(),
            Err(denial) => denial.deny(),
        })
    }
}

guest::export!(JwtGate);

/// Who may pass, and on which key's word.
struct Passed {
    claims: Claims,
    kid: &'static str,
    now: u64,
}

/// Why not: in the terms of RFC 6750, section 3.1, and in words.
enum Denial {
    /// No token at all: the answer only says that one is needed.
    Missing,
    /// Not a request with one bearer token.
    Malformed(&'static str),
    /// A token that does not count.
    Invalid(&'static str),
    /// A token that counts, but not for this.
    Scope(&'static str),
    /// A path that the server behind may read in another way than this policy, or no route at all.
    Route(&'static str),
}

fn check(request: &HttpRequest, now: u64) -> Result<Passed, Denial> {
    let route = routes::find(request).map_err(Denial::Route)?;
    let signed = token::verify(bearer(request)?).map_err(Denial::Invalid)?;
    let claims = Claims::check(&signed.payload, now).map_err(Denial::Invalid)?;
    if !claims.has_scope(route.scope) {
        return Err(Denial::Scope(route.scope));
    }
    Ok(Passed { claims, kid: signed.kid, now })
}

/// The token of the one `authorization` header there may be. With two, the server behind might read the other one.
fn bearer(request: &HttpRequest) -> Result<&str, Denial> {
    let mut values = request.header("authorization");
    let value = values.next().ok_or(Denial::Missing)?;
    if values.next().is_some() {
        return Err(Denial::Malformed("more than one authorization header"));
    }
    if value.len() > HEADER_MAX {
        return Err(Denial::Malformed("authorization header too long"));
    }
    let value = core::str::from_utf8(value).map_err(|_| Denial::Malformed("authorization is not text"))?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim_start_matches(' ')),
        _ => Err(Denial::Malformed("authorization is not a bearer token")),
    }
}

impl Passed {
    /// Tells the server behind who it is, in headers that replace what the client may have sent; the token stays here.
    fn allow(self) -> Decision {
        let left_ms = self.claims.expires().saturating_sub(self.now).saturating_mul(1000);
        let ttl_ms = u32::try_from(left_ms).map_or(CACHE_MS_MAX, |left| left.min(CACHE_MS_MAX));
        Decision::allow()
            .set_header("x-auth-subject", self.claims.subject())
            .set_header("x-auth-scope", self.claims.scope())
            .remove_header("authorization")
            .metadata("kid", self.kid)
            .cache(ttl_ms, CacheScope::Request)
    }
}

impl Denial {
    fn deny(self) -> Decision {
        let challenge = |error: &str, why: &str| {
            format!("Bearer realm=\"portcullis\", error=\"{error}\", error_description=\"{why}\"")
        };
        let (status, reason, challenge) = match self {
            Self::Missing => (401, "no token", Some(String::from("Bearer realm=\"portcullis\""))),
            Self::Malformed(why) => (401, why, Some(challenge("invalid_request", why))),
            Self::Invalid(why) => (401, why, Some(challenge("invalid_token", why))),
            Self::Scope(scope) => {
                let challenge =
                    format!("{}, scope=\"{scope}\"", challenge("insufficient_scope", "scope missing"));
                (403, "scope missing", Some(challenge))
            }
            Self::Route(why) => (403, why, None),
        };
        let denied = Decision::deny(status, reason);
        match challenge {
            Some(challenge) => denied.set_header("www-authenticate", challenge),
            None => denied,
        }
    }
}
