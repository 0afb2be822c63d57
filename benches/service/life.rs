//! Starting and reloading.

use std::collections::HashSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::client::blocking::Connection;
use portcullis::client::{ClientError, Deadline, Question};
use portcullis::decision::{Outcome, Refusal};

use crate::Plan;
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{INPUT, POLICY, TENANT, hashing};
use crate::support::{PATIENCE, Service, Site, policy, tenant};

/// Ten policies, each its own code.
const POLICIES: [(&str, &str); 10] = [
    (POLICY, "hash"),
    ("jwt-gate", "jwt-gate"),
    ("ip-allowlist", "ip-allowlist"),
    ("rate-class", "rate-class"),
    ("selective", "hostile/selective"),
    ("canary", "hostile/canary"),
    ("spin", "hostile/spin"),
    ("trap", "hostile/trap"),
    ("grow", "hostile/grow"),
    ("recurse", "hostile/recurse"),
];

const BETWEEN_RELOADS: Duration = Duration::from_millis(50);

/// From before the supervisor is started until a client has its first decision. The class's cache is warm.
pub(super) fn start(plan: &Plan) -> Vec<Row> {
    let site = Site::new().class("one", "").tenant(TENANT, "one", &POLICIES, "");
    site.make_state();
    fs::write(site.path("portcullis.toml"), site.config()).unwrap();
    // Fills the cache.
    first_decision(&site, &POLICIES.map(|(policy, _)| policy), PATIENCE);
    let times = (0..plan.starts).map(|_| first_decision(&site, &[POLICY], PATIENCE).as_secs_f64() * 1e3);
    let times = Spread::of(times);
    let detail = format!("{} starts", plan.starts);
    vec![
        Row::new(
            "start",
            "start of the service with 10 policies to the first decision, cache warm",
            "ms",
            times,
        )
        .reach(Reach::AtMost(100.0))
        .detail(detail),
    ]
}

/// A supervisor that is told to stop, and waited for, when dropped.
struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Starts the service, asks each of these policies, stops it; gives the time until the first answer was here.
pub(super) fn first_decision(site: &Site, policies: &[&str], patience: Duration) -> Duration {
    let log = fs::File::create(site.path("log")).unwrap();
    let began = Instant::now();
    let child = Command::new(env!("CARGO_BIN_EXE_portcullis-supervisor"))
        .arg("--config")
        .arg(site.path("portcullis.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut supervisor = Supervisor(child);
    let mut connection = loop {
        match Connection::open(&site.path("run/decide.sock"), &tenant(TENANT), PATIENCE) {
            Ok(connection) => break connection,
            Err(error) => {
                let log = || fs::read_to_string(site.path("log")).unwrap();
                let ended = supervisor.0.try_wait().unwrap();
                let waits = ended.is_none() && began.elapsed() < patience;
                assert!(waits, "no connection: {error}; {ended:?}\n{}", log());
            }
        }
        thread::sleep(Duration::from_micros(200));
    };
    let mut first = None;
    for name in policies {
        let outcome = ask(&mut connection, name).unwrap();
        assert_ne!(outcome, Outcome::Refused(Refusal::UnknownPolicy), "{name}");
        assert!(first.is_some() || outcome.is_allow(), "{name}: {outcome:?}");
        first.get_or_insert_with(|| began.elapsed());
    }
    first.unwrap()
}

fn ask(connection: &mut Connection, name: &str) -> Result<Outcome, ClientError> {
    let question = Question::opaque("", b"first");
    connection.send(&tenant(TENANT), &policy(name), Deadline::Budget { us: 50_000 }, question.input())?;
    connection.flush()?;
    Ok(connection.receive()?.1.outcome)
}

/// What one client saw while generations came and went.
#[derive(Debug, Default)]
struct Seen {
    asked: u64,
    allowed: u64,
    /// The first thing that went wrong.
    wrong: Option<String>,
}

/// Pipelined and closed-loop clients, and reloads one after the other under them.
pub(super) fn reload(plan: &Plan) -> Vec<Row> {
    let service = hashing("");
    let over = AtomicBool::new(false);
    let (seen, times) = thread::scope(|scope| {
        let depths = [64, 64, 1, 1, 1, 1];
        let clients: Vec<_> = depths
            .into_iter()
            .map(|depth| {
                scope.spawn({
                    let (service, over) = (&service, &over);
                    move || ask_on(service, depth, over)
                })
            })
            .collect();
        let times: Vec<f64> = (0..plan.reloads)
            .map(|_| {
                // So that the load is there before it, and again after the one before.
                thread::sleep(BETWEEN_RELOADS);
                let began = Instant::now();
                assert_eq!(service.reload(), None);
                began.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        over.store(true, Ordering::Relaxed);
        let seen: Vec<Seen> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        (seen, times)
    });
    let asked: u64 = seen.iter().map(|seen| seen.asked).sum();
    let allowed: u64 = seen.iter().map(|seen| seen.allowed).sum();
    let lost = (asked - allowed) as f64;
    let carried = service.status().frontend.carried_over;
    let wrong =
        seen.iter().find_map(|seen| seen.wrong.clone()).map_or(String::new(), |why| format!("; {why}"));
    let detail = format!("of {asked} asked; {carried} connections carried over{wrong}");
    vec![
        Row::new(
            "reload",
            format!("decisions failed or refused during {} reloads under full load", plan.reloads),
            "",
            Spread { low: lost, median: lost, high: lost },
        )
        .reach(Reach::AtMost(0.0))
        .detail(detail),
        Row::new(
            "reload/time",
            "a reload under full load, until the new generation serves",
            "ms",
            Spread::of(times.iter().copied()),
        )
        .detail(format!("median {:.0} ms", median(times.iter().copied()))),
    ]
}

/// Keeps `depth` questions under way; each answer must be to a question that waits for one.
fn ask_on(service: &Service, depth: usize, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    if let Err(why) = ask_until(service, depth, over, &mut seen) {
        seen.wrong.get_or_insert(why);
    }
    seen
}

fn ask_until(service: &Service, depth: usize, over: &AtomicBool, seen: &mut Seen) -> Result<(), String> {
    let text = |error: ClientError| error.to_string();
    let mut connection = service.try_connect(TENANT).map_err(text)?;
    let (tenant, policy) = (tenant(TENANT), policy(POLICY));
    let bytes = [7; INPUT];
    let question = Question::opaque("", &bytes);
    let mut waiting = HashSet::new();
    loop {
        while waiting.len() < depth && !over.load(Ordering::Relaxed) {
            seen.asked += 1;
            waiting.insert(
                connection.send(&tenant, &policy, Deadline::Default, question.input()).map_err(text)?,
            );
        }
        if waiting.is_empty() {
            return Ok(());
        }
        connection.flush().map_err(text)?;
        // Refill when half of them are back: a write for each answer would measure writes.
        let refill_at = waiting.len() / 2;
        while waiting.len() > refill_at {
            let (id, decision) = connection.receive().map_err(text)?;
            if !waiting.remove(&id) {
                return Err(format!("a second answer to {id}"));
            }
            match decision.outcome {
                Outcome::Allow => seen.allowed += 1,
                other => drop(seen.wrong.get_or_insert(format!("{other:?}"))),
            }
        }
    }
}
