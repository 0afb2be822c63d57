//! Tenants: those with series of their own, up to so many, and the sum of the others.
//!
//! Who has a place keeps it; who came when there was none stays in the sum, and in it for good: a sum from which somebody
//! disappeared would look like one that began anew. The series of a tenant that is removed end.

use std::collections::{BTreeMap, BTreeSet};

use super::Accounts;
use super::service::{NS_PER_MICROSECOND, NS_PER_SECOND, bound, live, real};
use crate::accounts::{BUCKETS, HostFunction, OutcomeKind, TenantAccount};
use crate::decision::{PolicyName, Quota, Tenant, TrustClass};
use crate::exporter::exposition::{Bucket, Family, Kind, Page};
use crate::wire::control::{ExporterAssignment, ExporterTenant};

/// What the sum is called. No tenant may have that name.
const OTHER: &str = "other";
/// Bytes of a page of WebAssembly's memory.
const PAGE: u64 = 64 << 10;
/// Of a tenant's histogram every so manieth bound is told: each is four times the one before.
const BOUNDS_APART: usize = 4;

/// Who is told of how.
#[derive(Debug)]
pub(super) struct Tenants {
    max: usize,
    named: BTreeMap<Tenant, Known>,
    /// In the sum, those that were removed since too.
    others: BTreeMap<Tenant, Known>,
}

#[derive(Debug, Clone)]
struct Known {
    class: TrustClass,
    slot: usize,
    modules: BTreeMap<PolicyName, usize>,
}

impl Known {
    fn of(tenant: &ExporterTenant) -> Self {
        let modules = tenant.modules.iter();
        Self {
            class: tenant.class.clone(),
            slot: tenant.slot as usize,
            modules: modules.map(|(name, slot)| (name.clone(), *slot as usize)).collect(),
        }
    }
}

impl Tenants {
    pub(super) fn new(assignment: &ExporterAssignment) -> Self {
        let mut new = Self { max: 0, named: BTreeMap::new(), others: BTreeMap::new() };
        new.reassign(assignment);
        new
    }

    pub(super) fn reassign(&mut self, assignment: &ExporterAssignment) {
        let max = assignment.max_tenants as usize;
        if max != self.max {
            // Places are given anew: the operator asked for it.
            (self.named, self.others) = (BTreeMap::new(), BTreeMap::new());
        }
        self.max = max;
        let there: BTreeSet<&Tenant> = assignment.tenants.iter().map(|tenant| &tenant.tenant).collect();
        self.named.retain(|tenant, _| there.contains(tenant));
        // The oldest first.
        let mut tenants: Vec<&ExporterTenant> = assignment.tenants.iter().collect();
        tenants.sort_by_key(|tenant| tenant.slot);
        for tenant in tenants {
            let now = Known::of(tenant);
            if let Some(known) = self.named.get_mut(&tenant.tenant) {
                *known = now;
            } else if let Some(known) = self.others.get_mut(&tenant.tenant) {
                // Policies that it no longer has stay in the sum.
                let before = std::mem::replace(known, now);
                for (name, slot) in before.modules {
                    known.modules.entry(name).or_insert(slot);
                }
            } else if self.named.len() < self.max {
                self.named.insert(tenant.tenant.clone(), now);
            } else {
                self.others.insert(tenant.tenant.clone(), now);
            }
        }
    }

    pub(super) fn tell(&self, page: &mut Page, accounts: &Accounts) {
        let told: Vec<Told<'_>> = self
            .named
            .iter()
            .map(|(name, known)| Told { name: name.as_str(), known: vec![known], apart: true })
            .chain((!self.others.is_empty()).then(|| Told {
                name: OTHER,
                known: self.others.values().collect(),
                apart: false,
            }))
            .collect();
        let told = Telling { page, accounts, told: &told };
        told.all();
    }
}

/// One value of the label `tenant`, and whose numbers are summed up under it.
struct Told<'t> {
    name: &'t str,
    known: Vec<&'t Known>,
    /// Its policies have names of their own.
    apart: bool,
}

