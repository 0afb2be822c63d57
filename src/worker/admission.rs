//! May this request wait for its turn? Says no before any work begins, and says which no.

use std::sync::Arc;

use super::policies::{PolicySet, Served, TenantPolicies};
use crate::accounts::{Exceeded, Meter, UnderWay};
use crate::decision::{Quota, Refusal, Stage};
use crate::wire::client::{CLIENT_FRAME_MAX, Deadline};

/// Nanoseconds in a microsecond.
const US: u64 = 1_000;

/// Bytes of inputs that a tenant may have on an executor for each question that it may have there.
const BYTES_A_QUESTION: usize = 64 << 10;

/// What a tenant has on one executor that waits or runs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    questions: usize,
    /// Of their inputs: nobody's memory but the worker's, until a guest has them.
    bytes: usize,
}

impl Load {
    pub(super) fn add(&mut self, bytes: usize) {
        self.questions = self.questions.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn remove(&mut self, bytes: usize) {
        self.questions = self.questions.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// One frame always fits.
    fn has_room_for(self, questions: usize, bytes: usize, most: usize) -> bool {
        let most_bytes = most.saturating_mul(BYTES_A_QUESTION).max(CLIENT_FRAME_MAX);
        self.questions.saturating_add(questions) <= most && self.bytes.saturating_add(bytes) <= most_bytes
    }
}

/// Room that is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room<'a> {
    /// Questions on the connection the request came by.
    pub(super) connection: usize,
    /// What each tenant has on this executor, and how many questions a tenant may have.
    pub(super) asked: &'a [Load],
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
    /// Now, which is later where it had to wait for its turn.
    pub(super) now_ns: u64,
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
    let Asked { received_ns, now_ns, questions, bytes, .. } = *asked;
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
    let load = room.asked.get(flow).copied().unwrap_or_default();
    if !load.has_room_for(questions, bytes, room.tenant) {
        return Err(Refusal::Quota { which: Quota::Queue, retry_after_ms: 1 });
    }
    let meter = &tenant.meter;
    // First what gives itself back.
    let under_way = meter.enter(questions)?;
    meter.ask(now_ns, questions, bytes)?;
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
    fn a_queue_is_full_of_questions_or_of_their_bytes() {
        let mut load = Load::default();
        assert!(load.has_room_for(1, CLIENT_FRAME_MAX, 1), "a frame fits whatever there is room for");
        (0..10).for_each(|_| load.add(BYTES_A_QUESTION));
        assert!(load.has_room_for(90, 90 * BYTES_A_QUESTION, 100));
        assert!(!load.has_room_for(91, 0, 100));
        assert!(!load.has_room_for(1, 90 * BYTES_A_QUESTION + 1, 100));
        load.remove(BYTES_A_QUESTION);
        assert!(load.has_room_for(91, 91 * BYTES_A_QUESTION, 100));
    }

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
