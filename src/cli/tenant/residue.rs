//! What is left of a tenant that was removed: looked for in everything that the service keeps, as it lies on the disk and as it
//! runs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::change::Change;
use crate::cli::operator::ask_status;
use crate::cli::terminal::{paragraph, printable};
use crate::cli::top::scrape;
use crate::decision::{Tenant, TrustClass};
use crate::ledger::{self, BUNDLES, Origin, Table, What};
use crate::wire::control::ProcessState;
use crate::wire::operator::{Status, Untold, UntoldWhy, WorkerStatus};

/// Between two looks at workers that drain.
const PAUSE: Duration = Duration::from_millis(50);
/// An unfinished file that is younger may be a builder's that works for somebody else.
const YOUNG: Duration = Duration::from_secs(600);
/// Largest file of an earlier table that is looked through, bytes.
const ASIDE_MAX: usize = 128 << 20;

/// One place that was looked through.
#[derive(Debug, Serialize)]
pub(super) struct Place {
    place: &'static str,
    /// What was looked at.
    seen: String,
    /// What is left there, or why that is not known.
    left: Vec<String>,
}

/// All places.
#[derive(Debug, Serialize)]
pub(super) struct Residue {
    places: Vec<Place>,
    /// The operator's own: bundles in the store.
    store: Option<String>,
}

/// Looks everywhere. `purge` removes its bundles from the store first.
pub(super) fn look(change: &Change, tenant: &Tenant, purge: bool) -> Residue {
    let mut places = vec![serving(change, tenant)];
    places.extend(change.config.telemetry.as_ref().map(|of| series(change, &of.socket, tenant)));
    match ledger::read(&change.config.service.state) {
        Ok(table) => {
            places.push(records(&table, tenant));
            places.push(bundles(&change.config.service.state, &table));
            places.push(set_aside(&change.config.service.state, tenant));
            places.extend(change.config.classes.iter().map(|class| cache(&class.cache, &table)));
        }
        Err(error) => places.push(place("state", "not looked at".to_owned(), vec![error.to_string()])),
    }
    let (store, left) = store(&change.config.service.store.join(tenant.as_str()), purge);
    places.extend(left.map(|why| place("store", "could not be removed".to_owned(), vec![why])));
    Residue { places, store }
}

impl Residue {
    pub(super) fn is_left(&self) -> bool {
        self.places.iter().any(|place| !place.left.is_empty())
    }

    pub(super) fn for_people(&self) -> String {
        let mut text = String::new();
        for Place { place, seen, left } in &self.places {
            text += &paragraph(&format!("  {place:<9}"), &printable(seen));
            for one in left {
                text += &paragraph("    LEFT", &printable(one));
            }
        }
        if let Some(store) = &self.store {
            text += &paragraph("  store    ", &printable(store));
        }
        text
    }
}

fn place(place: &'static str, seen: String, left: Vec<String>) -> Place {
    Place { place, seen, left }
}

/// Workers of the generation before may still finish what they had begun.
fn serving(change: &Change, tenant: &Tenant) -> Place {
    let until = Instant::now() + change.patience.max(change.config.service.drain);
    let mut without = BTreeSet::new();
    loop {
        let left = match ask_status(&change.socket) {
            Ok(status) => {
                let left = who_may_have_it(&status, tenant, &mut without);
                if left.is_empty() {
                    let workers = status.workers.len();
                    return place("serving", format!("{workers} workers, none of which has it"), left);
                }
                left
            }
            Err(error) => vec![error.to_string()],
        };
        if Instant::now() >= until {
            return place("serving", "workers".to_owned(), left);
        }
        sleep(PAUSE);
    }
}

