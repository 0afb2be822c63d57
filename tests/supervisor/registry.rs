//! The registry surveys first, is asked again, dies and comes back; builders do one job and end by their limits.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::wire::control::ProcessTable;

use crate::Test;
use crate::makers::BROKEN;
use crate::service::{As, Service, Site, generation, registry, serving};

pub(crate) const TESTS: &[Test] = &[
    ("what_the_registry_refuses_at_first_is_not_served", what_the_registry_refuses_at_first_is_not_served),
    ("what_the_registry_refuses_later_changes_nothing", what_the_registry_refuses_later_changes_nothing),
    (
        "a_registry_that_dies_is_replaced_and_the_workers_follow",
        a_registry_that_dies_is_replaced_and_the_workers_follow,
    ),
    ("a_registry_that_dies_of_a_reload_refuses_it", a_registry_that_dies_of_a_reload_refuses_it),
    ("without_a_registry_the_workers_go_on", without_a_registry_the_workers_go_on),
    (
        "a_registry_that_cannot_come_back_is_given_something_else",
        a_registry_that_cannot_come_back_is_given_something_else,
    ),
    ("a_registry_with_news_is_asked_again", a_registry_with_news_is_asked_again),
    ("reloads_asked_for_during_a_survey_are_remembered", reloads_asked_for_during_a_survey_are_remembered),
    ("a_registry_that_misbehaves_is_killed", a_registry_that_misbehaves_is_killed),
    ("builders_do_their_jobs_and_are_gone", builders_do_their_jobs_and_are_gone),
    (
        "a_builder_that_needs_too_much_is_killed_and_it_is_said_of_what",
        a_builder_that_needs_too_much_is_killed_and_it_is_said_of_what,
    ),
    (
        "a_builder_that_is_killed_or_crashes_is_the_registrys_to_know",
        a_builder_that_is_killed_or_crashes_is_the_registrys_to_know,
    ),
    ("a_registry_takes_its_builders_with_it", a_registry_takes_its_builders_with_it),
];

#[track_caller]
fn reload(site: &Site, service: &mut Service, trust: &str, round: u64) -> ProcessTable {
    site.trust(trust);
    service.signal(Signal::SIGHUP);
    service.wait_until(|_, table| table.reloads == round)
}

fn generations(table: &ProcessTable) -> (Option<u64>, Option<u64>) {
    (generation(table, "a"), generation(table, "b"))
}

fn what_the_registry_refuses_at_first_is_not_served() {
    let site = Site::new(As::Caller);
    site.trust("refuse trust.toml:3:7: no such signer");
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(78), "a wrong trust policy is a wrong configuration: {said}");
    let expected = "start: the registry refused to survey: trust.toml:3:7: no such signer";
    assert!(said.contains(expected), "{said}");
    assert!(!said.contains("worker"), "nobody was started for nothing: {said}");
    assert_eq!(fs::read_dir(site.path("run")).expect("list").count(), 0, "the sockets are gone");
    site.trust("die");
    let (code, said) = site.run_to_end();
    assert_eq!(code, Some(69), "one that dies is not a configuration: {said}");
    assert!(said.contains("start: registry: exited with 3"), "{said}");
}

fn what_the_registry_refuses_later_changes_nothing() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let before = service.wait_until_all_serve();
    let table = reload(&site, &mut service, "refuse trust.toml:3:7: no such signer", 1);
    assert_eq!(table.last_reload_error.as_deref(), Some("trust.toml:3:7: no such signer"));
    assert_eq!(table.processes, before.processes, "nobody was touched");
    let table = reload(&site, &mut service, "", 2);
    assert_eq!(table.last_reload_error, None, "and the next is good");
    assert_eq!(generations(&table), (Some(2), Some(2)));
    assert_eq!(registry(&table).map(|registry| registry.generation), Some(1), "it stays and is told");
    service.stop();
}

#[track_caller]
fn kill_registry(table: &ProcessTable) {
    kill(Pid::from_raw(registry(table).expect("registry").pid), Signal::SIGKILL).expect("kill");
}

