//! One greeted connection with many questions under way, driven by the thread that owns it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::client::exchange::{Answer, Exchange, Subject};
use crate::client::{ClientError, Deadline, Ending, greeting};
use crate::decision::{Decision, Input, PolicyName, Tenant, TraceContext, TrustClass};
use crate::wire::client::SERVER_FRAME_MAX;
use crate::wire::frame;

/// Bytes asked of the socket in one read.
const READ: usize = 64 * 1024;
/// From so many unwritten bytes on, [`Connection::send`] writes by itself.
const WRITE_SOON: usize = 64 * 1024;

/// A connection for one trust class, pipelined: put in questions with [`send`](Self::send), get them on their way with
/// [`flush`](Self::flush), take the answers with [`receive`](Self::receive) in the order the service gives them.
///
/// After any error but [`ClientError::Deadline`], [`TooLong`](ClientError::TooLong) and
/// [`BatchSize`](ClientError::BatchSize) it is over, and every question on it unanswered: the gate stays down for all.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    welcome: greeting::Welcome,
    exchange: Exchange<()>,
    intake: Intake,
    /// Answers that were read while another was waited for.
    early: VecDeque<(u64, Answer)>,
    /// The rest of a batch that [`Self::receive`] hands out one by one.
    batch: (u64, std::vec::IntoIter<Decision>),
    over: Option<ClientError>,
    trace: Option<TraceContext>,
}

impl Connection {
    /// Connects and greets for a tenant, all of it `within` that time.
    pub fn open(path: &Path, tenant: &Tenant, within: Duration) -> Result<Self, ClientError> {
        if within.is_zero() {
            return Err(ClientError::Deadline);
        }
        let start = Instant::now();
        let until = start.checked_add(within).unwrap_or(start);
        let failed = |errno: Errno| ClientError::Connect {
            socket: path.to_owned(),
            cause: Arc::new(io::Error::from(errno)),
        };
        let fd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        // Bounds the wait in connect too, when the service's backlog is full.
        setsockopt(&fd, sockopt::SendTimeout, &timeval(within)).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(fd.as_raw_fd(), &address).map_err(failed)?;
        let mut intake = Intake::new();
        let mut hello: &[u8] = &greeting::hello(tenant)?;
        while !hello.is_empty() {
            // A new socket has room for a Hello; a service that has gone shows in the read below, with its reason.
            match send(fd.as_raw_fd(), hello, MsgFlags::MSG_NOSIGNAL) {
                Ok(written) => hello = hello.get(written..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => break,
                Err(errno) => return Err(failed(errno)),
            }
        }
        let welcome = loop {
            match greeting::welcome(&mut intake.bytes)? {
                Some(welcome) => break welcome,
                None => intake.read(&fd, Some(until))?,
            }
        };
        Ok(Self {
            socket: fd,
            welcome,
            exchange: Exchange::new(),
            intake,
            early: VecDeque::new(),
            batch: (0, Vec::new().into_iter()),
            over: None,
            trace: None,
        })
    }

    /// The class the service put this connection in.
    #[must_use]
    pub fn class(&self) -> &TrustClass {
        &self.welcome.class
    }

    /// The worker that took the connection at first; a successor takes over unseen.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.welcome.generation
    }

    /// Puts in one question and gives its id. Written by the next [`Self::flush`], or now if much is waiting.
    pub fn send(
        &mut self,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        input: &Input<'_>,
    ) -> Result<u64, ClientError> {
        let id = self.ask(Subject { tenant, policy, deadline, trace: self.trace }, input)?;
        self.write_soon()?;
        Ok(id)
    }

    /// Puts in a batch and gives its id.
    pub fn send_batch(
        &mut self,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        inputs: &[Input<'_>],
    ) -> Result<u64, ClientError> {
        let id = self.ask_batch(Subject { tenant, policy, deadline, trace: self.trace }, inputs)?;
        self.write_soon()?;
        Ok(id)
    }

    /// What is put in from now on belongs to this trace, or to none.
    pub fn set_trace(&mut self, trace: Option<TraceContext>) {
        self.trace = trace;
    }

    /// Asks the service to give a question up. It is answered all the same, once.
    pub fn cancel(&mut self, id: u64) -> Result<(), ClientError> {
        self.check()?;
        self.exchange.cancel(id)
    }

    /// Writes everything that was put in. Meanwhile it reads, so that two full buffers cannot stop each other.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.flush_until(None)
    }

