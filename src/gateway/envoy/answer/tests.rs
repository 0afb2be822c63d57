use super::super::messages::QueryParameter;
use super::There::{Goes, Stays, StaysInRequest};
use super::*;
use crate::client::ClientError;
use crate::decision::{Decision, DecisionId, Metadatum, Outcome, Quota, Refusal};

fn header_value(name: &str, value: &str) -> decision::HeaderValue {
    decision::HeaderValue { name: name.into(), value: Bytes::from(value.to_owned()) }
}

fn with(outcome: Outcome, obligations: Obligations) -> CheckResponse {
    of(Decision { outcome, obligations, ..Decision::refused(Refusal::Unavailable) }.into())
}

fn allowed(obligations: Obligations) -> OkHttpResponse {
    let response = with(Outcome::Allow, obligations);
    assert_eq!(response.status.unwrap().code, 0);
    match response.http_response {
        Some(HttpResponse::Ok(ok)) => ok,
        other => panic!("{other:?}"),
    }
}

/// google.rpc's code, HTTP's status, the rest.
fn denied(response: &CheckResponse) -> (i32, i32, &DeniedHttpResponse) {
    let code = response.status.as_ref().unwrap().code;
    assert_ne!(code, 0, "it would open the gate");
    match &response.http_response {
        Some(HttpResponse::Denied(denied)) => (code, denied.status.as_ref().unwrap().code, denied),
        other => panic!("{other:?}"),
    }
}

fn deny(obligations: Obligations) -> CheckResponse {
    with(Outcome::Deny { reason: "not bob".into() }, obligations)
}

fn listed(headers: &[HeaderValueOption]) -> Vec<(String, String, There)> {
    let of = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let one = |option: &HeaderValueOption| {
        let header = option.header.as_ref().unwrap();
        assert!(header.raw_value.is_empty(), "Envoy reads no raw value here");
        let there = match (option.append.as_ref(), option.append_action) {
            (None, OVERWRITE_IF_EXISTS_OR_ADD) => Goes,
            (None, APPEND_IF_EXISTS_OR_ADD) => Stays,
            (Some(BoolValue { value: true }), 0) => StaysInRequest,
            both => panic!("what is to become of it has to be said in one way: {both:?}"),
        };
        (of(&header.key), of(&header.value), there)
    };
    headers.iter().map(one).collect()
}

fn expected(headers: &[(&str, &str, There)]) -> Vec<(String, String, There)> {
    headers.iter().map(|(name, value, there)| ((*name).into(), (*value).into(), *there)).collect()
}

fn wish(key: &str, value: &str) -> Obligations {
    Obligations {
        metadata: vec![Metadatum { key: key.into(), value: value.into() }],
        ..Obligations::default()
    }
}

#[test]
fn obligations_go_with_a_request_that_is_let_through() {
    let ok = allowed(Obligations {
        status: Some(302),
        headers_set: vec![header_value("x-user", "bob"), header_value("x-empty", "")],
        headers_append: vec![header_value("x-role", "a"), header_value("x-role", "b")],
        headers_remove: vec!["authorization".into()],
        body: Some(Bytes::from_static(b"not for the upstream")),
        metadata: vec![],
    });
    let set = [
        ("x-user", "bob", Goes),
        ("x-empty", "", Goes),
        ("x-role", "a", StaysInRequest),
        ("x-role", "b", StaysInRequest),
    ];
    assert_eq!(listed(&ok.headers), expected(&set));
    assert_eq!(
        ok.headers.iter().map(|one| one.keep_empty_value).collect::<Vec<_>>(),
        [false, true, false, false]
    );
    assert_eq!(ok.headers_to_remove, ["authorization"]);
    assert_eq!((ok.response_headers_to_add.len(), ok.query_parameters_to_set.len()), (0, 0));
}

/// Envoy removes after it has set, so that both together would be nothing.
#[test]
fn what_is_removed_and_set_is_set() {
    let ok = allowed(Obligations {
        headers_set: vec![header_value("X-User", "bob")],
        headers_append: vec![header_value("x-role", "a"), header_value("x-role", "b")],
        headers_remove: vec!["x-user".into(), "X-Role".into(), "cookie".into()],
        ..Obligations::default()
    });
    assert_eq!(ok.headers_to_remove, ["cookie"]);
    let changes = [("X-User", "bob", Goes), ("x-role", "a", Goes), ("x-role", "b", StaysInRequest)];
    assert_eq!(listed(&ok.headers), expected(&changes), "the client's own x-role is gone");
}

