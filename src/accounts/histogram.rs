//! Durations in exponential buckets: each bound is the square root of two times the one before, from 1 us to 11.9 s.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::gauge::Counter;

/// Buckets with a bound; one more holds what is beyond the last.
pub const BUCKETS: usize = 48;
/// An exemplar younger than that is not replaced, so that most decisions only read one number. Nanoseconds.
const EXEMPLAR_KEPT_NS: u64 = 1_000_000_000;

/// The largest duration of a bucket, nanoseconds.
#[must_use]
pub const fn bound_ns(bucket: usize) -> u64 {
    let octave = bucket / 2;
    if bucket.is_multiple_of(2) { 1_000 << octave } else { 1_414 << octave }
}

/// The bucket that a duration belongs to; [`BUCKETS`] if it is beyond all bounds.
fn bucket_of(ns: u64) -> usize {
    let Some(octave) = (ns / 1_000).checked_ilog2().map(|octave| octave as usize) else { return 0 };
    let first = octave * 2;
    if first > BUCKETS {
        return BUCKETS;
    }
    let bucket = (first..=first + 1).find(|bucket| ns <= bound_ns(*bucket)).unwrap_or(first + 2);
    bucket.min(BUCKETS)
}

#[derive(Debug)]
#[repr(C)]
pub struct Histogram {
    counts: [Counter; BUCKETS + 1],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    pub fn record(&self, ns: u64) {
        self.record_in(bucket_of(ns), ns);
    }

    fn record_in(&self, bucket: usize, ns: u64) {
        if let Some(count) = self.counts.get(bucket) {
            count.add(1);
        }
        self.sum_ns.add(ns);
    }

    /// How many were in each bucket, the last one beyond all bounds. Not cumulative.
    pub fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().map(Counter::get)
    }

    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns.get()
    }
}

/// A histogram with a recent decision as the example of each bucket.
#[derive(Debug)]
#[repr(C)]
pub struct Sampled {
    pub histogram: Histogram,
    exemplars: [Cell; BUCKETS + 1],
}

impl Default for Sampled {
    fn default() -> Self {
        Self { histogram: Histogram::default(), exemplars: std::array::from_fn(|_| Cell::default()) }
    }
}

/// Which decision took that long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exemplar {
    /// The decision's id.
    pub id: [u8; 16],
    pub value_ns: u64,
    /// Nanoseconds since 1970.
    pub at_ns: u64,
}

/// A sequence lock: even while it can be read. Who finds it taken goes without.
#[derive(Debug, Default)]
#[repr(C)]
struct Cell {
    sequence: AtomicU64,
    id: [AtomicU64; 2],
    value_ns: AtomicU64,
    at_ns: AtomicU64,
}

impl Sampled {
    /// `at_ns` is now, nanoseconds since 1970.
    pub fn record(&self, ns: u64, id: [u8; 16], at_ns: u64) {
        let bucket = bucket_of(ns);
        self.histogram.record_in(bucket, ns);
        if let Some(cell) = self.exemplars.get(bucket) {
            cell.put(&Exemplar { id, value_ns: ns, at_ns });
        }
    }

    /// The example of each bucket, where there is one.
    pub fn exemplars(&self) -> impl Iterator<Item = Option<Exemplar>> {
        self.exemplars.iter().map(Cell::get)
    }
}

impl Cell {
    fn put(&self, exemplar: &Exemplar) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        // By the distance: a clock that was set back must not keep an example for ever.
        let young = exemplar.at_ns.abs_diff(self.at_ns.load(Ordering::Relaxed)) < EXEMPLAR_KEPT_NS;
        if !sequence.is_multiple_of(2) || young {
            return;
        }
        let taken = sequence.wrapping_add(1);
        if self.sequence.compare_exchange(sequence, taken, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        fence(Ordering::Release);
        let (high, low) = halves(exemplar.id);
        let [first, second] = &self.id;
        first.store(high, Ordering::Relaxed);
        second.store(low, Ordering::Relaxed);
        self.value_ns.store(exemplar.value_ns, Ordering::Relaxed);
        self.at_ns.store(exemplar.at_ns, Ordering::Relaxed);
        self.sequence.store(taken.wrapping_add(1), Ordering::Release);
    }

