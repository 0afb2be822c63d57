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
use portcullis::artifact::{
    Ceiling, Digest, Expected, Limits, SealedBytes, SigningKey, Statement, sign, verify,
};
use portcullis::bundle::Platform;
use portcullis::compile::{self, Terms};
use portcullis::decision::{Decision, Input, Metadatum, Outcome, Refusal, TrapKind};
use portcullis::engine::{
    Call, Data, Engines, Evaluated, Granted, LoadError, Metering, Policy, PoolLimits, Slice, World, evaluate,
    load, monotonic_ns, settings_digest,
};
use portcullis::wire::frame;
use support::{policy, tenant};

fn loaded(built: &compile::Built, limits: Limits) -> Arc<Policy> {
    let granted = Granted::default();
    Arc::new(load_code(support::code(built), built, granted, |statement| statement.limits = limits).unwrap())
}

/// Signed as what it is not, where the code is not what `built` has for this host.
fn load_code(
    code: &[u8],
    built: &compile::Built,
    granted: Granted,
    change: impl FnOnce(&mut Statement),
) -> Result<Policy, LoadError> {
    let pool = PoolLimits { instances: 4, memory: 4 << 20, stack_zeroing: true };
    let engines = Engines::new(pool).unwrap();
    let key = SigningKey::generate_ed25519().unwrap();
    let mut statement = support::statement(built, &tenant("acme"), &policy("gate"), 1);
    change(&mut statement);
    statement.cwasm = Digest::of(code);
    let signed = sign(&statement, &key).unwrap();
    let expected = Expected { tenant: &tenant("acme"), policy: &policy("gate"), minimum_version: 0 };
    let sealed = SealedBytes::of(code).unwrap();
    let artifact = verify(sealed, &signed, &[key.public_key()], &expected).unwrap();
    load(&engines, &artifact, granted)
}

fn ask(policy: &Arc<Policy>, bytes: &[u8], clock_ns: u64, seed: [u8; 32]) -> Decision {
    evaluated(policy, bytes, clock_ns, seed).decision
}

fn evaluated(policy: &Arc<Policy>, bytes: &[u8], clock_ns: u64, seed: [u8; 32]) -> Evaluated {
    let input = frame::encode(&Input::Opaque { content_type: "", bytes }, 1 << 20).unwrap();
    let slice = Arc::new(Slice::default());
    slice.set_end(monotonic_ns() + 10_000_000_000);
    let call = Call { input: Bytes::from(input), clock_ns, seed, id: None };
    let mut evaluation = pin!(evaluate(Arc::clone(policy), call, slice, None));
    match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(evaluated) => evaluated,
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

/// Most toolchains write none, so it is not refused: the limit holds whatever a module says of its memory.
#[test]
fn a_memory_without_a_maximum_ends_at_the_policys_limit() {
    let limits = Limits { memory: 20 * (64 << 10), ..Limits::default() };
    for (memory, pages) in [("1", 20), ("1 65536", 20), ("1 20", 20), ("1 3", 3), ("20", 20)] {
        // It takes what it gets, and traps unless that is so many pages.
        let guest = format!(
            r#"(module
                (memory (export "memory") {memory})
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
                (func (export "decide") (param i32) (result i32)
                    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
                    (if (i32.ne (memory.size) (i32.const {pages})) (then (unreachable)))
                    (i32.const 512)))"#
        );
        let built = compile::build(guest.as_bytes(), Terms::default(), &[Platform::host()]).unwrap();
        let policy = loaded(&built, limits);
        let evaluated = evaluated(&policy, b"", 0, [0; 32]);
        assert_eq!(evaluated.decision.outcome, Outcome::Allow, "(memory {memory})");
        assert_eq!(evaluated.used.memory, pages * (64 << 10), "(memory {memory})");
    }
}