impl<'t> Told<'t> {
    fn accounts(&self, accounts: &'t Accounts) -> impl Iterator<Item = &'t TenantAccount> {
        self.known.iter().filter_map(|known| accounts.classes.get(&known.class)?.tenants.get(known.slot))
    }

    fn sum(&self, accounts: &'t Accounts, of: impl Fn(&TenantAccount) -> u64) -> u64 {
        self.accounts(accounts).map(of).fold(0, u64::saturating_add)
    }
}

struct Telling<'t, 'p> {
    page: &'p mut Page,
    accounts: &'t Accounts,
    told: &'t [Told<'t>],
}

impl Telling<'_, '_> {
    fn all(mut self) {
        self.invocations();
        let none = None;
        self.each(
            ("wasm_tenant_cpu_seconds", Kind::Counter, Some("seconds"), "Processor time of guests."),
            |family, told, accounts| {
                family.real(
                    &[("tenant", told.name)],
                    real(told.sum(accounts, |account| account.cpu_ns.get())) / NS_PER_SECOND,
                );
            },
        );
        self.each(
            ("wasm_tenant_egress_bytes", Kind::Counter, Some("bytes"), "Answers as they are sent."),
            |family, told, accounts| {
                family.count(
                    &[("tenant", told.name)],
                    told.sum(accounts, |account| account.egress_bytes.get()),
                );
            },
        );
        self.each(
            (
                "portcullis_tenant_ingress_bytes",
                Kind::Counter,
                Some("bytes"),
                "Inputs of questions that were let in.",
            ),
            |family, told, accounts| {
                family.count(
                    &[("tenant", told.name)],
                    told.sum(accounts, |account| account.ingress_bytes.get()),
                );
            },
        );
        self.each(
            (
                "wasm_tenant_quota_rejected",
                Kind::Counter,
                none,
                "Questions that were refused by a quota, by which.",
            ),
            |family, told, accounts| {
                for which in Quota::ALL {
                    let count = told.sum(accounts, |account| account.refused_by(which));
                    some(family, &[("tenant", told.name), ("reason", &which.to_string())], count);
                }
            },
        );
        self.each(
            (
                "wasm_tenant_host_function_calls",
                Kind::Counter,
                none,
                "Calls of host functions by guests, by name.",
            ),
            |family, told, accounts| {
                for function in HostFunction::ALL {
                    let called = |account: &TenantAccount| {
                        account.host_called.get(function.index()).map_or(0, |one| one.get())
                    };
                    some(
                        family,
                        &[("tenant", told.name), ("function", function.name())],
                        told.sum(accounts, called),
                    );
                }
            },
        );
        self.each(
            ("portcullis_decisions", Kind::Counter, none, "Answers, by outcome."),
            |family, told, accounts| {
                for outcome in OutcomeKind::ALL {
                    let count = told.sum(accounts, |account| account.outcome(outcome));
                    some(family, &[("tenant", told.name), ("outcome", outcome.name())], count);
                }
            },
        );
        self.each(
            (
                "portcullis_guest_log_lines_dropped",
                Kind::Counter,
                none,
                "Lines of guests that were not written.",
            ),
            |family, told, accounts| {
                family.count(
                    &[("tenant", told.name)],
                    told.sum(accounts, |account| account.log_lines_dropped.get()),
                );
            },
        );
        self.gauges();
        self.builds();
        self.latency();
    }

