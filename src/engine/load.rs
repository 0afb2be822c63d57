//! From a verified artifact to a policy that can be instantiated.

use std::sync::Arc;

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::bindings::{v0_1, v1_0};
use super::data::Data;
use super::engines::Engines;
use super::host::{Host, Importable};
use super::made_for::{MadeFor, Unfit};
use super::metric::Metrics;
use super::settings::Metering;
use super::world::World;
use crate::artifact::{Artifact, Ceiling, Digest, Limits, NotCounted};
use crate::decision::{PolicyName, Tenant};

/// Of linear memory, bytes.
const PAGE: u64 = 64 << 10;

/// Whose policy this is, as its log lines and replies say.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) tenant: Tenant,
    pub(super) policy: PolicyName,
    pub(super) digest: Digest,
}

/// Linked, in the version of the world that its statement names.
pub(super) enum Pre {
    V0_1(v0_1::PolicyPre<Host>),
    V1_0(v1_0::PolicyPre<Host>),
}

impl Pre {
    pub(super) fn engine(&self) -> &Engine {
        match self {
            Self::V0_1(pre) => pre.engine(),
            Self::V1_0(pre) => pre.engine(),
        }
    }
}

/// What a policy is given of what it asks for.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    pub ceiling: Ceiling,
    /// What its manifest names, if it names any.
    pub data: Option<Arc<Data>>,
}

/// A policy that is ready to decide: linked, with nothing left to resolve.
pub struct Policy {
    pub(super) pre: Pre,
    pub(super) identity: Arc<Identity>,
    pub(super) limits: Limits,
    pub(super) metrics: Arc<Metrics>,
    pub(super) data: Option<Arc<Data>>,
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

    /// What it may use: the lesser of what it asks for and what its class and its tenant are granted.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it has counted in this process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The version of the world that it implements.
    #[must_use]
    pub fn world(&self) -> World {
        match self.pre {
            Pre::V0_1(_) => World::V0_1,
            Pre::V1_0(_) => World::V1_0,
        }
    }
}

/// Why a verified artifact cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "policy \"{policy}\" implements world {world:?}, which is not served; known are {}",
        known_worlds()
    )]
    World { policy: PolicyName, world: String },
    #[error("statement of policy \"{0}\" asks for import {1:?}, its world has {2}")]
    UnknownImport(PolicyName, String, String),
    #[error("policy \"{policy}\" starts with {initial} bytes of memory, its limit is {limit}")]
    Memory { policy: PolicyName, initial: u64, limit: u32 },
    #[error("policy \"{0}\": {1}")]
    NotCounted(PolicyName, NotCounted),
    #[error("make an engine for policy \"{0}\", which asks for a stack or for counting of its own: {1}")]
    Engine(PolicyName, String),
    #[error("load policy \"{0}\": {1}; build it again, or let the host compile its source")]
    Unfit(PolicyName, Unfit),
    #[error("load policy \"{0}\": {1}")]
    Deserialize(PolicyName, String),
    #[error("policy \"{0}\" imports or exports what its statement does not say: {1}")]
    Link(PolicyName, String),
}

