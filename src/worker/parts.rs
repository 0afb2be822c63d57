//! What the status says of policies, in parts that fit messages: who writes the store has a say in how long a reason is, and
//! a status that cannot be sent would end the worker.

use crate::wire::frame;
use crate::wire::handover::{HANDOVER_MAX, STATUS_PARTS_MAX};
use crate::wire::operator::PolicyStatus;

/// Bytes of policies in one part. What is said of the worker itself takes far less than the rest of a message.
const PART_BYTES: usize = HANDOVER_MAX - (8 << 10);
/// Bytes of a policy's status without its reasons: names, digests, numbers.
const PLAIN_BYTES: usize = 512;
/// Bytes of each reason where there is room for all: more than the registry writes, and so little that a part which ends
/// before the next policy's status fits is three quarters full.
const REASON_BYTES: usize = PART_BYTES / 9;

/// All policies, in order, in as many parts as are needed and never in more than are taken; of reasons for which there is
/// no room the beginning.
pub(super) fn of(policies: Vec<PolicyStatus>) -> Vec<Vec<PolicyStatus>> {
    let each = STATUS_PARTS_MAX * (PART_BYTES / 4 * 3) / policies.len().max(1);
    let reason = (each.saturating_sub(PLAIN_BYTES) / 2).min(REASON_BYTES);
    let mut parts = vec![Vec::new()];
    let mut room = PART_BYTES;
    for mut policy in policies {
        for why in [&mut policy.held_back, &mut policy.refused].into_iter().flatten() {
            why.truncate(why.floor_char_boundary(reason));
        }
        let needed = frame::encode(&policy, PART_BYTES).map_or(PART_BYTES, |bytes| bytes.len());
        if needed > room {
            parts.push(Vec::new());
            room = PART_BYTES;
        }
        room = room.saturating_sub(needed);
        if let Some(part) = parts.last_mut() {
            part.push(policy);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Digest;
    use crate::decision::{NAME_MAX, PolicyName, Tenant, TrustClass};
    use crate::wire::handover::FromWorker;
    use crate::wire::operator::{Serving, WorkerCounters, WorkerStatus};

    /// The longest there is, with reasons of so many bytes.
    fn status(number: usize, reason: usize) -> PolicyStatus {
        let (digest, why) = (Digest::of(b""), "\u{e4}".repeat(reason / 2));
        PolicyStatus {
            tenant: Tenant::new(&"t".repeat(NAME_MAX)).unwrap(),
            policy: PolicyName::new(&format!("{number:0>NAME_MAX$}")).unwrap(),
            serving: Some(Serving { digest, version: u64::MAX, bundle: digest }),
            held_back: Some(why.clone()),
            refused: Some(why),
        }
    }

    #[test]
    fn every_policy_is_told_and_every_part_fits_a_message() {
        for (count, reason) in
            [(0, 0), (1, 0), (1, 4096), (64, 4096), (64, 1 << 20), (1_900, 4096), (4_096, 4096), (8_000, 40)]
        {
            let all: Vec<_> = (0..count).map(|number| status(number, reason)).collect();
            let names: Vec<_> = all.iter().map(|one| one.policy.clone()).collect();
            let parts = of(all);
            assert!((1..=STATUS_PARTS_MAX).contains(&parts.len()), "{count}: {} parts", parts.len());
            let mut told = Vec::new();
            for policies in parts {
                told.extend(policies.iter().map(|one| one.policy.clone()));
                let part = WorkerStatus {
                    class: TrustClass::new(&"c".repeat(NAME_MAX)).unwrap(),
                    generation: u64::MAX,
                    pagemap_scan: true,
                    stack_zeroing: true,
                    counters: WorkerCounters::default(),
                    policies,
                };
                let message = FromWorker::Status { nonce: u64::MAX, part, last: true };
                frame::encode(&message, HANDOVER_MAX).unwrap_or_else(|error| panic!("{count}: {error}"));
            }
            assert_eq!(told, names);
        }
    }

    #[test]
    fn reasons_are_told_whole_where_there_is_room() {
        let all: Vec<_> = (0..300).map(|number| status(number, 4096)).collect();
        assert_eq!(of(all.clone()).concat(), all);
    }
}
