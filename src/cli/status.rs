//! `portcullis status`: what runs, what serves, what holds it apart, and what it has answered.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::operator::{OperatorError, ask_status, socket};
use super::output;
use super::terminal::{paragraph, printable, table};
use crate::wire::control::{Isolation, Process, ProcessState};
use crate::wire::operator::{PolicyStatus, Status, Untold, UntoldWhy, WorkerStatus};

/// Show the running service: processes, generations, policies, isolation, counters
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The operators' socket [default: $PORTCULLIS_OPERATOR_SOCKET or /run/portcullis/operator.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Why no status was shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum StatusError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("print the status: {0}")]
    Print(#[from] io::Error),
}

impl StatusError {
    /// 3: the service is not there, or does not answer this user.
    #[must_use]
    pub(super) fn exit_code(&self) -> u8 {
        3
    }
}

/// Asks and prints.
pub(super) fn run(args: &StatusArgs) -> Result<ExitCode, StatusError> {
    let status = ask_status(&socket(args.socket.as_deref()))?;
    let text = if args.json {
        serde_json::to_string_pretty(&status).map_err(io::Error::other)? + "\n"
    } else {
        for_people(&status)
    };
    output::text(format_args!("{text}"))?;
    Ok(ExitCode::SUCCESS)
}

fn for_people(status: &Status) -> String {
    let table_of = &status.processes;
    let isolation = match table_of.isolation {
        Isolation::DistinctUids => "each role and class has its own UID",
        Isolation::SharedUid => {
            "WEAK: all roles share one UID, since the service was started without the privilege to change it"
        }
    };
    let sealed = || table_of.processes.iter().filter_map(|process| Some((process, process.ready.as_ref()?)));
    let threads: u64 = sealed().map(|(process, _)| u64::from(process.threads)).sum();
    let landlock = sealed().map(|(_, ready)| ready.landlock_abi).min();
    let landlock = landlock.map_or(String::new(), |abi| format!(", Landlock ABI {abi}"));
    let mut text = format!(
        "portcullis {}, supervisor {}, {} reloads\n",
        status.version, status.supervisor_pid, table_of.reloads
    );
    text += &paragraph(
        "isolation:",
        &format!("{isolation}; {} processes with {threads} threads are sealed{landlock}", sealed().count()),
    );
    if let Some(error) = &table_of.last_reload_error {
        text += &paragraph("last reload refused:", &printable(error));
    }
    let front = status.frontend;
    text += &paragraph(
        "connections:",
        &format!(
            "{} open, {} accepted, {} handed over, {} carried over to a new generation, {} refused",
            front.open, front.accepted, front.handed_over, front.carried_over, front.refused
        ),
    );
    text.push('\n');
    text += &processes(&table_of.processes);
    for one in &status.workers {
        text.push('\n');
        text += &worker(one);
    }
    for one in &status.untold {
        text.push('\n');
        text += &untold(one);
    }
    text
}

fn untold(Untold { class, generation, why }: &Untold) -> String {
    let why = match why {
        UntoldWhy::NoAnswer => "DOES NOT ANSWER; what it serves and has decided is not known",
        UntoldWhy::TooManyPolicies => "has more policies than can be shown; they are left out above",
    };
    paragraph(&format!("class {class}, generation {generation}:"), why)
}

fn processes(processes: &[Process]) -> String {
    let rows: Vec<_> = processes
        .iter()
        .map(|process| {
            [
                printable(&process.role),
                process.class.as_ref().map_or("-".to_owned(), ToString::to_string),
                process.generation.to_string(),
                process.pid.to_string(),
                process.uid.to_string(),
                state(process.state).to_owned(),
                process.threads.to_string(),
                process.restarts.to_string(),
            ]
        })
        .collect();
    let head = ["ROLE", "CLASS", "GEN", "PID", "UID", "STATE", "THREADS", "RESTARTS"];
    table(0, head, &rows)
}

fn worker(worker: &WorkerStatus) -> String {
    let counters = worker.counters;
    let pagemap = if worker.pagemap_scan { "with pagemap_scan" } else { "WITHOUT pagemap_scan (slower)" };
    let zeroing = if worker.stack_zeroing { "stacks zeroed" } else { "stacks not zeroed" };
    let mut text = paragraph(
        &format!("class {}, generation {}:", worker.class, worker.generation),
        &format!("fresh instances {pagemap}, {zeroing}, {} connections", counters.connections),
    );
    text += &paragraph(
        &format!("  {} allowed, {} denied; refused:", counters.allowed, counters.denied),
        &format!(
            "{} deadline, {} trap, {} invalid output, {} failed by policies, {} overloaded, {} other; {} answered by the watchdog",
            counters.refused_deadline,
            counters.refused_trap,
            counters.refused_invalid_output,
            counters.refused_policy_failed,
            counters.refused_overloaded,
            counters.refused_other,
            counters.watchdog
        ),
    );
    if worker.policies.is_empty() {
        return text + "  no policies\n";
    }
    let rows: Vec<_> = worker.policies.iter().map(policy).collect();
    text += &table(2, ["TENANT", "POLICY", "VERSION", "DIGEST", "STATE"], &rows);
    for policy in &worker.policies {
        for (what, why) in [("refused", &policy.refused), ("held back", &policy.held_back)] {
            if let Some(why) = why {
                let first = format!("  {}/{} {what}:", policy.tenant, policy.policy);
                text += &paragraph(&first, &printable(why));
            }
        }
        for data in policy.serving.iter().flat_map(|serving| &serving.data) {
            let first = format!("  {}/{} reads:", policy.tenant, policy.policy);
            let held_back = data
                .held_back
                .as_ref()
                .map_or_else(String::new, |why| format!("; held back: {}", printable(why)));
            text += &paragraph(&first, &format!("{} version {}{held_back}", data.data, data.version));
        }
    }
    text
}

