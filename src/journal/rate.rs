//! How many lines a second: of the process, of all guests, of each tenant's guests.
//!
//! A tenant that floods keeps nobody else's lines out: what guests may write is shared by as many as want to write, and
//! some of it is always left for one more. All this has a fixed size, however many tenants there are: they are counted in
//! places that a secret of this process picks, so that nobody can aim at another's.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Lines in one [`WINDOW`]; more are counted, not written.
pub(super) const LINES_MAX: u32 = 500;
/// How many of them may be guests': one that floods must not be able to keep out what the process itself has to say.
pub(super) const GUEST_LINES_MAX: u32 = 400;
/// How many of those may be of one tenant's guests, even if no other wants to write.
pub(super) const TENANT_LINES_MAX: u32 = 100;
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Two tenants that share one of these share their lines.
const PLACES: usize = 1024;

/// Counts lines per window.
pub(super) struct Rate {
    began: Instant,
    written: u32,
    /// Of those, by guests.
    by_guests: u32,
    /// Lines that each tenant's guests wanted to write in this window.
    wanted: Box<[u32; PLACES]>,
    /// Places that are not 0; and how many there were in the window before.
    active: u32,
    active_before: u32,
    dropped: u64,
    hashing: RandomState,
}

/// Whose line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Ours,
    /// Of the guests of this tenant.
    Guests(Place),
}

/// Where a tenant is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(usize);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Allowed {
    /// `dropped` lines were left out since the last that was written.
    Yes {
        dropped: u64,
    },
    No,
}

impl Rate {
    /// Draws a secret: before the process is sealed.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            written: 0,
            by_guests: 0,
            wanted: Box::new([0; PLACES]),
            active: 0,
            active_before: 0,
            dropped: 0,
            hashing: RandomState::new(),
        }
    }

    /// Where the tenant of that name is counted.
    pub(super) fn place(&self, tenant: &str) -> Place {
        let hash = usize::try_from(self.hashing.hash_one(tenant)).unwrap_or(usize::MAX);
        Place(hash.checked_rem(PLACES).unwrap_or(0))
    }

    pub(super) fn allow(&mut self, now: Instant, whose: Whose) -> Allowed {
        if now.duration_since(self.began) >= WINDOW {
            self.began = now;
            (self.written, self.by_guests) = (0, 0);
            self.active_before = std::mem::take(&mut self.active);
            self.wanted.fill(0);
        }
        let within = match whose {
            Whose::Ours => true,
            Whose::Guests(place) => self.has_share(place) && self.by_guests < GUEST_LINES_MAX,
        };
        if self.written >= LINES_MAX || !within {
            self.dropped += 1;
            return Allowed::No;
        }
        self.written += 1;
        self.by_guests += u32::from(whose != Whose::Ours);
        Allowed::Yes { dropped: std::mem::take(&mut self.dropped) }
    }

    /// Whether another line of this tenant is within its share.
    fn has_share(&mut self, Place(place): Place) -> bool {
        let Some(wanted) = self.wanted.get_mut(place) else { return false };
        self.active += u32::from(*wanted == 0);
        *wanted = wanted.saturating_add(1);
        // One more than there are: who comes next finds room.
        let sharing = self.active.max(self.active_before).saturating_add(1);
        let share = GUEST_LINES_MAX.checked_div(sharing).unwrap_or(0).clamp(1, TENANT_LINES_MAX);
        *wanted <= share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(rate: &mut Rate, now: Instant, whose: Whose, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(rate.allow(now, whose) != Allowed::No)).sum()
    }

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let began = Instant::now();
        let mut rate = Rate::new(began);
        for _ in 0..LINES_MAX {
            assert_eq!(rate.allow(began, Whose::Ours), Allowed::Yes { dropped: 0 });
        }
        assert_eq!(rate.allow(began, Whose::Ours), Allowed::No);
        let guests = Whose::Guests(rate.place("acme"));
        assert_eq!(rate.allow(began, guests), Allowed::No);
        assert_eq!(rate.allow(began + WINDOW, guests), Allowed::Yes { dropped: 2 });
    }

    #[test]
    fn a_tenant_that_floods_keeps_no_other_tenants_lines_out() {
        let mut now = Instant::now();
        let mut rate = Rate::new(now);
        let [loud, quiet] = [Whose::Guests(Place(1)), Whose::Guests(Place(2))];
        for _ in 0..3 {
            assert_eq!(allowed(&mut rate, now, loud, 100_000), TENANT_LINES_MAX);
            assert_eq!(allowed(&mut rate, now, quiet, 20), 20);
            assert_eq!(allowed(&mut rate, now, Whose::Ours, 100), 100, "nor ours");
            now += WINDOW;
        }
    }

    /// Ten times as many as fit at the most one may write: from the second window on each has its share.
    #[test]
    fn many_that_flood_share_alike_and_leave_room_for_one_more() {
        let mut now = Instant::now();
        let mut rate = Rate::new(now);
        let flooders: Vec<Whose> = (0..40).map(|place| Whose::Guests(Place(place))).collect();
        let newcomer = Whose::Guests(Place(99));
        for window in 0..3 {
            let lines: Vec<u32> =
                flooders.iter().map(|whose| allowed(&mut rate, now, *whose, 1000)).collect();
            let late = allowed(&mut rate, now, newcomer, 5);
            if window > 0 {
                assert!(lines.iter().all(|count| *count == lines[0] && *count >= 9), "{lines:?}");
                assert_eq!(late, 5, "who comes after 40 that flood");
            }
            now += WINDOW;
        }
    }

    #[test]
    fn the_size_does_not_depend_on_the_tenants() {
        let now = Instant::now();
        let mut rate = Rate::new(now);
        for number in 0..10_000 {
            let place = rate.place(&format!("tenant-{number}"));
            assert!(place.0 < PLACES);
            rate.allow(now, Whose::Guests(place));
        }
        assert_eq!((rate.by_guests, rate.wanted.iter().sum::<u32>()), (GUEST_LINES_MAX, 10_000));
        // Where one is counted differs from process to process.
        let places = |rate: &Rate| (0..64).map(|n| rate.place(&format!("t{n}")).0).collect::<Vec<_>>();
        assert_eq!(places(&rate), places(&rate));
        assert_ne!(places(&rate), places(&Rate::new(now)));
    }
}
