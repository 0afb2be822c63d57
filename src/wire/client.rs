//! Client <-> frontend (Hello only) and client <-> worker (everything after it).

use serde::{Deserialize, Serialize, Serializer};

use crate::decision::{Decision, InOnePiece, Quota, TraceContext, TrustClass, at_most, in_one_piece};

/// What this build speaks. A Hello with another version is answered with [`Farewell::Version`].
pub const PROTOCOL_VERSION: u16 = 3;
/// Largest Hello frame, bytes after the length prefix.
pub const HELLO_MAX: usize = 256;
/// Largest frame from a client, bytes after the length prefix.
pub const CLIENT_FRAME_MAX: usize = 1 << 20;
/// Largest frame to a client, bytes after the length prefix.
pub const SERVER_FRAME_MAX: usize = 4 << 20;
/// Most questions in one batch.
pub const BATCH_MAX: usize = 256;

/// What a client sends. Names and inputs borrow from the frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame<'a> {
    /// First and once: the tenant whose trust class this connection is for.
    Hello {
        version: u16,
        tenant: &'a str,
    },
    Decide {
        /// Chosen by the client; comes back in the reply. Must not be in use on this connection.
        id: u64,
        tenant: &'a str,
        policy: &'a str,
        deadline: Deadline,
        /// Of the caller, if it has one.
        trace: Option<TraceContext>,
        /// A postcard-encoded [`crate::decision::Input`].
        #[serde(serialize_with = "in_one_piece")]
        input: &'a [u8],
    },
    /// Several questions to one policy under one deadline, answered together in the same order.
    DecideBatch {
        id: u64,
        tenant: &'a str,
        policy: &'a str,
        deadline: Deadline,
        trace: Option<TraceContext>,
        #[serde(borrow, serialize_with = "each_in_one_piece")]
        inputs: Vec<&'a [u8]>,
    },
    /// Asks to give up request `id`. It is answered either way, once.
    Cancel {
        id: u64,
    },
    Ping {
        nonce: u64,
    },
}

fn each_in_one_piece<S: Serializer>(inputs: &[&[u8]], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(inputs.iter().map(|input| InOnePiece(input)))
}

/// When a decision is no longer of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deadline {
    /// The policy's own.
    Default,
    /// Microseconds from when the worker reads the request.
    Budget { us: u32 },
    /// Nanoseconds of CLOCK_MONOTONIC: covers the way through the socket too.
    Absolute { ns: u64 },
}

/// What a client receives.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are decisions; a box would be one more allocation each"
)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerFrame {
    /// The frontend's answer to Hello: what comes behind it is a worker's of that class.
    Welcome {
        version: u16,
        class: TrustClass,
        /// Which worker process of that class, counted from 1 since the service started.
        generation: u64,
    },
    Decision {
        id: u64,
        decision: Decision,
    },
    Decisions {
        id: u64,
        /// No more than anybody may ask for at once.
        #[serde(deserialize_with = "at_most::<BATCH_MAX, _, _>")]
        decisions: Vec<Decision>,
    },
    Pong {
        nonce: u64,
    },
    /// The last frame: why the connection ends.
    Farewell(Farewell),
}

/// Why the service ends a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Farewell {
    #[error("protocol version {theirs} is not spoken here, {ours} is")]
    Version { theirs: u16, ours: u16 },
    #[error("unknown tenant")]
    UnknownTenant,
    #[error("this peer may not ask for that tenant")]
    NotPermitted,
    #[error("no worker is ready for that tenant's class; try again")]
    Unavailable,
    #[error("too many connections ({0})")]
    Quota(Quota),
    #[error("protocol broken: {0}")]
    Protocol(Violation),
    #[error("no complete Hello in time")]
    Timeout,
    #[error("the service is shutting down")]
    ShuttingDown,
}

/// What a client did that the protocol does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Violation {
    #[error("a frame of length 0")]
    Empty,
    #[error("a frame above the size limit")]
    TooLong,
    #[error("a frame that does not decode, or has bytes left over")]
    Malformed,
    #[error("a second Hello")]
    HelloTwice,
    #[error("something else before Hello")]
    NotHello,
    #[error("a request id that is in use")]
    DuplicateId,
    #[error("a batch without questions, or with too many")]
    BatchSize,
    #[error("an input that does not decode")]
    Input,
}
