use std::collections::BTreeMap;
use std::sync::Mutex;

use bytes::{BufMut, BytesMut};
use h2::client::SendRequest;
use hyper::http;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::messages::*;
use super::*;
use crate::client::{ClientError, Deadline};
use crate::decision::{
    Decision, HeaderValue as Set, Input, Obligations, Outcome, PolicyName, Refusal, Tenant,
};
use crate::gateway::desk::{ONE_READING, Room, Scripted, ScriptedLater, TWO_READINGS};
use crate::wire::gateway::{Binding, Listener, SocketKind, Speaks};

const MAX_BODY: u32 = 1 << 20;

fn listener() -> Listener {
    Listener {
        name: "envoy".into(),
        socket: SocketKind::Unix,
        peers: Vec::new(),
        speaks: Speaks::EnvoyGrpc,
        tenant: Binding::Context { key: "tenant".into(), among: vec![Tenant::new("acme").unwrap()] },
        policy: Binding::Fixed(PolicyName::new("gate").unwrap()),
        deadline_us: 5_000_000,
        max_connections: 1,
        max_body: MAX_BODY,
        details: false,
    }
}

fn decision(outcome: Outcome) -> Decision {
    Decision { outcome, ..Decision::refused(Refusal::Unavailable) }
}

/// A desk at which all are allowed, and what was asked there.
fn open_desk() -> (Desk, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let paths = Arc::clone(&asked);
    let script: Arc<Scripted> = Arc::new(move |_, _, _, input| {
        if let Input::Http(http) = input {
            paths.lock().unwrap().push(http.path.to_owned());
        }
        Ok(decision(Outcome::Allow))
    });
    (Desk::scripted(script, listener(), None), asked)
}

type Calls = SendRequest<Bytes>;

/// A client, and the server's task.
async fn connect(desk: Desk) -> (Calls, JoinHandle<()>) {
    connect_within(PATIENCE, desk).await
}

async fn connect_within(patience: Patience, desk: Desk) -> (Calls, JoinHandle<()>) {
    let (ours, theirs) = duplex(1 << 16);
    let server = tokio::spawn(serve_within(patience, theirs, desk));
    let (calls, connection) = h2::client::handshake(ours).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    (calls.ready().await.unwrap(), server)
}

#[derive(Debug)]
struct Reply {
    status: u16,
    message: Option<Bytes>,
    grpc: Option<String>,
}

fn head(path: &str) -> http::request::Builder {
    let uri = format!("http://authz{path}");
    http::Request::post(uri).header("content-type", "application/grpc").header("te", "trailers")
}

fn framed(message: &impl Message) -> Bytes {
    prefixed(0, &message.encode_to_vec())
}

fn prefixed(flag: u8, message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(flag);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.put_slice(message);
    bytes.freeze()
}

async fn reply(response: h2::client::ResponseFuture) -> Result<Reply, h2::Error> {
    let response = response.await?;
    let status = response.status().as_u16();
    let grpc = |headers: &http::HeaderMap| Some(headers.get("grpc-status")?.to_str().unwrap().to_owned());
    let early = grpc(response.headers());
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let trailers = body.trailers().await?;
    let message = (!bytes.is_empty()).then(|| {
        assert_eq!(bytes[0], 0);
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 5);
        bytes.freeze().split_off(5)
    });
    Ok(Reply { status, message, grpc: early.or(trailers.as_ref().and_then(grpc)) })
}

async fn call(calls: &Calls, head: http::request::Builder, body: Bytes) -> Reply {
    let (response, mut stream) =
        calls.clone().ready().await.unwrap().send_request(head.body(()).unwrap(), false).unwrap();
    stream.send_data(body, true).unwrap();
    reply(response).await.unwrap()
}

async fn asked(calls: &Calls, check: &CheckRequest) -> CheckResponse {
    answered(call(calls, head(CHECK), framed(check)).await)
}

