//! Whole connections, as HAProxy would have them.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::frame::put_frame;
use super::script::{Told, acked, hdrs, notify};
use super::typed::{Reader, Typed, put_string, put_typed};
use super::*;
use crate::client::ClientError;
use crate::decision::{Decision, HeaderValue, Input, Outcome, PolicyName, Refusal, Tenant};
use crate::gateway::desk::{ONE_READING, Room, SMALL, TWO_READINGS};
use crate::wire::gateway::{Binding, Listener, SocketKind, Speaks};

type Said<'a> = (&'a str, Typed<'a>);

const GET: Said<'_> = ("method", Typed::Text(b"GET"));

fn listener() -> Listener {
    Listener {
        name: "haproxy".into(),
        socket: SocketKind::Unix,
        peers: Vec::new(),
        speaks: Speaks::Spoe,
        tenant: Binding::Fixed(Tenant::new("acme").unwrap()),
        policy: Binding::Fixed(PolicyName::new("gate").unwrap()),
        deadline_us: 50_000,
        max_connections: 4,
        max_body: 1000,
        details: false,
    }
}

fn decision(outcome: Outcome) -> Decision {
    Decision { outcome, ..Decision::refused(Refusal::Unavailable) }
}

/// Allows what is below /open, denies the rest.
fn by_path(input: &Input<'_>) -> Decision {
    let Input::Http(http) = input else { panic!("{input:?}") };
    let mut decision = decision(if http.path.starts_with("/open") {
        Outcome::Allow
    } else {
        Outcome::Deny { reason: "not open".into() }
    });
    let user = HeaderValue { name: "x-path".into(), value: http.path.to_owned().into() };
    decision.obligations.headers_set = vec![user];
    decision
}

/// HAProxy's end.
struct Proxy {
    stream: DuplexStream,
    read: BytesMut,
    agent: JoinHandle<()>,
}

impl Proxy {
    fn connect(desk: Desk) -> Self {
        Self::connect_with(PATIENCE, desk)
    }

    fn connect_with(patience: Patience, desk: Desk) -> Self {
        let (stream, theirs) = duplex(64 << 10);
        Self { stream, read: BytesMut::new(), agent: tokio::spawn(serve_with(patience, theirs, desk)) }
    }

    /// Connected, and HELLO said.
    async fn greeted(desk: Desk) -> Self {
        let mut proxy = Self::connect(desk);
        proxy.send(Kind::HaproxyHello, Ids::NONE, &hello(&[])).await;
        assert_eq!(proxy.frame().await.kind, Kind::AgentHello);
        proxy
    }

    async fn send(&mut self, kind: Kind, ids: Ids, payload: &[u8]) {
        let mut out = BytesMut::new();
        assert!(put_frame(&mut out, kind, ids, 2 << 20, |out| out.extend_from_slice(payload)));
        self.write(&out).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn ask(&mut self, stream: u64, path: &str) {
        let path = ("path", Typed::Text(path.as_bytes()));
        self.send(Kind::Notify, Ids { stream, frame: 1 }, &notify(&[&[GET, path]])).await;
    }

    async fn arrives(&mut self) -> bool {
        self.stream.read_buf(&mut self.read).await.unwrap() > 0
    }

    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = Frame::take(&mut self.read, 1 << 20).unwrap() {
                return frame;
            }
            assert!(self.arrives().await, "the agent has gone without a word");
        }
    }

    async fn ack(&mut self) -> (Ids, Vec<(String, Told)>) {
        loop {
            if crate::wire::frame::frame_length(&self.read, 1 << 20)
                .unwrap()
                .is_some_and(|length| self.read.len() >= length + 4)
            {
                return acked(&mut self.read);
            }
            assert!(self.arrives().await, "the agent has gone without a word");
        }
    }

    /// The status that the agent goes with.
    async fn departure(mut self) -> u32 {
        let frame = self.frame().await;
        assert_eq!((frame.kind, frame.ids), (Kind::AgentDisconnect, Ids::NONE), "{frame:?}");
        let mut reader = Reader(&frame.payload);
        assert_eq!(reader.string(), Ok(&b"status-code"[..]));
        let Ok(Typed::Uint32(status)) = reader.typed() else { panic!("{frame:?}") };
        assert!(!self.arrives().await, "more after a DISCONNECT");
        drop(self.stream);
        self.agent.await.unwrap();
        status
    }
}

