//! Answers in OPA's shapes. A result is what a policy said, yes or no; whatever else ends a question is an error, so that
//! nobody can take it for either.

use std::collections::BTreeMap;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use bytes::Bytes;
use serde::Serialize;

use super::target::{Version, Wishes};
use crate::artifact::Digest;
use crate::decision::{DecisionId, HeaderValue, Obligations, PolicyName, Timing};
use crate::gateway::http::Reply;
use crate::gateway::verdict::{Code, Down, Gate, Verdict};

/// A request that gets no decision, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    status: u16,
    /// OPA's word for it.
    code: &'static str,
    message: String,
    /// The methods that are served, where another one was used.
    allowed: &'static [&'static str],
}

impl Refused {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), allowed: &[] }
    }

    pub(super) fn parameter(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_parameter", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "resource_not_found", message)
    }

    pub(super) fn undefined(message: impl Into<String>) -> Self {
        Self::new(404, "undefined_document", message)
    }

    pub(super) fn method(allowed: &'static [&'static str], message: impl Into<String>) -> Self {
        Self { allowed, ..Self::new(405, "invalid_operation", message) }
    }

    pub(super) fn media_type(message: impl Into<String>) -> Self {
        Self::new(415, "invalid_parameter", message)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn tell(&self, pretty: bool, reply: &mut Reply) {
        let error = Error { code: self.code, message: &self.message, errors: Vec::new(), decision_id: None };
        begin(self.status, reply);
        if !self.allowed.is_empty() {
            reply.line("allow", self.allowed.join(", ").as_bytes());
        }
        reply.body(json(&error, pretty));
    }
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Cause<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<DecisionId>,
}

#[derive(Serialize)]
struct Cause<'a> {
    code: &'a str,
    message: &'a str,
}

#[derive(Serialize)]
struct Answer<'a> {
    result: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<DecisionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<BTreeMap<&'static str, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provenance: Option<Provenance<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<Cause<'static>>,
    /// OPA has none: why the policy says no.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// OPA has none: what the policy wants done besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    obligations: Option<Wanted<'a>>,
}

#[derive(Serialize)]
struct Provenance<'a> {
    version: &'static str,
    bundles: BTreeMap<&'a str, Revision>,
}

#[derive(Serialize)]
struct Revision {
    revision: String,
}

#[derive(Serialize)]
struct Wanted<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers_set: Vec<(&'a str, Octets<'a>)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers_append: Vec<(&'a str, Octets<'a>)>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    headers_remove: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Octets<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metadata: Vec<(&'a str, &'a str)>,
}

/// Bytes in JSON: a string where they are UTF-8.
#[derive(Serialize)]
#[serde(untagged)]
enum Octets<'a> {
    Text(&'a str),
    Other { base64: String },
}

impl<'a> From<&'a Bytes> for Octets<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Other { base64: Base64::encode_string(bytes) },
        }
    }
}

/// What a verdict is told with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner<'a> {
    pub(super) version: Version,
    pub(super) wishes: Wishes,
    pub(super) policy: &'a PolicyName,
    /// From the request's first bytes until now.
    pub(super) took: Duration,
}

pub(super) fn tell(verdict: &Verdict, manner: Manner<'_>, reply: &mut Reply) {
    let Manner { version, wishes, policy, took } = manner;
    let (result, reason) = match &verdict.gate {
        Gate::Open => (true, None),
        Gate::Down(down) if down.code == Code::Denied => (false, Some(down.reason.as_str())),
        Gate::Down(down) => return no_decision(down, verdict.id, wishes.pretty, reply),
    };
    begin(200, reply);
    let body = match version {
        Version::V0 => json(&result, wishes.pretty),
        Version::V1 => json(
            &Answer {
                result,
                decision_id: verdict.id,
                metrics: wishes.metrics.then(|| metrics(&verdict.timing, took)),
                provenance: wishes.provenance.then(|| provenance(policy, verdict.digest.as_ref())),
                warning: wishes.explanation.then_some(Cause {
                    code: "api_usage_warning",
                    message: "explain: a compiled policy leaves no trace of its evaluation",
                }),
                reason,
                obligations: wanted(&verdict.obligations),
            },
            wishes.pretty,
        ),
    };
    reply.body(body);
}

/// An error: nobody said yes or no.
pub(super) fn no_decision(down: &Down, id: Option<DecisionId>, pretty: bool, reply: &mut Reply) {
    let code = match down.status {
        401 | 403 => "unauthorized",
        404 => "resource_not_found",
        400..=499 if down.code != Code::Quota => "invalid_parameter",
        _ => "internal_error",
    };
    begin(down.status, reply);
    if let Some(wait) = down.retry_after_ms {
        reply.line("retry-after", wait.div_ceil(1000).to_string().as_bytes());
    }
    let errors = vec![Cause { code: down.code.word(), message: &down.reason }];
    let message = format!("there is no decision: {}", down.reason);
    reply.body(json(&Error { code, message: &message, errors, decision_id: id }, pretty));
}

pub(super) fn health(down: Option<&Down>, pretty: bool, reply: &mut Reply) {
    #[derive(Serialize)]
    struct Health<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }

    // One number for all that is not well, as OPA has it.
    begin(if down.is_some() { 500 } else { 200 }, reply);
    let health =
        Health { code: down.map(|_| "internal_error"), error: down.map(|down| down.reason.as_str()) };
    reply.body(json(&health, pretty));
}

fn begin(status: u16, reply: &mut Reply) {
    reply.begin(status);
    reply.line("content-type", b"application/json");
}

fn json(value: &impl Serialize, pretty: bool) -> Bytes {
    let written = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    // Names are text, numbers are whole, and nothing is read while it is written: there is nothing to fail.
    let mut written = written.unwrap_or_default();
    written.push(b'\n');
    written.into()
}

/// By OPA's names where they mean the same.
fn metrics(timing: &Timing, took: Duration) -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("timer_rego_query_eval_ns", timing.run_ns),
        ("timer_server_handler_ns", u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)),
        ("timer_portcullis_queue_ns", timing.queue_ns),
        ("timer_portcullis_instantiate_ns", timing.instantiate_ns),
        ("timer_portcullis_host_ns", timing.host_ns),
    ])
}

/// The code that decided is the bundle's revision.
fn provenance<'a>(policy: &'a PolicyName, digest: Option<&Digest>) -> Provenance<'a> {
    let revision = |digest: &Digest| (policy.as_str(), Revision { revision: digest.to_string() });
    Provenance { version: env!("CARGO_PKG_VERSION"), bundles: digest.map(revision).into_iter().collect() }
}

fn wanted(obligations: &Obligations) -> Option<Wanted<'_>> {
    if *obligations == Obligations::default() {
        return None;
    }
    fn pairs(headers: &[HeaderValue]) -> Vec<(&str, Octets<'_>)> {
        headers.iter().map(|header| (header.name.as_str(), Octets::from(&header.value))).collect()
    }
    let Obligations { status, headers_set, headers_append, headers_remove, body, metadata } = obligations;
    Some(Wanted {
        status: *status,
        headers_set: pairs(headers_set),
        headers_append: pairs(headers_append),
        headers_remove,
        body: body.as_ref().map(Octets::from),
        metadata: metadata.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect(),
    })
}
