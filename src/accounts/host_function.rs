//! Host functions by name: what of the world outside a guest can call.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One function of one WIT interface of `portcullis:policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HostFunction {
    ClockNow,
    DataEntries,
    DataGet,
    LogWrite,
    MetricAdd,
    RandomGetBytes,
    RandomGetU64,
}

impl HostFunction {
    /// Sorted by name.
    pub const ALL: [Self; 7] = [
        Self::ClockNow,
        Self::DataEntries,
        Self::DataGet,
        Self::LogWrite,
        Self::MetricAdd,
        Self::RandomGetBytes,
        Self::RandomGetU64,
    ];

    /// `interface.function`, as WIT has them: in plans and in telemetry.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClockNow => "clock.now",
            Self::DataEntries => "data.entries",
            Self::DataGet => "data.get",
            Self::LogWrite => "log.write",
            Self::MetricAdd => "metric.add",
            Self::RandomGetBytes => "random.get-bytes",
            Self::RandomGetU64 => "random.get-u64",
        }
    }

    /// The function of that name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Its place in [`HostFunction::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for HostFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_at_its_place_and_found_by_its_name() {
        assert!(HostFunction::ALL.is_sorted_by_key(|one| one.name()));
        for (place, one) in HostFunction::ALL.into_iter().enumerate() {
            assert_eq!((one.index(), HostFunction::named(one.name())), (place, Some(one)));
        }
        assert_eq!(HostFunction::named("files.open"), None);
    }
}
