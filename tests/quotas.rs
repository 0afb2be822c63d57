//! What a tenant's plan bounds, each quota by a real service: who exceeds one is told which and when to come again, and
//! another tenant of the same class notices nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::client::blocking::Connection;
use portcullis::client::{ClientError, Question};
use portcullis::decision::{Decision, Outcome, Quota, Refusal};
use portcullis::wire::client::Deadline;
use support::{PATIENCE, Service, Site, policy, tenant};

/// What is to be under way while others ask.
const LONG: Duration = Duration::from_secs(40);

/// A class of one thread with "acme", which has that plan, and "globex", which has none.
fn service(plan: &str, class: &str) -> Service {
    with_policy("hostile/selective", plan, class)
}

fn with_policy(component: &str, plan: &str, class: &str) -> Service {
    let mut site = Site::new()
        .class("one", class)
        .tenant_of("acme", "one", &["gate", "other"], "plan = \"small\"")
        .tenant_of("globex", "one", &["gate"], "");
    for (name, policy_name, component) in [
        ("acme", "gate", "hostile/selective"),
        ("acme", "other", component),
        ("globex", "gate", "hostile/selective"),
    ] {
        install(&site, name, policy_name, component);
    }
    site.tables.push_str(&format!("\n[plan.small]\n{plan}\n"));
    site.start()
}

/// With output enough for what is asked here.
fn install(site: &Site, name: &str, policy_name: &str, component: &str) {
    let mut draft = support::draft(component, name, policy_name, 1);
    draft.limits.output = 1 << 20;
    support::write_signed(draft, &site.bundle(name, policy_name), &site.key);
}

/// Which quota refused it, and when to come again, milliseconds.
fn exceeded(decision: &Decision) -> Option<(Quota, u32)> {
    match decision.outcome {
        Outcome::Refused(Refusal::Quota { which, retry_after_ms }) => Some((which, retry_after_ms)),
        _ => None,
    }
}

#[track_caller]
fn refused(service: &Service, bytes: &[u8], by: Quota) -> u32 {
    let decision = service.ask("acme", "gate", bytes);
    match exceeded(&decision) {
        Some((which, retry_after_ms)) if which == by => {
            assert!(retry_after_ms > 0, "a hint when to come again");
            retry_after_ms
        }
        _ => panic!("not refused by {by}: {decision:?}"),
    }
}

#[track_caller]
fn allowed(service: &Service, name: &str, bytes: &[u8]) {
    let decision = service.ask(name, "gate", bytes);
    assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}");
}

/// Asks until it is refused by that quota, and returns how many were allowed before.
fn until_refused(service: &Service, bytes: &[u8], by: Quota, most: usize) -> usize {
    for before in 0..=most {
        let decision = service.ask("acme", "gate", bytes);
        match exceeded(&decision) {
            Some((which, _)) => {
                assert_eq!(which, by);
                return before;
            }
            None => assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}"),
        }
    }
    panic!("{most} were allowed")
}

#[track_caller]
fn send(connection: &mut Connection, name: &str, policy_name: &str, bytes: &[u8]) -> u64 {
    try_send(connection, name, policy_name, bytes).unwrap()
}

/// Fails where the worker of that connection has died, which whoever killed it has to expect.
fn try_send(
    connection: &mut Connection,
    name: &str,
    policy_name: &str,
    bytes: &[u8],
) -> Result<u64, ClientError> {
    let question = Question::opaque("", bytes);
    let deadline = Deadline::in_(LONG);
    let id = connection.send(&tenant(name), &policy(policy_name), deadline, question.input())?;
    connection.flush()?;
    Ok(id)
}

/// The answer to that question; others that come before it are not looked at.
fn answer_to(connection: &mut Connection, wanted: u64) -> Decision {
    loop {
        let (id, decision) = connection.receive().unwrap();
        if id == wanted {
            return decision;
        }
    }
}

