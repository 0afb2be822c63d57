//! The service under a real systemd as process 1. Every test gets a machine of its own: a container that is booted from
//! a Debian tree, thrown away afterwards, and in which this program runs again as a service of that systemd.
//!
//! The tree is named by the environment variable PORTCULLIS_SYSTEMD_ROOTFS; see `container.rs` for how to make one.
//! Without it, or without root, the tests are ignored. With it, whatever is missing is a failure.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "test code; clippy's exceptions for tests do not reach a binary without #[test]"
)]

mod container;
mod death;
mod limits;
mod load;
mod machine;
mod package;
mod refusal;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod units;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test's name, and what it does inside.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "--inside", name] => {
            let (_, test) =
                tests().into_iter().find(|(known, _)| known == name).expect("a test of that name");
            test();
            ExitCode::SUCCESS
        }
        _ => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

fn tests() -> Vec<Test> {
    [units::TESTS, start::TESTS, load::TESTS, death::TESTS, refusal::TESTS, limits::TESTS, package::TESTS]
        .concat()
}

fn trials() -> Vec<Trial> {
    let rootfs = container::rootfs();
    let trial = |(name, _)| {
        let rootfs = rootfs.clone();
        let ignored = rootfs.is_none();
        Trial::test(name, move || {
            container::run(name, &rootfs.ok_or("PORTCULLIS_SYSTEMD_ROOTFS is not set")?)
        })
        .with_ignored_flag(ignored)
    };
    tests().into_iter().map(trial).collect()
}
