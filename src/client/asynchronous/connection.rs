//! One greeted connection that many tasks ask over.
//!
//! A task of its own, the driver, hands out the answers. Where all who ask are in its runtime, which has one thread, it also
//! writes their questions, once for all that are put in one turn of the runtime, and tells those who have waited for too long, by
//! one timer for all: a message or a timer for each question costs more than the question. Elsewhere whoever asks writes at once,
//! if nothing waits to be written before it, and has a timer of its own, so that nothing that keeps the driver from running
//! keeps anybody waiting.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep_until, timeout_at};

use super::Way;
use super::places::{Closed, Place, Places};
#[cfg(feature = "gateway")]
use crate::client::Pipeline;
use crate::client::exchange::{Answer, Exchange};
use crate::client::{ClientError, Ending, Settings, greeting};
use crate::decision::{Tenant, TrustClass};
use crate::wire::client::SERVER_FRAME_MAX;
use crate::wire::frame;
use crate::wire::socket::{self, Socket};

/// Read at a time.
const READ: usize = 64 * 1024;

/// A connection and the task that drives it; both end when this is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    link: Arc<Link>,
    driver: AbortHandle,
    class: TrustClass,
    patience: Duration,
}

/// Why there is no answer, and whether the service can have seen the question.
#[derive(Debug)]
pub(super) enum Failure {
    /// No byte of the question was written: it may be asked elsewhere.
    NotWritten(ClientError),
    Final(ClientError),
}

/// Who waits for an answer and until when, and its place among the questions under way. That is taken until the service has
/// answered, even if nobody waits any more.
#[derive(Debug)]
pub(super) struct Waiter {
    /// None once it was told that it has waited for too long.
    answer: Option<oneshot::Sender<Result<Answer, Failure>>>,
    until: Instant,
    _place: Place,
}

#[derive(Debug)]
struct Link {
    socket: Arc<OwnedFd>,
    state: Mutex<State>,
    /// The driver has something to write, to wait for, or to end.
    work: Notify,
    places: Places,
    /// Whether all who ask are in the driver's runtime, which has one thread.
    one_thread: bool,
}

#[derive(Debug)]
struct State {
    exchange: Exchange<Waiter>,
    /// When the driver looks for who has waited for too long. No later than the first of them has, and earlier where that one
    /// has its answer.
    looks: Option<Instant>,
    /// The socket takes no more; the driver looks for the reason among what is still to be read.
    broken: Option<ClientError>,
    over: Option<ClientError>,
}

impl Failure {
    pub(super) fn into_error(self) -> ClientError {
        match self {
            Self::NotWritten(error) | Self::Final(error) => error,
        }
    }
}

impl Connection {
    /// Connects and greets for a tenant. To be called within a time limit.
    pub(super) async fn open(way: &Way, tenant: &Tenant, settings: &Settings) -> Result<Self, ClientError> {
        let hello = greeting::hello(tenant)?;
        let failed = |cause| ClientError::Connect { socket: way.place(), cause: Arc::new(cause) };
        let (mut stream, greeted) = match way {
            Way::Socket(path) => {
                let mut stream = UnixStream::connect(path).await.map_err(failed)?;
                let greeted = stream.write_all(&hello).await;
                (stream, greeted)
            }
            #[cfg(feature = "gateway")]
            Way::Made(connect) => (connect.connect(tenant).map_err(failed)?, Ok(())),
        };
        let mut incoming = BytesMut::new();
        let welcome = loop {
            // Even if it took no Hello, what it said before may say why.
            match greeting::welcome(&mut incoming)? {
                Some(welcome) => break welcome,
                None => match stream.read_buf(&mut incoming).await {
                    Ok(0) => return Err(greeted.err().map_or(Ending::Peer, ending).into()),
                    Ok(_) => {}
                    Err(error) => return Err(ending(error).into()),
                },
            }
        };
        let (places, one_thread) = match way {
            Way::Socket(_) => (Places::new(settings.pipeline, false), false),
            #[cfg(feature = "gateway")]
            Way::Made(connect) => {
                let Pipeline { questions, shared } = connect.pipeline(&welcome.class);
                (Places::new(questions, shared), true)
            }
        };
        // The driver waits for it in its own way; whoever asks only writes.
        let socket = Arc::new(OwnedFd::from(stream.into_std().map_err(ending)?));
        let watched = Socket::new(Arc::clone(&socket)).map_err(ending)?;
        let state = State { exchange: Exchange::new(), looks: None, broken: None, over: None };
        let link =
            Arc::new(Link { socket, state: Mutex::new(state), work: Notify::new(), places, one_thread });
        let driver = tokio::spawn(drive(EndOnDrop(Arc::clone(&link)), watched, incoming)).abort_handle();
        Ok(Self { link, driver, class: welcome.class, patience: settings.patience })
    }

