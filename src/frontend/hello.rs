//! The first frame, who the client is here for, and its answer. It is read byte for byte, never further, so whatever a client sends
//! behind its Hello stays in the socket and travels with it. A connection that waits costs a small buffer and a timer.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::socket::{MsgFlags, recv, send};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use super::peer::{Connection, Peer};
use crate::decision::TrustClass;
use crate::wire::client::{
    ClientFrame, Farewell, HELLO_MAX, PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame, Violation,
};
use crate::wire::frame::{self, DecodeError, PREFIX};

/// How greeting one connection ended.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) peer: Peer,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// It said Hello; the tenant is not looked up yet.
    Greeted(Connection, String),
    /// It has been told why, and is closed.
    Refused,
    /// It left without a word.
    Gone,
}

/// Why there is no Hello.
#[derive(Debug, PartialEq, Eq)]
enum NoHello {
    Farewell(Farewell),
    Gone,
}

/// Reads the Hello of a connection within `limit`, or until the service `closing`.
pub(super) async fn greet(
    stream: UnixStream,
    peer: Peer,
    limit: Duration,
    mut closing: watch::Receiver<bool>,
) -> Greeting {
    let said = tokio::select! {
        biased;
        said = timeout(limit, read_hello(&stream)) => {
            said.unwrap_or(Err(NoHello::Farewell(Farewell::Timeout)))
        }
        _ = closing.wait_for(|closing| *closing) => Err(NoHello::Farewell(Farewell::ShuttingDown)),
    };
    let outcome = match said {
        Ok(tenant) => match stream.into_std().map(Into::into).and_then(Connection::of) {
            Ok(connection) => Outcome::Greeted(connection, tenant),
            Err(error) => {
                debug!(%error, "connection cannot be named");
                Outcome::Gone
            }
        },
        Err(NoHello::Farewell(farewell)) => {
            say_farewell(&stream, farewell);
            Outcome::Refused
        }
        Err(NoHello::Gone) => Outcome::Gone,
    };
    Greeting { peer, outcome }
}

/// Tells the client which class it is let in to, before a worker of that class gets the connection: clients put
/// questions of all tenants of a class on one connection, so a worker must not be asked what its class is.
/// False where that could not be said: whoever had the connection next would have the first word.
#[must_use]
pub(super) fn say_welcome(socket: &impl AsFd, class: TrustClass, generation: u64) -> bool {
    say(socket, &ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation })
}

/// One attempt to tell the client why its connection ends; the caller closes it.
pub(super) fn say_farewell(socket: &impl AsFd, farewell: Farewell) {
    debug!(%farewell, "client refused");
    // Who does not read, or has gone, does not get to know.
    let _ = say(socket, &ServerFrame::Farewell(farewell));
}

/// True if all of it was taken. Nothing waits for that: a frame as short as these finds room where nothing was written before.
fn say(socket: &impl AsFd, message: &ServerFrame) -> bool {
    let mut frame = BytesMut::new();
    if frame::encode_frame(message, &mut frame, SERVER_FRAME_MAX).is_err() {
        return false;
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(socket.as_fd().as_raw_fd(), &frame, flags).is_ok_and(|sent| sent == frame.len())
}

async fn read_hello(stream: &UnixStream) -> Result<String, NoHello> {
    let mut buffer = [0; HELLO_MAX];
    let frame = read_frame(stream, &mut buffer).await.map_err(|broken| match broken {
        Broken::Gone => NoHello::Gone,
        Broken::Truncated => NoHello::Farewell(Farewell::Protocol(Violation::Malformed)),
        Broken::Length(DecodeError::Empty) => NoHello::Farewell(Farewell::Protocol(Violation::Empty)),
        Broken::Length(_) => NoHello::Farewell(Farewell::Protocol(Violation::TooLong)),
    })?;
    understand(frame).map_err(NoHello::Farewell)
}

fn understand(frame: &[u8]) -> Result<String, Farewell> {
    // Every version begins its Hello with these two, whatever it has behind them.
    if let Ok(((0_u32, theirs), _)) = postcard::take_from_bytes::<(u32, u16)>(frame)
        && theirs != PROTOCOL_VERSION
    {
        return Err(Farewell::Version { theirs, ours: PROTOCOL_VERSION });
    }
    match frame::decode(frame) {
        Ok(ClientFrame::Hello { tenant, .. }) => Ok(tenant.to_owned()),
        Ok(_) => Err(Farewell::Protocol(Violation::NotHello)),
        Err(_) => Err(Farewell::Protocol(Violation::Malformed)),
    }
}

/// Why there is no frame.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nothing came, or the connection broke.
    Gone,
    /// The end came within a frame.
    Truncated,
    Length(DecodeError),
}

