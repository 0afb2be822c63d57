//! What is no tenant's: processes, the registry, and each class as a whole.

use std::collections::BTreeMap;

use super::Accounts;
use crate::accounts::{BUCKETS, ClassAccount, Column, Counter, Gauge, Histogram, Sampled, StageOf, bound_ns};
use crate::decision::TrustClass;
use crate::exporter::exposition::{Bucket, Exemplar, Kind, Page};
use crate::exporter::traces::Spans;
use crate::wire::control::{Isolation, ProcessState, ProcessTable};

pub(super) const NS_PER_SECOND: f64 = 1e9;
pub(super) const NS_PER_MICROSECOND: f64 = 1e3;
/// Where a process is in its life.
const STATES: [&str; 3] = ["starting", "serving", "draining"];

/// How often one was replaced, by role and class.
pub(super) type Restarts = BTreeMap<(String, Option<TrustClass>), u32>;

/// Who answers questions: without one of each, the service does not serve.
pub(super) fn serving(classes: &[TrustClass]) -> impl Iterator<Item = (&'static str, Option<&TrustClass>)> {
    std::iter::once(("frontend", None)).chain(classes.iter().map(|class| ("worker", Some(class))))
}

/// Of those who have to be there, one that is not is told as 0: an alert has to have a series to look at.
pub(super) fn processes(page: &mut Page, table: &ProcessTable, classes: &[TrustClass], restarts: &Restarts) {
    page.family("portcullis_build_info", Kind::Gauge, None, "The version that runs; always 1.")
        .count(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let distinct = u64::from(table.isolation == Isolation::DistinctUids);
    page.family(
        "portcullis_isolation_distinct_uids",
        Kind::Gauge,
        None,
        "1 if every role and class has a UID of its own.",
    )
    .count(&[], distinct);
    page.family("portcullis_reloads", Kind::Counter, None, "Reloads that ended, refused ones too.")
        .count(&[], table.reloads);
    let refused = u64::from(table.last_reload_error.is_some());
    page.family(
        "portcullis_last_reload_refused",
        Kind::Gauge,
        None,
        "1 if the last reload changed nothing, or not all of it.",
    )
    .count(&[], refused);

    let named =
        |class: Option<&'_ TrustClass>| class.map_or(String::new(), |class| class.as_str().to_owned());
    let mut states: BTreeMap<(&str, String, &str), u64> = BTreeMap::new();
    for (role, class) in serving(classes) {
        states.extend(STATES.map(|state| ((role, named(class), state), 0)));
    }
    let mut landlock: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut generations: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for process in &table.processes {
        let (role, class) = (process.role.as_str(), process.class.as_ref().map_or("", TrustClass::as_str));
        let [starting, serving, draining] = STATES;
        let state = match process.state {
            ProcessState::Starting => starting,
            ProcessState::Serving => serving,
            ProcessState::Draining => draining,
        };
        let count = states.entry((role, class.to_owned(), state)).or_default();
        *count = count.saturating_add(1);
        if process.state != ProcessState::Serving {
            continue;
        }
        generations.insert((role, class), process.generation);
        if let Some(ready) = &process.ready {
            landlock.insert((role, class), ready.landlock_abi);
        }
    }
    let mut family = page.family(
        "portcullis_processes",
        Kind::Gauge,
        None,
        "Processes, by role, class and where they are in their lives.",
    );
    for ((role, class, state), count) in states {
        family.count(&[("role", role), ("class", &class), ("state", state)], count);
    }
    let mut family = page.family(
        "portcullis_process_restarts",
        Kind::Counter,
        None,
        "How often one that served was replaced because it died.",
    );
    for ((role, class), count) in restarts {
        family.count(&[("role", role), ("class", &named(class.as_ref()))], (*count).into());
    }
    let mut family = page.family("portcullis_generation", Kind::Gauge, None, "The generation that serves.");
    for ((role, class), generation) in generations {
        family.count(&[("role", role), ("class", class)], generation);
    }
    let mut family = page.family(
        "portcullis_landlock_abi",
        Kind::Gauge,
        None,
        "The Landlock ABI in force in the one that serves, each thread of which has proved it.",
    );
    for ((role, class), abi) in landlock {
        family.count(&[("role", role), ("class", class)], abi.into());
    }
}

pub(super) fn registry(page: &mut Page, accounts: &Accounts) {
    let Some(registry) = &accounts.registry else { return };
    page.family(
        "wasm_signature_verification_failure",
        Kind::Counter,
        None,
        "Bundles that were refused for their signatures.",
    )
    .count(&[], registry.signatures_refused.get());
    page.family("portcullis_signatures_verified", Kind::Counter, None, "Bundles whose signatures were good.")
        .count(&[], registry.signatures_verified.get());
}

pub(super) fn spans(page: &mut Page, spans: Option<&Spans>) {
    let Some(spans) = spans else { return };
    let mut family = page.family(
        "portcullis_spans",
        Kind::Counter,
        None,
        "Spans of traces: taken by the collector, dropped for want of room, failed there, or lost before.",
    );
    for (outcome, count) in spans.handed_over {
        family.count(&[("outcome", outcome)], count);
    }
    for (class, count) in &spans.lost {
        family.count(&[("outcome", "lost"), ("class", class.as_str())], *count);
    }
}

pub(super) fn classes(page: &mut Page, accounts: &Accounts) {
    let mut each = Classes { page, accounts };
    each.stages();
    each.histogram(
        ("portcullis_deadline_overshoot_microseconds", "How long after their deadlines late answers left."),
        ("microseconds", NS_PER_MICROSECOND),
        |account| &account.overshoot,
    );
    let seconds = ("seconds", NS_PER_SECOND);
    let cold = "Making an instance in a slot that had to be mapped anew.";
    each.histogram(("wasm_cold_start_seconds", cold), seconds, |account| &account.cold_start);
    let warm = "Making an instance in a slot that still had its policy's memory image.";
    each.histogram(("wasm_snapshot_resume_seconds", warm), seconds, |account| &account.snapshot_resume);
    let load = "From a policy's machine code to a policy that can run.";
    each.histogram(("wasm_aot_load_seconds", load), seconds, |account| &account.aot_load);

    let hit = "Instances that found a slot with their policy's memory image.";
    each.counter(("wasm_pool_hit", hit), |account| &account.pool_hits);
    each.counter(("wasm_pool_miss", "Instances that found none."), |account| &account.pool_misses);
    let unknown = "Questions for tenants that are not there.";
    each.counter(("portcullis_not_permitted", unknown), |account| &account.not_permitted);

    let most = "Instances that can live at one time.";
    each.gauge(("wasm_instance_pool_size", most), |column| &column.instances_max);
    each.gauge(("portcullis_instances", "Instances that live."), |column| &column.instances);
    each.gauge(("portcullis_queue_depth", "Questions that wait for their turn."), |column| &column.queued);
    let connections = "Connections of clients that workers have.";
    each.gauge(("portcullis_connections", connections), |column| &column.connections);
}

/// Tells families with a series for each class.
struct Classes<'p> {
    page: &'p mut Page,
    accounts: &'p Accounts,
}

