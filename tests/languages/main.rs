//! Policies in languages that bring a standard library: WASI behind them is ours, and what `portcullis policy new` makes is
//! built, tested and signed with one command each.
//!
//! Everything is asked in the engine of a worker, with its pool and its limits.

#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and figures are printed"
)]

mod cases;
mod engine;
mod preview1;
mod preview2;
mod projects;
mod reactor;