    fn get(&self) -> Option<Exemplar> {
        let before = self.sequence.load(Ordering::Acquire);
        let [first, second] = &self.id;
        let id = whole(first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        let value_ns = self.value_ns.load(Ordering::Relaxed);
        let at_ns = self.at_ns.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let whole = before.is_multiple_of(2) && before == self.sequence.load(Ordering::Relaxed);
        (whole && at_ns != 0).then_some(Exemplar { id, value_ns, at_ns })
    }
}

fn halves(id: [u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = id;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes([i, j, k, l, m, n, o, p]))
}

fn whole(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_first_bucket_whose_bound_holds_it() {
        for bucket in 0..BUCKETS {
            let bound = bound_ns(bucket);
            assert_eq!(bucket_of(bound), bucket, "{bound} ns");
            assert_eq!(bucket_of(bound + 1), bucket + 1, "{bound} ns and one");
        }
        assert_eq!((bucket_of(0), bucket_of(999), bucket_of(u64::MAX)), (0, 0, BUCKETS));
        assert!((0..BUCKETS - 1).all(|bucket| bound_ns(bucket) < bound_ns(bucket + 1)));
    }

    #[test]
    fn what_was_recorded_is_counted_once() {
        let histogram = Histogram::default();
        [10, 1_500, 1_900, u64::from(u32::MAX) << 8].into_iter().for_each(|ns| histogram.record(ns));
        let counts: Vec<u64> = histogram.counts().collect();
        assert_eq!((counts[0], counts[2], counts[BUCKETS], counts.iter().sum()), (1, 2, 1, 4_u64));
        assert_eq!(histogram.sum_ns(), 10 + 1_500 + 1_900 + (u64::from(u32::MAX) << 8));
    }

    #[test]
    fn an_exemplar_stays_for_a_second_and_is_whole() {
        let sampled = Sampled::default();
        let at = 1_700_000_000_000_000_000;
        sampled.record(5_000, [1; 16], at);
        sampled.record(5_001, [2; 16], at + EXEMPLAR_KEPT_NS - 1);
        let first = Exemplar { id: [1; 16], value_ns: 5_000, at_ns: at };
        assert_eq!(sampled.exemplars().flatten().collect::<Vec<_>>(), [first]);
        let (id, next) = (*b"0123456789abcdef", at + EXEMPLAR_KEPT_NS);
        sampled.record(5_002, id, next);
        let second = Exemplar { id, value_ns: 5_002, at_ns: next };
        assert_eq!(sampled.exemplars().flatten().collect::<Vec<_>>(), [second]);
        // The clock was set back by an hour.
        let earlier = next - 3_600_000_000_000;
        sampled.record(5_003, [3; 16], earlier);
        assert_eq!(sampled.exemplars().flatten().map(|one| one.id).collect::<Vec<_>>(), [[3; 16]]);
    }

    #[test]
    fn readers_never_see_a_torn_exemplar() {
        let sampled = Sampled::default();
        std::thread::scope(|scope| {
            for writer in 1..=2_u64 {
                let sampled = &sampled;
                scope.spawn(move || {
                    for turn in 1..20_000_u64 {
                        let value = (turn * 2 + writer) % 200;
                        let id = [u8::try_from(value).unwrap(); 16];
                        // One bucket, each a second apart, so that every one of them is put.
                        sampled.record(value, id, turn * 2 * EXEMPLAR_KEPT_NS + value);
                    }
                });
            }
            for _ in 0..20_000 {
                for one in sampled.exemplars().flatten() {
                    assert_eq!(u64::from(one.id[0]), one.value_ns);
                    assert_eq!(one.id, [one.id[0]; 16]);
                    assert_eq!(one.at_ns % EXEMPLAR_KEPT_NS, one.value_ns);
                }
            }
        });
    }
}
