//! Reactors: what starts before there is a request has started where it is built. And one with a whole standard library, Go's:
//! what it does with it meets the stand-ins.

use portcullis::compile::componentize;
use portcullis::decision::{Decision, Outcome, Refusal};
use portcullis::rehearsal::{Granted, Subject};

use crate::policy::{self, opened};
use crate::preview1::{logged, patient};
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
    let granted = Granted { memory: Some(16 << 20), ..patient() };
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

/// Its status is 110, what it has in its memory, and what it counts; asking counts 10 more.
fn reactor(initialize: &str) -> Vec<u8> {
    let module = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "portcullis:policy/clock@1.0.0" "now" (func $now (result i64)))
            (memory (export "memory") 1)
            (data (i32.const 64) "no seat left") (data (i32.const 128) "\40\00\00\00\0c\00\00\00")
            (global $count (mut i32) (i32.const 0))
            (func (export "_initialize") {initialize})
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "decide") (param i32) (result i32)
                (drop (call $now))
                (global.set $count (i32.add (global.get $count) (i32.const 10)))
                (i32.store16 (i32.const 530) (i32.add (i32.const 100)
                    (i32.add (global.get $count) (i32.load8_u (i32.const 1024)))))
                (i32.store8 (i32.const 516) (i32.const 1))
                (i32.store8 (i32.const 528) (i32.const 1))
                (i32.const 512)))"#
    );
    wat::parse_str(module).unwrap()
}

#[test]
fn what_a_reactor_does_first_is_what_every_instance_begins_with() {
    let status = |component: &[u8]| {
        let guest = opened(component, &patient());
        [1, 2].map(|seed| ask(&guest, "", seed).obligations.status)
    };
    assert_eq!(status(&componentize(&reactor("")).unwrap()), [Some(110); 2]);

    let module = reactor("(global.set $count (i32.const 3)) (i32.store8 (i32.const 1024) (i32.const 40))");
    let component = componentize(&module).unwrap();
    assert_eq!(status(&component), [Some(153); 2]);
    assert_eq!(componentize(&module).unwrap(), component);
}

#[test]
fn a_reactor_that_does_not_start_says_why() {
    let say = "(drop (call $write (i32.const 2) (i32.const 128) (i32.const 1) (i32.const 256)))";
    componentize(&reactor(say)).expect("to print is none of the reasons");
    for (initialize, said) in [
        ("unreachable".to_owned(), "unreachable"),
        (format!("{say} unreachable"), "it printed \"no seat left\""),
        ("(drop (call $now))".to_owned(), "\"now\" before there is a request"),
        ("(drop (memory.grow (i32.const 8192)))".to_owned(), "growing memory"),
    ] {
        let refused = componentize(&reactor(&initialize)).expect_err(&initialize).to_string();
        assert!(refused.starts_with("start policy: ") && refused.contains(said), "{refused}");
    }
}
