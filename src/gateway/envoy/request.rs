//! What Envoy asks, as a question to a policy. What could mean two things is refused, not guessed.

mod attributes;

use std::net::IpAddr;

use bytes::Bytes;
use prost::Message;

use self::attributes::Named;
use super::messages::{AttributeContext, CheckRequest, Entry, HttpRequest, Peer};
use super::size;
use crate::decision::{self, Attribute, Header, Input, TraceContext};
use crate::gateway::verdict::{Code, Down};

/// Envoy's, and nobody else's: it takes it away from what a client sends.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
/// Most headers. A policy is given no more.
const HEADERS_MAX: usize = 1024;

/// A check, read and put in order.
#[derive(Debug)]
pub(super) struct Check {
    context: AttributeContext,
    http: HttpRequest,
    /// Without pseudo-headers. By name where Envoy gives them without an order, else in theirs.
    headers: Vec<Entry>,
    attributes: Vec<Named>,
}

impl Check {
    /// Takes a message apart.
    pub(super) fn read(message: Bytes) -> Result<Self, Down> {
        size::check(&message)?;
        let check = CheckRequest::decode(message)
            .map_err(|error| bad(format!("the check is no CheckRequest: {error}")))?;
        let mut context = check.attributes.unwrap_or_default();
        let request = context.request.take().unwrap_or_default();
        let mut http = request.http.ok_or_else(|| {
            bad("the check is about no HTTP request; only Envoy's HTTP filter can ask here")
        })?;
        let headers = headers(&mut http)?;
        sort(&mut context.context_extensions, "context_extensions")?;
        let mut check = Self { context, http, headers, attributes: Vec::new() };
        check.attributes = attributes::of(&check)?;
        // They say it now. What is left of a message is kept as long as its question is under way.
        check.context.metadata_context = None;
        check.context.route_metadata_context = None;
        Ok(check)
    }

    /// One of `context_extensions`: the proxy's own configuration.
    pub(super) fn extension(&self, key: &str) -> Option<&str> {
        let found = self.context.context_extensions.iter().find(|entry| entry.key == key.as_bytes());
        found.and_then(|entry| std::str::from_utf8(&entry.value).ok())
    }

    /// The value of a header that is there once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|entry| entry.key == name.as_bytes());
        match (found.next(), found.next()) {
            (Some(one), None) => std::str::from_utf8(&one.value).ok(),
            _ => None,
        }
    }

    /// The trace that the checked request belongs to.
    pub(super) fn trace(&self) -> Option<TraceContext> {
        self.header("traceparent")?.parse().ok()
    }

    /// The question. A body of more than `max_body` bytes is refused.
    pub(super) fn input(&self, max_body: usize) -> Result<Input<'_>, Down> {
        let Self { context, http, headers, attributes } = self;
        let method = text("method", &http.method)?;
        if method.is_empty() {
            return Err(bad("the check names no method"));
        }
        let host = text("host", &http.host)?;
        if headers.iter().any(|entry| entry.key == "host" && entry.value != http.host) {
            return Err(bad("the check names two hosts"));
        }
        let (path, query) = target(http)?;
        Ok(Input::Http(decision::HttpRequest {
            method,
            scheme: text("scheme", &http.scheme)?,
            host,
            path,
            query,
            headers: headers
                .iter()
                .map(|entry| Ok(Header { name: text("name of a header", &entry.key)?, value: &entry.value }))
                .collect::<Result<_, Down>>()?,
            body: body(http, max_body)?,
            source: peer("source", context.source.as_ref())?,
            destination: peer("destination", context.destination.as_ref())?,
            attributes: attributes.iter().map(|Named { name, value }| Attribute { name, value }).collect(),
        }))
    }
}

fn bad(why: impl Into<String>) -> Down {
    Down::new(Code::BadRequest, why)
}

fn text<'a>(what: &str, bytes: &'a Bytes) -> Result<&'a str, Down> {
    std::str::from_utf8(bytes).map_err(|_| bad(format!("the check's {what} is not UTF-8")))
}

