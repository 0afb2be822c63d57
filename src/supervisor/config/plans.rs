//! What tenants may use: `[plan.<name>]`, which a tenant names, and `[plan.default]` for those that name none.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Class, TenantConfig};
use crate::accounts::{HostFunction, Quotas, Rate};
use crate::decision::NAME_MAX;
use crate::document::values::{duration, number, size};
use crate::document::{Complaints, Found, Section};
use crate::wire::client::CLIENT_FRAME_MAX;

/// The plan of tenants that name none.
const DEFAULT: &str = "default";
const MICROSECOND: Duration = Duration::from_micros(1);
const SECOND: Duration = Duration::from_secs(1);
/// Most of anything in a second: a bucket counts in nanoseconds.
const MOST: u64 = 1_000_000_000;
/// Largest input that a bucket of bytes has to hold, or no client could ever send it.
const LARGEST: u64 = CLIENT_FRAME_MAX as u64;

/// One plan.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    pub(super) name: Option<String>,
    pub(super) quotas: Quotas,
    /// Of tenants that say nothing themselves.
    pub(super) weight: u32,
}

/// All of them, by name.
#[derive(Debug)]
pub(super) struct Plans {
    plans: BTreeMap<String, Plan>,
    /// Without quotas, where there is no `[plan.default]`.
    none: Plan,
}

pub(super) fn read(complaints: &Complaints, document: &mut Section<'_>) -> Plans {
    let mut plans = BTreeMap::new();
    for (title, section) in document.sections("plan") {
        let legal = |one: u8| one.is_ascii_lowercase() || one.is_ascii_digit() || one == b'-' || one == b'_';
        if title.value.is_empty() || title.value.len() > NAME_MAX || !title.value.bytes().all(legal) {
            let why = format!("name of a plan: 1 to {NAME_MAX} of a-z, 0-9, '-' and '_'");
            complaints.add(title.at, why);
        }
        if let Some((quotas, weight)) = plan(complaints, section) {
            let name = Some(title.value.to_owned());
            plans.insert(title.value.to_owned(), Plan { name, quotas, weight });
        }
    }
    Plans { plans, ..Plans::default() }
}

impl Default for Plans {
    fn default() -> Self {
        Self { plans: BTreeMap::new(), none: Plan { weight: 1, ..Plan::default() } }
    }
}

impl Plans {
    /// The plan that a tenant names, or the default one.
    pub(super) fn of(&self, complaints: &Complaints, named: Option<Found<&str>>) -> &Plan {
        let plan = self.plans.get(named.map_or(DEFAULT, |name| name.value));
        if let (None, Some(Found { value, at })) = (plan, named) {
            complaints.add(at, format!("plan: there is no [plan.{}]", value.escape_debug()));
        }
        plan.unwrap_or(&self.none)
    }
}

fn plan(complaints: &Complaints, mut section: Section<'_>) -> Option<(Quotas, u32)> {
    let requests = rate(&mut section, complaints, ["requests", "requests_burst"], 1);
    let bytes_in = bytes(&mut section, complaints, ["bytes_in", "bytes_in_burst"]);
    let bytes_out = bytes(&mut section, complaints, ["bytes_out", "bytes_out_burst"]);
    let cpu = processor_time(&mut section, complaints);
    let concurrent = section.optional("concurrent", number(1..=1_000_000));
    let memory = section.optional("memory", size(64 << 10..=1 << 40));
    let per_decision = section.optional("host_calls_per_decision", number(0..=1_000_000));
    let reserved = section.defaulted("reserved", 0, number(0..=16384));
    let max_wait = section.optional("max_wait", duration(100 * MICROSECOND..=60 * SECOND));
    let weight = section.defaulted("weight", 1, number(1..=1000));
    let mut host_calls = Vec::new();
    if let Some(mut functions) = section.section("host_calls") {
        for function in HostFunction::ALL {
            let calls = functions.optional(function.name(), number(1..=MOST));
            let rate = |calls: Found<u64>| Rate { per_second: calls.value, burst: calls.value };
            host_calls.extend(calls.map(|calls| (function, rate(calls))));
        }
        functions.finish();
    }
    section.finish();
    let quotas = Quotas {
        requests,
        cpu,
        bytes_in,
        bytes_out,
        concurrent: concurrent.map(|found| found.value),
        memory: memory.map(|found| found.value),
        host_calls,
        host_calls_per_decision: per_decision.map(|found| found.value),
        reserved: reserved?.value,
        max_wait_us: max_wait.map(|found| u32::try_from(found.value.as_micros()).unwrap_or(u32::MAX)),
    };
    Some((quotas, weight?.value))
}

