//! One child: a copy of this process, its descriptors in their places, its power taken away, exec.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::sandbox::end;
use crate::sandbox::launch::{self, EXIT_NOT_STARTED, ProgramError};
use crate::sandbox::privileges::{ConfiguredLimits, surrender};
use crate::wire::channel::Channel;
use crate::wire::control::{CONTROL_MAX, FromChild, Isolation, ToChild, fd};
use crate::wire::gateway::LISTENERS_MAX;
use crate::wire::spawner::{Member, Order, Part};

/// The programs it runs, beside its own.
pub(super) const FRONTEND: &str = "portcullis-frontend";
pub(super) const WORKER: &str = "portcullis-worker";
pub(super) const REGISTRY: &str = "portcullis-registry";
pub(super) const BUILDER: &str = "portcullis-builder";
pub(super) const EXPORTER: &str = "portcullis-exporter";
pub(super) const GATEWAY: &str = "portcullis-gateway";
/// All of them.
pub(super) const PROGRAMS: [&str; 6] = [FRONTEND, WORKER, REGISTRY, BUILDER, EXPORTER, GATEWAY];
/// For what a child does between its birth and exec. Bytes.
const STACK: usize = 256 << 10;

/// Why there is no child.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("{0} is not one of those this spawner was told of")]
    Stranger(Part),
    #[error("expected control channel, assignment and no more descriptors than {0} has, got {1}")]
    Descriptors(Part, usize),
    #[error("make a process: {0}")]
    Clone(#[source] Errno),
}

/// What children are made from.
pub(super) struct Nursery {
    frontend: OwnedFd,
    worker: OwnedFd,
    registry: OwnedFd,
    builder: OwnedFd,
    exporter: OwnedFd,
    gateway: OwnedFd,
    null: OwnedFd,
    stderr: io::Stderr,
    members: Vec<Member>,
    isolation: Isolation,
    supervisor: Pid,
}

impl Nursery {
    /// Opens the programs, beside this one. From here on nothing about them changes.
    pub(super) fn open(
        members: Vec<Member>,
        isolation: Isolation,
        supervisor: Pid,
    ) -> Result<Self, ProgramError> {
        Ok(Self {
            frontend: launch::open_program(FRONTEND, isolation)?,
            worker: launch::open_program(WORKER, isolation)?,
            registry: launch::open_program(REGISTRY, isolation)?,
            builder: launch::open_program(BUILDER, isolation)?,
            exporter: launch::open_program(EXPORTER, isolation)?,
            gateway: launch::open_program(GATEWAY, isolation)?,
            null: launch::null()?,
            stderr: io::stderr(),
            members,
            isolation,
            supervisor,
        })
    }

    /// Starts a child of the supervisor. What goes wrong after that the child tells it as [`FromChild::Failed`].
    pub(super) fn start(&self, order: &Order, descriptors: &[OwnedFd]) -> Result<Pid, StartError> {
        let member = self.members.iter().find(|member| member.part == order.part);
        let member = member.ok_or_else(|| StartError::Stranger(order.part.clone()))?;
        let (group, numbered) = match descriptors {
            [numbered @ .., group] if order.grouped => (Some(group), numbered),
            numbered => (None, numbered),
        };
        let (accounts, numbered) = match numbered {
            [numbered @ .., accounts] if order.accounted => (Some(accounts), numbered),
            numbered => (None, numbered),
        };
        let [control, assignment, more @ ..] = numbered else {
            return Err(StartError::Descriptors(member.part.clone(), descriptors.len()));
        };
        let most = if member.part == Part::Gateway { 1 + LISTENERS_MAX } else { 2 };
        if more.len() > most || (accounts.is_some() && most > 2) {
            return Err(StartError::Descriptors(member.part.clone(), descriptors.len()));
        }
        let wanted = Wanted { control, assignment, more, accounts };
        let body = || -> isize {
            // Out of the way of the numbers that are about to be given to others.
            let spare = launch::duplicate(control.as_fd());
            let why = match group.map_or(Ok(()), enter) {
                Ok(()) => self.become_child(member, order, &wanted),
                Err(why) => format!("enter the control group of {}: {why}", member.part),
            };
            if let Ok(spare) = spare {
                let channel = Channel::<FromChild, ToChild>::new(spare, CONTROL_MAX);
                // The supervisor will see the exit, should it not hear why.
                let _ = channel.send(&FromChild::Failed { why }, None);
            }
            end(EXIT_NOT_STARTED)
        };
        copy_of_this_process(Box::new(body)).map_err(StartError::Clone)
    }

