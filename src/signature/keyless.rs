//! Signatures by an identity instead of a key: a certificate for a moment, vouched for by an identity provider, and a log
//! that says when. Checked offline against a trust root that the trust policy pins.

use std::fmt;
use std::sync::Arc;

use sigstore_verify::trust_root::TrustedRoot;
use sigstore_verify::types::Bundle;
use sigstore_verify::{VerificationPolicy, Verifier};

use super::{KeylessError, Signer};
use crate::artifact::Digest;

/// Whether this program checks such signatures.
pub const KEYLESS: bool = true;

/// The certificate authorities and logs that identities are taken from, fixed in the trust policy.
#[derive(Clone)]
pub struct KeylessRoot {
    verifier: Arc<Verifier>,
    json: Arc<str>,
}

impl KeylessRoot {
    /// Reads a `trusted_root.json` as the sigstore clients have it.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_json(json: &str) -> Result<Self, KeylessError> {
        let refuse = |cause: String| KeylessError::Root(cause);
        let root = TrustedRoot::from_json(json).map_err(|error| refuse(error.to_string()))?;
        let verifier = Verifier::new(&root).map_err(|error| refuse(error.to_string()))?;
        Ok(Self { verifier: Arc::new(verifier), json: json.into() })
    }

    /// Of its text.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.json.as_bytes())
    }

    /// Who signed: certificate up to the root, its place in the log, the time, and the signature over `subject` (or over
    /// a statement whose subject that is). Whether this identity may is [`crate::trust`]'s to say.
    ///
    /// # Errors
    /// When anything of it does not hold.
    pub fn who_signed(&self, bundle: &[u8], subject: &[u8]) -> Result<Signer, KeylessError> {
        let refuse = |cause: String| KeylessError::Signature(cause);
        let text = std::str::from_utf8(bundle).map_err(|error| refuse(error.to_string()))?;
        let bundle = Bundle::from_json(text).map_err(|error| refuse(error.to_string()))?;
        let found = self
            .verifier
            .verify(subject, &bundle, &VerificationPolicy::any_identity())
            .map_err(|error| refuse(error.to_string()))?;
        let whole = found.certificate_verified() && found.sct_verified() && found.tlog_verified();
        match (found.issuer(), found.identity()) {
            (Some(issuer), Some(identity)) if whole => {
                Ok(Signer::Identity { issuer: issuer.to_owned(), identity: identity.as_str().to_owned() })
            }
            _ => Err(refuse("its certificate names nobody".to_owned())),
        }
    }
}

impl PartialEq for KeylessRoot {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Eq for KeylessRoot {}

impl fmt::Debug for KeylessRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeylessRoot").finish_non_exhaustive()
    }
}