/// Maps the code of a verified artifact and links it to exactly the imports its statement names.
///
/// # Errors
/// What about it does not hold, or does not fit.
pub fn load(engines: &Engines, artifact: &Artifact, granted: Granted) -> Result<Policy, LoadError> {
    let statement = artifact.statement();
    let name = || statement.policy.clone();
    let world = World::named(&statement.world)
        .ok_or_else(|| LoadError::World { policy: name(), world: statement.world.clone() })?;
    let limits = statement.limits.within(&granted.ceiling);
    let limits = limits.map_err(|why| LoadError::NotCounted(name(), why))?;
    if limits != statement.limits {
        let (policy, tenant, asked) = (&statement.policy, &statement.tenant, &statement.limits);
        tracing::info!(%tenant, %policy, ?asked, given = ?limits, "policy gets less than its manifest asks for");
    }

    // Before wasmtime sees a byte of it: it looks at less, and into more.
    MadeFor::read(artifact.bytes())
        .and_then(|made_for| made_for.check(Metering::of(&limits)))
        .map_err(|unfit| LoadError::Unfit(name(), unfit))?;
    let engine = engines.of(&limits).map_err(|error| LoadError::Engine(name(), format!("{error:#}")))?;
    let component = deserialize(&engine, artifact)
        .map_err(|error| LoadError::Deserialize(name(), format!("{error:#}")))?;
    // In pages.
    let initial = component.resources_required().and_then(|needs| needs.max_initial_memory_size);
    let initial = initial.unwrap_or(0).saturating_mul(PAGE);
    if initial > u64::from(limits.memory) {
        return Err(LoadError::Memory { policy: name(), initial, limit: limits.memory });
    }

    let pre = link(&engine, &component, world, &statement.imports, &statement.policy)?;

    let identity = Identity {
        tenant: statement.tenant.clone(),
        policy: statement.policy.clone(),
        digest: statement.cwasm,
    };
    let metrics = Arc::new(Metrics::of(&statement.metrics));
    let data = granted.data;
    Ok(Policy { pre, identity: Arc::new(identity), limits, metrics, data })
}

/// The same policy once more, for a [`super::counting_engine`]: compiled here and now from its component.
///
/// # Errors
/// When it does not compile or does not link.
#[cfg(feature = "compiler")]
pub fn load_counting(
    engine: &Engine,
    component: &[u8],
    imports: &[String],
    like: &Policy,
) -> Result<Policy, LoadError> {
    let name = &like.identity.policy;
    let component = Component::new(engine, component)
        .map_err(|error| LoadError::Deserialize(name.clone(), format!("{error:#}")))?;
    let pre = link(engine, &component, like.world(), imports, name)?;
    Ok(Policy {
        pre,
        identity: Arc::clone(&like.identity),
        limits: like.limits,
        metrics: Arc::clone(&like.metrics),
        data: like.data.clone(),
    })
}

fn link(
    engine: &Engine,
    component: &Component,
    world: World,
    imports: &[String],
    name: &PolicyName,
) -> Result<Pre, LoadError> {
    let mut linker = Linker::new(engine);
    let link = |error: wasmtime::Error| LoadError::Link(name.clone(), format!("{error:#}"));
    for import in imports {
        let known = world.capabilities();
        let capability =
            Importable::named(import).filter(|import| known.contains(import)).ok_or_else(|| {
                let known: Vec<_> = known.iter().map(|one| one.name()).collect();
                LoadError::UnknownImport(name.clone(), import.clone(), known.join(", "))
            })?;
        capability.add_to(&mut linker, world).map_err(link)?;
    }
    let pre = linker.instantiate_pre(component).map_err(link)?;
    Ok(match world {
        World::V0_1 => Pre::V0_1(v0_1::PolicyPre::new(pre).map_err(link)?),
        World::V1_0 => Pre::V1_0(v1_0::PolicyPre::new(pre).map_err(link)?),
    })
}

fn known_worlds() -> String {
    World::ALL.map(World::name).join(" and ")
}

/// JUSTIFICATION: wasmtime checks a `.cwasm` only lightly, so it makes every way of loading one unsafe.
#[expect(unsafe_code, reason = "loading precompiled code is unsafe by nature")]
fn deserialize(engine: &Engine, artifact: &Artifact) -> wasmtime::Result<Component> {
    // SAFETY: an `Artifact` is only made by `artifact::verify`, after a trusted key's signature over the digest of
    // exactly these bytes and over the engine settings they were compiled for; they lie in a memfd that is sealed
    // against writing, growing and shrinking, so they are still those bytes, and stay them while they are mapped.
    unsafe { Component::deserialize_file(engine, artifact.bytes().path()) }
}
