//! From a NOTIFY's arguments to what a policy is asked.
//!
//! Names that mean something here mean one thing, and come once: HAProxy's configuration says what each of them is made of.
//! What cannot be read as what its name says is never left out instead, for a policy that does not see a header would decide
//! as if it was not sent.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::from_utf8;
use std::time::Duration;

use super::arguments::{Argument, Arguments};
use super::typed::{Reader, Typed};
use crate::decision::{Address, Attribute, Header, HttpRequest, Input, Peer, TraceContext};
use crate::gateway::desk::Terms;
use crate::gateway::http::is_token;
use crate::gateway::verdict::{Code, Down};

/// Most headers. A policy is given no more.
const HEADERS_MAX: usize = 1024;
/// Most attributes, likewise.
const ATTRIBUTES_MAX: usize = 256;

/// How a header that is to be changed is told, which HAProxy's configuration decides ("headers_as").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum HeadersAs {
    /// One variable for each.
    #[default]
    Variables,
    /// All in one variable for each kind of change, in the form of `req.hdrs_bin`.
    Lists,
}

/// Names in lower case, and values.
type Headers<'a> = Vec<(Cow<'a, str>, &'a [u8])>;

/// What the arguments ask.
#[derive(Debug, Clone)]
pub(super) struct Asked<'a> {
    method: &'a str,
    scheme: &'a str,
    host: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: Headers<'a>,
    body: Option<&'a [u8]>,
    source: Peer<'a>,
    destination: Peer<'a>,
    attributes: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) terms: Terms,
}

/// The arguments by what they mean.
#[derive(Debug, Default)]
struct Known<'a> {
    method: Option<&'a str>,
    scheme: Option<&'a str>,
    host: Option<&'a str>,
    path: Option<&'a str>,
    query: Option<&'a str>,
    headers: Option<Headers<'a>>,
    body: Option<&'a [u8]>,
    source: [Option<Argument<'a>>; 3],
    destination: [Option<Argument<'a>>; 3],
    timeout_ms: Option<u64>,
    attributes: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> Asked<'a> {
    /// `max_body` is in bytes.
    pub(super) fn read(arguments: &Arguments<'a>, max_body: u32) -> Result<Self, Down> {
        let known = Known::read(arguments, max_body)?;
        let method = known.method.filter(|method| !method.is_empty()).ok_or_else(|| missing("method"))?;
        let path = known.path.ok_or_else(|| missing("path"))?;
        if !path.starts_with('/') || path.contains(['?', '#']) {
            return Err(bad(
                "path: it has to begin with \"/\" and end before any \"?\"; use HAProxy's path, not url",
            ));
        }
        match (known.body, &known.headers) {
            (None, _) => {}
            (Some(body), Some(headers)) => whole(body, headers)?,
            (Some(_), None) => {
                return Err(bad("body: without the headers nobody can tell whether it is all of it; send \
                                hdrs=req.hdrs_bin too"));
            }
        }
        let headers = known.headers.unwrap_or_default();
        let host = match (known.host, only(&headers, "host")?) {
            (Some(host), Some(header)) if !host.as_bytes().eq_ignore_ascii_case(header) => {
                return Err(bad("host: it is not the one that hdrs has; send hdrs alone"));
            }
            (Some(host), _) => host,
            (None, Some(host)) => text("host", host)?,
            (None, None) => "",
        };
        let trace = only(&headers, "traceparent").ok().flatten();
        let trace = trace.and_then(|trace| from_utf8(trace).ok()?.parse::<TraceContext>().ok());
        Ok(Self {
            method,
            scheme: known.scheme.unwrap_or("http"),
            host,
            path,
            query: known.query,
            headers,
            body: known.body,
            source: peer(known.source)?,
            destination: peer(known.destination)?,
            attributes: known.attributes,
            terms: Terms { within: known.timeout_ms.map(Duration::from_millis), trace },
        })
    }

    pub(super) fn input(&self) -> Input<'_> {
        let headers = self.headers.iter().map(|(name, value)| Header { name, value });
        let attributes = self.attributes.iter();
        Input::Http(HttpRequest {
            method: self.method,
            scheme: self.scheme,
            host: self.host,
            path: self.path,
            query: self.query,
            headers: headers.collect(),
            body: self.body,
            source: self.source.clone(),
            destination: self.destination.clone(),
            attributes: attributes.map(|(name, value)| Attribute { name, value }).collect(),
        })
    }
}

