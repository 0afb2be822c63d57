//! Entries in any order to the one form they have.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{HEADER, KEY_MAX, MAGIC, SLOT, TABLE_MAX, VALUE_MAX, VERSION};

/// A table in the making.
#[derive(Debug, Default)]
pub struct Builder {
    entries: BTreeMap<String, Vec<u8>>,
    keys: usize,
    values: usize,
}

/// What makes no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("key {0:?} is there twice")]
    Twice(String),
    #[error("key {key:?} is {len} bytes long, expected 1 to {KEY_MAX}")]
    Key { key: String, len: usize },
    #[error(
        "value of key {key:?} is {len} bytes long, at most {VALUE_MAX} are kept: split it over several keys"
    )]
    Value { key: String, len: usize },
    #[error(
        "table would be {len} bytes long, at most {TABLE_MAX} are mapped: split it over several snapshots"
    )]
    TooLong { len: usize },
}

impl Builder {
    /// Adds an entry.
    ///
    /// # Errors
    /// When the key is there already, or something is too long.
    pub fn add(&mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Result<(), BuildError> {
        let (key, value) = (key.into(), value.into());
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(BuildError::Key { len: key.len(), key: key.chars().take(80).collect() });
        }
        if value.len() > VALUE_MAX {
            return Err(BuildError::Value { key, len: value.len() });
        }
        let (key_len, value_len) = (key.len(), value.len());
        match self.entries.entry(key) {
            Entry::Occupied(there) => return Err(BuildError::Twice(there.key().clone())),
            Entry::Vacant(place) => place.insert(value),
        };
        self.keys = self.keys.saturating_add(key_len);
        self.values = self.values.saturating_add(value_len);
        let len = self.len();
        if len > TABLE_MAX { Err(BuildError::TooLong { len }) } else { Ok(()) }
    }

    /// How many there are.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// The table's bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.len());
        table.extend_from_slice(MAGIC);
        table.extend_from_slice(&VERSION.to_le_bytes());
        table.extend_from_slice(&0_u32.to_le_bytes());
        for number in [self.entries.len(), self.keys, self.values] {
            put(&mut table, number);
        }
        let (mut key_end, mut value_end) = (0_usize, 0_usize);
        for (key, value) in &self.entries {
            key_end = key_end.saturating_add(key.len());
            value_end = value_end.saturating_add(value.len());
            put(&mut table, key_end);
            put(&mut table, value_end);
        }
        for key in self.entries.keys() {
            table.extend_from_slice(key.as_bytes());
        }
        for value in self.entries.values() {
            table.extend_from_slice(value);
        }
        table
    }

    fn len(&self) -> usize {
        let index = self.entries.len().saturating_mul(SLOT);
        HEADER.saturating_add(index).saturating_add(self.keys).saturating_add(self.values)
    }
}

fn put(table: &mut Vec<u8>, number: usize) {
    table.extend_from_slice(&u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes());
}
