//! What a rule compares text with: exactly this, or everything that begins so ("refs/tags/v*").

use std::fmt;

/// Text, or the beginning of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    open: bool,
}

impl Pattern {
    /// Reads a pattern; a `*` may only stand at its end, and not alone: a rule that everything fits is no rule.
    pub(super) fn parse(written: &str) -> Result<Self, String> {
        let (text, open) = match written.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (written, false),
        };
        if text.is_empty() {
            return Err(format!("{written:?} fits everything or nothing; write what it has to be"));
        }
        if text.contains('*') {
            return Err(format!("{written:?}: \"*\" may only stand once, at the end"));
        }
        Ok(Self { text: text.to_owned(), open })
    }

    /// Like [`Self::parse`], for addresses: what is left open must begin behind somebody's name on the host, or
    /// "https://example.test/acme*" would also fit "https://example.test/acme-of-somebody-else".
    pub(super) fn parse_address(written: &str) -> Result<Self, String> {
        let pattern = Self::parse(written)?;
        let path = pattern.text.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
        let path = path.map_or("", |(_, path)| path);
        if pattern.open && (path.trim_matches('/').is_empty() || !(path.ends_with('/') || path.contains('@')))
        {
            let why = "\"*\" may only stand behind a whole name on that host, as in \"https://example.test/acme/*\"";
            return Err(format!("{written:?}: {why}, or it fits what is somebody else's"));
        }
        Ok(pattern)
    }

    /// With `beginning` in front, unless it is there.
    #[must_use]
    pub(super) fn beginning_with(self, beginning: &str) -> Self {
        if self.text.starts_with(beginning) {
            return self;
        }
        Self { text: format!("{beginning}{}", self.text), open: self.open }
    }

    #[must_use]
    pub fn fits(&self, text: &str) -> bool {
        if !self.open {
            return text == self.text;
        }
        // "acme/../other" begins like "acme/" and is somewhere else.
        text.starts_with(&self.text) && !text.contains("/..") && !text.contains('%')
    }

    /// Whether some text fits both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.open, other.open) {
            (false, false) => self.text == other.text,
            (true, false) => self.fits(&other.text),
            (false, true) => other.fits(&self.text),
            (true, true) => self.text.starts_with(&other.text) || other.text.starts_with(&self.text),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.open { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_only_at_the_end() {
        let tags = Pattern::parse("refs/tags/v*").unwrap();
        assert!(tags.fits("refs/tags/v3") && tags.fits("refs/tags/v"));
        assert!(
            !tags.fits("refs/tags/w3")
                && !tags.fits("refs/heads/v3")
                && !tags.fits("refs/tags/v/../../heads/x")
        );
        let exact = Pattern::parse("refs/tags/v3").unwrap();
        assert!(exact.fits("refs/tags/v3") && !exact.fits("refs/tags/v30"));
        for wrong in ["*", "", "a*b", "*a", "a**"] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_left_open_only_behind_what_belongs_to_somebody() {
        for right in [
            "https://example.test/acme/*",
            "https://example.test/a/w.yml@refs/tags/v*",
            "https://example.test/acme",
        ] {
            Pattern::parse_address(right).unwrap();
        }
        for wrong in [
            "https://example.test/acme*",
            "https://*",
            "https://example.test*",
            "someone@*",
            "https://a@*",
            "https://a/*",
        ] {
            assert!(Pattern::parse_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns_that_fit_the_same_are_found() {
        let overlap = |a: &str, b: &str| Pattern::parse(a).unwrap().overlaps(&Pattern::parse(b).unwrap());
        assert!(overlap("a", "a") && overlap("a*", "ab") && overlap("ab", "a*") && overlap("a*", "ab*"));
        assert!(!overlap("a", "b") && !overlap("ab*", "a") && !overlap("ab*", "ac*"));
    }
}
