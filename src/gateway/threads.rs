//! The threads that serve: started after Landlock, set up, proven, and held until the process is sealed.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Barrier, mpsc as reports};
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::desk::Desk;
use super::door::{Door, Floor, Guest, Hall};
use super::lines::Lines;
use super::visit::Visits;
use super::{envoy, http, opa, spop};
use crate::client::{Client, Connect, Settings};
use crate::sandbox::{self, SealError};
use crate::wire::gateway::{GatewayClass, Speaks};
use crate::wire::socket::Socket;

/// Stack of a thread, bytes.
const STACK: usize = 1 << 20;

/// Why a thread is not ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum ThreadsError {
    #[error("start thread: {0}")]
    Spawn(#[source] io::Error),
    #[error("start event loop: {0}")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("a thread ended before it was ready")]
    Gone,
}

/// What the threads are told, and what they say.
pub(super) struct Threads {
    /// How many have shown that they cannot open a file.
    pub(super) proven: u32,
    pub(super) release: Release,
    pub(super) serving: watch::Sender<bool>,
    pub(super) closing: watch::Sender<bool>,
    pub(super) pings: Pings,
    /// Ends once every thread has nothing left to do.
    pub(super) done: mpsc::Receiver<Infallible>,
}

/// Lets the threads begin. Dropped without it, they never do.
pub(super) struct Release(Arc<Barrier>);

impl Release {
    pub(super) fn release(self) {
        self.0.wait();
    }
}

/// What all threads serve by.
pub(super) struct Settled {
    pub(super) threads: usize,
    pub(super) classes: Vec<GatewayClass>,
    pub(super) halls: Vec<Arc<Hall>>,
    pub(super) visits: Arc<Visits>,
}

impl Threads {
    /// Starts them, and returns when all are ready for the process to be sealed.
    pub(super) fn start(settled: &Settled) -> Result<Self, ThreadsError> {
        let (serving, closing) = (watch::Sender::new(false), watch::Sender::new(false));
        let (alive, done) = mpsc::channel(1);
        let (floor, arriving) = Floor::new(settled.threads);
        let barrier = Arc::new(Barrier::new(settled.threads + 1));
        let (report, reported) = reports::channel::<Result<(), ThreadsError>>();
        let visits: Arc<dyn Connect> = settled.visits.clone();
        let mut pings = Vec::with_capacity(settled.threads);
        for (number, guests) in arriving.into_iter().enumerate() {
            let (ping, pinged) = mpsc::unbounded_channel();
            pings.push(ping);
            let server = Server {
                number,
                floor: Arc::clone(&floor),
                // Each has connections of its own, so that no answer is passed between threads.
                lines: Lines::new(&settled.classes, || {
                    Client::through(Arc::clone(&visits), Settings::default())
                }),
                serving: serving.subscribe(),
                closing: closing.subscribe(),
                alive: alive.clone(),
            };
            let halls = settled.halls.clone();
            let (report, barrier) = (report.clone(), Arc::clone(&barrier));
            let body = move || {
                let prepared = prepare(&halls);
                let (runtime, doors) = hand_in(prepared, &report, &barrier);
                runtime.block_on(server.run(doors, guests, pinged));
                // A thread that ended would make calls that no profile has.
                loop {
                    thread::park();
                }
            };
            let thread = thread::Builder::new().name(format!("gateway-{number}")).stack_size(STACK);
            thread.spawn(body).map(drop).map_err(ThreadsError::Spawn)?;
        }
        drop(report);
        let mut proven = 0;
        for _ in 0..settled.threads {
            reported.recv().map_err(|_| ThreadsError::Gone)??;
            proven += 1;
        }
        Ok(Self { proven, release: Release(barrier), serving, closing, pings: Pings(pings), done })
    }
}

/// Asks the threads for a sign of life.
pub(super) struct Pings(Vec<mpsc::UnboundedSender<oneshot::Sender<()>>>);

