//! The way back to a client: bytes that wait to be written, and the descriptor they go to.
//!
//! Shared between the executor that owns the connection and the watchdog, which answers when the executor is stuck;
//! in the normal case the executor that computed a reply writes it itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use crate::decision::{Decision, Refusal};
use crate::wire::client::{SERVER_FRAME_MAX, ServerFrame};
use crate::wire::frame;

/// Replies that wait for a client that does not read: above this the connection is given up.
const BUFFER_MAX: usize = SERVER_FRAME_MAX + (1 << 20);
/// A buffer that grew larger than this is not kept.
const BUFFER_KEPT: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Outbound {
    socket: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    buffer: BytesMut,
    /// The client is gone, or does not read what it asked for: nothing more is written.
    broken: bool,
}

/// Where the bytes are after a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    /// All handed to the kernel.
    All,
    /// The socket is full; flush again when it is writable.
    Blocked,
    /// The connection is of no use any more.
    Broken,
}

impl Outbound {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, state: Mutex::default() }
    }

    /// Appends a frame, and returns how many bytes that were; writes nothing yet.
    pub(super) fn push(&self, message: &ServerFrame) -> usize {
        let mut state = self.state();
        if state.broken {
            return 0;
        }
        let before = state.buffer.len();
        if state.buffer.len() > BUFFER_MAX {
            state.broken = true;
        } else if frame::encode_frame(message, &mut state.buffer, SERVER_FRAME_MAX).is_err() {
            // Only decisions can be that large: their obligations are the guest's.
            let too_large = |decision: &Decision| {
                let refusal = Refusal::InvalidOutput("larger than a frame may be".into());
                Decision { id: decision.id, ..Decision::refused(refusal) }
            };
            let instead = match message {
                ServerFrame::Decision { id, decision } => {
                    ServerFrame::Decision { id: *id, decision: too_large(decision) }
                }
                ServerFrame::Decisions { id, decisions } => {
                    ServerFrame::Decisions { id: *id, decisions: decisions.iter().map(too_large).collect() }
                }
                _ => return 0,
            };
            state.broken = frame::encode_frame(&instead, &mut state.buffer, SERVER_FRAME_MAX).is_err();
        }
        state.buffer.len().saturating_sub(before)
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.state().buffer.len()
    }

    /// Writes what the socket takes now.
    pub(super) fn flush(&self) -> Flushed {
        let mut state = self.state();
        while !state.broken && !state.buffer.is_empty() {
            match send(
                self.socket.as_raw_fd(),
                &state.buffer,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(written) => state.buffer.advance(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Flushed::Blocked,
                Err(_) => state.broken = true,
            }
        }
        if state.broken {
            return Flushed::Broken;
        }
        if state.buffer.capacity() > BUFFER_KEPT {
            state.buffer = BytesMut::new();
        }
        Flushed::All
    }

    /// A thread that panics aborts the process, so a poisoned lock cannot be met.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Outbound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
