//! `portcullis uninstall`: take away what the manifest says was placed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::InstallError;
use super::accounts;
use super::host::{self, Run};
use super::manifest::{MANIFEST, Manifest};
use super::plan::Obstacles;
use super::shipped::units;
use super::steps::{Step, take};
use super::tree::{Found, Tree, TreeError, unfinished};
use crate::cli::{CommandResult, output};

const CONFIGURATION: &str = "/etc/portcullis";
const CACHES: &str = "/var/cache/portcullis";
/// What is active, what may never come back, and the host's key; and what was delivered.
const KEPT: [&str; 2] = ["/var/lib/portcullis/state", "/var/lib/portcullis/store"];
const RUN: &str = "/run/portcullis";

/// Stop the service and remove what `portcullis install` placed
///
/// What was changed since stays and is named, and so do the configuration, the registry's state and the caches unless --purge
/// is given.
#[derive(Debug, Args)]
pub(in crate::cli) struct UninstallArgs {
    /// The directory that it was installed into
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Remove /etc/portcullis, /var/lib/portcullis and /var/cache/portcullis too: rules, policies, versions, host key
    #[arg(long)]
    purge: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Reads the manifest, looks at everything it names, then removes.
pub(in crate::cli) fn run(args: &UninstallArgs) -> CommandResult {
    let tree = Tree::open(&args.root).map_err(InstallError::Tree)?;
    let Some(manifest) = Manifest::read(&tree).map_err(InstallError::Manifest)? else {
        return Err(InstallError::NotInstalled { manifest: tree.shown(Path::new(MANIFEST)) }.into());
    };
    let plan = plan(&tree, &manifest, args.purge).map_err(InstallError::Obstacles)?;
    let left = take(&tree, &plan.steps, args.dry_run).map_err(InstallError::Stopped)?;
    let kept: Vec<String> = plan.kept.into_iter().chain(left).collect();
    let mut text: String = kept.iter().map(|kept| format!("left alone: {kept}\n")).collect();
    if args.dry_run {
        text += "nothing was done: --dry-run\n";
    } else if kept.is_empty() {
        text += "nothing of it is left\n";
    } else {
        text += "everything else is gone\n";
    }
    let _ = output::text(format_args!("{text}"));
    Ok(ExitCode::SUCCESS)
}

struct Plan {
    steps: Vec<Step<'static>>,
    /// What stays, and why.
    kept: Vec<String>,
}

fn plan(tree: &Tree, manifest: &Manifest, purge: bool) -> Result<Plan, Obstacles> {
    let (mut obstacles, mut kept, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    if tree.is_host() && !tree.is_roots() {
        obstacles.push("uninstall from \"/\": not root; run it as root".to_owned());
    }
    // Programs last: should it end half-way, this one is still there to go on with.
    for placed in manifest.files.iter().rev() {
        let path = placed.path.display();
        if placed.configuration {
            if !purge && tree.is_there(&placed.path).unwrap_or(true) {
                kept.push(format!("{path} is the configuration; --purge removes it"));
            }
            continue;
        }
        match tree.look(&placed.path) {
            Ok(Found::Nothing) => {}
            Ok(Found::File { digest, .. }) if placed.digests.contains(&digest) => {
                remove.push(Step::Remove(placed.path.clone()));
            }
            Ok(Found::File { .. }) => kept.push(format!("{path} was changed since")),
            Err(error) => kept.push(error.to_string()),
        }
    }
    // What a process that was killed has left half-written.
    let files = manifest.files.iter().map(|placed| placed.path.as_path()).chain([Path::new(MANIFEST)]);
    let unfinished = files.map(unfinished).filter(|path| tree.is_there(path).unwrap_or(false));
    remove.extend(unfinished.map(Step::Remove));
    let mut steps = stop(tree, &mut obstacles);
    // The sockets in the first are made by systemd and left behind.
    let run = tree.is_host().then_some(RUN);
    let purged = [CONFIGURATION, CACHES].into_iter().chain(KEPT).filter(|_| purge);
    let whole: Vec<&Path> = run.into_iter().chain(purged).map(Path::new).collect();
    for path in &whole {
        match tree.check_removable(path) {
            Ok(()) => steps.push(Step::RemoveAll(path.to_path_buf())),
            Err(error @ TreeError::Mounted { .. }) => obstacles.push(error.to_string()),
            // It would be as much in the way the next time.
            Err(error) => kept.push(error.to_string()),
        }
    }
    for path in [CACHES].into_iter().chain(KEPT).filter(|_| !purge) {
        kept.extend(in_use(tree, Path::new(path)));
    }
    kept.extend(drop_ins(tree));
    if tree.is_roots() {
        steps.extend(accounts(tree, manifest, &mut obstacles));
    }
    // What may fail comes before the program that it would have to be typed with again.
    steps.extend(remove);
    if tree.is_host() && host::is_booted() {
        steps.push(Step::Run(Run::new("systemctl", ["daemon-reload"]).that_may_fail()));
    }
    steps.push(Step::Remove(MANIFEST.into()));
    let mut directories = manifest.directories.clone();
    directories.sort();
    // What is removed as a whole is gone by then.
    directories.retain(|path| !whole.iter().any(|whole| path.starts_with(whole)));
    for path in directories.into_iter().rev() {
        match tree.is_there(&path) {
            Ok(true) => steps.push(Step::RemoveEmpty(path)),
            Ok(false) => {}
            Err(error) => kept.push(error.to_string()),
        }
    }
    // A link on the way to many files is one thing that stays.
    let mut seen = BTreeSet::new();
    kept.retain(|text| seen.insert(text.clone()));
    if obstacles.is_empty() { Ok(Plan { steps, kept }) } else { Err(Obstacles(obstacles)) }
}

/// Those that were not there before, users first: a group that is somebody's cannot go.
fn accounts(tree: &Tree, manifest: &Manifest, obstacles: &mut Vec<String>) -> Vec<Step<'static>> {
    type Has = fn(&Tree, &str) -> Result<bool, TreeError>;
    let mut there = |names: &[String], has: Has| -> Vec<String> {
        let mut found = Vec::new();
        for name in names {
            match has(tree, name) {
                Ok(true) => found.push(name.clone()),
                Ok(false) => {}
                Err(error) => obstacles.push(error.to_string()),
            }
        }
        found
    };
    let users = there(&manifest.users, accounts::has_user);
    let groups = there(&manifest.groups, accounts::has_group);
    if !users.is_empty() || !groups.is_empty() {
        let needed = ["userdel", "usermod", "groupdel"].map(|program| Run::new(program, [""; 0]));
        obstacles.extend(needed.iter().filter_map(|run| run.check().err()).map(|error| error.to_string()));
    }
    let remove_user = |user: String| {
        let others = !manifest.groups.contains(&user);
        let keep_group = others && accounts::has_group(tree, &user).unwrap_or(true);
        Step::RemoveUser { user, keep_group }
    };
    users.into_iter().map(remove_user).chain(groups.into_iter().map(Step::RemoveGroup)).collect()
}

/// Settings that the administrator added to a unit, which the next installation would be started with.
fn drop_ins(tree: &Tree) -> impl Iterator<Item = String> {
    let paths = units().map(|unit| PathBuf::from(format!("/etc/systemd/system/{unit}.d")));
    let there = paths.into_iter().filter(|path| tree.is_there(path).unwrap_or(false));
    there.map(|path| format!("{} has settings that were not installed by this", path.display()))
}

/// Nothing runs and nothing is started by itself any more.
fn stop(tree: &Tree, obstacles: &mut Vec<String>) -> Vec<Step<'static>> {
    let path = |unit: &str| Path::new("/etc/systemd/system").join(unit);
    let there: Vec<&str> =
        units().into_iter().filter(|unit| tree.is_there(&path(unit)).unwrap_or(false)).collect();
    // To disable a unit that is a link means to remove the link, and that one is not ours.
    let files: Vec<&str> = there
        .iter()
        .copied()
        .filter(|unit| matches!(tree.look(&path(unit)), Ok(Found::File { .. })))
        .collect();
    let mut runs = Vec::new();
    if tree.is_host() && host::is_booted() && !there.is_empty() {
        // The sockets come first: one that is still there would start the service again.
        runs.push(Run::new("systemctl", ["stop"].into_iter().chain(there.iter().copied())));
        runs.push(Run::new("systemctl", ["reset-failed"].into_iter().chain(there)).that_may_fail());
    }
    if !files.is_empty() {
        runs.push(Run::new("systemctl", ["disable"].into_iter().chain(files)).within("--root", tree.at()));
    }
    if tree.is_host() {
        obstacles.extend(runs.first().and_then(|run| run.check().err()).map(|error| error.to_string()));
    } else {
        // An image that is taken apart on a machine without systemd: nothing there can have enabled the units.
        runs.retain(|run| run.check().is_ok());
    }
    runs.into_iter().map(Step::Run).collect()
}

/// A directory in which something is that a reinstalled service would use.
fn in_use(tree: &Tree, path: &Path) -> Option<String> {
    let mut found = std::fs::read_dir(tree.shown(path)).ok()?;
    let used = found.any(|class| {
        class.is_ok_and(|class| {
            std::fs::read_dir(class.path()).is_ok_and(|mut entries| entries.next().is_some())
        })
    });
    used.then(|| format!("{} has policies of the last run in it; --purge removes them", path.display()))
}
