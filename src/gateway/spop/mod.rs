//! HAProxy's Stream Processing Offload Protocol, version 2.0, as its filter "spoe" speaks it.
//!
//! ```text
//!  HAProxy --HELLO--> [hello] --HELLO--> HAProxy
//!          --NOTIFY--> [frame] -> [arguments] -> [request] --Input--> desk
//!          <----ACK--- [frame] <---- [answer] <-------------Verdict----+
//! ```
//!
//! Questions are answered as their decisions come, in any order. HAProxy does nothing by itself with what it is told: the
//! rules in its configuration do, and have to say that everything but `allow` is denied.

mod answer;
mod arguments;
mod frame;
mod hello;
mod request;
#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
mod typed;

use std::collections::HashSet;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use self::answer::{Manner, put_ack};
use self::arguments::Arguments;
use self::frame::{Frame, Ids, Kind, NoFrame};
use self::hello::{Departure, HELLO_MAX, Status, Terms, agree, put_hello};
use self::request::{Asked, HeadersAs};
use super::desk::{Desk, Place};
use super::verdict::Verdict;
use crate::wire::frame::frame_length;

/// How long HAProxy is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From a connection's start to its HELLO, and from a frame's first byte to its last.
    frame: Duration,
    /// Without a question. HAProxy ends what it does not need itself ("timeout idle", 30 s in most examples).
    idle: Duration,
    /// For it to take an answer.
    write: Duration,
    /// For it to go, once it is told to.
    leave: Duration,
    /// From when the process drains: how long questions are still taken.
    drain: Duration,
}

const PATIENCE: Patience = Patience {
    frame: Duration::from_secs(10),
    idle: Duration::from_secs(600),
    write: Duration::from_secs(10),
    leave: Duration::from_secs(1),
    drain: Duration::from_secs(1),
};

/// Most questions under way on one connection. HAProxy asks 20 at once where it has a limit.
const UNDER_WAY_MAX: usize = 64;
/// Most bytes of the largest frames of that many questions, and of that many answers; one there may always be.
const UNDER_WAY_BYTES_MAX: usize = 1 << 20;
/// Room for one read, bytes. More is made as it fills.
const READ_MIN: usize = 4 << 10;

/// Serves one connection, until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, desk: Desk) {
    serve_with(PATIENCE, stream, desk).await;
}

async fn serve_with<S: AsyncRead + AsyncWrite + Unpin>(patience: Patience, stream: S, desk: Desk) {
    let coming = desk.room().place();
    let mut connection = Connection { stream, patience, read: BytesMut::new(), coming };
    let end = match connection.greet().await {
        Ok(Some(terms)) => {
            connection.answer(Questions { terms, desk, asked: JoinSet::new(), ids: HashSet::new() }).await
        }
        Ok(None) => return,
        Err(end) => end,
    };
    match end {
        End::Gone => {}
        End::Departure(departure) => connection.leave(&departure).await,
    }
}

/// Why a connection ends.
#[derive(Debug)]
enum End {
    /// There is nobody to tell.
    Gone,
    Departure(Departure),
}

impl From<Departure> for End {
    fn from(departure: Departure) -> Self {
        Self::Departure(departure)
    }
}

impl From<NoFrame> for End {
    fn from(no_frame: NoFrame) -> Self {
        Self::Departure(no_frame.into())
    }
}

struct Connection<S> {
    stream: S,
    patience: Patience,
    /// What has come and was not looked at yet.
    read: BytesMut,
    /// For a large frame that is not all there.
    coming: Place,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Agrees with HAProxy; `None` where it only wanted to know whether somebody is there.
    async fn greet(&mut self) -> Result<Option<Terms>, End> {
        let within = self.patience.frame;
        let hello = async {
            loop {
                if let Some(frame) = Frame::take(&mut self.read, HELLO_MAX)? {
                    return Ok::<_, End>(frame);
                }
                self.fill().await?;
            }
        };
        let late = |_| Departure::new(Status::Timeout, "no HELLO came in time");
        let hello = timeout(within, hello).await.map_err(late)??;
        if hello.kind != Kind::HaproxyHello || hello.ids != Ids::NONE {
            return Err(Departure::new(Status::Invalid, "the first frame is no HELLO").into());
        }
        if !hello.is_whole {
            return Err(fragmented().into());
        }
        let terms = agree(&hello.payload)?;
        let mut out = BytesMut::new();
        put_hello(&mut out, terms);
        self.write(&out).await?;
        Ok((!terms.is_check).then_some(terms))
    }

    /// Answers until there is a reason to go.
    async fn answer(&mut self, mut questions: Questions) -> End {
        let mut closing = pin!(questions.desk.closing());
        let mut drained_by = None;
        let Patience { frame, idle, drain, .. } = self.patience;
        let mut until = Instant::now() + idle;
        loop {
            match self.ask_what_is_there(&mut questions) {
                Ok(true) => until = Instant::now() + if self.read.is_empty() { idle } else { frame },
                Ok(false) => {}
                Err(end) => return end,
            }
            let is_quiet = questions.asked.is_empty();
            let listens = questions.has_room() && drained_by.is_none_or(|by| Instant::now() < by);
            let was_empty = self.read.is_empty();
            select! {
                biased;
                Some(answered) = questions.asked.join_next() => {
                    let mut out = BytesMut::new();
                    // Until they are written.
                    let mut places = Vec::new();
                    let mut next = Some(answered);
                    while let Some(answered) = next {
                        match answered {
                            Ok(Ok(answered)) => places.push(questions.take(answered, &mut out)),
                            Ok(Err(end)) => return end.into(),
                            Err(_) => return End::Gone,
                        }
                        next = questions.asked.try_join_next();
                    }
                    if let Err(end) = self.write(&out).await {
                        return end;
                    }
                }
                read = self.fill(), if listens => match read {
                    Ok(()) if was_empty => until = Instant::now() + frame,
                    Ok(()) => {}
                    Err(end) => return end,
                },
                // Nothing is under way, and nothing was there to be read.
                () = ready(()), if drained_by.is_some() && is_quiet => {
                    return Departure::new(Status::Normal, "this agent is being replaced").into();
                }
                () = &mut closing, if drained_by.is_none() => {
                    drained_by = Some(Instant::now() + drain);
                }
                () = sleep_until(until), if listens && is_quiet => {
                    return if was_empty {
                        Departure::new(Status::Normal, "nothing was asked for long").into()
                    } else {
                        Departure::new(Status::Timeout, "the rest of a frame did not come in time").into()
                    };
                }
            }
        }
    }