/// So many a second; after a pause as many as one second's, or as the plan says.
fn rate(
    section: &mut Section<'_>,
    complaints: &Complaints,
    [key, burst_key]: [&'static str; 2],
    least: u64,
) -> Option<Rate> {
    let per_second = section.optional(key, number(1..=MOST));
    let burst = section.optional(burst_key, number(least..=MOST));
    together(complaints, key, per_second, burst, least)
}

fn bytes(
    section: &mut Section<'_>,
    complaints: &Complaints,
    [key, burst_key]: [&'static str; 2],
) -> Option<Rate> {
    let per_second = section.optional(key, size(1..=1 << 40));
    let burst = section.optional(burst_key, size(LARGEST..=1 << 40));
    together(complaints, key, per_second, burst, LARGEST)
}

/// So much in each second, on all processors together.
fn processor_time(section: &mut Section<'_>, complaints: &Complaints) -> Option<Rate> {
    let ns = |found: Found<Duration>| Found {
        value: u64::try_from(found.value.as_nanos()).unwrap_or(u64::MAX),
        at: found.at,
    };
    let per_second = section.optional("cpu", duration(MICROSECOND..=1024 * SECOND)).map(ns);
    let burst = section.optional("cpu_burst", duration(1_000 * MICROSECOND..=1024 * SECOND)).map(ns);
    together(complaints, "cpu", per_second, burst, 1_000_000)
}

fn together(
    complaints: &Complaints,
    key: &str,
    per_second: Option<Found<u64>>,
    burst: Option<Found<u64>>,
    least: u64,
) -> Option<Rate> {
    if let (None, Some(burst)) = (&per_second, &burst) {
        complaints.add(burst.at, format!("{key}_burst: of what? There is no {key}"));
    }
    let per_second = per_second?.value;
    Some(Rate { per_second, burst: burst.map_or(per_second.max(least), |found| found.value) })
}

/// What is reserved leaves at least half of a class's instances to everybody, on each of its threads: there it is rounded up.
pub(super) fn reserved(
    complaints: &Complaints,
    classes: &[Class],
    tenants: &[TenantConfig],
    titles: &[Found<&str>],
) {
    for class in classes {
        let of_class = tenants.iter().filter(|tenant| tenant.class == class.name);
        let threads = class.limits.threads.max(1);
        let (of_thread, most) = (class.limits.instances / threads, class.limits.instances / threads / 2);
        let reserved = of_class.map(|tenant| tenant.quotas.reserved);
        let (all, of_each) = reserved.fold((0_u64, 0_u64), |(all, of_each), reserved| {
            (all + u64::from(reserved), of_each + u64::from(reserved.div_ceil(threads)))
        });
        let title = titles.iter().find(|title| title.value == class.name.as_str());
        if let Some(title) = title.filter(|_| of_each > u64::from(most)) {
            let why = format!(
                "instances: the plans of its tenants reserve {all} of {}, each rounded up on each thread: {of_each} of \
                 {of_thread} on each of {threads}, and at most {most} can be; raise instances or reserve less",
                class.limits.instances
            );
            complaints.add(title.at, why);
        }
    }
}
