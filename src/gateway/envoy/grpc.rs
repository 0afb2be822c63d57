//! gRPC over HTTP/2, as far as calls of one message each way need it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;

use crate::gateway::desk::{Full, Place, Room};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What `grpc-message` writes as it is: printable ASCII without the percent sign.
const IN_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');
/// Before every message: whether it is compressed, and how long it is.
pub(super) const PREFIX: usize = 5;

/// `google.rpc.Code`, those that are given here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    ResourceExhausted = 8,
    Unimplemented = 12,
}

/// A response: nothing, or a message and a trailer that says it is well.
#[derive(Debug)]
pub(super) struct Unary {
    message: Option<Bytes>,
    trailers: bool,
}

impl Body for Unary {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        if std::mem::take(&mut self.trailers) {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert(STATUS, HeaderValue::from_static("0"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && !self.trailers
    }
}

/// A message as it stands in a stream.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX.saturating_add(length));
    bytes.put_u8(0);
    // No answer has 4 GiB: what it is made from came in a frame of a few MiB.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // There is room for it, however long.
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The call went well, and this is its message, framed.
pub(super) fn answer(message: Bytes) -> Response<Unary> {
    let mut response = Response::new(Unary { message: Some(message), trailers: true });
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// The call failed. What a proxy makes of that is its own affair, so no answer to a check is given this way unless there
/// is no other.
pub(super) fn refuse(code: Code, why: &str) -> Response<Unary> {
    let mut response = nothing(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(STATUS, HeaderValue::from(code as u16));
    // Percent-encoded, so that it always is one.
    let why = utf8_percent_encode(why, IN_MESSAGE).to_string();
    headers.extend(HeaderValue::try_from(why).ok().map(|why| (MESSAGE, why)));
    if code == Code::Unimplemented {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    response
}

/// A status of HTTP, for what is no call.
pub(super) fn nothing(status: StatusCode) -> Response<Unary> {
    let mut response = Response::new(Unary { message: None, trailers: false });
    *response.status_mut() = status;
    response
}

/// Whether this is a gRPC call with messages in protobuf; else the status to answer with.
pub(super) fn check_call(head: &Parts) -> Result<(), StatusCode> {
    if head.method != Method::POST {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut types = head.headers.get_all(CONTENT_TYPE).iter();
    let grpc = match (types.next().and_then(|value| value.to_str().ok()), types.next()) {
        (Some(one), None) => one
            .strip_prefix("application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(';') || rest == "+proto"),
        _ => false,
    };
    if grpc { Ok(()) } else { Err(StatusCode::UNSUPPORTED_MEDIA_TYPE) }
}

/// What `grpc-timeout` leaves: at most 8 digits and a unit. None where there is none; an error where it is not one, or two.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, NoTimeout> {
    let mut lines = headers.get_all(TIMEOUT).iter();
    let (one, more) = (lines.next(), lines.next());
    let Some(one) = one else { return Ok(None) };
    if more.is_some() {
        return Err(NoTimeout);
    }
    let (unit, digits) = one.as_bytes().split_last().ok_or(NoTimeout)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(NoTimeout);
    }
    let number: u64 = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or(NoTimeout)?;
    Ok(Some(match unit {
        b'H' => Duration::from_secs(number.saturating_mul(3600)),
        b'M' => Duration::from_secs(number.saturating_mul(60)),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return Err(NoTimeout),
    }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("grpc-timeout is not one number of at most 8 digits with a unit (H M S m u n)")]
pub(super) struct NoTimeout;

/// Why there is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unread {
    #[error("compressed messages are not taken; send identity")]
    Compressed,
    #[error("the message has {length} bytes, at most {max} are taken")]
    TooLong { length: usize, max: usize },
    #[error(transparent)]
    Full(#[from] Full),
    #[error("the call has not exactly one message")]
    NotOne,
    #[error("the stream ended before the message did")]
    Gone,
}

/// The call's one message, read to the end of the stream. Its length is looked at before anything is kept; place is taken
/// for what has arrived, since an announcement costs whoever makes it nothing.
pub(super) async fn message(
    mut body: Incoming,
    max: usize,
    room: &Arc<Room>,
) -> Result<(Bytes, Place), Unread> {
    let mut got = Got::default();
    let mut announced: Option<(usize, Place)> = None;
    while let Some(frame) = body.frame().await {
        // Trailers of a request say nothing here.
        let Ok(data) = frame.map_err(|_| Unread::Gone)?.into_data() else { continue };
        got.add(data);
        if announced.is_none()
            && let Some(length) = announces(got.bytes())?
        {
            if length > max {
                return Err(Unread::TooLong { length, max });
            }
            announced = Some((length, room.place()));
        }
        if let Some((length, place)) = &mut announced {
            let arrived = got.bytes().len();
            if arrived > PREFIX + *length {
                return Err(Unread::NotOne);
            }
            place.grow(arrived)?;
        }
    }
    match announced {
        Some((length, place)) if got.bytes().len() == PREFIX + length => {
            let mut whole = got.whole();
            Ok((whole.split_off(PREFIX), place))
        }
        _ => Err(Unread::NotOne),
    }
}

/// The length of a message, once its prefix is there.
fn announces(bytes: &[u8]) -> Result<Option<usize>, Unread> {
    match bytes.first_chunk::<PREFIX>() {
        None => Ok(None),
        // u32 fits usize on every architecture there is a profile for.
        Some([0, length @ ..]) => Ok(Some(u32::from_be_bytes(*length) as usize)),
        Some([1, ..]) => Err(Unread::Compressed),
        Some(_) => Err(Unread::NotOne),
    }
}

/// What has arrived: as it came while that is in one piece, as nearly all messages are.
#[derive(Debug)]
enum Got {
    One(Bytes),
    Several(BytesMut),
}

impl Default for Got {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl Got {
    fn add(&mut self, data: Bytes) {
        match self {
            Self::One(first) if first.is_empty() => *first = data,
            Self::One(first) => {
                let mut both = BytesMut::from(first.as_ref());
                both.extend_from_slice(&data);
                *self = Self::Several(both);
            }
            Self::Several(before) => before.extend_from_slice(&data),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::One(one) => one,
            Self::Several(several) => several,
        }
    }

    fn whole(self) -> Bytes {
        match self {
            Self::One(one) => one,
            Self::Several(several) => several.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(text: &str) -> Result<Option<Duration>, NoTimeout> {
        timeout(&HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_str(text).unwrap())]))
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        for (text, is) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("200m", Duration::from_millis(200)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("0n", Duration::ZERO),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(left(text), Ok(Some(is)), "{text}");
        }
        for text in ["", "m", "1", "1s", "-1m", "+1m", "1.5S", "1 m", "999999999m", "1mm", "0x1m", "\u{e9}m"]
        {
            assert_eq!(left(text), Err(NoTimeout), "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        let twice = ["1S", "2S"].map(|text| (TIMEOUT, HeaderValue::from_static(text)));
        assert_eq!(timeout(&HeaderMap::from_iter(twice)), Err(NoTimeout));
    }

    #[test]
    fn a_failed_call_says_why_in_its_head_alone() {
        let response = refuse(Code::Unimplemented, "50 % of \u{e9}\n");
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["grpc-message"], "50 %25 of %C3%A9%0A");
        assert!(response.body().is_end_stream());
    }
}
