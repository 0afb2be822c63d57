//! How a connection begins and ends: what HAProxy says of itself, what is answered, and the words for going.

use bytes::BytesMut;

use super::frame::{Ids, Kind, NoFrame, put_frame};
use super::typed::{Malformed, Reader, Typed, put_string, put_typed};
use crate::gateway::desk::Full;

/// Smallest frame that both sides have to take, bytes.
pub(super) const FRAME_MIN: usize = 256;
/// Largest frame that is taken or sent, bytes. HAProxy's are of 16,380 unless `tune.bufsize` says otherwise.
pub(super) const FRAME_MAX: usize = 1 << 20;
/// Largest HELLO, bytes: before it nobody has said who they are.
pub(super) const HELLO_MAX: usize = 4096;
const VERSION: &str = "2.0";
/// Longest message of a DISCONNECT, bytes. The frame around it then fits the smallest that can be agreed on; HAProxy takes
/// up to 255.
const MESSAGE_MAX: usize = 200;

/// SPOP's status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Normal = 0,
    Timeout = 2,
    TooBig = 3,
    Invalid = 4,
    NoVersion = 5,
    NoFrameSize = 6,
    NoCapabilities = 7,
    BadVersion = 8,
    BadFrameSize = 9,
    Fragmented = 10,
    NoRoom = 13,
}

/// Why the agent goes: a code for HAProxy, and a sentence for its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Departure {
    pub(super) status: Status,
    pub(super) why: String,
}

