//! The one gate to [`Artifact`]: no other code makes one, and nothing but an artifact is ever loaded.

use super::envelope::{Envelope, EnvelopeError, Signature, pre_authentication};
use super::{
    ARTIFACT_MAX, Architecture, Digest, KeyId, PublicKey, SealedBytes, SigningKey, Statement, StatementError,
};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{Metering, WASMTIME_VERSION, WORLD, World, settings_digest};

/// A compiled policy whose signature and bindings have been checked, in memory that cannot change.
#[derive(Debug)]
pub struct Artifact {
    statement: Statement,
    signer: KeyId,
    bytes: SealedBytes,
}

/// What an artifact has to be, besides signed and made for this host.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub tenant: &'a Tenant,
    pub policy: &'a PolicyName,
    /// The lowest version that may replace what is known already; 0 where nothing is.
    pub minimum_version: u64,
}

/// Why an artifact is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("artifact is {len} bytes long, at most {ARTIFACT_MAX} are loaded")]
    ArtifactTooLong { len: usize },
    #[error("signed statement {0}")]
    Envelope(#[from] EnvelopeError),
    #[error("signed statement has no signature; sign it with `portcullis policy sign`")]
    Unsigned,
    #[error(
        "signed statement is signed by {}, which is not trusted here; add that public key or sign with a trusted key",
        key_list(.signers)
    )]
    UnknownKey { signers: Vec<String> },
    #[error("signature by key {key} does not match the statement: one of them was changed after signing")]
    Signature { key: KeyId },
    #[error("{0}")]
    Statement(#[from] StatementError),
    #[error("statement is for tenant \"{found}\", expected \"{expected}\"")]
    Tenant { found: Tenant, expected: Tenant },
    #[error("statement is for policy \"{found}\", expected \"{expected}\"")]
    Policy { found: PolicyName, expected: PolicyName },
    #[error("statement is for data \"{found}\", expected \"{expected}\"")]
    Data { found: PolicyName, expected: PolicyName },
    #[error(
        "statement has version {found}, at least {minimum} is needed: older versions are not loaded again"
    )]
    Version { found: u64, minimum: u64 },
    #[error("artifact is compiled for {found:?}, this host is {host:?}; build it on such a host")]
    Architecture { found: Architecture, host: Architecture },
    #[error(
        "artifact is compiled with wasmtime {found:?}, this is {WASMTIME_VERSION}; build and sign it again"
    )]
    Wasmtime { found: String },
    #[error(
        "artifact is compiled with engine settings {found}, these are {expected}; build and sign it again"
    )]
    Engine { found: Digest, expected: Digest },
    #[error("policy implements world {found:?}, which is not served; build it against {WORLD:?}")]
    World { found: String },
    #[error("artifact has digest {found}, the statement is about {expected}: it was changed after signing")]
    Digest { found: Digest, expected: Digest },
}

/// A statement could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("sign statement: {0}")]
    Encode(#[source] serde_json::Error),
    #[error("sign statement: the result {0}")]
    Envelope(#[from] EnvelopeError),
}

/// Signs a statement: the bytes of the `.statement.json` that belongs to a `.cwasm`.
///
/// # Errors
/// When the statement is too long to be read again.
pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    let payload = serde_json::to_vec(statement).map_err(SignError::Encode)?;
    let bytes = key.sign(&pre_authentication(&payload));
    let signature = Signature { key: key.public_key().id().to_string(), bytes };
    let signed = Envelope { payload, signatures: vec![signature] }.to_bytes()?;
    Envelope::from_bytes(&signed)?;
    Ok(signed)
}

