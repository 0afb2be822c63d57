//! Notices a new revocation list in the store without being told: what is revoked has to stop within a second, and nobody
//! should have to remember a second command for it.
//!
//! It looks, a few times a second, whether the file is another one. Being told by the kernel (inotify) would take two more
//! calls in the profile that every process of the service is born under, and a store on a network tells nobody.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::revoked::REVOCATIONS;

/// How often it looks. With what it takes to tell the workers that is well within a second.
const EVERY: Duration = Duration::from_millis(400);

/// Looks at one file.
#[derive(Debug, Default)]
pub(super) struct Watch {
    next: Option<Instant>,
    seen: Option<Stamp>,
}

/// What changes whenever a file does, or another one gets its name.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    length: u64,
}

impl Watch {
    /// When to look again.
    pub(super) fn due(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// Whether the list in the store is another one than when it was looked at last. Looks only when it is time to.
    pub(super) fn has_changed(&mut self, store: &Path, now: Instant) -> bool {
        if !self.due(now).is_zero() {
            return false;
        }
        self.next = Some(now + EVERY);
        let stamp = Stamp::of(&store.join(REVOCATIONS));
        let changed = stamp != self.seen;
        self.seen = stamp;
        // One that is gone changes nothing.
        changed && self.seen.is_some()
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_comes_changes_or_is_replaced_is_seen_once() {
        let store = tempfile::tempdir().unwrap();
        let list = store.path().join(REVOCATIONS);
        let mut watch = Watch::default();
        let mut now = Instant::now();
        let mut look = |watch: &mut Watch| {
            now += EVERY;
            watch.has_changed(store.path(), now)
        };
        assert!(!look(&mut watch), "there is none");
        fs::write(&list, "1").unwrap();
        assert!(look(&mut watch) && !look(&mut watch), "it came");
        fs::write(&list, "12").unwrap();
        assert!(look(&mut watch) && !look(&mut watch), "it grew");
        let beside = store.path().join("new");
        fs::write(&beside, "34").unwrap();
        fs::rename(&beside, &list).unwrap();
        assert!(look(&mut watch) && !look(&mut watch), "another one took its place");
        fs::remove_file(&list).unwrap();
        assert!(!look(&mut watch), "it went");
    }

    #[test]
    fn it_looks_when_it_is_time_to() {
        let store = tempfile::tempdir().unwrap();
        let mut watch = Watch::default();
        let now = Instant::now();
        assert_eq!(watch.due(now), Duration::ZERO);
        assert!(!watch.has_changed(store.path(), now));
        assert_eq!(watch.due(now), EVERY);
        fs::write(store.path().join(REVOCATIONS), "1").unwrap();
        assert!(!watch.has_changed(store.path(), now + EVERY / 2), "too early");
        assert!(watch.has_changed(store.path(), now + EVERY));
    }
}
