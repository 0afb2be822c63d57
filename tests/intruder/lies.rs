//! An intruder's only ways out of a sealed process are its channels. What it says there, by the process's own
//! descriptors, that a sound process would not say, costs it the process, and nobody else anything.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::Pid;
use portcullis::decision::TrustClass;
use portcullis::wire::channel::{Channel, Received};
use portcullis::wire::control::{CONTROL_MAX, FromChild, Ready, fd};
use portcullis::wire::frame;
use portcullis::wire::gateway::{VISIT_MAX, Visit};
use portcullis::wire::handover::{Cookie, FromWorker, HANDOVER_MAX, ToWorker};
use portcullis::wire::operator::{WorkerCounters, WorkerStatus};
use portcullis::wire::spawner::{FromSpawner, Order, Part, SPAWNER_MAX};
use serde::Serialize;

use crate::hijack::{Answer, Death, Thread};
use crate::left::descriptors;
use crate::scene::{self, answers_again, gone, process_again, wait_until, wait_until_gone, wait_until_said};
use crate::support::{FIRST_CLASS_UID, PATIENCE, Service};

/// A packet, and how many descriptors go with it.
struct Lie {
    what: &'static str,
    bytes: Vec<u8>,
    descriptors: usize,
}

fn lie(what: &'static str, bytes: Vec<u8>) -> Lie {
    Lie { what, bytes, descriptors: 0 }
}

fn encoded(message: &impl Serialize) -> Vec<u8> {
    frame::encode(message, CONTROL_MAX.max(HANDOVER_MAX)).expect("encode")
}

/// Nonsense for any channel with messages of at most `max` bytes.
fn nonsense(max: usize) -> Vec<Lie> {
    vec![
        lie("bytes that mean nothing", vec![0xff; 100]),
        lie("a message that ends early", vec![0]),
        lie("more bytes than a message may have", vec![0; max + 1]),
        Lie { what: "two descriptors", bytes: encoded(&FromChild::Pong { nonce: 0 }), descriptors: 2 },
    ]
}

/// From a child to the supervisor while it serves.
fn to_the_supervisor(role: &str) -> Vec<Lie> {
    let ready =
        Ready { loaded: 9, refused: 0, pagemap_scan: true, landlock_abi: 9, landlock_proven_threads: 9 };
    let mut lies = nonsense(CONTROL_MAX);
    lies.extend([
        lie("ready a second time", encoded(&FromChild::Ready(ready))),
        lie("failed, though it serves", encoded(&FromChild::Failed { why: "x".repeat(60_000) })),
        lie("an answer to nothing", encoded(&FromChild::Pong { nonce: u64::MAX })),
        lie("what only a registry may say", encoded(&FromChild::Changed)),
        lie("what only a registry may ask for", {
            encoded(&FromChild::Build { serial: 1, class: TrustClass::new("one").expect("class") })
        }),
    ]);
    if role != "worker" {
        lies.push(lie("what only a worker may ask for", encoded(&FromChild::Renew)));
    }
    if role != "frontend" {
        let cut = FromChild::GatewayCut { generation: 1 };
        lies.push(lie("what only a frontend may say", encoded(&cut)));
    }
    lies
}

/// From a worker to the frontend while it serves.
fn to_the_frontend() -> Vec<Lie> {
    let mut lies = nonsense(HANDOVER_MAX);
    let status = WorkerStatus {
        class: TrustClass::new("two").expect("class"),
        generation: 1,
        pagemap_scan: true,
        stack_zeroing: true,
        counters: WorkerCounters::default(),
        policies: Vec::new(),
    };
    lies.extend([
        Lie {
            what: "a connection that is none, before it was asked to drain",
            bytes: encoded(&FromWorker::Return { cookie: Cookie(1), unread: 0 }),
            descriptors: 1,
        },
        lie(
            "a connection without its descriptor",
            encoded(&FromWorker::Return { cookie: Cookie(1), unread: 0 }),
        ),
        lie("bytes of no connection", encoded(&FromWorker::Unread(vec![1; 1000]))),
        lie("the end of somebody's connection", encoded(&FromWorker::Closed { cookie: Cookie(u64::MAX) })),
        lie(
            "a status that nobody asked for",
            encoded(&FromWorker::Status { nonce: 7, part: status, last: true }),
        ),
    ]);
    lies
}

/// From the gateway to the frontend. Standard error, which goes with it, is no socket.
fn to_the_frontend_of_visitors() -> Vec<Lie> {
    let visit = encoded(&Visit { tenant: "acme".parse().expect("name") });
    let mut lies = nonsense(VISIT_MAX);
    lies.extend([
        lie("a visitor without its descriptor", visit.clone()),
        Lie { what: "a visitor that is no socket", bytes: visit.clone(), descriptors: 1 },
        Lie { what: "a visitor with two descriptors", bytes: visit, descriptors: 2 },
    ]);
    lies
}

