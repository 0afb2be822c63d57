//! What is counted of each answer, in the accounts of its tenant and its class. Relaxed additions, no locks: all of it
//! costs less than reading the question did.

use crate::accounts::{ClassAccount, Meter, OutcomeKind, Span, StageOf};
use crate::decision::{Decision, DecisionId, Outcome, Refusal, TraceContext};

/// When what happened to one question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// CLOCK_MONOTONIC, nanoseconds, as the next two.
    pub(super) received_ns: u64,
    pub(super) deadline_ns: u64,
    pub(super) now_ns: u64,
    /// Now, nanoseconds since 1970.
    pub(super) realtime_ns: u64,
}

/// An answer to a question that had been admitted.
pub(super) fn answered(meter: &Meter, decision: &Decision, times: &Times) {
    if let Some(account) = meter.account() {
        account.count(&decision.outcome);
        account.latency.record(times.now_ns.saturating_sub(times.received_ns));
    }
    if let Outcome::Refused(Refusal::Deadline(_)) = decision.outcome {
        meter.class().overshoot.record(times.now_ns.saturating_sub(times.deadline_ns));
    }
}

/// An answer to a question that had not been admitted; `meter` is of the tenant that was named, if there is one.
pub(super) fn refused(class: &ClassAccount, meter: Option<&Meter>, outcome: &Outcome) {
    match meter.and_then(Meter::account) {
        Some(account) => account.count(outcome),
        None => class.not_permitted.add(1),
    }
}

/// An instance was made and asked, however that ends; `warm` is whether its slot had the policy's image.
pub(super) fn invoked(meter: &Meter, module: u32, warm: bool) {
    let class = meter.class();
    let found = if warm { &class.pool_hits } else { &class.pool_misses };
    found.add(1);
    if let Some(account) = class.modules.get(module as usize) {
        account.invocations.add(1);
    }
}

/// It has ended by itself, so it is known how long everything took.
pub(super) fn decided(class: &ClassAccount, warm: bool, decision: &Decision, times: &Times) {
    let timing = &decision.timing;
    let instantiate = if warm { &class.snapshot_resume } else { &class.cold_start };
    instantiate.record(timing.instantiate_ns);
    let stages = [
        (StageOf::Queue, timing.queue_ns),
        (StageOf::Instantiate, timing.instantiate_ns),
        (StageOf::Run, timing.run_ns),
        (StageOf::Host, timing.host_ns),
    ];
    for (stage, ns) in stages {
        if let (Some(sampled), Some(id)) = (class.stage(stage), &decision.id) {
            sampled.record(ns, *id.as_bytes(), times.realtime_ns);
        }
    }
}

/// From a guest's answer to its reply having been handed to the socket.
pub(super) fn replied(class: &ClassAccount, ns: u64, id: DecisionId, at_ns: u64) {
    if let Some(sampled) = class.stage(StageOf::Reply) {
        sampled.record(ns, *id.as_bytes(), at_ns);
    }
}

/// A decision of a trace that its client records. One that the watchdog has answered is told of too, when its guest is
/// done away with.
pub(super) fn traced(
    meter: &Meter,
    (trace, id): (TraceContext, DecisionId),
    module: u32,
    decision: &Decision,
    times: &Times,
) {
    let took_ns = times.now_ns.saturating_sub(times.received_ns);
    meter.class().spans.put(&Span {
        trace,
        decision: id,
        tenant: meter.slot(),
        module,
        digest: decision.digest.map_or([0; 32], |digest| *digest.as_bytes()),
        outcome: OutcomeKind::of(&decision.outcome),
        start_ns: times.realtime_ns.saturating_sub(took_ns),
        took_ns,
        timing: decision.timing,
    });
}

#[cfg(test)]
pub(super) mod samples {
    use std::sync::Arc;

    use super::*;
    use crate::accounts::{Access, Map, Quotas, create};

    /// Accounts of a class, in which the process of generation 1 has begun.
    pub(in crate::worker) fn accounts() -> Arc<Map<ClassAccount>> {
        let accounts: Map<ClassAccount> = Map::new(create::<ClassAccount>().unwrap(), Access::Write).unwrap();
        assert!(accounts.column(1).unwrap().begin(1, 8));
        Arc::new(accounts)
    }

    /// Of a tenant that may have all it wants.
    pub(in crate::worker) fn meter() -> Arc<Meter> {
        Arc::new(Meter::new(accounts(), 0, 1, Quotas::default()).unwrap())
    }
}
