//! The gateway: what proxies speak, turned into questions to workers, and decisions into what proxies understand. It runs no
//! policy and holds no key.
//!
//! ```text
//!  proxy --[door]--> [http], [envoy], [spop], [opa] --Input--> [desk] --native protocol--> worker
//!                                                                 |
//!                       status, CheckResponse, ACK <--[verdict]---+
//! ```
//!
//! Each thread takes connections from every listener and keeps connections of its own to the workers, so that nothing is
//! passed between threads. A connection to the service begins as one half of a pair of sockets ([visit]): the process opens
//! no path and connects to nothing.

mod desk;
mod envoy;
mod http;
mod opa;
mod spop;
mod verdict;

use std::process::ExitCode;

/// The program `portcullis-gateway`. Started by the spawner, never by hand.
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
