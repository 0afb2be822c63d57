//! One question to the exporter.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest answer, bytes: ten thousand tenants with a few kilobytes each.
const ANSWER_MAX: u64 = 256 << 20;
/// The exporter answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the old kind: the answer is what comes until the connection ends.
const REQUEST: &[u8] = b"GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ScrapeError {
    #[error("ask exporter at {socket:?}: {source}; is it running, and may this user connect?")]
    Ask { socket: PathBuf, source: io::Error },
    #[error("ask exporter at {socket:?}: it answered {line:?}")]
    Answer { socket: PathBuf, line: String },
}

/// Everything that the exporter tells.
pub(in crate::cli) fn scrape(socket: &Path) -> Result<String, ScrapeError> {
    let failed = |source| ScrapeError::Ask { socket: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.write_all(REQUEST).map_err(failed)?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        return Err(ScrapeError::Answer { socket: socket.to_owned(), line: line.chars().take(80).collect() });
    }
    Ok(body.to_owned())
}
