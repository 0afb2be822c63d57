//! Where one worker takes one tenant's quotas. Check and taking are one step each, and what was taken is given back by
//! dropping it: no path can forget to, and none can do it twice.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::bucket::TooSoon;
use super::gauge::Gauge;
use super::host_function::HostFunction;
use super::layout::{ClassAccount, Column, TenantAccount, TenantGauges};
use super::map::Map;
use super::quotas::{Quotas, Rate};
use crate::decision::{Quota, Refusal};

/// When to look again for room that others have to make first, milliseconds.
const SOON_MS: u32 = 1;

/// One tenant's, in one worker process.
#[derive(Debug)]
pub struct Meter {
    accounts: Arc<Map<ClassAccount>>,
    slot: usize,
    generation: u64,
    quotas: Quotas,
    /// By [`HostFunction::index`].
    host_calls: [Option<Rate>; HostFunction::ALL.len()],
}

/// A quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("quota exceeded: {which}, retry after {retry_after_ms} ms")]
pub struct Exceeded {
    pub which: Quota,
    pub retry_after_ms: u32,
}

impl Exceeded {
    fn new(which: Quota, TooSoon { after_ns }: TooSoon) -> Self {
        let retry_after_ms = u32::try_from(after_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX);
        Self { which, retry_after_ms: retry_after_ms.max(1) }
    }

    /// It will never be admitted: less has to be asked at once.
    pub(crate) const fn as_it_is(which: Quota) -> Self {
        Self { which, retry_after_ms: u32::MAX }
    }

    const fn for_now(which: Quota) -> Self {
        Self { which, retry_after_ms: SOON_MS }
    }
}

impl From<Exceeded> for Refusal {
    fn from(Exceeded { which, retry_after_ms }: Exceeded) -> Self {
        Self::Quota { which, retry_after_ms }
    }
}

