//! The worker as it is packaged: built by itself, without the compiler, since one cargo invocation unifies the features of
//! all programs. It holds no code that could make machine code, and runs what builders made.
//!
//! Building it takes some minutes the first time.
#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

#[path = "support/copies.rs"]
mod copies;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use copies::copy_program;
use portcullis::decision::Outcome;
use support::Site;

/// What a compiler is made of: crates, and how their names stand in the names of functions.
const COMPILER: [(&str, &str); 4] = [
    ("cranelift-codegen", "17cranelift_codegen"),
    ("regalloc2", "9regalloc2"),
    ("wasmtime-internal-cranelift", "27wasmtime_internal_cranelift"),
    ("wit-component", "13wit_component"),
];

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Put into a directory of its own: in the usual one it would take the place of the other worker. What both are made of is
/// built once.
fn packaged() -> &'static Path {
    static WORKER: OnceLock<PathBuf> = OnceLock::new();
    WORKER.get_or_init(|| {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let target = tmp.join("packaged");
        succeeds(
            cargo()
                .env("CARGO_BUILD_BUILD_DIR", tmp.parent().unwrap())
                .args(["build", "--locked", "--offline", "--quiet", "--no-default-features"])
                .args(["--bin", "portcullis-worker", "--target-dir"])
                .arg(&target),
        );
        target.join("debug/portcullis-worker")
    })
}

fn has(program: &Path, symbol: &str) -> bool {
    let bytes = fs::read(program).unwrap();
    bytes.windows(symbol.len()).any(|window| window == symbol.as_bytes())
}

#[test]
fn the_packaged_worker_depends_on_no_compiler() {
    let tree = |more: &[&str]| {
        succeeds(
            cargo()
                .args([
                    "tree",
                    "--locked",
                    "--offline",
                    "--edges",
                    "normal,no-proc-macro",
                    "--prefix",
                    "none",
                ])
                .args(more),
        )
    };
    let (with, without) = (tree(&[]), tree(&["--no-default-features"]));
    let names = |tree: &str, name: &str| tree.lines().any(|line| line.split(' ').next() == Some(name));
    for (name, _) in COMPILER {
        assert!(names(&with, name), "{name} is not where it is: the test sees nothing");
        assert!(!names(&without, name), "a worker without the compiler depends on {name}");
    }
    assert!(names(&without, "wasmtime"), "{without}");
}

#[test]
fn the_packaged_worker_has_no_function_of_a_compiler() {
    let worker = packaged();
    let builder = Path::new(env!("CARGO_BIN_EXE_portcullis-builder"));
    for (name, symbol) in COMPILER {
        assert!(has(builder, symbol), "{symbol} is not found where it is: the test sees nothing");
        assert!(!has(worker, symbol), "the packaged worker has functions of {name}");
    }
    assert!(has(worker, "8wasmtime"), "the packaged worker has an engine");
    let bytes = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(bytes(worker) * 2 < bytes(builder), "{} of {} bytes", bytes(worker), bytes(builder));
}

/// A service out of the usual programs and this worker: what was compiled with the compiler's features is loaded without.
#[test]
fn the_packaged_worker_decides_with_what_was_compiled_elsewhere() {
    let mut site = Site::new().class("web", "");
    let programs = site.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::set_permissions(&programs, fs::Permissions::from_mode(0o755)).unwrap();
    let usual = Path::new(env!("CARGO_BIN_EXE_portcullis-supervisor")).parent().unwrap();
    for name in ["supervisor", "spawner", "frontend", "registry", "builder", "exporter", "gateway"] {
        let name = format!("portcullis-{name}");
        copy_program(&usual.join(&name), &programs.join(&name));
    }
    copy_program(packaged(), &programs.join("portcullis-worker"));
    site.supervisor = programs.join("portcullis-supervisor");
    let service = site.tenant("acme", "web", &[("gate", "hostile/selective"), ("hash", "hash")], "").start();
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    assert!(matches!(service.ask("acme", "gate", b"deny").outcome, Outcome::Deny { .. }));
    assert!(service.ask("acme", "hash", b"anything").outcome.is_allow());
    let worker = service.processes().into_iter().find(|one| one.role == "worker").unwrap();
    let runs = fs::read_link(format!("/proc/{}/exe", worker.pid));
    // Takes root: a worker is not dumpable.
    if support::is_root() {
        assert_eq!(runs.unwrap(), programs.join("portcullis-worker"));
    }
}
