//! Processor time of one decision, over all processes of the service.

use std::time::Duration;

use crate::Plan;
use crate::bare::Bare;
use crate::echo::Echo;
use crate::load::{Load, closed_loop, paced_loop};
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{POLICY, TENANT, hashing, processes};
use crate::support::{Service, Site};
use crate::wire::Wire;

/// Longer than the service stays awake for.
const SPARSE: Duration = Duration::from_millis(10);

/// Against the floor: the echo of the same bytes and one fresh instance with nothing around it.
pub(super) fn per_decision(plan: &Plan) -> Vec<Row> {
    let bare = Bare::new();
    let service = hashing("");
    let echo = Echo::like(&service);
    let pids = processes(&service);
    let mut rows = [4, 16].map(|connections| {
        let mut to_service: Vec<Wire> =
            (0..connections).map(|_| Wire::to_service(&service, TENANT)).collect();
        let mut to_echo: Vec<Wire> = (0..connections).map(|_| echo.connect()).collect();
        let rounds: Vec<(Load, f64, Load)> = (0..plan.rounds)
            .map(|_| {
                let echo = closed_loop(&mut to_echo, &[echo.pid()], plan.round);
                let bare = bare.cpu_us(plan.round / 2);
                (echo, bare, closed_loop(&mut to_service, &pids, plan.round))
            })
            .collect();
        let ratio = |(echo, bare, service): &(Load, f64, Load)| service.cpu_us / (echo.cpu_us + bare);
        let detail = format!(
            "{:.1} us against echo {:.1} + instance {:.1}; {:.0} against {:.0} per second; p50 {:.0} against {:.0} us, p99 {:.0} against {:.0}",
            median(rounds.iter().map(|round| round.2.cpu_us)),
            median(rounds.iter().map(|round| round.0.cpu_us)),
            median(rounds.iter().map(|round| round.1)),
            median(rounds.iter().map(|round| round.2.per_second)),
            median(rounds.iter().map(|round| round.0.per_second)),
            median(rounds.iter().map(|round| round.2.percentile(50.0))),
            median(rounds.iter().map(|round| round.0.percentile(50.0))),
            median(rounds.iter().map(|round| round.2.percentile(99.0))),
            median(rounds.iter().map(|round| round.0.percentile(99.0))),
        );
        Row::new(
            &format!("cpu/{connections}"),
            format!("server CPU of a decision, {connections} connections, against the floor"),
            "x",
            Spread::of(rounds.iter().map(ratio)),
        )
        .reach(Reach::AtMost(1.5))
        .detail(detail)
    });
    let scan = if bare.pagemap_scan { "on" } else { "off" };
    rows[0].detail += &format!("; pagemap_scan {scan}");
    let mut rows = Vec::from(rows);
    rows.push(sparse(plan, &service, &echo, &pids));
    rows
}

/// A question now and then: what waking up and going to sleep again cost, which a loaded service never sees.
fn sparse(plan: &Plan, service: &Service, echo: &Echo, pids: &[i32]) -> Row {
    let (mut to_service, mut to_echo) = ([Wire::to_service(service, TENANT)], [echo.connect()]);
    let rounds: Vec<[Load; 2]> = (0..plan.rounds)
        .map(|_| {
            let echo = paced_loop(&mut to_echo, &[echo.pid()], plan.round, SPARSE);
            [echo, paced_loop(&mut to_service, pids, plan.round, SPARSE)]
        })
        .collect();
    let figure = |which: usize, of: fn(&Load) -> f64| median(rounds.iter().map(|round| of(&round[which])));
    let detail = format!(
        "{:.0} us against echo {:.0}; p50 {:.0} against {:.0} us",
        figure(1, |load| load.cpu_us),
        figure(0, |load| load.cpu_us),
        figure(1, |load| load.percentile(50.0)),
        figure(0, |load| load.percentile(50.0)),
    );
    let ratios = Spread::of(rounds.iter().map(|[echo, service]| service.cpu_us / echo.cpu_us));
    let what = "server CPU of a decision asked for once in 10 ms, against the echo alone";
    Row::new("cpu/sparse", what, "x", ratios).detail(detail)
}

/// What zeroing fiber stacks between decisions costs.
pub(super) fn stack_zeroing(plan: &Plan) -> Vec<Row> {
    let service = Site::new()
        .class("zeroing", "stack_zeroing = true")
        .class("plain", "stack_zeroing = false")
        .tenant("careful", "zeroing", &[(POLICY, "hash")], "")
        .tenant("quick", "plain", &[(POLICY, "hash")], "")
        .start();
    let pids = processes(&service);
    let connect = |tenant| -> Vec<Wire> { (0..4).map(|_| Wire::to_service(&service, tenant)).collect() };
    let (mut zeroing, mut plain) = (connect("careful"), connect("quick"));
    let rounds: Vec<(f64, f64)> = (0..plan.rounds)
        .map(|_| {
            let zeroing = closed_loop(&mut zeroing, &pids, plan.round).cpu_us;
            (zeroing, closed_loop(&mut plain, &pids, plan.round).cpu_us)
        })
        .collect();
    let detail = format!(
        "{:.1} against {:.1} us",
        median(rounds.iter().map(|round| round.0)),
        median(rounds.iter().map(|round| round.1))
    );
    let ratios = Spread::of(rounds.iter().map(|(zeroing, plain)| zeroing / plain));
    vec![
        Row::new(
            "stack-zeroing",
            "server CPU of a decision with stack_zeroing, against without",
            "x",
            ratios,
        )
        .detail(detail),
    ]
}
