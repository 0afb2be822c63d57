//! The sandbox against the real kernel. Every test is a process of its own with one thread: this program runs itself
//! once per test, because a role is checked, confined and sealed as a whole process, and forks.
//!
//! A test that something is stopped also does it unsealed, where it must work, or it would prove nothing.

#![expect(unsafe_code, reason = "forks, and makes system calls by number as an intruder would")]
#![expect(clippy::expect_used, clippy::panic, reason = "tests")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "system call arguments are untyped"
)]
#![expect(clippy::indexing_slicing, reason = "tests")]

mod child;
mod escapes;
mod life;
mod power;
mod rules;
mod threads;

use std::process::{Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

/// A test, and whether it takes root (other UIDs, capabilities to lose).
struct Test {
    name: &'static str,
    takes_root: bool,
    body: fn(),
}

const fn test(name: &'static str, body: fn()) -> Test {
    Test { name, takes_root: false, body }
}

const fn as_root(name: &'static str, body: fn()) -> Test {
    Test { name, takes_root: true, body }
}

const TESTS: &[Test] = &[
    test("rules::worker_rules_live_and_changed_arguments_die", rules::worker),
    test("rules::frontend_rules_live_and_changed_arguments_die", rules::frontend),
    test("rules::exporter_rules_live_and_changed_arguments_die", rules::exporter),
    test("rules::gateway_rules_live_and_changed_arguments_die", rules::gateway),
    test("rules::builder_rules_live_and_changed_arguments_die", rules::builder),
    test("rules::fetcher_rules_live_and_changed_arguments_die", rules::fetcher),
    test("rules::no_protocol_that_landlock_does_not_ask_about", rules::no_other_protocol),
    test("rules::nobody_connects_by_sending_which_landlock_is_not_asked_about", rules::no_fast_open),
    test("rules::supervisor_rules_live_and_changed_arguments_die", rules::supervisor),
    test("rules::spawner_rules_live_and_changed_arguments_die", rules::spawner),
    test("rules::every_call_that_is_not_listed_dies", rules::every_other_call_dies),
    test("escapes::every_escape_dies_sealed_and_works_unsealed", escapes::every_escape),
    test("escapes::foreign_architectures_die", escapes::foreign_architectures),
    test("escapes::landlock_alone_stops_files_tcp_signals_and_abstract_sockets", escapes::landlock_alone),
    test("threads::landlock_is_proven_on_every_thread", threads::landlock_on_every_thread),
    test("threads::confine_refuses_a_second_thread", threads::confine_refuses_a_second_thread),
    test("threads::a_thread_with_a_filter_of_its_own_cannot_be_sealed", threads::thread_sync_failure),
    test("threads::witness_accepts_a_sealed_process", threads::witness_accepts),
    test("threads::witness_refuses_without_seccomp", threads::witness_without_seccomp),
    test("threads::witness_refuses_without_no_new_privs", threads::witness_without_no_new_privs),
    test("threads::witness_refuses_one_unsealed_thread", threads::witness_one_unsealed_thread),
    as_root("threads::witness_refuses_a_wrong_uid", threads::witness_wrong_uid),
    as_root("threads::witness_refuses_a_kept_capability", threads::witness_kept_capability),
    test("threads::witness_of_the_dead_says_gone", threads::witness_dead),
    as_root("power::surrender_from_root_leaves_nothing", power::from_root),
    as_root("power::surrender_from_ambient_capabilities_leaves_nothing", power::from_ambient),
    as_root("power::settle_keeps_exactly_four", power::settle_keeps_four),
    as_root("power::supervisor_and_spawner_divide_the_four", power::the_four_are_divided),
    as_root("power::settle_refuses_a_part_of_the_four", power::settle_refuses_a_part),
    as_root("power::surrender_is_refused_where_capset_is", power::capset_refused),
    test("power::a_limit_above_the_hard_one_is_refused_by_name", power::limit_refused),
    test("power::given_names_what_was_left", power::given_names_what_was_left),
    test("power::a_child_dies_with_its_supervisor", power::dies_with_supervisor),
    as_root(
        "power::a_stopped_child_of_another_uid_dies_with_an_ordinary_supervisor",
        power::stopped_dies_too,
    ),
    test("life::a_panic_ends_in_sigabrt_under_every_profile", life::panics),
    test("life::a_crash_ends_in_sigabrt_under_every_profile", life::crashes),
    test("life::a_worker_runs_guests_sealed", life::guests_run_sealed),
    test("life::malloc_dies_sealed_unless_settled", life::malloc),
    test("life::a_sealed_role_can_end_and_not_by_exit", life::ends),
    test("life::a_frontend_runtime_runs_sealed", life::runtime_runs_sealed),
    test("life::children_start_under_the_sealed_spawner", life::children_of_sealed_spawner),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--alone", name] => {
            let test = TESTS.iter().find(|test| test.name == *name).expect("a test of that name");
            (test.body)();
            ExitCode::SUCCESS
        }
        [_, "--program", name] => child::program(name),
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

fn trials() -> Vec<Trial> {
    let root = nix::unistd::geteuid().is_root();
    TESTS
        .iter()
        .map(|test| Trial::test(test.name, || alone(test.name)).with_ignored_flag(test.takes_root && !root))
        .collect()
}

/// One test, in a process of its own.
fn alone(name: &str) -> Result<(), Failed> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--alone", name])
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}
