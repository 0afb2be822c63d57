//! What stands for [`KeylessRoot`] in a program that checks keys only: there is none, and nobody can make one.

use super::{KeylessError, Signer};
use crate::artifact::Digest;

/// Whether this program checks signatures by identities.
pub const KEYLESS: bool = false;

/// Never is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeylessRoot {}

impl KeylessRoot {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn from_json(_: &str) -> Result<Self, KeylessError> {
        Err(KeylessError::NotBuiltIn)
    }

    /// Has none.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match *self {}
    }

    /// Cannot be asked.
    ///
    /// # Errors
    /// None.
    pub fn who_signed(&self, _: &[u8], _: &[u8]) -> Result<Signer, KeylessError> {
        match *self {}
    }
}
