//! The bytes of `docs/protocol.md`: every vector encodes and decodes as the document says, here and in a client that
//! was written from the document alone (`tests/protocol_client.py`).
//!
//! After a change that is meant, `PORTCULLIS_WRITE_VECTORS=1 cargo test --test protocol` writes the file of vectors
//! anew; its difference is the change of the protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says no by panicking"
)]

mod fake_service;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::BytesMut;
use fake_service::{FakeService, Peer};
use portcullis::artifact::Digest;
use portcullis::decision::{
    Address, Attribute, CacheHint, CacheScope, Decision, DecisionId, Header, HeaderValue, HttpRequest, Input,
    Metadatum, Obligations, Outcome, Peer as End, Quota, Refusal, Stage, Timing, TrapKind, TrustClass,
};
use portcullis::wire::client::{
    BATCH_MAX, CLIENT_FRAME_MAX, ClientFrame, Deadline, Farewell, HELLO_MAX, SERVER_FRAME_MAX, ServerFrame,
    Violation,
};
use portcullis::wire::frame;
use serde::Serialize;
use serde_json::{Value, json};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn http() -> Input<'static> {
    Input::Http(HttpRequest {
        method: "GET",
        scheme: "https",
        host: "api.acme.example",
        path: "/v1/orders",
        query: Some("page=2"),
        headers: vec![
            Header { name: "accept", value: b"*/*" },
            Header { name: "x-raw", value: &[0x00, 0xff] },
        ],
        body: None,
        source: End { address: Address::Ipv4([192, 0, 2, 7]), port: 50123, principal: None },
        destination: End {
            address: Address::Ipv6([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            port: 443,
            principal: Some("spiffe://acme.example/api"),
        },
        attributes: vec![Attribute { name: "tls.sni", value: "api.acme.example" }],
    })
}

/// Every kind of input, and every optional part there and not there.
fn inputs() -> Vec<(String, Input<'static>)> {
    let nowhere = End { address: Address::Unknown, port: 0, principal: None };
    vec![
        ("input-opaque".to_owned(), Input::Opaque { content_type: "text/plain", bytes: b"hi" }),
        ("input-http".to_owned(), http()),
        (
            "input-http-bare".to_owned(),
            Input::Http(HttpRequest {
                method: "POST",
                scheme: "http",
                host: "a",
                path: "/",
                query: None,
                headers: Vec::new(),
                body: Some(b"{}"),
                source: nowhere.clone(),
                destination: nowhere,
                attributes: Vec::new(),
            }),
        ),
    ]
}

/// An opaque input, encoded: kept here by hand, since a frame borrows it.
const OPAQUE: &[u8] = b"\x01\x0atext/plain\x02hi";

/// The example of the W3C's text.
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Every message a client may send.
fn client_frames() -> Vec<(String, ClientFrame<'static>)> {
    let decide = |deadline| ClientFrame::Decide {
        id: 1,
        tenant: "acme",
        policy: "ip-allowlist",
        deadline,
        trace: None,
        input: OPAQUE,
    };
    let named = |(name, frame): (&str, ClientFrame<'static>)| (name.to_owned(), frame);
    [
        ("hello", ClientFrame::Hello { version: 3, tenant: "acme" }),
        ("decide-default-deadline", decide(Deadline::Default)),
        ("decide-budget", decide(Deadline::Budget { us: 20_000 })),
        ("decide-absolute", decide(Deadline::Absolute { ns: 86_400_000_000_000 })),
        (
            "decide-batch",
            ClientFrame::DecideBatch {
                id: 300,
                tenant: "acme",
                policy: "ip-allowlist",
                deadline: Deadline::Budget { us: u32::MAX },
                trace: None,
                inputs: vec![OPAQUE, OPAQUE],
            },
        ),
        (
            "decide-traced",
            ClientFrame::Decide {
                id: 1,
                tenant: "acme",
                policy: "ip-allowlist",
                deadline: Deadline::Budget { us: 20_000 },
                trace: Some(TRACEPARENT.parse().unwrap()),
                input: OPAQUE,
            },
        ),
        (
            "decide-batch-traced",
            ClientFrame::DecideBatch {
                id: 1,
                tenant: "acme",
                policy: "ip-allowlist",
                deadline: Deadline::Default,
                trace: Some(TRACEPARENT.parse().unwrap()),
                inputs: vec![OPAQUE],
            },
        ),
        ("cancel", ClientFrame::Cancel { id: 1 }),
        ("ping", ClientFrame::Ping { nonce: u64::MAX }),
    ]
    .map(named)
    .into()
}

/// A number for each variant of an enum, so that a new one does not compile before it is in the lists below.
fn number(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::Deadline(_) => 0,
        Refusal::Quota { .. } => 1,
        Refusal::Trap(_) => 2,
        Refusal::InvalidOutput(_) => 3,
        Refusal::UnknownPolicy => 4,
        Refusal::UnknownTenant => 5,
        Refusal::NotPermitted => 6,
        Refusal::Overloaded => 7,
        Refusal::Unavailable => 8,
        Refusal::BadRequest(_) => 9,
        Refusal::Cancelled => 10,
        Refusal::Revoked => 11,
        Refusal::PolicyFailed { .. } => 12,
    }
}

const STAGES: [Stage; 5] = [Stage::Receipt, Stage::Queue, Stage::Instantiate, Stage::Run, Stage::Reply];
const QUOTAS: [Quota; 11] = Quota::ALL;
const TRAPS: [TrapKind; 10] = [
    TrapKind::Unreachable,
    TrapKind::OutOfBounds,
    TrapKind::Stack,
    TrapKind::Memory,
    TrapKind::Arithmetic,
    TrapKind::IndirectCall,
    TrapKind::Abi,
    TrapKind::Other,
    TrapKind::Fuel,
    TrapKind::HostCalls,
];
const SCOPES: [CacheScope; 3] = [CacheScope::Request, CacheScope::Client, CacheScope::Path];
const VIOLATIONS: [Violation; 8] = [
    Violation::Empty,
    Violation::TooLong,
    Violation::Malformed,
    Violation::HelloTwice,
    Violation::NotHello,
    Violation::DuplicateId,
    Violation::BatchSize,
    Violation::Input,
];

fn refusals() -> Vec<Refusal> {
    let mut refusals: Vec<_> = STAGES.into_iter().map(Refusal::Deadline).collect();
    refusals.extend(QUOTAS.into_iter().map(|which| Refusal::Quota { which, retry_after_ms: 250 }));
    refusals.extend(TRAPS.into_iter().map(Refusal::Trap));
    refusals.extend([
        Refusal::InvalidOutput("status 42".to_owned()),
        Refusal::UnknownPolicy,
        Refusal::UnknownTenant,
        Refusal::NotPermitted,
        Refusal::Overloaded,
        Refusal::Unavailable,
        Refusal::BadRequest("tenant".to_owned()),
        Refusal::Cancelled,
        Refusal::Revoked,
        Refusal::PolicyFailed { reason: "no-data".to_owned(), detail: "prices are not there".to_owned() },
    ]);
    refusals
}

fn farewells() -> Vec<Farewell> {
    let mut farewells = vec![
        Farewell::Version { theirs: 1, ours: 3 },
        Farewell::UnknownTenant,
        Farewell::NotPermitted,
        Farewell::Unavailable,
    ];
    farewells.extend(QUOTAS.into_iter().map(Farewell::Quota));
    farewells.extend(VIOLATIONS.into_iter().map(Farewell::Protocol));
    farewells.extend([Farewell::Timeout, Farewell::ShuttingDown]);
    farewells
}

fn allow() -> Decision {
    let timing = Timing { queue_ns: 800, instantiate_ns: 4_400, run_ns: 21_000, host_ns: 150 };
    let digest = Some(Digest::from_bytes([0xab; 32]));
    let id = Some(DecisionId::from_random([0xd1; 16]));
    Decision { outcome: Outcome::Allow, digest, timing, id, ..Decision::refused(Refusal::Unavailable) }
}

fn deny() -> Decision {
    let header =
        |name: &str, value: &'static [u8]| HeaderValue { name: name.to_owned(), value: value.into() };
    Decision {
        outcome: Outcome::Deny { reason: "no token".to_owned() },
        obligations: Obligations {
            status: Some(401),
            headers_set: vec![header("www-authenticate", b"Bearer")],
            headers_append: vec![header("vary", b"authorization")],
            headers_remove: vec!["server".to_owned()],
            body: Some(b"who are you?".as_slice().into()),
            metadata: vec![Metadatum { key: "rule".to_owned(), value: "7".to_owned() }],
        },
        cache: CacheHint { ttl_ms: 1000, scope: CacheScope::Client },
        ..allow()
    }
}

/// Every message a service may send.
fn server_frames() -> Vec<(String, ServerFrame)> {
    let mut frames = vec![
        (
            "welcome".to_owned(),
            ServerFrame::Welcome { version: 3, class: TrustClass::new("retail").unwrap(), generation: 3 },
        ),
        ("decision-allow".to_owned(), ServerFrame::Decision { id: 1, decision: allow() }),
        ("decision-deny".to_owned(), ServerFrame::Decision { id: 1, decision: deny() }),
        (
            "decisions".to_owned(),
            ServerFrame::Decisions {
                id: 300,
                decisions: vec![allow(), Decision::refused(Refusal::Overloaded)],
            },
        ),
        ("pong".to_owned(), ServerFrame::Pong { nonce: u64::MAX }),
    ];
    for refusal in refusals() {
        let name = format!("refused-{}", slug(&refusal));
        frames.push((name, ServerFrame::Decision { id: 1, decision: Decision::refused(refusal) }));
    }
    for scope in SCOPES {
        let name = format!("cache-scope-{scope}");
        let decision = Decision { cache: CacheHint { ttl_ms: 1, scope }, ..allow() };
        frames.push((name, ServerFrame::Decision { id: 1, decision }));
    }
    for farewell in farewells() {
        frames.push((format!("farewell-{}", slug(&farewell)), ServerFrame::Farewell(farewell)));
    }
    frames
}

/// A name from an enum's JSON: "deadline-receipt".
fn slug(value: &impl Serialize) -> String {
    fn words(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::String(word) if word.starts_with(|c: char| c.is_ascii_uppercase()) => {
                into.push(word.clone())
            }
            Value::Object(fields) => {
                for (key, value) in fields {
                    if key.starts_with(|c: char| c.is_ascii_uppercase()) {
                        into.push(key.clone());
                    }
                    words(value, into);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    words(&serde_json::to_value(value).unwrap(), &mut found);
    found.join("-").to_ascii_lowercase()
}

/// What is not a message, and why.
fn refused() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    vec![
        ("empty", "client", "00000000", "length 0"),
        ("too-long", "client", "00100001", "length above the client's limit, before any of it has come"),
        ("too-long", "server", "00400001", "length above the service's limit, before any of it has come"),
        ("unknown-message", "client", "0000000105", "there is no message 5"),
        ("unknown-message", "server", "0000000105", "there is no message 5"),
        ("truncated", "client", "0000000400010461", "the tenant says 4 bytes, the frame has 1"),
        ("trailing", "client", "00000003030100", "a byte after the end of Cancel"),
        ("not-utf8", "client", "000000040001 01ff", "a string that is not UTF-8"),
        ("varint-too-long", "client", "0000000c03ffffffffffffffffffff01", "eleven bytes for a u64"),
        ("varint-too-large", "client", "0000000b03ffffffffffffffffff02", "a u64 above 2^64 - 1"),
        ("option-tag", "server", "000000080101000200000000", "an option that is neither 0 nor 1"),
        ("unknown-outcome", "server", "00000003010103", "there is no outcome 3"),
        ("not-a-name", "server", "0000000700010341424301", "a class of capital letters"),
        (
            "no-trace-id",
            "client",
            "00000022010101610161000100000000000000000000000000000000b7ad6b71692033310100",
            "a trace id of zeros",
        ),
        (
            "no-decision-id",
            "server",
            "0000002201010207000000000000000000000000000100000000000000000000000000000000",
            "a decision id of zeros",
        ),
        ("unknown-input", "input", "02", "there is no input 2"),
        ("trailing-input", "input", "01000000", "a byte after the end of the input"),
    ]
}

fn framed(message: &impl Serialize, max: usize) -> String {
    let mut bytes = BytesMut::new();
    frame::encode_frame(message, &mut bytes, max).unwrap();
    hex::encode(bytes)
}

/// The file as this build would write it.
fn document() -> Value {
    let mut vectors = Vec::new();
    for (name, input) in inputs() {
        let bytes = frame::encode(&input, CLIENT_FRAME_MAX).unwrap();
        vectors.push(json!({"name": name, "of": "input", "hex": hex::encode(bytes), "value": input}));
    }
    for (name, frame) in client_frames() {
        vectors.push(
            json!({"name": name, "of": "client", "hex": framed(&frame, CLIENT_FRAME_MAX), "value": frame}),
        );
    }
    for (name, frame) in server_frames() {
        vectors.push(
            json!({"name": name, "of": "server", "hex": framed(&frame, SERVER_FRAME_MAX), "value": frame}),
        );
    }
    let refused: Vec<_> = refused()
        .into_iter()
        .map(|(name, of, hex, why)| json!({"name": name, "of": of, "hex": hex.replace(' ', ""), "why": why}))
        .collect();
    json!({"protocol_version": 3, "vectors": vectors, "refused": refused})
}

fn file() -> PathBuf {
    repository().join("docs/protocol-vectors.json")
}

fn read_file() -> Value {
    serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap()
}

/// The bytes of one vector in the file.
fn bytes_of(file: &Value, name: &str) -> Vec<u8> {
    let vectors = file["vectors"].as_array().unwrap();
    let vector = vectors.iter().find(|vector| vector["name"] == name);
    hex::decode(vector.unwrap_or_else(|| panic!("no vector {name:?}"))["hex"].as_str().unwrap()).unwrap()
}

fn unframed(bytes: &[u8], max: usize) -> Vec<u8> {
    let mut buffer = BytesMut::from(bytes);
    let frame = frame::next_frame(&mut buffer, max).unwrap().unwrap();
    assert!(buffer.is_empty());
    frame.to_vec()
}

#[test]
fn the_file_of_vectors_is_what_this_build_speaks() {
    // One vector a line: a difference shows which message changed.
    let document = document();
    let lines = |key: &str| {
        let all = document[key].as_array().unwrap().iter().map(|one| format!("    {one}"));
        all.collect::<Vec<_>>().join(",\n")
    };
    let text = format!(
        "{{\n  \"protocol_version\": 3,\n  \"vectors\": [\n{}\n  ],\n  \"refused\": [\n{}\n  ]\n}}\n",
        lines("vectors"),
        lines("refused")
    );
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
    if std::env::var_os("PORTCULLIS_WRITE_VECTORS").is_some() {
        std::fs::write(file(), &text).unwrap();
    }
    let file = std::fs::read_to_string(file()).unwrap();
    for (is, should) in file.lines().zip(text.lines()) {
        assert_eq!(is, should);
    }
    assert_eq!(file, text);
}

#[test]
fn every_vector_decodes_to_what_it_means() {
    let file = read_file();
    for (name, input) in inputs() {
        assert_eq!(frame::decode(&bytes_of(&file, &name)), Ok(input), "{name}");
    }
    for (name, message) in client_frames() {
        let bytes = unframed(&bytes_of(&file, &name), CLIENT_FRAME_MAX);
        assert_eq!(frame::decode(&bytes), Ok(message), "{name}");
    }
    for (name, message) in server_frames() {
        let bytes = unframed(&bytes_of(&file, &name), SERVER_FRAME_MAX);
        assert_eq!(frame::decode(&bytes), Ok(message), "{name}");
    }
}

#[test]
fn what_is_refused_is_refused() {
    for vector in read_file()["refused"].as_array().unwrap() {
        let bytes = hex::decode(vector["hex"].as_str().unwrap()).unwrap();
        let of = vector["of"].as_str().unwrap();
        let max = if of == "client" { CLIENT_FRAME_MAX } else { SERVER_FRAME_MAX };
        let taken = match (of, frame::next_frame(&mut BytesMut::from(bytes.as_slice()), max)) {
            ("input", _) => frame::decode::<Input<'_>>(&bytes).is_ok(),
            (_, Err(_)) => false,
            (_, Ok(None)) => panic!("{vector}: not a whole frame"),
            ("client", Ok(Some(frame))) => frame::decode::<ClientFrame<'_>>(&frame).is_ok(),
            (_, Ok(Some(frame))) => frame::decode::<ServerFrame>(&frame).is_ok(),
        };
        assert!(!taken, "{vector} was taken");
    }
}

#[test]
fn every_variant_has_a_vector() {
    let covered: BTreeSet<_> = refusals().iter().map(number).collect();
    assert_eq!(covered, (0..13).collect());
    let client: BTreeSet<_> = client_frames()
        .iter()
        .map(|(_, frame)| match frame {
            ClientFrame::Hello { .. } => 0,
            ClientFrame::Decide { .. } => 1,
            ClientFrame::DecideBatch { .. } => 2,
            ClientFrame::Cancel { .. } => 3,
            ClientFrame::Ping { .. } => 4,
        })
        .collect();
    assert_eq!(client, (0..5).collect());
    let server: BTreeSet<_> = server_frames()
        .iter()
        .map(|(_, frame)| match frame {
            ServerFrame::Welcome { .. } => 0,
            ServerFrame::Decision { .. } => 1,
            ServerFrame::Decisions { .. } => 2,
            ServerFrame::Pong { .. } => 3,
            ServerFrame::Farewell(_) => 4,
        })
        .collect();
    assert_eq!(server, (0..5).collect());
    let farewells: BTreeSet<_> = farewells()
        .iter()
        .map(|farewell| match farewell {
            Farewell::Version { .. } => 0,
            Farewell::UnknownTenant => 1,
            Farewell::NotPermitted => 2,
            Farewell::Unavailable => 3,
            Farewell::Quota(_) => 4,
            Farewell::Protocol(_) => 5,
            Farewell::Timeout => 6,
            Farewell::ShuttingDown => 7,
        })
        .collect();
    assert_eq!(farewells, (0..8).collect());
    // A variant that is not in a list above would be the one after its last.
    let past = |bytes: &[u8], name: &str| {
        assert!(frame::decode::<ServerFrame>(bytes).is_err(), "{name} has a variant without a vector");
    };
    past(&[4, 5, 8], "Violation");
    past(&[4, 4, 11], "Quota");
    let refused = |refusal: &[u8]| [&[1, 1, 2][..], refusal, &[0; 14]].concat();
    assert!(frame::decode::<ServerFrame>(&refused(&[0, 4])).is_ok(), "the control");
    past(&refused(&[0, 5]), "Stage");
    past(&refused(&[2, 10]), "TrapKind");
    let mut scope = frame::encode(&server_frames()[1].1, SERVER_FRAME_MAX).unwrap();
    // Allow, six empty obligations, no ttl.
    assert_eq!(&scope[2..11], [0; 9]);
    scope[10] = 2;
    assert!(frame::decode::<ServerFrame>(&scope).is_ok(), "the control");
    scope[10] = 3;
    past(&scope, "CacheScope");
}

/// In the document, a block marked `vector <name>` has hex digits and, after `#`, what they are.
#[test]
fn the_document_shows_the_vectors_as_they_are() {
    let file = read_file();
    let document = std::fs::read_to_string(repository().join("docs/protocol.md")).unwrap();
    let mut shown = BTreeSet::new();
    for block in document.split("```vector ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (body, _) = rest.split_once("```").unwrap();
        let digits: String = body
            .lines()
            .map(|line| line.split_once('#').map_or(line, |(digits, _)| digits))
            .flat_map(str::chars)
            .filter(|c| !c.is_whitespace())
            .collect();
        assert_eq!(digits, hex::encode(bytes_of(&file, name)), "vector {name:?} in the document");
        shown.insert(name.to_owned());
    }
    for needed in
        ["hello", "welcome", "input-http", "decide-budget", "decision-allow", "decision-deny", "cancel"]
    {
        assert!(shown.contains(needed), "the document does not show {needed:?}");
    }
    for (name, limit) in [
        ("Hello", HELLO_MAX),
        ("frame from a client", CLIENT_FRAME_MAX),
        ("frame to a client", SERVER_FRAME_MAX),
        ("questions in a batch", BATCH_MAX),
    ] {
        let row = document.lines().find(|line| line.starts_with(&format!("| {name} |")));
        let row = row.unwrap_or_else(|| panic!("no limit {name:?} in the document"));
        assert!(row.replace(',', "").contains(&format!(" {limit} ")), "{row}");
    }
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.arg(repository().join("tests/protocol_client.py"));
    command
}

#[test]
fn a_client_written_from_the_document_agrees_on_every_vector() {
    let output = python().arg("check").arg(file()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let vectors = read_file()["vectors"].as_array().unwrap().len();
    let refused = read_file()["refused"].as_array().unwrap().len();
    let expected = format!("{vectors} vectors agree, {refused} are refused\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

/// The control for the test before it.
#[test]
fn a_client_written_from_the_document_notices_a_changed_vector() {
    let directory = tempfile::tempdir().unwrap();
    let changed = directory.path().join("vectors.json");
    let check = |path: &Path| python().arg("check").arg(path).output().unwrap().status.success();
    let write = |document: &Value| std::fs::write(&changed, document.to_string()).unwrap();
    write(&read_file());
    assert!(check(&changed));
    let mut document = read_file();
    let last = document["vectors"][0]["hex"].as_str().unwrap().replace("6869", "6868");
    document["vectors"][0]["hex"] = last.into();
    write(&document);
    assert!(!check(&changed));
    let mut document = read_file();
    document["refused"][0]["hex"] = document["vectors"][3]["hex"].clone();
    write(&document);
    assert!(!check(&changed));
}

#[test]
fn a_client_written_from_the_document_is_answered() {
    let service = FakeService::start(|listener| {
        let (mut peer, asked_for) = Peer::welcome(listener, "retail");
        assert_eq!(asked_for, "acme");
        let bytes = peer.frame().unwrap();
        let ClientFrame::Decide { id, tenant, policy, deadline, trace, input } =
            frame::decode(&bytes).unwrap()
        else {
            panic!("not a question")
        };
        assert_eq!((tenant, policy), ("acme", "ip-allowlist"));
        assert_eq!(deadline, Deadline::Budget { us: 20_000 });
        assert_eq!(trace, Some(TRACEPARENT.parse().unwrap()));
        assert_eq!(frame::decode(input), Ok(http()));
        peer.send(&ServerFrame::Decision { id, decision: deny() });
    });
    let output = python()
        .args(["ask".as_ref(), service.socket(), "acme".as_ref(), "ip-allowlist".as_ref()])
        .output()
        .unwrap();
    service.finish();
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer, serde_json::to_value(deny()).unwrap());
}
