//! What a host says of a data snapshot, and the one way to data that policies may read.

use serde::{Deserialize, Serialize};

use super::envelope::{Envelope, Kind, Signature, pre_authentication_of};
use super::{
    Digest, KeyId, PublicKey, SIGNED_STATEMENT_MAX, SealedBytes, SignError, SigningKey, VerifyError,
};
use crate::decision::{PolicyName, Tenant};

/// A host's statement about data. The type is part of what is signed, so neither kind of statement can pass for the other.
pub const DATA_STATEMENT: Kind =
    Kind { payload_type: "application/vnd.portcullis.data-statement.v1+json", longest: SIGNED_STATEMENT_MAX };

/// The statement: these bytes are that snapshot, for that tenant's policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataStatement {
    pub data: PolicyName,
    pub tenant: Tenant,
    pub version: u64,
    /// Of the bundle that it came in.
    pub bundle: Digest,
    /// Of the plain table, as it is mapped.
    pub table: Digest,
}

/// A snapshot whose signature and digest have been checked, in memory that cannot change.
#[derive(Debug)]
pub struct VerifiedData {
    statement: DataStatement,
    bytes: SealedBytes,
}

/// Signs a statement.
///
/// # Errors
/// When the statement is too long to be read again.
pub fn sign_data(statement: &DataStatement, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    let payload = serde_json::to_vec(statement).map_err(SignError::Encode)?;
    let bytes = key.sign(&pre_authentication_of(DATA_STATEMENT.payload_type, &payload));
    let signature = Signature { key: key.public_key().id().to_string(), bytes };
    let signed = Envelope { payload, signatures: vec![signature] }.write(DATA_STATEMENT)?;
    Envelope::read(DATA_STATEMENT, &signed)?;
    Ok(signed)
}

/// Checks that `bytes` are what this host's key says they are, for this tenant and under this name.
///
/// # Errors
/// One variant per check; the first that fails.
pub fn verify_data(
    bytes: SealedBytes,
    signed: &[u8],
    keys: &[PublicKey],
    (tenant, name): (&Tenant, &PolicyName),
) -> Result<VerifiedData, VerifyError> {
    let envelope = Envelope::read(DATA_STATEMENT, signed)?;
    if envelope.signed_by(DATA_STATEMENT, keys).is_empty() {
        let claimed = |key: &KeyId| envelope.signatures.iter().any(|signature| signature.key == key.as_str());
        return Err(match keys.iter().map(PublicKey::id).find(claimed) {
            Some(key) => VerifyError::Signature { key },
            None => VerifyError::UnknownKey {
                signers: envelope.signatures.into_iter().map(|signature| signature.key).collect(),
            },
        });
    }
    let statement: DataStatement =
        serde_json::from_slice(&envelope.payload).map_err(super::StatementError::Malformed)?;
    if statement.tenant != *tenant {
        return Err(VerifyError::Tenant { found: statement.tenant, expected: tenant.clone() });
    }
    if statement.data != *name {
        return Err(VerifyError::Data { found: statement.data, expected: name.clone() });
    }
    if statement.table != bytes.digest() {
        return Err(VerifyError::Digest { found: bytes.digest(), expected: statement.table });
    }
    Ok(VerifiedData { statement, bytes })
}

impl VerifiedData {
    #[must_use]
    pub fn statement(&self) -> &DataStatement {
        &self.statement
    }

    /// The table, to be mapped.
    #[must_use]
    pub fn bytes(&self) -> &SealedBytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Architecture, Limits, Statement, sign};

    fn statement() -> DataStatement {
        DataStatement {
            data: PolicyName::new("prices").unwrap(),
            tenant: Tenant::new("acme").unwrap(),
            version: 3,
            bundle: Digest::of(b"bundle"),
            table: Digest::of(b"table"),
        }
    }

    #[test]
    fn data_is_taken_only_as_what_this_host_says_it_is() {
        let (key, other) = (SigningKey::generate_ed25519().unwrap(), SigningKey::generate_ed25519().unwrap());
        let signed = sign_data(&statement(), &key).unwrap();
        let verify = |signed: &[u8], bytes: &[u8], key: &SigningKey, tenant: &str, name: &str| {
            let about = (&Tenant::new(tenant).unwrap(), &PolicyName::new(name).unwrap());
            verify_data(SealedBytes::of(bytes).unwrap(), signed, &[key.public_key()], about)
        };
        let good = verify(&signed, b"table", &key, "acme", "prices").unwrap();
        assert_eq!(good.statement(), &statement());
        let refused = |result: Result<VerifiedData, VerifyError>, why: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(verify(&signed, b"tablf", &key, "acme", "prices"), "it was changed after signing");
        refused(verify(&signed, b"table", &other, "acme", "prices"), "not trusted here");
        refused(verify(&signed, b"table", &key, "globex", "prices"), "statement is for tenant \"acme\"");
        refused(verify(&signed, b"table", &key, "acme", "costs"), "statement is for data \"prices\"");
        for at in 0..signed.len() {
            let mut changed = signed.clone();
            changed[at] ^= 1 << (at % 8);
            verify(&changed, b"table", &key, "acme", "prices").expect_err("a flipped byte");
        }
        // Neither kind of statement is the other.
        let about_code = Statement {
            policy: statement().data,
            tenant: statement().tenant,
            version: 3,
            cwasm: Digest::of(b"table"),
            source: Digest::of(b"source"),
            bundle: Digest::of(b"bundle"),
            architecture: Architecture::host(),
            wasmtime: String::new(),
            engine: Digest::of(b"engine"),
            world: String::new(),
            imports: vec![],
            limits: Limits::default(),
            metrics: vec![],
            data: vec![],
        };
        let signed = sign(&about_code, &key).unwrap();
        refused(verify(&signed, b"table", &key, "acme", "prices"), "has payload type");
    }
}
