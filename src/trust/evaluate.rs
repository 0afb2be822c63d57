//! Is it enough? Evidence and a rule in, a verdict with every reason out. The more good signatures, the better: a further one
//! never turns a yes into a no.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;

use super::policy::{AnyOf, ProvenanceRule, Rule, TrustPolicy};
use super::{Refusal, Revocations};
use crate::artifact::Digest;
use crate::bundle::{Kind, PolicyConfig};
use crate::decision::{Tenant, TrustClass};
use crate::signature::{Evidence, Provenance, Signer};

/// A bundle that wants to become active, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub tenant: &'a Tenant,
    pub class: &'a TrustClass,
    /// Of the bundle index.
    pub bundle: Digest,
    pub config: &'a PolicyConfig,
}

/// A bundle that may become active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Who vouches for it of those whom the rule names, by their names; sorted.
    pub signers: Vec<String>,
    /// Whose word on how it was built was taken.
    pub built_by: Option<String>,
    /// The rule that it was held to, "[tenant.acme]".
    pub rule: String,
    /// When the first thing ends that it rests on. It may not decide any longer than that.
    pub until: Option<Timestamp>,
}

/// When something ends; nothing, and it does not.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Until(Option<Timestamp>);

impl TrustPolicy {
    /// Whether a bundle may become active for this tenant, by what its signatures say.
    ///
    /// # Errors
    /// Every reason against it.
    pub fn evaluate(
        &self,
        candidate: &Candidate<'_>,
        evidence: &Evidence,
        revoked: &Revocations,
        now: Timestamp,
    ) -> Result<Accepted, Vec<Refusal>> {
        let Candidate { tenant, class, config, .. } = candidate;
        let mut refusals = Vec::new();
        if let Some(at) = self.expires.filter(|at| *at <= now) {
            refusals.push(Refusal::PolicyExpired { at });
        }
        if config.tenant != **tenant {
            let (found, expected) = (config.tenant.clone(), (*tenant).clone());
            refusals.push(Refusal::Tenant { found, expected });
        }
        let minimum = self.minimum_version(tenant, &config.policy);
        if config.version < minimum {
            refusals.push(Refusal::Version { found: config.version, minimum });
        }
        self.look_for_revoked(candidate, revoked, &mut refusals);
        let Some(rule) = self.rule(tenant, class) else {
            refusals.push(Refusal::NoRule { tenant: (*tenant).clone(), class: (*class).clone() });
            return Err(refusals);
        };
        // Data asks for nothing.
        if config.kind() == Kind::Policy {
            rule.look_at_config(config, &mut refusals);
        }
        let judge = Judge { policy: self, evidence, revoked, now };
        let (vouched, until) = judge.vouched(rule, &mut refusals);
        let built = judge.built(rule, &mut refusals);
        if !refusals.is_empty() {
            return Err(refusals);
        }
        let until =
            [Until(self.expires), until].into_iter().chain(built.iter().map(|(_, until)| *until)).min();
        Ok(Accepted {
            signers: vouched.into_iter().map(str::to_owned).collect(),
            built_by: built.map(|(name, _)| name.to_owned()),
            rule: rule.title.clone(),
            until: until.and_then(|until| until.0),
        })
    }

    fn look_for_revoked(
        &self,
        candidate: &Candidate<'_>,
        revoked: &Revocations,
        refusals: &mut Vec<Refusal>,
    ) {
        let config = candidate.config;
        let digests = [("bundle", candidate.bundle), ("source", config.source)];
        let compiled = config.compiled.iter().map(|compiled| ("machine code", compiled.cwasm));
        for (what, digest) in digests.into_iter().chain(compiled) {
            if let Some(entry) = revoked.digest(&digest) {
                let (reason, date) = (entry.reason.clone(), entry.date);
                refusals.push(Refusal::Revoked { what, digest, reason, date });
            }
        }
        if revoked.version() < self.minimum_revocations() {
            let (found, minimum) = (revoked.version(), self.minimum_revocations());
            refusals.push(Refusal::Revocations { found, minimum });
        }
    }
}

