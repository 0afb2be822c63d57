//! What it is asked about: the request that a proxy holds back, out of the one by which it asks.
//!
//! Where each part stands is the listener's to say. A part that is missing, comes twice or is not what it should be is never
//! taken from elsewhere: whoever could choose where we look could choose what we see.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::verdict::Down;
use super::connection::Request;
use super::head::{authority, malformed, target_of, token};
use crate::decision::{Address, Header, HttpRequest, Peer, TraceContext};
use crate::wire::gateway::{HttpForm, Original};

/// What a policy is asked, and what the proxy said besides.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) request: HttpRequest<'a>,
    /// How long the proxy waits.
    pub(super) patience: Option<Duration>,
    pub(super) trace: Option<TraceContext>,
}

/// Headers that speak of the connection or the framing of the very request that has them.
pub(super) const OF_THE_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A part of the original request: the header it stands in, and what was found there.
#[derive(Debug)]
struct Part<'a> {
    header: &'static str,
    value: Option<&'a [u8]>,
}

impl<'a> Part<'a> {
    const fn of(header: &'static str) -> Self {
        Self { header, value: None }
    }

    fn needed(&self) -> Result<&'a [u8], Down> {
        self.value.ok_or_else(|| {
            malformed(format!("header {:?} is missing; this listener's proxy has to send it", self.header))
        })
    }
}

/// Reads `request` as `form` says. Headers that were for us, or for the hop, or are told otherwise, are not among those that
/// the policy sees; nor are those of `ours`.
pub(super) fn read<'a>(
    form: &HttpForm,
    request: Request<'a>,
    ours: impl Fn(&str) -> bool,
) -> Result<Asked<'a>, Down> {
    let Request { method, target, host, mut lines, body, began: _ } = request;
    let mut parts = match form.original {
        Original::Own { .. } => [""; 4].map(Part::of),
        Original::XOriginal => {
            ["x-original-method", "x-original-uri", "x-original-host", "x-original-proto"].map(Part::of)
        }
        Original::XOriginalUrl => ["x-original-method", "x-original-url", "", ""].map(Part::of),
        Original::XForwarded => {
            ["x-forwarded-method", "x-forwarded-uri", "x-forwarded-host", "x-forwarded-proto"].map(Part::of)
        }
    };
    let (mut client, mut patience) = (None, None);
    let (mut trace, mut traces) = (None, 0);
    let mut twice = None;
    lines.retain(|Header { name, value }| {
        let mut once = |place: &mut Option<&'a [u8]>| {
            if place.replace(*value).is_some() {
                twice = Some(*name);
            }
        };
        if let Some(part) = parts.iter_mut().find(|part| part.header == *name) {
            once(&mut part.value);
            return false;
        }
        if form.timeout_ms.as_deref() == Some(*name) {
            once(&mut patience);
            return false;
        }
        if form.client_address.as_deref() == Some(*name) {
            once(&mut client);
        }
        if *name == "traceparent" {
            traces += 1;
            trace = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        }
        *name != "host" && !OF_THE_HOP.contains(name) && !ours(name)
    });
    if let Some(name) = twice {
        return Err(malformed(format!("header {name:?} comes twice")));
    }
    let [as_method, as_uri, as_host, as_scheme] = &parts;
    let no_host = || malformed("the request names no host");
    let (method, scheme, host, target) = match &form.original {
        Original::Own { prefix } => {
            (method, "http", host.ok_or_else(no_host)?, without_prefix(target, prefix)?)
        }
        Original::XOriginalUrl => {
            let method = method_of(as_method)?;
            let (scheme, host, target) = parts_of_url(as_uri.needed()?)?;
            (method, scheme, host, target)
        }
        // All four are needed. Of one that a proxy may leave out, nobody can tell whether its client put it in.
        Original::XOriginal | Original::XForwarded => (
            method_of(as_method)?,
            scheme_of(as_scheme.needed()?)?,
            authority(as_host.header, as_host.needed()?)?,
            target_of(as_uri.header, as_uri.needed()?)?,
        ),
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let source = match &form.client_address {
        None => Peer::default(),
        Some(name) => peer(name, client)?,
    };
    let destination = Peer::default();
    let request = HttpRequest {
        method,
        scheme,
        host,
        path,
        query,
        headers: lines,
        body,
        source,
        destination,
        attributes: Vec::new(),
    };
    let patience = patience.map(milliseconds).transpose()?;
    // Of two, none is the caller's for sure. That costs a line in a trace, no decision.
    Ok(Asked { request, patience, trace: trace.filter(|_| traces == 1) })
}

