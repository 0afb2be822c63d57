//! Policies that are made to exhaust whoever compiles them: a clear refusal or an end by a named limit, and nobody else
//! notices. Numbers of each end are the kernel's: which limit it was is in the signal.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use portcullis::compile::{SOURCE_MAX, componentize};
use portcullis::wire::control::BuildLimits;
use portcullis::wire::job::Report;

use crate::bomb::{alive, long, module, nested, policy};
use crate::process::{Answer, Class, LIMITS, compile};
use crate::{component, sealed};

/// What the supervisor says of such an end.
fn by_a_limit(status: ExitStatus) -> bool {
    // Processor time; memory that malloc did not get (abort), or a stack that could not grow (a fault, which ends in abort).
    let named = [Signal::SIGXCPU, Signal::SIGABRT].map(|signal| signal as i32);
    status.signal().is_some_and(|signal| named.contains(&signal))
}

fn ends_clearly(name: &str, class: &Class, source: &[u8], limits: BuildLimits) -> (Vec<Answer>, ExitStatus) {
    let (answers, status) = class.builder(limits).ask(&compile(), &[&sealed(source)]);
    match answers.as_slice() {
        [] => assert!(by_a_limit(status), "{name}: {status}"),
        [Answer { report: Report::Refused { .. } | Report::Compiled { .. }, .. }] => {
            assert!(status.success(), "{name}")
        }
        other => panic!("{name}: {other:?}"),
    }
    (answers, status)
}

#[test]
fn a_bomb_ends_in_a_refusal_or_by_a_limit_and_the_next_job_works() {
    let class = Class::new();
    // Small limits, so that each ends soon.
    let limits = BuildLimits { cpu: 2, memory: 600 << 20, output: 4 << 20 };
    let mut by_limit = 0;
    for (name, source) in [
        ("variables alive in loops", policy(alive(3_000, 700), b"", 2)),
        ("a long function", policy(long(900_000), b"", 2)),
        ("blocks nested deep", policy(nested(1_000_000), b"", 2)),
        ("blocks nested less deep", policy(nested(50_000), b"", 2)),
    ] {
        assert!(source.len() <= SOURCE_MAX, "{name}: {} bytes", source.len());
        let (answers, _) = ends_clearly(name, &class, &source, limits);
        by_limit += usize::from(answers.is_empty());
    }
    assert!(by_limit > 0, "none of them was one");
    assert!(
        class.names().iter().all(|name| !name.starts_with('.')),
        "nothing unfinished: {:?}",
        class.names()
    );
    let answers = class.ask(&compile(), &[&sealed(&component("hash"))]);
    assert!(matches!(answers[0].report, Report::Compiled { .. }), "{answers:?}");
}

#[test]
fn processor_time_is_limited_and_the_signal_says_so() {
    let source = policy(alive(3_000, 700), b"", 2);
    let limits = BuildLimits { cpu: 1, memory: 8 << 30, ..LIMITS };
    let (answers, status) = Class::new().builder(limits).ask(&compile(), &[&sealed(&source)]);
    assert!(answers.is_empty(), "{answers:?}");
    assert_eq!(status.signal(), Some(Signal::SIGXCPU as i32), "{status}");
}

#[test]
fn memory_is_limited_and_ends_in_abort() {
    let source = policy(alive(3_000, 700), b"", 2);
    // The stack for compilers takes 256 MiB of it.
    let limits = BuildLimits { cpu: 120, memory: 320 << 20, ..LIMITS };
    let (answers, status) = Class::new().builder(limits).ask(&compile(), &[&sealed(&source)]);
    assert!(answers.is_empty(), "{answers:?}");
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
    // The control: that much is enough for others.
    let (answers, _) = Class::new().builder(limits).ask(&compile(), &[&sealed(&component("hash"))]);
    assert!(matches!(answers[0].report, Report::Compiled { .. }), "{answers:?}");
}

#[test]
fn output_is_limited_before_anything_is_written() {
    let class = Class::new();
    let data: Vec<u8> = (0..2_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let source = policy(nested(1), &data, 40);
    let limits = BuildLimits { output: 1 << 20, ..LIMITS };
    let (answers, status) = class.builder(limits).ask(&compile(), &[&sealed(&source)]);
    assert!(status.success(), "{status}");
    let why = answers[0].refused();
    assert!(why.contains("bytes, at most 1048576 are kept; raise builder.output"), "{why}");
    assert_eq!(class.names(), Vec::<String>::new());
    let answers = class.ask(&compile(), &[&sealed(&source)]);
    assert!(matches!(answers[0].report, Report::Compiled { .. }), "{answers:?}");
}

/// Sizes that are refused before anything is made of them.
#[test]
fn what_is_too_large_is_refused_by_its_size() {
    let class = Class::new();
    let refused = |source: &[u8]| class.ask(&compile(), &[&sealed(source)]).remove(0).refused().to_owned();
    let why = refused(&vec![0; portcullis::bundle::SOURCE_MAX + 1]);
    assert_eq!(why, "take source: read bytes to seal: more than 1073741824 bytes, which is the limit here");
    let why = refused(&module(long(2_000_000), b"", 2));
    assert!(why.contains("function body size count exceeds limit of 7654321"), "{why}");
    let why = refused(&policy(nested(1), b"", 65_536));
    assert!(why.contains("starts with 4294967296 bytes of memory"), "{why}");
    let table = br#"(module (table 10001 funcref) (memory (export "memory") 2)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;
    let why = refused(&componentize(table).unwrap());
    assert!(why.contains("10001 table elements, at most 10000"), "{why}");
}
