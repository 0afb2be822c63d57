//! Requests that mean one thing to the proxy and could mean another to the gateway or the service.

use crate::exchange::request;
use crate::service::Arrived;
use crate::stage::Stage;

/// Whatever is sent: what reaches the service was decided about as it is, and nothing reaches it that the policy denies.
pub(crate) fn attempts(stage: &mut Stage) -> Result<String, String> {
    // A denial without any trick is one, and what is seen is seen: else the rest shows nothing.
    let (plain, seen) = (stage.get("/do/deny").ok_or("no answer")?, stage.get("/do/see").ok_or("no answer")?);
    let arrived = stage.shop.arrived();
    if plain.status != 403
        || seen.status != 200
        || arrived.len() != 1
        || arrived[0].one("x-seen-path") != Some("/do/see")
    {
        return Err(format!("control: {plain:?} {seen:?}, arrived: {arrived:?}"));
    }
    let (mut refused, mut through) = (0, 0);
    // What is asked there, and how many answers there can be.
    let attempts = [(headers(), 1), (targets(), 1), (framing(), 3)];
    for (what, bytes, answers) in attempts
        .iter()
        .flat_map(|(attempts, answers)| attempts.iter().map(move |(what, bytes)| (what, bytes, *answers)))
    {
        let responses = stage.address.try_send(bytes, answers);
        let arrived = stage.shop.arrived();
        for one in &arrived {
            if let Some(difference) = difference(one) {
                return Err(format!("{what}: {difference}: {one:?}, answered: {responses:?}"));
            }
        }
        if arrived.is_empty() { refused += 1 } else { through += 1 }
    }
    let after = stage.get("/do/allow").ok_or("no answer")?;
    stage.shop.arrived();
    if after.status != 200 {
        return Err(format!("closed after the attempts: {after:?}"));
    }
    Ok(format!("{} tried: {refused} stopped, {through} passed as decided", refused + through))
}

/// What the policy saw otherwise than it arrived.
fn difference(one: &Arrived) -> Option<String> {
    if one.target.starts_with("/do/allow") {
        return None;
    }
    if !one.target.starts_with("/do/see") {
        // The policy lets everything through that is not below `/do/`, and tells nothing of it.
        let denied = one.target.starts_with("/do/") || one.target.contains("smuggled");
        return denied.then(|| "nobody allowed this".into());
    }
    let (path, query) = one.target.split_once('?').unwrap_or((&one.target, "none"));
    let host =
        one.one("host").filter(|host| !host.is_empty()).map(|host| host.split(':').next().unwrap_or(host));
    let seen_host = one
        .one("x-seen-host")
        .filter(|host| !host.is_empty())
        .map(|host| host.split(':').next().unwrap_or(host));
    let rows = [
        ("path", one.one("x-seen-path"), Some(path)),
        ("query", one.one("x-seen-query"), Some(query)),
        ("method", one.one("x-seen-method"), Some(&*one.method)),
        ("host", seen_host, host),
    ];
    let differs = rows.into_iter().find(|(_, seen, there)| seen != there);
    differs.map(|(what, seen, there)| format!("{what}: the policy saw {seen:?}, the service {there:?}"))
}

type Attempt = (String, Vec<u8>);

/// What a proxy says of a request, said by the client instead.
fn headers() -> Vec<Attempt> {
    let tricks: [(&str, &[(&str, &str)]); 12] = [
        ("x-original-uri", &[("X-Original-Uri", "/do/allow"), ("X-Original-Method", "GET")]),
        ("x-original-url", &[("X-Original-Url", "/do/allow"), ("X-Rewrite-Url", "/do/allow")]),
        ("x-original-uri twice", &[("X-Original-Uri", "/do/allow"), ("X-Original-Uri", "/do/allow")]),
        ("x_original_uri", &[("X_Original_Uri", "/do/allow"), ("X_Original_Method", "GET")]),
        ("x-forwarded-uri", &[("X-Forwarded-Uri", "/do/allow"), ("X-Forwarded-Method", "GET")]),
        ("x-forwarded-uri twice", &[("X-Forwarded-Uri", "/do/allow"), ("X-Forwarded-Uri", "/do/allow")]),
        (
            "x-envoy-original-path",
            &[("X-Envoy-Original-Path", "/do/allow"), ("X-Envoy-Auth-Partial-Body", "false")],
        ),
        ("override of the method", &[("X-Http-Method-Override", "POST"), ("X-Method-Override", "POST")]),
        (
            "headers named in Connection",
            &[(
                "Connection",
                "X-Original-Uri, X-Original-Method, X-Forwarded-Uri, X-Forwarded-Method, X-Real-Ip",
            )],
        ),
        ("tenant", &[("X-Portcullis-Tenant", "globex"), ("X-Portcullis-Policy", "allow")]),
        (
            "a decision",
            &[
                ("X-Portcullis-Decision", "1"),
                ("X-Portcullis-Outcome", "allow"),
                ("X-Seen-Path", "/do/allow"),
            ],
        ),
        ("time", &[("X-Envoy-Expected-Rq-Timeout-Ms", "0"), ("Grpc-Timeout", "1n")]),
    ];
    tricks
        .iter()
        .flat_map(|(what, headers)| {
            ["/do/deny", "/do/see"]
                .map(|path| (format!("{what} at {path}"), request("GET", path, headers, b"")))
        })
        .collect()
}

