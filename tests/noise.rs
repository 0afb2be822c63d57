//! The noise test, as counts: beside a neighbour that does its worst, in the same class and in another one, every question
//! of the victim is answered, and answered rightly. How fast is a matter for `benches/service/noise.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use portcullis::client::blocking::Connection;
use portcullis::client::{ClientError, Question};
use portcullis::decision::{Outcome, Refusal};
use portcullis::wire::client::Deadline;
use support::{PATIENCE, Service, Site, policy, tenant};

/// Questions of the victim beside each neighbour.
const QUESTIONS: usize = 150;
/// Connections of a neighbour, and its questions under way on each.
const CONNECTIONS: usize = 4;
const PIPELINE: usize = 16;

/// What a neighbour asks, or opens.
#[derive(Debug, Clone)]
enum Noise {
    Asks(Vec<u8>),
    Connects(usize),
}

/// The neighbours of the issue, (a) to (f).
fn neighbours() -> Vec<(&'static str, Noise)> {
    let large = [b"allow:".to_vec(), vec![b'x'; 1_000_000]].concat();
    vec![
        ("floods", Noise::Asks(b"work:1000".to_vec())),
        ("loops in every request", Noise::Asks(b"spin".to_vec())),
        ("grows to its limit", Noise::Asks(b"memory:2500000".to_vec())),
        ("sends a megabyte", Noise::Asks(large)),
        ("opens 5000 connections", Noise::Connects(5_000)),
        ("hammers host functions", Noise::Asks(b"clock-flood:9000".to_vec())),
        ("hammers the log", Noise::Asks(b"log-flood:500".to_vec())),
    ]
}

/// "victim" in class "one", "noisy" in `class`, which may be the same.
fn service(class: &str) -> Service {
    Site::new()
        .class("one", "threads = 2")
        .class("two", "threads = 2")
        .tenant("victim", "one", &[("gate", "hostile/selective")], "")
        .tenant("noisy", class, &[("gate", "hostile/selective")], "")
        .tenant("third", "two", &[("gate", "hostile/selective")], "")
        .start()
}

fn send(connection: &mut Connection, name: &str, bytes: &[u8]) -> Result<(), ClientError> {
    let question = Question::opaque("", bytes);
    // A loop ends soon; on a machine that stops for a second the victim is answered all the same.
    let deadline = match name {
        "noisy" => Deadline::in_(Duration::from_secs(1)),
        _ => Deadline::Default,
    };
    connection.send(&tenant(name), &policy("gate"), deadline, question.input())?;
    connection.flush()
}

/// Asks as much as it can until it is told to stop. Who is cut off comes again.
fn ask_on(service: &Service, bytes: &[u8], over: &AtomicBool, answered: &AtomicUsize) {
    while !over.load(Ordering::Relaxed) {
        let Ok(mut connection) = service.try_connect("noisy") else { continue };
        let mut under_way = 0;
        while !over.load(Ordering::Relaxed) {
            while under_way < PIPELINE && send(&mut connection, "noisy", bytes).is_ok() {
                under_way += 1;
            }
            let until = std::time::Instant::now() + Duration::from_millis(100);
            match connection.receive_until(Some(until)) {
                Ok(_) => {
                    under_way -= 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(ClientError::Deadline) => {}
                Err(_) => break,
            }
        }
    }
}

/// Opens them and keeps what it gets.
fn connect_on(service: &Service, count: usize, over: &AtomicBool, answered: &AtomicUsize) {
    let mut kept = Vec::new();
    for _ in 0..count {
        if over.load(Ordering::Relaxed) {
            break;
        }
        if let Ok(connection) = service.try_connect("noisy") {
            kept.push(connection);
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Every question has the answer that belongs to it.
fn ask_quietly(connection: &mut Connection, beside: &str) {
    for number in 0..QUESTIONS {
        let wanted = number.to_string();
        send(connection, "victim", format!("number:{wanted}").as_bytes()).unwrap();
        let (_, decision) = connection.receive_until(Some(std::time::Instant::now() + PATIENCE)).unwrap();
        assert_eq!(decision.outcome, Outcome::Allow, "beside a neighbour that {beside}: {decision:?}");
        let [answer] = decision.obligations.metadata.as_slice() else { panic!("{decision:?}") };
        assert_eq!((answer.key.as_str(), answer.value.as_str()), ("number", wanted.as_str()));
    }
}

fn nobody_notices(class: &str) {
    let service = service(class);
    let mut victim = service.connect("victim");
    for (what, noise) in neighbours() {
        let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            match &noise {
                Noise::Asks(bytes) => {
                    for _ in 0..CONNECTIONS {
                        scope.spawn(|| ask_on(&service, bytes, &over, &answered));
                    }
                }
                Noise::Connects(count) => {
                    scope.spawn(|| connect_on(&service, *count, &over, &answered));
                }
            }
            // Also when the victim fails, so that its failure is seen.
            let _over = OnDrop(&over);
            let patience = std::time::Instant::now() + PATIENCE;
            loop {
                ask_quietly(&mut victim, what);
                // A neighbour of whom nothing came was none.
                if answered.load(Ordering::Relaxed) >= PIPELINE {
                    break;
                }
                assert!(std::time::Instant::now() < patience, "a neighbour that {what} did nothing");
            }
        });
    }
    // The neighbour's own doings end as they should, and the worker is the one that it was.
    let patience = std::time::Instant::now() + PATIENCE;
    let mut connection = loop {
        // Its thousands of connections take a moment to go.
        match service.try_connect("noisy") {
            Ok(connection) => break connection,
            Err(error) => assert!(std::time::Instant::now() < patience, "{error}"),
        }
    };
    send(&mut connection, "noisy", b"trap").unwrap();
    let (_, decision) = connection.receive().unwrap();
    assert!(matches!(decision.outcome, Outcome::Refused(Refusal::Trap(_))), "{decision:?}");
    let workers = service.processes();
    let replaced = workers.iter().filter(|one| one.role == "worker").map(|one| one.restarts).sum::<u32>();
    assert_eq!(replaced, 0, "{}", service.log());
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn beside_a_noisy_neighbour_of_the_same_class_every_question_is_answered_rightly() {
    nobody_notices("one");
}

#[test]
fn beside_a_noisy_neighbour_of_another_class_every_question_is_answered_rightly() {
    nobody_notices("two");
}
