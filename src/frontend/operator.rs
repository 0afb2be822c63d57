//! The operators' socket: one question, one answer, put together from the supervisor's table of processes, our own
//! counters and what each current worker says within a second.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::socket::{MsgFlags, send};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::handover::Outgoing;
use super::hello::read_frame;
use super::routes::{Link, LinkId, Routes};
use super::takeback::WorkerMisbehaved;
use crate::decision::TrustClass;
use crate::wire::control::ProcessTable;
use crate::wire::frame;
use crate::wire::handover::STATUS_PARTS_MAX;
use crate::wire::operator::{
    FrontendCounters, OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest, Status,
    Untold, UntoldWhy, WorkerStatus,
};

/// Operators that are attended to at the same time; more are turned away.
pub(super) const OPERATORS_MAX: usize = 16;
/// For an operator to ask, and to take the answer.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(5);
/// For the workers to answer; one that does not is said to be silent.
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);

/// What an answer has room for beside processes and counters, bytes.
const POLICIES_MAX: usize = OPERATOR_REPLY_MAX - (4 << 20);

/// Where an operator's question waits for its answer.
pub(super) type Ask = oneshot::Sender<Status>;

/// Attends to one operator, whose UID is permitted.
pub(super) async fn attend(stream: UnixStream, asks: mpsc::Sender<Ask>) {
    let mut buffer = [0; OPERATOR_REQUEST_MAX];
    let request = timeout(OPERATOR_TIMEOUT, read_frame(&stream, &mut buffer)).await;
    let Ok(Ok(request)) = request else { return debug!("operator did not ask") };
    match frame::decode(request) {
        Ok(OperatorRequest::Status) => {}
        Err(error) => return debug!(%error, "operator's request"),
    }
    let (ask, answer) = oneshot::channel();
    if asks.send(ask).await.is_err() {
        return;
    }
    let Ok(status) = answer.await else { return };
    if timeout(OPERATOR_TIMEOUT, send_all(&stream, &encoded(status))).await.is_err() {
        debug!("operator did not take the answer");
    }
}

/// One attempt to say so; the caller closes the connection.
pub(super) fn refuse(stream: &UnixStream) {
    let mut reply = BytesMut::new();
    if frame::encode_frame(&OperatorReply::NotPermitted, &mut reply, OPERATOR_REPLY_MAX).is_ok() {
        let _ = send(stream.as_raw_fd(), &reply, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

fn encoded(mut status: Status) -> BytesMut {
    let mut reply = BytesMut::new();
    if frame::encode_frame(&OperatorReply::Status(status.clone()), &mut reply, OPERATOR_REPLY_MAX).is_err() {
        make_room(&mut status);
        let _ = frame::encode_frame(&OperatorReply::Status(status), &mut reply, OPERATOR_REPLY_MAX);
    }
    reply
}

/// More policies than an answer has room for: the counters are still worth seeing. Whoever says most goes without first, so
/// that no worker can hide what the others serve.
fn make_room(status: &mut Status) {
    let mut said: BTreeMap<(TrustClass, u64), usize> = BTreeMap::new();
    for part in &status.workers {
        let bytes =
            frame::encode(&part.policies, OPERATOR_REPLY_MAX).map_or(OPERATOR_REPLY_MAX, |all| all.len());
        let of = said.entry((part.class.clone(), part.generation)).or_default();
        *of = of.saturating_add(bytes);
    }
    let mut all = said.values().fold(0_usize, |all, bytes| all.saturating_add(*bytes));
    let mut by_size: Vec<_> = said.into_iter().collect();
    by_size.sort_by_key(|(_, bytes)| Reverse(*bytes));
    for ((class, generation), bytes) in by_size {
        if all <= POLICIES_MAX {
            return;
        }
        all = all.saturating_sub(bytes);
        let of_it = |part: &&mut WorkerStatus| (&part.class, part.generation) == (&class, generation);
        status.workers.iter_mut().filter(of_it).for_each(|part| part.policies.clear());
        status.untold.push(Untold { class, generation, why: UntoldWhy::TooManyPolicies });
    }
}

async fn send_all(stream: &UnixStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        if stream.writable().await.is_err() {
            return;
        }
        let sent = stream.try_io(Interest::WRITABLE, || {
            Ok(send(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
        });
        match sent {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => {}
                _ => return,
            },
        }
    }
}

/// Puts answers together, one at a time. Whoever asks meanwhile is answered by the next one: what was there before the
/// question is in the answer.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) processes: ProcessTable,
    supervisor_pid: i32,
    /// For the next answer.
    waiting: Vec<Ask>,
    gathering: Option<Gathering>,
    last_nonce: u64,
}

#[derive(Debug)]
struct Gathering {
    nonce: u64,
    until: Instant,
    asks: Vec<Ask>,
    /// As they were when the workers were asked: those that came since, and what is said of a reload that brought them,
    /// are not in this answer.
    processes: ProcessTable,
    /// Have not said everything yet.
    missing: HashSet<LinkId>,
    workers: Vec<WorkerStatus>,
    untold: Vec<Untold>,
}

impl Desk {
    pub(super) fn new(supervisor_pid: i32) -> Self {
        Self {
            processes: ProcessTable::default(),
            supervisor_pid,
            waiting: Vec::new(),
            gathering: None,
            last_nonce: 0,
        }
    }

    /// Somebody wants to know.
    pub(super) fn ask(&mut self, ask: Ask, routes: &mut Routes) {
        self.waiting.push(ask);
        self.gather(routes);
    }

    /// Asks the workers, for everybody who waits.
    fn gather(&mut self, routes: &mut Routes) {
        if self.gathering.is_some() || self.waiting.is_empty() {
            return;
        }
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        let mut gathering = Gathering {
            nonce,
            until: Instant::now() + WORKER_TIMEOUT,
            asks: std::mem::take(&mut self.waiting),
            processes: self.processes.clone(),
            missing: HashSet::new(),
            workers: Vec::new(),
            untold: Vec::new(),
        };
        for (id, link) in routes.each_current() {
            // One that still owes an earlier answer is not asked again.
            if link.asked.is_none() && link.send(Outgoing::Status { nonce }).is_ok() {
                link.asked = Some(nonce);
                link.parts = 0;
                gathering.missing.insert(id);
            } else {
                gathering.untold.push(silent(link));
            }
        }
        self.gathering = Some(gathering);
    }

    /// A part of a worker's answer.
    pub(super) fn hear(
        &mut self,
        id: LinkId,
        link: &mut Link,
        nonce: u64,
        part: WorkerStatus,
        last: bool,
    ) -> Result<(), WorkerMisbehaved> {
        link.parts = link.parts.saturating_add(1);
        if link.asked != Some(nonce) || link.parts > STATUS_PARTS_MAX {
            return Err(WorkerMisbehaved::Status);
        }
        if last {
            link.asked = None;
        }
        if let Some(gathering) = self.gathering.as_mut().filter(|gathering| gathering.nonce == nonce)
            && gathering.missing.contains(&id)
        {
            if last {
                gathering.missing.remove(&id);
            }
            // Which worker it is we know better than it does.
            gathering.workers.push(WorkerStatus {
                class: link.class.clone(),
                generation: link.generation,
                ..part
            });
        }
        Ok(())
    }

    /// When [`Self::answer`] has something to do at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.gathering.as_ref().map(|gathering| gathering.until)
    }

    /// Answers whom it was put together for, if all workers have spoken, are gone, or had their time; then begins the next.
    pub(super) fn answer(&mut self, routes: &mut Routes, counters: FrontendCounters, now: Instant) {
        let complete = |gathering: &mut Gathering| {
            gathering.missing.retain(|id| routes.get(*id).is_some_and(|link| !link.is_cut()));
            gathering.missing.is_empty() || gathering.until <= now
        };
        let Some(gathered) = self.gathering.take_if(complete) else { return };
        let Gathering { asks, processes, missing, mut workers, mut untold, .. } = gathered;
        for link in missing.iter().filter_map(|id| routes.get(*id)) {
            workers.retain(|worker| (&worker.class, worker.generation) != (&link.class, link.generation));
            untold.push(silent(link));
        }
        workers.sort_by(|one, other| (&one.class, one.generation).cmp(&(&other.class, other.generation)));
        untold.sort_by(|one, other| (&one.class, one.generation).cmp(&(&other.class, other.generation)));
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supervisor_pid: self.supervisor_pid,
            processes,
            frontend: counters,
            workers,
            untold,
        };
        for ask in asks {
            // An operator who has left does not need it.
            let _ = ask.send(status.clone());
        }
        self.gather(routes);
    }
}

