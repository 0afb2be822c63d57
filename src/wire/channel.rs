//! A typed channel between two of our own processes: SOCK_SEQPACKET, one postcard message a packet, at most one
//! descriptor with it (orders to the spawner have more). The type says which side may send what: `Channel<ToWorker, FromWorker>` is the frontend's end.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{self, DecodeError, EncodeError};
use super::spawner::ORDER_DESCRIPTORS_MAX;

/// One end; sends `Tx`, receives `Rx`. Never blocks.
#[derive(Debug)]
pub struct Channel<Tx, Rx> {
    socket: OwnedFd,
    max: usize,
    direction: PhantomData<fn(Tx) -> Rx>,
}

/// What arrived, and with which descriptors.
#[derive(Debug)]
pub enum Received<Rx, Descriptors = Option<OwnedFd>> {
    Message(Rx, Descriptors),
    /// Nothing now; wait until the descriptor is readable.
    Nothing,
    /// The other end is gone.
    End,
}

/// Why a message could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The other side does not keep up (EAGAIN), or too many descriptors are under way (ETOOMANYREFS): keep the
    /// message and the descriptor, try again when writable.
    #[error("channel is full")]
    Full,
    #[error("channel is closed")]
    Closed,
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("send on channel: {0}")]
    Io(#[source] io::Error),
}

/// Why a message could not be received. All but `Io` and `Lost` are the other process's doing.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("message on channel: {0}")]
    Decode(#[from] DecodeError),
    #[error("message on channel was longer than {0} bytes, or came with too many descriptors")]
    Truncated(usize),
    /// This process may have no more open, or what came could not be taken for another reason of ours.
    #[error("a descriptor that came with a message was lost; too many are open")]
    Lost,
    #[error("receive on channel: {0}")]
    Io(#[source] io::Error),
}

impl<Tx, Rx> Channel<Tx, Rx> {
    /// Both ends, close-on-exec and non-blocking; messages of at most `max` bytes.
    pub fn pair(max: usize) -> io::Result<(Self, Channel<Rx, Tx>)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self::new(ours, max), Channel::new(theirs, max)))
    }

    /// An end made elsewhere: inherited, or received over another channel. It must be non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd, max: usize) -> Self {
        Self { socket, max, direction: PhantomData }
    }
}

impl<Tx: Serialize, Rx> Channel<Tx, Rx> {
    /// Sends one message whole, with a copy of `descriptor` if there is one.
    pub fn send(&self, message: &Tx, descriptor: Option<BorrowedFd<'_>>) -> Result<(), SendError> {
        self.send_with(message, descriptor.as_slice())
    }

    /// Sends one message whole, with copies of `descriptors`.
    pub fn send_with(&self, message: &Tx, descriptors: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        let bytes = frame::encode(message, self.max)?;
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            let sent = sendmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                None,
            );
            return match sent {
                Ok(_) => Ok(()),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS) => Err(SendError::Full),
                Err(Errno::EPIPE | Errno::ECONNRESET) => Err(SendError::Closed),
                Err(errno) => Err(SendError::Io(errno.into())),
            };
        }
    }
}

impl<Tx, Rx: DeserializeOwned> Channel<Tx, Rx> {
    /// Receives one message. A descriptor that comes with one that does not decode is closed.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> Result<Received<Rx>, ReceiveError> {
        Ok(match self.receive_into(buffer, cmsg_space!([RawFd; 1]))? {
            // What the kernel aligns has room for two.
            Received::Message(_, descriptors) if descriptors.len() > 1 => {
                return Err(ReceiveError::Truncated(self.max));
            }
            Received::Message(message, mut descriptors) => Received::Message(message, descriptors.pop()),
            Received::Nothing => Received::Nothing,
            Received::End => Received::End,
        })
    }

    /// Receives one message with up to [`ORDER_DESCRIPTORS_MAX`] descriptors, in the order they were sent.
    pub fn receive_many(&self, buffer: &mut Vec<u8>) -> Result<Received<Rx, Vec<OwnedFd>>, ReceiveError> {
        self.receive_into(buffer, cmsg_space!([RawFd; ORDER_DESCRIPTORS_MAX]))
    }

    fn receive_into(
        &self,
        buffer: &mut Vec<u8>,
        mut space: Vec<u8>,
    ) -> Result<Received<Rx, Vec<OwnedFd>>, ReceiveError> {
        buffer.resize(self.max, 0);
        let (length, flags, mut descriptors) = loop {
            let mut slices = [IoSliceMut::new(buffer)];
            let received = recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
            );
            match received {
                Ok(message) => {
                    // Owned first, all of them: whatever is wrong with the message, they are closed.
                    let mut descriptors = Vec::new();
                    for control in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            descriptors.extend(fds.into_iter().map(adopt));
                        }
                    }
                    break (message.bytes, message.flags, descriptors);
                }
                // Said once if the other side ended before it had read everything; what it sent before is still there.
                Err(Errno::EINTR | Errno::ECONNRESET) => continue,
                Err(Errno::EAGAIN) => return Ok(Received::Nothing),
                Err(errno) => return Err(ReceiveError::Io(errno.into())),
            }
        };
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            // These nix does not tell of, and whoever sends too many could so fill our table.
            descriptors.extend(installed(&space).map(adopt));
        }
        if length == 0 {
            return Ok(Received::End);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(ReceiveError::Truncated(self.max));
        }
        // Where there was room for the first, only the sender can be why there was none for another.
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(match descriptors.as_slice() {
                [] => ReceiveError::Lost,
                _ => ReceiveError::Truncated(self.max),
            });
        }
        let bytes = buffer.get(..length).ok_or(ReceiveError::Truncated(self.max))?;
        Ok(Received::Message(frame::decode(bytes)?, descriptors))
    }
}

