//! Tenants: those with series of their own, up to so many, and the sum of the others.
//!
//! Who has a place keeps it; who came when there was none stays in the sum, and in it for good: a sum from which somebody
//! disappeared would look like one that began anew. The series of a tenant that is removed end. Likewise the policies of
//! each tenant.

use std::collections::{BTreeMap, BTreeSet};

use super::Accounts;
use super::service::{NS_PER_MICROSECOND, NS_PER_SECOND, bound, live, real};
use crate::accounts::{BUCKETS, HostFunction, OutcomeKind, TenantAccount};
use crate::decision::{PolicyName, Quota, Tenant, TrustClass};
use crate::exporter::exposition::{Bucket, Family, Kind, Page};
use crate::wire::control::{ExporterAssignment, ExporterTenant};

/// What the sum is called. No tenant may have that name.
const OTHER: &str = "other";
/// Policies of a tenant with series of their own; the others are summed up, under the same name.
const MODULES_APART: usize = 64;
/// Bytes of a page of WebAssembly's memory.
const PAGE: u64 = 64 << 10;
/// Of a tenant's histogram every so manieth bound is told: each is four times the one before.
const BOUNDS_APART: usize = 4;

/// Who is told of how.
#[derive(Debug)]
pub(super) struct Tenants {
    max: usize,
    named: BTreeMap<Tenant, Known>,
    /// In the sum, those that were removed since too. In each class that it ever was in: what it was counted for there stays.
    others: BTreeMap<Tenant, Vec<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    class: TrustClass,
    slot: usize,
    /// Policies with series of their own.
    apart: BTreeMap<PolicyName, usize>,
    /// Those in the sum, and those that were.
    rest: BTreeMap<PolicyName, usize>,
}

impl Known {
    fn of(tenant: &ExporterTenant, most_apart: usize) -> Self {
        let (apart, rest) = (BTreeMap::new(), BTreeMap::new());
        let mut new = Self { class: tenant.class.clone(), slot: tenant.slot as usize, apart, rest };
        new.renew(tenant, most_apart);
        new
    }

    /// What it has by now, in the same class.
    fn renew(&mut self, tenant: &ExporterTenant, most_apart: usize) {
        let there: BTreeSet<&PolicyName> = tenant.modules.iter().map(|(name, _)| name).collect();
        self.apart.retain(|name, _| there.contains(name));
        // The oldest first.
        let mut modules: Vec<&(PolicyName, u32)> = tenant.modules.iter().collect();
        modules.sort_by_key(|(_, slot)| *slot);
        for (name, slot) in modules {
            if self.apart.contains_key(name) || self.rest.contains_key(name) {
                continue;
            }
            // One that is called as the sum is cannot be told from it.
            let apart = self.apart.len() < most_apart && name.as_str() != OTHER;
            let to = if apart { &mut self.apart } else { &mut self.rest };
            to.insert(name.clone(), *slot as usize);
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
            if let Some(known) = self.named.get_mut(&tenant.tenant) {
                if known.class == tenant.class {
                    known.renew(tenant, MODULES_APART);
                } else {
                    *known = Known::of(tenant, MODULES_APART);
                }
            } else if let Some(ever) = self.others.get_mut(&tenant.tenant) {
                match ever.iter_mut().find(|known| known.class == tenant.class) {
                    Some(known) => known.renew(tenant, 0),
                    None => ever.push(Known::of(tenant, 0)),
                }
            } else if self.named.len() < self.max {
                self.named.insert(tenant.tenant.clone(), Known::of(tenant, MODULES_APART));
            } else {
                self.others.insert(tenant.tenant.clone(), vec![Known::of(tenant, 0)]);
            }
        }
    }

    pub(super) fn tell(&self, page: &mut Page, accounts: &Accounts) {
        let told: Vec<Told<'_>> = self
            .named
            .iter()
            .map(|(name, known)| Told { name: name.as_str(), known: vec![known] })
            .chain(
                (!self.others.is_empty())
                    .then(|| Told { name: OTHER, known: self.others.values().flatten().collect() }),
            )
            .collect();
        let told = Telling { page, accounts, told: &told };
        told.all();
    }
}

