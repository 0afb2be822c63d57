//! The journal: what a process says about itself, one line an event on standard error.
//!
//! ```text
//! WARN frontend: worker misbehaved class=acme generation=4 why="returned a connection that is not its own"
//! ```
//!
//! No time (the journal that collects the lines has it), no colours, never a request's content. Set up before a process
//! is sealed; afterwards a line is one `write` to descriptor 2 and nothing else. Control characters are escaped, so that
//! nothing that is written down can fake a second line, and there is a limit of lines a second, so that nobody can fill
//! a disk or block a process by provoking them.

use std::fmt::{self, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// The least important level that is written.
const LEVEL: Level = Level::INFO;
/// Longest message, and longest value of one field, in bytes.
const TEXT_MAX: usize = 1024;
/// Lines in one [`WINDOW`]; more are counted, not written.
const LINES_MAX: u32 = 500;
/// How many of them may be guests': one that floods must not be able to keep out what the process itself has to say.
const GUEST_LINES_MAX: u32 = 400;
/// The field that a guest's line has, and no other.
const GUEST: &str = "guest";
const WINDOW: Duration = Duration::from_secs(1);

/// From now on events of this process go to standard error, with `role` in front. Only the first call counts.
pub fn start(role: &str) {
    // An error means that there is a journal already; it goes on.
    let _ = tracing::subscriber::set_global_default(journal(role, std::io::stderr));
}

fn journal<W>(role: &str, writer: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let line = Line { role: role.into(), rate: Mutex::new(Rate::new(Instant::now())) };
    tracing_subscriber::fmt()
        .with_max_level(LEVEL)
        .with_writer(writer)
        // It would say so on standard error, which is what could not be written to, and panic when that fails.
        .log_internal_errors(false)
        .event_format(line)
        .finish()
}

/// How an event becomes a line.
struct Line {
    role: Box<str>,
    rate: Mutex<Rate>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let by_guest = event.metadata().fields().field(GUEST).is_some();
        let allowed = match self.rate.lock() {
            Ok(mut rate) => rate.allow(Instant::now(), by_guest),
            // Somebody panicked while counting; the count does not matter then.
            Err(_) => Allowed::Yes { dropped: 0 },
        };
        let Allowed::Yes { dropped } = allowed else { return Ok(()) };
        let role = &self.role;
        if dropped > 0 {
            writeln!(writer, "{} {role}: lines left out lines={dropped}", Level::WARN)?;
        }
        let mut text = Text::default();
        event.record(&mut text);
        writeln!(writer, "{} {role}: {}{}", event.metadata().level(), text.message, text.fields)
    }
}

/// The message and ` key=value` for each field, escaped.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = one_line(value);
        } else {
            let value = one_line(value);
            let plain = !value.is_empty() && !value.contains([' ', '"', '=']);
            let name = field.name();
            // Writing to a String cannot fail.
            let _ = if plain {
                write!(self.fields, " {name}={value}")
            } else {
                write!(self.fields, " {name}=\"{}\"", value.replace('"', "\\\""))
            };
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Without control characters and not too long.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(TEXT_MAX));
    for character in text.chars() {
        if line.len() >= TEXT_MAX {
            line.push_str("...");
            break;
        }
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Counts lines per window.
struct Rate {
    began: Instant,
    written: u32,
    /// Of those, by guests.
    by_guests: u32,
    dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Allowed {
    /// `dropped` lines were left out since the last that was written.
    Yes {
        dropped: u64,
    },
    No,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { began: now, written: 0, by_guests: 0, dropped: 0 }
    }

    fn allow(&mut self, now: Instant, by_guest: bool) -> Allowed {
        if now.duration_since(self.began) >= WINDOW {
            self.began = now;
            (self.written, self.by_guests) = (0, 0);
        }
        if self.written >= LINES_MAX || (by_guest && self.by_guests >= GUEST_LINES_MAX) {
            self.dropped += 1;
            return Allowed::No;
        }
        self.written += 1;
        self.by_guests += u32::from(by_guest);
        Allowed::Yes { dropped: std::mem::take(&mut self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(events: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        tracing::subscriber::with_default(journal("frontend", move || writer.clone()), events);
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_compact_line() {
        let lines =
            written(|| tracing::warn!(class = %"acme", generation = 4_u64, why = "a b", "worker misbehaved"));
        assert_eq!(lines, "WARN frontend: worker misbehaved class=acme generation=4 why=\"a b\"\n");
    }

    #[test]
    fn nothing_can_fake_a_second_line_or_a_colour() {
        let lines = written(|| tracing::info!(said = %"x\nERROR frontend: fake\u{1b}[31m", "policy\nlog"));
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert!(lines.contains("policy\\nlog") && lines.contains("\\u{1b}[31m"), "{lines}");
    }

    #[test]
    fn long_values_are_cut() {
        let lines = written(|| tracing::info!(said = "y".repeat(1 << 20), "long"));
        assert!(lines.len() < 2 * TEXT_MAX, "{} bytes", lines.len());
    }

    #[test]
    fn details_are_not_written() {
        assert_eq!(written(|| tracing::debug!("a client was refused")), "");
    }

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let began = Instant::now();
        let mut rate = Rate::new(began);
        for _ in 0..LINES_MAX {
            assert_eq!(rate.allow(began, false), Allowed::Yes { dropped: 0 });
        }
        assert_eq!(rate.allow(began, false), Allowed::No);
        assert_eq!(rate.allow(began, true), Allowed::No);
        assert_eq!(rate.allow(began + WINDOW, true), Allowed::Yes { dropped: 2 });
    }

    #[test]
    fn guests_that_flood_do_not_keep_our_own_lines_out() {
        let lines = written(|| {
            for _ in 0..2 * LINES_MAX {
                tracing::warn!(tenant = %"acme", guest = ?"noise", seed = "00");
            }
            tracing::error!(tenant = %"acme", "policy withdrawn");
        });
        let (guests, ours) = lines.lines().partition::<Vec<_>, _>(|line| line.contains("guest="));
        assert!(!guests.is_empty() && guests.len() < lines.lines().count(), "{} lines", guests.len());
        assert!(ours.contains(&"ERROR frontend: policy withdrawn tenant=acme"), "{ours:?}");
        assert!(ours.iter().any(|line| line.starts_with("WARN frontend: lines left out lines=")), "{ours:?}");
    }
}