    /// Runs in the child; returns only what went wrong.
    fn become_child(&self, member: &Member, order: &Order, wanted: &Wanted<'_>) -> String {
        let (program, title) = match &member.part {
            Part::Frontend => (&self.frontend, FRONTEND.to_owned()),
            Part::Worker(class) => (&self.worker, format!("{WORKER}: {class}")),
            Part::Registry => (&self.registry, REGISTRY.to_owned()),
            Part::Builder(class) => (&self.builder, format!("{BUILDER}: {class}")),
            Part::Exporter => (&self.exporter, EXPORTER.to_owned()),
            Part::Gateway => (&self.gateway, GATEWAY.to_owned()),
        };
        let program = match launch::place(&wanted.numbered(self), program.as_fd()) {
            Ok(program) => program,
            Err(why) => return format!("place descriptors: {why}"),
        };
        let Order { open_files, processes, build, .. } = *order;
        let limits = ConfiguredLimits { open_files, processes, build };
        let (role, identity) = (member.part.role(), (member.uid, member.gid));
        if let Err(why) = surrender(role, identity, self.isolation, &limits, self.supervisor.as_raw()) {
            return why.to_string();
        }
        let why = launch::exec(&program, &title);
        format!("run portcullis-{role}: {why}")
    }
}

/// Moves this process to the control group of this `cgroup.procs`. May it? The kernel asks who opened the file.
fn enter(group: &OwnedFd) -> Result<(), Errno> {
    nix::unistd::write(group, b"0").map(drop)
}

/// The descriptors of one child.
struct Wanted<'a> {
    control: &'a OwnedFd,
    assignment: &'a OwnedFd,
    /// None to two, of a gateway as many as it has listeners and one.
    more: &'a [OwnedFd],
    accounts: Option<&'a OwnedFd>,
}

impl Wanted<'_> {
    /// 0 is /dev/null, 1 and 2 are our stderr, the rest is as [`fd`] says.
    fn numbered<'a>(&'a self, nursery: &'a Nursery) -> Vec<(BorrowedFd<'a>, i32)> {
        let mut numbered = vec![
            (nursery.null.as_fd(), 0),
            (nursery.stderr.as_fd(), 1),
            (nursery.stderr.as_fd(), 2),
            (self.control.as_fd(), fd::CONTROL),
            (self.assignment.as_fd(), fd::ASSIGNMENT),
        ];
        numbered.extend(self.more.iter().map(AsFd::as_fd).zip(fd::FIRST..));
        numbered.extend(self.accounts.map(|accounts| (accounts.as_fd(), fd::ACCOUNTS)));
        numbered
    }
}

/// As fork(2), but the child is a child of the supervisor, which waits for it and whose death is its end.
///
/// JUSTIFICATION: fork cannot give its child another parent.
#[expect(unsafe_code, reason = "clone has no safe form")]
fn copy_of_this_process(body: nix::sched::CloneCb<'_>) -> Result<Pid, Errno> {
    let mut stack = vec![0; STACK];
    // SAFETY: no memory is shared (no CLONE_VM), so the child has a copy of this stack and of everything else; this
    // process has one thread (checked by `sandbox::Given`), so no lock is held by another one and the child may allocate.
    // The child leaves by exec or `end` only, so nothing that it owns below the numbers it gave away is ever dropped.
    // With CLONE_PARENT the kernel takes the signal of the spawner's own end, which is SIGCHLD too.
    unsafe { clone(body, &mut stack, CloneFlags::CLONE_PARENT, Some(Signal::SIGCHLD as i32)) }
}
