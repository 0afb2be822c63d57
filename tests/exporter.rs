//! Telemetry as a scraper meets it: what is told, at which doors, for how long, and that decisions never notice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

#[path = "support/ports.rs"]
mod ports;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::SigningKey;
use portcullis::decision::Outcome;
use portcullis::wire::control::{Process, ProcessState};
use ports::free_port;
use support::{PATIENCE, Service, Site, draft, is_root, tenant, write_signed};

/// What an answer said: status, headers and body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

trait Way: Read + Write {}
impl<T: Read + Write> Way for T {}

fn by_unix(service: &Service) -> UnixStream {
    let stream = UnixStream::connect(service.site.path("run/telemetry.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(mut way: impl Way, request: &str) -> Answer {
    way.write_all(request.as_bytes()).unwrap();
    let mut said = String::new();
    way.read_to_string(&mut said).unwrap();
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {said:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn get(way: impl Way, path: &str, accept: &str) -> Answer {
    ask(way, &format!("GET {path} HTTP/1.1\r\nHost: portcullis\r\nAccept: {accept}\r\n\r\n"))
}

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";

/// Every series by name and labels, as it stands before its value.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let one = |line: &str| {
        let sample = line.split(" # ").next().unwrap();
        let (name, value) = sample.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    lines.map(one).collect()
}

fn scrape(service: &Service) -> BTreeMap<String, f64> {
    let answer = get(by_unix(service), "/metrics", OPEN_METRICS);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.ends_with("\n# EOF\n"), "{}", answer.body);
    series(&answer.body)
}

/// Scrapes until it is so: what processes do is told a little after they did it.
fn scrape_until(service: &Service, so: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
    let until = Instant::now() + PATIENCE;
    loop {
        let told = scrape(service);
        if so(&told) {
            return told;
        }
        assert!(Instant::now() < until, "{told:#?}\n{}", service.log());
    }
}

fn processes(service: &Service, role: &str) -> Vec<Process> {
    let all = service.processes().into_iter();
    all.filter(|process| process.role == role && process.state == ProcessState::Serving).collect()
}

/// The one that serves, as soon as it is told of: the service is ready without its exporter, and a process that answers is told of
/// a moment later.
fn serving(service: &Service, role: &str) -> Process {
    // Nobody has this number.
    again(service, role, 0)
}

/// The one that serves, other than `before`.
fn again(service: &Service, role: &str, before: i32) -> Process {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(one) = processes(service, role).into_iter().find(|process| process.pid != before) {
            return one;
        }
        assert!(Instant::now() < until, "no new {role}\n{}", service.log());
    }
}

fn site() -> Site {
    Site::new().class("one", "threads = 1\n").tenant("acme", "one", &[("gate", "hostile/selective")], "")
}

fn allowed(service: &Service) {
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
}

#[test]
fn both_doors_tell_the_same_in_the_format_that_is_asked_for() {
    let port = free_port();
    let service =
        site().telemetry(&format!("listen = \"127.0.0.1:{port}\"\nsocket_mode = \"0600\"\n")).start();
    serving(&service, "exporter");
    let mode = fs::metadata(service.site.path("run/telemetry.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let by_tcp = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let open = get(by_tcp(), "/metrics", OPEN_METRICS);
    assert!(open.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", open.head);
    let names = |text: &str| series(text).into_keys().collect::<Vec<_>>();
    let plain = get(by_unix(&service), "/metrics", "text/plain");
    assert!(plain.head.contains("content-type: text/plain; version=0.0.4"), "{}", plain.head);
    assert!(!plain.body.contains("# EOF") && plain.body.contains("# TYPE wasm_pool_hit_total counter\n"));
    assert_eq!(names(&open.body), names(&plain.body));
    for expected in [
        "wasm_tenant_invocations_total{tenant=\"acme\",module=\"gate\"}",
        "wasm_tenant_cpu_seconds_total{tenant=\"acme\"}",
        "wasm_tenant_memory_pages{tenant=\"acme\"}",
        "wasm_tenant_concurrent_calls{tenant=\"acme\"}",
        "wasm_tenant_egress_bytes_total{tenant=\"acme\"}",
        "wasm_tenant_jit_compile_seconds_total{tenant=\"acme\"}",
        "wasm_cold_start_seconds_count{class=\"one\"}",
        "wasm_aot_load_seconds_count{class=\"one\"}",
        "wasm_snapshot_resume_seconds_count{class=\"one\"}",
        "wasm_pool_hit_total{class=\"one\"}",
        "wasm_pool_miss_total{class=\"one\"}",
        "wasm_instance_pool_size{class=\"one\"}",
        "wasm_signature_verification_failure_total",
        "portcullis_decision_stage_microseconds_bucket{class=\"one\",stage=\"queue\",le=\"1.0\"}",
        "portcullis_generation{role=\"worker\",class=\"one\"}",
        "portcullis_processes{role=\"exporter\",class=\"\",state=\"serving\"}",
    ] {
        assert!(series(&open.body).contains_key(expected), "no {expected} in\n{}", open.body);
    }
    let distinct = series(&open.body)["portcullis_isolation_distinct_uids"];
    assert_eq!(distinct == 1.0, is_root());

    let well = get(by_tcp(), "/healthz", "*/*");
    assert_eq!((well.status, well.body.as_str()), (200, "ok\n"));
    assert_eq!(get(by_unix(&service), "/", "*/*").status, 404);
    let posted = ask(by_unix(&service), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(posted.status, 405);
    assert!(posted.head.contains("allow: get, head"), "{}", posted.head);
}

#[test]
fn nonsense_and_silence_end_a_connection_and_nothing_else() {
    let service = site().telemetry("").start();
    scrape_until(&service, |_| true);
    let exporter = serving(&service, "exporter").pid;
    for nonsense in [
        "\r\n\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X-Y: z\r\n".repeat(1000)),
        "\u{0}\u{1}\u{2}".repeat(10_000),
    ] {
        let mut scraper = by_unix(&service);
        // It may be sent away before it has said all.
        let _ = scraper.write_all(nonsense.as_bytes());
        let mut said = Vec::new();
        match scraper.read_to_end(&mut said) {
            Ok(_) => assert!(!said.starts_with(b"HTTP/1.1 200"), "{nonsense:.40}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{nonsense:.40}"),
        }
    }
    // Who says nothing is sent away within seconds.
    let mut silent = by_unix(&service);
    let mut said = Vec::new();
    silent.read_to_end(&mut said).unwrap();
    scrape(&service);
    assert_eq!(serving(&service, "exporter").pid, exporter, "the same one all the time");
}

/// Each is a connection that has begun to ask and does not go on, or that asks for everything and reads nothing.
#[test]
fn slow_scrapers_do_not_keep_others_out() {
    let service = site().telemetry("").start();
    scrape_until(&service, |_| true);
    let slow: Vec<UnixStream> = (0..100)
        .map(|number| {
            let mut scraper = by_unix(&service);
            let asked: &[u8] = if number % 2 == 0 {
                b"GET /metrics HT"
            } else {
                b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
            };
            // Those that came first may be gone by now.
            let _ = scraper.write_all(asked);
            scraper
        })
        .collect();
    scrape(&service);
    allowed(&service);
    drop(slow);
}

#[test]
fn an_exporter_that_dies_is_replaced_and_no_decision_notices() {
    let service = site().telemetry("").start();
    scrape_until(&service, |_| true);
    let mut open = service.client();
    open.ping(&tenant("acme"), PATIENCE).unwrap();
    let worker = processes(&service, "worker")[0].pid;
    let before = serving(&service, "exporter").pid;
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let exporter = serving(&service, "exporter").pid;
        kill(Pid::from_raw(exporter), signal).unwrap();
        // The very connection from before, and one of its own.
        open.ping(&tenant("acme"), PATIENCE).unwrap();
        allowed(&service);
        again(&service, "exporter", exporter);
        scrape_until(&service, |_| true);
    }
    let told = scrape_until(&service, |told| {
        told.get("portcullis_process_restarts_total{role=\"exporter\",class=\"\"}") == Some(&2.0)
    });
    assert!(told.contains_key("wasm_tenant_invocations_total{tenant=\"acme\",module=\"gate\"}"));
    assert_ne!(serving(&service, "exporter").pid, before);
    assert_eq!(processes(&service, "worker")[0].pid, worker);
    assert_eq!(service.reload(), None);
    allowed(&service);
}

/// The socket's directory has it already, as something that is none.
#[test]
fn without_a_socket_there_is_no_telemetry_and_the_service_decides() {
    let site = site().telemetry("");
    fs::write(site.path("run/telemetry.sock"), "precious").unwrap();
    let service = site.start();
    allowed(&service);
    assert!(service.log().contains("there is no telemetry until a restart"), "{}", service.log());
    assert_eq!(processes(&service, "exporter"), []);
    assert_eq!(service.reload(), None);
    assert!(service.log().contains("WARNING: there is no telemetry"), "{}", service.log());
    assert_eq!(fs::read_to_string(service.site.path("run/telemetry.sock")).unwrap(), "precious");
}

#[test]
fn a_port_that_is_taken_leaves_the_unix_socket() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"\n", taken.local_addr().unwrap());
    let service = site().telemetry(&listen).start();
    scrape_until(&service, |_| true);
    assert!(service.log().contains("telemetry is on its Unix socket alone"), "{}", service.log());
}

#[test]
fn counters_outlive_the_workers_and_the_registry_that_wrote_them() {
    let service = site().telemetry("").start();
    let loads = "wasm_aot_load_seconds_count{class=\"one\"}";
    scrape_until(&service, |told| told.get(loads) == Some(&1.0));
    let worker = processes(&service, "worker")[0].pid;
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    again(&service, "worker", worker);
    let told = scrape_until(&service, |told| told[loads] == 2.0);
    let built = told["wasm_tenant_jit_compile_seconds_total{tenant=\"acme\"}"];
    assert!(built > 0.0, "a builder has checked it");
    assert_eq!(told["portcullis_builds_total{tenant=\"acme\",result=\"good\"}"], 1.0);
    let registry = processes(&service, "registry")[0].pid;
    kill(Pid::from_raw(registry), Signal::SIGKILL).unwrap();
    again(&service, "registry", registry);
    let told = scrape(&service);
    assert!(told["wasm_tenant_jit_compile_seconds_total{tenant=\"acme\"}"] >= built);
    // The exporter itself keeps nothing either.
    let exporter = serving(&service, "exporter").pid;
    kill(Pid::from_raw(exporter), Signal::SIGKILL).unwrap();
    again(&service, "exporter", exporter);
    scrape_until(&service, |told| told[loads] >= 2.0);
}

#[test]
fn a_bundle_that_nobody_trusted_signed_is_counted_once() {
    let service = site().telemetry("").start();
    let (good, bad) = ("portcullis_signatures_verified_total", "wasm_signature_verification_failure_total");
    let told = scrape_until(&service, |told| told[good] >= 1.0);
    assert_eq!(told[bad], 0.0);
    let stranger = SigningKey::generate_ed25519().unwrap();
    let bundle = service.site.bundle("acme", "gate");
    fs::remove_dir_all(&bundle).unwrap();
    write_signed(draft("hostile/selective", "acme", "gate", 2), &bundle, &stranger);
    for _ in 0..2 {
        assert_eq!(service.reload(), None);
        scrape_until(&service, |told| told[bad] == 1.0);
    }
    // Nor by the registry that comes next, once it has looked at the store.
    let registry = processes(&service, "registry")[0].pid;
    kill(Pid::from_raw(registry), Signal::SIGKILL).unwrap();
    again(&service, "registry", registry);
    assert_eq!(service.reload(), None);
    assert_eq!(scrape(&service)[bad], 1.0);
    allowed(&service);
}

#[test]
fn a_tenant_that_is_removed_has_no_series_and_one_beyond_the_limit_is_in_the_sum() {
    let policies = [("gate", "hostile/selective")];
    let service = site()
        .tenant("blue", "one", &policies, "")
        .tenant("cyan", "one", &policies, "")
        .telemetry("max_tenants = 2\n")
        .start();
    let of = |name: &str| format!("wasm_tenant_egress_bytes_total{{tenant=\"{name}\"}}");
    let told = scrape_until(&service, |_| true);
    let there = |told: &BTreeMap<String, f64>| {
        ["acme", "blue", "cyan", "other"].map(|name| told.contains_key(&of(name)))
    };
    assert_eq!(there(&told), [true, true, false, true]);
    assert!(!told.keys().any(|name| name.contains("\"cyan\"")), "{told:#?}");

    let config = fs::read_to_string(service.site.path("portcullis.toml")).unwrap();
    let without: Vec<&str> = config.split("[tenant.blue]").collect();
    let rest = without[1].split_once("[tenant.cyan]").unwrap().1;
    fs::write(service.site.path("portcullis.toml"), format!("{}[tenant.cyan]{rest}", without[0])).unwrap();
    assert_eq!(service.reload(), None);
    let told = scrape_until(&service, |told| !told.keys().any(|name| name.contains("\"blue\"")));
    // Who is in the sum stays there: a sum that became less would be taken for one that began anew.
    assert_eq!(there(&told), [true, false, false, true]);
}

/// Asked by one client that is answered before the next question: so all of it was counted by then.
#[test]
fn what_was_decided_is_what_is_told_by_tenant_policy_and_outcome() {
    let policies = [("gate", "hostile/selective"), ("hash", "hash")];
    let service = Site::new()
        .class("one", "threads = 1\n")
        .tenant("acme", "one", &policies, "")
        .tenant("blue", "one", &policies[..1], "")
        .telemetry("")
        .start();
    scrape_until(&service, |_| true);
    let asked = [[("acme", "gate", "allow"); 5].as_slice(), &[("acme", "gate", "deny"); 3]].concat();
    let asked =
        [asked, vec![("acme", "hash", "x"), ("acme", "gate", "trap"), ("blue", "gate", "allow")]].concat();
    let mut ids = BTreeSet::new();
    for (tenant, policy, word) in asked {
        let decision = service.ask(tenant, policy, word.as_bytes());
        ids.insert(hex::encode(decision.id.expect("a decision has a name").as_bytes()));
    }

    let outcome = |tenant: &str, outcome: &str| {
        format!("portcullis_decisions_total{{tenant=\"{tenant}\",outcome=\"{outcome}\"}}")
    };
    let invoked = |tenant: &str, module: &str| {
        format!("wasm_tenant_invocations_total{{tenant=\"{tenant}\",module=\"{module}\"}}")
    };
    let expected = [
        (outcome("acme", "allow"), 6.0),
        (outcome("acme", "deny"), 3.0),
        (outcome("acme", "trap"), 1.0),
        (outcome("blue", "allow"), 1.0),
        (invoked("acme", "gate"), 9.0),
        (invoked("acme", "hash"), 1.0),
        (invoked("blue", "gate"), 1.0),
        ("portcullis_decision_latency_microseconds_count{tenant=\"acme\"}".to_owned(), 10.0),
        ("portcullis_decision_stage_microseconds_count{class=\"one\",stage=\"run\"}".to_owned(), 11.0),
    ];
    let as_expected =
        |told: &BTreeMap<String, f64>| expected.iter().all(|(series, value)| told.get(series) == Some(value));
    let told = scrape_until(&service, as_expected);
    assert!(told["wasm_tenant_cpu_seconds_total{tenant=\"acme\"}"] > 0.0);
    assert!(told["wasm_tenant_egress_bytes_total{tenant=\"acme\"}"] > 0.0);
    let slots = told["wasm_pool_hit_total{class=\"one\"}"] + told["wasm_pool_miss_total{class=\"one\"}"];
    assert_eq!(slots, 11.0, "each instance found its image in a slot, or did not");
    assert_eq!(told["wasm_tenant_concurrent_calls{tenant=\"acme\"}"], 0.0);

    // Exemplars are named as the client heard it.
    let body = get(by_unix(&service), "/metrics", OPEN_METRICS).body;
    let exemplars: Vec<&str> =
        body.lines().filter_map(|line| line.split_once("decision_id=\"")?.1.split('"').next()).collect();
    assert!(!exemplars.is_empty() && exemplars.iter().all(|id| ids.contains(*id)), "{exemplars:?}: {ids:?}");

    // All of it outlives the worker that counted.
    let worker = processes(&service, "worker")[0].pid;
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    again(&service, "worker", worker);
    scrape_until(&service, as_expected);
}

/// As Prometheus itself judges it.
#[test]
fn promtool_reads_what_is_told_and_every_series_of_alerts_and_dashboard_is() {
    // Spans are told of where they are sent somewhere; nobody needs to be there.
    let service = site().telemetry(&format!("otlp = \"http://127.0.0.1:{}\"\n", free_port())).start();
    scrape_until(&service, |_| true);
    allowed(&service);
    let told = get(by_unix(&service), "/metrics", "text/plain").body;
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool: apt-get install prometheus");
    promtool.stdin.take().unwrap().write_all(told.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
    // Deadlines are a few milliseconds: docs/observability/README.md.
    let known = "use base unit \"seconds\" instead of \"microseconds\"";
    let others: Vec<&str> = said.lines().filter(|line| !line.ends_with(known)).collect();
    assert_eq!(others, [""; 0]);
    assert_eq!(said.lines().count(), 3, "the control: it does find something\n{said}");

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/observability");
    let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 20);
    let families: BTreeSet<&str> =
        told.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let readme = text("README.md");
    for family in &families {
        assert!(readme.contains(&format!("`{family}")), "README.md says nothing of {family}");
    }
    for name in ["alerts.yml", "dashboard.json", "README.md"] {
        let text = text(name);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let series = words.filter(|word| {
            (word.starts_with("wasm_") || word.starts_with("portcullis_")) && !word.ends_with('_')
        });
        let mut seen = 0;
        for word in series {
            seen += 1;
            let family = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(families.contains(family), "{name} has {word}, which nothing tells");
        }
        assert!(seen > 10, "{name}: {seen} series");
    }
}
