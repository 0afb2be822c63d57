//! Envoy's external authorization over gRPC: `envoy.service.auth.v3.Authorization/Check`, HTTP/2 without TLS and without a
//! word of HTTP/1.1 before it.
//!
//! ```text
//!  stream --[grpc]--> CheckRequest --[request]--> Input --> desk
//!  stream <--[grpc]-- CheckResponse <--[answer]-- Verdict <---+
//! ```
//!
//! However a check ends, its answer is a `CheckResponse`: what Envoy makes of a call that failed is up to its
//! `failure_mode_allow`, and what it makes of a denial is not.

mod answer;
mod grpc;
mod messages;
mod request;
mod size;
mod unsent;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use self::grpc::{Unary, Unread};
use self::messages::{HealthCheckRequest, HealthCheckResponse, SERVING};
use self::request::Check;
use self::unsent::Unsent;
use super::desk::{Desk, Place, Room, Terms, in_time};
use super::verdict::{Code, Down, Verdict};

/// Calls under way on one connection; a proxy opens another for more.
const STREAMS_MAX: u32 = 128;
/// Bytes of messages and answers under way on one connection.
const MESSAGES_MAX: usize = 16 << 20;
/// What a message may have beside the body it is about: headers, metadata, a certificate.
const BESIDE_BODY: usize = 512 << 10;
/// Of a call's head. It has a handful of short lines, and what Envoy's tracer copies there from whoever asked Envoy, who has
/// 60 KiB for it: a longer head is an error of the call, and no denial.
const HEAD_MAX: u32 = 96 << 10;
/// What a proxy may send before any of it was looked at: of one message, and of all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Calls that were taken back before anybody saw them. More, and the connection ends (CVE-2023-44487).
const RESETS_MAX: usize = 32;
/// Answers of one call that wait for the proxy to read.
const SEND_MAX: usize = 256 << 10;
/// How often a proxy has to show that it is there, and how fast.
const ALIVE_EVERY: Duration = Duration::from_secs(30);
const ALIVE_WITHIN: Duration = Duration::from_secs(10);
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// What health can be asked of: all of it, or what is served.
const SERVED: [&[u8]; 2] = [b"", b"envoy.service.auth.v3.Authorization"];

/// What the calls of one connection share.
struct Seat {
    desk: Desk,
    room: Arc<Room>,
    unsent: Arc<Unsent>,
    patience: Patience,
    asked: AtomicBool,
}

/// How long a proxy may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// A connection on which nothing is asked for so long from its beginning is closed.
    first: Duration,
    /// For the end of such a connection.
    last: Duration,
    /// For a message to arrive. Proxies send it in one go.
    message: Duration,
    /// For an answer to be taken.
    answer: Duration,
}

const PATIENCE: Patience = Patience {
    first: Duration::from_secs(60),
    last: Duration::from_secs(1),
    message: Duration::from_secs(10),
    answer: Duration::from_secs(10),
};

/// Serves one connection, until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, desk: Desk) {
    serve_within(PATIENCE, stream, desk).await;
}

async fn serve_within<S>(patience: Patience, stream: S, desk: Desk)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let closing = desk.closing();
    let room = desk.room().part(MESSAGES_MAX);
    let (unsent, asked) = (Arc::default(), AtomicBool::new(false));
    let seat = Arc::new(Seat { desk, room, unsent, patience, asked });
    let service = service_fn({
        let seat = Arc::clone(&seat);
        move |call: Request<Incoming>| {
            seat.asked.store(true, Ordering::Relaxed);
            let seat = Arc::clone(&seat);
            async move { Ok::<_, Infallible>(attend(call, &seat).await) }
        }
    });
    let mut connection = pin!(builder().serve_connection(TokioIo::new(stream), service));
    let mut overdue = pin!(seat.unsent.overdue(patience.answer));
    let within = tokio::select! {
        // Whoever does not speak HTTP/2, or goes: that is all there is to it.
        _ = connection.as_mut() => return,
        () = overdue.as_mut() => return,
        () = closing => None,
        () = unasked(&seat) => Some(patience.last),
    };
    // Says that no more calls are taken, and ends when those under way have.
    connection.as_mut().graceful_shutdown();
    let ends = async {
        tokio::select! {
            _ = connection => {}
            () = overdue => {}
        }
    };
    match within {
        None => ends.await,
        Some(within) => drop(timeout(within, ends).await),
    }
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(ALIVE_EVERY)
        .keep_alive_timeout(ALIVE_WITHIN)
        .max_concurrent_streams(STREAMS_MAX)
        // Bounds the lines of a head and, with them, how many frames it may come in.
        .max_header_list_size(HEAD_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .max_send_buf_size(SEND_MAX)
        .auto_date_header(false);
    builder
}

