//! The frontend: accepts, learns who it is, reads one Hello, and hands the connection to its class's worker. It never
//! sees a request.
//!
//! ```text
//! accept -> peer -> hello -> grant -> handover ==> worker
//!                              ^                     |
//!                              +----- takeback <=====+   when a generation ends
//! ```
//!
//! One thread. [`Switchboard`] owns everything about connections; the tasks around it (one greets each new connection,
//! one looks after each worker's channel, one attends to each operator) own a descriptor and send it news.

mod accept;
mod grant;
mod handover;
mod hello;
mod operator;
mod peer;
mod routes;
mod switchboard;
mod table;
mod takeback;
#[cfg(test)]
mod tests;
mod visits;

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use self::accept::Door;
use self::hello::{Greeting, Outcome, greet, say_farewell};
use self::operator::{Ask, Desk, OPERATORS_MAX, attend};
use self::peer::Peer;
use self::routes::{News, What};
use self::switchboard::{Limits, Switchboard};
use self::visits::{Judged, Left, Visitor};
use crate::journal;
use crate::sandbox::{self, Given, Places, Role, SealError, Sealed};
use crate::wire::assignment::{self, AssignmentError};
use crate::wire::channel::{Channel, ReceiveError, Received, SendError, take_inherited};
use crate::wire::control::{CONTROL_MAX, FromChild, FrontendAssignment, Ready, ToChild, fd};
use crate::wire::polled::Polled;

/// News of workers that are on their way to the switchboard; a worker that says more waits.
const NEWS_MAX: usize = 64;

type Control = Channel<FromChild, ToChild>;

