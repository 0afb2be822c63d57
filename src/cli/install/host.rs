//! The programs of the system that make users and directories and tell systemd what is new.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};

use crate::cli::terminal::printable;

/// Where a system has its programs, whatever the PATH of whoever typed the command.
const PATH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// There where systemd is what started everything.
const BOOTED: &str = "/run/systemd/system";
/// As much of what a failing program says as goes into one line.
const SAID_MAX: usize = 400;

/// Why a program of the system did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error("run {program}: it is not in {}; apt install {package}", PATH.join(", "))]
    Missing { program: &'static str, package: &'static str },
    #[error("run {program}: {source}")]
    Start { program: &'static str, source: io::Error },
    #[error("run {program}: {status}{said}")]
    Failed { program: &'static str, status: process::ExitStatus, said: String },
}

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    program: &'static str,
    arguments: Vec<String>,
    /// It only tidies up.
    may_fail: bool,
}

impl Run {
    pub(super) fn new<S: AsRef<str>>(program: &'static str, arguments: impl IntoIterator<Item = S>) -> Self {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect();
        Self { program, arguments, may_fail: false }
    }

    pub(super) fn that_may_fail(self) -> Self {
        Self { may_fail: true, ..self }
    }

    /// Below `root` instead of the host, which `option` says to the program.
    pub(super) fn within(mut self, option: &str, root: &Path) -> Self {
        if root != Path::new("/") {
            self.arguments.insert(0, format!("{option}={}", root.display()));
        }
        self
    }

    /// Whether it could be run.
    pub(super) fn check(&self) -> Result<(), HostError> {
        find(self.program).map(|_| ())
    }

    pub(super) fn run(&self) -> Result<(), HostError> {
        let program = self.program;
        let mut command = process::Command::new(find(program)?);
        command.args(&self.arguments).stdin(Stdio::null());
        command.env_clear().env("PATH", PATH.join(":")).env("LC_ALL", "C.UTF-8");
        let output = command.output().map_err(|source| HostError::Start { program, source })?;
        if output.status.success() || self.may_fail {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = printable(said.trim()).chars().take(SAID_MAX).collect();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        Err(HostError::Failed { program, status: output.status, said })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {} {}", self.program, self.arguments.join(" "))
    }
}

/// Whether there is a systemd to talk to.
pub(super) fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

fn find(program: &'static str) -> Result<PathBuf, HostError> {
    let mut places = PATH.iter().map(|directory| Path::new(directory).join(program));
    let package = if ["userdel", "usermod", "groupdel"].contains(&program) { "passwd" } else { "systemd" };
    places.find(|place| place.is_file()).ok_or(HostError::Missing { program, package })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_says_why_and_what_is_missing_says_where_it_is() {
        assert!(Run::new("true", [""; 0]).run().is_ok());
        assert!(Run::new("false", [""; 0]).that_may_fail().run().is_ok());
        let error = Run::new("ls", ["/nothing/here"]).run().unwrap_err().to_string();
        assert!(error.starts_with("run ls: exit status: 2: ") && error.contains("cannot access"), "{error}");
        let missing = Run::new("no-such-program", [""; 0]);
        assert!(missing.check().is_err());
        assert!(missing.run().unwrap_err().to_string().ends_with("apt install systemd"));
    }

    #[test]
    fn the_host_needs_no_option() {
        let run = Run::new("systemctl", ["disable", "x.service"]);
        assert_eq!(run.clone().within("--root", Path::new("/")), run);
        let image = run.within("--root", Path::new("/image"));
        assert_eq!(image.to_string(), "run systemctl --root=/image disable x.service");
    }
}
