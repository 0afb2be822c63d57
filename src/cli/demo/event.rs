//! What happens in the demo, as data: one line of JSON each, or what [`super::show`] makes of it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::artifact::Digest;
use crate::decision::{DecisionId, Timing};
use crate::wire::control::Isolation;

/// One thing that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    Start {
        version: &'static str,
        dir: PathBuf,
        /// The UID the demo was started with.
        uid: u32,
        /// Of the key that signs all policies.
        key_id: String,
    },
    /// A policy was built, signed and put into the store.
    Policy(Signed),
    /// The service says that it serves.
    Ready(Started),
    Connected {
        tenant: &'static str,
        class: &'static str,
        micros: u64,
    },
    Decision(Answered),
    Tampered(Tampered),
    Burst(Burst),
    Processes {
        processes: Vec<Process>,
        isolation: Isolation,
    },
    Summary(Summary),
    Keeping(Keeping),
    Stopped {
        /// Removed.
        dir: PathBuf,
    },
}

impl Event {
    /// What about it is not as expected.
    pub(super) fn unexpected(&self) -> Vec<&str> {
        let found: Vec<&Unexpected> = match self {
            Self::Decision(answered) => vec![&answered.unexpected],
            Self::Tampered(tampered) => vec![&tampered.unexpected],
            Self::Burst(burst) => vec![&burst.unexpected],
            Self::Processes { processes, .. } => {
                processes.iter().map(|process| &process.unexpected).collect()
            }
            Self::Start { .. }
            | Self::Policy(_)
            | Self::Ready(_)
            | Self::Connected { .. }
            | Self::Summary(_)
            | Self::Keeping(_)
            | Self::Stopped { .. } => Vec::new(),
        };
        found.into_iter().flat_map(|unexpected| &unexpected.0).map(String::as_str).collect()
    }
}

/// What came otherwise than it should have, in words. Empty is good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Unexpected(pub(super) Vec<String>);

impl Unexpected {
    /// The complaints whose condition does not hold.
    pub(super) fn where_not<const N: usize>(expectations: [(bool, &str); N]) -> Self {
        let complaints = expectations.into_iter().filter(|(holds, _)| !holds);
        Self(complaints.map(|(_, complaint)| complaint.to_owned()).collect())
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Signed {
    pub(super) tenant: &'static str,
    pub(super) policy: &'static str,
    pub(super) version: u64,
    /// What was signed.
    pub(super) bundle: Digest,
    /// Of the machine code; of the component it was built from.
    pub(super) digest: Digest,
    pub(super) source: Digest,
    /// Of machine code.
    pub(super) bytes: usize,
    pub(super) build_micros: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Started {
    pub(super) supervisor_pid: u32,
    /// From starting the supervisor to its word that everything serves.
    pub(super) micros: u64,
    pub(super) socket: PathBuf,
}

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ending {
    Allowed,
    Denied,
    TimedOut,
    Trapped,
    /// Refused for another reason.
    Refused,
    /// The client has none: the gate stays down.
    NoAnswer,
}

/// One question and its answer.
#[derive(Debug, Serialize)]
pub(super) struct Answered {
    pub(super) outcome: Ending,
    pub(super) expected: Ending,
    pub(super) tenant: &'static str,
    pub(super) class: &'static str,
    pub(super) policy: &'static str,
    pub(super) question: &'static str,
    /// Of the policy that decided.
    pub(super) digest: Option<Digest>,
    /// What the service calls this decision.
    pub(super) id: Option<DecisionId>,
    pub(super) status: Option<u16>,
    /// The policy's, or the service's; for what is allowed, what the proxy is told to set.
    pub(super) reason: String,
    /// From asking to having the answer, as the client sees it.
    pub(super) micros: u64,
    /// What the service says of it.
    pub(super) timing: Option<Timing>,
    pub(super) unexpected: Unexpected,
}

/// A stored policy with one byte changed, after a reload.
#[derive(Debug, Serialize)]
pub(super) struct Tampered {
    pub(super) tenant: &'static str,
    pub(super) class: &'static str,
    pub(super) policy: &'static str,
    /// Which byte of the file.
    pub(super) byte: usize,
    /// Of the file as it lies in the store now.
    pub(super) stored: Digest,
    /// Why the worker would not have it.
    pub(super) refused: Option<String>,
    /// What serves instead.
    pub(super) serving: Option<Digest>,
    pub(super) generation: Option<u64>,
    /// From the signal to the new generation.
    pub(super) reload_micros: u64,
    pub(super) unexpected: Unexpected,
}

/// Many questions, one after the other on each connection.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Burst {
    pub(super) connections: usize,
    pub(super) decisions: u64,
    pub(super) micros: u64,
    pub(super) per_second: u64,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) unexpected: Unexpected,
}

/// One process as `/proc` shows it. Texts are the kernel's own.
#[derive(Debug, Serialize)]
pub(super) struct Process {
    pub(super) role: String,
    pub(super) class: Option<String>,
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) cap_eff: String,
    pub(super) cap_bnd: String,
    /// The lowest of all threads.
    pub(super) no_new_privs: u32,
    pub(super) seccomp: u32,
    /// Filters in force, inherited ones included; the lowest of all threads.
    pub(super) seccomp_filters: u32,
    pub(super) threads: usize,
    /// Threads whose `open` failed under it, and the kernel's ABI; `/proc` does not show Landlock.
    pub(super) landlock_proven_threads: Option<u32>,
    pub(super) landlock_abi: Option<u32>,
    /// `None` where this user may not see them.
    pub(super) open_files: Option<usize>,
    pub(super) unexpected: Unexpected,
}

#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) ok: bool,
    pub(super) decisions: u64,
    /// How much was not as expected.
    pub(super) unexpected: usize,
    pub(super) isolation: Isolation,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
}

impl Summary {
    pub(super) fn new(decisions: u64, unexpected: usize, isolation: Isolation, burst: &Burst) -> Self {
        let (p50_ns, p99_ns) = (burst.p50_ns, burst.p99_ns);
        Self { ok: unexpected == 0, decisions, unexpected, isolation, p50_ns, p99_ns }
    }
}

/// How to ask the service that is left running.
#[derive(Debug, Serialize)]
pub(super) struct Keeping {
    pub(super) socket: PathBuf,
    pub(super) operator_socket: PathBuf,
    pub(super) log: PathBuf,
    /// Lines for a shell.
    pub(super) examples: Vec<String>,
}

/// Whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
