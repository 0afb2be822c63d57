//! The request as the document `input`, in the shape that OPA's Envoy plugin gives it, so that policies written for that
//! one run here as they are. `docs/rego.md` has the shape.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;

use rego_builtins::{
    Value, append_escaped, append_json, append_string, parse_json, parse_query, unescape, write_json,
};

use crate::bindings::portcullis::policy::types::{Address, Attribute, Header, HttpRequest, Peer, Request};

/// The attribute that Envoy has a place of its own for.
const SNI: &str = "tls.sni";

/// The text of the document.
pub(crate) fn document(request: &Request) -> String {
    match request {
        Request::Opaque(opaque) => {
            let text = core::str::from_utf8(&opaque.bytes).unwrap_or_default();
            let json = is_json(&opaque.content_type) || opaque.content_type.is_empty();
            match parse_json(text) {
                // The document itself. Read and written again: what is too deep for OPA's reader does not reach it.
                Ok(document) if json => write_json(&document),
                _ => write_json(&Value::object([
                    ("content_type", opaque.content_type.as_str().into()),
                    ("body", String::from_utf8_lossy(&opaque.bytes).into_owned().into()),
                ])),
            }
        }
        Request::Http(http) => http_document(http),
    }
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Written as it is read, without a tree in between: it is asked for with every request.
fn http_document(http: &HttpRequest) -> String {
    let headers = Headers::new(&http.headers);
    let content_type = headers.value("content-type");
    let body = http.body.as_deref().map(|body| String::from_utf8_lossy(body));
    let mut text = String::with_capacity(room(http));
    text.push_str(r#"{"attributes":{"source":"#);
    peer(&mut text, &http.source);
    text.push_str(r#","destination":"#);
    peer(&mut text, &http.destination);
    text.push_str(r#","request":{"http":{"method":"#);
    append_string(&mut text, &http.method);
    text.push_str(r#","scheme":"#);
    append_string(&mut text, &http.scheme);
    text.push_str(r#","host":"#);
    append_string(&mut text, &http.host);
    text.push_str(r#","path":""#);
    append_escaped(&mut text, &http.path);
    if let Some(query) = &http.query {
        text.push('?');
        append_escaped(&mut text, query);
        text.push_str(r#"","query":""#);
        append_escaped(&mut text, query);
    }
    text.push_str(r#"","headers":"#);
    headers.write(&mut text);
    text.push_str(r#","size":"#);
    let _ = write!(text, "{}", http.body.as_ref().map_or(0, Vec::len));
    if let Some(body) = &body {
        text.push_str(r#","body":"#);
        append_string(&mut text, body);
    }
    // What the proxy says beyond HTTP.
    text.push_str(r#"}},"contextExtensions":"#);
    extensions(&mut text, &http.attributes);
    text.push_str(r#","tlsSession":{"#);
    if let Some(sni) = http.attributes.iter().find(|one| one.name == SNI) {
        text.push_str(r#""sni":"#);
        append_string(&mut text, &sni.value);
    }
    text.push_str(r#"}},"parsed_path":["#);
    for (index, part) in http.path.trim_start_matches('/').split('/').enumerate() {
        comma(&mut text, index);
        append_string(&mut text, &unescape_path(part));
    }
    text.push_str(r#"],"parsed_query":"#);
    match http.query.as_deref().and_then(parse_query) {
        Some(query) => append_json(&mut text, &Value::Object(query)),
        None => text.push_str("{}"),
    }
    text.push_str(r#","parsed_body":"#);
    append_json(&mut text, &parsed_body(&content_type, body.as_deref().unwrap_or_default()));
    text.push_str(r#","truncated_body":false,"version":{"encoding":"protojson","ext_authz":"v3"}}"#);
    text
}

/// What the document takes if nothing in it has to be escaped and its body is no JSON.
fn room(http: &HttpRequest) -> usize {
    let headers = http.headers.iter().map(|one| one.name.len() + one.value.len() + 6);
    let attributes = http.attributes.iter().map(|one| one.name.len() + one.value.len() + 6);
    let body = http.body.as_ref().map_or(0, Vec::len);
    let query = http.query.as_ref().map_or(0, String::len);
    640 + headers.chain(attributes).sum::<usize>() + http.host.len() + 2 * http.path.len() + 3 * query + body
}

fn comma(text: &mut String, index: usize) {
    if index > 0 {
        text.push(',');
    }
}

fn parsed_body(content_type: &str, body: &str) -> Value {
    if body.is_empty() {
        Value::Null
    } else if is_json(content_type) {
        parse_json(body).unwrap_or(Value::Null)
    } else if content_type.starts_with("application/x-www-form-urlencoded") {
        parse_query(body).map_or(Value::Null, Value::Object)
    } else {
        Value::Null
    }
}

/// Of several with one name the last one counts.
fn extensions(text: &mut String, attributes: &[Attribute]) {
    let mut sorted: Vec<&Attribute> = attributes.iter().collect();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    text.push('{');
    for (index, group) in sorted.chunk_by(|one, other| one.name == other.name).enumerate() {
        let Some(last) = group.last() else { continue };
        comma(text, index);
        append_string(text, &last.name);
        text.push(':');
        append_string(text, &last.value);
    }
    text.push('}');
}

/// In a path a plus is a plus.
fn unescape_path(part: &str) -> Cow<'_, str> {
    if part.contains('%') {
        unescape(&part.replace('+', "%2B")).map_or(Cow::Borrowed(part), Cow::Owned)
    } else {
        Cow::Borrowed(part)
    }
}

/// By their lower-case names, lines of one name in their order.
struct Headers<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Headers<'a> {
    fn new(headers: &'a [Header]) -> Self {
        let lower = |name: &'a str| match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        let mut lines: Vec<_> = headers
            .iter()
            .map(|Header { name, value }| (lower(name), String::from_utf8_lossy(value)))
            .collect();
        lines.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self(lines)
    }

    /// All lines of that name as one value; empty if there is none.
    fn value(&self, name: &str) -> String {
        let values = self.0.iter().filter(|(one, _)| one == name).map(|(_, value)| &**value);
        values.collect::<Vec<_>>().join(",")
    }

    /// Several lines of one name are one value, with commas, as HTTP has it.
    fn write(&self, text: &mut String) {
        text.push('{');
        for (index, lines) in self.0.chunk_by(|(one, _), (other, _)| one == other).enumerate() {
            comma(text, index);
            for (line, (name, value)) in lines.iter().enumerate() {
                if line == 0 {
                    append_string(text, name);
                    text.push_str(":\"");
                } else {
                    text.push(',');
                }
                append_escaped(text, value);
            }
            text.push('"');
        }
        text.push('}');
    }
}

fn peer(text: &mut String, peer: &Peer) {
    let address = match peer.address {
        Address::Unknown => None,
        Address::Ipv4((a, b, c, d)) => Some(IpAddr::from([a, b, c, d])),
        Address::Ipv6((a, b, c, d, e, f, g, h)) => Some(IpAddr::from([a, b, c, d, e, f, g, h])),
    };
    text.push('{');
    if let Some(address) = address {
        let port = peer.port;
        let _ = write!(text, r#""address":{{"socketAddress":{{"address":"{address}","portValue":{port}}}}}"#);
    }
    if let Some(principal) = &peer.principal {
        comma(text, usize::from(address.is_some()));
        text.push_str(r#""principal":"#);
        append_string(text, principal);
    }
    text.push('}');
}