    /// Waits for the next answer, whichever it is. The decisions of a batch come one by one, in order, all with the
    /// batch's id. Questions that were not flushed are not answered.
    pub fn receive(&mut self) -> Result<(u64, Decision), ClientError> {
        self.receive_until(None)
    }

    /// The same, but gives [`ClientError::Deadline`] at that time; the connection stays good.
    pub fn receive_until(&mut self, until: Option<Instant>) -> Result<(u64, Decision), ClientError> {
        loop {
            if let Some(decision) = self.batch.1.next() {
                return Ok((self.batch.0, decision));
            }
            match self.next(until)? {
                (id, Answer::Decision(decision)) => return Ok((id, decision)),
                (id, Answer::Decisions(decisions)) => self.batch = (id, decisions.into_iter()),
                (_, Answer::Pong) => {}
            }
        }
    }

    pub(super) fn ask(&mut self, subject: Subject<'_>, input: &Input<'_>) -> Result<u64, ClientError> {
        self.check()?;
        self.exchange.decide(subject, input, ())
    }

    pub(super) fn ask_batch(
        &mut self,
        subject: Subject<'_>,
        inputs: &[Input<'_>],
    ) -> Result<u64, ClientError> {
        self.check()?;
        self.exchange.decide_batch(subject, inputs, ())
    }

    pub(super) fn ask_ping(&mut self) -> Result<u64, ClientError> {
        self.check()?;
        self.exchange.ping(())
    }

    /// Waits for one answer; those to questions given up before are dropped.
    pub(super) fn wait(&mut self, id: u64, until: Instant) -> Result<Answer, ClientError> {
        loop {
            let (answered, answer) = self.next(Some(until))?;
            if answered == id {
                return Ok(answer);
            }
        }
    }

    /// Tells the service that nobody waits for `id` any more, as far as the socket takes it now.
    pub(super) fn give_up(&mut self, id: u64, patience: Duration) {
        if let Some(since) = self.exchange.longest_given_up()
            && since.elapsed() > patience
        {
            self.over.get_or_insert(ClientError::Closed(Ending::Silent));
            return;
        }
        // What does not fit now is written with the next question; an error shows there too.
        let _ = self.exchange.cancel(id);
        let _ = self.write_some();
    }

    /// Whether any byte of an unanswered question has been written.
    pub(super) fn any_written(&self, id: u64) -> bool {
        self.exchange.any_written(id)
    }

    /// False once it is known to be over. Looks at the socket without waiting, and drops late answers.
    pub(super) fn is_alive(&mut self) -> bool {
        while self.over.is_none() && !matches!(self.next(Some(Instant::now())), Err(ClientError::Deadline)) {}
        self.over.is_none()
    }

    pub(super) fn flush_until(&mut self, until: Option<Instant>) -> Result<(), ClientError> {
        self.check()?;
        while !self.write_some()? {
            let timeout = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Err(ClientError::Deadline),
                Some(left) => {
                    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
                }
                None => PollTimeout::NONE,
            };
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
            match poll(&mut ready, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.end(Ending::from(io::Error::from(errno)).into())),
            }
            let readable =
                ready.iter().filter_map(PollFd::revents).any(|got| got.contains(PollFlags::POLLIN));
            if readable {
                match self.take_early() {
                    Ok(()) | Err(ClientError::Deadline) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn write_soon(&mut self) -> Result<(), ClientError> {
        if self.exchange.outgoing().len() >= WRITE_SOON { self.flush() } else { Ok(()) }
    }

    /// Writes what the socket takes; true if that is everything.
    fn write_some(&mut self) -> Result<bool, ClientError> {
        while !self.exchange.outgoing().is_empty() {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match send(self.socket.as_raw_fd(), self.exchange.outgoing(), flags) {
                Ok(written) => self.exchange.wrote(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(self.end_of_writing(errno)),
            }
        }
        Ok(true)
    }

    /// The service takes nothing more: what it said before may say why.
    fn end_of_writing(&mut self, errno: Errno) -> ClientError {
        while self.over.is_none() {
            if let Err(ClientError::Deadline) = self.take_early() {
                break;
            }
        }
        let ending = if errno == Errno::EPIPE { Ending::Peer } else { Ending::from(io::Error::from(errno)) };
        self.end(ending.into())
    }

    /// Reads once without waiting; keeps the answers for later.
    fn take_early(&mut self) -> Result<(), ClientError> {
        self.fill(Some(Instant::now()))?;
        while let Some(answer) = self.parse()? {
            self.early.push_back(answer);
        }
        Ok(())
    }

    /// The next answer, from those read before or from the socket.
    fn next(&mut self, until: Option<Instant>) -> Result<(u64, Answer), ClientError> {
        loop {
            if let Some(answer) = self.early.pop_front() {
                return Ok(answer);
            }
            self.check()?;
            if let Some(answer) = self.parse()? {
                return Ok(answer);
            }
            self.fill(until)?;
        }
    }

    /// Takes one answer out of the bytes that are here.
    fn parse(&mut self) -> Result<Option<(u64, Answer)>, ClientError> {
        let answer = match frame::next_frame(&mut self.intake.bytes, SERVER_FRAME_MAX) {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => frame::decode(&bytes).map_err(ClientError::from),
            Err(error) => Err(error.into()),
        };
        match answer.and_then(|frame| self.exchange.answered(frame)) {
            Ok((id, (), answer)) => Ok(Some((id, answer))),
            Err(error) => Err(self.end(error)),
        }
    }

    fn fill(&mut self, until: Option<Instant>) -> Result<(), ClientError> {
        match self.intake.read(&self.socket, until) {
            Ok(()) => Ok(()),
            Err(ClientError::Deadline) => Err(ClientError::Deadline),
            Err(error) => Err(self.end(error)),
        }
    }

    fn check(&self) -> Result<(), ClientError> {
        self.over.clone().map_or(Ok(()), Err)
    }

    /// The connection is over; the first reason stands.
    fn end(&mut self, error: ClientError) -> ClientError {
        self.over.get_or_insert(error).clone()
    }
}

/// The receiving side of the socket.
#[derive(Debug)]
struct Intake {
    /// Read and not yet parsed.
    bytes: BytesMut,
    /// Where the kernel writes; what came is copied to `bytes`, so that nothing has to be zeroed for each read.
    landing: Vec<u8>,
    /// Receive timeout the socket has now.
    timeout: Option<Duration>,
}

impl Intake {
    fn new() -> Self {
        Self { bytes: BytesMut::new(), landing: vec![0; READ], timeout: None }
    }

    /// Reads what there is, at least a byte. [`ClientError::Deadline`] if nothing came by then.
    fn read(&mut self, socket: &OwnedFd, until: Option<Instant>) -> Result<(), ClientError> {
        let failed = |errno: Errno| ClientError::Closed(Ending::from(io::Error::from(errno)));
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let flags = if left == Some(Duration::ZERO) { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
            if flags.is_empty() && self.timeout != left {
                let timeout = left.map_or(TimeVal::microseconds(0), timeval);
                setsockopt(socket, sockopt::ReceiveTimeout, &timeout).map_err(failed)?;
                self.timeout = left;
            }
            match recv(socket.as_raw_fd(), &mut self.landing, flags) {
                Ok(0) => return Err(ClientError::Closed(Ending::Peer)),
                Ok(length) => {
                    self.bytes.extend_from_slice(self.landing.get(..length).unwrap_or_default());
                    return Ok(());
                }
                Err(Errno::EAGAIN) if !flags.is_empty() => return Err(ClientError::Deadline),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(Errno::ECONNRESET) => return Err(ClientError::Closed(Ending::Peer)),
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

/// At least a microsecond, since zero would be forever, and at most a day.
fn timeval(duration: Duration) -> TimeVal {
    const DAY_US: i64 = 24 * 3600 * 1_000_000;
    let us = i64::try_from(duration.as_micros()).unwrap_or(DAY_US);
    TimeVal::microseconds(us.clamp(1, DAY_US))
}
