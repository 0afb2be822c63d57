//! Every thread a worker will ever have: started after Landlock, set up, proven, and held until it may serve.

use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use wasmtime::Engine;

use super::counters::Counters;
use super::executor::{Capacity, Executor, FromExecutor, Parts, Shared};
use super::mailbox::Mailbox;
use super::policies::PolicySet;
use super::schedule::Shares;
use super::ticker::Ticker;
use super::tickets::Tickets;
use super::watchdog::Watchdog;
use crate::sandbox::{self, SealError};

/// Native stack of a thread, bytes. Guests have their own.
const STACK: usize = 1 << 20;

/// Threads that wait to be released.
pub(super) struct Threads {
    pub(super) executors: Vec<Arc<Shared>>,
    /// How many have shown that they cannot open a file.
    pub(super) proven: usize,
    pub(super) release: Release,
}

/// Lets the threads begin. Dropped without it, they never do.
pub(super) struct Release(Arc<Barrier>);

impl Release {
    pub(super) fn release(self) {
        self.0.wait();
    }
}

/// Why a thread is not ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum ThreadsError {
    #[error("start thread: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("set up thread: {0}")]
    SetUp(#[from] nix::Error),
    #[error("seed of random numbers: {0}")]
    Seed(#[from] getrandom::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("a thread ended before it was ready")]
    Gone,
}

/// Starts `count` executors and the watchdog, and returns when all of them are ready to be sealed.
pub(super) fn start(
    engines: &[Engine],
    set: &Arc<PolicySet>,
    count: usize,
    capacity: Capacity,
    steward: &Arc<Mailbox<FromExecutor>>,
) -> Result<Threads, ThreadsError> {
    let bell = Arc::new(Mailbox::new()?);
    let shares = Arc::new(Shares::new(set.weights()));
    let barrier = Arc::new(Barrier::new(count + 2));
    let (report, reports) = mpsc::channel::<Result<(), ThreadsError>>();
    let mut executors = Vec::with_capacity(count);
    for number in 0..count {
        let shared = Arc::new(Shared {
            mailbox: Mailbox::new()?,
            tickets: Tickets::default(),
            counters: Counters::default(),
            step_began_ns: 0.into(),
            ticking: false.into(),
        });
        executors.push(Arc::clone(&shared));
        let (engines, set, steward, bell) =
            (engines.to_vec(), Arc::clone(set), Arc::clone(steward), Arc::clone(&bell));
        let shares = Arc::clone(&shares);
        let (barrier, report) = (Arc::clone(&barrier), report.clone());
        spawn(format!("executor-{number}"), move || {
            let prepared = (|| {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed)?;
                let ticker = Ticker::new(&engines)?;
                let seeds = ChaCha20Rng::from_seed(seed);
                // What wasmtime sets up once a thread (its signal stack) is set up before sealing. No guest runs for
                // that: until the process is sealed it could do what a sealed one cannot.
                Engine::tls_eager_initialize();
                sandbox::ask_for_short_slices();
                let watchdog = bell;
                let executor =
                    Executor::new(Parts { shared, steward, watchdog, set, shares, capacity, ticker, seeds })?;
                sandbox::prove_landlock()?;
                Ok(executor)
            })();
            give_up("executor", hand_in(prepared, &report, &barrier).run());
        })?;
    }
    let watched = executors.clone();
    let (watchdog_barrier, watchdog_report) = (Arc::clone(&barrier), report.clone());
    spawn("watchdog".into(), move || {
        let prepared = (|| {
            let watchdog = Watchdog::new(bell, watched)?;
            sandbox::prove_landlock()?;
            Ok(watchdog)
        })();
        give_up("watchdog", hand_in(prepared, &watchdog_report, &watchdog_barrier).run());
    })?;
    drop(report);
    for _ in 0..=count {
        reports.recv().map_err(|_| ThreadsError::Gone)??;
    }
    Ok(Threads { executors, proven: count + 1, release: Release(barrier) })
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<(), ThreadsError> {
    thread::Builder::new().name(name).stack_size(STACK).spawn(body).map(drop).map_err(ThreadsError::Spawn)
}

/// Reports that this thread is ready, or why not, and waits until it may begin.
fn hand_in<T>(
    prepared: Result<T, ThreadsError>,
    report: &mpsc::Sender<Result<(), ThreadsError>>,
    barrier: &Barrier,
) -> T {
    // The report fails only when the main thread has given up already.
    match prepared {
        Ok(value) => {
            let _ = report.send(Ok(()));
            barrier.wait();
            value
        }
        Err(error) => {
            let _ = report.send(Err(error));
            // The process ends, and says why. A thread that ended by itself would end it first, by a system call that
            // no profile has.
            loop {
                thread::park();
            }
        }
    }
}

/// Without one of its threads a worker is of no use: its clients are better off with closed connections.
fn give_up(who: &str, errno: nix::errno::Errno) -> ! {
    tracing::error!(%errno, "{who} cannot wait for events");
    std::process::abort()
}
