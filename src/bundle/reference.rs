//! Where a bundle lies in a registry: `registry.example:5000/policies/gate:v3`, or `...@sha256:<hex>`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::artifact::Digest;

/// Longest text that is taken for a reference, bytes.
const REFERENCE_MAX: usize = 512;
/// Longest tag, bytes, by the distribution specification.
const TAG_MAX: usize = 128;

/// A registry, a repository there, and a tag or a digest or both. The digest wins.
///
/// The registry is always named: there is none that is meant when it is not.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "reference {text:?}: {why}; expected \"registry[:port]/repository:tag\" or \"...@sha256:<64 hex digits>\""
)]
pub struct InvalidReference {
    text: String,
    why: &'static str,
}

impl Reference {
    /// Host and port, as in a URL.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The host without its port, and without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        split_port(&self.registry).0.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether the registry is on this machine, by its address or as "localhost".
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let refuse = |why| InvalidReference { text: text.chars().take(120).collect(), why };
        if text.len() > REFERENCE_MAX {
            return Err(refuse("is longer than 512 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| refuse("has a digest that is none"))?))
            }
            None => (text, None),
        };
        let (registry, path) = rest.split_once('/').ok_or_else(|| refuse("names no registry"))?;
        check_registry(registry).map_err(refuse)?;
        let (repository, tag) = match path.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        if !repository.split('/').all(is_component) {
            return Err(refuse(
                "has a repository that may only have a-z, 0-9, and '.', '_', '-', '/' between them",
            ));
        }
        if !tag.is_none_or(is_tag) {
            return Err(refuse("has a tag that is none"));
        }
        if tag.is_none() && digest.is_none() {
            return Err(refuse("has neither tag nor digest"));
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = split_port(registry);
    if !port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0)) {
        return Err("has a port that is none");
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.split('.').all(|label| {
                    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
                    !label.is_empty()
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label.bytes().all(legal)
                })
        }
    };
    if !is_host {
        return Err("has a registry that is no host name or address");
    }
    // "policies/gate:v1" is a repository of some registry that everybody else calls the default.
    if bracketed.is_none() && port.is_none() && !host.contains('.') && host != "localhost" {
        return Err("names no registry");
    }
    Ok(())
}

/// `host:port`, where an IPv6 address is in brackets.
fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

/// Letters and digits, with separators between: '.', '_', "__" or any number of '-'.
fn is_component(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let starts = text.bytes().next().is_some_and(letter) && text.bytes().last().is_some_and(letter);
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    starts
        && separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Reference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_say_which_registry() {
        let digest = Digest::of(b"x");
        for good in [
            "localhost/gate:v1".to_owned(),
            "localhost:5000/a/b-c/d__e.f:V1.0_x-y".to_owned(),
            "[::1]:5000/gate:1".to_owned(),
            "registry.example/policies/gate:v3".to_owned(),
            format!("registry.example/policies/gate@{digest}"),
            format!("registry.example/policies/gate:v3@{digest}"),
        ] {
            assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        }
        let reference: Reference = "[::1]:5000/a/b:t".parse().unwrap();
        assert_eq!(
            (
                reference.host(),
                reference.registry(),
                reference.repository(),
                reference.tag(),
                reference.is_loopback()
            ),
            ("::1", "[::1]:5000", "a/b", Some("t"), true)
        );
        assert!(!"registry.example/a:b".parse::<Reference>().unwrap().is_loopback());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            "gate",
            "gate:v1",
            "policies/gate:v1",
            "localhost/gate",
            "localhost/:v1",
            "localhost//gate:v1",
            "localhost/../gate:v1",
            "localhost/gate:",
            "localhost/gate:v 1",
            "localhost/Gate:v1",
            "localhost/-a:v1",
            "localhost/a..b:v1",
            "localhost:x/a:v1",
            "localhost:0/a:v1",
            "https://h.example/a:v1",
            "u@h.example/a:v1",
            "h.example/a@sha256:00",
            "h.example/a?x=y:v1",
            "h.example/a%2fb:v1",
            "-h.example/a:b",
            "h..example/a:b",
            &format!("h.example/a:{}", "t".repeat(129)),
            &format!("h.example/{}:t", "a".repeat(600)),
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken for a reference");
        }
    }
}
