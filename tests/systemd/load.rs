//! Reload and restart while clients ask without pause, each question with an answer that fits no other.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portcullis::client::blocking::Connection;
use portcullis::client::{ClientError, Deadline, Question};
use portcullis::decision::{Decision, Outcome};
use portcullis::wire::client::Farewell;

use crate::Test;
use crate::machine::{
    DECIDE, SERVICE, answers, client, journal, process, property, started, systemctl, try_ask,
};
use crate::support::{PATIENCE, policy, tenant};

pub(crate) const TESTS: &[Test] = &[
    ("load::a_reload_under_load_fails_no_decision", a_reload_under_load_fails_no_decision),
    (
        "load::a_restart_under_load_closes_connections_and_gives_no_wrong_answer",
        a_restart_under_load_closes_connections_and_gives_no_wrong_answer,
    ),
];

/// Clients of each kind: two that keep their connection, two that open one for every question.
const CLIENTS: usize = 4;
const RELOADS: usize = 5;
/// Answers that each client must get while something happens, so that it is known to happen under load.
const ENOUGH: u64 = 20;

fn a_reload_under_load_fails_no_decision() {
    started();
    let load = Load::start();
    for _ in 0..RELOADS {
        load.everybody_got_more();
        let old = process("worker");
        systemctl(&["reload", SERVICE]);
        // It goes when its successor serves and has taken the connections over.
        old.ended();
    }
    load.everybody_got_more();
    assert_eq!(property(SERVICE, "NRestarts"), "0");
    let told = load.stop();
    assert_eq!(told.errors, Vec::<String>::new(), "of {} decisions\n{}", told.answers, journal());
    assert_eq!(told.turned_away, 0, "{}", journal());
    println!("measured: {} decisions in {RELOADS} reloads, 0 failed", told.answers);
    // Both words of the service arrived: RELOADING=1, and READY=1 after it.
    assert_eq!(journal().matches("Reloaded portcullis.service").count(), RELOADS);
    assert_eq!(property(SERVICE, "ActiveState"), "active");
}

fn a_restart_under_load_closes_connections_and_gives_no_wrong_answer() {
    started();
    let load = Load::start();
    load.everybody_got_more();
    let old = process("supervisor");
    systemctl(&["restart", SERVICE]);
    old.ended();
    load.everybody_got_more();
    let told = load.stop();
    assert!(told.longest_gap < PATIENCE);
    let closed = told.errors.len();
    println!(
        "measured: {} decisions in a restart, {closed} on connections that were closed, {} attempts to connect told to \
         come back, none lost, longest time without an answer {} ms",
        told.answers,
        told.turned_away,
        told.longest_gap.as_millis(),
    );
    answers();
}

/// Clients that ask until they are told to stop.
struct Load {
    clients: Vec<(JoinHandle<Told>, Receiver<()>)>,
}

/// What happened to the clients.
#[derive(Default)]
struct Told {
    answers: u64,
    /// Questions without an answer. A wrong answer ends the test at once.
    errors: Vec<String>,
    /// Attempts to connect that the service had accepted, and not greeted, when it began to end: it says so to them.
    turned_away: u64,
    longest_gap: Duration,
}

static STOP: AtomicBool = AtomicBool::new(false);
static QUESTIONS: AtomicU64 = AtomicU64::new(0);

impl Load {
    fn start() -> Self {
        let start = |index| {
            let (tell, heard) = sync_channel(0);
            let keeps_connection = index % 2 == 0;
            (std::thread::spawn(move || ask_on(keeps_connection, &tell)), heard)
        };
        Self { clients: (0..CLIENTS).map(start).collect() }
    }

    /// Waits until every client got some answers from now on.
    fn everybody_got_more(&self) {
        for (_, heard) in &self.clients {
            for _ in 0..ENOUGH {
                heard
                    .recv_timeout(PATIENCE)
                    .unwrap_or_else(|_| panic!("a client got no answers\n{}", journal()));
            }
        }
    }

    fn stop(self) -> Told {
        STOP.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        for (client, heard) in self.clients {
            drop(heard);
            let told = client.join().expect("a client saw a wrong answer");
            all.answers += told.answers;
            all.errors.extend(told.errors);
            all.turned_away += told.turned_away;
            all.longest_gap = all.longest_gap.max(told.longest_gap);
        }
        all
    }
}

fn ask_on(keeps_connection: bool, tell: &std::sync::mpsc::SyncSender<()>) -> Told {
    let mut told = Told::default();
    let mut kept = client();
    let mut last = Instant::now();
    while !STOP.load(Ordering::Relaxed) {
        let number = QUESTIONS.fetch_add(1, Ordering::Relaxed);
        let deny = number.is_multiple_of(2);
        let question = if deny { format!("deny:no {number}") } else { format!("number:{number}") };
        let answer = if keeps_connection {
            try_ask(&mut kept, &question)
        } else {
            let mut connection = connected(&mut told.turned_away);
            let input = Question::opaque("", question.as_bytes());
            connection
                .send(&tenant("acme"), &policy("gate"), Deadline::Default, input.input())
                .and_then(|_| connection.flush())
                .and_then(|()| connection.receive())
                .map(|(_, decision)| decision)
        };
        match answer {
            Ok(decision) => {
                assert!(is_right(&decision, number, deny), "{question}: {decision:?}");
                told.answers += 1;
                let now = Instant::now();
                told.longest_gap = told.longest_gap.max(now - last);
                last = now;
                // Whoever waits for answers hears of this one; nobody is waited for.
                let _ = tell.try_send(());
            }
            // What a restart may do to a question, and nothing else.
            Err(why @ (ClientError::Closed(_) | ClientError::Farewell(_))) => {
                told.errors.push(why.to_string());
            }
            Err(why) => panic!("{question}: {why}"),
        }
    }
    told
}

/// One attempt after the other until the service takes it. It may say that it is ending; it may not lose an attempt.
fn connected(turned_away: &mut u64) -> Connection {
    loop {
        match Connection::open(Path::new(DECIDE), &tenant("acme"), PATIENCE) {
            Ok(connection) => return connection,
            Err(ClientError::Farewell(Farewell::ShuttingDown)) => *turned_away += 1,
            Err(why) => panic!("an attempt to connect was lost: {why}\n{}", journal()),
        }
    }
}

fn is_right(decision: &Decision, number: u64, deny: bool) -> bool {
    match &decision.outcome {
        Outcome::Deny { reason } => deny && *reason == format!("no {number}"),
        Outcome::Allow => {
            let metadata = &decision.obligations.metadata;
            !deny && metadata.iter().any(|it| it.key == "number" && it.value == number.to_string())
        }
        Outcome::Refused(_) => false,
    }
}
