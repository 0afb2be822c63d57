//! One trust class's decisions: load, seal, serve. Consider it hostile from the first guest it runs.
//!
//! A worker's policies never change, but that one may be withdrawn: another set means another process. Before it is
//! sealed it takes them from the registry as sealed memory, verifies and loads; from then on it can open, connect,
//! execute and map code no more, and all it has is the connections it is handed.

mod admission;
mod connection;
mod counters;
mod executor;
mod load;
mod mailbox;
mod outbound;
mod parts;
mod policies;
#[cfg(feature = "compiler")]
#[cfg(test)]
mod samples;
mod schedule;
mod steward;
mod tally;
mod tasks;
mod threads;
mod ticker;
mod tickets;
mod warm;
mod watchdog;

use std::fs::File;
use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::Arc;

use crate::accounts::{Access, ClassAccount, Map, MapError};
use crate::engine::{Engines, PoolLimits, monotonic_ns};
use crate::sandbox::{self, Given, Places, Role, SealError};
use crate::wire::channel::{Channel, SendError, take_inherited};
use crate::wire::control::{
    ASSIGNMENT_MAX, CONTROL_MAX, ClassLimits, FromChild, Ready, ToChild, WorkerAssignment, fd,
};
use crate::wire::frame::{self, DecodeError};
use crate::wire::handover::HANDOVER_MAX;
use crate::wire::operator::{WorkerCounters, WorkerStatus};
use crate::wire::supply::SUPPLY_MAX;

use executor::Capacity;
use mailbox::Mailbox;
use steward::{Renewal, Steward};

