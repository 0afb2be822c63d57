//! Reloads, deaths and misbehaviour while the service runs.

use std::time::Instant;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::wire::control::{Process, ProcessState};

use crate::Test;
use crate::service::{As, PATIENCE, Site, generation, registry, serving};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_worker_that_dies_is_replaced_and_the_others_go_on",
        a_worker_that_dies_is_replaced_and_the_others_go_on,
    ),
    ("a_worker_that_is_stopped_is_replaced", a_worker_that_is_stopped_is_replaced),
    ("a_worker_that_does_not_answer_is_replaced", a_worker_that_does_not_answer_is_replaced),
    ("a_worker_that_says_ready_twice_is_replaced", a_worker_that_says_ready_twice_is_replaced),
    ("a_worker_that_says_garbage_is_replaced", a_worker_that_says_garbage_is_replaced),
    ("a_frontend_that_dies_is_replaced_with_its_workers", a_frontend_that_dies_is_replaced_with_its_workers),
    ("a_worker_that_asks_is_renewed", a_worker_that_asks_is_renewed),
    ("a_reload_switches_to_new_generations", a_reload_switches_to_new_generations),
    ("a_wrong_configuration_is_refused_by_a_reload", a_wrong_configuration_is_refused_by_a_reload),
    ("what_is_fixed_at_the_start_is_refused_by_a_reload", what_is_fixed_at_the_start_is_refused_by_a_reload),
    (
        "another_directory_under_the_stores_name_is_refused_by_a_reload",
        another_directory_under_the_stores_name_is_refused_by_a_reload,
    ),
    ("a_spawner_that_does_not_answer_ends_the_service", a_spawner_that_does_not_answer_ends_the_service),
    ("a_generation_that_cannot_start_leaves_the_old_one", a_generation_that_cannot_start_leaves_the_old_one),
    ("the_supervisors_death_takes_everyone_with_it", the_supervisors_death_takes_everyone_with_it),
    ("without_its_spawner_the_service_ends_and_says_why", without_its_spawner_the_service_ends_and_says_why),
];

/// Nobody could be replaced any more. Whoever started the service starts it again.
fn without_its_spawner_the_service_ends_and_says_why() {
    for (signal, because) in [
        (Signal::SIGKILL, "the spawner killed by SIGKILL; without it nobody can be started"),
        (Signal::SIGSTOP, "the spawner was stopped by SIGSTOP; without it nobody can be started"),
    ] {
        let site = Site::new(As::Caller);
        let mut service = site.start();
        let table = service.wait_until_all_serve();
        kill(pid(&service.lasting[1]), signal).expect("signal");
        let said = service.ends_saying(69);
        assert!(said.contains(because), "{said}");
        wait_until_gone(table.processes.iter().chain(&service.lasting));
    }
}

fn tenant(name: &str, class: &str) -> String {
    format!("[tenant.{name}]\nclass = \"{class}\"\npolicies = []\nuids = [1]\n")
}

fn pid(process: &Process) -> Pid {
    Pid::from_raw(process.pid)
}

#[track_caller]
fn replaced_by_itself(name: &str, answer_within: &str, because: &str) {
    let site = Site::new(As::Caller);
    site.write(&site.sound(answer_within, &tenant(name, "a")));
    let mut service = site.start();
    let table =
        service.wait_until(|_, table| generation(table, "a") == Some(2) && serving(table, "b").is_some());
    assert_eq!(serving(&table, "a").expect("serving").restarts, 1);
    assert_eq!(generation(&table, "b"), Some(1), "the other class is not touched");
    let said = service.stop();
    assert!(said.contains(because), "{said}");
}

fn a_worker_that_dies_is_replaced_and_the_others_go_on() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let before = service.wait_until_all_serve();
    let mut after = before.clone();
    for round in 2..=3 {
        kill(pid(serving(&after, "a").expect("a")), Signal::SIGKILL).expect("kill");
        after = service.wait_until(|_, table| generation(table, "a") == Some(round));
    }
    assert_eq!(serving(&after, "a").expect("a").restarts, 2);
    assert_eq!(serving(&after, "b"), serving(&before, "b"));
    let said = service.stop();
    assert!(said.contains("killed by SIGKILL"), "it is said how: {said}");
}

