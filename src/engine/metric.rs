//! A policy's own counters, for all of its decisions in one process.

use std::sync::atomic::{AtomicU64, Ordering};

/// Most counters of one policy.
pub const METRICS_MAX: usize = 16;
/// Longest name of one, bytes.
pub const METRIC_NAME_MAX: usize = 64;
/// Calls of one decision that count.
pub(super) const CALLS: u8 = 32;

/// Declared by a manifest, and counted since the process started.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Sorted by name.
    counters: Box<[(String, AtomicU64)]>,
    /// Calls with a name that is not declared, or beyond those that count.
    dropped: AtomicU64,
}

impl Metrics {
    pub(super) fn of(names: &[String]) -> Self {
        let mut counters: Vec<_> = names.iter().map(|name| (name.clone(), AtomicU64::new(0))).collect();
        counters.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { counters: counters.into(), dropped: AtomicU64::new(0) }
    }

    /// Adds to a counter, from any thread. False: there is none of that name.
    pub(super) fn add(&self, name: &str, value: u64) -> bool {
        let at = self.counters.binary_search_by(|(one, _)| one.as_str().cmp(name));
        match at.ok().and_then(|at| self.counters.get(at)) {
            Some((_, counter)) => {
                counter.fetch_add(value, Ordering::Relaxed);
                true
            }
            None => self.drop_one(),
        }
    }

    /// A call that counts for nothing: false.
    pub(super) fn drop_one(&self) -> bool {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Every counter, sorted by name. They wrap around at 2^64.
    pub fn values(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counters.iter().map(|(name, value)| (name.as_str(), value.load(Ordering::Relaxed)))
    }

    /// How many calls counted for nothing.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Is it a name that a manifest may declare: 1 to 64 bytes of `a-z 0-9 _ . -`, a letter first?
#[must_use]
pub fn is_metric_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
    name.len() <= METRIC_NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_is_counted_and_nothing_else() {
        let metrics = Metrics::of(&["b.hits".into(), "a_misses".into()]);
        metrics.add("b.hits", 2);
        metrics.add("b.hits", u64::MAX);
        metrics.add("b", 7);
        metrics.drop_one();
        assert_eq!(metrics.values().collect::<Vec<_>>(), [("a_misses", 0), ("b.hits", 1)]);
        assert_eq!(metrics.dropped(), 2);
    }

    #[test]
    fn names_are_plain() {
        for good in ["a", "cache.hits", "x-1_y", &"a".repeat(64)] {
            assert!(is_metric_name(good), "{good}");
        }
        for bad in ["", "1a", "_a", "A", "a b", "a\"", "é", &"a".repeat(65)] {
            assert!(!is_metric_name(bad), "{bad:?}");
        }
    }
}