/// Comes when nothing has been asked for too long.
async fn unasked(seat: &Seat) {
    tokio::time::sleep(seat.patience.first).await;
    if seat.asked.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// One call.
async fn attend(call: Request<Incoming>, seat: &Seat) -> Response<Unary> {
    let (head, body) = call.into_parts();
    if let Err(status) = grpc::check_call(&head) {
        return grpc::nothing(status);
    }
    match head.uri.path() {
        CHECK => {
            let left = grpc::timeout(&head.headers);
            let trace = head.headers.get("traceparent").and_then(|value| value.to_str().ok()?.parse().ok());
            // Some hundred kilobytes, if somebody wants that: not to be held while a message and a decision are waited for.
            drop(head);
            match left {
                Ok(within) => check(body, Terms { within, trace }, seat).await,
                Err(error) => {
                    let down = Down::new(Code::BadRequest, error.to_string());
                    told(Verdict::down(down), seat, seat.room.place())
                }
            }
        }
        HEALTH => {
            drop(head);
            health(body, seat).await
        }
        _ => grpc::refuse(
            grpc::Code::Unimplemented,
            "served are envoy.service.auth.v3.Authorization/Check and grpc.health.v1.Health/Check",
        ),
    }
}

/// The answer, with the place of its question or one of its own until it is sent.
fn told(verdict: Verdict, seat: &Seat, mut place: Place) -> Response<Unary> {
    let mut message = grpc::framed(&answer::of(verdict));
    if let Err(full) = place.grow(message.len()) {
        // This one has some hundred bytes, whatever place there is for them.
        message = grpc::framed(&answer::of(Verdict::down(full.into())));
    }
    grpc::answer(seat.unsent.keep(message, place))
}

async fn check(body: Incoming, terms: Terms, seat: &Seat) -> Response<Unary> {
    let began = Instant::now();
    let deny = |down: Down| told(Verdict::down(down), seat, seat.room.place());
    let max_body = usize::try_from(seat.desk.listener().max_body).unwrap_or(usize::MAX);
    let read = grpc::message(body, max_body.saturating_add(BESIDE_BODY), &seat.room);
    let late = || Down::new(Code::Deadline, "the check did not arrive in time");
    // That it came too late has to be told in time too.
    let Some(longest) = terms.within.map_or(Some(seat.patience.message), in_time) else {
        return deny(late());
    };
    let (message, place) = match timeout(longest.min(seat.patience.message), read).await {
        Ok(Ok(read)) => read,
        Ok(Err(unread)) => return deny(Down::from(&unread)),
        Err(_) => return deny(late()),
    };
    let terms = Terms { within: terms.within.map(|within| within.saturating_sub(began.elapsed())), ..terms };
    told(decide(message, terms, max_body, &seat.desk).await.unwrap_or_else(Verdict::down), seat, place)
}

async fn decide(message: Bytes, terms: Terms, max_body: usize, desk: &Desk) -> Result<Verdict, Down> {
    let check = Check::read(message)?;
    let bound = desk.bind(|key| check.extension(key), |name| check.header(name))?;
    let input = check.input(max_body)?;
    // The proxy's own span is nearer than the one it was asked in.
    let trace = terms.trace.or_else(|| check.trace());
    Ok(desk.decide(&bound, Terms { trace, ..terms }, &input).await)
}

impl From<&Unread> for Down {
    fn from(unread: &Unread) -> Self {
        let code = match unread {
            Unread::TooLong { .. } => Code::TooLarge,
            Unread::Full(_) => Code::Overloaded,
            Unread::Compressed | Unread::NotOne | Unread::Gone => Code::BadRequest,
        };
        Self::new(code, unread.to_string())
    }
}

/// Well as long as it answers: a proxy that took it for dead would ask nobody, and a check is denied here with a reason where
/// the service behind is not there.
async fn health(body: Incoming, seat: &Seat) -> Response<Unary> {
    const NAME_MAX: usize = 1 << 10;
    let read = match timeout(seat.patience.message, grpc::message(body, NAME_MAX, &seat.room)).await {
        Ok(Ok((message, _))) => HealthCheckRequest::decode(message).map_err(|error| error.to_string()),
        Ok(Err(Unread::Compressed)) => {
            return grpc::refuse(grpc::Code::Unimplemented, &Unread::Compressed.to_string());
        }
        Ok(Err(error @ Unread::TooLong { .. })) => {
            return grpc::refuse(grpc::Code::ResourceExhausted, &error.to_string());
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the message did not arrive in time".to_owned()),
    };
    match read {
        Ok(request) if SERVED.contains(&request.service.as_ref()) => {
            grpc::answer(grpc::framed(&HealthCheckResponse { status: SERVING }))
        }
        Ok(_) => grpc::refuse(grpc::Code::NotFound, "no such service here"),
        Err(why) => grpc::refuse(grpc::Code::InvalidArgument, &why),
    }
}

#[cfg(test)]
mod tests;
