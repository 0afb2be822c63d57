//! `portcullis policy diff`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::stored::{Stored, signer};
use crate::bundle::diff::{Change, Side, difference};
use crate::cli::terminal::printable;
use crate::cli::trust::read_trust;
use crate::cli::{CommandResult, files, output};
use crate::signature::{Anchors, Evidence};
use crate::trust::TrustPolicy;

const CHANGED: u8 = 2;
const WIDENED: u8 = 3;
const EXIT_CODES: &str = "Exit codes: 0 the same bundle, vouched for by the same; 2 something changed; 3 something changed \
                          and the later one may do more; 1 failed, with the reason; 64 the command line is wrong.";

/// Show what changed between two bundles, and mark what lets the policy do more
///
/// Capabilities, limits, exports, source, commit, machine code, sizes, signers. What is marked with + is a widening:
/// the registry activates it only with --accept-capabilities. Signers and commit are compared where --trust or --key
/// says whose word counts.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Diff {
    /// The bundle of before
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// The bundle of after
    #[arg(value_name = "AFTER")]
    after: PathBuf,
    /// A trust policy, for whose signatures count and what their signers are called
    #[arg(long, value_name = "FILE", conflicts_with = "keys")]
    trust: Option<PathBuf>,
    /// A public key whose signatures count; may be given more than once
    #[arg(long = "key", value_name = "PUB")]
    keys: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(super) fn run(self) -> CommandResult {
        let policy = self.trust.as_deref().map(read_trust).transpose()?;
        let anchors = match &policy {
            Some(policy) => policy.anchors(),
            None => Anchors { keys: files::read_public_keys(&self.keys)?, ..Anchors::default() },
        };
        let checked = policy.is_some() || !self.keys.is_empty();
        let (before, after) = (Stored::open(&self.before)?, Stored::open(&self.after)?);
        let words = [&before, &after].map(|stored| Words::of(&stored.evidence(&anchors), policy.as_ref()));
        let [old, new] = &words;
        let changes = difference(&old.side(&before), &new.side(&after));
        let widenings = changes.iter().filter(|change| change.widening).count();
        if self.json {
            output::json(&json!({
                "before": before.bundle.digest(), "after": after.bundle.digest(), "same": changes.is_empty(),
                "widens": widenings > 0, "signers_checked": checked, "changes": changes,
            }))?;
        } else {
            output::text(format_args!("{}", for_people(&changes, checked)))?;
        }
        Ok(match (changes.len(), widenings) {
            (0, _) => ExitCode::SUCCESS,
            (_, 0) => ExitCode::from(CHANGED),
            _ => ExitCode::from(WIDENED),
        })
    }
}

/// What good signatures say, in words.
struct Words {
    signers: Vec<String>,
    commit: Option<String>,
}

impl Words {
    fn of(evidence: &Evidence, policy: Option<&TrustPolicy>) -> Self {
        let name = |who| signer(who, policy.and_then(|policy| policy.name_of(who)));
        Self {
            signers: evidence.signers.iter().map(name).collect(),
            commit: evidence.provenance.iter().find_map(|built| built.commit.clone()),
        }
    }

    fn side<'a>(&'a self, stored: &'a Stored) -> Side<'a> {
        Side { bundle: &stored.bundle, signers: &self.signers, commit: self.commit.as_deref() }
    }
}

fn for_people(changes: &[Change], checked: bool) -> String {
    let mut text: String = changes.iter().map(line).collect();
    if changes.is_empty() {
        text += "the same bundle\n";
    }
    if !checked {
        text += "signers and commit are not compared (give --trust or --key)\n";
    }
    match changes.iter().filter(|change| change.widening).count() {
        0 => text,
        1 => text + "1 widening: activation needs --accept-capabilities\n",
        several => text + &format!("{several} widenings: activation needs --accept-capabilities\n"),
    }
}

/// A change in one line, marked if it widens.
pub(in crate::cli) fn line(change: &Change) -> String {
    let mark = if change.widening { '+' } else { ' ' };
    let what = printable(&change.what);
    let value = |value: &String| printable(value);
    match (change.before.as_ref().map(value), change.after.as_ref().map(value)) {
        (Some(before), Some(after)) => format!("{mark} {what}: {before} -> {after}\n"),
        // The name says it already.
        (Some(gone), None) if what.ends_with(&gone) => format!("{mark} {what}: gone\n"),
        (None, Some(new)) if what.ends_with(&new) => format!("{mark} {what}: new\n"),
        (Some(gone), None) => format!("{mark} {what}: gone ({gone})\n"),
        (None, Some(new)) => format!("{mark} {what}: new ({new})\n"),
        (None, None) => format!("{mark} {what}\n"),
    }
}
