//! The life of an HTTP/1.1 connection: one request after the other, each read within limits, answered, and only then the next
//! one looked at. So answers have the order of their requests, and nobody makes us hold more than one.
//!
//! What is wrong with a request's form is answered and ends the connection: where the next one begins is then anybody's guess.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::Instant;

use super::super::desk::{Place, Room, SMALL};
use super::super::verdict::Down;
use super::chunks::{Chunks, body_too_large};
use super::head::{self, Framing, Head, Length, Version, malformed};
use super::pace::Pace;
use super::reply::{Ending, Reply};
use crate::decision::Header;

/// Room for what is read, bytes. Nearly all requests fit.
const READ: usize = 4 << 10;
/// What may lie behind the request at hand, bytes, while we still want to know whether its sender is there.
const AHEAD: usize = 8 << 10;
/// A larger buffer is not kept.
const KEPT: usize = 64 << 10;
/// What is thrown away after the last answer, bytes, so that its reader gets to it.
const THROWN_AWAY: usize = 8 << 20;

/// How long a connection may take over what.
#[derive(Debug, Clone, Copy)]
pub(in crate::gateway) struct Limits {
    /// Without a request. Longer than proxies keep a connection that they do not use (Envoy: an hour), so that they end it: a
    /// request that crosses with our end of it would be lost.
    pub(in crate::gateway) idle: Duration,
    /// From a head's first byte to its last.
    pub(in crate::gateway) head: Duration,
    /// From a head to the end of its body.
    pub(in crate::gateway) body: Duration,
    /// Without taking any of an answer.
    pub(in crate::gateway) write: Duration,
    /// For taking the last answer, before we stop listening.
    pub(in crate::gateway) linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(3700),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            write: Duration::from_secs(10),
            linger: Duration::from_secs(2),
        }
    }
}

/// A whole request.
#[derive(Debug)]
pub(in crate::gateway) struct Request<'a> {
    pub(in crate::gateway) method: &'a str,
    /// A path and maybe a query; begins with a slash.
    pub(in crate::gateway) target: &'a str,
    pub(in crate::gateway) host: Option<&'a str>,
    /// Names in lower case.
    pub(in crate::gateway) lines: Vec<Header<'a>>,
    /// None where it would be empty.
    pub(in crate::gateway) body: Option<&'a [u8]>,
    /// When its head was there.
    pub(in crate::gateway) began: Instant,
}

/// Who answers.
pub(in crate::gateway) trait Answers: Sync {
    /// Longest body, bytes.
    fn max_body(&self) -> usize;

    /// Where large bodies and answers are counted.
    fn room(&self) -> &Arc<Room>;

