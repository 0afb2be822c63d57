//! Supervisor <-> each child. The supervisor decodes the small enums here and nothing else that a child wrote.

use serde::{Deserialize, Serialize};

use crate::accounts::Quotas;
use crate::artifact::Ceiling;
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::otlp::Collector;

/// Largest control message, bytes.
pub const CONTROL_MAX: usize = 64 * 1024;
/// Largest assignment, bytes: 10,000 tenants with their policies.
pub const ASSIGNMENT_MAX: usize = 64 << 20;

/// The descriptors every child is started with, besides 0 (/dev/null), 1 and 2 (the log).
pub mod fd {
    /// SOCK_SEQPACKET to the supervisor.
    pub const CONTROL: i32 = 3;
    /// Sealed memfd with the postcard of the role's assignment.
    pub const ASSIGNMENT: i32 = 4;
    /// Frontend: the socket clients connect to. Worker: SOCK_SEQPACKET to the frontend. Builder: SOCK_SEQPACKET to the
    /// registry (see [`super::super::job`]). Registry: nothing. Exporter: the Unix socket that scrapers connect to.
    pub const FIRST: i32 = 5;
    /// Frontend: the socket operators connect to. Worker: SOCK_SEQPACKET from the registry (see [`super::super::supply`]).
    /// Exporter: the TCP socket that scrapers connect to, where there is one.
    pub const SECOND: i32 = 6;
    /// Worker: its class's [`crate::accounts`], to be written. Registry: its own.
    pub const ACCOUNTS: i32 = 7;
    /// Gateway: the first of its listeners' sockets; the others follow, in the order of its assignment, up to
    /// [`super::super::gateway::LISTENERS_MAX`]. Its [`FIRST`] is SOCK_SEQPACKET to the frontend (see [`super::super::gateway`]).
    pub const GATEWAY_FIRST: i32 = 6;
    /// The last that may be one's.
    pub const GATEWAY_LAST: i32 = 21;
}

/// What the supervisor tells a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToChild {
    /// The witness is satisfied: serve.
    Serve,
    /// Answer with [`FromChild::Pong`], if those who do the work still do it.
    Ping { nonce: u64 },
    /// Finish what was begun, take nothing new, exit 0.
    Drain,
    /// Frontend only, with the descriptor of a channel to the worker: from now on this generation serves the class.
    /// An older generation of the same class is to be drained, in order.
    Route { class: TrustClass, generation: u64 },
    /// Frontend and exporter: the process table and the configuration's state as `status` shows them.
    Processes(ProcessTable),
    /// After a reload. Frontend: who may ask for whom; descriptor: a sealed memfd with a [`FrontendAssignment`].
    /// Registry: survey again; descriptor: a sealed memfd with a [`RegistryAssignment`]. It answers with
    /// [`FromChild::Surveyed`], and if that refuses, it stays with the assignment it had. Exporter: whom there is to tell
    /// of; descriptor: a sealed memfd with an [`ExporterAssignment`].
    Reassign,
    /// Registry only, with the descriptor of its end of a worker's supply channel ([`super::supply`]): what is active for
    /// this class goes there now, also while a survey is under way, and what is withdrawn later.
    Supply { class: TrustClass, generation: u64 },
    /// Registry only, with the descriptor of its end of the job channel ([`super::job`]): the builder that it asked for.
    Builder { serial: u64 },
    /// Registry only: there is no builder for this serial, or it did not end well (then the job channel's end may be seen
    /// before this), and why.
    NoBuilder { serial: u64, why: String },
    /// Exporter only, before it is sealed: an account to be read, as the descriptor; without a class, the registry's. One for
    /// each of [`ExporterAssignment::classes`], in order, and then the registry's.
    Accounts { class: Option<TrustClass> },
    /// Frontend only, with the descriptor of its end of a gateway's channel ([`super::gateway`]): what comes there are clients,
    /// if the kernel says that this UID made their sockets.
    Visits { uid: u32, generation: u64 },
}

