//! Frames on a byte stream: `u32` big-endian length, then that many bytes of postcard.
//!
//! The length is checked before anything is allocated; a decoder that returns an error has no state worth keeping.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Bytes of the length prefix.
pub const PREFIX: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("frame of length 0")]
    Empty,
    #[error("frame of {length} bytes, at most {max} are taken")]
    TooLong { length: usize, max: usize },
    #[error("frame does not decode")]
    Malformed,
    #[error("{0} bytes left over after the message")]
    Trailing(usize),
}

/// A message that does not fit its boundary's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message does not fit the frame limit of {max} bytes")]
pub struct EncodeError {
    max: usize,
}

/// Takes the next complete frame off the front of `buffer`, or `None` if it has not arrived yet.
pub fn next_frame(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, DecodeError> {
    let Some(length) = frame_length(buffer, max)? else { return Ok(None) };
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// The length that the frame at the front of `buffer` declares, once its prefix is there and if it is allowed.
pub fn frame_length(buffer: &[u8], max: usize) -> Result<Option<usize>, DecodeError> {
    let Some(prefix) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    // u32 fits usize on every architecture there is a profile for.
    let length = u32::from_be_bytes(*prefix) as usize;
    match length {
        0 => Err(DecodeError::Empty),
        _ if length > max => Err(DecodeError::TooLong { length, max }),
        _ => Ok(Some(length)),
    }
}

/// Decodes one whole message; bytes left over are an error.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(|_| DecodeError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(DecodeError::Trailing(rest.len())) }
}

/// Appends the message with its length prefix; on an error `buffer` is as it was.
pub fn encode_frame<T: Serialize>(message: &T, buffer: &mut BytesMut, max: usize) -> Result<(), EncodeError> {
    let start = buffer.len();
    buffer.put_u32(0);
    let outcome = postcard::serialize_with_flavor(
        message,
        Appender { buffer: &mut *buffer, end: start + PREFIX + max },
    );
    let length = buffer.len() - start - PREFIX;
    match (outcome, u32::try_from(length)) {
        (Ok(()), Ok(length)) => {
            if let Some(prefix) = buffer.get_mut(start..start + PREFIX) {
                prefix.copy_from_slice(&length.to_be_bytes());
            }
            Ok(())
        }
        _ => {
            buffer.truncate(start);
            Err(EncodeError { max })
        }
    }
}

/// The message alone, for boundaries that keep message borders themselves (SOCK_SEQPACKET, memfds).
pub fn encode<T: Serialize>(message: &T, max: usize) -> Result<Vec<u8>, EncodeError> {
    let bytes = postcard::to_allocvec(message).map_err(|_| EncodeError { max })?;
    if bytes.len() > max { Err(EncodeError { max }) } else { Ok(bytes) }
}

/// A postcard sink that appends and stops at a limit.
struct Appender<'a> {
    buffer: &'a mut BytesMut,
    end: usize,
}

impl postcard::ser_flavors::Flavor for Appender<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.buffer.len() + bytes.len() > self.end {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
