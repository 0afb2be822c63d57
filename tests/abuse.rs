//! Clients that break the protocol, do not keep up, or ask for what is not theirs: each ends with a typed error where
//! there is somebody to read it, and nobody else notices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use bytes::BytesMut;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use portcullis::client::ClientError;
use portcullis::decision::{Input, Outcome, Quota, Refusal, Stage};
use portcullis::wire::client::{
    BATCH_MAX, CLIENT_FRAME_MAX, ClientFrame, Deadline, Farewell, HELLO_MAX, PROTOCOL_VERSION,
    SERVER_FRAME_MAX, ServerFrame, Violation,
};
use portcullis::wire::frame;
use support::{PATIENCE, Service, Site, policy, read_frame, tenant};

const ALLOW: Input<'static> = Input::Opaque { content_type: "", bytes: b"allow" };

fn service(class: &str, frontend: &str) -> Service {
    let mut site = Site::new()
        .class("one", class)
        .tenant("acme", "one", &[("gate", "hostile/selective")], "")
        .class("two", "");
    site.frontend = frontend.into();
    site.tenant("globex", "two", &[("gate", "hostile/selective")], "").start()
}

fn raw(service: &Service) -> UnixStream {
    let stream = UnixStream::connect(service.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn encoded(message: &ClientFrame<'_>) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    frame::encode_frame(message, &mut buffer, CLIENT_FRAME_MAX).unwrap();
    buffer.to_vec()
}

fn hello(name: &str) -> Vec<u8> {
    encoded(&ClientFrame::Hello { version: PROTOCOL_VERSION, tenant: name })
}

fn decide(id: u64, bytes: &[u8]) -> Vec<u8> {
    decide_within(id, bytes, Deadline::Default)
}

fn decide_within(id: u64, bytes: &[u8], deadline: Deadline) -> Vec<u8> {
    let input = frame::encode(&Input::Opaque { content_type: "", bytes }, CLIENT_FRAME_MAX).unwrap();
    encoded(&ClientFrame::Decide { id, tenant: "acme", policy: "gate", deadline, trace: None, input: &input })
}

fn next(stream: &mut UnixStream) -> Option<ServerFrame> {
    read_frame(stream, SERVER_FRAME_MAX).map(|bytes| frame::decode(&bytes).unwrap())
}

fn greeted(service: &Service) -> UnixStream {
    let mut stream = raw(service);
    stream.write_all(&hello("acme")).unwrap();
    assert!(matches!(next(&mut stream), Some(ServerFrame::Welcome { .. })));
    stream
}

/// Sends bytes on a new connection and returns the farewell it ends with.
fn farewell_to(mut stream: UnixStream, bytes: &[u8]) -> Farewell {
    // The service may have closed before the last byte is written.
    let _ = stream.write_all(bytes);
    loop {
        match next(&mut stream) {
            Some(ServerFrame::Farewell(farewell)) => {
                assert_eq!(next(&mut stream), None, "a farewell is the last frame");
                return farewell;
            }
            Some(_) => {}
            None => panic!("closed without a farewell"),
        }
    }
}

fn still_serves(service: &Service) {
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    assert_eq!(service.ask("globex", "gate", b"allow").outcome, Outcome::Allow);
}

#[test]
fn a_bad_hello_ends_with_its_reason() {
    let service = service("", "");
    let violation = |violation| Farewell::Protocol(violation);
    let over = u32::try_from(HELLO_MAX + 1).unwrap().to_be_bytes();
    let mut trailing = hello("acme");
    trailing.push(0);
    trailing[3] += 1;
    for (what, bytes, expected) in [
        ("length 0", vec![0, 0, 0, 0], violation(Violation::Empty)),
        ("over the cap", over.to_vec(), violation(Violation::TooLong)),
        ("length 2^32-1", vec![0xff; 4], violation(Violation::TooLong)),
        ("unknown variant", vec![0, 0, 0, 2, 0x7f, 0], violation(Violation::Malformed)),
        ("truncated inside", vec![0, 0, 0, 1, 0], violation(Violation::Malformed)),
        ("trailing byte", trailing, violation(Violation::Malformed)),
        ("ping before hello", encoded(&ClientFrame::Ping { nonce: 1 }), violation(Violation::NotHello)),
        ("unknown tenant", hello("nobody"), Farewell::NotPermitted),
        (
            "another version",
            encoded(&ClientFrame::Hello { version: 999, tenant: "acme" }),
            Farewell::Version { theirs: 999, ours: PROTOCOL_VERSION },
        ),
    ] {
        assert_eq!(farewell_to(raw(&service), &bytes), expected, "{what}");
    }
    // A Decide is larger than a Hello may be; one that fits in is told what is wrong.
    let early = decide(1, b"allow");
    assert!(early.len() < HELLO_MAX);
    assert_eq!(farewell_to(raw(&service), &early), violation(Violation::NotHello));
    still_serves(&service);
}

#[test]
fn a_tenant_that_is_not_granted_is_refused() {
    let site = Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "");
    site.install("secret", "gate", "hostile/selective", 1);
    let mut site = site;
    site.tables.push_str("[tenant.secret]\nclass = \"one\"\npolicies = [\"gate\"]\nuids = [4242]\n");
    let service = site.start();
    for name in ["secret", "nobody"] {
        assert_eq!(farewell_to(raw(&service), &hello(name)), Farewell::NotPermitted);
    }
    // Through a connection that is granted another tenant of the class.
    let mut connection = service.connect("acme");
    // One answer for both: who may not ask for a tenant does not learn that there is one.
    for (name, refusal) in [("secret", Refusal::NotPermitted), ("nobody", Refusal::NotPermitted)] {
        connection.send(&tenant(name), &policy("gate"), Deadline::Default, &ALLOW).unwrap();
        connection.flush().unwrap();
        assert_eq!(connection.receive().unwrap().1.outcome, Outcome::Refused(refusal));
    }
    connection.send(&tenant("acme"), &policy("nothing"), Deadline::Default, &ALLOW).unwrap();
    connection.flush().unwrap();
    assert_eq!(connection.receive().unwrap().1.outcome, Outcome::Refused(Refusal::UnknownPolicy));
}

#[test]
fn a_broken_frame_after_hello_ends_with_its_reason() {
    let service = service("", "");
    let over = u32::try_from(CLIENT_FRAME_MAX + 1).unwrap().to_be_bytes();
    let mut trailing = decide(1, b"allow");
    trailing.push(0);
    trailing[3] += 1;
    let twice = [decide(7, b"spin"), decide(7, b"spin")].concat();
    let batch = |inputs: Vec<&[u8]>| {
        let deadline = Deadline::Default;
        encoded(&ClientFrame::DecideBatch {
            id: 1,
            tenant: "acme",
            policy: "gate",
            deadline,
            trace: None,
            inputs,
        })
    };
    let no_input = encoded(&ClientFrame::Decide {
        id: 1,
        tenant: "acme",
        policy: "gate",
        deadline: Deadline::Default,
        trace: None,
        input: &[9, 9, 9],
    });
    for (what, bytes, violation) in [
        ("length 0", vec![0, 0, 0, 0], Violation::Empty),
        ("over the cap", over.to_vec(), Violation::TooLong),
        ("unknown variant", vec![0, 0, 0, 1, 0x7f], Violation::Malformed),
        ("trailing byte", trailing, Violation::Malformed),
        ("hello twice", hello("acme"), Violation::HelloTwice),
        ("an id in use", twice, Violation::DuplicateId),
        ("an empty batch", batch(vec![]), Violation::BatchSize),
        ("too large a batch", batch(vec![&[]; BATCH_MAX + 1]), Violation::BatchSize),
        ("an input that is none", no_input, Violation::Input),
    ] {
        assert_eq!(farewell_to(greeted(&service), &bytes), Farewell::Protocol(violation), "{what}");
    }
    still_serves(&service);
}

#[test]
fn what_was_asked_before_the_end_of_sending_is_answered() {
    let service = service("", "");
    let mut stream = raw(&service);
    // Everything in one write, right behind the Hello, and then the writing side is closed.
    let bytes = [hello("acme"), decide(1, b"number:1"), decide(2, b"number:2")].concat();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(next(&mut stream), Some(ServerFrame::Welcome { .. })));
    for _ in 0..2 {
        let Some(ServerFrame::Decision { id, decision }) = next(&mut stream) else { panic!("no decision") };
        assert_eq!(decision.outcome, Outcome::Allow);
        assert_eq!(decision.obligations.metadata[0].value, id.to_string());
    }
    assert_eq!(next(&mut stream), None);
}

