//! Registry -> worker: the policies of one generation, and later which of them may not decide any more.
//!
//! The worker is started with one end of this channel, the registry gets the other from the supervisor. Before the
//! worker is sealed it takes [`FromRegistry::Data`] (each with a descriptor: a memfd with all four seals, the table) and
//! [`FromRegistry::Policy`] (each with a descriptor: a memfd with all four seals, the `.cwasm`)
//! and [`FromRegistry::Refused`] until [`FromRegistry::Complete`]. The channel stays open for the worker's life: after
//! `Complete` only [`FromRegistry::Withdraw`] may come. The worker says nothing here. The end of the channel before
//! `Complete` means that the worker cannot start; after it, nothing.

use serde::{Deserialize, Serialize};

use crate::artifact::Digest;
use crate::decision::{PolicyName, Tenant};

/// Largest message, bytes: a signed statement and names.
pub const SUPPLY_MAX: usize = 80 * 1024;

/// What the registry tells a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRegistry {
    /// Descriptor: the table, plain. `signed` is the host's statement about it ([`crate::artifact::verify_data`] checks both).
    /// Comes before every policy that reads it.
    Data {
        tenant: Tenant,
        data: PolicyName,
        signed: Vec<u8>,
        /// Why what is newer in the store does not serve instead, if something is.
        held_back: Option<String>,
    },
    /// Descriptor: the code. `signed` is the statement about it, signed with the host's key
    /// ([`crate::artifact::verify`] checks both).
    Policy {
        tenant: Tenant,
        policy: PolicyName,
        signed: Vec<u8>,
        /// Why what is newer in the store does not serve instead, if something is.
        held_back: Option<String>,
    },
    /// Nothing serves, and why: what `status` shows.
    Refused { tenant: Tenant, policy: PolicyName, why: String },
    /// Every policy of the assignment was named.
    Complete,
    /// Stops deciding at once, whatever is under way: revoked or expired.
    Withdraw { tenant: Tenant, policy: PolicyName, cwasm: Digest },
}

/// What a worker tells the registry: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRegistry {}
