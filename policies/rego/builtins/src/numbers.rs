//! Ranges with a step, and random numbers.

use sha2::{Digest as _, Sha256};

use crate::arguments::Arguments;
use crate::value::Value;
use crate::{Answer, Builtin, Capability, Failure, Host, pure, with};

/// Most members of a range; a policy has neither the memory nor the time for more.
const RANGE_MAX: u128 = 1_000_000;

pub(crate) const FUNCTIONS: &[Builtin] =
    &[pure("numbers.range_step", 3, range_step), with(Capability::Random, "rand.intn", 2, intn)];

fn range_step(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (from, to, step) = (arguments.int(0)?, arguments.int(1)?, arguments.int(2)?);
    if step <= 0 {
        return Err(Failure::new("numbers.range_step: step must be a positive integer"));
    }
    if from.abs_diff(to) / step.unsigned_abs() >= RANGE_MAX {
        return Err(Failure::new("numbers.range_step: more than a million numbers"));
    }
    let step = if from <= to { step } else { -step };
    let numbers = std::iter::successors(Some(from), |number| number.checked_add(step));
    Ok(numbers
        .take_while(|number| if step > 0 { *number <= to } else { *number >= to })
        .map(Value::from)
        .collect())
}

/// The same number for the same arguments, as long as the decision lasts.
fn intn(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (name, below) = (arguments.string(0)?, arguments.int(1)?.unsigned_abs());
    if below == 0 {
        return Ok(0_i64.into());
    }
    let random = u128::from_le_bytes(draw(host, &[b"rand.intn", name.as_bytes(), &below.to_le_bytes()]));
    Ok(i128::try_from(random % below).unwrap_or(0).into())
}

/// Random bits that belong to these words, and to this decision.
pub(crate) fn draw(host: &dyn Host, words: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new().chain_update(host.seed());
    for word in words {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}