#[test]
fn one_byte_at_a_time_is_taken_as_well_as_all_at_once() {
    let service = service("", "");
    let mut stream = raw(&service);
    for byte in [hello("acme"), decide(1, b"allow")].concat() {
        stream.write_all(&[byte]).unwrap();
    }
    assert!(matches!(next(&mut stream), Some(ServerFrame::Welcome { .. })));
    assert!(matches!(next(&mut stream), Some(ServerFrame::Decision { id: 1, .. })));
}

#[test]
fn a_hello_that_does_not_come_in_time_is_given_up() {
    let service = service("", "hello_timeout = \"100ms\"");
    let mut silent = raw(&service);
    assert_eq!(next(&mut silent), Some(ServerFrame::Farewell(Farewell::Timeout)));
    let mut slow = raw(&service);
    // It may be too late already.
    let _ = slow.write_all(&hello("acme")[..5]);
    assert_eq!(next(&mut slow), Some(ServerFrame::Farewell(Farewell::Timeout)));
}

#[test]
fn ten_thousand_half_open_connections_cost_little_and_stop_nobody() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(12_000), hard).unwrap();
    let most = usize::try_from(hard.min(12_000)).unwrap().saturating_sub(200).min(10_000);
    assert!(
        most == 10_000 || !support::is_root(),
        "raise the hard limit of open files above 10,200 (ulimit -Hn)"
    );
    let limits = "hello_timeout = \"60s\"\nmax_connections = 20000\nmax_connections_per_uid = 20000";
    let service = service("", limits);
    let frontend = service.processes().into_iter().find(|one| one.role == "frontend").unwrap();
    let resident = || resident_kib(frontend.pid);
    let before = resident();
    let mut open = Vec::new();
    for _ in 0..most {
        let mut stream = raw(&service);
        stream.write_all(&[0, 0]).unwrap();
        open.push(stream);
    }
    still_serves(&service);
    // Less than a page of 4 KiB and some for each.
    let each = (resident().saturating_sub(before)) * 1024 / most;
    assert!(each < 8 * 1024, "{each} bytes for each half-open connection");
    drop(open);
    still_serves(&service);
}

