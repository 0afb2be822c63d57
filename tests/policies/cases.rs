//! `policies/<name>/cases.json`: the format is described in `policies/README.md`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use crate::guest::types::{Address, CacheScope, Header, HttpRequest, Opaque, Peer, Verdict};
use crate::guest::{Decision, Guest, Request};
use crate::{component, folder, tokens};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    clock: u64,
    input: Input,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Input {
    Http { method: String, path: String, headers: Vec<HeaderLine>, source: Option<Source> },
    Opaque { content_type: String, text: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    name: String,
    #[serde(default)]
    value: String,
    hex: Option<String>,
    repeat: Option<usize>,
    lines: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    address: IpAddr,
    port: u16,
}

/// What is not there is not there in the answer either, but for `metadata` and `cache`.
#[derive(Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
struct Expect {
    outcome: String,
    reason: Option<String>,
    status: Option<u16>,
    #[serde(default)]
    headers_set: BTreeMap<String, String>,
    #[serde(default)]
    headers_remove: Vec<String>,
    metadata: Option<BTreeMap<String, String>>,
    cache: Option<Cache>,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
struct Cache {
    ttl_ms: u32,
    scope: String,
}

#[test]
fn jwt_gate() {
    assert!(run("jwt-gate") >= 100);
}

#[test]
fn ip_allowlist() {
    assert!(run("ip-allowlist") >= 30);
}

#[test]
fn rate_class() {
    assert!(run("rate-class") >= 30);
}

#[test]
fn hash() {
    assert!(run("hash") >= 4);
}

fn run(policy: &str) -> usize {
    run_file(&folder().join(policy).join("cases.json"), &component(policy))
}

/// Runs every case of a policy, reports all that differ, and returns how many there were.
pub(crate) fn run_file(file: &Path, component: &[u8]) -> usize {
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(file).unwrap())
        .unwrap_or_else(|error| panic!("read {file:?}: {error}"));
    let guest = Guest::new(component).unwrap();
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let decision = match guest.ask(&request(&case.input), case.clock) {
                Ok(decision) => decision,
                Err(error) => return Some(format!("{:?}: {error:?}", case.name)),
            };
            let answer = answer(&decision, &case.expect);
            (answer != case.expect)
                .then(|| format!("{:?}:\n  {answer:?}, expected\n  {:?}", case.name, case.expect))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    cases.len()
}

fn request(input: &Input) -> Request {
    match input {
        Input::Opaque { content_type, text } => {
            Request::Opaque(Opaque { content_type: content_type.clone(), bytes: text.clone().into_bytes() })
        }
        Input::Http { method, path, headers, source } => Request::Http(HttpRequest {
            method: method.clone(),
            scheme: "https".into(),
            host: "api.example.test".into(),
            path: path.clone(),
            query: None,
            headers: headers.iter().flat_map(HeaderLine::headers).collect(),
            body: None,
            source: peer(source.as_ref()),
            destination: peer(None),
            attributes: Vec::new(),
        }),
    }
}

impl HeaderLine {
    fn headers(&self) -> Vec<Header> {
        let value = match &self.hex {
            Some(hex) => hex::decode(hex).unwrap(),
            None => tokens::fill_in(&self.value).repeat(self.repeat.unwrap_or(1)).into_bytes(),
        };
        vec![Header { name: self.name.clone(), value }; self.lines.unwrap_or(1)]
    }
}

fn peer(source: Option<&Source>) -> Peer {
    let (address, port) = match source {
        None => (Address::Unknown, 0),
        Some(Source { address: IpAddr::V4(address), port }) => {
            let [a, b, c, d] = address.octets();
            (Address::Ipv4((a, b, c, d)), *port)
        }
        Some(Source { address: IpAddr::V6(address), port }) => {
            let [a, b, c, d, e, f, g, h] = address.segments();
            (Address::Ipv6((a, b, c, d, e, f, g, h)), *port)
        }
    };
    Peer { address, port, principal: None }
}

/// The decision in the words of the case, without what the case does not ask about.
fn answer(decision: &Decision, asked: &Expect) -> Expect {
    let obligations = &decision.obligations;
    assert!(
        obligations.headers_append.is_empty() && obligations.body.is_none(),
        "cases cannot express {decision:?}"
    );
    let (outcome, reason) = match &decision.verdict {
        Verdict::Allow => ("allow", None),
        Verdict::Deny(reason) => ("deny", Some(reason.clone())),
    };
    let metadata =
        || obligations.metadata.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    let cache = || Cache {
        ttl_ms: decision.cache.ttl_ms,
        scope: match decision.cache.scope {
            CacheScope::Request => "request".into(),
            CacheScope::Client => "client".into(),
            CacheScope::Path => "path".into(),
        },
    };
    Expect {
        outcome: outcome.into(),
        reason,
        status: obligations.status,
        headers_set: obligations
            .headers_set
            .iter()
            .map(|header| (header.name.clone(), String::from_utf8(header.value.clone()).unwrap()))
            .collect(),
        headers_remove: obligations.headers_remove.clone(),
        metadata: asked.metadata.is_some().then(metadata),
        cache: asked.cache.is_some().then(cache),
    }
}
