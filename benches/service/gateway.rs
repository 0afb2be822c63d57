//! What it costs to be asked through the gateway: over HTTP against the native protocol, and, where `OPA_ENVOY_BIN` names a
//! binary, over Envoy's gRPC against OPA's plugin for Envoy with the same policy and the same h2load.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::decision::{Header, HttpRequest, Input, Peer};
use portcullis::wire::client::CLIENT_FRAME_MAX;
use portcullis::wire::frame;
use tempfile::TempDir;

use crate::Plan;
use crate::load::{Exchange, Halves, Load, closed_loop, cpu_ns, event_loop, percentile};
use crate::opa::Opa;
use crate::report::{Reach, Row, Spread, median};
use crate::subject::{TENANT, processes, question};
use crate::support::{FRONTEND_UID, PATIENCE, Service, Site, is_root};
use crate::wire::Wire;

/// Rego, for both of us: roles by the identity that the proxy has authenticated.
const ROLES: &str = "roles";
const REGO: &str = include_str!("../../policies/template/rego/policy/policy.rego");
const DATA: &str = include_str!("../../policies/template/rego/policy/data.json");
/// Small and quick, so that the way there is what is measured.
const RATES: &str = "rates";
const HEADERS: [(&str, &str); 8] = [
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-encoding", "gzip, deflate, br"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("cache-control", "no-cache"),
    ("cookie", "session=0123456789abcdef0123456789abcdef"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("x-request-id", "5f0c1c9e-6f7e-4a80-9a5c-1d2f3b4c5d6e"),
    ("x-forwarded-for", "192.0.2.7"),
];
const PATH: &str = "/catalog/4711";
const PRINCIPAL: &str = "spiffe://shop.example/web";
/// The gateway's UID as root.
const GATEWAY_UID: u32 = FRONTEND_UID + 17;

pub(super) fn compared(plan: &Plan) -> Vec<Row> {
    let gateway = Gateway::start();
    let mut rows = against_native(plan, &gateway);
    if let Some(binary) = std::env::var_os("OPA_BIN") {
        rows.extend(against_rest(plan, &gateway, Path::new(&binary)));
    }
    if let Some(binary) = std::env::var_os("OPA_ENVOY_BIN") {
        rows.extend(against_opa_envoy(plan, &gateway, Path::new(&binary)));
    }
    rows
}

/// The service with a listener for HTTP and one for Envoy.
struct Gateway {
    service: Service,
}

impl Gateway {
    fn start() -> Self {
        let mut site = Site::new().class("one", "");
        for (policy, component) in [(ROLES, "template/rego/policy"), (RATES, "rate-class")] {
            site.install(TENANT, policy, component, 1);
        }
        let uid = nix::unistd::geteuid();
        let identity =
            if is_root() { format!("uid = {GATEWAY_UID}\ngid = {GATEWAY_UID}\n") } else { String::new() };
        writeln!(
            site.tables,
            "[tenant.{TENANT}]\nclass = \"one\"\npolicies = [{ROLES:?}, {RATES:?}]\nuids = [{uid}]\n\
             max_deadline = \"5s\"\ndefault_deadline = \"2s\"\n[gateway]\n{identity}"
        )
        .unwrap();
        for (name, policy, protocol) in [
            ("http", RATES, "protocol = \"http\"\nrequest = \"own\""),
            ("rego", ROLES, "protocol = \"http\"\nrequest = \"own\""),
            ("envoy", ROLES, "protocol = \"envoy-grpc\""),
        ] {
            let socket = site.path("run").join(format!("{name}.sock"));
            writeln!(
                site.tables,
                "[gateway.listener.{name}]\nsocket = {socket:?}\ntenant = {TENANT:?}\npolicy = {policy:?}\ndeadline = \"2s\"\n{protocol}"
            )
            .unwrap();
        }
        Self { service: site.start() }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.service.site.path("run").join(format!("{name}.sock"))
    }

    fn http(&self, name: &str, path: &str) -> Http {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\n");
        for (name, value) in HEADERS {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        Http {
            stream: UnixStream::connect(self.socket(name)).unwrap(),
            request: request + "\r\n",
            buffer: vec![0; 16 << 10],
        }
    }
}

/// One kept-alive connection whose answer has to be 200.
struct Http {
    stream: UnixStream,
    request: String,
    buffer: Vec<u8>,
}

impl Exchange for Http {
    fn exchange(&mut self) {
        self.send();
        self.receive();
    }
}

impl AsFd for Http {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Halves for Http {
    fn send(&mut self) {
        self.stream.write_all(self.request.as_bytes()).unwrap();
    }

    fn receive(&mut self) {
        let mut have = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[have..]).unwrap();
            assert!(read > 0, "the gateway closed the connection");
            have += read;
            // An open gate's answer has no body.
            if self.buffer[..have].ends_with(b"\r\n\r\n") {
                let opens = self.buffer.starts_with(b"HTTP/1.1 200 ");
                assert!(opens, "{}", String::from_utf8_lossy(&self.buffer[..have]));
                return;
            }
        }
    }
}

/// Who asks.
#[derive(Clone, Copy)]
enum Asker {
    /// One thread with all connections, as a worker of nginx, Envoy or HAProxy has them.
    EventLoop,
    /// A thread for each connection, so that each answer wakes somebody.
    Threads,
}

impl Asker {
    const ALL: [Self; 2] = [Self::EventLoop, Self::Threads];

    fn load(self, peers: &mut [impl Exchange + Halves], servers: &[i32], duration: Duration) -> Load {
        match self {
            Self::EventLoop => event_loop(peers, servers, duration),
            Self::Threads => closed_loop(peers, servers, duration),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::EventLoop => "",
            Self::Threads => "-threads",
        }
    }

    fn described(self, connections: usize) -> String {
        match self {
            Self::EventLoop => format!("{connections} connections of one thread"),
            Self::Threads => format!("{connections} connections, each of a thread of its own"),
        }
    }
}

/// The same question over both ways in, and the same policy: what is more is the gateway's.
fn against_native(plan: &Plan, gateway: &Gateway) -> Vec<Row> {
    let service = &gateway.service;
    let pids = processes(service);
    let headers = HEADERS.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
    let input = Input::Http(HttpRequest {
        method: "GET",
        scheme: "http",
        host: "shop.example",
        path: PATH,
        query: None,
        headers,
        body: None,
        source: Peer::default(),
        destination: Peer::default(),
        attributes: Vec::new(),
    });
    let native = question(TENANT, 1, RATES, &frame::encode(&input, CLIENT_FRAME_MAX).unwrap());
    let mut rows = Vec::new();
    for connections in [4, 16] {
        let mut natives: Vec<Wire> =
            (0..connections).map(|_| Wire::asking(service, TENANT, native.clone())).collect();
        let mut https: Vec<Http> = (0..connections).map(|_| gateway.http("http", PATH)).collect();
        // The first question of each is not measured: connections to the worker are made with it.
        https.iter_mut().for_each(Http::exchange);
        for asker in Asker::ALL {
            let rounds: Vec<(Load, Load)> = (0..plan.rounds)
                .map(|_| {
                    let native = asker.load(&mut natives, &pids, plan.round);
                    (asker.load(&mut https, &pids, plan.round), native)
                })
                .collect();
            let (name, who) = (asker.name(), asker.described(connections));
            let added = Spread::of(rounds.iter().map(|(http, native)| http.cpu_us - native.cpu_us));
            let slower = Spread::of(
                rounds.iter().map(|(http, native)| http.percentile(50.0) / native.percentile(50.0)),
            );
            rows.push(
                Row::new(
                    &format!("gateway/{connections}{name}-cpu"),
                    format!("server CPU that a decision takes more over HTTP through the gateway than natively, {who}"),
                    "us",
                    added,
                )
                .reach(Reach::AtMost(12.0))
                .detail(both(&rounds)),
            );
            rows.push(Row::new(
                &format!("gateway/{connections}{name}-p50"),
                format!("p50 over HTTP through the gateway, {who}, against natively"),
                "x",
                slower,
            ));
        }
    }
    rows
}

/// The medians of two sides that were measured in turn.
fn both(rounds: &[(Load, Load)]) -> String {
    let figure = |of: &dyn Fn(&Load) -> f64| {
        let ours = median(rounds.iter().map(|round| of(&round.0)));
        format!("{ours:.1} against {:.1}", median(rounds.iter().map(|round| of(&round.1))))
    };
    format!(
        "CPU {} us; {} per second; p50 {}, p99 {} us",
        figure(&|load| load.cpu_us),
        figure(&|load| load.per_second),
        figure(&|load| load.percentile(50.0)),
        figure(&|load| load.percentile(99.0))
    )
}

/// OPA's own API, asked for the same Rego by as many connections.
fn against_rest(plan: &Plan, gateway: &Gateway, binary: &Path) -> Vec<Row> {
    const CONNECTIONS: usize = 4;
    let pids = processes(&gateway.service);
    let opa = Opa::start(binary, &[("policy.rego", REGO), ("data.json", DATA)]);
    // A path that is anybody's: over HTTP nobody is authenticated. OPA is asked for what is true or false.
    let headers: Vec<String> = HEADERS.iter().map(|(name, value)| format!("{name:?}: {value:?}")).collect();
    let input = format!(
        r#"{{"attributes": {{"request": {{"http": {{"method": "GET", "path": "/health", "host": "shop.example", "headers": {{{}}}}}}}}}}}"#,
        headers.join(", ")
    );
    let mut theirs: Vec<_> =
        (0..CONNECTIONS).map(|_| opa.connect("gate/answer/allowed", &input).unwrap()).collect();
    let mut ours: Vec<Http> = (0..CONNECTIONS).map(|_| gateway.http("rego", "/health")).collect();
    ours.iter_mut().for_each(Http::exchange);
    Asker::ALL
        .map(|asker| {
            let rounds: Vec<(Load, Load)> = (0..plan.rounds)
                .map(|_| {
                    let theirs = asker.load(&mut theirs, &[opa.pid()], plan.round);
                    (asker.load(&mut ours, &pids, plan.round), theirs)
                })
                .collect();
            let ratios = Spread::of(
                rounds.iter().map(|(ours, theirs)| ours.percentile(50.0) / theirs.percentile(50.0)),
            );
            let who = asker.described(CONNECTIONS);
            let what =
                format!("p50 of forward-auth over HTTP, {who}, against OPA's REST API with the same Rego");
            Row::new(&format!("gateway/rest{}-p50", asker.name()), what, "x", ratios)
                .reach(Reach::AtMost(0.6))
                .detail(both(&rounds))
        })
        .into()
}

/// What one h2load came to.
struct Run {
    p50_us: f64,
    p99_us: f64,
    per_second: f64,
    cpu_us: f64,
    count: u64,
}

fn allowed(service: &Service) -> u64 {
    service.status().workers.iter().map(|worker| worker.counters.allowed).sum()
}

fn against_opa_envoy(plan: &Plan, gateway: &Gateway, binary: &Path) -> Vec<Row> {
    let theirs = OpaEnvoy::start(binary);
    let check = theirs.dir.path().join("check.bin");
    fs::write(&check, check_request()).unwrap();
    // h2load looks at no answer, so one of each is looked at before.
    for socket in [theirs.socket(), gateway.socket("envoy")] {
        assert_opens(&socket, &check);
    }
    let pids = processes(&gateway.service);
    [4, 16]
        .into_iter()
        .flat_map(|connections| {
            let rounds: Vec<(Run, Run)> = (0..plan.rounds)
                .map(|_| {
                    let round = |socket: &Path, pids: &[i32]| h2load(socket, &check, connections, pids, plan.round);
                    let theirs = round(&theirs.socket(), &[theirs.pid()]);
                    let before = allowed(&gateway.service);
                    let ours = round(&gateway.socket("envoy"), &pids);
                    // What was not allowed shows here.
                    let allowed = allowed(&gateway.service) - before;
                    assert!(allowed >= ours.count, "{allowed} of {} were allowed", ours.count);
                    (theirs, ours)
                })
                .collect();
            let row = |name: &str, what: &str, reach: Option<Reach>, of: fn(&Run) -> f64| {
                let ratios = Spread::of(rounds.iter().map(|(theirs, ours)| of(ours) / of(theirs)));
                let detail = format!(
                    "{:.1} against {:.1}",
                    median(rounds.iter().map(|round| of(&round.1))),
                    median(rounds.iter().map(|round| of(&round.0)))
                );
                let what = format!("ext_authz over gRPC, {connections} connections, against opa-envoy with the same Rego: {what}");
                let row = Row::new(&format!("gateway/{connections}-opa-envoy-{name}"), what, "x", ratios).detail(detail);
                match reach {
                    Some(reach) => row.reach(reach),
                    None => row,
                }
            };
            // The issue asks for latencies at 4 connections, and for processor time at both.
            let at_four = |reach| (connections == 4).then_some(reach);
            [
                row("p50", "p50, us", at_four(Reach::AtMost(0.5)), |run| run.p50_us),
                row("p99", "p99, us", at_four(Reach::AtMost(0.2)), |run| run.p99_us),
                row("cpu", "server CPU, us", Some(Reach::AtMost(0.5)), |run| run.cpu_us),
                row("throughput", "per second", at_four(Reach::AtLeast(2.0)), |run| run.per_second),
            ]
        })
        .collect()
}

/// The policy gives a header with whatever it allows, and none with a denial.
fn assert_opens(socket: &Path, question: &Path) {
    let output = Command::new("curl")
        .args(["-s", "--http2-prior-knowledge", "--max-time", "10", "--unix-socket"])
        .arg(socket)
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary"])
        .arg(format!("@{}", question.display()))
        .arg("http://shop.example/envoy.service.auth.v3.Authorization/Check")
        .output()
        .unwrap_or_else(|error| panic!("start curl: {error}"));
    let allowed = output.stdout.windows(6).any(|window| window == b"x-role");
    assert!(allowed, "{socket:?}: {:?}", String::from_utf8_lossy(&output.stdout));
}

/// Unary calls, one at a time on each connection, for `duration`.
fn h2load(socket: &Path, question: &Path, connections: usize, servers: &[i32], duration: Duration) -> Run {
    let log = question.with_extension("log");
    let _ = fs::remove_file(&log);
    let connections = connections.to_string();
    let seconds = duration.as_secs_f64().max(1.0).round().to_string();
    let cpu_before = cpu_ns(servers);
    let output = Command::new("h2load")
        .args(["-D", &seconds, "-c", &connections, "-m", "1", "-t", "1"])
        .arg("-B")
        .arg(format!("unix:{}", socket.display()))
        .arg("-d")
        .arg(question)
        .arg(format!("--log-file={}", log.display()))
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .arg("http://shop.example/envoy.service.auth.v3.Authorization/Check")
        .output()
        .unwrap_or_else(|error| panic!("start h2load: {error}; apt-get install nghttp2-client"));
    let cpu = cpu_ns(servers) - cpu_before;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(" 0 failed, 0 errored, 0 timeout"), "{said}");
    // When it began, the status, how long it took; microseconds.
    let text = fs::read_to_string(&log).unwrap();
    let mut latencies: Vec<f64> = Vec::new();
    let (mut first, mut last) = (u64::MAX, 0);
    for line in text.lines() {
        let mut columns = line.split('\t');
        let (began, status): (u64, &str) =
            (columns.next().unwrap().parse().unwrap(), columns.next().unwrap());
        let took: u64 = columns.next().unwrap().parse().unwrap();
        assert_eq!(status, "200", "{line}");
        latencies.push(took as f64);
        (first, last) = (first.min(began), last.max(began + took));
    }
    latencies.sort_by(f64::total_cmp);
    let count = latencies.len() as f64;
    Run {
        count: latencies.len() as u64,
        p50_us: percentile(&latencies, 50.0),
        p99_us: percentile(&latencies, 99.0),
        per_second: count / ((last - first) as f64 / 1e6),
        cpu_us: cpu as f64 / 1e3 / count,
    }
}

