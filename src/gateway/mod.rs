//! The gateway: what proxies speak, turned into questions to workers, and decisions into what proxies understand. It runs no
//! policy and holds no key.
//!
//! ```text
//!  proxy --[door]--> [http], [envoy], [spop], [opa] --Input--> [desk] --native protocol--> worker
//!                                                                 |
//!                       status, CheckResponse, ACK <--[verdict]---+
//! ```
//!
//! Each thread takes connections from every listener and keeps connections of its own to the workers ([lines]), so that
//! nothing is passed between threads. A connection to the service begins as one half of a pair of sockets ([visit]): the process opens
//! no path and connects to nothing.

mod desk;
mod door;
mod envoy;
mod http;
mod lines;
mod opa;
mod spop;
mod threads;
mod verdict;
mod visit;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use self::desk::room_of_one;
use self::door::Hall;
use self::threads::{Settled, Threads, ThreadsError};
use self::visit::Visits;
use crate::journal;
use crate::sandbox::{self, Given, Places, Role, SealError, Sealed};
use crate::wire::assignment::{self, AssignmentError};
use crate::wire::channel::{Channel, ReceiveError, SendError, take_inherited};
use crate::wire::control::{CONTROL_MAX, FromChild, Ready, ToChild, fd};
use crate::wire::gateway::GatewayAssignment;
use crate::wire::polled::Polled;

type Control = Channel<FromChild, ToChild>;

/// Why the gateway cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
enum GatewayError {
    #[error("take inherited descriptors: {0}")]
    Inherited(#[source] io::Error),
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    #[error("start event loop: {0}")]
    Runtime(#[source] io::Error),
    #[error("take the numbers of listeners: {0}")]
    Occupy(#[source] io::Error),
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    #[error("seal: {0}")]
    Seal(#[from] SealError),
    #[error("tell the supervisor: {0}")]
    Tell(#[source] SendError),
    #[error("listen to the supervisor: {0}")]
    Listen(#[from] ReceiveError),
    #[error("the supervisor is gone")]
    SupervisorGone,
}

/// The program `portcullis-gateway`. Started by the spawner, never by hand.
pub fn main() -> ExitCode {
    sandbox::install_panic_hook(Role::Gateway);
    sandbox::settle_allocator();
    // Threads' own heaps would be mapped after the seal.
    sandbox::share_the_main_heap();
    journal::start(Role::Gateway.name());
    let outcome = take(fd::CONTROL).and_then(|control| {
        let control = Channel::new(control, CONTROL_MAX);
        let (sealed, runtime, threads) = start(&control)?;
        serve(sealed, &runtime, threads, control)
    });
    match outcome {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            error!(%error, "gateway ends");
            sandbox::end(1)
        }
    }
}

fn take(number: i32) -> Result<OwnedFd, GatewayError> {
    take_inherited(number).map_err(GatewayError::Inherited)
}

/// Up to Ready. If something goes wrong, the supervisor is told what.
fn start(control: &Control) -> Result<(Sealed, Runtime, Threads), GatewayError> {
    match prepare_and_seal() {
        Ok((sealed, ready, runtime, threads)) => {
            control.send(&FromChild::Ready(ready), None).map_err(GatewayError::Tell)?;
            Ok((sealed, runtime, threads))
        }
        Err(error) => {
            // It may be gone itself.
            let _ = control.send(&FromChild::Failed { why: error.to_string() }, None);
            Err(error)
        }
    }
}

fn prepare_and_seal() -> Result<(Sealed, Ready, Runtime, Threads), GatewayError> {
    sandbox::check_inherited(Role::Gateway)?;
    let assignment: GatewayAssignment = assignment::read(take(fd::ASSIGNMENT)?)?;
    let classes = assignment.classes;
    let visits = Arc::new(Visits::new(take(fd::FIRST)?, classes.clone()));
    let count = assignment.listeners.len();
    let halls = (fd::GATEWAY_FIRST..).zip(assignment.listeners);
    let halls = halls.map(|(number, listener)| Ok(Hall::new(listener, take(number)?, room_of_one(count))));
    let halls = halls.collect::<Result<Vec<_>, GatewayError>>()?;
    // Like the control channel it stays open until the process is gone: the profile has nobody close them.
    let _kept = ManuallyDrop::new(Arc::clone(&visits));
    let given = Given::check(Role::Gateway, assignment.uid, assignment.gid, assignment.isolation)?;
    // The event loop's descriptors are made while that is still possible.
    let runtime =
        Builder::new_current_thread().enable_io().enable_time().build().map_err(GatewayError::Runtime)?;
    let confined = given.confine(&Places::default())?;
    let landlock_abi = confined.landlock_abi();
    sandbox::prove_landlock()?;
    let threads = usize::try_from(assignment.threads).unwrap_or(1).max(1);
    let threads = Threads::start(&Settled { threads, classes, halls, visits })?;
    occupy(fd::GATEWAY_LAST).map_err(GatewayError::Occupy)?;
    let sealed = confined.seal()?;
    let landlock_proven_threads = threads.proven.saturating_add(1);
    let ready = Ready { loaded: 0, refused: 0, pagemap_scan: false, landlock_abi, landlock_proven_threads };
    Ok((sealed, ready, runtime, threads))
}

/// Takes every descriptor number up to `last` that is free, for good. What comes later is above it: by the number the profile
/// tells connections, which may be shut down, from sockets that listen and are not this process's alone.
fn occupy(last: RawFd) -> io::Result<()> {
    loop {
        // /dev/null.
        let one = io::stdin().as_fd().try_clone_to_owned()?;
        if one.as_raw_fd() > last {
            return Ok(());
        }
        std::mem::forget(one);
    }
}

fn serve(_sealed: Sealed, runtime: &Runtime, threads: Threads, control: Control) -> Result<(), GatewayError> {
    runtime.block_on(run(threads, control))
}

/// Until the supervisor has it drain and nothing is left.
async fn run(threads: Threads, control: Control) -> Result<(), GatewayError> {
    // Never closed, as the channel to the frontend: the process ends with it.
    let control = ManuallyDrop::new(Polled::new(control).map_err(GatewayError::Runtime)?);
    let Threads { release, serving, closing, pings, mut done, .. } = threads;
    release.release();
    let mut buffer = Vec::new();
    let mut pongs = JoinSet::new();
    loop {
        tokio::select! {
            message = control.receive(&mut buffer) => {
                let (message, _) = message?.ok_or(GatewayError::SupervisorGone)?;
                match message {
                    ToChild::Serve => {
                        serving.send_replace(true);
                    }
                    ToChild::Ping { nonce } => {
                        let turned = pings.ping();
                        pongs.spawn(async move {
                            turned.await;
                            nonce
                        });
                    }
                    ToChild::Drain => {
                        info!("draining");
                        closing.send_replace(true);
                    }
                    _ => warn!("the supervisor's message is not one for a gateway"),
                }
            }
            Some(Ok(nonce)) = pongs.join_next() => match control.try_send(&FromChild::Pong { nonce }) {
                // It has not read hundreds of answers; it will not miss this one.
                Ok(()) | Err(SendError::Full) => {}
                Err(error) => return Err(GatewayError::Tell(error)),
            },
            None = done.recv() => {
                info!("drained");
                return Ok(());
            }
        }
    }
}
