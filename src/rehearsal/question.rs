//! What is asked, as people write it in JSON or on a command line; owned, so that an [`Input`] can borrow from it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::text::Bytes;
use crate::decision::{Address, Attribute, Header, HttpRequest, Input, Peer};

/// Scheme, host and path of a request of which nothing else is said.
const SCHEME: &str = "https";
const HOST: &str = "api.example.test";
const PATH: &str = "/";

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
/// Instead of `url` there may be its parts: `scheme`, `host`, `path`, `query`. The method is GET where none is said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there are as many as somebody wrote by hand")]
pub enum Question {
    Http(Http),
    Opaque(Opaque),
}

/// One HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    #[serde(default = "get")]
    pub method: String,
    pub url: Option<Url>,
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub path: Option<String>,
    pub query: Option<String>,
    #[serde(default)]
    pub headers: Vec<HeaderLines>,
    pub body: Option<Bytes>,
    #[serde(default)]
    pub source: End,
    #[serde(default)]
    pub destination: End,
    /// What the proxy says beyond HTTP, in its order.
    #[serde(default)]
    pub attributes: Vec<(String, String)>,
}

/// Bytes that only the policy understands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "OpaqueText")]
pub struct Opaque {
    pub content_type: String,
    pub bytes: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OpaqueText {
    #[serde(default)]
    content_type: String,
    bytes: Option<Bytes>,
    text: Option<String>,
    hex: Option<String>,
}

impl TryFrom<OpaqueText> for Opaque {
    type Error = &'static str;

    fn try_from(read: OpaqueText) -> Result<Self, Self::Error> {
        let bytes = match (read.bytes, read.text, read.hex) {
            (Some(bytes), None, None) => bytes,
            (None, Some(text), None) => Bytes::from(text.as_str()),
            (None, None, Some(digits)) => Bytes::from_hex(&digits)?,
            _ => return Err("of \"bytes\", \"text\" and \"hex\" there has to be one"),
        };
        Ok(Self { content_type: read.content_type, bytes })
    }
}

/// A header, in one line or in many that are the same. As JSON `["name", "value"]`, or an object with `name`, `value` (or
/// `hex`), `repeat` (the value so many times) and `lines` (so many lines).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderLines {
    pub name: String,
    pub value: Bytes,
    pub lines: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderObject {
    name: String,
    value: Option<String>,
    hex: Option<String>,
    repeat: Option<usize>,
    lines: Option<usize>,
}

impl HeaderLines {
    #[must_use]
    pub fn new(name: String, value: String) -> Self {
        Self { name, value: Bytes(value.into_bytes()), lines: 1 }
    }
}

impl TryFrom<HeaderObject> for HeaderLines {
    type Error = &'static str;

    fn try_from(read: HeaderObject) -> Result<Self, Self::Error> {
        let value = match (read.value, read.hex) {
            (Some(_), Some(_)) => return Err("a header has a \"value\" or \"hex\", not both"),
            (value, None) => Bytes(value.unwrap_or_default().into_bytes()),
            (None, Some(digits)) => Bytes::from_hex(&digits)?,
        };
        // More than any question may have is told by its length later; this keeps a typing error from filling memory.
        let repeat = read.repeat.unwrap_or(1);
        if value.0.len().saturating_mul(repeat) > super::QUESTION_MAX || read.lines > Some(1 << 16) {
            return Err("a header is longer than a question may be");
        }
        Ok(Self { name: read.name, value: Bytes(value.0.repeat(repeat)), lines: read.lines.unwrap_or(1) })
    }
}

impl<'de> Deserialize<'de> for HeaderLines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = HeaderLines;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a header: [\"name\", \"value\"], or an object with \"name\" and \"value\"")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<HeaderLines, A::Error> {
                let missing = |n| de::Error::invalid_length(n, &self);
                let name = parts.next_element()?.ok_or_else(|| missing(0))?;
                let value: Bytes = parts.next_element()?.ok_or_else(|| missing(1))?;
                match parts.next_element::<de::IgnoredAny>()? {
                    None => Ok(HeaderLines { name, value, lines: 1 }),
                    Some(_) => Err(missing(3)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HeaderLines, A::Error> {
                let read = HeaderObject::deserialize(de::value::MapAccessDeserializer::new(map))?;
                HeaderLines::try_from(read).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

/// One end of the connection the question is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub address: Option<EndAddress>,
    /// If it is not in the address already.
    pub port: Option<u16>,
    pub principal: Option<String>,
}

/// `IP` or `IP:port`, IPv6 with a port in brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct EndAddress {
    address: IpAddr,
    port: u16,
}

/// Text that is no [`EndAddress`].
#[derive(Debug, thiserror::Error)]
#[error("address {0:?}: expected an IP address, or one with a port like 192.0.2.7:443 or [2001:db8::7]:443")]
pub struct InvalidAddress(String);

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

/// `scheme://host/path?query`, split where a policy wants it split.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: Option<String>,
}

/// Text that is no [`Url`].
#[derive(Debug, thiserror::Error)]
#[error("url {url:?}: {why}; expected one like https://shop.example/cart?id=7")]
pub struct InvalidUrl {
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
            None => (host_and_path, PATH),
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

impl Question {
    /// Whether it says itself where it goes, and not only this module's example host.
    #[must_use]
    pub fn is_addressed(&self) -> bool {
        match self {
            Self::Http(http) => http.url.is_some() || http.host.is_some(),
            Self::Opaque(_) => true,
        }
    }

