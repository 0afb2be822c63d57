//! From an idea to something that decides: `new` makes a project, `test`, `run` and `bench` try what it builds; `keygen`, `build`, `sign` and `attest` make a bundle; `verify`, `inspect` and
//! `diff` look at it, as the registry would and as a person would. On a host, `activate`, `rollback` and `revoke` say what
//! serves, `list` and `history` what does and did: see [`service`].

mod activate;
mod attest;
mod bench;
mod build;
mod componentize;
mod diff;
mod git;
mod history;
mod inspect;
mod keygen;
mod list;
mod new;
#[cfg(feature = "fetcher")]
mod pull;
#[cfg(feature = "fetcher")]
mod push;
mod rebuild;
mod revoke;
mod rollback;
mod run;
mod sbom;
pub(super) mod service;
mod sign;
mod source;
pub(super) mod stored;
mod template;
mod test;
#[cfg(feature = "fetcher")]
mod transfer;
mod tried;
mod verify;

use clap::Subcommand;

use super::CommandResult;

/// Each says in its own file what it does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    New(new::New),
    Test(Box<test::Test>),
    Run(Box<run::Run>),
    Bench(Box<bench::Bench>),
    Keygen(keygen::Keygen),
    Build(build::Build),
    Sign(sign::Sign),
    Attest(attest::Attest),
    Verify(verify::Verify),
    Inspect(inspect::Inspect),
    Diff(diff::Diff),
    #[cfg(feature = "fetcher")]
    Push(push::Push),
    #[cfg(feature = "fetcher")]
    Pull(pull::Pull),
    Activate(activate::Activate),
    Rollback(rollback::Rollback),
    List(list::List),
    History(history::History),
    Revoke(revoke::Revoke),
    Componentize(componentize::Componentize),
}

impl Command {
    pub(super) fn run(self) -> CommandResult {
        match self {
            Self::New(command) => command.run(),
            Self::Test(command) => command.run(),
            Self::Run(command) => command.run(),
            Self::Bench(command) => command.run(),
            Self::Keygen(command) => command.run(),
            Self::Build(command) => command.run(),
            Self::Sign(command) => command.run(),
            Self::Attest(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Diff(command) => command.run(),
            Self::Activate(command) => command.run(),
            Self::Rollback(command) => command.run(),
            Self::List(command) => command.run(),
            Self::History(command) => command.run(),
            Self::Revoke(command) => command.run(),
            Self::Componentize(command) => command.run(),
            #[cfg(feature = "fetcher")]
            Self::Push(command) => command.run(),
            #[cfg(feature = "fetcher")]
            Self::Pull(command) => command.run(),
        }
    }
}
