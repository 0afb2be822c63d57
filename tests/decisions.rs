//! What a client sees: allowed, denied, refused, each with its reason and the digest that decided.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use portcullis::artifact::{Digest, Limits};
use portcullis::bundle::Platform;
use portcullis::client::Question;
use portcullis::compile::{self, Terms};
use portcullis::decision::{Obligations, Outcome, Refusal, Stage, TrapKind};
use portcullis::engine::Metering;
use portcullis::wire::client::Deadline;
use support::Site;

/// A decision may take a minute: a machine that stops for a second is not what is tested.
fn patient() -> Limits {
    Limits { deadline_us: 60_000_000, ..Limits::default() }
}

#[test]
fn allow_and_deny_come_with_reason_and_digest() {
    let site = Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "");
    let digest = site.install("acme", "gate", "hostile/selective", 2);
    let service = site.start();

    let decision = service.ask("acme", "gate", b"allow");
    assert_eq!(decision.outcome, Outcome::Allow);
    assert_eq!(decision.digest, Some(digest));
    assert!(decision.timing.run_ns > 0 && decision.timing.instantiate_ns > 0);

    let decision = service.ask("acme", "gate", b"deny");
    assert!(matches!(decision.outcome, Outcome::Deny { .. }), "{decision:?}");
    assert_eq!(decision.digest, Some(digest));
}

/// One class, so one worker and one engine.
#[test]
fn policies_of_both_worlds_decide_side_by_side_in_one_worker() {
    let service = Site::new()
        .class("one", "")
        .tenant("acme", "one", &[("old", "since-0.1"), ("new", "hostile/selective")], "")
        .start();
    let ask = |policy: &str, method: &str| {
        let question = Question::http(method, "https", "a.example", "/").attribute("tls.sni", "b.example");
        let (tenant, policy) = (support::tenant("acme"), support::policy(policy));
        service.client().decide(&tenant, &policy, Deadline::Default, question.input()).unwrap()
    };
    for _ in 0..3 {
        assert_eq!(ask("old", "GET").outcome, Outcome::Allow);
        let denied = ask("old", "DELETE");
        assert_eq!(denied.outcome, Outcome::Deny { reason: "read only".into() });
        assert_eq!(denied.obligations.status, Some(405));
        let decision = ask("new", "GET");
        assert_eq!(decision.outcome, Outcome::Allow);
        let [attribute] = decision.obligations.metadata.as_slice() else { panic!("{decision:?}") };
        assert_eq!((attribute.key.as_str(), attribute.value.as_str()), ("tls.sni", "b.example"));
    }
    assert!(
        service.log().contains(r#"policy=old digest="#) && service.log().contains("DELETE"),
        "the old one's host functions: {}",
        service.log()
    );
    let status = service.status();
    assert_eq!(status.workers.len(), 1);
    assert_eq!(status.workers[0].policies.len(), 2);
}

#[test]
fn a_policy_that_fails_says_so_itself_and_its_counters_are_shown() {
    let mut draft = support::draft("hostile/selective", "acme", "gate", 1);
    draft.metrics = vec!["hits".into(), "flood".into()];
    let site = Site::new().class("one", "threads = 1").tenant_of("acme", "one", &["gate"], "");
    support::write_signed(draft, &site.bundle("acme", "gate"), &site.key);
    let service = site.start();
    let failed = |bytes: &[u8]| match service.ask("acme", "gate", bytes).outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    let refusal = failed(b"fail:no-data=prices are not there");
    assert_eq!(
        refusal,
        Refusal::PolicyFailed { reason: "no-data".into(), detail: "prices are not there".into() }
    );
    // Distinct from a trap, and never what cannot be counted.
    assert_eq!(failed(b"trap"), Refusal::Trap(TrapKind::Unreachable));
    for reason in ["", "No-Data", "a b", "a\nb"] {
        let refusal = failed(format!("fail:{reason}=x").as_bytes());
        assert!(matches!(refusal, Refusal::InvalidOutput(_)), "{reason:?}: {refusal:?}");
    }

    for bytes in [&b"metric:hits=2"[..], b"metric:hits=40", b"metric:misses=1", b"metric-flood:40"] {
        assert_eq!(service.ask("acme", "gate", bytes).outcome, Outcome::Allow);
    }
    let status = service.status();
    let [worker] = status.workers.as_slice() else { panic!("{status:?}") };
    assert_eq!(worker.counters.refused_policy_failed, 1);
    let [gate] = worker.policies.as_slice() else { panic!("{status:?}") };
    // 32 of a decision's calls count; a name that the manifest does not declare never does.
    assert_eq!(gate.metrics, [("flood".to_owned(), 32), ("hits".to_owned(), 42)].into());
    assert_eq!(gate.metrics_dropped, 1 + 8);
    let shown = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["status", "--json", "--socket"])
        .arg(service.site.path("run/operator.sock"))
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["workers"][0]["policies"][0]["metrics"]["hits"], 42);
}

