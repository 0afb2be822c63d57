//! Decisions by Rego policies: what they see, and what becomes of what they say.

use portcullis::decision::{Address, Attribute, Header, HttpRequest, Input, Outcome, Peer, Refusal};
use serde_json::json;

use crate::asked::{NOW, ask, ask_document, built, loaded, policy_of};
use crate::read;
use portcullis::bundle::RegoResult;
use portcullis::compile::{RegoOptions, Terms};

#[test]
fn roles_in_data_decide() {
    let data = read("policies/rbac.json");
    let policy = policy_of(&read("policies/rbac.wasm"), Some(&data), Some("app/rbac/allow"));
    for (user, action, kind, allowed) in [
        ("alice", "delete", "dog", true),
        ("bob", "update", "finance", true),
        ("bob", "adopt", "dog", false),
        ("eve", "adopt", "cat", true),
        ("mallory", "read", "dog", false),
    ] {
        let input = json!({"user": user, "action": action, "type": kind}).to_string();
        let outcome = ask_document(&policy, &input).outcome;
        assert_eq!(matches!(outcome, Outcome::Allow), allowed, "{input}: {outcome:?}");
    }
}

#[test]
fn a_bundle_of_opa_has_its_data_with_it() {
    let policy = policy_of(&read("policies/rbac.tar.gz"), None, None);
    let ask =
        |user| ask_document(&policy, &json!({"user": user, "action": "read", "type": "dog"}).to_string());
    assert_eq!(ask("eve").outcome, Outcome::Allow);
    assert_eq!(ask("nobody").outcome, Outcome::Deny { reason: "denied".into() });
}

fn http<'a>(path: &'a str, query: Option<&'a str>, headers: &'a [(&'a str, &'a [u8])]) -> Input<'a> {
    Input::Http(HttpRequest {
        method: "GET",
        scheme: "https",
        host: "api.example",
        path,
        query,
        headers: headers.iter().map(|(name, value)| Header { name, value }).collect(),
        body: None,
        source: Peer { address: Address::Ipv4([10, 1, 2, 3]), port: 4711, principal: None },
        destination: Peer { address: Address::Unknown, port: 0, principal: None },
        attributes: vec![
            Attribute { name: "tls.sni", value: "api.example" },
            Attribute { name: "route.name", value: "people" },
        ],
    })
}