fn answered(reply: Reply) -> CheckResponse {
    assert_eq!((reply.status, reply.grpc.as_deref()), (200, Some("0")));
    CheckResponse::decode(reply.message.expect("a message")).unwrap()
}

/// The HTTP status of a denial, or nothing where the gate is open.
fn denied(response: &CheckResponse) -> Option<i32> {
    let code = response.status.as_ref().unwrap().code;
    match response.http_response.as_ref().unwrap() {
        HttpResponse::Ok(_) => {
            assert_eq!(code, 0);
            None
        }
        HttpResponse::Denied(denied) => {
            assert_ne!(code, 0);
            Some(denied.status.as_ref().unwrap().code)
        }
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

fn check(path: &str) -> CheckRequest {
    let http = HttpRequest {
        method: bytes("POST"),
        scheme: bytes("https"),
        host: bytes("api.example"),
        path: bytes(path),
        headers: vec![Entry { key: bytes("x-a"), value: bytes("1") }],
        ..HttpRequest::default()
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            request: Some(messages::Request { http: Some(http) }),
            context_extensions: vec![Entry { key: bytes("tenant"), value: bytes("acme") }],
            ..AttributeContext::default()
        }),
    }
}

fn with_body(path: &str, body: Vec<u8>) -> CheckRequest {
    let mut check = check(path);
    let request = check.attributes.as_mut().unwrap().request.as_mut().unwrap();
    request.http.as_mut().unwrap().raw_body = body.into();
    check
}

#[tokio::test]
async fn a_check_goes_to_the_policy_and_its_answer_to_envoy() {
    let script: Arc<Scripted> = Arc::new(|tenant, policy, _, input| {
        let Input::Http(http) = input else { panic!("not HTTP") };
        assert_eq!((tenant.as_str(), policy.as_str()), ("acme", "gate"));
        assert_eq!(
            (http.method, http.host, http.path, http.query),
            ("POST", "api.example", "/a", Some("b=1"))
        );
        assert_eq!(http.body, Some(&b"body"[..]));
        let set = Set { name: "x-user".into(), value: bytes("bob") };
        let obligations = Obligations { headers_set: vec![set], ..Obligations::default() };
        Ok(Decision { obligations, ..decision(Outcome::Allow) })
    });
    let (calls, _server) = connect(Desk::scripted(script, listener(), None)).await;
    let response = asked(&calls, &with_body("/a?b=1", b"body".to_vec())).await;
    assert_eq!(denied(&response), None);
    let Some(HttpResponse::Ok(ok)) = response.http_response else { panic!("denied") };
    assert_eq!(ok.headers[0].header.as_ref().unwrap().key, "x-user");
    assert!(!response.dynamic_metadata.unwrap().fields.is_empty());
}

#[tokio::test]
async fn a_closed_gate_is_a_denial_and_never_an_error_of_the_call() {
    let outcomes: Vec<(&str, Result<Decision, ClientError>, i32)> = vec![
        ("/deny", Ok(decision(Outcome::Deny { reason: "no".into() })), 403),
        ("/late", Err(ClientError::Deadline), 504),
        ("/gone", Err(ClientError::Closed(crate::client::Ending::Peer)), 503),
        ("/long", Err(ClientError::TooLong), 413),
        ("/unknown", Ok(decision(Outcome::Refused(Refusal::UnknownPolicy))), 500),
    ];
    let statuses: Vec<_> = outcomes.iter().map(|(path, _, status)| (*path, *status)).collect();
    let outcomes: BTreeMap<_, _> = outcomes.into_iter().map(|(path, result, _)| (path, result)).collect();
    let script: Arc<Scripted> = Arc::new(move |_, _, _, input| match input {
        Input::Http(http) => outcomes[http.path].clone(),
        Input::Opaque { .. } => panic!("not HTTP"),
    });
    let (calls, _server) = connect(Desk::scripted(script, listener(), None)).await;
    for (path, status) in statuses {
        assert_eq!(denied(&asked(&calls, &check(path)).await), Some(status), "{path}");
    }
}

