//! Tenants who are no more: what the table still knows of them goes, once their classes' caches have let go of their code.
//!
//! The configuration names them for good, so whatever interrupts this is made up for by the next survey. What a neighbour has
//! too, by its digest, is the neighbour's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::goal::Task;
use super::{Built, NotBuilt, Survey, Wanted};
use crate::artifact::{Digest, SealedBytes};
use crate::decision::{Tenant, TrustClass};
use crate::ledger::{Event, Origin, What};
use crate::wire::job::Job;

impl Survey {
    /// Has every cache cleared, if the table knows anything of a tenant who is no more, and once for each in any case: it may have
    /// been in another class before, what was superseded is named nowhere, and what was compiled may never have come into the
    /// table.
    pub(super) fn clear_caches(&mut self) {
        let gone = self.gone();
        let known = |tenant: &&Tenant| self.draft.policies.iter().any(|record| record.tenant == **tenant);
        let of_it = |tenant: &&Tenant| known(tenant) || !self.cleared.contains(*tenant);
        let tenants: Vec<Tenant> = gone.iter().filter(of_it).cloned().collect();
        if tenants.is_empty() {
            return;
        }
        let classes: Vec<TrustClass> =
            self.setting.assignment.classes.iter().map(|one| one.class.clone()).collect();
        for class in classes {
            let tenants = tenants.clone();
            let digests: Vec<u8> = self.stays(&class).iter().flat_map(|digest| *digest.as_bytes()).collect();
            let digests = match SealedBytes::of(&digests) {
                Ok(digests) => Arc::new(digests),
                Err(error) => {
                    self.cleared(&class, tenants, Err(NotBuilt { why: error.to_string(), lasting: false }));
                    continue;
                }
            };
            self.serial = self.serial.saturating_add(1);
            let serial = self.serial;
            let wanted = Wanted { serial, class: class.clone(), job: Job::Clear, descriptors: vec![digests] };
            self.wanted.push(wanted);
            self.waiting.insert(serial, Task::Clear { class, tenants });
        }
    }

    /// What a class's cache has of others. Of whom it is not known which class they are in, they may be in this one.
    fn stays(&self, class: &TrustClass) -> BTreeSet<Digest> {
        let gone = self.gone();
        let records = self.draft.policies.iter().filter(|record| {
            let key = (record.tenant.clone(), record.policy.clone());
            !gone.contains(&record.tenant) && self.setting.class(&key).is_none_or(|of| of == class)
        });
        let entries = records.flat_map(|record| record.active.iter().chain(&record.previous));
        entries.filter(|entry| entry.code.origin == Origin::Builder).map(|entry| entry.code.cwasm).collect()
    }

    /// A builder is done with a cache, or is not.
    pub(super) fn cleared(
        &mut self,
        class: &TrustClass,
        tenants: Vec<Tenant>,
        result: Result<Built, NotBuilt>,
    ) {
        let why = match result {
            Ok(Built::Cleared) => return tracing::info!(%class, "cache cleared"),
            Ok(_) => "a builder answered what was not asked".to_owned(),
            Err(NotBuilt { why, .. }) => why,
        };
        for tenant in tenants {
            tracing::error!(%tenant, %class, why, "code of a tenant who is no more stays; the next survey tries again");
            self.stuck.insert(tenant);
        }
    }

    /// Takes out of the draft what there is of tenants who are no more. Returns of whom.
    pub(super) fn let_go(&mut self) -> BTreeSet<Tenant> {
        let mut gone = self.gone();
        gone.retain(|tenant| !self.stuck.contains(tenant));
        let mut versions: BTreeMap<Tenant, usize> = BTreeMap::new();
        self.draft.policies.retain(|record| {
            if !gone.contains(&record.tenant) {
                return true;
            }
            let entries = record.active.iter().chain(&record.previous).count();
            let of = versions.entry(record.tenant.clone()).or_default();
            *of = of.saturating_add(entries);
            false
        });
        let about = |event: &Event| {
            event.what != What::TenantRemoved && event.tenant.as_ref().is_some_and(|of| gone.contains(of))
        };
        self.draft.history.retain(|event| !about(event));
        for (tenant, versions) in versions {
            tracing::warn!(%tenant, versions, "tenant removed");
            self.draft.remember(Event {
                at: self.seconds,
                what: What::TenantRemoved,
                tenant: Some(tenant),
                policy: None,
                bundle: None,
                version: None,
                order: None,
                why: format!("{versions} versions that were kept of it are gone"),
            });
        }
        gone
    }

    fn gone(&self) -> BTreeSet<Tenant> {
        self.setting.assignment.removed.iter().cloned().collect()
    }
}