/// What comes as a map comes without an order, so it gets one; and no key twice.
fn sort(entries: &mut [Entry], what: &str) -> Result<(), Down> {
    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    if entries.windows(2).any(|pair| matches!(pair, [a, b] if a.key == b.key)) {
        return Err(bad(format!("the check's {what} have a key twice")));
    }
    Ok(())
}

/// Takes the headers out of the request.
fn headers(http: &mut HttpRequest) -> Result<Vec<Entry>, Down> {
    let mut merged = std::mem::take(&mut http.headers);
    let lines = http.header_map.as_ref().map_or(0, |map| map.headers.len());
    if merged.len().max(lines) > HEADERS_MAX {
        return Err(Down::new(Code::TooLarge, format!("the check has more than {HEADERS_MAX} headers")));
    }
    let mut headers = match http.header_map.take() {
        None => {
            sort(&mut merged, "headers")?;
            merged
        }
        Some(_) if !merged.is_empty() => return Err(bad("the check has its headers in two forms")),
        Some(map) => {
            let mut lines = Vec::with_capacity(map.headers.len());
            for line in map.headers {
                let value = either("value of a header", line.raw_value, line.value)?;
                lines.push(Entry { key: line.key, value });
            }
            lines
        }
    };
    headers.retain(|entry| !entry.key.starts_with(b":"));
    match headers.iter().find(|entry| !is_name(&entry.key)) {
        None => Ok(headers),
        Some(_) => Err(bad("the check has a header whose name is none in lower case")),
    }
}

/// A token of RFC 9110 as HTTP/2 has it: what differs only in case would be two headers here and one elsewhere.
fn is_name(name: &[u8]) -> bool {
    let token =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(token)
}

/// Of two places for the same thing the one that is used.
fn either(what: &str, one: Bytes, other: Bytes) -> Result<Bytes, Down> {
    match (one.is_empty(), other.is_empty()) {
        (false, false) => Err(bad(format!("the check has the {what} in two places"))),
        (true, false) => Ok(other),
        (_, true) => Ok(one),
    }
}

/// Path and query, as they were sent: nothing is decoded.
fn target(http: &HttpRequest) -> Result<(&str, Option<&str>), Down> {
    let target = text("path", &http.path)?;
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match (query, text("query", &http.query)?) {
        (query, "") => Ok((path, query)),
        (None, elsewhere) => Ok((path, Some(elsewhere))),
        (Some(_), _) => Err(bad("the check has the query in two places")),
    }
}

/// Nothing and a body of no bytes are the same to Envoy.
fn body(http: &HttpRequest, max: usize) -> Result<Option<&[u8]>, Down> {
    let body = match (&http.raw_body, &http.body) {
        (raw, text) if raw.is_empty() => text,
        (raw, text) if text.is_empty() => raw,
        _ => return Err(bad("the check has the body in two places")),
    };
    match body.len() {
        0 => Ok(None),
        length if length > max => Err(Down::new(
            Code::TooLarge,
            format!("the body has {length} bytes, the listener's max_body is {max}"),
        )),
        _ => Ok(Some(body)),
    }
}

fn peer<'a>(which: &str, peer: Option<&'a Peer>) -> Result<decision::Peer<'a>, Down> {
    let Some(peer) = peer else { return Ok(decision::Peer::default()) };
    let mut end = decision::Peer {
        principal: Some(text("principal", &peer.principal)?).filter(|name| !name.is_empty()),
        ..decision::Peer::default()
    };
    let socket = peer.address.as_ref().and_then(|address| address.socket_address.as_ref());
    if let Some(socket) = socket {
        let written = text("address", &socket.address)?;
        // An interface's name or number belongs to the proxy's host, not to the address.
        let (address, _interface) = written.split_once('%').unwrap_or((written, ""));
        let address: IpAddr = address
            .parse()
            .map_err(|_| bad(format!("the check's {which} has an address that is neither IPv4 nor IPv6")))?;
        end.address = address.into();
        end.port = u16::try_from(socket.port_value)
            .map_err(|_| bad(format!("the check's {which} has a port above 65535")))?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests;
