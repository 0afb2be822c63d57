//! The client for tokio: any number of tasks ask over one connection per trust class.

mod connection;
mod places;

use std::collections::HashMap;
#[cfg(feature = "gateway")]
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[cfg(feature = "gateway")]
use tokio::net::UnixStream;
use tokio::time::{sleep_until, timeout_at};

use self::connection::{Connection, Failure, Waiter};
use super::backoff::Backoff;
use super::deadline::local_limit;
use super::exchange::{Answer, Exchange, Subject};
use super::{Breach, ClientError, Deadline, Settings};
use crate::decision::{Decision, Input, Outcome, PolicyName, Refusal, Tenant, TraceContext, TrustClass};

/// Most tenants whose failed attempts are remembered; past it those that may be tried again are forgotten.
const REMEMBERED_FAILURES: usize = 1024;

/// Asks from any number of tasks; clones share the connections. See the [module above](super) for what it keeps.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    trace: Option<TraceContext>,
}

#[derive(Debug)]
struct Shared {
    way: Way,
    settings: Settings,
    routes: Mutex<Routes>,
}

/// How connections come about.
#[derive(Debug)]
enum Way {
    /// At the service's socket, with a greeting.
    Socket(PathBuf),
    #[cfg(feature = "gateway")]
    Made(Arc<dyn Connect>),
}

/// Makes connections for one who cannot.
#[cfg(feature = "gateway")]
pub(crate) trait Connect: std::fmt::Debug + Send + Sync {
    /// One that has been greeted for this tenant: what comes next is the Welcome, or why there is none. Never waits. Called
    /// within the runtime.
    fn connect(&self, tenant: &Tenant) -> io::Result<UnixStream>;

    /// What may be under way on a connection of this class.
    fn pipeline(&self, class: &TrustClass) -> Pipeline;
}

/// How many questions may be under way on a connection.
#[cfg(feature = "gateway")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pipeline {
    pub(crate) questions: usize,
    /// Whether several tenants ask on it, who have to leave something to each other.
    pub(crate) shared: bool,
}

impl Way {
    /// For messages.
    fn place(&self) -> PathBuf {
        match self {
            Self::Socket(path) => path.clone(),
            #[cfg(feature = "gateway")]
            Self::Made(_) => PathBuf::from("frontend"),
        }
    }
}

/// How a tenant is reached.
#[derive(Debug, Default)]
struct Routes {
    class_of: HashMap<Tenant, TrustClass>,
    connections: HashMap<TrustClass, Arc<Connection>>,
    /// Held by the one task that connects for the tenant; the others wait for it.
    attempts: HashMap<Tenant, Arc<tokio::sync::Mutex<Backoff>>>,
}