#[test]
fn a_denial_is_what_the_policy_says() {
    let response = deny(Obligations {
        status: Some(302),
        headers_set: vec![header_value("location", "/login")],
        headers_append: vec![header_value("set-cookie", "a=1"), header_value("set-cookie", "b=2")],
        body: Some(Bytes::from_static(b"go there")),
        ..Obligations::default()
    });
    let (code, status, denied) = denied(&response);
    assert_eq!((code, status, denied.body.as_ref()), (7, 302, &b"go there"[..]));
    let headers = [("location", "/login", Goes), ("set-cookie", "a=1", Stays), ("set-cookie", "b=2", Stays)];
    assert_eq!(listed(&denied.headers), expected(&headers));
    assert_eq!(response.status.as_ref().unwrap().message, "not bob");
}

#[test]
fn a_status_is_one_that_envoy_has() {
    for (asked, given) in [
        (300, 300),
        (306, 403),
        (308, 308),
        (399, 403),
        (401, 401),
        (418, 403),
        (425, 403),
        (429, 429),
        (451, 403),
        (499, 403),
        (509, 403),
        (511, 511),
        (599, 403),
        (200, 403),
    ] {
        let response = deny(Obligations { status: Some(asked), ..Obligations::default() });
        assert_eq!(denied(&response).1, given, "{asked}");
    }
    for code in Code::ALL {
        let response = of(Verdict::down(Down::new(*code, "why")));
        let (grpc, status, denied) = denied(&response);
        assert_eq!((grpc, status), (code.grpc(), code.status().into()), "{code:?}");
        assert_eq!(denied.body, format!("{}\n", code.word()));
    }
}

#[test]
fn errors_and_refusals_deny() {
    let refused = with(
        Outcome::Refused(Refusal::Quota { which: Quota::Requests, retry_after_ms: 1_001 }),
        Obligations::default(),
    );
    let (code, status, response) = denied(&refused);
    assert_eq!((code, status), (8, 429));
    assert_eq!(listed(&response.headers), expected(&[("retry-after", "2", Goes)]));
    let late = of(Err(ClientError::Deadline).into());
    assert_eq!(denied(&late).1, 504);
}

#[test]
fn a_body_that_is_no_text_does_not_spoil_the_answer() {
    let response = deny(Obligations { body: Some(Bytes::from_static(b"a\xffb")), ..Obligations::default() });
    assert_eq!(denied(&response).2.body, "a\u{fffd}b");
    let spoilt = decision::HeaderValue { name: "x".into(), value: Bytes::from_static(b"\xff") };
    let response = with(Outcome::Allow, Obligations { headers_set: vec![spoilt], ..Obligations::default() });
    assert_eq!(denied(&response).1, 500, "no policy's answer that was looked at has such a header");
}

#[test]
fn metadata_with_a_verb_is_for_envoy() {
    let metadata = [
        ("query.set.user id", "b&b"),
        ("query.remove.token", ""),
        ("query.remove.user id", ""),
        ("response.set.x-a", "1"),
        ("response.append.set-cookie", "a=1; Path=/"),
        ("route", "blue"),
    ];
    let metadata = metadata.map(|(key, value)| Metadatum { key: key.into(), value: value.into() });
    let response = with(Outcome::Allow, Obligations { metadata: metadata.into(), ..Obligations::default() });
    let Some(HttpResponse::Ok(ok)) = response.http_response else { panic!("denied") };
    let set = QueryParameter { key: "user%20id".into(), value: "b%26b".into() };
    assert_eq!(ok.query_parameters_to_set, [set]);
    assert_eq!(ok.query_parameters_to_remove, ["token"], "what is also set stays");
    let added = [("x-a", "1", Goes), ("set-cookie", "a=1; Path=/", Stays)];
    assert_eq!(listed(&ok.response_headers_to_add), expected(&added));
    let metadata = response.dynamic_metadata.unwrap();
    let rest = metadata.fields.iter().find(|field| field.key == "metadata").unwrap().value.clone();
    let Some(Kind::Struct(rest)) = rest.unwrap().kind else { panic!("no struct") };
    assert_eq!(rest.fields.iter().map(|field| field.key.as_ref()).collect::<Vec<_>>(), [b"route"]);
}