    /// Begins `reply` and puts everything into it. Is dropped if whoever asked goes.
    fn answer(&self, request: Request<'_>, reply: &mut Reply) -> impl Future<Output = ()> + Send;

    /// The same for what is no request. Nothing follows it.
    fn refuse(&self, down: Down, reply: &mut Reply);
}

/// Serves a connection until it ends, or until what was begun when `closing` came is done.
pub(in crate::gateway) async fn converse<S, A, C>(stream: S, answers: &A, limits: Limits, closing: C)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    A: Answers,
    C: Future<Output = ()> + Send,
{
    let pace = Pace::new(Instant::now() + limits.idle);
    let place = answers.room().place();
    let mut connection = Connection { stream, inbound: BytesMut::new(), place, pace, limits };
    let mut closing = Closing { closing: pin!(closing), came: false };
    let mut reply = Reply::default();
    let broken = loop {
        match connection.exchange(answers, &mut reply, &mut closing).await {
            Ok(()) => {}
            Err(End::Over) => return,
            Err(End::Broken(down)) => break down,
        }
    };
    answers.refuse(broken, &mut reply);
    let last = Ending { without_body: false, connection: Some("close") };
    if connection.send(reply.end(last)).await.is_ok() {
        connection.linger().await;
    }
}

/// Why a connection ends.
enum End {
    /// There is nobody to answer, or nothing.
    Over,
    /// What came is no request.
    Broken(Down),
}

impl From<Down> for End {
    fn from(down: Down) -> Self {
        Self::Broken(down)
    }
}

#[derive(Debug)]
struct Connection<S> {
    stream: S,
    /// What was read and not used.
    inbound: BytesMut,
    /// Of the request at hand and its answer, if they are large.
    place: Place,
    pace: Pace,
    limits: Limits,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    /// One request and its answer.
    async fn exchange<A: Answers, C: Future<Output = ()> + Send>(
        &mut self,
        answers: &A,
        reply: &mut Reply,
        closing: &mut Closing<'_, C>,
    ) -> Result<(), End> {
        let mut bytes = self.head(closing).await?;
        let (began, bytes_head) = (Instant::now(), bytes.len());
        let head = Head::parse(&mut bytes)?;
        let Framing { host, length, keep_alive, expects_continue } = head.framing()?;
        let body = match length {
            Length::Known(0) => None,
            _ => Some(self.body(length, answers.max_body(), expects_continue, began).await?),
        };
        let bytes_held = bytes_head + body.as_ref().map_or(0, BytesMut::len);
        let Head { method, target, version, lines } = head;
        let body = body.as_deref().filter(|body| !body.is_empty());
        reply.forget();
        let request = Request { method, target, host, lines, body, began };
        self.unless_gone(answers.answer(request, reply)).await?;
        if let Err(full) = self.place.grow_if_large(bytes_held + reply.len()) {
            answers.refuse(full.into(), reply);
        }
        let last = !keep_alive || closing.came().await;
        let connection = match version {
            _ if last => Some("close"),
            Version::Http10 => Some("keep-alive"),
            Version::Http11 => None,
        };
        self.send(reply.end(Ending { without_body: method == "HEAD", connection })).await?;
        self.place.leave();
        if bytes_held > KEPT {
            self.inbound = BytesMut::from(self.inbound.as_ref());
        }
        if !last {
            return Ok(());
        }
        if !self.inbound.is_empty() {
            self.linger().await;
        }
        Err(End::Over)
    }

    /// The next request's head, alone.
    async fn head<C: Future<Output = ()>>(&mut self, closing: &mut Closing<'_, C>) -> Result<BytesMut, End> {
        let mut scanned = 0;
        let mut began = None;
        loop {
            if let Some(end) = head::end(&self.inbound, &mut scanned)? {
                return Ok(self.inbound.split_to(end));
            }
            if self.inbound.is_empty() {
                self.idle(closing).await?;
                continue;
            }
            let began = *began.get_or_insert_with(Instant::now);
            match self.read(began + self.limits.head).await {
                Err(Stop::Late) => return Err(late("head").into()),
                other => other?,
            }
        }
    }

    /// Waits for the first bytes of a request.
    async fn idle<C: Future<Output = ()>>(&mut self, closing: &mut Closing<'_, C>) -> Result<(), End> {
        self.make_room();
        let Self { stream, inbound, pace, limits, .. } = self;
        let mut limit = None;
        poll_fn(|context| match pin!(stream.read_buf(inbound)).poll(context) {
            Poll::Ready(Ok(read)) if read > 0 => Poll::Ready(Ok(())),
            Poll::Ready(_) => Poll::Ready(Err(End::Over)),
            Poll::Pending if closing.poll(context) => Poll::Ready(Err(End::Over)),
            Poll::Pending => {
                let limit = *limit.get_or_insert_with(|| Instant::now() + limits.idle);
                pace.poll_passed(limit, context).map(|()| Err(End::Over))
            }
        })
        .await
    }

