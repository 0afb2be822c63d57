//! One job on one policy: looked at, or compiled for this host; then the process ends.
//!
//! What a builder reads was written by strangers, and its compiler is the largest program of the service. So it is a
//! process of its own for each job, hostile from the first byte it parses, with nothing to take: no key, no network, no other
//! policy, and of the disk its class's cache. The kernel holds it to its processor time, memory and output; who exceeds
//! them is ended, and the supervisor tells the registry by which limit.
//!
//! 1. [`main`]: check what was left, make the engine that policies are tried in, Landlock.
//! 2. A thread with room for compilers, started before the seal; then the seal, and only then a job is heard of.
//! 3. [`job`]: what is asked, and what is answered. [`trial`]: the code decides once. [`cache`]: what is kept.
//! 4. Meanwhile the first thread ticks, so that a policy that does not end is left.

mod cache;
mod job;
mod trial;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wasmtime::Engine;

use crate::compile;
use crate::engine::{Engines, PoolLimits};
use crate::sandbox::{self, Given, Places, Role, SealError, Sealed};
use crate::wire::channel::{Channel, ReceiveError, Received, SendError, take_inherited};
use crate::wire::control::{ASSIGNMENT_MAX, BuilderAssignment, CONTROL_MAX, FromChild, Ready, ToChild, fd};
use crate::wire::frame::{self, DecodeError};
use crate::wire::job::{JOB_MAX, Job, Report};

use cache::Cache;
use job::Workshop;

/// The registry's other end.
type Jobs = Channel<Report, Job>;
type Control = Channel<FromChild, ToChild>;

/// How often a policy under trial looks at its deadline, milliseconds.
const TICK_MS: u16 = 5;

