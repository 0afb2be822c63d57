//! The engine room by itself: what a guest is given, and what it may use.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use portcullis::artifact::{Digest, Expected, Limits, SealedBytes, SigningKey, sign, verify};
use portcullis::bundle::Platform;
use portcullis::compile;
use portcullis::decision::{Decision, Input, Metadatum, Outcome, Refusal, TrapKind};
use portcullis::engine::{
    Call, LoadError, Policy, PoolLimits, Slice, evaluate, load, monotonic_ns, serving_engine,
};
use portcullis::wire::frame;
use support::{policy, tenant};

fn loaded(built: &compile::Built, limits: Limits) -> Arc<Policy> {
    Arc::new(load_code(support::code(built), built, limits).unwrap())
}

/// Signed as what it is not, where the code is not what `built` has for this host.
fn load_code(code: &[u8], built: &compile::Built, limits: Limits) -> Result<Policy, LoadError> {
    let pool = PoolLimits { instances: 4, memory: limits.memory, stack_zeroing: true };
    let engine = serving_engine(&pool).unwrap().engine;
    let key = SigningKey::generate_ed25519().unwrap();
    let mut statement = support::statement(built, &tenant("acme"), &policy("gate"), 1);
    statement.limits = limits;
    statement.cwasm = Digest::of(code);
    let signed = sign(&statement, &key).unwrap();
    let expected = Expected { tenant: &tenant("acme"), policy: &policy("gate"), minimum_version: 0 };
    let sealed = SealedBytes::of(code).unwrap();
    let artifact = verify(sealed, &signed, &[key.public_key()], &expected).unwrap();
    load(&engine, artifact, limits.memory)
}

fn ask(policy: &Arc<Policy>, bytes: &[u8], clock_ns: u64, seed: [u8; 32]) -> Decision {
    let input = frame::encode(&Input::Opaque { content_type: "", bytes }, 1 << 20).unwrap();
    let slice = Arc::new(Slice::default());
    slice.set_end(monotonic_ns() + 10_000_000_000);
    let call = Call { input: Bytes::from(input), clock_ns, seed };
    let mut evaluation = pin!(evaluate(Arc::clone(policy), call, slice));
    match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(evaluated) => evaluated.decision,
        Poll::Pending => panic!("nothing ticks here, so nothing yields"),
    }
}

fn metadata(decision: &Decision) -> Vec<&str> {
    decision.obligations.metadata.iter().map(|Metadatum { value, .. }| value.as_str()).collect()
}

#[test]
fn the_same_seed_gives_the_same_numbers_and_another_gives_others() {
    let policy = loaded(&support::built("hostile/selective"), Limits::default());
    let numbers = |seed| metadata(&ask(&policy, b"random", 0, [seed; 32])).join(" ");
    assert_eq!(numbers(1), numbers(1));
    assert_ne!(numbers(1), numbers(2));
}

#[test]
fn the_clock_is_the_time_of_receipt_and_stands_still() {
    let policy = loaded(&support::built("hostile/selective"), Limits::default());
    assert_eq!(metadata(&ask(&policy, b"clock", 123_456_789, [0; 32])), ["123456789", "123456789"]);
}

#[test]
fn memory_beyond_the_limit_is_refused_and_below_it_is_not() {
    let limits = Limits { memory: 2 << 20, ..Limits::default() };
    let policy = loaded(&support::built("hostile/selective"), limits);
    assert_eq!(ask(&policy, b"memory:1000000", 0, [0; 32]).outcome, Outcome::Allow);
    let outcome = ask(&policy, b"memory:3000000", 0, [0; 32]).outcome;
    assert_eq!(outcome, Outcome::Refused(Refusal::Trap(TrapKind::Memory)));
}

#[test]
fn tables_are_limited_all_together() {
    // Two tables that each grow by 600 elements, and a guest that traps if either may not.
    let guest = r#"(module
        (memory (export "memory") 1)
        (table $a 0 funcref) (table $b 0 funcref)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func $grown (param i32) (if (i32.lt_s (local.get 0) (i32.const 0)) (then unreachable)))
        (func (export "decide") (param i32) (result i32)
            (call $grown (table.grow $a (ref.null func) (i32.const 600)))
            (call $grown (table.grow $b (ref.null func) (i32.const 600)))
            (i32.const 512)))"#;
    let built = compile::build(guest.as_bytes(), &[portcullis::bundle::Platform::host()]).unwrap();
    let outcome = |table_elements| {
        ask(&loaded(&built, Limits { table_elements, ..Limits::default() }), b"", 0, [0; 32]).outcome
    };
    assert_eq!(outcome(1_200), Outcome::Allow);
    assert_eq!(outcome(1_199), Outcome::Refused(Refusal::Trap(TrapKind::Memory)));
}

#[test]
fn output_beyond_the_limit_is_refused() {
    let limits = Limits { output: 10_000, ..Limits::default() };
    let policy = loaded(&support::built("hostile/selective"), limits);
    assert_eq!(ask(&policy, b"size:9000", 0, [0; 32]).outcome, Outcome::Allow);
    let outcome = ask(&policy, b"size:11000", 0, [0; 32]).outcome;
    assert!(matches!(outcome, Outcome::Refused(Refusal::InvalidOutput(_))), "{outcome:?}");
}

/// A signer may say what it likes: the code itself says what it is for, and that is looked at before wasmtime sees it.
#[test]
fn code_for_another_machine_is_refused_by_name_whatever_its_statement_says() {
    let guest = portcullis::compile::build(&support::component("hash"), &Platform::ALL).unwrap();
    for (platform, code) in &guest.compiled {
        let loaded = load_code(code, &guest, Limits::default());
        if *platform == Platform::host() {
            loaded.unwrap();
        } else {
            let error = loaded.unwrap_err();
            assert!(matches!(error, LoadError::Unfit(..)));
            let expected = format!("it is compiled for {platform}, this host is {}", Platform::host());
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
