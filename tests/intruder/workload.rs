//! Everything that the processes of a service are for, once.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::client::Question;
use portcullis::client::blocking::Connection;
use portcullis::decision::{Input, Outcome};
use portcullis::ledger::{self, Order, Target};
use portcullis::trust::{RevocationList, Revokes};
use portcullis::wire::client::{CLIENT_FRAME_MAX, ClientFrame, Deadline, PROTOCOL_VERSION, SERVER_FRAME_MAX};
use portcullis::wire::frame;

use crate::hijack::threads;
use crate::scene::{self, answers_again, process, processes, wait_until_gone};
use crate::support::{self, PATIENCE, Service, Site, policy, read_frame, tenant};

pub(crate) type Run = fn(Service);

/// Each ends its service in its own way.
pub(crate) const RUNS: &[Run] = &[live_and_stop, crash];

/// Where traces go: whoever accepts there has seen the exporter connect.
static COLLECTOR: LazyLock<TcpListener> = LazyLock::new(|| TcpListener::bind("127.0.0.1:0").expect("bind"));

/// Tracing makes everything slow, and nothing here is about time.
pub(crate) fn site() -> Site {
    let policies = [
        ("gate", "hostile/selective"),
        ("hash", "hash"),
        ("grow", "hostile/grow"),
        ("fill", "hostile/spin-fill"),
        ("recurse", "hostile/recurse"),
        ("divide", "hostile/div-zero"),
    ];
    let mut site = Site::new()
        .class("one", "threads = 2\n")
        .tenant("acme", "one", &policies, "")
        .class("two", "renew_after_decisions = 5\n")
        .tenant("globex", "two", &[("gate", "hostile/selective")], "");
    let collector = COLLECTOR.local_addr().expect("address");
    site = site.telemetry(&format!("otlp = \"http://{collector}\"\n")).gateway("http", scene::GATE);
    site.service = "answer_within = \"1m\"\ndrain = \"1m\"\n".into();
    // Some wait for its end; hundreds have to say hello before it.
    site.frontend = "hello_timeout = \"2s\"\n".into();
    site
}

fn live_and_stop(service: Service) {
    service.status();
    scrape(&service);
    be_traced(&service);
    decide(&service);
    ask_at_the_gateway(&service);
    refused(&service);
    be_frozen(&service);
    reload(&service);
    rule(&service);
    for role in ["worker", "frontend"] {
        let before = process(&service, role).pid;
        kill(before, Signal::SIGSTOP).expect("stop");
        wait_until_gone(before);
        answers_again(&service);
    }
    renew(&service);
    let mut open = service.connect("acme");
    send(&mut open, "gate", "spin", 300);
    service.stop();
}

fn crash(service: Service) {
    // Faults of machine code end as panics do, by abort.
    for role in ["worker", "frontend", "registry", "exporter", "gateway"] {
        let before = process(&service, role).pid;
        kill(before, Signal::SIGSEGV).expect("crash");
        wait_until_gone(before);
        answers_again(&service);
    }
    service.signal(Signal::SIGSEGV);
    wait_until_gone(service.pid());
}

fn scrape(service: &Service) {
    let mut scraper = UnixStream::connect(service.site.path("run/telemetry.sock")).expect("connect");
    scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("ask");
    let mut told = String::new();
    scraper.read_to_string(&mut told).expect("an answer");
    assert!(told.starts_with("HTTP/1.1 200 OK"), "{told}");
}