/// What a child tells the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromChild {
    /// Sealed; waits for [`ToChild::Serve`].
    Ready(Ready),
    Pong {
        nonce: u64,
    },
    /// Worker: this process has lived or decided as much as its class allows; start another.
    Renew,
    /// Cannot start, and why. The child exits after it.
    Failed {
        why: String,
    },
    /// Registry: done with looking at everything, once after [`ToChild::Serve`] and once after each
    /// [`ToChild::Reassign`]. What is wrong with one policy is no refusal; a trust policy or a state that is wrong is.
    Surveyed {
        /// What workers check statements with: the host's public key, PEM.
        host_key: String,
        /// Nothing changed, and why.
        refused: Option<String>,
    },
    /// Registry: wants a builder of this class. Each `serial` is larger than all before; answered with
    /// [`ToChild::Builder`] or [`ToChild::NoBuilder`], maybe after others have ended.
    Build {
        serial: u64,
        class: TrustClass,
    },
    /// Frontend: it hears the gateway of that generation no more, for what that one did or because it cannot.
    GatewayCut {
        generation: u64,
    },
    /// Registry: something was revoked or has expired, so that a survey would say something else now. The supervisor
    /// sends [`ToChild::Reassign`] of its own accord.
    Changed,
}

/// What a sealed child says of itself. How many threads it has is also looked at from outside; Landlock cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Policies it loaded and policies it refused (workers).
    pub loaded: u32,
    pub refused: u32,
    /// Whether fresh instances are reset by PAGEMAP_SCAN (workers).
    pub pagemap_scan: bool,
    /// Landlock ABI of the kernel, and whether each thread's `open` failed under it.
    pub landlock_abi: u32,
    pub landlock_proven_threads: u32,
}

/// What a frontend needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendAssignment {
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    pub tenants: Vec<TenantGrant>,
    /// UIDs besides 0 and the service's own that may ask for the status.
    pub operators: Vec<u32>,
    /// From accept to a complete Hello, milliseconds.
    pub hello_timeout_ms: u32,
    pub max_connections: u32,
    pub max_connections_per_uid: u32,
    pub classes: Vec<ClassSeats>,
}

/// How many connections a class's worker takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassSeats {
    pub class: TrustClass,
    pub connections: u32,
}

/// Who may ask for one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantGrant {
    pub tenant: Tenant,
    pub class: TrustClass,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
}

/// What a worker needs to know. Fixed for its life: another set means another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerAssignment {
    pub class: TrustClass,
    pub generation: u64,
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// The host's public key, PEM (SubjectPublicKeyInfo): what the registry signs statements with.
    pub host_key: String,
    pub tenants: Vec<TenantAssignment>,
    /// How many slots of the accounts have been given, to whomever.
    pub slots: u32,
    pub limits: ClassLimits,
}

/// What the registry needs to know; a reload makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAssignment {
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// Where bundles are dropped: `<tenant>/<policy>/` or `<tenant>/<policy>.tar`. Not to be trusted.
    pub store: String,
    /// The registry's own directory, mode 0700.
    pub state: String,
    pub trust: TrustText,
    /// Sorted by name.
    pub tenants: Vec<RegistryTenant>,
    pub classes: Vec<RegistryClass>,
    /// Versions before the active one that are kept of each policy.
    pub keep_previous: u32,
    /// Keys that open what is confidential, as their file has them.
    pub secret: Option<SecretText>,
    /// Tenants whose names are used up: nothing of theirs is kept any longer. Sorted by name.
    pub removed: Vec<Tenant>,
}

/// A file of keys that nobody else is to see: shown nowhere, and gone from memory with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretText(pub String);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// The trust policy as its file had it when the configuration was read. Only the registry parses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustText {
    /// For messages.
    pub path: String,
    pub text: String,
}

/// One tenant, with what is to decide for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryTenant {
    pub tenant: Tenant,
    /// Its place in the registry's accounts.
    pub slot: u32,
    pub class: TrustClass,
    pub policies: Vec<PolicyName>,
    /// What they may have at most: the class's, and its own.
    pub ceiling: Ceiling,
    /// Data snapshots that its policies may read. No name is also a policy's.
    pub data: Vec<PolicyName>,
}

/// What a class grants a policy at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryClass {
    pub class: TrustClass,
    /// Largest linear memory of one instance, bytes.
    pub memory: u32,
}

