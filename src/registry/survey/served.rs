//! From an entry that may serve to what a worker is given: this host's word on its bytes, and until when it holds.

use std::sync::Arc;

use super::goal::PolicyTask;
use super::{Served, Standing, Survey};
use crate::artifact::{
    Architecture, DataStatement, Digest, SealedBytes, SignError, Statement, sign, sign_data,
};
use crate::bundle::Kind;
use crate::engine::{Metering, WASMTIME_VERSION, settings_digest};
use crate::ledger::Entry;
use crate::registry::state::State;

/// What the plain bytes of an entry are on the shelf as.
///
/// Who says the digest of encrypted bytes may not be who may read them: whoever has the stored bytes can put them into a bundle of
/// their own. So what was opened, and what is mapped without a builder's word, is found by the bundle that it was opened for.
pub(super) fn shelved(entry: &Entry) -> Digest {
    match entry.config.kind() {
        Kind::Policy if entry.config.confidential.is_none() => entry.code.cwasm,
        Kind::Policy | Kind::Data => entry.bundle,
    }
}

impl Survey {
    /// Judged once more, with all that it reads, and signed.
    ///
    /// # Errors
    /// Why it does not serve after all.
    pub(super) fn served(
        &self,
        state: &State,
        task: &PolicyTask,
        code: Arc<SealedBytes>,
        held_back: Option<String>,
    ) -> Result<Served, String> {
        let entry = self.wanted_entry(task).ok_or("nothing is active")?;
        let about = (entry.bundle, &entry.config);
        let rules = (&self.in_force.list, self.now);
        let accepted = self.setting.judge(&task.key, &task.class, about, &entry.evidence, rules)?;
        let config = entry.config.clone();
        let reads = self.data_of(&task.key, &config)?;
        let signed = match config.kind() {
            Kind::Policy => Self::sign_code(state, entry, &code),
            Kind::Data => sign_data(
                &DataStatement {
                    data: config.policy.clone(),
                    tenant: config.tenant.clone(),
                    version: config.version,
                    bundle: entry.bundle,
                    table: code.digest(),
                },
                state.key(),
            ),
        };
        let until = reads.iter().filter_map(|(_, data)| data.until).chain(accepted.until).min();
        let served = Served {
            class: task.class.clone(),
            bundle: entry.bundle,
            config,
            evidence: entry.evidence.clone(),
            signed: signed.map_err(|error| error.to_string())?,
            code,
            shelved: shelved(entry),
            reads,
            held_back,
            until,
        };
        served.holds(&self.setting, &task.key, &task.class, rules)?;
        Ok(served)
    }

    /// This host's word on machine code.
    fn sign_code(state: &State, entry: &Entry, code: &SealedBytes) -> Result<Vec<u8>, SignError> {
        let config = &entry.config;
        let statement = Statement {
            policy: config.policy.clone(),
            tenant: config.tenant.clone(),
            version: config.version,
            cwasm: code.digest(),
            source: config.source,
            bundle: entry.bundle,
            architecture: Architecture::host(),
            wasmtime: WASMTIME_VERSION.to_owned(),
            engine: settings_digest(Metering::of(&config.limits)),
            world: config.world.clone(),
            imports: config.imports.clone(),
            limits: config.limits,
            metrics: config.metrics.clone(),
            data: config.data.clone(),
        };
        sign(&statement, state.key())
    }

    /// That nothing serves.
    pub(super) fn refused(&self, task: &PolicyTask, why: String) -> Standing {
        let kind = self.setting.kind(&task.key).unwrap_or(Kind::Policy);
        Standing::Refused { class: task.class.clone(), kind, why }
    }
}
