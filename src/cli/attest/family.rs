//! Which family a socket of another process is of. The kernel says it of the socket itself, whichever network namespace
//! that is in, and whether or not anybody is left in there.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

use super::view::Unseen;

/// Its protocol's name: "UNIX", "UNIX-STREAM", "TCP", "NETLINK".
#[expect(unsafe_code, reason = "nix has no getxattr")]
pub(super) fn of(link: &Path) -> Result<String, Unseen> {
    let failed = |error: &io::Error| Unseen::of(link, error);
    let path = CString::new(link.as_os_str().as_bytes()).map_err(|error| failed(&error.into()))?;
    let mut name = [0_u8; 64];
    // JUSTIFICATION: getxattr(2) has no safe form in nix or std, and nothing else names a socket's family from outside.
    // SAFETY: both strings end with a NUL and live until the call is over; the buffer is as long as is said.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let length = usize::try_from(length).map_err(|_| failed(&io::Error::last_os_error()))?;
    let name = name.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

/// Stream sockets have a name of their own since Linux 5.15.
pub(super) fn is_unix(family: &str) -> bool {
    family == "UNIX" || family == "UNIX-STREAM"
}

pub(super) fn is_tcp(family: &str) -> bool {
    family == "TCP" || family == "TCPv6"
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn family(socket: &dyn AsRawFd) -> Result<String, Unseen> {
        of(Path::new(&format!("/proc/self/fd/{}", socket.as_raw_fd())))
    }

    #[test]
    fn unix_sockets_and_no_others_are_unix() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(is_unix(&family(&stream).unwrap()));
        assert!(is_unix(&family(&UnixDatagram::unbound().unwrap()).unwrap()));
        assert_eq!(family(&UdpSocket::bind("127.0.0.1:0").unwrap()).as_deref(), Ok("UDP"));
        assert_eq!(family(&TcpListener::bind("127.0.0.1:0").unwrap()).as_deref(), Ok("TCP"));
        assert!(family(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
