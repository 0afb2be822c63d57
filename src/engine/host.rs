//! What a guest may do to the world outside its memory: write a log line, read a clock that stands still, draw from a
//! seeded generator, read its tenant's data, add to its own counters. Short on purpose.
//!
//! What each does is written once; the interfaces of both versions of the world lead here.

use std::sync::Arc;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{ResourceLimiter, Result};

use super::bindings::{v0_1, v1_0};
use super::data::Data;
use super::load::Identity;
use super::metric::{self, Metrics};
use super::slice::{Slice, monotonic_ns};
use super::watch::{HostCall, Listed, LogLevel as Level, Watch};
use super::world::World;
use crate::accounts::{Exceeded, HostFunction, Memory};
use crate::decision::{DecisionId, Quota};
use crate::journal::left_out_here;
use v1_0::portcullis::policy::data::Entry;

/// Log lines of one decision, and bytes of each, that are kept.
const LOG_LINES: u8 = 16;
const LOG_LINE_BYTES: usize = 1024;
/// Random bytes of one call.
const RANDOM_BYTES: u32 = 4096;
/// Entries of one call, and bytes of them: a listing is never long enough to keep anybody waiting.
const DATA_ENTRIES: u32 = 1000;
const DATA_BYTES: usize = 256 << 10;

/// Who needs more calls in one decision than its plan has will need them the next time too, milliseconds.
const AGAIN_MS: u32 = 1000;

/// A capability that a policy may ask for, by the name of its WIT interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Importable {
    Clock,
    Data,
    Log,
    Metric,
    Random,
}

impl Importable {
    /// Sorted by name.
    pub const ALL: [Self; 5] = [Self::Clock, Self::Data, Self::Log, Self::Metric, Self::Random];