/// From the frontend to a worker.
fn to_a_worker() -> Vec<Lie> {
    let mut lies = nonsense(HANDOVER_MAX);
    let adopt = |unread| ToWorker::Adopt { cookie: Cookie(1), uid: 0, tenants: Vec::new(), unread };
    lies.extend([
        lie("a connection without its descriptor", encoded(&adopt(0))),
        Lie { what: "more bytes than there can be", bytes: encoded(&adopt(u32::MAX)), descriptors: 1 },
        lie("bytes of no connection", encoded(&ToWorker::Unread(vec![1; 1000]))),
        Lie { what: "a descriptor for nothing", bytes: encoded(&ToWorker::Drain), descriptors: 1 },
    ]);
    lies
}

pub(crate) fn who_lies_to_the_supervisor_is_ended() {
    for role in ["frontend", "worker", "gateway"] {
        for lie in to_the_supervisor(role) {
            // Deaths in quick succession would be waited for.
            let service = scene::start(scene::site());
            let liar = process_again(&service, role).pid;
            let before = scene::processes(&service);
            say(liar, fd::CONTROL, &lie);
            wait_until_gone(liar);
            answers_again(&service);
            assert!(!gone(service.pid()), "{role}: {}", lie.what);
            if role != "frontend" {
                let others = before.iter().filter(|process| process.pid != liar);
                others.for_each(|other| assert!(!gone(other.pid), "{other:?}: {}", lie.what));
            }
        }
    }
}

pub(crate) fn a_worker_that_lies_to_the_frontend_is_ended() {
    for lie in to_the_frontend() {
        let service = scene::start(scene::site());
        let liar = process_again(&service, "worker").pid;
        let before = scene::processes(&service);
        say(liar, fd::FIRST, &lie);
        wait_until_gone(liar);
        answers_again(&service);
        let others = before.iter().filter(|process| process.pid != liar);
        others.for_each(|other| assert!(!gone(other.pid), "{other:?}: {}", lie.what));
    }
}

/// The frontend closes its channel, and by the frontend's word the supervisor ends it: another comes.
pub(crate) fn a_gateway_that_lies_to_the_frontend_is_ended() {
    for lie in to_the_frontend_of_visitors() {
        let service = scene::start(scene::site());
        let liar = process_again(&service, "gateway").pid;
        let before = scene::processes(&service);
        say(liar, fd::FIRST, &lie);
        wait_until_gone(liar);
        wait_until(|| scene::asks_through_the_gateway(&service), lie.what);
        answers_again(&service);
        let others = before.iter().filter(|process| process.pid != liar);
        others.for_each(|other| assert!(!gone(other.pid), "{other:?}: {}", lie.what));
    }
}

pub(crate) fn a_worker_does_not_believe_the_frontend_everything() {
    for lie in to_a_worker() {
        let service = scene::start(scene::site());
        answers_again(&service);
        let frontend = scene::process(&service, "frontend").pid;
        let workers = scene::processes(&service).into_iter().filter(|process| process.role == "worker");
        let workers: Vec<Pid> = workers.map(|process| process.pid).collect();
        say(frontend, a_channel_to_a_worker(&service, frontend), &lie);
        // Which of them the channel leads to is not to be seen from here.
        wait_until(|| workers.iter().any(|worker| gone(*worker)), lie.what);
        answers_again(&service);
        assert_eq!(workers.iter().filter(|worker| gone(**worker)).count(), 1, "{}", lie.what);
        assert!(!gone(frontend), "{}", lie.what);
    }
}

/// A supervisor that was taken over cannot have anybody started but those it named at its start.
pub(crate) fn the_spawner_starts_nobody_it_was_not_told_of() {
    let service = scene::start(scene::site());
    answers_again(&service);
    let children = || scene::processes(&service).len();
    // It stands still, and its descriptors are used by somebody else: that is what being taken over is.
    let supervisor = Thread::take_over(service.pid());
    let channel = Channel::<Order, FromSpawner>::new(way_to_the_spawner(&service, &supervisor), SPAWNER_MAX);
    let before = children();
    let order = |class: &str, descriptors: usize| {
        let part = Part::Worker(TrustClass::new(class).expect("class"));
        let stderr = std::io::stderr();
        let descriptors = vec![stderr.as_fd(); descriptors];
        let order = Order {
            serial: 7,
            part,
            open_files: 64,
            processes: Some(64),
            build: None,
            accounted: false,
            grouped: false,
        };
        channel.send_with(&order, &descriptors).expect("order");
        let until = Instant::now() + PATIENCE;
        loop {
            match channel.receive(&mut Vec::new()).expect("answer") {
                Received::Message(answer, _) => return answer,
                Received::End => panic!("{class}, {descriptors:?}: the spawner has ended"),
                Received::Nothing => assert!(Instant::now() < until, "{class}, {descriptors:?}: no answer"),
            }
            std::thread::yield_now();
        }
    };
    for (class, descriptors) in [("three", 3), ("root", 3), ("one", 0), ("one", 1)] {
        let answer = order(class, descriptors);
        assert!(
            matches!(answer, FromSpawner::Refused { serial: 7, .. }),
            "{class}, {descriptors}: {answer:?}"
        );
        assert_eq!(children(), before, "{class}, {descriptors}");
    }
    // The control: one it knows. It ends at once, since what it was given is not what it needs, and not as root.
    let FromSpawner::Started { serial: 7, pid } = order("one", 3) else { panic!("control") };
    wait_until(|| gone(Pid::from_raw(pid)), "the child that was ordered ends");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("nobody has waited for it");
    let uid = FIRST_CLASS_UID.to_string();
    assert!(status.contains(&format!("Uid:\t{}", [uid.as_str(); 4].join("\t"))), "{status}");
    drop(supervisor);
    answers_again(&service);
}

