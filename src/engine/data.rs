//! What the `data` interface reads: keys and values that do not change while anybody reads them.

/// A snapshot, or several that a policy's manifest names.
#[derive(Debug, Default)]
pub struct Data {
    /// Sorted by key, each key once.
    entries: Vec<(String, Vec<u8>)>,
}

impl Data {
    /// Of any entries; of those with the same key the first counts.
    #[must_use]
    pub fn of(mut entries: Vec<(String, Vec<u8>)>) -> Self {
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries.dedup_by(|(one, _), (other, _)| one == other);
        Self { entries }
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let at = self.entries.binary_search_by(|(one, _)| one.as_str().cmp(key)).ok()?;
        self.entries.get(at).map(|(_, value)| value.as_slice())
    }

    /// In the order of the keys' bytes: those that start with `prefix` and come after `after`.
    pub fn entries<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let first = self.entries.partition_point(|(key, _)| {
            key.as_str() < prefix || after.is_some_and(|after| key.as_str() <= after)
        });
        let rest = self.entries.get(first..).unwrap_or_default().iter();
        rest.take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.as_str(), value.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_listed_in_order_of_their_bytes() {
        let entry = |key: &str| (key.to_owned(), key.as_bytes().to_vec());
        let data = Data::of(["b/2", "a", "b/10", "c", "b/1", "b"].map(entry).to_vec());
        assert_eq!(data.get("b/10"), Some(&b"b/10"[..]));
        assert_eq!(data.get("b/"), None);
        let listed =
            |prefix, after| data.entries(prefix, after).map(|(key, _)| key).collect::<Vec<_>>().join(" ");
        assert_eq!(listed("b/", None), "b/1 b/10 b/2");
        assert_eq!(listed("b/", Some("b/10")), "b/2");
        assert_eq!(listed("b/", Some("a")), "b/1 b/10 b/2");
        assert_eq!(listed("b/", Some("b/2")), "");
        assert_eq!(listed("", Some("b/2")), "c");
    }
}
