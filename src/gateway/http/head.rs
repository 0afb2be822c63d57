//! A request's head, read strictly: what two readers could take for two things is not taken at all. Lines end in CRLF,
//! names stand right before their colon, nothing is folded, nothing is guessed.

use super::super::verdict::{Code, Down};
use crate::decision::Header;

/// Longest head, bytes. Envoy takes 60 KiB from its clients and nginx 32, and what they add has to fit too.
pub(super) const HEAD_MAX: usize = 80 << 10;
/// Most header lines.
const LINES_MAX: usize = 512;
/// Lines for which there is room from the beginning.
const LINES_EXPECTED: usize = 32;

/// Method, target and header lines, as they were sent but for their names, which are in lower case.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) method: &'a str,
    /// Begins with a slash and has no fragment.
    pub(super) target: &'a str,
    pub(super) version: Version,
    pub(super) lines: Vec<Header<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
}

/// What a head says of its message and its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) length: Length,
    /// Another request may follow on this connection.
    pub(super) keep_alive: bool,
    /// The body comes once it is asked for.
    pub(super) expects_continue: bool,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// Zero where there is none.
    Known(u64),
    Chunked,
}

pub(super) fn malformed(why: impl Into<String>) -> Down {
    Down::new(Code::BadRequest, why)
}

pub(super) fn too_large(why: impl Into<String>) -> Down {
    Down { status: 431, ..Down::new(Code::TooLarge, why) }
}

/// Where the head at the front of `bytes` ends, once its end is there. `scanned` is where its first incomplete line begins,
/// so that bytes that come one at a time are not read again and again.
pub(super) fn end(bytes: &[u8], scanned: &mut usize) -> Result<Option<usize>, Down> {
    let found = loop {
        let rest = bytes.get(*scanned..).unwrap_or_default();
        let Some(at) = rest.iter().position(|byte| *byte == b'\n') else { break None };
        if at.checked_sub(1).and_then(|before| rest.get(before)) != Some(&b'\r') {
            return Err(malformed("a line of the head that does not end in CRLF"));
        }
        let first = *scanned == 0;
        *scanned += at + 1;
        match (at, first) {
            (1, true) => return Err(malformed("an empty line before the request")),
            (1, false) => break Some(*scanned),
            _ => {}
        }
    };
    if found.unwrap_or(bytes.len()) > HEAD_MAX {
        return Err(too_large(format!("a head of more than {HEAD_MAX} bytes")));
    }
    Ok(found)
}

impl<'a> Head<'a> {
    /// Reads a whole head, with the empty line at its end and nothing behind it. Names become lower case in place.
    pub(super) fn parse(bytes: &'a mut [u8]) -> Result<Self, Down> {
        let unended = || malformed("a head without an end");
        let (first, mut rest) = line(bytes).ok_or_else(unended)?;
        let (method, target, version) = request_line(first)?;
        let mut lines = Vec::with_capacity(LINES_EXPECTED);
        loop {
            let (line, after) = line(rest).ok_or_else(unended)?;
            rest = after;
            if line.is_empty() {
                break;
            }
            if lines.len() == LINES_MAX {
                return Err(too_large(format!("more than {LINES_MAX} header lines")));
            }
            lines.push(header(line)?);
        }
        if rest.is_empty() { Ok(Self { method, target, version, lines }) } else { Err(unended()) }
    }

