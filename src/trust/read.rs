//! From the text of a trust policy to [`TrustPolicy`]: what each value may be, and what they mean together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::policy::{
    AnyOf, Ceilings, Means, ProvenanceRule, RevocationRule, Rule, TrustPolicy, TrustedSigner, Who,
};
use super::{Pattern, TrustErrors};
use crate::artifact::PublicKey;
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::document::values::{duration, name, number, size, text as text_value, timestamp};
use crate::document::{self, Complaints, Found, Section};
use crate::engine::Importable;
use crate::signature::{KEYLESS, KeylessError, KeylessRoot};

/// Longest trust policy, bytes.
pub const TRUST_MAX: usize = 1 << 20;
/// Most keys and identities together: each may have to be tried on each attachment.
const MEANS_MAX: usize = 128;
/// Longest name of a signer, bytes.
const NAME_MAX: usize = 64;

impl TrustPolicy {
    /// Reads a trust policy.
    ///
    /// # Errors
    /// Everything that is wrong with it, each at its place.
    pub fn parse(path: &Path, text: &str) -> Result<Self, TrustErrors> {
        if text.len() > TRUST_MAX {
            let message = format!("is {} bytes long, at most {TRUST_MAX} are read", text.len());
            return Err(TrustErrors::whole_file(path, message));
        }
        let (policy, said) =
            document::read(path, text, |document, complaints| Reader { complaints }.policy(document))?;
        said.map(|()| policy)
    }
}

/// Complains about everything that is wrong, and gives back what is whole.
struct Reader<'d> {
    complaints: &'d Complaints,
}

/// A means and where it stands, to find two that are the same.
type Placed = (usize, String, Who);

impl<'d> Reader<'d> {
    fn policy(&self, document: &mut Section<'d>) -> Option<TrustPolicy> {
        let expires = document.optional("expires", timestamp).map(|found| found.value);
        let keyless = document.section("keyless").and_then(|mut section| {
            let root = section.required("trusted_root", trusted_root);
            section.finish();
            root.map(|found| found.value)
        });
        let with_root = document.has("keyless");
        let (mut signers, mut placed) = (BTreeMap::new(), Vec::new());
        let mut names = BTreeSet::new();
        for (title, section) in document.sections("signer") {
            self.signer_name(title);
            names.insert(title.value);
            if let Some(signer) = self.signer(title.value, section, &mut placed) {
                signers.insert(title.value.to_owned(), signer);
            }
        }
        let default = document.section("default").map(|section| self.rule(section, &names));
        let (mut classes, mut tenants) = (BTreeMap::new(), BTreeMap::new());
        for (title, section) in document.sections("class") {
            let rule = self.rule(section, &names);
            if let Some(class) = self.look(title.at, TrustClass::new(title.value)) {
                classes.insert(class, rule);
            }
        }
        for (title, section) in document.sections("tenant") {
            let rule = self.rule(section, &names);
            if let Some(tenant) = self.look(title.at, Tenant::new(title.value)) {
                tenants.insert(tenant, rule);
            }
        }
        let minimum_versions = self.minimum_versions(document.sections("minimum_version"));
        let revocation = document.section("revocation").map(|section| self.revocation(section, &names));
        if !with_root {
            self.no_identities(&placed);
        }
        self.distinct(placed);
        Some(TrustPolicy {
            expires,
            signers,
            default,
            classes,
            tenants,
            minimum_versions,
            revocation,
            keyless,
        })
    }

