//! What is signed, and how it is checked: the statement, digests, keys and signatures, and the sealed memory that
//! verified bytes live in.

mod digest;
mod statement;

pub use digest::{Digest, InvalidDigest};
pub use statement::{Architecture, Limits, SIGNED_STATEMENT_MAX, Statement, StatementError};