/// The payload of a HELLO, with what is given instead of what HAProxy says.
fn hello(instead: &[Said<'_>]) -> BytesMut {
    let mut out = BytesMut::new();
    for (name, value) in [
        ("supported-versions", Typed::Text(b"2.0")),
        ("max-frame-size", Typed::Uint32(16_380)),
        ("capabilities", Typed::Text(b"pipelining,async")),
        ("healthcheck", Typed::Bool(false)),
    ] {
        let value = instead.iter().find(|(other, _)| *other == name).map_or(value, |(_, value)| *value);
        put_string(&mut out, name.as_bytes());
        put_typed(&mut out, value);
    }
    out
}

fn desk() -> Desk {
    Desk::scripted(Arc::new(|_, _, _, input| Ok(by_path(input))), listener(), None)
}

fn value<'a>(told: &'a [(String, Told)], name: &str) -> Option<&'a Told> {
    told.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn is_open(told: &[(String, Told)]) -> bool {
    match value(told, "allow") {
        Some(Told::Bool(is_open)) => *is_open,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_question_is_answered_with_its_ids() {
    let mut proxy = Proxy::greeted(desk()).await;
    for (stream, path, allowed) in [(7, "/open", true), (u64::MAX, "/shut", false)] {
        proxy.ask(stream, path).await;
        let (ids, told) = proxy.ack().await;
        assert_eq!(ids, Ids { stream, frame: 1 });
        assert_eq!(is_open(&told), allowed);
        assert_eq!(value(&told, "header_x_path"), Some(&Told::Text(path.into())));
    }
    proxy.send(Kind::HaproxyDisconnect, Ids::NONE, b"").await;
    assert_eq!(proxy.departure().await, 0);
}

#[tokio::test]
async fn a_health_check_is_answered_and_ends() {
    let mut proxy = Proxy::connect(desk());
    let check = [("healthcheck", Typed::Bool(true)), ("capabilities", Typed::Text(b""))];
    proxy.send(Kind::HaproxyHello, Ids::NONE, &hello(&check)).await;
    assert_eq!(proxy.frame().await.kind, Kind::AgentHello);
    assert!(!proxy.arrives().await);
    proxy.agent.await.unwrap();
}

#[tokio::test]
async fn what_is_no_hello_is_told_why() {
    let frame = |kind, ids, payload: &[u8]| {
        let mut out = BytesMut::new();
        assert!(put_frame(&mut out, kind, ids, 1 << 20, |out| out.extend_from_slice(payload)));
        out
    };
    let mut part = frame(Kind::HaproxyHello, Ids::NONE, &hello(&[]));
    part[8] = 0;
    for (bytes, status) in [
        (frame(Kind::HaproxyHello, Ids::NONE, &hello(&[("supported-versions", Typed::Text(b"3.0"))])), 8),
        (frame(Kind::HaproxyHello, Ids::NONE, &hello(&[("max-frame-size", Typed::Uint32(255))])), 9),
        (frame(Kind::HaproxyHello, Ids::NONE, b""), 5),
        (frame(Kind::HaproxyHello, Ids::NONE, b"\xff"), 4),
        (frame(Kind::HaproxyHello, Ids { stream: 1, frame: 0 }, &hello(&[])), 4),
        (frame(Kind::HaproxyHello, Ids::NONE, &[0; HELLO_MAX]), 3),
        (frame(Kind::Notify, Ids { stream: 1, frame: 1 }, &notify(&[&[GET]])), 4),
        (frame(Kind::AgentHello, Ids::NONE, &hello(&[])), 4),
        (part, 10),
        (BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]), 3),
        (BytesMut::from(&b"\0\0\0\0"[..]), 4),
    ] {
        let mut proxy = Proxy::connect(desk());
        proxy.write(&bytes).await;
        assert_eq!(proxy.departure().await, status, "{bytes:?}");
    }
}

