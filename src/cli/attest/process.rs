//! Which processes there are: what the service says of itself, and what the kernel says.
//!
//! The kernel is believed. A process that only one of the two knows is a difference, and so is a stranger that runs
//! with the UID of a role.

use std::collections::{BTreeMap, BTreeSet};

use super::group;
use super::report::{Area, Findings, Verdict};
use super::view::{self, Unseen};
use crate::cli::terminal::printable;
use crate::sandbox::Role;
use crate::wire::control::{Isolation, ProcessState, Ready};
use crate::wire::operator::Status;

/// Why nobody was seen.
const HIDDEN: &str = "/proc hides processes from this user (hidepid)";

/// One process of the service.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) role: Role,
    pub(super) class: Option<String>,
    pub(super) generation: u64,
    pub(super) pid: i32,
    /// As the service has it.
    pub(super) uid: u32,
    pub(super) state: ProcessState,
    /// What the supervisor counted when it looked, for those it looks at; 0 before.
    pub(super) threads: Option<u32>,
    pub(super) ready: Option<Ready>,
}

impl Subject {
    /// "worker retail", "frontend".
    pub(super) fn title(&self) -> String {
        match &self.class {
            Some(class) => format!("{} {class}", self.role),
            None => self.role.to_string(),
        }
    }
}

/// The processes of the service, and those that should not be there.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) subjects: Vec<Subject>,
    pub(super) findings: Findings,
}

impl Census {
    /// Whether the service and the kernel know the same processes. If not, somebody may just have been born or died.
    pub(super) fn agrees(&self) -> bool {
        !self.findings.list.iter().any(|finding| matches!(finding.verdict, Verdict::Different { .. }))
    }
}

/// A process as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    parent: i32,
    /// Real, effective, saved, filesystem.
    uids: [u32; 4],
    ended: bool,
}

/// Who there must be, by the configuration.
#[derive(Debug)]
pub(super) struct Configured {
    /// Of the roles, where each has its own; some may have no process now.
    pub(super) uids: Vec<u32>,
    /// Each must have a worker that serves. Or why they are not known.
    pub(super) classes: Result<Vec<String>, String>,
    /// Whether there must be an exporter, where that is known.
    pub(super) telemetry: Option<bool>,
    /// And a gateway.
    pub(super) gateway: Option<bool>,
}

/// Compares the service's table with `/proc`, both ways. Only the processes that the kernel, too, says are the service's
/// are looked into further: root must not be made to open what others choose.
pub(super) fn take(status: &Status, configured: &Configured) -> Census {
    let (mut listed, strange) = subjects(status);
    let mut findings = Findings::of_service();
    for (pid, role) in strange {
        let found = format!("pid {pid} has role {role:?}");
        findings.add(
            Area::Processes,
            "role",
            Verdict::different(&found, "supervisor, spawner, frontend or worker"),
        );
    }
    let subjects = match everybody() {
        // Who may not see these would not see strangers either: then nobody is missing, nor is anybody said not to be there.
        Ok(known) if hides(status.supervisor_pid) => {
            compare(status, &listed, &configured.uids, &known, true, &mut findings);
            let why = "which processes serve: /proc hides processes from this user (hidepid)";
            findings.add(Area::Processes, "processes that serve", Verdict::hidden(why));
            listed.retain(|subject| is_ours(subject.pid, status.supervisor_pid, &known));
            return Census { subjects: listed, findings };
        }
        Ok(known) => {
            only_plausible(status.supervisor_pid, &mut listed, &known, &mut findings);
            compare(status, &listed, &configured.uids, &known, false, &mut findings);
            if is_supervisor(status.supervisor_pid, &mut findings) {
                listed.retain(|subject| is_ours(subject.pid, status.supervisor_pid, &known));
                listed
            } else {
                Vec::new()
            }
        }
        Err(unseen) => {
            findings.add(Area::Processes, "all processes", Verdict::unseen(&unseen, "a list"));
            Vec::new()
        }
    };
    serving(&subjects, configured, &mut findings);
    Census { subjects, findings }
}

