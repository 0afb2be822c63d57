//! The rules about versions and widenings: what is in the store, against what is known of the policy. Pure.

use crate::artifact::Digest;
use crate::bundle::PolicyConfig;
use crate::bundle::diff::{Change, widenings};
use crate::ledger::{Entry, Record, Target};

/// How far a version may be ahead of the floor by itself. Nothing lower becomes active after it, so a slip of the hand, or
/// somebody who had a key for a day, could otherwise leave no higher one.
const AHEAD_MAX: u64 = 1 << 32;

/// What an operator said of this very bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Word {
    /// Activate it, though it was rolled back from.
    pub(super) activate: bool,
    /// Though it asks for more.
    pub(super) accept_capabilities: bool,
}

/// Whether a bundle that is trusted may take the place of what is active.
///
/// # Errors
/// Says why not, and the way out.
pub(super) fn may_follow(
    record: Option<&Record>,
    bundle: Digest,
    config: &PolicyConfig,
    word: Word,
) -> Result<(), String> {
    let Some(record) = record else { return Ok(()) };
    let version = config.version;
    let floor = record.floor;
    if version < floor {
        return Err(format!(
            "bundle has version {version}, and {floor} was active already: older versions do not come back by themselves; \
             deliver a newer one, or go back to one that is kept with `portcullis policy rollback`"
        ));
    }
    if version == floor && record.floor_bundle.is_some_and(|other| other != bundle) {
        return Err(format!(
            "bundle has version {version}, as another one that was active had: what differs needs a version of its own"
        ));
    }
    if floor > 0 && version.saturating_sub(floor) > AHEAD_MAX && !word.activate {
        return Err(format!(
            "bundle has version {version}, very far ahead of {floor}, and no lower one would become active after it: if that is \
             meant, activate it with `portcullis policy activate`; else build it with a lower version"
        ));
    }
    let left = record.pinned.is_some_and(|pinned| version <= pinned)
        || (version == floor && record.floor_bundle == Some(bundle));
    if left && !word.activate {
        return Err(format!(
            "version {version} was rolled back from: deliver a newer one, or activate it with `portcullis policy activate`"
        ));
    }
    let Some(active) = &record.active else { return Ok(()) };
    let wider = widenings(&active.config, config);
    if !wider.is_empty() && !word.accept_capabilities {
        let wider: Vec<String> = wider.iter().map(shown).collect();
        return Err(format!(
            "version {version} may do more than version {}, which is active: {}; if that is wanted, activate it with \
             `portcullis policy activate --accept-capabilities`",
            active.version(),
            wider.join(", ")
        ));
    }
    Ok(())
}

/// The kept version that an operator wants back.
///
/// # Errors
/// When it is not kept, and which ones are.
pub(super) fn kept<'a>(record: Option<&'a Record>, to: &Target) -> Result<&'a Entry, String> {
    let previous = record.map(|record| record.previous.as_slice()).unwrap_or_default();
    let wanted = |entry: &&Entry| match to {
        Target::Version(version) => entry.version() == *version,
        Target::Bundle(bundle) => entry.bundle == *bundle,
    };
    if let Some(entry) = previous.iter().find(wanted) {
        return Ok(entry);
    }
    if record.and_then(|record| record.active.as_ref()).as_ref().is_some_and(wanted) {
        return Err("it is active already".into());
    }
    let what = match to {
        Target::Version(version) => format!("version {version}"),
        Target::Bundle(bundle) => bundle.to_string(),
    };
    let there: Vec<String> = previous.iter().map(|entry| entry.version().to_string()).collect();
    Err(match there.is_empty() {
        true => format!("{what} is not kept: there is no version to go back to"),
        false => format!("{what} is not kept; kept are versions {}", there.join(", ")),
    })
}

fn shown(change: &Change) -> String {
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!("{} {before} -> {after}", change.what),
        _ => change.what.clone(),
    }
}
