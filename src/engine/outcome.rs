//! From what a guest returned, or how it ended, to a decision. Every way that is not an answer ends in a refusal.

use bytes::Bytes;
use wasmtime::Trap;

use super::bindings::v1_0::portcullis::policy::types;
use super::host::CallsExhausted;
use crate::accounts::Exceeded;
use crate::artifact::Limits;
use crate::decision::{
    CacheHint, CacheScope, HeaderValue, Metadatum, Obligations, Outcome, Refusal, TrapKind,
};

/// Longest reason of a denial and detail of a failure, bytes; longer ones are cut.
const REASON_BYTES: usize = 1024;
/// How wasmtime begins to say that a guest gives more than it may. It has no type for that.
const TOO_MUCH: &str = "too much data is being copied between the host and the guest";
/// Longest reason of a failure, bytes.
const FAILURE_REASON_BYTES: usize = 64;
/// Most headers or metadata of one kind.
const ENTRIES: usize = 128;
/// Headers that belong to a connection or to a message's framing: setting one would desynchronise a proxy.
const NOT_A_POLICYS: [&str; 12] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Checks what a guest returned. It is believed only as a whole: one bad header makes the answer invalid.
pub(super) fn from_guest(decision: types::Decision) -> Result<(Outcome, Obligations, CacheHint), Refusal> {
    let types::Decision { verdict, obligations, cache } = decision;
    let obligations = Obligations {
        status: status(obligations.status)?,
        headers_set: headers("headers-set", obligations.headers_set)?,
        headers_append: headers("headers-append", obligations.headers_append)?,
        headers_remove: removed(obligations.headers_remove)?,
        body: obligations.body.map(Bytes::from),
        metadata: metadata(obligations.metadata)?,
    };
    let cache = CacheHint {
        ttl_ms: cache.ttl_ms,
        scope: match cache.scope {
            types::CacheScope::Request => CacheScope::Request,
            types::CacheScope::Client => CacheScope::Client,
            types::CacheScope::Path => CacheScope::Path,
        },
    };
    let outcome = match verdict {
        types::Verdict::Allow => Outcome::Allow,
        types::Verdict::Deny(reason) => Outcome::Deny { reason: cut(reason) },
    };
    Ok((outcome, obligations, cache))
}

/// A policy that says itself that it could not decide. A reason is for counting, so it is one word or nothing that counts.
pub(super) fn from_failure(types::Failure { reason, detail }: types::Failure) -> Refusal {
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    if reason.is_empty() || reason.len() > FAILURE_REASON_BYTES || !reason.bytes().all(legal) {
        return invalid(format!(
            "reason of a failure: {:?} is not 1 to 64 of a-z 0-9 - _ .",
            cut_to(&reason, 64)
        ));
    }
    Refusal::PolicyFailed { reason, detail: cut(detail) }
}

/// Names the way a guest ended without an answer.
pub(super) fn from_error(error: &wasmtime::Error, growth_refused: bool, limits: &Limits) -> Refusal {
    if let Some(exceeded) = error.downcast_ref::<Exceeded>() {
        return Refusal::from(*exceeded);
    }
    if error.is::<CallsExhausted>() {
        return Refusal::Trap(TrapKind::HostCalls);
    }
    match error.downcast_ref::<Trap>() {
        // Out of memory looks like `unreachable` from here: that is how allocators give up.
        // Some use the memory they did not get.
        Some(Trap::UnreachableCodeReached | Trap::MemoryOutOfBounds) if growth_refused => {
            Refusal::Trap(TrapKind::Memory)
        }
        Some(trap) => match trap_kind(*trap) {
            Some(kind) => Refusal::Trap(kind),
            None => Refusal::InvalidOutput(trap.to_string()),
        },
        // Pointers, lengths, discriminants and strings that do not hold, or more output than the limit.
        None => {
            let cause = error.root_cause().to_string();
            if cause.starts_with(TOO_MUCH) {
                return invalid(format!("it is more than the limit of {} bytes", limits.output));
            }
            Refusal::InvalidOutput(cut(cause))
        }
    }
}

fn trap_kind(trap: Trap) -> Option<TrapKind> {
    Some(match trap {
        Trap::UnreachableCodeReached => TrapKind::Unreachable,
        Trap::MemoryOutOfBounds | Trap::TableOutOfBounds | Trap::ArrayOutOfBounds | Trap::HeapMisaligned => {
            TrapKind::OutOfBounds
        }
        Trap::StackOverflow => TrapKind::Stack,
        Trap::AllocationTooLarge => TrapKind::Memory,
        Trap::OutOfFuel => TrapKind::Fuel,
        Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => {
            TrapKind::Arithmetic
        }
        Trap::IndirectCallToNull | Trap::BadSignature | Trap::NullReference | Trap::CastFailure => {
            TrapKind::IndirectCall
        }
        Trap::CannotEnterComponent | Trap::CannotLeaveComponent => TrapKind::Abi,
        Trap::InvalidChar
        | Trap::StringOutOfBounds
        | Trap::ListOutOfBounds
        | Trap::InvalidDiscriminant
        | Trap::UnalignedPointer => return None,
        _ => TrapKind::Other,
    })
}

