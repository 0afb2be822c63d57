//! Data in a running service: whose it is, how often it is in memory, which version is read, and where it can be found in plain.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use portcullis::artifact::Limits;
use portcullis::bundle::{DataDraft, SecretKey, write};
use portcullis::compile::{self, Built, Terms};
use portcullis::decision::{Outcome, Refusal, Timing};
use portcullis::table::Builder;
use portcullis::wire::control::ProcessState;
use portcullis::wire::operator::{DataServing, PolicyStatus};

use crate::support::{self, Service, Site, policy, sign_bundle, tenant, write_signed};

/// Denies with the value of the key that it is asked, allows where there is none.
const GET: &str = r#"
  (import "portcullis:policy/data@1.0.0" "get" (func $get (param i32 i32 i32)))
  (func $answer (param $request i32)
    (call $get (i32.load offset=12 (local.get $request)) (i32.load offset=16 (local.get $request)) (i32.const 2048))
    (if (i32.load8_u (i32.const 2048))
      (then (call $deny (i32.load (i32.const 2052)) (i32.load (i32.const 2056))))))"#;

/// Denies with the last of the first ten keys that begin with what it is asked, allows where there is none.
const LIST: &str = r#"
  (import "portcullis:policy/data@1.0.0" "entries" (func $entries (param i32 i32 i32 i32 i32 i32 i32)))
  (func $answer (param $request i32)
    (local $last i32)
    (call $entries (i32.load offset=12 (local.get $request)) (i32.load offset=16 (local.get $request))
      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 10) (i32.const 2048))
    (if (i32.load (i32.const 2052))
      (then
        (local.set $last (i32.add (i32.load (i32.const 2048))
          (i32.mul (i32.const 16) (i32.sub (i32.load (i32.const 2052)) (i32.const 1)))))
        (call $deny (i32.load (local.get $last)) (i32.load offset=4 (local.get $last))))))"#;

