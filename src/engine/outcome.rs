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
/// Checks what a guest returned. It is believed only as a whole: one bad header makes the answer invalid.
pub(super) fn from_guest(decision: types::Decision) -> Result<(Outcome, Obligations, CacheHint), Refusal> {
    let types::Decision { verdict, obligations, cache } = decision;
    let obligations = Obligations {
        status: obligations.status,
        headers_set: headers(obligations.headers_set),
        headers_append: headers(obligations.headers_append),
        headers_remove: obligations.headers_remove,
        body: obligations.body.map(Bytes::from),
        metadata: obligations
            .metadata
            .into_iter()
            .map(|types::Metadatum { key, value }| Metadatum { key, value })
            .collect(),
    };
    obligations.check().map_err(|unfit| invalid(unfit.to_string()))?;
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

fn headers(headers: Vec<types::HeaderResult>) -> Vec<HeaderValue> {
    let taken = |types::HeaderResult { name, value }| HeaderValue { name, value: Bytes::from(value) };
    headers.into_iter().map(taken).collect()
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
        bad.last_mut().unwrap().obligations.headers_set =
            vec![header("x", b""); crate::decision::ENTRIES_MAX + 1];
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
