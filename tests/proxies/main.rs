//! The gateway with the programs that people run: Envoy, nginx, Caddy, Traefik, HAProxy, Apache, curl, h2load and a client
//! of OPA's.
//!
//! Every proxy runs the configuration of its folder in `examples/`, as a child of the test, on loopback ports and Unix sockets, between
//! a client that sends bytes as it likes and a service that writes down what reached it. What is asked of all of
//! them is one thing: nothing reaches the service that was not decided about as it is, and allowed. The matrix of proxies and cases
//! is printed by `matrix`.
//!
//! `PORTCULLIS_ENVOY` names an Envoy; without it, the one that `.ci/run` installs below `target/proxies`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a failed test panics"
)]

mod bindings;
mod cases;
mod direct;
mod doors;
mod envoy;
mod examples;
mod exchange;
mod matrix;
#[path = "../support/ports.rs"]
mod ports;
mod programs;
mod service;
mod smuggling;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod traps;
