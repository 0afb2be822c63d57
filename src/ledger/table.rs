//! The table: one JSON line in one exact form, and a second line with the host's signature over it.

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};

use crate::artifact::{Digest, KeyId, PublicKey, SigningKey};
use crate::bundle::PolicyConfig;
use crate::decision::{PolicyName, Tenant};
use crate::signature::Evidence;

/// The table's name in the registry's directory.
pub const TABLE: &str = "table.json";
/// The host key's.
pub const HOST_KEY: &str = "host.key";
/// The directory of bundles.
pub const BUNDLES: &str = "bundles";
/// Largest table, bytes: ten thousand policies with three versions before the active one.
pub const TABLE_MAX: usize = 128 << 20;
/// Largest key file, bytes.
pub const PEM_MAX: usize = 16 << 10;
/// Most events that are remembered.
pub const HISTORY_MAX: usize = 4_000;

/// The format's number, first in the file.
const FORMAT: u32 = 1;
/// In front of what is signed, so that a signature on a table can be one on nothing else.
const DOMAIN: &[u8] = b"portcullis table v1\n";
/// In front of the signature.
const LABEL: &str = "ed25519 ";

/// Everything the registry knows and must not forget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub format: u32,
    /// Whose signature is on it.
    pub host: KeyId,
    /// Counts commits.
    pub revision: u64,
    /// The latest time that was seen on this host's clock, seconds since 1970. Expiry never goes by an earlier one.
    pub latest: u64,
    /// The number of the last order that was carried out or refused.
    pub orders: u64,
    pub revocations: Option<KnownRevocations>,
    /// Sorted by tenant and policy, each once. A record stays when its policy is no longer configured: floors are for good. It goes
    /// with its tenant, whose name no other tenant ever gets.
    pub policies: Vec<Record>,
    /// Oldest first.
    pub history: Vec<Event>,
}

/// The newest revocation list that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownRevocations {
    /// A list with a lower one is refused.
    pub version: u64,
    /// The list as it was signed.
    pub signed: String,
}

/// What is known of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub tenant: Tenant,
    pub policy: PolicyName,
    /// The highest version that was ever active. Nothing becomes active by itself that is not above it.
    pub floor: u64,
    /// Which bundle had that version.
    pub floor_bundle: Option<Digest>,
    /// After a rollback: versions up to this one are left in the store until an operator activates one.
    pub pinned: Option<u64>,
    /// What serves, as long as it holds.
    pub active: Option<Entry>,
    /// What an operator may go back to, newest first.
    pub previous: Vec<Entry>,
    /// Why the active one does not serve at present: revoked, expired, or no longer trusted.
    pub withdrawn: Option<String>,
    /// What is in the store and did not become active.
    pub held_back: Option<HeldBack>,
    /// How often code of the active one had to be compiled again: the class's cache had lost or broken it, or it did not fit
    /// this host any more. The history says why each time.
    pub rebuilt: u64,
}

/// One version of a policy that was active or is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub bundle: Digest,
    pub config: PolicyConfig,
    pub code: Code,
    /// Who vouches for it, as it was checked last.
    pub evidence: Evidence,
    /// Of the keys that were known then.
    pub keys: Digest,
    /// What is attached to the bundle as it is kept: digests of the manifests, sorted.
    pub attached: Vec<Digest>,
    /// The order by which it became active, if it was one.
    pub order: Option<u64>,
    /// When it became active, seconds since 1970.
    pub since: u64,
}

/// Machine code for this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    pub cwasm: Digest,
    pub origin: Origin,
    /// What it was compiled with, as in [`crate::artifact::Statement`].
    pub wasmtime: String,
    pub engine: Digest,
}

/// Where code is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The bundle has it.
    Bundle,
    /// Compiled on this host from the bundle's source; the class's cache has it.
    Builder,
}

/// A bundle in the store that is not active, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldBack {
    /// `None` if it could not even be read.
    pub bundle: Option<Digest>,
    pub version: Option<u64>,
    pub why: String,
    /// A builder of this program found it no good, or died of it: that one does not try again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsound: Option<String>,
}

/// Something that happened, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Seconds since 1970.
    pub at: u64,
    pub what: What,
    pub tenant: Option<Tenant>,
    pub policy: Option<PolicyName>,
    pub bundle: Option<Digest>,
    pub version: Option<u64>,
    /// The operator's order that it was the answer to.
    pub order: Option<u64>,
    pub why: String,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Activated,
    RolledBack,
    /// Stopped deciding: revoked, expired or no longer trusted.
    Withdrawn,
    /// Decides again, since the reason went away.
    Restored,
    /// In the store, and not activated.
    HeldBack,
    /// An operator's order that was not carried out.
    OrderRefused,
    /// Compiled again: the class's cache had lost or broken it, or it did not fit this host any more.
    Rebuilt,
    /// A newer revocation list.
    Revocations,
    /// A new table was begun, on an operator's word.
    Recovered,
    /// Everything that was known of a tenant is forgotten, but that it was here: its name is used up.
    TenantRemoved,
}