#[test]
fn what_the_proxy_knows_beyond_http_reaches_the_policy_from_the_command_line() {
    let service =
        Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "").start();
    let decide = |question: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["decide", "--tenant", "acme", "--policy", "gate", "--socket"])
            .arg(service.socket())
            .args(question)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = decide(&[
        "--url",
        "https://a.example/",
        "--attribute",
        "tls.sni=b.example",
        "--attribute",
        "route.name=a=b",
    ]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("tls.sni") && text.contains("b.example") && text.contains("a=b"), "{text}");
    let file = service.site.path("bytes");
    std::fs::write(&file, "fail:no-data=\u{1b}[2J").unwrap();
    let (code, text) = decide(&["--opaque", file.to_str().unwrap()]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.starts_with("refused: policy failed: no-data: ") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn a_guest_that_does_not_end_is_refused_at_its_deadline() {
    let service = Site::new()
        .class("one", "")
        .tenant(
            "acme",
            "one",
            &[("spin", "hostile/spin"), ("fill", "hostile/spin-fill"), ("copy", "hostile/spin-copy")],
            "",
        )
        .start();
    for (policy, component) in
        [("spin", "hostile/spin"), ("fill", "hostile/spin-fill"), ("copy", "hostile/spin-copy")]
    {
        let decision = service.ask_within("acme", policy, b"", Deadline::Budget { us: 200_000 });
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Deadline(Stage::Run)), "{policy}");
        assert_eq!(decision.digest, Some(Digest::of(support::code(&support::built(component)))), "{policy}");
    }
}

#[test]
fn a_guest_that_traps_is_refused_by_kind_and_the_worker_lives() {
    let service = Site::new()
        .class("one", "")
        .tenant(
            "acme",
            "one",
            &[
                ("trap", "hostile/trap"),
                ("recurse", "hostile/recurse"),
                ("div-zero", "hostile/div-zero"),
                ("grow", "hostile/grow"),
                ("out-of-bounds", "hostile/out-of-bounds"),
                ("bad-call", "hostile/bad-call"),
                ("gate", "hostile/selective"),
            ],
            "",
        )
        .start();
    let pids = |service: &support::Service| -> Vec<i32> {
        service.processes().iter().map(|process| process.pid).collect()
    };
    let before = pids(&service);
    for (policy, kind) in [
        ("trap", TrapKind::Unreachable),
        ("recurse", TrapKind::Stack),
        ("div-zero", TrapKind::Arithmetic),
        ("grow", TrapKind::Memory),
        ("out-of-bounds", TrapKind::OutOfBounds),
        ("bad-call", TrapKind::IndirectCall),
    ] {
        let decision = service.ask("acme", policy, b"");
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Trap(kind)), "{policy}");
    }
    // The same in a language that has an allocator and frames of its own.
    for (bytes, kind) in [
        (&b"memory:30000000"[..], TrapKind::Memory),
        (b"stack:1000000", TrapKind::Stack),
        (b"trap", TrapKind::Unreachable),
    ] {
        let decision = service.ask("acme", "gate", bytes);
        let shown = String::from_utf8_lossy(bytes);
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::Trap(kind)), "{shown}");
    }
    assert_eq!(pids(&service), before);
}

