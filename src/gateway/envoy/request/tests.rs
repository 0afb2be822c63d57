use proptest::prelude::*;
use prost::Message;

use super::super::messages::*;
use super::*;
use crate::decision::Address as Seen;

pub(super) fn entry(key: &str, value: &str) -> Entry {
    Entry { key: Bytes::from(key.to_owned()), value: Bytes::from(value.to_owned()) }
}

fn string(text: &str) -> Value {
    Value { kind: Some(Kind::String(Bytes::from(text.to_owned()))) }
}

fn field(key: &str, value: Value) -> Field {
    Field { key: Bytes::from(key.to_owned()), value: Some(value) }
}

fn address(address: &'static str, port: u32) -> Option<super::super::messages::Address> {
    let socket = SocketAddress { address: Bytes::from_static(address.as_bytes()), port_value: port };
    Some(super::super::messages::Address { socket_address: Some(socket) })
}

fn get(path: &'static str, headers: &[(&str, &str)]) -> CheckRequest {
    let http = HttpRequest {
        method: Bytes::from_static(b"GET"),
        scheme: Bytes::from_static(b"https"),
        host: Bytes::from_static(b"api.example"),
        path: Bytes::from_static(path.as_bytes()),
        headers: headers.iter().map(|(key, value)| entry(key, value)).collect(),
        ..HttpRequest::default()
    };
    let request = Some(Request { http: Some(http) });
    CheckRequest { attributes: Some(AttributeContext { request, ..AttributeContext::default() }) }
}

fn http(check: &mut CheckRequest) -> &mut HttpRequest {
    check.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap()
}

fn context(check: &mut CheckRequest) -> &mut AttributeContext {
    check.attributes.as_mut().unwrap()
}

fn read(check: &CheckRequest) -> Result<Check, Down> {
    Check::read(Bytes::from(check.encode_to_vec()))
}

