//! The one gate to what can be loaded is a signature. For code that was compiled a moment ago, by whoever runs it here, the key
//! is one that was made for that, that nobody else knows and that is forgotten at once: it says that these are the bytes
//! that are about to run. Whether anybody else may run them is what a registry says, later and with another key.

use crate::artifact::{
    self, Architecture, Artifact, Digest, Expected, KeyError, SealedBytes, SignError, SigningKey, Statement,
    VerifyError,
};
use crate::bundle::PolicyConfig;
use crate::engine::{Metering, WASMTIME_VERSION, settings_digest};

/// Why code cannot be vouched for.
#[derive(Debug, thiserror::Error)]
pub enum VouchError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Only for code that this process has compiled, or was given to look at: of `source`, under what the manifest says.
///
/// # Errors
/// When there is no key, or the statement does not hold.
pub fn vouch(manifest: &PolicyConfig, source: Digest, code: SealedBytes) -> Result<Artifact, VouchError> {
    let key = SigningKey::generate_ed25519()?;
    let statement = Statement {
        policy: manifest.policy.clone(),
        tenant: manifest.tenant.clone(),
        version: manifest.version,
        cwasm: code.digest(),
        source,
        bundle: source,
        architecture: Architecture::host(),
        wasmtime: WASMTIME_VERSION.into(),
        engine: settings_digest(Metering::of(&manifest.limits)),
        world: manifest.world.clone(),
        imports: manifest.imports.clone(),
        limits: manifest.limits,
        metrics: manifest.metrics.clone(),
        data: manifest.data.clone(),
    };
    let signed = artifact::sign(&statement, &key)?;
    let expected = Expected { tenant: &manifest.tenant, policy: &manifest.policy, minimum_version: 0 };
    Ok(artifact::verify(code, &signed, &[key.public_key()], &expected)?)
}