/// Three engines in one worker, and two tenants with the same policy.
#[test]
fn limits_are_those_of_the_manifest_within_what_class_and_tenant_give() {
    let site = Site::new()
        .class("one", "stack = \"1MiB\"\nhost_calls = 100")
        .tenant("acme", "one", &[("gate", "hostile/selective")], "host_calls = 20\nmemory = \"2MiB\"")
        .tenant("blue", "one", &[("gate", "hostile/selective")], "")
        .tenant_of("deep", "one", &["gate"], "")
        .tenant_of("counts", "one", &["gate"], "fuel = 1_000_000");
    let source = support::component("hostile/selective");
    let build = |tenant: &str, version: u64, limits: Limits| {
        let terms = Terms { metering: Metering::of(&limits), ..Terms::default() };
        let built = compile::build(&source, terms, &[Platform::host()]).unwrap();
        let (tenant, gate) = (support::tenant(tenant), support::policy("gate"));
        built.draft(source.clone(), tenant, gate, version, limits)
    };
    let fuel = Limits { fuel: Some(u64::MAX >> 1), stack: 1 << 20, ..patient() };
    support::write_signed(build("counts", 1, fuel), &site.bundle("counts", "gate"), &site.key);
    let deep = Limits { stack: 512 << 10, ..patient() };
    support::write_signed(build("deep", 1, deep), &site.bundle("deep", "gate"), &site.key);
    let service = site.start();
    let outcome = |tenant: &str, bytes: &[u8]| service.ask(tenant, "gate", bytes).outcome;
    let trap = |kind| Outcome::Refused(Refusal::Trap(kind));
    for (tenant, most) in [("acme", 20), ("blue", 100)] {
        let calls = |n: u32| outcome(tenant, format!("clock-flood:{n}").as_bytes());
        assert_eq!(calls(most), Outcome::Allow, "{tenant}");
        assert_eq!(calls(most + 1), trap(TrapKind::HostCalls), "{tenant}");
    }
    assert_eq!(outcome("acme", b"memory:3000000"), trap(TrapKind::Memory));
    assert_eq!(outcome("blue", b"memory:3000000"), Outcome::Allow);
    assert_eq!(outcome("counts", b"work:1000"), Outcome::Allow);
    assert_eq!(outcome("counts", b"work:10000000"), trap(TrapKind::Fuel));
    assert_eq!(outcome("blue", b"work:10000000"), Outcome::Allow);
    // A guest that does not end, in an engine that few have, ends at its deadline as well.
    assert_eq!(outcome("deep", b"allow"), Outcome::Allow);
    let spins = service.ask_within("deep", "gate", b"spin", Deadline::Budget { us: 200_000 });
    assert_eq!(spins.outcome, Outcome::Refused(Refusal::Deadline(Stage::Run)));

    // What does not count is not loaded where it has to, and says so; the version before stays.
    let draft = build("counts", 2, Limits::default());
    support::write_signed(draft, &service.site.bundle("counts", "gate"), &service.site.key);
    assert_eq!(service.reload(), None);
    let status = service.status();
    let mut policies = status.workers.iter().flat_map(|worker| &worker.policies);
    let gate = policies.rfind(|one| one.tenant.as_str() == "counts").unwrap();
    assert!(gate.held_back.is_some(), "{gate:?}");
    assert_eq!(gate.serving.as_ref().unwrap().version, 1);
    assert_eq!(outcome("counts", b"work:1000"), Outcome::Allow);
}

#[test]
fn nothing_of_a_request_is_there_for_the_next() {
    // One slot, so that every instance has the memory of the one before it.
    let service = Site::new()
        .class("one", "threads = 1\ninstances = 1")
        .tenant("acme", "one", &[("canary", "hostile/canary")], "")
        .start();
    let mut connection = service.connect("acme");
    let question = Question::opaque("", b"a pattern that would be seen again");
    let (acme, canary) = (support::tenant("acme"), support::policy("canary"));
    for _ in 0..10_000 {
        connection.send(&acme, &canary, Deadline::Default, question.input()).unwrap();
        connection.flush().unwrap();
        let (_, decision) = connection.receive().unwrap();
        assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}");
        assert_eq!(decision.obligations.metadata[0].value, "clean");
    }
}

