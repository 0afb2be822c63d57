//! WASI preview 1 behind a policy: each probe is a core module that calls one function and says what came back as the
//! status of a denial, 100 and more. By itself, with a WASI that grants everything, the same probe says 100.

use std::io::Write;
use std::sync::{Arc, Mutex};

use portcullis::compile::{Terms, build, componentize};
use portcullis::decision::{Outcome, Refusal, TrapKind};
use portcullis::rehearsal::{Granted, Subject};
use wasmtime::{Engine, FuncType, Linker, Module, Store, Val, ValType};

use crate::policy::{ask, opened};

/// Nanoseconds since 1970 when the question was asked.
const NOW: u64 = 57;

/// A module that imports `function` and whose status is what `probe` leaves on the stack, and 100. It has the text "file"
/// at 64, a piece of 4 bytes there at 128, and what is at 256 is its own to write to.
fn module(function: &str, signature: &str, probe: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "{function}" (func $probed {signature}))
            (memory (export "memory") 1)
            (data (i32.const 64) "file") (data (i32.const 128) "\40\00\00\00\04\00\00\00")
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func $status (result i32) {probe})
            (func (export "decide") (param i32) (result i32)
                (i32.store16 (i32.const 530) (i32.add (i32.const 100) (call $status)))
                (i32.store8 (i32.const 516) (i32.const 1))
                (i32.store8 (i32.const 528) (i32.const 1))
                (i32.const 512)))"#
    )
}

/// A decision may take a minute: a machine that stops for a second is not what is tested.
pub(crate) fn patient() -> Granted {
    Granted { deadline_us: Some(60_000_000), ..Granted::default() }
}

