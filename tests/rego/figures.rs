//! What a decision by a Rego policy takes: a fresh instance, and the evaluation in it. Printed, never judged.
//!
//!     REGO_FIGURES=1 cargo test --release --test rego figures -- --nocapture

use serde_json::json;

use crate::asked::{ask_document, policy_of};
use crate::read;

const DECISIONS: usize = 20_000;

fn measure(what: &str, policy: &std::sync::Arc<portcullis::engine::Policy>, input: &str) {
    let mut times: Vec<[u64; 3]> = (0..DECISIONS)
        .map(|_| {
            let timing = ask_document(policy, input).timing;
            [timing.instantiate_ns + timing.run_ns, timing.instantiate_ns, timing.run_ns]
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100].map(|ns| ns / 100 * 100);
    println!("{what}: p50 {:?} p99 {:?} ns (all, instance, evaluation)", at(50), at(99));
}

#[test]
fn figures() {
    if std::env::var_os("REGO_FIGURES").is_none() {
        println!("REGO_FIGURES is not set: nothing is measured");
        return;
    }
    let input = json!({"user": "bob", "action": "read", "type": "finance"}).to_string();
    let small = read("policies/rbac.json");
    let module = read("policies/rbac.wasm");
    measure("rbac", &policy_of(&module, Some(&small), Some("app/rbac/allow")), &input);
    for users in [10_000, 50_000] {
        let mut data: serde_json::Value = serde_json::from_slice(&small).unwrap();
        for user in 0..users {
            data["user_roles"][format!("user-{user:08}")] = json!(["employee", "customer"]);
        }
        let data = data.to_string().into_bytes();
        let policy = crate::asked::loaded(
            &crate::asked::built(&module, Some(&data), Some("app/rbac/allow")).unwrap().component,
            512 << 20,
        );
        measure(&format!("rbac with {} KB of data", data.len() / 1000), &policy, &input);
    }
    measure("world (sprintf, rand, uuid, time)", &policy_of(&read("policies/world.wasm"), None, None), "{}");
}