impl<Tx, Rx> AsFd for Channel<Tx, Rx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What an event loop needs to wait for it.
impl<Tx, Rx> AsRawFd for Channel<Tx, Rx> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<Tx, Rx> From<Channel<Tx, Rx>> for OwnedFd {
    fn from(channel: Channel<Tx, Rx>) -> Self {
        channel.socket
    }
}

/// The descriptors that the kernel has put into a control buffer that held only zeros before: a `struct cmsghdr` with its
/// length, level and type, and numbers behind it. There is one such at most, and nothing where none was installed.
fn installed(control: &[u8]) -> impl Iterator<Item = RawFd> + '_ {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    let length = control.first_chunk().map_or(0, |length| usize::from_ne_bytes(*length));
    let rights = control.get(size_of::<usize>()..HEADER).is_some_and(|what| {
        what == [libc::SOL_SOCKET.to_ne_bytes(), libc::SCM_RIGHTS.to_ne_bytes()].as_flattened()
    });
    let numbers = control.get(HEADER..length).filter(|_| rights).unwrap_or_default();
    numbers.as_chunks().0.iter().map(|number| RawFd::from_ne_bytes(*number))
}

/// JUSTIFICATION: the kernel hands descriptors over as numbers; only this turns one into a value that closes itself.
#[expect(unsafe_code, reason = "a descriptor received with SCM_RIGHTS arrives as a number")]
fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for this recvmsg call; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes a descriptor that the supervisor placed at a fixed number before exec (see [`super::control::fd`]).
///
/// Returns an error if the number is not open or has been taken before in this process. Marks it close-on-exec.
///
/// JUSTIFICATION: an inherited descriptor is a number by agreement between two programs; std has no safe way to own it.
#[expect(unsafe_code, reason = "an inherited descriptor arrives as a number")]
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static TAKEN: AtomicU64 = AtomicU64::new(0);

    let bit = u32::try_from(number).ok().and_then(|n| 1_u64.checked_shl(n)).unwrap_or(0);
    if bit == 0 || TAKEN.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        return Err(io::Error::other(format!(
            "descriptor {number} was taken before, or is not one to inherit"
        )));
    }
    // SAFETY: only borrowed for this call, which fails with EBADF if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    nix::fcntl::fcntl(borrowed, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .map_err(|errno| io::Error::other(format!("inherited descriptor {number}: {errno}")))?;
    // SAFETY: it is open (just checked), and TAKEN makes sure that this process owns it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64;

    #[test]
    fn last_words_are_heard_of_one_that_did_not_listen_to_the_end() {
        let (ours, theirs) = Channel::<u32, u32>::pair(MAX).expect("pair");
        ours.send(&1, None).expect("room");
        theirs.send(&2, None).expect("room");
        theirs.send(&3, None).expect("room");
        drop(theirs);

        let mut buffer = Vec::new();
        let mut heard = || ours.receive(&mut buffer).expect("no error");
        assert!(matches!(heard(), Received::Message(2, None)));
        assert!(matches!(heard(), Received::Message(3, None)));
        assert!(matches!(heard(), Received::End));
        assert!(matches!(heard(), Received::End), "and so it stays");
        assert!(matches!(ours.send(&4, None), Err(SendError::Closed)));
    }

    #[test]
    fn whoever_sends_more_than_may_be_is_told_from_one_whose_descriptor_got_lost() {
        let (ours, theirs) = Channel::<u32, u32>::pair(MAX).expect("pair");
        let (end, copied) = nix::unistd::pipe().expect("pipe");
        let heard = |many: usize| {
            theirs.send_with(&7, &vec![copied.as_fd(); many]).expect("room");
            ours.receive(&mut Vec::new())
        };
        assert!(matches!(heard(1), Ok(Received::Message(7, Some(_)))), "the control");
        for many in [2, 3, 5] {
            assert!(matches!(heard(many), Err(ReceiveError::Truncated(MAX))), "{many}");
        }
        drop(copied);
        // The end of a pipe is seen only where no copy of its other end is left.
        assert_eq!(nix::unistd::read(&end, &mut [0]), Ok(0), "they are closed");
        let long = Channel::<String, ()>::new(theirs.into(), 2 * MAX);
        long.send(&"x".repeat(MAX), None).expect("room");
        assert!(matches!(ours.receive(&mut Vec::new()), Err(ReceiveError::Truncated(MAX))));
    }
}
