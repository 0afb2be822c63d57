//! The one `wasmtime::Config`. Every setting that changes machine code or the language is set here, explicitly, and
//! hashed, so that builder and worker agree and a worker can refuse what was compiled for another engine.

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails,
    WasmFeatures,
};

use crate::artifact::Digest;

/// In full: a `.cwasm` is only loaded by exactly the version that made it.
pub const WASMTIME_VERSION: &str = "48.0.8";
/// The WIT world that policies implement.
pub const WORLD: &str = "portcullis:policy@0.1.0";

/// Native stack a guest may use, bytes.
const WASM_STACK: usize = 256 << 10;
/// Address space that each memory has to itself, so that bounds checks are left to the MMU.
const MEMORY_RESERVATION: u64 = 4 << 30;
const MEMORY_GUARD: u64 = 32 << 20;

/// The language a policy may use: what today's toolchains emit, without threads, GC, exceptions or 64-bit memories.
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::BULK_MEMORY_OPT)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::TAIL_CALL)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::COMPONENT_MODEL);

/// What both sides must agree on, as text: its hash goes into every statement.
fn description() -> String {
    format!(
        "portcullis engine 1; wasmtime {WASMTIME_VERSION}; features {:#x}; epochs; no fuel; wasm stack {WASM_STACK}; \
         memory reservation {MEMORY_RESERVATION} guard {MEMORY_GUARD} both sides, never moves; copy-on-write images; \
         signals-based traps; cranelift, for speed; no backtraces; no address map; lazy tables; no concurrency",
        FEATURES.bits()
    )
}

/// The SHA-256 of every setting that builder and worker must share.
#[must_use]
pub fn settings_digest() -> Digest {
    Digest::of(description().as_bytes())
}

/// Settings common to builder and worker.
pub(super) fn shared_config() -> Config {
    let mut config = Config::new();
    config.wasm_features(WasmFeatures::all(), false);
    config.wasm_features(FEATURES, true);
    config.epoch_interruption(true);
    config.consume_fuel(false);
    config.max_wasm_stack(WASM_STACK);
    config.async_stack_size(2 * WASM_STACK);
    config.memory_reservation(MEMORY_RESERVATION);
    config.memory_reservation_for_growth(0);
    config.memory_guard_size(MEMORY_GUARD);
    config.guard_before_linear_memory(true);
    config.memory_may_move(false);
    config.memory_init_cow(true);
    config.signals_based_traps(true);
    config.table_lazy_init(true);
    config.concurrency_support(false);
    config.wasm_backtrace_max_frames(None);
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config.generate_address_map(false);
    config.native_unwind_info(false);
    config.debug_info(false);
    config
}

/// What the pool of a serving engine holds.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Components instantiated at the same time.
    pub instances: u32,
    /// Linear memory of each, bytes.
    pub memory: u32,
    /// Zero each fiber stack before it is used again.
    pub stack_zeroing: bool,
}

/// An engine that runs what others compiled.
pub struct Serving {
    pub engine: Engine,
    /// Whether memories are reset by PAGEMAP_SCAN (Linux 6.7 and newer): five times cheaper than without.
    pub pagemap_scan: bool,
}

/// Linear memory and table that are cleared by writing zeroes; what lies above is given back to the kernel.
const MEMORY_KEEP_RESIDENT: usize = 64 << 10;
const TABLE_KEEP_RESIDENT: usize = 16 << 10;
const STACK_KEEP_RESIDENT: usize = 16 << 10;
/// Largest table, elements; a policy's own limit is at most that.
pub(crate) const TABLE_ELEMENTS: usize = 10_000;
/// Parts of one component: its module, the shims around it, what it was composed of.
pub(crate) const CORE_INSTANCES_PER_COMPONENT: u32 = 16;
const MEMORIES_PER_COMPONENT: u32 = 2;
pub(crate) const TABLES_PER_COMPONENT: u32 = 4;

/// The engine a worker runs policies with. Must be called while `/proc/self/pagemap` can be opened: before the process
/// is made non-dumpable, and before Landlock.
pub fn serving_engine(limits: &PoolLimits) -> wasmtime::Result<Serving> {
    let engine = |pagemap_scan| {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(limits.instances);
        pool.total_core_instances(limits.instances.saturating_mul(CORE_INSTANCES_PER_COMPONENT));
        pool.total_memories(limits.instances.saturating_mul(MEMORIES_PER_COMPONENT));
        pool.total_tables(limits.instances.saturating_mul(TABLES_PER_COMPONENT));
        pool.total_stacks(limits.instances);
        pool.max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT);
        pool.max_memories_per_component(MEMORIES_PER_COMPONENT);
        pool.max_tables_per_component(TABLES_PER_COMPONENT);
        pool.max_tables_per_module(TABLES_PER_COMPONENT);
        pool.max_memory_size(limits.memory as usize);
        pool.table_elements(TABLE_ELEMENTS);
        pool.linear_memory_keep_resident(MEMORY_KEEP_RESIDENT);
        pool.table_keep_resident(TABLE_KEEP_RESIDENT);
        pool.async_stack_keep_resident(STACK_KEEP_RESIDENT);
        pool.max_unused_warm_slots(limits.instances);
        pool.pagemap_scan(pagemap_scan);
        let mut config = shared_config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        config.async_stack_zeroing(limits.stack_zeroing);
        Engine::new(&config)
    };
    match engine(Enabled::Yes) {
        Ok(engine) => Ok(Serving { engine, pagemap_scan: true }),
        Err(_) => engine(Enabled::No).map(|engine| Serving { engine, pagemap_scan: false }),
    }
}

/// The engine the builder compiles with.
#[cfg(feature = "compiler")]
pub fn compiling_engine() -> wasmtime::Result<Engine> {
    let mut config = shared_config();
    config.strategy(wasmtime::Strategy::Cranelift);
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    Engine::new(&config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "compiler")]
    fn the_version_in_statements_is_the_version_linked() {
        let lock = include_str!("../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{WASMTIME_VERSION}\"")));
    }

    #[test]
    #[cfg(feature = "compiler")]
    fn the_engine_accepts_its_settings() {
        compiling_engine().expect("engine");
    }
}
