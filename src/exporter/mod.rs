//! The exporter: tells scrapers how the service does, in numbers. It runs no policy, sees no request, and nobody waits
//! for it.
//!
//! ```text
//!  scraper --[door]--> [serve], HTTP --Ask--> the loop here --> [series] --> [exposition] --> scraper
//!                                                 ^
//!                supervisor: processes, tenants --+-- accounts of classes and registry, mapped to read
//! ```
//!
//! One thread. However many ask, numbers are put together now and then, for everybody who has asked until then ([pages]):
//! scrapers cannot take the processor from decisions.

mod door;
mod exposition;
mod pages;
mod series;
mod serve;
mod traces;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tracing::{error, info, warn};

use self::door::{Door, Stream, next_at};
use self::pages::Pages;
use self::series::{Accounts, Series};
use self::serve::{Answer, Ask, What, attend};
use self::traces::Traces;
use crate::accounts::{Access, Map, MapError};
use crate::journal;
use crate::otlp::{self, Collector};
use crate::sandbox::{self, Given, Places, Role, SealError, Sealed};
use crate::wire::assignment::{self, AssignmentError};
use crate::wire::channel::{Channel, ReceiveError, Received, SendError, take_inherited};
use crate::wire::control::{CONTROL_MAX, ExporterAssignment, FromChild, Ready, ToChild, fd};
use crate::wire::polled::Polled;

/// From this process's start to the accounts.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often spans are taken from the accounts.
const COLLECTED_EVERY: Duration = Duration::from_millis(200);
/// Questions on their way to the loop.
const ASKS_MAX: usize = 64;

type Control = Channel<FromChild, ToChild>;

