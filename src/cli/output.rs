//! Where commands write to: answers on standard output, complaints on standard error.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::terminal::printable;

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
    text(format_args!("{}\n", harmless(&serde_json::to_string(value)?)))
}

/// JSON escapes the control characters of ASCII. The others, and what turns the direction of writing around, may as well be
/// escaped: nothing but strings can have them.
fn harmless(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        let is_control = matches!(c, '\u{7f}'..='\u{9f}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if is_control { text.push_str(&format!("\\u{:04x}", u32::from(c))) } else { text.push(c) }
    }
    text
}

/// Complains on standard error. What cannot even be complained about is left at that. Some of it may be a stranger's words.
pub(super) fn error(text: &str) {
    let lines: Vec<String> = text.split('\n').map(printable).collect();
    let _ = writeln!(io::stderr().lock(), "portcullis: {}", lines.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_drives_no_terminal_as_json_either() {
        let lie = "a\u{9b}2J\u{7f}\u{202e}b\u{1b}[2J wörter";
        let json = harmless(&serde_json::to_string(lie).unwrap());
        assert!(!json.chars().any(|c| c.is_control() || c == '\u{202e}'), "{json:?}");
        assert!(json.contains("wörter"), "control: {json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), lie, "it says the same");
    }
}
