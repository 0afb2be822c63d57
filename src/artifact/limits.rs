//! What a policy may use: what its manifest asks for, and what the operator lets it have of that.
//!
//! One code for the worker, the builder and the command line ([`crate::engine::load`] applies it), so that a policy that
//! was tried has the limits it will be served with.

use serde::{Deserialize, Serialize};

/// Native stack, bytes, where nothing else is asked for.
const STACK: u32 = 256 << 10;
/// Calls of host functions in one decision, where nothing else is asked for.
const HOST_CALLS: u32 = 10_000;

/// What a policy asks for. The class and the tenant may grant less, never more.
///
/// The first four are always in its JSON. Those that came later are there only where they are not what a policy gets that
/// says nothing: so a manifest that was signed before there were any still has its one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Linear memory, bytes.
    pub memory: u32,
    /// Elements of all its tables together.
    pub table_elements: u32,
    /// Bytes of guest output (strings, lists) per decision.
    pub output: u32,
    /// Longest a decision may take, microseconds.
    pub deadline_us: u32,
    /// Native stack, bytes: one of [`Self::STACKS`].
    #[serde(default = "default_stack", skip_serializing_if = "is_default_stack")]
    pub stack: u32,
    /// Calls of host functions in one decision.
    #[serde(default = "default_host_calls", skip_serializing_if = "is_default_host_calls")]
    pub host_calls: u32,
    /// Instructions of one decision, as wasmtime counts them. None: its code does not count, which is faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
}

impl Limits {
    /// The stacks that there are: a worker has a pool of instances for each that is asked for.
    pub const STACKS: [u32; 5] = [64 << 10, 128 << 10, STACK, 512 << 10, 1 << 20];
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 4 << 20,
            table_elements: 10_000,
            output: 64 << 10,
            deadline_us: 1_000_000,
            stack: STACK,
            host_calls: HOST_CALLS,
            fuel: None,
        }
    }
}

/// What an operator lets any policy of a class, or of a tenant, have at most. A deadline is the tenant's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ceiling {
    pub memory: u32,
    pub table_elements: u32,
    pub output: u32,
    pub stack: u32,
    pub host_calls: u32,
    /// None: policies need not count their instructions. Otherwise one that does not is not loaded.
    pub fuel: Option<u64>,
}

impl Ceiling {
    /// No more than what the engine has.
    pub const MOST: Self = Self {
        memory: u32::MAX,
        table_elements: u32::MAX,
        output: u32::MAX,
        stack: u32::MAX,
        host_calls: u32::MAX,
        fuel: None,
    };
}

impl Default for Ceiling {
    fn default() -> Self {
        Self::MOST
    }
}

fn default_stack() -> u32 {
    STACK
}

fn is_default_stack(stack: &u32) -> bool {
    *stack == STACK
}

fn default_host_calls() -> u32 {
    HOST_CALLS
}

fn is_default_host_calls(calls: &u32) -> bool {
    *calls == HOST_CALLS
}
