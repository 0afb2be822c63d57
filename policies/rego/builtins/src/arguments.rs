//! Arguments of a function, taken as what it wants them to be.

use std::collections::BTreeMap;

use crate::Failure;
use crate::value::{Number, Value};

#[derive(Clone, Copy)]
pub(crate) struct Arguments<'a>(pub(crate) &'a [Value]);

impl<'a> Arguments<'a> {
    pub(crate) fn get(self, index: usize) -> Result<&'a Value, Failure> {
        self.0.get(index).ok_or_else(|| Failure::new(format!("no argument {}", index + 1)))
    }

    fn wrong(self, index: usize, expected: &str) -> Failure {
        let found = self.0.get(index).map_or("nothing", Value::kind);
        Failure::new(format!("operand {} must be {expected} but got {found}", index + 1))
    }

    pub(crate) fn string(self, index: usize) -> Result<&'a str, Failure> {
        self.get(index)?.as_str().ok_or_else(|| self.wrong(index, "string"))
    }

    pub(crate) fn number(self, index: usize) -> Result<Number, Failure> {
        match self.get(index)? {
            Value::Number(number) => Ok(*number),
            _ => Err(self.wrong(index, "number")),
        }
    }

    pub(crate) fn int(self, index: usize) -> Result<i128, Failure> {
        self.number(index)?.as_int().ok_or_else(|| self.wrong(index, "integer number"))
    }

    pub(crate) fn small(self, index: usize) -> Result<i64, Failure> {
        i64::try_from(self.int(index)?).map_err(|_| self.wrong(index, "an integer of 64 bits"))
    }

    pub(crate) fn object(self, index: usize) -> Result<&'a BTreeMap<Value, Value>, Failure> {
        match self.get(index)? {
            Value::Object(object) => Ok(object),
            _ => Err(self.wrong(index, "object")),
        }
    }

    pub(crate) fn array(self, index: usize) -> Result<&'a [Value], Failure> {
        match self.get(index)? {
            Value::Array(items) => Ok(items),
            _ => Err(self.wrong(index, "array")),
        }
    }

    /// The members of an array or a set.
    pub(crate) fn members(self, index: usize) -> Result<Vec<&'a Value>, Failure> {
        members(self.get(index)?).ok_or_else(|| self.wrong(index, "array or set"))
    }

    /// One string, or an array or a set of them.
    pub(crate) fn strings(self, index: usize) -> Result<Vec<&'a str>, Failure> {
        if let Value::String(string) = self.get(index)? {
            return Ok(vec![string]);
        }
        let strings = self.members(index)?.into_iter().map(Value::as_str).collect::<Option<_>>();
        strings.ok_or_else(|| self.wrong(index, "string, or array or set of strings"))
    }
}

pub(crate) fn members(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::Array(items) => Some(items.iter().collect()),
        Value::Set(items) => Some(items.iter().collect()),
        _ => None,
    }
}
