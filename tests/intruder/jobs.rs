//! Everything that builders are for, once, with builders that this program starts as the spawner does: those of a service
//! are gone before anything could be done to them.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use portcullis::artifact::{Digest, SealedBytes};
use portcullis::compile::componentize;
use portcullis::wire::control::BuildLimits;
use portcullis::wire::job::{Job, Report};

use crate::builder::{Class, LIMITS, compile, give};
use crate::support::{built, code, component};

/// `--jobs`: does them.
pub(crate) const ARGUMENT: &str = "--jobs";

pub(crate) fn all() {
    let class = Class::new();
    keep(&class);
    refuse(&class);
    // Not even a job: the registry is gone.
    assert!(class.builder(LIMITS).dismiss().1.success());
    // A fault of machine code, and memory that is not given: both end by abort.
    let crashed = class.builder(LIMITS);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(crashed.pid()).expect("pid"));
    nix::sys::signal::kill(pid, Signal::SIGSEGV).expect("crash");
    assert_eq!(crashed.answers().1.signal(), Some(Signal::SIGABRT as i32));
    let limits = BuildLimits { cpu: 120, memory: 320 << 20, ..LIMITS };
    let (answers, status) = class.builder(limits).ask(&compile(), &[&sealed(&bomb())]);
    assert!(answers.is_empty(), "{answers:?}");
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
}

/// What is compiled, found again, found to be damaged, and not asked for any more.
fn keep(class: &Class) {
    let source = sealed(&component("hash"));
    let report = class.ask(&compile(), &[&source]).remove(0).report;
    let Report::Compiled { cwasm } = report else { panic!("{report:?}") };
    let other = Digest::of(b"never compiled");
    let recall = || class.ask(&Job::Recall { cwasm: vec![cwasm, other] }, &[]).remove(0).report;
    let stray = class.cache().join("stray");
    fs::write(&stray, "x").expect("write");
    give(&stray);
    let old = SystemTime::now() - Duration::from_secs(86_400);
    fs::File::options()
        .write(true)
        .open(&stray)
        .and_then(|file| file.set_modified(old))
        .expect("make it old");
    assert_eq!(recall(), Report::Recalled { cwasm });
    assert!(!stray.exists(), "what nobody asks for goes");
    let entry = class.entry(cwasm);
    fs::write(&entry, "damaged").expect("write");
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o600)).expect("chmod");
    assert!(matches!(recall(), Report::Lost { corrupt: true, .. }));
    // Said by a signer to be this source's code.
    let report = class.ask(&compile(), &[&source]).remove(0);
    let code = report.code.expect("code");
    let Job::Compile { manifest, ceiling } = compile() else { unreachable!() };
    let check = Job::Check { manifest, ceiling };
    assert_eq!(class.ask(&check, &[&source, &code]).remove(0).report, Report::Sound);
}

/// What has no instance, what cannot be linked, what does not end, and what is nothing at all.
fn refuse(class: &Class) {
    for source in [
        module("(start $f) (func $f unreachable)"),
        module("(table 1 funcref) (elem (i32.const 1) $f) (func $f)"),
        b"nothing".to_vec(),
    ] {
        assert!(matches!(class.ask(&compile(), &[&sealed(&source)])[0].report, Report::Refused { .. }));
    }
    let wants = component("hostile/import-wasi");
    let Job::Compile { mut manifest, ceiling } = compile() else { unreachable!() };
    manifest.imports.push("wasi:cli/environment@0.2.0".to_owned());
    let job = Job::Compile { manifest, ceiling };
    let why = class.ask(&job, &[&sealed(&wants)]).remove(0).report;
    assert!(matches!(why, Report::Refused { .. }), "{why:?}");
    // Said to be this source's, and imports what that does not.
    let built = built("hostile/selective");
    let other = sealed(code(&built));
    let Job::Compile { mut manifest, ceiling } = compile() else { unreachable!() };
    manifest.imports.clear();
    let job = Job::Check { manifest, ceiling };
    let why = class.ask(&job, &[&sealed(&module("")), &other]).remove(0).report;
    assert!(matches!(why, Report::Refused { .. }), "{why:?}");
    let spins = sealed(&component("hostile/spin-fill"));
    assert!(matches!(class.ask(&compile(), &[&spins])[0].report, Report::Compiled { .. }));
}

fn sealed(bytes: &[u8]) -> SealedBytes {
    SealedBytes::of(bytes).expect("sealed memory")
}

/// A policy that always allows, with more in its core module.
fn module(extra: &str) -> Vec<u8> {
    let module = format!(
        r#"(module {extra}
            (memory (export "memory") 2)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "decide") (param i32) (result i32) (i32.const 512)))"#
    );
    componentize(module.as_bytes()).expect("a component")
}

/// Loops within loops, with all variables alive across each.
fn bomb() -> Vec<u8> {
    let mut text = "(func (export \"bomb\") ".to_owned();
    for variable in 0..3_000 {
        write!(text, "(local $v{variable} i32)").expect("text");
    }
    for _ in 0..700 {
        text.push_str("(loop ");
        for variable in (0..3_000).step_by(7) {
            write!(text, "(local.set $v{variable} (i32.add (local.get $v{variable}) (local.get $v0)))")
                .expect("text");
        }
        text.push_str("(br_if 0 (local.get $v0)) ");
    }
    text.push_str(&")".repeat(700));
    text.push(')');
    module(&text)
}
