//! Ask a running Portcullis from a proxy or a filter.
//!
//! Two clients over one protocol (`docs/protocol.md`): [`Client`] for tokio, and [`blocking::Client`] on plain threads
//! and std sockets. Both keep one connection per trust class by themselves, put deadlines on everything, and come back
//! after the service was away.
//!
//! ```no_run
//! use std::time::Duration;
//! use portcullis::client::{Client, Deadline, Question, is_allowed};
//! use portcullis::decision::{Outcome, PolicyName, Tenant};
//!
//! # async fn handle() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("/run/portcullis/decide.sock");
//! let (tenant, policy) = (Tenant::new("acme")?, PolicyName::new("jwt-gate")?);
//!
//! let question = Question::http("GET", "https", "api.acme.example", "/v1/orders")
//!     .query("page=2")
//!     .header("authorization", b"Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln")
//!     .source("192.0.2.7:50123".parse()?);
//! let answer = client.decide(&tenant, &policy, Deadline::in_(Duration::from_millis(20)), question.input()).await;
//!
//! if !is_allowed(&answer) {
//!     match answer {
//!         Ok(decision) => match decision.outcome {
//!             Outcome::Deny { reason } => println!("403: {reason}"),
//!             other => println!("503: {other:?}"), // the policy was not asked, or said nothing that counts
//!         },
//!         Err(error) => println!("503: {error}"),
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! # What opens the gate
//!
//! One thing: `Ok` of a [`Decision`] whose outcome is [`Outcome::Allow`](crate::decision::Outcome::Allow).
//! [`is_allowed`] says so in one word. Every error of every function here, a closed connection, a passed deadline, and
//! every refusal mean that **the gate stays down**. Nothing here turns an error into an answer.
//!
//! # Connections
//!
//! A connection belongs to one trust class, and only the service knows which class a tenant is in. So the first
//! question for a tenant opens a connection and greets with that tenant; the service's Welcome names the class. If
//! there is a connection of that class already, the new one is closed and the old one used: its grant holds every
//! tenant of the class that this process may ask for. From then on the client knows the tenant's class, and all its
//! questions go over that one connection, many at a time, answered in any order.
//!
//! When a connection ends, what was asked on it fails with [`ClientError::Closed`], or with the reason the service gave
//! ([`ClientError::Farewell`]). It is **not** asked again: the service may have decided it. Only a question of which
//! no byte had been written is asked once more on a new connection, within its deadline. Attempts to connect are
//! spaced, from 10 ms up to 1 s ([`Settings`]).
//!
//! A grant is bearer: whoever holds the connection's descriptor asks with this process's rights. The sockets here are
//! close-on-exec.
//!
//! # Deadlines
//!
//! [`Deadline::in_`] is the one to use: it fixes a point on CLOCK_MONOTONIC, so that the way through the socket counts
//! too. The service answers a late question with a refusal. If no answer comes at all, the client gives
//! [`ClientError::Deadline`] itself, [`Settings::grace`] after the deadline. Dropping a future of [`Client::decide`]
//! tells the service to give that question up.

mod asynchronous;
mod backoff;
pub mod blocking;
mod deadline;

mod exchange;
mod greeting;
mod question;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use asynchronous::Client;
#[cfg(feature = "gateway")]
pub(crate) use asynchronous::{Connect, Pipeline};
pub use question::Question;

use crate::decision::Unfit;
pub use crate::decision::{Decision, Input};
pub use crate::wire::client::{BATCH_MAX, Deadline};
use crate::wire::client::{CLIENT_FRAME_MAX, Farewell};
use crate::wire::frame::DecodeError;

/// True for a decision to allow and for nothing else: not for a denial, a refusal or any error.
#[must_use]
pub fn is_allowed(result: &Result<Decision, ClientError>) -> bool {
    matches!(result, Ok(decision) if decision.outcome.is_allow())
}

