//! The service's side of the client protocol, played by a test: one step at a time, on a thread of its own.
#![allow(dead_code, reason = "each test plays its part of it")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portcullis::decision::{Decision, Input, Outcome, Refusal, TrustClass};
use portcullis::wire::client::{
    CLIENT_FRAME_MAX, ClientFrame, PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame,
};
use portcullis::wire::frame;

/// A socket with a script behind it.
pub(crate) struct FakeService {
    socket: PathBuf,
    script: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl FakeService {
    pub(crate) fn start(script: impl FnOnce(&UnixListener) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("decide.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let script = std::thread::spawn(move || script(&listener));
        Self { socket, script, _directory: directory }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the script's end; its failed assertions fail the test.
    pub(crate) fn finish(self) {
        if let Err(panic) = self.script.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// One connection from the service's side.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    incoming: BytesMut,
}

impl Peer {
    pub(crate) fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        // A test that waits for longer than this has gone wrong.
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, incoming: BytesMut::new() }
    }

    /// Accepts, reads the Hello and welcomes into that class. Gives the tenant it was for.
    pub(crate) fn welcome(listener: &UnixListener, class: &str) -> (Self, String) {
        let mut peer = Self::accept(listener);
        let tenant = peer.hello();
        peer.send(&welcome_to(class));
        (peer, tenant)
    }

    pub(crate) fn hello(&mut self) -> String {
        let bytes = self.frame().expect("no Hello came");
        let ClientFrame::Hello { version: PROTOCOL_VERSION, tenant } = frame::decode(&bytes).unwrap() else {
            panic!("not a Hello: {bytes:?}")
        };
        tenant.to_owned()
    }

    /// The next frame's bytes; `None` when the client has closed.
    pub(crate) fn frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = frame::next_frame(&mut self.incoming, CLIENT_FRAME_MAX).unwrap() {
                return Some(bytes);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.incoming.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the client sent nothing: {error}"),
            }
        }
    }

    /// The next frame, which has to be a question with opaque bytes: its id and those bytes as text.
    pub(crate) fn question(&mut self) -> (u64, String) {
        let bytes = self.frame().expect("no question came");
        let ClientFrame::Decide { id, input, .. } = frame::decode(&bytes).unwrap() else {
            panic!("not a question: {bytes:?}")
        };
        (id, text(input))
    }

    pub(crate) fn send(&mut self, message: &ServerFrame) {
        let mut bytes = BytesMut::new();
        frame::encode_frame(message, &mut bytes, SERVER_FRAME_MAX).unwrap();
        self.raw(&bytes);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Denies, with the question's text as the reason: so each answer can be told from the others.
    pub(crate) fn echo(&mut self, id: u64, text: &str) {
        self.send(&ServerFrame::Decision { id, decision: denied(text) });
    }
}

pub(crate) fn welcome_to(class: &str) -> ServerFrame {
    let class = TrustClass::new(class).unwrap();
    ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 }
}

pub(crate) fn denied(reason: &str) -> Decision {
    Decision {
        outcome: Outcome::Deny { reason: reason.to_owned() },
        ..Decision::refused(Refusal::Unavailable)
    }
}

pub(crate) fn text(input: &[u8]) -> String {
    match frame::decode(input).unwrap() {
        Input::Opaque { bytes, .. } => String::from_utf8(bytes.to_vec()).unwrap(),
        Input::Http(http) => http.path.to_owned(),
    }
}
