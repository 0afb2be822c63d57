//! What changed between two bundles, and which of it lets the policy do more than before.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Serialize;

use super::{Bundle, PolicyConfig};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// "version", "import clock", "limit memory"
    pub what: String,
    /// None: it was not there.
    pub before: Option<String>,
    /// None: it is not there any more.
    pub after: Option<String>,
    /// Whether the later one may do something that the earlier one may not. Activating it has to be somebody's decision.
    pub widening: bool,
}

/// A bundle, and what good signatures on it say. What nobody checked stays empty.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    pub bundle: &'a Bundle,
    /// In words, one each.
    pub signers: &'a [String],
    /// The commit that it was built from, by its provenance.
    pub commit: Option<&'a str>,
}

/// All differences, those of capabilities first.
#[must_use]
pub fn difference(before: &Side<'_>, after: &Side<'_>) -> Vec<Change> {
    let (old, new) = (before.bundle, after.bundle);
    let mut changes = capabilities(&old.config, &new.config);
    changes.extend(value("bundle", Some(old.digest()), Some(new.digest())));
    changes.extend(value("version", Some(old.config.version), Some(new.config.version)));
    let signers = |side: &Side<'_>| side.signers.iter().cloned().collect();
    changes.extend(members("signer", &signers(before), &signers(after)));
    changes.extend(value("source commit", before.commit, after.commit));
    changes.extend(value("source", Some(old.source.digest), Some(new.source.digest)));
    changes.extend(value("size of source", Some(old.source.size), Some(new.source.size)));
    let platforms: BTreeSet<_> = old.compiled.iter().chain(&new.compiled).map(|code| code.platform).collect();
    for platform in platforms {
        let parts =
            |of: &Bundle| of.compiled_for(platform).map(|(said, code)| (said.clone(), code.cwasm.clone()));
        let (old, new) = (parts(old), parts(new));
        changes.extend(part(&format!("code for {platform}"), &old, &new, |(_, cwasm)| cwasm.digest));
        changes.extend(part(&format!("size of code for {platform}"), &old, &new, |(_, cwasm)| cwasm.size));
        changes
            .extend(part(&format!("wasmtime for {platform}"), &old, &new, |(said, _)| said.wasmtime.clone()));
        changes.extend(part(&format!("engine settings for {platform}"), &old, &new, |(said, _)| said.engine));
    }
    changes
}

/// What `next` may do and `active` may not: none of it is activated without somebody who accepts it.
#[must_use]
pub fn widenings(active: &PolicyConfig, next: &PolicyConfig) -> Vec<Change> {
    capabilities(active, next).into_iter().filter(|change| change.widening).collect()
}

/// Whom it decides for, what it is called by and may call, and how much it may use.
fn capabilities(before: &PolicyConfig, after: &PolicyConfig) -> Vec<Change> {
    let wide = |change: Change| Change { widening: true, ..change };
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    let mut changes = Vec::new();
    // Another policy's bundle is compared with nothing: all that it may do is new.
    changes.extend(value("tenant", Some(&before.tenant), Some(&after.tenant)).map(wide));
    changes.extend(value("policy", Some(&before.policy), Some(&after.policy)).map(wide));
    changes.extend(value("world", Some(&before.world), Some(&after.world)).map(wide));
    for change in members("import", &set(&before.imports), &set(&after.imports)) {
        changes.push(Change { widening: change.after.is_some(), ..change });
    }
    changes.extend(members("export", &set(&before.exports), &set(&after.exports)));
    let (old, new) = (&before.limits, &after.limits);
    for (what, old, new) in [
        ("limit memory (bytes)", old.memory, new.memory),
        ("limit table elements", old.table_elements, new.table_elements),
        ("limit output (bytes)", old.output, new.output),
        ("limit deadline (microseconds)", old.deadline_us, new.deadline_us),
    ] {
        changes
            .extend(value(what, Some(old), Some(new)).map(|change| Change { widening: new > old, ..change }));
    }
    changes
}

fn value<T: Display + PartialEq>(what: &str, before: Option<T>, after: Option<T>) -> Option<Change> {
    (before != after).then(|| Change {
        what: what.into(),
        before: before.map(|value| value.to_string()),
        after: after.map(|value| value.to_string()),
        widening: false,
    })
}

/// The same of two things that may not be there.
fn part<P, T: Display + PartialEq>(
    what: &str,
    before: &Option<P>,
    after: &Option<P>,
    of: impl Fn(&P) -> T,
) -> Option<Change> {
    value(what, before.as_ref().map(&of), after.as_ref().map(&of))
}

/// What left a set and what came into it.
fn members(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<Change> {
    let change = |name: &String, was: bool| Change {
        what: format!("{what} {name}"),
        before: was.then(|| name.clone()),
        after: (!was).then(|| name.clone()),
        widening: false,
    };
    let gone = before.difference(after).map(|name| change(name, true));
    gone.chain(after.difference(before).map(|name| change(name, false))).collect()
}
