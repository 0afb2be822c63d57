//! Somebody's whole suite of cases, in OPA's format: compiled by the OPA that `OPA_BIN` names, run in a worker's engine.
//!
//!     OPA_BIN=/usr/local/bin/opa REGO_CASES=/src/opa/test/cases/testdata \
//!         cargo test --test rego suite -- --nocapture
//!
//! Prints how many passed, failed and do not apply, by the builtin that their names begin with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::asked;
use crate::cases::{Case, of_file, same};

#[derive(Default, Clone, Copy)]
struct Count {
    passed: usize,
    failed: usize,
    not_applicable: usize,
}

enum Ended {
    Passed,
    Failed(String),
    NotApplicable,
}

/// Asks for what the query asks for, and wraps it so that a decision can carry it.
const PACKAGE: &str = "portcullis_conformance";

#[test]
fn suite() {
    let (Some(opa), Some(folder)) = (std::env::var_os("OPA_BIN"), std::env::var_os("REGO_CASES")) else {
        println!("OPA_BIN and REGO_CASES are not set: no suite but our own cases is run");
        return;
    };
    let mut files = Vec::new();
    find(Path::new(&folder), &mut files);
    assert!(!files.is_empty(), "no cases in {folder:?}");
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    for file in files {
        for case in of_file(&file) {
            let count = counts.entry(case.note.split('/').next().unwrap_or_default().to_owned()).or_default();
            match run(Path::new(&opa), &case) {
                Ended::Passed => count.passed += 1,
                Ended::NotApplicable => count.not_applicable += 1,
                Ended::Failed(why) => {
                    count.failed += 1;
                    println!("failed: {}: {why}", case.note);
                }
            }
        }
    }
    println!("{:>7} {:>7} {:>7}", "passed", "failed", "n.a.");
    let mut total = Count::default();
    for (name, count) in &counts {
        println!("{:>7} {:>7} {:>7} {name}", count.passed, count.failed, count.not_applicable);
        total.passed += count.passed;
        total.failed += count.failed;
        total.not_applicable += count.not_applicable;
    }
    println!("{:>7} {:>7} {:>7} in all", total.passed, total.failed, total.not_applicable);
    assert_eq!(total.failed, 0, "see above");
    assert!(total.passed > 0, "no case applies");
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "json") {
            files.push(path);
        }
    }
}

fn run(opa: &Path, case: &Case) -> Ended {
    // A query that binds one variable to one rule is what an entrypoint can be.
    let Some((rule, variable)) = case.query.split_once(" = ").filter(|(rule, _)| rule.starts_with("data."))
    else {
        return Ended::NotApplicable;
    };
    let word = |c: char| c.is_alphanumeric() || c == '_';
    if variable == "input" || !variable.starts_with(char::is_alphabetic) || !variable.chars().all(word) {
        return Ended::NotApplicable;
    }
    let path = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let Some(expected) = case.results.as_ref().filter(|_| case.more.is_empty() && rule.chars().all(path))
    else {
        return Ended::NotApplicable;
    };
    let folder = tempfile::tempdir().unwrap();
    let wrapper = format!(
        "package {PACKAGE}\n\nimport rego.v1\n\n\
         main := {{\"allow\": true, \"dynamic_metadata\": {{\"x\": [result]}}}} if {{ result := {rule} }}\n"
    );
    let bundle = folder.path().join("bundle.tar.gz");
    let write = |(index, module): (usize, &String)| {
        let file = folder.path().join(format!("{index}.rego"));
        std::fs::write(&file, module).unwrap();
        file
    };
    let files: Vec<PathBuf> = case.modules.iter().chain([&wrapper]).enumerate().map(write).collect();
    // Written for today's Rego, or for that before version 1.
    let compiles = |flags: &[&str]| {
        let mut command = Command::new(opa);
        command.arg("build").args(flags).args(["-t", "wasm", "-e", &format!("{PACKAGE}/main"), "-o"]);
        command.arg(&bundle).args(&files).output().unwrap().status.success()
    };
    if !compiles(&[]) && !compiles(&["--v0-compatible"]) {
        // What OPA itself does not compile is no question to us.
        return Ended::NotApplicable;
    }
    let data = case.data.as_ref().map(ToString::to_string);
    let made = match asked::built(&std::fs::read(&bundle).unwrap(), data.as_deref().map(str::as_bytes), None)
    {
        Ok(made) => made,
        Err(portcullis::compile::RegoError::Refused { .. }) => return Ended::NotApplicable,
        Err(error) => return Ended::Failed(error.to_string()),
    };
    let policy = asked::loaded(&made.component, 64 << 20);
    let input = case.input.as_ref().unwrap_or(&Value::Null).to_string();
    let decision = asked::ask_document(&policy, &input);
    let found = match decision.outcome {
        portcullis::decision::Outcome::Allow => asked::results(&decision).remove("x"),
        portcullis::decision::Outcome::Deny { .. } => None,
        outcome => return Ended::Failed(format!("{outcome:?}")),
    };
    let wanted = expected.first().map(|bindings| &bindings[variable.trim()]);
    match (&found, wanted) {
        (Some(found), Some(wanted)) if same(found, wanted) => Ended::Passed,
        (None, None) => Ended::Passed,
        _ => Ended::Failed(format!("gave {found:?}, expected {wanted:?}")),
    }
}
