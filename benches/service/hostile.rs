//! Guests that do not end: how late their refusals are, and how they delay others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::client::{Deadline, Question};
use portcullis::decision::{Outcome, Refusal};
use portcullis::engine::monotonic_ns;

use crate::Plan;
use crate::load::{Exchange, Sleeper, cpu_ns, percentile};
use crate::report::{Reach, Row, Spread};
use crate::subject::{POLICY, TENANT, cores, role};
use crate::support::{Service, Site, policy, tenant};
use crate::wire::Wire;

/// What a spinning guest is given.
const DEADLINE_NS: u64 = 5_000_000;
/// What the guest beside a short request is given.
const LONG: Deadline = Deadline::Budget { us: 200_000 };

/// From the deadline to the reply, as the client sees it, with as many such clients as cores.
pub(super) fn deadline(plan: &Plan) -> Vec<Row> {
    let policies = [("spin", "hostile/spin"), ("spin-fill", "hostile/spin-fill")];
    let service = Site::new().class("one", "").tenant(TENANT, "one", &policies, "").start();
    policies.iter().flat_map(|(name, _)| lateness(plan, &service, name)).collect()
}

fn lateness(plan: &Plan, service: &Service, name: &str) -> [Row; 3] {
    let sleeper = Sleeper::start();
    let rounds: Vec<Vec<f64>> = (0..plan.rounds)
        .map(|_| {
            let until = Instant::now() + plan.round;
            let mut late_ms: Vec<f64> = thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..cores()).map(|_| scope.spawn(move || late_replies(service, name, until))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            late_ms.sort_by(f64::total_cmp);
            late_ms
        })
        .collect();
    let slept = sleeper.stop();
    let mut all: Vec<f64> = rounds.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    let of_rounds = |percent| Spread::of(rounds.iter().map(|round| percentile(round, percent)));
    let what = |which| {
        format!("{name}: from a deadline of 5 ms to the reply, {} spinning clients, {which}", cores())
    };
    let detail = format!("{} replies, p50 {:.3} ms", all.len(), percentile(&all, 50.0));
    [
        Row::new(&format!("deadline/{name}-p99"), what("p99"), "ms", of_rounds(99.0))
            .judged_by(percentile(&all, 99.0))
            .reach(Reach::AtMost(1.0))
            .detail(detail),
        Row::new(&format!("deadline/{name}-p99.9"), what("p99.9"), "ms", of_rounds(99.9))
            .judged_by(percentile(&all, 99.9))
            .reach(Reach::AtMost(2.5)),
        Row::new(&format!("deadline/{name}-max"), what("max"), "ms", of_rounds(100.0))
            .judged_by(percentile(&all, 100.0))
            .reach(Reach::AtMost(5.0))
            .detail(slept),
    ]
}

/// Milliseconds after its deadline that each refusal was here.
fn late_replies(service: &Service, name: &str, until: Instant) -> Vec<f64> {
    let mut connection = service.connect(TENANT);
    let (tenant, policy) = (tenant(TENANT), policy(name));
    let question = Question::opaque("", b"");
    let mut late = Vec::new();
    while Instant::now() < until {
        let ns = monotonic_ns() + DEADLINE_NS;
        connection.send(&tenant, &policy, Deadline::Absolute { ns }, question.input()).unwrap();
        connection.flush().unwrap();
        let (_, decision) = connection.receive().unwrap();
        late.push((monotonic_ns() as f64 - ns as f64) / 1e6);
        assert!(matches!(decision.outcome, Outcome::Refused(Refusal::Deadline(_))), "{decision:?}");
    }
    late
}

/// A short request now and then, while another tenant's guest spins in the same worker.
pub(super) fn neighbour(plan: &Plan) -> Vec<Row> {
    let cores = cores();
    let beside = |name: &str, what: &str, threads: usize, spinners: usize, spinner: &str| {
        let service = Site::new()
            .class("one", &format!("threads = {threads}"))
            .tenant(TENANT, "one", &[(POLICY, "hash"), ("spin", "hostile/spin")], "")
            .tenant("spinner", "one", &[("spin", "hostile/spin")], "")
            .start();
        let rounds: Vec<Beside> =
            (0..plan.rounds).map(|_| measure(plan, &service, spinners, spinner)).collect();
        let mut all: Vec<f64> = rounds.iter().flat_map(|round| round.latencies_ms.clone()).collect();
        all.sort_by(f64::total_cmp);
        let p50s = Spread::of(rounds.iter().map(|round| percentile(&round.latencies_ms, 50.0)));
        let busy = Spread::of(rounds.iter().map(|round| round.busy)).median;
        let detail = format!(
            "p99 {:.3} ms, max {:.3} ms of {}; the worker kept {busy:.2} cores busy",
            percentile(&all, 99.0),
            percentile(&all, 100.0),
            all.len()
        );
        Row::new(name, what, "ms", p50s).judged_by(percentile(&all, 50.0)).detail(detail)
    };
    let many = format!("the same with {cores} threads and {cores} spinning guests, p50");
    vec![
        beside(
            "neighbour/p50",
            "a short request beside one spinning guest on the same thread, p50",
            1,
            1,
            "spinner",
        )
        .reach(Reach::AtMost(1.0)),
        beside("neighbour/same-tenant", "the same, the guest being its own tenant's, p50", 1, 1, TENANT),
        beside("neighbour/alone", "the same with nothing beside it, p50", 1, 0, "spinner"),
        beside("neighbour/all-cores", &many, cores, cores, "spinner"),
    ]
}

struct Beside {
    /// Ascending.
    latencies_ms: Vec<f64>,
    /// Processor time of the worker in each second: shows that the guest did spin.
    busy: f64,
}

fn measure(plan: &Plan, service: &Service, spinners: usize, spinner: &str) -> Beside {
    let over = AtomicBool::new(false);
    let worker = role(service, "worker");
    let mut wire = Wire::to_service(service, TENANT);
    thread::scope(|scope| {
        let spinning: Vec<_> =
            (0..spinners).map(|_| scope.spawn(|| spin_until(service, spinner, &over))).collect();
        let mut pause = Pauses(0x9e37_79b9_7f4a_7c15);
        // Till every guest spins.
        for _ in 0..20 {
            thread::sleep(pause.next());
            wire.exchange();
        }
        let (start, before) = (Instant::now(), cpu_ns(&worker));
        let mut latencies_ms = Vec::new();
        while start.elapsed() < plan.round {
            thread::sleep(pause.next());
            let asked = Instant::now();
            wire.exchange();
            latencies_ms.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        let busy = (cpu_ns(&worker) - before) as f64 / 1e9 / start.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        spinning.into_iter().for_each(|thread| thread.join().unwrap());
        latencies_ms.sort_by(f64::total_cmp);
        Beside { latencies_ms, busy }
    })
}

/// Keeps one guest spinning.
fn spin_until(service: &Service, name: &str, over: &AtomicBool) {
    let mut connection = service.connect(name);
    let (tenant, policy) = (tenant(name), policy("spin"));
    let question = Question::opaque("", b"");
    while !over.load(Ordering::Relaxed) {
        connection.send(&tenant, &policy, LONG, question.input()).unwrap();
        connection.flush().unwrap();
        let (_, decision) = connection.receive().unwrap();
        assert!(matches!(decision.outcome, Outcome::Refused(Refusal::Deadline(_))), "{decision:?}");
    }
}

/// Up to 2 ms, so that requests meet the spinning guest anywhere in its slice. (xorshift)
struct Pauses(u64);

impl Pauses {
    fn next(&mut self) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % 2_000)
    }
}
