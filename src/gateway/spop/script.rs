//! What HAProxy would say, and how it would read what it is told; for tests.

use bytes::{BufMut, BytesMut};

use super::frame::{Frame, Ids, Kind};
use super::typed::{Reader, Typed, put_string, put_typed};

/// The payload of a NOTIFY.
pub(super) fn notify(messages: &[&[(&str, Typed<'_>)]]) -> BytesMut {
    let mut out = BytesMut::new();
    for arguments in messages {
        put_string(&mut out, b"check");
        out.put_u8(arguments.len().try_into().unwrap());
        for (name, value) in *arguments {
            put_string(&mut out, name.as_bytes());
            put_typed(&mut out, *value);
        }
    }
    out
}

/// What `req.hdrs_bin` makes of headers.
pub(super) fn hdrs(headers: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for (name, value) in headers {
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, value);
    }
    out.put_slice(&[0, 0]);
    out.to_vec()
}

/// A variable's value, as HAProxy keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Bool(bool),
    Int(i128),
    Text(String),
    Binary(Vec<u8>),
}

/// Takes an ACK off the front and does what it says: the variables in their order.
pub(super) fn acked(buffer: &mut BytesMut) -> (Ids, Vec<(String, Told)>) {
    let frame = Frame::take(buffer, 1 << 20).unwrap().expect("a whole frame");
    assert!(frame.kind == Kind::Ack && frame.is_whole, "{frame:?}");
    let mut reader = Reader(&frame.payload);
    let mut told = Vec::new();
    while !reader.is_empty() {
        assert_eq!(reader.array(), Ok([1, 3, 2]), "set-var, of three arguments, in the transaction");
        let name = String::from_utf8(reader.string().unwrap().to_vec()).unwrap();
        assert!(name.len() <= 44 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b)));
        let value = match reader.typed().unwrap() {
            Typed::Bool(value) => Told::Bool(value),
            Typed::Int32(value) => Told::Int(value.into()),
            Typed::Uint32(value) => Told::Int(value.into()),
            Typed::Int64(value) => Told::Int(value.into()),
            Typed::Uint64(value) => Told::Int(value.into()),
            Typed::Text(value) => Told::Text(String::from_utf8(value.to_vec()).unwrap()),
            Typed::Binary(value) => Told::Binary(value.to_vec()),
            other => panic!("{name} is {other:?}"),
        };
        told.push((name, value));
    }
    (frame.ids, told)
}