fn a_worker_that_is_stopped_is_replaced() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    kill(pid(serving(&table, "b").expect("b")), Signal::SIGSTOP).expect("stop");
    service.wait_until(|_, table| generation(table, "b") == Some(2));
    assert!(service.stop().contains("stopped by SIGSTOP"));
}

fn a_worker_that_does_not_answer_is_replaced() {
    replaced_by_itself("mute", "5s", "worker a generation 1");
}

fn a_worker_that_says_ready_twice_is_replaced() {
    replaced_by_itself("ready-twice", "10s", "misbehaved: unpermitted message Ready at this point");
}

fn a_worker_that_says_garbage_is_replaced() {
    replaced_by_itself("garbage", "10s", "misbehaved: message on channel: frame does not decode");
}

fn a_frontend_that_dies_is_replaced_with_its_workers() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    kill(pid(&table.processes[0]), Signal::SIGKILL).expect("kill");
    service.wait_until(|_, table| table.processes.first().is_some_and(|frontend| frontend.generation == 2));
    let table = service.wait_until_all_serve();
    assert_eq!((table.processes[0].generation, table.processes[0].restarts), (2, 1));
    assert_eq!(registry(&table).map(|registry| registry.generation), Some(1), "it has no part in this");
    for worker in table.processes.iter().filter(|process| process.role == "worker") {
        assert!(worker.generation >= 2, "its channel to the frontend died with it: {worker:?}");
        assert_eq!(worker.restarts, 0, "it left, it did not die: {worker:?}");
    }
    service.stop();
}

fn a_worker_that_asks_is_renewed() {
    let site = Site::new(As::Caller);
    site.configure(&tenant("renews", "a"));
    let mut service = site.start();
    let table =
        service.wait_until(|_, table| generation(table, "a") == Some(2) && table.processes.len() == 4);
    assert_eq!(serving(&table, "a").expect("a").restarts, 0, "not a death");
    assert_eq!(generation(&table, "b"), Some(1));
    service.stop();
}

fn a_reload_switches_to_new_generations() {
    let site = Site::new(As::Caller);
    site.configure(&tenant("acme", "a"));
    let mut service = site.start();
    service.wait_until(|tenants, table| tenants == 1 && generation(table, "a") == Some(1));
    service.wait_until_all_serve();
    for round in 1..=20 {
        let names =
            if round % 2 == 0 { tenant("acme", "a") } else { tenant("acme", "a") + &tenant("blue", "b") };
        site.configure(&names);
        service.signal(Signal::SIGHUP);
        let table = service.wait_until(|_, table| table.reloads == round);
        assert_eq!(table.last_reload_error, None);
        assert_eq!((generation(&table, "a"), generation(&table, "b")), (Some(round + 1), Some(round + 1)));
        assert_eq!(table.processes[0].generation, 1, "the frontend stays and is told");
    }
    let (tenants, table) =
        (2, service.wait_until(|tenants, table| tenants == 1 && table.processes.len() == 4));
    assert_eq!((tenants, serving(&table, "a").expect("a").restarts), (2, 0));
    service.stop();
}

fn a_wrong_configuration_is_refused_by_a_reload() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let before = service.wait_until_all_serve();
    site.configure("[tenant.acme]\nclass = \"c\"\npolicies = []\nuids = [1]\n");
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| table.reloads == 1);
    let error = table.last_reload_error.expect("refused");
    assert!(error.contains("portcullis.toml:27:9: class: there is no [class.c]"), "{error}");
    assert_eq!(table.processes, before.processes, "nobody was touched");
    site.configure("");
    service.signal(Signal::SIGHUP);
    assert_eq!(
        service.wait_until(|_, table| table.reloads == 2).last_reload_error,
        None,
        "and the next is good"
    );
    service.stop();
}

