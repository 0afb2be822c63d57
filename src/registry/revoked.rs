//! The revocation list in force: the newest that was ever seen here, whatever the store has now.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::clock::Clock;
use crate::ledger::{Event, KnownRevocations, Table, What};
use crate::trust::{REVOCATIONS_MAX, RevocationError, Revocations, TrustPolicy};

/// The list's name in the store.
pub(super) const REVOCATIONS: &str = "revocations.json";

/// A list, and the text that it was signed as.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    pub(super) list: Revocations,
    signed: Option<String>,
}

impl InForce {
    /// The one that the table has.
    ///
    /// # Errors
    /// When that is none.
    pub(super) fn kept(table: &Table) -> Result<Self, RevocationError> {
        Ok(match &table.revocations {
            None => Self { list: Revocations::none(), signed: None },
            Some(known) => {
                let list = Revocations::kept(known.signed.as_bytes())?;
                Self { list, signed: Some(known.signed.clone()) }
            }
        })
    }

    /// Takes the list in the store, if it is a newer one by whom the trust policy lets revoke. One that is no good is left, and
    /// this one stays in force. True if there is a newer one.
    pub(super) fn look(&mut self, store: &Path, trust: &TrustPolicy, clock: &Clock) -> bool {
        let bytes = match read(store) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(path = ?store.join(REVOCATIONS), %error, "read revocation list; the one that is known stays");
                return false;
            }
        };
        match self.list.verify(&bytes, trust, clock.now()) {
            Ok(list) if list == self.list => false,
            Ok(list) => {
                tracing::info!(version = list.version(), entries = list.len(), "revocation list taken");
                // It was read as JSON, so it is text.
                *self = Self { list, signed: String::from_utf8(bytes).ok() };
                true
            }
            Err(error) => {
                tracing::warn!(%error, "revocation list refused; the one that is known stays");
                false
            }
        }
    }

    /// That it came into force, for the history.
    pub(super) fn event(&self, at: u64) -> Event {
        let why = format!("version {} with {} entries", self.list.version(), self.list.len());
        let what = What::Revocations;
        Event { at, what, tenant: None, policy: None, bundle: None, version: None, order: None, why }
    }

    /// As the table has it.
    pub(super) fn known(&self) -> Option<KnownRevocations> {
        let signed = self.signed.clone()?;
        Some(KnownRevocations { version: self.list.version(), signed })
    }
}

/// `<store>/revocations.json`; `None` if there is none, or no store.
fn read(store: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(dir) = open(store, flags, Mode::empty()) else { return Ok(None) };
    // Without O_NONBLOCK a FIFO would wait for a writer.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match openat(&dir, REVOCATIONS, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte more than is taken, so that too long a list is refused and not cut.
    let limit = u64::try_from(REVOCATIONS_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}
