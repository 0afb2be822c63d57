//! One line to stderr, never more, never waiting: whoever reads the log must not be able to hold the service up.

use std::fmt::Arguments;
use std::io::Write;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A pipe that can be written at all takes this much without blocking (PIPE_BUF).
const LINE_MAX: usize = 4096;

/// Writes `portcullis-supervisor: <message>`; drops it when stderr does not take it now.
pub(super) fn line(message: Arguments<'_>) {
    write(format!("portcullis-supervisor: {message}"));
}

/// Writes each line as it is.
pub(super) fn plain(text: &str) {
    for line in text.lines() {
        write(line.to_owned());
    }
}

fn write(mut line: String) {
    if line.len() >= LINE_MAX {
        let end = (0..LINE_MAX - 4).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push_str("...");
    }
    line.push('\n');
    let mut stderr = std::io::stderr().lock();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let taken = poll(&mut ready, PollTimeout::ZERO).is_ok_and(|count| count > 0);
    if taken {
        // Nobody is left to be told that telling failed.
        let _ = stderr.write_all(line.as_bytes());
    }
}

/// Like `eprintln!`.
macro_rules! say {
    ($($message:tt)*) => {
        $crate::supervisor::log::line(format_args!($($message)*))
    };
}
pub(super) use say;
