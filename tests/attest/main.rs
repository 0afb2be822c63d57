//! `portcullis attest` against whole services: as they should be, changed from outside, and with workers that were
//! started wrongly. This binary plays those workers, too: see `wrong`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a failed test panics"
)]

#[path = "../support/copies.rs"]
mod copies;
mod lies;
mod outside;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/mod.rs"]
mod support;
mod whole;
mod wrong;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::{Service, Site};

type Test = (&'static str, fn());

fn main() {
    wrong::run_if_asked();
    outside::run_if_asked();
    close_what_was_left_to_us();
    let tests = [whole::TESTS, outside::TESTS, lies::TESTS, wrong::TESTS].concat();
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Descriptors of whoever runs the tests would come to the supervisors, which would rightly be a difference.
#[expect(unsafe_code, reason = "close_range has no safe form")]
fn close_what_was_left_to_us() {
    // SAFETY: nothing of this process is open yet but the three standard streams.
    assert_eq!(unsafe { libc::close_range(3, u32::MAX, 0) }, 0);
}

/// UIDs that no other test and no other run on this machine uses: a stranger with a role's UID is a difference.
fn site() -> Site {
    static SERVICES: AtomicU32 = AtomicU32::new(0);
    let service = SERVICES.fetch_add(1, Ordering::Relaxed);
    Site::new().uids_from(1_000_000 + (std::process::id() % 1_000_000) * 1_000 + service * 20)
}

/// Some tests need UIDs to give away, or to look at processes of others.
fn is_root() -> bool {
    let root = support::is_root();
    if !root {
        eprintln!("not root: skipped");
    }
    root
}

fn attest_command(program: &Path, service: &Service) -> Command {
    let mut command = Command::new(program);
    command
        .arg("attest")
        .arg("--socket")
        .arg(service.site.path("run/operator.sock"))
        .arg("--config")
        .arg(service.site.path("portcullis.toml"));
    command
}

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_portcullis").into()
}

fn attest(service: &Service) -> Report {
    Report::of(&attest_command(&program(), service).arg("--json").output().unwrap())
}

/// What `--json` said.
struct Report {
    code: i32,
    json: Value,
}

impl Report {
    fn of(output: &Output) -> Self {
        let json =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        Self { code: output.status.code().unwrap(), json }
    }

    fn findings(&self) -> &[Value] {
        self.json["findings"].as_array().unwrap()
    }

    /// "worker retail: limits: core: 1, expected 0" of every difference.
    fn differences(&self) -> Vec<String> {
        let different = self.findings().iter().filter(|finding| finding["verdict"] == "different");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let line = |finding: &Value| {
            let [subject, area, check, found] =
                ["subject", "area", "check", "found"].map(|field| text(&finding[field]));
            format!("{subject}: {area}: {check}: {found}, expected {}", text(&finding["expected"]))
        };
        different.map(line).collect()
    }

    /// Checks of a process by their names.
    fn checks(&self, pid: i64, area: &str) -> Vec<&Value> {
        let of_it = |finding: &&Value| finding["pid"] == pid && finding["area"] == area;
        self.findings().iter().filter(of_it).collect()
    }

    fn count(&self, what: &str) -> u64 {
        self.json["summary"][what].as_u64().unwrap()
    }

    #[track_caller]
    fn assert_as_declared(&self) {
        assert_eq!(self.differences(), [""; 0]);
        assert_eq!((self.code, self.count("different")), (0, 0));
    }

    /// Exactly one thing differs, and this is said of it.
    #[track_caller]
    fn assert_only(&self, said: &str) {
        let differences = self.differences();
        assert!(
            !differences.is_empty() && differences.iter().all(|one| one.contains(said)),
            "{said}: {differences:#?}"
        );
        assert_eq!(self.code, 1);
    }
}
