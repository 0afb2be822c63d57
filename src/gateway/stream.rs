//! A proxy's connection, over whichever kind of socket: bytes in, bytes out, by two system calls.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::polled;

/// Nobody else has the socket, so it matters to nobody whether it blocks: no call on it ever does.
#[derive(Debug)]
pub(super) struct Stream(AsyncFd<Arc<OwnedFd>>);

impl Stream {
    /// Must be called within the runtime.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(polled::watch(Arc::new(socket))?))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            match recv(self.0.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => {
                    // That was all there is: the next to come is news.
                    if length > 0 && length < room.len() {
                        guard.clear_ready();
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.0.as_raw_fd(), bytes, flags) {
                Ok(length) => {
                    if length > 0 && length < bytes.len() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(length));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// What was written arrives, even if the other side has sent more than was read.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match shutdown(self.0.as_raw_fd(), Shutdown::Write) {
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

    #[tokio::test]
    async fn bytes_go_both_ways_and_more_than_fits_a_socket() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(ours.into()).unwrap();
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

    #[tokio::test]
    async fn who_is_gone_is_an_error_and_no_signal() {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(ours.into()).unwrap();
        drop(theirs);
        assert_eq!(stream.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
