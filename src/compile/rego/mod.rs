//! From a module that `opa build -t wasm` made to a component of our world, with its data parsed.
//!
//! 1. [`bundle`]: a bundle's policy and data, or a bare module.
//! 2. [`inspect`]: which ABI is it, what does it ask for, and what is it called by?
//! 3. [`relocate`] and [`merge`]: one module of OPA's and of our adapter (`policies/rego`), with one memory. Rules that contradict
//!    each other become a failure with a reason ([`conflict`]).
//! 4. [`snapshot`]: parse data and settle names, once; the memory as it is then is what instances start with.
//!
//! What OPA leaves to its host runs in the guest. The component imports no more than what its builtins need of the
//! world: a policy that never asks for the time cannot.

mod bundle;
mod conflict;
mod inspect;
mod merge;
mod part;
mod relocate;
mod snapshot;
mod weight;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::thread;

pub use bundle::{DATA_MAX, MODULE_MAX, Rego};

use super::run::MEMORY_MAX;
use super::{ComponentizeError, SOURCE_MAX, STACK, componentize};
use crate::artifact::Digest;
use crate::bundle::{RegoConfig, RegoResult};
use inspect::Inspected;
use snapshot::Settings;

/// What every policy is merged with, and what some are, by how the names of their builtins begin.
const ADAPTERS: [Adapter; 5] = [
    Adapter { prefixes: &[], module: include_bytes!("../../../policies/rego/modules/policy.wasm") },
    Adapter { prefixes: &["regex."], module: include_bytes!("../../../policies/rego/modules/regex.wasm") },
    Adapter { prefixes: &["time."], module: include_bytes!("../../../policies/rego/modules/time.wasm") },
    Adapter {
        prefixes: &["crypto.", "io.jwt."],
        module: include_bytes!("../../../policies/rego/modules/tokens.wasm"),
    },
    Adapter { prefixes: &["yaml."], module: include_bytes!("../../../policies/rego/modules/yaml.wasm") },
];

/// Has a prefix of a family, and needs nothing of it.
const NOW: &str = "time.now_ns";

struct Adapter {
    prefixes: &'static [&'static str],
    module: &'static [u8],
}

impl Adapter {
    /// False for what every policy has.
    fn has(&self, builtin: &str) -> bool {
        builtin != NOW && self.prefixes.iter().any(|prefix| builtin.starts_with(prefix))
    }
}

/// What a policy must not be able to do here, with the way out.
const REFUSED: [(&str, &str); 9] = [
    ("http.send", "a policy reaches no network; put what it would fetch into its data"),
    ("net.lookup_ip_addr", "a policy reaches no network; compare addresses instead of names"),
    ("providers.aws.", "a policy signs nothing for others"),
    ("graphql.", "GraphQL is not supported; match the request's body or path instead"),
    ("json.match_schema", "JSON Schema is not supported; write the rules in Rego"),
    ("json.verify_schema", "JSON Schema is not supported; write the rules in Rego"),
    ("crypto.x509.", "certificates are verified by whoever terminates TLS; use what it says of them"),
    ("crypto.parse_private_keys", "a policy holds no private key"),
    ("rego.parse_module", "a policy does not read policies"),
];

/// How a Rego policy becomes ours.
#[derive(Debug, Clone, Default)]
pub struct RegoOptions {
    /// `package/rule`, as `opa build -e` has it. Not needed where there is only one.
    pub entrypoint: Option<String>,
    /// What the entrypoint's result has to be.
    pub result: RegoResult,
}

/// What was made, and what the manifest says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegoBuilt {
    /// A component of our world.
    pub component: Vec<u8>,
    pub config: RegoConfig,
}

/// Why a Rego policy was not built.
#[derive(Debug, thiserror::Error)]
pub enum RegoError {
    #[error("read bundle: {0}")]
    Bundle(String),
    #[error("read module of OPA: {0}")]
    Module(String),
    #[error(
        "module has ABI {major}.{minor} of OPA, supported are 1.0 to 1.3; build it with OPA 0.27 or newer"
    )]
    Abi { major: i32, minor: i32 },
    #[error("module has no ABI version: OPA before 0.27 made it; build it again with a newer one")]
    NoAbi,
    #[error("module imports {module:?} {name:?}, which is nothing that OPA's modules import")]
    Import { module: String, name: String },
    #[error("module calls builtin {name:?}, which is refused: {why}")]
    Refused { name: String, why: &'static str },
    #[error("module calls builtin {0:?}, which is unknown; OPA up to 1.9 is supported")]
    Unknown(String),
    #[error("entrypoint {wanted:?} is not in the module; it has {known:?}")]
    NoEntrypoint { wanted: String, known: Vec<String> },
    #[error("module has the entrypoints {0:?}; name one of them")]
    WhichEntrypoint(Vec<String>),
    #[error(
        "data.json has {len} bytes, at most {DATA_MAX} are parsed, and about {} would be in memory; read large tables from a \
         data snapshot, by `portcullis.data.get`",
        parsed(*len)
    )]
    TooMuchData { len: usize },
    #[error(
        "data.json has {len} bytes, about {parsed} when it is parsed, and a memory ends at {MEMORY_MAX}; read large tables from a \
         data snapshot, by `portcullis.data.get`"
    )]
    Memory { len: usize, parsed: u64 },
    #[error(
        "policy with its data parsed has {len} bytes, at most {SOURCE_MAX} are built; read large tables from a data snapshot, \
         by `portcullis.data.get`"
    )]
    TooLarge { len: usize },
    #[error("data.json is not JSON: {0}")]
    Data(String),
    #[error("pre-initialise policy: {0}")]
    Snapshot(String),
    #[error("adapter of this program: {0}; please report it")]
    Adapter(String),
    #[error(transparent)]
    Componentize(#[from] ComponentizeError),
}