/// Why a worker does not serve.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("take what the supervisor left: {0}")]
    Inherited(#[source] io::Error),
    #[error("read assignment: {0}")]
    Assignment(#[from] DecodeError),
    #[error(transparent)]
    Accounts(#[from] MapError),
    #[error(
        "the accounts' column of generation {0} is another process's, which still drains; wait for it, or shorten service.drain"
    )]
    Column(u64),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("make engine: {0}")]
    Engine(String),
    #[error(transparent)]
    Load(#[from] load::LoadError),
    #[error("start threads: {0}")]
    Threads(#[from] threads::ThreadsError),
    #[error("set up: {0}")]
    Kernel(#[from] nix::Error),
    #[error("tell supervisor: {0}")]
    Tell(#[from] SendError),
    #[error(transparent)]
    Steward(#[from] steward::StewardError),
    #[error("serve: {0}")]
    Serve(#[source] steward::StewardError),
}

/// The program `portcullis-worker`. Started by the supervisor, never by hand.
#[must_use]
pub fn main() -> ExitCode {
    sandbox::settle_allocator();
    sandbox::install_panic_hook(Role::Worker);
    crate::journal::start(Role::Worker.name());
    let control = match take_inherited(fd::CONTROL) {
        Ok(control) => Arc::new(Channel::new(control, CONTROL_MAX)),
        Err(error) => {
            tracing::error!(%error, "not started by a supervisor");
            return ExitCode::from(64);
        }
    };
    match run(&control) {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            tracing::error!(%error, "worker ends");
            // Only who never served has failed to start.
            if !matches!(error, WorkerError::Serve(_)) {
                let _ = control.send(&FromChild::Failed { why: error.to_string() }, None);
            }
            sandbox::end(1)
        }
    }
}

fn run(control: &Arc<Channel<FromChild, ToChild>>) -> Result<(), WorkerError> {
    sandbox::check_inherited(Role::Worker)?;
    let assignment = read_assignment()?;
    let handover = take_inherited(fd::FIRST).map_err(WorkerError::Inherited)?;
    let supply = take_inherited(fd::SECOND).map_err(WorkerError::Inherited)?;
    let supply = load::Supply::new(supply, SUPPLY_MAX);
    let accounts = take_inherited(fd::ACCOUNTS).map_err(WorkerError::Inherited)?;
    let accounts = Map::<ClassAccount>::new(accounts, Access::Write)?;
    let given = Given::check(Role::Worker, assignment.uid, assignment.gid, assignment.isolation)?;

    let column = accounts.column(assignment.generation);
    if !column.is_some_and(|column| column.begin(assignment.generation, assignment.slots)) {
        return Err(WorkerError::Column(assignment.generation));
    }

    let limits = &assignment.limits;
    let pool = PoolLimits {
        instances: limits.instances,
        memory: limits.memory,
        stack_zeroing: limits.stack_zeroing,
    };
    // While /proc/self/pagemap can still be opened.
    let engines = Engines::new(pool).map_err(|error| WorkerError::Engine(format!("{error:#}")))?;
    let accounts = Arc::new(accounts);
    let loaded = load::load(&engines, &assignment, &supply, &accounts)?;
    let set = Arc::new(loaded.set);

    let confined = given.confine(&Places::default())?;
    sandbox::prove_landlock()?;
    let landlock_abi = confined.landlock_abi();
    let steward_mailbox = Arc::new(Mailbox::new()?);
    let count = limits.threads.max(1) as usize;
    let capacity = capacity(limits, count);
    if let Some(column) = set.column() {
        column.instances_max.set((capacity.instances * count) as u64);
    }
    let threads = threads::start(&engines.all(), &set, count, capacity, &steward_mailbox)?;
    let refused = loaded.statuses.iter().filter(|status| status.serving.is_none()).count();
    let ready = Ready {
        loaded: number(loaded.statuses.len() - refused),
        refused: number(refused),
        pagemap_scan: engines.pagemap_scan(),
        landlock_abi,
        landlock_proven_threads: number(threads.proven + 1),
    };
    let steward = Steward::new(steward::Parts {
        control: Arc::clone(control),
        handover: Channel::new(handover, HANDOVER_MAX),
        supply,
        mailbox: steward_mailbox,
        executors: threads.executors,
        release: Some(threads.release),
        set,
        status: WorkerStatus {
            class: assignment.class.clone(),
            generation: assignment.generation,
            pagemap_scan: engines.pagemap_scan(),
            stack_zeroing: limits.stack_zeroing,
            counters: WorkerCounters::default(),
            policies: Vec::new(),
        },
        policies: loaded.statuses,
        renewal: renewal(limits),
    })?;

    let sealed = confined.seal()?;
    control.send(&FromChild::Ready(ready), None)?;
    steward.serve(sealed).map_err(WorkerError::Serve)
}

fn read_assignment() -> Result<WorkerAssignment, WorkerError> {
    let memfd = take_inherited(fd::ASSIGNMENT).map_err(WorkerError::Inherited)?;
    let mut bytes = Vec::new();
    let limit = ASSIGNMENT_MAX as u64;
    File::from(memfd).take(limit).read_to_end(&mut bytes).map_err(WorkerError::Inherited)?;
    Ok(frame::decode(&bytes)?)
}

/// Each executor's part of what the class may use.
fn capacity(limits: &ClassLimits, executors: usize) -> Capacity {
    let share = |all: u32| (all as usize).div_ceil(executors).max(1);
    let instances = (limits.instances as usize / executors).max(1);
    Capacity {
        instances,
        instances_per_tenant: (instances / 4).clamp(1, 16),
        queue: share(limits.queue),
        // One that fills its half leaves the other to the rest. Who is alone has no more than that: it would learn from it
        // that it is.
        queue_per_tenant: share(limits.queue).div_ceil(2),
        pipeline: (limits.pipeline as usize).max(1),
        executors,
    }
}

fn renewal(limits: &ClassLimits) -> Renewal {
    let at_ns = match limits.renew_after_ms {
        0 => 0,
        after => monotonic_ns().saturating_add(after.saturating_mul(1_000_000)),
    };
    Renewal { after_decisions: limits.renew_after_decisions, at_ns }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
