//! `portcullis policy activate`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::service::{Reload, Service, ServiceError, Where, about, describe, record};
use crate::artifact::Digest;
use crate::bundle::diff::{Change, widenings};
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, complain, output};
use crate::decision::{PolicyName, Tenant};
use crate::ledger::{Event, Order, What};

const HELD_BACK: u8 = 2;
pub(super) const EXIT_CODES: &str = "Exit codes: 0 it serves; 1 refused or failed, with the reason; 2 held back, with the reason, \
                                     and what served before still serves; 3 not known what the service did; 64 the command \
                                     line is wrong.";

/// Make the bundle that lies in the store serve, by an operator's word
///
/// What is newer and asks for no more is activated by itself at a reload. This is for what is held back: a bundle that asks
/// for more than the one that serves (--accept-capabilities, after a look at `policy diff`), or one that was rolled back
/// from. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Activate {
    /// Who it decides for
    #[arg(long, value_name = "NAME")]
    tenant: Tenant,
    /// Name of the policy, or of the data
    #[arg(long, visible_alias = "data", value_name = "NAME")]
    policy: PolicyName,
    /// The bundle that is meant; another one in the store is not activated [default: the one in the store now]
    #[arg(long, value_name = "DIGEST")]
    bundle: Option<Digest>,
    /// Accept everything that it may do and what serves now may not
    #[arg(long)]
    accept_capabilities: bool,
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
    #[error("activate {what}: the store has bundle {found}, not {expected}; deliver that one first")]
    OtherBundle { what: String, found: Digest, expected: Digest },
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

impl Activate {
    pub(super) fn run(self) -> CommandResult {
        self.activate().or_else(|error| complain(&error, error.exit_code()))
    }

    fn activate(&self) -> Result<ExitCode, Refused> {
        let service = self.place.find()?;
        let (tenant, policy) = (&self.tenant, &self.policy);
        let table = service.table()?;
        let delivered = service.delivered(tenant, policy)?;
        let (digest, config) = (delivered.bundle.digest(), &delivered.bundle.config);
        if let Some(expected) = self.bundle.filter(|expected| *expected != digest) {
            return Err(Refused::OtherBundle { what: about(tenant, policy), found: digest, expected });
        }
        let known = record(&table, tenant, policy);
        let active = known.and_then(|record| record.active.as_ref());
        let wider = active.map(|active| widenings(&active.config, config)).unwrap_or_default();
        let serves = known.is_some_and(|record| record.withdrawn.is_none())
            && active.is_some_and(|active| active.bundle == digest);
        let outcome = if serves {
            Outcome::Already
        } else if !wider.is_empty() && !self.accept_capabilities {
            Outcome::NotAccepted
        } else {
            let order = Order::Activate {
                tenant: tenant.clone(),
                policy: policy.clone(),
                bundle: digest,
                accept_capabilities: self.accept_capabilities,
            };
            Outcome::of(service.order(&order, &self.reload)?)
        };
        self.report(&service, &outcome, &wider)
    }

    fn report(&self, service: &Service, outcome: &Outcome, wider: &[Change]) -> Result<ExitCode, Refused> {
        let table = service.table()?;
        let active = record(&table, &self.tenant, &self.policy).and_then(|record| record.active.as_ref());
        if self.json {
            output::json(&json!({
                "outcome": outcome.word(), "order": outcome.order(), "why": outcome.why(), "widenings": wider,
                "active": active,
            }))?;
            return Ok(outcome.exit_code());
        }
        let what = about(&self.tenant, &self.policy);
        let wider: String = wider.iter().map(super::diff::line).collect();
        let text = match outcome {
            Outcome::Ordered(number) => {
                format!("ordered   {what}: order {number}, carried out at the next reload\n")
            }
            Outcome::NotAccepted => format!(
                "held back {what}: it asks for more than what serves now\n{wider}look at it with `portcullis policy \
                 diff`, and type the same with --accept-capabilities\n"
            ),
            Outcome::HeldBack(event) => paragraph(&format!("held back {what}:"), &printable(&event.why)),
            Outcome::Already | Outcome::Done(_) => {
                let version = active.map_or(0, |active| active.config.version);
                let shown = active.map(|active| describe(service, active)).unwrap_or_default();
                let already = if matches!(outcome, Outcome::Already) { ", as before" } else { "" };
                format!("active    {what}: version {version}{already}\n{shown}{wider}")
            }
        };
        output::text(format_args!("{text}"))?;
        Ok(outcome.exit_code())
    }
}

/// What an order came to.
pub(super) enum Outcome {
    /// None was needed.
    Already,
    /// None was left: somebody has to accept it first.
    NotAccepted,
    /// Nobody was told yet.
    Ordered(u64),
    Done(Event),
    HeldBack(Event),
}

impl Outcome {
    pub(super) fn of((number, event): (u64, Option<Event>)) -> Self {
        match event {
            None => Self::Ordered(number),
            Some(event) if matches!(event.what, What::Activated | What::Restored | What::RolledBack) => {
                Self::Done(event)
            }
            Some(event) => Self::HeldBack(event),
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Already => "already_active",
            Self::NotAccepted | Self::HeldBack(_) => "held_back",
            Self::Ordered(_) => "ordered",
            Self::Done(_) => "done",
        }
    }

    pub(super) fn order(&self) -> Option<u64> {
        match self {
            Self::Already | Self::NotAccepted => None,
            Self::Ordered(number) => Some(*number),
            Self::Done(event) | Self::HeldBack(event) => event.order,
        }
    }

    pub(super) fn why(&self) -> Option<&str> {
        match self {
            Self::Already | Self::NotAccepted | Self::Ordered(_) => None,
            Self::Done(event) | Self::HeldBack(event) => Some(&event.why),
        }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Already | Self::Ordered(_) | Self::Done(_) => ExitCode::SUCCESS,
            Self::NotAccepted | Self::HeldBack(_) => ExitCode::from(HELD_BACK),
        }
    }
}
