//! What a proxy sees, over a pipe in memory; what is decided is scripted.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Notify, oneshot, watch};

use super::super::desk::{Desk, ONE_READING, Room, SMALL, Scripted, TWO_READINGS};
use super::super::verdict::Down;
use super::*;
use crate::artifact::Digest;
use crate::client::{ClientError, Deadline};
use crate::decision::{
    Address, Decision, DecisionId, HeaderValue, HttpRequest, Metadatum, Obligations, Outcome, PolicyName,
    Quota, Refusal, Stage, Tenant, Timing, TrapKind,
};
use crate::wire::gateway::{HttpForm, Original, SocketKind};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn form(original: Original) -> HttpForm {
    HttpForm { original, client_address: None, timeout_ms: None }
}

fn own() -> HttpForm {
    form(Original::Own { prefix: String::new() })
}

fn listener(form: HttpForm) -> Listener {
    Listener {
        name: "test".into(),
        socket: SocketKind::Unix,
        peers: Vec::new(),
        speaks: Speaks::Http(form),
        tenant: Binding::Fixed(Tenant::new("acme").unwrap()),
        policy: Binding::Fixed(PolicyName::new("gate").unwrap()),
        deadline_us: 50_000,
        max_connections: 16,
        max_body: 1000,
        details: false,
    }
}

fn allow() -> Decision {
    Decision { outcome: Outcome::Allow, ..Decision::refused(Refusal::Unavailable) }
}

fn deny() -> Decision {
    Decision { outcome: Outcome::Deny { reason: "secret".into() }, ..Decision::refused(Refusal::Unavailable) }
}

fn value(name: &str, value: &str) -> HeaderValue {
    HeaderValue { name: name.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

/// What was asked, as text: tenant, policy, then the request.
type Asked = Arc<Mutex<Vec<(String, String, Deadline, Vec<u8>)>>>;

/// A desk that decides by `decide` and writes down what it was asked.
fn desk(listener: Listener, peer: Option<u32>, decide: fn(&HttpRequest<'_>) -> Decision) -> (Desk, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let script: Arc<Scripted> = Arc::new(move |tenant, policy, deadline, input| {
        let Input::Http(request) = input else { panic!("{input:?}") };
        let bytes = postcard::to_allocvec(request).unwrap();
        seen.lock().unwrap().push((tenant.to_string(), policy.to_string(), deadline, bytes));
        Ok(decide(request))
    });
    (Desk::scripted(script, listener, peer), asked)
}

/// Everything that comes back for `sent`, with the writing side left open: only the gateway ends the connection.
async fn all(desk: Desk, sent: &[u8]) -> String {
    let (mut proxy, ours) = duplex(1 << 20);
    let served = tokio::spawn(serve(ours, desk));
    proxy.write_all(sent).await.unwrap();
    let mut got = Vec::new();
    proxy.read_to_end(&mut got).await.unwrap();
    drop(proxy);
    served.await.unwrap();
    String::from_utf8(got).unwrap()
}

/// What was asked and what came back for a request that ends its connection.
async fn once(listener: Listener, sent: &str) -> (String, Asked) {
    let (desk, asked) = desk(listener, None, |_| allow());
    (all(desk, sent.as_bytes()).await, asked)
}

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{answer:?}")).split(' ').next().unwrap()
}