#[tokio::test]
async fn what_is_no_question_is_told_why() {
    let question = notify(&[&[GET, ("path", Typed::Text(b"/open"))]]);
    let one = Ids { stream: 1, frame: 1 };
    let mut whole = BytesMut::new();
    assert!(put_frame(&mut whole, Kind::Notify, one, 1 << 20, |out| out.extend_from_slice(&question)));
    let mut part = whole.clone();
    part[8] = 0;
    let mut rest = part.clone();
    (rest[4], rest[8]) = (0, 1);
    let mut cut = whole.clone();
    cut.truncate(whole.len() - 1);
    cut[3] -= 1;
    for (bytes, status) in [
        (part, 10),
        (rest, 10),
        (cut, 4),
        (BytesMut::from(&b"\0\0\x3f\xfd"[..]), 3),
        (BytesMut::from(&b"\0\0\0\x07\x09\0\0\0\x01\0\0"[..]), 4),
        (BytesMut::from(&b"\0\0\0\x07\x01\0\0\0\x01\0\0"[..]), 4),
        (BytesMut::from(&b"\0\0\0\x07\x67\0\0\0\x01\x01\x01"[..]), 4),
    ] {
        let mut proxy = Proxy::greeted(desk()).await;
        proxy.write(&whole).await;
        assert!(is_open(&proxy.ack().await.1), "the control");
        proxy.write(&bytes).await;
        assert_eq!(proxy.departure().await, status, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_question_that_is_not_complete_is_closed_and_the_next_one_is_not() {
    let mut proxy = Proxy::greeted(desk()).await;
    let path = ("path", Typed::Text(b"/open"));
    let headers = hdrs(&[("host", b"a"), ("host", b"b")]);
    let two_hosts = [GET, path, ("hdrs", Typed::Binary(&headers))];
    for (messages, code) in [
        (&[][..], "bad_request"),
        (&[&[GET][..]][..], "bad_request"),
        (&[&[GET, path, path]], "bad_request"),
        (&[&two_hosts], "bad_request"),
        (&[&[GET, path], &[("headers_as", Typed::Text(b"json"))]], "bad_request"),
        (&[&[GET, path], &[("body", Typed::Binary(&[0; 1001]))]], "too_large"),
        (&[&[GET], &[path]], "allow"),
    ] {
        proxy.send(Kind::Notify, Ids { stream: 1, frame: 1 }, &notify(messages)).await;
        let (_, told) = proxy.ack().await;
        assert_eq!(value(&told, "outcome"), Some(&Told::Text(code.into())), "{messages:?}");
        assert_eq!(is_open(&told), code == "allow");
    }
}

#[tokio::test]
async fn paths_of_two_readings_are_closed_and_nobody_is_asked() {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let script = move |_: &_, _: &_, _, _: &Input<'_>| {
        *count.lock().unwrap() += 1;
        Ok(decision(Outcome::Allow))
    };
    let mut proxy = Proxy::greeted(Desk::scripted(Arc::new(script), listener(), None)).await;
    let rows = TWO_READINGS.iter().map(|target| (target, "bad_request"));
    for (target, code) in rows.chain(ONE_READING.iter().map(|target| (target, "allow"))) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let said = [GET, ("path", Typed::Text(path.as_bytes())), ("query", Typed::Text(query.as_bytes()))];
        proxy.send(Kind::Notify, Ids { stream: 1, frame: 1 }, &notify(&[&said])).await;
        let (_, told) = proxy.ack().await;
        assert_eq!(value(&told, "outcome"), Some(&Told::Text(code.into())), "{target:?}");
        assert_eq!(is_open(&told), code == "allow");
    }
    assert_eq!(*asked.lock().unwrap(), ONE_READING.len());
}

/// A connection whose frames may have 1 MiB.
async fn wide(desk: Desk) -> Proxy {
    let mut proxy = Proxy::connect(desk);
    let most = [("max-frame-size", Typed::Uint32(1 << 20))];
    proxy.send(Kind::HaproxyHello, Ids::NONE, &hello(&most)).await;
    assert_eq!(proxy.frame().await.kind, Kind::AgentHello);
    proxy
}

#[tokio::test]
async fn questions_of_all_connections_have_a_bound_together() {
    let room = Room::new(300_000);
    let of = || desk().with_room(Arc::clone(&room));
    let long = "x".repeat(200_000);
    let long = notify(&[&[GET, ("path", Typed::Text(b"/open")), ("more", Typed::Text(long.as_bytes()))]]);
    let mut proxy = wide(of()).await;
    for stream in 0..3 {
        proxy.send(Kind::Notify, Ids { stream, frame: 1 }, &long).await;
        assert!(is_open(&proxy.ack().await.1), "one after the other");
    }
    let mut elsewhere = room.place();
    elsewhere.grow(150_000).unwrap();
    proxy.ask(1, "/open").await;
    assert!(is_open(&proxy.ack().await.1), "the control");
    // Announced, and not taken.
    let mut begun = BytesMut::new();
    assert!(put_frame(&mut begun, Kind::Notify, Ids::NONE, 1 << 20, |out| out.extend_from_slice(&long)));
    proxy.write(&begun[..1000]).await;
    assert_eq!(proxy.departure().await, 13);
    elsewhere.leave();
    let mut proxy = wide(of()).await;
    proxy.send(Kind::Notify, Ids { stream: 1, frame: 1 }, &long).await;
    assert!(is_open(&proxy.ack().await.1));
    // Small ones need room too: there may be many of them.
    elsewhere.grow(SMALL).unwrap();
    let mut others: Vec<_> = (0..3).map(|_| room.place()).collect();
    others.iter_mut().for_each(|place| place.grow(SMALL).unwrap());
    let mut rest = room.place();
    rest.grow(300_000 - 4 * SMALL).unwrap();
    proxy.ask(2, "/open").await;
    let (_, told) = proxy.ack().await;
    assert_eq!(value(&told, "outcome"), Some(&Told::Text("overloaded".into())));
    assert!(!is_open(&told));
    drop((elsewhere, others, rest));
    proxy.send(Kind::HaproxyDisconnect, Ids::NONE, b"").await;
    assert_eq!(proxy.departure().await, 0);
    room.place().grow(280_000).expect("all of it came back");
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_is_a_closed_gate() {
    let script = |_: &_, _: &_, _, _: &Input<'_>| {
        let mut decision = decision(Outcome::Allow);
        let value = vec![b'x'; 100_000].into();
        decision.obligations.headers_set = vec![HeaderValue { name: "x-long".into(), value }];
        Ok(decision)
    };
    for (bytes, opens) in [(200_000, true), (90_000, false)] {
        let desk = Desk::scripted(Arc::new(script), listener(), None).with_room(Room::new(bytes));
        let mut proxy = wide(desk).await;
        proxy.ask(1, "/open").await;
        let (_, told) = proxy.ack().await;
        assert_eq!(is_open(&told), opens);
        let word = if opens { "allow" } else { "overloaded" };
        assert_eq!(value(&told, "outcome"), Some(&Told::Text(word.into())));
        assert_eq!(value(&told, "header_x_long").is_some(), opens);
    }
}

#[tokio::test]
async fn errors_of_the_way_there_are_closed_gates() {
    for (error, code, status) in [
        (ClientError::Deadline, "deadline", 504),
        (ClientError::TooLong, "too_large", 413),
        (ClientError::Closed(crate::client::Ending::Peer), "unavailable", 503),
    ] {
        let error = Mutex::new(Some(error));
        let script = move |_: &_, _: &_, _, _: &Input<'_>| Err(error.lock().unwrap().take().unwrap());
        let mut proxy = Proxy::greeted(Desk::scripted(Arc::new(script), listener(), None)).await;
        proxy.ask(1, "/open").await;
        let (_, told) = proxy.ack().await;
        assert!(!is_open(&told));
        assert_eq!(value(&told, "outcome"), Some(&Told::Text(code.into())));
        assert_eq!(value(&told, "status"), Some(&Told::Int(status)));
    }
}

#[tokio::test]
async fn the_tenant_is_the_one_that_an_argument_names() {
    let names = ["acme", "globex"].map(|name| Tenant::new(name).unwrap());
    let mut listener = listener();
    listener.tenant = Binding::Context { key: "tenant".into(), among: names.to_vec() };
    let script = |tenant: &Tenant, policy: &PolicyName, _, input: &Input<'_>| {
        let mut decision = by_path(input);
        let who = format!("{tenant}/{policy}").into();
        decision.obligations.headers_set = vec![HeaderValue { name: "who".into(), value: who }];
        Ok(decision)
    };
    let mut proxy = Proxy::greeted(Desk::scripted(Arc::new(script), listener, None)).await;
    let path = ("path", Typed::Text(b"/open"));
    let header = hdrs(&[("tenant", b"acme")]);
    let globex = ("tenant", Typed::Text(b"globex"));
    for (said, who) in [
        (&[globex][..], Some("globex/gate")),
        (&[], None),
        (&[("hdrs", Typed::Binary(&header))], None),
        (&[globex, globex], None),
        (&[globex, ("tenant", Typed::Text(b"acme"))], None),
        (&[("tenant", Typed::Text(b"initech"))], None),
        (&[("tenant", Typed::Null)], None),
    ] {
        let all = [&[GET, path], said].concat();
        proxy.send(Kind::Notify, Ids { stream: 1, frame: 1 }, &notify(&[&all])).await;
        let (_, told) = proxy.ack().await;
        assert_eq!(is_open(&told), who.is_some(), "{said:?}");
        let code = if who.is_some() { "allow" } else { "not_permitted" };
        assert_eq!(value(&told, "outcome"), Some(&Told::Text(code.into())));
        assert_eq!(value(&told, "header_who"), who.map(|who| Told::Text(who.into())).as_ref());
    }
}

