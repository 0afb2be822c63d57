//! How many decisions a second when nobody waits for a single one.

use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::bare::Bare;
use crate::load::cpu_ns;
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{TENANT, hashing, processes};
use crate::wire::Wire;

const CONNECTIONS: usize = 2;
const DEPTH: u8 = 64;

struct Round {
    bare: f64,
    service: f64,
    cpu_us: f64,
}

/// Against what the same cores do with no socket and no client.
pub(super) fn per_second(plan: &Plan) -> Vec<Row> {
    let bare = Bare::new();
    let service = hashing("");
    let pids = processes(&service);
    let mut wires: Vec<Wire> = (0..CONNECTIONS).map(|_| Wire::to_service(&service, TENANT)).collect();
    let rounds: Vec<Round> = (0..plan.rounds)
        .map(|_| {
            let bare = bare.per_second(plan.round);
            let before = cpu_ns(&pids);
            let (answered, elapsed) = all_at_once(&mut wires, plan.round);
            Round {
                bare,
                service: answered / elapsed.as_secs_f64(),
                cpu_us: (cpu_ns(&pids) - before) as f64 / 1e3 / answered,
            }
        })
        .collect();
    let detail = format!(
        "{:.0} against {:.0} per second; server CPU {:.1} us each",
        median(rounds.iter().map(|round| round.service)),
        median(rounds.iter().map(|round| round.bare)),
        median(rounds.iter().map(|round| round.cpu_us)),
    );
    let ratios = Spread::of(rounds.iter().map(|round| round.service / round.bare));
    let what =
        "decisions per second, 2 connections 64 deep, against instances without a socket on the same cores";
    vec![Row::new("pipelined", what, "x", ratios).reach(Reach::AtLeast(0.75)).detail(detail)]
}

fn all_at_once(wires: &mut [Wire], duration: Duration) -> (f64, Duration) {
    let start = Instant::now();
    let answered: u64 = thread::scope(|scope| {
        let threads: Vec<_> =
            wires.iter_mut().map(|wire| scope.spawn(move || wire.pipeline(DEPTH, duration))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    (answered as f64, start.elapsed())
}
