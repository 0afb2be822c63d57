//! From a policy as its author built it to machine code that a worker may load.
//!
//! 1. [`componentize`]: a bare core module becomes a component first.
//! 2. [`check`]: is it a policy, and does it ask for nothing but what the world has?
//! 3. [`rewrite`]: every stretch of code becomes interruptible, and what nobody runs (names, debug information) goes.
//! 4. Compile, with the settings that the worker will load it under.
//!
//! The same input always gives the same bytes, so that whoever signs can build again and compare.

mod bulk;
mod check;
mod componentize;
mod pace;
mod rewrite;

use std::borrow::Cow;
use std::thread;

use wasmparser::Parser;

use crate::artifact::Digest;
use crate::engine::compiling_engine;

pub use check::{CheckError, SOURCE_MAX};
pub use componentize::{ComponentizeError, componentize};

/// Stack of the thread that builds, bytes. Readers and compiler recurse over what they read; with the limits that
/// [`check`] sets, this is more than they can use. Only what is touched is ever backed by memory.
const STACK: usize = 256 << 20;

/// A compiled policy and what the statement about it has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub cwasm: Vec<u8>,
    /// Of the bytes that were given.
    pub source: Digest,
    /// Host interfaces it imports, sorted: "clock", "log", "random".
    pub imports: Vec<String>,
    /// Linear memory it starts with, bytes; the limit in the statement cannot be lower.
    pub memory: u64,
    /// Elements of all its tables when it starts; the limit in the statement cannot be lower.
    pub table_elements: u64,
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
    #[error("build policy: the compiler crashed on it; please report it together with the policy")]
    Crashed,
}

/// Checks, rewrites and compiles a policy: a component of the world, or a core module that becomes one.
///
/// # Errors
/// Which step refused it, and where in the file where that is known.
pub fn build(policy: &[u8]) -> Result<Built, BuildError> {
    if policy.len() > SOURCE_MAX {
        return Err(BuildError::TooLong { len: policy.len() });
    }
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("build".into()).stack_size(STACK);
        let thread = builder
            .spawn_scoped(scope, || build_here(policy))
            .map_err(|error| BuildError::Compile(format!("start a thread: {error}")))?;
        thread.join().unwrap_or(Err(BuildError::Crashed))
    })
}

fn build_here(policy: &[u8]) -> Result<Built, BuildError> {
    let component =
        if Parser::is_component(policy) { Cow::Borrowed(policy) } else { Cow::Owned(componentize(policy)?) };
    let found = check::check(&component)?;
    let rewritten = rewrite::component(&component)?;
    let cwasm = compiling_engine()
        .and_then(|engine| engine.precompile_component(&rewritten))
        .map_err(|error| BuildError::Compile(format!("{error:#}")))?;
    Ok(Built {
        cwasm,
        source: Digest::of(policy),
        imports: found.imports,
        memory: found.memory,
        table_elements: found.table_elements,
    })
}

#[cfg(test)]
mod samples {
    /// A policy that always answers the same: a decision is 68 bytes, all of which may be zero. `extra` goes into its
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

    #[test]
    fn building_twice_gives_the_same_bytes() {
        let policy = samples::policy(FILL);
        let (first, second) = (build(&policy).unwrap(), build(&policy).unwrap());
        assert_eq!(first, second);
        assert_eq!(first.source, Digest::of(&policy));
        assert_ne!(first.cwasm, build(&samples::policy("")).unwrap().cwasm);
    }

    #[test]
    fn names_and_debug_information_do_not_reach_the_machine_code() {
        let custom = |text: &str| samples::policy(&format!("(@custom \"{text}\" \"somewhere\") {FILL}"));
        let (plain, debug) = (custom("a"), custom(".debug_line"));
        assert_ne!(plain, debug);
        let (plain, debug) = (build(&plain).unwrap(), build(&debug).unwrap());
        assert_eq!(plain.cwasm, debug.cwasm);
        assert!(!debug.cwasm.windows(9).any(|bytes| bytes == b"somewhere"));
    }

    #[test]
    fn errors_say_which_step_refused() {
        let error = |bytes: &[u8]| build(bytes).expect_err("built").to_string();
        assert!(error(b"\0asm\x0d\0\x01\0").starts_with("check policy: it does not export \"decide\""));
        assert_eq!(error(&vec![0; SOURCE_MAX + 1]), "read policy: 33554433 bytes, at most 33554432 are read");
    }
}