fn method_of<'a>(part: &Part<'a>) -> Result<&'a str, Down> {
    token(part.header, part.needed()?)
}

/// One scheme; not a list of those that several proxies had.
fn scheme_of(value: &[u8]) -> Result<&str, Down> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    let text = std::str::from_utf8(value).ok();
    text.filter(|text| text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(legal))
        .ok_or_else(|| malformed("the original's scheme is not one, in lower case"))
}

/// Scheme, host and target of `https://shop.example:8443/a?b`. Whoever sends it has put it together of three parts, the
/// last two of them the client's: so each has to be what it would have to be alone, and the first slash parts them, since
/// none can be in a host.
fn parts_of_url(value: &[u8]) -> Result<(&str, &str, &str), Down> {
    let bad = |why| malformed(format!("header \"x-original-url\" {why}"));
    let text = std::str::from_utf8(value).map_err(|_| bad("is not UTF-8"))?;
    let (scheme, rest) = text
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .ok_or_else(|| bad("does not begin with http:// or https://"))?;
    let slash = rest.find('/').ok_or_else(|| bad("has no path behind its host"))?;
    let (host, target) = rest.split_at_checked(slash).unwrap_or_default();
    let host = authority("x-original-url", host.as_bytes())
        .map_err(|_| bad("has something else than one host between its scheme and its path"))?;
    Ok((scheme, host, target_of("the path in header \"x-original-url\"", target.as_bytes())?))
}

fn without_prefix<'a>(target: &'a str, prefix: &str) -> Result<&'a str, Down> {
    target
        .strip_prefix(prefix.trim_end_matches('/'))
        .filter(|rest| rest.starts_with('/'))
        .ok_or_else(|| malformed(format!("the path does not begin with this listener's prefix, {prefix:?}")))
}

/// The one address in a header, with or without a port. "unix:" is what nginx calls a client on a Unix socket.
fn peer(name: &str, value: Option<&[u8]>) -> Result<Peer<'static>, Down> {
    let value = value.ok_or_else(|| {
        malformed(format!(
            "header {name:?} is missing, in which this listener's proxy has to name its client"
        ))
    })?;
    let text = std::str::from_utf8(value).unwrap_or_default();
    if text == "unix:" {
        return Ok(Peer::default());
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let (ip, port) = match (text.parse(), text.parse::<SocketAddr>(), bare.map(str::parse)) {
        (Ok(ip), ..) => (ip, 0),
        (_, Ok(address), _) => (address.ip(), address.port()),
        (.., Some(Ok(ip))) => (IpAddr::V6(ip), 0),
        _ => {
            return Err(malformed(format!(
                "header {name:?} is not one address; which of several is the client would be a guess"
            )));
        }
    };
    // On a socket for both, an IPv4 client has an IPv6 address that no rule about IPv4 would fit.
    let address = match ip.to_canonical() {
        IpAddr::V4(ip) => Address::Ipv4(ip.octets()),
        IpAddr::V6(ip) => Address::Ipv6(ip.octets()),
    };
    Ok(Peer { address, port, principal: None })
}

fn milliseconds(value: &[u8]) -> Result<Duration, Down> {
    let text = std::str::from_utf8(value).ok();
    text.filter(|text| (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .map(Duration::from_millis)
        .ok_or_else(|| malformed("the proxy's time limit is not a number of milliseconds"))
}
