//! `policies/<name>/cases.json`, asked by the code that `portcullis policy test` runs.

use std::path::Path;

use portcullis::rehearsal::{Cases, Granted, Subject, TOKENS, perform};

use crate::folder;

#[test]
fn jwt_gate() {
    assert!(run("jwt-gate") >= 100);
}

#[test]
fn ip_allowlist() {
    assert!(run("ip-allowlist") >= 30);
}

#[test]
fn rate_class() {
    assert!(run("rate-class") >= 30);
}

#[test]
fn hash() {
    assert!(run("hash") >= 4);
}

fn run(policy: &str) -> usize {
    run_folder(&folder().join(policy))
}

/// Runs every case of the policy in a folder, reports all that differ, and returns how many there were.
pub(crate) fn run_folder(folder: &Path) -> usize {
    let file = folder.join("cases.json");
    let tokens = std::fs::read(folder.join(TOKENS)).ok();
    let cases = Cases::read(&file, &std::fs::read(&file).unwrap(), tokens.as_deref())
        .unwrap_or_else(|error| panic!("{error}"))
        .cases;
    // A machine that stops for a second is not what is tested.
    let granted = Granted { deadline_us: Some(60_000_000), ..Granted::default() };
    let subject = Subject::open(folder, &granted).unwrap_or_else(|error| panic!("{error}"));
    let wrong: Vec<String> = cases
        .iter()
        .map(|case| perform(&subject, case))
        .filter(|performed| !performed.is_good())
        .map(|performed| format!("{:?}: {:?}", performed.name, performed.differences))
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    cases.len()
}