/// What a policy is asked, or the word for why not.
fn asked<T>(check: &CheckRequest, look: impl Fn(&decision::HttpRequest<'_>) -> T) -> Result<T, &'static str> {
    let check = read(check).map_err(|down| down.code.word())?;
    match check.input(64) {
        Ok(Input::Http(http)) => Ok(look(&http)),
        Ok(Input::Opaque { .. }) => panic!("not HTTP"),
        Err(down) => Err(down.code.word()),
    }
}

fn attributes(check: &CheckRequest) -> Vec<(String, String)> {
    let owned = |one: &Attribute<'_>| (one.name.to_owned(), one.value.to_owned());
    asked(check, |http| http.attributes.iter().map(owned).collect()).unwrap()
}

#[test]
fn a_check_is_the_request_that_envoy_has() {
    let mut check = get(
        "/people/bob?page=1&x=?",
        &[
            (":path", "/people/bob"),
            ("x-b", "2"),
            (":authority", "api.example"),
            ("accept", "*/*"),
            ("a", ""),
        ],
    );
    http(&mut check).raw_body = Bytes::from_static(b"\xff\x00");
    context(&mut check).source = Some(Peer {
        address: address("192.0.2.7", 50123),
        principal: Bytes::from_static(b"spiffe://a/b"),
        ..Peer::default()
    });
    context(&mut check).destination = Some(Peer { address: address("2001:db8::1", 443), ..Peer::default() });
    asked(&check, |http| {
        assert_eq!((http.method, http.scheme, http.host), ("GET", "https", "api.example"));
        assert_eq!((http.path, http.query), ("/people/bob", Some("page=1&x=?")));
        let names: Vec<_> = http.headers.iter().map(|header| (header.name, header.value)).collect();
        assert_eq!(
            names,
            [("a", &b""[..]), ("accept", b"*/*"), ("x-b", b"2")],
            "by name, without pseudo-headers"
        );
        assert_eq!(http.body, Some(&b"\xff\x00"[..]));
        assert_eq!((http.source.address, http.source.port), (Seen::Ipv4([192, 0, 2, 7]), 50123));
        assert_eq!(http.source.principal, Some("spiffe://a/b"));
        assert_eq!(http.destination.port, 443);
        assert_eq!(http.destination.principal, None);
        assert!(matches!(http.destination.address, Seen::Ipv6([0x20, 1, ..])));
    })
    .unwrap();
}

#[test]
fn raw_headers_keep_their_order_and_their_bytes() {
    let line = |key: &'static str, value: &'static [u8]| HeaderValue {
        key: Bytes::from_static(key.as_bytes()),
        raw_value: Bytes::from_static(value),
        ..HeaderValue::default()
    };
    let mut check = get("/", &[]);
    http(&mut check).header_map = Some(HeaderMap {
        headers: vec![line(":path", b"/"), line("x-b", b"\xff"), line("a", b"1"), line("x-b", b"2")],
    });
    let lines = asked(&check, |http| {
        http.headers
            .iter()
            .map(|header| (header.name.to_owned(), header.value.to_owned()))
            .collect::<Vec<_>>()
    });
    let expected = [("x-b", &b"\xff"[..]), ("a", b"1"), ("x-b", b"2")];
    assert_eq!(lines.unwrap(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let check = read(&check).unwrap();
    assert_eq!(
        (check.header("a"), check.header("x-b")),
        (Some("1"), None),
        "one that comes twice binds nothing"
    );
}

#[test]
fn a_path_without_a_question_mark_has_no_query() {
    for (path, expected) in [
        ("/", ("/", None)),
        ("/?", ("/", Some(""))),
        ("*", ("*", None)),
        ("/%3Fa%00?b", ("/%3Fa%00", Some("b"))),
        ("", ("", None)),
        ("//h/..?//", ("//h/..", Some("//"))),
    ] {
        let split =
            asked(&get(path, &[]), |http| (http.path.to_owned(), http.query.map(str::to_owned))).unwrap();
        assert_eq!((split.0.as_str(), split.1.as_deref()), expected);
    }
}

#[test]
fn what_could_mean_two_things_is_refused() {
    let fine = get("/a", &[("host", "api.example"), ("x", "1")]);
    assert_eq!(asked(&fine, |http| http.headers.len()), Ok(2), "the control");
    type Spoil = fn(&mut CheckRequest);
    let cases: [(&str, Spoil); 18] = [
        ("no attributes", |check| check.attributes = None),
        ("no HTTP", |check| context(check).request = None),
        ("no method", |check| http(check).method.clear()),
        ("a header twice", |check| http(check).headers.push(entry("x", "2"))),
        ("a folded name", |check| http(check).headers.push(entry("X", "2"))),
        ("an empty name", |check| http(check).headers.push(entry("", "2"))),
        ("a line in a name", |check| http(check).headers.push(entry("a\r\nb", "2"))),
        ("a name that is no text", |check| http(check).headers[0].key = Bytes::from_static(b"\xff")),
        ("two hosts", |check| http(check).host = Bytes::from_static(b"other.example")),
        ("headers in two forms", |check| http(check).header_map = Some(HeaderMap::default())),
        ("two bodies", |check| {
            http(check).body = Bytes::from_static(b"a");
            http(check).raw_body = Bytes::from_static(b"b");
        }),
        ("two queries", |check| {
            http(check).path = Bytes::from_static(b"/a?b");
            http(check).query = Bytes::from_static(b"c");
        }),
        ("a path that is no text", |check| http(check).path = Bytes::from_static(b"/\xff")),
        ("an extension twice", |check| {
            context(check).context_extensions = vec![entry("tenant", "a"), entry("tenant", "b")];
        }),
        ("an address that is none", |check| {
            context(check).source = Some(Peer { address: address("localhost", 1), ..Peer::default() });
        }),
        ("a port that is none", |check| {
            context(check).source = Some(Peer { address: address("::1", 65536), ..Peer::default() });
        }),
        ("metadata twice", |check| {
            let fields = vec![field("c", string("1")), field("c", string("2"))];
            let value = Some(Struct { fields });
            let filter_metadata = vec![StructEntry { key: Bytes::from_static(b"f"), value }];
            context(check).metadata_context = Some(Metadata { filter_metadata });
        }),
        ("one name of two kinds of metadata", |check| {
            let filter = |key: &'static str, name: &str| StructEntry {
                key: Bytes::from_static(key.as_bytes()),
                value: Some(Struct { fields: vec![field(name, string("1"))] }),
            };
            context(check).metadata_context =
                Some(Metadata { filter_metadata: vec![filter("a", "b.c"), filter("a.b", "c")] });
        }),
    ];
    for (what, spoil) in cases {
        let mut check = fine.clone();
        spoil(&mut check);
        assert_eq!(asked(&check, |_| ()), Err("bad_request"), "{what}");
    }
}

#[test]
fn a_query_of_its_own_is_not_lost() {
    let mut check = get("/a", &[]);
    http(&mut check).query = Bytes::from_static(b"admin=1");
    assert_eq!(asked(&check, |http| http.query.map(str::to_owned)), Ok(Some("admin=1".to_owned())));
}

#[test]
fn a_body_is_refused_and_never_cut() {
    let mut check = get("/", &[]);
    assert_eq!(asked(&check, |http| http.body.is_none()), Ok(true));
    http(&mut check).body = Bytes::from(vec![b'a'; 64]);
    assert_eq!(asked(&check, |http| http.body.map(<[u8]>::len)), Ok(Some(64)));
    http(&mut check).body = Bytes::from(vec![b'a'; 65]);
    assert_eq!(asked(&check, |_| ()), Err("too_large"));
}

/// One field of one filter.
fn metadata(filter: &str, fields: Vec<Field>) -> Option<Metadata> {
    let key = Bytes::from(filter.to_owned());
    Some(Metadata { filter_metadata: vec![StructEntry { key, value: Some(Struct { fields }) }] })
}

/// What goes beyond is refused, whatever it would have been a part of.
#[test]
fn what_a_check_says_beyond_its_body_has_bounds() {
    let nothing = |_: &decision::HttpRequest<'_>| ();
    let numbered = |count: usize| (0..count).map(|number| number.to_string());
    let pairs = |count| numbered(count).map(|name| entry(&name, "")).collect::<Vec<_>>();
    let fields = |count| numbered(count).map(|name| field(&name, string(""))).collect::<Vec<_>>();
    // Each extension is two attributes.
    type Spoil<'a> = &'a dyn Fn(&mut CheckRequest, usize);
    let cases: [(&str, usize, Spoil<'_>); 6] = [
        ("headers", 1024, &|check, count| http(check).headers = pairs(count)),
        ("raw headers", 1024, &|check, count| {
            let line = |key: String| HeaderValue { key: key.into(), ..HeaderValue::default() };
            http(check).header_map = Some(HeaderMap { headers: numbered(count).map(line).collect() });
        }),
        ("extensions", 128, &|check, count| context(check).context_extensions = pairs(count)),
        ("labels", 256, &|check, count| {
            context(check).source = Some(Peer { labels: pairs(count), ..Peer::default() });
        }),
        ("metadata", 256, &|check, count| context(check).metadata_context = metadata("f", fields(count))),
        ("both kinds of it", 128, &|check, count| {
            context(check).metadata_context = metadata("f", fields(count));
            context(check).route_metadata_context = metadata("f", fields(count));
        }),
    ];
    for (what, most, put) in cases {
        for (count, expected) in [(most, Ok(())), (most + 1, Err("too_large"))] {
            let mut check = get("/", &[]);
            put(&mut check, count);
            assert_eq!(asked(&check, nothing), expected, "{count} {what}");
        }
    }
}

/// A name that every field's attribute has in it, and values that get longer in JSON.
#[test]
fn attributes_are_not_made_where_they_would_be_too_long() {
    let nothing = |_: &decision::HttpRequest<'_>| ();
    let fields =
        |value: &Value| (0..20).map(|number| field(&number.to_string(), value.clone())).collect::<Vec<_>>();
    let list =
        |value: Value, count| Value { kind: Some(Kind::List(ListValue { values: vec![value; count] })) };
    for (name, value, expected) in [
        (50_000, string(""), Ok(())),
        (60_000, string(""), Err("too_large")),
        (60_000, Value { kind: None }, Err("too_large")),
        (700_000, string(""), Err("too_large")),
        (1, string(&"x".repeat(50_000)), Ok(())),
        (1, string(&"x".repeat(60_000)), Err("too_large")),
        (1, list(string(&"\u{1}".repeat(20)), 400), Ok(())),
        (1, list(string(&"\u{1}".repeat(20)), 450), Err("too_large")),
        // Too many, before they are too long.
        (1, list(Value { kind: None }, 3_000), Ok(())),
        (1, list(Value { kind: None }, 4_000), Err("too_large")),
    ] {
        let mut check = get("/", &[]);
        context(&mut check).metadata_context = metadata(&"f".repeat(name), fields(&value));
        assert_eq!(asked(&check, nothing), expected, "{name}");
    }
}

#[test]
fn an_address_without_a_number_is_not_known() {
    let mut check = get("/", &[]);
    context(&mut check).source = Some(Peer::default());
    assert_eq!(asked(&check, |http| (http.source.address, http.source.port)), Ok((Seen::Unknown, 0)));
    context(&mut check).source = Some(Peer { address: address("fe80::1%eth0", 9), ..Peer::default() });
    assert!(matches!(asked(&check, |http| http.source.address), Ok(Seen::Ipv6([0xfe, 0x80, ..]))));
}

#[test]
fn what_envoy_knows_beyond_http_has_names() {
    let mut check = get("/", &[(PARTIAL_BODY, "true")]);
    http(&mut check).protocol = Bytes::from_static(b"HTTP/2");
    let deep = Struct { fields: vec![field("b", string("\"\n")), field("a", Value { kind: None })] };
    let list = ListValue {
        values: vec![
            Value { kind: Some(Kind::Number(1.0)) },
            Value { kind: Some(Kind::Number(-0.5)) },
            Value { kind: Some(Kind::Number(f64::NAN)) },
            Value { kind: Some(Kind::Bool(true)) },
            Value { kind: Some(Kind::Struct(deep)) },
        ],
    };
    let fields = vec![field("list", Value { kind: Some(Kind::List(list)) }), field("group", string("staff"))];
    let value = Some(Struct { fields });
    let filter_metadata = vec![StructEntry { key: Bytes::from_static(b"jwt"), value }];
    *context(&mut check) = AttributeContext {
        context_extensions: vec![entry("virtual_host", "a"), entry("tls.sni", "forged")],
        tls_session: Some(TlsSession { sni: Bytes::from_static(b"api.example") }),
        metadata_context: Some(Metadata { filter_metadata: filter_metadata.clone() }),
        route_metadata_context: Some(Metadata { filter_metadata }),
        source: Some(Peer {
            service: Bytes::from_static(b"edge"),
            labels: vec![entry("zone", "b"), entry("app", "a")],
            ..Peer::default()
        }),
        ..std::mem::take(context(&mut check))
    };
    let json = r#"[1,-0.5,null,true,{"a":null,"b":"\"\n"}]"#;
    let expected = [
        ("virtual_host", "a"),
        ("context.tls.sni", "forged"),
        ("context.virtual_host", "a"),
        ("tls.sni", "api.example"),
        ("http.protocol", "HTTP/2"),
        ("source.service", "edge"),
        ("source.label.app", "a"),
        ("source.label.zone", "b"),
        ("metadata.jwt.group", "staff"),
        ("metadata.jwt.list", json),
        ("route.metadata.jwt.group", "staff"),
        ("route.metadata.jwt.list", json),
        ("envoy.partial-body", "true"),
    ];
    assert_eq!(attributes(&check), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(serde_json::from_str::<serde_json::Value>(json).is_ok());
}

#[test]
fn the_trace_is_the_requests() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(read(&get("/", &[("traceparent", TRACE)])).unwrap().trace(), TRACE.parse().ok());
    assert_eq!(read(&get("/", &[("traceparent", "00-nonsense")])).unwrap().trace(), None);
    assert_eq!(read(&get("/", &[])).unwrap().trace(), None);
}

/// A field of a number that no message here has, of each kind there is on the wire.
fn unknown() -> impl Strategy<Value = Vec<u8>> {
    let key = |number: u32, kind: u32| {
        let mut bytes = Vec::new();
        prost::encoding::encode_varint(u64::from(number << 3 | kind), &mut bytes);
        bytes
    };
    (100_u32..10_000, 0_usize..4, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(
        move |(number, kind, bytes)| match kind {
            0 => [key(number, 0), vec![0x96, 0x01]].concat(),
            1 => [key(number, 1), vec![7; 8]].concat(),
            2 => [key(number, 2), vec![u8::try_from(bytes.len()).unwrap()], bytes].concat(),
            _ => [key(number, 5), vec![7; 4]].concat(),
        },
    )
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value { kind: None }),
        Just(Value { kind: Some(Kind::Null(0)) }),
        any::<bool>().prop_map(|is| Value { kind: Some(Kind::Bool(is)) }),
        any::<i32>().prop_map(|number| Value { kind: Some(Kind::Number(number.into())) }),
        "\\PC{0,8}".prop_map(|text| string(&text)),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| Value { kind: Some(Kind::List(ListValue { values })) }),
            proptest::collection::vec(("[a-z]{1,4}", inner), 0..4).prop_map(|fields| {
                let fields = fields.into_iter().map(|(key, value)| field(&key, value)).collect();
                Value { kind: Some(Kind::Struct(Struct { fields })) }
            }),
        ]
    })
}

