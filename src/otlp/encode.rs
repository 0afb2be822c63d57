//! Spans as OTLP has them in JSON: ids in hex, 64-bit numbers as strings, enums as numbers
//! (opentelemetry-proto, `ExportTraceServiceRequest`).

use serde_json::{Value, json};

use crate::accounts::{OutcomeKind, Span, StageOf};

/// SPAN_KIND_SERVER: somebody else's span waits for it.
const KIND_SERVER: u32 = 2;
/// STATUS_CODE_ERROR. What a policy denies is an answer, and no error.
const STATUS_ERROR: u32 = 2;
/// SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE and SPAN_FLAGS_CONTEXT_IS_REMOTE: the parent is another process's.
const PARENT_IS_REMOTE: u32 = 0x300;

/// A span, and what the names behind its places are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub span: Span,
    pub class: Box<str>,
    pub tenant: Box<str>,
    pub policy: Box<str>,
}

/// The body of one request to a collector.
#[must_use]
pub fn encode(spans: &[Told]) -> Vec<u8> {
    let spans: Vec<Value> = spans.iter().map(span).collect();
    let version = env!("CARGO_PKG_VERSION");
    let request = json!({ "resourceSpans": [{
        "resource": { "attributes": [
            text("service.name", "portcullis"),
            text("service.version", version),
        ]},
        "scopeSpans": [{ "scope": { "name": "portcullis", "version": version }, "spans": spans }],
    }]});
    request.to_string().into_bytes()
}

fn span(Told { span, class, tenant, policy }: &Told) -> Value {
    let name = span.outcome.name();
    let refused = !matches!(span.outcome, OutcomeKind::Allow | OutcomeKind::Deny);
    let outcome = if refused { "refused" } else { name };
    let mut attributes = vec![
        text("portcullis.class", class),
        text("portcullis.tenant", tenant),
        text("portcullis.policy", policy),
        text("portcullis.digest", &format!("sha256:{}", hex::encode(span.digest))),
        text("portcullis.outcome", outcome),
        text("portcullis.decision_id", &span.decision.to_string()),
        number("portcullis.host_ns", span.timing.host_ns),
    ];
    let status = if refused {
        attributes.push(text("portcullis.refusal", name));
        json!({ "code": STATUS_ERROR, "message": name })
    } else {
        json!({})
    };
    json!({
        "traceId": hex::encode(span.trace.trace_id()),
        "spanId": hex::encode(span.decision.span_id()),
        "parentSpanId": hex::encode(span.trace.parent_id()),
        "flags": u32::from(span.trace.flags()) | PARENT_IS_REMOTE,
        "name": "decide",
        "kind": KIND_SERVER,
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.start_ns.saturating_add(span.took_ns).to_string(),
        "attributes": attributes,
        "events": stages(span),
        "status": status,
    })
}

/// Where each stage began, and how long it took. Time in host functions is spread over the run: it is an attribute.
fn stages(span: &Span) -> Vec<Value> {
    let timing = span.timing;
    let mut at = span.start_ns;
    let taken = [
        (StageOf::Queue, timing.queue_ns),
        (StageOf::Instantiate, timing.instantiate_ns),
        (StageOf::Run, timing.run_ns),
    ];
    taken
        .into_iter()
        .map(|(stage, ns)| {
            let event = json!({
                "timeUnixNano": at.to_string(),
                "name": stage.name(),
                "attributes": [number("portcullis.duration_ns", ns)],
            });
            at = at.saturating_add(ns);
            event
        })
        .collect()
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: u64) -> Value {
    // It is signed there.
    json!({ "key": key, "value": { "intValue": value.min(i64::MAX.unsigned_abs()).to_string() } })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::decision::{DecisionId, Timing};

    pub(in crate::otlp) fn told(number: u8, outcome: OutcomeKind) -> Told {
        Told {
            span: Span {
                trace: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap(),
                decision: DecisionId::from_random([number; 16]),
                tenant: 1,
                module: 2,
                digest: [0xab; 32],
                outcome,
                start_ns: 1_700_000_000_000_000_000,
                took_ns: 30_000,
                timing: Timing { queue_ns: 1_000, instantiate_ns: 4_000, run_ns: 21_000, host_ns: 150 },
            },
            class: "retail".into(),
            tenant: "acme".into(),
            policy: "jwt-gate".into(),
        }
    }

    #[test]
    fn a_span_is_what_the_mapping_of_proto_to_json_says() {
        let body: Value = serde_json::from_slice(&encode(&[told(0xd1, OutcomeKind::Deny)])).unwrap();
        let span = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(
            (&span["parentSpanId"], &span["spanId"]),
            (&"b7ad6b7169203331".into(), &"d1d1d1d1d1d1d1d1".into())
        );
        assert_eq!((&span["kind"], &span["flags"]), (&2.into(), &0x301.into()));
        assert_eq!(span["startTimeUnixNano"], "1700000000000000000");
        assert_eq!(span["endTimeUnixNano"], "1700000000000030000");
        let starts: Vec<_> =
            span["events"].as_array().unwrap().iter().map(|one| &one["timeUnixNano"]).collect();
        assert_eq!(starts, ["1700000000000000000", "1700000000000001000", "1700000000000005000"]);
        assert_eq!(span["events"][2]["attributes"][0]["value"]["intValue"], "21000");
        assert_eq!(span["status"], json!({}), "a denial is an answer");
        let attribute = |key: &str| {
            let all = span["attributes"].as_array().unwrap();
            all.iter().find(|one| one["key"] == key).map(|one| one["value"]["stringValue"].clone())
        };
        assert_eq!(attribute("portcullis.tenant"), Some("acme".into()));
        assert_eq!(attribute("portcullis.decision_id"), Some("d1".repeat(16).into()));
        assert_eq!(attribute("portcullis.outcome"), Some("deny".into()));
        assert_eq!(attribute("portcullis.refusal"), None);
    }

    #[test]
    fn a_refusal_is_an_error_and_says_which() {
        let body: Value = serde_json::from_slice(&encode(&[told(1, OutcomeKind::DeadlineRun)])).unwrap();
        let span = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["status"], json!({ "code": 2, "message": "deadline_run" }));
    }
}
