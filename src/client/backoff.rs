//! When to try to connect again.

use std::time::{Duration, Instant};

use super::{ClientError, Settings};

/// Spaces the attempts for one tenant: each wait is twice the one before while attempts follow each other closely.
/// A connection that opens and dies at once counts like one that does not open.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Option<(Instant, Duration)>,
    /// How the last attempt failed, if it did.
    error: Option<ClientError>,
}

impl Backoff {
    /// When the next attempt may be made; `None` is now.
    pub(super) fn not_before(&self, now: Instant) -> Option<Instant> {
        let (last, wait) = self.last?;
        last.checked_add(wait).filter(|next| *next > now)
    }

    /// The error of the last attempt.
    pub(super) fn error(&self) -> Option<&ClientError> {
        self.error.as_ref()
    }

    /// An attempt is made now.
    pub(super) fn attempt(&mut self, now: Instant, settings: &Settings) {
        let wait = match self.last {
            Some((last, wait))
                if now.saturating_duration_since(last) <= settings.retry_longest.saturating_mul(2) =>
            {
                wait.saturating_mul(2).min(settings.retry_longest)
            }
            _ => settings.retry_first,
        };
        self.last = Some((now, wait));
    }

    /// The attempt ended so.
    pub(super) fn ended(&mut self, error: Option<ClientError>) {
        self.error = error;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_longest_and_start_over_after_a_quiet_time() {
        let settings = Settings {
            retry_first: Duration::from_millis(10),
            retry_longest: Duration::from_millis(50),
            ..Settings::default()
        };
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        assert_eq!(backoff.not_before(now), None);
        for wait in [10, 20, 40, 50, 50] {
            backoff.attempt(now, &settings);
            let next = now + Duration::from_millis(wait);
            assert_eq!(backoff.not_before(now), Some(next));
            now = next;
            assert_eq!(backoff.not_before(now), None);
        }
        now += Duration::from_millis(101);
        backoff.attempt(now, &settings);
        assert_eq!(backoff.not_before(now), Some(now + Duration::from_millis(10)));
    }
}
