//! What is asked of a builder, and what it answers.

use portcullis::artifact::{Ceiling, Limits, SealedBytes};
use portcullis::bundle::Platform;
use portcullis::compile::componentize;
use portcullis::engine::WASMTIME_VERSION;
use portcullis::engine::World;
use portcullis::wire::job::{Job, Report};

use crate::process::{Class, LIMITS, check, compile, imports, manifest};
use crate::{built, component, every_component, sealed};

/// A policy that always allows, with more in its core module.
fn module(extra: &str) -> Vec<u8> {
    let module = format!(
        r#"(module {extra}
            (memory (export "memory") 2)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "decide") (param i32) (result i32) (i32.const 512)))"#
    );
    componentize(module.as_bytes()).unwrap()
}

fn job(imports: &[&str], limits: Limits) -> Job {
    let imports = imports.iter().map(|import| (*import).to_owned()).collect();
    Job::Check { manifest: manifest(imports, limits), ceiling: Ceiling::MOST }
}

#[test]
fn a_policy_that_a_signer_compiled_is_sound() {
    let source = component("hash");
    let (_, code) = built(&source, Platform::host());
    let answers = Class::new().ask(&check(), &[&sealed(&source), &code]);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].report, Report::Sound);
}

#[test]
fn what_is_compiled_is_kept_and_given_out_again() {
    let class = Class::new();
    let source = component("hash");
    let (_, expected) = built(&source, Platform::host());
    let answers = class.ask(&compile(), &[&sealed(&source)]);
    let Report::Compiled { cwasm } = answers[0].report else { panic!("{answers:?}") };
    assert_eq!((cwasm, answers.len()), (expected.digest(), 1), "the same bytes as anywhere else");
    let code = answers[0].code.as_ref().unwrap();
    assert_eq!(code.to_vec().unwrap(), expected.to_vec().unwrap());
    assert_eq!(std::fs::read(class.entry(cwasm)).unwrap(), expected.to_vec().unwrap());

    let answers = class.ask(&Job::Recall { cwasm: vec![cwasm] }, &[]);
    assert_eq!(answers[0].report, Report::Recalled { cwasm });
    assert_eq!(answers[0].code.as_ref().unwrap().digest(), cwasm);
}

/// How a policy answers when it is asked nothing is its own business: it may trap, spin or deny.
#[test]
fn every_committed_policy_is_sound_but_the_one_that_wants_too_much() {
    let class = Class::new();
    for name in every_component() {
        let source = sealed(&component(&name));
        // One of them is of the first world, and its manifest says so; one that says another is refused.
        let mut manifest = manifest(imports(), Limits::default());
        if name == "since-0.1" {
            let why = class.ask(&compile(), &[&source])[0].refused().to_owned();
            assert!(why.contains("its manifest says \"portcullis:policy@1.0.0\""), "{why}");
            manifest.world = World::V0_1.name().into();
            manifest.imports = vec!["log".into()];
        }
        let (ceiling, also) = (Ceiling::MOST, manifest.clone());
        let answers = class.ask(&Job::Compile { manifest, ceiling }, &[&source]);
        if name == "hostile/import-wasi" {
            assert!(answers[0].refused().contains("wasi:cli/environment@0.2.0"), "{answers:?}");
            continue;
        }
        let Report::Compiled { .. } = answers[0].report else { panic!("{name}: {answers:?}") };
        let check = Job::Check { manifest: also, ceiling };
        let answers = class.ask(&check, &[&source, answers[0].code.as_ref().unwrap()]);
        assert_eq!(answers[0].report, Report::Sound, "{name}");
    }
}

