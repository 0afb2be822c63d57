//! Who is at the other end of a connection, as the kernel says it. Nothing a client sends has a part in it.
//!
//! The credentials are those of the moment of `connect`; a process that passes its connection on passes them on too.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

use crate::wire::handover::Cookie;

/// Supplementary groups that are asked for at first, and at most (the kernel's NGROUPS_MAX).
const GROUPS_USUAL: usize = 32;
const GROUPS_MAX: usize = 65_536;

/// The process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A client's connection: its one descriptor, its name and its peer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) cookie: Cookie,
    pub(super) peer: Peer,
}

impl Connection {
    /// Asks the kernel what this descriptor is; an error if it is not a connected Unix socket.
    pub(super) fn of(socket: OwnedFd) -> io::Result<Self> {
        let peer = Peer::of(&socket)?;
        let cookie = Cookie(socket2::SockRef::from(&socket).cookie()?);
        Ok(Self { socket, cookie, peer })
    }

    /// The peer's supplementary groups (SO_PEERGROUPS). Not kept, because a grant is only worked out twice in a
    /// connection's life.
    ///
    /// JUSTIFICATION: neither std nor nix, socket2 or rustix has this option.
    #[expect(unsafe_code, reason = "SO_PEERGROUPS has no safe wrapper")]
    pub(super) fn groups(&self) -> io::Result<Vec<u32>> {
        let mut groups: Vec<libc::gid_t> = vec![0; GROUPS_USUAL];
        loop {
            let mut bytes =
                libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
            // SAFETY: the pointer is to `bytes` writable bytes, which outlive the call; the kernel writes no more than
            // that and stores how much it wrote, or would have written, in `bytes`.
            let outcome = unsafe {
                libc::getsockopt(
                    self.socket.as_fd().as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_PEERGROUPS,
                    groups.as_mut_ptr().cast(),
                    &raw mut bytes,
                )
            };
            let error = (outcome != 0).then(io::Error::last_os_error);
            let count = usize::try_from(bytes).unwrap_or(0) / size_of::<libc::gid_t>();
            match error.as_ref().and_then(io::Error::raw_os_error) {
                None => {
                    groups.truncate(count);
                    return Ok(groups);
                }
                Some(libc::ERANGE) if groups.len() < count && count <= GROUPS_MAX => groups.resize(count, 0),
                // No groups are known of this peer.
                Some(libc::ENODATA) => return Ok(Vec::new()),
                Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
            }
        }
    }
}

impl Peer {
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
        Ok(Self { uid: credentials.uid(), gid: credentials.gid() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_kernel_names_peer_and_connection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let copy = Connection::of(ours.try_clone().unwrap().into()).unwrap();
        let (ours, theirs) = (Connection::of(ours.into()).unwrap(), Connection::of(theirs.into()).unwrap());
        assert_eq!(ours.peer.uid, nix::unistd::getuid().as_raw());
        assert_eq!(ours.cookie, copy.cookie, "one connection has one name");
        assert_ne!(ours.cookie, theirs.cookie, "two ends have two");
    }

    #[test]
    fn supplementary_groups_are_the_peers() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut expected: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        let mut groups = Connection::of(ours.into()).unwrap().groups().unwrap();
        expected.sort_unstable();
        groups.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn what_is_no_socket_is_no_connection() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(Connection::of(reader).is_err());
    }
}
