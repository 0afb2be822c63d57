//! One decision after the other on one connection, against the echo's latency in the same run.

use portcullis::client::blocking::Connection;
use portcullis::client::{Deadline, Question};
use portcullis::decision::{Outcome, PolicyName, Tenant};

use crate::Plan;
use crate::echo::Echo;
use crate::load::{Exchange, Load, closed_loop};
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{INPUT, POLICY, TENANT, hashing, processes};
use crate::support::{policy, tenant};
use crate::wire::Wire;

/// With one connection mostly a sleeping core's way back to work is measured, so only the ratio says something.
pub(super) fn one_connection(plan: &Plan) -> Vec<Row> {
    let service = hashing("");
    let echo = Echo::like(&service);
    let pids = processes(&service);
    let mut to_service = [Wire::to_service(&service, TENANT)];
    let mut to_echo = [echo.connect()];
    let mut by_library = [Library::new(service.connect(TENANT))];
    let rounds: Vec<[Load; 3]> = (0..plan.rounds)
        .map(|_| {
            let echo = closed_loop(&mut to_echo, &[echo.pid()], plan.round);
            let service = closed_loop(&mut to_service, &pids, plan.round);
            [echo, service, closed_loop(&mut by_library, &pids, plan.round)]
        })
        .collect();
    let against_echo = |which: usize, percent: f64| {
        let ratio = |round: &[Load; 3]| round[which].percentile(percent) / round[0].percentile(percent);
        let us = |which: usize| median(rounds.iter().map(|round| round[which].percentile(percent)));
        (Spread::of(rounds.iter().map(ratio)), format!("{:.1} us against echo {:.1} us", us(which), us(0)))
    };
    let row = |name: &str, what: &str, which, percent| {
        let (spread, detail) = against_echo(which, percent);
        Row::new(name, what, "x", spread).detail(detail)
    };
    let wake_up = Spread::of(rounds.iter().map(|round| round[0].percentile(50.0)));
    vec![
        row("latency/p50", "p50 of a decision on one connection, against the echo's", 1, 50.0)
            .reach(Reach::AtMost(1.4)),
        row("latency/p99", "p99 of a decision on one connection, against the echo's", 1, 99.0)
            .reach(Reach::AtMost(2.0)),
        row("latency/library-p50", "the same through `portcullis::client::blocking`, p50", 2, 50.0),
        row("latency/library-p99", "the same through `portcullis::client::blocking`, p99", 2, 99.0),
        Row::new("latency/wake-up", "p50 of the echo itself: two wake-ups of a thread", "us", wake_up),
    ]
}

/// The client that a proxy embeds.
struct Library {
    connection: Connection,
    tenant: Tenant,
    policy: PolicyName,
    bytes: Vec<u8>,
}

impl Library {
    fn new(connection: Connection) -> Self {
        Self { connection, tenant: tenant(TENANT), policy: policy(POLICY), bytes: vec![7; INPUT] }
    }
}

impl Exchange for Library {
    fn exchange(&mut self) {
        let question = Question::opaque("", &self.bytes);
        let asked =
            self.connection.send(&self.tenant, &self.policy, Deadline::Default, question.input()).unwrap();
        self.connection.flush().unwrap();
        let (id, decision) = self.connection.receive().unwrap();
        assert_eq!((id, decision.outcome), (asked, Outcome::Allow));
    }
}
