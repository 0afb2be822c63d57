//! From a policy as its author built it to machine code that a worker may load.
//!
//! 1. [`componentize`]: a bare core module becomes a component first, with stand-ins where it imports [`wasi`]. One of many
//!    modules becomes one of one module: [`flatten`].
//!    One that has something to do before there is a request does it here: [`prepare`], and [`rego`] for what OPA compiled.
//! 2. [`check`]: is it a policy, and does it ask for nothing but what the world has?
//! 3. [`rewrite`]: every stretch of code becomes interruptible, and what nobody runs (names, debug information) goes.
//! 4. Compile, with the settings that the worker will load it under.
//!
//! The same input always gives the same bytes, on any machine, so that whoever signs can build again and compare.

mod bulk;
mod check;
mod componentize;
mod draft;
mod flatten;
mod pace;
mod prepare;
mod rego;
mod rewrite;
mod run;
mod vouch;
mod wasi;

use std::borrow::Cow;
use std::thread;

use wasmparser::Parser;

use crate::artifact::Digest;
use crate::bundle::Platform;
use crate::engine::{MadeFor, Metering, Target, World, compiling_engine, settings_digest_of};

use rewrite::Names;

pub use crate::bundle::SOURCE_MAX;
pub use check::CheckError;
pub use componentize::{ComponentizeError, asks_for_wasi, componentize, componentize_as, is_scattered};
pub use prepare::{PrepareError, Prepared, is_prepared, prepare};
pub use rego::{DATA_MAX, MODULE_MAX, Rego, RegoBuilt, RegoError, RegoOptions, rego};
pub use vouch::{VouchError, vouch};

/// Stack of the thread that builds, bytes. Readers and compiler recurse over what they read; with the limits that
/// [`check`] sets, this is more than they can use. Only what is touched is ever backed by memory.
pub const STACK: usize = 256 << 20;

/// A compiled policy and what the statement about it has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Of the bytes that were given.
    pub source: Digest,
    /// The version of the world that it implements.
    pub world: World,
    /// It exports `prepare`, to be called once when it is built.
    pub prepares: bool,
    /// Whether its code counts its instructions.
    pub metering: Metering,
    /// Host interfaces it imports, sorted: "clock", "data", "log", "metric", "random".
    pub imports: Vec<String>,
    /// Functions of it that the host calls, sorted: "decide".
    pub exports: Vec<String>,
    /// Linear memory it starts with, bytes; the limit in the statement cannot be lower.
    pub memory: u64,
    /// Elements of all its tables when it starts; the limit in the statement cannot be lower.
    pub table_elements: u64,
    /// Machine code, in the order of what was asked for.
    pub compiled: Vec<(Platform, Vec<u8>)>,
}

impl Built {
    /// The machine code for one platform, if it was asked for.
    #[must_use]
    pub fn code_for(&self, platform: Platform) -> Option<&[u8]> {
        self.compiled.iter().find(|(of, _)| *of == platform).map(|(_, code)| code.as_slice())
    }
}

/// Why a policy was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("read policy: {len} bytes, at most {SOURCE_MAX} are read")]
    TooLong { len: usize },
    #[error(transparent)]
    Componentize(#[from] ComponentizeError),
    #[error("check policy: {0}")]
    Check(#[from] CheckError),
    #[error("make policy interruptible: {0}")]
    Rewrite(#[from] wasmparser::Error),
    #[error("compile policy: {0}")]
    Compile(String),
    #[error(
        "compile policy for {target}: the compiler's settings have digest {found}, workers expect {expected}; this \
         program and the workers are not from one source"
    )]
    Settings { target: Target, found: Digest, expected: Digest },
    #[error("build policy: the compiler crashed on it; please report it together with the policy")]
    Crashed,
}

/// How a policy is to be built, beyond what it says itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// What a core module that does not say so implements ([`componentize()`]).
    pub world: Option<World>,
    /// Whether its code counts its instructions ([`Metering::of`] its limits).
    pub metering: Metering,
}

/// Checks, rewrites and compiles a policy, a component of the world or a core module that becomes one, for each of
/// these platforms.
///
/// # Errors
/// Which step refused it, and where in the file where that is known.
pub fn build(policy: &[u8], terms: Terms, platforms: &[Platform]) -> Result<Built, BuildError> {
    let targets: Vec<Target> = platforms.iter().map(|platform| Target::of(*platform)).collect();
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("build".into()).stack_size(STACK);
        let thread = builder
            .spawn_scoped(scope, || build_here(policy, terms, &targets))
            .map_err(|error| BuildError::Compile(format!("start a thread: {error}")))?;
        thread.join().unwrap_or(Err(BuildError::Crashed))
    })
}

/// The same for any targets, on the calling thread, which must have a stack of [`STACK`] bytes.
///
/// # Errors
/// Which step refused it, and where in the file where that is known.
pub fn build_here(policy: &[u8], terms: Terms, targets: &[Target]) -> Result<Built, BuildError> {
    let (component, mut built) = checked(policy, terms)?;
    let rewritten = rewrite::component(&component, Names::Dropped)?;
    for target in targets {
        built.compiled.push((target.platform(), compile(&rewritten, *target, terms.metering)?));
    }
    Ok(built)
}

