//! Where every protocol puts its questions: who is asked for is settled here, how long it may take, what is not asked about
//! whatever the protocol, and how much of it all the process holds.

mod room;
mod target;

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub(super) use self::room::{Full, Place, Room, SMALL};
#[cfg(test)]
pub(super) use self::target::{ONE_READING, TWO_READINGS};
use super::lines::Lines;
use super::verdict::{Code, Down, Verdict};
use crate::client::{ClientError, Deadline};
use crate::decision::{Decision, Input, PolicyName, Tenant, TraceContext};
use crate::wire::gateway::{Binding, Listener};

/// How long the service may take to say that it is there.
pub(super) const REACHED_WITHIN: Duration = Duration::from_secs(1);
/// Of the time that a proxy leaves, a tenth is for the answer's way back, and no more than this.
const WAY_BACK_MAX: Duration = Duration::from_millis(10);
/// Nor less: timers count milliseconds, and are late by up to one.
const WAY_BACK_MIN: Duration = Duration::from_millis(2);
/// Bodies, messages and answers of all connections together, bytes; each counts once, as long as it is there.
const HELD_MAX: usize = 256 << 20;

/// What the connections of one listener may hold, of so many: none of them takes it from another.
pub(super) fn room_of_one(listeners: usize) -> Arc<Room> {
    Room::new(HELD_MAX / listeners.max(1))
}

/// What a listener's connections ask by. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Desk {
    asks: Asks,
    listener: Arc<Listener>,
    /// Who is at the other end, where the kernel says so.
    peer: Option<u32>,
    room: Arc<Room>,
    /// True from when this process drains.
    closing: watch::Receiver<bool>,
}

#[derive(Clone)]
enum Asks {
    Service(Lines),
    /// What a test answers.
    #[cfg(test)]
    Test(Arc<Scripted>),
    /// What a test answers when it is time.
    #[cfg(test)]
    Later(Arc<ScriptedLater>),
}

#[cfg(test)]
pub(super) type Scripted =
    dyn Fn(&Tenant, &PolicyName, Deadline, &Input<'_>) -> Result<Decision, ClientError> + Send + Sync;

/// Decisions that a test lets come in an order of its own.
#[cfg(test)]
pub(super) type ScriptedLater =
    dyn Fn(&Input<'_>) -> std::pin::Pin<Box<dyn Future<Output = Decision> + Send>> + Send + Sync;

impl std::fmt::Debug for Asks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(lines) => lines.fmt(f),
            #[cfg(test)]
            Self::Test(_) | Self::Later(_) => f.write_str("Test"),
        }
    }
}

/// For whom it is asked, and what decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) tenant: Tenant,
    pub(super) policy: PolicyName,
}

/// What a request says of itself besides its [`Input`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Terms {
    /// When the proxy gives up itself. It can only shorten the listener's, and a part of it is kept for the way back.
    pub(super) within: Option<Duration>,
    pub(super) trace: Option<TraceContext>,
}

impl Desk {
    pub(super) fn new(
        lines: Lines,
        listener: Arc<Listener>,
        room: Arc<Room>,
        peer: Option<u32>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { asks: Asks::Service(lines), listener, peer, room, closing }
    }

    #[cfg(test)]
    pub(super) fn scripted(script: Arc<Scripted>, listener: Listener, peer: Option<u32>) -> Self {
        let never = watch::channel(false).1;
        let room = Room::new(HELD_MAX);
        Self { asks: Asks::Test(script), listener: Arc::new(listener), peer, room, closing: never }
    }

    #[cfg(test)]
    pub(super) fn scripted_later(script: Arc<ScriptedLater>, listener: Listener) -> Self {
        Self {
            asks: Asks::Later(script),
            ..Self::scripted(Arc::new(|_, _, _, _| unreachable!()), listener, None)
        }
    }

    #[cfg(test)]
    pub(super) fn with_room(self, room: Arc<Room>) -> Self {
        Self { room, ..self }
    }

    #[cfg(test)]
    pub(super) fn closing_by(self, closing: watch::Receiver<bool>) -> Self {
        Self { closing, ..self }
    }