impl Meter {
    /// `None` if there is no such slot: what one build's supervisor gave, another's worker cannot count.
    #[must_use]
    pub fn new(accounts: Arc<Map<ClassAccount>>, slot: u32, generation: u64, quotas: Quotas) -> Option<Self> {
        let slot = slot as usize;
        let mut host_calls = [None; HostFunction::ALL.len()];
        for (function, rate) in &quotas.host_calls {
            if let Some(place) = host_calls.get_mut(function.index()) {
                *place = Some(*rate);
            }
        }
        let there = accounts.tenants.get(slot).is_some();
        there.then_some(Self { accounts, slot, generation, quotas, host_calls })
    }

    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.quotas
    }

    /// The tenant's place in the accounts.
    #[must_use]
    pub fn slot(&self) -> u32 {
        // `new` was given it as one.
        u32::try_from(self.slot).unwrap_or(u32::MAX)
    }

    /// The class's, with everything that is counted for all tenants.
    #[must_use]
    pub fn class(&self) -> &ClassAccount {
        &self.accounts
    }

    /// `new` has seen that it is there.
    #[must_use]
    pub fn account(&self) -> Option<&TenantAccount> {
        self.accounts.tenants.get(self.slot)
    }

    /// May so many questions with inputs of so many bytes together be asked now? Takes all of it or nothing.
    ///
    /// # Errors
    /// Says which bucket is empty: of requests, of bytes of inputs, of bytes of answers or of processor time.
    pub fn ask(&self, now_ns: u64, questions: usize, bytes_in: usize) -> Result<(), Exceeded> {
        let Some(account) = self.account() else { return Ok(()) };
        let (questions, bytes_in) = (questions as u64, bytes_in as u64);
        // First those that only look, so that nothing has to be given back for them.
        if let Some(rate) = self.quotas.cpu {
            account.cpu.look(now_ns, rate).map_err(|soon| Exceeded::new(Quota::Cpu, soon))?;
        }
        if let Some(rate) = self.quotas.bytes_out {
            account.bytes_out.look(now_ns, rate).map_err(|soon| Exceeded::new(Quota::BytesOut, soon))?;
        }
        if let Some(rate) = self.quotas.requests {
            let taken = account.requests.take(now_ns, questions, rate);
            taken.map_err(|soon| Exceeded::new(Quota::Requests, soon))?;
        }
        if let Some(rate) = self.quotas.bytes_in
            && let Err(soon) = account.bytes_in.take(now_ns, bytes_in, rate)
        {
            if let Some(rate) = self.quotas.requests {
                account.requests.give_back(questions, rate);
            }
            return Err(Exceeded::new(Quota::BytesIn, soon));
        }
        account.ingress_bytes.add(bytes_in);
        Ok(())
    }

    /// So many more questions under way, all or none; each until its part of what is returned is dropped.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn enter(self: &Arc<Self>, questions: usize) -> Result<Vec<UnderWay>, Exceeded> {
        let (questions, limit) = (questions as u64, self.quotas.concurrent.map(u64::from));
        if !self.raise(questions, |gauges| &gauges.concurrent, limit) {
            let never = limit.is_some_and(|limit| questions > limit);
            return Err(if never { Exceeded::as_it_is } else { Exceeded::for_now }(Quota::Concurrent));
        }
        Ok((0..questions).map(|_| UnderWay(Arc::clone(self))).collect())
    }

    /// Memory of one instance, nothing yet.
    pub fn memory(self: &Arc<Self>) -> Memory {
        Memory { meter: Arc::clone(self), bytes: 0 }
    }

    /// Before a guest runs: so much processor time may be used. To be settled with what was.
    ///
    /// # Errors
    /// There is none left.
    pub fn reserve_cpu(&self, now_ns: u64, ns: u64) -> Result<(), Exceeded> {
        let (Some(account), Some(rate)) = (self.account(), self.quotas.cpu) else { return Ok(()) };
        // A slice that is larger than the bucket would never fit it: then a full bucket is enough.
        let taken = account.cpu.take(now_ns, ns.min(rate.burst), rate);
        taken.map_err(|soon| Exceeded::new(Quota::Cpu, soon))
    }

    /// After a guest ran: what had been reserved, and what it used.
    pub fn settle_cpu(&self, now_ns: u64, reserved_ns: u64, used_ns: u64) {
        let Some(account) = self.account() else { return };
        account.cpu_ns.add(used_ns);
        let Some(rate) = self.quotas.cpu else { return };
        let reserved = reserved_ns.min(rate.burst);
        if used_ns < reserved {
            account.cpu.give_back(reserved - used_ns, rate);
        } else if used_ns > reserved {
            account.cpu.charge(now_ns, used_ns - reserved, rate);
        }
    }

    /// One call of a host function.
    ///
    /// # Errors
    /// That function's bucket is empty.
    pub fn call(&self, now_ns: impl FnOnce() -> u64, function: HostFunction) -> Result<(), Exceeded> {
        let Some(account) = self.account() else { return Ok(()) };
        if let Some(rate) = self.host_calls.get(function.index()).copied().flatten()
            && let Some(bucket) = account.host_calls.get(function.index())
        {
            let taken = bucket.take(now_ns(), 1, rate);
            taken.map_err(|soon| Exceeded::new(Quota::HostCalls, soon))?;
        }
        if let Some(counter) = account.host_called.get(function.index()) {
            counter.add(1);
        }
        Ok(())
    }

    /// An answer of so many bytes, as framed. It is sent whatever it takes; the next question waits for it.
    pub fn sent(&self, now_ns: u64, bytes: usize) {
        let Some(account) = self.account() else { return };
        account.egress_bytes.add(bytes as u64);
        if let Some(rate) = self.quotas.bytes_out {
            account.bytes_out.charge(now_ns, bytes as u64, rate);
        }
    }

    fn column(&self) -> Option<&Column> {
        self.accounts.column(self.generation)
    }

    fn gauges(&self) -> Option<&TenantGauges> {
        self.column().and_then(|column| column.tenants.get(self.slot))
    }

    /// Raises this process's number if all processes' together stay within the limit. Between threads of this process looking
    /// and taking are one step; between processes the own number is raised first and looked at together with the others' after
    /// that, so that of two that do so at the same time at least one sees the other.
    fn raise(&self, more: u64, of: impl Fn(&TenantGauges) -> &Gauge, limit: Option<u64>) -> bool {
        let Some(own) = self.gauges().map(&of) else { return true };
        let Some(limit) = limit else {
            own.add(more);
            return true;
        };
        let others = || {
            let others = self.accounts.other_columns(self.generation);
            let others = others.filter_map(|column| column.tenants.get(self.slot));
            others.map(|gauges| of(gauges).get()).fold(0, u64::saturating_add)
        };
        if !limit.checked_sub(others()).is_some_and(|left| own.add_within(more, left)) {
            return false;
        }
        fence(Ordering::SeqCst);
        let within = own.get().saturating_add(others()) <= limit;
        if !within {
            own.subtract(more);
        }
        within
    }
}