    #[must_use]
    pub fn input(&self) -> Input<'_> {
        let http = match self {
            Self::Opaque(Opaque { content_type, bytes }) => {
                return Input::Opaque { content_type, bytes: &bytes.0 };
            }
            Self::Http(http) => http,
        };
        let (scheme, host, path, query) = match &http.url {
            Some(url) => (url.scheme.as_str(), url.host.as_str(), url.path.as_str(), url.query.as_deref()),
            None => (SCHEME, HOST, PATH, None),
        };
        let header = |lines: &HeaderLines| lines.lines;
        let headers = http.headers.iter().flat_map(|lines| {
            let HeaderLines { name, value, .. } = lines;
            std::iter::repeat_with(move || Header { name, value: &value.0 }).take(header(lines))
        });
        Input::Http(HttpRequest {
            method: &http.method,
            scheme: http.scheme.as_deref().unwrap_or(scheme),
            host: http.host.as_deref().unwrap_or(host),
            path: http.path.as_deref().unwrap_or(path),
            query: http.query.as_deref().or(query),
            headers: headers.collect(),
            body: http.body.as_ref().map(|body| body.0.as_slice()),
            source: http.source.peer(),
            destination: http.destination.peer(),
            attributes: http.attributes.iter().map(|(name, value)| Attribute { name, value }).collect(),
        })
    }
}

/// A question that was asked, as JSON that reads as the same question.
#[must_use]
pub(super) fn as_json(input: &Input<'_>) -> Value {
    let bytes = |bytes: &[u8]| json!(Bytes(bytes.to_vec()));
    let http = match input {
        Input::Opaque { content_type, bytes: content } => {
            let bytes = Bytes(content.to_vec()).as_object();
            return json!({ "opaque": { "content_type": content_type, "bytes": bytes } });
        }
        Input::Http(http) => http,
    };
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("method", json!(http.method));
    put("scheme", json!(http.scheme));
    put("host", json!(http.host));
    put("path", json!(http.path));
    if let Some(query) = http.query {
        put("query", json!(query));
    }
    let headers: Vec<Value> =
        http.headers.iter().map(|header| json!([header.name, bytes(header.value)])).collect();
    put("headers", json!(headers));
    if let Some(body) = http.body {
        put("body", Bytes(body.to_vec()).as_object());
    }
    for (name, peer) in [("source", &http.source), ("destination", &http.destination)] {
        if *peer != Peer::default() {
            put(name, end_as_json(peer));
        }
    }
    if !http.attributes.is_empty() {
        let attributes = http.attributes.iter().map(|one| [one.name, one.value]);
        object.insert("attributes".to_owned(), json!(attributes.collect::<Vec<_>>()));
    }
    json!({ "http": object })
}

fn end_as_json(peer: &Peer<'_>) -> Value {
    #[derive(Serialize)]
    struct Written<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        address: Option<IpAddr>,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none")]
        principal: Option<&'a str>,
    }
    let address = match peer.address {
        Address::Unknown => None,
        Address::Ipv4(bytes) => Some(IpAddr::from(bytes)),
        Address::Ipv6(bytes) => Some(IpAddr::from(bytes)),
    };
    let port = Some(peer.port).filter(|port| *port != 0);
    json!(Written { address, port, principal: peer.principal })
}

impl End {
    fn peer(&self) -> Peer<'_> {
        Peer {
            address: self.address.map(|end| end.address.into()).unwrap_or_default(),
            port: self.port.unwrap_or_else(|| self.address.map_or(0, |end| end.port)),
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

    #[test]
    fn json_becomes_the_input_it_says() {
        let json = r#"{"http": {"method": "POST", "url": "HTTPS://api.acme.example:8443/v1/orders?page=2#top",
            "headers": [["a", "1"], {"name": "a", "value": "2", "repeat": 2, "lines": 2}], "body": {"hex": "00ff"},
            "source": {"address": "[2001:db8::7]:50123", "principal": "shop"},
            "destination": {"address": "192.0.2.7", "port": 80}}}"#;
        let question: Question = serde_json::from_str(json).unwrap();
        let Input::Http(http) = question.input() else { panic!("not http") };
        assert_eq!(
            (http.method, http.scheme, http.host, http.path, http.query),
            ("POST", "https", "api.acme.example:8443", "/v1/orders", Some("page=2"))
        );
        assert_eq!(
            http.headers.iter().map(|h| (h.name, h.value)).collect::<Vec<_>>(),
            [("a", b"1".as_slice()), ("a", b"22"), ("a", b"22")]
        );
        assert_eq!(http.body, Some([0, 0xff].as_slice()));
        assert_eq!((http.source.port, http.source.principal), (50123, Some("shop")));
        assert_eq!((http.destination.address, http.destination.port), (Address::Ipv4([192, 0, 2, 7]), 80));
        for opaque in [
            r#"{"opaque": {"content_type": "x/y", "bytes": {"text": "hi"}}}"#,
            r#"{"opaque": {"content_type": "x/y", "text": "hi"}}"#,
            r#"{"opaque": {"content_type": "x/y", "hex": "6869"}}"#,
        ] {
            let opaque: Question = serde_json::from_str(opaque).unwrap();
            assert_eq!(opaque.input(), Input::Opaque { content_type: "x/y", bytes: b"hi" });
        }
    }

