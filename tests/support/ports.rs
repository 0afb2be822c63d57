//! Ports of this machine's own, for programs that bind them a while later.

use std::os::fd::{AsRawFd, IntoRawFd};

use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket,
};

/// A port that stays somebody's until the test program ends: bound, so that the kernel gives it to nobody else, neither as
/// a port to listen on nor as that of a connection, and not listened on. Whoever binds it with `SO_REUSEADDR`, as servers
/// do, std's and Go's among them, gets it.
pub(crate) fn free_port() -> u16 {
    let held = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&held, ReuseAddr, &true).unwrap();
    bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(held.as_raw_fd()).unwrap().port();
    let _ = held.into_raw_fd();
    port
}
