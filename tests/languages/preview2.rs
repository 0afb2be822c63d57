//! WASI preview 2 behind a policy: components that import it, each with one probe, as for preview 1.

use portcullis::compile::{Terms, build, componentize};
use portcullis::decision::{Decision, Outcome, Refusal, TrapKind};
use portcullis::engine::World;
use portcullis::rehearsal::Subject;
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use crate::policy::{self, opened};
use crate::preview1::{logged, patient};

const NOW: u64 = 57_000_000_123;

/// As much of WASI as the probes need, and two things that it does not have.
const WASI: &str = "
    package wasi:cli@0.2.3 {
        interface environment { get-environment: func() -> list<tuple<string, string>>; initial-cwd: func() -> option<string>; }
        interface exit { exit: func(status: result); }
        interface stdout { use wasi:io/streams@0.2.3.{output-stream}; get-stdout: func() -> output-stream; }
    }
    package wasi:io@0.2.3 {
        interface error { resource error; }
        interface streams {
            use error.{error};
            variant stream-error { last-operation-failed(error), closed }
            resource output-stream {
                check-write: func() -> result<u64, stream-error>;
                write: func(contents: list<u8>) -> result<_, stream-error>;
            }
        }
    }
    package wasi:clocks@0.2.3 {
        interface monotonic-clock { now: func() -> u64; }
        interface wall-clock { record datetime { seconds: u64, nanoseconds: u32 } now: func() -> datetime; }
    }
    package wasi:random@0.2.3 {
        interface random { get-random-bytes: func(len: u64) -> list<u8>; get-random-u64: func() -> u64; }
    }
    package wasi:filesystem@0.2.3 {
        interface types {
            enum error-code { access, would-block }
            resource descriptor { open-at: func(path: string) -> result<descriptor, error-code>; sync: func() -> result<u64, error-code>; }
        }
        interface preopens { use types.{descriptor}; get-directories: func() -> list<tuple<descriptor, string>>; }
    }
    package wasi:sockets@0.2.3 {
        interface tcp-create-socket {
            enum error-code { unknown, access-denied }
            resource tcp-socket;
            create-tcp-socket: func() -> result<tcp-socket, error-code>;
        }
        interface odd { reach: func() -> u32; }
    }
";

/// A component that imports these interfaces of WASI and of the world, and whose status is what `probe` leaves on the stack,
/// and 100. Room for results is at 256.
fn component(interfaces: &[&str], core_imports: &str, probe: &str) -> Vec<u8> {
    let module = format!(
        r#"(module {core_imports}
            (memory (export "memory") 1)
            (data (i32.const 64) "one\ntwo\n")
            (global $next (mut i32) (i32.const 4096))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.get $next)
                (global.set $next (i32.add (global.get $next) (i32.add (local.get 3) (i32.const 8)))))
            (func $status (result i32) {probe})
            (func (export "decide") (param i32) (result i32)
                (i32.store16 (i32.const 530) (i32.add (i32.const 100) (call $status)))
                (i32.store8 (i32.const 516) (i32.const 1))
                (i32.store8 (i32.const 528) (i32.const 1))
                (i32.const 512)))"#
    );
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    resolve.push_str("policy.wit", World::LATEST.wit()).unwrap();
    let imports: String = interfaces.iter().map(|name| format!("import {name};\n")).collect();
    let text = format!(
        "package test:probe;\nworld probe {{\n{imports}use portcullis:policy/types@1.0.0.{{request, decision, failure}};\n\
         export decide: func(request: request) -> result<decision, failure>;\n}}\n{WASI}"
    );
    let package = resolve.push_str("probe.wit", &text).unwrap();
    let world = resolve.select_world(&[package], Some("probe")).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

fn built(component: &[u8]) -> Subject {
    let refused = build(component, Terms::default(), &[]).expect_err("built without a stand-in").to_string();
    assert!(refused.contains("imports \"wasi:"), "{refused}");
    let answered = componentize(component).unwrap();
    opened(&answered, &patient())
}