/// Why the frontend cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
enum FrontendError {
    #[error("take inherited descriptors: {0}")]
    Inherited(#[source] io::Error),
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    #[error("seal: {0}")]
    Seal(#[from] SealError),
    #[error("start event loop: {0}")]
    Runtime(#[source] io::Error),
    #[error("tell the supervisor: {0}")]
    Tell(#[source] SendError),
    #[error("listen to the supervisor: {0}")]
    Listen(#[from] ReceiveError),
    #[error("the supervisor is gone")]
    SupervisorGone,
}

/// The whole life of the process.
pub fn main() -> ExitCode {
    sandbox::install_panic_hook(Role::Frontend);
    sandbox::settle_allocator();
    journal::start("frontend");
    let outcome = take(fd::CONTROL).and_then(|control| {
        let control = Channel::new(control, CONTROL_MAX);
        let (sealed, runtime, frontend) = start(&control)?;
        serve(sealed, &runtime, frontend, control)
    });
    match outcome {
        Ok(()) => sandbox::end(0),
        Err(error) => {
            error!(%error, "frontend ends");
            sandbox::end(1)
        }
    }
}

fn take(number: i32) -> Result<OwnedFd, FrontendError> {
    take_inherited(number).map_err(FrontendError::Inherited)
}

/// Up to Ready. If something goes wrong, the supervisor is told what.
fn start(control: &Control) -> Result<(Sealed, Runtime, Frontend), FrontendError> {
    match prepare_and_seal() {
        Ok((sealed, ready, runtime, frontend)) => {
            control.send(&FromChild::Ready(ready), None).map_err(FrontendError::Tell)?;
            Ok((sealed, runtime, frontend))
        }
        Err(error) => {
            // It may be gone itself.
            let _ = control.send(&FromChild::Failed { why: error.to_string() }, None);
            Err(error)
        }
    }
}

fn prepare_and_seal() -> Result<(Sealed, Ready, Runtime, Frontend), FrontendError> {
    sandbox::check_inherited(Role::Frontend)?;
    let assignment: FrontendAssignment = assignment::read(take(fd::ASSIGNMENT)?)?;
    let (clients, operators) = (take(fd::FIRST)?, take(fd::SECOND)?);
    let given = Given::check(Role::Frontend, assignment.uid, assignment.gid, assignment.isolation)?;
    // The event loop's descriptors are made while that is still possible.
    let runtime =
        Builder::new_current_thread().enable_io().enable_time().build().map_err(FrontendError::Runtime)?;
    let frontend = {
        let _within = runtime.enter();
        let supervisor_pid = nix::unistd::getppid().as_raw();
        Frontend::new(assignment, clients.into(), operators.into(), supervisor_pid)
            .map_err(FrontendError::Runtime)?
    };
    let confined = given.confine(&Places::default())?;
    let landlock_abi = confined.landlock_abi();
    sandbox::prove_landlock()?;
    let sealed = confined.seal()?;
    let ready =
        Ready { loaded: 0, refused: 0, pagemap_scan: false, landlock_abi, landlock_proven_threads: 1 };
    Ok((sealed, ready, runtime, frontend))
}

fn serve(
    _sealed: Sealed,
    runtime: &Runtime,
    frontend: Frontend,
    control: Control,
) -> Result<(), FrontendError> {
    runtime.block_on(frontend.run(control))
}

/// The event loop and what it waits for.
struct Frontend {
    uid: u32,
    operator_uids: Vec<u32>,
    hello_timeout: Duration,
    /// Closed for good when draining.
    clients: Option<Door>,
    operators: Door,
    /// Nobody is accepted before the supervisor says so.
    serving: bool,
    closing: watch::Sender<bool>,
    board: Switchboard,
    desk: Desk,
    news: mpsc::Receiver<News>,
    greetings: JoinSet<Greeting>,
    errands: JoinSet<()>,
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    /// What gateways bring; closed for good when draining.
    visits: (mpsc::Sender<Visitor>, mpsc::Receiver<Visitor>),
    visited: JoinSet<Left>,
}

impl Frontend {
    /// Must be called within the runtime.
    fn new(
        assignment: FrontendAssignment,
        clients: UnixListener,
        operators: UnixListener,
        supervisor_pid: i32,
    ) -> io::Result<Self> {
        let limits = limits(&assignment);
        let (news_sender, news) = mpsc::channel(NEWS_MAX);
        Ok(Self {
            uid: assignment.uid,
            operator_uids: assignment.operators,
            hello_timeout: Duration::from_millis(assignment.hello_timeout_ms.into()),
            clients: Some(Door::new(clients)?),
            operators: Door::new(operators)?,
            serving: false,
            closing: watch::Sender::new(false),
            board: Switchboard::new(assignment.tenants, limits, news_sender),
            desk: Desk::new(supervisor_pid),
            news,
            greetings: JoinSet::new(),
            errands: JoinSet::new(),
            asks: mpsc::channel(OPERATORS_MAX),
            visits: visits::arrivals(),
            visited: JoinSet::new(),
        })
    }

    /// Until the supervisor has it drain and nothing is left.
    async fn run(mut self, control: Control) -> Result<(), FrontendError> {
        let control = Polled::new(control).map_err(FrontendError::Runtime)?;
        let mut buffer = Vec::new();
        while !(self.board.is_drained() && self.greetings.is_empty()) {
            let deadline =
                [self.board.next_deadline(), self.desk.next_deadline()].into_iter().flatten().min();
            tokio::select! {
                message = control.receive(&mut buffer) => {
                    let (message, descriptor) = message?.ok_or(FrontendError::SupervisorGone)?;
                    self.heed(&control, message, descriptor)?;
                }
                Some(news) = self.news.recv() => {
                    // What the supervisor said before counts first: a return is legal after Drain only.
                    self.heed_all_there_is(&control, &mut buffer)?;
                    self.hear(news);
                }
                Some(greeting) = self.greetings.join_next() => {
                    self.board.greeted(finished(greeting));
                    if let Some(door) = &mut self.clients {
                        door.reopen();
                    }
                }
                stream = next_at(self.clients.as_mut()), if self.serving => self.arrived(stream),
                Some(visitor) = self.visits.1.recv(), if self.serving => self.visited_by(visitor),
                Some(left) = self.visited.join_next() => tell_if_cut(&control, &finished(left))?,
                stream = self.operators.next(), if self.serving => self.operator_arrived(stream),
                Some(ask) = self.asks.1.recv() => self.desk.ask(ask, &mut self.board.routes),
                Some(done) = self.errands.join_next() => finished(done),
                () = until(deadline) => self.board.expire(Instant::now()),
            }
            let counters = self.board.counters();
            self.desk.answer(&mut self.board.routes, counters, Instant::now());
        }
        info!("drained");
        Ok(())
    }

    fn heed_all_there_is(
        &mut self,
        control: &Polled<FromChild, ToChild>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), FrontendError> {
        loop {
            match control.try_receive(buffer)? {
                Received::Message(message, descriptor) => self.heed(control, message, descriptor)?,
                Received::Nothing => return Ok(()),
                Received::End => return Err(FrontendError::SupervisorGone),
            }
        }
    }

    fn heed(
        &mut self,
        control: &Polled<FromChild, ToChild>,
        message: ToChild,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), FrontendError> {
        match (message, descriptor) {
            (ToChild::Serve, _) => self.serving = true,
            (ToChild::Ping { nonce }, _) => match control.try_send(&FromChild::Pong { nonce }) {
                // It has not read hundreds of answers; it will not miss this one.
                Ok(()) | Err(SendError::Full) => {}
                Err(error) => return Err(FrontendError::Tell(error)),
            },
            (ToChild::Drain, _) => self.drain(),
            (ToChild::Route { class, generation }, Some(channel)) => {
                self.board.route(class, generation, channel);
            }
            (ToChild::Visits { uid, generation }, Some(channel)) if self.clients.is_some() => {
                self.visited.spawn(visits::receive(channel, uid, generation, self.visits.0.clone()));
            }
            (ToChild::Visits { .. }, Some(_)) => {}
            (ToChild::Processes(table), _) => self.desk.processes = table,
            (ToChild::Reassign, Some(memfd)) => self.reassign(assignment::read(memfd)?),
            (ToChild::Route { .. } | ToChild::Reassign | ToChild::Visits { .. }, None) => {
                warn!("the supervisor's message came without its descriptor");
            }
            (
                ToChild::Supply { .. }
                | ToChild::Builder { .. }
                | ToChild::NoBuilder { .. }
                | ToChild::Accounts { .. },
                _,
            ) => {
                warn!("the supervisor's message is not one for a frontend");
            }
        }
        Ok(())
    }

    fn reassign(&mut self, assignment: FrontendAssignment) {
        let limits = limits(&assignment);
        self.operator_uids = assignment.operators;
        self.hello_timeout = Duration::from_millis(assignment.hello_timeout_ms.into());
        self.board.reassign(assignment.tenants, limits);
        info!("reassigned");
    }

    fn drain(&mut self) {
        info!("draining");
        self.clients = None;
        self.visits.1.close();
        self.closing.send_replace(true);
        self.board.drain();
    }

    fn hear(&mut self, News { link, what }: News) {
        match (what, self.board.routes.get_mut(link)) {
            (What::Status { nonce, part, last }, Some(known)) if !known.is_cut() => {
                if let Err(misbehaved) = self.desk.hear(link, known, nonce, part, last) {
                    self.board.misbehaved(link, &misbehaved);
                }
            }
            (what, _) => self.board.hear(link, what),
        }
    }

    fn arrived(&mut self, stream: UnixStream) {
        // Without a peer there is nobody to answer.
        let Ok(peer) = Peer::of(&stream) else { return };
        match self.board.arrived(peer) {
            Ok(()) => {
                self.greetings.spawn(greet(stream, peer, self.hello_timeout, self.closing.subscribe()));
            }
            Err(farewell) => say_farewell(&stream, farewell),
        }
    }

    /// As if it had been accepted and had greeted.
    fn visited_by(&mut self, visitor: Visitor) {
        let Visitor { connection, tenant, judged } = visitor;
        let twice = self.board.knows(&connection);
        // Nobody hears it where the gateway's channel has ended meanwhile.
        let _ = judged.send(if twice { Judged::Twice } else { Judged::New });
        if twice {
            return;
        }
        let peer = connection.peer;
        match self.board.arrived(peer) {
            Ok(()) => {
                let outcome = Outcome::Greeted(connection, tenant.to_string());
                self.board.greeted(Greeting { peer, outcome });
            }
            Err(farewell) => say_farewell(&connection.socket, farewell),
        }
    }

    fn operator_arrived(&mut self, stream: UnixStream) {
        let permitted = |uid| uid == 0 || uid == self.uid || self.operator_uids.contains(&uid);
        match Peer::of(&stream) {
            Ok(peer) if !permitted(peer.uid) => operator::refuse(&stream),
            Ok(_) if self.errands.len() < OPERATORS_MAX => {
                self.errands.spawn(attend(stream, self.asks.0.clone()));
            }
            // Nobody there, or too many at once: an operator tries again.
            _ => {}
        }
    }
}

/// A gateway that has no way here any more is of no use: the supervisor replaces it.
fn tell_if_cut(control: &Polled<FromChild, ToChild>, left: &Left) -> Result<(), FrontendError> {
    match left {
        Left::Gone => Ok(()),
        Left::Cut { generation } => {
            control.try_send(&FromChild::GatewayCut { generation: *generation }).map_err(FrontendError::Tell)
        }
    }
}

fn limits(assignment: &FrontendAssignment) -> Limits {
    Limits {
        connections: assignment.max_connections,
        connections_per_uid: assignment.max_connections_per_uid,
        of_classes: assignment.classes.iter().map(|one| (one.class.clone(), one.connections)).collect(),
    }
}

/// Tasks are never cancelled, so one that did not finish has panicked: that is ours too.
fn finished<T>(outcome: Result<T, JoinError>) -> T {
    outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn next_at(door: Option<&mut Door>) -> UnixStream {
    match door {
        Some(door) => door.next().await,
        None => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
