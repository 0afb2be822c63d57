//! What changed between two bundles, and which of it lets the policy do more than before.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::Serialize;

use super::{Bundle, PolicyConfig, RegoConfig};

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
    changes.extend(value(
        "encrypted with key",
        old.config.confidential.as_ref(),
        new.config.confidential.as_ref(),
    ));
    changes.extend(value("source", Some(old.source.digest), Some(new.source.digest)));
    let rego = |bundle: &Bundle| bundle.config.rego.clone();
    let (was, is) = (rego(old), rego(new));
    changes.extend(part("rule", &was, &is, |rego| rego.entrypoint.clone()));
    changes.extend(part("result", &was, &is, |rego| rego.result));
    changes.extend(part("module of OPA", &was, &is, |rego| rego.module));
    changes.extend(part("data", &was, &is, |rego| rego.data.map_or("none".into(), |data| data.to_string())));
    let builtins = |rego: &Option<RegoConfig>| rego.iter().flat_map(|rego| rego.builtins.clone()).collect();
    changes.extend(members("builtin", &builtins(&was), &builtins(&is)));
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
    for change in members("data", &set(&before.data), &set(&after.data)) {
        changes.push(Change { widening: change.after.is_some(), ..change });
    }
    changes.extend(members("export", &set(&before.exports), &set(&after.exports)));
    // Who may count at all is an import; what the counters are called lets nobody do more.
    changes.extend(members("metric", &set(&before.metrics), &set(&after.metrics)));
    let (old, new) = (&before.limits, &after.limits);
    for (what, old, new) in [
        ("limit memory (bytes)", old.memory, new.memory),
        ("limit table elements", old.table_elements, new.table_elements),
        ("limit output (bytes)", old.output, new.output),
        ("limit deadline (microseconds)", old.deadline_us, new.deadline_us),
        ("limit stack (bytes)", old.stack, new.stack),
        ("limit host calls", old.host_calls, new.host_calls),
    ] {
        changes
            .extend(value(what, Some(old), Some(new)).map(|change| Change { widening: new > old, ..change }));
    }
    let shown = |fuel: Option<u64>| fuel.map_or_else(|| "none".to_owned(), |fuel| fuel.to_string());
    // Without a limit is more than any.
    let wider = new.fuel.unwrap_or(u64::MAX) > old.fuel.unwrap_or(u64::MAX);
    changes.extend(
        value("limit fuel", Some(shown(old.fuel)), Some(shown(new.fuel)))
            .map(|change| Change { widening: wider, ..change }),
    );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Digest, Limits};
    use crate::bundle::{Draft, DraftCompiled, Platform};
    use crate::decision::{PolicyName, Tenant};

    fn draft() -> Draft {
        Draft {
            policy: PolicyName::new("p").unwrap(),
            tenant: Tenant::new("t").unwrap(),
            version: 3,
            world: "portcullis:policy@0.1.0".into(),
            imports: vec!["clock".into()],
            exports: vec!["decide".into()],
            limits: Limits::default(),
            metrics: vec![],
            data: vec!["prices".into()],
            source: b"source".to_vec(),
            compiled: vec![DraftCompiled {
                platform: Platform::LinuxAmd64,
                cwasm: b"code".to_vec(),
                wasmtime: "48.0.8".into(),
                engine: Digest::of(b"engine"),
            }],
            rego: None,
            prepared: None,
        }
    }

    fn config(change: impl Fn(&mut Draft)) -> PolicyConfig {
        let mut draft = draft();
        change(&mut draft);
        draft.assemble().unwrap().bundle.config
    }

    /// What each change is called, and whether it lets the policy do more.
    #[test]
    fn every_widening_is_marked_and_nothing_else() {
        type Edit = fn(&mut Draft);
        let cases: [(Edit, &str, bool); 17] = [
            (|d| d.imports.push("log".into()), "import log", true),
            (|d| d.imports.clear(), "import clock", false),
            (|d| d.data.push("more".into()), "data more", true),
            (|d| d.data.clear(), "data prices", false),
            (|d| d.limits.memory += 1, "limit memory (bytes)", true),
            (|d| d.limits.memory -= 1, "limit memory (bytes)", false),
            (|d| d.limits.table_elements += 1, "limit table elements", true),
            (|d| d.limits.table_elements -= 1, "limit table elements", false),
            (|d| d.limits.output += 1, "limit output (bytes)", true),
            (|d| d.limits.output -= 1, "limit output (bytes)", false),
            (|d| d.limits.deadline_us += 1, "limit deadline (microseconds)", true),
            (|d| d.limits.deadline_us -= 1, "limit deadline (microseconds)", false),
            (|d| d.world = "portcullis:policy@0.2.0".into(), "world", true),
            (|d| d.policy = PolicyName::new("q").unwrap(), "policy", true),
            (|d| d.tenant = Tenant::new("u").unwrap(), "tenant", true),
            (|d| d.exports.push("more".into()), "export more", false),
            (|d| d.exports.clear(), "export decide", false),
        ];
        for (edit, what, widening) in cases {
            let changes = capabilities(&config(|_| {}), &config(edit));
            let found: Vec<_> =
                changes.iter().map(|change| (change.what.as_str(), change.widening)).collect();
            assert_eq!(found, [(what, widening)]);
            let widenings = widenings(&config(|_| {}), &config(edit));
            assert_eq!(widenings.len(), usize::from(widening), "{what}");
        }
        assert_eq!(widenings(&config(|_| {}), &config(|draft| draft.version = 9)), []);
    }

    #[test]
    fn a_difference_names_what_changed_before_and_after() {
        let old = draft().assemble().unwrap().bundle;
        let mut next = draft();
        next.version = 4;
        next.source = b"longer source".to_vec();
        next.limits.memory = 8 << 20;
        next.compiled.push(DraftCompiled {
            platform: Platform::LinuxArm64,
            cwasm: b"other code".to_vec(),
            wasmtime: "48.0.9".into(),
            engine: Digest::of(b"engine"),
        });
        let new = next.assemble().unwrap().bundle;
        let (ann, bob) = (["key ann".to_owned()], ["key bob".to_owned()]);
        let before = Side { bundle: &old, signers: &ann, commit: Some("11") };
        let after = Side { bundle: &new, signers: &bob, commit: None };
        assert_eq!(difference(&before, &before), []);
        let changes = difference(&before, &after);
        let change = |what: &str| {
            let change = changes.iter().find(|change| change.what == what);
            let change = change.unwrap_or_else(|| panic!("{what} is not in {changes:#?}"));
            (change.before.as_deref(), change.after.as_deref(), change.widening)
        };
        assert_eq!(change("version"), (Some("3"), Some("4"), false));
        assert_eq!(change("limit memory (bytes)"), (Some("4194304"), Some("8388608"), true));
        assert_eq!(change("signer key ann"), (Some("key ann"), None, false));
        assert_eq!(change("signer key bob"), (None, Some("key bob"), false));
        assert_eq!(change("source commit"), (Some("11"), None, false));
        assert_eq!(change("size of source"), (Some("6"), Some("13"), false));
        assert_eq!(change("wasmtime for linux/arm64"), (None, Some("48.0.9"), false));
        assert_eq!(change("size of code for linux/arm64"), (None, Some("10"), false));
        assert!(!changes.iter().any(|change| change.what.contains("amd64")));
        assert_eq!(
            change("bundle"),
            (Some(old.digest().to_string().as_str()), Some(new.digest().to_string().as_str()), false)
        );
    }
}