/// Checks that `bytes` are what a trusted key says they are, for this tenant, this policy and this host.
///
/// Cheap checks that need no trust come first, then the signature, and only then is anything read out of the statement.
///
/// # Errors
/// One variant per check; the first that fails.
pub fn verify(
    bytes: SealedBytes,
    signed_statement: &[u8],
    keys: &[PublicKey],
    expected: &Expected<'_>,
) -> Result<Artifact, VerifyError> {
    if bytes.len() > ARTIFACT_MAX {
        return Err(VerifyError::ArtifactTooLong { len: bytes.len() });
    }
    let envelope = Envelope::from_bytes(signed_statement)?;
    let signer = check_signature(&envelope, keys)?;
    let statement = Statement::from_payload(&envelope.payload)?;
    check_bindings(&statement, &bytes, expected)?;
    Ok(Artifact { statement, signer, bytes })
}

/// Reads a statement without checking anything, for people to look at. Nothing may be decided by it.
///
/// # Errors
/// When the payload is not a statement.
pub fn peek(envelope: &Envelope) -> Result<Statement, StatementError> {
    Statement::from_payload(&envelope.payload)
}

/// Finds the trusted key whose signature of the payload is good.
///
/// One good signature by one trusted key is enough; a bad one by a trusted key is a refusal only if no other is good.
///
/// # Errors
/// When there is no signature, none by a trusted key, or none of those is good.
pub fn check_signature(envelope: &Envelope, keys: &[PublicKey]) -> Result<KeyId, VerifyError> {
    if envelope.signatures.is_empty() {
        return Err(VerifyError::Unsigned);
    }
    let message = pre_authentication(&envelope.payload);
    let mut bad = None;
    for signature in &envelope.signatures {
        let Some(key) = keys.iter().find(|key| key.id().as_str() == signature.key) else { continue };
        match key.verify(&message, &signature.bytes) {
            Ok(()) => return Ok(key.id()),
            Err(_) => bad = Some(key.id()),
        }
    }
    Err(match bad {
        Some(key) => VerifyError::Signature { key },
        None => VerifyError::UnknownKey {
            signers: envelope.signatures.iter().map(|signature| signature.key.clone()).collect(),
        },
    })
}

fn check_bindings(
    statement: &Statement,
    bytes: &SealedBytes,
    expected: &Expected<'_>,
) -> Result<(), VerifyError> {
    if statement.tenant != *expected.tenant {
        let (found, expected) = (statement.tenant.clone(), expected.tenant.clone());
        return Err(VerifyError::Tenant { found, expected });
    }
    if statement.policy != *expected.policy {
        let (found, expected) = (statement.policy.clone(), expected.policy.clone());
        return Err(VerifyError::Policy { found, expected });
    }
    if statement.version < expected.minimum_version {
        return Err(VerifyError::Version { found: statement.version, minimum: expected.minimum_version });
    }
    let host = Architecture::host();
    if statement.architecture != host {
        return Err(VerifyError::Architecture { found: statement.architecture, host });
    }
    if statement.wasmtime != WASMTIME_VERSION {
        return Err(VerifyError::Wasmtime { found: statement.wasmtime.clone() });
    }
    let settings = settings_digest(Metering::of(&statement.limits));
    if statement.engine != settings {
        return Err(VerifyError::Engine { found: statement.engine, expected: settings });
    }
    if World::named(&statement.world).is_none() {
        return Err(VerifyError::World { found: statement.world.clone() });
    }
    if statement.cwasm != bytes.digest() {
        return Err(VerifyError::Digest { found: bytes.digest(), expected: statement.cwasm });
    }
    Ok(())
}

impl Artifact {
    #[must_use]
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The trusted key whose signature was good.
    #[must_use]
    pub fn signer(&self) -> &KeyId {
        &self.signer
    }

    /// The compiled policy: the only bytes that may be deserialized.
    #[must_use]
    pub fn bytes(&self) -> &SealedBytes {
        &self.bytes
    }

    #[must_use]
    pub fn digest(&self) -> Digest {
        self.bytes.digest()
    }
}

fn key_list(keys: &[String]) -> String {
    let shown = keys.iter().map(|key| format!("key {:?}", key.chars().take(64).collect::<String>()));
    shown.collect::<Vec<_>>().join(", ")
}
