//! Who the process with the network is. Root never is.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, User, getegid, geteuid, setgroups, setresgid, setresuid};

use crate::wire::control::Isolation;

/// An account for nothing else, if there is one; and the one that has nothing.
const ACCOUNTS: [&str; 2] = ["portcullis-fetcher", "nobody"];

/// Somebody without privilege.
#[derive(Debug)]
pub(in crate::cli::policy) struct Whom {
    pub(in crate::cli::policy) uid: u32,
    pub(in crate::cli::policy) gid: u32,
    pub(in crate::cli::policy) isolation: Isolation,
}

/// There is nobody to be.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli::policy) enum WhomError {
    #[error("open {path:?}: {source}")]
    Destination { path: PathBuf, source: io::Error },
    #[error("--user {0:?}: only root can become somebody else; leave it out")]
    NotRoot(String),
    #[error("--user {0:?}: there is no such user")]
    Unknown(String),
    #[error("--user {0:?}: the process with the network must not be root")]
    Root(String),
    #[error("--user: {path:?} belongs to uid {owner}, and is only written as that user; leave it out")]
    Owner { path: PathBuf, owner: u32 },
    #[error("become uid {uid}, who {path:?} belongs to: {source}")]
    Become { path: PathBuf, uid: u32, source: io::Error },
    #[error("look up {name:?}: {source}")]
    LookUp { name: String, source: io::Error },
    #[error("find a user without privilege: there is no {:?} and no {:?}; say --user", ACCOUNTS[0], ACCOUNTS[1])]
    Nobody,
}

impl Whom {
    /// Not root: the user who started this. Root: the destination's owner, which this process becomes then, since where
    /// others can move things around root must not write; else `user`, or an account that has nothing.
    pub(super) fn find(user: Option<&str>, destination: Option<&Path>) -> Result<Self, WhomError> {
        let (own, group) = (geteuid(), getegid());
        if !own.is_root() {
            return match user {
                Some(user) => Err(WhomError::NotRoot(user.to_owned())),
                None => Ok(Self { uid: own.as_raw(), gid: group.as_raw(), isolation: Isolation::SharedUid }),
            };
        }
        if let Some(path) = destination {
            let open = |source| WhomError::Destination { path: path.into(), source };
            let metadata = path.metadata().map_err(open)?;
            if metadata.uid() != 0 {
                let owner = metadata.uid();
                if user.is_some() {
                    return Err(WhomError::Owner { path: path.into(), owner });
                }
                become_owner(owner, metadata.gid()).map_err(|errno| WhomError::Become {
                    path: path.into(),
                    uid: owner,
                    source: errno.into(),
                })?;
                return Ok(Self { uid: owner, gid: metadata.gid(), isolation: Isolation::SharedUid });
            }
        }
        let (uid, gid) = match user {
            Some(name) => named(name)?.ok_or_else(|| WhomError::Unknown(name.to_owned()))?,
            None => account()?,
        };
        if uid == 0 {
            return Err(WhomError::Root(user.unwrap_or_default().to_owned()));
        }
        Ok(Self { uid, gid, isolation: Isolation::DistinctUids })
    }
}

fn become_owner(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}

fn account() -> Result<(u32, u32), WhomError> {
    for name in ACCOUNTS {
        if let Some(found) = named(name)? {
            return Ok(found);
        }
    }
    Err(WhomError::Nobody)
}

/// By name, or by a number that need not have one.
fn named(name: &str) -> Result<Option<(u32, u32)>, WhomError> {
    let failed = |errno: nix::Error| WhomError::LookUp { name: name.to_owned(), source: errno.into() };
    let numbers = |user: User| (user.uid.as_raw(), user.gid.as_raw());
    if let Ok(uid) = name.parse() {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(failed)?;
        return Ok(Some(user.map_or((uid, uid), numbers)));
    }
    Ok(User::from_name(name).map_err(failed)?.map(numbers))
}
