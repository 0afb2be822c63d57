//! The supervisor's promises, with the real supervisor, real signals and real sandboxes, and children that do nothing
//! else. This binary is the children, too: see `children`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test code; clippy's exceptions for tests do not reach a binary without #[test]"
)]

mod children;
mod life;
mod makers;
mod notify;
mod registry;
mod service;
mod start;

use libtest_mimic::{Arguments, Trial};

fn main() {
    children::run_if_asked();
    let trials = [start::TESTS, life::TESTS, registry::TESTS, notify::TESTS].concat().into_iter().map(
        |(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
        },
    );
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

type Test = (&'static str, fn());

/// Some tests need UIDs to give away.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not root: skipped");
    }
    root
}
