//! The floor of everything with a guest: fresh instances of the same policy in the same engine, one after the other on
//! a thread, with no socket, no queue and no other process.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use portcullis::artifact::{self, Expected, SealedBytes, SigningKey};
use portcullis::decision::Outcome;
use portcullis::engine::{self, Call, Evaluated, Granted, Policy, PoolLimits, Slice};

use crate::subject::{POLICY, TENANT, cores, input};
use crate::support::{built, code, policy, statement, tenant};

/// Evaluations between two looks at the clock.
const BURST: u64 = 64;
/// As an executor gives it; nothing ticks here, so nobody looks at it.
const SLICE_NS: u64 = 150_000;

pub(super) struct Bare {
    policy: Arc<Policy>,
    input: Vec<u8>,
    pub(super) pagemap_scan: bool,
}

impl Bare {
    /// The engine of a class with default settings.
    pub(super) fn new() -> Self {
        let limits = PoolLimits { instances: 64, memory: 4 << 20, stack_zeroing: true };
        let engines = engine::Engines::new(limits).unwrap();
        let (tenant, name) = (tenant(TENANT), policy(POLICY));
        let built = built("hash");
        let key = SigningKey::generate_ed25519().unwrap();
        let signed = artifact::sign(&statement(&built, &tenant, &name, 1), &key).unwrap();
        let bytes = SealedBytes::of(code(&built)).unwrap();
        let expected = Expected { tenant: &tenant, policy: &name, minimum_version: 0 };
        let artifact = artifact::verify(bytes, &signed, &[key.public_key()], &expected).unwrap();
        let policy = engine::load(&engines, artifact, Granted::default()).unwrap();
        let bare = Self { policy: Arc::new(policy), input: input(), pagemap_scan: engines.pagemap_scan() };
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
            (0..BURST).for_each(|_| self.evaluate(&slice));
            evaluated += BURST;
        }
        evaluated
    }

    /// Everything that an executor does for the guest's sake.
    fn evaluate(&self, slice: &Arc<Slice>) {
        let input = bytes::Bytes::copy_from_slice(&self.input);
        let call = Call { input, clock_ns: engine::realtime_ns(), seed: [7; 32] };
        slice.set_end(engine::monotonic_ns() + SLICE_NS);
        let mut evaluation = Box::pin(engine::evaluate(Arc::clone(&self.policy), call, Arc::clone(slice)));
        match evaluation.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Evaluated { decision, .. }) => assert_eq!(decision.outcome, Outcome::Allow),
            Poll::Pending => panic!("yielded, though nothing ticks"),
        }
    }
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}
