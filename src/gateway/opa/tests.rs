//! What a client of OPA's sees, over a pipe in memory; what is decided is scripted.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::watch;

use super::*;
use crate::artifact::Digest;
use crate::client::{Client, ClientError};
use crate::decision::{
    Decision, DecisionId, HeaderValue, Metadatum, Obligations, Outcome, Quota, Refusal, Stage, Timing,
};
use crate::gateway::lines::Lines;
use crate::wire::gateway::{Listener, SocketKind};

fn listener() -> Listener {
    Listener {
        name: "opa".into(),
        socket: SocketKind::Unix,
        peers: Vec::new(),
        speaks: Speaks::Opa {
            paths: [("envoy/authz/allow", "gate"), ("other/allow", "other"), ("system/main", "main")]
                .map(|(path, policy)| (path.to_owned(), PolicyName::new(policy).unwrap()))
                .to_vec(),
        },
        tenant: Binding::Fixed(Tenant::new("acme").unwrap()),
        policy: Binding::Fixed(PolicyName::new("never").unwrap()),
        deadline_us: 50_000,
        max_connections: 4,
        max_body: 1000,
        details: false,
    }
}

fn decision(outcome: Outcome) -> Decision {
    Decision {
        outcome,
        id: Some(DecisionId::from_random([0xab; 16])),
        ..Decision::refused(Refusal::Unavailable)
    }
}

type Result = std::result::Result<Decision, ClientError>;

/// Who was asked for, by whom, and with which bytes.
type Asked = Arc<Mutex<Vec<(String, String, String)>>>;

fn desk(listener: Listener, answer: impl Fn() -> Result + Send + Sync + 'static) -> (Desk, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let script = move |tenant: &Tenant, policy: &PolicyName, _: _, input: &Input<'_>| {
        let Input::Opaque { content_type: "application/json", bytes } = input else { panic!("{input:?}") };
        let bytes = String::from_utf8(bytes.to_vec()).unwrap();
        seen.lock().unwrap().push((tenant.to_string(), policy.to_string(), bytes));
        answer()
    };
    (Desk::scripted(Arc::new(script), listener, None), asked)
}

fn once(tenant: &str, policy: &str, input: &str) -> Vec<(String, String, String)> {
    vec![(tenant.to_owned(), policy.to_owned(), input.to_owned())]
}

fn allows() -> Result {
    Ok(decision(Outcome::Allow))
}