/// The one request that was asked about.
fn seen<T>(asked: &Asked, look: impl FnOnce(&HttpRequest<'_>) -> T) -> T {
    let asked = asked.lock().unwrap();
    let [(_, _, _, bytes)] = &asked[..] else { panic!("asked {} times", asked.len()) };
    look(&postcard::from_bytes(bytes).unwrap())
}

fn lines(request: &HttpRequest<'_>) -> Vec<String> {
    let text = |header: &Header<'_>| format!("{}: {}", header.name, String::from_utf8_lossy(header.value));
    request.headers.iter().map(text).collect()
}

/// Reads one answer: its head, and the body that goes with it.
async fn answer(proxy: &mut DuplexStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        proxy.read_exact(&mut byte).await.unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    proxy.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

async fn answer_to(decision: fn(&HttpRequest<'_>) -> Decision, details: bool) -> String {
    let (desk, _) = desk(Listener { details, ..listener(own()) }, None, decision);
    all(desk, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await
}

// The table.

#[tokio::test]
async fn rows() {
    let refused = |refusal| move || Decision::refused(refusal);
    type Decides = Box<dyn Fn() -> Decision + Send + Sync>;
    let cases: Vec<(Decides, &str, &str)> = vec![
        (Box::new(allow), "200", "allow"),
        (Box::new(deny), "403", "denied"),
        (Box::new(|| with_status(302)), "302", "denied"),
        (Box::new(|| with_status(451)), "451", "denied"),
        (Box::new(|| with_status(200)), "403", "denied"),
        (Box::new(|| with_status(204)), "403", "denied"),
        (Box::new(|| with_status(101)), "403", "denied"),
        (Box::new(|| Decision { obligations: with_status(500).obligations, ..allow() }), "200", "allow"),
        (Box::new(move || refused(Refusal::Deadline(Stage::Run))()), "504", "deadline"),
        (
            Box::new(move || refused(Refusal::Quota { which: Quota::Cpu, retry_after_ms: 1001 })()),
            "429",
            "quota",
        ),
        (Box::new(move || refused(Refusal::Trap(TrapKind::Stack))()), "500", "trap"),
        (Box::new(move || refused(Refusal::InvalidOutput("x".into()))()), "500", "invalid_output"),
        (
            Box::new(move || refused(Refusal::PolicyFailed { reason: "a".into(), detail: "b".into() })()),
            "500",
            "policy_failed",
        ),
        (Box::new(move || refused(Refusal::UnknownPolicy)()), "500", "unknown_policy"),
        (Box::new(move || refused(Refusal::UnknownTenant)()), "403", "not_permitted"),
        (Box::new(move || refused(Refusal::NotPermitted)()), "403", "not_permitted"),
        (Box::new(move || refused(Refusal::Overloaded)()), "503", "overloaded"),
        (Box::new(move || refused(Refusal::Unavailable)()), "503", "unavailable"),
        (Box::new(move || refused(Refusal::BadRequest("x".into()))()), "400", "bad_request"),
        (Box::new(move || refused(Refusal::Cancelled)()), "503", "cancelled"),
        (Box::new(move || refused(Refusal::Revoked)()), "503", "revoked"),
    ];
    for (decide, expected, word) in cases {
        let script: Arc<Scripted> = Arc::new(move |_, _, _, _| Ok(decide()));
        let desk = Desk::scripted(script, listener(own()), None);
        let got = all(desk, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status(&got), expected, "{word}: {got}");
        assert!(got.contains(&format!("\r\nx-portcullis-outcome: {word}\r\n")), "{got}");
        assert_eq!(got.contains("\r\nretry-after: 2\r\n"), word == "quota", "{got}");
        let body = got.split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(body.is_empty(), word == "allow", "{got}");
        assert!(!got.contains("secret"), "the reason is for the log: {got}");
    }
}

fn with_status(status: u16) -> Decision {
    let mut decision = deny();
    decision.obligations.status = Some(status);
    decision
}

#[tokio::test]
async fn errors_on_the_way_to_the_worker_keep_the_gate_down() {
    for (error, expected) in [
        ((|| ClientError::Deadline) as fn() -> ClientError, "504"),
        (|| ClientError::TooLong, "413"),
        (|| ClientError::Closed(crate::client::Ending::Peer), "503"),
    ] {
        let script: Arc<Scripted> = Arc::new(move |_, _, _, _| Err(error()));
        let desk = Desk::scripted(script, listener(own()), None);
        let got = all(desk, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status(&got), expected, "{got}");
    }
}

fn obliged() -> Obligations {
    Obligations {
        status: Some(402),
        headers_set: vec![value("x-user", "first"), value("X-User", "ann"), value("x-kept", "1")],
        headers_append: vec![value("x-role", "a"), value("x-role", "b")],
        headers_remove: vec!["cookie".into(), "X-Kept".into(), "x-role".into()],
        body: Some(Bytes::from_static(b"pay first")),
        metadata: vec![Metadatum { key: "rule a".into(), value: "1\r\n=x".into() }],
    }
}

#[tokio::test]
async fn an_open_gate_carries_its_obligations_as_headers() {
    let got = answer_to(|_| Decision { obligations: obliged(), ..allow() }, false).await;
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\nx-portcullis-outcome: allow\r\nX-User: ann\r\nx-kept: 1\r\nx-role: a\r\nx-role: \
         b\r\ncookie: \r\nx-envoy-auth-headers-to-remove: cookie\r\nx-portcullis-metadata: rule%20a=1%0D%0A%3Dx\r\nconnection: close\r\ncontent-length: \
         0\r\n\r\n"
    );
}

#[tokio::test]
async fn a_denial_carries_its_headers_and_its_body_and_nothing_for_the_log() {
    let got = answer_to(|_| Decision { obligations: obliged(), ..deny() }, false).await;
    assert_eq!(
        got,
        "HTTP/1.1 402 Payment Required\r\nx-portcullis-outcome: denied\r\nX-User: ann\r\nx-kept: 1\r\nx-role: \
         a\r\nx-role: b\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: \
         9\r\n\r\npay first"
    );
    let own_type = |_: &HttpRequest<'_>| {
        let mut decision = deny();
        decision.obligations.headers_append.push(value("Content-Type", "text/html"));
        decision
    };
    let got = answer_to(own_type, false).await;
    assert!(got.contains("Content-Type: text/html") && !got.contains("text/plain"), "{got}");
}

#[tokio::test]
async fn every_decision_is_named_and_details_are_told_where_they_are_wanted() {
    let decision = |_: &HttpRequest<'_>| Decision {
        id: Some(DecisionId::from_bytes([0xab; 16]).unwrap()),
        digest: Some(Digest::from_bytes([1; 32])),
        timing: Timing { queue_ns: 1_234_567, instantiate_ns: 12_000, run_ns: 999, host_ns: 0 },
        obligations: obliged(),
        ..deny()
    };
    let got = answer_to(decision, false).await;
    assert!(got.contains(&format!("\r\nx-portcullis-decision: {}\r\n", "ab".repeat(16))), "{got}");
    assert!(!got.contains("digest") && !got.contains("timing") && !got.contains("metadata"), "{got}");
    let got = answer_to(decision, true).await;
    assert!(got.contains(&format!("\r\nx-portcullis-digest: sha256:{}\r\n", "01".repeat(32))), "{got}");
    let timing =
        "x-portcullis-timing: queue;dur=1.234, instantiate;dur=0.012, run;dur=0.000, host;dur=0.000\r\n";
    assert!(got.contains(timing) && got.contains("x-portcullis-metadata"), "{got}");
}

/// A worker that was taken over says what it likes. It may not end an answer and begin the next one.
#[tokio::test]
async fn what_a_worker_says_cannot_end_an_answer() {
    let bad = [
        ("x-a", "1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ("x-a", "1\n"),
        ("x-a", "\0"),
        ("x-a: 1\r\nx-b", "1"),
        ("", "1"),
        ("x a", "1"),
        ("Content-Length", "7"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("Upgrade", "h2c"),
        ("x-portcullis-outcome", "allow"),
        ("X-Portcullis-Else", "1"),
        ("x-accel-redirect", "/healthz"),
        ("X-Accel-Limit-Rate", "1"),
    ];
    for (name, text) in bad {
        for outcome in [Outcome::Allow, Outcome::Deny { reason: String::new() }] {
            let decision = Decision {
                outcome,
                obligations: Obligations {
                    headers_set: vec![value("x-fine", "1")],
                    headers_append: vec![value(name, text)],
                    ..Obligations::default()
                },
                ..allow()
            };
            let script: Arc<Scripted> = Arc::new(move |_, _, _, _| Ok(decision.clone()));
            let desk = Desk::scripted(script, listener(own()), None);
            let got = all(desk, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert_eq!(
                got,
                "HTTP/1.1 500 Internal Server Error\r\nx-portcullis-outcome: invalid_output\r\ncontent-type: \
                 text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: 15\r\n\r\ninvalid_output\n",
                "{name:?}: {text:?}"
            );
        }
    }
    // The control: one that is fine is told.
    let fine = |_: &HttpRequest<'_>| {
        let mut decision = allow();
        decision.obligations.headers_append.push(value("x-a", "1\t2"));
        decision.obligations.headers_append.push(value("X-Accelerated", "1"));
        decision
    };
    let got = answer_to(fine, false).await;
    assert!(got.contains("\r\nx-a: 1\t2\r\n") && got.contains("\r\nX-Accelerated: 1\r\n"), "{got}");
    // Names that are to be removed are lines too.
    for name in ["x-a: 1\r\nx-b", "x-accel-a: 1\r\nx-b", "x-portcullis-outcome"] {
        let script: Arc<Scripted> = Arc::new(move |_, _, _, _| {
            let mut decision = allow();
            decision.obligations.headers_remove.push(name.into());
            Ok(decision)
        });
        let desk = Desk::scripted(script, listener(own()), None);
        let got = all(desk, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status(&got), "500", "{name:?}");
    }
}

/// nginx would take the name alone, without a value, for an order.
#[tokio::test]
async fn an_order_to_nginx_is_not_among_what_is_removed() {
    let removes = |_: &HttpRequest<'_>| {
        let mut decision = allow();
        decision.obligations.headers_remove = vec!["X-Accel-Redirect".into(), "cookie".into()];
        decision
    };
    let got = answer_to(removes, false).await;
    assert_eq!(status(&got), "200");
    assert!(!got.to_lowercase().contains("\r\nx-accel-"), "{got}");
    assert!(got.contains("\r\ncookie: \r\n"), "{got}");
    assert!(got.contains("\r\nx-envoy-auth-headers-to-remove: X-Accel-Redirect,cookie\r\n"), "{got}");
}

// The original request.

#[tokio::test]
async fn the_requests_own_without_its_prefix() {
    let form = form(Original::Own { prefix: "/authz".into() });
    let sent = "PUT /authz/a/b?c=d?e HTTP/1.1\r\nHost: shop.example:8443\r\nX-One: 1\r\ncontent-length: \
                2\r\nCookie:  a=b \r\nx-one: 2\r\nte: trailers\r\nUpgrade: websocket\r\nConnection: close\r\n\r\nhi";
    let (got, asked) = once(listener(form.clone()), sent).await;
    assert_eq!(status(&got), "200");
    seen(&asked, |request| {
        assert_eq!(
            (request.method, request.scheme, request.host, request.path, request.query),
            ("PUT", "http", "shop.example:8443", "/a/b", Some("c=d?e"))
        );
        assert_eq!(lines(request), ["x-one: 1", "cookie: a=b", "x-one: 2"]);
        assert_eq!(request.body, Some(&b"hi"[..]));
        assert_eq!(request.source.address, Address::Unknown);
    });
    for outside in ["/other", "/authzed/a", "/authz", "/authz?a"] {
        let sent = format!("GET {outside} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let (got, asked) = once(listener(form.clone()), &sent).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("400", 0), "{outside}");
    }
}

const X_ORIGINAL: [(&str, &str); 4] = [
    ("X-Original-Method", "DELETE"),
    ("X-Original-URI", "/a/b?c"),
    ("X-Original-Host", "shop.example"),
    ("X-Original-Proto", "https"),
];
const X_ORIGINAL_URL: [(&str, &str); 2] =
    [("X-Original-Method", "DELETE"), ("X-Original-URL", "https://shop.example/a/b?c")];
const X_FORWARDED: [(&str, &str); 4] = [
    ("X-Forwarded-Method", "DELETE"),
    ("X-Forwarded-Uri", "/a/b?c"),
    ("X-Forwarded-Host", "shop.example"),
    ("X-Forwarded-Proto", "https"),
];

fn asking(headers: &[(&str, &str)]) -> String {
    let mut sent = "GET /check HTTP/1.1\r\nHost: authz\r\nConnection: close\r\n".to_owned();
    for (name, value) in headers {
        sent.push_str(&format!("{name}: {value}\r\n"));
    }
    sent + "X-Else: 1\r\n\r\n"
}

#[tokio::test]
async fn another_request_told_by_headers() {
    for (original, headers) in [
        (Original::XOriginal, &X_ORIGINAL[..]),
        (Original::XForwarded, &X_FORWARDED),
        (Original::XOriginalUrl, &X_ORIGINAL_URL),
    ] {
        let (got, asked) = once(listener(form(original)), &asking(headers)).await;
        assert_eq!(status(&got), "200");
        seen(&asked, |request| {
            assert_eq!(
                (request.method, request.scheme, request.host, request.path, request.query),
                ("DELETE", "https", "shop.example", "/a/b", Some("c"))
            );
            assert_eq!(lines(request), ["x-else: 1"]);
            assert_eq!(request.body, None);
        });
    }
    // What the form does not name is a header like any other.
    let (got, asked) = once(listener(own()), &asking(&X_ORIGINAL)).await;
    assert_eq!(status(&got), "200");
    seen(&asked, |request| {
        assert_eq!((request.method, request.path, request.host), ("GET", "/check", "authz"));
        assert_eq!(lines(request).len(), 5);
    });
}

#[tokio::test]
async fn a_part_that_is_missing_or_there_twice_or_strange_keeps_the_gate_down() {
    let mut wrong: Vec<(Original, Vec<(&str, &str)>)> = Vec::new();
    for (original, headers) in [(Original::XOriginal, X_ORIGINAL), (Original::XForwarded, X_FORWARDED)] {
        for at in 0..4 {
            let mut less = headers.to_vec();
            less.remove(at);
            wrong.push((original.clone(), less));
            for again in [headers[at].1, "/other"] {
                wrong.push((original.clone(), [&headers[..], &[(headers[at].0, again)]].concat()));
            }
            let mut put = |value| {
                let mut strange = headers.to_vec();
                strange[at].1 = value;
                wrong.push((original.clone(), strange));
            };
            let strange: &[&str] = match at {
                0 => &["", "GET POST", "G(T", "GET, POST"],
                1 => &[
                    "",
                    "*",
                    "a",
                    "http://shop.example/a",
                    "//\u{7f}",
                    "/a b",
                    "/a\tb",
                    "/a#b",
                    "/a\\..\\b",
                    "/a%00b",
                    "/a/../b",
                    "/a/./b",
                    "/..",
                    "/a/.",
                    "/a/%2e%2E/b",
                    "/a/.%2e",
                    "/a%2f..%2fb",
                    "/a/..%5cb",
                    "/a/..;x=y/b",
                ],
                2 => &["", "a b", "a, b", "a/b", "u@a", "a?b", "a#b", "a\\b"],
                _ => &["", "https, http", "HTTPS", "1http", "http://"],
            };
            strange.iter().for_each(|value| put(value));
        }
    }
    assert!(wrong.len() > 80);
    for (original, headers) in wrong {
        let (got, asked) = once(listener(form(original)), &asking(&headers)).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("400", 0), "{headers:?}");
        assert!(got.contains("x-portcullis-outcome: bad_request\r\n"), "{got}");
    }
}

#[tokio::test]
async fn a_url_is_scheme_and_host_and_target() {
    for (url, parts) in [
        ("https://shop.example/a?b", ("https", "shop.example", "/a", Some("b"))),
        ("http://shop.example:8080/", ("http", "shop.example:8080", "/", None)),
        ("http://[2001:db8::1]:8080//a?/b?c", ("http", "[2001:db8::1]:8080", "//a", Some("/b?c"))),
        ("https://a/?to=https://u@b/..", ("https", "a", "/", Some("to=https://u@b/.."))),
        ("https://a/u@b:c", ("https", "a", "/u@b:c", None)),
    ] {
        let sent = asking(&[X_ORIGINAL_URL[0], ("X-Original-URL", url)]);
        let (got, asked) = once(listener(form(Original::XOriginalUrl)), &sent).await;
        assert_eq!(status(&got), "200", "{url}");
        seen(&asked, |request| {
            assert_eq!((request.scheme, request.host, request.path, request.query), parts);
        });
    }
    // What other forms go by is here a header like any other.
    let sent = asking(&[&X_ORIGINAL_URL[..], &X_ORIGINAL[1..], &X_FORWARDED].concat());
    let (got, asked) = once(listener(form(Original::XOriginalUrl)), &sent).await;
    assert_eq!(status(&got), "200");
    seen(&asked, |request| {
        assert_eq!((request.method, request.path, request.host), ("DELETE", "/a/b", "shop.example"));
        assert_eq!(lines(request).len(), 8);
    });
}

#[tokio::test]
async fn a_url_that_is_missing_or_there_twice_or_strange_keeps_the_gate_down() {
    let [method, url] = X_ORIGINAL_URL;
    let mut wrong = vec![vec![], vec![method], vec![url], vec![method, url, url], vec![method, method, url]];
    wrong.push(vec![method, url, ("X-Original-URL", "https://shop.example/other")]);
    wrong.push(X_ORIGINAL.to_vec());
    wrong.push(vec![("X-Original-Method", "GET, POST"), url]);
    for strange in [
        "",
        "/a",
        "shop.example/a",
        "//shop.example/a",
        "https:/shop.example/a",
        "https:shop.example/a",
        "HTTPS://shop.example/a",
        "ftp://shop.example/a",
        "wss://shop.example/a",
        "://shop.example/a",
        "x https://shop.example/a",
        "https://shop.example",
        "https://shop.example?a",
        "https://shop.example?a/b",
        "https://shop.example#a/b",
        "https://",
        "https:///a",
        "https:///shop.example/a",
        "https://u@shop.example/a",
        "https://u:p@shop.example/a",
        "https://@shop.example/a",
        "https://other\\@shop.example/a",
        "https://other\\/a",
        "https://shop.example, https://other/a",
        "https://shop.example/a, https://other/b",
        "https://shop.example /a",
        "https://https://shop.example/../a",
        "https://shop.example/a b",
        "https://shop.example/a\tb",
        "https://shop.example/a#b",
        "https://shop.example/a?b#c",
        "https://shop.example/a/../b",
        "https://shop.example/..",
        "https://shop.example/%2e%2E/b",
        "https://shop.example/a%00",
        "https://sh\u{f6}p.example/a",
    ] {
        wrong.push(vec![method, ("X-Original-URL", strange)]);
    }
    for headers in wrong {
        let (got, asked) = once(listener(form(Original::XOriginalUrl)), &asking(&headers)).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("400", 0), "{headers:?}");
        assert!(got.contains("x-portcullis-outcome: bad_request\r\n"), "{got}");
    }
}

/// Whichever form says what it is about.
#[tokio::test]
async fn paths_of_two_readings_are_asked_of_nobody() {
    for path in TWO_READINGS {
        let own_path = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let told = asking(&[X_ORIGINAL[0], ("X-Original-URI", path), X_ORIGINAL[2], X_ORIGINAL[3]]);
        let prefixed = format!("GET /authz{path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let prefix = Original::Own { prefix: "/authz".into() };
        let url = format!("https://shop.example{path}");
        let url = asking(&[X_ORIGINAL_URL[0], ("X-Original-URL", &url)]);
        for (form, sent) in [
            (own(), own_path),
            (form(Original::XOriginal), told),
            (form(Original::XOriginalUrl), url),
            (form(prefix), prefixed),
        ] {
            let (got, asked) = once(listener(form), &sent).await;
            assert_eq!((status(&got), asked.lock().unwrap().len()), ("400", 0), "{sent:?}");
        }
    }
}

#[tokio::test]
async fn paths_that_only_look_strange_are_asked_about() {
    for path in ONE_READING {
        let sent = asking(&[X_ORIGINAL[0], ("X-Original-URI", path), X_ORIGINAL[2], X_ORIGINAL[3]]);
        let (got, asked) = once(listener(form(Original::XOriginal)), &sent).await;
        assert_eq!(status(&got), "200", "{path}");
        seen(&asked, |request| assert!(path.starts_with(request.path), "{path}: {:?}", request.path));
    }
}

#[tokio::test]
async fn the_client_is_whom_the_proxy_names() {
    let form = HttpForm { client_address: Some("x-real-ip".into()), ..own() };
    let send = |value: &str| format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{value}\r\n");
    for (named, address, port) in [
        ("192.0.2.7", Address::Ipv4([192, 0, 2, 7]), 0),
        ("192.0.2.7:8080", Address::Ipv4([192, 0, 2, 7]), 8080),
        ("::ffff:192.0.2.7", Address::Ipv4([192, 0, 2, 7]), 0),
        ("::1", Address::Ipv6(1_u128.to_be_bytes()), 0),
        ("[::1]", Address::Ipv6(1_u128.to_be_bytes()), 0),
        ("[::1]:443", Address::Ipv6(1_u128.to_be_bytes()), 443),
        ("unix:", Address::Unknown, 0),
    ] {
        let (got, asked) = once(listener(form.clone()), &send(&format!("X-Real-IP: {named}\r\n"))).await;
        assert_eq!(status(&got), "200", "{named}");
        seen(&asked, |request| {
            assert_eq!((request.source.address, request.source.port), (address, port), "{named}");
            assert_eq!(lines(request), [format!("x-real-ip: {named}")]);
        });
    }
    for bad in ["", "X-Real-IP: \r\n", "X-Real-IP: 192.0.2.7, 10.0.0.1\r\n", "X-Real-IP: 192.0.2.07\r\n"]
        .into_iter()
        .chain(["X-Real-IP: 1.2.3.4\r\nx-real-ip: 1.2.3.4\r\n", "X-Real-IP: 1.2.3.4:99999\r\n"])
        .chain(["X-Real-IP: [1.2.3.4]\r\n", "X-Real-IP: localhost\r\n", "X-Forwarded-For: 1.2.3.4\r\n"])
    {
        let (got, asked) = once(listener(form.clone()), &send(bad)).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("400", 0), "{bad:?}");
    }
}

/// How far away a deadline is at most, milliseconds.
fn far(deadline: Deadline, before: Duration) -> u128 {
    let Deadline::Absolute { ns } = deadline else { panic!("{deadline:?}") };
    Duration::from_nanos(ns).saturating_sub(before).as_millis()
}

#[tokio::test]
async fn a_proxys_time_limit_only_shortens() {
    let form = HttpForm { timeout_ms: Some("x-timeout".into()), ..own() };
    let now = || Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
    for (sent, least, most) in [("", 50, 50), ("X-Timeout: 100000\r\n", 50, 50), ("X-Timeout: 20\r\n", 0, 18)]
    {
        let before = now();
        let sent = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{sent}\r\n");
        let (got, asked) = once(listener(form.clone()), &sent).await;
        let passed = now().saturating_sub(before).as_millis();
        assert_eq!(status(&got), "200");
        let deadline = far(asked.lock().unwrap()[0].2, before);
        assert!((least..=most + passed).contains(&deadline), "{sent:?}: {deadline} ms");
        seen(&asked, |request| assert_eq!(request.headers, []));
    }
    let (got, asked) = once(
        listener(form.clone()),
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nX-Timeout: 2\r\n\r\n",
    )
    .await;
    assert_eq!((status(&got), asked.lock().unwrap().len()), ("504", 0), "there is no time to answer in");
    for bad in ["", "1.5", "-1", "+1", "1s", "9999999999"] {
        let sent = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nX-Timeout: {bad}\r\n\r\n");
        let (got, asked) = once(listener(form.clone()), &sent).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("400", 0), "{bad:?}");
    }
}