impl HeadersAs {
    /// Read by itself, so that what is closed for another reason is told in the form that is expected.
    pub(super) fn read(arguments: &Arguments<'_>) -> Result<Self, Down> {
        if arguments.iter().all(|argument| argument.name != "headers_as") {
            return Ok(Self::default());
        }
        match arguments.only("headers_as") {
            Some("variables") => Ok(Self::Variables),
            Some("lists") => Ok(Self::Lists),
            _ => Err(bad("headers_as: it has to be \"variables\" or \"lists\", once")),
        }
    }
}

impl<'a> Known<'a> {
    fn read(arguments: &Arguments<'a>, max_body: u32) -> Result<Self, Down> {
        let mut known = Self::default();
        let mut sni = None;
        for argument in arguments.iter() {
            let Argument { name, value } = argument;
            match name {
                "" => return Err(bad("an argument without a name: write args name=expression")),
                "method" => once(name, &mut known.method, text_of(argument)?)?,
                "scheme" => once(name, &mut known.scheme, text_of(argument)?)?,
                "host" => once(name, &mut known.host, text_of(argument)?)?,
                "path" => once(name, &mut known.path, text_of(argument)?)?,
                "query" => once(name, &mut known.query, text_of(argument)?)?,
                "hdrs" => once(name, &mut known.headers, Some(headers(value)?))?,
                "body" => once(name, &mut known.body, Some(body(value, max_body)?))?,
                "src" => once(name, &mut known.source[0], some(argument))?,
                "src_port" => once(name, &mut known.source[1], some(argument))?,
                "src_principal" => once(name, &mut known.source[2], some(argument))?,
                "dst" => once(name, &mut known.destination[0], some(argument))?,
                "dst_port" => once(name, &mut known.destination[1], some(argument))?,
                "dst_principal" => once(name, &mut known.destination[2], some(argument))?,
                "timeout_ms" => once(name, &mut known.timeout_ms, Some(integer(argument)?))?,
                "headers_as" => {}
                "sni" => {
                    once(name, &mut sni, text_of(argument)?)?;
                    known.attributes.extend(text_of(argument)?.map(|sni| ("tls.sni", Cow::Borrowed(sni))));
                }
                _ => known.attributes.extend(shown(argument)?.map(|value| (name, value))),
            }
        }
        if known.attributes.len() > ATTRIBUTES_MAX {
            return Err(Down::new(Code::TooLarge, format!("more than {ATTRIBUTES_MAX} attributes")));
        }
        Ok(known)
    }
}

fn bad(why: impl Into<String>) -> Down {
    Down::new(Code::BadRequest, why)
}

fn missing(name: &str) -> Down {
    bad(format!("{name}: HAProxy sends no such argument, or nothing as its value"))
}

/// What is not there may come any number of times.
fn once<T>(name: &str, place: &mut Option<T>, value: Option<T>) -> Result<(), Down> {
    match value.and_then(|value| place.replace(value)) {
        Some(_) => Err(bad(format!("{name}: it comes more than once"))),
        None => Ok(()),
    }
}