#[test]
fn more_connections_than_a_uid_may_have_are_told_so() {
    let service = service("", "max_connections_per_uid = 3");
    let kept: Vec<UnixStream> = (0..3).map(|_| greeted(&service)).collect();
    assert_eq!(farewell_to(raw(&service), &hello("acme")), Farewell::Quota(Quota::Connections));
    drop(kept);
    // As soon as the frontend has heard of it there is room again.
    let patience = std::time::Instant::now() + PATIENCE;
    while let Err(error) = service.try_connect("acme") {
        assert!(matches!(error, ClientError::Farewell(Farewell::Quota(Quota::Connections))), "{error}");
        assert!(std::time::Instant::now() < patience, "{}", service.log());
    }
}

#[test]
fn questions_beyond_the_pipeline_are_refused_and_the_others_answered() {
    let service = service("pipeline = 2", "");
    let mut stream = greeted(&service);
    let spin = |id| decide_within(id, b"spin", Deadline::Budget { us: 500_000 });
    stream.write_all(&[spin(1), spin(2), decide(3, b"allow")].concat()).unwrap();
    let Some(ServerFrame::Decision { id: 3, decision }) = next(&mut stream) else {
        panic!("not refused first")
    };
    assert!(matches!(decision.outcome, Outcome::Refused(Refusal::Quota { which: Quota::Pipeline, .. })));
    for _ in 0..2 {
        let Some(ServerFrame::Decision { decision, .. }) = next(&mut stream) else { panic!("no answer") };
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Deadline(Stage::Run)));
    }
}

