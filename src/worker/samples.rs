//! Policies for the unit tests of this room.

use crate::artifact::{Architecture, Digest, Limits, Statement};
use crate::bundle::Platform;
use crate::compile::{Built, Terms, build};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{Engines, Metering, PoolLimits, WASMTIME_VERSION, WORLD, settings_digest};

/// Always answers the same 72 bytes.
pub(super) const ANSWERS: &str = "(i32.const 512)";
/// Never answers.
pub(super) const SPINS: &str = "(loop (br 0)) (unreachable)";

/// A policy whose function `decide` is that.
pub(super) fn built(decide: &str) -> Built {
    let module = format!(
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "decide") (param i32) (result i32) {decide}))"#
    );
    build(module.as_bytes(), Terms::default(), &[Platform::host()]).unwrap()
}

pub(super) fn code(built: &Built) -> &[u8] {
    built.code_for(Platform::host()).unwrap()
}

pub(super) fn statement(built: &Built, tenant: Tenant, policy: PolicyName) -> Statement {
    Statement {
        policy,
        tenant,
        version: 7,
        cwasm: Digest::of(code(built)),
        source: built.source,
        bundle: Digest::of(b"bundle"),
        architecture: Architecture::host(),
        wasmtime: WASMTIME_VERSION.into(),
        engine: settings_digest(Metering::Off),
        world: WORLD.into(),
        imports: vec![],
        limits: Limits { deadline_us: 60_000_000, ..Limits::default() },
        metrics: vec![],
        data: vec![],
    }
}

pub(super) fn engines() -> Engines {
    Engines::new(PoolLimits { instances: 8, memory: 4 << 20, stack_zeroing: true }).unwrap()
}
