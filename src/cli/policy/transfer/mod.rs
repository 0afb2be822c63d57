//! What `push` and `pull` share: the fetcher as a child, what it is told, and what it says.
//!
//! The command has the user's credentials and files, and no network; the fetcher has a network and neither.

mod credentials;
mod progress;
mod whom;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bundle::Reference;
use crate::cli::terminal::printable;
use crate::sandbox::launch::{self, ProgramError};
use crate::wire::channel::{Channel, ReceiveError, Received, SendError};
use crate::wire::fetch::{Action, Credentials, FETCH_MAX, FromFetcher, Task, ToFetcher};

pub(super) use progress::Progress;
pub(super) use whom::{Whom, WhomError};

/// Failed, but the same command may do better (`EX_TEMPFAIL` of sysexits.h).
pub(super) const EXIT_AGAIN: u8 = 75;

pub(super) const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed; 64 the command line is wrong; 75 the \
                                     network or the registry failed: run the same command again, and it goes on where it was.";

/// How a registry is reached.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Without TLS; only for a registry on this machine
    #[arg(long)]
    plain_http: bool,
    /// Without TLS, wherever the registry is: everything and everybody's credentials in the clear
    #[arg(long)]
    insecure_plain_http: bool,
    /// Certificates (PEM) that are believed instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Started by root: who the process with the network becomes, by name or number
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

/// Why nothing was transferred.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error(
        "reach {0}: --plain-http is for registries on this machine only; give the registry a certificate (--ca), or say \
         --insecure-plain-http"
    )]
    NotLoopback(String),
    #[error(transparent)]
    Credentials(#[from] credentials::CredentialsError),
    #[error(transparent)]
    Whom(#[from] WhomError),
    #[error("open --ca {path:?}: {source}")]
    Ca { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("start portcullis-fetcher: {0}")]
    Start(#[source] io::Error),
    #[error("tell portcullis-fetcher: {0}")]
    Tell(#[from] SendError),
    #[error("hear portcullis-fetcher: {0}")]
    Hear(#[from] ReceiveError),
    #[error("hear portcullis-fetcher: {0}")]
    Wait(#[source] io::Error),
    #[error("portcullis-fetcher ended without a word ({0}); its standard error says more")]
    Ended(String),
    #[error("portcullis-fetcher said what it may not say now")]
    OutOfOrder,
    /// What the fetcher said, escaped.
    #[error("{why}")]
    Failed { why: String, again: bool },
}

impl TransferError {
    /// 75 where trying again may help.
    pub(super) fn exit_code(&self) -> u8 {
        if matches!(self, Self::Failed { again: true, .. }) { EXIT_AGAIN } else { 1 }
    }
}

impl RegistryArgs {
    /// Who fetches, given whose the destination is.
    pub(super) fn whom(&self, destination: Option<&Path>) -> Result<Whom, WhomError> {
        Whom::find(self.user.as_deref(), destination)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress::start(self.quiet)
    }

    /// Reads credentials and certificates: while this process is still who the user is.
    pub(super) fn prepare(&self, action: Action, reference: &Reference) -> Result<Prepared, TransferError> {
        let plain_http = self.plain_http || self.insecure_plain_http;
        if plain_http && !self.insecure_plain_http && !reference.is_loopback() {
            return Err(TransferError::NotLoopback(reference.registry().to_owned()));
        }
        let ca = |path: &PathBuf| {
            File::open(path).map_err(|source| TransferError::Ca { path: path.clone(), source })
        };
        Ok(Prepared {
            action,
            reference: reference.clone(),
            plain_http,
            credentials: credentials::find(reference)?,
            ca: self.ca.as_ref().map(ca).transpose()?,
        })
    }
}

/// A task that nobody has yet.
pub(super) struct Prepared {
    action: Action,
    reference: Reference,
    plain_http: bool,
    credentials: Credentials,
    ca: Option<File>,
}

impl Prepared {
    /// Starts the fetcher and gives it the task.
    pub(super) fn start(self, whom: &Whom, folder: OwnedFd) -> Result<Fetcher, TransferError> {
        let task = Task {
            uid: whom.uid,
            gid: whom.gid,
            isolation: whom.isolation,
            command: nix::unistd::getpid().as_raw(),
            action: self.action,
            reference: self.reference,
            plain_http: self.plain_http,
            credentials: self.credentials,
        };
        let fetcher = Fetcher::start(whom, folder)?;
        fetcher.tell(&ToFetcher::Task(Box::new(task)), self.ca.as_ref().map(AsFd::as_fd))?;
        Ok(fetcher)
    }
}

/// The child.
pub(super) struct Fetcher {
    child: Child,
    channel: Channel<ToFetcher, FromFetcher>,
}

impl Fetcher {
    fn start(whom: &Whom, folder: OwnedFd) -> Result<Self, TransferError> {
        let program = launch::open_companion("portcullis-fetcher", whom.isolation)?;
        let (ours, theirs) = Channel::pair(FETCH_MAX).map_err(TransferError::Start)?;
        // By its descriptor: what was looked at is what is run.
        let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("portcullis-fetcher")
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(folder))
            .spawn()
            .map_err(TransferError::Start)?;
        Ok(Self { child, channel: ours })
    }

    /// Says something, and waits until there is room for it.
    pub(super) fn tell(
        &self,
        message: &ToFetcher,
        descriptor: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<(), TransferError> {
        loop {
            match self.channel.send(message, descriptor) {
                Ok(()) => return Ok(()),
                Err(SendError::Full) => self.wait(PollFlags::POLLOUT)?,
                // It has said why, and that is worth more.
                Err(SendError::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Shows what is said until the last word, which is returned.
    pub(super) fn finish(mut self, progress: &mut Progress) -> Result<FromFetcher, TransferError> {
        let last = self.hear(progress);
        progress.end();
        let status = self.child.wait().map_err(TransferError::Wait)?;
        match last? {
            Some(FromFetcher::Failed { why, again }) => {
                Err(TransferError::Failed { why: printable(&why), again })
            }
            Some(last) => Ok(last),
            None => Err(TransferError::Ended(match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("killed by signal {signal}"),
                (None, None) => "no status".to_owned(),
            })),
        }
    }

    fn hear(&self, progress: &mut Progress) -> Result<Option<FromFetcher>, TransferError> {
        let mut buffer = Vec::new();
        // A fetcher that ends with messages unread resets the channel. The kernel says so once, before what it said last.
        let mut ended = false;
        loop {
            match self.channel.receive(&mut buffer)? {
                Received::Message(message, _) => match message {
                    FromFetcher::Pulled(_) | FromFetcher::Pushed { .. } | FromFetcher::Failed { .. } => {
                        return Ok(Some(message));
                    }
                    other => progress.show(&other),
                },
                Received::Nothing => self.wait(PollFlags::POLLIN)?,
                Received::End if ended => return Ok(None),
                Received::End => ended = true,
            }
        }
    }

    fn wait(&self, events: PollFlags) -> Result<(), TransferError> {
        match poll(&mut [PollFd::new(self.channel.as_fd(), events)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(TransferError::Wait(errno.into())),
        }
    }
}

/// A command that failed in a way that has an exit code of its own.
pub(super) fn complain(error: &TransferError) -> ExitCode {
    crate::cli::output::error(&error.to_string());
    ExitCode::from(error.exit_code())
}
