//! The registry in a running service: what is revoked stops at once, an operator's orders, a registry that dies, a state that
//! is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a failed test panics"
)]

#[path = "registry/data.rs"]
mod data;
mod support;

use std::fs;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::Digest;
use portcullis::bundle;
use portcullis::client::Question;
use portcullis::decision::{Decision, Outcome, Refusal};
use portcullis::ledger::{self, Order, Target, What};
use portcullis::trust::{RevocationList, Revokes};
use portcullis::wire::client::Deadline;
use portcullis::wire::control::{Process, ProcessState};
use support::{PATIENCE, Service, Site, policy, tenant};

fn site() -> Site {
    Site::new().class("one", "").tenant(
        "acme",
        "one",
        &[("gate", "hostile/selective"), ("other", "hash")],
        "",
    )
}

fn revoke(service: &Service, what: Revokes) {
    let list = RevocationList { version: 0, revoked: vec![] };
    let signed =
        list.and(what, "leaked", "2026-01-01T00:00:00Z".parse().unwrap()).sign(&service.site.key).unwrap();
    let path = service.site.path("store/revocations.json");
    fs::write(path.with_extension("new"), signed).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

fn delivered(service: &Service, name: &str) -> Digest {
    bundle::open_path(&service.site.bundle("acme", name)).unwrap().read().unwrap().digest()
}

/// Asks until the answer is what is waited for; gives it, and how long that took.
fn ask_until(service: &Service, wanted: impl Fn(&Decision) -> bool) -> (Decision, std::time::Duration) {
    let began = Instant::now();
    loop {
        let question = Question::opaque("", b"allow");
        let answer =
            service.client().decide(&tenant("acme"), &policy("gate"), Deadline::Default, question.input());
        match answer {
            Ok(decision) if wanted(&decision) => return (decision, began.elapsed()),
            other => assert!(began.elapsed() < PATIENCE, "{other:?}\n{}", service.log()),
        }
    }
}

/// By the worker that was told so, or by the next one, which does not have it any more.
fn is_withdrawn(decision: &Decision) -> bool {
    matches!(decision.outcome, Outcome::Refused(Refusal::Revoked | Refusal::UnknownPolicy))
}

fn registry(service: &Service, besides: Option<i32>) -> Process {
    let wait_until = Instant::now() + PATIENCE;
    loop {
        let found = service.processes().into_iter().find(|process| {
            process.role == "registry"
                && process.state == ProcessState::Serving
                && Some(process.pid) != besides
        });
        match found {
            Some(process) => return process,
            None => assert!(Instant::now() < wait_until, "no registry\n{}", service.log()),
        }
    }
}

/// Nobody says reload: a list that lies in the store is enough.
#[test]
fn a_revocation_stops_what_serves_without_a_reload() {
    let service = site().start();
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow, "control");
    let digest = delivered(&service, "gate");
    revoke(&service, Revokes::Digest(digest));
    let (decision, took) = ask_until(&service, is_withdrawn);
    println!("revoked {took:?} after the list was in the store: {:?}", decision.outcome);
    // The new generation, that the registry asks for by itself, does not have it either; the other policy goes on.
    let unknown = Outcome::Refused(Refusal::UnknownPolicy);
    let (decision, _) = ask_until(&service, |decision| decision.outcome == unknown);
    assert_eq!(decision.digest, None);
    assert!(!matches!(service.ask("acme", "other", b"x").outcome, Outcome::Refused(_)));
    // It is written down, and stays so without the store.
    fs::remove_dir_all(service.site.path("store/acme")).unwrap();
    fs::remove_file(service.site.path("store/revocations.json")).unwrap();
    let service = service.restart();
    let outcome = service.ask("acme", "gate", b"allow").outcome;
    assert_eq!(outcome, Outcome::Refused(Refusal::UnknownPolicy));
    let table = ledger::read(&service.site.path("state")).unwrap();
    assert!(table.history.iter().any(|event| event.what == What::Withdrawn && event.bundle == Some(digest)));
}

