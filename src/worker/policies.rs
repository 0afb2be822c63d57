//! The policies of this process, fixed before it was sealed: by tenant, then by name. All that can happen to one later is
//! that it is withdrawn.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::accounts::{ClassAccount, Column, Map, Meter};
use crate::artifact::Digest;
use crate::decision::{PolicyName, Tenant};
use crate::engine::Policy;
use crate::wire::control::TenantAssignment;

/// Nanoseconds in a microsecond.
const US: u64 = 1_000;

/// Every tenant of the class. A tenant's index is its flow in the schedule and its place in a connection's grant.
#[derive(Debug)]
pub(super) struct PolicySet {
    accounts: Arc<Map<ClassAccount>>,
    generation: u64,
    index: HashMap<Tenant, usize>,
    tenants: Vec<TenantPolicies>,
}

/// One tenant's policies and what the class allows it.
#[derive(Debug)]
pub(super) struct TenantPolicies {
    /// Its quotas, and where it is counted.
    pub(super) meter: Arc<Meter>,
    pub(super) weight: u32,
    max_deadline_ns: u64,
    default_deadline_ns: u64,
    policies: HashMap<PolicyName, Arc<Served>>,
}

/// A policy, and whether it still may decide.
#[derive(Debug)]
pub(super) struct Served {
    policy: Arc<Policy>,
    /// Its place in the accounts.
    module: u32,
    withdrawn: AtomicBool,
}

impl Served {
    pub(super) fn new(policy: Arc<Policy>, module: u32) -> Self {
        Self { policy, module, withdrawn: AtomicBool::new(false) }
    }

    pub(super) fn module(&self) -> u32 {
        self.module
    }

    pub(super) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    pub(super) fn digest(&self) -> Digest {
        self.policy.digest()
    }

    /// From now on nothing that it says counts. There is no way back: another generation would serve it again.
    fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::SeqCst)
    }
}

impl PolicySet {
    /// Without tenants yet; this process is counted in `accounts` as its class's `generation`.
    pub(super) fn new(accounts: Arc<Map<ClassAccount>>, generation: u64) -> Self {
        Self { accounts, generation, index: HashMap::new(), tenants: Vec::new() }
    }

    /// Whoever has no place in the accounts cannot be held to its quotas: for that one nothing serves.
    pub(super) fn insert(&mut self, tenant: &TenantAssignment, policies: HashMap<PolicyName, Arc<Served>>) {
        let accounts = Arc::clone(&self.accounts);
        let Some(meter) = Meter::new(accounts, tenant.slot, self.generation, tenant.quotas.clone()) else {
            tracing::error!(tenant = %tenant.tenant, slot = tenant.slot, "tenant without a place in the accounts");
            return;
        };
        self.index.insert(tenant.tenant.clone(), self.tenants.len());
        self.tenants.push(TenantPolicies {
            meter: Arc::new(meter),
            weight: tenant.weight,
            max_deadline_ns: u64::from(tenant.max_deadline_us) * US,
            default_deadline_ns: u64::from(tenant.default_deadline_us) * US,
            policies,
        });
    }

    pub(super) fn tenant(&self, name: &str) -> Option<(usize, &TenantPolicies)> {
        let index = *self.index.get(name)?;
        self.tenants.get(index).map(|tenant| (index, tenant))
    }

    /// Takes the right to decide from a policy, if it is this code that serves. True: it had it until now.
    pub(super) fn withdraw(&self, tenant: &Tenant, policy: &PolicyName, cwasm: Digest) -> bool {
        let served = self.tenant(tenant.as_str()).and_then(|(_, of)| of.policy(policy.as_str()));
        let Some(served) = served.filter(|served| served.digest() == cwasm && !served.is_withdrawn()) else {
            return false;
        };
        served.withdraw();
        true
    }

    pub(super) fn weights(&self) -> impl Iterator<Item = u32> {
        self.tenants.iter().map(|tenant| tenant.weight)
    }

    /// Instances of the class that are kept for each tenant.
    pub(super) fn reserved(&self) -> impl Iterator<Item = u32> {
        self.tenants.iter().map(|tenant| tenant.meter.quotas().reserved)
    }

    pub(super) fn accounts(&self) -> &ClassAccount {
        &self.accounts
    }

    /// What the accounts have of this process.
    pub(super) fn column(&self) -> Option<&Column> {
        self.accounts.column(self.generation)
    }

    /// One place for each tenant, true for those named.
    pub(super) fn grant(&self, tenants: &[Tenant]) -> Box<[bool]> {
        let mut grant = vec![false; self.tenants.len()].into_boxed_slice();
        for tenant in tenants {
            if let Some(place) = self.index.get(tenant).and_then(|index| grant.get_mut(*index)) {
                *place = true;
            }
        }
        grant
    }
}

impl TenantPolicies {
    pub(super) fn policy(&self, name: &str) -> Option<&Arc<Served>> {
        self.policies.get(name)
    }

    /// Longest a decision of this tenant may take, and how long it may if the client does not say, nanoseconds.
    pub(super) fn deadlines(&self, policy: &Policy) -> (u64, u64) {
        let longest = self.max_deadline_ns.min(u64::from(policy.limits().deadline_us) * US);
        (longest, self.default_deadline_ns.min(longest))
    }
}
