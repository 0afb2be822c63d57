//! A victim that asks 500 times a second, and neighbours that do what they can to be noticed: in its class, where they share
//! a process, and in another, where they share the machine.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use portcullis::client::blocking::Connection;
use portcullis::client::{ClientError, Deadline, Question};
use portcullis::decision::Input;
use portcullis::wire::client::CLIENT_FRAME_MAX;
use portcullis::wire::frame;

use crate::Plan;
use crate::load::{Exchange, percentile};
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{TENANT, question, role};
use crate::support::{Service, Site, policy, tenant};
use crate::wire::Wire;

/// The victim's connections, each asking in its turn.
const VICTIMS: u32 = 4;
/// From one question of the victim to its next: 500 a second.
const EVERY: Duration = Duration::from_millis(2);
/// How long the victim's guest runs.
const WORK_NS: u64 = 1_000_000;
/// Connections that the neighbour who opens them holds.
const CROWD: usize = 5_000;
/// Threads of a neighbour, each with a connection.
const NOISY: usize = 4;
/// Bytes of the large input, as encoded a little less than a frame may have.
const LARGE: usize = (1 << 20) - 256;
const LONG: Deadline = Deadline::Budget { us: 200_000 };

/// What a neighbour does, on each of its threads, until it is over.
struct Neighbour {
    name: &'static str,
    what: &'static str,
    threads: usize,
    act: fn(&Service, &str, &str, &AtomicBool),
}

const NEIGHBOURS: [Neighbour; 6] = [
    Neighbour { name: "flood", what: "asks the same 10 times as often", threads: NOISY, act: flood },
    Neighbour {
        name: "loop",
        what: "loops for ever in every request",
        threads: NOISY,
        act: |service, name, _, over| repeat(service, name, "spin", b"", over),
    },
    Neighbour {
        name: "memory",
        what: "grows its memory to the limit",
        threads: NOISY,
        act: |service, name, _, over| repeat(service, name, "grow", b"", over),
    },
    Neighbour {
        name: "large",
        what: "sends 1 MB in every request",
        threads: NOISY,
        act: |service, name, _, over| repeat(service, name, "work", &[b' '; LARGE], over),
    },
    Neighbour { name: "crowd", what: "opens 5,000 connections", threads: 1, act: crowd },
    Neighbour {
        name: "calls",
        what: "calls host functions 9,000 times a request",
        threads: NOISY,
        act: |service, name, _, over| repeat(service, name, "work", b"clock-flood:9000", over),
    },
];

/// What the victim met in one round, microseconds, ascending.
type Latencies = Vec<f64>;

pub(super) fn measure(plan: &Plan) -> Vec<Row> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let service = service();
    let word = calibrated(&service);
    let work = question(TENANT, 1, "work", &opaque(word.as_bytes()));
    let mut victims: Vec<Wire> = (0..VICTIMS).map(|_| Wire::asking(&service, TENANT, work.clone())).collect();
    let mut rows = Vec::new();
    for (class, most, of) in [("other", 1.25, "stranger"), ("same", 1.5, "neighbour")] {
        for neighbour in &NEIGHBOURS {
            eprintln!("  {} of the {class} class", neighbour.name);
            let rounds: Vec<[Latencies; 2]> = (0..plan.rounds)
                .map(|_| {
                    let alone = asked(&mut victims, plan.round);
                    [alone, beside(&service, neighbour, (of, &word), || asked(&mut victims, plan.round))]
                })
                .collect();
            rows.push(row(neighbour, class, most, &rounds));
        }
    }
    rows
}

