//! What a signature says: these bytes are that policy, for that tenant, built this way.

use serde::{Deserialize, Serialize};

use super::{Digest, Limits};
use crate::decision::{PolicyName, Tenant};

/// Largest signed statement that is read, in bytes.
pub const SIGNED_STATEMENT_MAX: usize = 64 * 1024;

/// The statement, version 0. Its JSON is the payload that is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    pub policy: PolicyName,
    pub tenant: Tenant,
    /// Grows with every release of a policy; a lower one never replaces a higher one.
    pub version: u64,
    /// Of the exact `.cwasm` bytes.
    pub cwasm: Digest,
    /// Of the component it was compiled from, as its author built it.
    pub source: Digest,
    /// Of the bundle that it came in, or that the source it was compiled from came in.
    pub bundle: Digest,
    pub architecture: Architecture,
    /// In full, "48.0.8": wasmtime itself compares only the major version.
    pub wasmtime: String,
    /// [`crate::engine::settings_digest`] of the engine it was compiled for.
    pub engine: Digest,
    /// The WIT world, "portcullis:policy@1.0.0".
    pub world: String,
    /// Host interfaces it imports, sorted: "clock", "data", "log", "metric", "random".
    pub imports: Vec<String>,
    pub limits: Limits,
    /// Counters it may add to, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// Data snapshots of its tenant that it may read, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<String>,
}

impl Statement {
    /// Reads a payload. Only [`super::verify`] and [`super::peek`] may, and only one of them vouches for it.
    ///
    /// # Errors
    /// When it is too long or not a statement.
    pub(super) fn from_payload(payload: &[u8]) -> Result<Self, StatementError> {
        if payload.len() > SIGNED_STATEMENT_MAX {
            return Err(StatementError::TooLong(payload.len()));
        }
        Ok(serde_json::from_slice(payload)?)
    }
}

/// What the machine code is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// The one this process runs on.
    #[must_use]
    pub const fn host() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self::X86_64;
        #[cfg(target_arch = "aarch64")]
        return Self::Aarch64;
    }
}

/// A statement that is not one.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("statement is {0} bytes long, at most {SIGNED_STATEMENT_MAX} are read")]
    TooLong(usize),
    #[error("statement is not what it should be: {0}")]
    Malformed(#[from] serde_json::Error),
}
