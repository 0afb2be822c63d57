//! What it costs that a request comes to a policy in its parts and not as bytes: the same policy, which looks at nothing, is
//! asked about an HTTP request and about as many bytes.

use portcullis::bundle::Platform;
use portcullis::compile::{self, Terms};
use portcullis::decision::{Header, HttpRequest, Input, Peer};
use portcullis::wire::client::CLIENT_FRAME_MAX;
use portcullis::wire::frame;

use crate::Plan;
use crate::bare::{decide, loaded};
use crate::load::percentile;
use crate::report::{Reach, Row, Spread, median};

const MEMORY: u32 = 4 << 20;
const HEADERS: usize = 20;
const DECISIONS: usize = 5_000;
/// Takes what it is given, and allows: 72 bytes of zero are that decision.
const GUEST: &str = r#"(module
  (memory (export "memory") 4)
  (global $free (mut i32) (i32.const 4096))
  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
    (global.set $free (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  (func (export "decide") (param i32) (result i32) (i32.const 1020)))"#;

pub(super) fn compared(plan: &Plan) -> Vec<Row> {
    let component = compile::componentize(GUEST.as_bytes()).unwrap();
    let built = compile::build(&component, Terms::default(), &[Platform::host()]).unwrap();
    let policy = loaded(&built, "any", MEMORY);
    let names: Vec<_> = (0..HEADERS).map(|number| format!("x-header-{number:02}")).collect();
    let value = "a value as long as many are: thirty-six..";
    let headers: Vec<_> = names.iter().map(|name| Header { name, value: value.as_bytes() }).collect();
    let http = Input::Http(HttpRequest {
        method: "GET",
        scheme: "https",
        host: "shop.example",
        path: "/v1/orders/4711",
        query: Some("page=2"),
        headers,
        body: None,
        source: Peer::default(),
        destination: Peer::default(),
        attributes: Vec::new(),
    });
    let parts = frame::encode(&http, CLIENT_FRAME_MAX).unwrap();
    let bytes = Input::Opaque { content_type: "", bytes: &parts };
    let bytes = frame::encode(&bytes, CLIENT_FRAME_MAX).unwrap();
    let p50 = |input: &[u8]| {
        let mut all: Vec<f64> = (0..DECISIONS).map(|_| decide(&policy, input)).collect();
        all.sort_by(f64::total_cmp);
        percentile(&all, 50.0)
    };
    // Caches, and the pool's slots.
    p50(&parts);
    let rounds: Vec<(f64, f64)> = (0..plan.rounds).map(|_| (p50(&parts), p50(&bytes))).collect();
    let what = format!(
        "fresh instance and decision about an HTTP request with {HEADERS} headers, against as many bytes in one piece, p50"
    );
    let detail = format!(
        "{:.1} against {:.1} us; {} bytes",
        median(rounds.iter().map(|round| round.0)),
        median(rounds.iter().map(|round| round.1)),
        parts.len()
    );
    let ratios = Spread::of(rounds.iter().map(|(parts, bytes)| parts / bytes));
    vec![Row::new("typed/http", what, "x", ratios).reach(Reach::AtMost(2.0)).detail(detail)]
}