fn policy(policy: &PolicyStatus) -> [String; 5] {
    let (version, digest, state) = match &policy.serving {
        Some(serving) => {
            let state = if policy.held_back.is_some() { "last good" } else { "serving" };
            (serving.version.to_string(), serving.digest.short(), state)
        }
        None => ("-".to_owned(), "-".to_owned(), "NOT SERVING"),
    };
    [policy.tenant.to_string(), policy.policy.to_string(), version, digest, state.to_owned()]
}

fn state(state: ProcessState) -> &'static str {
    match state {
        ProcessState::Starting => "starting",
        ProcessState::Serving => "serving",
        ProcessState::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::artifact::Digest;
    use crate::decision::{PolicyName, Tenant, TrustClass};
    use crate::wire::control::{ProcessTable, Ready};
    use crate::wire::operator::{DataServing, FrontendCounters, Serving, WorkerCounters};

    #[test]
    fn everything_fits_80_columns_and_bad_news_is_there() {
        let long = "x".repeat(64);
        let process = Process {
            role: "worker".to_owned(),
            class: Some(TrustClass::new(&long).unwrap()),
            generation: 1_000_000,
            pid: 4_194_304,
            uid: 4_000_000_000,
            state: ProcessState::Draining,
            threads: 64,
            restarts: 12,
            ready: Some(Ready {
                loaded: 1,
                refused: 1,
                pagemap_scan: false,
                landlock_abi: 7,
                landlock_proven_threads: 64,
            }),
        };
        let read = DataServing {
            data: PolicyName::new(&long).unwrap(),
            version: u64::MAX,
            bundle: Digest::of(b"z"),
            held_back: Some("no signature".to_owned()),
        };
        let policy = PolicyStatus {
            tenant: Tenant::new(&long).unwrap(),
            policy: PolicyName::new(&long).unwrap(),
            serving: Some(Serving {
                digest: Digest::of(b"x"),
                version: u64::MAX,
                bundle: Digest::of(b"y"),
                data: vec![read],
            }),
            refused: None,
            held_back: Some("signature of \"jwt-gate.statement.json\": by an unknown key ".repeat(4)),
            metrics: [("cache.hits".to_owned(), u64::MAX)].into(),
            metrics_dropped: 1,
        };
        let unserved = PolicyStatus {
            tenant: Tenant::new("acme").unwrap(),
            policy: PolicyName::new("gate").unwrap(),
            serving: None,
            held_back: None,
            refused: Some("no such file".to_owned()),
            metrics: BTreeMap::new(),
            metrics_dropped: 0,
        };
        let status = Status {
            version: "0.1.0".to_owned(),
            supervisor_pid: 4_194_304,
            processes: ProcessTable {
                isolation: Isolation::SharedUid,
                reloads: 3,
                last_reload_error: Some("read \"/etc/portcullis.toml\": line 3, column 9".to_owned()),
                asked: None,
                processes: vec![process],
            },
            frontend: FrontendCounters::default(),
            workers: vec![WorkerStatus {
                class: TrustClass::new("retail").unwrap(),
                generation: 3,
                pagemap_scan: false,
                stack_zeroing: true,
                counters: WorkerCounters::default(),
                policies: vec![policy, unserved],
            }],
            untold: vec![Untold {
                class: TrustClass::new("silent").unwrap(),
                generation: 7,
                why: UntoldWhy::NoAnswer,
            }],
        };
        let text = for_people(&status);
        for line in text.lines() {
            assert!(line.chars().count() <= 80 || line.contains(&long), "{line}");
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "WEAK",
            "last reload refused:",
            "WITHOUT pagemap_scan",
            "NOT SERVING",
            "64 threads are sealed, Landlock ABI 7",
            "acme/gate refused: no",
            "held back: signature of",
            "last good",
            "class silent, generation 7: DOES NOT ANSWER",
        ] {
            assert!(words.contains(part), "no {part:?} in\n{text}");
        }
    }
}
