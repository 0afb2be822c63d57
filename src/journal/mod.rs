//! The journal: what a process says about itself, one line an event on standard error.
//!
//! ```text
//! WARN frontend: worker misbehaved class=acme generation=4 why="returned a connection that is not its own"
//! ```
//!
//! No time (the journal that collects the lines has it), no colours, never a request's content. Set up before a process
//! is sealed; afterwards a line is one write to descriptor 2 and nothing else, and never waits for a reader
//! ([`stderr`]): a line that is not taken at once is lost, and how many were is said when lines are taken again. Control
//! characters are escaped, so that nothing that is written down can fake a second line, and there is a limit of lines a
//! second, shared by tenants ([`rate`]), so that nobody can fill a disk or keep others' lines out by provoking them.

mod rate;
pub mod stderr;

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use rate::{Allowed, Place, Rate, Whose};
use stderr::{Taken, WHOLE, offer};

/// The least important level that is written.
const LEVEL: Level = Level::INFO;
/// Longest message, and longest value of one field, in bytes.
const TEXT_MAX: usize = 1024;
/// The field that a guest's line has, and no other; and the one that says whose it is.
const GUEST: &str = "guest";
const TENANT: &str = "tenant";

/// From now on events of this process go to standard error, with `role` in front. Only the first call counts.
pub fn start(role: &str) {
    // An error means that there is a journal already; it goes on.
    let _ = tracing::subscriber::set_global_default(journal(role, Instant::now, Sink::new(role, offer)));
}

thread_local! {
    static LEFT_OUT: Cell<u64> = const { Cell::new(0) };
}

/// Lines that were not written of all that this thread had to say, beyond the limit or for want of a reader. Who looks before
/// and after a line knows what became of it.
#[must_use]
pub fn left_out_here() -> u64 {
    LEFT_OUT.get()
}

fn one_more_left_out() {
    LEFT_OUT.set(LEFT_OUT.get().wrapping_add(1));
}

fn journal<W>(role: &str, clock: fn() -> Instant, writer: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let line = Line { role: role.into(), clock, rate: Mutex::new(Rate::new(clock())) };
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
    clock: fn() -> Instant,
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
        let allowed = match self.rate.lock() {
            Ok(mut rate) => {
                let whose = whose(event, &rate);
                rate.allow((self.clock)(), whose)
            }
            // Somebody panicked while counting; the count does not matter then.
            Err(_) => Allowed::Yes { dropped: 0 },
        };
        let Allowed::Yes { dropped } = allowed else {
            one_more_left_out();
            return Ok(());
        };
        let role = &self.role;
        if dropped > 0 {
            writeln!(writer, "{} {role}: lines left out lines={dropped}", Level::WARN)?;
        }
        let mut text = Text::default();
        event.record(&mut text);
        writeln!(writer, "{} {role}: {}{}", event.metadata().level(), text.message, text.fields)
    }
}

/// Who is behind an event.
fn whose(event: &Event<'_>, rate: &Rate) -> Whose {
    struct Found<'a>(&'a Rate, Place);
    impl Visit for Found<'_> {
        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == TENANT {
                self.1 = self.0.place(value);
            }
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == TENANT {
                self.record_str(field, &format!("{value:?}"));
            }
        }
    }
    if event.metadata().fields().field(GUEST).is_none() {
        return Whose::Ours;
    }
    let mut found = Found(rate, rate.place(""));
    event.record(&mut found);
    Whose::Guests(found.1)
}

/// Where lines go. Never an error and never a wait: what is not taken is lost, and counted.
struct Sink {
    role: Box<str>,
    offer: fn(&[u8]) -> Taken,
    /// Lines since the last that was taken.
    lost: AtomicU64,
    /// The last that was taken has no end.
    torn: AtomicBool,
}

impl Sink {
    fn new(role: &str, offer: fn(&[u8]) -> Taken) -> Self {
        Self { role: role.into(), offer, lost: AtomicU64::new(0), torn: AtomicBool::new(false) }
    }

