//! What a survey goes by: the assignment, the trust policy in it, and what follows from the two.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;

use crate::artifact::{Ceiling, Digest};
use crate::bundle::{ConfidentialError, Kind, PolicyConfig, SecretKeys};
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::signature::{Anchors, Evidence};
use crate::trust::{Accepted, Candidate, Refusal, Revocations, TrustErrors, TrustPolicy};
use crate::wire::control::RegistryAssignment;

/// Whose policy it is, and its name.
pub(super) type Key = (Tenant, PolicyName);

/// An assignment whose trust policy was understood.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub(super) assignment: RegistryAssignment,
    pub(super) trust: TrustPolicy,
    pub(super) anchors: Anchors,
    /// Of what signatures are checked with: evidence that was worked out with something else is worked out again.
    pub(super) keys: Digest,
    /// What opens what is confidential, or why nothing does.
    pub(super) secrets: Result<SecretKeys, String>,
    policies: BTreeMap<Key, (TrustClass, Kind)>,
    /// The bundles that were judged, and whether those had signed whom the rules want.
    signed: RefCell<BTreeMap<Digest, bool>>,
}

impl Setting {
    /// # Errors
    /// When the trust policy is not one.
    pub(super) fn new(assignment: RegistryAssignment) -> Result<Self, TrustErrors> {
        let trust = TrustPolicy::parse(Path::new(&assignment.trust.path), &assignment.trust.text)?;
        let anchors = trust.anchors();
        let keys = anchors.digest();
        let policies = assignment.tenants.iter().flat_map(|one| {
            let kinds = one.policies.iter().map(|name| (name, Kind::Policy));
            let kinds = kinds.chain(one.data.iter().map(|name| (name, Kind::Data)));
            kinds.map(|(name, kind)| ((one.tenant.clone(), name.clone()), (one.class.clone(), kind)))
        });
        let policies = policies.collect();
        let secrets = assignment.secret.as_ref().map_or(Ok(SecretKeys::default()), |secret| {
            SecretKeys::parse(&secret.0).map_err(|error: ConfidentialError| error.to_string())
        });
        if let Err(why) = &secrets {
            tracing::error!(why, "nothing confidential can be opened");
        }
        let signed = RefCell::default();
        Ok(Self { trust, anchors, keys, secrets, policies, assignment, signed })
    }

    /// Everything that is configured: first all data, then the policies, which read it.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Key> {
        let of =
            |wanted| self.policies.iter().filter(move |(_, (_, kind))| *kind == wanted).map(|(key, _)| key);
        of(Kind::Data).chain(of(Kind::Policy))
    }

    /// What a tenant's policies may have at most.
    pub(super) fn ceiling(&self, tenant: &Tenant) -> Ceiling {
        let of = self.assignment.tenants.iter().find(|one| one.tenant == *tenant);
        of.map_or_else(Ceiling::default, |of| of.ceiling)
    }

    pub(super) fn class(&self, key: &Key) -> Option<&TrustClass> {
        self.policies.get(key).map(|(class, _)| class)
    }

    /// Which of the two a name stands for.
    pub(super) fn kind(&self, key: &Key) -> Option<Kind> {
        self.policies.get(key).map(|(_, kind)| *kind)
    }

    /// The bundles that were judged since this was last asked, and whether those had signed whom the rules want.
    pub(super) fn take_signed(&self) -> BTreeMap<Digest, bool> {
        self.signed.take()
    }

    /// Whether a bundle may decide, as far as signatures, rules and revocations go; every reason if not.
    pub(super) fn judge(
        &self,
        key: &Key,
        class: &TrustClass,
        (bundle, config): (Digest, &PolicyConfig),
        evidence: &Evidence,
        (revocations, now): (&Revocations, Timestamp),
    ) -> Result<Accepted, String> {
        let (tenant, policy) = key;
        let mut against = Vec::new();
        if let Some(expected) = self.kind(key).filter(|expected| *expected != config.kind()) {
            against.push(format!("bundle is {}, expected {}", config.kind().name(), expected.name()));
        }
        if config.policy != *policy {
            against.push(format!("bundle is policy \"{}\", expected \"{policy}\"", config.policy));
        }
        let candidate = Candidate { tenant, class, bundle, config };
        let evaluated = self.trust.evaluate(&candidate, evidence, revocations, now);
        let unsigned = |refusals: &Vec<Refusal>| refusals.iter().any(is_about_signatures);
        self.signed.borrow_mut().insert(bundle, !evaluated.as_ref().is_err_and(unsigned));
        match evaluated {
            Ok(accepted) if against.is_empty() => Ok(accepted),
            Ok(_) => Err(against.join("; ")),
            Err(refusals) => {
                against.extend(refusals.iter().map(ToString::to_string));
                // What was attached and did not help is often why.
                against.extend(evidence.disregarded.iter().cloned());
                Err(against.join("; "))
            }
        }
    }
}

const fn is_about_signatures(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Missing { .. } | Refusal::TooFew { .. } | Refusal::Provenance { .. })
}