/// What data takes when it is parsed, as a rule.
fn parsed(len: usize) -> usize {
    len.saturating_mul(15)
}

impl RegoError {
    fn module(error: impl std::fmt::Display) -> Self {
        Self::Module(error.to_string())
    }
}

/// Makes a component of a Rego policy.
///
/// # Errors
/// Which step refused it and why.
pub fn rego(policy: &Rego, options: &RegoOptions) -> Result<RegoBuilt, RegoError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("rego".into()).stack_size(STACK);
        let thread = builder
            .spawn_scoped(scope, || rego_here(policy, options))
            .map_err(|error| RegoError::Snapshot(format!("start a thread: {error}")))?;
        thread
            .join()
            .unwrap_or_else(|_| Err(RegoError::Snapshot("the builder crashed; please report it".into())))
    })
}

fn rego_here(policy: &Rego, options: &RegoOptions) -> Result<RegoBuilt, RegoError> {
    let inspected = inspect::inspect(&policy.module)?;
    let (entrypoint, number) = choose(&inspected, options)?;
    refuse(&inspected)?;
    if !policy.data.is_empty() {
        let data: BTreeMap<Cow<'_, str>, serde::de::IgnoredAny> =
            serde_json::from_slice(&policy.data).map_err(|error| RegoError::Data(error.to_string()))?;
        drop(data);
    }
    let adapters = adapters_for(&inspected);
    let names = names_for(&adapters, &inspected);
    let mut room = inspected.pages;
    loop {
        let placed = relocate::in_a_row(adapters.iter().map(|adapter| adapter.module), room)?;
        let merged = merge::merge(&policy.module, &placed, &inspected)?;
        let settings = Settings { entrypoint: number, result: options.result };
        match snapshot::take(&merged, &placed, &names, &policy.data, settings)? {
            // OPA's start needs more room than there was before the adapter.
            None => room = room.saturating_add(1),
            Some(taken) => {
                let component = componentize(&taken.module)?;
                if component.len() > SOURCE_MAX {
                    return Err(RegoError::TooLarge { len: component.len() });
                }
                let config = RegoConfig {
                    abi: inspected.abi.to_string(),
                    entrypoint,
                    result: options.result,
                    builtins: inspected.builtins.into_keys().collect(),
                    module: Digest::of(&policy.module),
                    data: (!policy.data.is_empty()).then(|| Digest::of(&policy.data)),
                    data_address: taken.data,
                    heap_base: taken.heap,
                };
                return Ok(RegoBuilt { component, config });
            }
        }
        if room > inspected.pages.saturating_add(16) {
            return Err(RegoError::Snapshot("the module's start needs too much memory".into()));
        }
    }
}

fn choose(inspected: &Inspected, options: &RegoOptions) -> Result<(String, u32), RegoError> {
    let known = || inspected.entrypoints.keys().cloned().collect();
    match &options.entrypoint {
        Some(wanted) => match inspected.entrypoints.get(wanted) {
            Some(number) => Ok((wanted.clone(), *number)),
            None => Err(RegoError::NoEntrypoint { wanted: wanted.clone(), known: known() }),
        },
        None => match inspected.entrypoints.first_key_value() {
            Some((name, number)) if inspected.entrypoints.len() == 1 => Ok((name.clone(), *number)),
            _ => Err(RegoError::WhichEntrypoint(known())),
        },
    }
}

fn refuse(inspected: &Inspected) -> Result<(), RegoError> {
    for name in inspected.builtins.keys() {
        let matches =
            |refused: &str| if refused.ends_with('.') { name.starts_with(refused) } else { name == refused };
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| matches(refused)) {
            return Err(RegoError::Refused { name: name.clone(), why });
        }
    }
    Ok(())
}

/// The first one, and those that have a builtin that the policy calls.
fn adapters_for(inspected: &Inspected) -> Vec<&'static Adapter> {
    let needed = |adapter: &Adapter| inspected.builtins.keys().any(|name| adapter.has(name));
    ADAPTERS.iter().filter(|adapter| adapter.prefixes.is_empty() || needed(adapter)).collect()
}

/// Which builtins are whose: for each adapter the names of its own, by number; of what is another's the name is empty.
fn names_for(adapters: &[&Adapter], inspected: &Inspected) -> Vec<Vec<String>> {
    let count = inspected.builtins.values().max().map_or(0, |last| last.saturating_add(1));
    let mut names = vec![vec![String::new(); usize::try_from(count).unwrap_or(0)]; adapters.len()];
    for (name, number) in &inspected.builtins {
        let owner = adapters.iter().position(|adapter| adapter.has(name)).unwrap_or(0);
        let number = usize::try_from(*number).unwrap_or(usize::MAX);
        if let Some(place) = names.get_mut(owner).and_then(|names| names.get_mut(number)) {
            place.clone_from(name);
        }
    }
    names
}