    fn signer(
        &self,
        called: &str,
        mut section: Section<'d>,
        placed: &mut Vec<Placed>,
    ) -> Option<TrustedSigner> {
        let key = section.optional("key", public_key);
        let issuer = section.optional("issuer", plain_text);
        let identity = section.optional("identity", pattern(identity_pattern));
        let (not_before, not_after) = self.window(&mut section, false);
        let (with_key, with_issuer) = (section.has("key"), section.has("issuer"));
        let used = if with_key == with_issuer || with_issuer != section.has("identity") {
            let title = section.title();
            let message = format!("{title}: expected either \"key\", or \"issuer\" and \"identity\"");
            self.complain(section.at(), message);
            None
        } else if let Some(key) = key {
            Some((key.at, Who::Key(key.value)))
        } else if let (Some(issuer), Some(identity)) = (issuer, identity) {
            Some((identity.at, Who::Identity { issuer: issuer.value, identity: identity.value }))
        } else {
            None
        };
        let mut means = Vec::new();
        let mut place = |at, who: &Who| placed.push((at, called.to_owned(), who.clone()));
        if let Some((at, who)) = used {
            place(at, &who);
            means.push(Means { who, not_before, not_after });
        }
        for mut retired in section.tables("retired") {
            let key = retired.required("key", public_key);
            let (not_before, not_after) = self.window(&mut retired, true);
            retired.finish();
            if let Some(key) = key {
                let who = Who::Key(key.value);
                place(key.at, &who);
                means.push(Means { who, not_before, not_after });
            }
        }
        section.finish();
        (!means.is_empty()).then_some(TrustedSigner { means })
    }

    fn window(
        &self,
        section: &mut Section<'d>,
        must_end: bool,
    ) -> (Option<jiff::Timestamp>, Option<jiff::Timestamp>) {
        let begins = section.optional("not_before", timestamp);
        let ends = if must_end {
            section.required("not_after", timestamp)
        } else {
            section.optional("not_after", timestamp)
        };
        if let (Some(begins), Some(ends)) = (begins, ends)
            && ends.value <= begins.value
        {
            self.complain(ends.at, format!("not_after: is not after not_before, {}", begins.value));
        }
        (begins.map(|found| found.value), ends.map(|found| found.value))
    }

    fn rule(&self, mut section: Section<'d>, names: &BTreeSet<&str>) -> Rule {
        let (title, empty, at) = (section.title(), section.is_empty(), section.at());
        let says_who = section.has("all_of") || section.has("any_of");
        let all_of = self.names(&mut section, "all_of", names);
        let any_of = section.section("any_of").and_then(|section| self.any_of(section, names, &all_of));
        let provenance = section.section("provenance").map(|section| self.provenance(section, names));
        let capabilities = section.list("capabilities", capability).unwrap_or_default();
        let limits = section.section("limits").map_or_else(Ceilings::default, ceilings);
        section.finish();
        if !says_who && !empty {
            // An empty table says that nobody is trusted; this one was meant to say more.
            let why =
                "nothing is inherited from other rules, so name signers in \"all_of\" or \"any_of\" here";
            self.complain(at, format!("{title}: trusts nobody; {why}"));
        }
        Rule {
            title,
            all_of: plain(all_of),
            any_of,
            provenance,
            capabilities: capabilities.into_iter().map(|found| found.value.to_owned()).collect(),
            limits,
        }
    }

    fn any_of(
        &self,
        mut section: Section<'d>,
        names: &BTreeSet<&str>,
        all_of: &[Found<String>],
    ) -> Option<AnyOf> {
        let minimum = section.required("minimum", number(1..=MEANS_MAX));
        let signers = self.names(&mut section, "signers", names);
        if !section.has("signers") {
            section.missing("signers");
        }
        section.finish();
        for signer in &signers {
            if all_of.iter().any(|needed| needed.value == signer.value) {
                let message = format!("signers: \"{}\" is in all_of, and would count twice", signer.value);
                self.complain(signer.at, message);
            }
        }
        let minimum = minimum?;
        if minimum.value > signers.len() {
            let message = format!("minimum: {} of {} signers can never be", minimum.value, signers.len());
            self.complain(minimum.at, message);
        }
        Some(AnyOf { minimum: minimum.value, signers: plain(signers) })
    }

