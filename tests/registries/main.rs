//! Bundles to registries and back: Debian's docker-registry on loopback, and a registry of our own that lies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test says no by panicking"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "how many cuts there were, and what takes root"
)]

mod broken;
mod cutting;
mod desk;
mod docker;
mod fake;
mod lies;
mod locked;
#[path = "../support/ports.rs"]
mod ports;
mod watched;
