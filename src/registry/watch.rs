//! Notices a new revocation list in the store at once, without being told: what is revoked has to stop within a second, and
//! nobody should have to remember a second command for it.
//!
//! Where the kernel does not tell (a store on a network), a reload does the same.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::revoked::REVOCATIONS;

/// Watches the store, if the kernel lets it.
#[derive(Debug)]
pub(super) struct Watch(Option<Inotify>);

impl Watch {
    /// Before sealing: no profile has the calls for it.
    pub(super) fn new(store: &Path) -> Self {
        let begun = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).and_then(|inotify| {
            let what = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
            inotify.add_watch(store, what).map(|_| inotify)
        });
        match begun {
            Ok(inotify) => Self(Some(inotify)),
            Err(error) => {
                tracing::warn!(?store, %error, "watch store: new revocations are seen at a reload only");
                Self(None)
            }
        }
    }

    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }

    /// Whether there may be a new list. Reads everything there is.
    pub(super) fn has_seen(&self) -> bool {
        let Some(inotify) = &self.0 else { return false };
        let mut seen = false;
        loop {
            match inotify.read_events() {
                Ok(events) if events.is_empty() => return seen,
                Ok(events) => {
                    // Without a name: events were lost, so it may have been one of them.
                    seen |=
                        events.iter().any(|event| event.name.as_ref().is_none_or(|name| name == REVOCATIONS));
                }
                Err(Errno::EAGAIN) => return seen,
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }
}
