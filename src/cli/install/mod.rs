//! `portcullis install --systemd` and `portcullis uninstall`.
//!
//! [`shipped`] is what there is to install, [`tree`] where it goes, [`manifest`] what was placed there. [`plan`] compares
//! the three, and the [`accounts`] and [`host`] that are needed, and says everything that is in the way before anything is
//! done. [`root`], [`lock`] and [`mounts`] keep others
//! out of the way. Then the [`steps`] are taken one after the other. [`uninstall`] goes the same way back.
//!
//! Programs are replaced under a running service: it holds those it was started from open, and each file changes from the
//! old one to the new one in one step.

mod accounts;
mod host;
mod lock;
mod manifest;
mod mounts;
mod plan;
mod root;
mod shipped;
mod steps;
mod tree;
mod uninstall;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use self::manifest::ManifestError;
use self::plan::{Obstacles, PREVIOUS, Plan};
use self::shipped::ShippedError;
use self::steps::Stopped;
use self::tree::{Tree, TreeError};
use super::{CommandResult, output};

pub(super) use uninstall::{UninstallArgs, run as run_uninstall};

/// Install the service: programs, units, users and directories
///
/// Typed again it upgrades: the programs before are kept in /usr/lib/portcullis/previous, files that were changed here
/// are left alone. What is placed is listed in /usr/lib/portcullis/manifest.json, for `portcullis uninstall`.
#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    /// For systemd, which is all there is
    #[arg(long, required = true)]
    systemd: bool,
    /// Where the programs are [default: beside this one]
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Install into this directory, such as an image's, and leave the host alone
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Enable and start the units, or restart the service
    #[arg(long, conflicts_with = "root")]
    start: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Why it is not installed, or not uninstalled.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error(transparent)]
    Tree(TreeError),
    #[error(transparent)]
    Shipped(ShippedError),
    #[error(transparent)]
    Manifest(ManifestError),
    #[error(transparent)]
    Obstacles(Obstacles),
    #[error(transparent)]
    Stopped(Stopped),
    #[error(
        "open manifest {manifest:?}: no such file; `portcullis install` placed nothing here (a package goes with \
         `apt purge portcullis`)"
    )]
    NotInstalled { manifest: PathBuf },
}

/// Looks at everything first, then does it.
pub(super) fn run(args: &InstallArgs) -> CommandResult {
    let shipped = shipped::shipped(args.from.as_deref()).map_err(InstallError::Shipped)?;
    let tree = Tree::open(&args.root).map_err(InstallError::Tree)?;
    let plan = plan::install(&tree, &shipped, args.start).map_err(InstallError::Obstacles)?;
    steps::take(&tree, &plan.steps, args.dry_run).map_err(InstallError::Stopped)?;
    let notes: String = plan.notes.iter().map(|note| format!("{note}\n")).collect();
    let next =
        if args.dry_run { "nothing was done: --dry-run".to_owned() } else { next(&tree, &plan, args.start) };
    let _ = output::text(format_args!("{notes}{next}\n"));
    Ok(ExitCode::SUCCESS)
}

/// The last line: what is left to do for whoever reads it.
fn next(tree: &Tree, plan: &Plan<'_>, started: bool) -> String {
    let back = if plan.previous {
        format!("; to go back: {PREVIOUS}/portcullis install --systemd, and the same again")
    } else {
        String::new()
    };
    if !tree.is_host() {
        let root = tree.at().display();
        let accounts = if plan.accounts {
            ""
        } else {
            "; systemd-sysusers and systemd-tmpfiles make users and directories"
        };
        return format!("next: systemctl --root={root} enable portcullis.service{accounts}");
    }
    match (started, plan.upgrade) {
        (true, _) => format!("it runs; next: portcullis status{back}"),
        (false, true) => {
            format!("next: systemctl restart portcullis.service (what runs goes on until then){back}")
        }
        (false, false) => {
            "next: systemctl enable --now portcullis.service, then portcullis status; tenants go into \
                           /etc/portcullis/portcullis.toml"
                .to_owned()
        }
    }
}
