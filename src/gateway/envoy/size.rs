//! How many fields a check has, before anything is made of it. Two bytes on the wire become an entry of a hundred in memory,
//! and a message of the size that a body may have holds a million of them.

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::gateway::verdict::{Code, Down};

/// Fields of all its messages together. As many headers as a policy is given have some thousand.
const FIELDS_MAX: usize = 64 << 10;
/// Messages within messages: no more are decoded.
const DEPTH_MAX: usize = 100;

/// Which fields of a message hold messages, as [`super::messages`] declares them.
struct Shape(&'static [(u32, &'static Shape)]);

static LEAF: Shape = Shape(&[]);
static CHECK: Shape = Shape(&[(1, &CONTEXT)]);
static CONTEXT: Shape = Shape(&[
    (1, &PEER),
    (2, &PEER),
    (4, &REQUEST),
    (10, &LEAF),
    (11, &METADATA),
    (12, &LEAF),
    (13, &METADATA),
]);
static PEER: Shape = Shape(&[(1, &ADDRESS), (3, &LEAF)]);
static ADDRESS: Shape = Shape(&[(1, &LEAF)]);
static REQUEST: Shape = Shape(&[(2, &HTTP)]);
static HTTP: Shape = Shape(&[(3, &LEAF), (13, &HEADERS)]);
static HEADERS: Shape = Shape(&[(1, &LEAF)]);
static METADATA: Shape = Shape(&[(1, &STRUCT_ENTRY)]);
static STRUCT_ENTRY: Shape = Shape(&[(2, &STRUCT)]);
static STRUCT: Shape = Shape(&[(1, &FIELD)]);
static FIELD: Shape = Shape(&[(2, &VALUE)]);
static VALUE: Shape = Shape(&[(5, &STRUCT), (6, &LIST)]);
static LIST: Shape = Shape(&[(1, &VALUE)]);

/// What ends in the middle of a field is refused here: a decoder reads on to the end of the whole, and finds out afterwards.
pub(super) fn check(message: &[u8]) -> Result<(), Down> {
    let mut left = FIELDS_MAX;
    count(message, &CHECK, &mut left, 0).map_err(|stop| match stop {
        Stop::TooMany => Down::new(Code::TooLarge, format!("the check has more than {FIELDS_MAX} fields")),
        Stop::NoMessage => Down::new(Code::BadRequest, "the check is no CheckRequest: a field has no end"),
    })
}

enum Stop {
    TooMany,
    NoMessage,
}