    /// What frames the message. Where a header that has a part in it comes twice, or says what another one denies, the
    /// message could end in two places, and what is behind it be a request or not.
    pub(super) fn framing(&self) -> Result<Framing<'a>, Down> {
        let (mut host, mut length, mut encoding, mut expect) = (None, None, None, None);
        let keeps = self.version == Version::Http11;
        let (mut close, mut keep) = (false, false);
        for Header { name, value } in &self.lines {
            let place = match *name {
                "host" => &mut host,
                "content-length" => &mut length,
                "transfer-encoding" => &mut encoding,
                "expect" => &mut expect,
                "connection" => {
                    for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep |= option.eq_ignore_ascii_case(b"keep-alive");
                    }
                    continue;
                }
                _ => continue,
            };
            if place.replace(*value).is_some() {
                return Err(malformed(format!("header {name:?} comes twice")));
            }
        }
        let length = match (length, encoding) {
            (None, None) => Length::Known(0),
            (Some(length), None) => Length::Known(digits(length)?),
            (None, Some(encoding)) if keeps && encoding.eq_ignore_ascii_case(b"chunked") => Length::Chunked,
            (None, Some(_)) => {
                return Err(malformed("a transfer-encoding that is not just \"chunked\" in HTTP/1.1"));
            }
            (Some(_), Some(_)) => return Err(malformed("both content-length and transfer-encoding")),
        };
        let expects_continue = match expect {
            None => false,
            Some(expect) if expect.eq_ignore_ascii_case(b"100-continue") => keeps,
            Some(_) => return Err(malformed("an expectation that is not \"100-continue\"")),
        };
        if host.is_none() && keeps {
            return Err(malformed("header \"host\" is missing"));
        }
        let host = host.map(|host| authority("host", host)).transpose()?;
        Ok(Framing { host, length, keep_alive: !close && (keeps || keep), expects_continue })
    }
}

/// The line at the front without its end, and what follows. None if it has no end, or another one than CRLF.
fn line(bytes: &mut [u8]) -> Option<(&mut [u8], &mut [u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at_mut_checked(end + 1)?;
    let (line, ending) = line.split_last_chunk_mut::<2>()?;
    (ending == b"\r\n").then_some((line, rest))
}

fn request_line(line: &[u8]) -> Result<(&str, &str, Version), Down> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("a request line that is not method, target and version"));
    };
    let version = match version {
        b"HTTP/1.1" => Version::Http11,
        b"HTTP/1.0" => Version::Http10,
        _ => return Err(malformed("neither HTTP/1.1 nor HTTP/1.0")),
    };
    Ok((token("the method", method)?, target_of("the target", target)?, version))
}

fn header(line: &mut [u8]) -> Result<Header<'_>, Down> {
    let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
    let Some((name, [b':', value @ ..])) = line.split_at_mut_checked(colon) else {
        return Err(malformed("a header line without a colon"));
    };
    name.make_ascii_lowercase();
    let name = token("a header's name", name)?;
    // Every byte is looked at, whichever is the first that is wrong: that is faster than to stop at it.
    let control = value.iter().fold(false, |found, byte| found | is_control(*byte));
    if control {
        return Err(malformed(format!("a control character in header {name:?}")));
    }
    Ok(Header { name, value: value.trim_ascii() })
}

const fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

/// A name as HTTP has them: of a method or of a header.
pub(super) fn token<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Down> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty() && text.bytes().all(is_token));
    text.ok_or_else(|| malformed(format!("{what} is not a token")))
}

pub(in crate::gateway) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// A path and maybe a query: neither a URL nor a star, without a fragment, blanks and control characters.
pub(super) fn target_of<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Down> {
    let target = std::str::from_utf8(bytes).map_err(|_| malformed(format!("{what} is not UTF-8")))?;
    if !target.starts_with('/') {
        return Err(malformed(format!("{what} does not begin with a slash")));
    }
    if target.bytes().any(|byte| is_control(byte) || matches!(byte, b' ' | b'\t' | b'#')) {
        return Err(malformed(format!("{what} has a blank, a control character or a fragment")));
    }
    Ok(target)
}

/// A host and maybe a port: one, and nothing that would make a URL of it another's.
pub(super) fn authority<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a str, Down> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&byte);
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty() && text.bytes().all(legal));
    text.ok_or_else(|| malformed(format!("header {what:?} is not one host")))
}

/// Decimal, without a sign or blanks, of at most 18 digits.
fn digits(bytes: &[u8]) -> Result<u64, Down> {
    let text = std::str::from_utf8(bytes).ok();
    text.filter(|text| text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| malformed("a content-length that is not a number"))
}
