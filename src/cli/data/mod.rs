//! Data that policies read: from a document to a bundle. From there on it is a bundle like a policy's, and `portcullis policy` has
//! the commands: sign, verify, push, activate, rollback, revoke, list, history.

mod build;
pub(in crate::cli) mod entries;
mod get;
mod keygen;
mod unique;

use clap::Subcommand;

use super::CommandResult;

/// Each says in its own file what it does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Build(build::Build),
    Get(get::Get),
    Keygen(keygen::Keygen),
}

impl Command {
    pub(super) fn run(self) -> CommandResult {
        match self {
            Self::Build(command) => command.run(),
            Self::Get(command) => command.run(),
            Self::Keygen(command) => command.run(),
        }
    }
}
