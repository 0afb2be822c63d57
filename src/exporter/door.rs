//! The doors: a Unix socket and maybe a TCP one, and no more connections of each at a time than there are places.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// Connections through one door at one time.
const PLACES: usize = 16;
/// How long nobody is let in after accepting failed.
const PAUSE: Duration = Duration::from_millis(100);

/// One listening socket, and who came in through it. Each has places of its own: who holds all of the one is not in the
/// way at the other.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
    shut_until: Option<Instant>,
    inside: VecDeque<AbortHandle>,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Door {
    /// Must be called within the runtime.
    pub(super) fn unix(listener: OwnedFd) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self::new(Listener::Unix(UnixListener::from_std(listener)?)))
    }

    /// Must be called within the runtime.
    pub(super) fn tcp(listener: OwnedFd) -> io::Result<Self> {
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok(Self::new(Listener::Tcp(TcpListener::from_std(listener)?)))
    }

    const fn new(listener: Listener) -> Self {
        Self { listener, shut_until: None, inside: VecDeque::new() }
    }

    /// The next connection. May be dropped and called again without losing one.
    pub(super) async fn next(&mut self) -> Stream {
        loop {
            if let Some(until) = self.shut_until {
                sleep_until(until).await;
                self.shut_until = None;
            }
            let accepted = match &self.listener {
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            };
            match accepted {
                Ok(stream) => return stream,
                // It was gone before we came.
                Err(error) if error.raw_os_error() == Some(Errno::ECONNABORTED as i32) => {}
                // EMFILE, ENFILE, ENOMEM: trying again at once would only burn the processor.
                Err(error) => {
                    warn!(%error, "cannot accept; waiting");
                    self.shut_until = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    /// Somebody is inside. Where all places are taken, whoever came first has had the longest time, and goes.
    pub(super) fn seat(&mut self, connection: AbortHandle) {
        self.inside.retain(|one| !one.is_finished());
        if self.inside.len() >= PLACES
            && let Some(first) = self.inside.pop_front()
        {
            first.abort();
        }
        self.inside.push_back(connection);
    }
}

/// At a door that may not be there.
pub(super) async fn next_at(door: Option<&mut Door>) -> Stream {
    match door {
        Some(door) => door.next().await,
        None => pending().await,
    }
}

/// A connection of either kind. Closing it is all the end it has: it shuts nothing down first.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.get_mut() {
            Self::Unix(stream) => ready!(Pin::new(stream).poll_write(context, bytes)),
            Self::Tcp(stream) => ready!(Pin::new(stream).poll_write(context, bytes)),
        };
        Poll::Ready(written)
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
