//! What the kernel shows of a process, and in which ways it may not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc::{EACCES, ENOENT, EPERM, ESRCH};

use crate::cli::terminal::printable;
use crate::sandbox::{Status, StatusError};

/// Why there is nothing to compare.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unseen {
    /// The kernel does not show it to this user.
    #[error("{0}")]
    Hidden(String),
    /// The process ended, or the descriptor was closed, before it was looked at.
    #[error("gone")]
    Gone,
    /// It should be readable and is not what proc(5) says.
    #[error("{0}")]
    Odd(String),
}

impl Unseen {
    pub(super) fn of(what: &Path, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(EACCES | EPERM) => Self::Hidden(format!("{}: {error}", shown(what))),
            Some(ENOENT | ESRCH) => Self::Gone,
            _ => Self::Odd(format!("{}: {error}", shown(what))),
        }
    }
}

/// A path that others chose, for people to read.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// `/proc/<pid>/<name>`.
pub(super) fn place(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// The text of one of its files.
pub(super) fn text(pid: i32, name: &str) -> Result<String, Unseen> {
    let path = place(pid, name);
    let bytes = fs::read(&path).map_err(|error| Unseen::of(&path, &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where one of its links leads.
pub(super) fn link(pid: i32, name: &str) -> Result<String, Unseen> {
    let path = place(pid, name);
    let target = fs::read_link(&path).map_err(|error| Unseen::of(&path, &error))?;
    Ok(target.to_string_lossy().into_owned())
}

/// The path that a link to a program was made for, whether that is still there or not.
pub(super) fn program(link: &str) -> PathBuf {
    link.strip_suffix(" (deleted)").unwrap_or(link).into()
}

/// The names in one of its directories that are numbers, in order.
pub(super) fn numbers(pid: i32, name: &str) -> Result<Vec<i32>, Unseen> {
    let path = place(pid, name);
    list(&path).map_err(|error| Unseen::of(&path, &error))
}

/// Every process there is, as far as this user may know.
pub(super) fn processes() -> Result<Vec<i32>, Unseen> {
    let path = Path::new("/proc");
    list(path).map_err(|error| Unseen::of(path, &error))
}

fn list(path: &Path) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The status of one thread, or with `thread` 0 of the process.
pub(super) fn status(pid: i32, thread: i32) -> Result<Status, Unseen> {
    let name = if thread == 0 { "status".to_owned() } else { format!("task/{thread}/status") };
    Status::read(&place(pid, &name)).map_err(|error| match error {
        StatusError::Read { path, source } => Unseen::of(&path, &source),
        StatusError::Field { .. } => Unseen::Odd(error.to_string()),
    })
}

/// The fields of `/proc/<pid>/stat` after the name, which may hold anything: state, parent, group, session, terminal.
pub(super) fn stat(pid: i32) -> Result<Stat, Unseen> {
    let text = text(pid, "stat")?;
    Stat::parse(&text).ok_or_else(|| Unseen::Odd(format!("stat: {}", printable(text.trim()))))
}

/// What is needed of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Only its parent does not know it yet.
    pub(super) ended: bool,
    pub(super) session: i32,
    /// Device number; 0 for none.
    pub(super) terminal: i32,
    /// Clock ticks from boot: with the number, which process it is.
    pub(super) started: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        Some(Self {
            ended: matches!(*fields.first()?, "Z" | "X"),
            session: fields.get(3)?.parse().ok()?,
            terminal: fields.get(4)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

/// Clock ticks from boot, on the clock that [`Stat::started`] is of.
pub(super) fn now() -> Option<u64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: u64 = uptime.split('.').next()?.parse().ok()?;
    seconds.checked_mul(ticks_of_a_second())
}

/// The kernel's clock ticks.
pub(super) fn ticks_of_a_second() -> u64 {
    use nix::unistd::{SysconfVar, sysconf};
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_the_fields_after_it() {
        let fields = "S 1 12 12 0 -1 4194560 313 0 1 0 0 0 0 0 20 0 1 0 1229835 5447680 724";
        let parsed = Stat::parse(&format!("12 (x) S 1 7 7 9 (x) {fields}"));
        assert_eq!(parsed, Some(Stat { ended: false, session: 12, terminal: 0, started: 1_229_835 }));
        assert!(
            Stat::parse(&format!("12 (x) {}", fields.replace("S 1", "Z 1"))).is_some_and(|stat| stat.ended)
        );
        for broken in ["", "12 (x", "12 (x) S 1 12", "12 (x) S 1 12 twelve 0"] {
            assert_eq!(Stat::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn this_process_can_be_seen_and_one_that_is_not_there_is_gone() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(processes().unwrap().contains(&own));
        assert!(numbers(own, "fd").unwrap().contains(&0));
        assert_eq!(status(own, 0).unwrap().parent, nix::unistd::getppid().as_raw());
        assert_eq!(link(own, "cwd").unwrap(), std::env::current_dir().unwrap().to_str().unwrap());
        assert!(stat(own).unwrap().started > 0);
        // Larger than any pid_max.
        for gone in [text(i32::MAX, "stat").unwrap_err(), status(i32::MAX, 0).unwrap_err()] {
            assert_eq!(gone, Unseen::Gone);
        }
        let error = io::Error::from_raw_os_error(EACCES);
        assert!(
            matches!(Unseen::of(Path::new("/proc/1/fd"), &error), Unseen::Hidden(why) if why.contains("/proc/1/fd"))
        );
    }
}
