//! What the status says of policies, in parts that fit messages: who writes the store has a say in how long a reason is, and
//! a status that cannot be sent would end the worker.

use crate::wire::frame;
use crate::wire::handover::{HANDOVER_MAX, STATUS_PARTS_MAX};
use crate::wire::operator::PolicyStatus;

/// Bytes of policies in one part. What is said of the worker itself takes far less than the rest of a message.
const PART_BYTES: usize = HANDOVER_MAX - (8 << 10);
/// Bytes of a policy's status without its reasons, at most: names, digests, the numbers of what it counts and reads.
const PLAIN_BYTES: usize = 3 << 10;
/// The same without what it counts and reads.
const BARE_BYTES: usize = 512;

/// All policies, in order, in as many parts as are needed and never in more than are taken. Each has its share of them, and
/// no more than a quarter of one, so that a part which ends before the next status fits is three quarters full: of reasons
/// for which there is no room the beginning, and where there are thousands of policies nothing of what they count and read.
pub(super) fn of(policies: Vec<PolicyStatus>) -> Vec<Vec<PolicyStatus>> {
    let share = STATUS_PARTS_MAX * (PART_BYTES / 4 * 3) / policies.len().max(1);
    let share = share.min(PART_BYTES / 4);
    let mut parts = vec![Vec::new()];
    let mut room = PART_BYTES;
    for mut policy in policies {
        let plain = if share < PLAIN_BYTES {
            policy.metrics.clear();
            policy.serving.iter_mut().for_each(|serving| serving.data.clear());
            BARE_BYTES
        } else {
            PLAIN_BYTES
        };
        let data = policy.serving.iter_mut().flat_map(|serving| &mut serving.data);
        let of_data = data.map(|one| &mut one.held_back);
        let reasons: Vec<_> = of_data.chain([&mut policy.held_back, &mut policy.refused]).flatten().collect();
        let reason = share.saturating_sub(plain) / reasons.len().max(1);
        reasons.into_iter().for_each(|why| why.truncate(why.floor_char_boundary(reason)));
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
    use crate::bundle::DATA_MAX;
    use crate::decision::{NAME_MAX, PolicyName, Tenant, TrustClass};
    use crate::engine::{METRIC_NAME_MAX, METRICS_MAX};
    use crate::wire::handover::FromWorker;
    use crate::wire::operator::{DataServing, Serving, WorkerCounters, WorkerStatus};

    /// The longest there is, with reasons of so many bytes.
    fn status(number: usize, reason: usize, of_data: usize) -> PolicyStatus {
        let (digest, why) = (Digest::of(b""), "\u{e4}".repeat(reason / 2));
        let data = |index: usize| DataServing {
            data: PolicyName::new(&format!("{index:0>NAME_MAX$}")).unwrap(),
            version: u64::MAX,
            bundle: digest,
            held_back: (of_data > 0).then(|| "y".repeat(of_data)),
        };
        let data = (0..DATA_MAX).map(data).collect();
        let metrics = (0..METRICS_MAX).map(|index| (format!("{index:a>METRIC_NAME_MAX$}"), u64::MAX));
        PolicyStatus {
            tenant: Tenant::new(&"t".repeat(NAME_MAX)).unwrap(),
            policy: PolicyName::new(&format!("{number:0>NAME_MAX$}")).unwrap(),
            serving: Some(Serving { digest, version: u64::MAX, bundle: digest, data }),
            held_back: Some(why.clone()),
            refused: Some(why),
            metrics: metrics.collect(),
            metrics_dropped: u64::MAX,
        }
    }

    #[test]
    fn every_policy_is_told_and_every_part_fits_a_message() {
        for (count, reason) in
            [(0, 0), (1, 0), (1, 4096), (64, 4096), (64, 1 << 20), (1_900, 4096), (4_096, 4096), (8_000, 40)]
        {
            let all: Vec<_> = (0..count).map(|number| status(number, reason, reason)).collect();
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
        assert!(frame::encode(&status(0, 0, 0), PLAIN_BYTES).is_ok());
        let all: Vec<_> = (0..300).map(|number| status(number, 4096, 0)).collect();
        assert_eq!(of(all.clone()).concat(), all);
    }
}
