//! From a verified artifact to a policy that can be instantiated.

use std::sync::Arc;

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::bindings::PolicyPre;
use super::host::{Host, Importable};
use super::made_for::{MadeFor, Unfit};
use crate::artifact::{Artifact, Digest, Limits};
use crate::decision::{PolicyName, Tenant};

/// Whose policy this is, as its log lines and replies say.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) tenant: Tenant,
    pub(super) policy: PolicyName,
    pub(super) digest: Digest,
}

/// A policy that is ready to decide: linked, with nothing left to resolve.
pub struct Policy {
    pub(super) pre: PolicyPre<Host>,
    pub(super) identity: Arc<Identity>,
    pub(super) limits: Limits,
    /// Keeps the sealed memory that the code is mapped from.
    _artifact: Artifact,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("identity", &self.identity).field("limits", &self.limits).finish()
    }
}

impl Policy {
    /// Of the `.cwasm` that decides.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.identity.digest
    }

    /// What it may use: the lesser of what it asks for and what its class grants.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// Why a verified artifact cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("statement of policy \"{0}\" asks for import {1:?}, known are clock, log and random")]
    UnknownImport(PolicyName, String),
    #[error("policy \"{policy}\" starts with {initial} bytes of memory, its limit is {limit}")]
    Memory { policy: PolicyName, initial: u64, limit: u32 },
    #[error("load policy \"{0}\": {1}; build it again, or let the host compile its source")]
    Unfit(PolicyName, Unfit),
    #[error("load policy \"{0}\": {1}")]
    Deserialize(PolicyName, String),
    #[error("policy \"{0}\" imports or exports what its statement does not say: {1}")]
    Link(PolicyName, String),
}

/// Maps the code of a verified artifact and links it to exactly the imports its statement names.
pub fn load(engine: &Engine, artifact: Artifact, memory_ceiling: u32) -> Result<Policy, LoadError> {
    let statement = artifact.statement();
    let name = || statement.policy.clone();
    let limits = Limits { memory: statement.limits.memory.min(memory_ceiling), ..statement.limits };

    // Before wasmtime sees a byte of it: it looks at less, and into more.
    MadeFor::read(artifact.bytes())
        .and_then(|made_for| made_for.check())
        .map_err(|unfit| LoadError::Unfit(name(), unfit))?;
    let component = deserialize(engine, &artifact)
        .map_err(|error| LoadError::Deserialize(name(), format!("{error:#}")))?;
    let initial = component.resources_required().and_then(|needs| needs.max_initial_memory_size).unwrap_or(0);
    if initial > u64::from(limits.memory) {
        return Err(LoadError::Memory { policy: name(), initial, limit: limits.memory });
    }

    let mut linker = Linker::new(engine);
    for import in &statement.imports {
        let capability =
            Importable::named(import).ok_or_else(|| LoadError::UnknownImport(name(), import.clone()))?;
        capability.add_to(&mut linker).map_err(|error| LoadError::Link(name(), format!("{error:#}")))?;
    }
    let pre = linker
        .instantiate_pre(&component)
        .and_then(PolicyPre::new)
        .map_err(|error| LoadError::Link(name(), format!("{error:#}")))?;

    let identity = Identity {
        tenant: statement.tenant.clone(),
        policy: statement.policy.clone(),
        digest: statement.cwasm,
    };
    Ok(Policy { pre, identity: Arc::new(identity), limits, _artifact: artifact })
}

/// JUSTIFICATION: wasmtime checks a `.cwasm` only lightly, so it makes every way of loading one unsafe.
#[expect(unsafe_code, reason = "loading precompiled code is unsafe by nature")]
fn deserialize(engine: &Engine, artifact: &Artifact) -> wasmtime::Result<Component> {
    // SAFETY: an `Artifact` is only made by `artifact::verify`, after a trusted key's signature over the digest of
    // exactly these bytes and over the engine settings they were compiled for; they lie in a memfd that is sealed
    // against writing, growing and shrinking, so they are still those bytes, and stay them while they are mapped.
    unsafe { Component::deserialize_file(engine, artifact.bytes().path()) }
}