fn a_registry_that_dies_is_replaced_and_the_workers_follow() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let mut table = service.wait_until_all_serve();
    for round in 2..=3 {
        kill_registry(&table);
        service.wait_until(|_, table| generations(table) == (Some(round), Some(round)));
        table = service.wait_until_all_serve();
        let registry = registry(&table).expect("registry");
        assert_eq!(
            (registry.generation, registry.restarts),
            (round, u32::try_from(round).expect("small") - 1)
        );
        for class in ["a", "b"] {
            let worker = serving(&table, class).expect("serving");
            assert_eq!((worker.generation, worker.restarts), (round, 0), "it left in order: {worker:?}");
        }
    }
    assert_eq!((table.reloads, table.processes[0].generation), (0, 1), "nobody else has a part in it");
    service.stop();
}

fn a_registry_that_dies_of_a_reload_refuses_it() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    let table = reload(&site, &mut service, "die", 1);
    assert_eq!(table.last_reload_error.as_deref(), Some("registry: exited with 3"));
    // The next one begins with what was good.
    service.wait_until(|_, table| generations(table) == (Some(2), Some(2)));
    service.wait_until_all_serve();
    let table = reload(&site, &mut service, "", 2);
    assert_eq!(table.last_reload_error, None);
    assert_eq!(generations(&table), (Some(3), Some(3)));
    service.stop();
}

fn without_a_registry_the_workers_go_on() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let before = service.wait_until_all_serve();
    fs::write(site.path("state").join(BROKEN), "").expect("write");
    kill_registry(&before);
    service.wait_until(|_, table| registry(table).is_none());
    let table = reload(&site, &mut service, "", 1);
    let error = table.last_reload_error.as_deref().expect("refused");
    assert_eq!(error, "registry: did not start: the state is broken");
    for class in ["a", "b"] {
        assert_eq!(serving(&table, class), serving(&before, class), "nobody was touched");
    }
    fs::remove_file(site.path("state").join(BROKEN)).expect("remove");
    let table = reload(&site, &mut service, "", 2);
    assert_eq!(table.last_reload_error, None, "it is tried at once");
    assert!(registry(&table).is_some());
    service.stop();
}

/// What is in force may have become wrong while the registry lived, an expired trust policy: only the operator's next can
/// help then.
fn a_registry_that_cannot_come_back_is_given_something_else() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    let before = reload(&site, &mut service, "stale", 1);
    assert_eq!(before.last_reload_error, None, "good for the one that lives");
    kill_registry(&before);
    service.wait_until(|_, table| registry(table).is_none());
    let table = reload(&site, &mut service, "stale", 2);
    let error = table.last_reload_error.as_deref();
    assert_eq!(error, Some("registry: refused to survey: expired"), "and bad for each later one");
    for class in ["a", "b"] {
        assert_eq!(serving(&table, class), serving(&before, class), "nobody was touched");
    }
    let table = reload(&site, &mut service, "", 3);
    assert_eq!(table.last_reload_error, None);
    assert_eq!(generations(&table), (Some(3), Some(3)));
    service.stop();
}

fn a_registry_with_news_is_asked_again() {
    let site = Site::new(As::Caller);
    site.trust("news");
    let mut service = site.start();
    let table = service.wait_until(|_, table| table.reloads == 1);
    assert_eq!(table.last_reload_error, None);
    assert_eq!(generations(&table), (Some(2), Some(2)), "what was found is what serves");
    let said = service.stop();
    assert_eq!(said.matches("the registry has news").count(), 1, "{said}");
}

fn reloads_asked_for_during_a_survey_are_remembered() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    site.trust("build a sleep");
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| builder(table).is_some());
    assert_eq!(table.reloads, 0, "it is under way");
    site.trust("");
    service.signal(Signal::SIGHUP);
    kill(Pid::from_raw(builder(&table).expect("builder")), Signal::SIGKILL).expect("kill");
    let table = service.wait_until(|_, table| table.reloads == 2);
    assert_eq!(table.last_reload_error, None, "the second was good");
    assert_eq!(generations(&table), (Some(2), Some(2)), "the first was not");
    service.stop();
}