prop_compose! {
    fn checks()(
        texts in proptest::collection::vec("\\PC{0,12}", 8),
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        pairs in proptest::collection::vec(("[a-z:-]{0,8}", "\\PC{0,12}"), 0..6),
        port in any::<u32>(),
        value in value(),
        raw in any::<bool>(),
    ) -> CheckRequest {
        let text = |at: usize| Bytes::from(texts[at].clone());
        let entries: Vec<_> = pairs.iter().map(|(key, value)| entry(key, value)).collect();
        let socket_address = Some(SocketAddress { address: text(0), port_value: port });
        let peer = Peer {
            address: Some(super::super::messages::Address { socket_address }),
            service: text(1),
            labels: entries.clone(),
            principal: text(2),
            certificate: text(3),
        };
        let lines = entries.iter().map(|entry| HeaderValue {
            key: entry.key.clone(),
            raw_value: entry.value.clone(),
            ..HeaderValue::default()
        });
        let http = HttpRequest {
            method: text(4),
            headers: if raw { Vec::new() } else { entries.clone() },
            header_map: raw.then(|| HeaderMap { headers: lines.collect() }),
            path: text(5),
            host: text(6),
            scheme: text(7),
            raw_body: bytes.into(),
            ..HttpRequest::default()
        };
        let filter = StructEntry { key: text(1), value: Some(Struct { fields: vec![field("k", value)] }) };
        CheckRequest { attributes: Some(AttributeContext {
            source: Some(peer.clone()),
            destination: Some(peer),
            request: Some(Request { http: Some(http) }),
            context_extensions: entries,
            metadata_context: Some(Metadata { filter_metadata: vec![filter] }),
            tls_session: Some(TlsSession { sni: text(0) }),
            route_metadata_context: None,
        })}
    }
}