/// As with an answer: pointers, lengths and texts that do not hold, and more than may be given at once.
#[test]
fn what_a_guest_gives_to_the_host_is_believed_no_more_than_what_it_returns() {
    let outcome = |calls: &str| {
        let guest = format!(
            r#"(module
                (import "portcullis:policy/data@1.0.0" "get" (func $get (param i32 i32 i32)))
                (import "portcullis:policy/data@1.0.0" "entries"
                    (func $entries (param i32 i32 i32 i32 i32 i32 i32)))
                (import "portcullis:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))
                (import "portcullis:policy/metric@1.0.0" "add" (func $add (param i32 i32 i64)))
                (memory (export "memory") 2)
                (data (i32.const 2048) "\c0\af\ff" "key")
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
                (func (export "decide") (param i32) (result i32) {calls} (i32.const 512)))"#
        );
        let built = compile::build(guest.as_bytes(), Terms::default(), &[Platform::host()]).unwrap();
        let data = Data::of(vec![("key".into(), b"value".to_vec())]);
        let granted = Granted { data: Some(Arc::new(data)), ..Granted::default() };
        let policy = load_code(support::code(&built), &built, granted, |_| {}).unwrap();
        ask(&Arc::new(policy), b"", 0, [0; 32]).outcome
    };
    let key = "(i32.const 2051) (i32.const 3)";
    let (no_text, beyond) = ("(i32.const 2048) (i32.const 3)", "(i32.const 131070) (i32.const 3)");
    let (endless, wraps) = ("(i32.const 0) (i32.const -1)", "(i32.const -256) (i32.const 512)");
    let too_long = "(i32.const 4096) (i32.const 65537)";
    let none = "(i32.const 0) (i32.const 0) (i32.const 0)";
    for text in [no_text, beyond, endless, wraps, too_long] {
        for call in [
            format!("(call $get {text} (i32.const 16))"),
            format!("(call $entries {text} {none} (i32.const 1) (i32.const 16))"),
            format!("(call $entries {key} (i32.const 1) {text} (i32.const 1) (i32.const 16))"),
            format!("(call $log (i32.const 1) {text})"),
            format!("(call $add {text} (i64.const 1))"),
        ] {
            let outcome = outcome(&call);
            assert!(matches!(outcome, Outcome::Refused(Refusal::InvalidOutput(_))), "{call}: {outcome:?}");
        }
    }
    for call in [
        // A level that there is not, and room for the result that is none.
        format!("(call $log (i32.const 3) {key})"),
        format!("(call $entries {key} (i32.const 2) {key} (i32.const 1) (i32.const 16))"),
        format!("(call $get {key} (i32.const 17))"),
        format!("(call $get {key} (i32.const 131068))"),
        format!("(call $entries {key} {none} (i32.const 1) (i32.const -4))"),
    ] {
        let outcome = outcome(&call);
        assert!(matches!(outcome, Outcome::Refused(_)), "{call}: {outcome:?}");
    }
    // The control: the same calls with what holds, as much as anybody likes.
    for call in [
        format!("(call $get {key} (i32.const 16))"),
        format!("(call $entries {key} (i32.const 1) {key} (i32.const -1) (i32.const 16))"),
        format!("(call $log (i32.const 1) {key}) (call $add {key} (i64.const -1))"),
        "(call $get (i32.const 4096) (i32.const 65000) (i32.const 16))".to_owned(),
    ] {
        assert_eq!(outcome(&call), Outcome::Allow, "{call}");
    }
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
    let built = compile::build(guest.as_bytes(), Terms::default(), &[Platform::host()]).unwrap();
    let outcome = |table_elements| {
        ask(&loaded(&built, Limits { table_elements, ..Limits::default() }), b"", 0, [0; 32]).outcome
    };
    assert_eq!(outcome(1_200), Outcome::Allow);
    assert_eq!(outcome(1_199), Outcome::Refused(Refusal::Trap(TrapKind::Memory)));
}

/// Growth that a module's own maximum forbids takes nothing away from what there is.
#[test]
fn what_did_not_grow_is_not_counted() {
    let guest = r#"(module
        (memory (export "memory") 1 2)
        (table $a 0 1 funcref) (table $b 0 funcref)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func $fails (param i32) (if (i32.ne (local.get 0) (i32.const -1)) (then unreachable)))
        (func $grown (param i32) (if (i32.lt_s (local.get 0) (i32.const 0)) (then unreachable)))
        (func (export "decide") (param i32) (result i32)
            (call $fails (table.grow $a (ref.null func) (i32.const 2)))
            (call $grown (table.grow $b (ref.null func) (i32.const 10)))
            (call $fails (memory.grow (i32.const 2)))
            (call $grown (memory.grow (i32.const 1)))
            (i32.const 512)))"#;
    let built = compile::build(guest.as_bytes(), Terms::default(), &[Platform::host()]).unwrap();
    let limits = Limits { table_elements: 10, memory: 2 * (64 << 10), ..Limits::default() };
    let evaluated = evaluated(&loaded(&built, limits), b"", 0, [0; 32]);
    assert_eq!(evaluated.decision.outcome, Outcome::Allow);
    assert_eq!((evaluated.used.memory, evaluated.used.table_elements), (2 * (64 << 10), 10));
}