/// One of each role that there is one of, and a worker for each class.
fn serving(subjects: &[Subject], configured: &Configured, findings: &mut Findings) {
    let serving = |role: Role, class: Option<&str>| {
        let of_it = |subject: &&Subject| {
            subject.role == role
                && subject.class.as_deref() == class
                && subject.state == ProcessState::Serving
        };
        subjects.iter().filter(of_it).count()
    };
    for role in [Role::Supervisor, Role::Spawner, Role::Registry, Role::Frontend] {
        let count = serving(role, None);
        findings.add(Area::Processes, format!("{role}s that serve"), Verdict::compare(count, 1));
    }
    if let Some(telemetry) = configured.telemetry {
        let count = serving(Role::Exporter, None);
        let verdict = Verdict::compare(count, usize::from(telemetry));
        findings.add(Area::Processes, "exporters that serve", verdict);
    }
    if let Some(gateway) = configured.gateway {
        let count = serving(Role::Gateway, None);
        findings.add(Area::Processes, "gateways that serve", Verdict::compare(count, usize::from(gateway)));
    }
    match &configured.classes {
        Ok(classes) => {
            for class in classes {
                let verdict = match serving(Role::Worker, Some(class)) {
                    0 => Verdict::different("0", "1 or more"),
                    count => Verdict::ok(&count.to_string()),
                };
                findings.add(Area::Processes, format!("workers of class {class} that serve"), verdict);
            }
        }
        Err(why) => {
            findings.add(Area::Processes, "workers of each class that serve", Verdict::hidden(why.clone()));
        }
    }
}

/// The list is whatever the frontend says. What cannot be in it is counted, and looked at no further: processes that
/// are there twice, and more than the supervisor has children.
fn only_plausible(
    supervisor: i32,
    listed: &mut Vec<Subject>,
    known: &BTreeMap<i32, Known>,
    findings: &mut Findings,
) {
    let rows = listed.len();
    let mut seen = BTreeSet::new();
    listed.retain(|subject| seen.insert(subject.pid));
    findings.add(Area::Processes, "listed more than once", Verdict::compare(rows - listed.len(), 0));
    let children = known.values().filter(|process| process.parent == supervisor).count();
    let verdict = if rows <= children + 1 {
        Verdict::ok(&rows.to_string())
    } else {
        listed.retain(|subject| is_ours(subject.pid, supervisor, known));
        Verdict::different(&rows.to_string(), &format!("the supervisor and its {children} children"))
    };
    findings.add(Area::Processes, "processes listed", verdict);
}

/// Whether `/proc` shows this user only some processes: the first is always there.
fn hides(supervisor: i32) -> bool {
    view::status(1, 0).is_err() || matches!(view::status(supervisor, 0), Err(Unseen::Hidden(_)))
}

/// The supervisor, or a child of it by the kernel's word.
fn is_ours(pid: i32, supervisor: i32, known: &BTreeMap<i32, Known>) -> bool {
    known.get(&pid).is_some_and(|process| pid == supervisor || process.parent == supervisor)
}

/// Which process it is, is the frontend's word. Who may not see its program may not open anything else of it.
fn is_supervisor(pid: i32, findings: &mut Findings) -> bool {
    let expected = format!("portcullis-{}", Role::Supervisor);
    let verdict = match view::link(pid, "exe") {
        Ok(found) if view::program(&found).file_name().is_some_and(|name| *name == *expected) => {
            Verdict::ok(&found)
        }
        Ok(found) => Verdict::different(&found, &expected),
        Err(unseen) => Verdict::unseen(&unseen, &expected),
    };
    let is = !matches!(verdict, Verdict::Different { .. });
    findings.add(Area::Processes, "program of the supervisor", verdict);
    is
}