impl Classes<'_> {
    fn stages(&mut self) {
        let mut family = self.page.family(
            "portcullis_decision_stage_microseconds",
            Kind::Histogram,
            Some("microseconds"),
            "How long decisions that had an instance were in each stage; host is a part of run.",
        );
        for (class, account) in &self.accounts.classes {
            for stage in StageOf::ALL {
                let Some(sampled) = account.stage(stage) else { continue };
                let labels = [("class", class.as_str()), ("stage", stage.name())];
                let sum = real(sampled.histogram.sum_ns()) / NS_PER_MICROSECOND;
                family.histogram(&labels, &with_exemplars(sampled), sum);
            }
        }
    }

    fn histogram(
        &mut self,
        (name, help): (&'static str, &str),
        (unit, ns): (&str, f64),
        of: fn(&ClassAccount) -> &Histogram,
    ) {
        let mut family = self.page.family(name, Kind::Histogram, Some(unit), help);
        for (class, account) in &self.accounts.classes {
            let histogram = of(account);
            let bucket = |(place, count)| Bucket { le: bound(place) / ns, count, exemplar: None };
            let buckets: Vec<Bucket> = histogram.counts().enumerate().map(bucket).collect();
            family.histogram(&[("class", class.as_str())], &buckets, real(histogram.sum_ns()) / ns);
        }
    }

    fn counter(&mut self, (name, help): (&'static str, &str), of: fn(&ClassAccount) -> &Counter) {
        let mut family = self.page.family(name, Kind::Counter, None, help);
        for (class, account) in &self.accounts.classes {
            family.count(&[("class", class.as_str())], of(account).get());
        }
    }

    fn gauge(&mut self, (name, help): (&'static str, &str), of: fn(&Column) -> &Gauge) {
        let mut family = self.page.family(name, Kind::Gauge, None, help);
        for (class, account) in &self.accounts.classes {
            let sum = live(account).map(|column| of(column).get()).fold(0, u64::saturating_add);
            family.count(&[("class", class.as_str())], sum);
        }
    }
}

/// Of processes that live. The others' memory is not touched: even reading would take room for it.
pub(super) fn live(account: &ClassAccount) -> impl Iterator<Item = &Column> {
    account.columns.iter().filter(|column| column.generation.get() != 0)
}

fn with_exemplars(sampled: &Sampled) -> Vec<Bucket> {
    let examples = sampled.exemplars().map(|example| {
        // A name and a number; it is shown as both, whoever wrote it.
        example.map(|example| Exemplar { id: example.id, value: real(example.value_ns) / NS_PER_MICROSECOND })
    });
    let counts = sampled.histogram.counts().enumerate();
    let bucket =
        |((place, count), exemplar)| Bucket { le: bound(place) / NS_PER_MICROSECOND, count, exemplar };
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