    async fn body(
        &mut self,
        length: Length,
        max: usize,
        expects_continue: bool,
        began: Instant,
    ) -> Result<BytesMut, End> {
        let mut rest = match length {
            Length::Chunked => Rest::Chunks(Chunks::new(max)),
            Length::Known(length) => {
                let length = usize::try_from(length).ok().filter(|length| *length <= max);
                let length = length.ok_or_else(|| body_too_large(max))?;
                self.place.grow_if_large(length).map_err(Down::from)?;
                Rest::Bytes(length)
            }
        };
        if expects_continue && self.inbound.is_empty() {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        loop {
            match &mut rest {
                Rest::Bytes(length) if self.inbound.len() >= *length => {
                    return Ok(self.inbound.split_to(*length));
                }
                Rest::Bytes(_) => {}
                Rest::Chunks(chunks) => {
                    if chunks.take(&mut self.inbound)? {
                        return Ok(chunks.whole());
                    }
                    // Nobody says beforehand how long it gets: place is taken bit by bit.
                    let held = chunks.len() + self.inbound.len() + READ;
                    self.place.grow_if_large(held.next_multiple_of(SMALL)).map_err(Down::from)?;
                }
            }
            match self.read(began + self.limits.body).await {
                Err(Stop::Late) => return Err(late("body").into()),
                other => other?,
            }
        }
    }

    /// More of what has begun.
    async fn read(&mut self, limit: Instant) -> Result<(), Stop> {
        self.make_room();
        let Self { stream, inbound, pace, .. } = self;
        poll_fn(|context| match pin!(stream.read_buf(inbound)).poll(context) {
            Poll::Ready(Ok(read)) if read > 0 => Poll::Ready(Ok(())),
            Poll::Ready(_) => Poll::Ready(Err(Stop::Gone)),
            Poll::Pending => pace.poll_passed(limit, context).map(|()| Err(Stop::Late)),
        })
        .await
    }

    /// What `future` gives, unless whoever asked goes before: then nobody waits for it, and it is dropped.
    async fn unless_gone<F: Future>(&mut self, future: F) -> Result<F::Output, End> {
        let mut future = pin!(future);
        let Self { stream, inbound, .. } = self;
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            while inbound.len() < AHEAD {
                match ready!(pin!(stream.read_buf(inbound)).poll(context)) {
                    Ok(read) if read > 0 => {}
                    _ => return Poll::Ready(Err(End::Over)),
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let Self { stream, pace, limits, .. } = self;
        let (mut rest, mut limit) = (bytes, None);
        poll_fn(|context| {
            loop {
                if rest.is_empty() {
                    return Pin::new(&mut *stream).poll_flush(context).map_err(|_| End::Over);
                }
                match Pin::new(&mut *stream).poll_write(context, rest) {
                    Poll::Ready(Ok(written)) if written > 0 => {
                        rest = rest.get(written..).unwrap_or_default();
                        limit = None;
                    }
                    Poll::Ready(_) => return Poll::Ready(Err(End::Over)),
                    Poll::Pending => {
                        let limit = *limit.get_or_insert_with(|| Instant::now() + limits.write);
                        return pace.poll_passed(limit, context).map(|()| Err(End::Over));
                    }
                }
            }
        })
        .await
    }

    /// Takes leave of somebody who may still be sending: closed at once, the kernel would throw away what they have not read
    /// yet, and that is the answer.
    async fn linger(&mut self) {
        let limit = Instant::now() + self.limits.linger;
        if poll_fn(|context| Pin::new(&mut self.stream).poll_shutdown(context)).await.is_err() {
            return;
        }
        let mut thrown_away = 0;
        while thrown_away < THROWN_AWAY {
            thrown_away += self.inbound.len();
            self.inbound.clear();
            if self.read(limit).await.is_err() {
                break;
            }
        }
    }

    fn make_room(&mut self) {
        if self.inbound.capacity() - self.inbound.len() < READ / 4 {
            self.inbound.reserve(READ);
        }
    }
}

/// What of a body is still to come.
enum Rest {
    Bytes(usize),
    Chunks(Chunks),
}

/// Why there is no more to read.
enum Stop {
    Gone,
    Late,
}

impl From<Stop> for End {
    fn from(_: Stop) -> Self {
        Self::Over
    }
}

fn late(what: &str) -> Down {
    Down { status: 408, ..malformed(format!("the {what} did not come in time")) }
}

/// That this process drains; may be asked again afterwards.
struct Closing<'c, C> {
    closing: Pin<&'c mut C>,
    came: bool,
}

impl<C: Future<Output = ()>> Closing<'_, C> {
    fn poll(&mut self, context: &mut Context<'_>) -> bool {
        self.came = self.came || self.closing.as_mut().poll(context).is_ready();
        self.came
    }

    async fn came(&mut self) -> bool {
        poll_fn(|context| Poll::Ready(self.poll(context))).await
    }
}