/// A table that is not one, or not this host's.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("is {0} bytes long, at most {TABLE_MAX} are read")]
    TooLong(usize),
    #[error("does not have two lines: it is cut off")]
    CutOff,
    #[error("has a signature that is not base64")]
    Base64,
    #[error("is signed, but not by this host's key {}: one of the two was changed or replaced", .0.short())]
    Signature(KeyId),
    #[error("is not a table: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("has format {0}, this program reads {FORMAT}")]
    Format(u64),
    #[error("names key {0}, and is signed by another")]
    Host(KeyId),
    #[error("is not in its one exact form")]
    NotCanonical,
    #[error("cannot be written: {0}")]
    Write(#[source] serde_json::Error),
}

impl Table {
    /// The first one of a host.
    #[must_use]
    pub fn new(host: KeyId) -> Self {
        Self {
            format: FORMAT,
            host,
            revision: 0,
            latest: 0,
            orders: 0,
            revocations: None,
            policies: Vec::new(),
            history: Vec::new(),
        }
    }

    /// The bytes of `table.json`.
    ///
    /// # Errors
    /// When writing JSON fails, or there is more than is read again.
    pub fn to_bytes(&self, key: &SigningKey) -> Result<Vec<u8>, TableError> {
        let mut bytes = serde_json::to_vec(self).map_err(TableError::Write)?;
        bytes.push(b'\n');
        let signature = key.sign(&message(&bytes));
        bytes.extend_from_slice(LABEL.as_bytes());
        bytes.extend_from_slice(Base64::encode_string(&signature).as_bytes());
        bytes.push(b'\n');
        if bytes.len() > TABLE_MAX { Err(TableError::TooLong(bytes.len())) } else { Ok(bytes) }
    }

    /// Reads what [`Self::to_bytes`] wrote with the private half of `key`, and nothing else. The signature comes first.
    ///
    /// # Errors
    /// One variant per check; the first that fails.
    pub fn from_bytes(bytes: &[u8], key: &PublicKey) -> Result<Self, TableError> {
        if bytes.len() > TABLE_MAX {
            return Err(TableError::TooLong(bytes.len()));
        }
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(TableError::CutOff)?;
        let (line, rest) = bytes.split_at_checked(end.saturating_add(1)).ok_or(TableError::CutOff)?;
        let signature = std::str::from_utf8(rest)
            .ok()
            .and_then(|rest| rest.strip_prefix(LABEL)?.strip_suffix('\n'))
            .ok_or(TableError::CutOff)?;
        let signature = Base64::decode_vec(signature).map_err(|_| TableError::Base64)?;
        key.verify(&message(line), &signature).map_err(|_| TableError::Signature(key.id()))?;
        let format: Format = serde_json::from_slice(line).map_err(TableError::Malformed)?;
        if format.format != u64::from(FORMAT) {
            return Err(TableError::Format(format.format));
        }
        let table: Self = serde_json::from_slice(line).map_err(TableError::Malformed)?;
        if table.host != key.id() {
            return Err(TableError::Host(table.host));
        }
        let mut again = serde_json::to_vec(&table).map_err(TableError::Write)?;
        again.push(b'\n');
        if again != line || !table.is_sorted() {
            return Err(TableError::NotCanonical);
        }
        Ok(table)
    }

    /// What is known of a policy.
    #[must_use]
    pub fn record(&self, tenant: &Tenant, policy: &PolicyName) -> Option<&Record> {
        let at = self.place(tenant, policy).ok()?;
        self.policies.get(at)
    }

    /// The same, to be changed; made if there is none.
    pub fn record_mut(&mut self, tenant: &Tenant, policy: &PolicyName) -> Option<&mut Record> {
        let at = self.place(tenant, policy).unwrap_or_else(|at| {
            self.policies.insert(at, Record::new(tenant, policy));
            at
        });
        self.policies.get_mut(at)
    }

    /// Adds to the history. When it is full the oldest goes, and what only says that something in the store was no good goes
    /// first: who writes to the store cannot make an activation be forgotten.
    pub fn remember(&mut self, event: Event) {
        self.history.push(event);
        while self.history.len() > HISTORY_MAX {
            let noise = self.history.iter().position(|event| event.what == What::HeldBack);
            self.history.remove(noise.unwrap_or(0));
        }
    }

    /// Every entry there is: active and previous.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.policies.iter().flat_map(|record| record.active.iter().chain(&record.previous))
    }

    fn place(&self, tenant: &Tenant, policy: &PolicyName) -> Result<usize, usize> {
        self.policies.binary_search_by(|record| (&record.tenant, &record.policy).cmp(&(tenant, policy)))
    }

    fn is_sorted(&self) -> bool {
        self.policies.is_sorted_by(|a, b| (&a.tenant, &a.policy) < (&b.tenant, &b.policy))
    }
}

/// Of a table of any format.
#[derive(Deserialize)]
struct Format {
    format: u64,
}

impl Record {
    fn new(tenant: &Tenant, policy: &PolicyName) -> Self {
        Self {
            tenant: tenant.clone(),
            policy: policy.clone(),
            floor: 0,
            floor_bundle: None,
            pinned: None,
            active: None,
            previous: Vec::new(),
            withdrawn: None,
            held_back: None,
            rebuilt: 0,
        }
    }
}

impl Entry {
    #[must_use]
    pub fn version(&self) -> u64 {
        self.config.version
    }
}

fn message(line: &[u8]) -> Vec<u8> {
    [DOMAIN, line].concat()
}
