//! An intruder in the running service: the programs as they are shipped, sealed as they seal themselves, and native code
//! in each of them, by [`hijack`]. What it tries must fail there, and work in a process without a sandbox.
//!
//! Takes root: only root may take over a process that cannot be dumped.

#![expect(unsafe_code, reason = "what ptrace tells has the type that it says it has")]
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test code; clippy's exceptions for tests do not reach a binary without #[test]"
)]

#[path = "../builder/process.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the builder's own tests ask more of it; as in this whole binary, a failed test panics"
)]
mod builder;
mod ends;
mod escapes;
mod hijack;
mod jobs;
mod left;
mod lies;
mod probes;
mod registers;
mod rules;
mod scene;
mod standin;
#[path = "../support/mod.rs"]
mod support;
mod tracer;
mod used;
mod workload;

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use probes::{Probe, inside, kernel, outside, processes};

const ROLES: [&str; 8] =
    ["worker", "frontend", "exporter", "gateway", "supervisor", "spawner", "registry", "builder"];

type Attempts = fn() -> Vec<Probe>;

/// What an intruder is after.
const ATTEMPTS: &[(&str, Attempts)] = &[
    ("no_file_is_reached", outside::no_file_is_reached),
    ("no_socket_is_made_or_used", outside::no_socket_is_made_or_used),
    ("no_program_is_started", outside::no_program_is_started),
    ("no_mount_or_root_is_changed", outside::no_mount_or_root_is_changed),
    ("no_other_process_is_touched", processes::no_other_process_is_touched),
    ("no_process_or_namespace_is_made", processes::no_process_or_namespace_is_made),
    ("no_kernel_interface_is_opened", kernel::no_kernel_interface_is_opened),
    ("no_memory_becomes_code", kernel::no_memory_becomes_code),
    ("no_foreign_call_is_made", kernel::no_foreign_call_is_made),
    ("no_identity_or_capability_is_gained", inside::no_identity_or_capability_is_gained),
    ("no_wall_is_taken_down", inside::no_wall_is_taken_down),
    ("no_descriptor_is_forged", inside::no_descriptor_is_forged),
];

const TESTS: &[(&str, fn())] = &[
    ("left::every_thread_of_every_process_is_sealed", left::every_thread_of_every_process_is_sealed),
    (
        "left::a_crash_leaves_no_core_and_nobody_may_look_at_a_process",
        left::a_crash_leaves_no_core_and_nobody_may_look_at_a_process,
    ),
    ("left::no_descriptor_comes_along", left::no_descriptor_comes_along),
    ("left::a_worker_cannot_change_its_policies", left::a_worker_cannot_change_its_policies),
    (
        "left::a_child_has_no_environment_terminal_or_directory",
        left::a_child_has_no_environment_terminal_or_directory,
    ),
    ("lies::who_lies_to_the_supervisor_is_ended", lies::who_lies_to_the_supervisor_is_ended),
    ("lies::a_worker_that_lies_to_the_frontend_is_ended", lies::a_worker_that_lies_to_the_frontend_is_ended),
    (
        "lies::a_gateway_that_lies_to_the_frontend_is_ended",
        lies::a_gateway_that_lies_to_the_frontend_is_ended,
    ),
    (
        "lies::a_worker_does_not_believe_the_frontend_everything",
        lies::a_worker_does_not_believe_the_frontend_everything,
    ),
    (
        "lies::the_spawner_starts_nobody_it_was_not_told_of",
        lies::the_spawner_starts_nobody_it_was_not_told_of,
    ),
    ("lies::the_spawner_hears_no_nonsense", lies::the_spawner_hears_no_nonsense),
    ("lies::a_spawner_that_lies_ends_the_service", lies::a_spawner_that_lies_ends_the_service),
    ("lies::who_says_nothing_wrong_lives", lies::who_says_nothing_wrong_lives),
    (
        "ends::nobody_outlives_the_supervisor_whoever_started_it",
        ends::nobody_outlives_the_supervisor_whoever_started_it,
    ),
    ("rules::a_rule_is_asked_as_the_kernel_asks_it", rules::a_rule_is_asked_as_the_kernel_asks_it),
    ("used::no_rule_is_there_that_nothing_uses", used::no_rule_is_there_that_nothing_uses),
];

/// `--leak FILE PROGRAM ARGUMENTS..`: opens the file a hundred times, and becomes the program with all of that open.
const LEAK: &str = "--leak";
const LEAKS: &str = "100 more descriptors go through exec";

fn leak(file: &str, program: &str, arguments: &[&str]) -> ! {
    for _ in 0..100 {
        let open = std::fs::File::open(file).expect("open");
        fcntl(&open, FcntlArg::F_SETFD(FdFlag::empty())).expect("not to be closed by exec");
        std::mem::forget(open);
    }
    let open = std::fs::read_dir("/proc/self/fd").expect("descriptors").flatten();
    let leaks =
        open.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.to_str() == Some(file)));
    eprintln!("{} more descriptors go through exec", leaks.count());
    panic!("run {program}: {}", Command::new(program).args(arguments).exec())
}

/// `--visit SOCKET`: connects and waits until it is sent away.
const VISIT: &str = "--visit";

fn visit(socket: &str) -> ExitCode {
    match UnixStream::connect(socket) {
        Ok(mut stream) => drop(std::io::copy(&mut stream, &mut std::io::sink())),
        Err(why) => eprintln!("{why}"),
    }
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, standin::ARGUMENT] => {
            standin::stand();
            ExitCode::SUCCESS
        }
        [_, tracer::START, socket, program, arguments @ ..] => tracer::start(socket, program, arguments),
        [_, tracer::TRACER, socket] => {
            tracer::trace(socket);
            ExitCode::SUCCESS
        }
        [_, jobs::ARGUMENT] => {
            jobs::all();
            ExitCode::SUCCESS
        }
        [_, LEAK, file, program, arguments @ ..] => leak(file, program, arguments),
        [_, VISIT, socket] => visit(socket),
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

fn trials() -> Vec<Trial> {
    let root = nix::unistd::geteuid().is_root();
    let mut trials = Vec::new();
    for role in ROLES {
        for (name, probes) in ATTEMPTS {
            // What the numbers of descriptors mean is part of a worker's filter only.
            if *name == "no_descriptor_is_forged" && role != "worker" {
                continue;
            }
            let trial =
                Trial::test(format!("{role}::{name}"), move || Ok(escapes::try_all(role, &probes())?));
            trials.push(trial.with_ignored_flag(!root));
        }
    }
    trials.extend(TESTS.iter().map(|(name, test)| {
        let body = || {
            test();
            Ok(())
        };
        Trial::test(*name, body).with_ignored_flag(!root)
    }));
    trials
}