/// A worker that does not say anything, or not all of it.
fn silent(link: &Link) -> Untold {
    Untold { class: link.class.clone(), generation: link.generation, why: UntoldWhy::NoAnswer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{PolicyName, Tenant};
    use crate::wire::frame::PREFIX;
    use crate::wire::operator::{PolicyStatus, WorkerCounters};

    /// A part of a worker's answer, with one policy and a reason of so many bytes.
    fn part(class: &str, reason: usize) -> WorkerStatus {
        let policy = PolicyStatus {
            tenant: Tenant::new("acme").unwrap(),
            policy: PolicyName::new("gate").unwrap(),
            serving: None,
            held_back: None,
            refused: Some("x".repeat(reason)),
            metrics: BTreeMap::new(),
            metrics_dropped: 0,
        };
        WorkerStatus {
            class: TrustClass::new(class).unwrap(),
            generation: 1,
            pagemap_scan: true,
            stack_zeroing: true,
            counters: WorkerCounters { allowed: 7, ..WorkerCounters::default() },
            policies: vec![policy],
        }
    }

    fn told(workers: Vec<WorkerStatus>) -> (Vec<WorkerStatus>, Vec<Untold>) {
        let status = Status {
            version: "1".into(),
            supervisor_pid: 1,
            processes: ProcessTable::default(),
            frontend: FrontendCounters::default(),
            workers,
            untold: Vec::new(),
        };
        match frame::decode(&encoded(status)[PREFIX..]).unwrap() {
            OperatorReply::Status(status) => (status.workers, status.untold),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_worker_that_says_as_much_as_it_may_hides_nothing_of_the_others() {
        let loud = || (0..STATUS_PARTS_MAX).map(|_| part("loud", 63 << 10));
        let quiet = part("quiet", 100);
        let others: Vec<_> = (0..10).map(|_| part("more", 60 << 10)).chain([quiet.clone()]).collect();
        let (all, untold) = told(loud().chain(others.clone()).collect());
        assert_eq!(all[STATUS_PARTS_MAX..], others);
        for part in &all[..STATUS_PARTS_MAX] {
            assert_eq!((part.policies.len(), part.counters.allowed), (0, 7), "its counters are still there");
        }
        let class = TrustClass::new("loud").unwrap();
        assert_eq!(untold, [Untold { class, generation: 1, why: UntoldWhy::TooManyPolicies }]);
        // The control: as long as there is room, everything is told.
        let few: Vec<_> = loud().take(100).chain([quiet]).collect();
        assert_eq!(told(few.clone()), (few, Vec::new()));
    }
}