/// Workers that serve the tenant, and those of which it is not known that they do not: who does not say, and who is no longer
/// asked, since it only finishes what it had begun. What a worker serves does not change, so who was `without` it once, stays so.
fn who_may_have_it(
    status: &Status,
    tenant: &Tenant,
    without: &mut BTreeSet<(TrustClass, u64)>,
) -> Vec<String> {
    let named = |class: &TrustClass, generation| format!("worker of class {class}, generation {generation}");
    let mut left = Vec::new();
    for WorkerStatus { class, generation, policies, .. } in &status.workers {
        if policies.iter().any(|policy| policy.tenant == *tenant) {
            left.push(named(class, *generation));
        }
    }
    for Untold { class, generation, why } in &status.untold {
        let why = match why {
            UntoldWhy::NoAnswer => "which does not answer",
            UntoldWhy::TooManyPolicies => "which has more policies than it can tell",
        };
        left.push(format!("perhaps {}, {why}", named(class, *generation)));
    }
    if left.is_empty() {
        without.extend(status.workers.iter().map(|one| (one.class.clone(), one.generation)));
    }
    for process in &status.processes.processes {
        if let Some(class) = &process.class
            && process.state == ProcessState::Draining
            && !without.contains(&(class.clone(), process.generation))
        {
            left.push(format!("perhaps {}, which is not done yet", named(class, process.generation)));
        }
    }
    left
}

/// What the exporter tells. A series that ends is how a scraper learns that there is no more.
fn series(change: &Change, socket: &Path, tenant: &Tenant) -> Place {
    let until = Instant::now() + change.patience;
    let label = format!("tenant=\"{tenant}\"");
    loop {
        let left = match scrape(socket) {
            Ok(text) => {
                let named: BTreeSet<&str> = text
                    .lines()
                    .filter(|line| !line.starts_with('#') && line.contains(&label))
                    .filter_map(|line| line.split('{').next())
                    .collect();
                named.into_iter().map(|name| format!("series {name}")).collect()
            }
            Err(error) => vec![error.to_string()],
        };
        if left.is_empty() || Instant::now() >= until {
            return place("metrics", "series that the exporter tells".to_owned(), left);
        }
        sleep(PAUSE);
    }
}

/// What the registry has written down.
fn records(table: &Table, tenant: &Tenant) -> Place {
    let mut left: Vec<String> = Vec::new();
    for record in table.policies.iter().filter(|record| record.tenant == *tenant) {
        let versions = record.active.iter().chain(&record.previous).count();
        left.push(format!("{}, with {versions} versions; the log of the registry says why", record.policy));
    }
    let of_it =
        |event: &&ledger::Event| event.tenant.as_ref() == Some(tenant) && event.what != What::TenantRemoved;
    let events = table.history.iter().filter(of_it).count();
    if events > 0 {
        left.push(format!("{events} events in the history"));
    }
    place("state", format!("{} policies of others in the registry's table", table.policies.len()), left)
}

/// Bundles that the registry keeps.
fn bundles(state: &Path, table: &Table) -> Place {
    let named: BTreeSet<String> =
        table.entries().map(|entry| format!("{}.tar", hex::encode(entry.bundle.as_bytes()))).collect();
    let (count, left) = unnamed(&state.join(BUNDLES), &named);
    place("bundles", format!("{count} that are kept for others"), left)
}

/// What an earlier table was put aside as, when an operator had it begun anew.
fn set_aside(state: &Path, tenant: &Tenant) -> Place {
    let path = state.join("lost-table.json");
    let name = format!("\"tenant\":\"{tenant}\"");
    let left = match crate::cli::files::read(&path, ASIDE_MAX) {
        Ok(text) if text.windows(name.len()).any(|part| part == name.as_bytes()) => {
            vec![format!("{path:?} names it: remove that file when you need it no more")]
        }
        Ok(_) => Vec::new(),
        Err(error) if error.is_missing() => Vec::new(),
        Err(error) => vec![error.to_string()],
    };
    place("aside", "a table from before `trust recover`, if there is one".to_owned(), left)
}

/// What builders keep of one class.
fn cache(path: &Path, table: &Table) -> Place {
    let ours = table.entries().filter(|entry| entry.code.origin == Origin::Builder);
    let named: BTreeSet<String> =
        ours.map(|entry| format!("{}.cwasm", hex::encode(entry.code.cwasm.as_bytes()))).collect();
    let (count, left) = unnamed(path, &named);
    place("cache", format!("{}: {count} files, of others", path.display()), left)
}

/// How many files of a directory are named, and which are not.
fn unnamed(path: &Path, named: &BTreeSet<String>) -> (usize, Vec<String>) {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (0, Vec::new()),
        Err(error) => return (0, vec![format!("list {path:?}: {error}")]),
    };
    let (mut count, mut left) = (0_usize, Vec::new());
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_name().to_str().is_some_and(|name| named.contains(name)) => {
                count = count.saturating_add(1);
            }
            Ok(entry) if is_young_attempt(&entry) => {}
            Ok(entry) => left.push(format!("{:?}, which nobody's version names", entry.path())),
            Err(error) => left.push(format!("list {path:?}: {error}")),
        }
    }
    (count, left)
}

