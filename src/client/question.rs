//! Questions put together piece by piece; they borrow everything.

use std::net::{IpAddr, SocketAddr};

use crate::decision::{Address, Attribute, Header, HttpRequest, Input, Peer};

/// Builds an [`Input`] without naming every field of it. Where all is at hand, an `Input` literal does as well.
///
/// ```
/// use portcullis::client::Question;
///
/// let question = Question::http("POST", "https", "api.acme.example", "/v1/orders")
///     .header("content-type", b"application/json")
///     .body(br#"{"item":7}"#)
///     .source("[2001:db8::7]:50123".parse()?)
///     .source_principal("spiffe://acme.example/shop");
/// # let _ = question.input();
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question<'a>(Input<'a>);

impl<'a> Question<'a> {
    /// About an HTTP request; `path` is without the query.
    #[must_use]
    pub fn http(method: &'a str, scheme: &'a str, host: &'a str, path: &'a str) -> Self {
        Self(Input::Http(HttpRequest {
            method,
            scheme,
            host,
            path,
            query: None,
            headers: Vec::new(),
            body: None,
            source: Peer::default(),
            destination: Peer::default(),
            attributes: Vec::new(),
        }))
    }

    /// About bytes that only the policy understands. The methods below do nothing to such a question.
    #[must_use]
    pub fn opaque(content_type: &'a str, bytes: &'a [u8]) -> Self {
        Self(Input::Opaque { content_type, bytes })
    }

    /// Without the question mark.
    #[must_use]
    pub fn query(self, query: &'a str) -> Self {
        self.with(|http| http.query = Some(query))
    }

    /// Adds one header line.
    #[must_use]
    pub fn header(self, name: &'a str, value: &'a [u8]) -> Self {
        self.with(|http| http.headers.push(Header { name, value }))
    }

    #[must_use]
    pub fn body(self, body: &'a [u8]) -> Self {
        self.with(|http| http.body = Some(body))
    }

    /// Where the request came from.
    #[must_use]
    pub fn source(self, source: SocketAddr) -> Self {
        self.with(|http| (http.source.address, http.source.port) = (source.ip().into(), source.port()))
    }

    /// Who the proxy has authenticated there.
    #[must_use]
    pub fn source_principal(self, principal: &'a str) -> Self {
        self.with(|http| http.source.principal = Some(principal))
    }

    /// Where it goes.
    #[must_use]
    pub fn destination(self, destination: SocketAddr) -> Self {
        self.with(|http| {
            (http.destination.address, http.destination.port) = (destination.ip().into(), destination.port());
        })
    }

    #[must_use]
    pub fn destination_principal(self, principal: &'a str) -> Self {
        self.with(|http| http.destination.principal = Some(principal))
    }

    /// What the proxy knows beyond HTTP: "tls.sni", "route.name".
    #[must_use]
    pub fn attribute(self, name: &'a str, value: &'a str) -> Self {
        self.with(|http| http.attributes.push(Attribute { name, value }))
    }

    /// What the clients take.
    #[must_use]
    pub fn input(&self) -> &Input<'a> {
        &self.0
    }

    fn with(mut self, change: impl FnOnce(&mut HttpRequest<'a>)) -> Self {
        if let Input::Http(http) = &mut self.0 {
            change(http);
        }
        self
    }
}

impl<'a> From<Question<'a>> for Input<'a> {
    fn from(question: Question<'a>) -> Self {
        question.0
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::Ipv4(v4.octets()),
            IpAddr::V6(v6) => Self::Ipv6(v6.octets()),
        }
    }
}