fn invalid(what: String) -> Refusal {
    Refusal::InvalidOutput(what)
}

fn status(status: Option<u16>) -> Result<Option<u16>, Refusal> {
    match status {
        Some(code) if !(100..=599).contains(&code) => {
            Err(invalid(format!("status {code} is not 100 to 599")))
        }
        other => Ok(other),
    }
}

fn headers(list: &str, headers: Vec<types::HeaderResult>) -> Result<Vec<HeaderValue>, Refusal> {
    bounded(list, headers.len())?;
    headers
        .into_iter()
        .map(|header| {
            check_name(list, &header.name)?;
            // A CR or LF would end the header and begin whatever the guest likes.
            if header.value.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
                return Err(invalid(format!("{list}: value of {:?} has a control character", header.name)));
            }
            // Bytes as HTTP has them, but what is not text means one thing to one proxy and another to the next.
            if std::str::from_utf8(&header.value).is_err() {
                return Err(invalid(format!("{list}: value of {:?} is not UTF-8", header.name)));
            }
            Ok(HeaderValue { name: header.name, value: Bytes::from(header.value) })
        })
        .collect()
}

fn removed(names: Vec<String>) -> Result<Vec<String>, Refusal> {
    bounded("headers-remove", names.len())?;
    names.iter().try_for_each(|name| check_name("headers-remove", name))?;
    Ok(names)
}

fn metadata(metadata: Vec<types::Metadatum>) -> Result<Vec<Metadatum>, Refusal> {
    bounded("metadata", metadata.len())?;
    Ok(metadata.into_iter().map(|one| Metadatum { key: one.key, value: one.value }).collect())
}

fn bounded(list: &str, length: usize) -> Result<(), Refusal> {
    if length > ENTRIES {
        Err(invalid(format!("{list} has {length} entries, at most {ENTRIES} are taken")))
    } else {
        Ok(())
    }
}

/// A token as RFC 9110 has it, and not one that frames the message.
fn check_name(list: &str, name: &str) -> Result<(), Refusal> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > 256 || !name.bytes().all(token) {
        return Err(invalid(format!("{list}: {:?} is not a header name", cut_to(name, 64))));
    }
    if NOT_A_POLICYS.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err(invalid(format!("{list}: {name:?} belongs to the connection, not to a policy")));
    }
    Ok(())
}

fn cut(text: String) -> String {
    if text.len() <= REASON_BYTES { text } else { cut_to(&text, REASON_BYTES).to_owned() }
}

fn cut_to(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> types::Decision {
        types::Decision {
            verdict: types::Verdict::Allow,
            obligations: types::Obligations {
                status: None,
                headers_set: vec![],
                headers_append: vec![],
                headers_remove: vec![],
                body: None,
                metadata: vec![],
            },
            cache: types::CacheHint { ttl_ms: 0, scope: types::CacheScope::Request },
        }
    }

    fn header(name: &str, value: &[u8]) -> types::HeaderResult {
        types::HeaderResult { name: name.into(), value: value.into() }
    }

    #[test]
    fn a_plain_answer_is_taken() {
        let mut good = answer();
        good.obligations.status = Some(599);
        good.obligations.headers_set.push(header("x-user", "a\tb ä".as_bytes()));
        let (outcome, obligations, _) = from_guest(good).unwrap();
        assert!(outcome.is_allow());
        assert_eq!(obligations.headers_set.len(), 1);
    }

    #[test]
    fn one_bad_part_makes_the_answer_invalid() {
        let mut bad: Vec<types::Decision> = vec![];
        for status in [0, 99, 600, 999] {
            bad.push(answer());
            bad.last_mut().unwrap().obligations.status = Some(status);
        }
        for (name, value) in [
            ("x-a", &b"1\r\nset-cookie: x"[..]),
            ("x-a", b"1\n"),
            ("x-a", b"\0"),
            ("x-a", b"\x7f"),
            ("x-a", b"\xff"),
            ("x-a", b"caf\xe9"),
            ("x-a", b"\xc0\xaf"),
            ("", b""),
            ("x a", b""),
            ("x:a", b""),
            ("x\r\n", b""),
            ("Transfer-Encoding", b"chunked"),
            ("Content-Length", b"0"),
        ] {
            bad.push(answer());
            bad.last_mut().unwrap().obligations.headers_append.push(header(name, value));
        }
        bad.push(answer());
        bad.last_mut().unwrap().obligations.headers_remove.push("Host".into());
        bad.push(answer());
        bad.last_mut().unwrap().obligations.headers_set = vec![header("x", b""); ENTRIES + 1];
        for decision in bad {
            let shown = format!("{decision:?}");
            assert!(matches!(from_guest(decision), Err(Refusal::InvalidOutput(_))), "{shown}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let mut long = answer();
        long.verdict = types::Verdict::Deny("ä".repeat(REASON_BYTES));
        let (outcome, ..) = from_guest(long).unwrap();
        assert_eq!(outcome, Outcome::Deny { reason: "ä".repeat(REASON_BYTES / 2) });
    }
}
