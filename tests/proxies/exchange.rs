//! A client that sends what no library would, and reads what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may think about a request that it can answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);
/// And about one that it may also just leave lying.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(u16),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Address {
    fn connect(&self, patience: Duration) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(port) => {
                let stream = TcpStream::connect(("127.0.0.1", *port))?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(patience))?;
                Box::new(stream)
            }
        })
    }

    /// Sends these bytes and reads until the other side closes or `count` responses are there. Fewer are what came.
    pub(crate) fn send(&self, bytes: &[u8], count: usize) -> Vec<Response> {
        self.exchange(&[bytes], count, ANSWERED_WITHIN)
    }

    /// The same for what a server need not answer.
    pub(crate) fn try_send(&self, bytes: &[u8], count: usize) -> Vec<Response> {
        self.exchange(&[bytes], count, GIVEN_UP_AFTER)
    }

    /// Each of these parts in a write of its own.
    pub(crate) fn send_in_parts(&self, parts: &[&[u8]], count: usize) -> Vec<Response> {
        self.exchange(parts, count, ANSWERED_WITHIN)
    }

    fn exchange(&self, parts: &[&[u8]], count: usize, patience: Duration) -> Vec<Response> {
        let Ok(mut stream) = self.connect(patience) else { return Vec::new() };
        for part in parts {
            // It may have heard enough already, and answered.
            if stream.write_all(part).is_err() {
                break;
            }
        }
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return parse(&bytes, true),
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return parse(&bytes, false),
            }
            let responses = parse(&bytes, false);
            if responses.len() >= count {
                return responses;
            }
        }
    }

    /// One request without a body on a connection of its own; `None` if there was no answer.
    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Option<Response> {
        self.send(&request("GET", path, headers, b""), 1).pop()
    }
}

/// A well-made request for the host `shop.test`, the last one of its connection.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n");
    if !body.is_empty() {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// Whole responses at the beginning of `bytes`; `closed` if no more will come. Interim ones are left out.
fn parse(mut bytes: &[u8], closed: bool) -> Vec<Response> {
    let mut responses = Vec::new();
    while let Some((head, rest)) = split_at(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.split("\r\n");
        let status =
            lines.next().unwrap_or_default().split(' ').nth(1).and_then(|status| status.parse().ok());
        let Some(status) = status else { break };
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let value =
            |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        let (body, rest) = if (100..200).contains(&status) || [204, 304].contains(&status) {
            (Vec::new(), rest)
        } else if value("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            let Some(read) = dechunked(rest) else { break };
            read
        } else if let Some(length) = value("content-length").and_then(|length| length.parse::<usize>().ok()) {
            let Some((body, rest)) = rest.split_at_checked(length) else { break };
            (body.to_vec(), rest)
        } else if closed {
            (rest.to_vec(), &[][..])
        } else {
            break;
        };
        bytes = rest;
        if status >= 200 {
            responses.push(Response { status, headers, body });
        }
    }
    responses
}

/// The body, and what follows it; `None` if it is not complete or makes no sense.
pub(crate) fn dechunked(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let (line, rest) = split_at(bytes, b"\r\n")?;
        let size = std::str::from_utf8(line).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            // Trailers, up to an empty line.
            let mut rest = rest;
            loop {
                let (line, after) = split_at(rest, b"\r\n")?;
                rest = after;
                if line.is_empty() {
                    return Some((body, rest));
                }
            }
        }
        let (chunk, rest) = rest.split_at_checked(size)?;
        body.extend_from_slice(chunk);
        bytes = rest.strip_prefix(b"\r\n")?;
    }
}

pub(crate) fn split_at<'b>(bytes: &'b [u8], mark: &[u8]) -> Option<(&'b [u8], &'b [u8])> {
    let at = bytes.windows(mark.len()).position(|window| window == mark)?;
    Some((&bytes[..at], &bytes[at + mark.len()..]))
}

#[test]
fn responses_are_read_one_after_the_other() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 403 No\r\n\
        transfer-encoding: chunked\r\nA: b\r\n\r\n2;x=y\r\nno\r\n0\r\nt: u\r\n\r\nHTTP/1.1 500 E\r\nContent-Length: 9\r\n\r\nx";
    let responses = parse(bytes, true);
    let found: Vec<_> = responses.iter().map(|one| (one.status, one.text())).collect();
    assert_eq!(found, [(200, "hi".to_owned()), (403, "no".to_owned())]);
    assert_eq!(responses[1].header("a"), Some("b"));
}
