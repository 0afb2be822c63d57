//! Bundles to and from registries: the one program here with a network, and so with nothing else.
//!
//! `portcullis policy push | pull` starts it, hands it a task and credentials over a channel and a folder as a descriptor,
//! and draws what it says. It has no key, no way to the service, and no file but what it downloads. Before the first byte from
//! the network it becomes somebody without privilege (where the command is root's), is confined to that folder and to two
//! ports, and sealed. What it leaves in the folder is in quarantine: the command hashes it again and puts it where the
//! registry role looks, which believes nothing of it.
//!
//! Exit codes: 0 done; 1 failed, and said why on the channel; 64 not started by the command.

mod authenticate;
mod error;
mod folder;
mod oci;
mod pull;
mod push;
mod remote;
mod report;
mod repository;

use std::fs::File;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::sandbox::privileges::{ConfiguredLimits, SurrenderError, surrender};
use crate::sandbox::{self, Confined, Given, Places, Role, SealError, Sealed};
use crate::wire::channel::take_inherited;
use crate::wire::fetch::{Action, FromFetcher, Task, ToFetcher, fd};

use error::FetchError;
use folder::Folder;
use remote::{ClientError, Remote};
use report::Report;

/// Files, the channel, a few connections.
const OPEN_FILES: u64 = 64;
/// Certificates that are believed instead of the system's, bytes.
const CA_MAX: u64 = 4 << 20;
/// The resolver's thread, made before the seal, never ends.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
enum FetcherError {
    #[error("take what the command left: {0}")]
    Inherited(#[source] std::io::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("give up privileges: {0}")]
    Surrender(#[from] SurrenderError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("read --ca: {0}")]
    Ca(#[source] std::io::Error),
    #[error("set up: {0}")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// The program `portcullis-fetcher`. Started by `portcullis policy`, never by hand.
#[must_use]
pub fn main() -> ExitCode {
    sandbox::settle_allocator();
    sandbox::install_panic_hook(Role::Fetcher);
    crate::journal::start(Role::Fetcher.name());
    // What whoever started the command had open is not the fetcher's.
    let _ = sandbox::launch::close_from(fd::FIRST_FREE);
    let report = match sandbox::check_inherited(Role::Fetcher).map(|()| take_inherited(fd::CHANNEL)) {
        Ok(Ok(channel)) => Arc::new(Report::new(channel)),
        Ok(Err(_)) | Err(_) => {
            tracing::error!("not started by portcullis policy push or pull");
            return ExitCode::from(64);
        }
    };
    match run(&report) {
        Ok(last) => {
            // A command that is gone has nobody to tell.
            let told = report.tell(&last);
            sandbox::end(u8::from(told.is_err()))
        }
        Err(error) => {
            let again = matches!(&error, FetcherError::Fetch(error) if error.again());
            if report.tell(&FromFetcher::Failed { why: error.to_string(), again }).is_err() {
                tracing::error!(%error, "fetcher ends");
            }
            sandbox::end(1)
        }
    }
}

fn run(report: &Arc<Report>) -> Result<FromFetcher, FetcherError> {
    let (task, ca) = match report.hear()? {
        (ToFetcher::Task(task), ca) => (task, ca),
        _ => return Err(FetchError::OutOfOrder("it did not begin with a task").into()),
    };
    let folder = take_inherited(fd::FOLDER).map_err(FetcherError::Inherited)?;
    let limits = ConfiguredLimits { open_files: OPEN_FILES, processes: None, build: None };
    surrender(Role::Fetcher, (task.uid, task.gid), task.isolation, &limits, task.command)?;
    let given = Given::check(Role::Fetcher, task.uid, task.gid, task.isolation)?;
    let ca = ca.map(read_ca).transpose().map_err(FetcherError::Ca)?;
    let remote = Remote::new(&task, ca.as_deref())?;

    let confined = given.confine(&places(&task, &folder)?)?;
    // Never taken down: the end of a thread takes calls that no sealed process has.
    let runtime = ManuallyDrop::new(runtime()?);
    let sealed = seal(confined, &runtime)?;
    report.tell(&FromFetcher::Ready)?;
    runtime.block_on(fetch(sealed, &task, remote, folder, report)).map_err(FetcherError::from)
}

/// All of it, with the network in reach and nothing else.
async fn fetch(
    _sealed: Sealed,
    task: &Task,
    mut remote: Remote,
    folder: OwnedFd,
    report: &Arc<Report>,
) -> Result<FromFetcher, FetchError> {
    match task.action {
        Action::Pull => {
            let pulled = pull::pull(&mut remote, Folder::open(folder)?, report, &task.reference).await?;
            Ok(FromFetcher::Pulled(pulled))
        }
        Action::Push => push::push(&mut remote, report, &task.reference).await,
    }
}

/// What Landlock leaves: two ports, and for a pull the folder, which is reached without any of the directories above it.
fn places(task: &Task, folder: &OwnedFd) -> Result<Places, ClientError> {
    let mut places = Places::default();
    for port in remote::ports(task)? {
        places = places.with_port("registry", port);
    }
    if task.action == Action::Pull {
        places = places.with("folder", format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()));
    }
    Ok(places)
}

/// One thread for all of the work, and one that asks for names, since that blocks.
fn runtime() -> Result<tokio::runtime::Runtime, FetcherError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(1)
        .thread_keep_alive(FOREVER)
        .build()
        .map_err(FetcherError::Runtime)
}

/// Starts the second thread, has both prove that they cannot open what is not theirs, and seals both.
fn seal(confined: Confined, runtime: &tokio::runtime::Runtime) -> Result<Sealed, FetcherError> {
    sandbox::prove_landlock()?;
    let proven = runtime.block_on(runtime.spawn_blocking(sandbox::prove_landlock));
    proven.map_err(|error| FetcherError::Runtime(std::io::Error::other(error)))??;
    Ok(confined.seal()?)
}

fn read_ca(file: OwnedFd) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(file).take(CA_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
