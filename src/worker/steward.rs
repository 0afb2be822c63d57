//! The worker's main thread once it serves: it takes connections from the frontend, gives them to executors, gives
//! them back when the process retires, and answers the supervisor. It runs no guests and reads no client.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::executor::{Adopted, FromExecutor, Shared, ToExecutor};
use super::load::Supply;
use super::mailbox::Mailbox;
use super::outbound::Outbound;
use super::parts;
use super::policies::PolicySet;
use super::threads::Release;
use crate::artifact::Digest;
use crate::decision::{PolicyName, Tenant};
use crate::engine::monotonic_ns;
use crate::sandbox::Sealed;
use crate::wire::channel::{Channel, ReceiveError, Received, SendError};
use crate::wire::client::CLIENT_FRAME_MAX;
use crate::wire::control::{FromChild, ToChild};
use crate::wire::handover::{Cookie, FromWorker, ToWorker, UNREAD_CHUNK};
use crate::wire::operator::{PolicyStatus, WorkerCounters, WorkerStatus};
use crate::wire::supply::FromRegistry;

/// Most unread bytes that come with a connection: a frame that is not whole yet, and one read.
const UNREAD_MAX: usize = CLIENT_FRAME_MAX + (128 << 10);
/// An executor that has been in one step for that long does not count as answering.
const UNRESPONSIVE_NS: u64 = 50_000_000;

/// Which descriptor has something.
const CONTROL: u64 = 0;
const HANDOVER: u64 = 1;
const MAILBOX: u64 = 2;
const SUPPLY: u64 = 3;

/// What the steward looks after.
pub(super) struct Parts {
    pub(super) control: Arc<Channel<FromChild, ToChild>>,
    pub(super) handover: Channel<FromWorker, ToWorker>,
    pub(super) supply: Supply,
    pub(super) mailbox: Arc<Mailbox<FromExecutor>>,
    pub(super) executors: Vec<Arc<Shared>>,
    /// Holds the executors back until the witness is satisfied.
    pub(super) release: Option<Release>,
    pub(super) set: Arc<PolicySet>,
    pub(super) status: WorkerStatus,
    pub(super) policies: Vec<PolicyStatus>,
    pub(super) renewal: Renewal,
}

/// When this process asks for a successor; 0 means never.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewal {
    pub(super) after_decisions: u64,
    pub(super) at_ns: u64,
}

pub(super) struct Steward {
    parts: Parts,
    epoll: Epoll,
    buffer: Vec<u8>,
    /// The connection whose unread bytes are still on their way.
    arriving: Option<(Adopted, usize)>,
    /// What the frontend has not taken yet, in order.
    outbox: VecDeque<(FromWorker, Option<Arc<Outbound>>)>,
    next_executor: usize,
    retiring: Option<Retiring>,
    asked_for_renewal: bool,
    /// A ping that could not be answered yet.
    owed: Option<u64>,
}

/// On the way out.
#[derive(Debug, Clone, Copy)]
struct Retiring {
    executors_left: usize,
    /// The frontend is there to take connections back.
    give_back: bool,
}