/// The table's processes, the supervisor first, and those whose role does not exist.
fn subjects(status: &Status) -> (Vec<Subject>, Vec<(i32, String)>) {
    let mut strange = Vec::new();
    let mut subjects = Vec::new();
    for process in &status.processes.processes {
        let Some(role) = Role::ALL.into_iter().find(|role| role.name() == process.role) else {
            strange.push((process.pid, process.role.clone()));
            continue;
        };
        let looked_at = !matches!(role, Role::Supervisor | Role::Spawner);
        subjects.push(Subject {
            role,
            class: process.class.as_ref().map(ToString::to_string),
            generation: process.generation,
            pid: process.pid,
            uid: process.uid,
            state: process.state,
            threads: looked_at.then_some(process.threads),
            ready: process.ready.clone(),
        });
    }
    let first = Role::ALL;
    subjects.sort_by_key(|subject| first.iter().position(|role| *role == subject.role));
    (subjects, strange)
}

/// Everybody whose status can be read; who is hidden (hidepid) is not there.
fn everybody() -> Result<BTreeMap<i32, Known>, Unseen> {
    let mut known = BTreeMap::new();
    for pid in view::processes()? {
        match view::status(pid, 0) {
            Ok(status) => {
                let ended = matches!(status.state, 'Z' | 'X');
                known.insert(pid, Known { parent: status.parent, uids: status.uid, ended });
            }
            // Ended since the list was made, or hidden from us.
            Err(Unseen::Gone | Unseen::Hidden(_)) => {}
            Err(odd) => return Err(odd),
        }
    }
    Ok(known)
}

fn compare(
    status: &Status,
    subjects: &[Subject],
    configured: &[u32],
    known: &BTreeMap<i32, Known>,
    hides: bool,
    findings: &mut Findings,
) {
    let supervisor = status.supervisor_pid;
    for subject in subjects {
        let expected = if subject.pid == supervisor { "a process" } else { "a child of the supervisor" };
        let verdict = match known.get(&subject.pid) {
            None if hides => Verdict::hidden(HIDDEN),
            None => Verdict::different("not there", expected),
            Some(process) if process.ended => Verdict::different("has ended", expected),
            Some(_) if subject.pid == supervisor => Verdict::ok(expected),
            Some(process) if process.parent == supervisor => Verdict::ok(expected),
            Some(process) => Verdict::different(&format!("a child of {}", process.parent), expected),
        };
        findings.add(Area::Processes, format!("{} ({})", subject.title(), subject.pid), verdict);
    }
    let listed: BTreeSet<i32> = subjects.iter().map(|subject| subject.pid).collect();
    let below = descendants(supervisor, known);
    let unlisted: Vec<i32> = below.difference(&listed).copied().collect();
    none(&unlisted, "processes below the supervisor that it does not list", hides, findings);
    // Who was made below and then left to init is not below any more, but still in there.
    if let Some(found) = known.get(&supervisor).and_then(|process| group::members(supervisor, process.parent))
    {
        let what = "processes in the service's control group that it does not list";
        match found {
            Ok(members) => {
                let strangers: Vec<i32> =
                    members.into_iter().filter(|pid| !listed.contains(pid) && !is_self(*pid)).collect();
                none(&strangers, what, hides, findings);
            }
            Err(why) => findings.add(Area::Processes, what, Verdict::hidden(why)),
        }
    }

    if status.processes.isolation == Isolation::SharedUid {
        // Everything its user runs has that UID.
        return;
    }
    // Root's is everybody's. Where the supervisor has another, that is the service's own.
    let supervisors = known.get(&supervisor).map(|process| process.uids).into_iter().flatten();
    let uids: BTreeSet<u32> = subjects
        .iter()
        .map(|subject| subject.uid)
        .chain(configured.iter().copied())
        .chain(supervisors)
        .filter(|uid| *uid != 0)
        .collect();
    let strangers: Vec<i32> = known
        .iter()
        .filter(|(pid, process)| {
            !process.ended
                && !is_self(**pid)
                && !listed.contains(pid)
                && !below.contains(pid)
                && process.uids.iter().any(|uid| uids.contains(uid))
        })
        .map(|(pid, _)| *pid)
        .collect();
    none(&strangers, "strangers with the UID of a role", hides, findings);
}