#[test]
fn what_a_guest_returns_is_believed_as_a_whole_or_not_at_all() {
    let service = Site::new()
        .class("one", "")
        .tenant(
            "acme",
            "one",
            &[
                ("lie", "hostile/lie-lengths"),
                ("huge", "hostile/huge-output"),
                ("bad", "hostile/bad-headers"),
                ("gate", "hostile/selective"),
            ],
            "",
        )
        .start();
    // What belongs to a connection or frames a message, and what is no status, in a language that makes it easy.
    for bytes in [
        "header:Connection=close",
        "header:keep-alive=timeout=5",
        "header:te=trailers",
        "header:Trailer=x",
        "header:Transfer-Encoding=chunked",
        "header:upgrade=h2c",
        "header:proxy-connection=close",
        "header:Proxy-Authenticate=Basic",
        "header:proxy-authorization=Basic eDp5",
        "header:Content-Length=0",
        "header:host=other.example",
        "header:x=1\r\nset-cookie: a=b",
        "header:x=1\n",
        "header::path=/admin",
        "status:999",
        "status:99",
    ] {
        let decision = service.ask("acme", "gate", bytes.as_bytes());
        assert!(
            matches!(decision.outcome, Outcome::Refused(Refusal::InvalidOutput(_))),
            "{bytes}: {decision:?}"
        );
        assert_eq!(decision.obligations, Obligations::default(), "{bytes}");
    }
    // The control: the same policy, and what may be said.
    let decision = service.ask("acme", "gate", b"header:x=1");
    assert_eq!((decision.outcome, decision.obligations.headers_set.len()), (Outcome::Allow, 1));
    for (policy, variants) in [("lie", "pahrwnudsUof"), ("huge", "brx"), ("bad", "szneNrUx")] {
        for variant in variants.chars() {
            let decision = service.ask("acme", policy, variant.to_string().as_bytes());
            assert!(
                matches!(decision.outcome, Outcome::Refused(Refusal::InvalidOutput(_))),
                "{policy} {variant}: {decision:?}"
            );
            assert_eq!(decision.obligations, Obligations::default());
        }
    }
}

#[test]
fn the_clock_stands_still_and_random_numbers_differ_between_requests() {
    let service =
        Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "").start();
    let ask = |bytes: &[u8]| service.ask("acme", "gate", bytes).obligations.metadata;
    let before = std::time::SystemTime::now();
    let clock = ask(b"clock");
    let after = std::time::SystemTime::now();
    let values: Vec<u128> = clock.iter().map(|one| one.value.parse().unwrap()).collect();
    let ns = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    assert!(values.iter().all(|value| (ns(before)..=ns(after)).contains(value)), "{clock:?}");
    assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{clock:?}");
    assert_ne!(ask(b"random"), ask(b"random"));
}

/// The seed of a decision is where its policy says what it did with it, and nowhere else.
#[test]
fn what_was_random_can_be_asked_again_with_the_seed_in_the_log() {
    let guest = r#"(module
        (import "portcullis:policy/random@1.0.0" "get-u64" (func $random (result i64)))
        (import "portcullis:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))
        (memory (export "memory") 2)
        (data (i32.const 2048) "before")
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))
        (func (export "decide") (param i32) (result i32) (local $number i64) (local $at i32)
            (call $log (i32.const 1) (i32.const 2048) (i32.const 6))
            (local.set $number (call $random))
            (loop $next
                (i32.store8 offset=1024 (local.get $at)
                    (i32.add (i32.const 97) (i32.wrap_i64 (i64.and (local.get $number) (i64.const 15)))))
                (local.set $number (i64.shr_u (local.get $number) (i64.const 4)))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br_if $next (i32.lt_u (local.get $at) (i32.const 16))))
            (call $log (i32.const 1) (i32.const 1024) (i32.const 16))
            (i32.const 512)))"#;
    let site = Site::new().class("one", "").tenant_of("acme", "one", &["gate"], "");
    let component = compile::componentize(guest.as_bytes()).unwrap();
    let built = compile::build(&component, Terms::default(), &[Platform::host()]).unwrap();
    let (acme, gate) = (support::tenant("acme"), support::policy("gate"));
    let draft = built.draft(component.clone(), acme, gate, 1, patient());
    support::write_signed(draft, &site.bundle("acme", "gate"), &site.key);
    std::fs::write(site.path("gate.wasm"), component).unwrap();
    std::fs::write(site.path("question"), "").unwrap();
    let service = site.start();
    let [first_id, other_id] = [(); 2].map(|()| {
        let decision = service.ask("acme", "gate", b"");
        assert_eq!(decision.outcome, Outcome::Allow);
        decision.id.unwrap()
    });
    assert_ne!(first_id, other_id);
    let log = service.log();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.starts_with("INFO worker:") && line.contains("guest=")).collect();
    let [first, one, again, other] = lines.as_slice() else { panic!("{log}") };
    assert!(first.contains("before") && again.contains("before"), "{log}");
    for (line, id) in [(first, first_id), (one, first_id), (again, other_id), (other, other_id)] {
        assert!(line.contains(&format!(" decision={id} ")), "{id} is not in {line}");
    }
    assert!(!first.contains("seed=") && !again.contains("seed="), "nothing was drawn yet: {log}");
    let number = |line: &str| line.split_once("guest=\"\\\"").unwrap().1[..16].to_owned();
    let seed = |line: &str| line.split_once(" seed=").unwrap().1.to_owned();
    assert_ne!(seed(one), seed(other));
    for line in [one, other] {
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["policy", "run", "--json", "--deadline", "60s", "--seed", &seed(line), "--opaque"])
            .arg(service.site.path("question"))
            .arg(service.site.path("gate.wasm"))
            .output()
            .unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&run.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&run.stderr)));
        let logged: Vec<_> = answer["host_calls"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|call| call["log"]["message"].as_str())
            .collect();
        assert_eq!(logged, ["before", &number(line)]);
    }
}

