//! `portcullis policy pull`
//!
//! The fetcher fills a folder of its own (quarantine). This process reads it as it would read a stranger's, copies what is
//! good to its place, and exchanges it there for what was before: at no moment is something half done to be seen.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{Gid, Uid, fchown, geteuid};
use serde_json::json;

use super::transfer::{self, EXIT_CODES, RegistryArgs, TransferError, Whom};
use crate::artifact::Digest;
use crate::bundle::{self, Bundle, Reference};
use crate::cli::{CommandResult, output};
use crate::decision::{PolicyName, Tenant};
use crate::wire::fetch::{Action, FromFetcher, Pulled};

/// Fetch a bundle, and all that is attached to it, from a registry
///
/// Checks digests and that everything fits together, and no signature: that is the registry role's to do before anything of
/// it runs (or yours, with `policy verify`). Nothing is seen at its place before it is whole. What breaks off is kept and
/// gone on with by the same command. Credentials are docker's.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Pull {
    /// Where from: registry[:port]/repository:tag, or ...@sha256:<digest>
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    /// The store: goes to DIR/<tenant>/<policy>/, by the names that the bundle has
    #[arg(long, value_name = "DIR", required_unless_present = "out")]
    store: Option<PathBuf>,
    /// Goes to this folder, or to this file if it ends with .tar
    #[arg(long, short, value_name = "PATH", conflicts_with = "store")]
    out: Option<PathBuf>,
    /// Refuse a bundle that is for another tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<Tenant>,
    /// Refuse a bundle of another policy
    #[arg(long, value_name = "NAME")]
    policy: Option<PolicyName>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why something that was fetched is not put in its place.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error("make {path:?}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("open {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "open {path:?}: owned by uid {found}, expected {expected}; somebody else has begun there: remove it"
    )]
    Owner { path: PathBuf, found: u32, expected: u32 },
    #[error("open {path:?}: another pull is at work there; wait for it")]
    Busy { path: PathBuf },
    #[error("write to {path:?}: it belongs to uid {owner}; pull as that user")]
    Others { path: PathBuf, owner: u32 },
    #[error(
        "pull {reference}: the bundle is for {what} {found:?}, expected {expected:?}; nothing was put in place"
    )]
    Name { reference: String, what: &'static str, found: String, expected: String },
    #[error("pull {reference}: it is {found}, asked for was {expected}; nothing was put in place")]
    Digest { reference: String, found: Digest, expected: Digest },
    #[error(
        "put in place: {path:?} is there as well, and the registry would not know which to take; remove one"
    )]
    Twice { path: PathBuf },
    #[error("--out {path:?}: not the path of a file or a folder")]
    Out { path: PathBuf },
}

impl Pull {
    pub(super) fn run(self) -> CommandResult {
        let (parent, partial) = self.partial()?;
        let prepared = self.registry.prepare(Action::Pull, &self.reference)?;
        let whom = self.registry.whom(Some(&parent))?;
        let folder = open_partial(&partial, &whom)?;
        let mut progress = self.registry.progress();
        let open = |source| PullError::Open { path: partial.clone(), source };
        let descriptor = OwnedFd::from(folder.try_clone().map_err(open)?);
        let fetched = prepared.start(&whom, descriptor).and_then(|fetcher| fetcher.finish(&mut progress));
        let pulled = match fetched {
            Ok(FromFetcher::Pulled(pulled)) => pulled,
            Ok(_) => return Ok(transfer::complain(&TransferError::OutOfOrder)),
            Err(error) => {
                let code = transfer::complain(&error);
                tidy(&partial);
                return Ok(code);
            }
        };
        let (bundle, path) = self.put_in_place(&partial, &pulled)?;
        // What it was is at its place.
        let _ = fs::remove_dir_all(&partial);
        drop(folder);
        self.say(&bundle, &path, &pulled)
    }

    /// The folder that is to be written to, and in it the one that fills: of a name of its own for each reference, that no
    /// tenant can have.
    fn partial(&self) -> Result<(PathBuf, PathBuf), PullError> {
        let name = format!(".pull-{}", Digest::of(self.reference.to_string().as_bytes()).short());
        let parent = match (&self.store, &self.out) {
            (Some(store), _) => store.clone(),
            (None, Some(out)) => match out.parent() {
                Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
                Some(parent) => parent.to_owned(),
                None => return Err(PullError::Out { path: out.clone() }),
            },
            (None, None) => PathBuf::from("."),
        };
        let partial = parent.join(name);
        Ok((parent, partial))
    }

