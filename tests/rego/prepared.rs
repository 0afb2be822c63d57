//! Components that do something before they are shipped: what is kept of that, what is not kept of requests, and what no
//! snapshot can be taken of.

use std::sync::Arc;

use portcullis::artifact::Digest;
use portcullis::bundle::Platform;
use portcullis::compile::{self, PrepareError, Prepared, Terms};
use portcullis::decision::{Decision, Input, Outcome};
use portcullis::engine::Policy;
use wasmtime::component::{Component, Linker, Val};
use wasmtime::{Engine, Store};

use crate::asked::{ask, loaded};
use crate::service::{bad, build, good, text};

const MEMORY: u32 = 1 << 20;
const PLANTED: &[u8] = b"planted-by-prepare";
const CANARY: &[u8] = b"canary-of-request-n";

/// Denies with what it has kept, and keeps what it is asked: whatever is left of a request is what the next one hears.
fn parrot(extra: &str) -> Vec<u8> {
    component(&format!(
        r#"(module {extra}
            (memory (export "memory") 2)
            (global $next (mut i32) (i32.const 16384))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (local $at i32)
                (local.set $at (global.get $next))
                (global.set $next (i32.and
                    (i32.add (i32.add (local.get $at) (local.get 3)) (i32.const 7)) (i32.const -8)))
                (local.get $at))
            (func $keep (param $from i32) (param $length i32)
                (i32.store (i32.const 4096) (local.get $length))
                (memory.copy (i32.const 4100) (local.get $from) (local.get $length)))
            (func (export "prepare") (param i32 i32) (result i32)
                (call $keep (local.get 0) (local.get 1))
                (i32.const 1024))
            (func (export "decide") (param $request i32) (result i32)
                (local $length i32)
                (local.set $length (i32.load (i32.const 4096)))
                (memory.copy (i32.const 8192) (i32.const 4100) (local.get $length))
                (i32.store8 (i32.const 516) (i32.const 1))
                (i32.store (i32.const 520) (i32.const 8192))
                (i32.store (i32.const 524) (local.get $length))
                (call $keep (i32.load offset=12 (local.get $request)) (i32.load offset=16 (local.get $request)))
                (i32.const 512)))"#
    ))
}

fn component(module: &str) -> Vec<u8> {
    compile::componentize(module.as_bytes()).unwrap()
}

fn prepared(component: &[u8]) -> Prepared {
    compile::prepare(component, Some(PLANTED), false).unwrap()
}

fn said(decision: &Decision) -> Vec<u8> {
    match &decision.outcome {
        Outcome::Deny { reason } => reason.clone().into_bytes(),
        outcome => panic!("{outcome:?}"),
    }
}

fn asks(policy: &Arc<Policy>, bytes: &[u8]) -> Vec<u8> {
    said(&ask(policy, &Input::Opaque { content_type: "", bytes }))
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn what_is_prepared_is_there_and_what_a_request_leaves_is_not() {
    let source = parrot("");
    let made = prepared(&source);
    assert_eq!(made.config.component, Digest::of(&source));
    assert_eq!(made.config.data, Some(Digest::of(PLANTED)));
    assert!(made.config.taken);

    // Control: within one instance the parrot says what it was asked before.
    let mut parrot = OneInstance::of(&made.component);
    assert_eq!(parrot.ask(CANARY), PLANTED);
    assert_eq!(parrot.ask(b"next"), CANARY, "the canary can be found at all");

    let policy = loaded(&made.component, MEMORY);
    let other = loaded(&made.component, MEMORY);
    for _ in 0..32 {
        assert_eq!(asks(&policy, CANARY), PLANTED, "request n");
        assert_eq!(asks(&policy, b"next"), PLANTED, "request n + 1");
        assert_eq!(asks(&other, b"next"), PLANTED, "another tenant");
    }
    let built = compile::build(&made.component, Terms::default(), &[Platform::host()]).unwrap();
    for artifact in [made.component.as_slice(), crate::support::code(&built)] {
        assert!(has(artifact, PLANTED), "what is prepared is in the artifact");
        assert!(!has(artifact, CANARY));
    }
}

#[test]
fn what_is_shipped_has_no_prepare_and_is_the_same_every_time() {
    let source = parrot("");
    assert!(compile::is_prepared(&source));
    let made = prepared(&source);
    assert!(!compile::is_prepared(&made.component));
    assert!(made == prepared(&source));
    let other = compile::prepare(&source, Some(b"other"), false).unwrap();
    assert!(other.component != made.component && other.config.data != made.config.data);
}

#[test]
fn what_no_snapshot_can_be_taken_of_is_refused_by_name() {
    const TABLES: &str = "(table $t 2 funcref) (elem $e func $nothing) (func $nothing)";
    for (instruction, code) in [
        ("table.set", "(table.set $t (i32.const 0) (ref.null func))"),
        ("table.grow", "(drop (table.grow $t (ref.null func) (i32.const 1)))"),
        ("table.init", "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1))"),
        ("table.copy", "(table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 1))"),
        ("table.fill", "(table.fill $t (i32.const 0) (ref.null func) (i32.const 1))"),
        ("elem.drop", "(elem.drop $e)"),
        ("data.drop", "(data.drop $d)"),
    ] {
        let data = if instruction == "data.drop" { r#"(data $d "x")"# } else { "" };
        // Imports come first, then what is defined; a module's fields may stand in any order otherwise.
        let source = parrot(&format!("{TABLES} {data} (func (export \"unused\") {code})"));
        let why = compile::prepare(&source, None, false).unwrap_err().to_string();
        assert!(why.contains("no snapshot can be taken of it: its code at 0x"), "{why}");
        assert!(why.contains(&format!("has {instruction};")), "{why}");
        assert!(why.contains("`snapshot = \"optional\"` in its policy.toml"), "{why}");
        let unprepared = compile::prepare(&source, Some(PLANTED), true).unwrap();
        assert!(!unprepared.config.taken);
        assert!(!compile::is_prepared(&unprepared.component));
        assert_eq!(asks(&loaded(&unprepared.component, MEMORY), b"x"), b"", "it starts with nothing");
    }
    // Control: the same module without such an instruction.
    assert!(prepared(&parrot(TABLES)).config.taken);

    let twice = wat::parse_str(
        r#"(component
            (core module $m (memory (export "memory") 1)
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 0)
                (func (export "prepare") (param i32 i32) (result i32) i32.const 0))
            (core instance $one (instantiate $m))
            (core instance $two (instantiate $m))
            (func (export "prepare") (param "document" (list u8)) (result (result (error string)))
                (canon lift (core func $one "prepare") (memory $one "memory")
                    (realloc (func $one "realloc")))))"#,
    )
    .unwrap();
    let why = compile::prepare(&twice, None, false).unwrap_err().to_string();
    assert!(why.contains("instantiated at most once"), "{why}");
}

