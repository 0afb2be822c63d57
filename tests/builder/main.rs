//! Builders as they run in the service: one process a job, sealed and limited, over the real channels.
#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::undocumented_unsafe_blocks,
    unsafe_code,
    reason = "a failed test panics; starting a process as another user takes a hook between fork and exec"
)]

#[path = "../support/bomb.rs"]
mod bomb;
mod bombs;
mod jobs;
mod kept;
mod process;
mod sealed;

use std::path::Path;

use portcullis::artifact::SealedBytes;
use portcullis::bundle::Platform;
use portcullis::compile::{Built, Terms};

/// The committed component of that name: `hash`, `hostile/spin`, ...
pub(crate) fn component(name: &str) -> Vec<u8> {
    let (folder, file) = name.rsplit_once('/').unwrap_or((name, name));
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(folder).join(format!("{file}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}; run policies/build.sh"))
}

/// Names of all of them.
pub(crate) fn every_component() -> Vec<String> {
    let digests = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/digests.txt");
    let text = std::fs::read_to_string(digests).unwrap();
    let names: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().last()?.strip_suffix(".wasm"))
        .map(|path| match path.split_once('/') {
            Some((folder, file)) if folder == file => file.to_owned(),
            _ => path.to_owned(),
        })
        .collect();
    assert!(names.len() > 10, "{names:?}");
    names
}

pub(crate) fn sealed(bytes: &[u8]) -> SealedBytes {
    SealedBytes::of(bytes).unwrap()
}

pub(crate) fn built(source: &[u8], platform: Platform) -> (Built, SealedBytes) {
    let built = portcullis::compile::build(source, Terms::default(), &[platform]).unwrap();
    let code = sealed(built.code_for(platform).unwrap());
    (built, code)
}
