//! What is no tenant's: processes, the registry, and each class as a whole.

use std::collections::BTreeMap;

use super::Accounts;
use crate::accounts::{BUCKETS, ClassAccount, Column, Counter, Gauge, Histogram, Sampled, StageOf, bound_ns};
use crate::decision::TrustClass;
use crate::exporter::exposition::{Bucket, Exemplar, Family, Kind, Page};
use crate::wire::control::{Isolation, ProcessState, ProcessTable};

pub(super) const NS_PER_SECOND: f64 = 1e9;
pub(super) const NS_PER_MICROSECOND: f64 = 1e3;

pub(super) fn processes(page: &mut Page, table: &ProcessTable) {
    page.family("portcullis_build_info", Kind::Gauge, None, "The version that runs; always 1.")
        .count(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let distinct = u64::from(table.isolation == Isolation::DistinctUids);
    page.family("portcullis_isolation_distinct_uids", Kind::Gauge, None, "1 if every role and class has a UID of its own.")
        .count(&[], distinct);
    page.family("portcullis_reloads", Kind::Counter, None, "Reloads that ended, refused ones too.").count(&[], table.reloads);
    let refused = u64::from(table.last_reload_error.is_some());
    page.family("portcullis_last_reload_refused", Kind::Gauge, None, "1 if the last reload changed nothing, or not all of it.")
        .count(&[], refused);

    let mut states: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    let mut restarts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut landlock: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut generations: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for process in &table.processes {
        let (role, class) = (process.role.as_str(), process.class.as_ref().map_or("", TrustClass::as_str));
        let state = match process.state {
            ProcessState::Starting => "starting",
            ProcessState::Serving => "serving",
            ProcessState::Draining => "draining",
        };
        let count = states.entry((role, class, state)).or_default();
        *count = count.saturating_add(1);
        restarts.insert((role, class), process.restarts);
        if process.state != ProcessState::Serving {
            continue;
        }
        generations.insert((role, class), process.generation);
        if let Some(ready) = &process.ready {
            landlock.insert((role, class), ready.landlock_abi);
        }
    }
    let mut family = page.family("portcullis_processes", Kind::Gauge, None, "Processes, by role, class and where they are in their lives.");
    for ((role, class, state), count) in states {
        family.count(&[("role", role), ("class", class), ("state", state)], count);
    }
    let mut family = page.family("portcullis_process_restarts", Kind::Counter, None, "How often one that served was replaced because it died.");
    for ((role, class), count) in restarts {
        family.count(&[("role", role), ("class", class)], count.into());
    }
    let mut family = page.family("portcullis_generation", Kind::Gauge, None, "The generation that serves.");
    for ((role, class), generation) in generations {
        family.count(&[("role", role), ("class", class)], generation);
    }
    let mut family = page.family("portcullis_landlock_abi", Kind::Gauge, None, "The Landlock ABI in force in the one that serves, each thread of which has proved it.");
    for ((role, class), abi) in landlock {
        family.count(&[("role", role), ("class", class)], abi.into());
    }
}

pub(super) fn registry(page: &mut Page, accounts: &Accounts) {
    let Some(registry) = &accounts.registry else { return };
    page.family("wasm_signature_verification_failure", Kind::Counter, None, "Bundles that were refused for their signatures.")
        .count(&[], registry.signatures_refused.get());
    page.family("portcullis_signatures_verified", Kind::Counter, None, "Bundles whose signatures were good.")
        .count(&[], registry.signatures_verified.get());
}

pub(super) fn classes(page: &mut Page, accounts: &Accounts) {
    let each = |mut family: Family<'_>, tell: &dyn Fn(&mut Family<'_>, &str, &ClassAccount)| {
        for (class, account) in &accounts.classes {
            tell(&mut family, class.as_str(), account);
        }
    };
    let count = |of: fn(&ClassAccount) -> &Counter| {
        move |family: &mut Family<'_>, class: &str, account: &ClassAccount| {
            family.count(&[("class", class)], of(account).get());
        }
    };
    let gauge = |of: fn(&Column) -> &Gauge| {
        move |family: &mut Family<'_>, class: &str, account: &ClassAccount| {
            let sum = live(account).map(|column| of(column).get()).fold(0, u64::saturating_add);
            family.count(&[("class", class)], sum);
        }
    };
    let seconds = |of: fn(&ClassAccount) -> &Histogram| {
        move |family: &mut Family<'_>, class: &str, account: &ClassAccount| {
            tell(family, &[("class", class)], of(account), NS_PER_SECOND);
        }
    };

    let mut family = page.family(
        "portcullis_decision_stage_microseconds",
        Kind::Histogram,
        Some("microseconds"),
        "How long decisions that had an instance were in each stage; host is a part of run.",
    );
    for (class, account) in &accounts.classes {
        for stage in StageOf::ALL {
            let Some(sampled) = account.stage(stage) else { continue };
            let labels = [("class", class.as_str()), ("stage", stage.name())];
            let buckets = with_exemplars(sampled);
            family.histogram(&labels, &buckets, real(sampled.histogram.sum_ns()) / NS_PER_MICROSECOND);
        }
    }
    let mut family = page.family(
        "portcullis_deadline_overshoot_microseconds",
        Kind::Histogram,
        Some("microseconds"),
        "How long after their deadlines late answers left.",
    );
    for (class, account) in &accounts.classes {
        tell(&mut family, &[("class", class.as_str())], &account.overshoot, NS_PER_MICROSECOND);
    }
    let histogram = (Kind::Histogram, Some("seconds"));
    let mut of = |name, help| page.family(name, histogram.0, histogram.1, help);
    each(of("wasm_cold_start_seconds", "Making an instance in a slot that had to be mapped anew."), &seconds(|account| &account.cold_start));
    each(of("wasm_snapshot_resume_seconds", "Making an instance in a slot that still had this policy's memory image."), &seconds(|account| &account.snapshot_resume));
    each(of("wasm_aot_load_seconds", "From a policy's machine code to a policy that can run."), &seconds(|account| &account.aot_load));

    let mut of = |name, help| page.family(name, Kind::Counter, None, help);
    each(of("wasm_pool_hit", "Instances that found a slot with their policy's memory image."), &count(|account| &account.pool_hits));
    each(of("wasm_pool_miss", "Instances that found none."), &count(|account| &account.pool_misses));
    each(of("portcullis_unknown_tenant", "Questions for tenants that are not there."), &count(|account| &account.unknown_tenant));

    let mut of = |name, help| page.family(name, Kind::Gauge, None, help);
    each(of("wasm_instance_pool_size", "Instances that can live at one time."), &gauge(|column| &column.instances_max));
    each(of("portcullis_instances", "Instances that live."), &gauge(|column| &column.instances));
    each(of("portcullis_queue_depth", "Questions that wait for their turn."), &gauge(|column| &column.queued));
    each(of("portcullis_connections", "Clients' connections that workers have."), &gauge(|column| &column.connections));
}