fn a_registry_that_misbehaves_is_killed() {
    for (order, because) in [
        ("twice", "unpermitted message Surveyed at this point"),
        ("ready", "unpermitted message Ready at this point"),
        ("serial", "asked for a builder under a serial that is not new"),
        ("flood", "sent more messages between two pings than it has reason for"),
        ("no-key", "named a key of this host that is none"),
    ] {
        let site = Site::new(As::Caller);
        let mut service = site.start();
        let before = service.wait_until_all_serve();
        site.trust(order);
        service.signal(Signal::SIGHUP);
        service.wait_until(|_, table| {
            registry(table)
                .is_some_and(|registry| Some(registry.pid) != self::registry(&before).map(|r| r.pid))
        });
        let said = service.stop();
        let expected = format!("killed: misbehaved: {because}");
        assert!(
            said.lines().any(|line| line.contains("registry") && line.contains(&expected)),
            "{order}: {said}"
        );
    }
}

/// The pid of one that works.
fn builder(table: &ProcessTable) -> Option<i32> {
    table.processes.iter().find(|process| process.role == "builder").map(|process| process.pid)
}

fn builders_do_their_jobs_and_are_gone() {
    let site = Site::new(As::Caller);
    site.trust(&"build a one\nbuild b other\n".repeat(5));
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    assert_eq!(builder(&table), None);
    let table = reload(&site, &mut service, "build a one\nbuild c other", 1);
    let error = table.last_reload_error.expect("refused");
    assert_eq!(error, "other: the configuration has no class of that name any more");
    service.stop();
}

#[track_caller]
fn ends_by(limits: &str, policy: &str, because: &str) {
    let site = Site::new(As::Caller);
    site.configure(&format!("[builder]\n{limits}\n"));
    let mut service = site.start();
    let before = service.wait_until_all_serve();
    site.trust(&format!("build a {policy}"));
    service.signal(Signal::SIGHUP);
    if policy == "sleep" {
        // It is there for as long as it works.
        service.wait_until(|_, table| builder(table).is_some());
    }
    let table = service.wait_until(|_, table| table.reloads == 1);
    let error = table.last_reload_error.clone().expect("refused");
    assert_eq!(error, format!("{policy}: {because}"));
    for class in ["a", "b"] {
        assert_eq!(serving(&table, class), serving(&before, class), "nobody was harmed");
    }
    let said = service.stop();
    assert!(said.lines().any(|line| line.contains("builder a") && line.contains(because)), "{said}");
}

fn a_builder_that_needs_too_much_is_killed_and_it_is_said_of_what() {
    ends_by("wall = \"1s\"", "sleep", "took longer than builder.wall");
    ends_by("cpu = \"1s\"", "burn", "killed by SIGXCPU: used its 1 s of processor time (builder.cpu)");
    ends_by("output = \"1MiB\"", "write", "killed by SIGXFSZ: wrote more than 1MiB (builder.output)");
    ends_by(
        "memory = \"64MiB\"",
        "eat",
        "killed by SIGABRT: crashed, or needed more memory than 64MiB (builder.memory)",
    );
}

fn a_builder_that_is_killed_or_crashes_is_the_registrys_to_know() {
    ends_by("", "crash", "exited with 7");
}

fn a_registry_takes_its_builders_with_it() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    site.trust("build a sleep\nbuild a sleep\nbuild b sleep");
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| builder(table).is_some());
    kill_registry(&table);
    let table = service.wait_until(|_, table| table.reloads == 1);
    assert_eq!(table.last_reload_error.as_deref(), Some("registry: killed by SIGKILL"));
    service.wait_until(|_, table| builder(table).is_none() && generations(table) == (Some(2), Some(2)));
    service.stop();
}
