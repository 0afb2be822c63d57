//! A token bucket in one number: the generic cell rate algorithm (ITU-T I.371, annex A).
//!
//! The number is the theoretical arrival time: when the bucket will be full again, in nanoseconds of CLOCK_MONOTONIC, which
//! is the same in every process. Each unit moves it by the time in which one is earned; what would move it further than
//! the burst is away is refused. There are no windows, so there is no edge at which two bursts meet; what was earned in
//! any stretch of time of length `t` is never more than `burst + t * rate`. Check and taking are one compare-and-swap.

use std::sync::atomic::{AtomicU64, Ordering};

use super::quotas::Rate;

const SECOND_NS: u128 = 1_000_000_000;
/// Longest that anybody is refused for what was used before.
const DEBT_MAX_NS: u64 = 60_000_000_000;

/// Zeroed memory is a full bucket.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Bucket(AtomicU64);

/// There is not enough in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSoon {
    /// When there will be, if nobody else takes anything, nanoseconds from now; `u64::MAX` if it never holds that much.
    pub after_ns: u64,
}

impl Bucket {
    /// Takes `units`, all or none.
    pub fn take(&self, now_ns: u64, units: u64, rate: Rate) -> Result<(), TooSoon> {
        if units > rate.burst {
            return Err(TooSoon { after_ns: u64::MAX });
        }
        let (cost, burst) = (time_of(units, rate), time_of(rate.burst, rate));
        let mut full_at = self.0.load(Ordering::Relaxed);
        loop {
            let after = sane(full_at, now_ns, burst).saturating_add(cost);
            let ahead = after.saturating_sub(now_ns);
            if ahead > burst {
                return Err(TooSoon { after_ns: ahead - burst });
            }
            match self.0.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// Takes what has been used already, into debt if need be.
    pub fn charge(&self, now_ns: u64, units: u64, rate: Rate) {
        let (cost, burst) = (time_of(units, rate), time_of(rate.burst, rate));
        self.update(|full_at| sane(sane(full_at, now_ns, burst).saturating_add(cost), now_ns, burst));
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&self, units: u64, rate: Rate) {
        let cost = time_of(units, rate);
        self.update(|full_at| full_at.saturating_sub(cost));
    }

    /// Whether there is anything in it, taking nothing.
    pub fn look(&self, now_ns: u64, rate: Rate) -> Result<(), TooSoon> {
        let burst = time_of(rate.burst, rate);
        let ahead = sane(self.0.load(Ordering::Relaxed), now_ns, burst).saturating_sub(now_ns);
        match ahead.checked_sub(burst) {
            Some(debt) if debt > 0 => Err(TooSoon { after_ns: debt }),
            _ => Ok(()),
        }
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        // Always `Some`, so it always succeeds.
        let _ = self.0.try_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(change(full_at)));
    }
}

/// Not before now, and not so far ahead that more than [`DEBT_MAX_NS`] would have to be paid off: whatever a process wrote that
/// was taken over, and whatever the plan was when the debt was made, a bucket is good again by then.
fn sane(full_at: u64, now_ns: u64, burst_ns: u64) -> u64 {
    full_at.clamp(now_ns, now_ns.saturating_add(burst_ns).saturating_add(DEBT_MAX_NS))
}

/// In how many nanoseconds so many units are earned.
fn time_of(units: u64, rate: Rate) -> u64 {
    let time = u128::from(units) * SECOND_NS / u128::from(rate.per_second.max(1));
    u64::try_from(time).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 1_000, burst: 10 };
    /// When the tests begin, nanoseconds: not at 0, where no machine's clock is.
    const START: u64 = 1 << 50;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::default();
        for _ in 0..10 {
            bucket.take(START, 1, RATE).unwrap();
        }
        assert_eq!(bucket.take(START, 1, RATE), Err(TooSoon { after_ns: 1_000_000 }));
        assert_eq!(bucket.take(START + 1_000_000, 1, RATE), Ok(()), "the hint is exact");
        assert!(bucket.take(START + 1_000_000, 1, RATE).is_err());
        // After a long pause it is full, and no more than full.
        assert!(bucket.take(START << 1, 11, RATE).is_err());
        assert_eq!(bucket.take(START << 1, 10, RATE), Ok(()));
    }

    #[test]
    fn what_was_given_back_can_be_taken_again_and_a_debt_is_paid_off() {
        let bucket = Bucket::default();
        bucket.take(START, 10, RATE).unwrap();
        bucket.give_back(4, RATE);
        assert!(bucket.take(START, 5, RATE).is_err());
        bucket.take(START, 4, RATE).unwrap();
        assert_eq!(bucket.look(START, RATE), Ok(()), "empty is no debt");
        bucket.charge(START, 5, RATE);
        assert_eq!(bucket.look(START, RATE), Err(TooSoon { after_ns: 5_000_000 }));
        assert_eq!(bucket.look(START + 5_000_000, RATE), Ok(()));
        // Nobody gets more than a full one by giving back too much.
        bucket.give_back(u64::MAX, RATE);
        bucket.take(START, 10, RATE).unwrap();
        assert!(bucket.take(START, 1, RATE).is_err());
    }

    #[test]
    fn what_never_fits_is_told_so_and_no_debt_is_for_ever() {
        let bucket = Bucket::default();
        assert_eq!(bucket.take(START, 11, RATE), Err(TooSoon { after_ns: u64::MAX }));
        bucket.take(START, 10, RATE).unwrap();
        bucket.charge(START, u64::MAX, RATE);
        assert_eq!(bucket.look(START, RATE), Err(TooSoon { after_ns: DEBT_MAX_NS }));
        bucket.take(START + DEBT_MAX_NS + 1_000_000, 1, RATE).unwrap();
        // Somebody wrote the end of time there.
        let forged = Bucket(AtomicU64::new(u64::MAX));
        forged.take(START, 1, RATE).unwrap_err();
        forged.charge(START, 1, RATE);
        forged.take(START + DEBT_MAX_NS + 1_000_000, 1, RATE).unwrap();
    }

    #[test]
    fn threads_take_no_more_together_than_there_is() {
        let (bucket, rate) = (Bucket::default(), Rate { per_second: 1, burst: 1000 });
        let taken = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).filter(|_| bucket.take(START, 1, rate).is_ok()).count()))
                .collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).sum::<usize>()
        });
        assert_eq!(taken, 1000);
    }

    proptest! {
        /// In every stretch of time, wherever it begins, no more than a burst and what is earned in it.
        #[test]
        fn no_stretch_of_time_has_two_bursts(
            per_second in 1..2_000_u64,
            burst in 1..50_u64,
            steps in prop::collection::vec((0..5_000_000_u64, 1..20_u64), 1..200),
        ) {
            let (bucket, rate) = (Bucket::default(), Rate { per_second, burst });
            let mut now = START;
            let mut taken = Vec::new();
            for (pause, units) in steps {
                now += pause;
                if bucket.take(now, units, rate).is_ok() {
                    taken.push((now, units));
                }
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (until, units) in &taken[first..] {
                    sum += units;
                    let earned = u128::from(until - from) * u128::from(per_second) / SECOND_NS;
                    // One for each rounded division.
                    prop_assert!(u128::from(sum) <= u128::from(burst) + earned + 1);
                }
            }
        }

        #[test]
        fn no_number_makes_it_panic(now: u64, units: u64, per_second: u64, burst: u64, full_at: u64) {
            let bucket = Bucket(AtomicU64::new(full_at));
            let rate = Rate { per_second, burst };
            let _ = bucket.take(now, units, rate);
            bucket.charge(now, units, rate);
            bucket.give_back(units, rate);
            let _ = bucket.look(now, rate);
        }
    }
}
