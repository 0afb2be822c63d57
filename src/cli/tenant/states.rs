//! `portcullis tenant suspend`, `resume` and `remove`

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::EXIT_CODES;
use super::change::{Change, Outcome, Reach, TenantError};
use super::directory::{Intent, Operation};
use super::file;
use super::residue::{self, Residue};
use crate::cli::terminal::{paragraph, printable};
use crate::cli::{CommandResult, complain, output};
use crate::decision::Tenant;
use crate::supervisor::config::TenantState;

/// Stop serving a tenant, and keep everything that is its own
///
/// Its requests are refused from then on, those on open connections too. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Suspend {
    #[command(flatten)]
    whom: Whom,
}

/// Serve a tenant again that was suspended, or try again what failed
///
/// Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Resume {
    #[command(flatten)]
    whom: Whom,
}

const REMOVE_CODES: &str = "Exit codes: 0 done, and nothing is left of it; 1 refused or failed, with the reason on standard \
                            error; 2 done, and something is left of it, which is said; 3 not known, since the service did \
                            not answer: the next of these commands takes it up; 64 the command line is wrong.";

/// Remove a tenant for good: its name is never used again, and nothing of it is kept
///
/// Its requests are refused, the registry forgets its versions, builders remove its code from the caches; what a neighbour has too
/// stays the neighbour's. Then everything is looked through for what is left, and that is printed. Bundles in the store are the
/// operator's, and stay unless it is said that they go. Typed again, it looks again. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = REMOVE_CODES)]
pub(in crate::cli) struct Remove {
    #[command(flatten)]
    whom: Whom,
    /// Remove its bundles from the store too
    #[arg(long)]
    purge_store: bool,
}

#[derive(Debug, Args)]
struct Whom {
    /// The tenant
    #[arg(value_name = "NAME")]
    tenant: Tenant,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Suspend {
    pub(super) fn run(self) -> CommandResult {
        self.suspend().or_else(|error| complain(&error, error.exit_code()))
    }

    fn suspend(&self) -> Result<ExitCode, TenantError> {
        let Whom { tenant, reach, json } = &self.whom;
        let change = reach.begin()?;
        change.known(tenant)?;
        let outcome = match change.filed(tenant).map(|one| one.state) {
            Some(TenantState::Active) => change.carry_out(Operation::Suspend, tenant)?,
            Some(TenantState::Suspended) => Outcome::AS_BEFORE,
            state => return Err(not_from(tenant, state, "suspended")),
        };
        report(&change, tenant, &outcome, *json)
    }
}

impl Resume {
    pub(super) fn run(self) -> CommandResult {
        self.resume().or_else(|error| complain(&error, error.exit_code()))
    }

    fn resume(&self) -> Result<ExitCode, TenantError> {
        let Whom { tenant, reach, json } = &self.whom;
        let change = reach.begin()?;
        let text = change.known(tenant)?;
        let outcome = match change.filed(tenant).map(|one| one.state) {
            Some(TenantState::Suspended | TenantState::Failed | TenantState::Pending) => {
                let path = change.directory.file_of(tenant);
                let active = file::in_state(&text, TenantState::Active, None)
                    .map_err(|why| TenantError::File { path, why })?;
                change.judge(tenant, &active)?;
                change.carry_out(Operation::Resume, tenant)?
            }
            Some(TenantState::Active) => Outcome::AS_BEFORE,
            state => return Err(not_from(tenant, state, "resumed")),
        };
        report(&change, tenant, &outcome, *json)
    }
}

fn not_from(tenant: &Tenant, state: Option<TenantState>, what: &str) -> TenantError {
    TenantError::Refused(match state {
        Some(state) => format!("tenant {tenant} is {state}: it cannot be {what}"),
        None => format!(
            "tenant {tenant} has a file that makes no sense; `portcullis-supervisor --check` says why"
        ),
    })
}

impl Remove {
    pub(super) fn run(self) -> CommandResult {
        self.remove().or_else(|error| complain(&error, error.exit_code()))
    }