/// Why the exporter cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
enum ExporterError {
    #[error("take inherited descriptors: {0}")]
    Inherited(#[source] io::Error),
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    #[error("take accounts: the supervisor said something else, or nothing for {} s", SILENCE_MAX.as_secs())]
    NoAccounts,
    #[error("wait for accounts: {0}")]
    Wait(#[source] Errno),
    #[error(transparent)]
    Accounts(#[from] MapError),
    #[error("seal: {0}")]
    Seal(#[from] SealError),
    #[error("start event loop: {0}")]
    Runtime(#[source] io::Error),
    #[error("tell the supervisor: {0}")]
    Tell(#[source] SendError),
    #[error("listen to the supervisor: {0}")]
    Listen(#[from] ReceiveError),
    #[error("the supervisor is gone")]
    SupervisorGone,
}

/// The program `portcullis-exporter`. Started by the spawner, never by hand.
pub fn main() -> ExitCode {
    sandbox::install_panic_hook(Role::Exporter);
    sandbox::settle_allocator();
    journal::start(Role::Exporter.name());
    let outcome = take(fd::CONTROL).and_then(|control| {
        let control = Channel::new(control, CONTROL_MAX);
        let (sealed, runtime, exporter) = start(&control)?;
        serve(sealed, &runtime, exporter, control)
    });
    match outcome {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            error!(%error, "exporter ends");
            sandbox::end(1)
        }
    }
}

fn take(number: i32) -> Result<OwnedFd, ExporterError> {
    take_inherited(number).map_err(ExporterError::Inherited)
}

/// Up to Ready. If something goes wrong, the supervisor is told what.
fn start(control: &Control) -> Result<(Sealed, Runtime, Exporter), ExporterError> {
    match prepare_and_seal(control) {
        Ok((sealed, ready, runtime, exporter)) => {
            control.send(&FromChild::Ready(ready), None).map_err(ExporterError::Tell)?;
            Ok((sealed, runtime, exporter))
        }
        Err(error) => {
            // It may be gone itself.
            let _ = control.send(&FromChild::Failed { why: error.to_string() }, None);
            Err(error)
        }
    }
}

fn prepare_and_seal(control: &Control) -> Result<(Sealed, Ready, Runtime, Exporter), ExporterError> {
    sandbox::check_inherited(Role::Exporter)?;
    let assignment: ExporterAssignment = assignment::read(take(fd::ASSIGNMENT)?)?;
    let unix = take(fd::FIRST)?;
    let tcp = if assignment.tcp { Some(take(fd::SECOND)?) } else { None };
    let given = Given::check(Role::Exporter, assignment.uid, assignment.gid, assignment.isolation)?;
    // The event loop's descriptors are made while that is still possible.
    let runtime =
        Builder::new_current_thread().enable_io().enable_time().build().map_err(ExporterError::Runtime)?;
    // For good: once this process is sealed nothing is unmapped any more.
    let accounts = Box::leak(Box::new(take_accounts(control, &assignment)?));
    let exporter = {
        let _within = runtime.enter();
        Exporter::new(accounts, &assignment, unix, tcp).map_err(ExporterError::Runtime)?
    };
    let port = assignment.otlp.as_ref().map(Collector::port);
    let places = port.into_iter().fold(Places::default(), |places, port| places.with_port("collector", port));
    let confined = given.confine(&places)?;
    let landlock_abi = confined.landlock_abi();
    sandbox::prove_landlock()?;
    let sealed = confined.seal()?;
    let ready =
        Ready { loaded: 0, refused: 0, pagemap_scan: false, landlock_abi, landlock_proven_threads: 1 };
    Ok((sealed, ready, runtime, exporter))
}

/// Maps what the supervisor sends at once, while that is still possible.
fn take_accounts(control: &Control, assignment: &ExporterAssignment) -> Result<Accounts, ExporterError> {
    let mut accounts = Accounts::default();
    let mut buffer = Vec::new();
    while accounts.classes.len() < assignment.classes.len() || accounts.registry.is_none() {
        match control.receive(&mut buffer)? {
            Received::Message(ToChild::Accounts { class: Some(class) }, Some(memory)) => {
                accounts.classes.insert(class, Map::new(memory, Access::Read)?);
            }
            Received::Message(ToChild::Accounts { class: None }, Some(memory)) => {
                accounts.registry = Some(Map::new(memory, Access::Read)?);
            }
            Received::Message(..) => return Err(ExporterError::NoAccounts),
            Received::End => return Err(ExporterError::SupervisorGone),
            Received::Nothing => {
                let mut watched = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
                let longest = PollTimeout::try_from(SILENCE_MAX).unwrap_or(PollTimeout::MAX);
                match poll(&mut watched, longest) {
                    Ok(0) => return Err(ExporterError::NoAccounts),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(ExporterError::Wait(errno)),
                }
            }
        }
    }
    Ok(accounts)
}

fn serve(
    _sealed: Sealed,
    runtime: &Runtime,
    exporter: Exporter,
    control: Control,
) -> Result<(), ExporterError> {
    runtime.block_on(exporter.run(control))
}

fn give(ask: Ask, answer: Answer) {
    // Who has gone does not need it.
    let _ = ask.answer.send(answer);
}

/// The event loop and what it waits for.
struct Exporter {
    unix: Door,
    tcp: Option<Door>,
    /// Nobody is let in before the supervisor says so.
    serving: bool,
    series: Series,
    connections: JoinSet<()>,
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    /// Since numbers were last put together.
    waiting: Vec<Ask>,
    pages: Pages,
    /// Where they are sent somewhere.
    traces: Option<Traces>,
}

impl Exporter {
    /// Must be called within the runtime.
    fn new(
        accounts: &'static Accounts,
        assignment: &ExporterAssignment,
        unix: OwnedFd,
        tcp: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let traces = assignment.otlp.clone().map(|collector| {
            let (sender, task) = otlp::sender(collector);
            // It ends with the process, and with it what is under way.
            drop(tokio::spawn(task));
            Traces::new(sender, accounts, assignment)
        });
        Ok(Self {
            unix: Door::unix(unix)?,
            tcp: tcp.map(Door::tcp).transpose()?,
            serving: false,
            series: Series::new(accounts, assignment),
            connections: JoinSet::new(),
            asks: mpsc::channel(ASKS_MAX),
            waiting: Vec::new(),
            pages: Pages::default(),
            traces,
        })
    }

    /// Until the supervisor has it drain. What is not answered by then nobody will miss.
    async fn run(mut self, control: Control) -> Result<(), ExporterError> {
        let control = Polled::new(control).map_err(ExporterError::Runtime)?;
        let mut buffer = Vec::new();
        let mut collecting = tokio::time::interval(COLLECTED_EVERY);
        collecting.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due();
            tokio::select! {
                message = control.receive(&mut buffer) => {
                    let (message, descriptor) = message?.ok_or(ExporterError::SupervisorGone)?;
                    if self.heed(&control, message, descriptor)? {
                        info!("drained");
                        return Ok(());
                    }
                }
                stream = self.unix.next(), if self.serving => {
                    let seat = self.connections.spawn(attend(stream, self.asks.0.clone()));
                    self.unix.seat(seat);
                }
                stream = next_at(self.tcp.as_mut()), if self.serving => self.arrived_by_tcp(stream),
                Some(ask) = self.asks.1.recv() => match ask.what {
                    // A few words, and whoever asks for them does not wait for long.
                    What::Health => give(ask, self.series.answer(What::Health)),
                    What::Metrics(_) => self.waiting.push(ask),
                },
                // Aborted ones end with an error that says so.
                Some(_) = self.connections.join_next() => {}
                _ = collecting.tick(), if self.traces.is_some() => {
                    if let Some(traces) = &mut self.traces {
                        traces.collect(self.series.accounts());
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.answer(),
            }
        }
    }

    fn arrived_by_tcp(&mut self, stream: Stream) {
        let seat = self.connections.spawn(attend(stream, self.asks.0.clone()));
        if let Some(door) = &mut self.tcp {
            door.seat(seat);
        }
    }

    /// When those who wait get their answers.
    fn due(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.pages.due().unwrap_or_else(Instant::now))
    }

    /// Puts together once what everybody who waits has asked for. It is of now, later than each question, unless too many
    /// are at reading what was before.
    fn answer(&mut self) {
        if let Some(traces) = &self.traces {
            self.series.spans(traces.told());
        }
        let began = Instant::now();
        let mut answers: Vec<(What, Answer)> = Vec::new();
        for ask in std::mem::take(&mut self.waiting) {
            if let Some((_, found)) = answers.iter().find(|(of, _)| *of == ask.what) {
                let found = found.clone();
                give(ask, found);
                continue;
            }
            let (what, series) = (ask.what, &self.series);
            let found = match what {
                What::Metrics(format) => self.pages.page(format, began, || series.answer(what)),
                What::Health => series.answer(what),
            };
            answers.push((what, found.clone()));
            give(ask, found);
        }
        self.pages.made(began, Instant::now());
    }

    /// True: it is over.
    fn heed(
        &mut self,
        control: &Polled<FromChild, ToChild>,
        message: ToChild,
        descriptor: Option<OwnedFd>,
    ) -> Result<bool, ExporterError> {
        match (message, descriptor) {
            (ToChild::Serve, _) => self.serving = true,
            (ToChild::Ping { nonce }, _) => match control.try_send(&FromChild::Pong { nonce }) {
                // It has not read hundreds of answers; it will not miss this one.
                Ok(()) | Err(SendError::Full) => {}
                Err(error) => return Err(ExporterError::Tell(error)),
            },
            (ToChild::Drain, _) => return Ok(true),
            (ToChild::Processes(table), _) => self.series.processes(table),
            (ToChild::Reassign, Some(memfd)) => {
                let assignment: ExporterAssignment = assignment::read(memfd)?;
                self.series.reassign(&assignment);
                if let Some(traces) = &mut self.traces {
                    traces.reassign(&assignment);
                }
                info!("reassigned");
            }
            (ToChild::Reassign, None) => warn!("the supervisor's message came without its descriptor"),
            (_, _) => warn!("the supervisor's message is not one for an exporter"),
        }
        Ok(false)
    }
}