    /// As in a statement's `imports`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Data => "data",
            Self::Log => "log",
            Self::Metric => "metric",
            Self::Random => "random",
        }
    }

    /// The capability of that name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// Grants it as `world` has it, or nothing where it has no such: what is not added is not there to be imported.
    pub(super) fn add_to(self, linker: &mut Linker<Host>, world: World) -> Result<()> {
        use v0_1::portcullis::policy as old;
        use v1_0::portcullis::policy as new;
        type This = HasSelf<Host>;
        match (self, world) {
            (Self::Clock, World::V0_1) => old::clock::add_to_linker::<_, This>(linker, |host| host),
            (Self::Log, World::V0_1) => old::log::add_to_linker::<_, This>(linker, |host| host),
            (Self::Random, World::V0_1) => old::random::add_to_linker::<_, This>(linker, |host| host),
            (Self::Data | Self::Metric, World::V0_1) => Ok(()),
            (Self::Clock, World::V1_0) => new::clock::add_to_linker::<_, This>(linker, |host| host),
            (Self::Data, World::V1_0) => new::data::add_to_linker::<_, This>(linker, |host| host),
            (Self::Log, World::V1_0) => new::log::add_to_linker::<_, This>(linker, |host| host),
            (Self::Metric, World::V1_0) => new::metric::add_to_linker::<_, This>(linker, |host| host),
            (Self::Random, World::V1_0) => new::random::add_to_linker::<_, This>(linker, |host| host),
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
    /// Of the decision, in log lines.
    pub(super) id: Option<DecisionId>,
    pub(super) generator: Option<ChaCha20Rng>,
    pub(super) log_lines: u8,
    pub(super) metrics: Arc<Metrics>,
    pub(super) metric_calls: u8,
    /// What the manifest names, if it names any.
    pub(super) data: Option<Arc<Data>>,
    /// Where its tenant is counted, and what of the tenant's memory is this instance's.
    pub(super) account: Option<Memory>,
    pub(super) memory: usize,
    pub(super) table_elements: usize,
    /// By all memories, and by all tables, together.
    pub(super) memory_used: usize,
    pub(super) table_elements_used: usize,
    /// It wanted more memory or table than it may have: what a trap right after it means.
    pub(super) growth_refused: bool,
    pub(super) host_calls: u32,
    pub(super) host_calls_max: u32,
    pub(super) host_ns: u64,
    /// Where what happens is noted, if it is.
    pub(super) watch: Option<Arc<Watch>>,
}

/// A guest has called host functions as often as it may.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("it called host functions more often than it may")]
pub(super) struct CallsExhausted;

impl Host {
    fn timed<T>(&mut self, function: HostFunction, work: impl FnOnce(&mut Self) -> T) -> Result<T> {
        self.called(function)?;
        let start = monotonic_ns();
        let result = work(self);
        self.host_ns = self.host_ns.saturating_add(monotonic_ns().saturating_sub(start));
        Ok(result)
    }

    fn called(&mut self, function: HostFunction) -> Result<()> {
        if self.host_calls >= self.host_calls_max {
            return Err(CallsExhausted.into());
        }
        self.host_calls += 1;
        let Some(account) = &self.account else { return Ok(()) };
        let meter = account.meter();
        if meter.quotas().host_calls_per_decision.is_some_and(|most| self.host_calls > most) {
            return Err(Exceeded { which: Quota::HostCalls, retry_after_ms: AGAIN_MS }.into());
        }
        meter.call(monotonic_ns, function)?;
        Ok(())
    }

    fn note(&self, call: impl FnOnce() -> HostCall) {
        if let Some(watch) = &self.watch {
            watch.call(call());
        }
    }

    /// Grants growth from `current` to `desired` if the sum stays within the limit. What is beyond the module's own maximum
    /// is none: it would be counted, and not come about.
    fn grow(
        &mut self,
        budget: impl FnOnce(&mut Self) -> (&mut usize, usize),
        (current, desired, own): (usize, usize, Option<usize>),
    ) -> bool {
        let (used, limit) = budget(self);
        let after = used.saturating_add(desired.saturating_sub(current));
        let granted = after <= limit && own.is_none_or(|own| desired <= own);
        if granted {
            *used = after;
        }
        self.growth_refused |= !granted;
        if let Some(watch) = &self.watch {
            watch.grown(self.memory_used, self.table_elements_used);
        }
        granted
    }

    fn generator(&mut self) -> &mut ChaCha20Rng {
        let seed = self.seed;
        self.generator.get_or_insert_with(|| ChaCha20Rng::from_seed(seed))
    }
}

impl Host {
    fn write(&mut self, level: Level, message: String) -> Result<()> {
        self.timed(HostFunction::LogWrite, |host| {
            if host.log_lines >= LOG_LINES {
                return host.left_out();
            }
            host.log_lines += 1;
            let mut end = message.len().min(LOG_LINE_BYTES);
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            // Printed as a quoted string: a guest cannot forge a line of ours.
            let message = message.get(..end).unwrap_or_default();
            host.note(|| HostCall::Log { level, message: message.to_owned() });
            let Identity { tenant, policy, digest } = host.identity.as_ref();
            // Whoever drew random numbers can be asked the same again: `portcullis policy run --seed`.
            let drawn = host.generator.as_ref().map(|_| hex::encode(host.seed));
            let seed = drawn.as_deref();
            let decision = host.id.map(tracing::field::display);
            let before = left_out_here();
            match level {
                Level::Debug => tracing::debug!(%tenant, %policy, %digest, decision, guest = ?message, seed),
                Level::Info => tracing::info!(%tenant, %policy, %digest, decision, guest = ?message, seed),
                Level::Warn => tracing::warn!(%tenant, %policy, %digest, decision, guest = ?message, seed),
            }
            if left_out_here() != before {
                host.left_out();
            }
        })
    }

    /// A line of the guest's is not written.
    fn left_out(&self) {
        if let Some(account) = self.account.as_ref().and_then(|memory| memory.meter().account()) {
            account.log_lines_dropped.add(1);
        }
    }

    fn random_u64(&mut self) -> Result<u64> {
        self.timed(HostFunction::RandomGetU64, |host| {
            host.note(|| HostCall::Random { bytes: 8 });
            host.generator().next_u64()
        })
    }

    fn random_bytes(&mut self, len: u32) -> Result<Vec<u8>> {
        self.timed(HostFunction::RandomGetBytes, |host| {
            let len = len.min(RANDOM_BYTES);
            host.note(|| HostCall::Random { bytes: len });
            let mut bytes = vec![0; len as usize];
            host.generator().fill_bytes(&mut bytes);
            bytes
        })
    }
}

/// What both versions have alike.
macro_rules! interfaces {
    ($version:ident) => {
        const _: () = {
            use $version::portcullis::policy::{clock, log, random, types};

            impl log::Host for Host {
                fn write(&mut self, level: log::Level, message: String) -> Result<()> {
                    let level = match level {
                        log::Level::Debug => Level::Debug,
                        log::Level::Info => Level::Info,
                        log::Level::Warn => Level::Warn,
                    };
                    self.write(level, message)
                }
            }

            impl clock::Host for Host {
                fn now(&mut self) -> Result<u64> {
                    self.called(HostFunction::ClockNow)?;
                    self.note(|| HostCall::Clock { ns: self.clock_ns });
                    Ok(self.clock_ns)
                }
            }

            impl random::Host for Host {
                fn get_u64(&mut self) -> Result<u64> {
                    self.random_u64()
                }

                fn get_bytes(&mut self, len: u32) -> Result<Vec<u8>> {
                    self.random_bytes(len)
                }
            }

            impl types::Host for Host {}
        };
    };
}
interfaces!(v0_1);
interfaces!(v1_0);

impl v1_0::portcullis::policy::data::Host for Host {
    fn get(&mut self, key: String) -> Result<Option<Vec<u8>>> {
        self.timed(HostFunction::DataGet, |host| {
            let value = host.data.as_ref().and_then(|data| data.get(&key)).map(<[u8]>::to_vec);
            host.note(|| HostCall::DataGet { key, value: value.clone() });
            value
        })
    }

    fn entries(&mut self, prefix: String, after: Option<String>, limit: u32) -> Result<Vec<Entry>> {
        self.timed(HostFunction::DataEntries, |host| {
            let nothing = Data::default();
            let data = host.data.as_deref().unwrap_or(&nothing);
            let mut bytes = 0_usize;
            let entries: Vec<Entry> = data
                .entries(&prefix, after.as_deref())
                .take(limit.min(DATA_ENTRIES) as usize)
                // The first one comes however long it is: who gets none takes it for the end.
                .take_while(|(key, value)| {
                    let first = bytes == 0;
                    bytes = bytes.saturating_add(key.len()).saturating_add(value.len()).saturating_add(1);
                    first || bytes <= DATA_BYTES
                })
                .map(|(key, value)| Entry { key: key.to_owned(), value: value.to_vec() })
                .collect();
            host.note(|| HostCall::DataEntries {
                prefix: prefix.clone(),
                after: after.clone(),
                limit,
                entries: entries.iter().map(|one| Listed::new(&one.key, &one.value)).collect(),
            });
            entries
        })
    }
}

impl v1_0::portcullis::policy::metric::Host for Host {
    fn add(&mut self, name: String, value: u64) -> Result<()> {
        self.timed(HostFunction::MetricAdd, |host| {
            let counted = host.metric_calls < metric::CALLS;
            let counted = if counted { host.metrics.add(&name, value) } else { host.metrics.drop_one() };
            host.metric_calls = host.metric_calls.saturating_add(1);
            host.note(|| HostCall::Metric { name, value, counted });
        })
    }
}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, current: usize, desired: usize, own: Option<usize>) -> Result<bool> {
        let granted = self.grow(|host| (&mut host.memory_used, host.memory), (current, desired, own));
        if granted && let Some(account) = &mut self.account {
            // All its tenant's instances together: that is no matter of this policy's, so it is not asked to cope.
            account.grow(desired.saturating_sub(current) as u64)?;
        }
        Ok(granted)
    }

    fn table_growing(&mut self, current: usize, desired: usize, own: Option<usize>) -> Result<bool> {
        Ok(self.grow(|host| (&mut host.table_elements_used, host.table_elements), (current, desired, own)))
    }
}
