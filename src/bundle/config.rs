//! What a policy is and what it asks for: the config blob of a bundle, covered by its digest and so by each signature.

use serde::{Deserialize, Serialize};

use super::Platform;
use crate::artifact::{Digest, Limits};
use crate::decision::{PolicyName, Tenant};
use crate::engine::WORLD;

/// Largest config blob, bytes.
pub const CONFIG_MAX: usize = 64 << 10;

/// The capability manifest, version 1. Its one form is compact JSON with the fields in this order.
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
    /// Data snapshots of its tenant that it may read, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
    /// Of the component it was compiled from, as its author built it.
    pub source: Digest,
    /// One for each platform, sorted by it; may be empty: then every host compiles the source itself.
    pub compiled: Vec<CompiledFor>,
}

impl PolicyConfig {
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
            source,
            compiled: Vec::new(),
        }
    }

    /// What is said of the code for a platform.
    #[must_use]
    pub fn compiled_for(&self, platform: Platform) -> Option<&CompiledFor> {
        self.compiled.iter().find(|compiled| compiled.platform == platform)
    }

    /// The first list that is not sorted, or has something twice.
    pub(super) fn check_order(&self) -> Result<(), &'static str> {
        let mut cwasm: Vec<_> = self.compiled.iter().map(|compiled| compiled.cwasm).collect();
        cwasm.sort_unstable();
        match () {
            () if !self.imports.is_sorted_by(|a, b| a < b) => Err("imports"),
            () if !self.exports.is_sorted_by(|a, b| a < b) => Err("exports"),
            () if !self.metrics.is_sorted_by(|a, b| a < b) => Err("metrics"),
            () if !self.data.is_sorted_by(|a, b| a < b) => Err("data"),
            () if !self.compiled.is_sorted_by(|a, b| a.platform < b.platform) => Err("platforms"),
            () if !cwasm.is_sorted_by(|a, b| a < b) => Err("digests of code"),
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
