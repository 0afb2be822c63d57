//! Deadlines on the clock that client and service share.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::Settings;
use crate::wire::client::Deadline;

impl Deadline {
    /// A point on CLOCK_MONOTONIC, `budget` from now: the way to the service counts too.
    ///
    /// The service has to share the clock: a client in another time namespace takes [`Deadline::Budget`].
    #[must_use]
    pub fn in_(budget: Duration) -> Self {
        let ns = monotonic().saturating_add(budget).as_nanos();
        Self::Absolute { ns: u64::try_from(ns).unwrap_or(u64::MAX) }
    }
}

/// When the client itself stops waiting for the answer to a question with this deadline.
pub(super) fn local_limit(deadline: Deadline, settings: &Settings) -> Instant {
    // Longer than anybody waits, and far from where adding to an Instant overflows.
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let wait = match deadline {
        Deadline::Default => settings.patience,
        Deadline::Budget { us } => Duration::from_micros(us.into()).saturating_add(settings.grace),
        Deadline::Absolute { ns } => {
            Duration::from_nanos(ns).saturating_sub(monotonic()).saturating_add(settings.grace)
        }
    };
    let now = Instant::now();
    now.checked_add(wait.min(LONGEST)).unwrap_or(now)
}

/// Time since some point that does not move; zero if the clock cannot be read, which makes every deadline too early.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_deadlines_are_on_the_monotonic_clock() {
        let before = monotonic();
        let Deadline::Absolute { ns } = Deadline::in_(Duration::from_secs(3)) else { panic!("not absolute") };
        let after = monotonic();
        let given = Duration::from_nanos(ns);
        assert!(given >= before + Duration::from_secs(3) && given <= after + Duration::from_secs(3));
    }

    #[test]
    fn a_deadline_at_the_end_of_time_does_not_overflow() {
        let settings = Settings { grace: Duration::MAX, ..Settings::default() };
        let far = Instant::now() + Duration::from_secs(23 * 3600);
        assert!(local_limit(Deadline::in_(Duration::MAX), &settings) > far);
        assert!(local_limit(Deadline::Absolute { ns: u64::MAX }, &settings) > far);
    }

    #[test]
    fn a_passed_deadline_leaves_the_grace() {
        let settings = Settings { grace: Duration::from_secs(60), ..Settings::default() };
        let limit = local_limit(Deadline::Absolute { ns: 1 }, &settings);
        assert!(limit > Instant::now() + Duration::from_secs(30));
        assert!(limit <= Instant::now() + Duration::from_secs(60));
    }
}
