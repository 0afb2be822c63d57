//! A guest with a whole standard library, Go's: what it does with it meets the stand-ins.

use portcullis::compile::componentize;
use portcullis::decision::{Decision, Outcome, Refusal};
use portcullis::rehearsal::{Granted, Subject};

use crate::policy::{self, opened};
use crate::preview1::logged;
use crate::projects::Project;

const NOW: u64 = 1_767_225_600_123_456_789;

fn ask(guest: &Subject, what: &str, seed: u8) -> Decision {
    policy::ask(guest, what, NOW, seed)
}

fn said(guest: &Subject, what: &str) -> String {
    match ask(guest, what, 1).outcome {
        Outcome::Deny { reason } => reason,
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn a_standard_library_reaches_nothing() {
    let project = Project::new("go");
    std::fs::write(project.dir.join("policy.go"), include_str!("probe.go")).unwrap();
    let module = project.module();
    let granted = Granted { memory: Some(16 << 20), ..Granted::default() };
    let guest = opened(&componentize(&module).unwrap(), &granted);
    assert_eq!(guest.manifest.imports, ["clock", "log", "random"]);

    for what in ["open", "write", "list"] {
        let said = said(&guest, what);
        assert!(
            said.contains("Capabilities insufficient") || said.contains("Bad file number"),
            "{what}: {said}"
        );
    }
    assert!(!std::path::Path::new("/tmp/portcullis-probe").exists());
    assert_eq!(said(&guest, "environment"), "[]");
    assert_eq!(said(&guest, "arguments"), "0");
    assert_eq!(said(&guest, "clock"), NOW.to_string());
    assert_eq!(said(&guest, "work"), "xx5000");

    let random = |seed| ask(&guest, "random", seed).outcome;
    assert_eq!(random(1), random(1));
    assert_ne!(random(1), random(2));

    let mut printed = None;
    let lines = logged(|| printed = Some(said(&guest, "print")));
    assert_eq!(printed.as_deref(), Some("printed"));
    let is = |level: &str, text: &str| lines.iter().any(|line| line.contains(level) && line.contains(text));
    assert!(is(" INFO ", "to standard output") && is(" WARN ", "to standard error"), "{lines:?}");

    for what in ["sleep", "exit"] {
        let outcome = ask(&guest, what, 1).outcome;
        assert!(matches!(outcome, Outcome::Refused(Refusal::Trap(_))), "{what}: {outcome:?}");
    }
    let outcome = ask(&guest, "panic", 1).outcome;
    let failed = Refusal::PolicyFailed { reason: "panic".into(), detail: "at the policy".into() };
    assert_eq!(outcome, Outcome::Refused(failed));
}
