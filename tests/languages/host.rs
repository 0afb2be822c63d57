//! What the kit of each language has of the host: the clock, random numbers, data, counters and the log, which says whose
//! line it is.

use portcullis::engine::HostCall;
use portcullis::rehearsal::{Granted, Subject, facts};
use serde_json::json;

use crate::policy::ask_with;
use crate::preview1::logged;
use crate::projects::Project;

/// Builds a project whose policy is `tests/languages/host/FILE`, and asks it.
fn uses_the_host(language: &str, file: &str, place: &str) {
    let project = Project::new(language);
    project.link_tools(language);
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/languages/host").join(file);
    std::fs::copy(source, project.dir.join(place)).unwrap();
    project.build_with(&["--no-code", "--metric", "looked-up", "--data", "names"]);
    let subject = Subject::open(&project.dir.join("gate.bundle"), &Granted::default()).unwrap();
    assert_eq!(subject.manifest.imports, ["clock", "data", "log", "metric", "random"], "{language}");

    let data = facts(json!({ "name": "alice", "other": "bob" }).as_object().unwrap()).unwrap();
    let data = std::sync::Arc::new(data);
    let mut asked = None;
    let lines = logged(|| asked = Some(ask_with(&subject, "", 57, 1, Some(data))));
    let asked = asked.unwrap();
    let outcome = format!("{:?}", asked.decision.outcome);
    assert!(outcome.contains("alice"), "{language}: {outcome}");
    assert_eq!(asked.decision.obligations.status, Some(403), "{language}");
    let counted = HostCall::Metric { name: "looked-up".into(), value: 2, counted: true };
    assert!(asked.notes.calls.contains(&counted), "{language}: {:?}", asked.notes.calls);
    let line = lines.iter().find(|line| line.contains("a line")).expect("a line of log");
    let tags = [" WARN ", "tenant=acme", "policy=gate", &format!("digest={}", subject.digest())];
    assert!(tags.iter().all(|tag| line.contains(tag)), "{language}: {line}");
}

#[test]
fn rust() {
    uses_the_host("rust", "lib.rs", "src/lib.rs");
}

#[test]
fn go() {
    uses_the_host("go", "policy.go", "policy.go");
}

#[test]
fn c() {
    uses_the_host("c", "policy.c", "policy.c");
}

#[test]
fn assemblyscript() {
    uses_the_host("assemblyscript", "policy.ts", "assembly/policy.ts");
}