/// Native frames: a guest of one function that calls itself as often as its input has bytes.
#[test]
fn a_policys_own_stack_is_what_it_asks_for_within_what_it_may_have() {
    let guest = r#"(module
        (memory (export "memory") 4)
        (global $next (mut i32) (i32.const 65536))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (local $at i32)
            (local.set $at (global.get $next))
            (global.set $next (i32.add (local.get $at) (i32.and (i32.add (local.get 3) (i32.const 15)) (i32.const -16))))
            (local.get $at))
        (func $deeper (param i32 i64 i64) (result i64)
            (if (result i64) (i32.eqz (local.get 0)) (then (local.get 1)) (else
                (i64.rotl
                    (call $deeper (i32.sub (local.get 0) (i32.const 1))
                        (i64.add (local.get 1) (local.get 2)) (i64.xor (local.get 2) (i64.const 5)))
                    (local.get 2)))))
        (func (export "decide") (param $request i32) (result i32)
            (i64.store (i32.const 0)
                (call $deeper (i32.load offset=16 (local.get $request)) (i64.const 1) (i64.const 2)))
            (i32.const 512)))"#;
    let built = compile::build(guest.as_bytes(), Terms::default(), &[Platform::host()]).unwrap();
    let deepest = |stack: u32, ceiling: u32| {
        let granted = Granted { ceiling: Ceiling { stack: ceiling, ..Ceiling::MOST }, data: None };
        let policy = load_code(support::code(&built), &built, granted, |statement| {
            statement.limits.stack = stack;
        });
        let policy = Arc::new(policy.unwrap());
        let works = |depth: usize| match ask(&policy, &vec![0; depth], 0, [0; 32]).outcome {
            Outcome::Allow => true,
            Outcome::Refused(Refusal::Trap(TrapKind::Stack)) => false,
            other => panic!("{depth}: {other:?}"),
        };
        let (mut works_at, mut fails_at) = (0, 100_000);
        assert!(works(works_at) && !works(fails_at));
        while fails_at - works_at > 16 {
            let between = works_at.midpoint(fails_at);
            if works(between) { works_at = between } else { fails_at = between }
        }
        works_at
    };
    let depths: Vec<usize> = Limits::STACKS.iter().map(|stack| deepest(*stack, u32::MAX)).collect();
    for pair in depths.windows(2) {
        assert!(
            (19..=21).contains(&(pair[1] * 10 / pair[0])),
            "twice the stack is twice as deep: {depths:?}"
        );
    }
    // What is allowed counts, and of what lies between two the smaller.
    assert!(depths[0].abs_diff(deepest(1 << 20, 64 << 10)) <= 16, "{depths:?}");
    assert!(depths[1].abs_diff(deepest(1 << 20, 200 << 10)) <= 16, "{depths:?}");
}

