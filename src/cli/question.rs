//! The question of `portcullis decide`, from flags or from JSON; owned, so that an [`Input`] can borrow from it.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::decision::{Attribute, Header, HttpRequest, Input, Peer};

/// What is asked. As JSON, an object with one key:
///
/// ```json
/// {"http": {"method": "POST", "url": "https://api.acme.example/v1/orders?page=2",
///           "headers": [["content-type", "application/json"]], "body": {"text": "{}"},
///           "source": {"address": "192.0.2.7:50123", "principal": "spiffe://acme.example/shop"},
///           "destination": {"address": "10.0.0.1:443"},
///           "attributes": [["tls.sni", "api.acme.example"]]}}
/// {"opaque": {"content_type": "application/cbor", "bytes": {"hex": "a10102"}}}
/// ```
///
/// Of `http` only `url` has to be there; the method is GET without it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one in a run")]
pub(super) enum OwnedQuestion {
    Http(Http),
    Opaque(Opaque),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    #[serde(default = "get")]
    pub(super) method: String,
    pub(super) url: Url,
    #[serde(default)]
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<Payload>,
    #[serde(default)]
    pub(super) source: End,
    #[serde(default)]
    pub(super) destination: End,
    #[serde(default)]
    pub(super) attributes: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Opaque {
    #[serde(default)]
    pub(super) content_type: String,
    pub(super) bytes: Payload,
}

/// One end of the connection the question is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    pub(super) address: Option<EndAddress>,
    pub(super) principal: Option<String>,
}

/// Bytes, in JSON as text or as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PayloadText")]
pub(super) struct Payload(pub(super) Vec<u8>);

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PayloadText {
    Text(String),
    Hex(String),
}

impl TryFrom<PayloadText> for Payload {
    type Error = hex::FromHexError;

    fn try_from(payload: PayloadText) -> Result<Self, hex::FromHexError> {
        match payload {
            PayloadText::Text(text) => Ok(Self(text.into_bytes())),
            PayloadText::Hex(digits) => hex::decode(digits).map(Self),
        }
    }
}

/// `IP` or `IP:port`, IPv6 with a port in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct EndAddress {
    address: IpAddr,
    port: u16,
}

/// Text that is no [`EndAddress`].
#[derive(Debug, thiserror::Error)]
#[error("address {0:?}: expected an IP address, or one with a port like 192.0.2.7:443 or [2001:db8::7]:443")]
pub(super) struct InvalidAddress(String);

impl std::str::FromStr for EndAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { address, port: 0 });
        }
        match text.parse::<SocketAddr>() {
            Ok(socket) => Ok(Self { address: socket.ip(), port: socket.port() }),
            Err(_) => Err(InvalidAddress(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for EndAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

/// A URL taken apart, nothing in it decoded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Url {
    scheme: String,
    host: String,
    path: String,
    query: Option<String>,
}

/// Text that is no [`Url`].
#[derive(Debug, thiserror::Error)]
#[error("url {url:?}: {why}; expected one like https://api.acme.example/v1/orders?page=2")]
pub(super) struct InvalidUrl {
    url: String,
    why: &'static str,
}

impl std::str::FromStr for Url {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let refuse = |why| Err(InvalidUrl { url: url.chars().take(80).collect(), why });
        let Some((scheme, rest)) = url.split_once("://") else { return refuse("has no scheme") };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(legal) {
            return refuse("has no scheme");
        }
        if rest.contains(|c: char| c.is_ascii_control() || c == ' ') {
            return refuse("has a space or a control character in it");
        }
        // What comes after '#' never leaves a browser.
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (host_and_path, query) = match rest.split_once('?') {
            Some((before, query)) => (before, Some(query.to_owned())),
            None => (rest, None),
        };
        let (host, path) = match host_and_path.find('/') {
            Some(slash) => host_and_path.split_at(slash),
            None => (host_and_path, "/"),
        };
        if host.is_empty() {
            return refuse("has no host");
        }
        if host.contains('@') {
            return refuse("has a user in it, which no request carries");
        }
        Ok(Self { scheme: scheme.to_ascii_lowercase(), host: host.to_owned(), path: path.to_owned(), query })
    }
}

impl TryFrom<String> for Url {
    type Error = InvalidUrl;

    fn try_from(url: String) -> Result<Self, InvalidUrl> {
        url.parse()
    }
}

impl OwnedQuestion {
    pub(super) fn input(&self) -> Input<'_> {
        match self {
            Self::Http(http) => Input::Http(HttpRequest {
                method: &http.method,
                scheme: &http.url.scheme,
                host: &http.url.host,
                path: &http.url.path,
                query: http.url.query.as_deref(),
                headers: http
                    .headers
                    .iter()
                    .map(|(name, value)| Header { name, value: value.as_bytes() })
                    .collect(),
                body: http.body.as_ref().map(|body| body.0.as_slice()),
                source: http.source.peer(),
                destination: http.destination.peer(),
                attributes: http.attributes.iter().map(|(name, value)| Attribute { name, value }).collect(),
            }),
            Self::Opaque(opaque) => {
                Input::Opaque { content_type: &opaque.content_type, bytes: &opaque.bytes.0 }
            }
        }
    }
}