impl Departure {
    pub(super) fn new(status: Status, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    /// Appends the frame that says so.
    pub(super) fn put(&self, out: &mut BytesMut) {
        let end = (0..=MESSAGE_MAX.min(self.why.len())).rev().find(|end| self.why.is_char_boundary(*end));
        let message = self.why.get(..end.unwrap_or(0)).unwrap_or_default();
        // It fits (a test has the longest); and that the connection ends says enough.
        let _ = put_frame(out, Kind::AgentDisconnect, Ids::NONE, FRAME_MIN, |out| {
            put_string(out, b"status-code");
            put_typed(out, Typed::Uint32(self.status as u32));
            put_string(out, b"message");
            put_typed(out, Typed::Text(message.as_bytes()));
        });
    }
}

impl From<Malformed> for Departure {
    fn from(Malformed(why): Malformed) -> Self {
        Self::new(Status::Invalid, why)
    }
}

impl From<Full> for Departure {
    fn from(full: Full) -> Self {
        Self::new(Status::NoRoom, full.to_string())
    }
}

impl From<NoFrame> for Departure {
    fn from(no_frame: NoFrame) -> Self {
        match no_frame {
            NoFrame::TooBig => Self::new(Status::TooBig, "a frame is larger than was agreed"),
            NoFrame::Malformed(malformed) => malformed.into(),
        }
    }
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// Largest frame of both directions, bytes: [`FRAME_MIN`] to [`FRAME_MAX`].
    pub(super) frame_max: usize,
    /// Whether HAProxy asks again before it has its answer.
    pub(super) pipelining: bool,
    /// It only wants to know whether somebody is there.
    pub(super) is_check: bool,
}

/// Reads the payload of HAPROXY-HELLO.
pub(super) fn agree(payload: &[u8]) -> Result<Terms, Departure> {
    let (mut versions, mut frame_size, mut capabilities, mut check) = (None, None, None, None);
    let mut reader = Reader(payload);
    while !reader.is_empty() {
        let (name, value) = (reader.string()?, reader.typed()?);
        let known = match name {
            b"supported-versions" => &mut versions,
            b"max-frame-size" => &mut frame_size,
            b"capabilities" => &mut capabilities,
            b"healthcheck" => &mut check,
            _ => continue,
        };
        if known.replace(value).is_some() {
            return Err(Malformed("a HELLO says the same thing twice").into());
        }
    }
    match versions {
        Some(Typed::Text(versions)) if entries(versions).any(is_ours) => {}
        Some(Typed::Text(_)) => {
            return Err(Departure::new(Status::BadVersion, "this agent speaks SPOP 2.0 and nothing else"));
        }
        Some(_) => return Err(Malformed("supported-versions is no string").into()),
        None => return Err(Departure::new(Status::NoVersion, "a HELLO without supported-versions")),
    }
    let frame_size = match frame_size {
        Some(Typed::Uint32(size)) => u64::from(size),
        Some(Typed::Uint64(size)) => size,
        Some(Typed::Int32(size)) => u64::try_from(size).unwrap_or(0),
        Some(Typed::Int64(size)) => u64::try_from(size).unwrap_or(0),
        Some(_) => return Err(Malformed("max-frame-size is no integer").into()),
        None => return Err(Departure::new(Status::NoFrameSize, "a HELLO without max-frame-size")),
    };
    let frame_max = usize::try_from(frame_size).unwrap_or(usize::MAX).min(FRAME_MAX);
    if frame_max < FRAME_MIN {
        let why = "max-frame-size is less than the 256 bytes that everybody has to take";
        return Err(Departure::new(Status::BadFrameSize, why));
    }
    let pipelining = match capabilities {
        Some(Typed::Text(capabilities)) => entries(capabilities).any(|one| one == b"pipelining"),
        Some(_) => return Err(Malformed("capabilities is no string").into()),
        None => return Err(Departure::new(Status::NoCapabilities, "a HELLO without capabilities")),
    };
    let is_check = match check {
        Some(Typed::Bool(is_check)) => is_check,
        Some(_) => return Err(Malformed("healthcheck is no boolean").into()),
        None => false,
    };
    Ok(Terms { frame_max, pipelining, is_check })
}

/// What stands between commas, without the spaces around.
fn entries(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whoever has any 2.x has 2.0 too.
fn is_ours(version: &[u8]) -> bool {
    version.strip_prefix(b"2.").is_some_and(|minor| !minor.is_empty() && minor.iter().all(u8::is_ascii_digit))
}

/// Appends AGENT-HELLO. "async" is never agreed to: an answer comes on the connection of its question, so that HAProxy knows
/// at once, and not by a timeout, that none will come when that one ends.
pub(super) fn put_hello(out: &mut BytesMut, terms: Terms) {
    let frame_max = u32::try_from(terms.frame_max).unwrap_or(u32::MAX);
    let _ = put_frame(out, Kind::AgentHello, Ids::NONE, FRAME_MIN, |out| {
        put_string(out, b"version");
        put_typed(out, Typed::Text(VERSION.as_bytes()));
        put_string(out, b"max-frame-size");
        put_typed(out, Typed::Uint32(frame_max));
        put_string(out, b"capabilities");
        put_typed(out, Typed::Text(if terms.pipelining { b"pipelining" } else { b"" }));
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::Frame;
    use super::*;

    const WHOLE: [(&str, Typed<'_>); 3] = [
        ("supported-versions", Typed::Text(b"2.0")),
        ("max-frame-size", Typed::Uint32(16_380)),
        ("capabilities", Typed::Text(b"pipelining,async")),
    ];

    fn list(items: &[(&str, Typed<'_>)]) -> BytesMut {
        let mut out = BytesMut::new();
        for (name, value) in items {
            put_string(&mut out, name.as_bytes());
            put_typed(&mut out, *value);
        }
        out
    }

    /// What HAProxy's HELLO becomes where one item is another, or missing.
    fn with(name: &str, value: Option<Typed<'_>>) -> Result<Terms, Status> {
        let mut items: Vec<_> = WHOLE.into_iter().filter(|(known, _)| *known != name).collect();
        items.extend(value.map(|value| (name, value)));
        agree(&list(&items)).map_err(|departure| departure.status)
    }

    #[test]
    fn what_haproxy_says_is_agreed_to() {
        let terms = Terms { frame_max: 16_380, pipelining: true, is_check: false };
        assert_eq!(agree(&list(&WHOLE)), Ok(terms));
        assert_eq!(with("engine-id", Some(Typed::Text(b"7"))), Ok(terms), "what is unknown is skipped");
        let check = with("healthcheck", Some(Typed::Bool(true)));
        assert_eq!(check, Ok(Terms { is_check: true, ..terms }));
        let mut out = BytesMut::new();
        put_hello(&mut out, terms);
        let hello = Frame::take(&mut out, 256).unwrap().unwrap();
        assert_eq!((hello.kind, hello.ids, out.len()), (Kind::AgentHello, Ids::NONE, 0));
        let said = list(&[
            ("version", Typed::Text(b"2.0")),
            ("max-frame-size", Typed::Uint32(16_380)),
            ("capabilities", Typed::Text(b"pipelining")),
        ]);
        assert_eq!(hello.payload, said);
    }

    #[test]
    fn versions() {
        for (versions, is_ours) in [
            ("2.0", true),
            (" 1.5 , 2.0 ", true),
            ("3.0,2.7", true),
            ("1.0", false),
            ("3.0", false),
            ("2", false),
            ("2.", false),
            ("2.x", false),
            ("12.0", false),
            ("", false),
        ] {
            let got = with("supported-versions", Some(Typed::Text(versions.as_bytes())));
            assert_eq!(got.is_ok(), is_ours, "{versions}");
            assert!(is_ours || got == Err(Status::BadVersion));
        }
    }

    #[test]
    fn frame_sizes() {
        for (size, agreed) in [
            (Typed::Uint32(256), Ok(256)),
            (Typed::Uint32(255), Err(Status::BadFrameSize)),
            (Typed::Int32(-1), Err(Status::BadFrameSize)),
            (Typed::Int64(16_380), Ok(16_380)),
            (Typed::Uint64(u64::MAX), Ok(FRAME_MAX)),
            (Typed::Text(b"16380"), Err(Status::Invalid)),
        ] {
            let got = with("max-frame-size", Some(size)).map(|terms| terms.frame_max);
            assert_eq!(got, agreed, "{size:?}");
        }
    }

    #[test]
    fn capabilities_are_words_between_commas() {
        for (capabilities, pipelining) in
            [("", false), ("async", false), ("async, pipelining", true), ("pipelining2", false)]
        {
            let got = with("capabilities", Some(Typed::Text(capabilities.as_bytes()))).unwrap();
            assert_eq!(got.pipelining, pipelining, "{capabilities}");
        }
    }

    #[test]
    fn each_missing_item_has_its_status() {
        for (name, status) in [
            ("supported-versions", Status::NoVersion),
            ("max-frame-size", Status::NoFrameSize),
            ("capabilities", Status::NoCapabilities),
        ] {
            assert_eq!(with(name, None), Err(status));
            assert_eq!(with(name, Some(Typed::Null)), Err(Status::Invalid));
            let twice = [&WHOLE[..], &WHOLE[..]].concat();
            assert_eq!(agree(&list(&twice)).unwrap_err().status, Status::Invalid);
        }
        assert_eq!(with("healthcheck", Some(Typed::Uint32(1))), Err(Status::Invalid));
    }

    #[test]
    fn a_departure_fits_the_smallest_frame() {
        for why in ["", "é", &"é".repeat(400)] {
            let mut out = BytesMut::new();
            Departure::new(Status::Fragmented, why).put(&mut out);
            let frame = Frame::take(&mut out, FRAME_MIN).unwrap().unwrap();
            let mut reader = Reader(&frame.payload);
            assert_eq!(reader.string(), Ok(&b"status-code"[..]));
            assert_eq!(reader.typed(), Ok(Typed::Uint32(10)));
            assert_eq!(reader.string(), Ok(&b"message"[..]));
            let Ok(Typed::Text(message)) = reader.typed() else { panic!("no message") };
            assert!(message.len() <= 200 && why.starts_with(std::str::from_utf8(message).unwrap()));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = agree(&bytes);
        }
    }
}
