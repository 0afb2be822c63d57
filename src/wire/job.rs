//! Registry <-> builder: one job, then the builder exits.
//!
//! The registry asks the supervisor for a builder of a class and gets the other end of the builder's job channel. It
//! sends one [`Job`]; the builder answers with one [`Report`] for each thing asked and exits. The end of the channel
//! without a report means that the builder died: killed by a limit, or crashed.

use serde::{Deserialize, Serialize};

use crate::artifact::{Digest, Limits};
use crate::decision::{PolicyName, Tenant};

/// Largest message, bytes.
pub const JOB_MAX: usize = 64 * 1024;

/// What one builder is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Is it a policy, does it ask for nothing but these imports, and does it decide once without a trap of its own
    /// making? Descriptors: the source, and the code that a signer compiled, both sealed. Answered by
    /// [`Report::Sound`].
    Check { tenant: Tenant, policy: PolicyName, imports: Vec<String>, limits: Limits },
    /// Compile for this host, look at it like `Check`, and keep it in the class's cache. Descriptor: the source, sealed.
    /// Answered by [`Report::Compiled`].
    Compile { tenant: Tenant, policy: PolicyName, imports: Vec<String>, limits: Limits },
    /// Give out what the cache holds under these digests, one [`Report::Recalled`] or [`Report::Lost`] each, in order,
    /// and remove from the cache whatever is none of these.
    Recall { cwasm: Vec<Digest> },
}

/// What a builder answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    Sound,
    /// Descriptor: the code, sealed, as it is in the cache now.
    Compiled {
        cwasm: Digest,
    },
    /// Descriptor: the code, sealed; it has this digest.
    Recalled {
        cwasm: Digest,
    },
    /// Not in the cache, or not whole (then it was removed, and `why` says what was wrong).
    Lost {
        cwasm: Digest,
        why: String,
        corrupt: bool,
    },
    /// The policy is no good, or the job cannot be done: what an operator needs to know.
    Refused {
        why: String,
    },
}
