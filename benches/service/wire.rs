//! The client that measures: the same code, and as little of it as possible, for the service and for the echo.
//!
//! It writes frames that were encoded beforehand and looks at three bytes of each reply, so that what is compared is
//! the two servers and not a client library. (`portcullis::client` has a row of its own.)

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use portcullis::decision::Outcome;
use portcullis::wire::client::{ClientFrame, ServerFrame::Decision};
use portcullis::wire::client::{HELLO_MAX, PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame};
use portcullis::wire::frame::{self, PREFIX};

use crate::load::{Exchange, Halves};
use crate::subject::{TENANT, request};
use crate::support::Service;

/// Where a frame's one-byte id is: after the length and the variant.
pub(super) const ID_AT: usize = PREFIX + 1;
/// `ServerFrame::Decision` and `Outcome::Allow`, as postcard writes them.
const DECISION: u8 = 1;
const ALLOW: u8 = 0;
/// Bytes read at a time.
const READ: usize = 64 << 10;

pub(super) struct Wire {
    stream: UnixStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Wire {
    /// Connected and greeted, and warm: one question has been answered, completely looked at.
    pub(super) fn to_service(service: &Service, tenant: &str) -> Self {
        Self::asking(service, tenant, request(tenant, 1))
    }

    /// The same with a question of its own, whose id is 1.
    pub(super) fn asking(service: &Service, tenant: &str, request: Vec<u8>) -> Self {
        let mut wire = Self { request, ..Self::open(&service.socket(), tenant) };
        let mut hello = bytes::BytesMut::new();
        let frame = ClientFrame::Hello { version: PROTOCOL_VERSION, tenant };
        frame::encode_frame(&frame, &mut hello, HELLO_MAX).unwrap();
        wire.stream.write_all(&hello).unwrap();
        let welcome = wire.reply();
        assert!(matches!(decoded(&welcome), ServerFrame::Welcome { .. }), "{:?}", decoded(&welcome));
        let reply = wire.ask();
        match decoded(&reply) {
            Decision { id: 1, decision } if decision.outcome == Outcome::Allow => {}
            other => panic!("{other:?}"),
        }
        wire
    }

    pub(super) fn to_echo(path: &Path) -> Self {
        let mut wire = Self::open(path, TENANT);
        wire.exchange();
        wire
    }

    fn open(path: &Path, tenant: &str) -> Self {
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("connect {path:?}: {error}"));
        Self { stream, request: request(tenant, 1), buffer: vec![0; READ] }
    }

    /// Asks, and gives the whole reply frame.
    pub(super) fn ask(&mut self) -> Vec<u8> {
        self.stream.write_all(&self.request).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Vec<u8> {
        let length = self.read_one();
        self.buffer[..length].to_vec()
    }

    /// Reads exactly one frame to the front of the buffer.
    fn read_one(&mut self) -> usize {
        let mut have = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[have..]).unwrap();
            assert!(read > 0, "connection closed");
            have += read;
            if let Some(length) = frame_at(&self.buffer[..have]) {
                assert_eq!(length, have, "more than was asked for");
                return length;
            }
        }
    }

    /// Keeps `depth` questions under way until that time, and gives the number of answers.
    ///
    /// As many questions are written as answers came with one read.
    pub(super) fn pipeline(&mut self, depth: u8, duration: Duration) -> u64 {
        assert!(depth < 128, "an id is one byte");
        let mut outgoing = Vec::with_capacity(usize::from(depth) * self.request.len());
        let ids: Vec<u8> = (1..=depth).collect();
        self.write_questions(&ids, &mut outgoing);
        let until = Instant::now() + duration;
        let (mut answered, mut under_way, mut have) = (0, usize::from(depth), 0);
        let mut ids = Vec::with_capacity(usize::from(depth));
        while under_way > 0 {
            let read = self.stream.read(&mut self.buffer[have..]).unwrap();
            assert!(read > 0, "connection closed");
            have += read;
            let mut at = 0;
            ids.clear();
            while let Some(length) = frame_at(&self.buffer[at..have]) {
                check_allowed(&self.buffer[at..at + length]);
                ids.push(self.buffer[at + ID_AT]);
                at += length;
            }
            self.buffer.copy_within(at..have, 0);
            have -= at;
            answered += ids.len() as u64;
            if Instant::now() < until {
                self.write_questions(&ids, &mut outgoing);
            } else {
                under_way -= ids.len();
            }
        }
        answered
    }

    fn write_questions(&mut self, ids: &[u8], outgoing: &mut Vec<u8>) {
        outgoing.clear();
        for id in ids {
            let start = outgoing.len();
            outgoing.extend_from_slice(&self.request);
            outgoing[start + ID_AT] = *id;
        }
        self.stream.write_all(outgoing).unwrap();
    }
}

impl Exchange for Wire {
    fn exchange(&mut self) {
        self.send();
        self.receive();
    }
}

impl Halves for Wire {
    fn send(&mut self) {
        self.stream.write_all(&self.request).unwrap();
    }

    fn receive(&mut self) {
        let length = self.read_one();
        check_allowed(&self.buffer[..length]);
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Length, with prefix, of the whole frame that is at the front.
fn frame_at(bytes: &[u8]) -> Option<usize> {
    let length = PREFIX + frame::frame_length(bytes, SERVER_FRAME_MAX).unwrap()?;
    (bytes.len() >= length).then_some(length)
}

fn check_allowed(reply: &[u8]) {
    if reply[PREFIX] != DECISION || reply[ID_AT + 1] != ALLOW {
        panic!("not allowed: {:?}", decoded(reply));
    }
}

fn decoded(reply: &[u8]) -> ServerFrame {
    frame::decode(&reply[PREFIX..]).unwrap()
}
