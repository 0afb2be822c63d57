//! A target that means one thing to everybody who reads it, whichever proxy it came through.
//!
//! `/open/../closed` begins with `/open/` for a policy, and is `/closed` for whoever resolves it: nginx chooses a `location`
//! by the one and tells us the other, Envoy and HAProxy leave the choice to the service behind them. A NUL ends a path for
//! some, a fragment is none of a server's business. No honest client sends any of these: they resolve before they ask.

use crate::decision::HttpRequest;
use crate::gateway::verdict::{Code, Down};

/// Nothing, or why nobody is asked about it.
pub(super) fn check(request: &HttpRequest<'_>) -> Result<(), Down> {
    let HttpRequest { path, query, .. } = request;
    if !path.starts_with('/') {
        return Err(bad(
            "the path does not begin with a slash; \"OPTIONS *\" and CONNECT are not asked about",
        ));
    }
    let one_thing = |byte: u8| byte > b' ' && byte != 0x7f && byte != b'#';
    if !path.bytes().all(|byte| one_thing(byte) && byte != b'?') {
        return Err(bad("the path has a blank, a control character, a query or a fragment"));
    }
    if !query.unwrap_or_default().bytes().all(one_thing) {
        return Err(bad("the query has a blank, a control character or a fragment"));
    }
    check_segments(path)
}

fn bad(why: &str) -> Down {
    Down::new(Code::BadRequest, why)
}

fn check_segments(path: &str) -> Result<(), Down> {
    // Nearly all paths end here.
    if !path.bytes().any(|byte| matches!(byte, b'%' | b'\\')) && !path.contains("/.") {
        return Ok(());
    }
    if path.contains("%00") {
        return Err(bad("the path has an encoded NUL"));
    }
    let decoded = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    let resolves = decoded.split(['/', '\\']).any(|segment| {
        // Some servers cut a segment's parameters off before they resolve it.
        matches!(segment.split(';').next(), Some("." | ".."))
    });
    if resolves {
        return Err(bad(
            "the path has a segment \".\" or \"..\", which is another path to whoever resolves it",
        ));
    }
    Ok(())
}

/// Targets that nobody is asked about, in any protocol.
#[cfg(test)]
pub(in crate::gateway) const TWO_READINGS: [&str; 18] = [
    "/open/../admin",
    "/open/./admin",
    "/..",
    "/open/.",
    "/open/%2e%2E/admin",
    "/open/.%2e",
    "/open%2f..%2fadmin",
    "/open/..%5cadmin",
    "/open/%2e%5Cadmin",
    "/open/..;x=y/admin",
    "/open\\..\\admin",
    "/open%00",
    "/open#/admin",
    "/open?a#b",
    "/open /admin",
    "/open\tadmin",
    "*",
    "open",
];

/// Those that only look strange.
#[cfg(test)]
pub(in crate::gateway) const ONE_READING: [&str; 9] = [
    "/open/.well-known/x",
    "/open/..b/c",
    "/open/...",
    "/open//b",
    "/open/%2e%2ea",
    "/open/a.%2f",
    "/open/\u{fc}",
    "/open?/../b",
    "/open?%00",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decision::Peer;

    fn checked(target: &str) -> Result<(), Code> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        check(&of(path, query)).map_err(|down| down.code)
    }

    fn of<'a>(path: &'a str, query: Option<&'a str>) -> HttpRequest<'a> {
        HttpRequest {
            method: "GET",
            scheme: "https",
            host: "a",
            path,
            query,
            headers: Vec::new(),
            body: None,
            source: Peer::default(),
            destination: Peer::default(),
            attributes: Vec::new(),
        }
    }

    #[test]
    fn what_has_two_readings_is_asked_of_nobody() {
        for target in TWO_READINGS {
            assert_eq!(checked(target), Err(Code::BadRequest), "{target:?}");
        }
        for target in ["", "/\u{7f}", "/a?b\0", "/a?b c", "http://a/b"] {
            assert_eq!(checked(target), Err(Code::BadRequest), "{target:?}");
        }
        assert!(check(&of("/a?b", None)).is_err(), "a query in the path");
        for target in ONE_READING {
            assert_eq!(checked(target), Ok(()), "{target:?}");
        }
    }

    proptest! {
        /// What is let by has no segment that could be resolved, however often and by whomever it is decoded once.
        #[test]
        fn nothing_resolves_what_is_let_by(target in "/([a.;]|%2[eEfF]|%5[cC]|/|\\\\|%00){0,12}") {
            if checked(&target).is_ok() {
                let decoded = percent_encoding::percent_decode_str(&target).decode_utf8_lossy().replace('\\', "/");
                prop_assert!(!decoded.contains('\0'));
                for segment in decoded.split('/') {
                    let bare = segment.split(';').next().unwrap();
                    prop_assert!(bare != "." && bare != "..", "{} is {}", target, decoded);
                }
            }
        }

        #[test]
        fn hostile_targets_never_panic(path in "\\PC{0,32}", query in proptest::option::of("\\PC{0,16}")) {
            let _ = check(&of(&path, query.as_deref()));
        }
    }
}