    pub(super) fn class(&self) -> &TrustClass {
        &self.class
    }

    pub(super) fn is_alive(&self) -> bool {
        let state = self.link.state();
        state.over.is_none() && state.broken.is_none()
    }

    /// Puts a question, waits for its answer. Gives the question up when the time is over or this future is dropped.
    pub(super) async fn ask(
        &self,
        tenant: &Tenant,
        until: Instant,
        question: impl Fn(&mut Exchange<Waiter>, Waiter) -> Result<u64, ClientError>,
    ) -> Result<Answer, Failure> {
        let place = match timeout_at(until.into(), self.link.places.take(tenant)).await {
            Ok(Ok(place)) => place,
            // Closed by `State::end`.
            Ok(Err(Closed)) => return Err(Failure::NotWritten(self.link.why())),
            Err(_) => {
                self.end_if_silent();
                return Err(Failure::Final(ClientError::Deadline));
            }
        };
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter { answer: Some(answer), until, _place: place };
        let id = self.link.put(|state| {
            let id = question(&mut state.exchange, waiter)?;
            Ok((id, self.link.one_thread && state.look_no_later_than(until)))
        })?;
        let _given_up = GiveUp { link: &self.link, id };
        let answered = if self.link.one_thread {
            answered.await
        } else {
            match timeout_at(until.into(), answered).await {
                Ok(answered) => answered,
                Err(_) => return Err(Failure::Final(ClientError::Deadline)),
            }
        };
        answered.unwrap_or_else(|_| Err(Failure::Final(self.link.why())))
    }

    /// All places are taken that a tenant may have. If by questions that nobody waits for any more, the service has stopped answering.
    fn end_if_silent(&self) {
        let mut state = self.link.state();
        if state.exchange.longest_given_up().is_some_and(|since| since.elapsed() > self.patience) {
            state.end(ClientError::Closed(Ending::Silent), &self.link.places);
            self.link.work.notify_one();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
        self.link.close();
    }
}

/// Cancels on drop what was not answered; the exchange knows whether it was.
struct GiveUp<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        // An error here is the connection's, and shows to those who wait.
        let _ = self.link.put(|state| Ok((state.exchange.cancel(self.id)?, false)));
    }
}

impl Link {
    /// Changes what is to be written, and writes it where the driver does not, if nothing waited before it. `change` says
    /// whether the driver has to hear of it even so.
    fn put<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<(T, bool), ClientError>,
    ) -> Result<T, Failure> {
        let mut state = self.state();
        if let Some(error) = state.over.as_ref().or(state.broken.as_ref()) {
            return Err(Failure::NotWritten(error.clone()));
        }
        let first = state.exchange.outgoing().is_empty();
        let (changed, concerns_driver) = change(&mut state).map_err(Failure::Final)?;
        if first && !self.one_thread {
            self.write(&mut state);
        }
        if concerns_driver || state.broken.is_some() || !state.exchange.outgoing().is_empty() {
            self.work.notify_one();
        }
        Ok(changed)
    }

    /// Writes what the socket takes now.
    fn write(&self, state: &mut State) {
        while state.broken.is_none() && !state.exchange.outgoing().is_empty() {
            match socket::put(&self.socket, state.exchange.outgoing()) {
                Ok(written) => state.exchange.wrote(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => state.broken = Some(ending(error).into()),
            }
        }
    }

    /// Hands out the answers that have come whole.
    fn answer(&self, incoming: &mut BytesMut) -> Result<(), ClientError> {
        while let Some(bytes) = frame::next_frame(incoming, SERVER_FRAME_MAX)? {
            let (_, waiter, answer) = self.state().exchange.answered(frame::decode(&bytes)?)?;
            waiter.tell(Ok(answer));
        }
        Ok(())
    }

    /// Tells the service now: the descriptor may stay open until the last task that asked has looked.
    fn close(&self) {
        // Fails only where the other side was faster.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn why(&self) -> ClientError {
        let state = self.state();
        state.over.clone().or_else(|| state.broken.clone()).unwrap_or(Ending::Local.into())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The connection is over: tells everybody who waits. The first reason stands.
    fn end(&mut self, error: ClientError, places: &Places) {
        if self.over.is_some() {
            return;
        }
        places.close();
        for (waiter, written) in self.exchange.end() {
            let error = error.clone();
            waiter.tell(Err(if written { Failure::Final(error) } else { Failure::NotWritten(error) }));
        }
        self.over = Some(error);
    }

    /// Whether the driver has to look earlier than it would have.
    fn look_no_later_than(&mut self, until: Instant) -> bool {
        let earlier = self.looks.is_none_or(|looks| until < looks);
        if earlier {
            self.looks = Some(until);
        }
        earlier
    }

    /// Tells whoever has waited for too long, and finds out who is next.
    fn look(&mut self, now: Instant) {
        self.looks = None;
        for waiter in self.exchange.waiters() {
            if waiter.until <= now {
                // Each gives its question up itself; its place stays taken until that is answered.
                if let Some(answer) = waiter.answer.take() {
                    let _ = answer.send(Err(Failure::Final(ClientError::Deadline)));
                }
            } else if self.looks.is_none_or(|looks| waiter.until < looks) {
                self.looks = Some(waiter.until);
            }
        }
    }
}

impl Waiter {
    /// Nobody there any more: the question was given up.
    fn tell(self, result: Result<Answer, Failure>) {
        if let Some(answer) = self.answer {
            let _ = answer.send(result);
        }
    }
}

/// Ends the link even if the driver is aborted, or goes with its runtime.
struct EndOnDrop(Arc<Link>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.state().end(Ending::Local.into(), &self.0.places);
        self.0.close();
    }
}