/// One value of the label `tenant`, and whose numbers are summed up under it.
struct Told<'t> {
    name: &'t str,
    known: Vec<&'t Known>,
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
                for known in &told.known {
                    for (name, slot) in &known.apart {
                        family
                            .count(&[("tenant", told.name), ("module", name.as_str())], count(known, *slot));
                    }
                }
                let rest = told.known.iter().filter(|known| !known.rest.is_empty());
                let rest = rest.map(|known| {
                    known.rest.values().map(|slot| count(known, *slot)).fold(0, u64::saturating_add)
                });
                if let Some(sum) = rest.reduce(u64::saturating_add) {
                    family.count(&[("tenant", told.name), ("module", OTHER)], sum);
                }
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
                // The registry has one place for a tenant, whatever classes it was in.
                let slots: BTreeSet<usize> = told.known.iter().map(|known| known.slot).collect();
                let all = slots.into_iter().filter_map(|slot| registry?.tenants.get(slot));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Access, ClassAccount, Map, RegistryAccount, create};
    use crate::decision::Outcome;
    use crate::exporter::exposition::Format;
    use crate::wire::control::Isolation;

    fn class() -> TrustClass {
        TrustClass::new("web").unwrap()
    }

    /// These tenants, each with one policy; the number is their slot and their policy's.
    fn assignment(max_tenants: u32, tenants: &[(&str, u32)]) -> ExporterAssignment {
        let tenant = |(name, slot): &(&str, u32)| ExporterTenant {
            tenant: Tenant::new(name).unwrap(),
            class: class(),
            slot: *slot,
            modules: vec![(PolicyName::new("gate").unwrap(), *slot)],
        };
        ExporterAssignment {
            uid: 1,
            gid: 1,
            isolation: Isolation::SharedUid,
            tcp: false,
            max_tenants,
            otlp: None,
            classes: vec![class()],
            tenants: tenants.iter().map(tenant).collect(),
        }
    }

    fn accounts() -> Accounts {
        let memory = create::<ClassAccount>().unwrap();
        let registry = create::<RegistryAccount>().unwrap();
        Accounts {
            classes: [(class(), Map::new(memory, Access::Write).unwrap())].into(),
            registry: Some(Map::new(registry, Access::Write).unwrap()),
        }
    }

    fn told(tenants: &Tenants, accounts: &Accounts) -> BTreeMap<String, String> {
        let mut page = Page::new(Format::OpenMetrics);
        tenants.tell(&mut page, accounts);
        let text = page.finish();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = samples.map(|line| line.rsplit_once(' ').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn what_was_counted_is_told_in_the_units_of_its_names() {
        let (accounts, tenants) = (accounts(), Tenants::new(&assignment(10, &[("acme", 3)])));
        let web = &accounts.classes[&class()];
        let acme = &web.tenants[3];
        acme.cpu_ns.add(1_500_000_000);
        acme.egress_bytes.add(70);
        acme.ingress_bytes.add(80);
        acme.host_called[HostFunction::DataGet.index()].add(4);
        acme.count(&Outcome::Allow);
        acme.count(&Outcome::Allow);
        let refusal = crate::decision::Refusal::Quota { which: Quota::Cpu, retry_after_ms: 1 };
        acme.count(&Outcome::Refused(refusal));
        acme.latency.record(3_000);
        acme.latency.record(u64::MAX / 2);
        web.modules[3].invocations.add(2);
        let column = web.column(5).unwrap();
        column.generation.set(5);
        column.tenants[3].concurrent.add(6);
        column.tenants[3].memory.add(65_537);
        // Of a process that has died.
        web.column(6).unwrap().tenants[3].concurrent.add(100);
        accounts.registry.as_ref().unwrap().tenants[3].compile_ns.add(250_000_000);
        let told = told(&tenants, &accounts);
        for (series, value) in [
            ("wasm_tenant_invocations_total{tenant=\"acme\",module=\"gate\"}", "2"),
            ("wasm_tenant_cpu_seconds_total{tenant=\"acme\"}", "1.5"),
            ("wasm_tenant_egress_bytes_total{tenant=\"acme\"}", "70"),
            ("portcullis_tenant_ingress_bytes_total{tenant=\"acme\"}", "80"),
            ("wasm_tenant_host_function_calls_total{tenant=\"acme\",function=\"data.get\"}", "4"),
            ("wasm_tenant_quota_rejected_total{tenant=\"acme\",reason=\"cpu\"}", "1"),
            ("portcullis_decisions_total{tenant=\"acme\",outcome=\"allow\"}", "2"),
            ("portcullis_decisions_total{tenant=\"acme\",outcome=\"quota\"}", "1"),
            ("wasm_tenant_concurrent_calls{tenant=\"acme\"}", "6"),
            ("wasm_tenant_memory_pages{tenant=\"acme\"}", "2"),
            ("wasm_tenant_jit_compile_seconds_total{tenant=\"acme\"}", "0.25"),
            ("portcullis_decision_latency_microseconds_bucket{tenant=\"acme\",le=\"1.0\"}", "0"),
            ("portcullis_decision_latency_microseconds_bucket{tenant=\"acme\",le=\"4.0\"}", "1"),
            ("portcullis_decision_latency_microseconds_bucket{tenant=\"acme\",le=\"+Inf\"}", "2"),
            ("portcullis_decision_latency_microseconds_count{tenant=\"acme\"}", "2"),
        ] {
            assert_eq!(told.get(series).map(String::as_str), Some(value), "{series}: {told:#?}");
        }
        assert!(!told.keys().any(|series| series.contains("other")), "there is nobody else");
        assert!(!told.contains_key("portcullis_decisions_total{tenant=\"acme\",outcome=\"deny\"}"));
    }

    #[test]
    fn a_sum_never_becomes_less_when_tenants_come_and_go() {
        let accounts = accounts();
        for slot in 0..6 {
            accounts.classes[&class()].tenants[slot].egress_bytes.add(1 << slot);
        }
        let mut tenants = Tenants::new(&assignment(2, &[("c", 2), ("a", 0), ("b", 1)]));
        let bytes = |tenants: &Tenants| -> Vec<(String, String)> {
            let name = |series: &str| series.split('"').nth(1).unwrap().to_owned();
            let told = told(tenants, &accounts).into_iter();
            let told = told.filter(|(series, _)| series.starts_with("wasm_tenant_egress_bytes_total"));
            told.map(|(series, value)| (name(&series), value)).collect()
        };
        let pairs = |pairs: &[(&str, u32)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
        };
        // The first that came have places; there is one policy's series of each.
        assert_eq!(bytes(&tenants), pairs(&[("a", 1), ("b", 2), ("other", 4)]));
        // One more, and one of those with places goes: its place is for who comes next.
        tenants.reassign(&assignment(2, &[("a", 0), ("c", 2), ("d", 3)]));
        assert_eq!(bytes(&tenants), pairs(&[("a", 1), ("d", 8), ("other", 4)]));
        // Who goes from the sum leaves there what it had.
        tenants.reassign(&assignment(2, &[("a", 0), ("d", 3), ("e", 4)]));
        assert_eq!(bytes(&tenants), pairs(&[("a", 1), ("d", 8), ("other", 20)]));
        tenants.reassign(&assignment(2, &[("e", 4)]));
        assert_eq!(bytes(&tenants), pairs(&[("other", 20)]));
        // No place for anybody, because the operator says so.
        tenants.reassign(&assignment(0, &[("e", 4), ("f", 5)]));
        assert_eq!(bytes(&tenants), pairs(&[("other", 48)]));
    }

    #[test]
    fn a_tenant_in_the_sum_that_is_moved_to_another_class_leaves_there_what_it_had() {
        let mut accounts = accounts();
        let elsewhere = TrustClass::new("elsewhere").unwrap();
        let memory = create::<ClassAccount>().unwrap();
        accounts.classes.insert(elsewhere.clone(), Map::new(memory, Access::Write).unwrap());
        let (before, after) = (&accounts.classes[&class()], &accounts.classes[&elsewhere]);
        before.tenants[0].egress_bytes.add(5);
        before.modules[0].invocations.add(5);
        // Another's policy, in the same place there.
        after.modules[0].invocations.add(100);
        after.tenants[0].egress_bytes.add(2);
        after.modules[7].invocations.add(2);
        accounts.registry.as_ref().unwrap().tenants[0].compiled.add(3);
        let mut assignment = assignment(0, &[("a", 0)]);
        let mut tenants = Tenants::new(&assignment);
        assert_eq!(told(&tenants, &accounts)["wasm_tenant_egress_bytes_total{tenant=\"other\"}"], "5");
        assignment.tenants[0].class = elsewhere;
        assignment.tenants[0].modules = vec![(PolicyName::new("gate").unwrap(), 7)];
        tenants.reassign(&assignment);
        let told = told(&tenants, &accounts);
        assert_eq!(told["wasm_tenant_egress_bytes_total{tenant=\"other\"}"], "7");
        assert_eq!(told["wasm_tenant_invocations_total{tenant=\"other\",module=\"other\"}"], "7");
        assert_eq!(told["portcullis_builds_total{tenant=\"other\",result=\"good\"}"], "3", "once");
    }

    #[test]
    fn policies_beyond_so_many_of_a_tenant_are_summed_up_and_stay_there() {
        let accounts = accounts();
        let with = |names: &[String]| {
            let mut assignment = assignment(1, &[("a", 0)]);
            let slot = |name: &String| {
                let slot = name.strip_prefix('p').map_or(500, |number| number.parse().unwrap());
                (PolicyName::new(name).unwrap(), slot)
            };
            assignment.tenants[0].modules = names.iter().map(slot).collect();
            assignment
        };
        let most = u32::try_from(MODULES_APART).unwrap();
        (0..most + 3).for_each(|slot| {
            accounts.classes[&class()].modules[slot as usize].invocations.add(1);
        });
        accounts.classes[&class()].modules[500].invocations.add(10);
        let mut names: Vec<String> = (0..most + 2).map(|number| format!("p{number}")).collect();
        names.push(OTHER.to_owned());
        let mut tenants = Tenants::new(&with(&names));
        let invocations = |tenants: &Tenants| {
            let told = told(tenants, &accounts);
            let one = |name: &str| {
                told.get(&format!("wasm_tenant_invocations_total{{tenant=\"a\",module=\"{name}\"}}")).cloned()
            };
            let all = told.keys().filter(|name| name.starts_with("wasm_tenant_invocations_total")).count();
            (all, one("p0"), one(&format!("p{most}")), one(&format!("p{}", most + 2)), one(OTHER))
        };
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(invocations(&tenants), (MODULES_APART + 1, some("1"), None, None, some("12")));
        // One with a series goes, and another comes: its place is for that one, and the sum stays.
        names.remove(0);
        names.push(format!("p{}", most + 2));
        tenants.reassign(&with(&names));
        assert_eq!(invocations(&tenants), (MODULES_APART + 1, None, None, some("1"), some("12")));
    }

    #[test]
    fn slots_beyond_the_accounts_and_classes_that_are_not_there_count_for_nothing() {
        let mut assignment = assignment(2, &[("a", u32::MAX), ("b", 1)]);
        assignment.tenants[1].class = TrustClass::new("elsewhere").unwrap();
        let told = told(&Tenants::new(&assignment), &accounts());
        assert_eq!(told["wasm_tenant_egress_bytes_total{tenant=\"a\"}"], "0");
        assert_eq!(told["wasm_tenant_invocations_total{tenant=\"b\",module=\"gate\"}"], "0");
    }
}