#[test]
fn a_queue_that_is_full_refuses_before_any_work() {
    let mut site = Site::new().class("one", "queue = 2\nthreads = 1");
    for name in ["acme", "globex", "initech"] {
        site = site.tenant(name, "one", &[("gate", "hostile/selective")], "");
    }
    let service = site.start();
    // A tenant may have half of the queue.
    let _spinning = ["acme", "globex"].map(|name| {
        let mut connection = service.connect(name);
        let spin = Input::Opaque { content_type: "", bytes: b"spin" };
        connection.send(&tenant(name), &policy("gate"), Deadline::Default, &spin).unwrap();
        // Answered in its turn: by then the other one is in the queue.
        connection.send(&tenant(name), &policy("nothing"), Deadline::Default, &ALLOW).unwrap();
        connection.flush().unwrap();
        assert_eq!(connection.receive().unwrap().1.outcome, Outcome::Refused(Refusal::UnknownPolicy));
        connection
    });
    // The same executor, another connection: its pipeline is empty, the queue is not.
    assert_eq!(service.ask("initech", "gate", b"allow").outcome, Outcome::Refused(Refusal::Overloaded));
}

#[test]
fn a_client_that_does_not_read_is_not_asked_for_more_and_nobody_else_notices() {
    let service = service("", "");
    let worker = service.processes().into_iter().find(|one| one.role == "worker").unwrap();
    let resident = || resident_kib(worker.pid);
    let before = resident();
    let mut stream = greeted(&service);
    stream.set_nonblocking(true).unwrap();
    // Answers of 32 KiB each that nobody reads. In the end neither side takes more: the socket is full both ways.
    let full = (0..1_000_000).find_map(|id| stream.write_all(&decide(id, b"size:32000")).err());
    assert_eq!(full.map(|error| error.kind()), Some(std::io::ErrorKind::WouldBlock));
    still_serves(&service);
    assert!(resident().saturating_sub(before) < 64 << 10, "{} KiB more", resident() - before);
    still_serves(&service);
}