    #[test]
    fn what_was_asked_reads_as_the_same_question() {
        for json in [
            r#"{"http": {"url": "http://a/b?", "headers": [["a", {"hex": "ff0a"}], ["b", "c"]], "body": {"text": ""}}}"#,
            r#"{"http": {"path": "/x", "source": {"address": "::1", "port": 9, "principal": "p"}, "attributes": [["a", "b"], ["a", "c"]]}}"#,
            r#"{"opaque": {"bytes": {"hex": "ff"}}}"#,
        ] {
            let question: Question = serde_json::from_str(json).unwrap();
            let again: Question = serde_json::from_value(as_json(&question.input())).unwrap();
            assert_eq!(again.input(), question.input(), "{json}");
        }
    }

    #[test]
    fn json_of_another_shape_is_refused() {
        for bad in [
            "{}",
            r#"{"http": {"url": "https://a/", "headres": []}}"#,
            r#"{"http": {"url": "https://a/", "headers": [["a"]]}}"#,
            r#"{"http": {"url": "https://a/", "headers": [["a", "b", "c"]]}}"#,
            r#"{"http": {"url": "https://a/", "headers": [{"name": "a", "value": "b", "hex": ""}]}}"#,
            r#"{"http": {"url": "https://a/", "headers": [{"name": "a", "value": "b", "repeat": 99999999}]}}"#,
            r#"{"http": {"url": "https://a/", "source": {"address": "here"}}}"#,
            r#"{"opaque": {"bytes": {"hex": "0"}}}"#,
            r#"{"opaque": {"text": "a", "hex": "00"}}"#,
            r#"{"opaque": {}}"#,
        ] {
            assert!(serde_json::from_str::<Question>(bad).is_err(), "{bad} was taken");
        }
        assert!(!serde_json::from_str::<Question>(r#"{"http": {"path": "/a"}}"#).unwrap().is_addressed());
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