/// A desk whose decisions come when a test says so; it hears of every question.
fn later() -> (Desk, mpsc::UnboundedReceiver<(String, oneshot::Sender<()>)>) {
    let (asked, asks) = mpsc::unbounded_channel();
    let script = move |input: &Input<'_>| {
        let Input::Http(http) = input else { panic!("{input:?}") };
        let (decide, decided) = oneshot::channel();
        asked.send((http.path.to_owned(), decide)).unwrap();
        let decision = by_path(input);
        Box::pin(async move {
            decided.await.unwrap();
            decision
        }) as std::pin::Pin<Box<dyn Future<Output = Decision> + Send>>
    };
    (Desk::scripted_later(Arc::new(script), listener()), asks)
}

#[tokio::test]
async fn answers_come_in_the_order_of_their_decisions() {
    let (desk, mut asks) = later();
    let mut proxy = Proxy::greeted(desk).await;
    let mut waiting = Vec::new();
    for stream in 0..8 {
        proxy.ask(stream, "/open").await;
        waiting.push(asks.recv().await.unwrap().1);
    }
    for stream in [3, 7, 0, 1, 6, 5, 2, 4] {
        let (decide, _) = oneshot::channel();
        std::mem::replace(&mut waiting[stream], decide).send(()).unwrap();
        let (ids, told) = proxy.ack().await;
        assert_eq!(ids.stream, stream as u64);
        assert!(is_open(&told));
    }
}

