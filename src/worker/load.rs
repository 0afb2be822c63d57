//! The policies of this process: taken from the registry, verified once more, loaded. Before sealing, and never again.
//!
//! They come as sealed memory, so this process opens no file: not the store's, which others write, nor a cache. The
//! registry says which policy each is; the host's signature says so too, and that is what counts.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wasmtime::Engine;

use super::policies::{PolicySet, Served};
use crate::artifact::{
    ARTIFACT_MAX, Artifact, Expected, KeyError, PublicKey, SealError, SealedBytes, VerifyError, verify,
};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{self, Policy};
use crate::wire::channel::{Channel, ReceiveError, Received};
use crate::wire::control::WorkerAssignment;
use crate::wire::operator::{PolicyStatus, Serving};
use crate::wire::supply::{FromRegistry, ToRegistry};

/// Where policies come from.
pub(super) type Supply = Channel<ToRegistry, FromRegistry>;

/// Longest silence of the registry. The supervisor does not wait forever either; this way the log says for whom.
const SILENCE_MAX: Duration = Duration::from_secs(50);

/// What there is to serve, and what became of every policy that was assigned.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: PolicySet,
    pub(super) statuses: Vec<PolicyStatus>,
}

/// Why nothing can be loaded at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("read key of this host: {0}")]
    Key(#[from] KeyError),
    #[error("take policies from the registry: {0}")]
    Receive(#[from] ReceiveError),
    #[error("take policies from the registry: it is gone before all were named")]
    Gone,
    #[error("take policies from the registry: it was silent for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("take policies from the registry: {0}")]
    Wait(#[source] Errno),
    #[error("take policies from the registry: it named policy \"{policy}\" of tenant \"{tenant}\" twice")]
    Twice { tenant: Tenant, policy: PolicyName },
    #[error(
        "take policies from the registry: policy \"{policy}\" of tenant \"{tenant}\" came without its code"
    )]
    NoCode { tenant: Tenant, policy: PolicyName },
    #[error("take policies from the registry: it withdrew a policy before all were named")]
    TooEarly,
}

/// Why one policy is not loaded.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Load(#[from] engine::LoadError),
}

/// Takes and loads every policy of the assignment. A policy that cannot be loaded is reported, not an error.
pub(super) fn load(
    engine: &Engine,
    assignment: &WorkerAssignment,
    supply: &Supply,
) -> Result<Loaded, LoadError> {
    let keys = [PublicKey::from_pem(&assignment.host_key)?];
    let mut loading =
        Loading { engine, keys: &keys, memory: assignment.limits.memory, named: assigned(assignment) };
    let mut buffer = Vec::new();
    loop {
        let (message, code) = next(supply, &mut buffer)?;
        match (message, code) {
            (FromRegistry::Policy { tenant, policy, signed, held_back }, Some(code)) => {
                loading.take(tenant, policy, &signed, code, held_back)?;
            }
            (FromRegistry::Policy { tenant, policy, .. }, None) => {
                return Err(LoadError::NoCode { tenant, policy });
            }
            (FromRegistry::Refused { tenant, policy, why }, _) => loading.refuse(tenant, policy, why)?,
            (FromRegistry::Complete, _) => return Ok(loading.complete(assignment)),
            (FromRegistry::Withdraw { .. }, _) => return Err(LoadError::TooEarly),
        }
    }
}

/// Whom a policy is of, and its name.
type Key = (Tenant, PolicyName);

fn assigned(assignment: &WorkerAssignment) -> BTreeMap<Key, Option<Named>> {
    let of = |tenant: &Tenant, policy: &PolicyName| ((tenant.clone(), policy.clone()), None);
    let tenants = assignment.tenants.iter();
    tenants.flat_map(|one| one.policies.iter().map(|policy| of(&one.tenant, policy))).collect()
}

/// The next message, waited for.
fn next(supply: &Supply, buffer: &mut Vec<u8>) -> Result<(FromRegistry, Option<OwnedFd>), LoadError> {
    let until = Instant::now() + SILENCE_MAX;
    loop {
        match supply.receive(buffer)? {
            Received::Message(message, descriptor) => return Ok((message, descriptor)),
            Received::End => return Err(LoadError::Gone),
            Received::Nothing => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LoadError::Silent);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(supply.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(LoadError::Wait(errno)),
        }
    }
}