fn count(mut message: &[u8], shape: &Shape, left: &mut usize, depth: usize) -> Result<(), Stop> {
    while message.has_remaining() {
        *left = left.checked_sub(1).ok_or(Stop::TooMany)?;
        let (number, wire) = decode_key(&mut message).map_err(|_| Stop::NoMessage)?;
        let inner = shape.0.iter().find(|(known, _)| *known == number);
        match inner {
            Some((_, inner)) if wire == WireType::LengthDelimited && depth < DEPTH_MAX => {
                let length = decode_varint(&mut message).map_err(|_| Stop::NoMessage)?;
                let length = usize::try_from(length).map_err(|_| Stop::NoMessage)?;
                let (part, rest) = message.split_at_checked(length).ok_or(Stop::NoMessage)?;
                count(part, inner, left, depth + 1)?;
                message = rest;
            }
            _ => skip_field(wire, number, &mut message, DecodeContext::default())
                .map_err(|_| Stop::NoMessage)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::gateway::envoy::messages::{
        AttributeContext, CheckRequest, Entry, Field, HeaderMap, HeaderValue, HttpRequest, Kind, ListValue,
        Metadata, Peer, Request, Struct, StructEntry, Value,
    };

    fn check_of(context: AttributeContext) -> Vec<u8> {
        CheckRequest { attributes: Some(context) }.encode_to_vec()
    }

    fn with_http(http: HttpRequest) -> AttributeContext {
        AttributeContext { request: Some(Request { http: Some(http) }), ..AttributeContext::default() }
    }

    fn metadata(kind: Kind) -> Metadata {
        let fields = vec![Field { value: Some(Value { kind: Some(kind) }), ..Field::default() }];
        let value = Some(Struct { fields });
        Metadata { filter_metadata: vec![StructEntry { value, ..StructEntry::default() }] }
    }

    /// Each place of [`super::super::messages`] where something may come any number of times.
    #[test]
    fn wherever_there_may_be_many_there_are_not_too_many() {
        let places: [fn(usize) -> AttributeContext; 8] = [
            |many| with_http(HttpRequest { headers: vec![Entry::default(); many], ..HttpRequest::default() }),
            |many| {
                let map = HeaderMap { headers: vec![HeaderValue::default(); many] };
                with_http(HttpRequest { header_map: Some(map), ..HttpRequest::default() })
            },
            |many| AttributeContext {
                context_extensions: vec![Entry::default(); many],
                ..AttributeContext::default()
            },
            |many| {
                let peer = Peer { labels: vec![Entry::default(); many], ..Peer::default() };
                AttributeContext { source: Some(peer), ..AttributeContext::default() }
            },
            |many| {
                let peer = Peer { labels: vec![Entry::default(); many], ..Peer::default() };
                AttributeContext { destination: Some(peer), ..AttributeContext::default() }
            },
            |many| {
                let metadata = Metadata { filter_metadata: vec![StructEntry::default(); many] };
                AttributeContext { metadata_context: Some(metadata), ..AttributeContext::default() }
            },
            |many| {
                let list = ListValue { values: vec![Value::default(); many] };
                let metadata = metadata(Kind::List(list));
                AttributeContext { metadata_context: Some(metadata), ..AttributeContext::default() }
            },
            |many| {
                let inner = Struct { fields: vec![Field::default(); many] };
                let metadata = metadata(Kind::Struct(inner));
                AttributeContext { route_metadata_context: Some(metadata), ..AttributeContext::default() }
            },
        ];
        for (number, place) in places.iter().enumerate() {
            assert!(check(&check_of(place(4096))).is_ok(), "{number}");
            let refused = check(&check_of(place(FIELDS_MAX))).expect_err("too many");
            assert_eq!(refused.code, Code::TooLarge, "{number}");
        }
    }

    #[test]
    fn a_body_is_one_field_whatever_is_in_it() {
        // Read as a message, it would be of half a million fields.
        let body = [0x0a, 0x00].repeat(500_000);
        let http = HttpRequest { raw_body: body.into(), ..HttpRequest::default() };
        assert!(check(&check_of(with_http(http))).is_ok());
    }

    #[test]
    fn what_is_no_message_is_not_decoded() {
        for bytes in [&[0xff; 20][..], &[0x0a, 0x05], &[0x0a, 0x02, 0x22, 0x7f], &[0x07]] {
            assert_eq!(check(bytes).expect_err("no message").code, Code::BadRequest);
            assert!(CheckRequest::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    /// Lengths that go beyond the message they are in: a decoder has made all of it before it sees that.
    #[test]
    fn a_part_that_is_longer_than_the_whole_is_not_decoded() {
        let mut bytes =
            vec![0x0a, 0x04, 0x22, 0x80, 0x80, 0x40, 0x12, 0x80, 0x80, 0x40, 0x6a, 0x80, 0x80, 0x40];
        bytes.extend([0x0a, 0x00].repeat(700_000));
        assert_eq!(check(&bytes).expect_err("too long").code, Code::BadRequest);
    }

    #[test]
    fn values_in_values_end() {
        let mut value = Value::default();
        for _ in 0..200 {
            value = Value { kind: Some(Kind::List(ListValue { values: vec![value] })) };
        }
        let Some(kind) = value.kind.take() else { unreachable!() };
        let metadata = metadata(kind);
        let context = AttributeContext { metadata_context: Some(metadata), ..AttributeContext::default() };
        let bytes = check_of(context);
        assert!(check(&bytes).is_ok());
        assert!(CheckRequest::decode(&*bytes).is_err(), "no more is decoded than is counted");
    }
}
