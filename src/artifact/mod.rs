//! What is signed, and how it is checked: the statement, digests, keys and signatures, and the sealed memory that
//! verified bytes live in.
//!
//! The one way from bytes on a disk to code in a process: [`SealedBytes::read`] them once, [`verify`] those bytes
//! against a signed statement, and load the [`Artifact`] that comes out. A changed `.cwasm` is not something the
//! engine would notice by itself, so nothing else may ever be loaded.

mod data;
mod digest;
pub mod envelope;
mod keys;
mod limits;
mod mapped;
mod sealed;
mod statement;
pub mod store;
mod verify;

pub use data::{DATA_STATEMENT, DataStatement, VerifiedData, sign_data, verify_data};
pub use digest::{Digest, InvalidDigest};
pub use keys::{Algorithm, BadSignature, InvalidKeyId, KeyError, KeyId, PublicKey, SigningKey};
pub use limits::{Ceiling, INSTANCE_SPACE, Limits, NotCounted};
pub use mapped::Mapped;
pub use sealed::{ARTIFACT_MAX, SealError, SealedBytes};
pub use statement::{Architecture, SIGNED_STATEMENT_MAX, Statement, StatementError};
pub use verify::{Artifact, Expected, SignError, VerifyError, check_signature, peek, sign, verify};