    fn each(
        &mut self,
        (name, kind, unit, help): (&'static str, Kind, Option<&str>, &str),
        tell: impl Fn(&mut Family<'_>, &Told<'_>, &Accounts),
    ) {
        let mut family = self.page.family(name, kind, unit, help);
        for told in self.told {
            tell(&mut family, told, self.accounts);
        }
    }

    fn invocations(&mut self) {
        self.each(
            ("wasm_tenant_invocations", Kind::Counter, None, "Instances that were asked, by policy."),
            |family, told, accounts| {
                let count = |known: &Known, slot: usize| {
                    let account =
                        accounts.classes.get(&known.class).and_then(|class| class.modules.get(slot));
                    account.map_or(0, |module| module.invocations.get())
                };
                if told.apart {
                    for known in &told.known {
                        for (name, slot) in &known.modules {
                            family.count(
                                &[("tenant", told.name), ("module", name.as_str())],
                                count(known, *slot),
                            );
                        }
                    }
                    return;
                }
                let all = told
                    .known
                    .iter()
                    .flat_map(|known| known.modules.values().map(|slot| count(known, *slot)));
                family.count(&[("tenant", told.name), ("module", OTHER)], all.fold(0, u64::saturating_add));
            },
        );
    }

    fn gauges(&mut self) {
        let gauge = |told: &Told<'_>, accounts: &Accounts, memory: bool| {
            let columns =
                told.known.iter().filter_map(|known| Some((accounts.classes.get(&known.class)?, known.slot)));
            let gauges = columns
                .flat_map(|(class, slot)| live(class).filter_map(move |column| column.tenants.get(slot)));
            gauges
                .map(|one| if memory { one.memory.get() } else { one.concurrent.get() })
                .fold(0, u64::saturating_add)
        };
        self.each(
            (
                "wasm_tenant_memory_pages",
                Kind::Gauge,
                Some("pages"),
                "Linear memory of live instances, in pages of 64 KiB.",
            ),
            |family, told, accounts| {
                family.count(&[("tenant", told.name)], gauge(told, accounts, true).div_ceil(PAGE));
            },
        );
        self.each(
            ("wasm_tenant_concurrent_calls", Kind::Gauge, None, "Questions under way, waiting or running."),
            |family, told, accounts| {
                family.count(&[("tenant", told.name)], gauge(told, accounts, false));
            },
        );
    }

    /// The registry's numbers of tenants.
    fn builds(&mut self) {
        let sum =
            |told: &Told<'_>, accounts: &Accounts, of: fn(&crate::accounts::RegistryTenantAccount) -> u64| {
                let registry = accounts.registry.as_ref();
                let all = told.known.iter().filter_map(|known| registry?.tenants.get(known.slot));
                all.map(of).fold(0, u64::saturating_add)
            };
        self.each(
            (
                "wasm_tenant_jit_compile_seconds",
                Kind::Counter,
                Some("seconds"),
                "Time of builders that checked or compiled policies, by the clock on the wall.",
            ),
            |family, told, accounts| {
                let ns = sum(told, accounts, |account| account.compile_ns.get());
                family.real(&[("tenant", told.name)], real(ns) / NS_PER_SECOND);
            },
        );
        self.each(
            (
                "portcullis_builds",
                Kind::Counter,
                None,
                "Policies that builders checked or compiled, by what came of it.",
            ),
            |family, told, accounts| {
                let labels = |result: &'static str| [("tenant", told.name), ("result", result)];
                some(family, &labels("good"), sum(told, accounts, |account| account.compiled.get()));
                some(family, &labels("refused"), sum(told, accounts, |account| account.refused.get()));
            },
        );
    }

    fn latency(&mut self) {
        let help = "From a question's receipt to its reply, of all that were let in.";
        self.each(
            ("portcullis_decision_latency_microseconds", Kind::Histogram, Some("microseconds"), help),
            |family, told, accounts| {
                let mut counts = [0_u64; BUCKETS + 1];
                let mut sum_ns = 0_u64;
                for account in told.accounts(accounts) {
                    for (all, one) in counts.iter_mut().zip(account.latency.counts()) {
                        *all = all.saturating_add(one);
                    }
                    sum_ns = sum_ns.saturating_add(account.latency.sum_ns());
                }
                let mut buckets = Vec::new();
                let mut below = 0_u64;
                for (place, count) in counts.into_iter().enumerate() {
                    below = below.saturating_add(count);
                    if place.is_multiple_of(BOUNDS_APART) || place == BUCKETS {
                        let le = bound(place) / NS_PER_MICROSECOND;
                        buckets.push(Bucket { le, count: std::mem::take(&mut below), exemplar: None });
                    }
                }
                family.histogram(&[("tenant", told.name)], &buckets, real(sum_ns) / NS_PER_MICROSECOND);
            },
        );
    }
}

/// A series for what has happened at least once: most never do, of most tenants.
fn some(family: &mut Family<'_>, labels: &[(&str, &str)], count: u64) {
    if count > 0 {
        family.count(labels, count);
    }
}