#[test]
fn a_trace_is_taken_where_there_is_one() {
    let trace = |values: &[&str]| {
        let line = |value: &&'static str| Header { name: "traceparent", value: value.as_bytes() };
        let values: Vec<&'static str> = values.iter().map(|value| &*value.to_string().leak()).collect();
        let request = Request {
            method: "GET",
            target: "/",
            host: Some("a"),
            lines: values.iter().map(line).collect(),
            body: None,
            began: tokio::time::Instant::now(),
        };
        original::read(&own(), request, |_| false).unwrap().trace.map(|trace| trace.to_string())
    };
    assert_eq!(trace(&[TRACE]).as_deref(), Some(TRACE));
    assert_eq!(trace(&[]), None);
    assert_eq!(trace(&["00-nonsense"]), None);
    assert_eq!(trace(&[TRACE, TRACE]), None, "of two none is the caller's");
}

// For whom.

#[tokio::test]
async fn a_header_binds_where_the_operator_says_so_and_once() {
    let among = vec![Tenant::new("acme").unwrap(), Tenant::new("globex").unwrap()];
    let by_header =
        Listener { tenant: Binding::Header { name: "x-tenant".into(), among }, ..listener(own()) };
    let send = |value: &str| format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{value}\r\n");
    let (got, asked) = once(by_header.clone(), &send("X-Tenant: globex\r\n")).await;
    assert_eq!((status(&got), &*asked.lock().unwrap()[0].0), ("200", "globex"));
    seen(&asked, |request| assert_eq!(request.headers, []));
    for bad in ["", "X-Tenant: initech\r\n", "X-Tenant: globex\r\nx-tenant: globex\r\n", "X-Tenant: \r\n"] {
        let (got, asked) = once(by_header.clone(), &send(bad)).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("403", 0), "{bad:?}");
        assert!(got.contains("x-portcullis-outcome: not_permitted\r\n"), "{got}");
    }
    // A listener that binds by itself does not look at it.
    let (got, asked) = once(listener(own()), &send("X-Tenant: globex\r\n")).await;
    assert_eq!((status(&got), &*asked.lock().unwrap()[0].0), ("200", "acme"));
}

