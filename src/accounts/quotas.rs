//! What one tenant may use, as the configuration's plan says it and a worker is told.

use serde::{Deserialize, Serialize};

use super::host_function::HostFunction;

/// So much a second on average, and so much at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Units a second: requests, calls, bytes, or nanoseconds of processor time. At least 1.
    pub per_second: u64,
    /// Units at once. At least 1.
    pub burst: u64,
}

/// Everything that a plan bounds; what is `None` is not bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Questions; a batch counts as many as it has.
    pub requests: Option<Rate>,
    /// Processor time of guests, nanoseconds.
    pub cpu: Option<Rate>,
    /// Of questions' inputs.
    pub bytes_in: Option<Rate>,
    /// Of answers, as framed. Taken after the answer: who is in debt is refused the next question.
    pub bytes_out: Option<Rate>,
    /// Questions under way at once in the whole class, waiting or running.
    pub concurrent: Option<u32>,
    /// Linear memory of all live instances together, bytes.
    pub memory: Option<u64>,
    /// By function; each at most once.
    pub host_calls: Vec<(HostFunction, Rate)>,
    /// Calls of all host functions in one decision.
    pub host_calls_per_decision: Option<u32>,
    /// Instances of the class that no other tenant can take.
    pub reserved: u32,
    /// Longest a question waits for its turn, microseconds.
    pub max_wait_us: Option<u32>,
}
