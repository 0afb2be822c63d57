//! What the `data` interface reads: keys and values that do not change while anybody reads them.
//!
//! A snapshot is mapped once in a process, and every instance of every policy that reads it looks into the same memory: nothing is
//! copied but what is handed out, nothing is parsed, and a fresh instance costs the same however large it is.

use std::io;
use std::sync::Arc;

use crate::artifact::{DataStatement, Mapped, VerifiedData};
use crate::table::{Builder, Entries, Table, TableError};

/// One snapshot, mapped and checked.
#[derive(Debug)]
pub struct Snapshot {
    statement: Option<DataStatement>,
    table: Table<Bytes>,
}

/// Where a table is.
#[derive(Debug)]
enum Bytes {
    Mapped(Mapped),
    /// For what was never a bundle: a test's, a person's.
    Owned(Vec<u8>),
}

/// Why verified data cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("map data: {0}")]
    Map(#[from] io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A snapshot, or several that a policy's manifest names.
#[derive(Debug, Default)]
pub struct Data {
    layers: Vec<Arc<Snapshot>>,
}

impl Snapshot {
    /// Maps it, and looks at every number in it once.
    ///
    /// # Errors
    /// When it cannot be mapped, or is no table.
    pub fn map(data: VerifiedData) -> Result<Self, SnapshotError> {
        let table = Table::check(Bytes::Mapped(Mapped::new(data.bytes())?))?;
        Ok(Self { statement: Some(data.statement().clone()), table })
    }

    /// Of a table's bytes that never were a bundle's, or whose bundle nobody vouched for.
    ///
    /// # Errors
    /// When they are no table.
    pub fn of(table: Vec<u8>) -> Result<Self, SnapshotError> {
        Ok(Self { statement: None, table: Table::check(Bytes::Owned(table))? })
    }

    /// What the host says of it; nothing, where it was never a bundle.
    #[must_use]
    pub fn statement(&self) -> Option<&DataStatement> {
        self.statement.as_ref()
    }
}

impl Data {
    /// Of any entries; of those with the same key the first counts, and what no table can hold is left out.
    #[must_use]
    pub fn of(entries: Vec<(String, Vec<u8>)>) -> Self {
        let mut table = Builder::default();
        for (key, value) in entries {
            // The first one stays.
            let _ = table.add(key, value);
        }
        let table = Table::check(Bytes::Owned(table.build()));
        let layer = table.ok().map(|table| Arc::new(Snapshot { statement: None, table }));
        Self { layers: layer.into_iter().collect() }
    }

    /// Of several snapshots: where two have the same key, the one that comes first counts.
    #[must_use]
    pub fn layers(layers: Vec<Arc<Snapshot>>) -> Self {
        Self { layers }
    }

    /// What is here upon those: where they have a key of its own, they do not count.
    #[must_use]
    pub fn upon(mut self, layers: &[Arc<Snapshot>]) -> Self {
        self.layers.extend_from_slice(layers);
        self
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.layers.iter().find_map(|layer| layer.table.get(key))
    }

    /// In the order of the keys' bytes: those that start with `prefix` and come after `after`.
    pub fn entries<'a>(
        &'a self,
        prefix: &str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let layers = self.layers.iter().map(|layer| Layer::new(layer.table.entries(prefix, after)));
        Merged(layers.collect())
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Mapped(mapped) => mapped,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A layer, and its next entry.
struct Layer<'a> {
    next: Option<(&'a str, &'a [u8])>,
    rest: Entries<'a, Bytes>,
}

impl<'a> Layer<'a> {
    fn new(mut rest: Entries<'a, Bytes>) -> Self {
        Self { next: rest.next(), rest }
    }

    fn take(&mut self) -> Option<(&'a str, &'a [u8])> {
        std::mem::replace(&mut self.next, self.rest.next())
    }
}

/// All layers as one, in order, each key once.
struct Merged<'a>(Vec<Layer<'a>>);

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let least = self.0.iter().filter_map(|layer| layer.next).map(|(key, _)| key).min()?;
        let mut found = None;
        for layer in &mut self.0 {
            if layer.next.is_some_and(|(key, _)| key == least) {
                let entry = layer.take();
                found = found.or(entry);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> Data {
        let entry = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).as_bytes().to_vec());
        Data::of(entries.iter().map(entry).collect())
    }

    fn listed(data: &Data, prefix: &str, after: Option<&str>) -> String {
        let shown = |(key, value): (&str, &[u8])| format!("{key}={}", String::from_utf8_lossy(value));
        data.entries(prefix, after).map(shown).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn keys_are_found_and_listed_in_order_of_their_bytes() {
        let data = data(&[
            ("b/2", "2"),
            ("a", ""),
            ("b/10", "10"),
            ("c", "c"),
            ("b/1", "1"),
            ("b", "b"),
            ("c", "d"),
        ]);
        assert_eq!(data.get("b/10"), Some(&b"10"[..]));
        assert_eq!(data.get("c"), Some(&b"c"[..]), "the first of two");
        assert_eq!(data.get("b/"), None);
        assert_eq!(listed(&data, "b/", None), "b/1=1 b/10=10 b/2=2");
        assert_eq!(listed(&data, "b/", Some("b/10")), "b/2=2");
        assert_eq!(listed(&data, "b/", Some("a")), "b/1=1 b/10=10 b/2=2");
        assert_eq!(listed(&data, "b/", Some("b/2")), "");
        assert_eq!(listed(&data, "", Some("b/2")), "c=c");
        assert_eq!(listed(&Data::default(), "", None), "");
    }

    #[test]
    fn layers_lie_upon_each_other_and_the_first_one_counts() {
        let (top, bottom) =
            (data(&[("a", "top"), ("c", "top")]), data(&[("a", "bottom"), ("b", "bottom"), ("d", "bottom")]));
        let both = Data::layers([top.layers, bottom.layers].concat());
        assert_eq!(both.get("a"), Some(&b"top"[..]));
        assert_eq!(both.get("b"), Some(&b"bottom"[..]));
        assert_eq!(both.get("e"), None);
        assert_eq!(listed(&both, "", None), "a=top b=bottom c=top d=bottom");
        assert_eq!(listed(&both, "", Some("a")), "b=bottom c=top d=bottom");
    }
}
