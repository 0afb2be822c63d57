//! A new key for a signer, and an end for the old one, in the text of a trust policy: whatever else stands in it, comments
//! too, stays as it is. What comes out is read again and must mean exactly that.

use std::ops::Range;
use std::path::Path;

use jiff::Timestamp;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::TrustErrors;
use super::policy::{Means, TrustPolicy, Who};
use crate::artifact::{KeyError, KeyId, PublicKey};

/// A key that cannot be replaced this way.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("{0}")]
    Policy(#[from] TrustErrors),
    #[error("rotate key of signer {0:?}: there is no such signer in the trust policy")]
    NoSigner(String),
    #[error(
        "rotate key of signer {0:?}: it has no key in use, but an identity or retired keys only; change it by hand"
    )]
    NoKey(String),
    #[error(
        "rotate key of signer {signer:?}: the new key is already one of signer {owner:?}; make a new one"
    )]
    KnownKey { signer: String, owner: String },
    #[error(
        "rotate key of signer {0:?}: it is not written as a table of its own; write [signer.{0}] and each key on lines of \
         its own"
    )]
    Form(String),
    #[error("rotate key of signer {signer:?}: {cause}")]
    Key { signer: String, cause: KeyError },
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The whole trust policy.
    pub text: String,
    pub old: KeyId,
    pub new: KeyId,
    /// Until when the old key counts: as asked, or as it was already.
    pub old_until: Timestamp,
}

/// Gives `signer` the key `new`; what the old one signed counts until `end`.
///
/// # Errors
/// When the text is no trust policy, or this cannot be done to it.
pub fn rotate(
    path: &Path,
    text: &str,
    signer: &str,
    new: &PublicKey,
    end: Timestamp,
) -> Result<Rotated, RotateError> {
    let before = TrustPolicy::parse(path, text)?;
    let named = || signer.to_owned();
    let known = before.signers.get(signer).ok_or_else(|| RotateError::NoSigner(named()))?;
    if let Some(owner) = owner(&before, new) {
        return Err(RotateError::KnownKey { signer: named(), owner });
    }
    let place = Place::of(signer, text).ok_or_else(|| RotateError::Form(named()))?;
    let (Some(key), Some(Means { who: Who::Key(old), not_before, not_after })) =
        (place.key.clone(), known.means.first())
    else {
        return Err(RotateError::NoKey(named()));
    };
    let old_until = not_after.map_or(end, |earlier| earlier.min(end));
    let pem = |key: &PublicKey| key.to_pem().map_err(|cause| RotateError::Key { signer: named(), cause });
    let begins = not_before.map_or_else(String::new, |at| format!("not_before = {at}\n"));
    let retired = format!(
        "\n[[signer.{}.retired]]\nkey = \"\"\"\n{}\"\"\"\n{begins}not_after = {old_until}\n",
        quoted(signer),
        pem(old)?
    );
    let mut changes = vec![(key, format!("\"\"\"\n{}\"\"\"", pem(new)?)), (place.end..place.end, retired)];
    changes.extend(place.window.into_iter().map(|line| (line, String::new())));
    let text = change(text, changes).ok_or_else(|| RotateError::Form(named()))?;

    let mut expected = before.clone();
    if let Some(known) = expected.signers.get_mut(signer) {
        let retired =
            Means { who: Who::Key(old.clone()), not_before: *not_before, not_after: Some(old_until) };
        let used = Means { who: Who::Key(new.clone()), not_before: None, not_after: None };
        known.means.splice(..1, [used, retired]);
    }
    match TrustPolicy::parse(path, &text) {
        Ok(after) if after == expected => Ok(Rotated { text, old: old.id(), new: new.id(), old_until }),
        _ => Err(RotateError::Form(named())),
    }
}

fn owner(policy: &TrustPolicy, key: &PublicKey) -> Option<String> {
    policy.name_of(&crate::signature::Signer::Key(key.id())).map(str::to_owned)
}

/// Where in the text a signer is.
struct Place {
    /// The value of its key in use.
    key: Option<Range<usize>>,
    /// The lines that say when that counts.
    window: Vec<Range<usize>>,
    /// Behind the last line of the signer's own table.
    end: usize,
}

impl Place {
    fn of(signer: &str, text: &str) -> Option<Self> {
        let document = DeTable::parse(text).ok()?;
        let signer = document.get_ref().get("signer")?.get_ref().as_table()?.get(signer)?;
        let table = signer.get_ref().as_table()?;
        let own = || table.iter().filter(|(_, value)| !is_tables(value));
        let last = own().map(|(_, value)| value.span().end).max()?;
        let window = own().filter(|(key, _)| ["not_before", "not_after"].contains(&key.get_ref().as_ref()));
        let whole_lines = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            line_start(text, key.span().start)..line_end(text, value.span().end)
        };
        Some(Self {
            key: table.get("key").map(Spanned::span),
            window: window.map(whole_lines).collect(),
            end: line_end(text, last),
        })
    }
}

fn is_tables(value: &Spanned<DeValue<'_>>) -> bool {
    value.get_ref().is_array() || value.get_ref().is_table()
}

fn line_start(text: &str, at: usize) -> usize {
    text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1)
}

fn line_end(text: &str, at: usize) -> usize {
    text.get(at..).and_then(|after| after.find('\n')).map_or(text.len(), |newline| at + newline + 1)
}

/// Replaces each range by its text, the last range first. Of two at the same place the longer one stands first.
fn change(text: &str, mut changes: Vec<(Range<usize>, String)>) -> Option<String> {
    changes.sort_by_key(|(range, _)| (range.start, range.end));
    let mut changed = text.to_owned();
    for (range, by) in changes.into_iter().rev() {
        changed.get(range.clone())?;
        let unfinished = range.start == changed.len() && !changed.ends_with('\n');
        changed.replace_range(range, &if unfinished { format!("\n{by}") } else { by });
    }
    Some(changed)
}

/// A name as a key of TOML.
fn quoted(name: &str) -> String {
    if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() }
}