/// This one may be run by the service's own user.
fn is_self(pid: i32) -> bool {
    i32::try_from(std::process::id()) == Ok(pid)
}

fn none(pids: &[i32], what: &str, hides: bool, findings: &mut Findings) {
    if pids.is_empty() && hides {
        findings.add(Area::Processes, what, Verdict::hidden(HIDDEN));
    } else if pids.is_empty() {
        findings.add(Area::Processes, what, Verdict::compare("none", "none"));
    }
    for pid in pids {
        let name = view::text(*pid, "comm").unwrap_or_default();
        let found = format!("pid {pid} ({})", printable(name.trim_end()));
        findings.add(Area::Processes, what, Verdict::Different { found, expected: "none".to_owned() });
    }
}

/// All below `top` that live, not itself.
fn descendants(top: i32, known: &BTreeMap<i32, Known>) -> BTreeSet<i32> {
    let mut below = BTreeSet::from([top]);
    loop {
        let more: Vec<i32> = known
            .iter()
            .filter(|(pid, process)| {
                below.contains(&process.parent) && !process.ended && !below.contains(pid)
            })
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        below.extend(more);
    }
    below.remove(&top);
    below
}

#[cfg(test)]
mod tests {
    use super::super::report::Finding;
    use super::*;
    use crate::wire::control::{Process, ProcessTable};
    use crate::wire::operator::FrontendCounters;

    fn row(role: &str, pid: i32, uid: u32) -> Process {
        Process {
            role: role.to_owned(),
            class: None,
            generation: 1,
            pid,
            uid,
            state: ProcessState::Serving,
            threads: 1,
            restarts: 0,
            ready: None,
        }
    }

    fn status() -> Status {
        let rows = [("supervisor", 10, 0), ("spawner", 11, 0), ("frontend", 12, 600), ("worker", 13, 601)];
        Status {
            version: "0".to_owned(),
            supervisor_pid: 10,
            processes: ProcessTable {
                isolation: Isolation::DistinctUids,
                processes: rows.map(|(role, pid, uid)| row(role, pid, uid)).into(),
                ..ProcessTable::default()
            },
            frontend: FrontendCounters::default(),
            workers: Vec::new(),
            untold: vec![],
        }
    }

    fn machine() -> BTreeMap<i32, Known> {
        let process = |parent, uid| Known { parent, uids: [uid; 4], ended: false };
        BTreeMap::from([
            (1, process(0, 0)),
            (10, process(1, 0)),
            (11, process(10, 0)),
            (12, process(10, 600)),
            (13, process(10, 601)),
            (50, process(1, 1000)),
        ])
    }

    fn differences(machine: &BTreeMap<i32, Known>) -> Vec<String> {
        let findings = compared(machine, false);
        let different = findings.list.iter().filter_map(|finding| match &finding.verdict {
            Verdict::Different { found, .. } => Some(format!("{}: {found}", finding.check)),
            _ => None,
        });
        different.collect()
    }

    fn compared(machine: &BTreeMap<i32, Known>, hides: bool) -> Findings {
        let status = status();
        let (subjects, _) = subjects(&status);
        let mut findings = Findings::of_service();
        compare(&status, &subjects, &[602], machine, hides, &mut findings);
        findings
    }

    #[test]
    fn where_processes_are_hidden_nobody_is_said_to_be_missing_or_to_be_all() {
        let findings = compared(&BTreeMap::new(), true);
        let hidden =
            |finding: &&Finding| matches!(finding.verdict, Verdict::NotVisible { to_anybody: false, .. });
        assert_eq!(findings.list.iter().filter(hidden).count(), findings.list.len(), "{findings:?}");
        // The control: who sees everything is told that all of them are missing.
        assert_eq!(differences(&BTreeMap::new()).len(), 4);
    }