/// How patient a client is. The defaults suit a proxy on the same host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long after a question's deadline the client waits for the service's own word on it.
    pub grace: Duration,
    /// How long a question with [`Deadline::Default`] may take, since only the service knows the policy's own; and how
    /// long a given-up question may stay unanswered before the connection counts as dead.
    pub patience: Duration,
    /// Questions under way on one connection; more wait here. Not above the class's `pipeline`, or the service refuses
    /// some.
    pub pipeline: usize,
    /// Shortest and longest time between two attempts to connect for one tenant.
    pub retry_first: Duration,
    pub retry_longest: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace: Duration::from_millis(50),
            patience: Duration::from_secs(5),
            pipeline: 64,
            retry_first: Duration::from_millis(10),
            retry_longest: Duration::from_secs(1),
        }
    }
}

/// Why there is no decision from the service. Whatever it is, the gate stays down.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket, or this process may not open it. The gate stays down.
    #[error("connect to {socket:?}: {cause}")]
    Connect { socket: PathBuf, cause: Arc<io::Error> },
    /// The service ended the connection and said why. The gate stays down.
    #[error("service ended the connection: {0}")]
    Farewell(Farewell),
    /// The connection ended before the answer came; the service may have decided or not. The gate stays down.
    #[error("connection closed before the answer came: {0}")]
    Closed(Ending),
    /// No answer in time. The gate stays down.
    #[error("no answer before the deadline")]
    Deadline,
    /// What arrived is not the protocol. The connection is closed and the gate stays down.
    #[error("service broke the protocol: {0}")]
    Protocol(Breach),
    /// The question was not asked: its frame would be above the limit. The gate stays down.
    #[error("question does not fit a frame of {CLIENT_FRAME_MAX} bytes")]
    TooLong,
    /// The batch was not asked. The gate stays down.
    #[error("a batch has 1 to {BATCH_MAX} questions, this one {0}")]
    BatchSize(usize),
}

impl ClientError {
    /// Whether another attempt to connect could end otherwise, with nothing changed on this side.
    fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Closed(_) => true,
            Self::Farewell(farewell) => match farewell {
                Farewell::Unavailable | Farewell::Quota(_) | Farewell::Timeout | Farewell::ShuttingDown => {
                    true
                }
                Farewell::Version { .. }
                | Farewell::UnknownTenant
                | Farewell::NotPermitted
                | Farewell::Protocol(_) => false,
            },
            Self::Deadline | Self::Protocol(_) | Self::TooLong | Self::BatchSize(_) => false,
        }
    }
}

/// How a connection ended without a word.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Ending {
    /// The other side closed it: its worker died, or the service stopped.
    #[error("by the service")]
    Peer,
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// Questions that were given up stayed unanswered for longer than [`Settings::patience`].
    #[error("it had stopped answering")]
    Silent,
    /// The runtime that drove it is gone, or an earlier error on it was passed over.
    #[error("on this side")]
    Local,
}

impl From<io::Error> for Ending {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<Ending> for ClientError {
    fn from(ending: Ending) -> Self {
        Self::Closed(ending)
    }
}

/// What the service sent that the protocol does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Breach {
    #[error(transparent)]
    Frame(#[from] DecodeError),
    #[error("something else than Welcome came first")]
    NotWelcome,
    #[error("it welcomes with version {0}")]
    Version(u16),
    #[error("a second Welcome")]
    WelcomeTwice,
    #[error("an answer to nothing that was asked")]
    NotAsked,
    #[error("an answer of another kind or number than was asked for")]
    Mismatch,
    #[error("an answer with what no proxy may be asked to do: {0}")]
    Obligations(#[from] Unfit),
}

impl From<DecodeError> for ClientError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(Breach::Frame(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Outcome, Refusal};

    #[test]
    fn nothing_but_allow_opens_the_gate() {
        let with = |outcome| Ok(Decision { outcome, ..Decision::refused(Refusal::Unavailable) });
        assert!(is_allowed(&with(Outcome::Allow)));
        assert!(!is_allowed(&with(Outcome::Deny { reason: String::new() })));
        assert!(!is_allowed(&with(Outcome::Refused(Refusal::Cancelled))));
        assert!(!is_allowed(&Err(ClientError::Deadline)));
    }
}
