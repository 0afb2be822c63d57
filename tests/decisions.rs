//! What a client sees: allowed, denied, refused, each with its reason and the digest that decided.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use portcullis::artifact::Digest;
use portcullis::decision::{Outcome, Refusal, Stage, TrapKind};
use portcullis::wire::client::Deadline;
use support::Site;

#[test]
fn allow_and_deny_come_with_reason_and_digest() {
    let site = Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "");
    let digest = site.install("acme", "gate", "hostile/selective", 2);
    let service = site.start();

    let decision = service.ask("acme", "gate", b"allow");
    assert_eq!(decision.outcome, Outcome::Allow);
    assert_eq!(decision.digest, Some(digest));
    assert!(decision.timing.run_ns > 0 && decision.timing.instantiate_ns > 0);

    let decision = service.ask("acme", "gate", b"deny");
    assert!(matches!(decision.outcome, Outcome::Deny { .. }), "{decision:?}");
    assert_eq!(decision.digest, Some(digest));
}

#[test]
fn a_guest_that_does_not_end_is_refused_at_its_deadline() {
    let service = Site::new()
        .class("one", "")
        .tenant(
            "acme",
            "one",
            &[("spin", "hostile/spin"), ("fill", "hostile/spin-fill"), ("copy", "hostile/spin-copy")],
            "",
        )
        .start();
    for (policy, component) in
        [("spin", "hostile/spin"), ("fill", "hostile/spin-fill"), ("copy", "hostile/spin-copy")]
    {
        let decision = service.ask_within("acme", policy, b"", Deadline::Budget { us: 5_000 });
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Deadline(Stage::Run)), "{policy}");
        assert_eq!(
            decision.digest,
            Some(support::built(component).cwasm.as_slice()).map(Digest::of),
            "{policy}"
        );
    }
}

#[test]
fn a_guest_that_traps_is_refused_by_kind_and_the_worker_lives() {
    let service = Site::new()
        .class("one", "")
        .tenant(
            "acme",
            "one",
            &[
                ("trap", "hostile/trap"),
                ("recurse", "hostile/recurse"),
                ("div-zero", "hostile/div-zero"),
                ("grow", "hostile/grow"),
            ],
            "",
        )
        .start();
    let pids = |service: &support::Service| -> Vec<i32> {
        service.status().processes.processes.iter().map(|process| process.pid).collect()
    };
    let before = pids(&service);
    for (policy, kind) in [
        ("trap", TrapKind::Unreachable),
        ("recurse", TrapKind::Stack),
        ("div-zero", TrapKind::Arithmetic),
        ("grow", TrapKind::Memory),
    ] {
        let decision = service.ask("acme", policy, b"");
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Trap(kind)), "{policy}");
    }
    assert_eq!(pids(&service), before);
}