fn is_young_attempt(entry: &fs::DirEntry) -> bool {
    let age = entry.metadata().and_then(|metadata| metadata.modified()).ok();
    let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
    entry.file_name().as_encoded_bytes().starts_with(b".") && age.is_some_and(|age| age < YOUNG)
}

/// What lies in the store for it, and why it could not be removed.
fn store(path: &Path, purge: bool) -> (Option<String>, Option<String>) {
    let count = match fs::read_dir(path) {
        Ok(entries) => entries.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (Some("nothing".to_owned()), None),
        Err(error) => return (Some(format!("{path:?}: {error}")), None),
    };
    if !purge {
        let said = format!(
            "{}: {count} bundles are yours, and stay; `--purge-store` removes them, and so may you",
            path.display()
        );
        return (Some(said), None);
    }
    match fs::remove_dir_all(path) {
        Ok(()) => (Some(format!("{}: {count} bundles removed", path.display())), None),
        Err(error) => (None, Some(format!("remove {path:?}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::PolicyName;
    use crate::wire::control::{Process, ProcessTable};
    use crate::wire::operator::{FrontendCounters, PolicyStatus, WorkerCounters};

    fn class() -> TrustClass {
        TrustClass::new("web").unwrap()
    }

    /// Of these generations, each with the tenants it serves.
    fn status(workers: &[(u64, &[&str])], draining: &[u64]) -> Status {
        let policy = |tenant: &&str| PolicyStatus {
            tenant: Tenant::new(tenant).unwrap(),
            policy: PolicyName::new("gate").unwrap(),
            serving: None,
            held_back: None,
            refused: None,
            metrics: std::collections::BTreeMap::new(),
            metrics_dropped: 0,
        };
        let worker = |(generation, tenants): &(u64, &[&str])| WorkerStatus {
            class: class(),
            generation: *generation,
            pagemap_scan: true,
            stack_zeroing: true,
            counters: WorkerCounters::default(),
            policies: tenants.iter().map(policy).collect(),
        };
        let process = |generation: &u64| Process {
            role: "worker".to_owned(),
            class: Some(class()),
            generation: *generation,
            pid: 1,
            uid: 1,
            state: ProcessState::Draining,
            threads: 1,
            restarts: 0,
            ready: None,
        };
        let processes = draining.iter().map(process).collect();
        Status {
            version: "1".to_owned(),
            supervisor_pid: 1,
            processes: ProcessTable { processes, ..ProcessTable::default() },
            frontend: FrontendCounters::default(),
            workers: workers.iter().map(worker).collect(),
            untold: Vec::new(),
        }
    }

    fn left(status: &Status, without: &mut BTreeSet<(TrustClass, u64)>) -> String {
        who_may_have_it(status, &Tenant::new("acme").unwrap(), without).join("; ")
    }

    #[test]
    fn nobody_has_it_only_once_everybody_has_said_so() {
        let mut without = BTreeSet::new();
        assert_eq!(left(&status(&[(2, &["globex"])], &[]), &mut without), "", "the control");
        assert!(left(&status(&[(2, &["globex", "acme"])], &[]), &mut without).contains("generation 2"));
        for why in [UntoldWhy::NoAnswer, UntoldWhy::TooManyPolicies] {
            let mut silent = status(&[], &[]);
            silent.untold.push(Untold { class: class(), generation: 3, why });
            assert!(
                left(&silent, &mut without).contains("perhaps worker of class web, generation 3"),
                "{why:?}"
            );
        }
    }

    #[test]
    fn who_drains_may_have_it_unless_it_has_said_otherwise_before() {
        let mut without = BTreeSet::new();
        let draining = status(&[(2, &["globex"])], &[1]);
        assert!(left(&draining, &mut without).contains("generation 1, which is not done yet"));
        assert_eq!(left(&status(&[(2, &["globex"])], &[]), &mut without), "", "it has gone");
        assert_eq!(left(&status(&[(3, &["globex"])], &[2]), &mut without), "", "2 said that it was without");
    }
}