/// A question under way.
#[derive(Debug)]
#[must_use = "it counts for as long as it is held"]
pub struct UnderWay(Arc<Meter>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(gauges) = self.0.gauges() {
            gauges.concurrent.subtract(1);
        }
    }
}

/// Linear memory of one instance. It goes with the instance: who drops it first counts what is still there as free.
#[derive(Debug)]
#[must_use = "it counts for as long as it is held"]
pub struct Memory {
    meter: Arc<Meter>,
    bytes: u64,
}

impl Memory {
    /// So many bytes more.
    ///
    /// # Errors
    /// All instances of the tenant together would have more than they may.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Exceeded> {
        if !self.meter.raise(bytes, |gauges| &gauges.memory, self.meter.quotas.memory) {
            return Err(Exceeded::for_now(Quota::Memory));
        }
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }

    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(gauges) = self.meter.gauges() {
            gauges.memory.subtract(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::map::tests::fresh;

    const NOW: u64 = 1 << 50;

    fn meter(accounts: &Arc<Map<ClassAccount>>, generation: u64, quotas: Quotas) -> Arc<Meter> {
        accounts.column(generation).unwrap().generation.set(generation);
        Arc::new(Meter::new(Arc::clone(accounts), 5, generation, quotas).unwrap())
    }

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn who_is_refused_has_used_nothing() {
        let quotas = Quotas { requests: rate(1, 2), bytes_in: rate(100, 100), ..Quotas::default() };
        let accounts = Arc::new(fresh());
        let meter = meter(&accounts, 1, quotas);
        let refused = meter.ask(NOW, 1, 101).unwrap_err();
        assert_eq!(refused, Exceeded { which: Quota::BytesIn, retry_after_ms: u32::MAX }, "it never fits");
        meter.ask(NOW, 1, 100).unwrap();
        let refused = meter.ask(NOW, 1, 1).unwrap_err();
        assert_eq!(refused, Exceeded { which: Quota::BytesIn, retry_after_ms: 10 });
        meter.ask(NOW, 1, 0).unwrap();
        let refused = meter.ask(NOW, 1, 0).unwrap_err();
        assert_eq!(refused, Exceeded { which: Quota::Requests, retry_after_ms: 1000 });
        assert_eq!(meter.account().unwrap().ingress_bytes.get(), 100);
        assert_eq!(meter.account().unwrap().host_calls.len(), HostFunction::ALL.len());
    }

    #[test]
    fn a_successor_takes_from_the_same_buckets() {
        let quotas = Quotas { requests: rate(1, 1), ..Quotas::default() };
        let accounts = Arc::new(fresh());
        meter(&accounts, 1, quotas.clone()).ask(NOW, 1, 0).unwrap();
        assert_eq!(meter(&accounts, 2, quotas).ask(NOW, 1, 0).unwrap_err().which, Quota::Requests);
    }

    #[test]
    fn what_is_under_way_counts_in_all_processes_and_ends_with_them() {
        let quotas = Quotas { concurrent: Some(3), memory: Some(100), ..Quotas::default() };
        let accounts = Arc::new(fresh());
        let (old, new) = (meter(&accounts, 1, quotas.clone()), meter(&accounts, 2, quotas));
        let (first, mut large) = (old.enter(1).unwrap(), old.memory());
        large.grow(60).unwrap();
        assert_eq!(large.grow(41).unwrap_err().which, Quota::Memory);
        let _second = new.enter(1).unwrap();
        let _third = new.enter(1).unwrap();
        assert_eq!(new.enter(1).unwrap_err(), Exceeded { which: Quota::Concurrent, retry_after_ms: 1 });
        assert_eq!(new.enter(4).unwrap_err(), Exceeded::as_it_is(Quota::Concurrent));
        assert_eq!(new.memory().grow(41).unwrap_err().which, Quota::Memory);
        drop((first, large));
        let _fourth = new.enter(1).unwrap();
        new.memory().grow(100).unwrap();
        // A process that has died gives nothing back; its column counts for nothing.
        std::mem::forget(old.enter(1));
        std::mem::forget((old.enter(1), old.enter(1)));
        assert!(new.enter(1).is_err());
        accounts.column(1).unwrap().generation.set(0);
        assert!(new.enter(1).is_err(), "three of its own");
        drop(_fourth);
        assert!(new.enter(1).is_ok());
    }

    #[test]
    fn processor_time_is_reserved_and_settled() {
        let quotas = Quotas { cpu: rate(1_000_000_000, 1_000), ..Quotas::default() };
        let accounts = Arc::new(fresh());
        let meter = meter(&accounts, 1, quotas);
        meter.reserve_cpu(NOW, 600).unwrap();
        assert!(meter.reserve_cpu(NOW, 600).is_err(), "two slices of one bucket at once");
        meter.settle_cpu(NOW, 600, 100);
        meter.reserve_cpu(NOW, 900).unwrap();
        meter.settle_cpu(NOW, 900, 2_900);
        let refused = meter.ask(NOW, 1, 0).unwrap_err();
        assert_eq!(refused, Exceeded { which: Quota::Cpu, retry_after_ms: 1 });
        meter.ask(NOW + 2_000, 1, 0).unwrap();
        assert_eq!(meter.account().unwrap().cpu_ns.get(), 3_000);
        // Larger than the whole bucket.
        meter.reserve_cpu(2 * NOW, 150_000).unwrap();
        meter.settle_cpu(2 * NOW, 150_000, 0);
        meter.reserve_cpu(2 * NOW, 1_000).unwrap();
    }

    #[test]
    fn host_functions_have_buckets_of_their_own_and_answers_are_paid_for_later() {
        let host_calls = vec![(HostFunction::DataGet, Rate { per_second: 1, burst: 1 })];
        let quotas = Quotas { host_calls, bytes_out: rate(1_000, 1_000), ..Quotas::default() };
        let accounts = Arc::new(fresh());
        let meter = meter(&accounts, 1, quotas);
        meter.call(|| NOW, HostFunction::DataGet).unwrap();
        assert_eq!(meter.call(|| NOW, HostFunction::DataGet).unwrap_err().which, Quota::HostCalls);
        meter.call(|| unreachable!("no rate, no clock"), HostFunction::LogWrite).unwrap();
        meter.sent(NOW, 3_000);
        let refused = meter.ask(NOW, 1, 0).unwrap_err();
        assert_eq!(refused, Exceeded { which: Quota::BytesOut, retry_after_ms: 2_000 });
        meter.ask(NOW + 2_000_000_000, 1, 0).unwrap();
        let called: Vec<u64> = meter.account().unwrap().host_called.iter().map(|one| one.get()).collect();
        assert_eq!(called.iter().sum::<u64>(), 2);
    }
}
