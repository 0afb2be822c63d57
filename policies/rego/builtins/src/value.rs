//! A Rego value, ordered as Rego orders them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Null comes before booleans, those before numbers, then strings, arrays, objects, sets: the order of the variants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Value>),
    Object(BTreeMap<Value, Value>),
    Set(BTreeSet<Value>),
}

/// Integers are exact up to 38 digits; what is beyond, or has a fraction, has the precision of a double.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    /// The integer that it is, whichever way it is written.
    #[must_use]
    pub fn as_int(self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(int),
            Self::Float(float) => {
                #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
                let int = float as i128;
                (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(int)
            }
        }
    }

    #[must_use]
    pub fn as_float(self) -> f64 {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "that is what a double is")]
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.as_int(), other.as_int()) {
            (Some(one), Some(other)) => one.cmp(&other),
            _ => self.as_float().total_cmp(&other.as_float()),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Number {}

impl Value {
    /// An object of these entries, with strings as keys.
    pub fn object<'a>(entries: impl IntoIterator<Item = (&'a str, Self)>) -> Self {
        Self::Object(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// What an object has under this string.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(object) => object.get(&Self::from(key)),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(string) => Some(string),
            _ => None,
        }
    }

    #[must_use]
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Number(number) => number.as_int(),
            _ => None,
        }
    }

    /// What kind of value it is, as Rego's messages name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
            Self::Set(_) => "set",
        }
    }
}

impl From<&str> for Value {
    fn from(string: &str) -> Self {
        Self::String(string.to_owned())
    }
}

impl From<String> for Value {
    fn from(string: String) -> Self {
        Self::String(string)
    }
}

impl From<bool> for Value {
    fn from(bool: bool) -> Self {
        Self::Bool(bool)
    }
}

impl From<i128> for Value {
    fn from(int: i128) -> Self {
        Self::Number(Number::Int(int))
    }
}

impl From<i64> for Value {
    fn from(int: i64) -> Self {
        Self::from(i128::from(int))
    }
}

impl From<f64> for Value {
    fn from(float: f64) -> Self {
        Self::Number(Number::Float(float))
    }
}

impl FromIterator<Value> for Value {
    /// An array.
    fn from_iter<I: IntoIterator<Item = Self>>(items: I) -> Self {
        Self::Array(items.into_iter().collect())
    }
}
