//! What is going to be done, one thing after the other; and doing it, so that everybody knows how far it got.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::accounts;
use super::host::{HostError, Run};
use super::manifest::{Manifest, ManifestError};
use super::shipped::Shipped;
use super::tree::{Tree, TreeError};
use crate::artifact::Digest;
use crate::cli::output;

/// One thing to do. Paths are as seen from inside the tree.
#[derive(Debug)]
pub(super) enum Step<'s> {
    MakeDirectory(PathBuf),
    /// A copy of what is there now.
    Keep {
        from: PathBuf,
        to: PathBuf,
        digest: Digest,
    },
    Place {
        what: &'s Shipped,
        at: PathBuf,
    },
    Record(Manifest),
    Remove(PathBuf),
    /// If nobody else put something there.
    RemoveEmpty(PathBuf),
    RemoveAll(PathBuf),
    RemoveUser {
        user: String,
        /// The group of the same name was there before, and userdel would take it along.
        keep_group: bool,
    },
    RemoveGroup(String),
    Run(Run),
}

/// Why one of them was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("read what is to be placed: {0}")]
    Content(#[from] io::Error),
}

/// It ended in the middle.
#[derive(Debug, thiserror::Error)]
#[error(
    "{source}; {done} of {all} steps are done, the others are listed as \"not done\"; mend that and type the same \
     command again"
)]
pub(super) struct Stopped {
    source: StepError,
    done: usize,
    all: usize,
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDirectory(path) => write!(f, "make directory {} (0755)", path.display()),
            Self::Keep { from, to, .. } => write!(f, "keep {} as {}", from.display(), to.display()),
            Self::Place { what, at } => write!(f, "place {} ({:04o})", at.display(), what.mode()),
            Self::Record(manifest) => write!(f, "record {} files in the manifest", manifest.files.len()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::RemoveEmpty(path) => write!(f, "remove directory {} if it is empty", path.display()),
            Self::RemoveAll(path) => write!(f, "remove {} with everything in it", path.display()),
            Self::RemoveUser { user, .. } => write!(f, "remove user {user}"),
            Self::RemoveGroup(group) => write!(f, "remove group {group}"),
            Self::Run(run) => run.fmt(f),
        }
    }
}

/// Does them all, or says what it would do. Each line that is printed is a step that is done. Returns what could not be
/// done, of that which is no reason to stop.
pub(super) fn take(tree: &Tree, steps: &[Step<'_>], dry_run: bool) -> Result<Vec<String>, Stopped> {
    let mut left = Vec::new();
    for (done, step) in steps.iter().enumerate() {
        if dry_run {
            say(format_args!("would {step}\n"));
            continue;
        }
        if let Err(source) = step.take(tree) {
            // A process that runs as that user, or somebody else whose group it is, must not keep everything else here.
            if matches!(step, Step::RemoveUser { .. } | Step::RemoveGroup(_)) {
                left.push(format!("{source}; remove it by hand"));
                continue;
            }
            for left in steps.iter().skip(done) {
                say(format_args!("not done: {left}\n"));
            }
            return Err(Stopped { source, done, all: steps.len() });
        }
        say(format_args!("{step}\n"));
    }
    Ok(left)
}

/// That nobody reads it is no reason to stop half-way.
fn say(line: fmt::Arguments<'_>) {
    let _ = output::text(line);
}

impl Step<'_> {
    fn take(&self, tree: &Tree) -> Result<(), StepError> {
        match self {
            Self::MakeDirectory(path) => tree.make_directory(path)?,
            Self::Keep { from, to, digest } => tree.place(to, &mut tree.open_file(from)?, digest, 0o755)?,
            Self::Place { what, at } => tree.place(at, &mut what.content()?, &what.digest, what.mode())?,
            Self::Record(manifest) => manifest.write(tree)?,
            Self::Remove(path) => tree.remove_file(path)?,
            Self::RemoveEmpty(path) => {
                tree.remove_empty(path)?;
            }
            Self::RemoveAll(path) => tree.remove_all(path)?,
            Self::RemoveUser { user, keep_group } => {
                if accounts::has_user(tree, user)? {
                    if *keep_group {
                        Run::new("usermod", ["--gid", "nogroup", user])
                            .within("--prefix", tree.at())
                            .run()?;
                    }
                    Run::new("userdel", [user]).within("--prefix", tree.at()).run()?;
                }
            }
            // userdel removes it where /etc/login.defs says so.
            Self::RemoveGroup(group) => {
                if accounts::has_group(tree, group)? {
                    Run::new("groupdel", [group]).within("--prefix", tree.at()).run()?;
                }
            }
            Self::Run(run) => run.run()?,
        }
        Ok(())
    }
}