proptest! {
    #[test]
    fn messages_go_round_and_unknown_fields_are_skipped(check in checks(), unknown in unknown(), first in any::<bool>()) {
        let bytes = check.encode_to_vec();
        prop_assert_eq!(CheckRequest::decode(Bytes::from(bytes.clone())), Ok(check));
        let more = if first { [unknown, bytes.clone()].concat() } else { [bytes.clone(), unknown].concat() };
        prop_assert_eq!(CheckRequest::decode(Bytes::from(more)).unwrap().encode_to_vec(), bytes);
    }

    /// Whatever comes, it is a question or a word for why not; and what was asked once is asked the same again.
    #[test]
    fn no_bytes_are_too_much(check in checks(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = check.encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(check) = Check::read(Bytes::from(bytes)) {
            prop_assert_eq!(check.input(32), check.input(32));
            let _ = (check.trace(), check.extension("a"), check.header("a"));
        }
    }

    #[test]
    fn nor_are_bytes_that_never_were_a_check(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(check) = Check::read(Bytes::from(bytes)) {
            let _ = check.input(32);
        }
    }
}

#[test]
fn what_nests_without_end_is_refused() {
    let nested = |depth: usize| {
        let mut value = string("x");
        for _ in 0..depth {
            value = Value { kind: Some(Kind::List(ListValue { values: vec![value] })) };
        }
        let mut check = get("/", &[]);
        let value = Some(Struct { fields: vec![field("k", value)] });
        let filter_metadata = vec![StructEntry { key: Bytes::from_static(b"f"), value }];
        context(&mut check).metadata_context = Some(Metadata { filter_metadata });
        asked(&check, |_| ())
    };
    assert_eq!(nested(20), Ok(()), "the control");
    assert_eq!(nested(2_000), Err("bad_request"));
}

/// Two checks as Envoy's own definitions encode them (Python, `xds-protos`), with fields that are not used here (time, id, size).
const MERGED: &str = "\
    0af0020a3e0a110a0f12093139322e302e322e3718cb87031204656467651a090a047a6f6e65120162220c7370696666653a\
    2f2f612f622a0a2d2d2d2d2d424547494e12140a120a10120b323030313a6462383a3a3118bb032282010a060880e2cfaa06\
    12780a0231371204504f53541a1b0a053a7061746812122f70656f706c652f626f623f706167653d311a0d0a066163636570\
    7412032a2f2a1a080a03782d6212013222122f70656f706c652f626f623f706167653d312a0b6170692e6578616d706c6532\
    05687474707348045206485454502f326204ff006162520e0a0674656e616e74120461636d6552110a0c7669727475616c5f\
    686f73741201765a4e0a4c0a036a777412450a100a0567726f757012071a0573746166660a310a046c697374122932270a09\
    11000000000000f03f0a0220010a0208000a122a100a0e0a0161120911000000000000e03f620d0a0b6170692e6578616d70\
    6c656a110a0f0a0172120a0a080a016b12031a0176";
const RAW: &str = "\
    0ae3020a3e0a110a0f12093139322e302e322e3718cb87031204656467651a090a047a6f6e65120162220c7370696666653a\
    2f2f612f622a0a2d2d2d2d2d424547494e12140a120a10120b323030313a6462383a3a3118bb0322760a060880e2cfaa0612\
    6c0a0231371204504f535422122f70656f706c652f626f623f706167653d312a0b6170692e6578616d706c65320568747470\
    7348045206485454502f325a04746578746a280a0a0a053a706174681a012f0a080a03782d621a01ff0a060a01611a01310a\
    080a03782d621a0132520e0a0674656e616e74120461636d6552110a0c7669727475616c5f686f73741201765a4e0a4c0a03\
    6a777412450a100a0567726f757012071a0573746166660a310a046c697374122932270a0911000000000000f03f0a022001\
    0a0208000a122a100a0e0a0161120911000000000000e03f620d0a0b6170692e6578616d706c656a110a0f0a0172120a0a08\
    0a016b12031a0176";

#[test]
fn what_envoys_own_definitions_encode_is_understood() {
    let read = |text: &str| Check::read(Bytes::from(hex::decode(text).unwrap())).unwrap();
    let (merged, raw) = (read(MERGED), read(RAW));
    let Input::Http(http) = merged.input(64).unwrap() else { panic!("not HTTP") };
    assert_eq!((http.method, http.scheme, http.host), ("POST", "https", "api.example"));
    assert_eq!((http.path, http.query), ("/people/bob", Some("page=1")));
    let headers = |http: &decision::HttpRequest<'_>| {
        http.headers.iter().map(|one| (one.name.to_owned(), one.value.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(headers(&http), [("accept".to_owned(), b"*/*".to_vec()), ("x-b".to_owned(), b"2".to_vec())]);
    assert_eq!(http.body, Some(&b"\xff\x00ab"[..]));
    assert_eq!((http.source.address, http.source.port), (Seen::Ipv4([192, 0, 2, 7]), 50123));
    assert_eq!((http.source.principal, http.destination.port), (Some("spiffe://a/b"), 443));
    let attributes: Vec<_> = http.attributes.iter().map(|one| (one.name, one.value)).collect();
    let expected = [
        ("tenant", "acme"),
        ("virtual_host", "v"),
        ("context.tenant", "acme"),
        ("context.virtual_host", "v"),
        ("tls.sni", "api.example"),
        ("http.protocol", "HTTP/2"),
        ("source.service", "edge"),
        ("source.certificate", "-----BEGIN"),
        ("source.label.zone", "b"),
        ("metadata.jwt.group", "staff"),
        ("metadata.jwt.list", r#"[1,true,null,{"a":0.5}]"#),
        ("route.metadata.r.k", "v"),
    ];
    assert_eq!(attributes, expected);
    let Input::Http(http) = raw.input(64).unwrap() else { panic!("not HTTP") };
    let lines = [("x-b", &b"\xff"[..]), ("a", b"1"), ("x-b", b"2")];
    assert_eq!(headers(&http), lines.map(|(name, value)| (name.to_owned(), value.to_vec())));
    assert_eq!(http.body, Some(&b"text"[..]));
}
