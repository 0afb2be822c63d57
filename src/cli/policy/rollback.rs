//! `portcullis policy rollback`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::activate::{EXIT_CODES, Outcome};
use super::service::{Reload, Service, ServiceError, Where, about, describe, record};
use crate::artifact::Digest;
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, complain, output};
use crate::decision::{PolicyName, Tenant};
use crate::ledger::{Order, Target};

/// Go back to a version that served before
///
/// Only to one that the registry still keeps and that may still decide: `policy list` shows which. Newer versions in the
/// store wait from then on until `policy activate`. It is written to the history with the reason. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Rollback {
    /// Who it decides for
    #[arg(long, value_name = "NAME")]
    tenant: Tenant,
    /// Name of the policy, or of the data
    #[arg(long, visible_alias = "data", value_name = "NAME")]
    policy: PolicyName,
    /// Which version [default: the one before]
    #[arg(long, value_name = "N", conflicts_with = "bundle")]
    to_version: Option<u64>,
    /// Which bundle, where two had the same version
    #[arg(long, value_name = "DIGEST")]
    bundle: Option<Digest>,
    /// Why; for the history
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    reload: Reload,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("roll back {what}: the registry keeps no earlier version of it; deliver a newer bundle instead")]
    NoneBefore { what: String },
    #[error("print what became of it: {0}")]
    Print(#[from] std::io::Error),
}

impl Refused {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Service(error) => error.exit_code(),
            _ => 1,
        }
    }
}

impl Rollback {
    pub(super) fn run(self) -> CommandResult {
        self.roll_back().or_else(|error| complain(&error, error.exit_code()))
    }

    fn roll_back(&self) -> Result<ExitCode, Refused> {
        let service = self.place.find()?;
        let to = match (self.to_version, self.bundle) {
            (Some(version), _) => Target::Version(version),
            (None, Some(bundle)) => Target::Bundle(bundle),
            (None, None) => {
                let table = service.table()?;
                let before =
                    record(&table, &self.tenant, &self.policy).and_then(|record| record.previous.first());
                let none = || Refused::NoneBefore { what: about(&self.tenant, &self.policy) };
                Target::Bundle(before.ok_or_else(none)?.bundle)
            }
        };
        let order = Order::Rollback {
            tenant: self.tenant.clone(),
            policy: self.policy.clone(),
            to,
            reason: self.reason.clone(),
        };
        let outcome = Outcome::of(service.order(&order, &self.reload)?);
        self.report(&service, &outcome)
    }

    fn report(&self, service: &Service, outcome: &Outcome) -> Result<ExitCode, Refused> {
        let table = service.table()?;
        let record = record(&table, &self.tenant, &self.policy);
        let active = record.and_then(|record| record.active.as_ref());
        if self.json {
            output::json(&json!({
                "outcome": outcome.word(), "order": outcome.order(), "why": outcome.why(), "active": active,
            }))?;
            return Ok(outcome.exit_code());
        }
        let what = about(&self.tenant, &self.policy);
        let text = match outcome {
            Outcome::Ordered(number) => {
                format!("ordered   {what}: order {number}, carried out at the next reload\n")
            }
            Outcome::HeldBack(event) => paragraph(&format!("refused   {what}:"), &printable(&event.why)),
            Outcome::Already | Outcome::NotAccepted | Outcome::Done(_) => {
                let version = active.map_or(0, |active| active.config.version);
                let shown = active.map(|active| describe(service, active)).unwrap_or_default();
                let pinned = record.and_then(|record| record.pinned).map_or_else(String::new, |pinned| {
                    format!("  waiting   versions up to {pinned}, until `portcullis policy activate`\n")
                });
                format!("back      {what}: version {version}\n{shown}{pinned}")
            }
        };
        output::text(format_args!("{text}"))?;
        Ok(outcome.exit_code())
    }
}