/// Reads exactly one frame of at most `buffer.len()` bytes, and not one byte more.
pub(super) async fn read_frame<'a>(stream: &UnixStream, buffer: &'a mut [u8]) -> Result<&'a [u8], Broken> {
    let mut prefix = [0; PREFIX];
    fill(stream, &mut prefix).await?;
    let max = buffer.len();
    let length = frame::frame_length(&prefix, max).map_err(Broken::Length)?.unwrap_or(0);
    let body = buffer.get_mut(..length).ok_or(Broken::Truncated)?;
    match fill(stream, body).await {
        Ok(()) => Ok(body),
        Err(Broken::Gone) => Err(Broken::Truncated),
        Err(broken) => Err(broken),
    }
}

async fn fill(stream: &UnixStream, buffer: &mut [u8]) -> Result<(), Broken> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        stream.readable().await.map_err(|_| Broken::Gone)?;
        let received = stream.try_io(Interest::READABLE, || {
            // Descriptors that a client attaches are thrown away by the kernel: there is no room for them here.
            Ok(recv(stream.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT)?)
        });
        match received {
            Ok(0) if filled == 0 => return Err(Broken::Gone),
            Ok(0) => return Err(Broken::Truncated),
            Ok(length) => filled += length,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => {}
                _ => return Err(Broken::Gone),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::client::Deadline;

    fn encoded(frame: &ClientFrame<'_>) -> Vec<u8> {
        frame::encode(frame, 1 << 20).unwrap()
    }

    #[test]
    fn a_hello_is_understood() {
        let hello = encoded(&ClientFrame::Hello { version: PROTOCOL_VERSION, tenant: "acme" });
        assert_eq!(understand(&hello).unwrap(), "acme");
    }

    #[test]
    fn another_version_is_named_even_if_the_rest_is_strange() {
        let mut hello = encoded(&ClientFrame::Hello { version: PROTOCOL_VERSION + 1, tenant: "acme" });
        let answer = Err(Farewell::Version { theirs: PROTOCOL_VERSION + 1, ours: PROTOCOL_VERSION });
        assert_eq!(understand(&hello), answer);
        hello.extend_from_slice(b"a field of the future");
        assert_eq!(understand(&hello), answer);
    }

    #[test]
    fn anything_else_breaks_the_protocol() {
        let protocol = |violation| Err(Farewell::Protocol(violation));
        let decide = ClientFrame::Decide {
            id: 1,
            tenant: "acme",
            policy: "p",
            deadline: Deadline::Default,
            trace: None,
            input: b"",
        };
        assert_eq!(understand(&encoded(&decide)), protocol(Violation::NotHello));
        assert_eq!(understand(&encoded(&ClientFrame::Ping { nonce: 1 })), protocol(Violation::NotHello));
        assert_eq!(understand(&[0xff]), protocol(Violation::Malformed), "unknown variant");
        let mut hello = encoded(&ClientFrame::Hello { version: PROTOCOL_VERSION, tenant: "acme" });
        hello.push(0);
        assert_eq!(understand(&hello), protocol(Violation::Malformed), "trailing byte");
        hello.truncate(hello.len() - 2);
        assert_eq!(understand(&hello), protocol(Violation::Malformed), "truncated");
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(frame in proptest::collection::vec(any::<u8>(), 0..HELLO_MAX)) {
            let _ = understand(&frame);
        }
    }
}
