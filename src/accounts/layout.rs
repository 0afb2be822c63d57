//! What is where in the shared memory. Atomic numbers only, so that any bytes at all are a valid value of every type here.

use std::mem::offset_of;

use super::bucket::Bucket;
use super::gauge::{Counter, Gauge};
use super::histogram::{Histogram, Sampled};
use super::host_function::HostFunction;
use super::spans::SpanRing;
use crate::decision::{Outcome, Quota, Refusal, Stage};

/// Tenants that a service may have had since it started. Memory is used only for those there are.
pub const TENANTS_MAX: usize = 1 << 15;
/// Policies of all tenants, likewise.
pub const MODULES_MAX: usize = 1 << 16;
/// More than there can be processes of one class at one time. A generation's column is its remainder.
pub const COLUMNS: usize = 16;

/// One trust class's.
#[derive(Debug)]
#[repr(C)]
pub struct ClassAccount {
    /// By stage: from receipt to the first slice, until the instance is there, in the guest, in host functions (a part of the
    /// one before), and from the guest's answer to its reply having been handed to the socket. Nanoseconds, of decisions
    /// that had an instance.
    pub stages: [Sampled; StageOf::ALL.len()],
    /// How long after their deadlines answers left that came too late.
    pub overshoot: Histogram,
    /// Making an instance in a slot that has to be mapped anew, and in one that still had this policy's image.
    pub cold_start: Histogram,
    pub snapshot_resume: Histogram,
    /// From a policy's bytes to code that can run.
    pub aot_load: Histogram,
    pub pool_hits: Counter,
    pub pool_misses: Counter,
    /// Questions for tenants that their connections may not ask for, whether there are such or not.
    pub not_permitted: Counter,
    pub columns: [Column; COLUMNS],
    pub tenants: [TenantAccount; TENANTS_MAX],
    pub modules: [ModuleAccount; MODULES_MAX],
    /// Decisions of traces that clients record, for the exporter.
    pub spans: SpanRing,
}

/// The stages that are measured, by their places in [`ClassAccount::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageOf {
    Queue,
    Instantiate,
    Run,
    Host,
    Reply,
}

impl StageOf {
    pub const ALL: [Self; 5] = [Self::Queue, Self::Instantiate, Self::Run, Self::Host, Self::Reply];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Instantiate => "instantiate",
            Self::Run => "run",
            Self::Host => "host",
            Self::Reply => "reply",
        }
    }
}

impl ClassAccount {
    #[must_use]
    pub fn stage(&self, stage: StageOf) -> Option<&Sampled> {
        self.stages.get(stage as usize)
    }

    #[must_use]
    pub fn column(&self, generation: u64) -> Option<&Column> {
        self.columns.get(place_of(generation))
    }

    /// Of every process that lives, besides the one of this generation.
    pub fn other_columns(&self, generation: u64) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(move |column| ![0, generation].contains(&column.generation.get()))
    }
}

/// What one worker process has now. Begins at zero with each, and counts for nothing once it has died.
#[derive(Debug)]
#[repr(C)]
pub struct Column {
    /// Whose; 0 if there is no such process.
    pub generation: Gauge,
    /// Questions that wait.
    pub queued: Gauge,
    /// Instances that live, and that can live at one time.
    pub instances: Gauge,
    pub instances_max: Gauge,
    pub connections: Gauge,
    pub tenants: [TenantGauges; TENANTS_MAX],
}

impl Column {
    /// Makes it a new process's, with nothing yet for the first so many slots: all that have ever been given. False if it is
    /// another's, which lives.
    #[must_use]
    pub fn begin(&self, generation: u64, slots: u32) -> bool {
        if ![0, generation].contains(&self.generation.get()) {
            return false;
        }
        self.generation.set(0);
        for gauge in [&self.queued, &self.instances, &self.instances_max, &self.connections] {
            gauge.set(0);
        }
        for gauges in self.tenants.iter().take(slots as usize) {
            gauges.concurrent.set(0);
            gauges.memory.set(0);
        }
        self.generation.set(generation);
        true
    }
}

