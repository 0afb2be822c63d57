//! What happens in one evaluation, noted for people who try a policy: what it asked of the host, how much memory it took,
//! and, in an engine that counts, how many instructions ran and in which functions.
//!
//! Nothing of it changes an answer. The service notes nothing: its calls come without a [`Watch`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use wasmtime::{AsContext, WasmBacktrace};

use super::data::Data;

/// Looks at the stack after which an evaluation that is counted is ended: some seconds.
const LOOKS_MAX: u64 = 2_000_000;
/// Fuel that an evaluation which is counted starts with: it never runs out.
pub(super) const FUEL: u64 = u64::MAX;

/// Something that a policy asked of the host, and what it got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HostCall {
    Log {
        level: LogLevel,
        message: String,
    },
    Clock {
        ns: u64,
    },
    /// Of which only so many were drawn: what they were follows from the seed.
    Random {
        bytes: u32,
    },
    DataGet {
        key: String,
        #[serde(with = "hexadecimal_if_any")]
        value: Option<Vec<u8>>,
    },
    DataEntries {
        prefix: String,
        after: Option<String>,
        limit: u32,
        entries: Vec<Listed>,
    },
    Metric {
        name: String,
        value: u64,
        /// Not where its name is not declared, or there were too many.
        counted: bool,
    },
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    pub key: String,
    #[serde(with = "hexadecimal")]
    pub value: Vec<u8>,
}

/// How important a policy says that its line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
}

/// A function of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// The core module's own name; empty where it has none.
    pub module: String,
    /// Among all functions of its module, imported ones first.
    pub index: u32,
    /// As its name section has it, if it has one.
    pub name: Option<String>,
}

/// What was noted.
#[derive(Debug, Clone, Default)]
pub struct Notes {
    pub calls: Vec<HostCall>,
    /// Linear memory at the end, which is the most there ever was: it never shrinks.
    pub memory: u64,
    pub table_elements: u64,
    /// Instructions, where they were counted.
    pub instructions: Option<u64>,
    /// Every function that ran, where they were counted.
    pub functions: Vec<Function>,
    /// Instructions by stack, callers first, each a place in `functions`. An instruction counts for the stack that was seen
    /// last, at the entry of a function or at the head of a loop.
    pub stacks: BTreeMap<Vec<usize>, u64>,
    /// There was more to count than anybody wants to wait for: the evaluation was ended.
    pub cut_short: bool,
}

/// Where an evaluation is noted.
#[derive(Debug, Default)]
pub struct Watch {
    /// Only an engine of [`super::counting_engine`] can.
    counts: bool,
    /// Instead of what the policy has.
    data: Option<Arc<Data>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    notes: Notes,
    /// By the address of its module's code, which is another for each module, and its index.
    known: HashMap<(usize, u32), usize>,
    stack: Vec<usize>,
    looks: u64,
    /// Fuel when it was looked at last.
    left: u64,
}

impl HostCall {
    /// The capability that was used.
    #[must_use]
    pub fn interface(&self) -> &'static str {
        match self {
            Self::Log { .. } => "log",
            Self::Clock { .. } => "clock",
            Self::Random { .. } => "random",
            Self::DataGet { .. } | Self::DataEntries { .. } => "data",
            Self::Metric { .. } => "metric",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
        })
    }
}

impl Notes {
    /// What was counted in another evaluation, too.
    pub fn merge(&mut self, other: &Self) {
        let places: Vec<usize> = other.functions.iter().map(|function| self.place(function)).collect();
        for (stack, count) in &other.stacks {
            let stack = stack.iter().filter_map(|place| places.get(*place).copied()).collect();
            *self.stacks.entry(stack).or_default() += count;
        }
        let sum = self.instructions.unwrap_or(0).saturating_add(other.instructions.unwrap_or(0));
        self.instructions = Some(sum);
        self.cut_short |= other.cut_short;
    }

    fn place(&mut self, function: &Function) -> usize {
        match self.functions.iter().position(|known| known == function) {
            Some(place) => place,
            None => {
                self.functions.push(function.clone());
                self.functions.len() - 1
            }
        }
    }
}

impl Watch {
    /// Notes what the host sees. `data` is what there is to be looked up, instead of what the policy was loaded with.
    #[must_use]
    pub fn new(data: Option<Arc<Data>>) -> Self {
        Self { data, ..Self::default() }
    }

    /// Counts instructions as well, in an engine of [`super::counting_engine`].
    #[cfg(feature = "compiler")]
    #[must_use]
    pub fn counting(data: Option<Arc<Data>>) -> Self {
        let state = State { left: FUEL, ..State::default() };
        Self { counts: true, data, state: Mutex::new(state) }
    }

    pub(super) fn data(&self) -> Option<Arc<Data>> {
        self.data.clone()
    }

    pub(super) fn counts(&self) -> bool {
        self.counts
    }

    /// What has been noted so far: all of it once the evaluation has ended, or was dropped.
    #[must_use]
    pub fn notes(&self) -> Notes {
        self.state().notes.clone()
    }

    pub(super) fn call(&self, call: HostCall) {
        self.state().notes.calls.push(call);
    }

    pub(super) fn grown(&self, memory: usize, table_elements: usize) {
        let mut state = self.state();
        state.notes.memory = u64::try_from(memory).unwrap_or(u64::MAX);
        state.notes.table_elements = u64::try_from(table_elements).unwrap_or(u64::MAX);
    }

    /// The guest is at the entry of a function or at the head of a loop.
    ///
    /// # Errors
    /// When it has been there too often.
    pub(super) fn look(&self, store: impl AsContext, left: u64) -> wasmtime::Result<()> {
        let backtrace = WasmBacktrace::force_capture(store);
        let mut state = self.state();
        state.spend(left);
        let State { notes, known, stack, looks, .. } = &mut *state;
        stack.clear();
        for frame in backtrace.frames().iter().rev() {
            let module = frame.module();
            let key = (module.text().as_ptr().addr(), frame.func_index());
            let place = *known.entry(key).or_insert_with(|| {
                notes.functions.push(Function {
                    module: module.name().unwrap_or_default().to_owned(),
                    index: frame.func_index(),
                    name: frame.func_name().map(str::to_owned),
                });
                notes.functions.len() - 1
            });
            stack.push(place);
        }
        *looks += 1;
        if *looks < LOOKS_MAX {
            return Ok(());
        }
        notes.cut_short = true;
        wasmtime::bail!("more than {LOOKS_MAX} functions and loops were entered")
    }

    /// The guest has ended.
    pub(super) fn ended(&self, left: u64) {
        let mut state = self.state();
        state.spend(left);
        state.notes.instructions = Some(FUEL.saturating_sub(left));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spend(&mut self, left: u64) {
        let spent = self.left.saturating_sub(left);
        self.left = left;
        if spent > 0 && !self.stack.is_empty() {
            let stacks = &mut self.notes.stacks;
            match stacks.get_mut(&self.stack) {
                Some(count) => *count += spent,
                None => drop(stacks.insert(self.stack.clone(), spent)),
            }
        }
    }
}

impl Listed {
    pub(super) fn new(key: &str, value: &[u8]) -> Self {
        Self { key: key.to_owned(), value: value.to_vec() }
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

mod hexadecimal_if_any {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(hex::encode).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let digits = Option::<String>::deserialize(deserializer)?;
        digits.map(|digits| hex::decode(digits).map_err(de::Error::custom)).transpose()
    }
}
