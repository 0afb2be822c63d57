//! One client's connection, as the executor that owns it sees it: bytes in, frames out, and what is in progress.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::outbound::Outbound;
use super::tickets::TicketKey;
use crate::wire::client::{CLIENT_FRAME_MAX, Violation};
use crate::wire::frame::{DecodeError, PREFIX, frame_length};
use crate::wire::handover::Cookie;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) outbound: Arc<Outbound>,
    pub(super) cookie: Cookie,
    /// By tenant index: may it ask for that one.
    pub(super) grant: Box<[bool]>,
    /// Read, but not a whole frame yet. Travels with the connection when it is handed over.
    pub(super) partial: Vec<u8>,
    pub(super) requests: Vec<InProgress>,
    pub(super) phase: Phase,
    /// The socket did not take all of the replies; epoll tells when it does.
    pub(super) blocked: bool,
    /// It waits for its turn to be read. Where there are whole frames in `partial` it does, or is blocked.
    pub(super) pending: bool,
    /// When the bytes in `partial` were read (CLOCK_MONOTONIC, nanoseconds).
    pub(super) read_ns: u64,
    /// Tells this connection from an earlier one in the same slot.
    pub(super) serial: u64,
}

/// A request that has been read and not been done with.
#[derive(Debug, Clone, Copy)]
pub(super) struct InProgress {
    pub(super) id: u64,
    pub(super) ticket: TicketKey,
    /// Its task, if it is no batch.
    pub(super) alone: Option<usize>,
    /// Questions that still have a task.
    pub(super) left: usize,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// Nothing more is read; what is in progress is answered, then it is given back.
    Returning,
    /// Nothing more is read; what is in progress is answered, then it is closed.
    Closing,
}

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// That many bytes, now at the front of the scratch buffer.
    Bytes(usize),
    Nothing,
    /// The client has finished sending.
    End,
    Broken,
}

impl Connection {
    /// Questions in progress.
    pub(super) fn in_progress(&self) -> usize {
        self.requests.iter().map(|request| request.left).sum()
    }

    /// Reads once, without waiting.
    pub(super) fn read(&self, scratch: &mut [u8]) -> ReadOutcome {
        use std::os::fd::AsFd;
        loop {
            return match recv(self.outbound.as_fd().as_raw_fd(), scratch, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => ReadOutcome::End,
                Ok(length) => ReadOutcome::Bytes(length),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => ReadOutcome::Nothing,
                Err(_) => ReadOutcome::Broken,
            };
        }
    }
}

/// A frame, without its prefix, and the bytes after it.
pub(super) type Split<'a> = (&'a [u8], &'a [u8]);

/// The first whole frame of `bytes`; `None` if it is not all there.
pub(super) fn split_frame(bytes: &[u8]) -> Result<Option<Split<'_>>, Violation> {
    let length = match frame_length(bytes, CLIENT_FRAME_MAX) {
        Ok(Some(length)) => length,
        Ok(None) => return Ok(None),
        Err(DecodeError::Empty) => return Err(Violation::Empty),
        Err(_) => return Err(Violation::TooLong),
    };
    let Some(rest) = bytes.get(PREFIX..) else { return Ok(None) };
    Ok(rest.split_at_checked(length))
}
