//! Decisions as spans of OpenTelemetry: what a collector is told (OTLP 1.x over HTTP, in JSON), and how it gets there
//! without anybody waiting for it.

mod collector;
mod encode;
mod exchange;
mod sender;

pub use collector::{Collector, InvalidCollector};
pub use encode::{Told, encode};
pub use sender::{Sender, Sent, sender};
