//! What a verdict is to Envoy. `docs/proxies.md` has it as a table.

mod wishes;

use bytes::Bytes;

use self::wishes::Wishes;
use super::messages::{
    APPEND_IF_EXISTS_OR_ADD, BoolValue, CheckResponse, DeniedHttpResponse, Field, HeaderValue,
    HeaderValueOption, HttpResponse, HttpStatus, Kind, OVERWRITE_IF_EXISTS_OR_ADD, OkHttpResponse, Status,
    Struct, Value,
};
use crate::decision::{self, Obligations, Timing};
use crate::gateway::verdict::{Code, Down, Gate, Verdict};

/// `envoy.type.v3.StatusCode` from 300 on: Envoy gives no other to whoever asked it.
const STATUSES: &[(u16, u16)] = &[
    (300, 305),
    (307, 308),
    (400, 417),
    (421, 424),
    (426, 426),
    (428, 429),
    (431, 431),
    (500, 508),
    (510, 511),
];
/// For a status that Envoy does not have.
const FORBIDDEN: u16 = 403;

/// What Envoy is told. Every gate that is not open is a response that denies, whatever it is that went wrong: an error of
/// the call would be let through where `failure_mode_allow` is set.
pub(super) fn of(verdict: Verdict) -> CheckResponse {
    match told(&verdict) {
        Ok(response) => response,
        Err(down) => {
            let instead = Verdict { gate: Gate::Down(down), obligations: Obligations::default(), ..verdict };
            told(&instead).unwrap_or_else(|down| denial(&down, &Bytes::new(), Vec::new()))
        }
    }
}

fn told(verdict: &Verdict) -> Result<CheckResponse, Down> {
    let wishes = Wishes::of(&verdict.obligations.metadata)?;
    let mut response = match &verdict.gate {
        Gate::Open => CheckResponse {
            status: Some(Status { code: 0, message: Bytes::new() }),
            http_response: Some(HttpResponse::Ok(request_changes(&verdict.obligations, &wishes)?)),
            dynamic_metadata: None,
        },
        Gate::Down(down) => {
            let mut headers = header_changes(&verdict.obligations, There::Stays)?;
            headers.extend(wishes.response_headers());
            let has_one = headers
                .iter()
                .filter_map(|option| option.header.as_ref())
                .any(|header| header.key.eq_ignore_ascii_case(b"retry-after"));
            if let Some(ms) = down.retry_after_ms.filter(|_| !has_one) {
                let seconds = Bytes::from(ms.div_ceil(1000).to_string());
                headers.push(header(Bytes::from_static(b"retry-after"), seconds, There::Goes));
            }
            denial(down, &verdict.body(), headers)
        }
    };
    response.dynamic_metadata = Some(metadata(verdict, &wishes));
    Ok(response)
}

fn denial(down: &Down, body: &Bytes, headers: Vec<HeaderValueOption>) -> CheckResponse {
    let known = STATUSES.iter().any(|(first, last)| (*first..=*last).contains(&down.status));
    let status = if known { down.status } else { FORBIDDEN };
    CheckResponse {
        status: Some(Status { code: down.code.grpc(), message: Bytes::from(down.reason.clone()) }),
        http_response: Some(HttpResponse::Denied(DeniedHttpResponse {
            status: Some(HttpStatus { code: status.into() }),
            headers,
            body: lossy(body),
        })),
        dynamic_metadata: None,
    }
}

/// It is a string there, and Envoy would take nothing of a message whose strings are not UTF-8.
fn lossy(bytes: &Bytes) -> Bytes {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.clone(),
        Err(_) => Bytes::from(String::from_utf8_lossy(bytes).into_owned()),
    }
}

/// What goes with a request that is let through.
fn request_changes(obligations: &Obligations, wishes: &Wishes<'_>) -> Result<OkHttpResponse, Down> {
    let headers = header_changes(obligations, There::StaysInRequest)?;
    // Envoy removes last: what is also set would be gone.
    let stays = |name: &str| {
        let both = [&obligations.headers_set, &obligations.headers_append];
        both.into_iter().flatten().any(|header| header.name.eq_ignore_ascii_case(name))
    };
    let gone = obligations.headers_remove.iter().filter(|name| !stays(name));
    Ok(OkHttpResponse {
        headers,
        headers_to_remove: gone.map(|name| Bytes::from(name.clone())).collect(),
        response_headers_to_add: wishes.response_headers().collect(),
        query_parameters_to_set: wishes.query_set(),
        query_parameters_to_remove: wishes.query_removed(),
    })
}

