//! What `status` and `reload` have in common: one question to the operators' socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;

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
    let connect_failed = |cause| OperatorError::Connect { socket: socket.to_owned(), cause };
    let failed = |cause| OperatorError::Ask { socket: socket.to_owned(), cause };
    let broken = |cause| OperatorError::Protocol { socket: socket.to_owned(), cause };
    let mut stream = UnixStream::connect(socket).map_err(connect_failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
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
