//! What a guest may do to the world outside its memory: write a log line, read a clock that stands still, draw from a
//! seeded generator. Short on purpose.

use std::sync::Arc;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{ResourceLimiter, Result};

use super::bindings::portcullis::policy::{clock, log, random, types};
use super::load::Identity;
use super::slice::{Slice, monotonic_ns};

/// Log lines of one decision, and bytes of each, that are kept.
const LOG_LINES: u8 = 16;
const LOG_LINE_BYTES: usize = 1024;
/// Random bytes of one call.
const RANDOM_BYTES: u32 = 4096;

/// A capability that a policy may ask for, by the name of its WIT interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Importable {
    Clock,
    Log,
    Random,
}

impl Importable {
    pub const ALL: [Self; 3] = [Self::Clock, Self::Log, Self::Random];

    /// As in a statement's `imports`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Log => "log",
            Self::Random => "random",
        }
    }

    /// The capability of that name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Grants it: what is not added is not there to be imported.
    pub(super) fn add_to(self, linker: &mut Linker<Host>) -> Result<()> {
        match self {
            Self::Clock => clock::add_to_linker::<_, HasSelf<_>>(linker, |host| host),
            Self::Log => log::add_to_linker::<_, HasSelf<_>>(linker, |host| host),
            Self::Random => random::add_to_linker::<_, HasSelf<_>>(linker, |host| host),
        }
    }
}

/// The state beside one instance, gone with it.
pub(super) struct Host {
    pub(super) identity: Arc<Identity>,
    pub(super) slice: Arc<Slice>,
    /// Of receipt, nanoseconds since 1970.
    pub(super) clock_ns: u64,
    pub(super) seed: [u8; 32],
    pub(super) generator: Option<ChaCha20Rng>,
    pub(super) log_lines: u8,
    pub(super) memory: usize,
    pub(super) table_elements: usize,
    /// By all memories, and by all tables, together.
    pub(super) memory_used: usize,
    pub(super) table_elements_used: usize,
    /// It wanted more memory or table than it may have: what a trap right after it means.
    pub(super) growth_refused: bool,
    pub(super) host_ns: u64,
}

impl Host {
    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let start = monotonic_ns();
        let result = work(self);
        self.host_ns = self.host_ns.saturating_add(monotonic_ns().saturating_sub(start));
        result
    }

    /// Grants growth from `current` to `desired` if the sum stays within the limit.
    fn grow(
        &mut self,
        budget: impl FnOnce(&mut Self) -> (&mut usize, usize),
        current: usize,
        desired: usize,
    ) -> bool {
        let (used, limit) = budget(self);
        let after = used.saturating_add(desired.saturating_sub(current));
        let granted = after <= limit;
        if granted {
            *used = after;
        }
        self.growth_refused |= !granted;
        granted
    }

    fn generator(&mut self) -> &mut ChaCha20Rng {
        let seed = self.seed;
        self.generator.get_or_insert_with(|| ChaCha20Rng::from_seed(seed))
    }
}

impl log::Host for Host {
    fn write(&mut self, level: log::Level, message: String) {
        self.timed(|host| {
            if host.log_lines >= LOG_LINES {
                return;
            }
            host.log_lines += 1;
            let mut end = message.len().min(LOG_LINE_BYTES);
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            // Printed as a quoted string: a guest cannot forge a line of ours.
            let message = message.get(..end).unwrap_or_default();
            let Identity { tenant, policy, digest } = host.identity.as_ref();
            match level {
                log::Level::Debug => tracing::debug!(%tenant, %policy, %digest, guest = ?message),
                log::Level::Info => tracing::info!(%tenant, %policy, %digest, guest = ?message),
                log::Level::Warn => tracing::warn!(%tenant, %policy, %digest, guest = ?message),
            }
        });
    }
}

impl clock::Host for Host {
    fn now(&mut self) -> u64 {
        self.clock_ns
    }
}

impl random::Host for Host {
    fn get_u64(&mut self) -> u64 {
        self.timed(|host| host.generator().next_u64())
    }

    fn get_bytes(&mut self, len: u32) -> Vec<u8> {
        self.timed(|host| {
            let mut bytes = vec![0; len.min(RANDOM_BYTES) as usize];
            host.generator().fill_bytes(&mut bytes);
            bytes
        })
    }
}

impl types::Host for Host {}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(|host| (&mut host.memory_used, host.memory), current, desired))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(|host| (&mut host.table_elements_used, host.table_elements), current, desired))
    }
}
