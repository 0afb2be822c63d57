//! The client's trace, carried with a question: W3C Trace Context, level 1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which trace a question belongs to, and which span of it asked. Neither id is all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
}

/// Text or bytes that are no trace context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a traceparent of version 00: \"00-\", 32 hex digits, \"-\", 16 hex digits, \"-\", 2 hex digits, in lower \
     case, neither id all 0"
)]
pub struct InvalidTraceContext;

impl TraceContext {
    /// The bit of [`Self::flags`] which says that the caller records this trace.
    pub const SAMPLED: u8 = 1;

    /// # Errors
    /// One of the ids is all zero.
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Result<Self, InvalidTraceContext> {
        if trace_id == [0; 16] || parent_id == [0; 8] {
            return Err(InvalidTraceContext);
        }
        Ok(Self { trace_id, parent_id, flags })
    }

    #[must_use]
    pub fn trace_id(&self) -> &[u8; 16] {
        &self.trace_id
    }

    /// Of the span that asks.
    #[must_use]
    pub fn parent_id(&self) -> &[u8; 8] {
        &self.parent_id
    }

    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// The caller records this trace, so a span of ours finds its parent.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & Self::SAMPLED != 0
    }
}

/// A `traceparent` header's value.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.parent_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(InvalidTraceContext);
        if part()? != "00" {
            return Err(InvalidTraceContext);
        }
        let trace_id = digits(part()?).ok_or(InvalidTraceContext)?;
        let parent_id = digits(part()?).ok_or(InvalidTraceContext)?;
        let [flags] = digits(part()?).ok_or(InvalidTraceContext)?;
        if part().is_ok() {
            return Err(InvalidTraceContext);
        }
        Self::new(trace_id, parent_id, flags)
    }
}

/// Exactly `2 * N` lower-case hex digits.
pub(super) fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

/// As a traceparent where people read (JSON), 16 + 8 + 1 bytes where machines do (postcard).
impl Serialize for TraceContext {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.trace_id, self.parent_id, self.flags).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for TraceContext {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            let (trace_id, parent_id, flags) = Deserialize::deserialize(deserializer)?;
            Self::new(trace_id, parent_id, flags).map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the W3C's text.
    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_goes_round() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(hex::encode(context.trace_id()), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex::encode(context.parent_id()), "b7ad6b7169203331");
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), EXAMPLE);
        let quiet: TraceContext = EXAMPLE.replace("-01", "-02").parse().unwrap();
        assert_eq!((quiet.is_sampled(), quiet.flags()), (false, 2), "unknown flags are carried");
    }

    #[test]
    fn what_is_not_exactly_one_is_refused() {
        for bad in [
            String::new(),
            EXAMPLE.to_uppercase(),
            EXAMPLE.replacen("00-", "01-", 1),
            EXAMPLE.replacen("00-", "ff-", 1),
            EXAMPLE.replacen("00-", "0-", 1),
            format!("{EXAMPLE}-"),
            format!("{EXAMPLE}-00"),
            format!(" {EXAMPLE}"),
            format!("{EXAMPLE}\n"),
            EXAMPLE.replace("-01", "-1"),
            EXAMPLE.replace("-01", "-+1"),
            EXAMPLE.replace("-01", "-001"),
            EXAMPLE.replace("-01", ""),
            EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16)),
            EXAMPLE.replace("b7ad6b7169203331", "b7ad6b716920333"),
            EXAMPLE.replace("b7ad6b7169203331", "b7ad6b716920333g"),
            EXAMPLE.replace("b7ad6b7169203331", "éééééééé"),
        ] {
            assert!(bad.parse::<TraceContext>().is_err(), "{bad:?} was taken");
        }
    }
}