/// A spawner that says of a process that it is the one that was ordered, and it is not: nobody believes it, and since nobody
/// could be started any more, the service ends.
pub(crate) fn a_spawner_that_lies_ends_the_service() {
    // The registry, the exporter, a builder for each of two policies, the frontend, the gateway and two workers were the first
    // orders.
    const NEXT: u64 = 9;
    type Said = fn(&Service) -> FromSpawner;
    let lies: [(&str, Said, &str); 5] = [
        ("a stranger", |_| FromSpawner::Started { serial: NEXT, pid: 1 }, "no new child of this process"),
        (
            "a child of before",
            |service| FromSpawner::Started {
                serial: NEXT,
                pid: scene::process(service, "frontend").pid.as_raw(),
            },
            "no new child of this process",
        ),
        (
            "itself",
            |service| FromSpawner::Started {
                serial: NEXT,
                pid: scene::process(service, "spawner").pid.as_raw(),
            },
            "no new child of this process",
        ),
        (
            "an answer to another order",
            |_| FromSpawner::Refused { serial: NEXT - 1, why: "late".to_owned() },
            "what it may not say now",
        ),
        ("that it is ready", |_| FromSpawner::Ready { landlock_abi: 9 }, "what it may not say now"),
    ];
    for (what, said, because) in lies {
        let service = scene::start(scene::site());
        answers_again(&service);
        let spawner = scene::process(&service, "spawner").pid;
        let said = said(&service);
        // It stands still from here on: what it said is there when the next order asks for an answer.
        let mut hijacked = Thread::take_over(spawner);
        assert!(send(&mut hijacked, fd::CONTROL, &lie("said", encoded(&said))).is_ok_and(|sent| sent > 0));
        kill(scene::process(&service, "worker").pid, Signal::SIGKILL).expect("kill");
        wait_until_said(&service, because);
        wait_until_said(&service, "without it nobody can be started");
        drop(hijacked);
        wait_until_gone(service.pid());
        // The supervisor does not wait for it for ever; then it is the kernel that ends it.
        wait_until(|| gone(spawner), what);
    }
}

/// A spawner that hears nonsense does not guess what was meant: it ends, and with it the service.
pub(crate) fn the_spawner_hears_no_nonsense() {
    for lie in nonsense(SPAWNER_MAX).into_iter().filter(|lie| lie.descriptors == 0) {
        let service = scene::start(scene::site());
        let spawner = scene::process(&service, "spawner").pid;
        let channel = way_to_the_spawner(&service, &Thread::take_over(service.pid()));
        let sent = send_as_is(&channel, &lie.bytes);
        assert_eq!(sent, Ok(lie.bytes.len()), "{}", lie.what);
        wait_until_gone(spawner);
        wait_until_said(&service, "without it nobody can be started");
        wait_until_gone(service.pid());
    }
}

fn send_as_is(over: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    nix::sys::socket::send(over.as_raw_fd(), bytes, MsgFlags::empty())
}

/// The supervisor's end of its channel to the spawner: where it arrives what the spawner says, while the supervisor
/// stands still and does not take it.
fn way_to_the_spawner(service: &Service, _supervisor: &Thread) -> OwnedFd {
    const WORD: &[u8] = b"which of them?";
    let spawner = scene::process(service, "spawner").pid;
    say(spawner, fd::CONTROL, &lie("a word", WORD.to_vec()));
    let sockets = descriptors(service.pid()).into_iter().filter(|(_, what)| what.starts_with("socket:"));
    let mut copies = sockets.map(|(number, _)| copy_of(service.pid(), number));
    let heard = |copy: &OwnedFd, flags| {
        let mut bytes = [0; 64];
        let heard = recv(copy.as_raw_fd(), &mut bytes, flags | MsgFlags::MSG_DONTWAIT);
        heard.is_ok_and(|length| &bytes[..length] == WORD)
    };
    let way = copies.find(|copy| heard(copy, MsgFlags::MSG_PEEK)).expect("a channel to the spawner");
    assert!(heard(&way, MsgFlags::empty()), "taken out of it again");
    way
}