    /// Asks what has come whole, as far as there is room. Says whether there was anything.
    fn ask_what_is_there(&mut self, questions: &mut Questions) -> Result<bool, End> {
        let mut any = false;
        while questions.has_room() {
            let frame_max = questions.terms.frame_max;
            let Some(frame) = Frame::take(&mut self.read, frame_max)? else {
                if let Ok(Some(length)) = frame_length(&self.read, frame_max) {
                    self.coming.grow_if_large(length).map_err(Departure::from)?;
                }
                break;
            };
            self.coming.leave();
            any = true;
            match frame.kind {
                Kind::Notify if frame.is_whole => questions.ask(frame)?,
                Kind::Notify | Kind::Unset => return Err(fragmented().into()),
                Kind::HaproxyDisconnect => {
                    return Err(Departure::new(Status::Normal, "as HAProxy says").into());
                }
                _ => return Err(Departure::new(Status::Invalid, "a frame that HAProxy does not send").into()),
            }
        }
        Ok(any)
    }

    /// Reads more, at least a byte.
    async fn fill(&mut self) -> Result<(), End> {
        self.read.reserve(READ_MIN);
        match self.stream.read_buf(&mut self.read).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(End::Gone),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), End> {
        match timeout(self.patience.write, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    async fn leave(mut self, departure: &Departure) {
        debug!(status = departure.status as u32, why = departure.why, "end of an SPOP connection");
        let mut out = BytesMut::new();
        departure.put(&mut out);
        if self.write(&out).await.is_err() {
            return;
        }
        // Where bytes are left unread, the end of a TCP connection can take the last frame with it.
        let within = self.patience.leave;
        let gone = async {
            let _ = self.stream.shutdown().await;
            while self.fill().await.is_ok() {
                self.read.clear();
            }
        };
        let _ = timeout(within, gone).await;
    }
}

fn fragmented() -> Departure {
    Departure::new(Status::Fragmented, "this agent takes no fragments; raise max-frame-size and tune.bufsize")
}

/// What was asked on a connection and is not answered. Dropping it gives them up.
struct Questions {
    terms: Terms,
    desk: Desk,
    asked: JoinSet<Result<Answered, Departure>>,
    ids: HashSet<Ids>,
}

struct Answered {
    ids: Ids,
    ack: BytesMut,
    /// Of the question and the answer.
    place: Place,
}

impl Questions {
    fn has_room(&self) -> bool {
        let most = if self.terms.pipelining { UNDER_WAY_BYTES_MAX / self.terms.frame_max } else { 1 };
        self.asked.len() < most.clamp(1, UNDER_WAY_MAX)
    }

    fn ask(&mut self, notify: Frame) -> Result<(), Departure> {
        let Frame { ids, payload, .. } = notify;
        if !self.ids.insert(ids) {
            return Err(Departure::new(
                Status::Invalid,
                "a NOTIFY has the ids of one that waits for its answer",
            ));
        }
        let (desk, frame_max) = (self.desk.clone(), self.terms.frame_max);
        self.asked.spawn(async move {
            let mut place = desk.room().place();
            let manner = |headers_as| Manner { ids, headers_as, details: desk.listener().details, frame_max };
            let mut ack = BytesMut::new();
            let answered = match place.grow(payload.len()) {
                Ok(()) => {
                    let (verdict, headers_as) = decide(&desk, &payload).await?;
                    put_ack(&mut ack, &verdict, manner(headers_as));
                    drop(payload);
                    place.grow(ack.len())
                }
                Err(full) => Err(full),
            };
            if let Err(full) = answered {
                ack.clear();
                put_ack(&mut ack, &Verdict::down(full.into()), manner(HeadersAs::default()));
            }
            Ok(Answered { ids, ack, place })
        });
        Ok(())
    }

    /// The answer's place is to be kept until it is written.
    fn take(&mut self, answered: Answered, out: &mut BytesMut) -> Place {
        self.ids.remove(&answered.ids);
        if out.is_empty() {
            *out = answered.ack;
        } else {
            out.extend_from_slice(&answered.ack);
        }
        answered.place
    }
}

async fn decide(desk: &Desk, payload: &Bytes) -> Result<(Verdict, HeadersAs), Departure> {
    let arguments = Arguments::read(payload)?;
    let headers_as = match HeadersAs::read(&arguments) {
        Ok(headers_as) => headers_as,
        Err(down) => return Ok((Verdict::down(down), HeadersAs::default())),
    };
    let asked = Asked::read(&arguments, desk.listener().max_body)
        .and_then(|asked| Ok((desk.bind(|name| arguments.only(name), |_| None)?, asked)));
    let verdict = match asked {
        Ok((bound, asked)) => {
            let terms = asked.terms;
            desk.decide(&bound, terms, &asked.input()).await
        }
        Err(down) => Verdict::down(down),
    };
    Ok((verdict, headers_as))
}