#[test]
fn what_is_under_way_ends_as_refused_when_its_key_is_revoked() {
    let service = site().start();
    let (mut connection, id) = service.spinning("acme", Deadline::in_(PATIENCE));
    revoke(&service, Revokes::Key(service.site.key.public_key().id()));
    let (answered, decision) = connection.receive().unwrap();
    assert_eq!((answered, &decision.outcome), (id, &Outcome::Refused(Refusal::Revoked)), "{}", service.log());
}

#[test]
fn an_operator_goes_back_and_forth() {
    let service = site().start();
    let first = service.ask("acme", "gate", b"allow").digest;
    service.site.install("acme", "gate", "hash", 2);
    assert_eq!(service.reload(), None);
    let second = service.ask("acme", "gate", b"allow").digest;
    assert_ne!(first, second);
    let state = service.site.path("state");
    let order = Order::Rollback {
        tenant: tenant("acme"),
        policy: policy("gate"),
        to: Target::Version(1),
        reason: "too strict".into(),
    };
    let number = ledger::place(&state, &order).unwrap();
    assert_eq!(service.reload(), None);
    assert_eq!(service.ask("acme", "gate", b"allow").digest, first);
    assert_eq!(service.reload(), None);
    assert_eq!(service.ask("acme", "gate", b"allow").digest, first, "and stays there");
    let table = ledger::read(&state).unwrap();
    let event = table.history.iter().find(|event| event.order == Some(number)).unwrap();
    assert_eq!((event.what, event.why.as_str()), (What::RolledBack, "too strict"));
    let order = Order::Activate {
        tenant: tenant("acme"),
        policy: policy("gate"),
        bundle: delivered(&service, "gate"),
        accept_capabilities: false,
    };
    ledger::place(&state, &order).unwrap();
    assert_eq!(service.reload(), None);
    assert_eq!(service.ask("acme", "gate", b"allow").digest, second, "{}", service.log());
}

#[test]
fn a_registry_that_dies_is_replaced_and_decisions_go_on() {
    let service = site().start();
    let before = registry(&service, None).pid;
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    let (_, took) = ask_until(&service, |decision| decision.outcome == Outcome::Allow);
    println!("a decision {took:?} after the registry was killed");
    let after = registry(&service, Some(before)).pid;
    assert_ne!(before, after);
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    // The new one can withdraw: its workers are at the end of its channels.
    revoke(&service, Revokes::Digest(delivered(&service, "gate")));
    let _ = ask_until(&service, is_withdrawn);
}

/// The table is gone: no start, and a sentence that says how to go on; then an operator's word, and it starts.
#[test]
fn a_state_that_is_lost_does_not_begin_anew_by_itself() {
    let service = site().start();
    let table = service.site.path("state/table.json");
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow, "control");
    fs::write(&table, b"").unwrap();
    // What runs does not need it.
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    // The directory outlives the service that was started from it.
    let mut site = Site::new();
    fs::write(site.path("log"), "").unwrap();
    let mut service = service;
    std::mem::swap(&mut site, &mut service.site);
    let (status, _) = service.stop();
    assert!(status.success(), "{status}");
    let _ = fs::remove_file(site.path("run/notify.sock"));
    let config = site.path("portcullis.toml");
    let state = site.path("state");
    let run = |site: &Site| {
        std::process::Command::new(&site.supervisor).arg("--config").arg(&config).output().unwrap()
    };
    let output = run(&site);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("table.json") && said.contains("portcullis trust recover"), "{said}");

    ledger::place(&state, &Order::Recover { reason: "the disk was replaced".into() }).unwrap();
    let service = site.start();
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    let table = ledger::read(&state).unwrap();
    assert_eq!(
        (table.history[0].what, table.history[0].why.as_str()),
        (What::Recovered, "the disk was replaced")
    );
}

/// Its sandbox is in force, and it can open nothing but store and state.
#[test]
fn the_registry_is_sealed() {
    let service = site().start();
    let pid = registry(&service, None).pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (field("Seccomp:"), field("NoNewPrivs:"), field("CapEff:")),
        ("2".into(), "1".into(), "0".repeat(16))
    );
    assert_eq!(field("Threads:"), "1");
    if support::is_root() {
        assert_eq!(field("Uid:"), service.site.registry_uid().to_string());
    }
}
