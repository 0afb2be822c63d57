//! A policy of a few bytes, tried as `portcullis policy run` tries one.

use std::sync::Arc;

use bytes::Bytes;
use portcullis::decision::{Decision, Input};
use portcullis::engine::{Call, Data};
use portcullis::rehearsal::{Asked, Granted, QUESTION_MAX, Subject};
use portcullis::wire::frame;

/// A component or a module, in the engine of a worker.
pub(crate) fn opened(wasm: &[u8], granted: &Granted) -> Subject {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.wasm");
    std::fs::write(&path, wasm).unwrap();
    Subject::open(&path, granted).unwrap_or_else(|error| panic!("{error}"))
}

/// Asks it something that is no HTTP.
pub(crate) fn ask(policy: &Subject, text: &str, clock_ns: u64, seed: u8) -> Decision {
    ask_with(policy, text, clock_ns, seed, None).decision
}

/// The same, with what it may look up, and with what it asked of the host.
pub(crate) fn ask_with(
    policy: &Subject,
    text: &str,
    clock_ns: u64,
    seed: u8,
    data: Option<Arc<Data>>,
) -> Asked {
    let input = Input::Opaque { content_type: "", bytes: text.as_bytes() };
    let input = Bytes::from(frame::encode(&input, QUESTION_MAX).unwrap());
    policy.ask(Call { input, clock_ns, seed: [seed; 32], id: None }, data, None)
}