/// What the driver hears of its socket.
enum Event {
    /// So many bytes have come.
    Came(io::Result<usize>),
    Room(io::Result<()>),
}

/// Writes what waits, hands out answers and tells who has waited for too long, until the connection ends.
async fn drive(ends: EndOnDrop, mut socket: Socket, mut incoming: BytesMut) {
    let link = &ends.0;
    let mut alarm = pin!(sleep_until(tokio::time::Instant::now()));
    let mut came = vec![0; READ];
    // What came with the Welcome.
    if let Err(error) = link.answer(&mut incoming) {
        return link.state().end(error, &link.places);
    }
    let error = loop {
        let (unwritten, looks, broken) = {
            let mut state = link.state();
            if state.over.is_some() {
                return;
            }
            link.write(&mut state);
            (!state.exchange.outgoing().is_empty(), state.looks, state.broken.clone())
        };
        if let Some(broken) = broken {
            break why_broken(link, &mut came, &mut incoming).unwrap_or(broken);
        }
        // Setting it costs a system call where it is earlier than all other timers, so it is not set for each question.
        if let Some(looks) = looks.map(Into::into)
            && alarm.deadline() != looks
        {
            alarm.as_mut().reset(looks);
        }
        let next = poll_fn(|context| {
            if unwritten && let Poll::Ready(room) = socket.poll_room(context) {
                return Poll::Ready(Event::Room(room));
            }
            let mut buffer = ReadBuf::new(&mut came);
            let read = ready!(Pin::new(&mut socket).poll_read(context, &mut buffer));
            Poll::Ready(Event::Came(read.map(|()| buffer.filled().len())))
        });
        let heard = tokio::select! {
            event = next => match event {
                Event::Came(Ok(0)) => Err(Ending::Peer.into()),
                Event::Came(Ok(count)) => {
                    incoming.extend_from_slice(came.get(..count).unwrap_or_default());
                    link.answer(&mut incoming)
                }
                Event::Room(Ok(())) => Ok(()),
                Event::Came(Err(error)) | Event::Room(Err(error)) => Err(ending(error).into()),
            },
            () = link.work.notified() => Ok(()),
            () = alarm.as_mut(), if looks.is_some() => {
                link.state().look(tokio::time::Instant::now().into());
                Ok(())
            }
        };
        if let Err(error) = heard {
            break error;
        }
    };
    link.state().end(error, &link.places);
}

/// What the service said before it took no more, if it is there.
fn why_broken(link: &Link, came: &mut [u8], incoming: &mut BytesMut) -> Option<ClientError> {
    loop {
        match socket::take(&link.socket, came) {
            Ok(0) => return Some(Ending::Peer.into()),
            Ok(count) => {
                incoming.extend_from_slice(came.get(..count).unwrap_or_default());
                if let Err(error) = link.answer(incoming) {
                    return Some(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(ending(error).into()),
        }
    }
}

/// A socket's error; a reset or a broken pipe is the other side's closing.
fn ending(error: io::Error) -> Ending {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ending::Peer,
        _ => Ending::from(error),
    }
}