#[test]
fn without_a_snapshot_it_is_shipped_only_if_its_manifest_says_so() {
    let desk = tempfile::tempdir().unwrap();
    let [source, manifest, document, out] =
        ["gate.wasm", "policy.toml", "document", "gate.tar"].map(|name| desk.path().join(name));
    let sets = parrot(
        "(table $t 2 funcref) (func (export \"unused\") (table.set $t (i32.const 0) (ref.null func)))",
    );
    std::fs::write(&source, sets).unwrap();
    std::fs::write(&document, PLANTED).unwrap();
    let more = ["--manifest", text(&manifest), "--document", text(&document)];
    std::fs::write(&manifest, "").unwrap();
    let said = bad(&build(text(&source), text(&out), &more), &[]);
    assert!(said.contains("has table.set; leave that out"), "{said}");
    assert!(!out.exists());
    std::fs::write(&manifest, "snapshot = \"optional\"\n").unwrap();
    good(&build(text(&source), text(&out), &more));
    let shown: serde_json::Value = serde_json::from_str(&good(&["inspect", text(&out), "--json"])).unwrap();
    assert_eq!(shown["config"]["prepared"]["taken"], false, "{shown}");
    // Control: what a snapshot can be taken of has one, whatever is allowed.
    std::fs::write(&source, parrot("")).unwrap();
    std::fs::remove_file(&out).unwrap();
    good(&build(text(&source), text(&out), &more));
    let shown: serde_json::Value = serde_json::from_str(&good(&["inspect", text(&out), "--json"])).unwrap();
    assert_eq!(shown["config"]["prepared"]["taken"], true, "{shown}");
}

#[test]
fn a_prepare_that_fails_ends_the_build_whatever_the_manifest_says() {
    let with = |prepare: &str, import: &str| {
        component(&format!(
            r#"(module {import}
                (memory (export "memory") 2)
                (data (i32.const 1024) "\01\00\00\00\10\04\00\00\07\00\00\00")
                (data (i32.const 1040) "no data")
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
                (func (export "prepare") (param i32 i32) (result i32) {prepare})
                (func (export "decide") (param i32) (result i32) (i32.const 512)))"#
        ))
    };
    let fails =
        |prepare: &str, import: &str| compile::prepare(&with(prepare, import), None, true).unwrap_err();
    let clock = r#"(import "portcullis:policy/clock@1.0.0" "now" (func $now (result i64)))"#;
    assert!(compile::prepare(&with("(i32.const 512)", clock), None, false).is_ok(), "the control");
    let error = fails("(i32.const 1024)", "");
    assert!(matches!(&error, PrepareError::GaveUp(why) if why == "no data"), "{error}");
    let error = fails("unreachable", "");
    assert!(matches!(&error, PrepareError::Trap(why) if why.contains("unreachable")), "{error}");
    let error = fails("(drop (call $now)) (i32.const 512)", clock);
    assert!(matches!(error, PrepareError::Trap(_)), "there is no host: {error}");
    let error = fails("(i32.const 0x7fffffff)", "");
    assert!(matches!(error, PrepareError::Trap(_)), "{error}");
}

/// A component asked again and again in the same instance, which no worker ever does.
struct OneInstance {
    store: Store<()>,
    decide: wasmtime::component::Func,
}

impl OneInstance {
    fn of(component: &[u8]) -> Self {
        let engine = Engine::default();
        let component = Component::new(&engine, component).unwrap();
        let mut store = Store::new(&engine, ());
        let instance = Linker::new(&engine).instantiate(&mut store, &component).unwrap();
        let decide = instance.get_func(&mut store, "decide").unwrap();
        Self { store, decide }
    }

    fn ask(&mut self, bytes: &[u8]) -> Vec<u8> {
        let bytes = bytes.iter().map(|byte| Val::U8(*byte)).collect();
        let opaque = Val::Record(vec![
            ("content-type".into(), Val::String(String::new())),
            ("bytes".into(), Val::List(bytes)),
        ]);
        let request = Val::Variant("opaque".into(), Some(Box::new(opaque)));
        let mut results = [Val::Bool(false)];
        self.decide.call(&mut self.store, &[request], &mut results).unwrap();
        let [Val::Result(Ok(Some(decision)))] = &results else { panic!("{results:?}") };
        let Val::Record(fields) = decision.as_ref() else { panic!("{decision:?}") };
        match &fields[0].1 {
            Val::Variant(verdict, Some(reason)) if verdict == "deny" => match reason.as_ref() {
                Val::String(reason) => reason.clone().into_bytes(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}
