//! A client's trace, from its question to a collector; and a collector that hangs or is gone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use portcullis::client::{Question, blocking};
use portcullis::decision::{Decision, Outcome};
use portcullis::wire::client::Deadline;
use portcullis::wire::control::{Process, ProcessState};
use serde_json::Value;
use support::{PATIENCE, Service, Site};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Once there is an exporter: the service is ready without it, and it tells of nothing that was before it.
fn start(listener: &TcpListener) -> Service {
    let service = Site::new()
        .class("one", "")
        .tenant("acme", "one", &[("gate", "hostile/selective")], "")
        .telemetry(&format!("otlp = \"http://{}\"\n", listener.local_addr().unwrap()))
        .start();
    let until = Instant::now() + PATIENCE;
    let serves = |one: &Process| one.role == "exporter" && one.state == ProcessState::Serving;
    while !service.processes().iter().any(serves) {
        assert!(Instant::now() < until, "no exporter\n{}", service.log());
    }
    service
}

fn ask(client: &mut blocking::Client, traceparent: Option<&str>, what: &[u8]) -> Decision {
    client.set_trace(traceparent.map(|text| text.parse().unwrap()));
    let question = Question::opaque("", what);
    client
        .decide(&support::tenant("acme"), &support::policy("gate"), Deadline::Default, question.input())
        .unwrap()
}

/// The spans of the next request, which is answered.
fn spans(listener: &TcpListener) -> Vec<Value> {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body(&mut stream);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
    body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
}

fn body(stream: &mut TcpStream) -> Value {
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut part).expect("a request in time");
        assert_ne!(length, 0, "a whole request");
        request.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return serde_json::from_str(body).unwrap();
        }
    }
}

/// Gives up after [`PATIENCE`]: accepting has no time limit of its own.
fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let timeout = nix::sys::time::TimeVal::new(PATIENCE.as_secs().try_into().unwrap(), 0);
    nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::ReceiveTimeout, &timeout).unwrap();
    listener
}

#[test]
fn a_decision_is_a_child_of_the_clients_span() {
    let listener = listener();
    let service = start(&listener);
    let mut client = service.client();
    let unsampled = TRACEPARENT.replace("-01", "-00");
    let _ = ask(&mut client, None, b"allow");
    let _ = ask(&mut client, Some(&unsampled), b"allow");
    let expected =
        [b"allow".as_slice(), b"deny", b"trap"].map(|what| ask(&mut client, Some(TRACEPARENT), what));
    assert_eq!(expected[0].outcome, Outcome::Allow);
    let mut found = Vec::new();
    while found.len() < expected.len() {
        found.extend(spans(&listener));
    }
    assert_eq!(found.len(), expected.len(), "who does not record is not told of: {found:#?}");
    for (span, decision) in found.iter().zip(&expected) {
        assert_eq!(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span["parentSpanId"], "b7ad6b7169203331");
        let id = decision.id.unwrap().to_string();
        assert_eq!(span["spanId"], id[16..]);
        let attribute = |key: &str| {
            let all = span["attributes"].as_array().unwrap();
            let found = all.iter().find(|one| one["key"] == key);
            found.map_or(Value::Null, |one| one["value"]["stringValue"].clone())
        };
        assert_eq!(attribute("portcullis.decision_id"), id);
        assert_eq!(
            (attribute("portcullis.tenant"), attribute("portcullis.policy")),
            ("acme".into(), "gate".into())
        );
        assert_eq!(attribute("portcullis.digest"), decision.digest.unwrap().to_string());
        let outcome = match decision.outcome {
            Outcome::Allow => "allow",
            Outcome::Deny { .. } => "deny",
            Outcome::Refused(_) => "refused",
        };
        assert_eq!(attribute("portcullis.outcome"), outcome);
        let time = |key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time("startTimeUnixNano") < time("endTimeUnixNano"));
    }
}

#[test]
fn a_collector_that_hangs_or_is_gone_holds_no_decision_up() {
    let listener = listener();
    let service = start(&listener);
    let mut client = service.client();
    assert_eq!(ask(&mut client, Some(TRACEPARENT), b"allow").outcome, Outcome::Allow);
    // It takes the connection, and says nothing.
    let (mut hanging, _) = listener.accept().unwrap();
    hanging.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(body(&mut hanging).is_object(), "the control: it is sent there");
    for _ in 0..5_000 {
        assert_eq!(ask(&mut client, Some(TRACEPARENT), b"allow").outcome, Outcome::Allow);
    }
    drop((hanging, listener));
    for _ in 0..100 {
        assert_eq!(ask(&mut client, Some(TRACEPARENT), b"allow").outcome, Outcome::Allow);
    }
}
