//! One timer for all of a connection's limits. Setting a timer for each request would cost more than reading the request.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// Wakes its connection's task no later than the limit at hand. It is moved only where it would wake too late; where it wakes
/// too early, it is set again then.
#[derive(Debug)]
pub(super) struct Pace(Pin<Box<Sleep>>);

impl Pace {
    /// Must be called within a runtime.
    pub(super) fn new(first: Instant) -> Self {
        Self(Box::pin(sleep_until(first)))
    }

    /// Ready once `limit` has passed.
    pub(super) fn poll_passed(&mut self, limit: Instant, context: &mut Context<'_>) -> Poll<()> {
        if self.0.deadline() > limit {
            self.0.as_mut().reset(limit);
        }
        while self.0.as_mut().poll(context).is_ready() {
            if self.0.deadline() >= limit {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(limit);
        }
        Poll::Pending
    }
}