/// The worker that serves.
fn worker(service: &Service) -> (Pid, u64) {
    let patience = Instant::now() + PATIENCE;
    loop {
        let processes = service.processes();
        let serving = processes.into_iter().filter(|one| one.role == "worker" && one.ready.is_some());
        if let Some(newest) = serving.max_by_key(|one| one.generation) {
            return (Pid::from_raw(newest.pid), newest.generation);
        }
        assert!(Instant::now() < patience, "no worker serves\n{}", service.log());
    }
}

/// Kills the worker and waits for its successor to answer.
fn kill_worker(service: &Service) {
    let (pid, generation) = worker(service);
    kill(pid, Signal::SIGKILL).unwrap();
    let patience = Instant::now() + PATIENCE;
    loop {
        let answered = service
            .try_connect("globex")
            .and_then(|mut connection| {
                try_send(&mut connection, "globex", "gate", b"allow")?;
                connection.receive()
            })
            .is_ok();
        if answered && worker(service).1 > generation {
            return;
        }
        assert!(Instant::now() < patience, "no successor\n{}", service.log());
    }
}

/// A bucket that held hundreds is empty, and stays so through a reload and through the worker's death: what is allowed
/// afterwards is what was earned meanwhile, one a second. A bucket that was filled again would hold 300.
#[test]
fn requests_are_counted_through_reload_and_death_of_the_worker() {
    let service = service("requests = 1\nrequests_burst = 300", "threads = 1");
    let start = Instant::now();
    let allowed_at_first = until_refused(&service, b"allow", Quota::Requests, 100_000);
    assert!(allowed_at_first >= 300, "{allowed_at_first} were allowed of 300");
    let mut total = allowed_at_first;
    let holds = |total: usize| {
        let earned = usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
        assert!(total <= 300 + earned, "{total} were allowed, 300 and {earned} may be");
    };
    holds(total);
    allowed(&service, "globex", b"allow");

    assert_eq!(service.reload(), None);
    total += until_refused(&service, b"allow", Quota::Requests, 100_000);
    holds(total);

    kill_worker(&service);
    total += until_refused(&service, b"allow", Quota::Requests, 100_000);
    holds(total);
    allowed(&service, "globex", b"allow");
}

/// A batch counts as many as it has, all or none.
#[test]
fn a_batch_takes_as_many_requests_as_it_has() {
    let service = service("requests = 1\nrequests_burst = 10", "threads = 1");
    let mut client = service.client();
    let question = Question::opaque("", b"allow");
    let inputs = vec![question.input().clone(); 11];
    let mut ask = |count: usize| {
        let inputs = &inputs[..count];
        client.decide_batch(&tenant("acme"), &policy("gate"), Deadline::Default, inputs).unwrap()
    };
    let decisions = ask(11);
    assert_eq!(decisions.len(), 11);
    assert!(decisions.iter().all(|one| exceeded(one).is_some_and(|(which, _)| which == Quota::Requests)));
    assert!(ask(10).iter().all(|one| one.outcome == Outcome::Allow), "nothing was taken for the one before");
    allowed(&service, "globex", b"allow");
}

/// A millisecond of processor time and next to nothing after it: a loop ends there, long before its deadline, and what comes
/// after it does not begin, in whichever process.
#[test]
fn processor_time_is_reserved_before_it_is_used() {
    let service = service("cpu = \"1us\"\ncpu_burst = \"1ms\"", "threads = 1");
    refused(&service, b"spin", Quota::Cpu);
    refused(&service, b"allow", Quota::Cpu);
    assert_eq!(service.reload(), None);
    refused(&service, b"allow", Quota::Cpu);
    kill_worker(&service);
    refused(&service, b"allow", Quota::Cpu);
    allowed(&service, "globex", b"allow");
}