/// One evaluation: who says what, and what counts of it now.
struct Judge<'a> {
    policy: &'a TrustPolicy,
    evidence: &'a Evidence,
    revoked: &'a Revocations,
    now: Timestamp,
}

impl<'a> Judge<'a> {
    /// Who vouches for it, and until when that is enough.
    fn vouched(&self, rule: &'a Rule, refusals: &mut Vec<Refusal>) -> (BTreeSet<&'a str>, Until) {
        let (mut names, mut until) = (BTreeSet::new(), Until(None));
        if rule.all_of.is_empty() && rule.any_of.is_none() {
            refusals.push(Refusal::NobodyTrusted { rule: rule.title.clone() });
        }
        for name in &rule.all_of {
            match self.signed(name) {
                Ok(ends) => {
                    names.insert(name.as_str());
                    until = until.min(ends);
                }
                Err(why) => {
                    refusals.push(Refusal::Missing { rule: rule.title.clone(), signer: name.clone(), why })
                }
            }
        }
        if let Some(AnyOf { minimum, signers }) = &rule.any_of {
            let (mut ends, mut missing) = (Vec::new(), Vec::new());
            for name in signers {
                match self.signed(name) {
                    Ok(until) => ends.push((until, name.as_str())),
                    Err(why) => missing.push((name.clone(), why)),
                }
            }
            // As many as are needed hold until the one ends that is the last of the longest.
            ends.sort_by_key(|(until, _)| std::cmp::Reverse(*until));
            match minimum.checked_sub(1).and_then(|last| ends.get(last)) {
                Some((least, _)) => {
                    until = until.min(*least);
                    names.extend(ends.iter().map(|(_, name)| name));
                }
                None => refusals.push(Refusal::TooFew {
                    rule: rule.title.clone(),
                    minimum: *minimum,
                    found: ends.len(),
                    missing,
                }),
            }
        }
        (names, until)
    }

    /// Whose word on how it was built fits the rule, for as long as possible.
    fn built(&self, rule: &'a Rule, refusals: &mut Vec<Refusal>) -> Option<(&'a str, Until)> {
        let asked = rule.provenance.as_ref()?;
        let (mut best, mut against) = (None::<(&str, Until)>, Vec::new());
        for provenance in &self.evidence.provenance {
            let signer = &provenance.signer;
            let Some(name) = asked.signers.iter().find(|name| self.policy.name_of(signer) == Some(name))
            else {
                continue;
            };
            match self.counts_until(name, signer) {
                Err(why) => against.push(format!("what signer \"{name}\" says of it does not count: {why}")),
                Ok(until) => match asked.misfits(provenance) {
                    misfits if !misfits.is_empty() => {
                        against.extend(
                            misfits.into_iter().map(|misfit| format!("signer \"{name}\" says {misfit}")),
                        );
                    }
                    _ if best.is_some_and(|(_, longest)| longest >= until) => {}
                    _ => best = Some((name.as_str(), until)),
                },
            }
        }
        if best.is_none() {
            let (rule, signers) = (rule.title.clone(), asked.signers.clone());
            refusals.push(Refusal::Provenance { rule, signers, against });
        }
        best
    }