/// Where a column's generation is in the memory, bytes: the supervisor overwrites it with zeros when the process has died.
#[must_use]
pub const fn end_of_column(generation: u64) -> usize {
    offset_of!(ClassAccount, columns) + place_of(generation) * size_of::<Column>()
}

const fn place_of(generation: u64) -> usize {
    // Less than COLUMNS, so it fits every number.
    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    let place = (generation % COLUMNS as u64) as usize;
    place
}

/// What a tenant has now in one process.
#[derive(Debug)]
#[repr(C)]
pub struct TenantGauges {
    /// Questions under way, waiting or running.
    pub concurrent: Gauge,
    /// Linear memory of live instances, bytes.
    pub memory: Gauge,
}

/// One tenant in one class.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct TenantAccount {
    pub requests: Bucket,
    /// Nanoseconds.
    pub cpu: Bucket,
    pub bytes_in: Bucket,
    pub bytes_out: Bucket,
    pub host_calls: [Bucket; HostFunction::ALL.len()],
    /// Processor time of guests, nanoseconds.
    pub cpu_ns: Counter,
    pub ingress_bytes: Counter,
    pub egress_bytes: Counter,
    pub host_called: [Counter; HostFunction::ALL.len()],
    /// Lines of its guests that were not written.
    pub log_lines_dropped: Counter,
    /// By [`OutcomeKind`].
    pub outcomes: [Counter; OutcomeKind::ALL.len()],
    /// By [`Quota`].
    pub quotas: [Counter; Quota::ALL.len()],
    /// From receipt to reply, nanoseconds, of all questions that were admitted.
    pub latency: Histogram,
}

impl TenantAccount {
    /// Counts one answer.
    pub fn count(&self, outcome: &Outcome) {
        if let Some(counter) = self.outcomes.get(OutcomeKind::of(outcome) as usize) {
            counter.add(1);
        }
        if let Outcome::Refused(Refusal::Quota { which, .. }) = outcome
            && let Some(counter) = self.quotas.get(*which as usize)
        {
            counter.add(1);
        }
    }

    #[must_use]
    pub fn outcome(&self, kind: OutcomeKind) -> u64 {
        self.outcomes.get(kind as usize).map_or(0, Counter::get)
    }

    #[must_use]
    pub fn refused_by(&self, which: Quota) -> u64 {
        self.quotas.get(which as usize).map_or(0, Counter::get)
    }
}

/// One policy of one tenant.
#[derive(Debug)]
#[repr(C)]
pub struct ModuleAccount {
    /// Instances that were asked.
    pub invocations: Counter,
}

/// Outcomes as telemetry tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    Allow,
    Deny,
    DeadlineReceipt,
    DeadlineQueue,
    DeadlineInstantiate,
    DeadlineRun,
    DeadlineReply,
    Quota,
    Trap,
    InvalidOutput,
    PolicyFailed,
    UnknownPolicy,
    UnknownTenant,
    NotPermitted,
    Overloaded,
    Unavailable,
    BadRequest,
    Cancelled,
    Revoked,
}

impl OutcomeKind {
    pub const ALL: [Self; 19] = [
        Self::Allow,
        Self::Deny,
        Self::DeadlineReceipt,
        Self::DeadlineQueue,
        Self::DeadlineInstantiate,
        Self::DeadlineRun,
        Self::DeadlineReply,
        Self::Quota,
        Self::Trap,
        Self::InvalidOutput,
        Self::PolicyFailed,
        Self::UnknownPolicy,
        Self::UnknownTenant,
        Self::NotPermitted,
        Self::Overloaded,
        Self::Unavailable,
        Self::BadRequest,
        Self::Cancelled,
        Self::Revoked,
    ];

