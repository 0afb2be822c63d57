//! May this request wait for its turn? Says no before any work begins, and says which no.

use std::sync::Arc;

use super::policies::{PolicySet, Served, TenantPolicies};
use crate::accounts::{Exceeded, Meter, UnderWay};
use crate::decision::{Quota, Refusal, Stage};
use crate::wire::client::Deadline;

/// Nanoseconds in a microsecond.
const US: u64 = 1_000;

/// Room that is left, in questions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    /// On the connection the request came by.
    pub(super) connection: usize,
    /// Questions of each tenant that wait or run on this executor, and how many a tenant may have.
    pub(super) asked: &'a [usize],
    pub(super) tenant: usize,
}

/// What is asked, as far as admission looks at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) tenant: &'a str,
    pub(super) policy: &'a str,
    pub(super) deadline: Deadline,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub(super) received_ns: u64,
    /// Questions of one request, and bytes of their inputs together.
    pub(super) questions: usize,
    pub(super) bytes: usize,
}

/// A request that may wait.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The tenant's index.
    pub(super) flow: usize,
    pub(super) policy: Arc<Served>,
    pub(super) meter: Arc<Meter>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub(super) deadline_ns: u64,
    /// Until when it may wait for its turn.
    pub(super) due_ns: u64,
    /// For each question one; it counts until that is dropped.
    pub(super) under_way: Vec<UnderWay>,
}

/// A request that may not.
#[derive(Debug)]
pub(super) struct NotAdmitted<'a> {
    pub(super) refusal: Refusal,
    /// Whose it is, if the connection may ask for that tenant. Nobody else can make a tenant's numbers grow.
    pub(super) meter: Option<&'a Arc<Meter>>,
}

/// Checks grant, names, that the policy still may decide, deadline, room and the tenant's quotas, in that order. Room on
/// the executor is the caller's business: there somebody else may have to make it.
///
/// Who is not granted a tenant learns nothing about it: not even whether it exists here.
pub(super) fn admit<'a>(
    set: &'a PolicySet,
    grant: &[bool],
    asked: &Asked<'_>,
    room: Room<'_>,
) -> Result<Admitted, NotAdmitted<'a>> {
    let granted = set.tenant(asked.tenant).filter(|(flow, _)| grant.get(*flow).copied().unwrap_or(false));
    let Some((flow, tenant)) = granted else {
        return Err(NotAdmitted { refusal: Refusal::NotPermitted, meter: None });
    };
    admit_to(flow, tenant, asked, room).map_err(|refusal| NotAdmitted { refusal, meter: Some(&tenant.meter) })
}

fn admit_to(
    flow: usize,
    tenant: &TenantPolicies,
    asked: &Asked<'_>,
    room: Room<'_>,
) -> Result<Admitted, Refusal> {
    let Asked { received_ns, questions, .. } = *asked;
    let policy = tenant.policy(asked.policy).ok_or(Refusal::UnknownPolicy)?;
    if policy.is_withdrawn() {
        return Err(Refusal::Revoked);
    }
    let deadline_ns = deadline_ns(asked.deadline, received_ns, tenant.deadlines(policy.policy()));
    if deadline_ns <= received_ns {
        return Err(Refusal::Deadline(Stage::Receipt));
    }
    if questions > room.connection {
        return Err(Refusal::Quota { which: Quota::Pipeline, retry_after_ms: 1 });
    }
    if questions > room.tenant {
        return Err(Exceeded::as_it_is(Quota::Queue).into());
    }
    if questions + room.asked.get(flow).copied().unwrap_or(0) > room.tenant {
        return Err(Refusal::Quota { which: Quota::Queue, retry_after_ms: 1 });
    }
    let meter = &tenant.meter;
    // First what gives itself back.
    let under_way = meter.enter(questions)?;
    meter.ask(received_ns, questions, asked.bytes)?;
    let due_ns = match meter.quotas().max_wait_us {
        Some(us) => deadline_ns.min(received_ns.saturating_add(u64::from(us) * US)),
        None => deadline_ns,
    };
    let (policy, meter) = (Arc::clone(policy), Arc::clone(meter));
    Ok(Admitted { flow, policy, meter, deadline_ns, due_ns, under_way })
}

fn deadline_ns(deadline: Deadline, received_ns: u64, (longest, default): (u64, u64)) -> u64 {
    let wanted = match deadline {
        Deadline::Default => received_ns.saturating_add(default),
        Deadline::Budget { us } => received_ns.saturating_add(u64::from(us) * 1_000),
        Deadline::Absolute { ns } => ns,
    };
    wanted.min(received_ns.saturating_add(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_the_clients_within_what_is_allowed() {
        let limits = (1_000_000, 200_000);
        assert_eq!(deadline_ns(Deadline::Default, 50, limits), 200_050);
        assert_eq!(deadline_ns(Deadline::Budget { us: 300 }, 50, limits), 300_050);
        assert_eq!(deadline_ns(Deadline::Budget { us: u32::MAX }, 50, limits), 1_000_050);
        assert_eq!(deadline_ns(Deadline::Absolute { ns: 10 }, 50, limits), 10);
        assert_eq!(deadline_ns(Deadline::Absolute { ns: u64::MAX }, 50, limits), 1_000_050);
        assert_eq!(deadline_ns(Deadline::Default, u64::MAX, limits), u64::MAX);
    }
}
