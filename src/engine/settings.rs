//! The one `wasmtime::Config`. Every setting that changes machine code or the language is set here, explicitly, and
//! hashed, so that builder and worker agree and a worker can refuse what was compiled for another engine.

use wasmtime::{Config, Engine, WasmBacktraceDetails, WasmFeatures};

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
const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
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
         signals-based traps; no backtraces; no address map; lazy tables; no concurrency",
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
