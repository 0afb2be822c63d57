//! The cases that every project comes with.

use std::net::IpAddr;
use std::path::Path;

use portcullis::decision::{Address, Decision, Header, HttpRequest, Input, Outcome, Peer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::engine::Asked;

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    clock: u64,
    input: Question,
    expect: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    Http { method: String, path: String, headers: Vec<Line>, source: Option<Source> },
    Opaque { content_type: String, text: String },
}

#[derive(Deserialize)]
struct Line {
    name: String,
    value: String,
}

#[derive(Deserialize)]
struct Source {
    address: IpAddr,
    port: u16,
    principal: String,
}

pub(crate) fn read(file: &Path) -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

impl Case {
    pub(crate) fn ask(&self, policy: &Asked) -> Decision {
        let unknown = || Peer { address: Address::Unknown, port: 0, principal: None };
        match &self.input {
            Question::Opaque { content_type, text } => {
                policy.ask(&Input::Opaque { content_type, bytes: text.as_bytes() }, self.clock, [7; 32])
            }
            Question::Http { method, path, headers, source } => {
                let source = source.as_ref().map_or_else(unknown, |source| Peer {
                    address: match source.address {
                        IpAddr::V4(address) => Address::Ipv4(address.octets()),
                        IpAddr::V6(address) => Address::Ipv6(address.octets()),
                    },
                    port: source.port,
                    principal: Some(&source.principal),
                });
                let headers =
                    headers.iter().map(|line| Header { name: &line.name, value: line.value.as_bytes() });
                let request = HttpRequest {
                    method,
                    scheme: "https",
                    host: "api.example.test",
                    path,
                    query: None,
                    headers: headers.collect(),
                    body: None,
                    source,
                    destination: unknown(),
                    attributes: Vec::new(),
                };
                policy.ask(&Input::Http(request), self.clock, [7; 32])
            }
        }
    }

    /// What is wrong with the answer.
    pub(crate) fn wrong(&self, decision: &Decision) -> Option<String> {
        let answer = answer(decision);
        (answer != self.expect)
            .then(|| format!("{:?}:\n  {answer:?}, expected\n  {:?}", self.name, self.expect))
    }
}

/// Everything that a decision says, in the words of cases.
fn answer(decision: &Decision) -> Map<String, Value> {
    let mut answer = Map::new();
    match &decision.outcome {
        Outcome::Allow => drop(answer.insert("outcome".into(), json!("allow"))),
        Outcome::Deny { reason } => {
            answer.insert("outcome".into(), json!("deny"));
            answer.insert("reason".into(), json!(reason));
        }
        Outcome::Refused(refusal) => drop(answer.insert("refused".into(), json!(format!("{refusal:?}")))),
    }
    let obligations = &decision.obligations;
    if let Some(status) = obligations.status {
        answer.insert("status".into(), json!(status));
    }
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
    let set: Map<_, _> =
        obligations.headers_set.iter().map(|one| (one.name.clone(), json!(text(&one.value)))).collect();
    let metadata: Map<_, _> =
        obligations.metadata.iter().map(|one| (one.key.clone(), json!(one.value))).collect();
    for (name, map) in [("headers_set", set), ("metadata", metadata)] {
        if !map.is_empty() {
            answer.insert(name.into(), Value::Object(map));
        }
    }
    if !obligations.headers_remove.is_empty() {
        answer.insert("headers_remove".into(), json!(obligations.headers_remove));
    }
    if !obligations.headers_append.is_empty() || obligations.body.is_some() {
        answer.insert("more".into(), json!(format!("{obligations:?}")));
    }
    answer
}