#[tokio::test]
async fn a_peer_binds_by_its_uid() {
    let by_peer =
        Listener { tenant: Binding::Peer(vec![(33, Tenant::new("globex").unwrap())]), ..listener(own()) };
    for (peer, expected) in [(Some(33), "200"), (Some(34), "403"), (None, "403")] {
        let (desk, _) = desk(by_peer.clone(), peer, |_| allow());
        let got = all(desk, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status(&got), expected, "{peer:?}");
    }
}

// Form.

/// Each is one answer that says no, nobody is asked, and the connection ends: what stands behind it is never a request.
#[tokio::test]
async fn what_could_be_read_in_two_ways_is_not_read() {
    let behind = "GET /behind HTTP/1.1\r\nhost: a\r\n\r\n";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("both lengths", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("both, the other way round", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n".into()),
        ("two lengths", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 30\r\n\r\n".into()),
        ("two equal lengths", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nContent-Length: 0\r\n\r\n".into()),
        ("a list of lengths", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0, 0\r\n\r\n".into()),
        ("a signed length", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +0\r\n\r\n".into()),
        ("a negative length", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n".into()),
        ("an empty length", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n".into()),
        ("a hex length", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x0\r\n\r\n".into()),
        ("an endless length", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\n".into()),
        ("two encodings", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("a list of encodings", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into()),
        ("identity", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n".into()),
        ("almost chunked", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n".into()),
        ("chunked with a vertical tab", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n".into()),
        ("chunks in HTTP/1.0", b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        ("a chunk extension", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n".into()),
        ("trailers", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nhost: b\r\n\r\n".into()),
        ("a blank before the colon", b"GET / HTTP/1.1\r\nhost : a\r\n\r\n".into()),
        ("a length with a blank before its colon", b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length : 30\r\n\r\n".into()),
        ("a folded line", b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n x-b: 2\r\n\r\n".into()),
        ("a line folded with a tab", b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n\tx-b: 2\r\n\r\n".into()),
        ("a first line that is folded", b"GET / HTTP/1.1\r\n x-a: 1\r\nhost: a\r\n\r\n".into()),
        ("no colon", b"GET / HTTP/1.1\r\nhost: a\r\nx-a\r\n\r\n".into()),
        ("no name", b"GET / HTTP/1.1\r\nhost: a\r\n: 1\r\n\r\n".into()),
        ("a NUL in a value", b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\0\r\n\r\n".into()),
        ("a NUL in a name", b"GET / HTTP/1.1\r\nhost: a\r\nx\0a: 1\r\n\r\n".into()),
        ("a NUL in the target", b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("an encoded NUL", b"GET /a%00 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into()),
        ("a bare CR", b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\rx-b: 2\r\n\r\n".into()),
        ("a bare LF", b"GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\nx-b: 2\r\n\r\n".into()),
        ("bare LFs only", b"GET / HTTP/1.1\nhost: a\n\n".into()),
        ("an LF as its end", b"GET / HTTP/1.1\r\nhost: a\r\n\n".into()),
        ("an empty line first", b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("a URL", b"GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("a URL of the same host", b"GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("a star", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("an authority", b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n".into()),
        ("a fragment", b"GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("a target that is not UTF-8", b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("no host", b"GET / HTTP/1.1\r\nx-a: 1\r\n\r\n".into()),
        ("two hosts", b"GET / HTTP/1.1\r\nhost: a\r\nHost: b\r\n\r\n".into()),
        ("two equal hosts", b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n".into()),
        ("a list of hosts", b"GET / HTTP/1.1\r\nhost: a, b\r\n\r\n".into()),
        ("a host with a user", b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n".into()),
        ("a host with a path", b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n".into()),
        ("an empty host", b"GET / HTTP/1.1\r\nhost:\r\n\r\n".into()),
        ("two blanks", b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("a blank at the end", b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n".into()),
        ("a tab", b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("no version", b"GET /\r\nhost: a\r\n\r\n".into()),
        ("another version", b"GET / HTTP/2.0\r\nhost: a\r\n\r\n".into()),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nhost: a\r\n\r\n".into()),
        ("a lower-case version", b"GET / http/1.1\r\nhost: a\r\n\r\n".into()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("a method that is none", b"GE(T / HTTP/1.1\r\nhost: a\r\n\r\n".into()),
        ("another expectation", b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 200-ok\r\ncontent-length: 2\r\n\r\nhi".into()),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n".into()),
    ];
    for (what, mut sent) in cases {
        let (desk, asked) = desk(listener(own()), None, |_| allow());
        sent.extend_from_slice(behind.as_bytes());
        let got = all(desk, &sent).await;
        assert_eq!(status(&got), "400", "{what}: {got}");
        assert_eq!(got.matches("HTTP/1.1 ").count(), 1, "{what}: {got}");
        assert!(got.contains("\r\nconnection: close\r\n"), "{what}: {got}");
        assert_eq!(asked.lock().unwrap().len(), 0, "{what}");
    }
    // The control: the same without what is wrong with them, and then what stands behind it is asked about.
    for fine in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
        "POST / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "OPTIONS / HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let (desk, asked) = desk(listener(own()), None, |_| allow());
        let last = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let got = all(desk, format!("{fine}{behind}{last}").as_bytes()).await;
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 3, "{got}");
        assert_eq!(asked.lock().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (desk, asked) = desk(listener(own()), None, |request| {
        let mut decision = if request.body.is_some() { deny() } else { allow() };
        decision.obligations.headers_set.push(value("x-path", request.path));
        decision
    });
    let mut sent = String::new();
    for number in 0..200 {
        match number % 4 {
            0 => sent.push_str(&format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n")),
            1 => sent.push_str(&format!("PUT /{number} HTTP/1.1\r\nhost: a\r\ncontent-length: 30\r\n\r\nGET /smuggled HTTP/1.1\r\nx: a\r\n")),
            2 => sent.push_str(&format!("HEAD /{number} HTTP/1.1\r\nhost: a\r\n\r\n")),
            _ => sent.push_str(&format!("POST /{number} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
        }
    }
    sent.push_str("GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let got = all(desk, sent.as_bytes()).await;
    let paths: Vec<&str> =
        got.split("x-path: ").skip(1).map(|rest| rest.split("\r\n").next().unwrap()).collect();
    let expected: Vec<String> = (0..200).map(|number| format!("/{number}")).chain(["/last".into()]).collect();
    assert_eq!(paths, expected);
    assert_eq!(asked.lock().unwrap().len(), 201);
    let statuses: Vec<&str> = got.match_indices("HTTP/1.1 ").map(|(at, _)| status(&got[at..])).collect();
    let of = |number: usize| if number % 2 == 1 { "403" } else { "200" };
    assert_eq!(statuses, (0..201).map(of).collect::<Vec<_>>());
}

#[tokio::test]
async fn bytes_that_come_one_at_a_time_are_the_same_request() {
    let (desk, asked) = desk(listener(own()), None, |_| allow());
    let (mut proxy, ours) = duplex(1);
    let served = tokio::spawn(serve(ours, desk));
    let sent = b"POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nPUT /b HTTP/1.1\r\nHost: a\r\ncontent-length: 3\r\nconnection: close\r\n\r\nxyz";
    let (mut from, mut to) = tokio::io::split(&mut proxy);
    let mut got = String::new();
    let (read, written) = tokio::join!(from.read_to_string(&mut got), to.write_all(sent));
    read.unwrap();
    written.unwrap();
    served.await.unwrap();
    assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "{got}");
    let asked = asked.lock().unwrap();
    let bodies: Vec<_> = asked
        .iter()
        .map(|(.., bytes)| postcard::from_bytes::<HttpRequest<'_>>(bytes).unwrap().body.unwrap().to_vec())
        .collect();
    assert_eq!(bodies, [b"abc", b"xyz"]);
}

#[tokio::test]
async fn every_method_is_asked_about_alike() {
    for method in
        ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "PROPFIND", "x"]
    {
        let (desk, asked) = desk(listener(own()), None, |_| deny());
        let sent = format!(
            "{method} / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        );
        let got = all(desk, sent.as_bytes()).await;
        assert_eq!(got.matches("HTTP/1.1 403").count(), 2, "{got}");
        assert_eq!(got.matches("content-length: 7\r\n").count(), 2, "{got}");
        // A body behind an answer to HEAD would be taken for the next answer.
        let bodies = if method == "HEAD" { 1 } else { 2 };
        assert_eq!(got.matches("\r\n\r\ndenied\n").count(), bodies, "{got}");
        let asked = asked.lock().unwrap();
        let first: HttpRequest<'_> = postcard::from_bytes(&asked[0].3).unwrap();
        assert_eq!(first.method, method);
    }
}

#[tokio::test]
async fn old_clients_are_served_as_they_expect() {
    for (sent, connection, count) in [
        ("GET / HTTP/1.0\r\n\r\n", "400", 1),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "connection: close\r\n", 1),
        (
            "GET / HTTP/1.0\r\nhost: a\r\nConnection: Keep-Alive\r\n\r\nGET / HTTP/1.0\r\nhost: a\r\n\r\n",
            "connection: keep-alive\r\n",
            2,
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\nConnection: keep-alive, Close\r\n\r\n", "connection: close\r\n", 1),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nConnection: keep-alive\r\nconnection: x, close\r\n\r\n",
            "connection: close\r\n",
            1,
        ),
    ] {
        let (desk, _) = desk(listener(own()), None, |_| allow());
        let got = all(desk, sent.as_bytes()).await;
        assert!(got.contains(connection), "{got}");
        assert_eq!(got.matches("HTTP/1.1 ").count(), count, "{got}");
    }
    // Where the headers name the host, a request needs none of its own.
    let sent = asking(&X_FORWARDED).replace("Host: authz\r\n", "").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(status(&once(listener(form(Original::XForwarded)), &sent).await.0), "200");
}

#[tokio::test]
async fn two_hundred_headers_are_nothing_special_and_there_is_an_end() {
    let many = |count: usize, length: usize| {
        let mut sent = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n".to_owned();
        for number in 0..count {
            sent.push_str(&format!("X-Number-{number}: {}\r\n", "v".repeat(length)));
        }
        sent + "\r\n"
    };
    let (got, asked) = once(listener(own()), &many(200, 200)).await;
    assert_eq!(status(&got), "200");
    seen(&asked, |request| {
        let expected: Vec<String> =
            (0..200).map(|number| format!("x-number-{number}: {}", "v".repeat(200))).collect();
        assert_eq!(lines(request), expected);
    });
    for (count, length) in [(1000, 10), (10, 10_000)] {
        let (got, asked) = once(listener(own()), &many(count, length)).await;
        assert_eq!((status(&got), asked.lock().unwrap().len()), ("431", 0));
        assert!(got.contains("x-portcullis-outcome: too_large\r\n"), "{got}");
    }
}

// Bodies and time.

#[tokio::test]
async fn a_body_is_whole_or_the_gate_stays_down() {
    for (length, expected) in [(1, "200"), (1000, "200"), (1001, "413"), (9_000_000_000_usize, "413")] {
        let body = "b".repeat(length.min(1002));
        let sent = format!(
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let (got, asked) = once(listener(own()), &sent).await;
        assert_eq!(status(&got), expected, "{length}");
        if expected == "200" {
            seen(&asked, |request| assert_eq!(request.body.unwrap().len(), length));
        } else {
            assert_eq!(asked.lock().unwrap().len(), 0);
        }
        if length <= 1001 {
            let sent = format!(
                "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n{:x}\r\n{}\r\n0\r\n\r\n",
                length.max(2) - 1,
                &body[..length.max(2) - 1]
            );
            assert_eq!(status(&once(listener(own()), &sent).await.0), expected, "{length} in chunks");
        }
    }
    for empty in ["content-length: 0\r\n\r\n", "transfer-encoding: chunked\r\n\r\n0\r\n\r\n", "\r\n"] {
        let (_, asked) =
            once(listener(own()), &format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{empty}"))
                .await;
        seen(&asked, |request| assert_eq!(request.body, None, "{empty:?}"));
    }
}

/// A request with a body of that length, whole and in chunks.
fn posted(length: usize) -> [String; 2] {
    let body = "b".repeat(length);
    let head = "POST / HTTP/1.1\r\nhost: a\r\n";
    [
        format!("{head}content-length: {length}\r\n\r\n{body}"),
        format!("{head}transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
    ]
}

#[tokio::test]
async fn large_bodies_need_room_and_leave_it_when_they_are_answered() {
    let wide = Listener { max_body: 1 << 20, ..listener(own()) };
    let last = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for (sent, chunked) in posted(3 * SMALL).into_iter().zip([false, true]) {
        // For one of them, and a little.
        let room = Room::new(5 * SMALL);
        let (desk, asked) = desk(wide.clone(), None, |_| allow());
        let desk = desk.with_room(Arc::clone(&room));
        let got = all(desk.clone(), format!("{sent}{sent}{last}").as_bytes()).await;
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 3, "one after the other: {chunked} {got}");
        let mut elsewhere = room.place();
        elsewhere.grow(2 * SMALL).unwrap();
        let got = all(desk.clone(), format!("{sent}{last}").as_bytes()).await;
        assert_eq!((status(&got), got.matches("HTTP/1.1 ").count()), ("503", 1), "{chunked} {got}");
        assert!(got.contains("x-portcullis-outcome: overloaded\r\n"), "{got}");
        let got = all(desk.clone(), format!("{}{last}", posted(1000)[usize::from(chunked)]).as_bytes()).await;
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), 2, "what is small needs none: {got}");
        assert_eq!(asked.lock().unwrap().len(), 5);
        elsewhere.leave();
        room.place().grow(4 * SMALL).expect("all of it came back");
    }
}

#[tokio::test]
async fn a_large_answer_needs_room_too() {
    let decide = |_: &HttpRequest<'_>| {
        let mut decision = deny();
        decision.obligations.body = Some(Bytes::from(vec![b'x'; 3 * SMALL]));
        decision
    };
    let twice = "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for (bytes, expected) in [(5 * SMALL, "403"), (2 * SMALL, "503")] {
        let (desk, _) = desk(listener(own()), None, decide);
        let got = all(desk.with_room(Room::new(bytes)), twice.as_bytes()).await;
        assert_eq!(got.matches(&format!("HTTP/1.1 {expected} ")).count(), 2, "{bytes}");
    }
}

#[tokio::test]
async fn a_body_that_waits_to_be_asked_for_is_asked_for() {
    let (desk, asked) = desk(listener(own()), None, |_| allow());
    let (mut proxy, ours) = duplex(1 << 16);
    let served = tokio::spawn(serve(ours, desk));
    proxy
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(answer(&mut proxy).await.0, "HTTP/1.1 100 Continue\r\n\r\n");
    proxy.write_all(b"hi").await.unwrap();
    assert!(answer(&mut proxy).await.0.starts_with("HTTP/1.1 200 OK\r\n"));
    seen(&asked, |request| {
        assert_eq!(request.body, Some(&b"hi"[..]));
        assert_eq!(request.headers, []);
    });
    // One that is too long is not asked for.
    proxy
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2000\r\n\r\n")
        .await
        .unwrap();
    assert!(answer(&mut proxy).await.0.starts_with("HTTP/1.1 413 "));
    drop(proxy);
    served.await.unwrap();
}

/// Says yes when it is told to, and knows when it was dropped.
struct Waits {
    room: Arc<Room>,
    begun: Notify,
    go: Notify,
    dropped: Arc<Mutex<Option<oneshot::Sender<()>>>>,
}

impl Waits {
    fn new() -> (Self, oneshot::Receiver<()>) {
        let (dropped, was) = oneshot::channel();
        let dropped = Arc::new(Mutex::new(Some(dropped)));
        (Self { room: Room::new(1 << 30), begun: Notify::new(), go: Notify::new(), dropped }, was)
    }
}

struct Dropped(Arc<Mutex<Option<oneshot::Sender<()>>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        if let Some(dropped) = self.0.lock().unwrap().take() {
            let _ = dropped.send(());
        }
    }
}

impl Answers for Waits {
    fn max_body(&self) -> usize {
        1 << 20
    }

    fn room(&self) -> &Arc<Room> {
        &self.room
    }

    async fn answer(&self, request: Request<'_>, reply: &mut Reply) {
        let _dropped = Dropped(Arc::clone(&self.dropped));
        self.begun.notify_one();
        self.go.notified().await;
        reply.begin(200);
        let body = if request.target == "/long" { vec![b'x'; 1 << 20] } else { request.target.into() };
        reply.body(body.into());
    }

    fn refuse(&self, down: Down, reply: &mut Reply) {
        reply.begin(down.status);
    }
}

fn short() -> Limits {
    let moment = Duration::from_millis(20);
    Limits { idle: moment, head: moment, body: moment, write: moment, linger: moment }
}

#[tokio::test]
async fn whoever_is_slow_is_not_waited_for() {
    for (sent, expected) in [
        ("", ""),
        ("G", "408"),
        ("GET / HTTP/1.1\r\nhost: a\r\n", "408"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nh", "408"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nh", "408"),
    ] {
        let (mut proxy, ours) = duplex(1 << 16);
        let (waits, _) = Waits::new();
        proxy.write_all(sent.as_bytes()).await.unwrap();
        converse(ours, &waits, short(), std::future::pending()).await;
        let mut got = String::new();
        proxy.read_to_string(&mut got).await.unwrap();
        assert_eq!(if got.is_empty() { "" } else { status(&got) }, expected, "{sent:?}");
    }
}

#[tokio::test]
async fn whoever_does_not_read_is_not_waited_for() {
    let (mut proxy, ours) = duplex(64);
    let (waits, _) = Waits::new();
    waits.go.notify_one();
    proxy.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    converse(ours, &waits, short(), std::future::pending()).await;
    let mut got = Vec::new();
    proxy.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), 64, "as much as the pipe took");
}

#[tokio::test]
async fn a_large_answer_is_sent_to_whoever_reads_it() {
    let (mut proxy, ours) = duplex(64);
    let (waits, _) = Waits::new();
    waits.go.notify_one();
    proxy.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let conversing = converse(ours, &waits, Limits::default(), std::future::pending());
    let (_, (head, body)) = tokio::join!(conversing, answer(&mut proxy));
    assert!(head.contains("content-length: 1048576\r\n"), "{head}");
    assert_eq!(body.len(), 1 << 20);
}

#[tokio::test]
async fn nobody_decides_for_a_proxy_that_went() {
    let (mut proxy, ours) = duplex(1 << 16);
    let (waits, dropped) = Waits::new();
    proxy.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /next HTTP/1.1\r\n").await.unwrap();
    let conversing = converse(ours, &waits, Limits::default(), std::future::pending());
    let leaving = async {
        waits.begun.notified().await;
        drop(proxy);
    };
    tokio::join!(conversing, leaving);
    dropped.await.unwrap();
}

#[tokio::test]
async fn a_question_under_way_is_answered_before_the_next_is_looked_at() {
    let (mut proxy, ours) = duplex(1 << 16);
    let (waits, _) = Waits::new();
    let conversing = converse(ours, &waits, Limits::default(), std::future::pending());
    let asking = async {
        proxy
            .write_all(
                b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            )
            .await
            .unwrap();
        for expected in ["/a", "/b"] {
            waits.begun.notified().await;
            waits.go.notify_one();
            assert_eq!(answer(&mut proxy).await.1, expected);
        }
    };
    tokio::join!(conversing, asking);
}

#[tokio::test]
async fn a_process_that_drains_finishes_what_it_began() {
    // Nothing is under way: the connection ends.
    let (close, closing) = watch::channel(false);
    let (desk, _) = desk(listener(own()), None, |_| allow());
    let (mut proxy, ours) = duplex(1 << 16);
    let served = tokio::spawn(serve(ours, desk.closing_by(closing)));
    proxy.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(!answer(&mut proxy).await.0.contains("connection: close"));
    close.send(true).unwrap();
    served.await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(proxy.read_to_end(&mut rest).await.unwrap(), 0);
    // Something is: it is answered, and that was the last.
    let (mut proxy, ours) = duplex(1 << 16);
    let (waits, _) = Waits::new();
    let (close, closing) = oneshot::channel::<()>();
    let closed = async {
        let _ = closing.await;
    };
    proxy.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let finishing = async {
        waits.begun.notified().await;
        close.send(()).unwrap();
        waits.go.notify_one();
        let (head, body) = answer(&mut proxy).await;
        assert!(head.contains("connection: close\r\n") && body == "/a", "{head}");
    };
    tokio::join!(converse(ours, &waits, Limits::default(), closed), finishing);
}

// Properties.

/// What hyper's server takes the same bytes for, if it takes them: method, target, lines by name, body.
async fn hypers(sent: &[u8]) -> Option<(String, String, Vec<(String, Vec<u8>)>, Vec<u8>)> {
    use http_body_util::{BodyExt, Empty};
    let found = Arc::new(Mutex::new(None));
    let place = Arc::clone(&found);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let place = Arc::clone(&place);
        async move {
            let (parts, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let lines =
                    parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
                place.lock().unwrap().get_or_insert((
                    parts.method.to_string(),
                    parts.uri.to_string(),
                    lines.collect(),
                    body.to_bytes().to_vec(),
                ));
            }
            Ok::<_, std::convert::Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
        }
    });
    let (mut proxy, ours) = duplex(1 << 20);
    proxy.write_all(sent).await.unwrap();
    proxy.shutdown().await.unwrap();
    let _ = hyper::server::conn::http1::Builder::new()
        .max_headers(512)
        .half_close(true)
        .serve_connection(hyper_util::rt::TokioIo::new(ours), service)
        .await;
    found.lock().unwrap().take()
}

/// Requests, most of them right, some with something that is not.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        8 => "[A-Za-z][A-Za-z0-9-]{0,10}",
        1 => Just("Content-Length".to_owned()),
        1 => Just("Transfer-Encoding".to_owned()),
        1 => Just("Connection".to_owned()),
        1 => "[ -~]{0,6}",
    ];
    let value = prop_oneof![
        6 => "[ -~]{0,20}",
        1 => Just("chunked".to_owned()),
        1 => Just("3".to_owned()),
        1 => Just("close".to_owned()),
        1 => "[\\x00-\\x7f]{0,6}",
    ];
    let end = prop_oneof![30 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r\n "), 1 => Just("\r")];
    let lines =
        proptest::collection::vec((name, prop_oneof![Just(":"), Just(": "), Just(" : ")], value, end), 0..8);
    let target = prop_oneof![4 => "/[a-z0-9/?=&%.]{0,20}", 1 => "[ -~&&[^<>`\"]]{0,10}"];
    let method = prop_oneof![4 => Just("GET".to_owned()), 2 => Just("POST".to_owned()), 1 => "[!-~]{1,5}"];
    let version = prop_oneof![8 => Just("HTTP/1.1"), 2 => Just("HTTP/1.0"), 1 => Just("HTTP/1.2")];
    let body =
        prop_oneof![Just("abc"), Just("3\r\nabc\r\n0\r\n\r\n"), Just("3;x\r\nabc\r\n0\r\n\r\n"), Just("")];
    (method, target, version, lines, body).prop_map(|(method, target, version, lines, body)| {
        let mut sent = format!("{method} {target} {version}\r\nHost: a\r\n");
        for (name, colon, value, end) in lines {
            sent.push_str(&format!("{name}{colon}{value}{end}"));
        }
        format!("{sent}\r\n{body}").into_bytes()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Whether we take it. Then another server takes it for the same.
async fn is_taken_alike(sent: &[u8]) -> Result<bool, TestCaseError> {
    let (desk, asked) = desk(listener(own()), None, |_| allow());
    let (mut proxy, ours) = duplex(1 << 20);
    proxy.write_all(sent).await.unwrap();
    proxy.shutdown().await.unwrap();
    serve(ours, desk).await;
    let asked = std::mem::take(&mut *asked.lock().unwrap());
    let Some((.., bytes)) = asked.first() else { return Ok(false) };
    let ours: HttpRequest<'_> = postcard::from_bytes(bytes).unwrap();
    let Some((method, target, mut theirs, body)) = hypers(sent).await else {
        return Err(TestCaseError::fail(format!("only we take {:?}", String::from_utf8_lossy(sent))));
    };
    let query = ours.query.map(|query| format!("?{query}")).unwrap_or_default();
    prop_assert_eq!((ours.method, format!("{}{query}", ours.path)), (&*method, target));
    prop_assert_eq!(ours.body.unwrap_or_default(), &body[..]);
    theirs.retain(|(name, _)| name != "host" && !original::OF_THE_HOP.contains(&&**name));
    let mut ours: Vec<_> = ours.headers.iter().map(|h| (h.name.to_owned(), h.value.to_vec())).collect();
    // hyper puts lines of one name together; a stable sort does the same to both.
    ours.sort_by(|a, b| a.0.cmp(&b.0));
    theirs.sort_by(|a, b| a.0.cmp(&b.0));
    prop_assert_eq!(ours, theirs);
    Ok(true)
}

#[tokio::test]
async fn what_is_compared_with_another_server_is_taken_at_all() {
    for sent in [
        "GET /a?b HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-b:2 \r\nx-a:\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "PUT /a HTTP/1.0\r\nHost: a\r\ncontent-length: 3\r\n\r\nabc",
    ] {
        assert!(is_taken_alike(sent.as_bytes()).await.unwrap(), "{sent:?}");
    }
}

proptest! {
    /// Whatever we take for a request, another server takes for the same one: we only take less.
    #[test]
    fn what_is_taken_is_what_others_take_it_for(sent in requests()) {
        block_on(is_taken_alike(&sent))?;
    }

    #[test]
    fn headers_come_out_as_they_went_in_and_in_their_order(
        headers in proptest::collection::vec(
            ("x-[a-z0-9_-]{0,8}", proptest::collection::vec(prop_oneof![0x21_u8..0x7f, 0x80_u8..=0xff], 0..20)),
            0..40,
        ),
    ) {
        let mut sent = b"GET /check HTTP/1.1\r\nHost: authz\r\nConnection: close\r\n".to_vec();
        for (number, (name, value)) in headers.iter().enumerate() {
            let cased = if number % 2 == 0 { name.to_ascii_uppercase() } else { name.clone() };
            sent.extend_from_slice(cased.as_bytes());
            sent.extend_from_slice(b": ");
            sent.extend_from_slice(value);
            sent.extend_from_slice(b" \t\r\n");
        }
        sent.extend_from_slice(b"\r\n");
        let (desk, asked) = desk(listener(own()), None, |_| allow());
        let got = block_on(all(desk, &sent));
        prop_assert_eq!(status(&got), "200");
        let got = seen(&asked, |request| {
            request.headers.iter().map(|h| (h.name.to_owned(), h.value.to_vec())).collect::<Vec<_>>()
        });
        prop_assert_eq!(got, headers);
    }

    /// Of a request that says what it is about, nothing that is added makes it be about something else.
    #[test]
    fn no_header_of_a_client_changes_what_is_asked_about(
        extra in proptest::collection::vec(("[A-Za-z_-]{1,18}", "[ -~]{0,20}"), 0..6),
        named in proptest::collection::vec((0_usize..8, "[ -~]{0,12}"), 0..2),
    ) {
        let all_parts = [X_ORIGINAL, X_FORWARDED].concat();
        let mut headers: Vec<(&str, &str)> = X_FORWARDED.to_vec();
        headers.extend(extra.iter().map(|(name, value)| (&**name, &**value)));
        headers.extend(named.iter().map(|(which, value)| (all_parts[*which].0, &**value)));
        let (got, asked) = block_on(once(listener(form(Original::XForwarded)), &asking(&headers)));
        let asked_at_all = !asked.lock().unwrap().is_empty();
        prop_assert_eq!(asked_at_all, status(&got) == "200");
        if asked_at_all {
            seen(&asked, |request| {
                prop_assert_eq!(
                    (request.method, request.scheme, request.host, request.path, request.query),
                    ("DELETE", "https", "shop.example", "/a/b", Some("c"))
                );
                Ok(())
            })?;
        }
    }

    /// A URL that is asked about is its parts and nothing else, in the order in which they are asked about.
    #[test]
    fn no_url_is_read_as_another(url in "(https?|x)?(:?/{0,3})[a-z@:\\\\#?%./ \\[\\],-]{0,24}") {
        let sent = asking(&[X_ORIGINAL_URL[0], ("X-Original-URL", &url)]);
        let (got, asked) = block_on(once(listener(form(Original::XOriginalUrl)), &sent));
        let asked_at_all = !asked.lock().unwrap().is_empty();
        prop_assert_eq!(asked_at_all, status(&got) == "200");
        if asked_at_all {
            seen(&asked, |request| {
                let query = request.query.map_or_else(String::new, |query| format!("?{query}"));
                prop_assert_eq!(format!("{}://{}{}{query}", request.scheme, request.host, request.path), url.trim());
                prop_assert!(!request.host.is_empty() && !request.host.contains(['@', '/', '?', '#', '\\', ',']));
                Ok(())
            })?;
        }
    }

    #[test]
    fn no_bytes_open_the_gate_by_themselves(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        block_on(async {
            let (desk, asked) = desk(listener(own()), None, |_| allow());
            let (mut proxy, ours) = duplex(1 << 20);
            proxy.write_all(&bytes).await.unwrap();
            proxy.shutdown().await.unwrap();
            serve(ours, desk).await;
            let mut got = Vec::new();
            proxy.read_to_end(&mut got).await.unwrap();
            prop_assert!(asked.lock().unwrap().is_empty());
            prop_assert!(!got.starts_with(b"HTTP/1.1 2"));
            Ok(())
        })?;
    }
}
