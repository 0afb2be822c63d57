//! Policies in Rego, tried by `portcullis policy test`: which rules its cases ran, tables they look into, and the limits that a
//! service would hold it to.

use std::path::Path;
use std::process::{Command, Output};

use portcullis::engine::Notes;
use portcullis::rehearsal::{Answer, Cases};
use serde_json::{Value, json};

use crate::folder;
use crate::service::{build, good, text};
use crate::support::{Site, sign_bundle};

/// A bundle of a committed module, with these cases beside it.
fn desk(module: &str, more: &[&str], cases: &Value) -> tempfile::TempDir {
    let desk = tempfile::tempdir().unwrap();
    let module = folder().join("policies").join(module);
    good(&build(text(&module), text(&desk.path().join("gate.tar")), more));
    std::fs::write(desk.path().join("cases.json"), cases.to_string()).unwrap();
    desk
}

fn case(name: &str, input: &Value, expect: &Value) -> Value {
    let opaque = json!({"content_type": "application/json", "text": input.to_string()});
    json!({"name": name, "input": {"opaque": opaque}, "expect": expect})
}

fn tested(desk: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["policy", "test", "gate.tar"]).args(more).current_dir(desk).output().unwrap()
}

fn report(desk: &Path, more: &[&str]) -> Value {
    let output = tested(desk, &[&["--json"], more].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn coverage_is_by_rule_and_rules_have_their_names() {
    let allowed = case("a", &json!({"a": true}), &json!({"outcome": "allow"}));
    let denied = json!({"outcome": "deny", "reason": "undefined"});
    let bad = case("bad", &json!({"kind": "bad"}), &denied);
    let desk = desk("conflict.wasm", &[], &json!([allowed.clone()]));
    let coverage = |cases: Value| {
        std::fs::write(desk.path().join("cases.json"), cases.to_string()).unwrap();
        let report = report(desk.path(), &["--coverage"]);
        assert_eq!(report["failed"], 0, "{report}");
        report["policies"][0]["coverage"].clone()
    };
    let rule = |name: &str, ran: bool| json!({"name": name, "ran": ran});
    // The function is called for a request that has a kind.
    let some = coverage(json!([allowed.clone()]));
    assert_eq!(some["of"], "rules", "{some}");
    assert_eq!(
        some["parts"],
        json!([rule("data.conflict.allow", true), rule("data.conflict.blocked", false)])
    );
    let people = tested(desk.path(), &["--coverage"]).stdout;
    let people = String::from_utf8_lossy(&people).into_owned();
    assert!(people.contains("1 of 2 rules; no case runs data.conflict.blocked"), "{people}");
    let all = coverage(json!([allowed, bad]));
    assert_eq!((&all["ran"], &all["all"]), (&json!(2), &json!(2)), "{all}");

    let flame = desk.path().join("flame.svg");
    let bundle = desk.path().join("gate.tar");
    good(&["bench", text(&bundle), "--runs", "50", "--flame", text(&flame)]);
    let flame = std::fs::read_to_string(flame).unwrap();
    for name in ["data.conflict.allow", "data.conflict.blocked"] {
        assert!(flame.contains(&format!("<title>{name}: ")), "{name} is not in the picture");
    }
}

#[test]
fn cases_name_tables_that_lie_upon_each_other() {
    let user = |user: &str, expect: Value| case(user, &json!({ "user": user }), &expect);
    let unknown = json!({"outcome": "deny", "reason": "nobody knows them"});
    let ann = json!({"outcome": "allow", "metadata": {"limit": "12", "teams": r#"["red"]"#}});
    let mut own = user("ann", unknown.clone());
    own["name"] = "of its own".into();
    own["data"] = json!({"user/ann": {"active": false}});
    let mut none = user("ann", unknown);
    none["name"] = "none".into();
    none["tables"] = json!([]);
    let cases = json!({"tables": ["people.ndjson", "base"], "cases": [user("ann", ann), own, none]});
    let desk = desk("tables.wasm", &["--data", "people", "--data", "base"], &cases);
    let lines =
        "{\"key\":\"user/ann\",\"value\":{\"active\":true}}\n{\"key\":\"limits\",\"value\":{\"ann\":12}}\n";
    std::fs::write(desk.path().join("people.ndjson"), lines).unwrap();
    let document = desk.path().join("base.json");
    std::fs::write(&document, r#"{"team": {"red": "ann", "blue": "ben"}, "limits": {"ann": 3}}"#).unwrap();
    let arguments =
        ["data", "build", text(&document), "--tenant", "acme", "--name", "base", "--version", "1"];
    let built = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .args(["--depth", "2", "--out", "base"])
        .current_dir(desk.path())
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    // Taken apart two levels deep, the other `limits` is `limits/ann`.
    let passed = report(desk.path(), &[]);
    assert_eq!((&passed["passed"], &passed["failed"]), (&json!(3), &json!(0)), "{passed}");

    std::fs::remove_file(desk.path().join("people.ndjson")).unwrap();
    let output = tested(desk.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("people.ndjson"), "{}", complaint(&output));
}

#[test]
fn under_a_services_configuration_a_policy_gets_what_the_service_gives() {
    let calls = case("calls", &json!({}), &json!({"outcome": "trap", "trap": "host_calls"}));
    let desk = desk("world.wasm", &[], &json!([calls]));
    let site = Site::new()
        .uids_from(61_740)
        .class("web", "memory = \"3MiB\"\noutput = \"2KiB\"\n")
        .tenant_of("acme", "web", &["gate"], "host_calls = 1\n")
        .tenant_of("free", "web", &["other"], "");
    let config = desk.path().join("portcullis.toml");
    std::fs::write(&config, site.config()).unwrap();
    let under = |more: &[&str]| report(desk.path(), &[&["--config", text(&config)], more].concat());

    let control = report(desk.path(), &[]);
    assert_eq!(control["failed"], 1, "with nothing but its manifest's limits it has calls enough: {control}");
    let here = under(&[]);
    assert_eq!(here["passed"], 1, "{here}");
    let limits = &here["policies"][0]["policy"]["limits"];
    assert_eq!((&limits["memory"], &limits["output"]), (&json!(3 << 20), &json!(2 << 10)), "{limits}");
    let other = under(&["--tenant", "free"]);
    assert_eq!(other["failed"], 1, "another tenant has another ceiling: {other}");
    assert_eq!(other["policies"][0]["policy"]["limits"]["memory"], 3 << 20);
    assert_eq!(under(&["--class", "web"])["failed"], 1);
    let output = tested(desk.path(), &["--config", text(&config), "--tenant", "nobody"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("there are acme free"), "{}", complaint(&output));

    // The service itself says the same.
    let out = site.bundle("acme", "gate");
    good(&build(text(&folder().join("policies/world.wasm")), text(&out), &[]));
    sign_bundle(&out, &site.key);
    let service = site.start();
    let path = desk.path().join("cases.json");
    let cases = Cases::read(&path, &std::fs::read(&path).unwrap(), None).unwrap();
    let answer = Answer::of(&service.ask("acme", "gate", b"{}"), &Notes::default());
    let differences = cases.cases[0].expect.differences(&answer);
    assert!(differences.is_empty(), "{differences:?}");
}
