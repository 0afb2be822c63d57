use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::client::{Client, Connect, Pipeline, Settings};
use crate::decision::{HttpRequest, Outcome, Peer, Refusal, TrustClass};
use crate::gateway::verdict::Gate;
use crate::wire::client::{PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame};
use crate::wire::frame;
use crate::wire::gateway::{SocketKind, Speaks};

fn listener() -> Listener {
    Listener {
        name: "test".into(),
        socket: SocketKind::Unix,
        peers: Vec::new(),
        speaks: Speaks::Spoe,
        tenant: Binding::Fixed(Tenant::new("acme").unwrap()),
        policy: Binding::Fixed(PolicyName::new("gate").unwrap()),
        deadline_us: 50_000,
        max_connections: 1,
        max_body: 0,
        details: false,
    }
}

fn bound() -> Bound {
    Bound { tenant: Tenant::new("acme").unwrap(), policy: PolicyName::new("gate").unwrap() }
}

fn request(path: &str) -> Input<'_> {
    Input::Http(HttpRequest {
        method: "GET",
        scheme: "https",
        host: "a",
        path,
        query: None,
        headers: Vec::new(),
        body: None,
        source: Peer::default(),
        destination: Peer::default(),
        attributes: Vec::new(),
    })
}

fn allow() -> Decision {
    Decision { outcome: Outcome::Allow, ..Decision::refused(Refusal::Unavailable) }
}

fn code(verdict: &Verdict) -> Option<Code> {
    match &verdict.gate {
        Gate::Open => None,
        Gate::Down(down) => Some(down.code),
    }
}

#[test]
fn a_part_of_a_proxys_time_is_for_the_way_back() {
    let ms = Duration::from_millis;
    for (left, used) in [
        (0, None),
        (1, None),
        (2, None),
        (3, Some(1)),
        (10, Some(8)),
        (20, Some(18)),
        (50, Some(45)),
        (100, Some(90)),
        (1000, Some(990)),
    ] {
        assert_eq!(in_time(ms(left)), used.map(ms), "{left} ms");
    }
    assert_eq!(in_time(Duration::MAX), Duration::MAX.checked_sub(WAY_BACK_MAX));
}

/// Connections whose other side has said Welcome, and says nothing more.
#[derive(Debug, Default)]
struct Silent(std::sync::Mutex<Vec<std::os::unix::net::UnixStream>>);

impl Connect for Silent {
    fn connect(&self, _: &Tenant) -> std::io::Result<tokio::net::UnixStream> {
        let (mut theirs, ours) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let class = TrustClass::new("one").unwrap();
        let welcome = ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 };
        let mut bytes = bytes::BytesMut::new();
        frame::encode_frame(&welcome, &mut bytes, SERVER_FRAME_MAX).unwrap();
        std::io::Write::write_all(&mut theirs, &bytes)?;
        self.0.lock().unwrap().push(theirs);
        tokio::net::UnixStream::from_std(ours)
    }

    fn pipeline(&self, _: &TrustClass) -> Pipeline {
        Pipeline { questions: 8, shared: false }
    }
}

/// The answer does not wait for a service that says nothing: neither as long as the listener's deadline is, nor for those who
/// were asked before and may take longer.
#[tokio::test]
async fn silence_is_a_denial_before_the_proxy_gives_up() {
    let silent = Arc::new(Silent::default());
    let lines = Lines::new(&[], || Client::through(silent.clone(), Settings::default()));
    let never = watch::channel(false).1;
    let minute = Listener { deadline_us: 60_000_000, ..listener() };
    let desk = Desk::new(lines, Arc::new(minute), Room::new(HELD_MAX), None, never);
    let patient = tokio::spawn({
        let desk = desk.clone();
        async move { desk.decide(&bound(), Terms::default(), &request("/")).await }
    });
    while silent.0.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        let terms = Terms { within: Some(Duration::from_millis(5)), trace: None };
        assert_eq!(code(&desk.decide(&bound(), terms, &request("/")).await), Some(Code::Deadline));
    }
    assert!(!patient.is_finished(), "it has the time that its listener gives");
    assert_eq!(silent.0.lock().unwrap().len(), 1, "and all asked over one connection");
    patient.abort();
}

#[tokio::test]
async fn nobody_is_asked_without_time_or_about_what_means_two_things() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let script: Arc<Scripted> = Arc::new(move |_, _, _, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(allow())
    });
    let desk = Desk::scripted(script, listener(), None);
    let within = |ms| Terms { within: Some(Duration::from_millis(ms)), trace: None };
    assert_eq!(code(&desk.decide(&bound(), within(2), &request("/")).await), Some(Code::Deadline));
    let twofold = desk.decide(&bound(), Terms::default(), &request("/open/../admin")).await;
    assert_eq!(code(&twofold), Some(Code::BadRequest));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    // The control: with time, and about a path that means one.
    assert_eq!(code(&desk.decide(&bound(), within(60_000), &request("/open/admin")).await), None);
    let opaque = Input::Opaque { content_type: "application/json", bytes: b"/../" };
    assert_eq!(code(&desk.decide(&bound(), Terms::default(), &opaque).await), None, "it has no path");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}
