//! Two tenants that always have something to do: the processor is theirs by their weights.

use std::thread;
use std::time::{Duration, Instant};

use portcullis::client::{Deadline, Question};
use portcullis::decision::Outcome;

use crate::Plan;
use crate::report::{Reach, Row, Spread};
use crate::subject::role;
use crate::support::{Service, Site, policy, tenant};

/// Long enough that the answers which the end cuts off are few.
const WORK: &[u8] = b"work:20000";
const DEADLINE: Deadline = Deadline::Budget { us: 5_000_000 };
/// Questions under way on each connection: there is always another.
const DEPTH: usize = 8;
const CONNECTIONS: usize = 4;

pub(super) fn measure(plan: &Plan) -> Vec<Row> {
    let mut rows = Vec::new();
    for (heavy, most) in [(5_u32, 5.0), (2, 5.0)] {
        let policies = [("gate", "hostile/selective")];
        let service = Site::new()
            .class("one", "")
            .tenant("heavy", "one", &policies, &format!("weight = {heavy}"))
            .tenant("light", "one", &policies, "weight = 1")
            .start();
        role(&service, "worker");
        let rounds: Vec<[f64; 3]> = (0..plan.rounds)
            .map(|_| {
                let both = guests_time(&service, &["heavy", "light"], plan.round * 2);
                let alone = guests_time(&service, &["light"], plan.round);
                [both[0], both[1], alone[0]]
            })
            .collect();
        let error = |[big, small, _]: &[f64; 3]| {
            let expected = f64::from(heavy) / f64::from(heavy + 1);
            ((big / (big + small)) / expected - 1.0).abs() * 100.0
        };
        let ratio = Spread::of(rounds.iter().map(|[big, small, _]| big / small));
        let alone = Spread::of(rounds.iter().map(|[big, small, alone]| alone / (big + small)));
        let detail = format!(
            "{:.2} to 1 ({:.2} to {:.2}); the light one alone gets {:.2} of what both get together",
            ratio.median, ratio.low, ratio.high, alone.median
        );
        let what = format!("error of the share of a tenant of weight {heavy} beside one of weight 1");
        rows.push(
            Row::new(&format!("share/{heavy}"), what, "%", Spread::of(rounds.iter().map(error)))
                .reach(Reach::AtMost(most))
                .detail(detail),
        );
    }
    rows
}

/// How many of the same questions each had answered, a second: all cost the same.
fn guests_time(service: &Service, tenants: &[&str], duration: Duration) -> Vec<f64> {
    thread::scope(|scope| {
        // Measured after the first quarter, when all have begun.
        let from = Instant::now() + duration / 4;
        let until = from + duration;
        let threads: Vec<Vec<_>> = tenants
            .iter()
            .map(|name| {
                (0..CONNECTIONS).map(|_| scope.spawn(move || answered(service, name, from, until))).collect()
            })
            .collect();
        let sum = |of: Vec<thread::ScopedJoinHandle<'_, u64>>| -> u64 {
            of.into_iter().map(|thread| thread.join().unwrap()).sum()
        };
        threads.into_iter().map(|of| sum(of) as f64 / duration.as_secs_f64()).collect()
    })
}

fn answered(service: &Service, name: &str, from: Instant, until: Instant) -> u64 {
    let mut connection = service.connect(name);
    let (tenant, policy) = (tenant(name), policy("gate"));
    let question = Question::opaque("", WORK);
    let (mut under_way, mut counted) = (0, 0);
    loop {
        let now = Instant::now();
        while under_way < DEPTH && now < until {
            connection.send(&tenant, &policy, DEADLINE, question.input()).unwrap();
            under_way += 1;
        }
        if under_way == 0 {
            return counted;
        }
        connection.flush().unwrap();
        let (_, decision) = connection.receive().unwrap();
        assert_eq!(decision.outcome, Outcome::Allow);
        under_way -= 1;
        counted += u64::from((from..until).contains(&Instant::now()));
    }
}
