//! The floor of everything with a guest: fresh instances of the same policy in the same engine, one after the other on
//! a thread, with no socket, no queue and no other process.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use portcullis::artifact::{self, Ceiling, Expected, Limits, SealedBytes, SigningKey};
use portcullis::compile::Built;
use portcullis::decision::{Decision, Outcome};
use portcullis::engine::{self, Call, Engines, Evaluated, Granted, Policy, PoolLimits, Slice};

use crate::subject::{POLICY, TENANT, cores, input};
use crate::support::{built, code, policy, statement, tenant};

/// Evaluations between two looks at the clock.
const BURST: u64 = 64;
/// As an executor gives it; nothing ticks here, so nobody looks at it.
const SLICE_NS: u64 = 150_000;
/// Of a class that says nothing of it, bytes.
const DEFAULT_MEMORY: u32 = 4 << 20;

pub(super) struct Bare {
    policy: Arc<Policy>,
    input: Vec<u8>,
    pub(super) pagemap_scan: bool,
}

impl Bare {
    /// In the engine of a class with default settings.
    pub(super) fn new() -> Self {
        let engines = engines(64, DEFAULT_MEMORY);
        let policy = load(&engines, &built("hash"), POLICY, DEFAULT_MEMORY);
        let bare = Self { policy, input: input(), pagemap_scan: engines.pagemap_scan() };
        bare.run(Duration::from_millis(100));
        bare
    }

    /// Processor time of one evaluation on one thread, microseconds.
    pub(super) fn cpu_us(&self, duration: Duration) -> f64 {
        let before = thread_cpu();
        let evaluated = self.run(duration);
        (thread_cpu() - before).as_secs_f64() * 1e6 / evaluated as f64
    }

    /// Evaluations per second, with a thread for each core.
    pub(super) fn per_second(&self, duration: Duration) -> f64 {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..cores())
                .map(|_| {
                    scope.spawn(|| {
                        let start = Instant::now();
                        self.run(duration) as f64 / start.elapsed().as_secs_f64()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        })
    }

    fn run(&self, duration: Duration) -> u64 {
        let slice = Arc::<Slice>::default();
        let until = Instant::now() + duration;
        let mut evaluated = 0;
        while Instant::now() < until {
            (0..BURST).for_each(|_| drop(evaluate(&self.policy, &self.input, &slice)));
            evaluated += BURST;
        }
        evaluated
    }
}

/// As a worker has it, in a class whose instances may have so many bytes of memory.
pub(super) fn loaded(built: &Built, name: &str, memory: u32) -> Arc<Policy> {
    load(&engines(4, memory), built, name, memory)
}

/// Microseconds of the instance and the evaluation.
pub(super) fn decide(policy: &Arc<Policy>, input: &[u8]) -> f64 {
    let timing = evaluate(policy, input, &Arc::default()).timing;
    (timing.instantiate_ns + timing.run_ns) as f64 / 1e3
}

fn engines(instances: u32, memory: u32) -> Engines {
    Engines::new(PoolLimits { instances, memory, stack_zeroing: true }).unwrap()
}

fn load(engines: &Engines, built: &Built, name: &str, memory: u32) -> Arc<Policy> {
    let (tenant, name) = (tenant(TENANT), policy(name));
    let key = SigningKey::generate_ed25519().unwrap();
    let mut statement = statement(built, &tenant, &name, 1);
    statement.limits = Limits { memory, ..Limits::default() };
    let signed = artifact::sign(&statement, &key).unwrap();
    let bytes = SealedBytes::of(code(built)).unwrap();
    let expected = Expected { tenant: &tenant, policy: &name, minimum_version: 0 };
    let artifact = artifact::verify(bytes, &signed, &[key.public_key()], &expected).unwrap();
    let granted = Granted { ceiling: Ceiling { memory, ..Ceiling::MOST }, data: None };
    Arc::new(engine::load(engines, &artifact, granted).unwrap())
}

/// Everything that an executor does for the guest's sake.
fn evaluate(policy: &Arc<Policy>, input: &[u8], slice: &Arc<Slice>) -> Decision {
    let input = bytes::Bytes::copy_from_slice(input);
    let call = Call { input, clock_ns: engine::realtime_ns(), seed: [7; 32], id: None };
    slice.set_end(engine::monotonic_ns() + SLICE_NS);
    let mut evaluation = pin!(engine::evaluate(Arc::clone(policy), call, Arc::clone(slice), None));
    match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Evaluated { decision, .. }) => {
            assert_eq!(decision.outcome, Outcome::Allow);
            decision
        }
        Poll::Pending => panic!("yielded, though nothing ticks"),
    }
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}
