//! One question to the exporter: whoever is at the other end, it is over when its time is, or when it is interrupted.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Longest answer, bytes: ten thousand tenants with a few kilobytes each.
const ANSWER_MAX: usize = 256 << 20;
/// Read at a time, bytes.
const CHUNK: usize = 64 << 10;
/// The exporter answers at once, or not at all: for connection, question and answer together.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to connect where too many others wait.
const PAUSE: Duration = Duration::from_millis(20);
/// Of the old kind: the answer is what comes until the connection ends.
const REQUEST: &[u8] = b"GET /metrics HTTP/1.0\r\nHost: localhost\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ScrapeError {
    #[error("ask exporter at {socket:?}: {source}; is it running, and may this user connect?")]
    Ask { socket: PathBuf, source: io::Error },
    #[error("ask exporter at {socket:?}: it answered {line:?}")]
    Answer { socket: PathBuf, line: String },
    #[error("interrupted")]
    Interrupted,
}

/// Everything that the exporter tells.
pub(in crate::cli) fn scrape(socket: &Path) -> Result<String, ScrapeError> {
    scrape_unless(socket, None)
}

/// The same, unless something is to be read from `interrupt` before it has told everything.
pub(super) fn scrape_unless(socket: &Path, interrupt: Option<BorrowedFd<'_>>) -> Result<String, ScrapeError> {
    let asking = Asking { until: Instant::now() + PATIENCE, interrupt };
    let answer = asking.ask(socket).map_err(|stopped| match stopped {
        Stopped::Interrupted => ScrapeError::Interrupted,
        Stopped::Failed(source) => ScrapeError::Ask { socket: socket.to_owned(), source },
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        return Err(ScrapeError::Answer { socket: socket.to_owned(), line: line.chars().take(80).collect() });
    }
    Ok(body.to_owned())
}

/// Nothing in it waits but [`Asking::wait`].
struct Asking<'i> {
    until: Instant,
    interrupt: Option<BorrowedFd<'i>>,
}

#[derive(Debug)]
enum Stopped {
    Interrupted,
    Failed(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Errno> for Stopped {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno.into())
    }
}

impl Asking<'_> {
    fn ask(&self, path: &Path) -> Result<String, Stopped> {
        let mut stream = self.connect(path)?;
        let mut rest = REQUEST;
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => self.again(error, &stream, PollFlags::POLLOUT)?,
            }
        }
        let (mut answer, mut chunk) = (Vec::new(), vec![0; CHUNK]);
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => answer.extend(chunk.get(..count).unwrap_or_default()),
                Err(error) => self.again(error, &stream, PollFlags::POLLIN)?,
            }
            if answer.len() > ANSWER_MAX {
                let why = format!("its answer is longer than {ANSWER_MAX} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, why).into());
            }
            // Who always has something to read is bounded all the same.
            self.wait(None, Duration::ZERO)?;
        }
        String::from_utf8(answer).map_err(|why| io::Error::new(ErrorKind::InvalidData, why).into())
    }

    /// A full backlog is no error yet: others may be let in meanwhile.
    fn connect(&self, path: &Path) -> Result<UnixStream, Stopped> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let address = UnixAddr::new(path)?;
        loop {
            match connect(descriptor.as_raw_fd(), &address) {
                Ok(()) => return Ok(descriptor.into()),
                Err(Errno::EAGAIN | Errno::EINTR) => self.wait(None, PAUSE)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits until it may go on, if that is all there is to the error.
    fn again(&self, error: io::Error, stream: &UnixStream, for_what: PollFlags) -> Result<(), Stopped> {
        match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::WouldBlock => self.wait(Some(PollFd::new(stream.as_fd(), for_what)), PATIENCE),
            _ => Err(error.into()),
        }
    }

    /// Waits so long at most. An error if time is up or somebody has had enough.
    fn wait(&self, on: Option<PollFd<'_>>, long: Duration) -> Result<(), Stopped> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = format!("no whole answer in {} s", PATIENCE.as_secs());
            return Err(io::Error::new(ErrorKind::TimedOut, why).into());
        }
        let interrupt = self.interrupt.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let mut watched: Vec<PollFd<'_>> = interrupt.into_iter().chain(on).collect();
        // Rounded up: waking a little early would only mean to wake twice.
        let wait = left.min(long) + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_over = watched.first().and_then(PollFd::any).unwrap_or(false);
        if self.interrupt.is_some() && is_over { Err(Stopped::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    fn ask(socket: &Path) -> Result<String, Stopped> {
        Asking { until: Instant::now() + Duration::from_millis(200), interrupt: None }.ask(socket)
    }

    #[track_caller]
    fn takes_too_long(found: Result<String, Stopped>) {
        let Err(Stopped::Failed(error)) = found else { panic!("{found:?}") };
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    }

    /// Without one limit for all of it, none of these would end.
    #[test]
    fn who_lets_nobody_in_says_nothing_or_dribbles_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        // The first is in the queue, and nobody takes it out.
        let first = UnixStream::connect(&path).unwrap();
        takes_too_long(ask(&path));
        drop((first, listener.accept().unwrap()));
        takes_too_long(ask(&path));
        drop(listener.accept().unwrap());

        let dribble = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            while stream.write_all(b"x").is_ok() {}
            let mut whole = listener.accept().unwrap().0;
            whole.write_all(b"HTTP/1.0 200 OK\r\n\r\nall").unwrap();
            // Read, or the end would be a reset.
            let mut request = vec![0; REQUEST.len()];
            whole.read_exact(&mut request).unwrap();
        });
        let found = ask(&path);
        assert!(matches!(found, Err(Stopped::Failed(_))), "without an end: {found:?}");
        assert_eq!(scrape(&path).unwrap(), "all", "control");
        dribble.join().unwrap();
    }
}