/// Two loops are under way; a third question is refused until one of them has been cancelled.
#[test]
fn questions_under_way_are_bounded_and_free_their_place_however_they_end() {
    let service = service("concurrent = 2", "threads = 1");
    for _ in 0..20 {
        let mut connection = service.connect("acme");
        let spins = [(); 2].map(|()| send(&mut connection, "acme", "gate", b"spin"));
        let third = send(&mut connection, "acme", "gate", b"allow");
        let decision = answer_to(&mut connection, third);
        assert_eq!(exceeded(&decision).map(|(which, _)| which), Some(Quota::Concurrent), "{decision:?}");
        allowed(&service, "globex", b"allow");
        connection.cancel(spins[0]).unwrap();
        connection.flush().unwrap();
        let decision = answer_to(&mut connection, spins[0]);
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Cancelled));
        let fourth = send(&mut connection, "acme", "gate", b"trap");
        let decision = answer_to(&mut connection, fourth);
        assert!(matches!(decision.outcome, Outcome::Refused(Refusal::Trap(_))), "{decision:?}");
        // The other loop goes with its connection.
        drop(connection);
        let patience = Instant::now() + PATIENCE;
        let mut connection = service.connect("acme");
        loop {
            // Two at once are possible again as soon as the worker has seen that the client is gone.
            let ids = [(); 2].map(|()| send(&mut connection, "acme", "gate", b"allow"));
            let answers = ids.map(|_| connection.receive().unwrap().1);
            if answers.iter().all(|one| one.outcome == Outcome::Allow) {
                break;
            }
            assert!(Instant::now() < patience, "{answers:?}");
        }
    }
    // A process that dies with questions under way takes them with it.
    let mut connection = service.connect("acme");
    let _spins = [(); 2].map(|()| send(&mut connection, "acme", "gate", b"spin"));
    let third = send(&mut connection, "acme", "gate", b"allow");
    let _ = answer_to(&mut connection, third);
    kill_worker(&service);
    assert!(matches!(connection.receive(), Err(ClientError::Closed(_))));
    allowed(&service, "acme", b"allow");
}

/// One instance holds 4 MiB of the tenant's 6; another one that wants 2 and more is refused, and gets them when the first has ended.
#[test]
fn memory_is_bounded_over_all_instances_of_a_tenant() {
    let plan = "memory = \"6MiB\"";
    let service = with_policy("hostile/spin-fill", plan, "threads = 1\ninstances = 16");
    allowed(&service, "acme", b"memory:2000000");
    let mut connection = service.connect("acme");
    let patience = Instant::now() + PATIENCE;
    let spin = loop {
        let spin = send(&mut connection, "acme", "other", b"");
        // When this is answered the loop was read. It has all it wants by the time that somebody else has connected, or,
        // on a machine that has no time for it, it is the one that is refused.
        send(&mut connection, "acme", "none", b"");
        let _ = connection.receive().unwrap();
        let decision = service.ask("acme", "gate", b"memory:2000000");
        if exceeded(&decision).is_some_and(|(which, _)| which == Quota::Memory) {
            break spin;
        }
        assert!(Instant::now() < patience, "the sum is not bounded: {decision:?}");
        connection.cancel(spin).unwrap();
        connection.flush().unwrap();
        let _ = connection.receive().unwrap();
    };
    refused(&service, b"memory:2000000", Quota::Memory);
    allowed(&service, "acme", b"allow");
    allowed(&service, "globex", b"memory:2000000");
    connection.cancel(spin).unwrap();
    connection.flush().unwrap();
    let _ = connection.receive().unwrap();
    allowed(&service, "acme", b"memory:2000000");
}

#[test]
fn bytes_of_questions_are_counted_before_they_are_taken() {
    let service = service("bytes_in = \"1KiB\"\nbytes_in_burst = \"1MiB\"", "threads = 1");
    // 100 KB each: ten or eleven fit the bucket, and it takes minutes to earn another.
    let large = [b"allow:".to_vec(), vec![b'x'; 100_000]].concat();
    let before = until_refused(&service, &large, Quota::BytesIn, 100);
    assert!((10..=11).contains(&before), "{before}");
    allowed(&service, "acme", b"allow");
    kill_worker(&service);
    refused(&service, &large, Quota::BytesIn);
    allowed(&service, "globex", &large);
}

