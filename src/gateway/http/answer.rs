//! What becomes of a verdict in HTTP: `docs/proxies.md` has the table, `rows` in the tests has it too.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::super::verdict::{Code, Down, Gate, Verdict};
use super::head::is_token;
use super::reply::{Reply, Unfit};
use crate::decision::{HeaderValue, Obligations, Timing};

/// What every answer has. A policy's headers may not begin so.
const OURS: &str = "x-portcullis-";
/// Nor so: these are orders to nginx. With `x-accel-redirect` it answers the question itself, by another location, whatever
/// the status here says.
const NGINXS: &str = "x-accel-";
/// What stands for itself in a key or a value.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Tells `verdict`. What cannot be told as it was decided is told as an answer that is invalid.
pub(super) fn tell(verdict: &Verdict, details: bool, reply: &mut Reply) {
    if write(verdict, details, reply).is_err() {
        let down = Down::new(Code::InvalidOutput, "an obligation that no HTTP answer can carry");
        let unfit = Verdict { id: verdict.id, ..Verdict::down(down) };
        // Nothing in it is anybody else's.
        let _ = write(&unfit, details, reply);
    }
}

fn write(verdict: &Verdict, details: bool, reply: &mut Reply) -> Result<(), Unfit> {
    match &verdict.gate {
        Gate::Open => {
            reply.begin(200);
            reply.line("x-portcullis-outcome", b"allow");
            upstream(&verdict.obligations, reply)?;
            metadata(&verdict.obligations, reply);
        }
        Gate::Down(down) => {
            // Whatever it says, it does not open.
            let closed = (300..=599).contains(&down.status);
            reply.begin(if closed { down.status } else { down.code.status() });
            reply.line("x-portcullis-outcome", down.code.word().as_bytes());
            if let Some(ms) = down.retry_after_ms {
                reply.line("retry-after", ms.div_ceil(1000).to_string().as_bytes());
            }
            denial(verdict, reply)?;
            // Many proxies hand all of a denial on to their client.
            if details {
                metadata(&verdict.obligations, reply);
            }
        }
    }
    if let Some(id) = &verdict.id {
        let mut digits = [0; 32];
        // Two digits a byte: there is room.
        let _ = hex::encode_to_slice(id.as_bytes(), &mut digits);
        reply.line("x-portcullis-decision", &digits);
    }
    if details {
        if let Some(digest) = &verdict.digest {
            reply.line("x-portcullis-digest", digest.to_string().as_bytes());
        }
        reply.line("x-portcullis-timing", timing(&verdict.timing).as_bytes());
    }
    Ok(())
}

/// For the request that is let through: as headers of the answer, from which the proxy takes what it is told to. What is to be
/// removed is a header without a value, which nginx and Caddy then do not send; Envoy has a list for it. An order to nginx is
/// one without a value too: it is in the list only, and to nginx a header that is not there is as good.
fn upstream(obligations: &Obligations, reply: &mut Reply) -> Result<(), Unfit> {
    given(obligations, reply)?;
    let mut removed = String::new();
    for name in &obligations.headers_remove {
        let set = obligations.headers_set.iter().chain(&obligations.headers_append);
        if !set.into_iter().any(|header| header.name.eq_ignore_ascii_case(name)) {
            let is_order = begins(name, NGINXS) && name.bytes().all(is_token);
            if !is_order {
                theirs(name, b"", reply)?;
            }
            removed.push_str(if removed.is_empty() { "" } else { "," });
            removed.push_str(name);
        }
    }
    if !removed.is_empty() {
        reply.line("x-envoy-auth-headers-to-remove", removed.as_bytes());
    }
    Ok(())
}

/// For whoever is turned away.
fn denial(verdict: &Verdict, reply: &mut Reply) -> Result<(), Unfit> {
    let obligations = &verdict.obligations;
    given(obligations, reply)?;
    let named = obligations.headers_set.iter().chain(&obligations.headers_append);
    if !named.into_iter().any(|header| header.name.eq_ignore_ascii_case("content-type")) {
        reply.line("content-type", b"text/plain; charset=utf-8");
    }
    reply.body(verdict.body());
    Ok(())
}

/// Headers that are set, of those of one name the last; then those that are added.
fn given(obligations: &Obligations, reply: &mut Reply) -> Result<(), Unfit> {
    let set = &obligations.headers_set;
    for (at, HeaderValue { name, value }) in set.iter().enumerate() {
        let again = set.iter().skip(at + 1).any(|later| later.name.eq_ignore_ascii_case(name));
        if !again {
            theirs(name, value, reply)?;
        }
    }
    obligations.headers_append.iter().try_for_each(|header| theirs(&header.name, &header.value, reply))
}

/// A line as a policy wants it.
fn theirs(name: &str, value: &[u8], reply: &mut Reply) -> Result<(), Unfit> {
    if begins(name, OURS) || begins(name, NGINXS) { Err(Unfit) } else { reply.header(name, value) }
}

fn begins(name: &str, with: &str) -> bool {
    name.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with))
}

fn metadata(obligations: &Obligations, reply: &mut Reply) {
    let encoded = |text| utf8_percent_encode(text, ENCODED);
    for one in &obligations.metadata {
        let line = format!("{}={}", encoded(&one.key), encoded(&one.value));
        reply.line("x-portcullis-metadata", line.as_bytes());
    }
}

/// As `Server-Timing` has it: milliseconds.
fn timing(timing: &Timing) -> String {
    let Timing { queue_ns, instantiate_ns, run_ns, host_ns } = *timing;
    let mut line = String::new();
    for (name, ns) in
        [("queue", queue_ns), ("instantiate", instantiate_ns), ("run", run_ns), ("host", host_ns)]
    {
        let comma = if line.is_empty() { "" } else { ", " };
        // A String takes whatever is written. Microseconds, as a part of a millisecond.
        let _ = write!(line, "{comma}{name};dur={}.{:03}", ns / 1_000_000, ns / 1000 % 1000);
    }
    line
}
