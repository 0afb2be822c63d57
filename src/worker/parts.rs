//! A status in parts that fit messages.

use crate::wire::frame;
use crate::wire::handover::HANDOVER_MAX;
use crate::wire::operator::PolicyStatus;

/// Bytes of policies in one part of a status; what is said of the worker itself takes far less than the rest of a message.
const PART_BYTES: usize = HANDOVER_MAX - (8 << 10);
/// Characters of each reason in the status of a policy that has no room otherwise.
const TEXT_CHARS: usize = 4 << 10;
/// As many in each part as a message has room for; one that has no room even by itself is told in short.
pub(super) fn of(policies: Vec<PolicyStatus>) -> Vec<Vec<PolicyStatus>> {
    let bytes = |policy: &PolicyStatus| frame::encode(policy, PART_BYTES).map(|bytes| bytes.len());
    let mut parts = vec![Vec::new()];
    let mut room = PART_BYTES;
    for mut policy in policies {
        let needed = bytes(&policy).unwrap_or_else(|_| {
            policy.serving.iter_mut().for_each(|serving| serving.data.clear());
            for why in [&mut policy.held_back, &mut policy.refused].into_iter().flatten() {
                *why = why.chars().take(TEXT_CHARS).collect();
            }
            PART_BYTES
        });
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
    use crate::decision::{PolicyName, Tenant};
    use crate::wire::operator::{DataServing, Serving};

    fn status(number: usize, why: usize) -> PolicyStatus {
        let digest = Digest::of(b"");
        let data = DataServing {
            data: PolicyName::new("prices").unwrap(),
            version: 1,
            bundle: digest,
            held_back: Some("x".repeat(why)),
        };
        PolicyStatus {
            tenant: Tenant::new("acme").unwrap(),
            policy: PolicyName::new(&format!("gate-{number}")).unwrap(),
            serving: Some(Serving { digest, version: 1, bundle: digest, data: vec![data] }),
            held_back: Some("y".repeat(why)),
            refused: None,
            metrics: [("hits".to_owned(), u64::MAX)].into(),
            metrics_dropped: 0,
        }
    }

    #[test]
    fn every_policy_is_in_one_part_of_a_status_and_every_part_fits_a_message() {
        for (count, why, parts) in [(0, 0, 1), (1, 0, 1), (300, 10, 1), (1_900, 500, 64), (3, 100_000, 3)] {
            let all: Vec<_> = (0..count).map(|number| status(number, why)).collect();
            let names: Vec<_> = all.iter().map(|one| one.policy.clone()).collect();
            let divided = of(all);
            assert!(divided.len() <= parts, "{} parts of {count}", divided.len());
            for part in &divided {
                frame::encode(part, HANDOVER_MAX - (4 << 10)).unwrap();
            }
            let told: Vec<_> = divided.into_iter().flatten().map(|one| one.policy).collect();
            assert_eq!(told, names);
        }
    }
}