    #[test]
    fn a_stranger_with_the_supervisors_uid_is_noticed_unless_that_is_roots() {
        let mut one = machine();
        for pid in [10, 11] {
            one.get_mut(&pid).unwrap().uids = [1000; 4];
        }
        let found = differences(&one);
        assert!(
            found.len() == 1 && found[0].contains("strangers") && found[0].contains("pid 50"),
            "{found:?}"
        );
        // Who looks may do so as the service's user.
        let own = one.remove(&50).unwrap();
        one.insert(i32::try_from(std::process::id()).unwrap(), own);
        assert_eq!(differences(&one), [""; 0]);
    }

    #[test]
    fn a_machine_as_it_should_be_has_no_differences() {
        assert_eq!(differences(&machine()), [""; 0]);
    }

    #[test]
    fn whoever_only_one_side_knows_is_a_difference() {
        let mut one = machine();
        one.remove(&13);
        assert_eq!(differences(&one), ["worker (13): not there"]);

        let mut one = machine();
        one.get_mut(&13).unwrap().parent = 50;
        assert_eq!(differences(&one), ["worker (13): a child of 50"]);

        let mut one = machine();
        one.get_mut(&13).unwrap().ended = true;
        assert_eq!(differences(&one), ["worker (13): has ended"]);

        let process = |parent, uid| Known { parent, uids: [0, 0, uid, 0], ended: false };
        let mut one = machine();
        // A grandchild, under another UID.
        one.insert(i32::MAX, process(13, 1000));
        let found = differences(&one);
        assert!(found.len() == 1 && found[0].contains("does not list: pid 2147483647"), "{found:?}");

        // The saved UID is enough, and a class without a process now counts.
        for uid in [600, 601, 602] {
            let mut one = machine();
            one.insert(i32::MAX, process(1, uid));
            let found = differences(&one);
            assert!(found.len() == 1 && found[0].contains("strangers"), "{found:?}");
        }
    }

    #[test]
    fn a_role_that_does_not_exist_or_is_missing_is_noticed() {
        let mut status = status();
        status.processes.processes[1].role = "\u{1b}[2J".to_owned();
        let configured = Configured {
            uids: Vec::new(),
            classes: Ok(vec!["retail".to_owned()]),
            telemetry: None,
            gateway: None,
        };
        let census = take(&status, &configured);
        let text = format!("{:?}", census.findings.list);
        assert!(text.contains("role") && text.contains("\\\\u{1b}"), "{text}");
        let spawners =
            census.findings.list.iter().find(|finding| finding.check == "spawners that serve").unwrap();
        assert_eq!(spawners.verdict, Verdict::compare(0, 1));
        let workers = census.findings.list.iter().find(|finding| finding.check.contains("class retail"));
        assert_eq!(workers.unwrap().verdict, Verdict::different("0", "1 or more"));
        assert!(!census.agrees());
    }

    #[test]
    fn what_cannot_be_in_the_list_is_looked_at_once_or_not_at_all() {
        let plausible = |status: &Status| {
            let (mut listed, _) = subjects(status);
            let mut findings = Findings::of_service();
            only_plausible(10, &mut listed, &machine(), &mut findings);
            let different = |finding: &&Finding| matches!(finding.verdict, Verdict::Different { .. });
            (
                listed.len(),
                findings.list.iter().filter(different).map(|one| one.check.clone()).collect::<Vec<_>>(),
            )
        };
        let mut status = status();
        assert_eq!(plausible(&status), (4, vec![]));
        status.processes.processes[3].pid = 12;
        assert_eq!(plausible(&status), (3, vec!["listed more than once".to_owned()]));
        status.processes.processes[3].pid = 13;
        status.processes.processes.push(row("worker", 50, 602));
        assert_eq!(plausible(&status), (4, vec!["processes listed".to_owned()]));
    }
}