#[test]
fn instructions_are_counted_where_there_is_a_limit_and_end_the_decision() {
    let source = support::component("hostile/selective");
    let terms = Terms { metering: Metering::Fuel, ..Terms::default() };
    let counts = compile::build(&source, terms, &[Platform::host()]).unwrap();
    let load = |built: &compile::Built, fuel: Option<u64>, most: Option<u64>| {
        let granted = Granted { ceiling: Ceiling { fuel: most, ..Ceiling::MOST }, data: None };
        load_code(support::code(built), built, granted, |statement| {
            statement.limits.fuel = fuel;
            statement.engine = settings_digest(Metering::of(&statement.limits));
        })
    };
    let outcome = |policy: &Arc<Policy>, bytes: &[u8]| evaluated(policy, bytes, 0, [0; 32]);
    let generous = Arc::new(load(&counts, Some(100_000_000), None).unwrap());
    let small = outcome(&generous, b"work:1000");
    let large = outcome(&generous, b"work:2000");
    assert_eq!((&small.decision.outcome, &large.decision.outcome), (&Outcome::Allow, &Outcome::Allow));
    let used = [small.used.fuel.unwrap(), large.used.fuel.unwrap()];
    assert!(used[0] > 1000 && used[1] >= used[0] + 1000, "{used:?}");
    assert_eq!(outcome(&generous, b"work:1000").used.fuel, Some(used[0]), "the same each time");
    // Exactly what it takes is enough, and one less is not.
    let refused = Outcome::Refused(Refusal::Trap(TrapKind::Fuel));
    let exact = Arc::new(load(&counts, Some(used[0] + 1), None).unwrap());
    assert_eq!(outcome(&exact, b"work:1000").decision.outcome, Outcome::Allow);
    assert_eq!(outcome(&exact, b"work:2000").decision.outcome, refused);
    let capped = Arc::new(load(&counts, Some(100_000_000), Some(used[0] + 1)).unwrap());
    assert_eq!(outcome(&capped, b"work:1000").decision.outcome, Outcome::Allow);
    assert_eq!(outcome(&capped, b"work:2000").decision.outcome, refused);

    // Code and limit belong together, and who has to count does.
    let plain = support::built("hostile/selective");
    let ordinary = Arc::new(load(&plain, None, None).unwrap());
    assert_eq!(outcome(&ordinary, b"work:2000").used.fuel, None);
    let error = load(&plain, Some(1), None).unwrap_err().to_string();
    assert!(error.contains("it does not count its instructions"), "{error}");
    let error = load(&counts, None, None).unwrap_err().to_string();
    assert!(error.contains("it counts its instructions"), "{error}");
    let error = load(&plain, None, Some(5)).unwrap_err().to_string();
    assert!(error.contains("a decision may execute 5 instructions here"), "{error}");
}

#[test]
fn calls_of_host_functions_are_counted_and_end_the_decision() {
    let limits = Limits { host_calls: 10, ..Limits::default() };
    let policy = loaded(&support::built("hostile/selective"), limits);
    let evaluated = |bytes: &[u8]| evaluated(&policy, bytes, 7_000_000_000, [0; 32]);
    let enough = evaluated(b"clock-flood:10");
    assert_eq!((enough.decision.outcome, enough.used.host_calls), (Outcome::Allow, 10));
    let refused = Outcome::Refused(Refusal::Trap(TrapKind::HostCalls));
    // Of each kind: reading the clock is a call like any other.
    for bytes in [&b"clock-flood:11"[..], b"log-flood:11", b"metric-flood:11"] {
        assert_eq!(evaluated(bytes).decision.outcome, refused, "{}", String::from_utf8_lossy(bytes));
    }
    let granted = Granted { ceiling: Ceiling { host_calls: 3, ..Ceiling::MOST }, data: None };
    let capped = loaded_as("hostile/selective", granted, |_| {});
    assert_eq!(ask(&capped, b"clock-flood:3", 0, [0; 32]).outcome, Outcome::Allow);
    assert_eq!(ask(&capped, b"clock-flood:4", 0, [0; 32]).outcome, refused);
}

/// Each by itself, with a policy that asks for more.
#[test]
fn what_a_policy_may_have_is_what_its_class_and_tenant_allow() {
    let ceiling = Ceiling { memory: 1 << 20, output: 2_000, ..Ceiling::MOST };
    let policy = loaded_as("hostile/selective", Granted { ceiling, data: None }, |_| {});
    assert_eq!((policy.limits().memory, policy.limits().output), (1 << 20, 2_000));
    assert_eq!(ask(&policy, b"size:1000", 0, [0; 32]).outcome, Outcome::Allow);
    let outcome = ask(&policy, b"size:3000", 0, [0; 32]).outcome;
    let too_much = Refusal::InvalidOutput("it is more than the limit of 2000 bytes".into());
    assert_eq!(outcome, Outcome::Refused(too_much));
    let outcome = ask(&policy, b"memory:1500000", 0, [0; 32]).outcome;
    assert_eq!(outcome, Outcome::Refused(Refusal::Trap(TrapKind::Memory)));
    // Less than it starts with.
    let ceiling = Ceiling { memory: 64 << 10, ..Ceiling::MOST };
    let built = support::built("hostile/selective");
    let error = load_code(support::code(&built), &built, Granted { ceiling, data: None }, |_| {});
    assert!(matches!(error.unwrap_err(), LoadError::Memory { limit: 65_536, .. }));
}

#[test]
fn output_beyond_the_limit_is_refused() {
    let limits = Limits { output: 10_000, ..Limits::default() };
    let policy = loaded(&support::built("hostile/selective"), limits);
    assert_eq!(ask(&policy, b"size:9000", 0, [0; 32]).outcome, Outcome::Allow);
    let outcome = ask(&policy, b"size:11000", 0, [0; 32]).outcome;
    assert!(matches!(outcome, Outcome::Refused(Refusal::InvalidOutput(_))), "{outcome:?}");
}