/// Status, head and body of the one answer to what is sent.
async fn exchange(desk: Desk, sent: &[u8]) -> (u16, String, Value) {
    let (mut client, ours) = duplex(1 << 20);
    let served = tokio::spawn(serve(ours, desk));
    client.write_all(sent).await.unwrap();
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    served.await.unwrap();
    let (head, body) = got.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {got:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    (status, head.to_owned(), body)
}

fn request(method: &str, target: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {target} HTTP/1.1\r\nhost: opa\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into()
}

async fn post(desk: Desk, target: &str, body: &str) -> (u16, Value) {
    let (status, _, body) = exchange(desk, &request("POST", target, "", body)).await;
    (status, body)
}

const ALLOW: &str = "/v1/data/envoy/authz/allow";

#[tokio::test]
async fn a_result_is_what_the_policy_says() {
    let id = "ab".repeat(16);
    let (allowing, asked) = desk(listener(), allows);
    let body = r#"{"input": {"a" : 1.0}}"#;
    assert_eq!(post(allowing, ALLOW, body).await, (200, json!({"result": true, "decision_id": id})));
    assert_eq!(*asked.lock().unwrap(), once("acme", "gate", r#"{"a" : 1.0}"#));

    let deny = || Ok(decision(Outcome::Deny { reason: "not you".into() }));
    assert_eq!(
        post(desk(listener(), deny).0, ALLOW, body).await,
        (200, json!({"result": false, "decision_id": id, "reason": "not you"}))
    );
    assert_eq!(post(desk(listener(), allows).0, "/v0/data/other/allow", "{}").await, (200, json!(true)));
    assert_eq!(post(desk(listener(), deny).0, "/v0/data/other/allow", "{}").await, (200, json!(false)));
    assert_eq!(post(desk(listener(), allows).0, "/", "{}").await, (200, json!(true)));
}

#[tokio::test]
async fn the_input_is_where_the_version_has_it() {
    for (method, target, body, policy, input) in [
        ("POST", ALLOW, r#"{"input": [1]}"#, "gate", "[1]"),
        ("POST", ALLOW, "", "gate", "null"),
        ("POST", ALLOW, "{}", "gate", "null"),
        ("POST", "/v0/data/other/allow", r#"{"input": [1]}"#, "other", r#"{"input": [1]}"#),
        ("POST", "/", "[ 1]", "main", "[ 1]"),
        ("GET", "/v1/data/envoy/authz/allow?input=%7B%22a%22%3A1%7D", "", "gate", r#"{"a":1}"#),
        ("GET", "/v1/data/other/allow", "", "other", "null"),
        ("POST", "/v1/data/envoy/auth%7a/allow", r#"{"input": 1}"#, "gate", "1"),
    ] {
        let (desk, asked) = desk(listener(), allows);
        let (status, _, _) = exchange(desk, &request(method, target, "", body)).await;
        assert_eq!(status, 200, "{method} {target} {body}");
        assert_eq!(*asked.lock().unwrap(), once("acme", policy, input));
    }
}

#[tokio::test]
async fn what_is_not_asked_is_an_error_and_never_a_result() {
    let long = format!(r#"{{"input": "{}"}}"#, "x".repeat(1000));
    for (method, target, headers, body, expected) in [
        ("POST", ALLOW, "", r#"{"input": 1, "input": 2}"#, (400, "invalid_parameter")),
        ("POST", ALLOW, "", r#"{"Input": 1}"#, (400, "invalid_parameter")),
        ("POST", ALLOW, "", "{", (400, "invalid_parameter")),
        ("POST", ALLOW, "", "input: 1", (400, "invalid_parameter")),
        ("POST", "/v1/data/other/allow?input=1", "", "{}", (400, "invalid_parameter")),
        ("GET", ALLOW, "", r#"{"input": 1}"#, (400, "invalid_parameter")),
        ("GET", "/v1/data/other/allow?input=1&input=1", "", "", (400, "invalid_parameter")),
        ("GET", "/v1/data/other/allow?input={", "", "", (400, "invalid_parameter")),
        ("POST", ALLOW, "content-encoding: gzip\r\n", "{}", (415, "invalid_parameter")),
        (
            "POST",
            ALLOW,
            "Content-Encoding: identity\r\ncontent-encoding: br\r\n",
            "{}",
            (415, "invalid_parameter"),
        ),
        ("POST", ALLOW, "content-type: application/x-YAML\r\n", "{}", (415, "invalid_parameter")),
        ("POST", ALLOW, "", &long, (413, "invalid_parameter")),
        ("POST", "/v1/data", "", "{}", (400, "invalid_parameter")),
        ("POST", "/v1/data/envoy/authz", "", "{}", (404, "undefined_document")),
        ("POST", "/v1/data/envoy/authz/allow/", "", "{}", (404, "undefined_document")),
        ("POST", "/v1/data/envoy%2fauthz/allow", "", "{}", (404, "undefined_document")),
        ("POST", "/v1/data/envoy/authz/../authz/allow", "", "{}", (404, "undefined_document")),
        ("PUT", "/v1/data/envoy/authz/allow", "", "{}", (405, "invalid_operation")),
        ("PATCH", "/v1/data/envoy/authz/allow", "", "[]", (405, "invalid_operation")),
        ("PUT", "/v1/policies/a", "", "package a", (404, "resource_not_found")),
        ("GET", "/v1/policies/", "", "", (404, "resource_not_found")),
        ("POST", "/v1/query", "", "{}", (404, "resource_not_found")),
        ("POST", "/v1/compile/a", "", "{}", (404, "resource_not_found")),
        ("GET", "/index.html", "", "", (404, "resource_not_found")),
    ] {
        let (desk, asked) = desk(listener(), allows);
        let (status, head, body) = exchange(desk, &request(method, target, headers, body)).await;
        assert_eq!((status, body["code"].as_str().unwrap()), expected, "{method} {target} {body}");
        assert!(!body["message"].as_str().unwrap().is_empty() && body.get("result").is_none());
        assert_eq!(head.contains("\r\nallow: GET, POST\r\n"), status == 405, "{head}");
        assert!(asked.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_is_no_request_is_answered_in_the_same_form() {
    let (status, _, body) = exchange(desk(listener(), allows).0, b"POST / HTTP/1.1\r\n\r\n").await;
    assert_eq!((status, &body["code"], body.get("result")), (400, &json!("invalid_parameter"), None));
}

#[tokio::test]
async fn refusals_are_errors() {
    for (refusal, status, code, word) in [
        (Refusal::Deadline(Stage::Run), 504, "internal_error", "deadline"),
        (Refusal::Quota { which: Quota::Cpu, retry_after_ms: 1500 }, 429, "internal_error", "quota"),
        (
            Refusal::PolicyFailed { reason: "a".into(), detail: "b".into() },
            500,
            "internal_error",
            "policy_failed",
        ),
        (Refusal::UnknownPolicy, 500, "internal_error", "unknown_policy"),
        (Refusal::NotPermitted, 403, "unauthorized", "not_permitted"),
        (Refusal::Overloaded, 503, "internal_error", "overloaded"),
        (Refusal::BadRequest("x".into()), 400, "invalid_parameter", "bad_request"),
    ] {
        for target in [ALLOW, "/v0/data/other/allow"] {
            let refusal = refusal.clone();
            let (desk, _) = desk(listener(), move || Ok(decision(Outcome::Refused(refusal.clone()))));
            let (got, head, body) = exchange(desk, &request("POST", target, "", "{}")).await;
            assert_eq!(
                (got, &body["code"], &body["errors"][0]["code"]),
                (status, &json!(code), &json!(word))
            );
            assert_eq!(body["decision_id"], json!("ab".repeat(16)));
            assert!(body["errors"][0]["message"].is_string() && body.get("result").is_none());
            assert_eq!(head.contains("\r\nretry-after: 2\r\n"), word == "quota", "{head}");
        }
    }
    let (desk, _) = desk(listener(), || Err(ClientError::Deadline));
    let (status, body) = post(desk, ALLOW, "{}").await;
    assert_eq!((status, &body["errors"][0]["code"], body.get("result")), (504, &json!("deadline"), None));
}

#[tokio::test]
async fn what_is_asked_for_comes_along() {
    let answer = || {
        let mut decision = decision(Outcome::Allow);
        decision.digest = Some(Digest::of(b"x"));
        decision.timing = Timing { queue_ns: 1, instantiate_ns: 2, run_ns: 3, host_ns: 4 };
        Ok(decision)
    };
    let of = |query: &'static str| async move {
        let (status, body) = post(desk(listener(), answer).0, &format!("{ALLOW}?{query}"), "{}").await;
        assert_eq!((status, &body["result"]), (200, &json!(true)));
        body
    };
    let plain = of("pretty").await;
    assert_eq!(plain.as_object().unwrap().len(), 2, "{plain}");
    for query in ["metrics", "instrument=true"] {
        let mut metrics = of(query).await["metrics"].take();
        assert!(metrics.as_object_mut().unwrap().remove("timer_server_handler_ns").unwrap().is_u64());
        assert_eq!(
            metrics,
            json!({
                "timer_rego_query_eval_ns": 3,
                "timer_portcullis_queue_ns": 1,
                "timer_portcullis_instantiate_ns": 2,
                "timer_portcullis_host_ns": 4,
            })
        );
    }
    let revision = Digest::of(b"x").to_string();
    assert_eq!(
        of("provenance").await["provenance"],
        json!({"version": env!("CARGO_PKG_VERSION"), "bundles": {"gate": {"revision": revision}}})
    );
    assert_eq!(of("explain=full").await["warning"]["code"], json!("api_usage_warning"));
}

#[tokio::test]
async fn obligations_are_told_whole() {
    let header = |name: &str, value: &'static [u8]| HeaderValue { name: name.into(), value: value.into() };
    let obligations = Obligations {
        status: Some(401),
        headers_set: vec![header("x-a", b"1"), header("x-raw", b"\xff")],
        headers_append: vec![header("via", b"b")],
        headers_remove: vec!["x-c".into()],
        body: Some(Bytes::from_static(b"go away")),
        metadata: vec![Metadatum { key: "k".into(), value: "v".into() }],
    };
    let answer = move || {
        let deny = decision(Outcome::Deny { reason: "r".into() });
        Ok(Decision { obligations: obligations.clone(), ..deny })
    };
    let (status, body) = post(desk(listener(), answer).0, ALLOW, "{}").await;
    assert_eq!((status, &body["result"]), (200, &json!(false)));
    assert_eq!(
        body["obligations"],
        json!({
            "status": 401,
            "headers_set": [["x-a", "1"], ["x-raw", {"base64": "/w=="}]],
            "headers_append": [["via", "b"]],
            "headers_remove": ["x-c"],
            "body": "go away",
            "metadata": [["k", "v"]],
        })
    );
}

#[tokio::test]
async fn the_tenant_may_be_a_header_and_then_has_to_be_one() {
    let mut listener = listener();
    let among = ["acme", "globex"].map(|name| Tenant::new(name).unwrap()).to_vec();
    listener.tenant = Binding::Header { name: "x-tenant".into(), among };
    for (headers, tenant) in [
        ("x-tenant: globex\r\n", Some("globex")),
        ("", None),
        ("x-tenant: initech\r\n", None),
        ("x-tenant: acme\r\nx-tenant: acme\r\n", None),
    ] {
        let (desk, asked) = desk(listener.clone(), allows);
        let (status, _, body) = exchange(desk, &request("POST", ALLOW, headers, "{}")).await;
        assert_eq!(
            (status, body.get("result").is_some()),
            if tenant.is_some() { (200, true) } else { (403, false) }
        );
        let asked: Vec<_> = asked.lock().unwrap().iter().map(|(tenant, ..)| tenant.clone()).collect();
        assert_eq!(asked, Vec::from_iter(tenant));
    }
}

#[tokio::test]
async fn health_is_whether_the_service_can_be_asked() {
    let get = request("GET", "/health?bundles=true", "", "");
    let (status, _, body) = exchange(desk(listener(), allows).0, &get).await;
    assert_eq!((status, body), (200, json!({})));
    let nobody = Client::new(Path::new("/nonexistent/portcullis.sock"));
    let desk = Desk::new(
        Lines::new(&[], || nobody.clone()),
        Arc::new(listener()),
        Room::new(1 << 20),
        None,
        watch::channel(false).1,
    );
    let (status, _, body) = exchange(desk, &get).await;
    assert_eq!((status, &body["code"], body["error"].is_string()), (500, &json!("internal_error"), true));
}

/// A service that lets everybody in and says nothing.
#[tokio::test]
async fn health_does_not_wait_for_one_tenant_after_the_other() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("portcullis.sock");
    let _silent = tokio::net::UnixListener::bind(&path).unwrap();
    let mut listener = listener();
    let among = ["acme", "globex", "initech"].map(|name| Tenant::new(name).unwrap()).to_vec();
    listener.tenant = Binding::Header { name: "x-tenant".into(), among };
    let desk = Desk::new(
        Lines::new(&[], || Client::new(&path)),
        Arc::new(listener),
        Room::new(1 << 20),
        None,
        watch::channel(false).1,
    );
    let rest = Rest { desk, health_within: Duration::from_millis(20) };
    let (mut client, ours) = duplex(1 << 16);
    client.write_all(&request("GET", "/health", "", "")).await.unwrap();
    converse(ours, &rest, Limits::default(), std::future::pending()).await;
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 500 ") && got.contains("for every tenant in time"), "{got}");
}
