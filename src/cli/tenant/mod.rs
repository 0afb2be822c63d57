//! Tenants come and go, each by a file of its own in the directory that `service.tenants` names.
//!
//! Every change is a transaction. [`directory`] has the files, the lock and the word on the disk of what is under way; [`change`]
//! takes the steps, and takes up what a command before it left unfinished; [`residue`] looks for what a tenant left behind.

mod add;
mod change;
mod directory;
mod file;
mod residue;
mod show;
mod states;

use clap::Subcommand;

use super::CommandResult;

/// Codes of the commands that change something.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed, with the reason on standard error; 3 not known, since the \
                          service did not answer: the next of these commands takes it up; 64 the command line is wrong.";

/// Each says in its own file what it does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Add(Box<add::Add>),
    Suspend(states::Suspend),
    Resume(states::Resume),
    Remove(states::Remove),
    List(show::List),
    Show(show::Show),
}

impl Command {
    pub(super) fn run(self) -> CommandResult {
        match self {
            Self::Add(command) => command.run(),
            Self::Suspend(command) => command.run(),
            Self::Resume(command) => command.run(),
            Self::Remove(command) => command.run(),
            Self::List(command) => command.run(),
            Self::Show(command) => command.run(),
        }
    }
}
