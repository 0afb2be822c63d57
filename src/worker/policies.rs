//! The policies of this process, fixed before it was sealed: by tenant, then by name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decision::{PolicyName, Tenant};
use crate::engine::Policy;
use crate::wire::control::TenantAssignment;

/// Nanoseconds in a microsecond.
const US: u64 = 1_000;

/// Every tenant of the class. A tenant's index is its flow in the schedule and its place in a connection's grant.
#[derive(Debug, Default)]
pub(super) struct PolicySet {
    index: HashMap<Tenant, usize>,
    tenants: Vec<TenantPolicies>,
}

/// One tenant's policies and what the class allows it.
#[derive(Debug)]
pub(super) struct TenantPolicies {
    pub(super) weight: u32,
    max_deadline_ns: u64,
    default_deadline_ns: u64,
    policies: HashMap<PolicyName, Arc<Policy>>,
}

impl PolicySet {
    pub(super) fn insert(&mut self, tenant: &TenantAssignment, policies: HashMap<PolicyName, Arc<Policy>>) {
        self.index.insert(tenant.tenant.clone(), self.tenants.len());
        self.tenants.push(TenantPolicies {
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

    pub(super) fn weights(&self) -> impl Iterator<Item = u32> {
        self.tenants.iter().map(|tenant| tenant.weight)
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
    pub(super) fn policy(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    /// Longest a decision of this tenant may take, and how long it may if the client does not say, nanoseconds.
    pub(super) fn deadlines(&self, policy: &Policy) -> (u64, u64) {
        let longest = self.max_deadline_ns.min(u64::from(policy.limits().deadline_us) * US);
        (longest, self.default_deadline_ns.min(longest))
    }
}
