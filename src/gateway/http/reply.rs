//! An answer, written as it is decided. What goes into it comes from workers too, which are not believed: a line that could
//! end another one, or the message, is not written.

use bytes::Bytes;

use super::head::is_token;

/// What an answer's framing says. Who decides does not.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// A buffer that a large answer made larger is not kept.
const KEPT: usize = 64 << 10;

/// One answer. Kept for the next of its connection.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Reply {
    status: u16,
    bytes: Vec<u8>,
    body: Bytes,
    ended: bool,
}

/// A header that may not be in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "what cannot be told as it was decided is another answer"]
pub(in crate::gateway) struct Unfit;

/// What follows from the request and the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    /// The request was HEAD: what would be a body is told of, and not sent.
    pub(super) without_body: bool,
    /// What the connection says of itself, unless that is understood.
    pub(super) connection: Option<&'static str>,
}

impl Reply {
    /// Makes it the next one, of which nothing is known yet.
    pub(super) fn forget(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.body = Bytes::new();
        self.ended = false;
    }

    /// Begins it, and forgets what was begun before.
    pub(in crate::gateway) fn begin(&mut self, status: u16) {
        self.forget();
        self.status = status;
        // What there is most of.
        if status == 200 {
            self.bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            return;
        }
        self.bytes.extend_from_slice(b"HTTP/1.1 ");
        self.number(u64::from(status));
        self.bytes.push(b' ');
        self.bytes.extend_from_slice(reason(status).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Adds a line.
    pub(in crate::gateway) fn header(&mut self, name: &str, value: &[u8]) -> Result<(), Unfit> {
        let legal = |byte: u8| (byte >= 0x20 && byte != 0x7f) || byte == b'\t';
        if name.is_empty()
            || !name.bytes().all(is_token)
            || !value.iter().fold(true, |all, byte| all & legal(*byte))
            || FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing))
        {
            return Err(Unfit);
        }
        self.line(name, value);
        Ok(())
    }

    /// The same for a line of our own, which cannot be unfit.
    pub(in crate::gateway) fn line(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.bytes.extend_from_slice(part);
        }
    }

    pub(in crate::gateway) fn body(&mut self, body: Bytes) {
        self.body = body;
    }

    /// Bytes of it so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.body.len()
    }

    /// All of it, as it is sent. One that nobody began says that something is wrong here.
    pub(super) fn end(&mut self, ending: Ending) -> &[u8] {
        if self.bytes.is_empty() {
            self.begin(500);
        }
        if !self.ended {
            self.ended = true;
            if let Some(connection) = ending.connection {
                self.line("connection", connection.as_bytes());
            }
            // 304 speaks of a body that is elsewhere.
            if self.status != 304 {
                self.bytes.extend_from_slice(b"content-length: ");
                self.number(self.body.len() as u64);
                self.bytes.extend_from_slice(b"\r\n");
            }
            self.bytes.extend_from_slice(b"\r\n");
            if !ending.without_body && self.status != 304 {
                self.bytes.extend_from_slice(&self.body);
            }
            self.body = Bytes::new();
        }
        &self.bytes
    }

    fn number(&mut self, number: u64) {
        use std::io::Write as _;
        // A Vec takes whatever is written.
        let _ = write!(self.bytes, "{number}");
    }
}

/// What people read beside the number.
const fn reason(status: u16) -> &'static str {
    match status {
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Other",
    }
}
