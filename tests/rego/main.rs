//! Rego policies: from what OPA compiled, through our builder, into a worker's engine.
//!
//! `cases/` has small cases over all that OPA leaves to its host, with what OPA gave (`make.py`). With `OPA_BIN` and
//! `REGO_CASES`, a folder of files in the format of OPA's own suite, [`suite`] runs all of those.

#![cfg(feature = "compiler")]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it counted"
)]

mod asked;
mod builds;
mod cases;
mod decisions;
mod figures;
mod large;
mod prepared;
mod service;
mod suite;
#[path = "../support/mod.rs"]
mod support;
mod tried;

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rego")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = folder().join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
}
