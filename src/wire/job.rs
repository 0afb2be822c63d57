//! Registry <-> builder: one job, then the builder exits.
//!
//! The registry asks the supervisor for a builder of a class and gets the other end of the builder's job channel. It
//! sends one [`Job`]; the builder answers with one [`Report`] for each thing asked and exits. The end of the channel
//! without a report means that the builder died: killed by a limit, or crashed.

use serde::{Deserialize, Serialize};

use crate::artifact::{Ceiling, Digest};
use crate::bundle::{CONFIG_MAX, PolicyConfig};

/// Largest message, bytes: a manifest and its length.
pub const JOB_MAX: usize = CONFIG_MAX + 1024;

/// What one builder is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// Is it a policy, does it ask for nothing but what its manifest says, and does it decide once without a trap of its own
    /// making? Descriptors: the source, and the code that a signer compiled, both sealed. Answered by
    /// [`Report::Sound`].
    Check {
        #[serde(with = "in_json")]
        manifest: Box<PolicyConfig>,
        /// What its tenant's policies may have at most: it is tried with what it will be served with.
        ceiling: Ceiling,
    },
    /// Compile for this host, look at it like `Check`, and keep it in the class's cache. Descriptor: the source, sealed.
    /// Answered by [`Report::Compiled`].
    Compile {
        #[serde(with = "in_json")]
        manifest: Box<PolicyConfig>,
        ceiling: Ceiling,
    },
    /// Give out what the cache holds under these digests, one [`Report::Recalled`] or [`Report::Lost`] each, in order,
    /// and remove from the cache whatever is none of these.
    Recall { cwasm: Vec<Digest> },
    /// Remove from the cache whatever is none of these, however young it is: what was a tenant's that is no more.
    /// Descriptor: their digests, one after the other, sealed. Answered by [`Report::Cleared`].
    Clear,
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
    /// Nothing else is in the cache, and the disk knows.
    Cleared,
    /// The policy is no good, or the job cannot be done: what an operator needs to know.
    Refused {
        why: String,
    },
}

/// A manifest has one form, and that is JSON: there it may leave out what is empty, which this encoding cannot.
mod in_json {
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::bundle::PolicyConfig;

    pub(super) fn serialize<S: Serializer>(manifest: &PolicyConfig, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&serde_json::to_string(manifest).map_err(S::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Box<PolicyConfig>, D::Error> {
        serde_json::from_str(<&str>::deserialize(from)?).map_err(D::Error::custom)
    }
}