#[tokio::test]
async fn a_check_that_is_not_one_is_denied_and_nobody_is_asked() {
    let (desk, paths) = open_desk();
    let (calls, _server) = connect(desk).await;
    let one = framed(&check("/"));
    let two = Bytes::from([one.as_ref(), one.as_ref()].concat());
    let unbound = {
        let mut check = check("/");
        check.attributes.as_mut().unwrap().context_extensions[0].value = bytes("globex");
        framed(&check)
    };
    for (what, body, status) in [
        ("nothing", Bytes::new(), 400),
        ("half a prefix", Bytes::from_static(b"\0\0\0"), 400),
        ("less than is said", one.slice(..one.len() - 1), 400),
        ("more than is said", Bytes::from([one.as_ref(), b"x"].concat()), 400),
        ("two messages", two, 400),
        ("a compressed message", prefixed(1, b"x"), 400),
        ("an unknown flag", prefixed(2, b""), 400),
        ("no protobuf", prefixed(0, b"\xff\xff\xff"), 400),
        ("an empty check", prefixed(0, b""), 400),
        ("another tenant", unbound, 403),
        ("a body above the limit", framed(&with_body("/", vec![0; MAX_BODY as usize + 1])), 413),
        ("a length above the limit", Bytes::from_static(b"\0\xff\xff\xff\xff"), 413),
    ] {
        let reply = call(&calls, head(CHECK), body).await;
        assert_eq!(denied(&answered(reply)), Some(status), "{what}");
    }
    assert!(paths.lock().unwrap().is_empty());
    assert_eq!(
        denied(&asked(&calls, &with_body("/", vec![0; MAX_BODY as usize])).await),
        None,
        "the control"
    );
}

#[tokio::test]
async fn what_is_no_check_is_refused_as_grpc_has_it() {
    let (desk, paths) = open_desk();
    let (calls, _server) = connect(desk).await;
    let check = framed(&check("/"));
    let compressed = call(&calls, head(HEALTH), prefixed(1, b"x")).await;
    assert_eq!((compressed.status, compressed.grpc.as_deref()), (200, Some("12")));
    for path in ["/envoy.service.auth.v2.Authorization/Check", "/grpc.health.v1.Health/Watch", "/", "//"] {
        let reply = call(&calls, head(path), check.clone()).await;
        assert_eq!((reply.status, reply.grpc.as_deref()), (200, Some("12")), "{path}");
        assert!(reply.message.is_none());
    }
    let uri = format!("http://authz{CHECK}");
    for kind in ["application/json", "application/grpc+json", "application/grpcx", ""] {
        let head = http::Request::post(&uri).header("content-type", kind);
        assert_eq!(call(&calls, head, check.clone()).await.status, 415, "{kind}");
    }
    let twice = head(CHECK).header("content-type", "application/json");
    assert_eq!(call(&calls, twice, check.clone()).await.status, 415);
    let get = http::Request::get(&uri).header("content-type", "application/grpc");
    assert_eq!(call(&calls, get, check.clone()).await.status, 405);
    assert!(paths.lock().unwrap().is_empty());
    for kind in ["application/grpc+proto", "application/grpc;charset=x"] {
        let head = http::Request::post(&uri).header("content-type", kind);
        assert_eq!(denied(&answered(call(&calls, head, check.clone()).await)), None, "the control");
    }
}

