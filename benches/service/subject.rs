//! The service under measurement, and the one question everybody is asked.

use portcullis::decision::Input;
use portcullis::wire::client::{CLIENT_FRAME_MAX, ClientFrame, Deadline};
use portcullis::wire::frame;

use crate::support::{Service, Site};

pub(super) const TENANT: &str = "acme";
pub(super) const POLICY: &str = "hash";
/// Bytes the policy hashes.
pub(super) const INPUT: usize = 512;

/// A service of one class with one tenant and the hashing policy; `class` has more lines for the class.
pub(super) fn hashing(class: &str) -> Service {
    Site::new().class("one", class).tenant(TENANT, "one", &[(POLICY, "hash")], "").start()
}

/// The encoded [`Input`].
pub(super) fn input() -> Vec<u8> {
    let bytes: Vec<u8> = (0..INPUT).map(|number| (number % 251) as u8).collect();
    frame::encode(&Input::Opaque { content_type: "", bytes: &bytes }, CLIENT_FRAME_MAX).unwrap()
}

/// A whole `Decide` frame, with its prefix. Its id is one byte as long as it is below 128.
pub(super) fn request(tenant: &str, id: u64) -> Vec<u8> {
    question(tenant, id, POLICY, &input())
}

/// The same for another policy, with the encoded [`Input`] that it is asked.
pub(super) fn question(tenant: &str, id: u64, policy: &str, input: &[u8]) -> Vec<u8> {
    let frame = ClientFrame::Decide { id, tenant, policy, deadline: Deadline::Default, trace: None, input };
    let mut buffer = bytes::BytesMut::new();
    frame::encode_frame(&frame, &mut buffer, CLIENT_FRAME_MAX).unwrap();
    buffer.to_vec()
}

/// Every process of the service.
pub(super) fn processes(service: &Service) -> Vec<i32> {
    service.processes().iter().map(|process| process.pid).collect()
}

/// The processes of one role.
pub(super) fn role(service: &Service, role: &str) -> Vec<i32> {
    let processes = service.processes();
    let pids: Vec<i32> =
        processes.iter().filter(|process| process.role == role).map(|process| process.pid).collect();
    assert!(!pids.is_empty(), "no process of role {role:?} among {processes:?}");
    pids
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().unwrap().get()
}