#[test]
fn what_could_never_decide_is_refused_and_says_why() {
    let class = Class::new();
    let refused = |source: &[u8]| {
        let answers = class.ask(&compile(), &[&sealed(source)]);
        assert_eq!(answers.len(), 1);
        answers[0].refused().to_owned()
    };
    let never = |why: &str, extra: &str| {
        let text = refused(&module(extra));
        assert!(text.starts_with("try policy: it has no instance: ") && text.contains(why), "{text}");
    };
    never("Unreachable", "(start $f) (func $f unreachable)");
    never("does not end", "(start $f) (func $f (loop $for-ever (br $for-ever)))");
    never("Stack", "(start $f) (func $f (call $f))");
    let text = refused(&module("(data (i32.const 131072) \"x\")"));
    assert!(text.starts_with("check policy: data segment at 0x"), "{text}");
    assert!(text.contains("ends at 131073 of a memory that starts with 131072 bytes"), "{text}");
    never("OutOfBounds", "(table 1 funcref) (elem (i32.const 1) $f) (func $f)");
    never(
        "Memory",
        "(start $f) (func $f (if (i32.eq (i32.const -1) (memory.grow (i32.const 4000))) (then unreachable)))",
    );
    let text = refused(b"not a policy");
    assert!(text.contains("WebAssembly"), "{text}");
    assert_eq!(class.names(), Vec::<String>::new(), "nothing of them is kept");
    // The control: the same module without what is wrong with it.
    let answers = class.ask(&compile(), &[&sealed(&module("(start $f) (func $f)"))]);
    assert!(matches!(answers[0].report, Report::Compiled { .. }), "{answers:?}");
}

