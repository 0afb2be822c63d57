//! What was built, as a bundle in the making.

use super::{Built, Target};
use crate::artifact::Limits;
use crate::bundle::{Draft, DraftCompiled};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{WASMTIME_VERSION, settings_digest_of};

impl Built {
    /// A bundle of what was built from `source`, for this tenant.
    #[must_use]
    pub fn draft(
        &self,
        source: Vec<u8>,
        tenant: Tenant,
        policy: PolicyName,
        version: u64,
        limits: Limits,
    ) -> Draft {
        let compiled = self.compiled.iter().map(|(platform, cwasm)| DraftCompiled {
            platform: *platform,
            cwasm: cwasm.clone(),
            wasmtime: WASMTIME_VERSION.into(),
            engine: settings_digest_of(Target::of(*platform), self.metering),
        });
        Draft {
            policy,
            tenant,
            version,
            world: self.world.name().into(),
            imports: self.imports.clone(),
            exports: self.exports.clone(),
            limits,
            metrics: Vec::new(),
            data: Vec::new(),
            source,
            compiled: compiled.collect(),
            rego: None,
            prepared: None,
        }
    }
}
