//! Where spans go.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where OTLP over HTTP has traces by itself.
const DEFAULT_PATH: &str = "/v1/traces";
/// Longest path, bytes.
const PATH_MAX: usize = 256;

/// A collector on plain HTTP: an address and a port as numbers, so that nobody has to be asked for a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Collector {
    address: SocketAddr,
    path: Box<str>,
}

/// Text that is no collector's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "collector {text:?}: {why}; expected something like \"http://127.0.0.1:4318/v1/traces\", with an IP address and a port"
)]
pub struct InvalidCollector {
    text: String,
    why: &'static str,
}

impl Collector {
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for Collector {
    type Err = InvalidCollector;

    fn from_str(text: &str) -> Result<Self, InvalidCollector> {
        let refuse = |why| InvalidCollector { text: text.chars().take(80).collect(), why };
        let rest = text.strip_prefix("http://").ok_or_else(|| refuse("is not http"))?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let address: SocketAddr =
            authority.parse().map_err(|_| refuse("is not at an IP address and a port"))?;
        if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(refuse("is at no address or port that one can connect to"));
        }
        let path = if ["", "/"].contains(&path) { DEFAULT_PATH } else { path };
        // It goes into a request as it is.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%".contains(&b);
        if path.len() > PATH_MAX || !path.bytes().all(plain) {
            return Err(refuse("has a path with something else than a-z A-Z 0-9 / - . _ ~ %"));
        }
        Ok(Self { address, path: path.into() })
    }
}

impl TryFrom<String> for Collector {
    type Error = InvalidCollector;

    fn try_from(text: String) -> Result<Self, InvalidCollector> {
        text.parse()
    }
}

impl From<Collector> for String {
    fn from(collector: Collector) -> Self {
        collector.to_string()
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_an_address_a_port_and_a_path() {
        for (text, whole) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://192.0.2.7:80/otlp/v1/traces", "http://192.0.2.7:80/otlp/v1/traces"),
        ] {
            assert_eq!(text.parse::<Collector>().unwrap().to_string(), whole);
        }
        for bad in [
            "",
            "https://127.0.0.1:4318",
            "http://localhost:4318",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "http://0.0.0.0:4318",
            "http://127.0.0.1:4318/a b",
            "http://127.0.0.1:4318/a\r\nx: y",
            "http://127.0.0.1:4318/a?b",
            "http://me@127.0.0.1:4318",
            "http://127.0.0.1:4318/é",
        ] {
            assert!(bad.parse::<Collector>().is_err(), "{bad:?} was taken");
        }
    }
}
