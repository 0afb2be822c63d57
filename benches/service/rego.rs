//! Policies in Rego: what a fresh instance and the evaluation in it take, by how much data is in it; and the whole way over a
//! socket, against `opa run --server` with the same policy and data where `OPA_BIN` names a binary.

use std::path::Path;

use portcullis::artifact::Limits;
use portcullis::bundle::Platform;
use portcullis::compile::{self, Built, Rego, RegoOptions, Terms};
use portcullis::decision::Input;
use portcullis::wire::client::CLIENT_FRAME_MAX;
use portcullis::wire::frame;

use crate::Plan;
use crate::bare::{decide, loaded};
use crate::load::{Load, closed_loop, percentile};
use crate::opa::Opa;
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{TENANT, processes, question};
use crate::support::{self, Service, Site, policy, tenant};
use crate::wire::Wire;

const POLICY: &str = "rbac";
const RULE: &str = "app/rbac/allow";
const INPUT: &str = r#"{"user":"bob","action":"read","type":"finance"}"#;
const REGO: &str = include_str!("../../tests/rego/policies/rbac.rego");
const MODULE: &[u8] = include_bytes!("../../tests/rego/policies/rbac.wasm");
const DATA: &str = include_str!("../../tests/rego/policies/rbac.json");
/// Users more than the few of the example, each with two roles.
const USERS: [usize; 5] = [0, 1_000, 10_000, 40_000, 125_000];
const MEMORY: u32 = 128 << 20;
const DECISIONS: usize = 5_000;

/// The policy of OPA's documentation in the engine of a worker, one decision after the other, each in a fresh instance.
pub(super) fn instances(plan: &Plan) -> Vec<Row> {
    USERS.into_iter().map(|users| instance(plan, users)).collect()
}

fn instance(plan: &Plan, users: usize) -> Row {
    let data = data(users);
    let (component, built) = built(&data);
    let policy = loaded(&built, POLICY, MEMORY);
    let input = input();
    // Caches, and the pool's slots.
    for _ in 0..DECISIONS / 10 {
        decide(&policy, &input);
    }
    let rounds: Vec<[f64; 3]> = (0..plan.rounds)
        .map(|_| {
            let mut all: Vec<f64> = (0..DECISIONS).map(|_| decide(&policy, &input)).collect();
            all.sort_by(f64::total_cmp);
            [percentile(&all, 50.0), percentile(&all, 99.0), percentile(&all, 5.0)]
        })
        .collect();
    let what = format!(
        "fresh instance and evaluation of the RBAC policy with {:.1} MB of data ({:.1} MB when parsed), p50",
        data.len() as f64 / 1e6,
        built.memory as f64 / 1e6
    );
    let row =
        Row::new(&format!("rego/{users}-users"), what, "us", Spread::of(rounds.iter().map(|round| round[0])))
            .detail(format!(
                "p99 {:.1} us; component of {:.1} MB",
                median(rounds.iter().map(|round| round[1])),
                component as f64 / 1e6
            ));
    if users == 0 { row.reach(Reach::AtMost(11.0)) } else { row }
}

/// How many times as much OPA takes; nothing without `OPA_BIN`. Asked for are 0.5 of its p50, 0.15 of its p99, 0.4 of its CPU.
pub(super) fn compared(plan: &Plan) -> Vec<Row> {
    const CONNECTIONS: usize = 4;
    let Some(binary) = std::env::var_os("OPA_BIN") else { return Vec::new() };
    let service = serving();
    let pids = processes(&service);
    let opa = Opa::start(Path::new(&binary), &[("rbac.rego", REGO), ("data.json", DATA)]);
    let ask = question(TENANT, 1, POLICY, &input());
    let mut ours: Vec<Wire> = (0..CONNECTIONS).map(|_| Wire::asking(&service, TENANT, ask.clone())).collect();
    let mut theirs: Vec<_> = (0..CONNECTIONS).map(|_| opa.connect(RULE, INPUT).unwrap()).collect();
    let rounds: Vec<(Load, Load)> = (0..plan.rounds)
        .map(|_| {
            let theirs = closed_loop(&mut theirs, &[opa.pid()], plan.round);
            (closed_loop(&mut ours, &pids, plan.round), theirs)
        })
        .collect();
    let row = |figure: &str, reach: f64, of: fn(&Load) -> f64| {
        let ratios = Spread::of(rounds.iter().map(|(ours, theirs)| of(ours) / of(theirs)));
        let detail = format!(
            "{:.1} against {:.1} us",
            median(rounds.iter().map(|round| of(&round.0))),
            median(rounds.iter().map(|round| of(&round.1)))
        );
        let what =
            format!("RBAC in Rego over a Unix socket, {figure}, {CONNECTIONS} connections, against OPA");
        Row::new(&format!("rego-opa/{figure}"), what, "x", ratios).reach(Reach::AtMost(reach)).detail(detail)
    };
    vec![
        row("p50", 0.5, |load| load.percentile(50.0)),
        row("p99", 0.15, |load| load.percentile(99.0)),
        row("cpu", 0.4, |load| load.cpu_us),
    ]
}

fn data(users: usize) -> String {
    let mut data: serde_json::Value = serde_json::from_str(DATA).unwrap();
    for user in 0..users {
        data["user_roles"][format!("user-{user:08}")] = serde_json::json!(["employee", "customer"]);
    }
    data.to_string()
}

/// Length of the component, and what is made of it.
fn built(data: &str) -> (usize, Built) {
    let (component, built, _) = made(data);
    (component.len(), built)
}

fn made(data: &str) -> (Vec<u8>, Built, portcullis::bundle::RegoConfig) {
    let rego = Rego::read(MODULE, Some(data.as_bytes())).unwrap();
    let options = RegoOptions { entrypoint: Some(RULE.into()), ..RegoOptions::default() };
    let made = compile::rego(&rego, &options).unwrap();
    let built = compile::build(&made.component, Terms::default(), &[Platform::host()]).unwrap();
    (made.component, built, made.config)
}

fn input() -> Vec<u8> {
    let input = Input::Opaque { content_type: "application/json", bytes: INPUT.as_bytes() };
    frame::encode(&input, CLIENT_FRAME_MAX).unwrap()
}

/// The service with that policy.
fn serving() -> Service {
    let (component, built, config) = made(DATA);
    let site = Site::new().class("one", "").tenant_of(TENANT, "one", &[POLICY], "");
    let mut draft = built.draft(component, tenant(TENANT), policy(POLICY), 1, Limits::default());
    draft.rego = Some(config);
    support::write_signed(draft, &site.bundle(TENANT, POLICY), &site.key);
    site.start()
}