/// Why the process ends before it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum StewardError {
    #[error("frontend misbehaved: {0}")]
    FrontendMisbehaved(&'static str),
    #[error("registry misbehaved: {0}")]
    RegistryMisbehaved(&'static str),
    #[error("supply channel: {0}")]
    Supply(#[source] ReceiveError),
    #[error("handover channel: {0}")]
    Handover(#[source] ReceiveError),
    #[error("control channel: {0}")]
    Control(#[source] ReceiveError),
    #[error("send: {0}")]
    Send(#[from] SendError),
    #[error("wait for events: {0}")]
    Wait(#[from] Errno),
}

impl Steward {
    /// Before sealing: makes an epoll descriptor.
    pub(super) fn new(parts: Parts) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(parts.control.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))?;
        epoll.add(parts.handover.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, HANDOVER))?;
        epoll.add(parts.supply.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, SUPPLY))?;
        epoll.add(parts.mailbox.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, MAILBOX))?;
        Ok(Self {
            parts,
            epoll,
            buffer: Vec::new(),
            arriving: None,
            outbox: VecDeque::new(),
            next_executor: 0,
            retiring: None,
            asked_for_renewal: false,
            owed: None,
        })
    }

    /// Serves until the process is to end. Takes the proof that the sandbox is in force.
    pub(super) fn serve(mut self, _sealed: Sealed) -> Result<(), StewardError> {
        let outcome = self.look_after();
        // The process ends now. A sealed worker may not close its three channels: their numbers are what the profile knows
        // them by, and nothing else may ever have those.
        std::mem::forget(self);
        outcome
    }

    fn look_after(&mut self) -> Result<(), StewardError> {
        let mut events = [EpollEvent::empty(); 4];
        loop {
            let patience = if self.owed.is_some() { EpollTimeout::from(5_u8) } else { EpollTimeout::NONE };
            let ready = match self.epoll.wait(&mut events, patience) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.iter().take(ready) {
                match event.data() {
                    CONTROL => {
                        if self.on_control()? == Flow::Exit {
                            return Ok(());
                        }
                    }
                    HANDOVER => self.on_handover()?,
                    SUPPLY => self.on_supply()?,
                    _ => self.on_mail(),
                }
            }
            if let Some(nonce) = self.owed.take() {
                self.answer_ping(nonce)?;
            }
            self.send_outbox()?;
            if self.retiring.is_some_and(|retiring| retiring.executors_left == 0) && self.outbox.is_empty() {
                return Ok(());
            }
        }
    }

    fn on_control(&mut self) -> Result<Flow, StewardError> {
        loop {
            match self.parts.control.receive(&mut self.buffer).map_err(StewardError::Control)? {
                Received::Nothing => return Ok(Flow::Continue),
                // Without the supervisor nobody witnesses, restarts or stops this process.
                Received::End => return Ok(Flow::Exit),
                Received::Message(ToChild::Ping { nonce }, _) => self.answer_ping(nonce)?,
                Received::Message(ToChild::Drain, _) => self.retire(true),
                Received::Message(ToChild::Serve, _) => {
                    if let Some(release) = self.parts.release.take() {
                        release.release();
                    }
                }
                // For others; nothing to do here.
                Received::Message(
                    ToChild::Route { .. }
                    | ToChild::Processes(_)
                    | ToChild::Reassign
                    | ToChild::Supply { .. }
                    | ToChild::Builder { .. }
                    | ToChild::NoBuilder { .. }
                    | ToChild::Accounts { .. }
                    | ToChild::Visits { .. },
                    _,
                ) => {}
            }
        }
    }

    fn answer_ping(&mut self, nonce: u64) -> Result<(), StewardError> {
        let now = monotonic_ns();
        let stuck = |executor: &Arc<Shared>| {
            let began = executor.step_began_ns.load(Ordering::Relaxed);
            began != 0 && now.saturating_sub(began) > UNRESPONSIVE_NS
        };
        // Until then silence is the answer: the supervisor replaces a process that does not serve.
        if self.parts.executors.iter().any(stuck) {
            self.owed = Some(nonce);
            return Ok(());
        }
        self.parts.control.send(&FromChild::Pong { nonce }, None)?;
        let Renewal { after_decisions, at_ns } = self.parts.renewal;
        let old = at_ns != 0 && now >= at_ns;
        let busy = || {
            let counters = self.counters();
            after_decisions != 0 && counters.allowed + counters.denied >= after_decisions
        };
        if !self.asked_for_renewal && self.retiring.is_none() && (old || busy()) {
            self.parts.control.send(&FromChild::Renew, None)?;
            self.asked_for_renewal = true;
        }
        Ok(())
    }

    fn on_supply(&mut self) -> Result<(), StewardError> {
        loop {
            match self.parts.supply.receive(&mut self.buffer).map_err(StewardError::Supply)? {
                Received::Nothing => return Ok(()),
                Received::End => {
                    // What serves was good when the registry went; its successor will see to a successor of this process.
                    let _ = self.epoll.delete(self.parts.supply.as_fd());
                    return Ok(());
                }
                Received::Message(FromRegistry::Withdraw { tenant, policy, cwasm }, None) => {
                    self.withdraw(&tenant, &policy, cwasm);
                }
                Received::Message(..) => {
                    return Err(StewardError::RegistryMisbehaved("it supplies more after all there was"));
                }
            }
        }
    }

    /// No decision of that policy leaves this process any more.
    fn withdraw(&mut self, tenant: &Tenant, policy: &PolicyName, cwasm: Digest) {
        if !self.parts.set.withdraw(tenant, policy, cwasm) {
            return;
        }
        tracing::warn!(%tenant, %policy, %cwasm, "policy withdrawn");
        for executor in &self.parts.executors {
            executor.mailbox.put(ToExecutor::Withdrawn);
        }
        let of_it = |status: &&mut PolicyStatus| status.tenant == *tenant && status.policy == *policy;
        if let Some(status) = self.parts.policies.iter_mut().find(of_it) {
            status.serving = None;
            status.refused = Some("withdrawn by the registry: revoked or expired".to_owned());
        }
    }

    fn on_handover(&mut self) -> Result<(), StewardError> {
        loop {
            match self.parts.handover.receive(&mut self.buffer).map_err(StewardError::Handover)? {
                Received::Nothing => return Ok(()),
                Received::End => {
                    // The frontend is gone: nobody takes connections back, and the supervisor starts over.
                    let _ = self.epoll.delete(self.parts.handover.as_fd());
                    self.outbox.clear();
                    self.retire(false);
                    return Ok(());
                }
                Received::Message(ToWorker::Adopt { cookie, uid: _, tenants, unread }, Some(fd)) => {
                    self.adopt(fd, cookie, &tenants, unread)?;
                }
                Received::Message(ToWorker::Unread(bytes), None) => self.unread(&bytes)?,
                Received::Message(ToWorker::Drain, None) => self.retire(true),
                Received::Message(ToWorker::Status { nonce }, None) => self.report(nonce),
                Received::Message(ToWorker::Adopt { .. }, None) => {
                    return Err(StewardError::FrontendMisbehaved("a connection without its descriptor"));
                }
                Received::Message(_, Some(_)) => {
                    return Err(StewardError::FrontendMisbehaved(
                        "a descriptor that belongs to no connection",
                    ));
                }
            }
        }
    }

    fn adopt(
        &mut self,
        socket: OwnedFd,
        cookie: Cookie,
        tenants: &[Tenant],
        unread: u32,
    ) -> Result<(), StewardError> {
        if self.arriving.is_some() {
            return Err(StewardError::FrontendMisbehaved("a connection before the last one's bytes"));
        }
        let unread = unread as usize;
        if unread > UNREAD_MAX {
            return Err(StewardError::FrontendMisbehaved("more unread bytes than a connection can have"));
        }
        let outbound = Arc::new(Outbound::new(socket));
        let adopted = Adopted {
            outbound,
            cookie,
            grant: self.parts.set.grant(tenants),
            unread: Vec::with_capacity(unread),
        };
        self.arriving = Some((adopted, unread));
        self.pass_on_if_complete();
        Ok(())
    }

    fn unread(&mut self, bytes: &[u8]) -> Result<(), StewardError> {
        let Some((adopted, expected)) = self.arriving.as_mut() else {
            return Err(StewardError::FrontendMisbehaved("unread bytes of no connection"));
        };
        if bytes.is_empty() || adopted.unread.len() + bytes.len() > *expected {
            return Err(StewardError::FrontendMisbehaved("not the unread bytes it announced"));
        }
        adopted.unread.extend_from_slice(bytes);
        self.pass_on_if_complete();
        Ok(())
    }

    /// Gives a connection that has arrived whole to the next executor in turn.
    fn pass_on_if_complete(&mut self) {
        let Some((adopted, _)) =
            self.arriving.take_if(|(adopted, expected)| adopted.unread.len() >= *expected)
        else {
            return;
        };
        let count = self.parts.executors.len().max(1);
        let least = |executor: &&Arc<Shared>| executor.counters.connections.get();
        // By number of connections; counts lag behind a burst of adoptions, so ties and near ties go round.
        let start = self.next_executor % count;
        let executor = self.parts.executors.iter().cycle().skip(start).take(count).min_by_key(least);
        self.next_executor = start + 1;
        if let Some(executor) = executor {
            executor.mailbox.put(ToExecutor::Adopt(adopted));
        }
    }

    /// Stops taking work: every executor lets go of its connections as soon as they are quiet.
    fn retire(&mut self, give_back: bool) {
        match &mut self.retiring {
            Some(retiring) if retiring.give_back && !give_back => retiring.give_back = false,
            Some(_) => return,
            None => {
                self.retiring = Some(Retiring { executors_left: self.parts.executors.len(), give_back });
            }
        }
        for executor in &self.parts.executors {
            executor.mailbox.put(ToExecutor::Drain { give_back });
        }
    }

    fn on_mail(&mut self) {
        let frontend_is_there = self.retiring.is_none_or(|retiring| retiring.give_back);
        for message in self.parts.mailbox.take() {
            match message {
                FromExecutor::Return { outbound, cookie, unread } if frontend_is_there => {
                    let length = u32::try_from(unread.len()).unwrap_or(u32::MAX);
                    self.outbox.push_back((FromWorker::Return { cookie, unread: length }, Some(outbound)));
                    for chunk in unread.chunks(UNREAD_CHUNK) {
                        self.outbox.push_back((FromWorker::Unread(chunk.to_vec()), None));
                    }
                }
                FromExecutor::Closed { cookie } if frontend_is_there => {
                    self.outbox.push_back((FromWorker::Closed { cookie }, None));
                }
                FromExecutor::Return { .. } | FromExecutor::Closed { .. } => {}
                FromExecutor::Drained => {
                    if let Some(retiring) = &mut self.retiring {
                        retiring.executors_left = retiring.executors_left.saturating_sub(1);
                        if retiring.executors_left == 0 && retiring.give_back {
                            self.outbox.push_back((FromWorker::Drained, None));
                        }
                    }
                }
            }
        }
    }

    /// Sends what the frontend takes now. A connection is ours until it is sent; then our copy is closed.
    fn send_outbox(&mut self) -> Result<(), StewardError> {
        let before = self.outbox.is_empty();
        while let Some((message, outbound)) = self.outbox.front() {
            match self.parts.handover.send(message, outbound.as_ref().map(|outbound| outbound.as_fd())) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(SendError::Full) => break,
                Err(SendError::Closed) => {
                    self.outbox.clear();
                    self.retire(false);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !before {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, !self.outbox.is_empty());
            self.epoll.modify(self.parts.handover.as_fd(), &mut EpollEvent::new(flags, HANDOVER))?;
        }
        Ok(())
    }

    fn counters(&self) -> WorkerCounters {
        let mut total = WorkerCounters::default();
        self.parts.executors.iter().for_each(|executor| executor.counters.add_to(&mut total));
        total
    }

    /// The same with what the policy has counted until now.
    fn counted(&self, status: &PolicyStatus) -> PolicyStatus {
        let mut status = status.clone();
        let served = self.parts.set.tenant(status.tenant.as_str());
        if let Some(served) = served.and_then(|(_, of)| of.policy(status.policy.as_str())) {
            let metrics = served.policy().metrics();
            status.metrics = metrics.values().map(|(name, value)| (name.to_owned(), value)).collect();
            status.metrics_dropped = metrics.dropped();
        }
        status
    }

    fn report(&mut self, nonce: u64) {
        let status = WorkerStatus { counters: self.counters(), ..self.parts.status.clone() };
        let counted = self.parts.policies.iter().map(|policy| self.counted(policy)).collect::<Vec<_>>();
        let parts = parts::of(counted);
        let count = parts.len();
        for (number, policies) in parts.into_iter().enumerate() {
            let part = WorkerStatus { policies, ..status.clone() };
            self.outbox.push_back((FromWorker::Status { nonce, part, last: number + 1 == count }, None));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Exit,
}