    /// Until when this signer's signature counts, by whichever of its keys counts longest.
    fn signed(&self, name: &str) -> Result<Until, NotSigned> {
        let mut verdict = Err(NotSigned::Never);
        for signer in &self.evidence.signers {
            if self.policy.name_of(signer) != Some(name) {
                continue;
            }
            verdict = match (verdict, self.counts_until(name, signer)) {
                (Ok(one), Ok(other)) => Ok(one.max(other)),
                (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
                (Err(_), Err(why)) => Err(why),
            };
        }
        verdict
    }

    /// Until when what this key or identity signed counts as signed by `name`.
    fn counts_until(&self, name: &str, signer: &Signer) -> Result<Until, NotSigned> {
        if let Signer::Key(key) = signer
            && let Some(entry) = self.revoked.key(key)
        {
            return Err(NotSigned::Revoked { reason: entry.reason.clone(), date: entry.date });
        }
        let means = self.policy.signers.get(name).map(|signer| signer.means.as_slice()).unwrap_or_default();
        let Some(means) = means.iter().find(|means| means.is(signer)) else { return Err(NotSigned::Never) };
        match (means.not_before, means.not_after) {
            _ if means.counts(self.now) => Ok(Until(means.not_after)),
            (_, Some(at)) if at <= self.now => Err(NotSigned::Over { at }),
            (Some(at), _) => Err(NotSigned::NotYet { at }),
            _ => Err(NotSigned::Never),
        }
    }
}

/// Why a signer does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    #[error("it did not sign this bundle")]
    Never,
    #[error("it signed with a key that counted until {at}")]
    Over { at: Timestamp },
    #[error("it signed with a key that counts from {at} on")]
    NotYet { at: Timestamp },
    #[error("it signed with a key that was revoked on {date}: {reason:?}")]
    Revoked { reason: String, date: Timestamp },
}

impl Rule {
    fn look_at_config(&self, config: &PolicyConfig, refusals: &mut Vec<Refusal>) {
        for import in config.imports.iter().filter(|import| !self.capabilities.contains(*import)) {
            let (rule, allowed) = (self.title.clone(), self.capabilities.clone());
            refusals.push(Refusal::Capability { rule, import: import.clone(), allowed });
        }
        let (asks, most) = (&config.limits, &self.limits);
        for (what, asks, most) in [
            ("bytes of memory", asks.memory, most.memory),
            ("elements of tables", asks.table_elements, most.table_elements),
            ("bytes of output", asks.output, most.output),
            ("microseconds for a decision", asks.deadline_us, most.deadline_us),
            ("bytes of stack", asks.stack, most.stack),
            ("host calls", asks.host_calls, most.host_calls),
        ] {
            if let Some(most) = most.filter(|most| asks > *most) {
                let (asks, most) = (u64::from(asks), u64::from(most));
                refusals.push(Refusal::Limit { rule: self.title.clone(), what, asks, most });
            }
        }
        let rule = || self.title.clone();
        match (asks.fuel, most.fuel) {
            (None, Some(most)) => refusals.push(Refusal::NotCounted { rule: rule(), most }),
            (Some(asks), Some(most)) if asks > most => {
                refusals.push(Refusal::Limit { rule: rule(), what: "instructions", asks, most });
            }
            _ => {}
        }
    }
}

impl ProvenanceRule {
    /// What is not as the rule wants it.
    fn misfits(&self, provenance: &Provenance) -> Vec<String> {
        let compared = [
            ("builder", &self.builder, Some(&provenance.builder)),
            ("repository", &self.repository, provenance.repository.as_ref()),
            ("ref", &self.reference, provenance.reference.as_ref()),
        ];
        let misfits = compared.into_iter().filter_map(|(what, asked, found)| match (asked, found) {
            (Some(asked), Some(found)) if !asked.fits(found) => {
                let found: String = found.chars().take(200).collect();
                Some(format!("the {what} is {found:?}, expected \"{asked}\""))
            }
            (Some(asked), None) => Some(format!("nothing of the {what}, expected \"{asked}\"")),
            _ => None,
        });
        misfits.collect()
    }
}

/// What never ends is later than what does.
impl Ord for Until {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.is_none(), self.0).cmp(&(other.0.is_none(), other.0))
    }
}

impl PartialOrd for Until {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signed by {}", self.signers.join(", "))?;
        if let Some(builder) = &self.built_by {
            write!(f, "; built as {builder} says")?;
        }
        match self.until {
            Some(until) => write!(f, "; {} lets it decide until {until}", self.rule),
            None => write!(f, "; {} lets it decide", self.rule),
        }
    }
}
