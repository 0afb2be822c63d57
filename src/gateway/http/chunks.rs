//! Bodies that come in chunks. Sizes are plain hex digits; extensions and trailers are not taken, since nobody who asks for a
//! decision has any, and readers differ over where they end.

use bytes::{Buf, BytesMut};

use super::super::verdict::{Code, Down};
use super::head::malformed;

/// Most hex digits of a chunk's size.
const SIZE_DIGITS: usize = 8;

/// What came of a body so far.
#[derive(Debug)]
pub(super) struct Chunks {
    body: BytesMut,
    max: usize,
    next: Next,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    Size,
    /// So many bytes of a chunk.
    Data(usize),
    /// The line's end behind a chunk.
    Ending,
    /// The empty line behind the last chunk.
    Last,
}

pub(super) fn body_too_large(max: usize) -> Down {
    Down::new(Code::TooLarge, format!("a body of more than {max} bytes, which is this listener's max_body"))
}

impl Chunks {
    pub(super) fn new(max: usize) -> Self {
        Self { body: BytesMut::new(), max, next: Next::Size }
    }

    /// Takes from `inbound` what belongs to the body. True once that is all of it.
    pub(super) fn take(&mut self, inbound: &mut BytesMut) -> Result<bool, Down> {
        loop {
            self.next = match self.next {
                Next::Size => match size(inbound)? {
                    None => return Ok(false),
                    Some(0) => Next::Last,
                    Some(size) if size > self.max - self.body.len() => return Err(body_too_large(self.max)),
                    Some(size) => Next::Data(size),
                },
                Next::Data(_) if inbound.is_empty() => return Ok(false),
                Next::Data(size) => {
                    let part = inbound.split_to(size.min(inbound.len()));
                    self.body.extend_from_slice(&part);
                    match size - part.len() {
                        0 => Next::Ending,
                        left => Next::Data(left),
                    }
                }
                Next::Ending | Next::Last => {
                    if !b"\r\n".starts_with(inbound.get(..inbound.len().min(2)).unwrap_or_default()) {
                        return Err(malformed("a chunk that is longer than it says, or trailers"));
                    }
                    if inbound.len() < 2 {
                        return Ok(false);
                    }
                    inbound.advance(2);
                    if matches!(self.next, Next::Last) {
                        return Ok(true);
                    }
                    Next::Size
                }
            };
        }
    }

    /// Bytes of the body so far.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// The body, once it is whole.
    pub(super) fn whole(&mut self) -> BytesMut {
        self.body.split()
    }
}

/// A chunk's size, once its line is there.
fn size(inbound: &mut BytesMut) -> Result<Option<usize>, Down> {
    let wrong = || malformed("a chunk's size that is not 1 to 8 hex digits alone on a line");
    let longest = SIZE_DIGITS + 2;
    let line = inbound.get(..inbound.len().min(longest)).unwrap_or_default();
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if line.len() < longest { Ok(None) } else { Err(wrong()) };
    };
    let digits = line.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or_else(wrong)?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
    let size = size.ok_or_else(wrong)?;
    inbound.advance(end + 1);
    Ok(Some(size))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body, and what is left behind it.
    type Read = (Vec<u8>, Vec<u8>);

    /// Feeds `bytes` in parts of `step`. Gives the body and what is left behind it, or why not; None if more is needed.
    fn read(bytes: &[u8], step: usize, max: usize) -> Result<Option<Read>, Down> {
        let mut chunks = Chunks::new(max);
        let mut inbound = BytesMut::new();
        let mut parts = bytes.chunks(step);
        while let Some(part) = parts.next() {
            inbound.extend_from_slice(part);
            if chunks.take(&mut inbound)? {
                let rest = parts.flatten().copied();
                return Ok(Some((chunks.whole().to_vec(), inbound.iter().copied().chain(rest).collect())));
            }
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_put_together_and_what_follows_stays() {
        for step in 1..20 {
            let (body, rest) =
                read(b"4\r\nWiki\r\nA\r\n0123456789\r\n0\r\n\r\nGET /", step, 64).unwrap().unwrap();
            assert_eq!((&body[..], &rest[..]), (&b"Wiki0123456789"[..], &b"GET /"[..]), "in parts of {step}");
        }
        assert_eq!(read(b"0\r\n\r\n", 1, 0).unwrap().unwrap().0, b"");
        assert_eq!(read(b"4\r\nWik", 1, 64).unwrap(), None);
        assert_eq!(read(b"0\r\n\r", 1, 64).unwrap(), None);
    }

    #[test]
    fn what_readers_differ_over_is_not_taken() {
        for bad in [
            "4;ext=1\r\nWiki\r\n0\r\n\r\n",
            "4 \r\nWiki\r\n0\r\n\r\n",
            " 4\r\nWiki\r\n0\r\n\r\n",
            "+4\r\nWiki\r\n0\r\n\r\n",
            "0x4\r\nWiki\r\n0\r\n\r\n",
            "4\nWiki\r\n0\r\n\r\n",
            "4\r\nWiki\n0\r\n\r\n",
            "4\r\nWikia\r\n0\r\n\r\n",
            "3\r\nWiki\r\n0\r\n\r\n",
            "\r\nWiki\r\n0\r\n\r\n",
            "-1\r\n",
            "4\r\r\nWiki\r\n0\r\n\r\n",
            "000000004\r\nWiki\r\n0\r\n\r\n",
            "100000004\r\nWiki\r\n0\r\n\r\n",
            "4\r\nWiki\r\n0\r\nHost: b\r\n\r\n",
            "4\r\nWiki\r\n0\r\n\n",
        ] {
            for step in [1, 3, 100] {
                let down = read(bad.as_bytes(), step, 64).expect_err(bad);
                assert_eq!((down.code, down.status), (Code::BadRequest, 400), "{bad:?}");
            }
        }
    }

    #[test]
    fn more_than_may_come_is_refused_before_it_comes() {
        assert!(read(b"4\r\nWiki\r\n0\r\n\r\n", 1, 4).unwrap().is_some());
        for long in ["5\r\n", "FFFFFFFF\r\n", "4\r\nWiki\r\n1\r\n"] {
            let down = read(long.as_bytes(), 1, 4).expect_err(long);
            assert_eq!((down.code, down.status), (Code::TooLarge, 413), "{long:?}");
        }
    }

    proptest! {
        #[test]
        fn any_body_comes_out_as_it_went_in(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..10),
            step in 1_usize..50,
        ) {
            let mut sent = Vec::new();
            for part in &parts {
                sent.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                sent.extend_from_slice(part);
                sent.extend_from_slice(b"\r\n");
            }
            sent.extend_from_slice(b"0\r\n\r\n");
            let (body, rest) = read(&sent, step, 1 << 20).unwrap().unwrap();
            prop_assert_eq!(body, parts.concat());
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), step in 1_usize..50) {
            let _ = read(&bytes, step, 16);
        }
    }
}
