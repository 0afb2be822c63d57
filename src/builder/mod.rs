//! One job on one policy: looked at, or compiled for this host; then the process ends.

use std::process::ExitCode;

/// The program `portcullis-builder`. Started by the spawner, never by hand.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::from(64)
}
