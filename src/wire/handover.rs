//! Frontend <-> worker: connections go over, and come back when a generation ends.
//!
//! The ownership rule: exactly one process owns a connection. Who hands one over has stopped reading it, has answered
//! every request it read and written every reply completely, sends the descriptor with the bytes it had read but not
//! used, and closes its own copy. Who receives it uses those bytes first.

use serde::{Deserialize, Serialize};

use super::client::CLIENT_FRAME_MAX;
use super::frame::PREFIX;
use super::operator::WorkerStatus;
use crate::decision::Tenant;

/// Largest message, bytes; a connection's unread bytes follow in as many [`Unread`](ToWorker::Unread) as it takes.
pub const HANDOVER_MAX: usize = 64 * 1024;
/// Most parts of one [`FromWorker::Status`]: a worker that sends more misbehaves.
pub const STATUS_PARTS_MAX: usize = 256;
/// Unread bytes in one message.
pub const UNREAD_CHUNK: usize = 32 * 1024;
/// Most unread bytes of one connection: a frame that is not complete, and one read more.
pub const UNREAD_MAX: usize = CLIENT_FRAME_MAX + PREFIX + 64 * 1024;

/// Names a connection for both sides: the kernel's SO_COOKIE of the socket, which neither can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cookie(pub u64);

/// What the frontend sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// With the connection's descriptor, whose client has its Welcome: it is yours. `unread` bytes follow in [`ToWorker::Unread`] messages.
    Adopt {
        cookie: Cookie,
        /// Who connected, from SO_PEERCRED.
        uid: u32,
        /// The tenants of this class the connection may ask for.
        tenants: Vec<Tenant>,
        unread: u32,
    },
    /// The next of the unread bytes of the connection adopted last.
    Unread(Vec<u8>),
    /// Give every connection back, then say [`FromWorker::Drained`] and exit.
    Drain,
    /// Answer with [`FromWorker::Status`].
    Status { nonce: u64 },
}

/// What the worker sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// With the descriptor, after [`ToWorker::Drain`]: it is yours again, `unread` bytes follow.
    Return {
        cookie: Cookie,
        unread: u32,
    },
    Unread(Vec<u8>),
    /// The connection is closed and forgotten.
    Closed {
        cookie: Cookie,
    },
    /// Nothing is left here.
    Drained,
    /// `last` is false while more parts follow (many policies).
    Status {
        nonce: u64,
        part: WorkerStatus,
        last: bool,
    },
}
