//! The client without tokio: std threads and std sockets.
//!
//! ```no_run
//! use std::time::Duration;
//! use portcullis::client::{Deadline, Question, blocking::Client, is_allowed};
//! use portcullis::decision::{PolicyName, Tenant};
//!
//! let mut client = Client::new("/run/portcullis/decide.sock");
//! let (tenant, policy) = (Tenant::new("acme")?, PolicyName::new("ip-allowlist")?);
//! let question = Question::http("GET", "https", "api.acme.example", "/").source("192.0.2.7:50123".parse()?);
//! let answer = client.decide(&tenant, &policy, Deadline::in_(Duration::from_millis(20)), question.input());
//! println!("{}", if is_allowed(&answer) { "let through" } else { "stopped" });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A [`Client`] asks one question at a time: have one per thread. For many questions under way at once on one thread
//! there is the [`Connection`] below it.

mod connection;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use connection::Connection;

use super::backoff::Backoff;
use super::deadline::local_limit;
use super::exchange::{Answer, Subject};
use super::{Breach, ClientError, Deadline, Settings};
use crate::decision::{Decision, Input, Outcome, PolicyName, Refusal, Tenant, TraceContext, TrustClass};

/// Most tenants whose failed attempts are remembered; past it those that may be tried again are forgotten.
const REMEMBERED_FAILURES: usize = 1024;

/// Asks one question at a time, over one connection per trust class. See the [module above](super) for what it keeps.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    settings: Settings,
    class_of: HashMap<Tenant, TrustClass>,
    connections: HashMap<TrustClass, Connection>,
    attempts: HashMap<Tenant, Backoff>,
    trace: Option<TraceContext>,
}

impl Client {
    /// A client of the service that listens at `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::with_settings(socket, Settings::default())
    }

    #[must_use]
    pub fn with_settings(socket: impl Into<PathBuf>, settings: Settings) -> Self {
        Self {
            socket: socket.into(),
            settings,
            class_of: HashMap::new(),
            connections: HashMap::new(),
            attempts: HashMap::new(),
            trace: None,
        }
    }

    /// What is asked from now on belongs to this trace, or to none.
    pub fn set_trace(&mut self, trace: Option<TraceContext>) {
        self.trace = trace;
    }

    /// Asks one question. Any error means that the gate stays down.
    pub fn decide(
        &mut self,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        input: &Input<'_>,
    ) -> Result<Decision, ClientError> {
        let subject = Subject { tenant, policy, deadline, trace: self.trace };
        match self.ask(tenant, self.until(deadline), |connection| connection.ask(subject, input))? {
            Answer::Decision(decision) => {
                self.look_again_if_refused(tenant, &decision);
                Ok(decision)
            }
            Answer::Decisions(_) | Answer::Pong => Err(ClientError::Protocol(Breach::Mismatch)),
        }
    }

    /// Asks 1 to [`BATCH_MAX`](super::BATCH_MAX) questions to one policy under one deadline; the decisions come in the
    /// order of the inputs, as many. Any error means that the gate stays down for all of them.
    pub fn decide_batch(
        &mut self,
        tenant: &Tenant,
        policy: &PolicyName,
        deadline: Deadline,
        inputs: &[Input<'_>],
    ) -> Result<Vec<Decision>, ClientError> {
        let subject = Subject { tenant, policy, deadline, trace: self.trace };
        match self.ask(tenant, self.until(deadline), |connection| connection.ask_batch(subject, inputs))? {
            Answer::Decisions(decisions) => {
                decisions.iter().for_each(|decision| self.look_again_if_refused(tenant, decision));
                Ok(decisions)
            }
            Answer::Decision(_) | Answer::Pong => Err(ClientError::Protocol(Breach::Mismatch)),
        }
    }

    /// Asks the worker of the tenant's class for a sign of life, and gives the time it took.
    pub fn ping(&mut self, tenant: &Tenant, within: Duration) -> Result<Duration, ClientError> {
        let start = Instant::now();
        let until = start.checked_add(within).unwrap_or(start);
        match self.ask(tenant, until, Connection::ask_ping)? {
            Answer::Pong => Ok(start.elapsed()),
            Answer::Decision(_) | Answer::Decisions(_) => Err(ClientError::Protocol(Breach::Mismatch)),
        }
    }

    /// A worker that may not decide for the tenant is not of its class any more, or never was told of it: the next question
    /// asks the service anew whose it is.
    fn look_again_if_refused(&mut self, tenant: &Tenant, decision: &Decision) {
        if decision.outcome == Outcome::Refused(Refusal::NotPermitted) {
            self.class_of.remove(tenant);
        }
    }

    fn until(&self, deadline: Deadline) -> Instant {
        local_limit(deadline, &self.settings)
    }

    /// Asks on the class's connection; once more on a new one if the first died before a byte was written.
    fn ask(
        &mut self,
        tenant: &Tenant,
        until: Instant,
        question: impl Fn(&mut Connection) -> Result<u64, ClientError>,
    ) -> Result<Answer, ClientError> {
        let mut second_try = false;
        loop {
            let class = self.connect(tenant, until)?;
            let Some(connection) = self.connections.get_mut(&class) else {
                return Err(ClientError::Closed(super::Ending::Local));
            };
            let id = question(connection)?;
            let outcome = connection.flush_until(Some(until)).and_then(|()| connection.wait(id, until));
            let Err(error) = outcome else { return outcome };
            let unwritten = !connection.any_written(id);
            if matches!(error, ClientError::Deadline) && !unwritten {
                connection.give_up(id, self.settings.patience);
            } else {
                // Half a frame, or none, stands in its buffer: it is of no more use.
                self.connections.remove(&class);
            }
            if second_try || !unwritten || !matches!(error, ClientError::Closed(_)) {
                return Err(error);
            }
            second_try = true;
        }
    }

    /// Sees to it that there is a connection for the tenant; gives its class.
    fn connect(&mut self, tenant: &Tenant, until: Instant) -> Result<TrustClass, ClientError> {
        if let Some(class) = self.class_of.get(tenant)
            && self.connections.get_mut(class).is_some_and(Connection::is_alive)
        {
            return Ok(class.clone());
        }
        if self.attempts.len() >= REMEMBERED_FAILURES {
            let now = Instant::now();
            self.attempts.retain(|_, backoff| backoff.not_before(now).is_some());
        }
        let backoff = self.attempts.entry(tenant.clone()).or_default();
        let connection = loop {
            let now = Instant::now();
            if now >= until {
                return Err(backoff.error().cloned().unwrap_or(ClientError::Deadline));
            }
            if let Some(next) = backoff.not_before(now) {
                match backoff.error() {
                    Some(error) if next >= until || !error.may_pass() => return Err(error.clone()),
                    None if next >= until => return Err(ClientError::Deadline),
                    _ => std::thread::sleep(next.saturating_duration_since(now)),
                }
            }
            let now = Instant::now();
            backoff.attempt(now, &self.settings);
            let opened = Connection::open(&self.socket, tenant, until.saturating_duration_since(now));
            backoff.ended(opened.as_ref().err().cloned());
            match opened {
                Ok(connection) => break connection,
                Err(error) if error.may_pass() => {}
                Err(error) => return Err(error),
            }
        };
        let class = connection.class().clone();
        self.class_of.insert(tenant.clone(), class.clone());
        // The older connection of the class stays: its grant holds this tenant too.
        if !self.connections.get_mut(&class).is_some_and(Connection::is_alive) {
            self.connections.insert(class.clone(), connection);
        }
        Ok(class)
    }
}