#[test]
fn a_policy_gets_what_its_manifest_says_and_no_more() {
    let class = Class::new();
    let source =
        module(r#"(import "portcullis:policy/clock@1.0.0" "now" (func (result i64))) (table 7 funcref)"#);
    let (_, code) = built(&source, Platform::host());
    let source = sealed(&source);
    let report = |job: &Job| class.ask(job, &[&source, &code]).remove(0).report;
    let refused = |job: &Job| match report(job) {
        Report::Refused { why } => why,
        other => panic!("{other:?}"),
    };
    let limits = Limits { memory: 128 << 10, table_elements: 7, ..Limits::default() };
    assert_eq!(report(&job(&["clock"], limits)), Report::Sound);
    assert_eq!(report(&job(&["clock", "log", "random"], limits)), Report::Sound);

    let why = refused(&job(&["log"], limits));
    assert!(why.contains("imports \"clock\", which its manifest does not name"), "{why}");
    let why = refused(&job(&["clock"], Limits { memory: (128 << 10) - 1, ..limits }));
    assert!(why.contains("starts with 131072 bytes of memory, its manifest has a limit of 131071"), "{why}");
    let why = refused(&job(&["clock"], Limits { table_elements: 6, ..limits }));
    assert!(why.contains("starts with 7 table elements, its manifest has a limit of 6"), "{why}");
    // More than an instance of this class has.
    let large = module("").len();
    assert!(large > 0);
    let source = componentize(
        br#"(module (memory (export "memory") 129)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "decide") (param i32) (result i32) (i32.const 512)))"#,
    );
    let limits = Limits { memory: 64 << 20, ..limits };
    let compile = Job::Compile { manifest: manifest(imports(), limits), ceiling: Ceiling::MOST };
    let answers = class.ask(&compile, &[&sealed(&source.unwrap())]);
    assert!(answers[0].refused().contains("the class gives an instance 8388608"), "{answers:?}");
}

/// In a sealed builder: an engine for each stack, and for code that counts, is there before the job is.
#[test]
fn a_policy_is_tried_with_the_limits_that_it_will_be_served_with() {
    let class = Class::new();
    let source = sealed(&module(""));
    let answer = |limits: Limits, ceiling: Ceiling| {
        let job = Job::Compile { manifest: manifest(vec![], limits), ceiling };
        class.ask(&job, &[&source]).remove(0)
    };
    for stack in Limits::STACKS {
        for fuel in [None, Some(1_000)] {
            let limits = Limits { stack, fuel, ..Limits::default() };
            let answer = answer(limits, Ceiling::MOST);
            assert!(matches!(answer.report, Report::Compiled { .. }), "{limits:?}: {answer:?}");
        }
    }
    // The same code for every stack, and other code where it counts.
    assert_eq!(class.names().len(), 2, "{:?}", class.names());
    let text = answer(Limits::default(), Ceiling { fuel: Some(9), ..Ceiling::MOST }).refused().to_owned();
    assert!(text.contains("a decision may execute 9 instructions here") && text.contains("--fuel"), "{text}");
    let low = Ceiling { memory: 64 << 10, ..Ceiling::MOST };
    let text = answer(Limits::default(), low).refused().to_owned();
    let why = "the class gives an instance 65536, and it starts with 131072; raise `memory` of the class";
    assert!(text.contains(why), "{text}");
    let tables = sealed(&module("(table 7 funcref)"));
    let low = Ceiling { table_elements: 6, ..Ceiling::MOST };
    let job = Job::Compile { manifest: manifest(vec![], Limits::default()), ceiling: low };
    let answer = class.ask(&job, &[&tables]).remove(0);
    assert!(answer.refused().contains("starts with 7 table elements, here it may have 6"), "{answer:?}");
}

/// Whatever a signer says of it: the code itself says what it is for.
#[test]
fn code_that_is_not_for_this_host_is_refused_by_name() {
    let class = Class::new();
    let source = component("hash");
    let report = |code: &SealedBytes| class.ask(&check(), &[&sealed(&source), code]).remove(0).report;
    let refused = |code: &SealedBytes| match report(code) {
        Report::Refused { why } => why,
        other => panic!("{other:?}"),
    };
    let other = Platform::ALL.into_iter().find(|platform| *platform != Platform::host()).unwrap();
    let why = refused(&built(&source, other).1);
    let expected = format!("look at code: it is compiled for {other}, this host is {}", Platform::host());
    assert_eq!(why, expected);

    let (_, code) = built(&source, Platform::host());
    assert_eq!(report(&code), Report::Sound);
    let mut bytes = code.to_vec().unwrap();
    let at = bytes.windows(6).position(|bytes| bytes == WASMTIME_VERSION.as_bytes()).unwrap();
    bytes[at + 5] ^= 1;
    let why = refused(&sealed(&bytes));
    assert_eq!(why, "look at code: it is compiled with wasmtime \"48.0.9\", this is 48.0.8");
    for wrong in [&b""[..], b"\x7fELF", &vec![0; 100_000], &source] {
        let why = refused(&sealed(wrong));
        assert!(why.starts_with("look at code: it is not machine code of a policy: "), "{why}");
    }
}

#[test]
fn descriptors_that_could_change_or_are_not_there_are_refused() {
    let class = Class::new();
    let source = sealed(&component("hash"));
    let refused = |job: &Job, given: &[&SealedBytes]| class.ask(job, given).remove(0).refused().to_owned();
    assert_eq!(refused(&check(), &[&source]), "job came with 1 descriptors, expected 2");
    assert_eq!(refused(&compile(), &[]), "job came with 0 descriptors, expected 1");
    assert_eq!(refused(&compile(), &[&source, &source]), "job came with 2 descriptors, expected 1");

    use std::os::fd::AsFd;
    let plain = nix::sys::memfd::memfd_create("plain", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let builder = class.builder(LIMITS);
    builder.give_job_with(&compile(), &[plain.as_fd()]);
    let (answers, status) = builder.answers();
    assert!(status.success(), "{status}");
    assert!(answers[0].refused().contains("seals F_SEAL_"), "{answers:?}");
}

#[test]
fn two_builders_of_one_class_at_one_time_do_not_harm_each_other() {
    let class = Class::new();
    let (hash, selective) = (sealed(&component("hash")), sealed(&component("hostile/selective")));
    let builders: Vec<_> = (0..2).map(|_| class.builder(LIMITS)).collect();
    for (builder, source) in builders.iter().zip([&hash, &hash]) {
        builder.give_job(&compile(), &[source]);
    }
    let third = class.builder(LIMITS);
    third.give_job(&compile(), &[&selective]);
    let digests: Vec<_> = builders
        .into_iter()
        .chain([third])
        .map(|builder| {
            let (answers, status) = builder.answers();
            assert!(status.success(), "{status}");
            let Report::Compiled { cwasm } = answers[0].report else { panic!("{answers:?}") };
            cwasm
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
    assert_eq!(class.names().len(), 2, "{:?}", class.names());
    let answers = class.ask(&Job::Recall { cwasm: vec![digests[2], digests[0]] }, &[]);
    let reports: Vec<_> = answers.iter().map(|answer| answer.report.clone()).collect();
    let recalled = |cwasm| Report::Recalled { cwasm };
    assert_eq!(reports, [recalled(digests[2]), recalled(digests[0])], "in the order asked for");
}

/// The registry is gone, or wants nothing any more.
#[test]
fn without_a_job_a_builder_ends() {
    let (answers, status) = Class::new().builder(LIMITS).dismiss();
    assert!(status.success() && answers.is_empty(), "{status}");
}