#[test]
fn a_wish_that_is_none_makes_the_answer_invalid() {
    assert_eq!(allowed(wish("response.set.x-a", "fine")).response_headers_to_add.len(), 1, "the control");
    for (key, value) in [
        ("response.set.x-a", "1\r\nset-cookie: x"),
        ("response.append.x-a", "1\n"),
        ("response.set.x-a", "\0"),
        ("response.set.", "1"),
        ("response.set.x a", "1"),
        ("response.append.:status", "200"),
        ("response.set.Content-Length", "0"),
        ("response.set.transfer-encoding", "chunked"),
        ("query.set.", "1"),
        ("query.remove.", ""),
    ] {
        let response = with(Outcome::Allow, wish(key, value));
        assert_eq!(denied(&response).1, 500, "{key} = {value:?}");
    }
    let hostile = allowed(wish("query.set.a", "1 HTTP/1.1\r\nhost: x&admin=1#"));
    let value = &hostile.query_parameters_to_set[0].value;
    assert!(value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"%-._~".contains(byte)), "{value:?}");
}

#[test]
fn a_denial_goes_to_the_client_with_its_response_headers() {
    let response = deny(wish("response.set.www-authenticate", "Bearer"));
    assert_eq!(listed(&denied(&response).2.headers), expected(&[("www-authenticate", "Bearer", Goes)]));
}

#[test]
fn dynamic_metadata_says_what_decided_and_how_long_it_took() {
    let id = DecisionId::from_random([0xd1; 16]);
    let decision = Decision {
        outcome: Outcome::Deny { reason: "no".into() },
        digest: Some("sha256:".to_owned() + &"ab".repeat(32)).map(|text| text.parse().unwrap()),
        id: Some(id),
        timing: Timing { queue_ns: 1_999, instantiate_ns: 2_000, run_ns: u64::MAX, host_ns: 0 },
        ..Decision::refused(Refusal::Unavailable)
    };
    let metadata = of(decision.into()).dynamic_metadata.unwrap();
    let get = |key: &str| {
        metadata.fields.iter().find(|field| field.key == key).and_then(|field| field.value.clone()?.kind)
    };
    let text = |text: &str| Some(Kind::String(Bytes::from(text.to_owned())));
    assert_eq!(get("outcome"), text("denied"));
    assert_eq!(get("reason"), text("no"));
    assert_eq!(get("decision"), text(&id.to_string()));
    assert_eq!(get("digest"), text(&format!("sha256:{}", "ab".repeat(32))));
    let Some(Kind::Struct(timings)) = get("timings") else { panic!("no timings") };
    let numbers: Vec<_> =
        timings.fields.into_iter().map(|field| field.value.unwrap().kind.unwrap()).collect();
    assert_eq!(numbers, [1.0, 2.0, f64::from(u32::MAX), 0.0].map(Kind::Number));
    let open = with(Outcome::Allow, Obligations::default()).dynamic_metadata.unwrap();
    assert_eq!(open.fields.len(), 1);
    assert_eq!(open.fields[0].value.clone().unwrap().kind, text("allow"));
}

/// Byte for byte as Envoy's own definitions have it: fields 1, 2 (a message whose field 1 is true) and 3.
#[test]
fn what_becomes_of_a_header_that_is_there_is_on_the_wire() {
    for (there, bytes) in [(Goes, &b"\x18\x02"[..]), (Stays, b""), (StaysInRequest, b"\x12\x02\x08\x01")] {
        let option = header(Bytes::from_static(b"a"), Bytes::from_static(b"1"), there);
        let expected = [b"\x0a\x06\x0a\x01a\x12\x011", bytes].concat();
        assert_eq!(prost::Message::encode_to_vec(&option), expected, "{there:?}");
    }
}
