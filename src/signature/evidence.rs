//! What is known of a bundle once every signature on it has been checked.

use serde::{Deserialize, Serialize};

use crate::artifact::KeyId;

/// Somebody whose signature was checked and holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signer {
    /// Holder of a private key.
    Key(KeyId),
    /// Somebody an identity provider vouched for when the signature was made ("keyless").
    Identity { issuer: String, identity: String },
}

/// How a bundle was built, as a signer says: SLSA provenance v1, of it what rules can be made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    pub signer: Signer,
    /// `runDetails.builder.id`
    pub builder: String,
    /// Where the source is from, "git+https://example.test/acme/policies".
    pub repository: Option<String>,
    /// "refs/tags/v3"
    pub reference: Option<String>,
    /// The source's commit, hex.
    pub commit: Option<String>,
}

/// All that good signatures say of one bundle. Empty: nobody who is known vouches for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Each once, sorted.
    pub signers: Vec<Signer>,
    pub provenance: Vec<Provenance>,
    /// What was attached and does not hold, or is from nobody who is known, and why: for people.
    pub disregarded: Vec<String>,
}
