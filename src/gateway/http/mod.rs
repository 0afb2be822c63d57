//! HTTP/1.1 where the status is the decision: a proxy asks with a request of its own before it lets its client's through.
//! nginx (auth_request), Caddy and Traefik (forward_auth), Envoy's HTTP form, and whatever can send a request.
//!
//! ```text
//!  bytes --[connection]: [head], [chunks]--> Request --[original]--> HttpRequest --[desk](super::desk)--> Verdict
//!                                                                                                          |
//!  bytes <--[connection]------------------------------ [reply] <--------------------[answer]---------------+
//! ```
//!
//! Reading is our own and strict. A server that means well takes two equal lengths for one, cuts a fragment off a path and puts
//! headers in an order of its own; then what is decided about is not what the proxy will do. It also costs less: names and
//! values are borrowed from the bytes they came in until they are on their way to a worker.

mod answer;
mod chunks;
mod connection;
mod head;
mod original;
mod pace;
mod reply;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

pub(super) use self::connection::{Answers, Limits, Request, converse};
pub(super) use self::head::is_token;
pub(super) use self::reply::Reply;
use super::desk::{Bound, Desk, Room, Terms};
use super::verdict::{Code, Down, Verdict};
use crate::decision::{Header, Input};
use crate::wire::gateway::{Binding, Listener, Speaks};

/// Serves one connection, until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, desk: Desk) {
    let closing = desk.closing();
    converse(stream, &ForwardAuth { desk }, Limits::default(), closing).await;
}

/// Answers each request with what was decided about the one that it speaks of.
#[derive(Debug)]
struct ForwardAuth {
    desk: Desk,
}

impl Answers for ForwardAuth {
    fn max_body(&self) -> usize {
        usize::try_from(self.desk.listener().max_body).unwrap_or(usize::MAX)
    }

    fn room(&self) -> &Arc<Room> {
        self.desk.room()
    }

    async fn answer(&self, request: Request<'_>, reply: &mut Reply) {
        let verdict = self.decide(request).await;
        answer::tell(&verdict, self.desk.listener().details, reply);
    }

    fn refuse(&self, down: Down, reply: &mut Reply) {
        answer::tell(&Verdict::down(down), self.desk.listener().details, reply);
    }
}

impl ForwardAuth {
    async fn decide(&self, request: Request<'_>) -> Verdict {
        match self.question(request) {
            Ok((bound, terms, input)) => self.desk.decide(&bound, terms, &input).await,
            Err(down) => Verdict::down(down),
        }
    }

    fn question<'a>(&self, request: Request<'a>) -> Result<(Bound, Terms, Input<'a>), Down> {
        let listener = self.desk.listener();
        let Speaks::Http(form) = &listener.speaks else {
            return Err(Down::new(Code::Unavailable, "this listener does not speak HTTP"));
        };
        let bound = self.desk.bind(|_| None, |name| one(&request.lines, name))?;
        let began = request.began;
        let asked = original::read(form, request, |name| binds(listener, name))?;
        // A body takes its time, and the proxy has been waiting all the while.
        let within = asked.patience.map(|patience| patience.saturating_sub(began.elapsed()));
        Ok((bound, Terms { within, trace: asked.trace }, Input::Http(asked.request)))
    }
}

/// The value of a header that comes once.
pub(super) fn one<'a>(lines: &[Header<'a>], name: &str) -> Option<&'a str> {
    let mut found = lines.iter().filter(|line| line.name == name);
    match (found.next(), found.next()) {
        (Some(line), None) => std::str::from_utf8(line.value).ok(),
        _ => None,
    }
}

/// Whether a header is where this listener's proxy says for whom it asks.
fn binds(listener: &Listener, name: &str) -> bool {
    let by = |header: &str| header == name;
    matches!(&listener.tenant, Binding::Header { name, .. } if by(name))
        || matches!(&listener.policy, Binding::Header { name, .. } if by(name))
}
