//! Data of megabytes, from `policy build` to a decision of the service: parsed once, in every instance from the first instruction on.

use std::fs;
use std::time::{Duration, Instant};

use portcullis::compile::RegoError;
use portcullis::decision::Outcome;
use serde_json::{Value, json};

use crate::asked::built;
use crate::read;
use crate::service::{bad, build, good, text};
use crate::support::{Site, sign_bundle};

/// Roles of as many users as make a document of this many bytes, besides those of the example.
fn roles(bytes: usize) -> Vec<u8> {
    let mut data: Value = serde_json::from_slice(&read("policies/rbac.json")).unwrap();
    // `"user-00000000":["employee","customer"],`
    for user in 0..bytes / 40 {
        data["user_roles"][format!("user-{user:08}")] = json!(["employee", "customer"]);
    }
    data.to_string().into_bytes()
}

/// Builds, signs and serves the RBAC policy with a document of so many bytes, with machine code or without, and says what each
/// step took.
fn through_everything(bytes: usize, memory: &str, code: bool, more: &str) {
    let desk = tempfile::tempdir().unwrap();
    let document = desk.path().join("roles.json");
    fs::write(&document, roles(bytes)).unwrap();
    let mut site = Site::new()
        .uids_from(if code { 61_710 } else { 61_720 })
        .class("web", &format!("memory = \"{memory}\"\n"))
        .tenant_of("acme", "web", &["gate"], "");
    site.tables += more;
    site.service = "answer_within = \"30s\"\n".into();
    let out = site.bundle("acme", "gate");
    let module = crate::folder().join("policies/rbac.wasm");
    let options =
        ["--entrypoint", "app/rbac/allow", "--document", text(&document), "--memory", memory, "--json"];

    let begun = Instant::now();
    let mut arguments = build(text(&module), text(&out), &options);
    if !code {
        let at = arguments.iter().position(|argument| *argument == "--platform").unwrap();
        arguments.splice(at..at + 2, ["--no-code"]);
    }
    let made: Value = serde_json::from_str(&good(&arguments)).unwrap();
    let built = begun.elapsed();
    sign_bundle(&out, &site.key);
    let begun = Instant::now();
    let service = site.start();
    let started = begun.elapsed();

    let ask = |user: &str| {
        let input = json!({"user": user, "action": "read", "type": "dog"}).to_string();
        service.ask("acme", "gate", input.as_bytes())
    };
    let last = format!("user-{:08}", bytes / 40 - 1);
    for user in ["bob", "user-00000000", last.as_str()] {
        assert_eq!(ask(user).outcome, Outcome::Allow, "{user}: {}", service.log());
    }
    assert_eq!(ask("user-99999999").outcome, Outcome::Deny { reason: "denied".into() });
    let mut times: Vec<u64> = (0..200).map(|_| ask(&last).timing.instantiate_ns).collect();
    times.sort_unstable();
    let megabytes = |bytes: &Value| bytes.as_u64().unwrap_or(0) as f64 / 1e6;
    println!(
        "document of {:.1} MB: built in {:.1} s, starts with {:.1} MB of memory, bundle of {:.1} MB, machine code of {:.1} MB; \
         service ready after {:.1} s; fresh instance p50 {:.1} us",
        bytes as f64 / 1e6,
        built.as_secs_f64(),
        megabytes(&made["memory"]),
        megabytes(&made["bytes"]),
        megabytes(&made["code"][0]["bytes"]),
        started.as_secs_f64(),
        Duration::from_nanos(times[times.len() / 2]).as_secs_f64() * 1e6,
    );
}

#[test]
fn five_megabytes_go_from_a_build_to_a_decision() {
    through_everything(5_000_000, "128MiB", true, "");
}

/// What a host compiles itself has to be allowed as much.
#[test]
fn five_megabytes_are_compiled_by_a_host_that_gives_its_builder_room() {
    // The times are for a machine that others keep busy.
    let more = "[builder]\nmemory = \"2GiB\"\ncpu = \"120s\"\nwall = \"120s\"\noutput = \"256MiB\"\n";
    through_everything(5_000_000, "128MiB", false, more);
}

#[test]
fn fifty_megabytes_where_they_are_asked_for() {
    if std::env::var_os("REGO_LARGE").is_none() {
        println!("REGO_LARGE is not set: nothing is built, which would take minutes and 8 GB of memory");
        return;
    }
    let more = "[builder]\nmemory = \"4GiB\"\ncpu = \"120s\"\nwall = \"180s\"\noutput = \"1GiB\"\n";
    through_everything(50_000_000, "1GiB", true, more);
}

/// Numbers in one array take a hundred times as much in memory as in the document.
#[test]
fn what_would_need_more_memory_than_there_is_is_refused_with_its_size() {
    let data = format!(r#"{{"numbers":[{}0]}}"#, "0,".repeat(7_000_000));
    let refused = built(&read("policies/results.wasm"), Some(data.as_bytes()), None).map(drop).unwrap_err();
    let RegoError::Memory { len, parsed } = &refused else { panic!("{refused}") };
    assert_eq!(*len, data.len());
    assert!((1_300_000_000..1_400_000_000).contains(parsed), "{parsed}");
    let why = refused.to_string();
    let expected = format!(
        "data.json has 14000015 bytes, about {parsed} when it is parsed, and a memory ends at 1073741824; read large tables \
         from a data snapshot, by `portcullis.data.get`"
    );
    assert!(why.starts_with(&expected), "{why}");
}

#[test]
fn a_document_that_is_too_long_is_refused_before_it_is_read() {
    let desk = tempfile::tempdir().unwrap();
    let (document, out) = (desk.path().join("roles.json"), desk.path().join("gate.tar"));
    fs::File::create(&document).unwrap().set_len(60_000_000).unwrap();
    let module = crate::folder().join("policies/rbac.wasm");
    let options = ["--entrypoint", "app/rbac/allow", "--document", text(&document)];
    let said = bad(&build(text(&module), text(&out), &options), &[]);
    assert!(
        said.contains("has 60000000 bytes, at most 52428800 are parsed, and about 900000000 would be"),
        "{said}"
    );
    assert!(said.contains("portcullis.data.get"), "{said}");
}

/// What an instance starts with is more than policies and classes have by default: each says what to raise.
#[test]
fn limits_that_are_too_low_for_the_data_are_named() {
    let desk = tempfile::tempdir().unwrap();
    let (document, out) = (desk.path().join("roles.json"), desk.path().join("gate.tar"));
    fs::write(&document, roles(500_000)).unwrap();
    let module = crate::folder().join("policies/rbac.wasm");
    let options = ["--entrypoint", "app/rbac/allow", "--document", text(&document)];
    let said = bad(&build(text(&module), text(&out), &options), &[]);
    assert!(said.contains("bytes of memory, its limit would be 4194304; raise --memory"), "{said}");
}