    fn provenance(&self, mut section: Section<'d>, names: &BTreeSet<&str>) -> ProvenanceRule {
        let signers = self.names(&mut section, "signers", names);
        if !section.has("signers") {
            section.missing("signers");
        }
        let builder = section.optional("builder", pattern(Pattern::parse_address));
        let repository = section.optional("repository", pattern(Pattern::parse_address));
        let reference = section.optional("ref", pattern(Pattern::parse));
        if !["builder", "repository", "ref"].into_iter().any(|key| section.has(key)) {
            let message = format!("{}: asks for nothing; write builder, repository or ref", section.title());
            self.complain(section.at(), message);
        }
        section.finish();
        ProvenanceRule {
            signers: plain(signers),
            builder: builder.map(|found| found.value),
            // As SLSA writes it.
            repository: repository.map(|found| found.value.beginning_with("git+")),
            reference: reference.map(|found| found.value),
        }
    }

    fn revocation(&self, mut section: Section<'d>, names: &BTreeSet<&str>) -> RevocationRule {
        let signers = self.names(&mut section, "signers", names);
        if !section.has("signers") {
            section.missing("signers");
        }
        let minimum = section.defaulted("minimum_version", 0, number(0..=u64::MAX));
        section.finish();
        RevocationRule { signers: plain(signers), minimum_version: minimum.map_or(0, |found| found.value) }
    }

    fn minimum_versions(
        &self,
        sections: Vec<(Found<&'d str>, Section<'d>)>,
    ) -> BTreeMap<Tenant, BTreeMap<PolicyName, u64>> {
        let mut all = BTreeMap::new();
        for (title, section) in sections {
            let mut versions = BTreeMap::new();
            for (policy, version) in section.entries(number(0..=u64::MAX)) {
                if let Some(policy) = self.look(policy.at, PolicyName::new(policy.value)) {
                    versions.insert(policy, version.value);
                }
            }
            if let Some(tenant) = self.look(title.at, Tenant::new(title.value)) {
                all.insert(tenant, versions);
            }
        }
        all
    }

    /// Names of signers that there are, at least one.
    fn names(
        &self,
        section: &mut Section<'d>,
        key: &'static str,
        names: &BTreeSet<&str>,
    ) -> Vec<Found<String>> {
        let Some(found) = section.list(key, text_value) else { return Vec::new() };
        if found.is_empty() {
            let message = format!("{}: {key} names nobody", section.title());
            self.complain(section.at(), message);
        }
        let known = found.into_iter().filter(|name| {
            let known = names.contains(name.value);
            if !known {
                let shown = name.value.escape_debug();
                self.complain(name.at, format!("{key}: there is no [signer.{shown}]"));
            }
            known
        });
        known.map(|name| Found { value: name.value.to_owned(), at: name.at }).collect()
    }

    /// One key under two names, or an identity that fits two, would count twice.
    fn distinct(&self, mut placed: Vec<Placed>) {
        placed.sort_by_key(|(at, _, _)| *at);
        if let Some((at, _, _)) = placed.get(MEANS_MAX) {
            self.complain(*at, format!("more than {MEANS_MAX} keys and identities"));
        }
        for (index, (at, called, who)) in placed.iter().enumerate() {
            let earlier = placed.iter().take(index).find(|(_, _, other)| same(who, other));
            if let Some((_, first, _)) = earlier {
                let what = match who {
                    Who::Key(key) => format!("key: {} is already a key of", key.id().short()),
                    Who::Identity { identity, .. } => format!("identity: \"{identity}\" also fits one of"),
                };
                let message = format!("{what} [signer.{first}]; [signer.{called}] needs its own");
                self.complain(*at, message);
            }
        }
    }

    /// Identities without anything that vouches for them.
    fn no_identities(&self, placed: &[Placed]) {
        let message = if KEYLESS {
            "identity: there is no [keyless] with a trusted_root to check it against".to_owned()
        } else {
            format!("identity: {}", KeylessError::NotBuiltIn)
        };
        for (at, _, who) in placed {
            if matches!(who, Who::Identity { .. }) {
                self.complain(*at, message.clone());
            }
        }
    }

