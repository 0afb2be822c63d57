//! One message to stderr, and never waiting: whoever reads the log must not be able to hold the service up.

use std::fmt::Arguments;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::journal::stderr::{Taken, WHOLE, offer};

/// Lines that nobody took since the last that was taken.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes `portcullis-supervisor: <message>`; drops it when stderr does not take it now.
pub(super) fn line(message: Arguments<'_>) {
    write(format!("portcullis-supervisor: {}", harmless(&message.to_string())));
}

/// A message may have a child's words in it, and a child may be anybody's: what follows a new line is indented, so that it
/// passes for no line of ours, and nothing drives the terminal.
fn harmless(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            '\n' => text.push_str("\n    "),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

/// Writes each line as it is.
pub(super) fn plain(text: &str) {
    for line in text.lines() {
        write(line.to_owned());
    }
}

fn write(mut line: String) {
    if line.len() >= WHOLE {
        let end = (0..WHOLE - 4).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push_str("...");
    }
    line.push('\n');
    let lost = LOST.swap(0, Ordering::Relaxed);
    let notice = format!("portcullis-supervisor: {lost} lines before this one are lost: nobody took them\n");
    let told = lost == 0 || offer(notice.as_bytes()) == Taken::All;
    if !told || offer(line.as_bytes()) != Taken::All {
        // The notice goes once.
        let again = if told { 1 } else { lost.saturating_add(1) };
        LOST.fetch_add(again, Ordering::Relaxed);
    }
}

/// Like `eprintln!`.
macro_rules! say {
    ($($message:tt)*) => {
        $crate::supervisor::log::line(format_args!($($message)*))
    };
}
pub(super) use say;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_words_pass_for_no_line_of_the_supervisors_and_drive_no_terminal() {
        let lie = "did not start: x\nportcullis-supervisor: ready\r\u{1b}[2J\u{9b}K\0";
        let text = harmless(lie);
        assert_eq!(text, "did not start: x\n    portcullis-supervisor: ready\\r\\u{1b}[2J\\u{9b}K\\u{0}");
        assert_eq!(harmless("wörter \"wie\" sonst"), "wörter \"wie\" sonst", "control");
    }
}