    fn put(&self, line: &[u8]) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let notice = format!("{} {}: lines lost that nobody took lines={lost}\n", Level::WARN, self.role);
            if self.give(notice.as_bytes()) != Taken::All {
                self.lost.fetch_add(lost.saturating_add(1), Ordering::Relaxed);
                return;
            }
        }
        if self.give(line) != Taken::All {
            self.lost.fetch_add(1, Ordering::Relaxed);
            one_more_left_out();
        }
    }

    fn give(&self, line: &[u8]) -> Taken {
        let cut;
        let mut line = line;
        // With room for the new line before it.
        if let Some(start) = line.get(..WHOLE - 5).filter(|_| line.len() >= WHOLE) {
            cut = [String::from_utf8_lossy(start).trim_end_matches('\u{fffd}').as_bytes(), b"...\n"].concat();
            line = &cut;
        }
        let ended;
        if self.torn.load(Ordering::Relaxed) {
            ended = [b"\n", line].concat();
            line = &ended;
        }
        let taken = (self.offer)(line);
        match taken {
            Taken::All => self.torn.store(false, Ordering::Relaxed),
            Taken::Part => self.torn.store(true, Ordering::Relaxed),
            Taken::Nothing => {}
        }
        taken
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

/// One event, whole.
impl io::Write for &Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A line that was left out is empty.
        if !bytes.is_empty() {
            self.put(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, LazyLock};

    use super::rate::LINES_MAX;
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

    /// It stands still: all that is written here is written within one window, however busy the machine is.
    fn clock() -> Instant {
        static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
        *NOW
    }

    fn written(events: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        tracing::subscriber::with_default(journal("frontend", clock, move || writer.clone()), events);
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
    fn who_has_written_knows_whether_it_was_left_out() {
        let before = left_out_here();
        let lines =
            written(|| (0..2 * LINES_MAX).for_each(|_| tracing::warn!(tenant = %"acme", guest = ?"noise")));
        let noise = lines.lines().filter(|line| line.contains("guest=")).count();
        assert_eq!(left_out_here() - before, u64::from(2 * LINES_MAX) - u64::try_from(noise).unwrap());
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

    #[test]
    fn a_tenant_whose_guests_flood_keeps_no_others_lines_out() {
        let lines = written(|| {
            for _ in 0..2 * LINES_MAX {
                tracing::warn!(tenant = %"loud", guest = ?"noise");
            }
            tracing::warn!(tenant = %"quiet", guest = ?"a word");
        });
        let said = |tenant: &str| lines.lines().filter(|line| line.contains(tenant)).count();
        assert_eq!((said("tenant=loud"), said("tenant=quiet")), (rate::TENANT_LINES_MAX as usize, 1));
    }

    /// What a test's reader does with the next lines, and what it got.
    static READER: Mutex<(Vec<Taken>, Vec<String>)> = Mutex::new((Vec::new(), Vec::new()));

    fn reader(bytes: &[u8]) -> Taken {
        let (answers, got) = &mut *READER.lock().unwrap();
        let answer = answers.pop().unwrap_or(Taken::All);
        if answer != Taken::Nothing {
            got.push(String::from_utf8(bytes.to_vec()).unwrap());
        }
        answer
    }

    #[test]
    fn lines_that_nobody_takes_are_lost_and_counted() {
        let journal = journal("worker", clock, Sink::new("worker", reader));
        use Taken::{All, Nothing, Part};
        let mut answers = [All, Nothing, Nothing, Nothing, Nothing, All, Part, All, All];
        answers.reverse();
        READER.lock().unwrap().0 = answers.into();
        tracing::subscriber::with_default(journal, || {
            // Of 2 to 5 one line or its notice is not taken; then the notice is, and 6 in part.
            (1..=6).for_each(|number| tracing::info!("line {number}"));
            let long = "ü".repeat(1 << 20);
            tracing::info!(a = long, b = long, c = long, d = long, "long");
        });
        let got = &READER.lock().unwrap().1;
        assert_eq!(
            got[..4],
            [
                "INFO worker: line 1\n",
                "WARN worker: lines lost that nobody took lines=4\n",
                "INFO worker: line 6\n",
                "\nWARN worker: lines lost that nobody took lines=1\n"
            ]
        );
        assert!(got[4].ends_with("üü...\n") && got[4].len() < WHOLE, "{}", got[4].len());
        assert_eq!(got.len(), 5);
    }
}
