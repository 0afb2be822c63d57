//! Where a policy is asked: the engine of a worker with room for one instance, and the time that it gives to a guest.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::Engine;

use super::QUESTION_MAX;
use super::subject::Subject;
use crate::decision::{Decision, Input, Outcome, Refusal, Stage as When};
use crate::engine::{
    self, Call, Data, Engines, Evaluated, Notes, Policy, PoolLimits, Slice, Watch, monotonic_ns, realtime_ns,
};
use crate::wire::frame;

/// How often a guest that runs is made to look at the clock.
const TICK: Duration = Duration::from_millis(1);
/// Longest that a policy may take to begin, microseconds of processor time, whatever its own limit is: what a builder gives it.
const BEGIN_US: u32 = 1_000_000;

/// Engines as a worker has them, with room for one instance of so much memory.
pub(super) fn engines(memory: u32) -> Result<Engines, StageError> {
    let pool = PoolLimits { instances: 1, memory, stack_zeroing: false };
    Engines::new(pool).map_err(|error| StageError::Engine(format!("{error:#}")))
}

/// Where time passes.
#[derive(Debug)]
pub(super) struct Stage {
    ticker: Ticker,
}

/// Why nothing can be asked here.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("make engine: {0}")]
    Engine(String),
    #[error("start thread \"ticker\": {0}")]
    Thread(#[source] std::io::Error),
}

/// A decision, and what was seen of it.
#[derive(Debug)]
pub struct Asked {
    pub decision: Decision,
    pub notes: Notes,
}

impl Stage {
    /// Once the policy is loaded: which engine it needs is known then.
    pub(super) fn start(engines: &Engines) -> Result<Self, StageError> {
        Ok(Self { ticker: Ticker::start(engines.all()).map_err(StageError::Thread)? })
    }
}

impl Subject {
    /// Asks once, as a worker would: a fresh instance, the policy's own limits, and until its deadline.
    #[must_use]
    pub fn ask(&self, call: Call, data: Option<Arc<Data>>, deadline_us: Option<u32>) -> Asked {
        let watch = Arc::new(Watch::new(data));
        let own = self.limits().deadline_us;
        let limit = deadline_us.unwrap_or(self.patience_us).min(own);
        let decision = self.decide(call, limit, Some(Arc::clone(&watch)));
        Asked { decision, notes: watch.notes() }
    }

    /// The same with nothing noted where there is no data, since noting costs time: for measuring.
    pub fn time(&self, call: Call, data: Option<Arc<Data>>) -> Decision {
        let watch = data.map(|data| Arc::new(Watch::new(Some(data))));
        self.decide(call, self.patience_us.min(self.limits().deadline_us), watch)
    }

    /// Makes an instance. What it then answers to nothing in particular is its own affair.
    pub(super) fn begin(&self) -> Result<(), String> {
        let question = Input::Opaque { content_type: "", bytes: b"" };
        let input = frame::encode(&question, QUESTION_MAX).map_err(|error| error.to_string())?;
        let call = Call { input: input.into(), clock_ns: realtime_ns(), seed: [0; 32], id: None };
        let limit_us = self.limits().deadline_us.min(BEGIN_US);
        let slice = Arc::new(Slice::default());
        let _ticking = self.stage.ticker.tick();
        let mut evaluation =
            Box::pin(engine::evaluate(Arc::clone(&self.policy), call, Arc::clone(&slice), None));
        match engine::run_for(evaluation.as_mut(), &slice, u64::from(limit_us).saturating_mul(1000)) {
            Poll::Ready(Evaluated { instantiated: false, decision, .. }) => Err(match decision.outcome {
                Outcome::Refused(Refusal::Trap(kind)) => format!("it traps ({kind:?})"),
                outcome => format!("{outcome:?}"),
            }),
            Poll::Pending if slice.made() == 0 => {
                Err(format!("what it does at its start does not end in {} ms", limit_us / 1000))
            }
            Poll::Ready(_) | Poll::Pending => Ok(()),
        }
    }

    fn decide(&self, call: Call, limit_us: u32, watch: Option<Arc<Watch>>) -> Decision {
        let deadline = monotonic_ns().saturating_add(u64::from(limit_us).saturating_mul(1000));
        let slice = Arc::new(Slice::default());
        slice.set_end(deadline);
        let policy = Arc::clone(&self.policy);
        let digest = Some(policy.digest());
        let refused = |refusal| Decision { digest, ..Decision::refused(refusal) };
        let _ticking = self.stage.ticker.tick();
        let mut evaluation = Box::pin(engine::evaluate_watched(policy, call, slice, None, watch));
        loop {
            let polled = evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            let late = monotonic_ns() > deadline;
            match polled {
                Poll::Ready(Evaluated { decision, .. }) if late => {
                    return Decision { timing: decision.timing, ..refused(Refusal::Deadline(When::Reply)) };
                }
                Poll::Ready(Evaluated { decision, .. }) => return decision,
                Poll::Pending if late => return refused(Refusal::Deadline(When::Run)),
                // It yields when its slice is over, and its slice is all of its time.
                Poll::Pending => {}
            }
        }
    }
}

/// Asks once in an engine that counts: no deadline holds there, since it takes many times as long.
#[must_use]
pub fn count(policy: &Arc<Policy>, call: Call, data: Option<Arc<Data>>) -> Asked {
    let watch = Arc::new(Watch::counting(data));
    let evaluation =
        engine::evaluate_watched(Arc::clone(policy), call, Arc::default(), None, Some(Arc::clone(&watch)));
    let mut evaluation = Box::pin(evaluation);
    loop {
        // What it waits for is its own next poll.
        if let Poll::Ready(evaluated) = evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Asked { decision: evaluated.decision, notes: watch.notes() };
        }
    }
}

/// A thread that ticks while a guest runs.
#[derive(Debug)]
struct Ticker {
    state: Arc<(Mutex<Ticking>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ticking {
    Off,
    On,
    Over,
}

/// Ticks until it is dropped.
struct Running<'a>(&'a Ticker);

impl Ticker {
    fn start(engines: Vec<Engine>) -> std::io::Result<Self> {
        let state = Arc::new((Mutex::new(Ticking::Off), Condvar::new()));
        let seen = Arc::clone(&state);
        let thread = thread::Builder::new().name("ticker".into()).spawn(move || {
            let (ticking, changed) = &*seen;
            let mut now = ticking.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                now = match *now {
                    Ticking::Over => return,
                    Ticking::Off => changed.wait(now).unwrap_or_else(PoisonError::into_inner),
                    Ticking::On => {
                        let waited = changed.wait_timeout(now, TICK);
                        let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                        if timeout.timed_out() {
                            engines.iter().for_each(Engine::increment_epoch);
                        }
                        now
                    }
                };
            }
        })?;
        Ok(Self { state, thread: Some(thread) })
    }

    fn tick(&self) -> Running<'_> {
        self.set(Ticking::On);
        Running(self)
    }

    fn set(&self, to: Ticking) {
        let (ticking, changed) = &*self.state;
        *ticking.lock().unwrap_or_else(PoisonError::into_inner) = to;
        changed.notify_one();
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(Ticking::Off);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.set(Ticking::Over);
        if let Some(thread) = self.thread.take() {
            // It does nothing that could fail.
            let _ = thread.join();
        }
    }
}