/// Nobody looks at signatures before a policy is tried, and it is tried with the rights of whoever does so: what is run is made
/// of the source, whatever machine code a bundle brings.
#[test]
fn code_that_a_bundle_brings_is_not_run_outside_of_the_service() {
    use portcullis::decision::Input;
    use portcullis::rehearsal::{Granted, Subject};

    let built = |policy: &str| {
        let source = support::component(policy);
        (compile::build(&source, Terms::default(), &[Platform::host()]).unwrap(), source)
    };
    let (good, source) = built("hostile/selective");
    let (evil, _) = built("hostile/canary");
    let (acme, gate) = (support::tenant("acme"), support::policy("gate"));
    let mut draft = good.draft(source, acme, gate, 1, patient());
    draft.compiled[0].cwasm = evil.code_for(Platform::host()).unwrap().to_vec();
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("gate");
    portcullis::bundle::write::create(&draft.assemble().unwrap(), &path).unwrap();
    let subject = Subject::open(&path, &Granted::default()).unwrap();
    assert_eq!(subject.digest(), Digest::of(good.code_for(Platform::host()).unwrap()));
    assert!(!subject.shipped);
    let input = Input::Opaque { content_type: "", bytes: b"deny:as the source says" };
    let input = portcullis::wire::frame::encode(&input, 1 << 20).unwrap();
    let call = portcullis::engine::Call { input: input.into(), clock_ns: 0, seed: [0; 32], id: None };
    let outcome = subject.ask(call, None, None).decision.outcome;
    assert_eq!(outcome, Outcome::Deny { reason: "as the source says".into() });
}

/// The same words, asked of the service and tried outside of it with the bundle that the service was given.
#[test]
fn a_policy_that_is_tried_has_the_limits_that_it_is_served_with() {
    use portcullis::decision::Input;
    use portcullis::rehearsal::{Granted, Subject};

    let site = Site::new().class("one", "").tenant("acme", "one", &[("gate", "hostile/selective")], "");
    let subject = Subject::open(&site.bundle("acme", "gate"), &Granted::default()).unwrap();
    assert!(subject.shipped, "the very same code");
    let service = site.start();
    let mut memory = 0;
    for word in [
        "allow",
        "deny:no",
        "trap",
        "memory:1000000",
        "memory:3900000",
        "memory:4200000",
        "memory:8000000",
        "size:60000",
        "size:70000",
        "many:100",
        "many:200",
        "status:999",
        "header:connection=close",
    ] {
        let input = Input::Opaque { content_type: "", bytes: word.as_bytes() };
        let input = portcullis::wire::frame::encode(&input, 1 << 20).unwrap();
        let call = portcullis::engine::Call { input: input.into(), clock_ns: 0, seed: [0; 32], id: None };
        let tried = subject.ask(call, None, None).decision;
        let served = service.ask("acme", "gate", word.as_bytes());
        assert_eq!((&tried.outcome, &tried.obligations), (&served.outcome, &served.obligations), "{word}");
        assert_eq!(tried.digest, served.digest);
        memory += u32::from(served.outcome == Outcome::Refused(Refusal::Trap(TrapKind::Memory)));
    }
    assert!(memory >= 2, "control: some of them want more than they may have");
}
