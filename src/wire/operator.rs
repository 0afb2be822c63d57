//! Operator <-> frontend, on the operators' socket: what `portcullis status` asks and shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::control::ProcessTable;
use crate::artifact::Digest;
use crate::decision::{PolicyName, Tenant, TrustClass};

/// Largest request of an operator, bytes.
pub const OPERATOR_REQUEST_MAX: usize = 64;
/// Largest reply, bytes: ten thousand policies with their digests.
pub const OPERATOR_REPLY_MAX: usize = 16 << 20;

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorRequest {
    Status,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorReply {
    Status(Status),
    /// The peer's UID is neither 0, nor the service's, nor in `operators`.
    NotPermitted,
}

/// The running service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// The supervisor's: signals go there.
    pub supervisor_pid: i32,
    pub processes: ProcessTable,
    pub frontend: FrontendCounters,
    pub workers: Vec<WorkerStatus>,
    /// Those of which `workers` does not have everything.
    pub untold: Vec<Untold>,
}

/// A worker of which it is not known what serves there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    pub class: TrustClass,
    pub generation: u64,
    pub why: UntoldWhy,
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UntoldWhy {
    /// It did not answer in time. Nothing of it is told.
    NoAnswer,
    /// It has more policies than there is room for. Only they are missing.
    TooManyPolicies,
}

/// Counted since the frontend started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontendCounters {
    pub accepted: u64,
    pub handed_over: u64,
    /// Came back from a retiring worker and went to its successor.
    pub carried_over: u64,
    pub refused: u64,
    pub open: u64,
}

/// One worker. Long lists of policies come in several parts with the same generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub class: TrustClass,
    pub generation: u64,
    pub pagemap_scan: bool,
    pub stack_zeroing: bool,
    pub counters: WorkerCounters,
    pub policies: Vec<PolicyStatus>,
}

/// Counted since the worker started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCounters {
    pub connections: u64,
    pub allowed: u64,
    pub denied: u64,
    pub refused_deadline: u64,
    pub refused_trap: u64,
    pub refused_invalid_output: u64,
    /// The policy said itself that it could not decide.
    pub refused_policy_failed: u64,
    pub refused_overloaded: u64,
    pub refused_other: u64,
    /// Answered by the watchdog because the thread that should have was stuck.
    pub watchdog: u64,
}

/// One policy of a worker's set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    pub tenant: Tenant,
    pub policy: PolicyName,
    /// What serves; `None` if nothing does.
    pub serving: Option<Serving>,
    /// Why what is newer in the store does not serve instead, if something is.
    pub held_back: Option<String>,
    /// Why nothing serves, if nothing does.
    pub refused: Option<String>,
    /// What it has counted itself in this process, by name.
    pub metrics: BTreeMap<String, u64>,
    /// Calls of its `metric.add` that counted for nothing: too many in one decision, or of a name that it does not declare.
    pub metrics_dropped: u64,
}

/// The artifact that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Of the machine code.
    pub digest: Digest,
    pub version: u64,
    /// Of the bundle that it came in or was compiled from.
    pub bundle: Digest,
    /// The data snapshots that it reads.
    pub data: Vec<DataServing>,
}

/// A data snapshot that a policy reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataServing {
    pub data: PolicyName,
    pub version: u64,
    /// Of the bundle that it came in.
    pub bundle: Digest,
    /// Why what is newer in the store does not serve instead, if something is.
    pub held_back: Option<String>,
}