fn ask(built: &Subject, seed: u8) -> Decision {
    policy::ask(built, "", NOW, seed)
}

fn status(built: &Subject) -> u16 {
    let decision = ask(built, 1);
    assert!(matches!(decision.outcome, Outcome::Deny { .. }), "{:?}", decision.outcome);
    decision.obligations.status.unwrap() - 100
}

#[test]
fn nothing_outside_is_reached() {
    // Something is written to where the result goes first: that it is gone shows that there was one.
    let dirty = "(i64.store (i32.const 256) (i64.const 0x0909090909090909))";
    for (interface, import, call, expected) in [
        (
            "wasi:cli/environment@0.2.3",
            "\"get-environment\" (func $f (param i32))",
            "(call $f (i32.const 256)) (i32.load offset=4 (i32.const 256))",
            0,
        ),
        (
            "wasi:cli/environment@0.2.3",
            "\"initial-cwd\" (func $f (param i32))",
            "(call $f (i32.const 256)) (i32.load8_u (i32.const 256))",
            0,
        ),
        (
            "wasi:filesystem/preopens@0.2.3",
            "\"get-directories\" (func $f (param i32))",
            "(call $f (i32.const 256)) (i32.load offset=4 (i32.const 256))",
            0,
        ),
        // An error, and it is `access`: 1 and 0.
        (
            "wasi:filesystem/types@0.2.3",
            "\"[method]descriptor.open-at\" (func $f (param i32 i32 i32 i32))",
            "(call $f (i32.const 3) (i32.const 64) (i32.const 3) (i32.const 256)) (i32.add (i32.load8_u (i32.const 256)) (i32.load8_u offset=4 (i32.const 256)))",
            1,
        ),
        (
            "wasi:filesystem/types@0.2.3",
            "\"[method]descriptor.sync\" (func $f (param i32 i32))",
            "(call $f (i32.const 3) (i32.const 256)) (i32.add (i32.load8_u (i32.const 256)) (i32.load8_u offset=8 (i32.const 256)))",
            1,
        ),
        (
            "wasi:sockets/tcp-create-socket@0.2.3",
            "\"create-tcp-socket\" (func $f (param i32))",
            "(call $f (i32.const 256)) (i32.add (i32.load8_u (i32.const 256)) (i32.load8_u offset=4 (i32.const 256)))",
            1,
        ),
        (
            "wasi:filesystem/types@0.2.3",
            "\"[resource-drop]descriptor\" (func $f (param i32))",
            "(call $f (i32.const 3)) (i32.const 7)",
            7,
        ),
    ] {
        let component = component(
            &[interface],
            &format!("(import \"{interface}\" {import})"),
            &format!("{dirty} {call}"),
        );
        let built = built(&component);
        assert_eq!((status(&built), built.manifest.imports.len()), (expected, 0), "{import}");
    }
}

#[test]
fn what_has_no_error_of_its_own_is_a_trap() {
    for (interface, import, call) in [
        ("wasi:cli/exit@0.2.3", "\"exit\" (func $f (param i32))", "(call $f (i32.const 0)) (i32.const 0)"),
        ("wasi:sockets/odd@0.2.3", "\"reach\" (func $f (result i32))", "(call $f)"),
        // The policy's author asks for no clock.
        ("wasi:clocks/monotonic-clock@0.2.3", "\"now\" (func $f (result i64))", "(i32.wrap_i64 (call $f))"),
        ("wasi:random/random@0.2.3", "\"get-random-u64\" (func $f (result i64))", "(i32.wrap_i64 (call $f))"),
    ] {
        let built = built(&component(&[interface], &format!("(import \"{interface}\" {import})"), call));
        assert_eq!(built.manifest.imports.len(), 0);
        assert_eq!(
            ask(&built, 1).outcome,
            Outcome::Refused(Refusal::Trap(TrapKind::Unreachable)),
            "{import}"
        );
    }
}