impl End {
    fn peer(&self) -> Peer<'_> {
        Peer {
            address: self.address.map(|end| end.address.into()).unwrap_or_default(),
            port: self.address.map_or(0, |end| end.port),
            principal: self.principal.as_deref(),
        }
    }
}

fn get() -> String {
    "GET".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Address;

    #[test]
    fn json_becomes_the_input_it_says() {
        let json = r#"{"http": {"method": "POST", "url": "HTTPS://api.acme.example:8443/v1/orders?page=2#top",
            "headers": [["a", "1"], ["a", "2"]], "body": {"hex": "00ff"},
            "source": {"address": "[2001:db8::7]:50123", "principal": "shop"},
            "destination": {"address": "192.0.2.7"}}}"#;
        let question: OwnedQuestion = serde_json::from_str(json).unwrap();
        let Input::Http(http) = question.input() else { panic!("not http") };
        assert_eq!(
            (http.method, http.scheme, http.host, http.path, http.query),
            ("POST", "https", "api.acme.example:8443", "/v1/orders", Some("page=2"))
        );
        assert_eq!(
            http.headers.iter().map(|h| (h.name, h.value)).collect::<Vec<_>>(),
            [("a", b"1".as_slice()), ("a", b"2")]
        );
        assert_eq!(http.body, Some([0, 0xff].as_slice()));
        assert_eq!((http.source.port, http.source.principal), (50123, Some("shop")));
        assert_eq!(http.destination.address, Address::Ipv4([192, 0, 2, 7]));
        let opaque: OwnedQuestion =
            serde_json::from_str(r#"{"opaque": {"content_type": "x/y", "bytes": {"text": "hi"}}}"#).unwrap();
        assert_eq!(opaque.input(), Input::Opaque { content_type: "x/y", bytes: b"hi" });
    }

    #[test]
    fn json_of_another_shape_is_refused() {
        for bad in [
            "{}",
            r#"{"http": {}}"#,
            r#"{"http": {"url": "https://a/", "headres": []}}"#,
            r#"{"http": {"url": "https://a/", "source": {"address": "here"}}}"#,
            r#"{"opaque": {"bytes": {"hex": "0"}}}"#,
            r#"{"opaque": {"bytes": "hi"}}"#,
        ] {
            assert!(serde_json::from_str::<OwnedQuestion>(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn urls_without_a_path_ask_for_the_root() {
        let url: Url = "http://a?b".parse().unwrap();
        assert_eq!((url.path.as_str(), url.query.as_deref()), ("/", Some("b")));
        let url: Url = "http://a/?".parse().unwrap();
        assert_eq!((url.path.as_str(), url.query.as_deref()), ("/", Some("")));
        for bad in
            ["", "a/b", "://a", "1a://b", "http://", "http:///a", "http://u@a/", "http://a/ b", "http://a/\n"]
        {
            assert!(bad.parse::<Url>().is_err(), "{bad:?} was taken");
        }
    }
}
