//! What a policy is and what it asks for: the config blob of a bundle, covered by its digest and so by each signature.

use serde::{Deserialize, Serialize};

use super::{Platform, SecretId};
use crate::artifact::{Digest, Limits};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{METRICS_MAX, WORLD, is_metric_name};

/// Most data snapshots that one policy reads.
pub const DATA_MAX: usize = 8;

/// What data asks for.
const NOTHING: Limits =
    Limits { memory: 0, table_elements: 0, output: 0, deadline_us: 0, stack: 0, host_calls: 0, fuel: None };

/// What a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It decides.
    Policy,
    /// Policies read it: a table of keys and values, and nothing that runs.
    Data,
}

impl Kind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Data => "data",
        }
    }
}

/// Largest config blob, bytes.
pub const CONFIG_MAX: usize = 64 << 10;

/// The capability manifest, version 1. Its one form is compact JSON with the fields in this order.
///
/// A data snapshot is known by the same words: its world is [`crate::table::FORMAT`], its source the table, and it asks for
/// nothing. In its bundle that has a shorter form, which leaves out what there is nothing to be said of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    pub policy: PolicyName,
    pub tenant: Tenant,
    /// Grows with every release of a policy; a lower one never replaces a higher one.
    pub version: u64,
    /// The WIT world, "portcullis:policy@1.0.0".
    pub world: String,
    /// Host interfaces it imports, sorted: "clock", "data", "log", "metric", "random".
    pub imports: Vec<String>,
    /// Functions of the policy that the host calls, sorted: "decide".
    pub exports: Vec<String>,
    pub limits: Limits,
    /// Counters it may add to, sorted. Like every list that came later, not there when empty: so what was signed before there
    /// were any still has its one form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// Data snapshots of its tenant that it may read, sorted: at most [`DATA_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Layers are encrypted, with the key of this name; all digests are those of what is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidential: Option<SecretId>,
    /// Of the component it was compiled from, as its author built it.
    pub source: Digest,
    /// One for each platform, sorted by it; may be empty: then every host compiles the source itself.
    pub compiled: Vec<CompiledFor>,
    /// What it was made of, where that is a policy in Rego.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rego: Option<RegoConfig>,
    /// What it did before it was shipped, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<PreparedConfig>,
}

/// The config of a data snapshot as its bundle has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DataConfig {
    data: PolicyName,
    tenant: Tenant,
    version: u64,
    format: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confidential: Option<SecretId>,
    table: Digest,
}

impl From<DataConfig> for PolicyConfig {
    fn from(config: DataConfig) -> Self {
        Self {
            world: config.format,
            confidential: config.confidential,
            source: config.table,
            ..Self::of_data(config.data, config.tenant, config.version)
        }
    }
}

impl From<&PolicyConfig> for DataConfig {
    fn from(config: &PolicyConfig) -> Self {
        Self {
            data: config.policy.clone(),
            tenant: config.tenant.clone(),
            version: config.version,
            format: config.world.clone(),
            confidential: config.confidential.clone(),
            table: config.source,
        }
    }
}

impl PolicyConfig {
    /// Of a data snapshot whose table is not known yet.
    pub(super) fn of_data(name: PolicyName, tenant: Tenant, version: u64) -> Self {
        Self {
            world: crate::table::FORMAT.into(),
            exports: Vec::new(),
            limits: NOTHING,
            ..Self::plain(tenant, name, version, Digest::of(b""))
        }
    }

    /// What a policy says of itself that asks for nothing: today's world, ordinary limits, no code.
    #[must_use]
    pub fn plain(tenant: Tenant, policy: PolicyName, version: u64, source: Digest) -> Self {
        Self {
            policy,
            tenant,
            version,
            world: WORLD.into(),
            imports: Vec::new(),
            exports: vec!["decide".into()],
            limits: Limits::default(),
            metrics: Vec::new(),
            data: Vec::new(),
            confidential: None,
            source,
            compiled: Vec::new(),
            rego: None,
            prepared: None,
        }
    }

    /// Whether it decides, or is read.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.world == crate::table::FORMAT { Kind::Data } else { Kind::Policy }
    }

    /// What is said of the code for a platform.
    #[must_use]
    pub fn compiled_for(&self, platform: Platform) -> Option<&CompiledFor> {
        self.compiled.iter().find(|compiled| compiled.platform == platform)
    }

    /// Whether every counter has a name that one may have, and there are no more than are counted: all of them are in each
    /// status of a worker.
    pub(super) fn has_bounded_metrics(&self) -> bool {
        self.metrics.len() <= METRICS_MAX && self.metrics.iter().all(|name| is_metric_name(name))
    }

    /// The first list that is not sorted, or has something twice.
    pub(super) fn check_order(&self) -> Result<(), &'static str> {
        let mut cwasm: Vec<_> = self.compiled.iter().map(|compiled| compiled.cwasm).collect();
        cwasm.sort_unstable();
        match () {
            () if !self.imports.is_sorted_by(|a, b| a < b) => Err("imports"),
            () if !self.exports.is_sorted_by(|a, b| a < b) => Err("exports"),
            () if !self.metrics.is_sorted_by(|a, b| a < b) => Err("metrics"),
            () if !self.data.is_sorted_by(|a, b| a < b) || self.data.len() > DATA_MAX => Err("data"),
            () if !self.compiled.is_sorted_by(|a, b| a.platform < b.platform) => Err("platforms"),
            () if !cwasm.is_sorted_by(|a, b| a < b) => Err("digests of code"),
            () if self.rego.as_ref().is_some_and(|rego| !rego.builtins.is_sorted_by(|a, b| a < b)) => {
                Err("builtins")
            }
            () => Ok(()),
        }
    }
}

/// Machine code in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompiledFor {
    pub platform: Platform,
    /// Of the exact `.cwasm` bytes.
    pub cwasm: Digest,
    /// In full, "48.0.8": wasmtime itself compares only the major version.
    pub wasmtime: String,
    /// [`crate::engine::settings_digest`] of the engine it was compiled for.
    pub engine: Digest,
}

/// How a policy in Rego became a component. Said by whoever built it; what decides is the component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegoConfig {
    /// Of OPA's contract between module and host, "1.3".
    pub abi: String,
    /// The rule that decides, "app/rbac/allow".
    pub entrypoint: String,
    pub result: RegoResult,
    /// What it calls of those builtins that OPA leaves to its host, sorted.
    pub builtins: Vec<String>,
    /// Of the module that OPA compiled.
    pub module: Digest,
    /// Of the JSON that became the document `data`, if there was any.
    pub data: Option<Digest>,
    /// Where that document is in the memory of an instance, and where what a decision allocates begins.
    pub data_address: u32,
    pub heap_base: u32,
}

/// What a rule's result has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RegoResult {
    /// Any of the others.
    #[default]
    Any,
    /// `true` or `false`.
    Boolean,
    /// An object with `allow`, and `reason`, `status`, `headers`, `body` and `metadata` where they are wanted.
    Object,
    /// What OPA's plugin for Envoy takes: true, false, or an object with `allowed`.
    Envoy,
}

impl std::fmt::Display for RegoResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Boolean => "boolean",
            Self::Object => "object",
            Self::Envoy => "envoy",
        })
    }
}

/// What a component that exports `prepare` was before it was run for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreparedConfig {
    /// Of the component as its author built it.
    pub component: Digest,
    /// Of what it was given, if anything.
    pub data: Option<Digest>,
    /// False where it could not be run, and its author allows that it starts unprepared.
    pub taken: bool,
}