fn resident_kib(pid: i32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn a_cancelled_question_is_answered_once() {
    let service = service("", "");
    let mut stream = greeted(&service);
    let cancel = |id| encoded(&ClientFrame::Cancel { id });
    let ping = encoded(&ClientFrame::Ping { nonce: 5 });
    stream.write_all(&[decide(1, b"spin"), cancel(1), cancel(99), ping].concat()).unwrap();
    let mut frames = [next(&mut stream).unwrap(), next(&mut stream).unwrap()];
    frames.sort_by_key(|frame| matches!(frame, ServerFrame::Pong { .. }));
    assert!(matches!(&frames[0], ServerFrame::Decision { id: 1, decision }
        if decision.outcome == Outcome::Refused(Refusal::Cancelled)));
    assert_eq!(frames[1], ServerFrame::Pong { nonce: 5 });
}

#[test]
fn a_batch_is_answered_in_order_with_one_frame() {
    let service = service("", "");
    let numbers: Vec<Vec<u8>> = (0..100).map(|number| format!("number:{number}").into_bytes()).collect();
    let inputs: Vec<Input<'_>> =
        numbers.iter().map(|bytes| Input::Opaque { content_type: "", bytes }).collect();
    let decisions =
        service.client().decide_batch(&tenant("acme"), &policy("gate"), Deadline::Default, &inputs).unwrap();
    assert_eq!(decisions.len(), 100);
    for (number, decision) in decisions.iter().enumerate() {
        assert_eq!(decision.obligations.metadata[0].value, number.to_string());
    }
}

#[test]
fn a_deadline_that_has_passed_is_refused_on_receipt() {
    let service = service("", "");
    let decision = service.ask_within("acme", "gate", b"allow", Deadline::Absolute { ns: 1 });
    assert_eq!(decision.outcome, Outcome::Refused(Refusal::Deadline(Stage::Receipt)));
}

#[test]
fn waiting_counts_against_the_deadline() {
    // One instance at a time: the second question waits for the first, and never runs.
    let service = service("instances = 1\nthreads = 1", "");
    let mut stream = greeted(&service);
    let within = |us| Deadline::Budget { us };
    stream.write_all(&decide_within(1, b"spin", within(3_000_000))).unwrap();
    // A Pong is sent after guests have run: the first one has the instance.
    stream.write_all(&encoded(&ClientFrame::Ping { nonce: 1 })).unwrap();
    assert_eq!(next(&mut stream), Some(ServerFrame::Pong { nonce: 1 }));
    stream.write_all(&decide_within(2, b"allow", within(50_000))).unwrap();
    for (expected, stage) in [(2, Stage::Queue), (1, Stage::Run)] {
        let Some(ServerFrame::Decision { id, decision }) = next(&mut stream) else { panic!("no decision") };
        assert_eq!((id, decision.outcome), (expected, Outcome::Refused(Refusal::Deadline(stage))));
    }
}

#[test]
fn more_connections_than_a_class_takes_are_told_so_and_harm_nobody() {
    let service = service("connections = 16", "max_connections_per_uid = 1000");
    let worker = |service: &Service| {
        let processes = service.processes();
        processes
            .into_iter()
            .find(|one| one.class.as_ref().is_some_and(|class| class.as_str() == "one"))
            .unwrap()
            .pid
    };
    let before = worker(&service);
    let mut kept: Vec<UnixStream> = (0..16).map(|_| greeted(&service)).collect();
    for _ in 0..500 {
        assert_eq!(farewell_to(raw(&service), &hello("acme")), Farewell::Quota(Quota::Connections));
    }
    assert_eq!(
        service.ask("globex", "gate", b"allow").outcome,
        Outcome::Allow,
        "another class has its own seats"
    );
    for stream in &mut kept {
        stream.write_all(&decide(1, b"allow")).unwrap();
        assert!(matches!(next(stream), Some(ServerFrame::Decision { id: 1, .. })));
    }
    assert_eq!(worker(&service), before);
}

/// Its share is the same whether there are others or not: it does not learn whether there are.
#[test]
fn a_tenant_that_fills_its_share_of_the_queue_leaves_room_to_the_others() {
    for others in [true, false] {
        let mut site = Site::new().class("one", "queue = 8\nthreads = 1").tenant(
            "acme",
            "one",
            &[("gate", "hostile/selective")],
            "",
        );
        if others {
            site = site.tenant("globex", "one", &[("gate", "hostile/selective")], "");
        }
        let service = site.start();
        let mut stream = greeted(&service);
        let spins: Vec<u8> = (0..8).flat_map(|id| decide(id, b"spin")).collect();
        stream.write_all(&spins).unwrap();
        for _ in 0..4 {
            let Some(ServerFrame::Decision { decision, .. }) = next(&mut stream) else { panic!("no answer") };
            assert!(
                matches!(decision.outcome, Outcome::Refused(Refusal::Quota { which: Quota::Queue, .. })),
                "{decision:?}"
            );
        }
        if others {
            assert_eq!(service.ask("globex", "gate", b"allow").outcome, Outcome::Allow);
        }
    }
}

#[test]
fn a_flood_of_frames_does_not_end_the_worker() {
    let mut site =
        Site::new().class("one", "threads = 1").tenant("acme", "one", &[("gate", "hostile/selective")], "");
    site.service = "answer_within = \"10s\"\n".into();
    let service = site.start();
    let worker =
        |service: &Service| service.processes().into_iter().find(|one| one.role == "worker").unwrap().pid;
    let before = worker(&service);
    let nothing: &[u8] = &[];
    let batch = |id| {
        let (deadline, inputs) = (Deadline::Default, vec![nothing; BATCH_MAX]);
        encoded(&ClientFrame::DecideBatch {
            id,
            tenant: "nobody",
            policy: "gate",
            deadline,
            trace: None,
            inputs,
        })
    };
    let flood: Vec<u8> = (0..1_000).flat_map(batch).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut stream = greeted(&service);
                let mut reader = stream.try_clone().unwrap();
                let reading = scope.spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
                for _ in 0..10 {
                    stream.write_all(&flood).unwrap();
                }
                stream.shutdown(Shutdown::Both).unwrap();
                // What it was sent and has not read makes the worker's end a reset for us: any end will do.
                let _ = reading.join().unwrap();
            });
        }
        for _ in 0..20 {
            assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
        }
    });
    assert_eq!(worker(&service), before, "{}", service.log());
}
