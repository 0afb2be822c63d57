//! The service of the demo: the supervisor that lies beside this program, started, waited for, stopped.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::DemoError;
use super::event::{Started, micros};
use super::scene::Scene;
use super::signals::Signals;

/// Longest any one step of the service may take: only met when something is broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The programs the service consists of.
const PROGRAMS: [&str; 8] = [
    "portcullis-supervisor",
    "portcullis-spawner",
    "portcullis-registry",
    "portcullis-builder",
    "portcullis-frontend",
    "portcullis-worker",
    "portcullis-exporter",
    "portcullis-gateway",
];
/// The supervisor's `drain` (5 s), and then some.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// Lines of the service's log in an error.
const LOG_LINES: usize = 20;

/// Why there is no service, or no end to it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error("find this program: {0}")]
    Own(io::Error),
    #[error(
        "find {names} in {directory:?}: not there; `cargo build --release` builds all programs into one directory"
    )]
    Missing { names: String, directory: PathBuf },
    #[error("start {path:?}: {cause}")]
    Spawn { path: PathBuf, cause: io::Error },
    #[error("make {path:?}: {cause}")]
    Make { path: PathBuf, cause: io::Error },
    #[error("start the service: it ended ({status}) and said:\n{log}")]
    NotStarted { status: ExitStatus, log: String },
    #[error("start the service: not ready after {PATIENCE:?}; it said:\n{log}")]
    NotReady { log: String },
    #[error("wait for the service: {0}")]
    Wait(io::Error),
    #[error("the service ended by itself ({status}) and said:\n{log}")]
    Died { status: ExitStatus, log: String },
    #[error("stop the service: it ended with {status} and said:\n{log}")]
    BadEnd { status: ExitStatus, log: String },
    #[error("stop the service: still there after {STOPS_WITHIN:?}, killed; it said:\n{log}")]
    Killed { log: String },
}

/// The supervisor's program.
#[derive(Debug)]
pub(super) struct Program(PathBuf);

impl Program {
    /// Looks beside this program for all that the service consists of.
    pub(super) fn find() -> Result<Self, ServiceError> {
        let own = env::current_exe().map_err(ServiceError::Own)?;
        Self::find_in(own.parent().unwrap_or(Path::new("/")))
    }

    fn find_in(directory: &Path) -> Result<Self, ServiceError> {
        let missing: Vec<_> =
            PROGRAMS.into_iter().filter(|program| !directory.join(program).is_file()).collect();
        if missing.is_empty() {
            let [supervisor, ..] = PROGRAMS;
            return Ok(Self(directory.join(supervisor)));
        }
        Err(ServiceError::Missing { names: missing.join(", "), directory: directory.to_owned() })
    }
}

/// The running service. Stopped, and its end waited for, when dropped.
#[derive(Debug)]
pub(super) struct Service {
    child: Child,
    log: PathBuf,
    ended: bool,
}

impl Service {
    /// Starts the service and waits for its word that it serves.
    pub(super) fn start(
        program: &Program,
        scene: &Scene,
        signals: &Signals,
    ) -> Result<(Self, Started), DemoError> {
        let (path, log) = (scene.path("run/notify.sock"), scene.log());
        let notify =
            UnixDatagram::bind(&path).map_err(|cause| ServiceError::Make { path: path.clone(), cause })?;
        let made = |cause| ServiceError::Make { path: log.clone(), cause };
        let file = File::create(&log).map_err(made)?;
        let start = Instant::now();
        let child = Command::new(&program.0)
            .arg("--config")
            .arg(scene.config())
            // Nothing of this shell's environment is any of its business.
            .env_clear()
            .env("NOTIFY_SOCKET", &path)
            // Ctrl-C is for the demo, which then stops the service in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(made)?)
            .stderr(file)
            .spawn()
            .map_err(|cause| ServiceError::Spawn { path: program.0.clone(), cause })?;
        let mut service = Self { child, log, ended: false };
        service.await_ready(&notify, signals, start + PATIENCE)?;
        let (supervisor_pid, micros) = (service.child.id(), micros(start.elapsed()));
        Ok((service, Started { supervisor_pid, micros, socket: scene.socket() }))
    }

    fn await_ready(
        &mut self,
        notify: &UnixDatagram,
        signals: &Signals,
        until: Instant,
    ) -> Result<(), DemoError> {
        loop {
            let woken = signals.wait(Some(notify.as_fd()), Some(until)).map_err(ServiceError::Wait)?;
            if woken.stop {
                return Err(DemoError::Interrupted);
            }
            if woken.readable {
                let mut message = [0; 4096];
                let length = notify.recv(&mut message).map_err(ServiceError::Wait)?;
                let message = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
                if message.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            } else if let Some(status) = self.has_ended()? {
                return Err(ServiceError::NotStarted { status, log: self.last_words() }.into());
            } else if Instant::now() >= until {
                return Err(ServiceError::NotReady { log: self.last_words() }.into());
            }
        }
    }

    /// Until somebody wants the demo to end.
    pub(super) fn stay(&mut self, signals: &Signals) -> Result<(), DemoError> {
        loop {
            if let Some(status) = self.has_ended()? {
                return Err(ServiceError::Died { status, log: self.last_words() }.into());
            }
            if signals.wait(None, None).map_err(ServiceError::Wait)?.stop {
                return Ok(());
            }
        }
    }

    /// Asks it to stop and waits until it has. Asked for a second time by the user, it does not wait for anything.
    pub(super) fn stop(mut self, signals: &Signals) -> Result<(), DemoError> {
        let until = Instant::now() + STOPS_WITHIN;
        self.signal(Signal::SIGTERM);
        loop {
            match self.has_ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(ServiceError::BadEnd { status, log: self.last_words() }.into()),
                None if Instant::now() >= until => {
                    // Its children die with it.
                    self.signal(Signal::SIGKILL);
                    self.child.wait().map_err(ServiceError::Wait)?;
                    self.ended = true;
                    return Err(ServiceError::Killed { log: self.last_words() }.into());
                }
                None => {}
            }
            if signals.wait(None, Some(until)).map_err(ServiceError::Wait)?.stop {
                self.signal(Signal::SIGTERM);
            }
        }
    }

    fn has_ended(&mut self) -> Result<Option<ExitStatus>, ServiceError> {
        let status = self.child.try_wait().map_err(ServiceError::Wait)?;
        self.ended |= status.is_some();
        Ok(status)
    }

    fn signal(&self, signal: Signal) {
        // Not waited for, so the number is still its own.
        if !self.ended
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its `drain` bounds the wait.
        self.signal(Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let directory = tempfile::tempdir().unwrap();
        let find = || Program::find_in(directory.path());
        for there in PROGRAMS.into_iter().filter(|program| *program != "portcullis-frontend") {
            fs::write(directory.path().join(there), "").unwrap();
        }
        let error = find().unwrap_err().to_string();
        assert!(
            error.starts_with("find portcullis-frontend in ") && error.contains("cargo build"),
            "{error}"
        );
        fs::write(directory.path().join("portcullis-frontend"), "").unwrap();
        assert_eq!(find().unwrap().0, directory.path().join("portcullis-supervisor"));
    }
}
