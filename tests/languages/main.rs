//! Policies in languages that bring a standard library: WASI behind them is ours, and what `portcullis policy new` makes is
//! built, tested and signed with one command each.
//!
//! Everything is asked as `portcullis policy test` asks: in the engine of a worker, under its limits.

#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and figures are printed"
)]

mod flatten;
mod host;
mod policy;
mod preview1;
mod preview2;
mod projects;
mod reactor;