/// A `CheckRequest` with its gRPC prefix; the fields' numbers are those of Envoy's public API.
fn check_request() -> Vec<u8> {
    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2], &*varint(bytes.len()), bytes].concat()
    }
    let entry = |(name, value): &(&str, &str)| {
        field(3, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
    };
    let headers: Vec<u8> = HEADERS.iter().flat_map(entry).collect();
    let http = [
        field(1, b"1234567890"),
        field(2, b"GET"),
        headers,
        field(4, PATH.as_bytes()),
        field(5, b"shop.example"),
        field(6, b"http"),
        field(10, b"HTTP/1.1"),
    ]
    .concat();
    let source = field(1, &field(4, PRINCIPAL.as_bytes()));
    let attributes = [source, field(4, &field(2, &http))].concat();
    let message = field(1, &attributes);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat()
}

/// OPA with its plugin for Envoy; ended when dropped.
struct OpaEnvoy {
    child: Child,
    dir: TempDir,
}

impl OpaEnvoy {
    fn start(binary: &Path) -> Self {
        let dir = TempDir::with_prefix("portcullis-opa-envoy-").unwrap();
        fs::write(dir.path().join("policy.rego"), REGO).unwrap();
        fs::write(dir.path().join("data.json"), DATA).unwrap();
        let unix = |name: &str| format!("unix://{}", dir.path().join(name).display());
        let child = Command::new(binary)
            .args(["run", "--server", "--log-level", "error", "--disable-telemetry", "--addr", &unix("rest")])
            .args(["--set", &format!("plugins.envoy_ext_authz_grpc.addr={}", unix("grpc"))])
            .args(["--set", "plugins.envoy_ext_authz_grpc.path=gate/answer"])
            .args(["policy.rego", "data.json"].map(|name| dir.path().join(name)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("start {binary:?}: {error}"));
        let opa = Self { child, dir };
        let patience = Instant::now() + PATIENCE;
        while UnixStream::connect(opa.socket()).is_err() {
            assert!(Instant::now() < patience, "opa-envoy does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        opa
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("grpc")
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }
}

impl Drop for OpaEnvoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
