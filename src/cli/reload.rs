//! `portcullis reload`: read the configuration and the policies again, and wait until that is done.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::operator::{OperatorError, ask_status, socket};
use super::output;
use super::terminal::printable;
use crate::decision::TrustClass;
use crate::engine::monotonic_ns;
use crate::wire::control::AskedReload;
use crate::wire::operator::Status;

/// First and longest wait between two looks at the status.
const LOOK_FIRST: Duration = Duration::from_millis(10);
const LOOK_LONGEST: Duration = Duration::from_millis(250);
/// What the kernel keeps of the supervisor's name: its first 15 bytes.
const SUPERVISOR: &str = "portcullis-supe";

/// Load the configuration and the policies anew, without losing a request; wait until it is done
///
/// The exit code is 0 when the new set serves, 1 when it was refused and the old one still serves (or
/// a class would not start with the new one, and has the old one still), 3 when the service
/// does not answer or was not done in time.
#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// The operators' socket [default: $PORTCULLIS_OPERATOR_SOCKET or /run/portcullis/operator.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How many seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u32,
}

/// Why it is not known that the new set serves, or known that it does not everywhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("process {pid} is not a portcullis-supervisor: not signalled")]
    NotSupervisor { pid: i32 },
    #[error("signal supervisor {pid}: {cause}")]
    Signal { pid: i32, cause: Errno },
    #[error(
        "reload of supervisor {pid}: not done after {seconds} s; `portcullis status` shows how it goes on"
    )]
    Timeout { pid: i32, seconds: u64 },
    #[error("reload refused, what served before still serves: {0}")]
    Refused(String),
    #[error("reload {number} done, but not everybody follows; who does not goes on with what it had: {why}")]
    Partly { number: u64, why: String, behind: Vec<TrustClass> },
}

impl ReloadError {
    #[must_use]
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Partly { .. } => 1,
            Self::Operator(_) | Self::NotSupervisor { .. } | Self::Signal { .. } | Self::Timeout { .. } => 3,
        }
    }
}

/// Signals the supervisor, waits, says how it ended.
pub(super) fn run(args: &ReloadArgs) -> Result<ExitCode, ReloadError> {
    let status = reload(&socket(args.socket.as_deref()), Duration::from_secs(args.timeout.into()))?;
    // Done it is, even where nobody reads so.
    let _ = output::text(format_args!(
        "reload {} done\n",
        status.processes.asked.map_or(0, |asked| asked.number)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Reloads, and gives the status in which the new set serves.
pub(super) fn reload(socket: &Path, within: Duration) -> Result<Status, ReloadError> {
    let until = Instant::now() + within;
    let pid = ask_status(socket)?.supervisor_pid;
    // One that began before may have read the old files, whenever it ends.
    let asked_ns = monotonic_ns();
    signal(pid)?;
    let mut wait = LOOK_FIRST;
    loop {
        // While generations change hands a look may fail; the last one tells why.
        let error = match ask_status(socket) {
            Ok(now) => match now.processes.asked.as_deref().filter(|asked| asked.began_ns >= asked_ns) {
                Some(AskedReload { error: Some(error), adopted: false, .. }) => {
                    return Err(ReloadError::Refused(printable(error)));
                }
                Some(AskedReload { error: Some(error), number, behind, .. }) => {
                    let (number, behind) = (*number, behind.clone());
                    return Err(ReloadError::Partly { number, why: printable(error), behind });
                }
                Some(AskedReload { error: None, .. }) => return Ok(now),
                None => ReloadError::Timeout { pid, seconds: within.as_secs() },
            },
            Err(error) => error.into(),
        };
        if Instant::now() + wait > until {
            return Err(error);
        }
        std::thread::sleep(wait);
        wait = LOOK_LONGEST.min(wait * 2);
    }
}

/// The number comes from the frontend, which clients talk to: whoever types this command, perhaps root, must not be
/// made to signal something else with it.
fn signal(pid: i32) -> Result<(), ReloadError> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if pid <= 0 || name.trim_end() != SUPERVISOR {
        return Err(ReloadError::NotSupervisor { pid });
    }
    kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(|cause| ReloadError::Signal { pid, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_supervisor_is_signalled() {
        // SIGHUP would end this process; -1 would be everybody.
        for pid in [i32::try_from(std::process::id()).unwrap(), 1, 0, -1, i32::MIN] {
            assert!(matches!(signal(pid), Err(ReloadError::NotSupervisor { .. })), "{pid} was signalled");
        }
    }
}