#[test]
fn a_policy_for_envoy_runs_as_it_is() {
    let policy = policy_of(&read("policies/envoy.wasm"), None, None);
    let headers: [(&str, &[u8]); 1] = [("Authorization", b"Basic Ym9iOnNlY3JldA==")];
    let decision = ask(&policy, &http("/people/a%20b", Some("page=1&page=2"), &headers));
    assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}");
    let set: Vec<_> = decision
        .obligations
        .headers_set
        .iter()
        .map(|header| format!("{}: {}", header.name, String::from_utf8_lossy(&header.value)))
        .collect();
    assert_eq!(set, ["x-path: people/a b", "x-user: bob", "x-seen-by: rego"]);
    assert_eq!(decision.obligations.headers_remove, ["authorization"]);
    let metadata: Vec<_> =
        decision.obligations.metadata.iter().map(|one| format!("{}={}", one.key, one.value)).collect();
    assert_eq!(metadata, [r#"limits={"page":["1","2"]}"#, "user=bob"]);

    let denied = ask(&policy, &http("/people", None, &[]));
    assert_eq!(denied.outcome, Outcome::Deny { reason: "nothing allows it".into() });
    assert_eq!(denied.obligations.status, Some(403));
    assert_eq!(denied.obligations.body.as_deref(), Some(&b"no"[..]));
}

#[test]
fn only_true_allows_and_undefined_denies() {
    let policy = policy_of(&read("policies/results.wasm"), None, None);
    let outcome = |result: serde_json::Value| ask_document(&policy, &json!({"result": result}).to_string());
    for allows in [json!(true), json!({"allow": true}), json!({"allowed": true, "other": [1]})] {
        assert_eq!(outcome(allows.clone()).outcome, Outcome::Allow, "{allows}");
    }
    for denies in [json!(false), json!({"allow": false}), json!({"allowed": false, "reason": "x"})] {
        assert!(matches!(outcome(denies.clone()).outcome, Outcome::Deny { .. }), "{denies}");
    }
    assert_eq!(ask_document(&policy, "{}").outcome, Outcome::Deny { reason: "undefined".into() });
    for invalid in [
        json!(null),
        json!(1),
        json!("true"),
        json!([true]),
        json!({}),
        json!({"allow": "yes"}),
        json!({"allow": true, "allowed": false}),
        json!({"allow": true, "headers": "x"}),
        json!({"allow": true, "headers": {"a": {"b": 1}}}),
        json!({"allow": true, "http_status": "200"}),
        json!({"allow": true, "http_status": 70000}),
        json!({"allow": true, "body": 1}),
        json!({"allow": true, "reason": 1}),
        json!({"allow": true, "request_headers_to_remove": "x"}),
        json!({"allow": true, "dynamic_metadata": []}),
    ] {
        let found = outcome(invalid.clone()).outcome;
        let refused = matches!(&found, Outcome::Refused(Refusal::PolicyFailed { reason, .. }) if reason == "invalid-result");
        assert!(refused, "{invalid}: {found:?}");
    }
    // A decision by its form, and none that the host takes.
    for invalid in [
        json!({"allow": true, "headers": {"a": "x\r\ny: z"}}),
        json!({"allow": true, "headers": {"content-length": "1"}}),
        json!({"allow": true, "http_status": 999}),
    ] {
        let found = outcome(invalid.clone()).outcome;
        assert!(matches!(found, Outcome::Refused(Refusal::InvalidOutput(_))), "{invalid}: {found:?}");
    }
}

#[test]
fn what_is_wrong_with_a_result_is_said() {
    let policy = policy_of(&read("policies/results.wasm"), None, None);
    let refusal =
        Refusal::PolicyFailed { reason: "invalid-result".into(), detail: "allow is a number".into() };
    let outcome = ask_document(&policy, r#"{"result": {"allow": 1}}"#).outcome;
    assert_eq!(outcome, Outcome::Refused(refusal));
}

#[test]
fn rules_that_contradict_each_other_fail_with_the_place_and_never_allow() {
    let policy = policy_of(&read("policies/conflict.wasm"), None, None);
    let outcome = |input: &str| ask_document(&policy, input).outcome;
    let fails = |input: &str, detail: &str| {
        let refusal = Refusal::PolicyFailed { reason: "conflict".into(), detail: detail.into() };
        assert_eq!(outcome(input), Outcome::Refused(refusal), "{input}");
    };
    assert_eq!(outcome(r#"{"a": true}"#), Outcome::Allow);
    fails(r#"{"a": true, "b": true}"#, "conflict.rego:8:1: var assignment conflict");
    // If it were undefined, these would be allowed.
    assert_eq!(outcome(r#"{"kind": "good"}"#), Outcome::Allow);
    assert_eq!(outcome(r#"{"kind": "bad"}"#), Outcome::Deny { reason: "undefined".into() });
    fails(r#"{"kind": "both"}"#, "conflict.rego:13:1: var assignment conflict");
    assert_eq!(outcome(r#"{"keys": ["x", "y"]}"#), Outcome::Allow);
    fails(r#"{"keys": ["x", "x"]}"#, "conflict.rego:22:15: object insert conflict");
}

#[test]
fn a_policy_reads_the_data_snapshots_of_its_tenant() {
    let made = built(&read("policies/tables.wasm"), None, None).unwrap();
    assert_eq!(
        made.config.builtins,
        ["portcullis.data.entries", "portcullis.data.get", "sprintf"],
        "declared to OPA by policies/rego/capabilities.json"
    );
    let host = [portcullis::bundle::Platform::host()];
    let imports = portcullis::compile::build(&made.component, Terms::default(), &host).unwrap().imports;
    assert_eq!(imports, ["data"]);
    // More teams than come at once.
    let mut entries: Vec<(String, Vec<u8>)> = (0..2_500)
        .map(|team| {
            let lead: &[u8] = if team % 1_000 == 7 { br#""ann""# } else { br#""ben""# };
            (format!("team/{team:05}"), lead.to_vec())
        })
        .collect();
    entries.push(("user/ann".into(), br#"{"active": true}"#.to_vec()));
    entries.push(("user/ben".into(), br#"{"active": false}"#.to_vec()));
    entries.push(("limits".into(), br#"{"ann": 12}"#.to_vec()));
    let data = Some(std::sync::Arc::new(portcullis::engine::Data::of(entries)));
    let ask = |data, user: &str| {
        let policy = crate::asked::loaded_with(&made.component, 64 << 20, data);
        ask_document(&policy, &json!({ "user": user }).to_string())
    };
    let decision = ask(data.clone(), "ann");
    assert_eq!(decision.outcome, Outcome::Allow);
    let metadata: Vec<_> =
        decision.obligations.metadata.iter().map(|one| format!("{}={}", one.key, one.value)).collect();
    assert_eq!(metadata, ["limit=12", r#"teams=["00007","01007","02007"]"#]);
    let unknown = Outcome::Deny { reason: "nobody knows them".into() };
    assert_eq!(ask(data.clone(), "ben").outcome, unknown);
    assert_eq!(ask(data, "eve").outcome, unknown);
    assert_eq!(ask(None, "ann").outcome, unknown, "control: nothing was granted");
}

#[test]
fn an_input_that_nests_too_deep_or_is_no_json_is_text() {
    let policy = policy_of(&read("policies/results.wasm"), None, None);
    for document in
        [format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)), "{".to_owned(), "\u{0}".to_owned()]
    {
        assert_eq!(ask_document(&policy, &document).outcome, Outcome::Deny { reason: "undefined".into() });
    }
}

#[test]
fn time_is_that_of_receipt_and_random_numbers_are_those_of_the_seed() {
    let made = built(&read("policies/world.wasm"), None, None).unwrap();
    let policy = crate::asked::loaded(&made.component, 16 << 20);
    let metadata = || -> Vec<String> {
        let decision = ask_document(&policy, "{}");
        decision.obligations.metadata.iter().map(|one| one.value.clone()).collect()
    };
    let (first, second) = (metadata(), metadata());
    assert_eq!(first[0], NOW.to_string());
    assert_eq!(first, second, "the same seed");
    assert!(first[1].parse::<u32>().unwrap() < 1_000_000);
}

#[test]
fn nothing_of_a_request_is_there_in_the_next() {
    let policy = policy_of(&read("policies/canary.wasm"), None, None);
    let ask = |secret: &str| format!("{:?}", ask_document(&policy, &json!({"secret": secret}).to_string()));
    let canary = "canary-8d1f";
    // It can be told at all: the policy that gets it computes with it.
    assert!(ask(canary).contains("Allow"));
    let made = built(&read("policies/canary.wasm"), Some(br#"{"kept": "planted-77aa"}"#), None).unwrap();
    let inside = |text: &[u8]| made.component.windows(text.len()).any(|bytes| bytes == text);
    assert!(inside(b"planted-77aa"), "data is in the artifact");
    assert!(!inside(canary.as_bytes()));
    assert!(!ask("other").contains(canary));
}

#[test]
fn a_result_has_to_be_what_the_manifest_declares() {
    let module = read("policies/results.wasm");
    let rego = portcullis::compile::Rego::read(&module, None).unwrap();
    let outcome = |mapping: RegoResult, result: &serde_json::Value| {
        let options = RegoOptions { entrypoint: None, result: mapping };
        let built = portcullis::compile::rego(&rego, &options).unwrap();
        assert_eq!(built.config.result, mapping);
        ask_document(&loaded(&built.component, 16 << 20), &json!({"result": result}).to_string())
    };
    // Which of these allow, by the mapping; all others are refused.
    let results = [json!(true), json!({"allow": true}), json!({"allowed": true})];
    for (mapping, allows) in [
        (RegoResult::Any, [true, true, true]),
        (RegoResult::Boolean, [true, false, false]),
        (RegoResult::Object, [false, true, false]),
        (RegoResult::Envoy, [true, false, true]),
    ] {
        for (result, allows) in results.iter().zip(allows) {
            let found = outcome(mapping, result).outcome;
            if allows {
                assert_eq!(found, Outcome::Allow, "{mapping} {result}");
            } else {
                assert!(matches!(found, Outcome::Refused(_)), "{mapping} {result}: {found:?}");
            }
        }
    }
    // What the one takes for a field is nothing to the other.
    let both = json!({"allow": true, "allowed": true, "status": 201, "http_status": 202});
    assert_eq!(outcome(RegoResult::Object, &both).obligations.status, Some(201));
    assert_eq!(outcome(RegoResult::Envoy, &both).obligations.status, Some(202));
}

#[test]
fn families_of_builtins_are_found_one_behind_the_other() {
    let made = built(&read("policies/families.wasm"), None, None).unwrap();
    let policy = loaded(&made.component, 4 << 20);
    let decision = ask_document(&policy, r#"{"name": "foo"}"#);
    assert_eq!(decision.outcome, Outcome::Allow, "{decision:?}");
    let metadata: std::collections::BTreeMap<_, _> =
        decision.obligations.metadata.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect();
    // What OPA gives: opa eval -d families.rego -i '{"name":"foo"}' data.families.answer
    assert_eq!(metadata["base"], "foo is -1");
    assert_eq!(metadata["regex"], "f0");
    assert_eq!(metadata["time"], "2023-11-14T23:13:20+01:00");
    assert_eq!(metadata["tokens"], "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae");
    assert_eq!(metadata["yaml"], r#"{"a":[1,2]}"#);
    assert_eq!(metadata["all"], r#"[["at:\n"," 1970\n"," 1\n"," 1\n"],false]"#);
    // Only what is called is linked.
    let small = built(&read("policies/results.wasm"), None, None).unwrap();
    assert!(small.component.len() < made.component.len() / 3);
}
