//! A table that was checked, and lookups in it.

use std::ops::Range;

use super::{HEADER, KEY_MAX, MAGIC, SLOT, TABLE_MAX, VALUE_MAX, VERSION};

/// A table all of whose numbers and keys were looked at once. Whatever they say, nothing outside its bytes is read.
#[derive(Debug)]
pub struct Table<B> {
    bytes: B,
    entries: usize,
    /// Where keys and where values begin.
    keys: usize,
    values: usize,
}

/// Bytes that are no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("data is {len} bytes long, at most {TABLE_MAX} are mapped")]
    TooLong { len: usize },
    #[error("data is no table: it does not begin as one; make it with `portcullis data build`")]
    Magic,
    #[error("table has version {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("table is {found} bytes long, and says {said}: it was cut off, or what it says is wrong")]
    Length { found: usize, said: u128 },
    #[error("table says of entry {entry} that its {what} ends at {end}, expected {from} to {to}")]
    End { entry: usize, what: &'static str, end: u64, from: usize, to: usize },
    #[error("table has {left} bytes of {what} that belong to no entry")]
    Left { what: &'static str, left: usize },
    #[error("key of entry {entry} is not text")]
    Text { entry: usize },
    #[error("key of entry {entry} does not come after the one before")]
    Order { entry: usize },
}

impl<B: AsRef<[u8]>> Table<B> {
    /// Takes bytes for a table, once everything in them holds.
    ///
    /// # Errors
    /// One variant per check; the first that fails.
    pub fn check(bytes: B) -> Result<Self, TableError> {
        let all = bytes.as_ref();
        if all.len() > TABLE_MAX {
            return Err(TableError::TooLong { len: all.len() });
        }
        if all.get(..MAGIC.len()) != Some(MAGIC.as_slice()) || all.len() < HEADER {
            return Err(TableError::Magic);
        }
        let version = all.get(16..20).and_then(|four| Some(u32::from_le_bytes(four.try_into().ok()?)));
        if version != Some(VERSION) {
            return Err(TableError::Version(version.unwrap_or(0)));
        }
        if all.get(20..24) != Some(&[0; 4]) {
            return Err(TableError::Magic);
        }
        let said = |at| number(all, at).unwrap_or(u64::MAX);
        let (entries, keys_len, values_len) = (said(24), said(32), said(40));
        // No sum of these can be too large for the type.
        let whole = (HEADER as u128)
            + u128::from(entries) * (SLOT as u128)
            + u128::from(keys_len)
            + u128::from(values_len);
        let wrong = TableError::Length { found: all.len(), said: whole };
        if whole != all.len() as u128 {
            return Err(wrong);
        }
        // All three are parts of a length that fits.
        let small = |number: u64| usize::try_from(number).map_err(|_| wrong.clone());
        let (entries, keys_len, values_len) = (small(entries)?, small(keys_len)?, small(values_len)?);
        let keys = HEADER.saturating_add(entries.saturating_mul(SLOT));
        let table = Self { entries, keys, values: keys.saturating_add(keys_len), bytes };
        table.check_entries(keys_len, values_len)?;
        Ok(table)
    }

    fn check_entries(&self, keys_len: usize, values_len: usize) -> Result<(), TableError> {
        let (mut key_start, mut value_start) = (0_usize, 0_usize);
        let mut before: &[u8] = &[];
        for entry in 0..self.entries {
            let (key_end, value_end) = self.ends(entry);
            let key_end = within("key", entry, key_end, (key_start, 1, KEY_MAX, keys_len))?;
            value_start = within("value", entry, value_end, (value_start, 0, VALUE_MAX, values_len))?;
            let key = self.part(self.keys, key_start..key_end);
            if std::str::from_utf8(key).is_err() {
                return Err(TableError::Text { entry });
            }
            // The first one comes after nothing.
            if before >= key {
                return Err(TableError::Order { entry });
            }
            (key_start, before) = (key_end, key);
        }
        for (what, left) in
            [("keys", keys_len.saturating_sub(key_start)), ("values", values_len.saturating_sub(value_start))]
        {
            if left > 0 {
                return Err(TableError::Left { what, left });
            }
        }
        Ok(())
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes, all in all.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.as_ref().len()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let entry = self.first(|other| other < key.as_bytes());
        (entry < self.entries && self.key(entry) == key.as_bytes()).then(|| self.value(entry))
    }

    /// The entries whose keys begin with `prefix` and come after `after`, in the order of their keys' bytes.
    #[must_use]
    pub fn entries(&self, prefix: &str, after: Option<&str>) -> Entries<'_, B> {
        let begin =
            self.first(|key| key < prefix.as_bytes() || after.is_some_and(|after| key <= after.as_bytes()));
        // Keys that begin with it come together, behind those that are less.
        let end = self.first(|key| key < prefix.as_bytes() || key.starts_with(prefix.as_bytes()));
        Entries { table: self, next: begin, end }
    }

    /// The first entry whose key is not in front, by binary search: `in_front` is true for a beginning of the keys only.
    fn first(&self, in_front: impl Fn(&[u8]) -> bool) -> usize {
        let (mut from, mut to) = (0, self.entries);
        while from < to {
            let middle = from.midpoint(to);
            match in_front(self.key(middle)) {
                true => from = middle.saturating_add(1),
                false => to = middle,
            }
        }
        from
    }

    fn key(&self, entry: usize) -> &[u8] {
        let (start, end) = self.places(entry, |(key, _)| key);
        self.part(self.keys, start..end)
    }

    fn value(&self, entry: usize) -> &[u8] {
        let (start, end) = self.places(entry, |(_, value)| value);
        self.part(self.values, start..end)
    }

    fn places(&self, entry: usize, which: impl Fn((u64, u64)) -> u64) -> (usize, usize) {
        // Checked: none is longer than the bytes.
        let small = |end: u64| usize::try_from(end).unwrap_or(usize::MAX);
        let start = entry.checked_sub(1).map_or(0, |before| small(which(self.ends(before))));
        (start, small(which(self.ends(entry))))
    }

    fn ends(&self, entry: usize) -> (u64, u64) {
        let at = HEADER.saturating_add(entry.saturating_mul(SLOT));
        let end = |at| number(self.bytes.as_ref(), at).unwrap_or(u64::MAX);
        (end(at), end(at.saturating_add(8)))
    }

    /// Nothing, where there is nothing: which no number of a checked table leads to.
    fn part(&self, from: usize, part: Range<usize>) -> &[u8] {
        let range = from.saturating_add(part.start)..from.saturating_add(part.end);
        self.bytes.as_ref().get(range).unwrap_or_default()
    }
}