    /// Comes when this process drains: finish what was begun on this connection, say the protocol's word for going if it has
    /// one, take nothing new, return. Whoever takes longer than the service's drain is cut off.
    pub(super) fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closing = self.closing.clone();
        async move {
            if closing.wait_for(|closing| *closing).await.is_err() {
                pending().await
            }
        }
    }

    pub(super) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Where what a connection holds of questions and answers is counted.
    pub(super) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Whom the listener binds a request to. `context` and `header` look up what the proxy says; a header that comes twice
    /// must be given as none.
    pub(super) fn bind<'a>(
        &self,
        context: impl Fn(&str) -> Option<&'a str>,
        header: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Bound, Down> {
        let Listener { tenant, policy, .. } = &*self.listener;
        let tenant = self.one_of("tenant", tenant, &context, &header)?;
        let policy = self.one_of("policy", policy, &context, &header)?;
        Ok(Bound { tenant: tenant.clone(), policy: policy.clone() })
    }

    /// The same where the policy is known already.
    pub(super) fn bind_tenant<'a>(&self, header: impl Fn(&str) -> Option<&'a str>) -> Result<Tenant, Down> {
        self.one_of("tenant", &self.listener.tenant, &|_| None, &header).cloned()
    }

    fn one_of<'a, 'l, T: AsRef<str>>(
        &self,
        what: &str,
        binding: &'l Binding<T>,
        context: &impl Fn(&str) -> Option<&'a str>,
        header: &impl Fn(&str) -> Option<&'a str>,
    ) -> Result<&'l T, Down> {
        let not =
            |why: String| Down::new(Code::NotPermitted, format!("listener {}: {why}", self.listener.name));
        let (named, among, place, key) = match binding {
            Binding::Fixed(one) => return Ok(one),
            Binding::Peer(of) => {
                let found = of.iter().find(|(uid, _)| Some(*uid) == self.peer);
                return found.map(|(_, one)| one).ok_or_else(|| match self.peer {
                    Some(uid) => not(format!("no {what} for UID {uid}; name one in its table of peers")),
                    None => not(format!("no {what} where the kernel names no peer")),
                });
            }
            Binding::Context { key, among } => (context(key), among, "context", key),
            Binding::Header { name, among } => (header(name), among, "header", name),
        };
        let named = named
            .ok_or_else(|| not(format!("no {what}: the proxy sends no {place} {key:?}, or more than one")))?;
        among
            .iter()
            .find(|one| one.as_ref() == named)
            .ok_or_else(|| not(format!("the {what} in {place} {key:?} is none of those it may name")))
    }

    /// Whether the service answers for that tenant. Nothing is decided.
    pub(super) async fn reach(&self, tenant: &Tenant) -> Result<(), Down> {
        match &self.asks {
            Asks::Service(lines) => lines.reach(tenant).await.map_err(|error| Down::from(&error)),
            #[cfg(test)]
            Asks::Test(_) | Asks::Later(_) => Ok(()),
        }
    }

    /// Asks, and gives what the proxy is to be told. Every error keeps the gate down.
    pub(super) async fn decide(&self, bound: &Bound, terms: Terms, input: &Input<'_>) -> Verdict {
        if let Input::Http(request) = input
            && let Err(down) = target::check(request)
        {
            return Verdict::down(down);
        }
        let longest = Duration::from_micros(self.listener.deadline_us.into());
        let left = match terms.within.map(in_time) {
            None => None,
            Some(Some(left)) => Some(left),
            Some(None) => {
                return Verdict::down(Down::new(Code::Deadline, "the proxy leaves no time for a decision"));
            }
        };
        let deadline = Deadline::in_(left.map_or(longest, |left| left.min(longest)));
        let until = left.and_then(|left| Instant::now().checked_add(left));
        self.ask(bound, terms.trace, deadline, until, input).await.into()
    }

    /// Gives up some time after the deadline, and at `until` at the latest.
    async fn ask(
        &self,
        Bound { tenant, policy }: &Bound,
        trace: Option<TraceContext>,
        deadline: Deadline,
        until: Option<Instant>,
        input: &Input<'_>,
    ) -> Result<Decision, ClientError> {
        match &self.asks {
            Asks::Service(lines) => {
                let line = lines.take(tenant, policy);
                let traced = trace.map(|trace| line.client().traced(trace));
                let client = traced.as_ref().unwrap_or(line.client());
                let result = client.decide_until(until, tenant, policy, deadline, input).await;
                if let Ok(decision) = &result {
                    line.decided(tenant, policy, decision);
                }
                result
            }
            #[cfg(test)]
            Asks::Test(script) => script(tenant, policy, deadline, input),
            #[cfg(test)]
            Asks::Later(script) => Ok(script(input).await),
        }
    }
}

/// Of the time after which a proxy gives up, what may be used. A proxy that has given up does as it is told for errors, which
/// may be to let the request through: so the answer is there before, and the service's silence too.
pub(super) fn in_time(left: Duration) -> Option<Duration> {
    let back = (left / 10).clamp(WAY_BACK_MIN, WAY_BACK_MAX);
    left.checked_sub(back).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests;
