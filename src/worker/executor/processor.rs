//! What a thread had of a processor, where that may be less than the time that has passed.

use super::SLICE_NS;

/// Asking the kernel costs a system call: it is asked once for a row of steps, and after one that took so long that the
/// thread may have been without a processor.
#[derive(Debug, Default)]
pub(super) struct ProcessorTime {
    /// The thread's processor time when the row began, nanoseconds.
    began_ns: u64,
    /// What steps have been said to use since.
    used_ns: u64,
}

impl ProcessorTime {
    /// A row of steps begins; `cpu_ns` is the thread's processor time.
    pub(super) fn begin(&mut self, cpu_ns: u64) {
        *self = Self { began_ns: cpu_ns, used_ns: 0 };
    }

    /// Nanoseconds that a step used which took `wall_ns`. What a neighbour on the machine had meanwhile is not counted.
    pub(super) fn used(&mut self, wall_ns: u64, cpu_ns: impl FnOnce() -> u64) -> u64 {
        if wall_ns <= 2 * SLICE_NS {
            self.used_ns = self.used_ns.saturating_add(wall_ns);
            return wall_ns;
        }
        let now_ns = cpu_ns();
        if now_ns == u64::MAX {
            // The clock cannot be read.
            return wall_ns;
        }
        let at_most = now_ns.saturating_sub(self.began_ns).saturating_sub(self.used_ns);
        self.begin(now_ns);
        wall_ns.min(at_most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_stopped_in_the_middle_does_not_pay_for_who_ran_instead() {
        let mut time = ProcessorTime::default();
        time.begin(1_000_000);
        assert_eq!(time.used(100_000, || unreachable!("short ones are not asked about")), 100_000);
        // 4 ms have passed, of which the thread had 100 us, besides the 100 us before.
        assert_eq!(time.used(4_000_000, || 1_200_000), 100_000);
        // A step that really takes long is paid for.
        assert_eq!(time.used(4_000_000, || 5_200_000), 4_000_000);
        assert_eq!(time.used(4_000_000, || 9_900_000), 4_000_000);
        assert_eq!(time.used(4_000_000, || u64::MAX), 4_000_000);
    }
}