/// Entries of a table, in order.
#[derive(Debug)]
pub struct Entries<'t, B> {
    table: &'t Table<B>,
    next: usize,
    end: usize,
}

impl<B> Clone for Entries<'_, B> {
    fn clone(&self) -> Self {
        Self { table: self.table, next: self.next, end: self.end }
    }
}

impl<'t, B: AsRef<[u8]>> Iterator for Entries<'t, B> {
    type Item = (&'t str, &'t [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let entry = self.next;
        self.next = entry.saturating_add(1);
        // It was text when it was checked, and nobody can have changed it.
        let key = std::str::from_utf8(self.table.key(entry)).unwrap_or_default();
        Some((key, self.table.value(entry)))
    }
}

/// An end that is no further from the one before than it may be.
fn within(
    what: &'static str,
    entry: usize,
    end: u64,
    (start, least, most, len): (usize, usize, usize, usize),
) -> Result<usize, TableError> {
    let (from, to) = (start.saturating_add(least), start.saturating_add(most).min(len));
    let fits = usize::try_from(end).ok().filter(|end| (from..=to).contains(end));
    fits.ok_or(TableError::End { entry, what, end, from, to })
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let eight = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(eight.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::table::{BuildError, Builder};

    fn table(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = Builder::default();
        for (key, value) in entries {
            builder.add(*key, *value).unwrap();
        }
        builder.build()
    }

    fn three() -> Vec<u8> {
        table(&[("a/x", "1"), ("a/y", ""), ("b", "three")])
    }

    fn keys(table: &Table<Vec<u8>>, prefix: &str, after: Option<&str>) -> Vec<String> {
        table.entries(prefix, after).map(|(key, _)| key.to_owned()).collect()
    }

    #[test]
    fn what_was_put_in_is_found_and_nothing_else() {
        let table = Table::check(three()).unwrap();
        assert_eq!((table.len(), table.size()), (3, 48 + 3 * 16 + 7 + 6));
        assert_eq!(table.get("a/x"), Some(b"1".as_slice()));
        assert_eq!(table.get("a/y"), Some(b"".as_slice()), "an empty value is one");
        assert_eq!(table.get("b"), Some(b"three".as_slice()));
        for none in ["", "a", "a/", "a/z", "a/x ", "c", "\u{10ffff}"] {
            assert_eq!(table.get(none), None, "{none}");
        }
        assert_eq!(keys(&table, "", None), ["a/x", "a/y", "b"]);
        assert_eq!(keys(&table, "a/", None), ["a/x", "a/y"]);
        assert_eq!(keys(&table, "a/", Some("a/x")), ["a/y"]);
        assert_eq!(keys(&table, "a/", Some("")), ["a/x", "a/y"]);
        assert_eq!(keys(&table, "a/", Some("a/y")), [""; 0]);
        assert_eq!(keys(&table, "a/", Some("z")), [""; 0], "behind all of them");
        assert_eq!(keys(&table, "c", None), [""; 0]);
        assert!(Table::check(Builder::default().build()).unwrap().is_empty());
    }

    #[test]
    fn the_same_entries_have_one_form_in_whatever_order_they_came() {
        let other = table(&[("b", "three"), ("a/y", ""), ("a/x", "1")]);
        assert_eq!(other, three());
        let mut builder = Builder::default();
        builder.add("a", "1").unwrap();
        assert_eq!(builder.add("a", "1"), Err(BuildError::Twice("a".into())));
        assert!(matches!(builder.add("", "1"), Err(BuildError::Key { len: 0, .. })));
        assert!(matches!(builder.add("k".repeat(KEY_MAX + 1), "1"), Err(BuildError::Key { .. })));
        assert!(matches!(builder.add("v", vec![0; VALUE_MAX + 1]), Err(BuildError::Value { .. })));
        builder.add("k".repeat(KEY_MAX), vec![0; VALUE_MAX]).unwrap();
        assert_eq!(Table::check(builder.build()).unwrap().len(), 2);
    }

    /// Each lie by its own name: no number in a table can lead outside it, nor hide bytes in it.
    #[test]
    fn lies_about_places_are_refused_by_name() {
        let refused = |at: usize, number: u64| {
            let mut bytes = three();
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            Table::check(bytes).unwrap_err()
        };
        let huge = [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 60, 1 << 32];
        for at in [24, 32, 40] {
            for number in huge {
                assert!(matches!(refused(at, number), TableError::Length { .. }), "{at} {number}");
            }
        }
        for (at, what) in [(48, "key"), (56, "value"), (64, "key"), (72, "value"), (80, "key"), (88, "value")]
        {
            for number in huge {
                let error = refused(at, number);
                assert!(matches!(error, TableError::End { what: found, .. } if found == what), "{error}");
            }
        }
        // Backwards, and further than there is.
        assert!(matches!(refused(64, 2), TableError::End { what: "key", entry: 1, .. }));
        assert!(matches!(refused(72, 0), TableError::End { what: "value", entry: 1, .. }));
        assert!(matches!(refused(80, 8), TableError::End { what: "key", entry: 2, .. }));
        assert!(matches!(refused(48, 0), TableError::End { what: "key", entry: 0, .. }), "an empty key");
        // Bytes that belong to nothing.
        let mut left = table(&[("bb", "")]);
        left[48] = 1;
        assert_eq!(Table::check(left).unwrap_err(), TableError::Left { what: "keys", left: 1 });
        assert_eq!(refused(88, 5), TableError::Left { what: "values", left: 1 });
        let change = |from: &[u8], to: &[u8]| {
            let mut bytes = three();
            let at = bytes.windows(from.len()).position(|found| found == from).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to);
            Table::check(bytes).unwrap_err()
        };
        assert_eq!(change(b"a/xa/y", b"a/xa/x"), TableError::Order { entry: 1 }, "twice");
        assert_eq!(change(b"a/xa/y", b"a/ya/x"), TableError::Order { entry: 1 });
        assert_eq!(change(b"a/xa/y", b"a/x\xff/y"), TableError::Text { entry: 1 });
        assert_eq!(change(b"portc", b"Portc"), TableError::Magic);
        assert_eq!(change(&[1, 0, 0, 0], &[2, 0, 0, 0]), TableError::Version(2));
        assert_eq!(change(&[1, 0, 0, 0, 0], &[1, 0, 0, 0, 1]), TableError::Magic);
        for len in 0..three().len() {
            let error = Table::check(&three()[..len]).unwrap_err();
            assert!(matches!(error, TableError::Magic | TableError::Length { .. }), "{len}: {error}");
        }
        let longer = [three(), vec![0]].concat();
        assert!(matches!(Table::check(longer), Err(TableError::Length { .. })));
        Table::check(three()).expect("control");
    }

    proptest! {
        /// Whatever is done to a table: it is refused, or every lookup stays inside it and finds what a map would.
        #[test]
        fn a_changed_table_is_refused_or_means_what_it_says(
            entries in proptest::collection::btree_map("[a-c]{1,4}", "[x-z]{0,3}", 0..12),
            at in any::<proptest::sample::Index>(), bit in 0..8_u32, prefix in "[a-c]{0,2}", after in "[a-c]{0,4}",
        ) {
            let entries: BTreeMap<String, String> = entries;
            let list: Vec<(&str, &str)> = entries.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let mut bytes = table(&list);
            let good = Table::check(bytes.clone()).unwrap();
            let found: Vec<String> = keys(&good, &prefix, Some(&after));
            let expected: Vec<String> = entries.keys().filter(|key| key.starts_with(&prefix) && **key > after).cloned().collect();
            prop_assert_eq!(found, expected);
            for (key, value) in &entries {
                prop_assert_eq!(good.get(key), Some(value.as_bytes()));
            }
            prop_assert_eq!(good.get(&after).map(<[u8]>::to_vec), entries.get(&after).map(|value| value.clone().into_bytes()));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(changed) = Table::check(bytes) {
                prop_assert_eq!(changed.entries("", None).count(), entries.len());
                for (key, value) in changed.entries("", None) {
                    prop_assert_eq!(changed.get(key), Some(value));
                }
            }
        }
    }
}
