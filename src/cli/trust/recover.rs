//! `portcullis trust recover`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::policy::service::Where;
use crate::cli::{CommandResult, EXIT_CODES, output};
use crate::ledger::{self, Order};

/// Let the registry begin anew after its table was lost or broken
///
/// The registry refuses to go on without its table, since that has the versions below which nothing may become active. Put
/// it back from a backup if there is one. If not, this lets it begin a new one: every floor is then what [minimum_version] of
/// the trust policy says, so look at that first. The registry carries it out when it starts next. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Recover {
    /// Why; for the history
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    place: Where,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("recover: the registry's table in {state:?} is whole: there is nothing to recover from")]
struct Whole {
    state: std::path::PathBuf,
}

impl Recover {
    pub(super) fn run(self) -> CommandResult {
        let service = self.place.find()?;
        let state = &service.config.service.state;
        // Every floor would be gone, for nothing.
        let broken = match ledger::read(state) {
            Ok(_) => return Err(Whole { state: state.clone() }.into()),
            Err(error) => error.to_string(),
        };
        let number = ledger::place(state, &Order::Recover { reason: self.reason.clone() })?;
        if self.json {
            output::json(&json!({ "order": number, "state": state, "broken": broken }))?;
        } else {
            output::text(format_args!(
                "ordered   a new table in {}: order {number}, carried out when the registry starts next\n\
                 next      systemctl restart portcullis, then portcullis policy list\n",
                state.display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
