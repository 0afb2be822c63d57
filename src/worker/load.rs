//! The policies of this process: read, verified, loaded, and kept for the next start. Before sealing, and never again.
//!
//! For each policy there are two places: the store, which others write, and the class's own cache, which keeps the
//! last good one. What is newer and good serves; what is bad is named and left, and the last good one goes on.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use wasmtime::Engine;

use super::cache::{Cache, CacheError};
use super::policies::PolicySet;
use super::store::{Store, StoreError};
use crate::artifact::{Artifact, Expected, KeyError, PublicKey, SealedBytes, VerifyError, verify};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{self, Policy};
use crate::wire::control::WorkerAssignment;
use crate::wire::operator::{PolicyStatus, Serving};

/// What there is to serve, and what became of every policy that was assigned.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: PolicySet,
    pub(super) statuses: Vec<PolicyStatus>,
}

/// Why nothing can be loaded at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("trusted key {number}: {source}")]
    Key { number: usize, source: KeyError },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why one place has no good artifact.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Load(#[from] engine::LoadError),
}

/// Loads every policy of the assignment. A policy that cannot be loaded is reported, not an error.
pub(super) fn load(engine: &Engine, assignment: &WorkerAssignment) -> Result<Loaded, LoadError> {
    let keys = assignment
        .trusted_keys
        .iter()
        .enumerate()
        .map(|(index, pem)| {
            PublicKey::from_pem(pem).map_err(|source| LoadError::Key { number: index + 1, source })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let cache = Cache::open(Path::new(&assignment.cache))?;
    let loader = Loader {
        engine,
        keys: &keys,
        store: Store::new(Path::new(&assignment.store)),
        cache,
        memory: assignment.limits.memory,
    };

    let mut set = PolicySet::default();
    let mut statuses = Vec::new();
    for tenant in &assignment.tenants {
        let mut policies = HashMap::new();
        for name in &tenant.policies {
            let (policy, status) = loader.load_one(&tenant.tenant, name);
            if let Some(policy) = policy {
                policies.insert(name.clone(), Arc::new(policy));
            }
            statuses.push(status);
        }
        set.insert(tenant, policies);
    }
    Ok(Loaded { set, statuses })
}

struct Loader<'a> {
    engine: &'a Engine,
    keys: &'a [PublicKey],
    store: Store,
    cache: Cache,
    memory: u32,
}

impl Loader<'_> {
    fn load_one(&self, tenant: &Tenant, name: &PolicyName) -> (Option<Policy>, PolicyStatus) {
        let (cached, cached_statement) = self.cached(tenant, name).unzip();
        let minimum_version = cached.as_ref().map_or(0, |artifact| artifact.statement().version);
        let mut refused = None;
        match self.stored(tenant, name, minimum_version) {
            Ok((artifact, signed)) => {
                // The statement too: a new one over the same code may have raised the version or lowered a limit.
                let known = cached_statement.as_deref() == Some(signed.as_slice());
                let serving = serving(&artifact, false);
                let bytes = artifact.bytes().try_clone();
                match engine::load(self.engine, artifact, self.memory) {
                    Ok(policy) => {
                        // Only what can serve takes the place of the last good one.
                        let kept = match bytes {
                            _ if known => Ok(()),
                            Ok(bytes) => self.cache.keep(tenant, name, &bytes, &signed),
                            Err(error) => Err(error.into()),
                        };
                        if let Err(error) = kept {
                            // It serves all the same; only the next start without a store would miss it.
                            tracing::warn!(%tenant, policy = %name, %error, "keep policy");
                        }
                        return (Some(policy), status(tenant, name, Some(serving), None));
                    }
                    Err(error) => refused = Some(Refused::from(error)),
                }
            }
            Err(error) => refused = refused.or(Some(error)),
        }
        let why = refused.map(|error| error.to_string());
        let fallback = cached.and_then(|artifact| {
            let serving = serving(&artifact, true);
            match engine::load(self.engine, artifact, self.memory) {
                Ok(policy) => Some((policy, serving)),
                Err(error) => {
                    tracing::error!(%tenant, policy = %name, %error, "load last good policy");
                    None
                }
            }
        });
        let why_text = why.as_deref().unwrap_or_default();
        match fallback {
            Some((policy, serving)) => {
                tracing::warn!(%tenant, policy = %name, why = why_text, "policy refused; the last good one serves");
                (Some(policy), status(tenant, name, Some(serving), why))
            }
            None => {
                tracing::error!(%tenant, policy = %name, why = why_text, "policy refused; nothing serves");
                (None, status(tenant, name, None, why))
            }
        }
    }

    fn stored(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
        minimum_version: u64,
    ) -> Result<(Artifact, Vec<u8>), Refused> {
        let (cwasm, signed) = self.store.read(tenant, policy)?;
        let expected = Expected { tenant, policy, minimum_version };
        Ok((verify(cwasm, &signed, self.keys, &expected)?, signed))
    }

    /// A cache entry is verified like anything else; one that does not hold is removed, so that it is not met again.
    fn cached(&self, tenant: &Tenant, policy: &PolicyName) -> Option<(Artifact, Vec<u8>)> {
        let entry: Option<(SealedBytes, Vec<u8>)> = match self.cache.read(tenant, policy) {
            Ok(entry) => entry,
            Err(error) => {
                // Not removed: the disk or the kernel may do better next time.
                tracing::warn!(%tenant, %policy, %error, "read kept policy");
                return None;
            }
        };
        let (cwasm, signed) = entry?;
        match verify(cwasm, &signed, self.keys, &Expected { tenant, policy, minimum_version: 0 }) {
            Ok(artifact) => Some((artifact, signed)),
            Err(error) => {
                tracing::warn!(%tenant, %policy, %error, "kept policy does not hold");
                self.cache.forget(tenant, policy);
                None
            }
        }
    }
}

fn serving(artifact: &Artifact, from_cache: bool) -> Serving {
    Serving { digest: artifact.digest(), version: artifact.statement().version, from_cache }
}

fn status(
    tenant: &Tenant,
    policy: &PolicyName,
    serving: Option<Serving>,
    refused: Option<String>,
) -> PolicyStatus {
    PolicyStatus { tenant: tenant.clone(), policy: policy.clone(), serving, refused }
}
