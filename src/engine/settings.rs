//! The one `wasmtime::Config`. Every setting that changes machine code or the language is set here, explicitly, for
//! builder and worker alike, and hashed, so that a worker can refuse what was compiled for another engine.

use wasmtime::{
    Config, Enabled, Engine, Inlining, InstanceAllocationStrategy, ModuleVersionStrategy,
    PoolingAllocationConfig, WasmBacktraceDetails, WasmFeatures,
};

use super::target::Target;
use crate::artifact::{Digest, INSTANCE_SPACE, Limits};

/// In full: a `.cwasm` is only loaded by exactly the version that made it.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// What is left of a fiber's stack for the host functions that a guest calls, bytes.
const HOST_STACK: usize = 256 << 10;
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

/// Deepest stack that is counted, functions; of a deeper one, the innermost.
#[cfg(feature = "compiler")]
const COUNTED_FRAMES: usize = 256;
/// What is looked at runs on the guest's stack, bytes.
#[cfg(feature = "compiler")]
const COUNTING_STACK: usize = 1 << 20;

/// A data segment that leaves holes of at most this many bytes becomes an image that instances map.
const DENSE_IMAGE: u64 = 16 << 20;

/// What machine code says of its settings ([`super::MadeFor`]), hashed, for each target. A worker has no compiler to ask,
/// so it has these; a build compares what it made with them, and a test says what they are when a setting was changed.
#[rustfmt::skip]
const DIGESTS: [(Target, Metering, [u8; 32]); 6] = [
    (Target::Amd64V2, Metering::Off, *b"\xb3\x6a\x8f\xdf\x36\x9c\x07\x9a\xb0\x18\xe5\x77\x24\x77\xad\x69\x1e\xf6\x7c\x0d\x13\x32\x3f\xdf\x56\xd0\xec\x8b\xe2\xaa\xeb\x35"),
    (Target::Amd64V1, Metering::Off, *b"\xd1\x5d\x32\x6a\xd9\xe9\x10\x75\xfd\xcc\x4e\x6b\x1e\xf9\x56\x20\x2d\xae\xfc\x4e\x5d\x68\xbb\x0d\xe1\x06\xb4\x54\x95\x82\x66\xe0"),
    (Target::Arm64, Metering::Off, *b"\x80\xa0\xb4\x75\xcc\xac\xfc\xc2\xe3\xe5\x4a\xd5\x1d\xea\xe0\x15\xba\x94\x66\xb9\x0d\xee\x9a\xd0\x98\x8d\xae\x98\x52\x14\x2c\x17"),
    (Target::Amd64V2, Metering::Fuel, *b"\x71\x36\xf3\x91\x33\x7b\xc7\x87\x87\xb2\x04\x65\x56\x53\x68\xbc\xdc\xc8\xa6\xe3\xb5\x14\xc6\x1e\x64\xe2\x11\x19\x4a\x3c\x4d\x9c"),
    (Target::Amd64V1, Metering::Fuel, *b"\xdc\xf4\xb4\xfd\xa6\x6a\xd9\x07\x48\x7d\xd2\x00\xfb\xfc\x17\x3e\x2c\xbe\x7a\xca\x96\xc4\x0f\x56\x94\x40\x04\x38\xd9\x06\x2d\x0d"),
    (Target::Arm64, Metering::Fuel, *b"\x56\x04\x6d\xd6\x1b\xcb\x41\xd6\x86\xe2\x27\x1e\x9b\x9e\xca\xa9\x91\x7c\x6d\x7b\x56\x62\xc1\x59\xa9\x1c\x02\x37\xa1\xd5\x9b\xa4"),
];

/// Whether code counts what it executes. Counting costs each decision something, so only code of a policy that has a limit
/// does: it is compiled by other settings, and runs in an engine of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Metering {
    #[default]
    Off,
    /// Instructions, in wasmtime's fuel.
    Fuel,
}

impl Metering {
    pub const ALL: [Self; 2] = [Self::Off, Self::Fuel];

    /// What code of a policy with these limits has to do.
    #[must_use]
    pub const fn of(limits: &Limits) -> Self {
        match limits.fuel {
            Some(_) => Self::Fuel,
            None => Self::Off,
        }
    }
}

/// The SHA-256 of every setting, for the best target that this host runs: what code has to be compiled with to be
/// loaded here.
#[must_use]
pub fn settings_digest(metering: Metering) -> Digest {
    settings_digest_of(Target::host(), metering)
}

/// The same for any target.
#[must_use]
pub fn settings_digest_of(target: Target, metering: Metering) -> Digest {
    let known = DIGESTS.iter().find(|(of, by, _)| (*of, *by) == (target, metering));
    Digest::from_bytes(known.map_or([0; 32], |(_, _, digest)| *digest))
}

