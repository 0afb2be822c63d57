//! `portcullis policy list`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::service::{Service, Where, describe, time};
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, EXIT_CODES, output};
use crate::decision::{PolicyName, Tenant};
use crate::ledger::{Entry, Record};

/// Show which versions serve on this host, are kept for a way back, or are held back
///
/// With who signed them, since when they serve, and why what is held back is. As the registry has written it down at its last survey. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct List {
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only the policy, or the data, of this name
    #[arg(long, visible_alias = "data", value_name = "NAME")]
    policy: Option<PolicyName>,
    #[command(flatten)]
    place: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self) -> CommandResult {
        let service = self.place.find()?;
        let table = service.table()?;
        let asked = |record: &&Record| {
            self.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
                && self.policy.as_ref().is_none_or(|policy| *policy == record.policy)
        };
        let records: Vec<&Record> = table.policies.iter().filter(asked).collect();
        let version = table.revocations.as_ref().map(|known| known.version);
        if self.json {
            output::json(&json!({
                "host": table.host, "revision": table.revision, "revocations": version, "policies": records,
            }))?;
        } else {
            let text: String = records.iter().map(|record| show(&service, record)).collect();
            let text = if text.is_empty() { "no policies\n".to_owned() } else { text };
            let revoked = version.map_or_else(
                || "no revocation list is in force\n".to_owned(),
                |version| format!("revocation list version {version} is in force\n"),
            );
            output::text(format_args!("{text}{revoked}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(service: &Service, record: &Record) -> String {
    let Record { tenant, policy, active, previous, withdrawn, held_back, pinned, floor, rebuilt, .. } =
        record;
    let mut text = match (active, withdrawn) {
        (Some(active), None) => format!("{tenant}/{policy}: version {} serves\n", active.config.version),
        (Some(active), Some(_)) => {
            format!("{tenant}/{policy}: version {} DOES NOT SERVE\n", active.config.version)
        }
        (None, _) => format!("{tenant}/{policy}: nothing serves\n"),
    };
    if let Some(active) = active {
        text += &describe(service, active);
    }
    if let Some(why) = withdrawn {
        text += &paragraph("  withdrawn:", &printable(why));
    }
    text += &previous.iter().map(show_previous).collect::<String>();
    if let Some(held_back) = held_back {
        let version = held_back.version.map_or_else(String::new, |version| format!(" version {version}"));
        let bundle = held_back.bundle.map_or_else(String::new, |bundle| format!(" ({})", bundle.short()));
        text += &paragraph(&format!("  held back{version}{bundle}:"), &printable(&held_back.why));
    }
    if let Some(pinned) = pinned {
        text += &format!("  waiting   versions up to {pinned}, since it was rolled back\n");
    }
    if *rebuilt > 0 {
        text += &format!("  rebuilt   {rebuilt} times on this host; `portcullis policy history` says why\n");
    }
    text + &format!("  floor     {floor}: nothing lower becomes active by itself\n")
}

fn show_previous(entry: &Entry) -> String {
    let (version, bundle, since) = (entry.config.version, entry.bundle.short(), time(entry.since));
    format!("  kept      version {version}, bundle {bundle}, served from {since}\n")
}
