//! What a policy may use: what its manifest asks for, and what the operator lets it have of that.
//!
//! One code for the worker, the builder and the command line ([`crate::engine::load`] applies it), so that a policy that
//! was tried has the limits it will be served with.

use serde::{Deserialize, Serialize};

/// Native stack, bytes, where nothing else is asked for.
const STACK: u32 = 256 << 10;
/// Calls of host functions in one decision, where nothing else is asked for.
const HOST_CALLS: u32 = 10_000;

/// Address space that an engine reserves for each instance that it may have at a time: two memories and what guards them.
/// The numbers are the engine's settings, which the supervisor has not; it compares them when it is compiled.
pub const INSTANCE_SPACE: u64 = 2 * ((4 << 30) + (32 << 20));
/// Address space of a process for engines: of its 128 TiB, what is left where the kernel begins at a random place below the
/// end (up to 16 TiB, with `vm.mmap_rnd_bits = 32`), and something for anything else.
const ENGINES_SPACE: u64 = 110 << 40;
/// An engine needs its space in one piece. The program lies in the middle, also at a random place, and above it and below it
/// up to one engine's space may be what no engine fits into.
const UNUSABLE: u64 = 2;

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

    /// What it gets of what it asks for: of each the lesser. Of stacks there are only some, so it gets the largest that is
    /// allowed.
    ///
    /// # Errors
    /// When its instructions have to be counted, and its code does not.
    pub fn within(&self, ceiling: &Ceiling) -> Result<Self, NotCounted> {
        let stack = self.stack.min(ceiling.stack);
        let fitting = Self::STACKS.into_iter().rev().find(|one| *one <= stack);
        let [smallest, ..] = Self::STACKS;
        Ok(Self {
            memory: self.memory.min(ceiling.memory),
            table_elements: self.table_elements.min(ceiling.table_elements),
            output: self.output.min(ceiling.output),
            deadline_us: self.deadline_us,
            stack: fitting.unwrap_or(smallest),
            host_calls: self.host_calls.min(ceiling.host_calls),
            fuel: match (self.fuel, ceiling.fuel) {
                (None, Some(most)) => return Err(NotCounted { most }),
                (Some(fuel), Some(most)) => Some(fuel.min(most)),
                (fuel, None) => fuel,
            },
        })
    }
}

/// An operator limits the instructions of a decision, and this policy's code does not count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a decision may execute {most} instructions here, and its manifest has no such limit; build it again with --fuel"
)]
pub struct NotCounted {
    most: u64,
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

