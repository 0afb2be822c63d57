//! `portcullis top`: who does what at this moment.
//!
//! [`scrape`] asks the exporter, [`sample`] reads what it says, [`screen`] makes a picture of two such answers: a function from
//! text to text. What is left here is the terminal.

mod sample;
mod scrape;
mod screen;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::policy::service::{Where, configuration};
use super::{CommandResult, complain, output, units};
use sample::Sample;
pub(super) use scrape::scrape;
use scrape::{ScrapeError, scrape_unless};
use screen::{Expected, View};

const EXIT_CODES: &str = "Exit codes: 0 shown until you had enough; 1 failed, with the reason on standard error; 3 the exporter \
                          does not answer; 64 the command line is wrong.";
/// The terminal's second screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// Show live what each tenant does: rates, latency, its share of the processor against its weight, refusals
///
/// Reads the exporter's socket, so the configuration needs [telemetry]. The share is of what all tenants of the class used; DUE is what
/// its weight gives it of those who used anything; of tenants without series of their own, `other`, neither is known. P99 is
/// estimated from a histogram whose steps are 4 times apart. Sorted by processor time. Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct TopArgs {
    /// The exporter's socket [default: the configuration's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How long each picture looks back: "500ms", "2s"
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// Print one picture and end
    #[arg(long)]
    once: bool,
    /// How many tenants are shown at most
    #[arg(long, value_name = "N", default_value_t = 14)]
    tenants: usize,
    #[command(flatten)]
    place: Where,
}

fn interval(text: &str) -> Result<Duration, String> {
    match units::microseconds(text)? {
        us @ 100_000..=60_000_000 => Ok(Duration::from_micros(us.into())),
        _ => Err("expected 100ms to 60s".to_owned()),
    }
}

#[derive(Debug, thiserror::Error)]
enum TopError {
    #[error("{0}")]
    Config(#[from] crate::supervisor::config::ConfigErrors),
    #[error("{0:?} has no [telemetry], so nobody tells numbers; see docs/configuration.md")]
    NoTelemetry(PathBuf),
    #[error(transparent)]
    Scrape(#[from] ScrapeError),
    #[error("take signals: {0}")]
    Signals(#[source] io::Error),
    #[error("show: {0}")]
    Show(#[from] io::Error),
}

pub(super) fn run(args: &TopArgs) -> CommandResult {
    show(args).or_else(|error| {
        let code = if matches!(error, TopError::Scrape(_)) { 3 } else { 1 };
        complain(&error, code)
    })
}

fn show(args: &TopArgs) -> Result<ExitCode, TopError> {
    // Weights are in the configuration, which not everybody may read who may read numbers.
    let config = configuration(&args.place.config);
    let expected: BTreeMap<String, Expected> = config.as_ref().map_or_else(
        |_| BTreeMap::new(),
        |config| {
            let tenants = config.tenants.iter();
            tenants
                .map(|one| {
                    (one.name.to_string(), Expected { class: one.class.to_string(), weight: one.weight })
                })
                .collect()
        },
    );
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => {
            let telemetry = config?.telemetry;
            telemetry.ok_or_else(|| TopError::NoTelemetry(args.place.config.clone()))?.socket
        }
    };
    let signals = Signals::open().map_err(TopError::Signals)?;
    let Some(mut earlier) = look(&socket, &signals)? else { return Ok(ExitCode::SUCCESS) };
    let mut terminal = None;
    loop {
        if signals.wait(args.interval).map_err(TopError::Signals)? {
            return Ok(ExitCode::SUCCESS);
        }
        let Some(now) = look(&socket, &signals)? else { return Ok(ExitCode::SUCCESS) };
        let view = View { rows: args.tenants, expected: &expected };
        let time = Timestamp::now().strftime("%H:%M:%S UTC").to_string();
        let text =
            view.screen(&time, now.at.saturating_duration_since(earlier.at), &earlier.sample, &now.sample);
        if args.once {
            output::text(format_args!("{text}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        if terminal.is_none() {
            terminal = Some(Terminal::enter()?);
        }
        Terminal::draw(&text)?;
        earlier = now;
    }
}

struct Seen {
    at: Instant,
    sample: Sample,
}

/// `None` if somebody has had enough.
fn look(socket: &std::path::Path, signals: &Signals) -> Result<Option<Seen>, TopError> {
    match scrape_unless(socket, Some(signals.0.as_fd())) {
        Ok(text) => Ok(Some(Seen { at: Instant::now(), sample: Sample::read(&text) })),
        Err(ScrapeError::Interrupted) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The second screen, as long as it lives: however this ends, the first comes back.
struct Terminal;

impl Terminal {
    fn enter() -> io::Result<Self> {
        let terminal = Self;
        write(ENTER)?;
        Ok(terminal)
    }

    /// Over what is there, so that nothing flickers.
    fn draw(text: &str) -> io::Result<()> {
        let lines: String = text.lines().map(|line| format!("{line}\x1b[K\r\n")).collect();
        write(format!("\x1b[H{lines}\x1b[J").as_bytes())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = write(LEAVE);
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// What ends it, as something to wait for.
struct Signals(SignalFd);

impl Signals {
    fn open() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// Waits so long. True if it is to end.
    fn wait(&self, long: Duration) -> io::Result<bool> {
        let until = Instant::now() + long;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout =
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if self.0.read_signal()?.is_some() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
    }
}