fn what_is_fixed_at_the_start_is_refused_by_a_reload() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    site.write(&site.sound("10s", "").replace("/run/decide.sock", "/run/other.sock"));
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| table.reloads == 1);
    assert_eq!(table.last_reload_error.as_deref(), Some("restart the service to change service.socket"));
    service.stop();
}

/// Landlock lets processes reach directories, not names: with another one of that name, every policy would be refused
/// and the last good ones would go on, and who changed the link would believe it had taken effect.
fn another_directory_under_the_stores_name_is_refused_by_a_reload() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    let store = site.path("store");
    std::fs::rename(&store, site.path("before")).expect("rename");
    std::os::unix::fs::symlink(site.path("before"), &store).expect("link");
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| table.reloads == 1);
    assert_eq!(table.last_reload_error, None, "the same directory, however it is reached");
    std::fs::remove_file(&store).expect("remove");
    std::fs::create_dir(&store).expect("another");
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| table.reloads == 2);
    let expected = format!("restart the service to change the directory that is {store:?}");
    assert_eq!(table.last_reload_error, Some(expected));
    service.stop();
}

/// Held by a debugger or a machine that does not let it run: nobody waits for it for long, and no late answer is taken for
/// that to a later order.
fn a_spawner_that_does_not_answer_ends_the_service() {
    if !crate::is_root() {
        return;
    }
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    let spawner = pid(&service.lasting[1]);
    // As a debugger does: a stop by a signal would be seen by the supervisor at once.
    ptrace::seize(spawner, ptrace::Options::empty()).expect("seize");
    ptrace::interrupt(spawner).expect("interrupt");
    kill(pid(serving(&table, "a").expect("a")), Signal::SIGKILL).expect("kill");
    let said = service.ends_saying(69);
    assert!(said.contains("the spawner failed: hear the spawner: it does not answer; without it"), "{said}");
}

fn a_generation_that_cannot_start_leaves_the_old_one() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    service.wait_until_all_serve();
    site.configure(&tenant("fails", "a"));
    service.signal(Signal::SIGHUP);
    let table = service.wait_until(|_, table| table.reloads == 1);
    let error = table.last_reload_error.clone().expect("refused");
    assert_eq!(error, "worker a: did not start: no policy could be loaded");
    assert_eq!((generation(&table, "a"), generation(&table, "b")), (Some(1), Some(2)), "b follows, a stays");
    // When the old one dies, it is followed by one like it.
    kill(pid(serving(&table, "a").expect("a")), Signal::SIGKILL).expect("kill");
    service.wait_until(|_, table| generation(table, "a") == Some(3));
    service.stop();
}

/// Also those that are stopped and could not leave by themselves.
fn the_supervisors_death_takes_everyone_with_it() {
    let site = Site::new(As::Caller);
    let mut service = site.start();
    let table = service.wait_until_all_serve();
    // Both at once, or the supervisor would replace it.
    service.signal(Signal::SIGSTOP);
    kill(pid(serving(&table, "a").expect("a")), Signal::SIGSTOP).expect("stop");
    service.signal(Signal::SIGKILL);
    // The log ends when the last of them is gone.
    service.end();
    table.processes.iter().for_each(|process| assert_ne!(process.state, ProcessState::Starting));
    wait_until_gone(&table.processes);
}

/// Until all of them have ended. The supervisor does not wait for those it has killed for ever, and descriptors go a moment
/// before numbers do.
#[track_caller]
fn wait_until_gone<'p>(processes: impl IntoIterator<Item = &'p Process>) {
    let start = Instant::now();
    for process in processes {
        // Dead, and only not waited for yet, is gone: nobody else is there who would have to.
        while std::fs::read_to_string(format!("/proc/{}/stat", process.pid))
            .is_ok_and(|stat| !stat.rsplit_once(')').expect("stat").1.trim_start().starts_with(['Z', 'X']))
        {
            assert!(start.elapsed() < PATIENCE, "{process:?} lives on");
            std::thread::yield_now();
        }
    }
}