#[tokio::test]
async fn health_is_of_the_service_that_is_served() {
    let (calls, _server) = connect(open_desk().0).await;
    for service in ["", "envoy.service.auth.v3.Authorization"] {
        let reply = call(&calls, head(HEALTH), framed(&HealthCheckRequest { service: bytes(service) })).await;
        assert_eq!(reply.grpc.as_deref(), Some("0"));
        assert_eq!(HealthCheckResponse::decode(reply.message.unwrap()).unwrap().status, SERVING);
    }
    let other = call(&calls, head(HEALTH), framed(&HealthCheckRequest { service: bytes("x") })).await;
    assert_eq!(other.grpc.as_deref(), Some("5"));
    assert_eq!(call(&calls, head(HEALTH), prefixed(0, &[b'x'; 2000])).await.grpc.as_deref(), Some("8"));
    assert_eq!(call(&calls, head(HEALTH), prefixed(0, b"\xff")).await.grpc.as_deref(), Some("3"));
}

#[tokio::test]
async fn the_proxys_time_limit_shortens_the_listeners() {
    let left = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&left);
    let script: Arc<Scripted> = Arc::new(move |_, _, deadline, _| {
        let (Deadline::Absolute { ns }, Deadline::Absolute { ns: now }) =
            (deadline, Deadline::in_(Duration::ZERO))
        else {
            panic!("not absolute")
        };
        seen.lock().unwrap().push(Duration::from_nanos(ns.saturating_sub(now)));
        Ok(decision(Outcome::Allow))
    });
    let (calls, _server) = connect(Desk::scripted(script, listener(), None)).await;
    let body = framed(&check("/"));
    for timeout in ["2S", "1H"] {
        call(&calls, head(CHECK).header("grpc-timeout", timeout), body.clone()).await;
    }
    call(&calls, head(CHECK), body.clone()).await;
    {
        let left = left.lock().unwrap();
        assert!(left[0] <= Duration::from_millis(1990), "some of it is for the way back: {:?}", left[0]);
        assert!(left[1] <= Duration::from_secs(5) && left[1] > Duration::from_secs(2), "{:?}", left[1]);
        assert!(left[2] <= Duration::from_secs(5) && left[2] > Duration::from_secs(2), "{:?}", left[2]);
    }
    for timeout in ["soon", "1", "-1S"] {
        let reply = call(&calls, head(CHECK).header("grpc-timeout", timeout), body.clone()).await;
        assert_eq!(denied(&answered(reply)), Some(400), "{timeout}");
    }
    assert_eq!(left.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn calls_do_not_wait_for_each_other() {
    let (calls, _server) = connect(open_desk().0).await;
    let body = framed(&with_body("/slow", vec![7; 100_000]));
    let (slow, mut stream) =
        calls.clone().ready().await.unwrap().send_request(head(CHECK).body(()).unwrap(), false).unwrap();
    stream.send_data(body.slice(..70_000), false).unwrap();
    for _ in 0..3 {
        assert_eq!(denied(&asked(&calls, &check("/quick")).await), None);
    }
    stream.send_data(body.slice(70_000..), true).unwrap();
    assert_eq!(denied(&answered(reply(slow).await.unwrap())), None);
}

/// Each decision waits until all of them are asked for.
#[tokio::test]
async fn many_are_decided_at_once() {
    let all = Arc::new(tokio::sync::Barrier::new(20));
    let script: Arc<ScriptedLater> = Arc::new(move |_| {
        let all = Arc::clone(&all);
        Box::pin(async move {
            all.wait().await;
            decision(Outcome::Allow)
        })
    });
    let (calls, _server) = connect(Desk::scripted_later(script, listener())).await;
    let ask = |calls: Calls| async move { denied(&asked(&calls, &check("/")).await) };
    let asking: Vec<_> = (0..20).map(|_| tokio::spawn(ask(calls.clone()))).collect();
    for one in asking {
        assert_eq!(one.await.unwrap(), None);
    }
}

#[tokio::test]
async fn messages_under_way_have_a_bound_together() {
    let wide = Listener { max_body: 64 << 20, ..listener() };
    let script: Arc<Scripted> = Arc::new(|_, _, _, _| Ok(decision(Outcome::Allow)));
    let all = 4 * MESSAGES_MAX;
    let room = Room::new(all);
    let (calls, _server) = connect(Desk::scripted(script, wide, None).with_room(Arc::clone(&room))).await;
    // A byte of it never comes: a message that is announced only takes no place.
    let length = MESSAGES_MAX - MESSAGES_MAX / 16 - 16;
    let mut most = [&[0][..], &u32::try_from(length).unwrap().to_be_bytes()].concat();
    most.resize(grpc::PREFIX + length - 1, 0);
    let (arrived, most) = (most.len(), Bytes::from(most));
    let begin = || {
        let (calls, most) = (calls.clone(), most.clone());
        async move {
            let (response, mut stream) =
                calls.ready().await.unwrap().send_request(head(CHECK).body(()).unwrap(), false).unwrap();
            stream.send_data(most, false).unwrap();
            (response, stream)
        }
    };
    let (first, mut stream) = begin().await;
    // All of it is there when no place can be had for so much.
    while room.place().grow(all - all / 16 - arrived + 1).is_ok() {
        tokio::task::yield_now().await;
    }
    let (second, _stream) = begin().await;
    assert_eq!(denied(&answered(reply(second).await.unwrap())), Some(503));
    for length in [1000, 60_000] {
        let small = asked(&calls, &with_body("/", vec![0; length])).await;
        assert_eq!(denied(&small), None, "small ones still go through");
    }
    let large = asked(&calls, &with_body("/", vec![0; 70_000])).await;
    assert_eq!(denied(&large), Some(503), "what is left is for them");
    stream.send_reset(h2::Reason::CANCEL);
    assert!(reply(first).await.is_err());
    let (third, mut stream) = begin().await;
    stream.send_data(Bytes::new(), true).unwrap();
    assert_eq!(
        denied(&answered(reply(third).await.unwrap())),
        Some(400),
        "there is room again: it is only too short"
    );
}

#[tokio::test]
async fn messages_and_answers_of_all_connections_have_a_bound_together() {
    let script: Arc<Scripted> = Arc::new(|_, _, _, input| {
        let Input::Http(http) = input else { panic!("not HTTP") };
        let body = (http.path == "/large").then(|| Bytes::from(vec![b'x'; 200_000]));
        let obligations = Obligations { body, ..Obligations::default() };
        Ok(Decision { obligations, ..decision(Outcome::Deny { reason: "no".into() }) })
    });
    let room = Room::new(300_000);
    let desk = Desk::scripted(script, listener(), None).with_room(Arc::clone(&room));
    let (calls, server) = connect(desk.clone()).await;
    let status = async |check: CheckRequest| denied(&asked(&calls, &check).await);
    for _ in 0..3 {
        assert_eq!(status(with_body("/", vec![0; 200_000])).await, Some(403), "one after the other");
        assert_eq!(status(check("/large")).await, Some(403));
    }
    let mut elsewhere = room.place();
    elsewhere.grow(150_000).unwrap();
    assert_eq!(status(with_body("/", vec![0; 200_000])).await, Some(503));
    assert_eq!(status(check("/large")).await, Some(503), "there is no room for the answer");
    assert_eq!(status(check("/")).await, Some(403), "the control");
    elsewhere.leave();
    assert_eq!(status(check("/large")).await, Some(403));
    drop(calls);
    server.await.unwrap();
    room.place().grow(280_000).expect("all of it came back");
}

/// Its answer would be held for as long as its connection lasts.
#[tokio::test]
async fn who_takes_no_answer_is_left() {
    let soon = Patience { answer: Duration::from_millis(10), ..PATIENCE };
    let (ours, theirs) = duplex(1 << 16);
    let (desk, paths) = open_desk();
    let room = Room::new(1 << 20);
    let server = tokio::spawn(serve_within(soon, theirs, desk.with_room(Arc::clone(&room))));
    // No byte of any message is asked for.
    let (calls, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(ours).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let (response, mut stream) =
        calls.ready().await.unwrap().send_request(head(CHECK).body(()).unwrap(), false).unwrap();
    stream.send_data(framed(&check("/")), true).unwrap();
    let body = response.await.unwrap().into_body();
    server.await.unwrap();
    assert_eq!(paths.lock().unwrap().len(), 1);
    drop(body);
    // What drove the stream ends after the connection did.
    while room.place().grow((1 << 20) - (1 << 16)).is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn paths_of_two_readings_are_denied_and_nobody_is_asked() {
    let (desk, paths) = open_desk();
    let (calls, _server) = connect(desk).await;
    for path in TWO_READINGS.into_iter().chain(["", "api.example:443"]) {
        assert_eq!(denied(&asked(&calls, &check(path)).await), Some(400), "{path:?}");
    }
    assert!(paths.lock().unwrap().is_empty());
    for path in ONE_READING {
        assert_eq!(denied(&asked(&calls, &check(path)).await), None, "{path:?}");
    }
    assert_eq!(paths.lock().unwrap().len(), ONE_READING.len());
}

/// The denial has to be there before the proxy gives up, and does what it does then.
#[tokio::test]
async fn a_message_has_not_all_of_the_proxys_time() {
    let (desk, paths) = open_desk();
    let (calls, _server) = connect(desk).await;
    let within = |timeout: &str| {
        let head = head(CHECK).header("grpc-timeout", timeout).body(()).unwrap();
        let calls = calls.clone();
        async move { calls.ready().await.unwrap().send_request(head, false).unwrap() }
    };
    // The rest of it never comes; 10 seconds of patience would be too long.
    let (slow, mut stream) = within("20m").await;
    stream.send_data(Bytes::from_static(b"\0\0"), false).unwrap();
    assert_eq!(denied(&answered(reply(slow).await.unwrap())), Some(504));
    let (hasty, mut stream) = within("2m").await;
    let _ = stream.send_data(framed(&check("/")), true);
    assert_eq!(denied(&answered(reply(hasty).await.unwrap())), Some(504), "there is no time to answer in");
    assert!(paths.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_message_that_does_not_come_is_denied() {
    let soon = Patience { message: Duration::from_millis(10), ..PATIENCE };
    let (calls, _server) = connect_within(soon, open_desk().0).await;
    let (slow, mut stream) =
        calls.clone().ready().await.unwrap().send_request(head(CHECK).body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from_static(b"\0\0"), false).unwrap();
    assert_eq!(denied(&answered(reply(slow).await.unwrap())), Some(504));
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_asked_ends() {
    let (mut ours, theirs) = duplex(1 << 16);
    let soon = Patience { first: Duration::from_millis(10), last: Duration::from_millis(10), ..PATIENCE };
    let silent = tokio::spawn(serve_within(soon, theirs, open_desk().0));
    silent.await.unwrap();
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn when_the_process_drains_what_was_begun_is_answered() {
    let (say, closing) = watch::channel(false);
    let (desk, _) = open_desk();
    let (calls, server) = connect(desk.closing_by(closing)).await;
    assert_eq!(denied(&asked(&calls, &check("/")).await), None);
    let body = framed(&check("/begun"));
    let (begun, mut stream) =
        calls.clone().ready().await.unwrap().send_request(head(CHECK).body(()).unwrap(), false).unwrap();
    stream.send_data(body.slice(..3), false).unwrap();
    assert_eq!(denied(&asked(&calls, &check("/")).await), None, "so the one before has arrived");
    say.send(true).unwrap();
    stream.send_data(body.slice(3..), true).unwrap();
    assert_eq!(denied(&answered(reply(begun).await.unwrap())), None);
    drop(calls);
    server.await.unwrap();
}

/// The preface, an empty SETTINGS, and then whatever a test has.
async fn raw(desk: Desk) -> (DuplexStream, JoinHandle<()>) {
    let (mut ours, theirs) = duplex(1 << 20);
    let server = tokio::spawn(serve(theirs, desk));
    ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    ours.write_all(&frame(4, 0, 0, b"")).await.unwrap();
    (ours, server)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HPACK without compression: literals that are not indexed.
fn hpack(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in lines {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn call_head() -> Vec<u8> {
    hpack(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", CHECK),
        (":authority", "authz"),
        ("content-type", "application/grpc"),
    ])
}

/// Everything that is said until the connection ends, which it has to.
async fn ended(mut ours: DuplexStream, server: JoinHandle<()>) {
    let mut said = Vec::new();
    let _ = ours.read_to_end(&mut said).await;
    server.await.unwrap();
}

#[tokio::test]
async fn calls_that_are_taken_back_again_and_again_end_the_connection() {
    let (desk, paths) = open_desk();
    let (mut ours, server) = raw(desk).await;
    let mut flood = Vec::new();
    for stream in (1..20_001).step_by(2) {
        flood.extend(frame(1, 0x4, stream, &call_head()));
        flood.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    let _ = ours.write_all(&flood).await;
    ended(ours, server).await;
    assert!(paths.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection() {
    let (desk, paths) = open_desk();
    let (mut ours, server) = raw(desk).await;
    ours.write_all(&frame(1, 0, 1, &call_head())).await.unwrap();
    let filler = hpack(&[("x-filler", &"x".repeat(100))]);
    for _ in 0..20_000 {
        if ours.write_all(&frame(9, 0, 1, &filler)).await.is_err() {
            break;
        }
    }
    ended(ours, server).await;
    assert!(paths.lock().unwrap().is_empty());
}

/// Whatever becomes of the connection: a table of compressed lines that was not read to its end is of no more use.
#[tokio::test]
async fn a_head_of_many_lines_is_asked_of_nobody() {
    let (desk, paths) = open_desk();
    for (lines, served) in [(10, true), (500, true), (1000, false)] {
        let (calls, _server) = connect(desk.clone()).await;
        let long =
            (0..lines).fold(head(CHECK), |head, number| head.header(format!("x-{number}"), "x".repeat(100)));
        let (response, mut stream) =
            calls.clone().ready().await.unwrap().send_request(long.body(()).unwrap(), false).unwrap();
        let _ = stream.send_data(framed(&check("/")), true);
        let answer = reply(response).await;
        assert_eq!(answer.is_ok_and(|reply| reply.message.is_some()), served, "{lines}");
        assert_eq!(std::mem::take(&mut *paths.lock().unwrap()).len(), usize::from(served));
    }
}

#[tokio::test]
async fn more_calls_at_once_than_are_taken_are_refused() {
    let (calls, _server) = connect(open_desk().0).await;
    assert_eq!(denied(&asked(&calls, &check("/")).await), None);
    assert_eq!(calls.current_max_send_streams(), STREAMS_MAX as usize);
}

#[tokio::test]
async fn who_speaks_http_1_gets_no_answer_that_could_be_one() {
    let (mut ours, theirs) = duplex(1 << 16);
    let server = tokio::spawn(serve(theirs, open_desk().0));
    let _ = ours.write_all(b"POST / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut said = Vec::new();
    let _ = ours.read_to_end(&mut said).await;
    assert!(!said.starts_with(b"HTTP/"));
    server.await.unwrap();
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let one = (any::<u8>(), any::<u8>(), 0_u32..6, proptest::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, flags, stream, payload)| frame(kind % 12, flags, stream, &payload));
    proptest::collection::vec(one, 0..20).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever frames come, nothing panics, nobody is asked, and the connection ends when the other side does.
    #[test]
    fn no_frames_are_too_much(frames in frames()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (desk, paths) = open_desk();
            let (mut ours, server) = raw(desk).await;
            let _ = ours.write_all(&frames).await;
            let _ = ours.shutdown().await;
            ended(ours, server).await;
            assert!(paths.lock().unwrap().is_empty());
        });
    }
}
