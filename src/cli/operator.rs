//! What `status` and `reload` have in common: one question to the operators' socket.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::wire::frame::{self, DecodeError};
use crate::wire::operator::{
    OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest, Status,
};

/// Where the service listens for operators unless the flag or the environment says otherwise.
const DEFAULT_SOCKET: &str = "/run/portcullis/operator.sock";
/// The frontend waits for its workers for a second at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the service's state is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum OperatorError {
    #[error("connect to {socket:?}: {cause}; is the service running, and is this its operators' socket?")]
    Connect { socket: PathBuf, cause: io::Error },
    #[error("ask {socket:?}: {cause}")]
    Ask { socket: PathBuf, cause: io::Error },
    #[error("ask {socket:?}: {cause}")]
    Protocol { socket: PathBuf, cause: DecodeError },
    #[error("ask {socket:?}: this user may not; the configuration's `operators` lists who may")]
    NotPermitted { socket: PathBuf },
}

/// The flag's, else the environment's, else the default.
pub(super) fn socket(flag: Option<&Path>) -> PathBuf {
    flag.map(Path::to_owned)
        .or_else(|| std::env::var_os("PORTCULLIS_OPERATOR_SOCKET").map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// Asks for the status, on a connection of its own.
pub(super) fn ask_status(socket: &Path) -> Result<Status, OperatorError> {
    ask_status_within(socket, PATIENCE)
}

/// The time is for the whole answer: who sends it byte by byte gets no more of it.
fn ask_status_within(socket: &Path, patience: Duration) -> Result<Status, OperatorError> {
    let deadline = Instant::now() + patience;
    let connect_failed = |cause| OperatorError::Connect { socket: socket.to_owned(), cause };
    let failed = |cause| OperatorError::Ask { socket: socket.to_owned(), cause };
    let broken = |cause| OperatorError::Protocol { socket: socket.to_owned(), cause };
    let mut stream = connect(socket, patience).map_err(connect_failed)?;
    let mut request = BytesMut::new();
    frame::encode_frame(&OperatorRequest::Status, &mut request, OPERATOR_REQUEST_MAX)
        .map_err(|error| failed(io::Error::other(error)))?;
    // Whoever may not ask is told so and cut off, perhaps before this is written: the answer says more.
    let asked = stream.write_all(&request);
    let mut incoming = BytesMut::new();
    let mut chunk = vec![0; 64 * 1024];
    let reply = loop {
        if let Some(bytes) = frame::next_frame(&mut incoming, OPERATOR_REPLY_MAX).map_err(broken)? {
            break bytes;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        match stream.read(&mut chunk) {
            Ok(0) => {
                let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer");
                return Err(failed(asked.err().unwrap_or_else(closed)));
            }
            Ok(length) => incoming.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    };
    match frame::decode(&reply).map_err(broken)? {
        OperatorReply::Status(status) => Ok(status),
        OperatorReply::NotPermitted => Err(OperatorError::NotPermitted { socket: socket.to_owned() }),
    }
}

/// Waits no longer than that where nobody accepts, and later where nobody reads.
fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let connection =
        nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let patience = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&connection, sockopt::SendTimeout, &TimeVal::milliseconds(patience))?;
    nix::sys::socket::connect(connection.as_raw_fd(), &UnixAddr::new(socket)?)?;
    Ok(connection.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    fn is_out_of_time(result: &Result<Status, OperatorError>) -> bool {
        use io::ErrorKind::{TimedOut, WouldBlock};
        match result {
            Err(OperatorError::Connect { cause, .. } | OperatorError::Ask { cause, .. }) => {
                matches!(cause.kind(), TimedOut | WouldBlock)
            }
            _ => false,
        }
    }

    #[test]
    fn an_answer_that_comes_byte_by_byte_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (_never, tick) = channel::<()>();
        let frontend = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // A thread that gets no turn for that long finds nobody who asks any more.
            let _ = stream.write_all(&[0, 1, 0, 0]);
            // Each byte well within the time. A hundred of them, and then the end, which would be another error.
            for _ in 0..100 {
                let _ = tick.recv_timeout(SHORT / 10);
                if stream.write_all(&[0]).is_err() {
                    break;
                }
            }
        });
        let asked = ask_status_within(&path, SHORT);
        assert!(is_out_of_time(&asked), "{asked:?}");
        frontend.join().unwrap();
    }

    #[test]
    fn who_never_accepts_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        // As many as the kernel keeps waiting; the next would wait for ever.
        let mut waiting = Vec::new();
        while let Ok(connection) = connect(&path, SHORT / 10) {
            waiting.push(connection);
        }
        assert!(is_out_of_time(&ask_status_within(&path, SHORT)));
    }
}