/// Components of the two, and what they are built to.
fn guest(answer: &'static str) -> &'static (Vec<u8>, Built) {
    static BOTH: OnceLock<[(Vec<u8>, Built); 2]> = OnceLock::new();
    let both = BOTH.get_or_init(|| {
        [GET, LIST].map(|answer| {
            let module = format!(
                r#"(module {answer}
                (memory (export "memory") 48)
                (global $free (mut i32) (i32.const 4096))
                (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
                  (local $at i32)
                  (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
                  (global.set $free (i32.add (local.get $at) (local.get $size)))
                  (local.get $at))
                (func $deny (param $text i32) (param $length i32)
                  (i32.store8 (i32.const 1028) (i32.const 1))
                  (i32.store (i32.const 1032) (local.get $text))
                  (i32.store (i32.const 1036) (local.get $length)))
                (func (export "decide") (param $request i32) (result i32)
                  (call $answer (local.get $request))
                  (i32.const 1024)))"#
            );
            let source = compile::componentize(module.as_bytes()).unwrap();
            let built = compile::build(&source, Terms::default(), &[portcullis::bundle::Platform::host()]);
            (source, built.unwrap_or_else(|error| panic!("{error}")))
        })
    });
    if answer == GET { &both[0] } else { &both[1] }
}

fn install(
    site: &Site,
    (tenant_name, name): (&str, &str),
    version: u64,
    answer: &'static str,
    data: &[&str],
) {
    let (source, built) = guest(answer);
    // It may take a minute: a machine that stops for a second is not what is tested.
    let limits = Limits { deadline_us: 60_000_000, ..Limits::default() };
    let mut draft = built.draft(source.clone(), tenant(tenant_name), policy(name), version, limits);
    draft.data = data.iter().map(|name| (*name).to_owned()).collect();
    write_signed(draft, &site.bundle(tenant_name, name), &site.key);
}

fn deliver(
    site: &Site,
    (tenant_name, name): (&str, &str),
    version: u64,
    table: &Builder,
    secret: Option<&SecretKey>,
) {
    let draft = DataDraft { name: policy(name), tenant: tenant(tenant_name), version, table: table.build() };
    let path = site.bundle(tenant_name, name);
    write::create(&draft.assemble(secret).unwrap(), &path).unwrap();
    sign_bundle(&path, &site.key);
}

fn table(entries: &[(&str, &str)]) -> Builder {
    let mut table = Builder::default();
    for (key, value) in entries {
        table.add(*key, *value).unwrap();
    }
    table
}

/// What the policy says of a key; nothing, if there is none.
fn said(service: &Service, tenant_name: &str, name: &str, key: &str) -> Option<String> {
    match service.ask(tenant_name, name, key.as_bytes()).outcome {
        Outcome::Allow => None,
        Outcome::Deny { reason } => Some(reason),
        other => panic!("{other:?}\n{}", service.log()),
    }
}

fn status(service: &Service, tenant_name: &str, name: &str) -> PolicyStatus {
    let status = service.status();
    let newest = status.workers.iter().max_by_key(|worker| worker.generation).unwrap();
    let of = |one: &&PolicyStatus| one.tenant == tenant(tenant_name) && one.policy == policy(name);
    newest.policies.iter().find(of).cloned().unwrap()
}

fn read(service: &Service, tenant_name: &str, name: &str) -> Vec<DataServing> {
    status(service, tenant_name, name).serving.map(|serving| serving.data).unwrap_or_default()
}

/// Two tenants in one worker, with data of the same name and keys.
#[test]
fn data_is_its_tenants_alone_and_newer_data_is_read_by_the_next_generation() {
    let site = Site::new()
        .class("one", "")
        .tenant_of("acme", "one", &["get", "list"], "data = [\"prices\", \"secrets\"]\n")
        .tenant_of("globex", "one", &["get", "thief", "none"], "data = [\"prices\"]\n");
    deliver(&site, ("acme", "secrets"), 1, &table(&[("canary", "only acme may read this")]), None);
    deliver(
        &site,
        ("acme", "prices"),
        1,
        &table(&[("a/1", "acme one"), ("a/2", "acme two"), ("b", "")]),
        None,
    );
    deliver(&site, ("globex", "prices"), 1, &table(&[("a/1", "globex one")]), None);
    install(&site, ("acme", "get"), 1, GET, &["prices", "secrets"]);
    install(&site, ("acme", "list"), 1, LIST, &["prices"]);
    install(&site, ("globex", "get"), 1, GET, &["prices"]);
    install(&site, ("globex", "thief"), 1, GET, &["secrets"]);
    install(&site, ("globex", "none"), 1, GET, &[]);
    let service = site.start();

    let canary = Some("only acme may read this".to_owned());
    assert_eq!(said(&service, "acme", "get", "canary"), canary, "control: it is in that worker");
    assert_eq!(said(&service, "globex", "get", "canary"), None);
    assert_eq!(said(&service, "globex", "none", "canary"), None, "it may call, and reads nothing");
    assert_eq!(said(&service, "acme", "list", "canary"), None, "nor is it the other policy's of that tenant");
    let refusal = service.ask("globex", "thief", b"canary").outcome;
    assert_eq!(refusal, Outcome::Refused(Refusal::UnknownPolicy));
    let why = status(&service, "globex", "thief").refused.unwrap();
    assert!(why.contains("reads data \"secrets\", which its tenant does not have"), "{why}");

    assert_eq!(said(&service, "acme", "get", "a/1").as_deref(), Some("acme one"));
    assert_eq!(said(&service, "acme", "get", "b").as_deref(), Some(""));
    assert_eq!(said(&service, "acme", "get", "a/"), None);
    assert_eq!(said(&service, "acme", "list", "a/").as_deref(), Some("a/2"));
    assert_eq!(said(&service, "acme", "list", "").as_deref(), Some("b"));
    assert_eq!(said(&service, "globex", "get", "a/1").as_deref(), Some("globex one"));
    let before = read(&service, "acme", "get");
    let versions: Vec<_> = before.iter().map(|data| (data.data.to_string(), data.version)).collect();
    assert_eq!(versions, [("prices".to_owned(), 1), ("secrets".to_owned(), 1)]);

    deliver(&service.site, ("acme", "prices"), 2, &table(&[("a/1", "acme three")]), None);
    assert_eq!(service.reload(), None);
    assert_eq!(said(&service, "acme", "get", "a/1").as_deref(), Some("acme three"));
    assert_eq!(said(&service, "globex", "get", "a/1").as_deref(), Some("globex one"));
    let after = read(&service, "acme", "get");
    assert_eq!(after[0].version, 2);
    assert!(after[0].bundle != before[0].bundle && after[1].bundle == before[1].bundle);

    // What is no good is named, and the last good one is read.
    let path = service.site.bundle("acme", "prices");
    fs::write(path.join("index.json"), b"{}").unwrap();
    assert_eq!(service.reload(), None);
    assert_eq!(said(&service, "acme", "get", "a/1").as_deref(), Some("acme three"));
    let held_back = read(&service, "acme", "get")[0].held_back.clone().unwrap();
    assert!(held_back.contains("index.json"), "{held_back}");
}

/// 100 MB, read by three policies: in the worker's memory once, and none of it its own.
#[test]
fn a_hundred_megabytes_are_mapped_once_and_shared_by_all() {
    const VALUE: usize = 1 << 20;
    let mut large = Builder::default();
    for number in 0..100_u8 {
        large.add(format!("key/{number:03}"), vec![b'a' + number % 26; VALUE]).unwrap();
    }
    large.add("small", "is found").unwrap();
    let site = Site::new().class("one", "").tenant_of(
        "acme",
        "one",
        &["get", "other", "list", "none"],
        "data = [\"large\"]\n",
    );
    install(&site, ("acme", "none"), 1, GET, &[]);
    let began = Instant::now();
    let service = site.start();
    let without = began.elapsed();
    let site = service.into_site();
    deliver(&site, ("acme", "large"), 1, &large, None);
    drop(large);
    for (name, answer) in [("get", GET), ("other", GET), ("list", LIST)] {
        install(&site, ("acme", name), 1, answer, &["large"]);
    }
    // Verified, and kept; from then on it starts with what it has.
    let began = Instant::now();
    let service = site.start();
    let first = began.elapsed();
    let site = service.into_site();
    let began = Instant::now();
    let service = site.start();
    println!(
        "start without data {without:?}, with 100 MB that are new {first:?}, with 100 MB that are known {:?}",
        began.elapsed()
    );
    figures(&service);
    for name in ["get", "other"] {
        assert_eq!(said(&service, "acme", name, "small").as_deref(), Some("is found"));
    }
    // A listing is bounded, and its first entry comes however long it is.
    assert_eq!(said(&service, "acme", "list", "key/09").as_deref(), Some("key/090"));
    if !support::is_root() {
        // Nobody of its UID looks into a worker.
        return;
    }
    let worker = service
        .status()
        .processes
        .processes
        .into_iter()
        .find(|process| process.role == "worker" && process.state == ProcessState::Serving);
    let worker = worker.unwrap().pid;
    let smaps = || fs::read_to_string(format!("/proc/{worker}/smaps")).unwrap();
    let large = mappings(&smaps()).into_iter().filter(|mapping| mapping.size > 90_000).collect::<Vec<_>>();
    let tables: Vec<_> =
        large.iter().filter(|mapping| mapping.name.contains("memfd:portcullis-policy")).collect();
    assert_eq!(tables.len(), 1, "{tables:?}");
    assert_eq!(tables[0].permissions, "r--p");
    assert_eq!(tables[0].own, 0, "every page is the memory file's: {tables:?}");
    let before = own(worker);
    for number in 0..100 {
        assert_eq!(said(&service, "acme", "get", &format!("small{number}")), None);
        assert_eq!(said(&service, "acme", "other", "small").as_deref(), Some("is found"));
    }
    let grown = own(worker).saturating_sub(before);
    assert!(grown < 20_000, "200 instances later {grown} kB more are the worker's own");
    println!("a worker with 100 MB of data: {before} kB of its own, {} kB mapped", tables[0].size);
    let open: Vec<u64> = fs::read_dir(format!("/proc/{worker}/fd"))
        .unwrap()
        .filter_map(|entry| Some(fs::metadata(entry.unwrap().path()).ok()?.len()))
        .collect();
    assert!(open.iter().any(|len| *len > 10_000), "control: policies are held by descriptors: {open:?}");
    assert!(open.iter().all(|len| *len < 90_000_000), "the table needs none: {open:?}");
}

/// For whoever reads the test's output: medians of 400 decisions each, in nanoseconds. Nothing is asserted of them.
fn figures(service: &Service) {
    for (what, name, key) in [
        ("get without data", "none", "small"),
        ("get of 8 bytes among 100 MB", "get", "small"),
        ("get of what is not there", "get", "smaller"),
        ("entries, 10 of 1 MiB stopped at the first", "list", "key/"),
        ("entries, 1 of 8 bytes", "list", "small"),
    ] {
        let timings: Vec<_> = (0..400).map(|_| service.ask("acme", name, key.as_bytes()).timing).collect();
        let median = |of: fn(&Timing) -> u64| {
            let mut all: Vec<u64> = timings.iter().map(of).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let (fresh, run, host) = (
            median(|timing| timing.instantiate_ns),
            median(|timing| timing.run_ns),
            median(|timing| timing.host_ns),
        );
        println!("{what}: fresh instance {fresh}, run {run}, of it in the host {host}");
    }
}

#[derive(Debug)]
struct Mapping {
    name: String,
    permissions: String,
    /// Kilobytes: all of it, and what is not the file's.
    size: u64,
    own: u64,
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap();
        if let Some(field) = first.strip_suffix(':') {
            let kilobytes = words.next().and_then(|value| value.parse().ok()).unwrap_or(0);
            let mapping = found.last_mut().unwrap();
            match field {
                "Size" => mapping.size = kilobytes,
                "Anonymous" => mapping.own = kilobytes,
                _ => {}
            }
        } else {
            let permissions = words.next().unwrap().to_owned();
            let name = words.skip(3).collect::<Vec<_>>().join(" ");
            found.push(Mapping { name, permissions, size: 0, own: 0 });
        }
    }
    found
}

/// Kilobytes of a process that are no file's.
fn own(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Encrypted where it is stored, in plain where it is read, and in no file between the two.
#[test]
fn what_is_confidential_is_read_and_is_in_plain_in_no_file() {
    let canary = "a canary that is on no disk in plain";
    let secret = SecretKey::generate().unwrap();
    let mut site = Site::new().class("one", "").tenant_of("acme", "one", &["get"], "data = [\"secrets\"]\n");
    let path = site.path("secret.key");
    fs::write(&path, secret.to_text().as_bytes()).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    site.registry = format!("secret = {path:?}\n");
    deliver(&site, ("acme", "secrets"), 1, &table(&[("key", canary)]), Some(&secret));
    install(&site, ("acme", "get"), 1, GET, &["secrets"]);
    let service = site.start();
    assert_eq!(said(&service, "acme", "get", "key").as_deref(), Some(canary));
    let in_plain = |dir: &Path| {
        let (mut found, mut looked_at, mut folders) = (BTreeSet::new(), 0, vec![dir.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(bytes) = fs::read(&path) {
                    looked_at += 1;
                    if bytes.windows(canary.len()).any(|window| window == canary.as_bytes()) {
                        found.insert(path);
                    }
                }
            }
        }
        assert!(looked_at > 8, "{looked_at} files were looked at");
        found
    };
    if support::is_root() {
        assert_eq!(in_plain(service.site.dir.path()), BTreeSet::new());
    }
    let text = secret.to_text();
    assert!(!service.log().contains(text.split_whitespace().nth(1).unwrap()), "the key is in no log");
    // Without its key it is not read any more; nothing else changes.
    let mut site = service.into_site();
    site.registry.clear();
    let service = site.start();
    assert_eq!(service.ask("acme", "get", b"key").outcome, Outcome::Refused(Refusal::UnknownPolicy));
    let why = status(&service, "acme", "get").refused.unwrap();
    assert!(why.contains(&format!("encrypted with key {}, and there is no key here", secret.id())), "{why}");
    // Not marked, it would have been found.
    deliver(&service.site, ("acme", "secrets"), 2, &table(&[("key", canary)]), None);
    assert_eq!(service.reload(), None);
    assert_eq!(said(&service, "acme", "get", "key").as_deref(), Some(canary), "control");
    if support::is_root() {
        assert!(!in_plain(service.site.dir.path()).is_empty(), "control");
    }
}