/// Settings common to builder and worker: each of them is named, since what wasmtime takes by default depends on the
/// features that it was built with, and those differ between the two.
pub(super) fn shared_config(metering: Metering) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    // Everything that wasmtime knows is off, threads, GC, exceptions and stack switching among it, but for:
    config.wasm_features(WasmFeatures::all(), false);
    config.wasm_features(FEATURES, true);
    config.wasm_branch_hinting(false);
    config.relaxed_simd_deterministic(false);
    config.concurrency_support(false);
    config.shared_memory(false);
    config.epoch_interruption(true);
    config.consume_fuel(metering == Metering::Fuel);
    config.memory_reservation(MEMORY_RESERVATION);
    config.memory_reservation_for_growth(0);
    config.memory_guard_size(MEMORY_GUARD);
    config.guard_before_linear_memory(true);
    config.memory_may_move(false);
    config.memory_init_cow(true);
    config.memory_guaranteed_dense_image_size(DENSE_IMAGE);
    config.signals_based_traps(true);
    config.table_lazy_init(true);
    config.compiler_inlining(Inlining::No);
    config.wasm_backtrace_max_frames(None);
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config.generate_address_map(false);
    config.native_unwind_info(false);
    config.debug_info(false);
    config.debug_symbols(false);
    config.metadata_for_internal_asserts(false);
    // In full, and with what the code relies on and does not say by itself. wasmtime's loader refuses any other; by itself it
    // would look at the major version. (Code compares its stack with a limit that it is given, so it is the same for all.)
    let version = format!(
        "{WASMTIME_VERSION} portcullis-1 wasm-stack=262144 growth=0 dense-image={DENSE_IMAGE} address-map=no"
    );
    config.module_version(ModuleVersionStrategy::Custom(version))?;
    Ok(config)
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

/// Linear memory and table that are cleared by writing zeroes; what lies above is given back to the kernel.
const MEMORY_KEEP_RESIDENT: usize = 64 << 10;
const TABLE_KEEP_RESIDENT: usize = 16 << 10;
const STACK_KEEP_RESIDENT: usize = 16 << 10;
/// Largest table, elements; a policy's own limit is at most that.
pub(crate) const TABLE_ELEMENTS: usize = 10_000;
/// Parts of one component: its module, the shims around it, what it was composed of. Python's libraries and stubs are 38.
pub(crate) const CORE_INSTANCES_PER_COMPONENT: u32 = 64;
const MEMORIES_PER_COMPONENT: u32 = 2;
pub(crate) const TABLES_PER_COMPONENT: u32 = 4;

// What the supervisor reckons with when it looks whether a class's instances have room.
const _: () = assert!(INSTANCE_SPACE == MEMORIES_PER_COMPONENT as u64 * (MEMORY_RESERVATION + MEMORY_GUARD));

/// An engine that runs what others compiled, for policies with this stack and this kind of code.
pub(super) fn serving_engine(
    limits: &PoolLimits,
    stack: u32,
    metering: Metering,
    pagemap_scan: bool,
) -> wasmtime::Result<Engine> {
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
    pool.pagemap_scan(if pagemap_scan { Enabled::Yes } else { Enabled::No });
    let mut config = shared_config(metering)?;
    // Even where one is linked.
    #[cfg(feature = "compiler")]
    config.enable_compiler(false);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config.max_wasm_stack(stack as usize);
    config.async_stack_size((stack as usize).saturating_add(HOST_STACK));
    config.async_stack_zeroing(limits.stack_zeroing);
    Engine::new(&config)
}

/// The engine that compiles for a target, whatever machine this is.
#[cfg(feature = "compiler")]
pub fn compiling_engine(target: Target, metering: Metering) -> wasmtime::Result<Engine> {
    Engine::new(&compiling_config(target, metering)?)
}

/// The engine that runs what is run where a policy is built, and kept as it is then. Machines differ in the bits of a NaN that
/// they make; here it has one form, so that a policy has the same bytes wherever it is built.
#[cfg(feature = "compiler")]
pub fn preparing_engine() -> wasmtime::Result<Engine> {
    let mut config = compiling_config(Target::host(), Metering::Off)?;
    config.cranelift_nan_canonicalization(true);
    Engine::new(&config)
}

#[cfg(feature = "compiler")]
fn compiling_config(target: Target, metering: Metering) -> wasmtime::Result<Config> {
    let mut config = shared_config(metering)?;
    target.set(&mut config)?;
    config.strategy(wasmtime::Strategy::Cranelift);
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    config.cranelift_regalloc_algorithm(wasmtime::RegallocAlgorithm::Backtracking);
    config.cranelift_nan_canonicalization(false);
    config.cranelift_debug_verifier(false);
    Ok(config)
}

