//! May this request wait for its turn? Says no before any work begins, and says which no.

use std::sync::Arc;

use super::policies::{PolicySet, Served};
use crate::decision::{Quota, Refusal, Stage};
use crate::wire::client::Deadline;

/// Room that is left, in questions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    /// On the connection the request came by.
    pub(super) connection: usize,
    /// On this executor.
    pub(super) executor: usize,
    /// Questions of each tenant that wait or run there, and how many a tenant may have.
    pub(super) asked: &'a [usize],
    pub(super) tenant: usize,
}

/// A request that may wait.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The tenant's index.
    pub(super) flow: usize,
    pub(super) policy: Arc<Served>,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub(super) deadline_ns: u64,
}

/// Checks grant, names, that the policy still may decide, deadline and room for `questions` of one request, in that order.
///
/// Who is not granted a tenant learns nothing about it: not even whether it exists here.
pub(super) fn admit(
    set: &PolicySet,
    grant: &[bool],
    (tenant, policy): (&str, &str),
    deadline: Deadline,
    received_ns: u64,
    room: Room<'_>,
    questions: usize,
) -> Result<Admitted, Refusal> {
    let Some((flow, tenant)) = set.tenant(tenant) else { return Err(Refusal::UnknownTenant) };
    if !grant.get(flow).copied().unwrap_or(false) {
        return Err(Refusal::NotPermitted);
    }
    let policy = tenant.policy(policy).ok_or(Refusal::UnknownPolicy)?;
    if policy.is_withdrawn() {
        return Err(Refusal::Revoked);
    }
    let deadline_ns = deadline_ns(deadline, received_ns, tenant.deadlines(policy.policy()));
    if deadline_ns <= received_ns {
        return Err(Refusal::Deadline(Stage::Receipt));
    }
    if questions > room.connection {
        return Err(Refusal::Quota { which: Quota::Pipeline, retry_after_ms: 1 });
    }
    if questions > room.executor {
        return Err(Refusal::Overloaded);
    }
    if questions + room.asked.get(flow).copied().unwrap_or(0) > room.tenant {
        return Err(Refusal::Quota { which: Quota::Queue, retry_after_ms: 1 });
    }
    Ok(Admitted { flow, policy: Arc::clone(policy), deadline_ns })
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
