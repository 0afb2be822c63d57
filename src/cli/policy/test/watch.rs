//! Notices when a policy or its cases change: the kernel tells (inotify), nothing is looked at again and again.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::rehearsal::is_bundle;

/// A compiler writes more than once: it is over when nothing has changed for so many milliseconds.
const QUIET_MS: u16 = 100;
/// What policies and cases are called.
const EXTENSIONS: [&str; 4] = ["json", "tar", "wasm", "wat"];

/// Folders that are watched.
pub(super) struct Watch {
    inotify: Inotify,
    /// Names that matter whatever they end in.
    names: BTreeSet<OsString>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error("watch {path:?}: {errno}")]
    Folder { path: PathBuf, errno: Errno },
    #[error("watch for changes: {0}")]
    Wait(#[from] Errno),
}

impl Watch {
    /// From now on. Files are watched through their folders: most programs replace a file rather than write to it.
    pub(super) fn new(places: &[PathBuf]) -> Result<Self, WatchError> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut folders = BTreeSet::new();
        let mut names = BTreeSet::new();
        for place in places {
            if place.is_dir() {
                folders.insert(place.clone());
            }
            if !place.is_dir() || is_bundle(place) {
                folders.insert(match place.parent() {
                    Some(parent) if parent != Path::new("") => parent.to_owned(),
                    _ => PathBuf::from("."),
                });
                names.extend(place.file_name().map(OsStr::to_owned));
            }
        }
        let fixtures: Vec<PathBuf> = folders.iter().map(|folder| folder.join("fixtures")).collect();
        folders.extend(fixtures.into_iter().filter(|folder| folder.is_dir()));
        if is_any_bundle(places) {
            names.insert("index.json".into());
        }
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        for folder in &folders {
            inotify
                .add_watch(folder, flags | AddWatchFlags::IN_ONLYDIR)
                .map_err(|errno| WatchError::Folder { path: folder.clone(), errno })?;
        }
        Ok(Self { inotify, names })
    }

    /// Until something has changed, and whoever changed it is done.
    pub(super) fn wait(&self) -> Result<(), WatchError> {
        let mut changed = false;
        loop {
            let timeout = if changed { PollTimeout::from(QUIET_MS) } else { PollTimeout::NONE };
            match poll(&mut [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            for event in self.inotify.read_events()? {
                // None: the folder itself is gone, or there was more than the kernel remembers.
                changed |= event.name.as_deref().is_none_or(|name| self.matters(name));
            }
        }
    }

    fn matters(&self, name: &OsStr) -> bool {
        let extension = Path::new(name).extension().and_then(OsStr::to_str);
        self.names.contains(name) || extension.is_some_and(|ending| EXTENSIONS.contains(&ending))
    }
}

fn is_any_bundle(places: &[PathBuf]) -> bool {
    places.iter().any(|place| is_bundle(place))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Each of these is one thing that somebody's editor or compiler does; the wait for it ends.
    #[test]
    fn what_changes_is_noticed_and_what_does_not_matter_is_not() {
        let desk = tempfile::tempdir().unwrap();
        let (cases, policy) = (desk.path().join("cases.json"), desk.path().join("policy.wasm"));
        fs::write(&cases, "[]").unwrap();
        let places = [desk.path().to_owned(), cases.clone(), policy.clone()];
        let watch = Watch::new(&places).unwrap();
        let readable = |watch: &Watch| {
            let mut polled = [PollFd::new(watch.inotify.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).unwrap() > 0
        };
        assert!(!readable(&watch), "nothing has changed");
        fs::write(&policy, "new").unwrap();
        watch.wait().unwrap();
        fs::write(desk.path().join("beside"), "[1]").unwrap();
        fs::rename(desk.path().join("beside"), &cases).unwrap();
        watch.wait().unwrap();
        fs::remove_file(&cases).unwrap();
        watch.wait().unwrap();
        assert!(!readable(&watch), "each was taken");
        assert!(!watch.matters(OsStr::new("report.xml")) && !watch.matters(OsStr::new("lib.rs")));
        assert!(watch.matters(OsStr::new("tokens.json")) && watch.matters(OsStr::new("policy.wasm")));
    }

    #[test]
    fn what_is_not_there_cannot_be_watched() {
        let error = Watch::new(&[PathBuf::from("/nonexistent/folder/cases.json")]).err().unwrap();
        assert_eq!(error.to_string(), "watch \"/nonexistent/folder\": ENOENT: No such file or directory");
    }
}
