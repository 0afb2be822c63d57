//! What a decision is called: in its reply, in log lines, in exemplars and in traces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 16 bytes, written as 32 lower-case hex digits; never all zero. A worker draws them, so that no two decisions of any
/// service share one, and nobody can say from one what else was decided, or how much.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId([u8; 16]);

/// Text or bytes that are no decision id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a decision id is 32 lower-case hex digits that are not all 0")]
pub struct InvalidDecisionId;

impl DecisionId {
    /// From bytes that were drawn at random.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        // Once in 2^128 draws.
        if bytes == [0; 16] { Self(1_u128.to_be_bytes()) } else { Self(bytes) }
    }

    /// # Errors
    /// They are all zero.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, InvalidDecisionId> {
        if bytes == [0; 16] { Err(InvalidDecisionId) } else { Ok(Self(bytes)) }
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// That of question `index` of a batch whose first question has this one.
    #[must_use]
    pub fn nth(self, index: usize) -> Self {
        Self::from_random(u128::from_be_bytes(self.0).wrapping_add(index as u128).to_be_bytes())
    }

    /// What the decision's span is called in a trace: the last 8 bytes, which differ within a batch. Never all zero.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        let id = [a, b, c, d, e, f, g, h];
        // Once in 2^64.
        if id == [0; 8] { [0xff; 8] } else { id }
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DecisionId {
    type Err = InvalidDecisionId;

    fn from_str(text: &str) -> Result<Self, InvalidDecisionId> {
        Self::from_bytes(super::trace::digits(text).ok_or(InvalidDecisionId)?)
    }
}

/// Text where people read (JSON), 16 bytes where machines do (postcard).
impl Serialize for DecisionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for DecisionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            Self::from_bytes(<[u8; 16]>::deserialize(deserializer)?).map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_hex_digits_and_never_zero() {
        let text = "00112233445566778899aabbccddeeff";
        let id: DecisionId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(hex::encode(id.span_id()), "8899aabbccddeeff");
        for bad in
            ["", &text[1..], &text.to_uppercase(), &"0".repeat(32), &format!("{text}0"), &"é".repeat(16)]
        {
            assert!(bad.parse::<DecisionId>().is_err(), "{bad:?} was taken");
        }
        assert_ne!(DecisionId::from_random([0; 16]).as_bytes(), &[0; 16]);
        assert_ne!(DecisionId::from_random([0; 16]).span_id(), [0; 8]);
    }

    #[test]
    fn a_batch_has_an_id_and_a_span_for_each_question() {
        let first = DecisionId::from_random([0xff; 16]);
        let ids: std::collections::BTreeSet<_> = (0..256).map(|index| first.nth(index)).collect();
        // Past the last number comes the first, and 0 is none: two questions then share the id 1. Once in 2^120.
        assert_eq!(ids.len(), 255);
        let first = DecisionId::from_random([7; 16]);
        let spans: std::collections::BTreeSet<_> = (0..256).map(|index| first.nth(index).span_id()).collect();
        assert_eq!((spans.len(), first.nth(0)), (256, first));
    }
}
