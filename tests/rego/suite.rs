//! Somebody's whole suite of cases, in OPA's format: compiled by the OPA that `OPA_BIN` names, run in a worker's engine.
//!
//!     OPA_BIN=/usr/local/bin/opa REGO_CASES=/src/opa/test/cases/testdata \
//!         cargo test --test rego suite -- --nocapture
//!
//! Prints how many passed, failed and do not apply, by the builtin that their names begin with. Without `REGO_CASES` those in
//! `suite/` are run, which are about the harness itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis::compile::RegoError;
use portcullis::decision::{Outcome, Refusal};
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
/// The one error that a policy may end in without strict checks, as the suite calls it.
const CONFLICT: &str = "eval_conflict_error";

#[test]
fn suite() {
    let Some(opa) = std::env::var_os("OPA_BIN") else {
        println!("OPA_BIN is not set: no suite but our own cases is run");
        return;
    };
    let others = std::env::var_os("REGO_CASES").map(PathBuf::from);
    let folder = others.clone().unwrap_or_else(|| crate::folder().join("suite"));
    let mut files = Vec::new();
    find(&folder, &mut files);
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
    if others.is_none() {
        assert_eq!((total.passed, total.not_applicable), (4, 3), "as the files in `suite/` say");
    }
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
    if !case.more.is_empty() || !rule.chars().all(path) {
        return Ended::NotApplicable;
    }
    let expected = match (&case.results, &case.error) {
        (Some(expected), None) => Some(expected),
        (None, Some(error)) if error == CONFLICT => None,
        // Of the compiler, or of a builtin where such are errors: neither is a policy's here.
        _ => return Ended::NotApplicable,
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
        Err(RegoError::Refused { .. }) => return Ended::NotApplicable,
        Err(error) => return Ended::Failed(error.to_string()),
    };
    let policy = asked::loaded(&made.component, 64 << 20);
    let input = case.input.as_ref().unwrap_or(&Value::Null).to_string();
    let decision = asked::ask_document(&policy, &input);
    let Some(expected) = expected else {
        return match decision.outcome {
            Outcome::Refused(Refusal::PolicyFailed { reason, .. }) if reason == "conflict" => Ended::Passed,
            outcome => Ended::Failed(format!("{outcome:?}, expected {CONFLICT}")),
        };
    };
    let found = match decision.outcome {
        Outcome::Allow => asked::results(&decision).remove("x"),
        Outcome::Deny { .. } => None,
        outcome => return Ended::Failed(format!("{outcome:?}")),
    };
    let wanted = expected.first().map(|bindings| &bindings[variable.trim()]);
    match (&found, wanted) {
        (Some(found), Some(wanted)) if same(found, wanted) => Ended::Passed,
        (None, None) => Ended::Passed,
        _ => Ended::Failed(format!("gave {found:?}, expected {wanted:?}")),
    }
}

/// Of the language itself.
const WORDS: [&str; 5] = ["assign", "eq", "print", "internal.print", "internal.template_string"];
/// Of Rego before version 1.
const OLD: [&str; 11] = [
    "all",
    "any",
    "cast_array",
    "cast_boolean",
    "cast_null",
    "cast_object",
    "cast_set",
    "cast_string",
    "net.cidr_overlap",
    "re_match",
    "set_diff",
];

/// All that this OPA has is its own, ours, or refused by a sentence of its own.
#[test]
fn every_builtin_of_opa_is_there_or_refused_by_name() {
    let Some(opa) = std::env::var_os("OPA_BIN") else {
        println!("OPA_BIN is not set: nobody says which builtins there are");
        return;
    };
    let said = Command::new(&opa).args(["capabilities", "--current"]).output().unwrap();
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let mut calls: BTreeMap<String, String> = BTreeMap::new();
    for builtin in said["builtins"].as_array().unwrap() {
        let name = builtin["name"].as_str().unwrap().to_owned();
        if WORDS.contains(&name.as_str()) || OLD.contains(&name.as_str()) {
            continue;
        }
        let takes = builtin["decl"]["args"].as_array().map_or(0, Vec::len);
        let takes: Vec<String> = (0..takes).map(|number| format!("input.a{number}")).collect();
        let call = format!("{name}({})", takes.join(", "));
        let has_result = !builtin["decl"]["result"].is_null();
        calls.insert(name, if has_result { format!("x := {call}") } else { call });
    }
    let all = calls.len();
    let (mut refused, mut unknown) = (Vec::new(), Vec::new());
    let folder = tempfile::tempdir().unwrap();
    loop {
        let rules: String = calls
            .values()
            .enumerate()
            .map(|(number, call)| format!("p[{number}] if {{ {call} }}\n"))
            .collect();
        std::fs::write(folder.path().join("all.rego"), format!("package all\n\nimport rego.v1\n\n{rules}"))
            .unwrap();
        let built = Command::new(&opa)
            .args(["build", "-t", "wasm", "-e", "all/p", "-o", "all.tar.gz", "all.rego"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        let module = std::fs::read(folder.path().join("all.tar.gz")).unwrap();
        let name = match asked::built(&module, None, None) {
            Ok(_) => break,
            Err(RegoError::Refused { name, .. }) => {
                refused.push(name.clone());
                name
            }
            Err(RegoError::Unknown(name)) => {
                unknown.push(name.clone());
                name
            }
            Err(error) => panic!("{error}"),
        };
        calls.remove(&name).unwrap_or_else(|| panic!("{name} again"));
    }
    println!("{} of {all} builtins are there; refused: {refused:?}; unknown: {unknown:?}", calls.len());
    unknown.sort();
    assert_eq!(unknown, ["internal.test_case", "regex.globs_match"], "one is of tests, which are not built");
    assert!(refused.contains(&"http.send".to_owned()) && refused.len() < 25, "{refused:?}");
}
