//! Where commands write to: answers on standard output, complaints on standard error.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

/// Writes text to standard output as it is, and sees to it that it arrives.
///
/// # Errors
/// When nobody reads it, or it cannot be written.
pub(super) fn text(text: fmt::Arguments<'_>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_fmt(text)?;
    stdout.flush()
}

/// Writes a value to standard output as one line of JSON.
///
/// # Errors
/// When nobody reads it, or it cannot be written.
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    text(format_args!("{}\n", serde_json::to_string(value)?))
}

/// Complains on standard error. What cannot even be complained about is left at that.
pub(super) fn error(text: &str) {
    let _ = writeln!(io::stderr().lock(), "portcullis: {text}");
}