impl Client {
    /// A client of the service that listens at `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::with_settings(socket, Settings::default())
    }

    #[must_use]
    pub fn with_settings(socket: impl Into<PathBuf>, settings: Settings) -> Self {
        Self::by(Way::Socket(socket.into()), settings)
    }

    /// One whose connections somebody else makes.
    #[cfg(feature = "gateway")]
    #[must_use]
    pub(crate) fn through(connect: Arc<dyn Connect>, settings: Settings) -> Self {
        Self::by(Way::Made(connect), settings)
    }

    fn by(way: Way, settings: Settings) -> Self {
        let routes = Mutex::new(Routes::default());
        Self { shared: Arc::new(Shared { way, settings, routes }), trace: None }
    }

    /// The same client, whose questions belong to this trace; it shares all connections.
    #[must_use]
    pub fn traced(&self, trace: TraceContext) -> Self {
        Self { shared: Arc::clone(&self.shared), trace: Some(trace) }
    }

    /// Asks one question. Any error means that the gate stays down.
    ///
    /// Dropping the future tells the service to give the question up, as far as the socket takes it.
    pub async fn decide(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        input: &Input<'_>,
    ) -> Result<Decision, ClientError> {
        self.decide_until(None, tenant, policy, deadline, input).await
    }

    /// The same, for somebody who waits no longer than that either.
    pub(crate) async fn decide_until(
        &self,
        limit: Option<Instant>,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        input: &Input<'_>,
    ) -> Result<Decision, ClientError> {
        let until = local_limit(deadline, &self.shared.settings);
        let until = limit.map_or(until, |limit| limit.min(until));
        let subject = Subject { tenant, policy, deadline, trace: self.trace };
        match self
            .ask(tenant, until, |exchange: &mut Exchange<Waiter>, waiter| {
                exchange.decide(subject, input, waiter)
            })
            .await?
        {
            Answer::Decision(decision) => {
                self.shared.look_again_if_refused(tenant, &decision);
                Ok(decision)
            }
            Answer::Decisions(_) | Answer::Pong => Err(ClientError::Protocol(Breach::Mismatch)),
        }
    }

    /// Asks 1 to [`BATCH_MAX`](super::BATCH_MAX) questions to one policy under one deadline; the decisions come in the
    /// order of the inputs, as many. Any error means that the gate stays down for all of them.
    pub async fn decide_batch(
        &self,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        inputs: &[Input<'_>],
    ) -> Result<Vec<Decision>, ClientError> {
        let subject = Subject { tenant, policy, deadline, trace: self.trace };
        let until = local_limit(deadline, &self.shared.settings);
        match self
            .ask(tenant, until, |exchange: &mut Exchange<Waiter>, waiter| {
                exchange.decide_batch(subject, inputs, waiter)
            })
            .await?
        {
            Answer::Decisions(decisions) => {
                decisions.iter().for_each(|decision| self.shared.look_again_if_refused(tenant, decision));
                Ok(decisions)
            }
            Answer::Decision(_) | Answer::Pong => Err(ClientError::Protocol(Breach::Mismatch)),
        }
    }

    /// Whether there is a connection on which it can be asked for that tenant.
    #[cfg(feature = "gateway")]
    pub(crate) fn is_connected(&self, tenant: &Tenant) -> bool {
        self.shared.live(tenant).is_some()
    }

    /// Asks the worker of the tenant's class for a sign of life, and gives the time it took.
    pub async fn ping(&self, tenant: &Tenant, within: Duration) -> Result<Duration, ClientError> {
        let start = Instant::now();
        let until = start.checked_add(within).unwrap_or(start);
        match self.ask(tenant, until, Exchange::ping).await? {
            Answer::Pong => Ok(start.elapsed()),
            Answer::Decision(_) | Answer::Decisions(_) => Err(ClientError::Protocol(Breach::Mismatch)),
        }
    }

    /// Asks on the class's connection; once more on a new one if the first died before a byte was written.
    async fn ask(
        &self,
        tenant: &Tenant,
        until: Instant,
        question: impl Fn(&mut Exchange<Waiter>, Waiter) -> Result<u64, ClientError>,
    ) -> Result<Answer, ClientError> {
        let first = self.connection(tenant, until).await?;
        match first.ask(tenant, until, &question).await {
            Ok(answer) => return Ok(answer),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::NotWritten(_)) => {}
        }
        let second = self.connection(tenant, until).await?;
        second.ask(tenant, until, &question).await.map_err(Failure::into_error)
    }

    /// The live connection of the tenant's class, opened if there is none.
    async fn connection(&self, tenant: &Tenant, until: Instant) -> Result<Arc<Connection>, ClientError> {
        if let Some(connection) = self.shared.live(tenant) {
            return Ok(connection);
        }
        let attempts = self.shared.attempts(tenant);
        let mut backoff =
            timeout_at(until.into(), attempts.lock()).await.map_err(|_| ClientError::Deadline)?;
        loop {
            // The task that held the lock before may have connected.
            if let Some(connection) = self.shared.live(tenant) {
                return Ok(connection);
            }
            let now = Instant::now();
            if now >= until {
                return Err(backoff.error().cloned().unwrap_or(ClientError::Deadline));
            }
            if let Some(next) = backoff.not_before(now) {
                match backoff.error() {
                    Some(error) if next >= until || !error.may_pass() => return Err(error.clone()),
                    None if next >= until => return Err(ClientError::Deadline),
                    _ => sleep_until(next.into()).await,
                }
            }
            backoff.attempt(Instant::now(), &self.shared.settings);
            let opening = Connection::open(&self.shared.way, tenant, &self.shared.settings);
            // That this one has no time left says nothing to those who have.
            let opened = timeout_at(until.into(), opening).await.map_err(|_| ClientError::Deadline)?;
            backoff.ended(opened.as_ref().err().cloned());
            match opened {
                Ok(connection) => return Ok(self.shared.keep(tenant, connection)),
                Err(error) if error.may_pass() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Shared {
    fn live(&self, tenant: &Tenant) -> Option<Arc<Connection>> {
        let mut routes = self.routes();
        let Routes { class_of, connections, .. } = &mut *routes;
        let class = class_of.get(tenant)?;
        let connection = Arc::clone(connections.get(class)?);
        if !connection.is_alive() {
            // With the last who asked there its descriptor goes, whether there is ever another or not.
            connections.remove(class);
            return None;
        }
        Some(connection)
    }

    /// A worker that may not decide for the tenant is not of its class any more, or never was told of it: the next question
    /// asks the service anew whose it is.
    fn look_again_if_refused(&self, tenant: &Tenant, decision: &Decision) {
        if decision.outcome == Outcome::Refused(Refusal::NotPermitted) {
            self.routes().class_of.remove(tenant);
        }
    }

    /// Remembers a new connection, or drops it for an older one of its class, whose grant holds this tenant too.
    fn keep(&self, tenant: &Tenant, connection: Connection) -> Arc<Connection> {
        let mut routes = self.routes();
        let class = connection.class().clone();
        routes.class_of.insert(tenant.clone(), class.clone());
        if let Some(older) = routes.connections.get(&class)
            && older.is_alive()
        {
            return Arc::clone(older);
        }
        let connection = Arc::new(connection);
        routes.connections.insert(class, Arc::clone(&connection));
        connection
    }

    fn attempts(&self, tenant: &Tenant) -> Arc<tokio::sync::Mutex<Backoff>> {
        let mut routes = self.routes();
        if routes.attempts.len() >= REMEMBERED_FAILURES {
            let now = Instant::now();
            routes.attempts.retain(|_, attempts| {
                attempts.try_lock().map_or(true, |backoff| backoff.not_before(now).is_some())
            });
        }
        Arc::clone(routes.attempts.entry(tenant.clone()).or_default())
    }

    /// What is behind the lock is whole at every point where a panic could leave it.
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::wire::client::{PROTOCOL_VERSION, SERVER_FRAME_MAX, ServerFrame};
    use crate::wire::frame;

    /// The next to connect is welcomed to that class, and left once it has asked.
    async fn welcome_and_leave(listener: &UnixListener, class: &str) {
        let class = TrustClass::new(class).unwrap();
        let welcome = ServerFrame::Welcome { version: PROTOCOL_VERSION, class, generation: 1 };
        let mut bytes = BytesMut::new();
        frame::encode_frame(&welcome, &mut bytes, SERVER_FRAME_MAX).unwrap();
        // Somebody may have come and left before.
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = BytesMut::new();
            while frame::next_frame(&mut hello, SERVER_FRAME_MAX).unwrap().is_none()
                && stream.read_buf(&mut hello).await.unwrap_or(0) > 0
            {}
            if stream.write_all(&bytes).await.is_ok()
                && stream.read(&mut [0]).await.is_ok_and(|read| read == 1)
            {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = Client::new(&path);
        let acme = Tenant::new("acme").unwrap();
        // Each names another class, so that none takes another's place.
        for class in ["one", "two", "three"] {
            let within = Duration::from_secs(20);
            let (answer, ()) = tokio::join!(client.ping(&acme, within), welcome_and_leave(&listener, class));
            assert!(matches!(answer, Err(ClientError::Closed(_))), "{answer:?}");
            assert_eq!(client.shared.routes().connections.len(), 1, "{class}");
        }
    }

    #[tokio::test]
    async fn whose_time_is_over_says_nothing_to_those_who_have_some() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let retry = Duration::from_millis(200);
        let settings = Settings { retry_first: retry, retry_longest: retry, ..Settings::default() };
        let client = Client::with_settings(&path, settings);
        let acme = Tenant::new("acme").unwrap();
        // Nobody welcomes it, and it does not wait.
        let hasty = client.ping(&acme, Duration::from_millis(200)).await;
        assert!(matches!(hasty, Err(ClientError::Deadline)), "{hasty:?}");
        let patient = tokio::select! {
            answer = client.ping(&acme, Duration::from_secs(20)) => answer,
            () = async { welcome_and_leave(&listener, "one").await; std::future::pending().await } => unreachable!(),
        };
        assert!(matches!(patient, Err(ClientError::Closed(_))), "it was connected: {patient:?}");
    }
}