fn loaded_as(name: &str, granted: Granted, change: impl FnOnce(&mut Statement)) -> Arc<Policy> {
    let built = support::built(name);
    Arc::new(load_code(support::code(&built), &built, granted, change).unwrap())
}

#[test]
fn a_failure_is_told_from_a_trap_and_from_nonsense() {
    let policy = loaded(&support::built("hostile/selective"), Limits::default());
    let outcome = |bytes: &[u8]| ask(&policy, bytes, 0, [0; 32]).outcome;
    let failed = |reason: &str, detail: &str| {
        Outcome::Refused(Refusal::PolicyFailed { reason: reason.into(), detail: detail.into() })
    };
    let longest = "a".repeat(64);
    assert_eq!(outcome(b"fail:no-data_2.0=x"), failed("no-data_2.0", "x"));
    assert_eq!(outcome(format!("fail:{longest}").as_bytes()), failed(&longest, ""));
    // Cut, and between characters.
    let long = format!("fail:long={}", "\u{e4}".repeat(2000));
    assert_eq!(outcome(long.as_bytes()), failed("long", &"\u{e4}".repeat(512)));
    for reason in ["", "A", "a b", "a\"", &"a".repeat(65)] {
        let outcome = outcome(format!("fail:{reason}").as_bytes());
        assert!(matches!(outcome, Outcome::Refused(Refusal::InvalidOutput(_))), "{reason:?}: {outcome:?}");
    }
    assert_eq!(outcome(b"trap"), Outcome::Refused(Refusal::Trap(TrapKind::Unreachable)));
}

#[test]
fn data_is_what_the_policy_was_granted_and_nothing_else() {
    let entries = (0..5).map(|n| (format!("user/{n}"), n.to_string().into_bytes()));
    let granted = Granted { data: Some(Arc::new(Data::of(entries.collect()))), ..Granted::default() };
    let policy = loaded_as("hostile/selective", granted, |_| {});
    let decision = ask(&policy, b"data:user/3", 0, [0; 32]);
    assert_eq!((decision.outcome, decision.obligations.body.as_deref()), (Outcome::Allow, Some(&b"3"[..])));
    let keys = |bytes: &[u8]| {
        let metadata = ask(&policy, bytes, 0, [0; 32]).obligations.metadata;
        metadata.into_iter().map(|one| one.key).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys(b"entries:user/"), "user/0 user/1 user/2");
    assert_eq!(keys(b"entries:user/>user/2"), "user/3 user/4");
    // The same policy with nothing granted.
    let without = loaded(&support::built("hostile/selective"), Limits::default());
    let denied = Outcome::Deny { reason: "no such key".into() };
    assert_eq!(ask(&without, b"data:user/3", 0, [0; 32]).outcome, denied);
    assert_eq!(ask(&without, b"entries:", 0, [0; 32]).obligations.metadata, []);
}

/// What a statement says of the world and of capabilities is held against what that world has.
#[test]
fn a_policy_is_linked_to_its_own_world_and_to_nothing_beyond_it() {
    let built = support::built("since-0.1");
    let load_as = |change: &dyn Fn(&mut Statement)| {
        load_code(support::code(&built), &built, Granted::default(), |statement| change(statement))
    };
    assert_eq!(load_as(&|_| {}).unwrap().world(), World::V0_1);
    let error = load_as(&|statement| statement.world = World::V1_0.name().into()).unwrap_err();
    assert!(matches!(error, LoadError::Link(..)), "{error}");
    let error = load_as(&|statement| statement.imports.push("data".into())).unwrap_err().to_string();
    assert!(error.contains("asks for import \"data\", its world has clock, log, random"), "{error}");
    let error = load_as(&|statement| statement.imports.clear()).unwrap_err();
    assert!(matches!(error, LoadError::Link(..)), "{error}");
}

/// A signer may say what it likes: the code itself says what it is for, and that is looked at before wasmtime sees it.
#[test]
fn code_for_another_machine_is_refused_by_name_whatever_its_statement_says() {
    let guest = compile::build(&support::component("hash"), Terms::default(), &Platform::ALL).unwrap();
    for (platform, code) in &guest.compiled {
        let loaded = load_code(code, &guest, Granted::default(), |_| {});
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
