//! What clients notice while a new version of the policy they ask becomes active.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::client::ClientError;
use portcullis::client::blocking::Connection;
use portcullis::client::{Deadline, Question};
use portcullis::decision::Outcome;

use crate::Plan;
use crate::load::percentile;
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{INPUT, POLICY, TENANT};
use crate::support::{Service, Site, draft, policy, tenant, write_signed};

const CLIENTS: usize = 4;

/// Rounds with an activation and rounds without, in turn.
pub(super) fn under_load(plan: &Plan) -> Vec<Row> {
    let service = Site::new().class("one", "").tenant(TENANT, "one", &[(POLICY, "hash")], "").start();
    // Made beforehand: whoever delivers is not part of it.
    let deliveries = service.site.path("deliveries");
    fs::create_dir(&deliveries).unwrap();
    for round in 0..plan.activations {
        let version = 2 + round as u64;
        let made = deliveries.join(format!("{version}.tar"));
        write_signed(draft("hash", TENANT, POLICY, version), &made, &service.site.key);
    }
    fs::remove_dir_all(service.site.bundle(TENANT, POLICY)).unwrap();

    let (mut without, mut with) = (Seen::default(), Seen::default());
    let (mut ratios, mut took_ms) = (Vec::new(), Vec::new());
    for round in 0..plan.activations {
        let version = 2 + round as u64;
        let before = asked_for(&service, plan.round, || {});
        let after = asked_for(&service, plan.round, || {
            thread::sleep(plan.round / 4);
            let began = Instant::now();
            let delivered = deliveries.join(format!("{version}.tar"));
            fs::rename(delivered, service.site.bundle(TENANT, POLICY).with_extension("tar")).unwrap();
            assert_eq!(service.reload(), None);
            took_ms.push(began.elapsed().as_secs_f64() * 1e3);
        });
        assert_eq!(active_version(&service), version, "{}", service.log());
        ratios.push(after.p99() / before.p99());
        without.add(before);
        with.add(after);
    }
    let failed = with.failed as f64;
    let wrong = with.wrong.clone().map_or(String::new(), |why| format!("; {why}"));
    vec![
        Row::new(
            "activation",
            format!("decisions failed or refused during {} activations under full load", plan.activations),
            "",
            Spread { low: failed, median: failed, high: failed },
        )
        .reach(Reach::AtMost(0.0))
        .detail(format!("of {} asked{wrong}", with.latencies_us.len() as u64 + with.failed)),
        Row::new(
            "activation/p99",
            format!("p99 of {CLIENTS} clients in a second with an activation, against one without"),
            "x",
            Spread::of(ratios),
        )
        .reach(Reach::AtMost(1.5))
        .detail(format!(
            "{:.0} us against {:.0}; p50 {:.0} against {:.0}; largest {:.1} ms against {:.1}",
            with.p99(),
            without.p99(),
            with.percentile(50.0),
            without.percentile(50.0),
            with.percentile(100.0) / 1e3,
            without.percentile(100.0) / 1e3,
        )),
        Row::new(
            "activation/time",
            "an activation under full load, from the bundle in the store until the new generation serves",
            "ms",
            Spread::of(took_ms.iter().copied()),
        )
        .detail(format!("median {:.0} ms", median(took_ms.iter().copied()))),
    ]
}

fn active_version(service: &Service) -> u64 {
    let workers = service.status().workers;
    let newest = workers.iter().max_by_key(|worker| worker.generation).unwrap();
    newest.policies[0].serving.as_ref().unwrap().version
}

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    /// Ascending.
    latencies_us: Vec<f64>,
    failed: u64,
    /// The first thing that went wrong.
    wrong: Option<String>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.latencies_us.extend(other.latencies_us);
        self.latencies_us.sort_by(f64::total_cmp);
        self.failed += other.failed;
        self.wrong = self.wrong.take().or(other.wrong);
    }

    fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.latencies_us, percent)
    }

    fn p99(&self) -> f64 {
        self.percentile(99.0)
    }
}

/// All clients ask, each when it has its answer, for that long and until `meanwhile` is over.
fn asked_for(service: &Service, duration: Duration, meanwhile: impl FnOnce()) -> Seen {
    let over = AtomicBool::new(false);
    let until = Instant::now() + duration;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| ask_until(service, &over))).collect();
        meanwhile();
        thread::sleep(until.saturating_duration_since(Instant::now()));
        over.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        clients.into_iter().for_each(|client| seen.add(client.join().unwrap()));
        seen
    })
}

fn ask_until(service: &Service, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut connection = service.connect(TENANT);
    while !over.load(Ordering::Relaxed) {
        let before = Instant::now();
        let outcome = ask(&mut connection);
        let latency_us = before.elapsed().as_secs_f64() * 1e6;
        match outcome {
            Ok(Outcome::Allow) => seen.latencies_us.push(latency_us),
            other => {
                seen.failed += 1;
                seen.wrong.get_or_insert(format!("{other:?}"));
                if other.is_err() {
                    connection = service.connect(TENANT);
                }
            }
        }
    }
    seen
}

fn ask(connection: &mut Connection) -> Result<Outcome, ClientError> {
    let bytes = [7; INPUT];
    let question = Question::opaque("", &bytes);
    connection.send(&tenant(TENANT), &policy(POLICY), Deadline::Default, question.input())?;
    connection.flush()?;
    Ok(connection.receive()?.1.outcome)
}