/// An engine that counts instructions and can say in which functions they ran: for people who look for what is slow, never for
/// what serves. What it compiles is slower than what a worker runs, and no worker loads it.
#[cfg(feature = "compiler")]
pub fn counting_engine(stack: u32) -> wasmtime::Result<Engine> {
    let mut config = shared_config(Metering::Fuel)?;
    Target::host().set(&mut config)?;
    config.strategy(wasmtime::Strategy::Cranelift);
    config.wasm_backtrace_max_frames(std::num::NonZeroUsize::new(COUNTED_FRAMES));
    config.max_wasm_stack(stack as usize);
    config.async_stack_size((stack as usize).saturating_add(COUNTING_STACK));
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

    /// Of the smallest component, compiled.
    #[cfg(feature = "compiler")]
    fn code(target: Target, metering: Metering) -> Vec<u8> {
        let engine = compiling_engine(target, metering).expect("engine");
        engine.precompile_component(b"\0asm\x0d\0\x01\0").expect("code")
    }

    /// A setting was changed, or wasmtime was: what is compiled from now on is not loaded by older workers, and
    /// the other way around. If that is meant, these are the new lines for [`DIGESTS`].
    #[test]
    #[cfg(feature = "compiler")]
    fn the_digests_that_workers_have_are_those_of_what_the_compiler_makes() {
        let each = Metering::ALL.into_iter().flat_map(|by| Target::ALL.map(|target| (target, by)));
        let made: Vec<_> = each
            .map(|(target, by)| {
                let digest = crate::engine::MadeFor::of(&code(target, by)).expect("made for").settings;
                (target, by, *digest.as_bytes())
            })
            .collect();
        let lines: String = made
            .iter()
            .map(|(target, by, digest)| {
                let bytes: String = digest.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("    (Target::{target:?}, Metering::{by:?}, *b\"{bytes}\"),\n")
            })
            .collect();
        assert_eq!(made, DIGESTS, "\n{lines}");
    }

    /// What wasmtime writes into the section that is hashed, read by its own format.
    #[cfg(feature = "compiler")]
    fn flags(code: &[u8]) -> (String, Vec<String>) {
        #[derive(serde::Deserialize)]
        enum Value<'a> {
            Enum(&'a str),
            Num(u8),
            Bool(bool),
        }
        type Flags<'a> = Vec<(&'a str, Value<'a>)>;
        let start = b"\0\x61".len();
        let at = code
            .windows(start + WASMTIME_VERSION.len() + 11)
            .position(|bytes| bytes.ends_with(format!("{WASMTIME_VERSION} portcullis").as_bytes()))
            .expect("section");
        let section = &code[at + start + usize::from(code[at + 1])..];
        let (target, rest) = postcard::take_from_bytes::<&str>(section).expect("target");
        let (shared, rest) = postcard::take_from_bytes::<Flags<'_>>(rest).expect("flags");
        let (isa, _) = postcard::take_from_bytes::<Flags<'_>>(rest).expect("flags of the processor");
        let on = isa.iter().filter(|(_, value)| matches!(value, Value::Bool(true)));
        let on = on.map(|(name, _)| (*name).to_owned()).collect();
        assert!(
            shared.iter().any(|(name, value)| *name == "opt_level" && matches!(value, Value::Enum("speed")))
        );
        assert!(
            isa.len() > 5 && !isa.iter().any(|(_, value)| matches!(value, Value::Num(number) if *number > 0))
        );
        (target.to_owned(), on)
    }

    /// Nothing is taken from the machine that compiles, which has more than this.
    #[test]
    #[cfg(feature = "compiler")]
    fn code_uses_the_extensions_of_its_target_and_no_other() {
        let v2 = ["cmpxchg16b", "popcnt", "sse3", "sse41", "sse42", "ssse3"];
        for (target, triple, expected) in [
            (Target::Amd64V2, "x86_64-unknown-linux-gnu", &v2[..]),
            (Target::Amd64V1, "x86_64-unknown-linux-gnu", &[]),
            (Target::Arm64, "aarch64-unknown-linux-gnu", &[]),
        ] {
            let (found, mut on) = flags(&code(target, Metering::Off));
            let mut expected: Vec<String> = expected.iter().map(|name| format!("has_{name}")).collect();
            on.sort();
            expected.sort();
            assert_eq!((found.as_str(), on), (triple, expected), "{target}");
        }
    }

    /// wasmtime by itself compares the major version.
    #[test]
    #[cfg(feature = "compiler")]
    fn the_full_version_is_in_the_code_and_wasmtimes_loader_compares_it_too() {
        let pool = PoolLimits { instances: 1, memory: 1 << 20, stack_zeroing: false };
        let worker = serving_engine(&pool, 256 << 10, Metering::Off, false).expect("engine");
        let load = |code: &[u8]| {
            // JUSTIFICATION: wasmtime's own refusal is what is tested.
            #[expect(unsafe_code, reason = "loading precompiled code is unsafe by nature")]
            // SAFETY: the bytes are the compiler's but for a digit of a version, and nothing of them is run.
            unsafe { wasmtime::component::Component::deserialize(&worker, code) }.map(drop)
        };
        let mut code = code(Target::host(), Metering::Off);
        load(&code).expect("unchanged");
        let at = code.windows(6).position(|bytes| bytes == WASMTIME_VERSION.as_bytes()).expect("version");
        code[at + 5] ^= 1;
        let error = load(&code).expect_err("loaded").to_string();
        assert!(error.contains("incompatible version '48.0.9"), "{error}");
        let ours = crate::engine::MadeFor::of(&code)
            .expect("made for")
            .check(Metering::Off)
            .expect_err("fits")
            .to_string();
        assert_eq!(ours, "it is compiled with wasmtime \"48.0.9\", this is 48.0.8");
    }
}