    #[must_use]
    pub const fn of(outcome: &Outcome) -> Self {
        let refusal = match outcome {
            Outcome::Allow => return Self::Allow,
            Outcome::Deny { .. } => return Self::Deny,
            Outcome::Refused(refusal) => refusal,
        };
        match refusal {
            Refusal::Deadline(Stage::Receipt) => Self::DeadlineReceipt,
            Refusal::Deadline(Stage::Queue) => Self::DeadlineQueue,
            Refusal::Deadline(Stage::Instantiate) => Self::DeadlineInstantiate,
            Refusal::Deadline(Stage::Run) => Self::DeadlineRun,
            Refusal::Deadline(Stage::Reply) => Self::DeadlineReply,
            Refusal::Quota { .. } => Self::Quota,
            Refusal::Trap(_) => Self::Trap,
            Refusal::InvalidOutput(_) => Self::InvalidOutput,
            Refusal::PolicyFailed { .. } => Self::PolicyFailed,
            Refusal::UnknownPolicy => Self::UnknownPolicy,
            Refusal::UnknownTenant => Self::UnknownTenant,
            Refusal::NotPermitted => Self::NotPermitted,
            Refusal::Overloaded => Self::Overloaded,
            Refusal::Unavailable => Self::Unavailable,
            Refusal::BadRequest(_) => Self::BadRequest,
            Refusal::Cancelled => Self::Cancelled,
            Refusal::Revoked => Self::Revoked,
        }
    }

    /// As a label of telemetry.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::DeadlineReceipt => "deadline_receipt",
            Self::DeadlineQueue => "deadline_queue",
            Self::DeadlineInstantiate => "deadline_instantiate",
            Self::DeadlineRun => "deadline_run",
            Self::DeadlineReply => "deadline_reply",
            Self::Quota => "quota",
            Self::Trap => "trap",
            Self::InvalidOutput => "invalid_output",
            Self::PolicyFailed => "policy_failed",
            Self::UnknownPolicy => "unknown_policy",
            Self::UnknownTenant => "unknown_tenant",
            Self::NotPermitted => "not_permitted",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::BadRequest => "bad_request",
            Self::Cancelled => "cancelled",
            Self::Revoked => "revoked",
        }
    }
}

/// The registry's.
#[derive(Debug)]
#[repr(C)]
pub struct RegistryAccount {
    /// Bundles whose signatures were good, and whose were not.
    pub signatures_verified: Counter,
    pub signatures_refused: Counter,
    pub tenants: [RegistryTenantAccount; TENANTS_MAX],
}

/// One tenant's policies on their way here.
#[derive(Debug)]
#[repr(C)]
pub struct RegistryTenantAccount {
    /// Of builders that made or checked its policies, nanoseconds by the clock on the wall.
    pub compile_ns: Counter,
    pub compiled: Counter,
    pub refused: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_outcome_and_quota_has_its_place() {
        OutcomeKind::ALL.iter().enumerate().for_each(|(place, kind)| assert_eq!(*kind as usize, place));
        Quota::ALL.iter().enumerate().for_each(|(place, which)| assert_eq!(*which as usize, place));
        StageOf::ALL.iter().enumerate().for_each(|(place, stage)| assert_eq!(*stage as usize, place));
        let mut names: Vec<_> = OutcomeKind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OutcomeKind::ALL.len());
    }

    #[test]
    fn a_tenant_takes_about_a_kilobyte() {
        let bytes = size_of::<TenantAccount>() + size_of::<TenantGauges>();
        assert!(bytes <= 1024, "{bytes} bytes a tenant");
    }

    #[test]
    fn columns_end_where_their_generation_is_written() {
        let account = crate::accounts::map::tests::fresh::<ClassAccount>();
        let start = std::ptr::from_ref(&*account).addr();
        for generation in [1, 15, 16, 17, u64::MAX] {
            let column = account.column(generation).unwrap();
            assert_eq!(std::ptr::from_ref(&column.generation).addr() - start, end_of_column(generation));
        }
    }
}