/// Proxies, more of them at a time than one thread serves, with bodies as long as they may be; some do not read, and one leaves.
fn ask_at_the_gateway(service: &Service) {
    let proxy = || {
        let proxy = UnixStream::connect(service.site.path("run/http.sock")).expect("connect");
        proxy.set_read_timeout(Some(PATIENCE)).expect("timeout");
        proxy
    };
    let body = vec![b'x'; 900_000];
    let question = |word: &str, body: &[u8]| {
        let length = body.len();
        let head = format!(
            "POST /do/{word} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let mut proxies: Vec<UnixStream> = (0..50).map(|_| proxy()).collect();
    for proxy in &mut proxies {
        let question = question("allow", &body);
        proxy.write_all(&question[..question.len() - 1]).expect("most of a question");
    }
    drop(proxies.pop());
    for mut proxy in proxies {
        proxy.write_all(b"x").expect("the rest of it");
        let mut told = String::new();
        proxy.read_to_string(&mut told).expect("an answer");
        assert!(told.starts_with("HTTP/1.1 "), "{told}");
    }
    for (word, opens) in [("allow", true), ("deny", false), ("trap", false)] {
        let mut proxy = proxy();
        proxy.write_all(&question(word, b"")).expect("ask");
        let mut told = String::new();
        proxy.read_to_string(&mut told).expect("an answer");
        assert_eq!(told.starts_with("HTTP/1.1 2"), opens, "{word}: {told}");
    }
}

/// A decision of a trace is brought to the collector.
fn be_traced(service: &Service) {
    let mut client = service.client();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    client.set_trace(Some(trace.parse().expect("a traceparent")));
    let question = Question::opaque("", b"allow");
    let _ = client
        .decide(&tenant("acme"), &policy("gate"), Deadline::Default, question.input())
        .expect("a decision");
    // It has connected; more of it nobody wants.
    drop(COLLECTOR.accept().expect("accept"));
}

/// One question of every kind, several at a time.
fn decide(service: &Service) {
    let mut open = service.connect("acme");
    let gate = [
        "allow",
        "deny",
        "log:a line",
        "log-flood:40",
        "memory:3000000",
        "work:1000000",
        "trap",
        "random",
        "size:900000",
        "clock",
    ];
    for word in gate {
        send(&mut open, "gate", word, 60_000);
    }
    for other in ["hash", "grow", "recurse", "divide"] {
        send(&mut open, other, "x", 60_000);
    }
    receive(&mut open, gate.len() + 4);
    send(&mut open, "gate", "spin", 30);
    send(&mut open, "fill", "", 30);
    receive(&mut open, 2);
    // More than the kernel holds for a client that does not read: it has to wait for room to write.
    for _ in 0..20 {
        send(&mut open, "gate", "size:900000", 60_000);
    }
    receive(&mut open, 20);
    crowd(service);
    let mut client = service.client();
    client.ping(&tenant("acme"), PATIENCE).expect("ping");
    // A client that leaves while its question runs.
    let mut leaves = service.connect("acme");
    send(&mut leaves, "gate", "spin", 100);
    drop(leaves);
}

/// Questions that have not come whole yet, more of them than malloc has room for in one piece.
fn crowd(service: &Service) {
    let question = large_question();
    let mut all: Vec<UnixStream> = (0..250).map(|_| greeted(service)).collect();
    for stream in &mut all {
        // Comes back when the worker has read all but what the kernel holds.
        stream.write_all(&question[..question.len() - 1]).expect("most of a question");
    }
    for stream in &mut all {
        stream.write_all(&question[question.len() - 1..]).expect("the rest of it");
        read_frame(stream, SERVER_FRAME_MAX).expect("a reply");
    }
}

fn greeted(service: &Service) -> UnixStream {
    let mut stream = UnixStream::connect(service.socket()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream
        .write_all(&encoded(&ClientFrame::Hello { version: PROTOCOL_VERSION, tenant: "acme" }))
        .expect("hello");
    read_frame(&mut stream, SERVER_FRAME_MAX).expect("welcome");
    stream
}

fn large_question() -> Vec<u8> {
    let input = Input::Opaque { content_type: "", bytes: &[b'x'; 900_000] };
    let input = frame::encode(&input, CLIENT_FRAME_MAX).expect("input");
    let deadline = Deadline::Default;
    encoded(&ClientFrame::Decide {
        id: 1,
        tenant: "acme",
        policy: "gate",
        deadline,
        trace: None,
        input: &input,
    })
}

/// Those who are not served.
fn refused(service: &Service) {
    // More at a time than the frontend has had room for so far.
    let silent: Vec<_> = (0..600).map(|_| UnixStream::connect(service.socket()).expect("connect")).collect();
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    service.try_connect("nobody").expect_err("unknown tenant");
    let socket = service.socket();
    // Nonsense, and silence until the time is up.
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x01", b""] {
        let mut stream = UnixStream::connect(&socket).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.write_all(bytes).expect("write");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    }
    // An operator who is none, and one who says nonsense.
    let operators = service.site.path("run/operator.sock");
    let mut other = std::process::Command::new("/proc/self/exe");
    other.args([crate::VISIT, operators.to_str().expect("text")]).uid(4242).gid(4242);
    let _ = other.status().expect("another user");
    let mut stream = UnixStream::connect(&operators).expect("connect");
    stream.write_all(b"\xff\xff\xff\xff").expect("write");
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// What a suspended machine or a frozen cgroup does to a process: every wait ends, and goes on. SIGCONT does it to one
/// that is traced.
fn be_frozen(service: &Service) {
    let mut open = service.connect("acme");
    send(&mut open, "gate", "spin", 500);
    for process in processes(service) {
        // Of these it is a wait with a time limit, which the kernel resumes by another call.
        if matches!(process.role.as_str(), "supervisor" | "registry") {
            wait_until_it_waits(process.pid);
        }
        for thread in threads(process.pid) {
            // SAFETY: takes no pointers.
            let _ = unsafe {
                nix::libc::syscall(
                    nix::libc::SYS_tgkill,
                    process.pid.as_raw(),
                    thread.as_raw(),
                    nix::libc::SIGCONT,
                )
            };
        }
    }
    receive(&mut open, 1);
}

/// Until its main thread is in poll.
fn wait_until_it_waits(pid: Pid) {
    // Where there is no older call libc makes the newer one.
    #[cfg(target_arch = "x86_64")]
    let calls = [nix::libc::SYS_poll, nix::libc::SYS_ppoll];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [nix::libc::SYS_ppoll];
    let calls = calls.map(|number| format!("{number} "));
    let patience = Instant::now() + PATIENCE;
    loop {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).expect("its call");
        if calls.iter().any(|waits| call.starts_with(waits)) {
            return;
        }
        assert!(Instant::now() < patience, "{pid} does not wait, but: {call}");
        thread::yield_now();
    }
}

/// New sets of policies, while connections are open and one of them has half a question under way.
fn reload(service: &Service) {
    let mut open = service.connect("acme");
    send(&mut open, "gate", "allow", 60_000);
    receive(&mut open, 1);
    // A connection that has to take along what was read of it.
    let (mut halfway, question) = (greeted(service), large_question());
    let (first, last) = question.split_at(question.len() - 1);
    halfway.write_all(first).expect("most of a question");
    service.site.install("acme", "hash", "hash", 2);
    let path = service.site.path("portcullis.toml");
    let config = fs::read_to_string(&path).expect("configuration");
    fs::write(&path, config.replace("uids = [0]", "uids = [0, 4242]")).expect("configuration");
    assert_eq!(service.reload(), None);
    send(&mut open, "gate", "allow", 60_000);
    receive(&mut open, 1);
    halfway.write_all(last).expect("the rest of it");
    read_frame(&mut halfway, SERVER_FRAME_MAX).expect("a reply");
    fs::write(&path, "nonsense").expect("configuration");
    service.reload().expect("refused");
    fs::write(&path, config).expect("configuration");
}

/// What there is for registry and builders: code that has to be compiled here, an order, a revocation.
fn rule(service: &Service) {
    let mut draft = support::draft("hash", "acme", "hash", 3);
    draft.compiled.clear();
    support::write_signed(draft, &service.site.bundle("acme", "hash"), &service.site.key);
    assert_eq!(service.reload(), None);
    let hash = |service: &Service| service.ask("acme", "hash", b"x").digest;
    let (acme, name) = (tenant("acme"), policy("hash"));
    let order =
        Order::Rollback { tenant: acme, policy: name, to: Target::Version(2), reason: "enough".into() };
    ledger::place(&service.site.path("state"), &order).expect("order");
    assert_eq!(service.reload(), None);
    let nothing = RevocationList { version: 0, revoked: vec![] };
    let date = "2026-01-01T00:00:00Z".parse().expect("time");
    let list = nothing.and(Revokes::Digest(hash(service).expect("code")), "enough", date);
    fs::write(service.site.path("store/revocations.json"), list.sign(&service.site.key).expect("sign"))
        .expect("list");
    let end = Instant::now() + PATIENCE;
    while hash(service).is_some() {
        assert!(Instant::now() < end, "{}", service.log());
    }
}

fn renew(service: &Service) {
    // It left with the frontend; its successor is there for whoever is patient.
    service.client().ping(&tenant("globex"), PATIENCE).expect("ping");
    let before = scene::only(service, |one| one.title.ends_with(": two"));
    for _ in 0..6 {
        assert_eq!(service.ask("globex", "gate", b"allow").outcome, Outcome::Allow);
    }
    wait_until_gone(before.pid);
}

fn send(connection: &mut Connection, name: &str, word: &str, within_ms: u32) {
    let question = Question::opaque("", word.as_bytes());
    let deadline = Deadline::in_(Duration::from_millis(within_ms.into()));
    connection.send(&tenant("acme"), &policy(name), deadline, question.input()).expect("send");
    connection.flush().expect("flush");
}

fn encoded(message: &ClientFrame<'_>) -> Vec<u8> {
    let mut buffer = bytes::BytesMut::new();
    frame::encode_frame(message, &mut buffer, CLIENT_FRAME_MAX).expect("encode");
    buffer.to_vec()
}

fn receive(connection: &mut Connection, count: usize) {
    for _ in 0..count {
        let _any = connection.receive().expect("an answer");
    }
}