/// Everything that can be said of a policy without compiling it. `compiled` is empty. On the calling thread, which must
/// have a stack of [`STACK`] bytes.
///
/// # Errors
/// Why it is not a policy, and where in the file where that is known.
pub fn check_here(policy: &[u8], terms: Terms) -> Result<Built, BuildError> {
    checked(policy, terms).map(|(_, built)| built)
}

/// A policy as it runs, with the names of its functions, not compiled: for engines that look at where it spends its time. On
/// the calling thread, which must have a stack of [`STACK`] bytes.
///
/// # Errors
/// Why it is not a policy, and where in the file where that is known.
pub fn interruptible_here(policy: &[u8], terms: Terms) -> Result<Vec<u8>, BuildError> {
    let (component, _) = checked(policy, terms)?;
    Ok(rewrite::component(&component, Names::Kept)?)
}

fn checked(policy: &[u8], terms: Terms) -> Result<(Cow<'_, [u8]>, Built), BuildError> {
    if policy.len() > SOURCE_MAX {
        return Err(BuildError::TooLong { len: policy.len() });
    }
    let component = if Parser::is_component(policy) {
        Cow::Borrowed(policy)
    } else {
        Cow::Owned(componentize::component_of(policy, terms.world)?)
    };
    let found = check::check(&component)?;
    let built = Built {
        source: Digest::of(policy),
        world: found.world,
        prepares: found.prepares,
        metering: terms.metering,
        imports: found.imports,
        exports: found.exports,
        memory: found.memory,
        table_elements: found.table_elements,
        compiled: Vec::new(),
    };
    Ok((component, built))
}

fn compile(rewritten: &[u8], target: Target, metering: Metering) -> Result<Vec<u8>, BuildError> {
    let failed = |error: wasmtime::Error| BuildError::Compile(format!("{error:#}"));
    let code = compiling_engine(target, metering)
        .map_err(failed)?
        .precompile_component(rewritten)
        .map_err(failed)?;
    let made_for = MadeFor::of(&code).map_err(|unfit| BuildError::Compile(unfit.to_string()))?;
    let (found, expected) = (made_for.settings, settings_digest_of(target, metering));
    if found == expected { Ok(code) } else { Err(BuildError::Settings { target, found, expected }) }
}

#[cfg(test)]
mod samples {
    /// A policy that always answers the same: an answer is 72 bytes, all of which may be zero. `extra` goes into its
    /// core module, imports first.
    pub(super) fn policy(extra: &str) -> Vec<u8> {
        let module = format!(
            r#"(module {extra}
                (memory (export "memory") 2)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
                (func (export "decide") (param i32) (result i32) (i32.const 512)))"#
        );
        super::componentize(module.as_bytes()).expect("component")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILL: &str = "(func (export \"f\") (param i32) i32.const 0 i32.const 0 local.get 0 memory.fill)";

    fn both(policy: &[u8]) -> Built {
        build(policy, Terms::default(), &Platform::ALL).unwrap()
    }

    #[test]
    fn building_twice_gives_the_same_bytes() {
        let policy = samples::policy(FILL);
        let (first, second) = (both(&policy), both(&policy));
        assert_eq!(first, second);
        assert_eq!(first.source, Digest::of(&policy));
        assert_ne!(first.compiled, both(&samples::policy("")).compiled);
    }

    #[test]
    fn each_platform_gets_code_of_its_own() {
        let built = both(&samples::policy(""));
        assert_eq!((built.exports.as_slice(), built.imports.len()), (&["decide".to_owned()][..], 0));
        for (platform, code) in &built.compiled {
            let made_for = MadeFor::of(code).unwrap();
            assert_eq!(made_for.platform, Some(*platform));
            assert_eq!(made_for.settings, settings_digest_of(Target::of(*platform), Metering::Off));
            assert_eq!(made_for.check(Metering::Off).is_ok(), *platform == Platform::host());
            assert_eq!(built.code_for(*platform), Some(code.as_slice()));
        }
        assert_eq!(built.compiled.iter().map(|(platform, _)| *platform).collect::<Vec<_>>(), Platform::ALL);
        // What is not asked for is not made.
        let one = build(&samples::policy(""), Terms::default(), &[Platform::LinuxArm64]).unwrap();
        assert_eq!(one.code_for(Platform::LinuxAmd64), None);
        assert_eq!(one.code_for(Platform::LinuxArm64), built.code_for(Platform::LinuxArm64));
    }

    #[test]
    fn names_and_debug_information_do_not_reach_the_machine_code() {
        let custom = |text: &str| samples::policy(&format!("(@custom \"{text}\" \"somewhere\") {FILL}"));
        let (plain, debug) = (custom("a"), custom(".debug_line"));
        assert_ne!(plain, debug);
        let (plain, debug) = (both(&plain).compiled, both(&debug).compiled);
        assert_eq!(plain, debug);
        for (_, code) in debug {
            assert!(!code.windows(9).any(|bytes| bytes == b"somewhere"));
        }
    }

    #[test]
    fn errors_say_which_step_refused() {
        let error =
            |bytes: &[u8]| build(bytes, Terms::default(), &Platform::ALL).expect_err("built").to_string();
        assert!(error(b"\0asm\x0d\0\x01\0").starts_with("check policy: it does not export \"decide\""));
        assert_eq!(
            error(&vec![0; SOURCE_MAX + 1]),
            "read policy: 1073741825 bytes, at most 1073741824 are read"
        );
    }
}