    fn remove(&self) -> Result<ExitCode, TenantError> {
        let Whom { tenant, reach, json } = &self.whom;
        let change = reach.begin()?;
        change.known(tenant)?;
        let outcome = change.carry_out(Operation::Remove, tenant)?;
        let residue = residue::look(&change, tenant, self.purge_store);
        let left = residue.is_left();
        if *json {
            let mut said = said(&change, tenant, &outcome);
            if let Value::Object(fields) = &mut said {
                fields.insert("state".to_owned(), json!(TenantState::Removed));
                fields.insert(
                    "residue".to_owned(),
                    serde_json::to_value(&residue).map_err(std::io::Error::other)?,
                );
            }
            output::json(&said)?;
        } else {
            let (earlier, warning) = (earlier(&change), warned(&outcome));
            output::text(format_args!(
                "{earlier}removed   tenant {tenant}: its name is never used again\n{warning}{}",
                Residue::for_people(&residue)
            ))?;
        }
        Ok(if left { ExitCode::from(2) } else { ExitCode::SUCCESS })
    }
}

/// What became of a change, on standard output; where it was refused, as an error.
pub(super) fn report(
    change: &Change,
    tenant: &Tenant,
    outcome: &Outcome,
    json: bool,
) -> Result<ExitCode, TenantError> {
    if json {
        output::json(&said(change, tenant, outcome))?;
    } else {
        output::text(format_args!("{}", earlier(change)))?;
    }
    match outcome {
        Outcome::Done { reload, .. } if !json => {
            let state = state_of(change, tenant);
            let number =
                if *reload == 0 { ", as before".to_owned() } else { format!(" since reload {reload}") };
            output::text(format_args!("{state:<9} tenant {tenant}{number}\n{}", warned(outcome)))?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Done { .. } => Ok(ExitCode::SUCCESS),
        Outcome::Behind(why) => {
            let (state, path) = (state_of(change, tenant), change.directory.file_of(tenant));
            let way_out = match state.as_str() {
                "suspended" => {
                    "new connections are refused, those that are open go on until the class starts anew: mend that, and type \
                     `portcullis reload`"
                }
                _ => "mend that, and type `portcullis tenant resume`",
            };
            Err(TenantError::Refused(format!(
                "the service has taken it, but its class goes on with what it had; tenant {tenant} is {state} ({path:?}): \
                 {}; {way_out}",
                printable(why)
            )))
        }
        Outcome::Refused(why) => {
            let (state, path) = (state_of(change, tenant), change.directory.file_of(tenant));
            let way_out = match state.as_str() {
                "failed" => "; mend that, and type `portcullis tenant resume`",
                _ => "",
            };
            Err(TenantError::Refused(format!(
                "the service refused, and goes on with what it had; tenant {tenant} is {state} ({path:?}): {}{way_out}",
                printable(why)
            )))
        }
        Outcome::TakenBack => Ok(ExitCode::SUCCESS),
    }
}

/// What the file says by now.
fn state_of(change: &Change, tenant: &Tenant) -> String {
    let text = change.directory.read(tenant).ok().flatten().unwrap_or_default();
    file::said(&text, "state").unwrap_or_else(|| "unknown".to_owned())
}

fn said(change: &Change, tenant: &Tenant, outcome: &Outcome) -> Value {
    let of = |outcome: &Outcome| match outcome {
        Outcome::Done { warning, .. } => ("done", warning.clone()),
        Outcome::Refused(why) => ("refused", Some(why.clone())),
        Outcome::Behind(why) => ("behind", Some(why.clone())),
        Outcome::TakenBack => ("taken_back", None),
    };
    let (word, why) = of(outcome);
    let reload = match outcome {
        Outcome::Done { reload, .. } => Some(*reload).filter(|number| *number > 0),
        _ => None,
    };
    let before = change.before.as_ref().map(|(Intent { operation, tenant }, outcome)| {
        let (word, why) = of(outcome);
        json!({ "operation": operation, "tenant": tenant, "outcome": word, "why": why })
    });
    json!({
        "tenant": tenant, "outcome": word, "state": state_of(change, tenant), "why": why, "reload": reload,
        "finished_before": before,
    })
}

/// Who does not follow, though that is not this tenant's affair.
fn warned(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { warning: Some(why), .. } => {
            paragraph("WARNING  ", &format!("not everybody follows this reload: {}", printable(why)))
        }
        _ => String::new(),
    }
}

/// What an interrupted command had left.
fn earlier(change: &Change) -> String {
    let Some((Intent { operation, tenant }, outcome)) = &change.before else { return String::new() };
    let how = match outcome {
        Outcome::Done { .. } => "done now".to_owned(),
        Outcome::Behind(why) => format!("done now, but its class does not follow: {}", printable(why)),
        Outcome::Refused(why) => format!("refused now: {}", printable(why)),
        Outcome::TakenBack => "taken back, there is nothing that it could change".to_owned(),
    };
    paragraph("finished ", &format!("{} of tenant {tenant}, which was interrupted: {how}", operation.word()))
}