#[tokio::test]
async fn what_is_under_way_is_bounded() {
    for (capabilities, frame_max, most) in [
        (&b"pipelining"[..], 16_380, 64),
        (b"pipelining", 256 << 10, 4),
        (b"pipelining", u32::MAX, 1),
        (b"", 16_380, 1),
    ] {
        let (desk, mut asks) = later();
        let mut proxy = Proxy::connect(desk);
        let instead =
            [("capabilities", Typed::Text(capabilities)), ("max-frame-size", Typed::Uint32(frame_max))];
        proxy.send(Kind::HaproxyHello, Ids::NONE, &hello(&instead)).await;
        assert_eq!(proxy.frame().await.kind, Kind::AgentHello);
        for stream in 0..100 {
            proxy.ask(stream, "/open").await;
        }
        let mut waiting = Vec::new();
        for _ in 0..most {
            waiting.push(asks.recv().await.unwrap().1);
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(asks.try_recv().is_err(), "more than {most} are asked at once");
        waiting.pop().unwrap().send(()).unwrap();
        proxy.ack().await;
        assert!(asks.recv().await.is_some(), "the next one is asked when one is answered");
    }
}

#[tokio::test]
async fn the_same_ids_twice_at_once_are_refused() {
    let (desk, mut asks) = later();
    let mut proxy = Proxy::greeted(desk).await;
    proxy.ask(1, "/open").await;
    let (_, decide) = asks.recv().await.unwrap();
    decide.send(()).unwrap();
    assert!(is_open(&proxy.ack().await.1));
    proxy.ask(1, "/open").await;
    let (_, given_up) = asks.recv().await.unwrap();
    proxy.ask(1, "/shut").await;
    assert_eq!(proxy.departure().await, 4);
    assert!(given_up.is_closed(), "what was under way is given up");
}

#[tokio::test]
async fn draining_ends_when_everything_is_answered() {
    let (desk, mut asks) = later();
    let (close, closing) = watch::channel(false);
    let mut proxy = Proxy::greeted(desk.closing_by(closing)).await;
    proxy.ask(1, "/open").await;
    let (_, decide) = asks.recv().await.unwrap();
    close.send(true).unwrap();
    // Sent before HAProxy can know.
    proxy.ask(2, "/open").await;
    let (_, decide_too) = asks.recv().await.unwrap();
    decide.send(()).unwrap();
    assert!(is_open(&proxy.ack().await.1));
    decide_too.send(()).unwrap();
    assert!(is_open(&proxy.ack().await.1));
    assert_eq!(proxy.departure().await, 0);
}

#[tokio::test]
async fn who_does_nothing_is_left() {
    let short = Duration::from_millis(5);
    let patience = Patience { frame: short, ..PATIENCE };
    assert_eq!(Proxy::connect_with(patience, desk()).departure().await, 2, "no HELLO");
    let mut proxy = Proxy::connect_with(patience, desk());
    proxy.write(b"\0\0\0\x40\x01\0").await;
    assert_eq!(proxy.departure().await, 2, "half a HELLO");

    for (idle, frame, more, status) in
        [(short, PATIENCE.frame, &b""[..], 0), (PATIENCE.idle, short, b"\0\0\0\x40\x03", 2)]
    {
        // Long enough for the HELLO: what comes after it is what is late.
        let (stream, theirs) = duplex(64 << 10);
        let mut connection = Connection {
            stream: theirs,
            patience: Patience { idle, frame, ..PATIENCE },
            read: BytesMut::new(),
            coming: desk().room().place(),
        };
        let terms = Terms { frame_max: 16_380, pipelining: true, is_check: false };
        let agent = tokio::spawn(async move {
            let questions = Questions { terms, desk: desk(), asked: JoinSet::new(), ids: HashSet::new() };
            let End::Departure(departure) = connection.answer(questions).await else { panic!("gone") };
            connection.leave(&departure).await;
        });
        let mut proxy = Proxy { stream, read: BytesMut::new(), agent };
        proxy.write(more).await;
        assert_eq!(proxy.departure().await, status, "{more:?}");
    }
}

#[tokio::test]
async fn who_takes_no_answers_is_left() {
    let patience = Patience { write: Duration::from_millis(5), ..PATIENCE };
    let (mut stream, theirs) = duplex(64);
    let agent = tokio::spawn(serve_with(patience, theirs, desk()));
    let mut out = BytesMut::new();
    assert!(put_frame(&mut out, Kind::HaproxyHello, Ids::NONE, 1 << 20, |out| {
        out.extend_from_slice(&hello(&[]));
    }));
    stream.write_all(&out).await.unwrap();
    agent.await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random bytes, and frames with random payloads: the connection ends, and nothing opens.
    #[test]
    fn hostile_bytes_never_panic_and_never_open(
        raw in any::<bool>(),
        pieces in prop::collection::vec((0_u8..5, prop::collection::vec(any::<u8>(), 0..64)), 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut proxy = Proxy::greeted(desk()).await;
            for (kind, payload) in pieces {
                let mut bytes = payload;
                if !raw {
                    let length = u8::try_from(bytes.len() + 7).unwrap();
                    bytes.splice(0..0, [0, 0, 0, length, kind, 0, 0, 0, 1, 9, 9]);
                }
                if proxy.stream.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            let _ = proxy.stream.shutdown().await;
            while let Ok(true) = async { Ok::<_, ()>(proxy.arrives().await) }.await {}
            proxy.agent.await.unwrap();
            while let Ok(Some(frame)) = Frame::take(&mut proxy.read, 1 << 20) {
                let opens = b"\x05allow\x11";
                assert!(!frame.payload.windows(opens.len()).any(|window| window == opens), "{frame:?}");
            }
        });
    }
}