fn targets() -> Vec<Attempt> {
    let paths = [
        "/do/deny%00",
        "/do/deny?/../allow",
        "/do/deny#/do/allow",
        "/do/deny/../deny",
        "//do/deny",
        "/do//deny",
        "/do/./deny",
        "/./do/deny",
        "/x/../do/deny",
        "/do/%64eny",
        "/%64o/deny",
        "/do%2fdeny",
        "/do/allow%2f..%2fdeny",
        "/do/deny;/allow",
        "/do\\deny",
        "/do/see?%00",
        "/do/see?a=1&a=2",
        "/do/see%20x",
        "/do/see/%2e%2e/deny",
        "/do/see/../deny",
        "/do/see//x",
        "/do/see/%C3%A4",
        "/do/see?q=%C0%AF",
        "/do/see/a%2Fb",
        "http://other.test/do/deny",
        "http://other.test/do/see",
        "http://shop.test@other.test/do/see",
        "HTTP://shop.test:80/do/see",
        "/.portcullis",
        "/authz/do/see",
        "*",
        "shop.test:80",
        "do/deny",
        "?/do/see",
    ];
    let one = |path: &str| (format!("target {path}"), request("GET", path, &[], b""));
    let mut all: Vec<Attempt> = paths.iter().map(|path| one(path)).collect();
    for method in ["HEAD", "OPTIONS", "get", "TRACE", "CONNECT", "PROPFIND", "G\tT"] {
        all.push((format!("method {method}"), request(method, "/do/see", &[], b"")));
        all.push((format!("method {method}, denied"), request(method, "/do/deny", &[], b"")));
    }
    all
}

/// Two ways to see where a request ends, or where a header does.
fn framing() -> Vec<Attempt> {
    // And one with which whoever has followed this far closes: nobody waits for an answer that does not come.
    let inner = "GET /do/deny?smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n\
                 GET /do/allow?last HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let post = |headers: &str, body: &str| {
        format!("POST /do/see HTTP/1.1\r\nHost: shop.test\r\n{headers}\r\n{body}").into_bytes()
    };
    let get =
        |headers: &str| format!("GET /do/see HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").into_bytes();
    let both =
        |coding: &str| post(&format!("Content-Length: 6\r\n{coding}\r\n"), &format!("0\r\n\r\nX{inner}"));
    let length = |value: &str| post(&format!("Content-Length: {value}\r\n"), &format!("abcde{inner}"));
    [
        ("length and chunked", both("Transfer-Encoding: chunked")),
        ("length and chunked, upper case", both("Transfer-Encoding: CHUNKED")),
        ("length and xchunked", both("Transfer-Encoding: xchunked")),
        ("length and chunked with a space before the colon", both("Transfer-Encoding : chunked")),
        ("length and chunked after a vertical tab", both("Transfer-Encoding:\x0bchunked")),
        ("length and chunked, identity", both("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity")),
        ("length and chunked, folded", both("Transfer-Encoding:\r\n chunked")),
        ("length and chunked behind a bare CR", both("X: y\rTransfer-Encoding: chunked")),
        ("length twice", length("5\r\nContent-Length: 0")),
        ("length twice the same", length("5\r\nContent-Length: 5")),
        ("length as a list", length("5, 0")),
        ("length with a sign", length("+5")),
        ("length in hex", length("0x5")),
        ("length below zero", length("-1")),
        ("length too large", length("18446744073709551617")),
        ("no host", get("")),
        ("two hosts", get("Host: shop.test\r\nHost: other.test\r\n")),
        ("two hosts, one folded away", get("Host: shop.test\r\nX: y\r\n Host: other.test\r\n")),
        ("host with a path", get("Host: shop.test/do/deny\r\n")),
        ("host with a user", get("Host: shop.test@other.test\r\n")),
        ("host that is empty", get("Host:\r\n")),
        ("a folded header", get("Host: shop.test\r\nX-Probe: a\r\n b\r\n")),
        ("a header without a colon", get("Host: shop.test\r\nX-Probe\r\n")),
        ("a header without a name", get("Host: shop.test\r\n: x\r\n")),
        ("NUL in a header", get("Host: shop.test\r\nX-Probe: a\0b\r\n")),
        ("bare LF in the head", b"GET /do/see HTTP/1.1\nHost: shop.test\nConnection: close\n\n".to_vec()),
        ("bare CR in a header", get("Host: shop.test\r\nX-Probe: a\rX-Original-Uri: /do/allow\r\n")),
        ("HTTP/1.0", b"GET /do/see HTTP/1.0\r\nHost: shop.test\r\n\r\n".to_vec()),
        ("HTTP/1.0 without a host", b"GET /do/see HTTP/1.0\r\n\r\n".to_vec()),
        ("HTTP/0.9", b"GET /do/deny\r\n\r\n".to_vec()),
        ("HTTP/1.2", b"GET /do/see HTTP/1.2\r\nHost: shop.test\r\nConnection: close\r\n\r\n".to_vec()),
        ("two spaces", b"GET  /do/deny HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n".to_vec()),
        ("a space in the target", b"GET /do/see /do/deny HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n".to_vec()),
        ("Expect", post("Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n", "abc")),
        ("an upgrade", get("Host: shop.test\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n")),
        ("a websocket", get("Host: shop.test\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")),
    ]
    .into_iter()
    .map(|(what, bytes)| (what.to_owned(), bytes))
    .collect()
}