/// A copy of another process's descriptor.
fn copy_of(process: Pid, number: i32) -> OwnedFd {
    // SAFETY: takes no pointers.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) };
    // SAFETY: takes no pointers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) };
    // SAFETY: the kernel has just made it for this call.
    drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(pidfd).expect("pidfd")) });
    assert!(copy >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it for this call.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(copy).expect("descriptor")) }
}

/// The control: a process that was taken over and said nothing wrong goes on, and so does one that says what it may.
pub(crate) fn who_says_nothing_wrong_lives() {
    let service = scene::start(scene::site());
    for role in ["frontend", "worker", "supervisor"] {
        let process = scene::process(&service, role);
        for _ in 0..3 {
            let answer = Thread::take_over(process.pid).call(libc::SYS_getpid, [0; 6]);
            assert_eq!(answer, Ok(process.pid.as_raw().into()), "{role}");
            answers_again(&service);
        }
        assert!(!gone(process.pid), "{role}");
    }
    // A worker may ask for a successor; it is drained, and nobody notices.
    let worker = scene::process(&service, "worker").pid;
    say(worker, fd::CONTROL, &lie("a wish", encoded(&FromChild::Renew)));
    wait_until_gone(worker);
    answers_again(&service);
    assert!(!service.log().contains("misbehaved"), "{}", service.log());
}

/// Has a process send a packet over one of its descriptors.
fn say(process: Pid, over: i32, lie: &Lie) {
    let mut thread = Thread::take_over(process);
    match send(&mut thread, over, lie) {
        // Ended before it has come back from the call.
        Err(Death::Signal(Signal::SIGKILL)) => {}
        sent => assert_eq!(sent, Ok(i64::try_from(lie.bytes.len()).expect("length")), "{}", lie.what),
    }
}

/// `sendmsg` with the thread's own standard error as each of the descriptors.
fn send(thread: &mut Thread, over: i32, lie: &Lie) -> Answer {
    // Long messages are one piece over and over: a stack has little room.
    const PIECE: usize = 1024;
    let mut pieces = Vec::new();
    let first = thread.place(&lie.bytes[..lie.bytes.len().min(PIECE)]);
    for piece in lie.bytes.chunks(PIECE) {
        let at = if lie.bytes.starts_with(piece) { first } else { thread.place(piece) };
        pieces.extend([at, piece.len() as u64]);
    }
    let vector = thread.place_words(&pieces);
    let (control, length) = match lie.descriptors {
        0 => (0, 0),
        count => {
            let header = [16 + 4 * count as u64, u64::from(libc::SCM_RIGHTS.cast_unsigned()) << 32 | 1];
            let header = header.map(u64::to_ne_bytes).concat();
            let descriptors = [2_i32.to_ne_bytes(); 2].concat();
            (thread.place(&[header, descriptors].concat()), 24)
        }
    };
    let message = [0, 0, vector, pieces.len() as u64 / 2, control, length, 0];
    let message = thread.place_words(&message);
    thread.call(libc::SYS_sendmsg, [u64::from(over.cast_unsigned()), message, 0, 0, 0, 0])
}

/// The frontend's end of its channel to a worker. Of that to the gateway the supervisor has a copy.
fn a_channel_to_a_worker(service: &Service, frontend: Pid) -> i32 {
    let copies: Vec<String> = descriptors(service.pid()).into_values().collect();
    let sockets = descriptors(frontend).into_iter().filter(|(_, what)| what.starts_with("socket:"));
    let sockets = sockets.filter(|(_, what)| !copies.contains(what));
    let beyond = sockets.map(|(number, _)| number).filter(|number| *number > fd::SECOND);
    let channels: Vec<i32> = beyond.filter(|number| is_packets(frontend, *number)).collect();
    assert_eq!(channels.len(), 2, "one to each worker");
    channels[0]
}

fn is_packets(process: Pid, number: i32) -> bool {
    let mut thread = Thread::take_over(process);
    let (kind, length) = (thread.place(&[0; 4]), thread.place(&4_u32.to_ne_bytes()));
    let asked = [u64::from(number.cast_unsigned()), 1, 3, kind, length, 0];
    match thread.call(libc::SYS_getsockopt, asked) {
        Ok(0) => thread.read(kind, 4) == libc::SOCK_SEQPACKET.to_ne_bytes(),
        // A client's, which was closed since the descriptors were listed.
        closed => {
            assert_eq!(closed, Ok(-i64::from(libc::EBADF)));
            false
        }
    }
}