/// What the registry said of a policy, and what became of it here.
struct Named {
    policy: Option<Policy>,
    status: PolicyStatus,
}

struct Loading<'a> {
    engine: &'a Engine,
    keys: &'a [PublicKey],
    memory: u32,
    /// All that are assigned; `None` while the registry has not named them.
    named: BTreeMap<Key, Option<Named>>,
}

impl Loading<'_> {
    fn take(
        &mut self,
        tenant: Tenant,
        name: PolicyName,
        signed: &[u8],
        code: OwnedFd,
        held_back: Option<String>,
    ) -> Result<(), LoadError> {
        let Some(key) = self.expected(tenant, name)? else { return Ok(()) };
        let (tenant, name) = key.clone();
        let named = match self.load_one(&tenant, &name, signed, code) {
            Ok((policy, serving)) => {
                if let Some(why) = &held_back {
                    tracing::warn!(%tenant, policy = %name, why, "a newer policy is held back; this one serves");
                }
                let status =
                    PolicyStatus { tenant, policy: name, serving: Some(serving), held_back, refused: None };
                Named { policy: Some(policy), status }
            }
            Err(why) => refused(tenant, name, why.to_string()),
        };
        self.named.insert(key, Some(named));
        Ok(())
    }

    fn refuse(&mut self, tenant: Tenant, policy: PolicyName, why: String) -> Result<(), LoadError> {
        if let Some(key) = self.expected(tenant, policy)? {
            let (tenant, policy) = key.clone();
            self.named.insert(key, Some(refused(tenant, policy, why)));
        }
        Ok(())
    }

    /// `None` for a policy that is not assigned: where a reload did not start here, the registry is ahead of this
    /// process, and its new policies are none of ours.
    fn expected(&self, tenant: Tenant, policy: PolicyName) -> Result<Option<Key>, LoadError> {
        let key = (tenant, policy);
        match self.named.get(&key) {
            Some(None) => Ok(Some(key)),
            Some(Some(_)) => Err(LoadError::Twice { tenant: key.0, policy: key.1 }),
            None => {
                tracing::warn!(tenant = %key.0, policy = %key.1, "a policy that is not assigned is left alone");
                Ok(None)
            }
        }
    }

    fn load_one(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
        signed: &[u8],
        code: OwnedFd,
    ) -> Result<(Policy, Serving), Refused> {
        let code = SealedBytes::from_fd(code, ARTIFACT_MAX)?;
        // Which version may serve is for the registry to say; that it said so is in the signature.
        let artifact = verify(code, signed, self.keys, &Expected { tenant, policy, minimum_version: 0 })?;
        let serving = serving(&artifact);
        Ok((engine::load(self.engine, artifact, self.memory)?, serving))
    }

    fn complete(mut self, assignment: &WorkerAssignment) -> Loaded {
        let (mut set, mut statuses) = (PolicySet::default(), Vec::new());
        for tenant in &assignment.tenants {
            let mut policies = HashMap::new();
            for name in &tenant.policies {
                let key = (tenant.tenant.clone(), name.clone());
                let Named { policy, status } = self.named.remove(&key).flatten().unwrap_or_else(|| {
                    let why =
                        "the registry does not know it: the configuration it has is another one".to_owned();
                    refused(key.0, key.1, why)
                });
                if let Some(policy) = policy {
                    policies.insert(name.clone(), Arc::new(Served::new(Arc::new(policy))));
                }
                statuses.push(status);
            }
            set.insert(tenant, policies);
        }
        Loaded { set, statuses }
    }
}

fn serving(artifact: &Artifact) -> Serving {
    let statement = artifact.statement();
    Serving { digest: artifact.digest(), version: statement.version, bundle: statement.bundle }
}

fn refused(tenant: Tenant, policy: PolicyName, why: String) -> Named {
    tracing::error!(%tenant, %policy, why, "policy refused; nothing serves");
    let status = PolicyStatus { tenant, policy, serving: None, held_back: None, refused: Some(why) };
    Named { policy: None, status }
}