    fn put_in_place(
        &self,
        partial: &Path,
        pulled: &Pulled,
    ) -> Result<(Bundle, PathBuf), Box<dyn std::error::Error + Send + Sync>> {
        let layout = bundle::open_path(partial)?;
        let bundle = layout.read_named(pulled.bundle, &pulled.attached)?;
        self.check_names(&bundle)?;
        let path = match (&self.store, &self.out) {
            (Some(store), _) => place_in_store(store, &bundle)?,
            (None, Some(out)) => out.clone(),
            (None, None) => return Err(PullError::Out { path: PathBuf::new() }.into()),
        };
        let bundle = bundle::write::copy(&layout, &bundle, &path)?;
        Ok((bundle, path))
    }

    fn check_names(&self, bundle: &Bundle) -> Result<(), PullError> {
        let name = |what, found: &str, expected: &str| PullError::Name {
            reference: self.reference.to_string(),
            what,
            found: found.to_owned(),
            expected: expected.to_owned(),
        };
        let config = &bundle.config;
        if let Some(expected) = self.tenant.as_ref().filter(|tenant| **tenant != config.tenant) {
            return Err(name("tenant", config.tenant.as_str(), expected.as_str()));
        }
        if let Some(expected) = self.policy.as_ref().filter(|policy| **policy != config.policy) {
            return Err(name("policy", config.policy.as_str(), expected.as_str()));
        }
        match self.reference.digest() {
            Some(expected) if *expected != bundle.digest() => Err(PullError::Digest {
                reference: self.reference.to_string(),
                found: bundle.digest(),
                expected: *expected,
            }),
            _ => Ok(()),
        }
    }

    fn say(&self, bundle: &Bundle, path: &Path, pulled: &Pulled) -> CommandResult {
        let attached = bundle.attachments.len();
        if self.json {
            output::json(&json!({
                "reference": self.reference,
                "bundle": bundle.digest(),
                "tenant": bundle.config.tenant,
                "policy": bundle.config.policy,
                "version": bundle.config.version,
                "attachments": attached,
                "path": path,
                "received": pulled.received,
                "reused": pulled.reused,
            }))?;
        } else {
            output::text(format_args!(
                "pulled   policy {} version {} for tenant {}, with {attached} attached\nto       {}\nbundle   {}\n\
                 checked  digests; signatures are checked before anything of it runs, or by policy verify\n",
                bundle.config.policy,
                bundle.config.version,
                bundle.config.tenant,
                path.display(),
                bundle.digest(),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the folder that fills, or opens what an earlier try left, for nobody but who fetches.
fn open_partial(path: &Path, whom: &Whom) -> Result<Flock<File>, PullError> {
    let make = |source| PullError::Make { path: path.into(), source };
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(make(error)),
        _ => {}
    }
    let open = |source| PullError::Open { path: path.into(), source };
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(open)?;
    let found = folder.metadata().map_err(open)?.uid();
    if ![whom.uid, geteuid().as_raw()].contains(&found) {
        return Err(PullError::Owner { path: path.into(), found, expected: whom.uid });
    }
    let folder = Flock::lock(folder, FlockArg::LockExclusiveNonblock)
        .map_err(|_| PullError::Busy { path: path.into() })?;
    if found != whom.uid {
        let (uid, gid) = (Uid::from_raw(whom.uid), Gid::from_raw(whom.gid));
        fchown(&*folder, Some(uid), Some(gid)).map_err(|errno| open(errno.into()))?;
    }
    Ok(folder)
}

/// `<store>/<tenant>/<policy>`, from names that were checked when they were decoded.
fn place_in_store(store: &Path, bundle: &Bundle) -> Result<PathBuf, PullError> {
    let tenant = store.join(bundle.config.tenant.as_str());
    let make = |source| PullError::Make { path: tenant.clone(), source };
    match DirBuilder::new().mode(0o755).create(&tenant) {
        // Or what is said to be in place would be gone after a power cut, with the folder that it is in.
        Ok(()) => File::open(store).and_then(|store| store.sync_all()).map_err(make)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(make(error)),
    }
    let metadata: Metadata = fs::symlink_metadata(&tenant).map_err(make)?;
    // Where others can move things around, root must not write.
    let own = geteuid().as_raw();
    if !metadata.is_dir() || (own == 0 && metadata.uid() != own) {
        return Err(PullError::Others { path: tenant, owner: metadata.uid() });
    }
    let tar = tenant.join(format!("{}.tar", bundle.config.policy));
    if fs::symlink_metadata(&tar).is_ok() {
        return Err(PullError::Twice { path: tar });
    }
    Ok(tenant.join(bundle.config.policy.as_str()))
}

/// Leaves what can be gone on with, and says so; a folder with nothing in it goes.
fn tidy(partial: &Path) {
    let blobs = partial.join("blobs").join("sha256");
    let begun = fs::read_dir(&blobs).is_ok_and(|mut entries| entries.next().is_some());
    if begun {
        output::error(&format!(
            "what was fetched is kept in {partial:?} and used by the next try; or remove it"
        ));
    } else {
        let _ = fs::remove_dir_all(partial);
    }
}
