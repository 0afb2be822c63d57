//! A channel that the runtime waits for.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::channel::{Channel, ReceiveError, Received, SendError};

/// How long to wait for room when nothing says that there is some: the limit of descriptors under way (ETOOMANYREFS)
/// counts all channels of this process together, and another channel's becoming free is no event on this one.
const RETRY: Duration = Duration::from_millis(20);

/// One end of a channel, in the runtime's care.
#[derive(Debug)]
pub struct Polled<Tx, Rx>(AsyncFd<Channel<Tx, Rx>>);

impl<Tx, Rx> Polled<Tx, Rx> {
    /// Must be called within the runtime.
    ///
    /// JUSTIFICATION: tokio cannot know that the descriptor stays the same one as long as it waits for it.
    #[expect(unsafe_code, reason = "the safe way to register a descriptor is deprecated as unsound")]
    pub fn new(channel: Channel<Tx, Rx>) -> io::Result<Self> {
        // SAFETY: a channel owns its descriptor, never exchanges it, and is only given away by value, which
        // nothing here does; so it is open and the same until the AsyncFd is dropped with it.
        Ok(Self(unsafe { AsyncFd::register(channel) }?))
    }
}

/// Any descriptor in the runtime's care, for these events. Must be called within the runtime.
///
/// JUSTIFICATION: see [`Polled::new`].
#[expect(unsafe_code, reason = "the safe way to register a descriptor is deprecated as unsound")]
pub fn watch(descriptor: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is open and the same one for as long as anybody has the Arc, and the AsyncFd has it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

impl<Tx: Serialize, Rx> Polled<Tx, Rx> {
    /// Sends, or says at once why not.
    pub fn try_send(&self, message: &Tx) -> Result<(), SendError> {
        self.0.get_ref().send(message, None)
    }

    /// Sends as soon as there is room. If it is dropped before it is done, nothing has been sent.
    pub async fn send(&self, message: &Tx, descriptor: Option<BorrowedFd<'_>>) -> Result<(), SendError> {
        loop {
            match self.0.get_ref().send(message, descriptor) {
                Err(SendError::Full) => {}
                outcome => return outcome,
            }
            if let Ok(guard) = timeout(RETRY, self.0.writable()).await {
                guard.map_err(SendError::Io)?.clear_ready();
            }
        }
    }
}

impl<Tx, Rx: DeserializeOwned> Polled<Tx, Rx> {
    /// What has arrived already.
    pub fn try_receive(&self, buffer: &mut Vec<u8>) -> Result<Received<Rx>, ReceiveError> {
        self.0.get_ref().receive(buffer)
    }

    /// The next message, or `None` at the end. May be dropped and called again without losing one.
    pub async fn receive(&self, buffer: &mut Vec<u8>) -> Result<Option<(Rx, Option<OwnedFd>)>, ReceiveError> {
        loop {
            let mut guard = self.0.readable().await.map_err(ReceiveError::Io)?;
            match self.try_receive(buffer)? {
                Received::Message(message, descriptor) => return Ok(Some((message, descriptor))),
                Received::Nothing => guard.clear_ready(),
                Received::End => return Ok(None),
            }
        }
    }
}
