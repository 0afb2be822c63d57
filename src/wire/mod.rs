//! The walls: every byte that crosses between two processes is defined here, one file per boundary, both directions.
//!
//! To add a message: add a variant at the end of its enum (postcard numbers them in order), a row and a vector in
//! `docs/protocol.md`, and let the compiler show every `match` that has to learn it. Decoding is total: it returns an
//! error for anything it does not know, never panics, and takes no trailing bytes.

pub mod assignment;
pub mod channel;
pub mod client;
pub mod control;
pub mod fetch;
pub mod frame;
pub mod gateway;
pub mod handover;
pub mod job;
pub mod operator;
pub mod polled;
pub mod socket;
pub mod spawner;
pub mod supply;
