//! One end of a connection in the runtime's care: bytes in, bytes out, by two system calls.
//!
//! Room is waited for only once there was none. A peer that takes what it was sent makes room each time, and the kernel would
//! wake the event loop for that after each message, for nothing.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::task::coop::poll_proceed;

use super::polled;

/// A connected socket. It does not matter whether it blocks: no call on it ever does. One task reads and writes.
#[derive(Debug)]
pub struct Socket {
    /// None if the runtime would not take it again.
    watched: Option<AsyncFd<Arc<OwnedFd>>>,
    waits_for_room: bool,
}

impl Socket {
    /// Must be called within the runtime, in which nobody else may have this descriptor.
    ///
    /// # Errors
    /// If the runtime has no place for it.
    pub fn new(socket: Arc<OwnedFd>) -> io::Result<Self> {
        let watched = Some(polled::watch(socket, Interest::READABLE)?);
        Ok(Self { watched, waits_for_room: false })
    }

    /// Ready once there may be room again for what [`put`] did not take. To be asked only then.
    ///
    /// # Errors
    /// If the runtime ends.
    pub fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wait_for_room(context)?;
        // Whatever is tried now, the next room is news.
        ready!(self.watched()?.poll_write_ready(context))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    fn watched(&self) -> io::Result<&AsyncFd<Arc<OwnedFd>>> {
        self.watched.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// From now on room is an event as well. Where it was there is no memory of who waits for something to read, so the task
    /// is to look again.
    fn wait_for_room(&mut self, context: &Context<'_>) -> io::Result<()> {
        if self.waits_for_room {
            return Ok(());
        }
        let watched = self.watched.take().ok_or(io::ErrorKind::NotConnected)?;
        self.watched = Some(polled::watch(watched.into_inner(), Interest::READABLE | Interest::WRITABLE)?);
        self.waits_for_room = true;
        context.waker().wake_by_ref();
        Ok(())
    }
}

/// Writes what the socket takes now.
///
/// # Errors
/// `WouldBlock` if that is nothing, and what else the kernel says.
pub fn put(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Reads what is there now; 0 at the end.
///
/// # Errors
/// `WouldBlock` if that is nothing, and what else the kernel says.
pub fn take(socket: &OwnedFd, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watched = self.watched()?;
        loop {
            let mut guard = ready!(watched.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match take(watched.get_ref(), room) {
                Ok(length) => {
                    // That was all there is: the next to come is news.
                    if length > 0 && length < room.len() {
                        guard.clear_ready();
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Whoever writes without end lets others go on, as whoever reads does.
        let turn = ready!(poll_proceed(context));
        loop {
            match put(self.watched()?.get_ref(), bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_room(context))?;
                }
                other => {
                    turn.made_progress();
                    return Poll::Ready(other);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// What was written arrives, even if the other side has sent more than was read.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(self.watched()?.as_raw_fd(), Shutdown::Write) {
            Ok(()) | Err(Errno::ENOTCONN) => Poll::Ready(Ok(())),
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn socket(ours: UnixStream) -> Socket {
        Socket::new(Arc::new(ours.into())).unwrap()
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_more_than_fits_a_socket() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = socket(ours);
        let many = 4 << 20;
        let other = std::thread::spawn(move || {
            theirs.write_all(&vec![7; many]).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            theirs.read_to_end(&mut back).unwrap();
            back
        });
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, vec![7; many]);
        stream.write_all(&read).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(other.join().unwrap(), read);
    }

    /// Both at once, in one task: while it waits for room, and after that, it hears what comes.
    #[tokio::test]
    async fn who_waits_for_room_hears_what_comes_meanwhile() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = socket(ours);
        let bytes = vec![1; 1 << 20];
        let (mut written, mut heard) = (0, 0);
        let mut buffer = [0; 16];
        let other = std::thread::spawn(move || {
            // More is written than there is room for, and it is said in between that half of it may follow.
            let mut all = vec![0; 1 << 20];
            for round in 0..2 {
                theirs.write_all(&[round; 16]).unwrap();
                theirs.read_exact(&mut all[..1 << 19]).unwrap();
            }
        });
        while written < bytes.len() || heard < 32 {
            std::future::poll_fn(|context| {
                let mut done = false;
                let mut room = ReadBuf::new(&mut buffer);
                if heard < 32 && Pin::new(&mut stream).poll_read(context, &mut room)?.is_ready() {
                    heard += room.filled().len();
                    done = true;
                }
                if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty())
                    && let Poll::Ready(count) = Pin::new(&mut stream).poll_write(context, rest)?
                {
                    written += count;
                    done = true;
                }
                if done { Poll::Ready(Ok::<_, io::Error>(())) } else { Poll::Pending }
            })
            .await
            .unwrap();
        }
        other.join().unwrap();
    }

    /// An answer that is read is no event: nothing is to be done about it.
    #[tokio::test]
    async fn room_is_no_event_until_it_is_waited_for() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = socket(ours);
        let events = |stream: &Socket| {
            let ours = stream.watched.as_ref().unwrap().as_raw_fd();
            // The event loop's own account of what it watches.
            let loops = std::fs::read_dir("/proc/self/fdinfo").unwrap();
            loops
                .filter_map(|one| std::fs::read_to_string(one.ok()?.path()).ok())
                .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
                .filter_map(|line| {
                    let mut words = line.strip_prefix("tfd:")?.split_whitespace();
                    let number: i32 = words.next()?.parse().ok()?;
                    (words.next()? == "events:")
                        .then_some((number, u32::from_str_radix(words.next()?, 16).ok()?))
                })
                .filter(|(number, _)| *number == ours)
                .map(|(_, events)| events)
                .collect::<Vec<u32>>()
        };
        const OUT: u32 = 4;
        stream.write_all(b"answer").await.unwrap();
        let watched = events(&stream);
        assert!(!watched.is_empty() && watched.iter().all(|events| events & OUT == 0), "{watched:?}");
        // More than there is room for.
        let long = vec![0; 4 << 20];
        let other = std::thread::spawn(move || theirs.read_to_end(&mut Vec::new()).unwrap());
        stream.write_all(&long).await.unwrap();
        assert!(events(&stream).iter().any(|events| events & OUT != 0));
        drop(stream);
        assert_eq!(other.join().unwrap(), long.len() + 6);
    }

    #[tokio::test]
    async fn who_is_gone_is_an_error_and_no_signal() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = socket(ours);
        drop(theirs);
        assert_eq!(stream.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
