//! What time it is, for what expires: never earlier than it was.
//!
//! Setting the clock back makes nothing count again. Three times are compared, and the latest is the time: the clock on the
//! wall, the latest that is in the table (so it holds over restarts), and how long this process has been here, by a clock
//! that nobody can set.

use std::cell::Cell;
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Only ever goes forward.
#[derive(Debug)]
pub(super) struct Clock {
    /// The latest that was read, seconds since 1970, and the other clock's time then.
    latest: Cell<(u64, Duration)>,
    wall: Wall,
}

/// Where the time on the wall is read.
#[derive(Debug)]
enum Wall {
    Kernel,
    #[cfg(test)]
    Test(std::rc::Rc<std::cell::Cell<u64>>),
}

impl Clock {
    /// Not earlier than `latest`, seconds since 1970.
    pub(super) fn new(latest: u64) -> Self {
        Self::starting(latest, Wall::Kernel)
    }

    /// A clock on a wall that a test moves.
    #[cfg(test)]
    pub(super) fn on(wall: &std::rc::Rc<std::cell::Cell<u64>>, latest: u64) -> Self {
        Self::starting(latest, Wall::Test(std::rc::Rc::clone(wall)))
    }

    fn starting(latest: u64, wall: Wall) -> Self {
        Self { latest: Cell::new((latest.max(wall.seconds()), since_boot())), wall }
    }

    /// Seconds since 1970.
    pub(super) fn seconds(&self) -> u64 {
        let (latest, boot) = self.latest.get();
        let since = since_boot().saturating_sub(boot);
        let now = latest.saturating_add(since.as_secs());
        let wall = self.wall.seconds();
        if wall > now {
            self.latest.set((wall, since_boot()));
        }
        now.max(wall)
    }

    pub(super) fn now(&self) -> Timestamp {
        timestamp(self.seconds())
    }
}

impl Wall {
    fn seconds(&self) -> u64 {
        match self {
            Self::Kernel => clock_gettime(ClockId::CLOCK_REALTIME)
                .map_or(0, |time| u64::try_from(time.tv_sec()).unwrap_or(0)),
            #[cfg(test)]
            Self::Test(wall) => wall.get(),
        }
    }
}

/// Seconds since 1970 as the rules have them.
pub(super) fn timestamp(seconds: u64) -> Timestamp {
    // Later than there are timestamps: everything is over.
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Goes on while the machine sleeps.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_not_followed() {
        let wall = Rc::new(Cell::new(1_000_000));
        let clock = Clock::on(&wall, 0);
        assert_eq!(clock.seconds(), 1_000_000, "control");
        wall.set(2_000_000);
        assert_eq!(clock.seconds(), 2_000_000, "control: it goes forward with the wall");
        wall.set(5);
        assert!(
            (2_000_000..2_000_100).contains(&clock.seconds()),
            "no earlier than the latest that was seen"
        );
        assert_eq!(Clock::on(&wall, 3_000_000).seconds(), 3_000_000, "no earlier than the table says");
    }

    #[test]
    fn what_is_later_than_there_are_times_is_over() {
        assert_eq!(timestamp(u64::MAX), Timestamp::MAX);
        assert_eq!(timestamp(0), Timestamp::UNIX_EPOCH);
    }
}
