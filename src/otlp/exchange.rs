//! One request to a collector and its answer: HTTP/1.1 on a connection of its own. A collector is a stranger: of what it
//! says, the status and one header are read, within a limit.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Collector;

/// Longest head of an answer, bytes.
const HEAD_MAX: usize = 16 << 10;
/// However long a collector wants to be left alone, seconds.
const RETRY_AFTER_MAX: u64 = 300;

/// What a collector said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Taken,
    /// It may take the same later.
    Later {
        after: Option<Duration>,
    },
    /// It never will.
    Refused {
        status: u16,
    },
}

pub(super) async fn post(collector: &Collector, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(collector.address()).await?;
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         user-agent: portcullis/{}\r\nconnection: close\r\n\r\n",
        collector.path(),
        collector.address(),
        body.len(),
        env!("CARGO_PKG_VERSION"),
    );
    let mut request = head.into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request).await?;
    let mut answer = Vec::new();
    let mut part = [0; 2048];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut part).await?;
        if length == 0 || answer.len() > HEAD_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the collector's answer has no end of its head",
            ));
        }
        answer.extend_from_slice(part.get(..length).unwrap_or_default());
    }
    understand(&answer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the collector's answer is not HTTP"))
}

fn understand(answer: &[u8]) -> Option<Answer> {
    let head = String::from_utf8_lossy(answer);
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status: u16 = words.next().filter(|word| word.len() == 3)?.parse().ok()?;
    let after = lines.take_while(|line| !line.is_empty()).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        // A date is not understood; then the pauses are ours.
        let seconds: u64 = value.trim().parse().ok()?;
        name.eq_ignore_ascii_case("retry-after").then(|| Duration::from_secs(seconds.min(RETRY_AFTER_MAX)))
    });
    Some(match status {
        200..=299 => Answer::Taken,
        // Those that OTLP names, and no others.
        429 | 502 | 503 | 504 => Answer::Later { after },
        status => Answer::Refused { status },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_answer_the_status_counts_and_how_long_to_wait() {
        let of = |head: &str| understand(head.as_bytes());
        assert_eq!(of("HTTP/1.1 200 OK\r\n\r\n{}"), Some(Answer::Taken));
        assert_eq!(of("HTTP/1.0 202 \r\n\r\n"), Some(Answer::Taken));
        let later = |seconds: Option<u64>| Some(Answer::Later { after: seconds.map(Duration::from_secs) });
        assert_eq!(of("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n"), later(Some(7)));
        assert_eq!(of("HTTP/1.1 429 x\r\nretry-after:99999999\r\n\r\n"), later(Some(RETRY_AFTER_MAX)));
        assert_eq!(of("HTTP/1.1 502 x\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"), later(None));
        assert_eq!(of("HTTP/1.1 504 x\r\na: b\r\n\r\nretry-after: 7"), later(None), "that is the body");
        assert_eq!(of("HTTP/1.1 400 Bad\r\n\r\n"), Some(Answer::Refused { status: 400 }));
        assert_eq!(of("HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n"), Some(Answer::Refused { status: 301 }));
        for bad in ["", "HTTP/2 200\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 20 x\r\n\r\n", "200 OK\r\n\r\n"] {
            assert_eq!(of(bad), None, "{bad:?}");
        }
    }
}
