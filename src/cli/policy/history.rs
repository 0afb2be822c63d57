//! `portcullis policy history`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::service::{Where, time};
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, EXIT_CODES, output};
use crate::decision::{PolicyName, Tenant};
use crate::ledger::{Event, What};

/// Show what happened to policies on this host, when and why
///
/// What became active, was held back, rolled back, withdrawn, compiled again; by which order, if it was one. Oldest first. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct History {
    /// Only this tenant's
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Only the policy, or the data, of this name
    #[arg(long, visible_alias = "data", value_name = "NAME")]
    policy: Option<PolicyName>,
    /// At most so many, the latest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    place: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl History {
    pub(super) fn run(self) -> CommandResult {
        let table = self.place.find()?.table()?;
        let asked = |event: &&Event| {
            self.tenant.as_ref().is_none_or(|tenant| event.tenant.as_ref() == Some(tenant))
                && self.policy.as_ref().is_none_or(|policy| event.policy.as_ref() == Some(policy))
        };
        let mut events: Vec<&Event> = table.history.iter().filter(asked).collect();
        events.drain(..events.len().saturating_sub(self.limit));
        if self.json {
            output::json(&json!({ "events": events }))?;
        } else {
            let text: String = events.iter().map(|event| show(event)).collect();
            let text = if text.is_empty() { "nothing has happened\n".to_owned() } else { text };
            output::text(format_args!("{text}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(event: &Event) -> String {
    let mut text = time(event.at);
    if let (Some(tenant), Some(policy)) = (&event.tenant, &event.policy) {
        text += &format!("  {tenant}/{policy}");
    } else if let Some(tenant) = &event.tenant {
        text += &format!("  {tenant}");
    }
    text += &format!("  {}", said(event.what));
    if let Some(version) = event.version {
        text += &format!("  version {version}");
    }
    if let Some(bundle) = event.bundle {
        text += &format!("  bundle {}", bundle.short());
    }
    if let Some(order) = event.order {
        text += &format!("  order {order}");
    }
    text += "\n";
    if event.why.is_empty() { text } else { text + &paragraph("    ", &printable(&event.why)) }
}

fn said(what: What) -> &'static str {
    match what {
        What::Activated => "activated",
        What::RolledBack => "rolled back",
        What::Withdrawn => "WITHDRAWN",
        What::Restored => "decides again",
        What::HeldBack => "HELD BACK",
        What::OrderRefused => "ORDER REFUSED",
        What::Rebuilt => "compiled again",
        What::Revocations => "revocation list taken",
        What::Recovered => "table begun anew",
        What::TenantRemoved => "tenant removed",
    }
}