fn built(module: &str) -> Subject {
    let refused = build(module.as_bytes(), Terms::default(), &[]).expect_err("built without a stand-in");
    assert!(refused.to_string().contains("wasi_snapshot_preview1"), "{refused}");
    let component = componentize(module.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    opened(&component, &patient())
}

fn status(built: &Subject, seed: u8) -> u16 {
    let decision = ask(built, "", NOW, seed);
    assert!(matches!(decision.outcome, Outcome::Deny { .. }), "{:?}", decision.outcome);
    decision.obligations.status.unwrap()
}

/// The same module with a WASI whose functions succeed and give nothing.
fn status_where_everything_is_granted(module: &str) -> u16 {
    let engine = Engine::default();
    let module = Module::new(&engine, wat::parse_str(module).unwrap()).unwrap();
    let mut linker = Linker::new(&engine);
    for import in module.imports() {
        let ty = import.ty().unwrap_func().clone();
        linker
            .func_new(import.module(), import.name(), ty, |_, _, results| {
                results.fill(Val::I32(0));
                Ok(())
            })
            .unwrap();
    }
    let mut store = Store::new(&engine, ());
    let instance = linker.instantiate(&mut store, &module).unwrap();
    instance.get_typed_func::<u32, u32>(&mut store, "decide").unwrap().call(&mut store, 0).unwrap();
    let memory = instance.get_memory(&mut store, "memory").unwrap();
    let bytes = memory.data(&store);
    u16::from_le_bytes([bytes[530], bytes[531]])
}

/// What reaches outside: the function, its type, how it is called, what it answers.
const DENIED: [(&str, &str, &str, u16); 16] = [
    // NOTCAPABLE
    (
        "path_open",
        "(param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 256))",
        76,
    ),
    (
        "path_filestat_get",
        "(param i32 i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 256))",
        76,
    ),
    (
        "path_unlink_file",
        "(param i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 64) (i32.const 4))",
        76,
    ),
    (
        "path_create_directory",
        "(param i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 64) (i32.const 4))",
        76,
    ),
    (
        "path_readlink",
        "(param i32 i32 i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 64) (i32.const 4) (i32.const 256) (i32.const 64) (i32.const 252))",
        76,
    ),
    (
        "sock_accept",
        "(param i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 0) (i32.const 256))",
        76,
    ),
    (
        "sock_send",
        "(param i32 i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 128) (i32.const 1) (i32.const 0) (i32.const 256))",
        76,
    ),
    (
        "sock_recv",
        "(param i32 i32 i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 128) (i32.const 1) (i32.const 0) (i32.const 256) (i32.const 260))",
        76,
    ),
    // BADF
    ("fd_prestat_get", "(param i32 i32) (result i32)", "(call $probed (i32.const 3) (i32.const 256))", 8),
    (
        "fd_write",
        "(param i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 128) (i32.const 1) (i32.const 256))",
        8,
    ),
    (
        "fd_read",
        "(param i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 3) (i32.const 128) (i32.const 1) (i32.const 256))",
        8,
    ),
    ("fd_fdstat_get", "(param i32 i32) (result i32)", "(call $probed (i32.const 3) (i32.const 256))", 8),
    ("fd_close", "(param i32) (result i32)", "(call $probed (i32.const 3))", 8),
    // SPIPE, INVAL, NOTSUP: nobody sleeps
    (
        "fd_seek",
        "(param i32 i64 i32 i32) (result i32)",
        "(call $probed (i32.const 1) (i64.const 0) (i32.const 0) (i32.const 256))",
        70,
    ),
    (
        "clock_time_get",
        "(param i32 i64 i32) (result i32)",
        "(call $probed (i32.const 9) (i64.const 0) (i32.const 256))",
        28,
    ),
    (
        "poll_oneoff",
        "(param i32 i32 i32 i32) (result i32)",
        "(call $probed (i32.const 256) (i32.const 320) (i32.const 1) (i32.const 400))",
        58,
    ),
];

#[test]
fn files_directories_sockets_and_sleep_are_denied() {
    for (function, signature, probe, errno) in DENIED {
        let module = module(function, signature, probe);
        assert_eq!(status_where_everything_is_granted(&module), 100, "{function}: the probe shows nothing");
        let built = built(&module);
        assert_eq!(status(&built, 1), 100 + errno, "{function}");
        let needs: &[&str] = match function {
            "fd_write" => &["log"],
            "clock_time_get" => &["clock"],
            _ => &[],
        };
        assert_eq!(built.manifest.imports, needs, "{function}");
    }
}

#[test]
fn there_are_no_arguments_and_no_variables() {
    for function in ["args_sizes_get", "environ_sizes_get"] {
        let left = "(i32.store (i32.const 256) (i32.const 9)) (i32.store (i32.const 260) (i32.const 9))";
        let sum = "(call $probed (i32.const 256) (i32.const 260)) (i32.load (i32.const 256)) i32.add (i32.load (i32.const 260)) i32.add";
        let module = module(function, "(param i32 i32) (result i32)", &format!("{left} {sum}"));
        assert_eq!(status_where_everything_is_granted(&module), 118, "{function}: the probe shows nothing");
        let built = built(&module);
        assert_eq!((status(&built, 1), built.manifest.imports.len()), (100, 0), "{function}");
    }
}

#[test]
fn every_clock_is_the_time_of_receipt() {
    for clock in 0..4 {
        let probe = format!(
            "(call $probed (i32.const {clock}) (i64.const 0) (i32.const 256)) (i32.wrap_i64 (i64.load (i32.const 256))) i32.add"
        );
        let built = built(&module("clock_time_get", "(param i32 i64 i32) (result i32)", &probe));
        assert_eq!(u64::from(status(&built, 1)), 100 + NOW);
        assert_eq!(built.manifest.imports, ["clock"]);
    }
}

#[test]
fn random_numbers_come_from_the_seed_and_fill_what_was_asked_for() {
    let at = |offset: u32, len: u32| {
        let probe = format!(
            "(call $probed (i32.const 256) (i32.const {len})) (i32.load8_u (i32.const {})) i32.add",
            256 + offset
        );
        built(&module("random_get", "(param i32 i32) (result i32)", &probe))
    };
    for (offset, len) in [(0, 13), (7, 13), (8, 13), (12, 13), (2, 3)] {
        let built = at(offset, len);
        assert_eq!(built.manifest.imports, ["random"]);
        let drawn: Vec<_> = (1..6).map(|seed| status(&built, seed)).collect();
        assert_eq!(drawn, (1..6).map(|seed| status(&built, seed)).collect::<Vec<_>>(), "not from the seed");
        assert!(drawn.iter().any(|one| *one != drawn[0]), "byte {offset} of {len} is always {}", drawn[0]);
    }
    let beyond = at(13, 13);
    assert!((1..6).all(|seed| status(&beyond, seed) == 100), "more than 13 bytes were written");
}

/// Lines of log, as they are written while `work` runs.
pub(crate) fn logged(work: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let kept = Kept::default();
    let writer = kept.clone();
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn standard_output_and_standard_error_are_lines_of_log() {
    for (fd, level) in [(1, " INFO "), (2, " WARN ")] {
        let bytes = r"one\ntwo \c3\bc \e2\82\ac \f0\9f\a6\80\n\nthree\fffour\c3\28\ed\a0\80\f4\90\80\80\e0\80\80\c0\80end";
        let module = format!(
            r#"(module
                (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
                (memory (export "memory") 1)
                (data (i32.const 1024) "{bytes}")
                (data (i32.const 128) "\00\04\00\00\30\00\00\00\00\04\00\00\03\00\00\00")
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
                (func (export "decide") (param i32) (result i32)
                    (i32.store16 (i32.const 530) (i32.add (i32.const 100)
                        (i32.add (call $write (i32.const {fd}) (i32.const 128) (i32.const 2) (i32.const 256))
                            (i32.load (i32.const 256)))))
                    (i32.store8 (i32.const 516) (i32.const 1))
                    (i32.store8 (i32.const 528) (i32.const 1))
                    (i32.const 512)))"#
        );
        let built = built(&module);
        assert_eq!(built.manifest.imports, ["log"]);
        let mut status = None;
        let lines = logged(|| status = ask(&built, "", NOW, 0).obligations.status);
        let texts: Vec<_> = lines
            .iter()
            .map(|line| {
                assert!(line.contains(level), "{line}");
                line.rsplit_once("guest=\"").expect("a guest's line").1.trim_end_matches('"').to_owned()
            })
            .collect();
        // What std takes for text, and nothing of the rest.
        assert_eq!(texts, ["one", "two ü € 🦀", "three", "four", "(", "end", "one"], "{lines:?}");
        // All of it counts as written: 48 bytes, and 3 of them again.
        assert_eq!(status, Some(151), "{lines:?}");
    }
}

#[test]
fn to_exit_is_a_trap() {
    for (function, signature, probe) in [
        ("proc_exit", "(param i32)", "(call $probed (i32.const 0)) (i32.const 0)"),
        ("proc_raise", "(param i32) (result i32)", "(call $probed (i32.const 9))"),
    ] {
        let module = module(function, signature, probe);
        assert_eq!(status_where_everything_is_granted(&module), 100, "{function}: the probe shows nothing");
        let decision = ask(&built(&module), "", NOW, 0);
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Trap(TrapKind::Unreachable)), "{function}");
    }
}