/// Of processes that live. The others' memory is not touched: even reading would take room for it.
pub(super) fn live(account: &ClassAccount) -> impl Iterator<Item = &Column> {
    account.columns.iter().filter(|column| column.generation.get() != 0)
}

/// Bounds in nanoseconds, divided by `unit`.
pub(super) fn tell(family: &mut Family<'_>, labels: &[(&str, &str)], histogram: &Histogram, unit: f64) {
    let buckets: Vec<Bucket> = histogram
        .counts()
        .enumerate()
        .map(|(place, count)| Bucket { le: bound(place) / unit, count, exemplar: None })
        .collect();
    family.histogram(labels, &buckets, real(histogram.sum_ns()) / unit);
}

fn with_exemplars(sampled: &Sampled) -> Vec<Bucket> {
    let examples = sampled.exemplars().map(|example| {
        // A name and a number; it is shown as both, whoever wrote it.
        example.map(|example| Exemplar { id: example.id, value: real(example.value_ns) / NS_PER_MICROSECOND })
    });
    let counts = sampled.histogram.counts().enumerate();
    let bucket = |((place, count), exemplar)| Bucket { le: bound(place) / NS_PER_MICROSECOND, count, exemplar };
    counts.zip(examples).map(bucket).collect()
}

/// Nanoseconds; infinite for what is beyond all bounds.
pub(super) fn bound(place: usize) -> f64 {
    if place >= BUCKETS { f64::INFINITY } else { real(bound_ns(place)) }
}

/// What is lost beyond 2^53 is of no interest to anybody.
#[expect(clippy::cast_precision_loss, reason = "see above")]
pub(super) const fn real(count: u64) -> f64 {
    count as f64
}
