//! The request as the document `input`, in the shape that OPA's Envoy plugin gives it, so that policies written for that
//! one run here as they are. `docs/rego.md` has the shape.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use rego_builtins::{Value, parse_json, parse_query, unescape, write_json};

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

fn http_document(http: &HttpRequest) -> String {
    let headers = headers(&http.headers);
    let content_type = headers.get("content-type").map_or("", String::as_str);
    let (path, query) = (http.path.as_str(), http.query.as_deref());
    let full = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let parsed_path =
        path.trim_start_matches('/').split('/').map(|part| unescape_path(part).into()).collect::<Value>();
    let parsed_query = query.and_then(parse_query).unwrap_or_default();
    let body = http.body.as_deref().map(|body| String::from_utf8_lossy(body));
    let parsed_body = body.as_deref().filter(|body| !body.is_empty()).map_or(Value::Null, |body| {
        if is_json(content_type) {
            parse_json(body).unwrap_or(Value::Null)
        } else if content_type.starts_with("application/x-www-form-urlencoded") {
            parse_query(body).map_or(Value::Null, Value::Object)
        } else {
            Value::Null
        }
    });
    let size = http.body.as_ref().map_or(0, Vec::len);
    let mut request = vec![
        ("method", http.method.as_str().into()),
        ("scheme", http.scheme.as_str().into()),
        ("host", http.host.as_str().into()),
        ("path", full.into()),
        (
            "headers",
            Value::Object(
                headers.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
            ),
        ),
        ("size", i64::try_from(size).unwrap_or(i64::MAX).into()),
    ];
    if let Some(query) = query {
        request.push(("query", query.into()));
    }
    if let Some(body) = body {
        request.push(("body", body.into_owned().into()));
    }
    // What the proxy says beyond HTTP.
    let extension = |one: &Attribute| (one.name.as_str().into(), one.value.as_str().into());
    let extensions = Value::Object(http.attributes.iter().map(extension).collect());
    let sni = http.attributes.iter().find(|one| one.name == SNI);
    let sni = sni.map(|one| ("sni", one.value.as_str().into()));
    write_json(&Value::object([
        (
            "attributes",
            Value::object([
                ("source", peer(&http.source)),
                ("destination", peer(&http.destination)),
                ("request", Value::object([("http", Value::object(request))])),
                ("contextExtensions", extensions),
                ("tlsSession", Value::object(sni)),
            ]),
        ),
        ("parsed_path", parsed_path),
        ("parsed_query", Value::Object(parsed_query)),
        ("parsed_body", parsed_body),
        ("truncated_body", false.into()),
        ("version", Value::object([("encoding", "protojson".into()), ("ext_authz", "v3".into())])),
    ]))
}

/// In a path a plus is a plus.
fn unescape_path(part: &str) -> String {
    if part.contains('%') {
        unescape(&part.replace('+', "%2B")).unwrap_or_else(|| part.to_owned())
    } else {
        part.to_owned()
    }
}

/// By their lower-case names; several lines of one name are one value, with commas, as HTTP has it.
fn headers(headers: &[Header]) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for Header { name, value } in headers {
        let value = String::from_utf8_lossy(value);
        map.entry(name.to_ascii_lowercase())
            .and_modify(|all| {
                all.push(',');
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    map
}

fn peer(peer: &Peer) -> Value {
    let address = match peer.address {
        Address::Unknown => None,
        Address::Ipv4((a, b, c, d)) => Some(Ipv4Addr::new(a, b, c, d).to_string()),
        Address::Ipv6((a, b, c, d, e, f, g, h)) => Some(Ipv6Addr::new(a, b, c, d, e, f, g, h).to_string()),
    };
    let mut fields = Vec::new();
    if let Some(address) = address {
        let socket = Value::object([("address", address.into()), ("portValue", i64::from(peer.port).into())]);
        fields.push(("address", Value::object([("socketAddress", socket)])));
    }
    if let Some(principal) = &peer.principal {
        fields.push(("principal", principal.as_str().into()));
    }
    Value::object(fields)
}
