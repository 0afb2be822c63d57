//! Messages between the threads of a worker: a queue and a bell that epoll can hear.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

#[derive(Debug)]
pub(super) struct Mailbox<T> {
    queue: Mutex<VecDeque<T>>,
    bell: EventFd,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> nix::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { queue: Mutex::default(), bell })
    }

    pub(super) fn put(&self, message: T) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
        // Fails only when the counter is full, and then the bell is ringing.
        let _ = self.bell.write(1);
    }

    /// Silences the bell and takes everything.
    pub(super) fn take(&self) -> VecDeque<T> {
        // Fails only when the bell was not ringing.
        let _ = self.bell.read();
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
