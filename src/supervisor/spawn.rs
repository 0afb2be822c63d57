//! The supervisor's way to new processes: the spawner, started once, and orders to it.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use serde::Serialize;

use super::config::Config;
use super::log::say;
use crate::otlp::Collector;
use crate::sandbox::launch::{self, EXIT_NOT_STARTED, ProgramError};
use crate::sandbox::privileges::{ConfiguredLimits, endow};
use crate::sandbox::witness::{self, Expected, WitnessError};
use crate::sandbox::{Enclosed, Role, StatusError, end};
use crate::supervisor::config::Surroundings;
use crate::wire::channel::{Channel, ReceiveError, Received, SendError};
use crate::wire::control::{ASSIGNMENT_MAX, CONTROL_MAX, FromChild, ToChild, fd};
use crate::wire::frame::{self, EncodeError};
use crate::wire::spawner::{FromSpawner, Member, Order, Part, SPAWNER_MAX, SpawnerAssignment};

/// From the fork to Ready. It loads nothing.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// From an order to its answer, at least: one clone. The supervisor does nothing else meanwhile, and the service manager's
/// watchdog has half of its time left after it. Where others may take longer (`answer_within`), so may the spawner.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Wake-ups of ours that must have passed before silence is the spawner's fault and not the machine's.
const ROUNDS: u32 = 4;

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("make assignment: {0}")]
    Assignment(#[source] io::Error),
    #[error("make assignment: {0}")]
    Encode(#[from] EncodeError),
    #[error("make control channel: {0}")]
    Channel(#[source] io::Error),
    #[error("make a channel to another process: {0}")]
    Pair(#[source] io::Error),
    #[error("there is no registry to get policies from")]
    NoRegistry,
    #[error("the configuration has no class of that name any more")]
    NoClass,
    #[error("hand it the accounts: {0}")]
    Accounts(#[source] SendError),
    #[error("the configuration has no telemetry, or there is no socket for it")]
    NoTelemetry,
    #[error("the configuration has no gateway any more")]
    NoGateway,
    #[error("fork: {0}")]
    Fork(#[source] io::Error),
    #[error("order from the spawner: {0}")]
    Order(#[from] SendError),
    #[error("hear the spawner: {0}")]
    Hear(#[from] ReceiveError),
    #[error("hear the spawner: {0}")]
    Silent(&'static str),
    #[error("the spawner: {0}")]
    Refused(String),
    #[error("the spawner said pid {0}, which is no new child of this process")]
    NotOurs(i32),
    #[error("the spawner said what it may not say now")]
    OutOfOrder,
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Witness(#[from] WitnessError),
}

impl SpawnError {
    /// After this the spawner is not to be trusted with another order, or not there.
    pub(super) fn is_the_spawners_end(&self) -> bool {
        matches!(self, Self::Order(_) | Self::Hear(_) | Self::Silent(_) | Self::NotOurs(_) | Self::OutOfOrder)
    }
}

/// The spawner: sealed, looked at, waiting for orders.
#[derive(Debug)]
pub(super) struct Spawner {
    pub(super) pid: Pid,
    pub(super) landlock_abi: u32,
    channel: Channel<Order, FromSpawner>,
    serial: Cell<u64>,
    answers_within: Duration,
    /// Seccomp filters that its children are born under.
    pub(super) filters: u32,
}

/// A child to be.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) part: Part,
    pub(super) limits: ConfiguredLimits,
    pub(super) assignment: BorrowedFd<'a>,
    /// From [`fd::FIRST`] on.
    pub(super) more: Vec<BorrowedFd<'a>>,
    /// See [`super::books`].
    pub(super) accounts: Option<BorrowedFd<'a>>,
    /// See [`super::control_groups`].
    pub(super) group: Option<BorrowedFd<'a>>,
}

/// A child that runs, and the way to it.
pub(super) struct Launched {
    pub(super) pid: Pid,
    pub(super) channel: Channel<ToChild, FromChild>,
}

impl Spawner {
    /// Starts it, waits until it is sealed, and looks at it. Before this process's own seal, since nothing can be
    /// started after it.
    pub(super) fn start(
        _enclosed: &Enclosed,
        config: &Config,
        surroundings: &Surroundings,
    ) -> Result<Self, SpawnError> {
        let program = launch::open_program("portcullis-spawner", surroundings.isolation)?;
        let (null, stderr) = (launch::null()?, io::stderr());
        let assignment = assignment(&spawner_assignment(config, surroundings))?;
        let (channel, theirs) = Channel::pair(SPAWNER_MAX).map_err(SpawnError::Channel)?;
        let filters = witness::own_filters()?.saturating_add(Role::Spawner.filters());
        let wanted = [
            (null.as_fd(), 0),
            (stderr.as_fd(), 1),
            (stderr.as_fd(), 2),
            (theirs.as_fd(), fd::CONTROL),
            (assignment.as_fd(), fd::ASSIGNMENT),
        ];
        let supervisor = getpid();
        let pid = fork_and(|| {
            let why = match launch::place(&wanted, program.as_fd()) {
                Err(why) => format!("place descriptors: {why}"),
                Ok(program) => match endow(surroundings.isolation, supervisor.as_raw()) {
                    Err(why) => why.to_string(),
                    Ok(()) => {
                        format!("run portcullis-spawner: {}", launch::exec(&program, "portcullis-spawner"))
                    }
                },
            };
            say!("spawner: did not start: {why}");
        })?;
        drop(theirs);
        let answers_within = ANSWER_WITHIN.max(config.service.answer_within);
        let mut spawner =
            Self { pid, landlock_abi: 0, channel, serial: Cell::new(0), answers_within, filters };
        match spawner.hear(READY_WITHIN)? {
            FromSpawner::Ready { landlock_abi } => spawner.landlock_abi = landlock_abi,
            FromSpawner::Failed { why } => return Err(SpawnError::Refused(why)),
            FromSpawner::Started { .. } | FromSpawner::Refused { .. } => return Err(SpawnError::OutOfOrder),
        }
        let (uid, gid, isolation) = (surroundings.uid, surroundings.gid, surroundings.isolation);
        let expected = Expected { role: Role::Spawner, uid, gid, isolation, filters };
        witness::look(pid.as_raw(), &expected)?;
        say!("spawner (pid {pid}): sealed");
        Ok(spawner)
    }

    /// Has a child started, as the identity the spawner knows for it. `known` are the children there are.
    ///
    /// # Errors
    /// See [`SpawnError::is_the_spawners_end`].
    pub(super) fn launch(&self, launch: &Launch<'_>, known: &[Pid]) -> Result<Launched, SpawnError> {
        let (channel, theirs) = Channel::pair(CONTROL_MAX).map_err(SpawnError::Channel)?;
        let ConfiguredLimits { open_files, processes, build } = launch.limits;
        let serial = self.serial.get().saturating_add(1);
        self.serial.set(serial);
        let (accounted, grouped) = (launch.accounts.is_some(), launch.group.is_some());
        let order =
            Order { serial, part: launch.part.clone(), open_files, processes, build, accounted, grouped };
        let mut descriptors = vec![theirs.as_fd(), launch.assignment];
        descriptors.extend(&launch.more);
        descriptors.extend(launch.accounts);
        descriptors.extend(launch.group);
        self.channel.send_with(&order, &descriptors)?;
        match self.hear(self.answers_within)? {
            FromSpawner::Started { serial: of, pid } if of == serial => {
                let child = Pid::from_raw(pid);
                if child == self.pid || known.contains(&child) || !is_child(pid) {
                    return Err(SpawnError::NotOurs(pid));
                }
                Ok(Launched { pid: child, channel })
            }
            FromSpawner::Refused { serial: of, why } if of == serial => Err(SpawnError::Refused(why)),
            _ => Err(SpawnError::OutOfOrder),
        }
    }

    fn hear(&self, within: Duration) -> Result<FromSpawner, SpawnError> {
        let round = PollTimeout::try_from(within / ROUNDS).unwrap_or(PollTimeout::MAX);
        let mut buffer = Vec::new();
        // Where the whole machine stood still, only one of these rounds is over.
        for _ in 0..=ROUNDS {
            match self.channel.receive(&mut buffer)? {
                Received::Message(message, None) => return Ok(message),
                Received::Message(_, Some(_)) => return Err(SpawnError::Silent("it sent a descriptor")),
                Received::End => return Err(SpawnError::Silent("it is gone")),
                Received::Nothing => {}
            }
            let mut watched = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, round) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(SpawnError::Hear(ReceiveError::Io(errno.into()))),
            }
        }
        Err(SpawnError::Silent("it does not answer"))
    }
}

/// Whether it is a child that has not been waited for: then its number can mean no other process.
fn is_child(pid: i32) -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    pid > 0
        && matches!(
            waitid(Id::Pid(Pid::from_raw(pid)), look),
            Ok(WaitStatus::StillAlive | WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        )
}

/// JUSTIFICATION: std's `Command` can neither exec from a descriptor nor place descriptors by number.
#[expect(unsafe_code, reason = "fork has no safe form")]
fn fork_and(body: impl FnOnce()) -> Result<Pid, SpawnError> {
    // SAFETY: this process has one thread, so no lock is held by another one and the child may allocate.
    match unsafe { fork() }.map_err(|errno| SpawnError::Fork(errno.into()))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            body();
            end(EXIT_NOT_STARTED)
        }
    }
}

fn spawner_assignment(config: &Config, surroundings: &Surroundings) -> SpawnerAssignment {
    let frontend = (Part::Frontend, config.frontend.identity);
    let workers = config.classes.iter().map(|class| (Part::Worker(class.name.clone()), class.identity));
    let registry = (Part::Registry, config.registry.identity);
    let builders = config.classes.iter().map(|class| (Part::Builder(class.name.clone()), class.identity));
    let exporter = config.telemetry.as_ref().map(|telemetry| (Part::Exporter, telemetry.identity));
    let gateway = config.gateway.as_ref().map(|gateway| (Part::Gateway, gateway.identity));
    let members = [frontend, registry].into_iter().chain(workers).chain(builders);
    let members = members.chain(exporter).chain(gateway);
    SpawnerAssignment {
        uid: surroundings.uid,
        gid: surroundings.gid,
        isolation: surroundings.isolation,
        members: members.map(|(part, who)| Member { part, uid: who.uid, gid: who.gid }).collect(),
        store: config.service.store.display().to_string(),
        state: config.service.state.display().to_string(),
        caches: config.classes.iter().map(|class| class.cache.display().to_string()).collect(),
        collector: config
            .telemetry
            .as_ref()
            .and_then(|telemetry| telemetry.otlp.as_ref())
            .map(Collector::port),
    }
}

/// The assignment as nobody can change it any more: a sealed memfd, to be read from its start.
pub(super) fn assignment(message: &impl Serialize) -> Result<OwnedFd, SpawnError> {
    let bytes = frame::encode(message, ASSIGNMENT_MAX)?;
    let make = || -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC
            | MFdFlags::MFD_ALLOW_SEALING
            | MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL);
        let mut file = File::from(memfd_create(c"assignment", flags)?);
        file.write_all(&bytes)?;
        file.rewind()?;
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(file.into())
    };
    make().map_err(SpawnError::Assignment)
}

/// As many open files as wanted, or as many as this process may give.
pub(super) fn open_files(wanted: u64, part: &Part) -> u64 {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(wanted, |(_, hard)| hard);
    if wanted > hard {
        say!(
            "{part}: needs {wanted} open files, may have {hard}; raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        );
    }
    wanted.min(hard)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_assignment_is_read_from_its_start_and_cannot_be_changed() {
        let sealed = assignment(&"what to do").expect("assignment");
        let mut file = File::from(sealed);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(frame::decode::<String>(&bytes).expect("decode"), "what to do");
        assert_eq!(file.write(b"x").expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
        assert_eq!(file.set_len(0).expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
    }

    #[test]
    fn only_own_children_count_as_such() {
        assert!(!is_child(getpid().as_raw()));
        assert!(!is_child(1));
        assert!(!is_child(0) && !is_child(-1));
        let child = fork_and(|| {}).expect("fork");
        assert!(is_child(child.as_raw()));
        nix::sys::wait::waitpid(child, None).expect("wait");
        assert!(!is_child(child.as_raw()));
    }
}
