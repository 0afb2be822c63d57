//! An operator's order: one JSON line in one exact form, in a file whose name is its number.

use serde::{Deserialize, Serialize};

use crate::artifact::Digest;
use crate::decision::{PolicyName, Tenant};

/// The directory of orders in the registry's.
pub const ORDERS: &str = "orders";
/// Largest order, bytes.
pub const ORDER_MAX: usize = 4096;
/// Longest reason, bytes.
const REASON_MAX: usize = 1024;
/// Digits of a number in a file's name, so that names sort as numbers do.
const DIGITS: usize = 20;

/// What is to be done, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "order")]
pub enum Order {
    /// Make the bundle that is in the store active, though it was rolled back from, or (with `accept_capabilities`) though
    /// it asks for more than the one that is active.
    Activate { tenant: Tenant, policy: PolicyName, bundle: Digest, accept_capabilities: bool },
    /// Go back to a version that is still kept, and stay there.
    Rollback { tenant: Tenant, policy: PolicyName, to: Target, reason: String },
    /// The table is lost or broken: begin a new one. Every floor is then what the trust policy says.
    Recover { reason: String },
}

/// Which of the versions that are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Target {
    Version(u64),
    Bundle(Digest),
}

/// An order and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedOrder {
    pub number: u64,
    pub order: Order,
}

/// An order that is not one.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("is {0} bytes long, at most {ORDER_MAX} are read")]
    TooLong(usize),
    #[error("is not an order: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("is not in the one exact form that `portcullis` writes")]
    NotCanonical,
    #[error("gives a reason of {0} bytes, at most {REASON_MAX} are kept")]
    Reason(usize),
    #[error("cannot be written: {0}")]
    Write(#[source] serde_json::Error),
}

impl Order {
    /// The bytes of its file.
    ///
    /// # Errors
    /// When the reason is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, OrderError> {
        self.check()?;
        let mut bytes = serde_json::to_vec(self).map_err(OrderError::Write)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads what [`Self::to_bytes`] wrote, and nothing else.
    ///
    /// # Errors
    /// One variant per check; the first that fails.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OrderError> {
        if bytes.len() > ORDER_MAX {
            return Err(OrderError::TooLong(bytes.len()));
        }
        let order: Self = serde_json::from_slice(bytes).map_err(OrderError::Malformed)?;
        if order.to_bytes()? == bytes { Ok(order) } else { Err(OrderError::NotCanonical) }
    }

    /// Of which policy, if it is about one.
    #[must_use]
    pub fn subject(&self) -> Option<(&Tenant, &PolicyName)> {
        match self {
            Self::Activate { tenant, policy, .. } | Self::Rollback { tenant, policy, .. } => {
                Some((tenant, policy))
            }
            Self::Recover { .. } => None,
        }
    }

    fn check(&self) -> Result<(), OrderError> {
        match self {
            Self::Rollback { reason, .. } | Self::Recover { reason } if reason.len() > REASON_MAX => {
                Err(OrderError::Reason(reason.len()))
            }
            _ => Ok(()),
        }
    }
}

impl PlacedOrder {
    /// The number in a file's name, if it is an order's.
    #[must_use]
    pub fn number_of(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(".json")?;
        let only_digits = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        only_digits.then(|| digits.parse().ok()).flatten()
    }
}

/// The name of an order's file.
#[must_use]
pub fn order_name(number: u64) -> String {
    format!("{number:020}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollback() -> Order {
        Order::Rollback {
            tenant: Tenant::new("acme").unwrap(),
            policy: PolicyName::new("gate").unwrap(),
            to: Target::Version(3),
            reason: "it lets too much through".into(),
        }
    }

    #[test]
    fn an_order_has_one_form() {
        let text = concat!(
            r#"{"order":"rollback","tenant":"acme","policy":"gate","to":{"version":3},"#,
            r#""reason":"it lets too much through"}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(rollback().to_bytes().unwrap()).unwrap(), text);
        assert_eq!(Order::from_bytes(text.as_bytes()).unwrap(), rollback());
        let changes = [
            ("{\"order\"", "{ \"order\"", "exact form"),
            ("}\n", "}", "exact form"),
            ("\"tenant\"", "\"x\":1,\"tenant\"", "not an order"),
            ("rollback", "rewind", "unknown variant"),
            (
                "\"tenant\":\"acme\",\"policy\":\"gate\"",
                "\"policy\":\"gate\",\"tenant\":\"acme\"",
                "exact form",
            ),
            ("acme", "../..", "not an order"),
            ("\"version\":3", "\"version\":-3", "not an order"),
        ];
        for (from, to, why) in changes {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            let error = Order::from_bytes(changed.as_bytes()).expect_err(&changed).to_string();
            assert!(error.contains(why), "{changed}: {error}");
        }
    }

    #[test]
    fn a_reason_has_a_limit() {
        let order = |length| Order::Recover { reason: "x".repeat(length) };
        order(REASON_MAX).to_bytes().unwrap();
        assert!(matches!(order(REASON_MAX + 1).to_bytes(), Err(OrderError::Reason(_))));
    }

    #[test]
    fn names_are_numbers_of_twenty_digits() {
        for number in [0, 1, 99, u64::MAX] {
            assert_eq!(PlacedOrder::number_of(&order_name(number)), Some(number));
        }
        for name in [
            "1.json",
            "0000000000000000001.json",
            "+0000000000000000001.json",
            "00000000000000000001.json.tmp",
            "99999999999999999999.json",
            ".00000000000000000001.json",
        ] {
            assert_eq!(PlacedOrder::number_of(name), None, "{name}");
        }
    }
}