/// Headers to set and to append, in that order; `appended` is for the latter. The first of those that are also to be removed
/// replaces what is there.
fn header_changes(obligations: &Obligations, appended: There) -> Result<Vec<HeaderValueOption>, Down> {
    let Obligations { headers_set, headers_append, headers_remove, .. } = obligations;
    let mut changes: Vec<HeaderValueOption> = Vec::with_capacity(headers_set.len() + headers_append.len());
    for set in headers_set {
        changes.push(change(set, There::Goes)?);
    }
    for append in headers_append {
        let removed = headers_remove.iter().any(|name| name.eq_ignore_ascii_case(&append.name));
        let first = || {
            !changes
                .iter()
                .filter_map(|change| change.header.as_ref())
                .any(|before| before.key.eq_ignore_ascii_case(append.name.as_bytes()))
        };
        let there = if removed && first() { There::Goes } else { appended };
        changes.push(change(append, there)?);
    }
    Ok(changes)
}

fn change(wanted: &decision::HeaderValue, there: There) -> Result<HeaderValueOption, Down> {
    if std::str::from_utf8(&wanted.value).is_err() {
        return Err(invalid(format!("the value of {:?} is not UTF-8", wanted.name)));
    }
    Ok(header(Bytes::from(wanted.name.clone()), wanted.value.clone(), there))
}

/// What becomes of a header of that name that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Goes,
    /// Of a response.
    Stays,
    /// Of a request. `APPEND_IF_EXISTS_OR_ADD` is 0, so that it is not on the wire, and Envoy goes by the older `append` then,
    /// whose absence is to overwrite. Of a denial it sends no header that has it. (Both seen with 1.40.)
    StaysInRequest,
}

fn header(key: Bytes, value: Bytes, there: There) -> HeaderValueOption {
    let keep_empty_value = value.is_empty();
    let header = Some(HeaderValue { key, value, raw_value: Bytes::new() });
    let (append, append_action) = match there {
        There::Goes => (None, OVERWRITE_IF_EXISTS_OR_ADD),
        There::Stays => (None, APPEND_IF_EXISTS_OR_ADD),
        There::StaysInRequest => (Some(BoolValue { value: true }), 0),
    };
    HeaderValueOption { header, append, append_action, keep_empty_value }
}

fn invalid(why: String) -> Down {
    Down::new(Code::InvalidOutput, why)
}

/// For Envoy's later filters and its access log; nobody else sees it.
fn metadata(verdict: &Verdict, wishes: &Wishes<'_>) -> Struct {
    let mut fields = Vec::with_capacity(6);
    let mut add =
        |key: &'static str, kind: Kind| fields.push(field(Bytes::from_static(key.as_bytes()), kind));
    let word = match &verdict.gate {
        Gate::Open => "allow",
        Gate::Down(down) => down.code.word(),
    };
    add("outcome", Kind::String(Bytes::from_static(word.as_bytes())));
    if let Gate::Down(down) = &verdict.gate {
        add("reason", Kind::String(Bytes::from(down.reason.clone())));
    }
    if let Some(id) = verdict.id {
        add("decision", Kind::String(Bytes::from(id.to_string())));
    }
    if let Some(digest) = verdict.digest {
        add("digest", Kind::String(Bytes::from(digest.to_string())));
        let Timing { queue_ns, instantiate_ns, run_ns, host_ns } = verdict.timing;
        let timings = [
            ("queue_us", queue_ns),
            ("instantiate_us", instantiate_ns),
            ("run_us", run_ns),
            ("host_us", host_ns),
        ];
        let timings = timings.map(|(key, ns)| field(Bytes::from_static(key.as_bytes()), microseconds(ns)));
        add("timings", Kind::Struct(Struct { fields: timings.into() }));
    }
    let rest: Vec<Field> = wishes
        .metadata()
        .map(|one| field(Bytes::from(one.key.clone()), Kind::String(Bytes::from(one.value.clone()))))
        .collect();
    if !rest.is_empty() {
        add("metadata", Kind::Struct(Struct { fields: rest }));
    }
    Struct { fields }
}

fn field(key: Bytes, kind: Kind) -> Field {
    Field { key, value: Some(Value { kind: Some(kind) }) }
}

/// Whole ones; an hour and more is an hour.
fn microseconds(ns: u64) -> Kind {
    Kind::Number(u32::try_from(ns / 1000).unwrap_or(u32::MAX).into())
}

#[cfg(test)]
mod tests;