fn some(argument: Argument<'_>) -> Option<Argument<'_>> {
    (argument.value != Typed::Null).then_some(argument)
}

fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, Down> {
    from_utf8(bytes)
        .map_err(|_| bad(format!("{name}: it is not UTF-8; a converter as hex or base64 makes it so")))
}

fn text_of(argument: Argument<'_>) -> Result<Option<&str>, Down> {
    match argument.value {
        Typed::Null => Ok(None),
        Typed::Text(bytes) | Typed::Binary(bytes) => text(argument.name, bytes).map(Some),
        _ => Err(bad(format!("{}: it is no string", argument.name))),
    }
}

fn integer(argument: Argument<'_>) -> Result<u64, Down> {
    let value = match argument.value {
        Typed::Int32(value) => u64::try_from(value).ok(),
        Typed::Int64(value) => u64::try_from(value).ok(),
        Typed::Uint32(value) => Some(value.into()),
        Typed::Uint64(value) => Some(value),
        _ => None,
    };
    value.ok_or_else(|| bad(format!("{}: it is no number of 0 or more", argument.name)))
}

/// An attribute's value; none for one that HAProxy does not have.
fn shown(argument: Argument<'_>) -> Result<Option<Cow<'_, str>>, Down> {
    Ok(Some(match argument.value {
        Typed::Null => return Ok(None),
        Typed::Bool(value) => Cow::Borrowed(if value { "true" } else { "false" }),
        Typed::Int32(value) => value.to_string().into(),
        Typed::Uint32(value) => value.to_string().into(),
        Typed::Int64(value) => value.to_string().into(),
        Typed::Uint64(value) => value.to_string().into(),
        Typed::Ipv4(octets) => Ipv4Addr::from(octets).to_string().into(),
        Typed::Ipv6(octets) => Ipv6Addr::from(octets).to_string().into(),
        Typed::Text(bytes) | Typed::Binary(bytes) => Cow::Borrowed(text(argument.name, bytes)?),
    }))
}

/// What `req.hdrs_bin` is: names and values by turns, and two empty strings at the end.
fn headers(value: Typed<'_>) -> Result<Headers<'_>, Down> {
    let not = |why: &str| bad(format!("hdrs: {why}; use HAProxy's req.hdrs_bin"));
    let Typed::Binary(bytes) = value else {
        return Err(not("it is not binary, or HAProxy has none"));
    };
    let mut reader = Reader(bytes);
    let mut headers = Vec::new();
    loop {
        let (name, value) = reader
            .string()
            .and_then(|name| Ok((name, reader.string()?)))
            .map_err(|_| not("it is cut off"))?;
        match (name, value) {
            ([], []) if reader.is_empty() => return Ok(headers),
            ([], _) => return Err(not("it has an empty name before its end")),
            _ => {}
        }
        if headers.len() == HEADERS_MAX {
            return Err(Down::new(Code::TooLarge, format!("hdrs: more than {HEADERS_MAX} headers")));
        }
        let name = from_utf8(name).ok().filter(|name| name.bytes().all(is_token));
        let name = name.ok_or_else(|| not("it has a header whose name is no token"))?;
        headers.push((lower(name), value));
    }
}

/// HAProxy keeps names in lower case. One that was not would be another header to a policy, and the same to a service.
fn lower(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

fn body(value: Typed<'_>, max: u32) -> Result<&[u8], Down> {
    let bytes = match value {
        Typed::Null => &[][..],
        Typed::Text(bytes) | Typed::Binary(bytes) => bytes,
        _ => return Err(bad("body: it is no string")),
    };
    if bytes.len() as u64 > u64::from(max) {
        return Err(Down::new(
            Code::TooLarge,
            format!("body: more than {max} bytes, the listener's max_body"),
        ));
    }
    Ok(bytes)
}

/// The one header of that name, if there is one.
fn only<'a>(headers: &Headers<'a>, name: &str) -> Result<Option<&'a [u8]>, Down> {
    let mut named = headers.iter().filter(|(known, _)| known == name);
    let first = named.next().map(|(_, value)| *value);
    if named.next().is_some() {
        return Err(bad(format!("hdrs: {name} comes more than once")));
    }
    Ok(first)
}

/// HAProxy's `req.body` is what it has in its buffer, which can be the beginning only: a body is taken if it is as long as the
/// headers say. One without a length is not: nobody can say that it is all of it.
fn whole(body: &[u8], headers: &Headers<'_>) -> Result<(), Down> {
    let cut = |why: &str| Err(Down::new(Code::TooLarge, format!("body: {why}")));
    if only(headers, "transfer-encoding")?.is_some() {
        return cut("it is sent without a length, so HAProxy may have sent a part of it");
    }
    match only(headers, "content-length")? {
        None if body.is_empty() => Ok(()),
        None => cut("it is sent without a length, so HAProxy may have sent a part of it"),
        Some(length) if length == body.len().to_string().as_bytes() => Ok(()),
        Some(_) => {
            cut("HAProxy sends a part of it; option http-buffer-request and tune.bufsize say how much it has")
        }
    }
}

fn peer(said: [Option<Argument<'_>>; 3]) -> Result<Peer<'_>, Down> {
    let [address, port, principal] = said;
    let address = match address {
        None => Address::Unknown,
        Some(Argument { value: Typed::Ipv4(octets), .. }) => Address::Ipv4(octets),
        Some(Argument { value: Typed::Ipv6(octets), .. }) => Address::Ipv6(octets),
        Some(argument) => {
            let parsed = text_of(argument)?.and_then(|text| text.parse::<IpAddr>().ok());
            parsed.ok_or_else(|| bad(format!("{}: it is no address", argument.name)))?.into()
        }
    };
    let port = match port {
        None => 0,
        Some(argument) => {
            u16::try_from(integer(argument)?).map_err(|_| bad(format!("{}: it is no port", argument.name)))?
        }
    };
    let principal = principal.map(text_of).transpose()?.flatten();
    Ok(Peer { address, port, principal })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::super::script::{hdrs, notify};
    use super::super::typed::put_string;
    use super::*;

    type Said<'a> = (&'a str, Typed<'a>);

    const GET: Said<'_> = ("method", Typed::Text(b"GET"));
    const PATH: Said<'_> = ("path", Typed::Text(b"/v1/orders"));

    /// What is asked where besides method and path this is said.
    fn asked(more: &[Said<'_>]) -> Result<HttpRequest<'static>, (Code, String)> {
        said(&[&[GET, PATH], more].concat())
    }

    fn said(all: &[Said<'_>]) -> Result<HttpRequest<'static>, (Code, String)> {
        // The tests end before it matters.
        let payload: &'static [u8] = Box::leak(notify(&[all]).to_vec().into_boxed_slice());
        let arguments = Arguments::read(payload).unwrap();
        match Asked::read(&arguments, 1000) {
            Ok(asked) => match Box::leak(Box::new(asked)).input() {
                Input::Http(http) => Ok(http),
                Input::Opaque { .. } => unreachable!(),
            },
            Err(down) => Err((down.code, down.reason)),
        }
    }

    fn code(more: &[Said<'_>]) -> Option<Code> {
        asked(more).err().map(|(code, _)| code)
    }

    #[test]
    fn every_argument_has_its_place() {
        let headers = hdrs(&[("host", b"api.example"), ("content-length", b"2"), ("x-raw", &[0, 0xff])]);
        let http = asked(&[
            ("scheme", Typed::Text(b"https")),
            ("query", Typed::Text(b"page=2")),
            ("hdrs", Typed::Binary(&headers)),
            ("body", Typed::Binary(b"{}")),
            ("src", Typed::Ipv4([192, 0, 2, 7])),
            ("src_port", Typed::Int64(50_123)),
            ("src_principal", Typed::Text(b"/CN=shop")),
            ("dst", Typed::Ipv6([1; 16])),
            ("dst_port", Typed::Uint32(443)),
            ("sni", Typed::Text(b"api.example")),
            ("fe", Typed::Text(b"www")),
            ("tls", Typed::Bool(true)),
            ("conns", Typed::Int32(-3)),
            ("via", Typed::Ipv4([192, 0, 2, 1])),
            ("nothing", Typed::Null),
        ])
        .unwrap();
        let attributes = [
            ("tls.sni", "api.example"),
            ("fe", "www"),
            ("tls", "true"),
            ("conns", "-3"),
            ("via", "192.0.2.1"),
        ];
        let expected = HttpRequest {
            method: "GET",
            scheme: "https",
            host: "api.example",
            path: "/v1/orders",
            query: Some("page=2"),
            headers: vec![
                Header { name: "host", value: b"api.example" },
                Header { name: "content-length", value: b"2" },
                Header { name: "x-raw", value: &[0, 0xff] },
            ],
            body: Some(b"{}"),
            source: Peer {
                address: Address::Ipv4([192, 0, 2, 7]),
                port: 50_123,
                principal: Some("/CN=shop"),
            },
            destination: Peer { address: Address::Ipv6([1; 16]), port: 443, principal: None },
            attributes: attributes.map(|(name, value)| Attribute { name, value }).to_vec(),
        };
        assert_eq!(http, expected);
    }

    #[test]
    fn method_and_path_are_needed() {
        assert!(said(&[GET, PATH]).is_ok());
        for all in [
            &[GET][..],
            &[PATH],
            &[],
            &[PATH, ("method", Typed::Null)],
            &[PATH, ("method", Typed::Text(b""))],
            &[GET, ("path", Typed::Null)],
            &[GET, ("path", Typed::Text(b""))],
            &[GET, ("path", Typed::Text(b"/a?b"))],
            &[GET, ("path", Typed::Text(b"/a#b"))],
            &[GET, ("path", Typed::Text(b"http://a.example/b"))],
            &[GET, ("path", Typed::Text(b"/\xff"))],
            &[GET, ("path", Typed::Int32(7))],
        ] {
            assert_eq!(said(all).unwrap_err().0, Code::BadRequest, "{all:?}");
        }
    }

    #[test]
    fn what_comes_twice_or_as_something_else_is_closed() {
        let empty = hdrs(&[]);
        for said in [
            ("method", Typed::Text(b"GET")),
            ("path", Typed::Text(b"/v1/orders")),
            ("scheme", Typed::Text(b"http")),
            ("host", Typed::Text(b"a.example")),
            ("query", Typed::Text(b"")),
            ("hdrs", Typed::Binary(&empty)),
            ("body", Typed::Binary(b"")),
            ("src", Typed::Ipv4([1; 4])),
            ("src_port", Typed::Uint32(1)),
            ("src_principal", Typed::Text(b"a")),
            ("dst", Typed::Ipv4([1; 4])),
            ("dst_port", Typed::Uint32(1)),
            ("dst_principal", Typed::Text(b"a")),
            ("sni", Typed::Text(b"a.example")),
            ("timeout_ms", Typed::Uint32(1)),
        ] {
            assert_eq!(code(&[said, said]), Some(Code::BadRequest), "{said:?} twice");
            assert_eq!(code(&[(said.0, Typed::Bool(true))]), Some(Code::BadRequest), "{said:?} as a boolean");
        }
        for said in [
            ("", Typed::Text(b"unnamed")),
            ("src", Typed::Text(b"192.0.2.256")),
            ("src_port", Typed::Uint32(65_536)),
            ("src_port", Typed::Int64(-1)),
            ("other", Typed::Binary(&[0xff])),
        ] {
            assert_eq!(code(&[said]), Some(Code::BadRequest), "{said:?}");
        }
        assert_eq!(code(&[("src", Typed::Text(b"2001:db8::7"))]), None);
        assert_eq!(code(&[("fe", Typed::Text(b"a")), ("fe", Typed::Text(b"b"))]), None, "attributes may");
    }

    #[test]
    fn headers_are_all_there_or_it_is_closed() {
        let whole = hdrs(&[("host", b"a.example"), ("empty", b"")]);
        assert_eq!(asked(&[("hdrs", Typed::Binary(&whole))]).unwrap().host, "a.example");
        for end in 0..whole.len() {
            assert_eq!(
                code(&[("hdrs", Typed::Binary(&whole[..end]))]),
                Some(Code::BadRequest),
                "cut at {end}"
            );
        }
        let trailing = [&whole[..], b"\x01a\x01b\0\0"].concat();
        let text = b"host: a.example\r\n\r\n";
        for value in [Typed::Binary(&trailing), Typed::Binary(text), Typed::Text(&whole), Typed::Null] {
            assert_eq!(code(&[("hdrs", value)]), Some(Code::BadRequest), "{value:?}");
        }
        let many = hdrs(&vec![("a", &b"b"[..]); HEADERS_MAX]);
        assert_eq!(code(&[("hdrs", Typed::Binary(&many))]), None);
        let many = hdrs(&vec![("a", &b"b"[..]); HEADERS_MAX + 1]);
        assert_eq!(code(&[("hdrs", Typed::Binary(&many))]), Some(Code::TooLarge));
    }

    #[test]
    fn two_hosts_are_one_too_many() {
        let two = hdrs(&[("host", b"a.example"), ("Host", b"b.example")]);
        assert_eq!(code(&[("hdrs", Typed::Binary(&two))]), Some(Code::BadRequest));
        let host = ("host", Typed::Text(b"a.example"));
        assert_eq!(code(&[host, ("hdrs", Typed::Binary(&two))]), Some(Code::BadRequest));
        assert_eq!(code(&[host]), None);
        for (header, expected) in
            [(&b"a.example"[..], None), (b"A.Example", None), (b"b.example", Some(Code::BadRequest))]
        {
            let one = hdrs(&[("host", header)]);
            assert_eq!(code(&[host, ("hdrs", Typed::Binary(&one))]), expected, "{header:?}");
        }
        let none = hdrs(&[("accept", b"*/*")]);
        assert_eq!(asked(&[host, ("hdrs", Typed::Binary(&none))]).unwrap().host, "a.example");
    }

    #[test]
    fn names_of_headers_are_tokens_in_lower_case() {
        let mixed = hdrs(&[("X-User", b"Bob"), ("x-user", b"ann")]);
        let http = asked(&[("hdrs", Typed::Binary(&mixed))]).unwrap();
        let named = [("x-user", &b"Bob"[..]), ("x-user", b"ann")];
        assert_eq!(http.headers, named.map(|(name, value)| Header { name, value }));
        for name in ["x user", "x-user:", "x\r\ny", "x\0", "h\u{f6}st"] {
            let bad = hdrs(&[(name, b"1")]);
            assert_eq!(code(&[("hdrs", Typed::Binary(&bad))]), Some(Code::BadRequest), "{name:?}");
        }
    }

    #[test]
    fn a_part_of_a_body_is_not_taken_for_the_whole() {
        let with = |headers: &[(&str, &[u8])], body: Typed<'_>| {
            code(&[("hdrs", Typed::Binary(&hdrs(headers))), ("body", body)])
        };
        let five = Typed::Binary(b"12345");
        assert_eq!(with(&[("content-length", b"5")], five), None);
        assert_eq!(with(&[("host", b"a")], Typed::Binary(b"")), None);
        for headers in [
            &[("content-length", &b"6"[..])][..],
            &[("content-length", b"05")],
            &[("host", b"a")],
            &[("transfer-encoding", b"chunked")],
            &[("content-length", b"5"), ("transfer-encoding", b"chunked")],
        ] {
            assert_eq!(with(headers, five), Some(Code::TooLarge), "{headers:?}");
        }
        assert_eq!(with(&[("content-length", b"5"), ("Content-Length", b"5")], five), Some(Code::BadRequest));
        assert_eq!(with(&[("content-length", b"5")], Typed::Null), Some(Code::TooLarge));
        assert_eq!(with(&[], five), Some(Code::TooLarge), "no header is no length");
        assert_eq!(with(&[("content-length", b"1000")], Typed::Binary(&[b'x'; 1000])), None);
        assert_eq!(with(&[("content-length", b"1001")], Typed::Binary(&[b'x'; 1001])), Some(Code::TooLarge));
        for body in [five, Typed::Binary(b""), Typed::Null] {
            assert_eq!(code(&[("body", body)]), Some(Code::BadRequest), "without headers: {body:?}");
        }
    }

    #[test]
    fn a_time_limit_and_a_trace_come_along() {
        let traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let one = hdrs(&[("traceparent", traceparent)]);
        let two = hdrs(&[("traceparent", traceparent), ("traceparent", traceparent)]);
        for (headers, traced) in [(one, true), (two, false)] {
            let payload =
                notify(&[&[GET, PATH, ("hdrs", Typed::Binary(&headers)), ("timeout_ms", Typed::Int64(20))]]);
            let arguments = Arguments::read(&payload).unwrap();
            let terms = Asked::read(&arguments, 0).unwrap().terms;
            assert_eq!(terms.within, Some(Duration::from_millis(20)));
            assert_eq!(terms.trace.is_some(), traced);
        }
    }

    #[test]
    fn the_form_of_answers_is_asked_for_by_word() {
        let of = |all: &[Said<'_>]| {
            HeadersAs::read(&Arguments::read(&notify(&[all])).unwrap()).map_err(|down| down.code)
        };
        let lists = ("headers_as", Typed::Text(b"lists"));
        assert_eq!(of(&[GET]), Ok(HeadersAs::Variables));
        assert_eq!(of(&[("headers_as", Typed::Text(b"variables"))]), Ok(HeadersAs::Variables));
        assert_eq!(of(&[lists]), Ok(HeadersAs::Lists));
        assert_eq!(of(&[lists, lists]), Err(Code::BadRequest));
        assert_eq!(of(&[("headers_as", Typed::Text(b"list"))]), Err(Code::BadRequest));
    }

    proptest! {
        #[test]
        fn hostile_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = headers(Typed::Binary(&bytes));
        }

        #[test]
        fn headers_come_back(said in prop::collection::vec(
            ("[a-z]{1,8}", prop::collection::vec(any::<u8>(), 0..300)), 0..8))
        {
            let mut bytes = BytesMut::new();
            for (name, value) in &said {
                put_string(&mut bytes, name.as_bytes());
                put_string(&mut bytes, value);
            }
            bytes.extend_from_slice(&[0, 0]);
            let got = headers(Typed::Binary(&bytes)).unwrap();
            let got: Vec<_> = got.iter().map(|(name, value)| (name.to_string(), value.to_vec())).collect();
            prop_assert_eq!(got, said);
        }
    }
}
