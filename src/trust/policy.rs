//! The trust policy as types that cannot be wrong.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Pattern;
use crate::artifact::PublicKey;
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::signature::{Anchors, KeylessRoot, Signer};

/// Who may vouch for what. Made from text by [`TrustPolicy::parse`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustPolicy {
    /// From then on nothing in it holds.
    pub(super) expires: Option<Timestamp>,
    pub(super) signers: BTreeMap<String, TrustedSigner>,
    pub(super) default: Option<Rule>,
    pub(super) classes: BTreeMap<TrustClass, Rule>,
    pub(super) tenants: BTreeMap<Tenant, Rule>,
    pub(super) minimum_versions: BTreeMap<Tenant, BTreeMap<PolicyName, u64>>,
    pub(super) revocation: Option<RevocationRule>,
    /// What identities are taken from.
    pub(super) keyless: Option<KeylessRoot>,
}

/// Somebody, by what they can show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TrustedSigner {
    /// The one in use first, then retired keys; at least one.
    pub(super) means: Vec<Means>,
}

/// A key or an identity, and when it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    pub who: Who,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
}

/// What a signature can be known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    Key(PublicKey),
    /// Whom an identity provider vouches for.
    Identity {
        issuer: String,
        identity: Pattern,
    },
}

/// What is asked of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rule {
    /// As written, "[tenant.acme]".
    pub(super) title: String,
    pub(super) all_of: Vec<String>,
    pub(super) any_of: Option<AnyOf>,
    pub(super) provenance: Option<ProvenanceRule>,
    /// Host interfaces that may be imported.
    pub(super) capabilities: Vec<String>,
    pub(super) limits: Ceilings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AnyOf {
    /// At least 1, at most as many as there are signers.
    pub(super) minimum: usize,
    pub(super) signers: Vec<String>,
}

/// How it must have been built, in the words of one of these signers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProvenanceRule {
    pub(super) signers: Vec<String>,
    pub(super) builder: Option<Pattern>,
    pub(super) repository: Option<Pattern>,
    pub(super) reference: Option<Pattern>,
}

/// The most that a policy may ask for; where nothing is said, its class decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ceilings {
    /// Bytes.
    pub(super) memory: Option<u32>,
    pub(super) table_elements: Option<u32>,
    /// Bytes.
    pub(super) output: Option<u32>,
    /// Microseconds.
    pub(super) deadline_us: Option<u32>,
    /// Bytes.
    pub(super) stack: Option<u32>,
    pub(super) host_calls: Option<u32>,
    /// Instructions. A policy that does not count them asks for more than any.
    pub(super) fuel: Option<u64>,
}

/// Who may revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RevocationRule {
    pub(super) signers: Vec<String>,
    pub(super) minimum_version: u64,
}

impl TrustPolicy {
    /// What signatures are checked against: every key there is, also those whose time is over or yet to come, so that a
    /// refusal can say so.
    #[must_use]
    pub fn anchors(&self) -> Anchors {
        Anchors { keys: self.keys().cloned().collect(), keyless: self.keyless.clone() }
    }

    /// Everybody in it, by name, with what they are known by: the one in use first, then retired keys.
    pub fn signers(&self) -> impl Iterator<Item = (&str, &[Means])> {
        self.signers.iter().map(|(name, signer)| (name.as_str(), signer.means.as_slice()))
    }

    /// When nothing in it will hold any more.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    /// When the next key begins to count, after `now`: what was refused before may be accepted then.
    #[must_use]
    pub fn next_beginning(&self, now: Timestamp) -> Option<Timestamp> {
        let means = self.signers.values().flat_map(|signer| &signer.means);
        means.filter_map(|means| means.not_before).filter(|begins| *begins > now).min()
    }

    /// The lowest version that may ever become active, whatever else is known: what stands when a registry lost its state.
    #[must_use]
    pub fn minimum_version(&self, tenant: &Tenant, policy: &PolicyName) -> u64 {
        let versions = self.minimum_versions.get(tenant);
        versions.and_then(|versions| versions.get(policy)).copied().unwrap_or(0)
    }

    /// Whether it makes a difference which class this tenant is in.
    #[must_use]
    pub fn needs_class(&self, tenant: &Tenant) -> bool {
        !self.classes.is_empty() && !self.tenants.contains_key(tenant)
    }

    /// The lowest version of the revocation list; above 0, there must be one.
    #[must_use]
    pub fn minimum_revocations(&self) -> u64 {
        self.revocation.as_ref().map_or(0, |rule| rule.minimum_version)
    }

    /// Whether anybody may revoke anything.
    #[must_use]
    pub fn has_revocation(&self) -> bool {
        self.revocation.is_some()
    }

    /// What this signer is called here.
    #[must_use]
    pub fn name_of(&self, signer: &Signer) -> Option<&str> {
        let (name, _) =
            self.signers.iter().find(|(_, known)| known.means.iter().any(|means| means.is(signer)))?;
        Some(name)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        let means = self.signers.values().flat_map(|signer| &signer.means);
        means.filter_map(|means| match &means.who {
            Who::Key(key) => Some(key),
            Who::Identity { .. } => None,
        })
    }

    /// The rule for a tenant: its own, else its class's, else the default. Nothing is inherited.
    pub(super) fn rule(&self, tenant: &Tenant, class: &TrustClass) -> Option<&Rule> {
        self.tenants.get(tenant).or_else(|| self.classes.get(class)).or(self.default.as_ref())
    }
}

impl Means {
    /// Whether it is the one that signed.
    #[must_use]
    pub fn is(&self, signer: &Signer) -> bool {
        match (&self.who, signer) {
            (Who::Key(key), Signer::Key(id)) => key.id() == *id,
            (Who::Identity { issuer, identity }, Signer::Identity { issuer: found, identity: name }) => {
                issuer == found && identity.fits(name)
            }
            _ => false,
        }
    }

    /// Whether it counts at this moment.
    #[must_use]
    pub fn counts(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|begins| begins <= now) && self.not_after.is_none_or(|ends| now < ends)
    }
}
