//! Frames: a length, and then a type, flags, whose question it is, and a payload.

use bytes::{Bytes, BytesMut};

use super::typed::{Malformed, Reader, put_varint};
use crate::wire::frame::{DecodeError, PREFIX, next_frame};

/// Set on a frame that is whole, or the last of several that make one up.
const FIN: u32 = 1;

/// What may come from HAProxy, and what goes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The second and further parts of a frame.
    Unset,
    HaproxyHello,
    HaproxyDisconnect,
    Notify,
    AgentHello,
    AgentDisconnect,
    Ack,
}

impl Kind {
    const ALL: [(u8, Self); 7] = [
        (0, Self::Unset),
        (1, Self::HaproxyHello),
        (2, Self::HaproxyDisconnect),
        (3, Self::Notify),
        (101, Self::AgentHello),
        (102, Self::AgentDisconnect),
        (103, Self::Ack),
    ];

    fn of(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == code).map(|(_, kind)| *kind)
    }

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or(0, |(code, _)| *code)
    }
}

/// Which question of which of HAProxy's streams. Both are 0 where it is about none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ids {
    pub(super) stream: u64,
    pub(super) frame: u64,
}

impl Ids {
    pub(super) const NONE: Self = Self { stream: 0, frame: 0 };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// It is all there. HAProxy sends parts only to agents that say they can put them together.
    pub(super) is_whole: bool,
    pub(super) ids: Ids,
    pub(super) payload: Bytes,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoFrame {
    TooBig,
    Malformed(Malformed),
}

impl Frame {
    /// Takes the next whole frame of at most `max` bytes off the front, or `None` if it has not arrived yet.
    pub(super) fn take(buffer: &mut BytesMut, max: usize) -> Result<Option<Self>, NoFrame> {
        let bytes = match next_frame(buffer, max) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(DecodeError::TooLong { .. }) => return Err(NoFrame::TooBig),
            Err(_) => return Err(NoFrame::Malformed(Malformed("a frame is empty"))),
        };
        Self::read(bytes).map(Some).map_err(NoFrame::Malformed)
    }

    fn read(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader(&bytes);
        let kind = Kind::of(reader.byte()?).ok_or(Malformed("a frame is of no known type"))?;
        let flags = u32::from_be_bytes(reader.array()?);
        let ids = Ids { stream: reader.varint()?, frame: reader.varint()? };
        let payload = bytes.slice_ref(reader.0);
        Ok(Self { kind, is_whole: flags & FIN != 0, ids, payload })
    }
}

/// Appends a whole frame with the payload that `fill` writes, if it is of at most `max` bytes then. Says whether it is; if
/// not, `out` is as it was.
#[must_use]
pub(super) fn put_frame(
    out: &mut BytesMut,
    kind: Kind,
    ids: Ids,
    max: usize,
    fill: impl FnOnce(&mut BytesMut),
) -> bool {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    out.extend_from_slice(&[kind.code()]);
    out.extend_from_slice(&FIN.to_be_bytes());
    put_varint(out, ids.stream);
    put_varint(out, ids.frame);
    fill(out);
    let length = out.len() - start - PREFIX;
    let prefix = out.get_mut(start..start + PREFIX);
    match (u32::try_from(length), prefix) {
        (Ok(declared), Some(prefix)) if length <= max => {
            prefix.copy_from_slice(&declared.to_be_bytes());
            true
        }
        _ => {
            out.truncate(start);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    fn put(kind: Kind, ids: Ids, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        assert!(put_frame(&mut out, kind, ids, 1 << 20, |out| out.put_slice(payload)));
        out
    }

    #[test]
    fn a_frame_is_as_the_specification_has_it() {
        let bytes = put(Kind::Ack, Ids { stream: 300, frame: 1 }, b"p");
        assert_eq!(&bytes[..], b"\0\0\0\x09\x67\0\0\0\x01\xfc\x03\x01p");
    }

    #[test]
    fn what_is_no_frame() {
        let none = |why| Err(NoFrame::Malformed(Malformed(why)));
        for (bytes, max, expected) in [
            (&b"\0\0\x01\0"[..], 256, Ok(None)),
            (b"\0\0\x01\x01", 256, Err(NoFrame::TooBig)),
            (b"\xff\xff\xff\xff", 1 << 20, Err(NoFrame::TooBig)),
            (b"\0\0\0\0", 256, none("a frame is empty")),
            (b"\0\0\0\x07\x04\0\0\0\x01\0\0", 256, none("a frame is of no known type")),
            (b"\0\0\0\x06\x03\0\0\0\x01\0", 256, none("it ends too early")),
            (b"\0\0\0\x06\x03\0\0\0\x01\xf0\0", 256, none("it ends too early")),
        ] {
            assert_eq!(Frame::take(&mut BytesMut::from(bytes), max), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_part_is_told_from_a_whole() {
        for (flags, is_whole) in [(0_u8, false), (1, true), (2, false), (3, true)] {
            let mut bytes = BytesMut::from(&[0, 0, 0, 7, 3, 0, 0, 0, flags, 1, 1][..]);
            assert_eq!(Frame::take(&mut bytes, 256).unwrap().unwrap().is_whole, is_whole);
        }
    }

    #[test]
    fn one_that_does_not_fit_leaves_no_trace() {
        let mut out = put(Kind::Ack, Ids::NONE, b"first");
        let before = out.clone();
        assert!(!put_frame(&mut out, Kind::Ack, Ids::NONE, 256, |out| out.put_slice(&[0; 250])));
        assert_eq!(out, before);
        assert!(put_frame(&mut out, Kind::Ack, Ids::NONE, 256, |out| out.put_slice(&[0; 249])));
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in prop::collection::vec(
                (any::<u64>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 1..6),
            piece in 1_usize..64,
        ) {
            let sent: Vec<BytesMut> =
                frames.iter().map(|(stream, frame, payload)| {
                    put(Kind::Notify, Ids { stream: *stream, frame: *frame }, payload)
                }).collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in sent.concat().chunks(piece) {
                buffer.put_slice(piece);
                while let Some(frame) = Frame::take(&mut buffer, 1 << 20).unwrap() {
                    prop_assert!(frame.is_whole && frame.kind == Kind::Notify);
                    got.push((frame.ids.stream, frame.ids.frame, frame.payload.to_vec()));
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), lie in 0_u8..64) {
            let _ = Frame::take(&mut BytesMut::from(&bytes[..]), 256);
            let mut bytes = bytes;
            bytes.splice(0..0, [0, 0, 0, lie]);
            let _ = Frame::take(&mut BytesMut::from(&bytes[..]), 256);
        }
    }
}
