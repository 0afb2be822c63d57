//! The spawner: starts the other roles, and does nothing else.
//!
//! A filter and a Landlock domain are inherited, so whoever forks must allow all that its children need before they
//! seal themselves, and whoever changes UIDs must hold the capabilities for it. Both are here, in a process that hears
//! one other process, decodes an assignment and then orders of a few bytes, and keeps no state: so the supervisor, which reads the configuration
//! and what children say, needs neither.
//!
//! What it may start is fixed when it starts: six programs, opened once, and a table of UIDs. Its children are
//! children of the supervisor (CLONE_PARENT), which waits for them, watches them and ends them; the spawner never
//! hears of them again.

mod child;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::getppid;

use crate::sandbox::launch::{self, ProgramError};
use crate::sandbox::privileges::{SurrenderError, keep};
use crate::sandbox::{
    Given, Places, Role, SealError, Sealed, check_inherited, end, install_panic_hook, settle_allocator,
};
use crate::wire::channel::{Channel, ReceiveError, Received, SendError, take_inherited};
use crate::wire::control::{ASSIGNMENT_MAX, fd};
use crate::wire::frame::{self, DecodeError};
use crate::wire::spawner::{FromSpawner, Order, SPAWNER_MAX, SpawnerAssignment};

use child::{Nursery, PROGRAMS};

type Orders = Channel<FromSpawner, Order>;

/// Why the spawner does not start anybody (any more).
#[derive(Debug, thiserror::Error)]
enum SpawnerError {
    #[error("take what the supervisor left: {0}")]
    Inherited(#[source] io::Error),
    #[error("read assignment: {0}")]
    Assignment(#[from] DecodeError),
    #[error(transparent)]
    Privileges(#[from] SurrenderError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("wait for orders: {0}")]
    Wait(#[source] Errno),
    #[error("hear an order: {0}")]
    Hear(#[from] ReceiveError),
    #[error("tell supervisor: {0}")]
    Tell(#[from] SendError),
}

/// The program `portcullis-spawner`. Started by the supervisor, never by hand.
#[must_use]
pub fn main() -> ExitCode {
    settle_allocator();
    install_panic_hook(Role::Spawner);
    let inherited = check_inherited(Role::Spawner);
    let orders = match take_inherited(fd::CONTROL) {
        Ok(socket) => Orders::new(socket, SPAWNER_MAX),
        Err(_) => return ExitCode::from(64),
    };
    match inherited.map_err(SpawnerError::from).and_then(|()| run(&orders)) {
        Ok(()) => end(0),
        Err(error) => {
            // The supervisor writes the log.
            let _ = orders.send(&FromSpawner::Failed { why: error.to_string() }, None);
            end(1)
        }
    }
}

fn run(orders: &Orders) -> Result<(), SpawnerError> {
    let assignment = read_assignment()?;
    let SpawnerAssignment { uid, gid, isolation, .. } = assignment;
    keep(Role::Spawner, isolation)?;
    let places = places(&assignment)?;
    let nursery = Nursery::open(assignment.members, isolation, getppid())?;
    let confined = Given::check(Role::Spawner, uid, gid, isolation)?.confine(&places)?;
    let landlock_abi = confined.landlock_abi();
    let sealed = confined.seal()?;
    orders.send(&FromSpawner::Ready { landlock_abi }, None)?;
    serve(sealed, orders, &nursery)
}

/// Until the supervisor is gone.
fn serve(_sealed: Sealed, orders: &Orders, nursery: &Nursery) -> Result<(), SpawnerError> {
    let mut buffer = Vec::new();
    loop {
        match orders.receive_many(&mut buffer)? {
            Received::Nothing => wait(orders)?,
            Received::End => return Ok(()),
            Received::Message(order, descriptors) => {
                let answer = start(nursery, &order, descriptors);
                orders.send(&answer, None)?;
            }
        }
    }
}

fn start(nursery: &Nursery, order: &Order, descriptors: Vec<OwnedFd>) -> FromSpawner {
    match nursery.start(order, &descriptors) {
        Ok(pid) => FromSpawner::Started { serial: order.serial, pid: pid.as_raw() },
        Err(why) => FromSpawner::Refused { serial: order.serial, why: why.to_string() },
    }
}

fn wait(orders: &Orders) -> Result<(), SpawnerError> {
    let mut watched = [PollFd::new(orders.as_fd(), PollFlags::POLLIN)];
    match poll(&mut watched, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(SpawnerError::Wait(errno)),
    }
}

fn places(assignment: &SpawnerAssignment) -> Result<Places, SpawnerError> {
    let (directory, _) = launch::own_directory()?;
    let programs = PROGRAMS
        .into_iter()
        .fold(Places::default(), |places, name| places.with("programs", directory.join(name)));
    let places = programs.with("store", &assignment.store).with("state", &assignment.state);
    let places = assignment.caches.iter().fold(places, |places, cache| places.with("caches", cache));
    Ok(assignment.collector.into_iter().fold(places, |places, port| places.with_port("collector", port)))
}

fn read_assignment() -> Result<SpawnerAssignment, SpawnerError> {
    let memfd = take_inherited(fd::ASSIGNMENT).map_err(SpawnerError::Inherited)?;
    let mut bytes = Vec::new();
    let limit = ASSIGNMENT_MAX as u64;
    File::from(memfd).take(limit).read_to_end(&mut bytes).map_err(SpawnerError::Inherited)?;
    Ok(frame::decode(&bytes)?)
}
