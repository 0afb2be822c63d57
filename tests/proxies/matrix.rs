//! Every proxy with every case, and the table of what came of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use crate::cases::CASES;
use crate::doors::{DOORS, Door};
use crate::stage::Stage;

/// Columns that are there so far, in the order of [`CASES`].
static SEEN: Mutex<BTreeMap<&str, Vec<String>>> = Mutex::new(BTreeMap::new());

/// `PORTCULLIS_PROXY_CASE` names the one case that is to be tried.
fn try_all(name: &str) {
    let door = Door::named(name);
    let only = std::env::var("PORTCULLIS_PROXY_CASE").ok();
    let mut stage = Stage::set(door);
    let mut wrong = Vec::new();
    let column: Vec<String> = CASES
        .iter()
        .map(|(case, run)| {
            if only.as_ref().is_some_and(|only| only != case) {
                return "-".into();
            }
            // What a case before left on its way.
            stage.shop.arrived();
            let seen = catch_unwind(AssertUnwindSafe(|| run(&mut stage)));
            match seen.unwrap_or_else(|_| Err("panicked, see above".into())) {
                Ok(seen) => seen,
                Err(why) => {
                    wrong.push(format!("{name}, {case}: {why}"));
                    "WRONG".into()
                }
            }
        })
        .collect();
    print(door.name, column);
    assert!(wrong.is_empty(), "{}\n--- what {name} said ---\n{}", wrong.join("\n"), stage.proxy.said());
}

/// Prints the table once everybody is in it; with fewer tests than proxies, each of them its own.
fn print(name: &'static str, column: Vec<String>) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.insert(name, column);
    let mut text = String::new();
    if seen.len() == DOORS.len() {
        writeln!(text, "\n| case | {} |", DOORS.iter().map(|door| door.name).collect::<Vec<_>>().join(" | "))
            .unwrap();
        writeln!(text, "|---|{}", "---|".repeat(DOORS.len())).unwrap();
        for (at, (case, _)) in CASES.iter().enumerate() {
            let cells: Vec<&str> = DOORS.iter().map(|door| &*seen[door.name][at]).collect();
            writeln!(text, "| {case} | {} |", cells.join(" | ")).unwrap();
        }
    } else {
        for ((case, _), cell) in CASES.iter().zip(&seen[name]) {
            writeln!(text, "{name:<12} {case:<18} {cell}").unwrap();
        }
    }
    // Not captured: whoever runs the tests is to see it.
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

#[test]
fn envoy() {
    try_all("envoy");
}

#[test]
fn envoy_over_http() {
    try_all("envoy-http");
}

#[test]
fn nginx() {
    try_all("nginx");
}

#[test]
fn caddy() {
    try_all("caddy");
}

#[test]
fn traefik() {
    try_all("traefik");
}

#[test]
fn haproxy() {
    try_all("haproxy");
}

#[test]
fn haproxy_lua() {
    try_all("haproxy-lua");
}

#[test]
fn apache() {
    try_all("apache");
}