fn row(neighbour: &Neighbour, class: &str, most: f64, rounds: &[[Latencies; 2]]) -> Row {
    let all = |which: usize| {
        let mut all: Vec<f64> = rounds.iter().flat_map(|round| round[which].clone()).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (alone, beside) = (all(0), all(1));
    let ratio = |round: &[Latencies; 2]| percentile(&round[1], 99.0) / percentile(&round[0], 99.0);
    let figures = |of: &[f64]| {
        let [p50, p99, p999] = [50.0, 99.0, 99.9].map(|percent| percentile(of, percent) / 1e3);
        format!("{p50:.2} / {p99:.2} / {p999:.2}")
    };
    let detail = format!(
        "p50 / p99 / p99.9 {} ms, alone {} ms; {} questions; p50 {:.2} x",
        figures(&beside),
        figures(&alone),
        beside.len(),
        percentile(&beside, 50.0) / percentile(&alone, 50.0)
    );
    let what = format!("p99 of a victim beside a neighbour of the {class} class who {}", neighbour.what);
    let name = format!("noise/{class}-{}", neighbour.name);
    Row::new(&name, what, "x alone", Spread::of(rounds.iter().map(ratio)))
        .judged_by(median(rounds.iter().map(ratio)))
        .reach(Reach::AtMost(most))
        .detail(detail)
}

/// The victim in class one; the noisy in class one and in class two. No quota: what is measured is what holds without.
fn service() -> Service {
    let policies = [("work", "hostile/selective"), ("spin", "hostile/spin"), ("grow", "hostile/grow")];
    let class = "connections = 8192\nqueue = 1024";
    let mut site = Site::new()
        .class("one", class)
        .class("two", class)
        .tenant(TENANT, "one", &policies, "")
        .tenant("neighbour", "one", &policies, "")
        .tenant("stranger", "two", &policies, "");
    site.frontend = "max_connections = 65536\nmax_connections_per_uid = 65536\n".into();
    let service = site.start();
    role(&service, "worker");
    service
}

fn opaque(bytes: &[u8]) -> Vec<u8> {
    frame::encode(&Input::Opaque { content_type: "", bytes }, CLIENT_FRAME_MAX).unwrap()
}

/// The word that keeps a guest busy for about [`WORK_NS`] on this machine.
fn calibrated(service: &Service) -> String {
    let run_ns = |turns: u64| {
        let word = format!("work:{turns}");
        let runs = (0..20).map(|_| service.ask(TENANT, "work", word.as_bytes()).timing.run_ns as f64);
        median(runs.collect::<Vec<_>>())
    };
    let few = 100_000;
    let each = (run_ns(few) - run_ns(0)) / few as f64;
    format!("work:{}", (WORK_NS as f64 / each) as u64)
}

/// Asks at fixed times, whatever the answers do, and gives how long after each of these times its answer was here.
fn asked(victims: &mut [Wire], duration: Duration) -> Latencies {
    let start = Instant::now() + EVERY;
    let period = EVERY * VICTIMS;
    let mut all: Latencies = thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(victims)
            .map(|(turn, wire)| {
                scope.spawn(move || {
                    seen_at_once();
                    let mut due = start + EVERY * turn;
                    let mut latencies = Vec::new();
                    while due < start + duration {
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        wire.exchange();
                        latencies.push(due.elapsed().as_secs_f64() * 1e6);
                        due += period;
                    }
                    latencies
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_by(f64::total_cmp);
    all
}

/// Gives the calling thread the shortest slices that the kernel has: what is measured is how the service does beside a
/// neighbour, not how this process's own threads share the processor, the victim's and the neighbour's. It is so with a
/// neighbour and without. Kernels before 6.12 leave the slices as they are.
#[expect(unsafe_code, reason = "sched_setattr has no safe wrapper")]
fn seen_at_once() {
    let size = size_of::<libc::sched_attr>();
    // SAFETY: all of it are numbers, for which zero is one.
    let zero: libc::sched_attr = unsafe { std::mem::zeroed() };
    let attributes = libc::sched_attr { size: size as u32, sched_runtime: 100_000, ..zero };
    // SAFETY: the kernel reads `size` bytes of a struct of that size, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    assert_eq!(result, 0, "set the length of slices: {}", std::io::Error::last_os_error());
}

/// Measures while a neighbour is at it.
fn beside<T>(
    service: &Service,
    neighbour: &Neighbour,
    (of, word): (&str, &str),
    measure: impl FnOnce() -> T,
) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = &over;
        for _ in 0..neighbour.threads {
            scope.spawn(move || (neighbour.act)(service, of, word, over));
        }
        // Till it is under way.
        thread::sleep(Duration::from_millis(200));
        let measured = measure();
        over.store(true, Ordering::Relaxed);
        measured
    })
}

/// One question after the other, whatever becomes of them.
fn repeat(service: &Service, name: &str, asked: &str, bytes: &[u8], over: &AtomicBool) {
    let (tenant, policy) = (tenant(name), policy(asked));
    let question = Question::opaque("", bytes);
    while !over.load(Ordering::Relaxed) {
        let mut connection = service.connect(name);
        while !over.load(Ordering::Relaxed) {
            let answered = (|| {
                connection.send(&tenant, &policy, LONG, question.input())?;
                connection.flush()?;
                connection.receive()
            })();
            if answered.is_err() {
                break;
            }
        }
    }
}

/// A quarter of 5,000 a second, in bursts of as many as a millisecond has; answers are read and not looked at.
fn flood(service: &Service, name: &str, word: &str, over: &AtomicBool) {
    let (tenant, policy) = (tenant(name), policy("work"));
    let question = Question::opaque("", word.as_bytes());
    let turn =
        |connection: &mut Connection, due: &mut Instant, under_way: &mut usize| -> Result<(), ClientError> {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            while *due < Instant::now() && *under_way < 200 {
                connection.send(&tenant, &policy, LONG, question.input())?;
                (*due, *under_way) = (*due + Duration::from_micros(800), *under_way + 1);
            }
            connection.flush()?;
            // Half of them, so that there are always some.
            while *under_way > 100 {
                let _ = connection.receive()?;
                *under_way -= 1;
            }
            Ok(())
        };
    while !over.load(Ordering::Relaxed) {
        let (mut connection, mut due, mut under_way) = (service.connect(name), Instant::now(), 0);
        while !over.load(Ordering::Relaxed) && turn(&mut connection, &mut due, &mut under_way).is_ok() {}
    }
}

/// Opens as many as it can hold, and then one for each that it closes.
fn crowd(service: &Service, name: &str, _: &str, over: &AtomicBool) {
    let mut open = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        if let Ok(connection) = service.try_connect(name) {
            open.push_back(connection);
        }
        if open.len() > CROWD {
            open.pop_front();
        }
    }
}
