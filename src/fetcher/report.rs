//! The fetcher's end of the channel to the command that started it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::FetchError;
use crate::artifact::Digest;
use crate::wire::channel::{Channel, Received, SendError};
use crate::wire::fetch::{FETCH_MAX, FromFetcher, ToFetcher};

/// Between two messages about how far an object is. More would only be drawn over.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Hears the command and tells it how things are.
pub(super) struct Report {
    channel: Channel<FromFetcher, ToFetcher>,
    told: Mutex<Option<Instant>>,
}

impl Report {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { channel: Channel::new(socket, FETCH_MAX), told: Mutex::new(None) }
    }

    /// The next message of the command; waits for it.
    pub(super) fn hear(&self) -> Result<(ToFetcher, Option<OwnedFd>), FetchError> {
        let mut buffer = Vec::new();
        loop {
            match self.channel.receive(&mut buffer)? {
                Received::Message(message, descriptor) => return Ok((message, descriptor)),
                Received::Nothing => self.wait(PollFlags::POLLIN)?,
                Received::End => return Err(FetchError::OutOfOrder("it is gone")),
            }
        }
    }

    /// Says something that has to arrive; waits until there is room for it.
    pub(super) fn tell(&self, message: &FromFetcher) -> Result<(), FetchError> {
        loop {
            match self.channel.send(message, None) {
                Ok(()) => return Ok(()),
                Err(SendError::Full) => self.wait(PollFlags::POLLOUT)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Says how far an object is, if there is room and it is not the same moment as the last.
    pub(super) fn progress(&self, digest: &Digest, have: u64) {
        let now = Instant::now();
        let Ok(mut told) = self.told.lock() else { return };
        if told.is_none_or(|told| now.duration_since(told) >= PROGRESS_EVERY) {
            *told = Some(now);
            // Nobody needs it: a command that is gone is noticed with the next message that counts.
            let _ = self.channel.send(&FromFetcher::Progress { digest: *digest, have }, None);
        }
    }

    fn wait(&self, events: PollFlags) -> Result<(), FetchError> {
        let mut ready = [PollFd::new(self.channel.as_fd(), events)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(_) => Err(FetchError::OutOfOrder("its channel cannot be waited for")),
        }
    }
}
