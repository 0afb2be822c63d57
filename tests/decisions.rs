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
use portcullis::client::Question;
use portcullis::decision::{Obligations, Outcome, Refusal, Stage, TrapKind};
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
        assert_eq!(decision.digest, Some(Digest::of(support::code(&support::built(component)))), "{policy}");
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

#[test]
fn nothing_of_a_request_is_there_for_the_next() {
    // One slot, so that every instance has the memory of the one before it.
    let service = Site::new()
        .class("one", "threads = 1\ninstances = 1")
        .tenant("acme", "one", &[("canary", "hostile/canary")], "")
        .start();
    let mut connection = service.connect("acme");
    let question = Question::opaque("", b"a pattern that would be seen again");
    let (acme, canary) = (support::tenant("acme"), support::policy("canary"));
    for _ in 0..10_000 {
        connection.send(&acme, &canary, Deadline::Default, question.input()).unwrap();
        connection.flush().unwrap();
        let (_, decision) = connection.receive().unwrap();
        assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}");
        assert_eq!(decision.obligations.metadata[0].value, "clean");
    }
}

#[test]
fn what_a_guest_returns_is_believed_as_a_whole_or_not_at_all() {
    let service = Site::new()
        .class("one", "")
        .tenant(
            "acme",
            "one",
            &[
                ("lie", "hostile/lie-lengths"),
                ("huge", "hostile/huge-output"),
                ("bad", "hostile/bad-headers"),
            ],
            "",
        )
        .start();
    for (policy, variants) in [("lie", "pahrwnuds"), ("huge", "brx"), ("bad", "szneNrx")] {
        for variant in variants.chars() {
            let decision = service.ask("acme", policy, variant.to_string().as_bytes());
            assert!(
                matches!(decision.outcome, Outcome::Refused(Refusal::InvalidOutput(_) | Refusal::Trap(_))),
                "{policy} {variant}: {decision:?}"
            );
            assert_eq!(decision.obligations, Obligations::default());
        }
    }
}

#[test]
fn the_clock_stands_still_and_random_numbers_differ_between_requests() {
    let service =
        Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "").start();
    let ask = |bytes: &[u8]| service.ask("acme", "gate", bytes).obligations.metadata;
    let before = std::time::SystemTime::now();
    let clock = ask(b"clock");
    let after = std::time::SystemTime::now();
    let values: Vec<u128> = clock.iter().map(|one| one.value.parse().unwrap()).collect();
    let ns = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    assert!(values.iter().all(|value| (ns(before)..=ns(after)).contains(value)), "{clock:?}");
    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{clock:?}");
    assert_ne!(ask(b"random"), ask(b"random"));
}