#[test]
fn bytes_of_answers_are_paid_for_by_the_next_question() {
    let service = service("bytes_out = \"1KiB\"\nbytes_out_burst = \"1MiB\"", "threads = 1");
    let before = until_refused(&service, b"size:400000", Quota::BytesOut, 100);
    assert_eq!(before, 3, "the third one makes the debt");
    kill_worker(&service);
    let wait = refused(&service, b"allow", Quota::BytesOut);
    assert!(wait > 1000, "{wait} ms for more than 100 KB at 1 KiB/s");
    allowed(&service, "globex", b"size:400000");
}

#[test]
fn host_functions_have_rates_by_name() {
    let service = service("[plan.small.host_calls]\n\"clock.now\" = 1000", "threads = 1");
    // A thousand a second, and so many at once: a flood of ten thousand runs out of them.
    refused(&service, b"clock-flood:9000", Quota::HostCalls);
    allowed(&service, "acme", b"random-bytes:8");
    allowed(&service, "globex", b"clock-flood:9000");
}

#[test]
fn host_functions_have_a_budget_in_each_decision() {
    let service = service("host_calls_per_decision = 20", "threads = 1");
    for _ in 0..3 {
        allowed(&service, "acme", b"clock-flood:20");
        refused(&service, b"clock-flood:21", Quota::HostCalls);
        allowed(&service, "globex", b"clock-flood:21");
    }
}

/// There is one instance and somebody has it: a question that may wait for three seconds is refused after that, with a deadline
/// of its own far away. One that may wait is there to show that the deadline would have been another answer.
#[test]
fn who_waits_too_long_is_refused_before_an_instance_is_made() {
    let service = service("max_wait = \"3s\"", "threads = 1\ninstances = 1");
    allowed(&service, "acme", b"allow");
    let mut loud = service.connect("globex");
    let spin = send(&mut loud, "globex", "gate", b"spin");
    let mut quiet = service.connect("acme");
    send(&mut quiet, "acme", "gate", b"allow");
    let decision = quiet.receive().unwrap().1;
    assert_eq!(exceeded(&decision).map(|(which, _)| which), Some(Quota::Wait), "{decision:?}");
    assert_eq!(decision.timing.instantiate_ns, 0, "no instance");
    loud.cancel(spin).unwrap();
    loud.flush().unwrap();
    let _ = loud.receive().unwrap();
    allowed(&service, "acme", b"allow");
}

/// Loops of two other tenants want every instance; one is acme's and nobody else's. Without the plan it waits until it is
/// too late.
#[test]
fn reserved_instances_are_there_for_their_tenant() {
    for (plan, there) in [("reserved = 1", true), ("reserved = 0", false)] {
        let mut site = Site::new().class("one", "threads = 1\ninstances = 2");
        for (name, more) in [("acme", "plan = \"small\""), ("globex", ""), ("initech", "")] {
            site = site.tenant_of(name, "one", &["gate"], more);
            install(&site, name, "gate", "hostile/selective");
        }
        site.tables.push_str(&format!("\n[plan.small]\n{plan}\n"));
        let service = site.start();
        let loud = ["globex", "initech"].map(|name| {
            let mut connection = service.connect(name);
            send(&mut connection, name, "gate", b"spin");
            // When this is answered the loop was read, and its turn comes before that of who asks later.
            send(&mut connection, name, "none", b"");
            assert_eq!(connection.receive().unwrap().1.outcome, Outcome::Refused(Refusal::UnknownPolicy));
            connection
        });
        let decision = service.ask_within("acme", "gate", b"allow", Deadline::in_(LONG / 10));
        assert_eq!(decision.outcome == Outcome::Allow, there, "{plan}: {decision:?}");
        drop(loud);
    }
}