    fn signer_name(&self, name: Found<&str>) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.value.is_empty() || name.value.len() > NAME_MAX || !name.value.chars().all(plain) {
            let message = format!(
                "signer {:?}: a name has 1 to {NAME_MAX} of a-z, A-Z, 0-9, '.', '_' and '-'",
                name.value
            );
            self.complain(name.at, message);
        }
    }

    fn look<T>(&self, at: usize, looked: Result<T, impl std::fmt::Display>) -> Option<T> {
        looked.map_err(|why| self.complain(at, why.to_string())).ok()
    }

    fn complain(&self, at: usize, message: String) {
        self.complaints.add(at, message);
    }
}

fn same(one: &Who, other: &Who) -> bool {
    match (one, other) {
        (Who::Key(one), Who::Key(other)) => one.id() == other.id(),
        (
            Who::Identity { issuer, identity },
            Who::Identity { issuer: other_issuer, identity: other_identity },
        ) => issuer == other_issuer && identity.overlaps(other_identity),
        _ => false,
    }
}

fn ceilings(mut section: Section<'_>) -> Ceilings {
    let memory = section.optional("memory", size(64 << 10..=1 << 30));
    let table_elements = section.optional("table_elements", number(0..=10_000_000));
    let output = section.optional("output", size(1..=1 << 30));
    let longest = Duration::from_micros(1)..=Duration::from_secs(60);
    let deadline = section.optional("deadline", duration(longest));
    let stack = section.optional("stack", size(64 << 10..=1 << 20));
    let host_calls = section.optional("host_calls", number(0..=u32::MAX));
    let fuel = section.optional("fuel", number(0..=u64::MAX >> 1));
    section.finish();
    Ceilings {
        memory: memory.map(|found| found.value),
        table_elements: table_elements.map(|found| found.value),
        output: output.map(|found| found.value),
        deadline_us: deadline.and_then(|found| u32::try_from(found.value.as_micros()).ok()),
        stack: stack.map(|found| found.value),
        host_calls: host_calls.map(|found| found.value),
        fuel: fuel.map(|found| found.value),
    }
}

/// A public key as `openssl pkey -pubout` writes it and in no other form, so that one changed byte is another key or none.
fn public_key(value: &toml::de::DeValue<'_>) -> Result<PublicKey, String> {
    let pem = text_value(value)?;
    let key = PublicKey::from_pem(pem).map_err(|why| why.to_string())?;
    let written = key.to_pem().map_err(|why| why.to_string())?;
    if pem.strip_suffix('\n').unwrap_or(pem) != written.trim_end_matches('\n') {
        return Err(
            "is not written as `openssl pkey -pubout` writes it; take its lines as they are".to_owned()
        );
    }
    Ok(key)
}

fn trusted_root(value: &toml::de::DeValue<'_>) -> Result<KeylessRoot, String> {
    KeylessRoot::from_json(text_value(value)?).map_err(|why| why.to_string())
}

fn identity_pattern(written: &str) -> Result<Pattern, String> {
    if written.ends_with('*') { Pattern::parse_address(written) } else { Pattern::parse(written) }
}

fn pattern(
    parse: impl Fn(&str) -> Result<Pattern, String>,
) -> impl Fn(&toml::de::DeValue<'_>) -> Result<Pattern, String> {
    move |value| parse(text_value(value)?)
}

fn plain_text(value: &toml::de::DeValue<'_>) -> Result<String, String> {
    let text = text_value(value)?;
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn capability(value: &toml::de::DeValue<'_>) -> Result<&'static str, String> {
    let written = name::<PolicyName>(value)?;
    let known = Importable::ALL.map(Importable::name);
    known
        .into_iter()
        .find(|known| *known == written.as_str())
        .ok_or_else(|| format!("there is no capability \"{written}\"; there are: {}", known.join(", ")))
}

fn plain<T>(list: Vec<Found<T>>) -> Vec<T> {
    list.into_iter().map(|found| found.value).collect()
}