/// What a builder needs to know: it does one job and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderAssignment {
    pub class: TrustClass,
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// The class's own directory, mode 0700, which builders alone read and write.
    pub cache: String,
    /// Largest linear memory of one instance of this class, bytes.
    pub memory: u32,
    /// What it was started with, for its messages: the kernel holds it to that.
    pub limits: BuildLimits,
}

/// What one builder may use. It is killed for more, and harms nobody by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLimits {
    /// Processor time, seconds: RLIMIT_CPU.
    pub cpu: u32,
    /// Memory of its own, bytes: RLIMIT_DATA.
    pub memory: u64,
    /// Of one file or memfd, bytes: RLIMIT_FSIZE.
    pub output: u64,
}

/// One tenant of a worker's class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantAssignment {
    pub tenant: Tenant,
    /// Its place in the class's accounts.
    pub slot: u32,
    pub policies: Vec<PolicyName>,
    /// Their places there, in the same order.
    pub modules: Vec<u32>,
    pub quotas: Quotas,
    /// Share of the processor when others want it too, 1 to 1000.
    pub weight: u32,
    /// Longest deadline, microseconds.
    pub max_deadline_us: u32,
    /// Where the client sets none, microseconds.
    pub default_deadline_us: u32,
    /// What its policies may have at most: its class's, and its own.
    pub ceiling: Ceiling,
}

/// What one class may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassLimits {
    /// Threads that run guests; at least 1, no more than the machine has cores.
    pub threads: u32,
    /// Largest linear memory of one instance, bytes.
    pub memory: u32,
    /// Instances at the same time.
    pub instances: u32,
    /// Requests that wait or run, in all and of one connection.
    pub queue: u32,
    pub pipeline: u32,
    pub connections: u32,
    /// Zero each fiber stack before it is used again (about 1 us a decision).
    pub stack_zeroing: bool,
    /// Ask for a successor after this many decisions or milliseconds; 0 means never.
    pub renew_after_decisions: u64,
    pub renew_after_ms: u64,
}

/// The processes as the supervisor sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessTable {
    pub isolation: Isolation,
    /// How the last reload ended: counted from 0 (the start), with the error if it was refused.
    pub reloads: u64,
    pub last_reload_error: Option<String>,
    /// The last of them that somebody asked for; the others are the registry's.
    pub asked: Option<Box<AskedReload>>,
    pub processes: Vec<Process>,
}

/// A reload that somebody asked for and that ended: by when it began, who asked knows whether it is theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedReload {
    /// Which it was, counted in [`ProcessTable::reloads`].
    pub number: u64,
    /// Before the first byte of the configuration was read; nanoseconds of CLOCK_MONOTONIC.
    pub began_ns: u64,
    /// Why it was refused, or why not everything follows, if so.
    pub error: Option<String>,
    /// Whether what was read is in force. With an error it is so for whoever does not stay behind.
    pub adopted: bool,
    /// Classes that would not start with it, and go on with what they had.
    pub behind: Vec<TrustClass>,
}

/// How far apart the roles are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// Each role and class has its own UID.
    DistinctUids,
    /// Started without the privilege to change UIDs: all share the caller's.
    #[default]
    SharedUid,
}

/// One process of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub role: String,
    pub class: Option<TrustClass>,
    pub generation: u64,
    pub pid: i32,
    pub uid: u32,
    pub state: ProcessState,
    /// What the witness read of it: how many threads, all of them sealed.
    pub threads: u32,
    pub restarts: u32,
    pub ready: Option<Ready>,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessState {
    Starting,
    Serving,
    Draining,
}

/// What the exporter needs to know; a reload makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExporterAssignment {
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    /// A TCP socket comes besides the Unix one.
    pub tcp: bool,
    /// Tenants with series of their own, at most; what is beyond is summed up as `other`.
    pub max_tenants: u32,
    /// Where spans of decisions go, if anywhere.
    pub otlp: Option<Collector>,
    /// Sorted by name.
    pub classes: Vec<TrustClass>,
    /// Sorted by name.
    pub tenants: Vec<ExporterTenant>,
}

/// A tenant as telemetry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExporterTenant {
    pub tenant: Tenant,
    pub class: TrustClass,
    /// Where its account is in its class's, and in the registry's.
    pub slot: u32,
    /// Its policies, and where theirs are.
    pub modules: Vec<(PolicyName, u32)>,
}