    /// What both allow.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            memory: self.memory.min(other.memory),
            table_elements: self.table_elements.min(other.table_elements),
            output: self.output.min(other.output),
            stack: self.stack.min(other.stack),
            host_calls: self.host_calls.min(other.host_calls),
            fuel: self.fuel.into_iter().chain(other.fuel).min(),
        }
    }

    /// Most engines that policies with this ceiling can make a worker have, the ordinary one among them: one for each stack
    /// that they may ask for, for code that counts and for code that does not.
    #[must_use]
    pub fn engines(&self) -> u64 {
        let [smallest, ..] = Limits::STACKS;
        let stacks = Limits::STACKS.into_iter().filter(|stack| *stack <= self.stack.max(smallest));
        let kinds = if self.fuel.is_some() { 1 } else { 2 };
        let ordinary_is_one_of_them = self.stack >= STACK && self.fuel.is_none();
        let asked_for = stacks.fold(0_u64, |count, _| count.saturating_add(kinds));
        asked_for.saturating_add(u64::from(!ordinary_is_one_of_them))
    }

    /// Most instances at a time for which the address space of a process is enough, whatever its policies ask for and wherever
    /// the kernel has put it.
    #[must_use]
    pub fn instances_max(&self) -> u64 {
        let pieces = self.engines().saturating_add(UNUSABLE);
        (ENGINES_SPACE / INSTANCE_SPACE).checked_div(pieces).unwrap_or(0)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What was signed before there were such limits is the same JSON, read and written.
    #[test]
    fn what_nobody_asked_for_is_not_in_the_json() {
        let old = r#"{"memory":4194304,"table_elements":10000,"output":65536,"deadline_us":1000000}"#;
        let limits: Limits = serde_json::from_str(old).unwrap();
        assert_eq!(limits, Limits::default());
        assert_eq!(serde_json::to_string(&limits).unwrap(), old);
        let new = Limits { stack: 64 << 10, host_calls: 7, fuel: Some(0), ..limits };
        let text = serde_json::to_string(&new).unwrap();
        assert!(text.ends_with(r#","stack":65536,"host_calls":7,"fuel":0}"#), "{text}");
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), new);
    }

    #[test]
    fn a_policy_gets_the_lesser_of_what_it_asks_for_and_what_it_may_have() {
        let asked = Limits { fuel: Some(1000), ..Limits::default() };
        assert_eq!(asked.within(&Ceiling::MOST), Ok(asked));
        let ceiling = Ceiling {
            memory: 1 << 20,
            table_elements: 5,
            output: 6,
            stack: 200 << 10,
            host_calls: 8,
            fuel: Some(9),
        };
        let given = asked.within(&ceiling).unwrap();
        let expected = Limits {
            memory: 1 << 20,
            table_elements: 5,
            output: 6,
            stack: 128 << 10,
            host_calls: 8,
            fuel: Some(9),
            ..asked
        };
        assert_eq!(given, expected);
        assert_eq!(given.within(&ceiling), Ok(given));
        assert_eq!(asked.within(&Ceiling { stack: 1, ..Ceiling::MOST }).unwrap().stack, 64 << 10);
        let refused = Limits::default().within(&ceiling).unwrap_err().to_string();
        assert!(refused.contains("may execute 9 instructions") && refused.contains("--fuel"), "{refused}");
    }

    #[test]
    fn engines_are_as_many_as_policies_can_ask_for() {
        let ceiling = |stack: u32, fuel| Ceiling { stack, fuel, ..Ceiling::MOST };
        assert_eq!(Ceiling::MOST.engines(), 10);
        assert_eq!(ceiling(256 << 10, None).engines(), 6);
        // The ordinary one is always there.
        assert_eq!(ceiling(64 << 10, None).engines(), 3);
        assert_eq!(ceiling(1, None).engines(), 3, "nobody gets less than the smallest");
        assert_eq!(ceiling(1 << 20, Some(1)).engines(), 6);
        assert_eq!(ceiling(64 << 10, Some(1)).engines(), 2);
        for ceiling in [Ceiling::MOST, ceiling(64 << 10, Some(1))] {
            // Wherever the program lies, and whatever little the kernel leaves above: all engines fit, below it and above.
            let (tib, engine) = (1 << 40, ceiling.instances_max() * INSTANCE_SPACE);
            for program in 85..102 {
                for end in 112..=128 {
                    let fit = program * tib / engine + (end - program) * tib / engine;
                    assert!(fit >= ceiling.engines(), "{program} and {end} TiB: {fit}");
                }
            }
            // And no tenth of them is given away where the kernel puts the program elsewhere.
            let larger = engine + engine / 10;
            let fit = 88 * tib / larger + (112 - 88) * tib / larger;
            assert!(fit <= ceiling.engines(), "{fit}");
        }
    }

    #[test]
    fn two_ceilings_are_the_lower_of_each() {
        let one = Ceiling { memory: 1, fuel: Some(5), ..Ceiling::MOST };
        let other = Ceiling { memory: 2, output: 3, fuel: Some(4), ..Ceiling::MOST };
        let both = Ceiling { memory: 1, output: 3, fuel: Some(4), ..Ceiling::MOST };
        assert_eq!((one.and(&other), other.and(&one)), (both, both));
        assert_eq!(one.and(&Ceiling::MOST), one);
    }
}