/// Both are imported and called, so that what a component has of the world itself goes on working.
#[test]
fn clocks_and_random_numbers_are_the_worlds_where_it_is_asked_for_them() {
    let clock = "(import \"portcullis:policy/clock@1.0.0\" \"now\" (func $own (result i64)))";
    let component = |import: &str, probe: &str| {
        let interfaces = [
            "portcullis:policy/clock@1.0.0",
            "wasi:clocks/monotonic-clock@0.2.3",
            "wasi:clocks/wall-clock@0.2.3",
        ];
        component(&interfaces, &format!("{clock} {import}"), probe)
    };
    let monotonic = component(
        "(import \"wasi:clocks/monotonic-clock@0.2.3\" \"now\" (func $f (result i64)))",
        "(i64.eq (call $f) (call $own))",
    );
    let wall = component(
        "(import \"wasi:clocks/wall-clock@0.2.3\" \"now\" (func $f (param i32)))",
        "(drop (call $own)) (call $f (i32.const 256)) (i32.add (i32.load (i32.const 256)) (i32.load offset=8 (i32.const 256)))",
    );
    for (component, expected) in [(monotonic, 1), (wall, 57 + 123)] {
        let built = built(&component);
        assert_eq!((status(&built), built.manifest.imports.clone()), (expected, vec!["clock".to_owned()]));
    }

    let interfaces = ["portcullis:policy/random@1.0.0", "wasi:random/random@0.2.3"];
    let imports = "(import \"portcullis:policy/random@1.0.0\" \"get-u64\" (func $own (result i64)))
        (import \"wasi:random/random@0.2.3\" \"get-random-bytes\" (func $f (param i64 i32)))";
    let probe = "(drop (call $own)) (call $f (i64.const 5) (i32.const 256))
        (i32.add (i32.load8_u offset=4 (i32.load (i32.const 256))) (i32.mul (i32.const 0) (i32.load offset=4 (i32.const 256))))";
    let built = built(&self::component(&interfaces, imports, probe));
    assert_eq!(built.manifest.imports, ["random"]);
    let drawn: Vec<_> = (1..6).map(|seed| ask(&built, seed).obligations.status).collect();
    assert_eq!(drawn, (1..6).map(|seed| ask(&built, seed).obligations.status).collect::<Vec<_>>());
    assert!(drawn.iter().any(|one| *one != drawn[0]), "{drawn:?}");
}

#[test]
fn standard_output_is_log_where_it_is_asked_for() {
    let imports = "(import \"wasi:cli/stdout@0.2.3\" \"get-stdout\" (func $stdout (result i32)))
        (import \"wasi:io/streams@0.2.3\" \"[method]output-stream.check-write\" (func $check (param i32 i32)))
        (import \"wasi:io/streams@0.2.3\" \"[method]output-stream.write\" (func $write (param i32 i32 i32 i32)))";
    let probe = "(call $check (call $stdout) (i32.const 256))
        (call $write (call $stdout) (i32.const 64) (i32.const 8) (i32.const 280))
        (i32.add (i32.load8_u (i32.const 256)) (i32.load8_u (i32.const 280)))";
    let wasi = ["wasi:cli/stdout@0.2.3", "wasi:io/streams@0.2.3"];
    let silent = built(&component(&wasi, imports, probe));
    assert_eq!((status(&silent), silent.manifest.imports.len()), (0, 0));

    let own = "(import \"portcullis:policy/log@1.0.0\" \"write\" (func $own (param i32 i32 i32)))";
    let interfaces = ["portcullis:policy/log@1.0.0", wasi[0], wasi[1]];
    let probe = format!("(call $own (i32.const 1) (i32.const 64) (i32.const 3)) {probe}");
    let heard = built(&component(&interfaces, &format!("{own} {imports}"), &probe));
    assert_eq!(heard.manifest.imports, ["log"]);
    let lines = logged(|| assert_eq!(status(&heard), 0));
    let texts: Vec<_> = lines.iter().filter_map(|line| Some(line.rsplit_once("guest=\"")?.1)).collect();
    assert_eq!(texts, ["one\"", "one\"", "two\""], "{lines:?}");
}
