//! Trust policies for people: `new` starts one, `check` says what is wrong with it and whether a bundle would be accepted,
//! `rotate` gives a signer a new key. The registry alone goes by it; these only read and write the file. `recover` is for a
//! registry that lost what it had written down.

mod check;
mod new;
mod recover;
mod rotate;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::CommandResult;
use super::files::{self, FileError};
use crate::decision::{Tenant, TrustClass};
use crate::trust::{TRUST_MAX, TrustErrors, TrustPolicy};

/// Each says in its own file what it does.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    New(new::New),
    Check(check::Check),
    Rotate(rotate::Rotate),
    Recover(recover::Recover),
}

impl Command {
    pub(super) fn run(self) -> CommandResult {
        match self {
            Self::New(command) => command.run(),
            Self::Check(command) => command.run(),
            Self::Rotate(command) => command.run(),
            Self::Recover(command) => command.run(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum TrustError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("read trust policy {path:?}: it is not text")]
    NotText { path: PathBuf },
    /// One line for each mistake, each with its place.
    #[error(transparent)]
    Policy(#[from] TrustErrors),
}

fn read_text(path: &Path) -> Result<String, TrustError> {
    String::from_utf8(files::read(path, TRUST_MAX)?).map_err(|_| TrustError::NotText { path: path.into() })
}

pub(super) fn read_trust(path: &Path) -> Result<TrustPolicy, TrustError> {
    Ok(TrustPolicy::parse(path, &read_text(path)?)?)
}

/// The class that was named, or any where it makes no difference; nothing where it does.
pub(super) fn class_of(
    named: Option<&TrustClass>,
    policy: &TrustPolicy,
    tenant: &Tenant,
) -> Option<TrustClass> {
    match named {
        Some(class) => Some(class.clone()),
        None if policy.needs_class(tenant) => None,
        None => TrustClass::new("any").ok(),
    }
}
