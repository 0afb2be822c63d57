//! The rules: whose signatures, which provenance, which capabilities are enough for a tenant or a class; and what has been
//! revoked. Pure: text and [`crate::signature::Evidence`] in, a verdict out. Only the registry (and people's
//! commands) parse these files.
//!
//! ```text
//! trust.toml --[TrustPolicy::parse]--> who may vouch for what; its keys are what signatures are checked against
//! revocations.json --[Revocations::verify]--> what has stopped to count
//! evidence of a bundle --[TrustPolicy::evaluate]--> Accepted, and until when; or every Refusal
//! ```
//!
//! Everything that is left out of a trust policy is trust that is not given. The formats are in `docs/trust.md`.

mod evaluate;
mod pattern;
mod policy;
mod read;
mod refusal;
mod revocation;
mod rotate;

pub use evaluate::{Accepted, Candidate, NotSigned};
pub use pattern::Pattern;
pub use policy::{Means, TrustPolicy, Who};
pub use read::TRUST_MAX;
pub use refusal::Refusal;
pub use revocation::{REVOCATIONS_MAX, RevocationError, RevocationList, Revocations, Revoked, Revokes};
pub use rotate::{RotateError, Rotated, rotate};

/// Everything that is wrong with a trust policy, in the order of the file, one line `path:line:col: message` each.
pub use crate::document::DocumentErrors as TrustErrors;