impl Pings {
    /// Comes when each thread has turned its loop since.
    pub(super) fn ping(&self) -> impl Future<Output = ()> + Send + 'static {
        let asked = self.0.iter().map(|ping| {
            let (turned, turning) = oneshot::channel();
            // One that is done has dropped it, and its answer with it.
            let _ = ping.send(turned);
            turning
        });
        let asked: Vec<_> = asked.collect();
        async move {
            for turning in asked {
                let _ = turning.await;
            }
        }
    }
}

/// What has to be made before the seal: the event loop, and all that a thread takes from the kernel once.
fn prepare(halls: &[Arc<Hall>]) -> Result<(Runtime, Vec<Door>), ThreadsError> {
    let runtime =
        Builder::new_current_thread().enable_io().enable_time().build().map_err(ThreadsError::Runtime)?;
    let doors = {
        let _within = runtime.enter();
        halls.iter().map(Hall::door).collect::<Result<_, _>>().map_err(ThreadsError::Runtime)?
    };
    // A proxy's question comes by here twice: beside busy classes each time could be milliseconds.
    sandbox::ask_for_short_slices();
    sandbox::prove_landlock()?;
    Ok((runtime, doors))
}

/// Reports that this thread is ready, or why not, and waits until it may begin.
fn hand_in<T>(
    prepared: Result<T, ThreadsError>,
    report: &reports::Sender<Result<(), ThreadsError>>,
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
            // The process ends, and says why.
            loop {
                thread::park();
            }
        }
    }
}

/// One thread's part.
#[derive(Clone)]
struct Server {
    number: usize,
    floor: Arc<Floor>,
    lines: Lines,
    serving: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
    /// Held by everything that is not done.
    alive: mpsc::Sender<Infallible>,
}

impl Server {
    /// Until the process drains and nothing is left here.
    async fn run(
        mut self,
        doors: Vec<Door>,
        mut guests: mpsc::UnboundedReceiver<Guest>,
        mut pings: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
    ) {
        let alive = self.alive.clone();
        let (connected, mut connections) = mpsc::channel(1);
        self.alive = connected;
        let mut closing = self.closing.clone();
        for door in doors {
            tokio::spawn(self.clone().attend(door));
        }
        let mut open = Some(self);
        loop {
            tokio::select! {
                Some(turned) = pings.recv() => {
                    let _ = turned.send(());
                }
                Some(guest) = guests.recv() => {
                    if let Some(server) = &open {
                        server.seat(guest);
                    }
                }
                _ = closing.wait_for(|closing| *closing), if open.is_some() => {
                    guests.close();
                    open = None;
                }
                None = connections.recv(), if open.is_none() => break,
            }
        }
        drop(alive);
        // The supervisor may ask until the process is gone.
        while let Some(turned) = pings.recv().await {
            let _ = turned.send(());
        }
    }

    /// Lets proxies in, from when the supervisor says so until the process drains.
    async fn attend(mut self, door: Door) {
        let mut closing = self.closing.clone();
        tokio::select! {
            _ = self.serving.wait_for(|serving| *serving) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        loop {
            tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                guest = door.next(&self.floor, self.number) => {
                    if guest.seat.thread() == self.number {
                        self.seat(guest);
                    } else {
                        self.floor.send(guest);
                    }
                }
            }
        }
    }

    fn seat(&self, guest: Guest) {
        let Guest { socket, hall, peer, seat } = guest;
        // Without a place in the event loop there is nothing to be done for it: it is closed.
        let Ok(stream) = Socket::new(Arc::new(socket)) else { return };
        let listener = Arc::clone(&hall.listener);
        let desk = Desk::new(
            self.lines.clone(),
            Arc::clone(&listener),
            Arc::clone(&hall.room),
            peer,
            self.closing.clone(),
        );
        let alive = self.alive.clone();
        tokio::spawn(async move {
            match &listener.speaks {
                Speaks::EnvoyGrpc => envoy::serve(stream, desk).await,
                Speaks::Http(_) => http::serve(stream, desk).await,
                Speaks::Spoe => spop::serve(stream, desk).await,
                Speaks::Opa { .. } => opa::serve(stream, desk).await,
            }
            drop((seat, alive));
        });
    }
}
