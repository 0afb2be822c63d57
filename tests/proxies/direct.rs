//! No proxy in between: curl, h2load and hand-made bytes at the gateway's own sockets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exchange::{Address, request};
use crate::programs::find;
use crate::stage::{open_directory, site};
use crate::support::Service;

/// A service with a listener of each HTTP form, and Envoy's.
struct Gateway {
    service: Service,
    dir: tempfile::TempDir,
}

impl Gateway {
    fn start() -> Self {
        let dir = open_directory();
        let listener = |name: &str, more: &str| {
            let socket = dir.path().join(format!("{name}.sock"));
            format!(
                "[gateway.listener.{name}]\nsocket = {socket:?}\nsocket_mode = \"0666\"\ntenant = \"acme\"\n\
                 policy = \"gate\"\ndeadline = \"4s\"\n{more}\n"
            )
        };
        let listeners = [
            listener("own", "protocol = \"http\"\nrequest = \"own\"\nprefix = \"\""),
            listener(
                "original",
                "protocol = \"http\"\nrequest = \"x-original\"\nclient_address = \"x-real-ip\"",
            ),
            listener("forwarded", "protocol = \"http\"\nrequest = \"x-forwarded\"\ndetails = true"),
            listener("envoy", "protocol = \"envoy-grpc\""),
        ];
        Self { service: site(&listeners.concat()).start(), dir }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    fn address(&self, name: &str) -> Address {
        Address::Unix(self.socket(name))
    }

    /// What a program says, and how it ended.
    fn ask(program: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(find(program)).args(arguments).output().unwrap();
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), format!("{said}{errors}"))
    }
}