#[test]
fn what_wasi_does_not_have_is_refused_by_name() {
    let refused = |module: &str| componentize(module.as_bytes()).expect_err("made").to_string();
    let unknown = module("fd_steal", "(param i32) (result i32)", "(call $probed (i32.const 0))");
    assert!(refused(&unknown).contains("fd_steal"), "{}", refused(&unknown));
    let close = module("fd_close", "(param i32) (result i32)", "(call $probed (i32.const 0))");
    componentize(close.as_bytes()).expect("the same with a function that there is");
    let old = close.replace("wasi_snapshot_preview1", "wasi_unstable");
    assert!(refused(&old).contains("wasi_unstable"), "{}", refused(&old));
    let wrong = module("fd_close", "(param i64) (result i32)", "(call $probed (i64.const 0))");
    assert!(refused(&wrong).contains("fd_close"), "{}", refused(&wrong));
}

/// Every function of preview 1 is there, with the type that libraries expect: a module that imports all of them builds.
#[test]
fn every_function_is_there() {
    let text = include_str!("../../src/compile/wasi/preview1.wat");
    let adapter = wat::parse_str(
        text.replace("VERSION", "1.0.0")
            .replace(";; LINES", include_str!("../../src/compile/wasi/lines.wat")),
    )
    .unwrap();
    let engine = Engine::default();
    let module = Module::new(&engine, &adapter).unwrap();
    let name = |ty: &ValType| if matches!(ty, ValType::I64) { "i64" } else { "i32" };
    let imports: String = module
        .exports()
        .map(|export| {
            let ty: FuncType = export.ty().unwrap_func().clone();
            let params: Vec<_> = ty.params().map(|ty| name(&ty)).collect();
            let results: Vec<_> = ty.results().map(|ty| name(&ty)).collect();
            format!(
                "(import \"wasi_snapshot_preview1\" \"{}\" (func (param {}) (result {})))\n",
                export.name(),
                params.join(" "),
                results.join(" ")
            )
        })
        .collect();
    assert_eq!(imports.lines().count(), 46, "preview 1 has 46 functions");
    let built = built(&module_with(&imports));
    assert_eq!(built.manifest.imports, ["clock", "log", "random"]);
}

fn module_with(imports: &str) -> String {
    format!(
        r#"(module {imports}
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
            (func (export "decide") (param i32) (result i32) (i32.const 512)))"#
    )
}