/// Why there is no answer. Where there is somebody to tell a policy's fault to, that is a [`Report::Refused`].
#[derive(Debug, thiserror::Error)]
enum BuilderError {
    #[error("take what the supervisor left: {0}")]
    Inherited(#[source] io::Error),
    #[error("read assignment: {0}")]
    Assignment(#[from] DecodeError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("make engine: {0}")]
    Engine(String),
    #[error("start the thread that builds: {0}; builder.memory has to have room for its stack of {stack} MiB", stack = compile::STACK >> 20)]
    Thread(#[source] io::Error),
    #[error("the thread that builds ended before it was ready")]
    Gone,
    #[error("wait for a message: {0}")]
    Wait(#[source] Errno),
    #[error("hear the supervisor or the registry: {0}")]
    Hear(#[from] ReceiveError),
    #[error("tell the supervisor or the registry: {0}")]
    Tell(#[from] SendError),
    #[error("the supervisor is gone")]
    Alone,
}

/// The program `portcullis-builder`. Started by the spawner, never by hand.
#[must_use]
pub fn main() -> ExitCode {
    sandbox::settle_allocator();
    sandbox::share_the_main_heap();
    sandbox::install_panic_hook(Role::Builder);
    sandbox::outlive_long_files();
    crate::journal::start(Role::Builder.name());
    let control = match take_inherited(fd::CONTROL) {
        Ok(control) => Control::new(control, CONTROL_MAX),
        Err(error) => {
            tracing::error!(%error, "not started by a supervisor");
            return ExitCode::from(64);
        }
    };
    match run(&control) {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            tracing::error!(%error, "builder ends");
            let _ = control.send(&FromChild::Failed { why: error.to_string() }, None);
            sandbox::end(1)
        }
    }
}

fn run(control: &Control) -> Result<(), BuilderError> {
    sandbox::check_inherited(Role::Builder)?;
    let assignment = read_assignment()?;
    let jobs = Jobs::new(take_inherited(fd::FIRST).map_err(BuilderError::Inherited)?, JOB_MAX);
    let BuilderAssignment { uid, gid, isolation, .. } = assignment;
    let given = Given::check(Role::Builder, uid, gid, isolation)?;
    // For one trial, with what an instance of this class has. While /proc/self/pagemap can still be opened.
    let pool = PoolLimits { instances: 1, memory: assignment.memory, stack_zeroing: false };
    let engines = Engines::new(pool).map_err(|error| BuilderError::Engine(format!("{error:#}")))?;
    let engines = Arc::new(engines);

    // Which of the others the job takes is known when nothing can be opened any more.
    engines.make_all().map_err(|error| BuilderError::Engine(format!("{error:#}")))?;

    let confined = given.confine(&Places::default().with("cache", &assignment.cache))?;
    sandbox::prove_landlock()?;
    let workshop = Workshop {
        engines: Arc::clone(&engines),
        cache: Cache::new(PathBuf::from(&assignment.cache), assignment.limits.output),
        memory: assignment.memory,
        output: assignment.limits.output,
    };
    let begin = start_thread(workshop, jobs)?;

    let ready = Ready {
        loaded: 0,
        refused: 0,
        pagemap_scan: engines.pagemap_scan(),
        landlock_abi: confined.landlock_abi(),
        landlock_proven_threads: 2,
    };
    let sealed = confined.seal()?;
    control.send(&FromChild::Ready(ready), None)?;
    await_serve(control)?;
    begin.send(sealed).map_err(|_| BuilderError::Gone)?;
    tick(control, &engines)
}

fn read_assignment() -> Result<BuilderAssignment, BuilderError> {
    let memfd = take_inherited(fd::ASSIGNMENT).map_err(BuilderError::Inherited)?;
    let mut bytes = Vec::new();
    let limit = ASSIGNMENT_MAX as u64;
    File::from(memfd).take(limit).read_to_end(&mut bytes).map_err(BuilderError::Inherited)?;
    Ok(frame::decode(&bytes)?)
}

/// Starts the thread that does the job, with a stack that no policy can make a compiler exhaust, and returns when it is ready
/// to be sealed. It ends the process when it is done.
fn start_thread(workshop: Workshop, jobs: Jobs) -> Result<Sender<Sealed>, BuilderError> {
    let (begin, may_begin) = mpsc::channel();
    let (report, reports) = mpsc::channel();
    thread::Builder::new()
        .name("build".into())
        .stack_size(compile::STACK)
        .spawn(move || {
            // What wasmtime sets up once a thread (its signal stack) is set up before sealing.
            Engine::tls_eager_initialize();
            let ready = sandbox::prove_landlock();
            let go_on = ready.is_ok();
            let _ = report.send(ready);
            if go_on && let Ok(sealed) = may_begin.recv() {
                serve(sealed, &workshop, &jobs);
            }
            // The process ends, and says why. A thread that ended by itself would end it first, by a system call that no
            // profile has.
            loop {
                thread::park();
            }
        })
        .map_err(BuilderError::Thread)?;
    reports.recv().map_err(|_| BuilderError::Gone)??;
    Ok(begin)
}

/// Does the one job, and ends the process.
fn serve(_sealed: Sealed, workshop: &Workshop, jobs: &Jobs) -> ! {
    match take_job(jobs).and_then(|taken| match taken {
        // Nobody wants anything any more.
        None => Ok(()),
        Some((job, descriptors)) => {
            workshop.carry_out(job, descriptors, |report, descriptor| tell(jobs, report, descriptor))
        }
    }) {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            tracing::error!(%error, "builder ends");
            sandbox::end(1)
        }
    }
}

type Taken = Option<(Job, Vec<OwnedFd>)>;

fn take_job(jobs: &Jobs) -> Result<Taken, BuilderError> {
    let mut buffer = Vec::new();
    loop {
        match jobs.receive_many(&mut buffer)? {
            Received::Message(job, descriptors) => return Ok(Some((job, descriptors))),
            Received::End => return Ok(None),
            Received::Nothing => wait(jobs.as_fd(), PollFlags::POLLIN, PollTimeout::NONE)?,
        }
    }
}

/// Waits while the registry does not keep up.
fn tell(jobs: &Jobs, report: &Report, descriptor: Option<BorrowedFd<'_>>) -> Result<(), BuilderError> {
    loop {
        match jobs.send(report, descriptor) {
            // Too many descriptors under way is no state that a socket can be waited for to leave.
            Err(SendError::Full) => wait(jobs.as_fd(), PollFlags::empty(), PollTimeout::from(TICK_MS))?,
            result => return Ok(result?),
        }
    }
}

fn await_serve(control: &Control) -> Result<(), BuilderError> {
    let mut buffer = Vec::new();
    loop {
        match control.receive(&mut buffer)? {
            Received::Message(ToChild::Serve, _) => return Ok(()),
            // There is nothing else that a builder could do before.
            Received::Message(..) => {}
            Received::End => return Err(BuilderError::Alone),
            Received::Nothing => wait(control.as_fd(), PollFlags::POLLIN, PollTimeout::NONE)?,
        }
    }
}

/// Until the other thread ends the process, or the supervisor is gone.
fn tick(control: &Control, engines: &Engines) -> Result<(), BuilderError> {
    let mut buffer = Vec::new();
    loop {
        match control.receive(&mut buffer)? {
            // It has one job and ends by itself; who cannot wait for that kills it.
            Received::Message(..) => {}
            Received::End => return Err(BuilderError::Alone),
            Received::Nothing => wait(control.as_fd(), PollFlags::POLLIN, PollTimeout::from(TICK_MS))?,
        }
        engines.all().iter().for_each(Engine::increment_epoch);
    }
}

fn wait(descriptor: BorrowedFd<'_>, what: PollFlags, timeout: PollTimeout) -> Result<(), BuilderError> {
    match poll(&mut [PollFd::new(descriptor, what)], timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(BuilderError::Wait(errno)),
    }
}

/// Reports and lines of the log are read by people.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