#[test]
fn curl_gets_decisions() {
    let gateway = Gateway::start();
    let socket = gateway.socket("own");
    let curl = |arguments: &[&str]| {
        let always = ["-s", "-i", "--max-time", "30", "--unix-socket", socket.to_str().unwrap()];
        Gateway::ask("curl", &[&always[..], arguments].concat()).1
    };
    let allowed = curl(&["http://shop.test/do/mutate"]);
    for line in [
        "HTTP/1.1 200 OK\r\n",
        "x-set: by the policy\r\n",
        "x-append: second\r\n",
        "x-remove:",
        "x-portcullis-outcome: allow\r\n",
    ] {
        assert!(allowed.contains(line), "no {line:?} in {allowed}");
    }
    assert!(
        allowed.contains("x-portcullis-decision: ")
            && allowed.contains("x-portcullis-metadata: tier=gold\r\n"),
        "{allowed}"
    );
    assert!(!allowed.contains("x-portcullis-digest"), "details that nobody asked for: {allowed}");

    let denied = curl(&["http://shop.test/do/page"]);
    for line in [
        "HTTP/1.1 451 ",
        "x-denied-by: selective\r\n",
        "set-cookie: a=1\r\n",
        "set-cookie: b=2\r\n",
        "\r\n\r\nno entry\n",
        "x-portcullis-outcome: denied\r\n",
    ] {
        assert!(denied.contains(line), "no {line:?} in {denied}");
    }
    for (path, status, outcome) in [
        ("/do/spin", "504", "deadline"),
        ("/do/trap", "500", "trap"),
        ("/do/fail/no-data", "500", "policy_failed"),
        ("/do/status/200", "403", "denied"),
        ("/do/status/302", "302", "denied"),
    ] {
        let answer = curl(&[&format!("http://shop.test{path}")]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
        assert!(answer.contains(&format!("x-portcullis-outcome: {outcome}\r\n")), "{path}: {answer}");
    }
    // A body in chunks, with Expect; and a HEAD.
    let body = gateway.dir.path().join("body");
    fs::write(&body, vec![b'x'; 300_000]).unwrap();
    let file = format!("@{}", body.display());
    let sent = curl(&[
        "--data-binary",
        &file,
        "-H",
        "transfer-encoding: chunked",
        "-H",
        "expect: 100-continue",
        "http://shop.test/do/see",
    ]);
    assert!(sent.contains("x-seen-body: 300000 ") && sent.contains("x-seen-method: POST\r\n"), "{sent}");
    assert!(curl(&["-I", "http://shop.test/do/allow"]).starts_with("HTTP/1.1 200 "));
    assert!(curl(&["-I", "http://shop.test/do/deny"]).starts_with("HTTP/1.1 403 "));
}

#[test]
fn what_a_proxy_has_to_say_is_never_taken_from_elsewhere() {
    let gateway = Gateway::start();
    let said = [
        ("X-Original-Method", "GET"),
        ("X-Original-Uri", "/do/see?q=1"),
        ("X-Original-Host", "shop.test"),
        ("X-Original-Proto", "https"),
        ("X-Real-Ip", "192.0.2.7"),
    ];
    let address = gateway.address("original");
    let ask = |headers: &[(&str, &str)]| address.get("/do/allow", headers).unwrap();
    let good = ask(&said);
    assert!(good.status == 200 && good.header("x-seen-path") == Some("/do/see"), "{good:?}");
    assert_eq!((good.header("x-seen-query"), good.header("x-seen-source")), (Some("q=1"), Some("192.0.2.7")));
    // Without one of them, and with one of them twice.
    for (left_out, _) in said {
        let rest: Vec<_> = said.iter().copied().filter(|(name, _)| *name != left_out).collect();
        let answer = ask(&rest);
        assert_eq!(
            (answer.status, answer.header("x-portcullis-outcome")),
            (400, Some("bad_request")),
            "{left_out}"
        );
    }
    for (name, value) in said {
        let answer = ask(&[&said[..], &[(name, value)]].concat());
        assert_eq!(answer.status, 400, "{name} twice: {answer:?}");
    }
    for target in [
        "do/see",
        "http://other.test/do/see",
        "/do/see/../deny",
        "/do/see/%2e%2e/deny",
        "/do/see%00",
        "*",
        "/do/se e",
        "",
    ] {
        let mut headers = said;
        headers[1].1 = target;
        let answer = ask(&headers);
        assert!(!answer.is_success(), "{target:?}: {answer:?}");
    }

    let said = [
        ("X-Forwarded-Method", "POST"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.test"),
        ("X-Forwarded-Uri", "/do/see"),
    ];
    let address = gateway.address("forwarded");
    let good = address.get("/do/allow", &said).unwrap();
    assert!(good.status == 200 && good.header("x-seen-method") == Some("POST"), "{good:?}");
    assert!(
        good.header("x-portcullis-digest").is_some() && good.header("x-portcullis-timing").is_some(),
        "{good:?}"
    );
    for (at, (name, value)) in said.into_iter().enumerate() {
        let mut without = said.to_vec();
        without.remove(at);
        assert_eq!(address.get("/do/allow", &without).unwrap().status, 400, "without {name}");
        let twice = [&said[..], &[(name, value)]].concat();
        assert_eq!(address.get("/do/allow", &twice).unwrap().status, 400, "{name} twice");
    }
}

#[test]
fn pipelined_questions_are_answered_in_order() {
    let gateway = Gateway::start();
    let each = |number: usize| {
        let word = if number.is_multiple_of(3) { "deny" } else { "allow" };
        format!("GET /do/{word}?{number} HTTP/1.1\r\nHost: shop.test\r\n\r\n")
    };
    let many: String = (0..100).map(each).collect();
    let responses = gateway.address("own").send(many.as_bytes(), 100);
    let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
    let expected: Vec<u16> =
        (0..100_usize).map(|number| if number.is_multiple_of(3) { 403 } else { 200 }).collect();
    assert_eq!(statuses, expected);
}

/// The same bytes that are tried with proxies: nothing of it opens anything that was not asked for as it is.
#[test]
fn two_readings_of_a_request_are_none() {
    let gateway = Gateway::start();
    let address = gateway.address("own");
    let head = "POST /do/see HTTP/1.1\r\nHost: shop.test\r\n";
    let chunks = |body: &str| {
        format!("{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{body}").into_bytes()
    };
    for (what, bytes, seen) in [
        ("chunks", chunks("3\r\nabc\r\n0\r\n\r\n"), "3 "),
        ("upper case and zeros", chunks("00000A\r\n0123456789\r\n0\r\n\r\n"), "10 "),
        ("an extension", chunks("3;a=b\r\nabc\r\n0\r\n\r\n"), "3 "),
        ("a trailer", chunks("3\r\nabc\r\n0\r\nX-Probe: trailer\r\n\r\n"), "3 "),
        ("a length", request("POST", "/do/see", &[], b"abc"), "3 "),
    ] {
        // An extension or a trailer may also be refused; it is never taken for something else.
        let response = address.send(&bytes, 1).pop().unwrap_or_else(|| panic!("{what}: no answer"));
        let whole = response.header("x-seen-body").is_some_and(|body| body.starts_with(seen))
            && response.header("x-seen-probe") == Some("");
        let refused = response.status == 400 && ["an extension", "a trailer"].contains(&what);
        assert!(whole && response.status == 200 || refused, "{what}: {response:?}");
    }
    let inner = "GET /do/allow HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for (what, bytes) in [
        (
            "length and chunked",
            format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("length twice", format!("{head}Content-Length: 0\r\nContent-Length: 5\r\n\r\nabcde{inner}")),
        ("a list of lengths", format!("{head}Content-Length: 0, 5\r\n\r\nabcde{inner}")),
        ("a length with a sign", format!("{head}Content-Length: +5\r\n\r\nabcde{inner}")),
        ("another coding", format!("{head}Transfer-Encoding: xchunked\r\n\r\n{inner}")),
        ("chunked twice", format!("{head}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("a space before the colon", format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}")),
        ("a folded line", format!("{head}X-Probe: a\r\n b\r\n\r\n{inner}")),
        ("two hosts", format!("{head}Host: other.test\r\n\r\n{inner}")),
        ("no host", format!("GET /do/allow HTTP/1.1\r\n\r\n{inner}")),
        (
            "a sign in a chunk's size",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a chunk's size too large",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n{inner}"),
        ),
        (
            "more than its size",
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n{inner}"),
        ),
        ("NUL in a header", format!("{head}X-Probe: a\0b\r\n\r\n{inner}")),
        ("a bare CR", format!("{head}X-Probe: a\rb: c\r\n\r\n{inner}")),
        ("another version", format!("GET /do/allow HTTP/3.0\r\nHost: shop.test\r\n\r\n{inner}")),
    ] {
        let responses = address.try_send(bytes.as_bytes(), 2);
        assert!(responses.iter().all(|response| !response.is_success()), "{what}: {responses:?}");
    }
    assert_eq!(address.get("/do/allow", &[]).unwrap().status, 200, "closed after all that");
}

#[test]
fn what_is_too_large_is_refused_and_what_is_large_is_taken_whole() {
    let gateway = Gateway::start();
    let address = gateway.address("own");
    let names: Vec<String> = (0..200).map(|number| format!("X-Many-{number:03}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "a value of some length")).collect();
    let response = address.get("/do/see", &headers).unwrap();
    let seen: usize = response.header("x-seen-headers").unwrap().parse().unwrap();
    assert!(response.status == 200 && seen >= 200, "{response:?}");

    let body = vec![b'x'; 1_000_000];
    let response = address.send(&request("POST", "/do/see", &[], &body), 1).pop().unwrap();
    assert!(response.header("x-seen-body").is_some_and(|seen| seen.starts_with("1000000 ")), "{response:?}");
    let body = vec![b'x'; 2 << 20];
    let responses = address.try_send(&request("POST", "/do/see", &[], &body), 1);
    assert!(responses.iter().all(|response| response.status == 413), "{responses:?}");
    let line = "x".repeat(1 << 20);
    let responses = address.try_send(&request("GET", "/do/allow", &[("X-Long", &line)], b""), 1);
    assert!(responses.iter().all(|response| !response.is_success()), "{responses:?}");
}

/// A `CheckRequest` for a GET of that path, as Envoy's public API numbers its fields.
fn check_request(path: &str) -> Vec<u8> {
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).ok().filter(|length| *length < 128).unwrap();
        [&[number << 3 | 2, length], bytes].concat()
    }
    let host = [field(1, b"host"), field(2, b"shop.test")].concat();
    let http = [
        field(2, b"GET"),
        field(3, &host),
        field(4, path.as_bytes()),
        field(5, b"shop.test"),
        field(6, b"http"),
        field(10, b"HTTP/1.1"),
    ];
    // attributes.request.http
    field(1, &field(4, &field(2, &http.concat())))
}

/// With its prefix: not compressed, and its length.
pub(crate) fn grpc_file(dir: &Path, path: &str) -> PathBuf {
    let message = check_request(path);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let file = dir.join("check.bin");
    fs::write(&file, [&[0], &length[..], &message].concat()).unwrap();
    file
}

#[test]
fn h2load_loses_nothing() {
    let gateway = Gateway::start();
    let load = |arguments: &[&str]| {
        let (code, said) = Gateway::ask("h2load", arguments);
        assert_eq!(code, Some(0), "{said}");
        said
    };
    let base = |name: &str| format!("unix:{}", gateway.socket(name).display());
    let own = base("own");
    let many = ["-n", "4000", "-c", "8", "--h1", "-B", &own];
    let allowed = load(&[&many[..], &["http://shop.test/do/allow"]].concat());
    assert!(
        allowed.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout") && allowed.contains("4000 2xx"),
        "{allowed}"
    );
    let denied = load(&[&many[..], &["http://shop.test/do/deny"]].concat());
    assert!(denied.contains("0 2xx, 0 3xx, 4000 4xx, 0 5xx"), "{denied}");

    let (envoy, file) = (base("envoy"), grpc_file(gateway.dir.path(), "/do/allow"));
    let checked = load(&[
        "-n",
        "4000",
        "-c",
        "4",
        "-m",
        "8",
        "-B",
        &envoy,
        "-d",
        file.to_str().unwrap(),
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
        "http://shop.test/envoy.service.auth.v3.Authorization/Check",
    ]);
    assert!(checked.contains("4000 succeeded, 0 failed, 0 errored, 0 timeout"), "{checked}");
    // Decided, and not only answered.
    let decided: u64 = decisions(&gateway.service);
    assert!(decided >= 12_000, "{decided} decisions");
}

fn decisions(service: &Service) -> u64 {
    service.status().workers.iter().map(|worker| worker.counters.allowed + worker.counters.denied).sum()
}
