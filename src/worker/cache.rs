//! The class's own cache: the last good artifact of each policy, in a directory that nobody else can enter.
//!
//! Code lies under its digest in `cwasm/`, and a signed statement per policy in `statements/<tenant>/` says which.
//! The code is written first and the statement replaced by a rename, so whenever power fails there is the old entry or
//! the new one. An entry is verified like an artifact from anywhere else.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use nix::unistd::geteuid;

use super::store::{StoreError, open_directory, open_file, read_file};
use crate::artifact::{
    ARTIFACT_MAX, Digest, SIGNED_STATEMENT_MAX, SealError, SealedBytes, Statement, envelope::Envelope,
    store::replace,
};
use crate::decision::{PolicyName, Tenant};

#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
}

/// Why the cache is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum CacheError {
    #[error("cache: {0}")]
    Open(#[source] StoreError),
    #[error("cache {path:?}: owned by uid {owner}, expected {expected}; chown it to the class's uid")]
    Owner { path: PathBuf, owner: u32, expected: u32 },
    #[error("cache {path:?}: mode {mode:04o}, expected 0700; chmod 0700 it")]
    Mode { path: PathBuf, mode: u32 },
    #[error("cache {path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("cache entry: {0}")]
    Entry(#[from] StoreError),
    #[error("cache entry {path:?}: statement does not name its code")]
    Nameless { path: PathBuf },
    #[error("cache: {0}")]
    Seal(#[from] SealError),
}

impl Cache {
    /// Refuses a directory that is not ours alone: what lies in it is about to become code in this process.
    pub(super) fn open(path: &Path) -> Result<Self, CacheError> {
        let dir = open_directory(path).map_err(CacheError::Open)?;
        let io = |source: io::Error| CacheError::Io { path: path.to_owned(), source };
        let stat = fstat(&dir).map_err(|errno| io(errno.into()))?;
        let expected = geteuid().as_raw();
        if stat.st_uid != expected {
            return Err(CacheError::Owner { path: path.to_owned(), owner: stat.st_uid, expected });
        }
        let mode = stat.st_mode & 0o7777;
        if mode != 0o700 {
            return Err(CacheError::Mode { path: path.to_owned(), mode });
        }
        Ok(Self { path: path.to_owned() })
    }

    /// The entry of a policy, not verified yet; `None` if there is none.
    pub(super) fn read(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
    ) -> Result<Option<(SealedBytes, Vec<u8>)>, CacheError> {
        let path = self.statements(tenant);
        let dir = match open_directory(&path) {
            Ok(dir) => dir,
            Err(StoreError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let (signed, path) = match read_file(&dir, &path, &format!("{policy}.json"), SIGNED_STATEMENT_MAX) {
            Ok(found) => found,
            Err(StoreError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let digest = claimed_digest(&signed).ok_or(CacheError::Nameless { path })?;
        let directory = self.path.join("cwasm");
        let file = open_file(&open_directory(&directory)?, &directory, &file_name(digest))?;
        Ok(Some((SealedBytes::read(file, ARTIFACT_MAX)?, signed)))
    }

    /// Makes this the policy's entry. Afterwards there is the old entry or this one, whatever happens meanwhile.
    pub(super) fn keep(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
        cwasm: &SealedBytes,
        signed: &[u8],
    ) -> Result<(), CacheError> {
        let code = self.path.join("cwasm").join(file_name(cwasm.digest()));
        let statement = self.statements(tenant).join(format!("{policy}.json"));
        let before = fs::read(&statement).ok().as_deref().and_then(claimed_digest);
        let io = |path: &Path, source| CacheError::Io { path: path.to_owned(), source };
        for directory in [code.parent(), statement.parent()].into_iter().flatten() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| io(directory, error))?;
        }
        replace(&code, &cwasm.to_vec()?, 0o600).map_err(|error| io(&code, error))?;
        replace(&statement, signed, 0o600).map_err(|error| io(&statement, error))?;
        if let Some(before) = before.filter(|before| *before != cwasm.digest()) {
            self.sweep(before);
        }
        Ok(())
    }

    /// Removes an entry that does not hold.
    pub(super) fn forget(&self, tenant: &Tenant, policy: &PolicyName) {
        let statement = self.statements(tenant).join(format!("{policy}.json"));
        let digest = fs::read(&statement).ok().as_deref().and_then(claimed_digest);
        if let Err(error) = fs::remove_file(&statement) {
            tracing::warn!(path = ?statement, %error, "remove cache entry");
        }
        if let Some(digest) = digest {
            self.sweep(digest);
        }
    }

    /// Removes code that no statement names any more. Several policies may share the same code.
    fn sweep(&self, digest: Digest) {
        let named =
            fs::read_dir(self.path.join("statements")).into_iter().flatten().flatten().any(|tenant| {
                fs::read_dir(tenant.path()).into_iter().flatten().flatten().any(|statement| {
                    fs::read(statement.path()).ok().as_deref().and_then(claimed_digest) == Some(digest)
                })
            });
        let code = self.path.join("cwasm").join(file_name(digest));
        if !named && let Err(error) = fs::remove_file(&code) {
            tracing::warn!(path = ?code, %error, "remove code from cache");
        }
    }

    fn statements(&self, tenant: &Tenant) -> PathBuf {
        self.path.join("statements").join(tenant.as_str())
    }
}

fn file_name(digest: Digest) -> String {
    format!("{}.cwasm", hex::encode(digest.as_bytes()))
}

/// The code a signed statement names, before anything is verified: only to find the file that is then verified.
fn claimed_digest(signed: &[u8]) -> Option<Digest> {
    let payload = Envelope::from_bytes(signed).ok()?.payload;
    serde_json::from_slice::<Statement>(&payload).ok().map(|statement| statement.cwasm)
}
