//! Policies that are run where they are built, before there is a request: in a store of their own, with limits on memory and
//! time, and without a host.

use std::sync::mpsc;
use std::time::Duration;

use wasmtime::{Engine, Func, FuncType, Store, StoreLimits, StoreLimitsBuilder};

use crate::engine::{Metering, Target, compiling_engine};

/// Longest that a policy may run.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Most memory that it may take, bytes.
pub(super) const MEMORY_MAX: usize = 1 << 30;

/// The engine that policies are run with while they are built.
pub(super) fn run_engine() -> Result<Engine, String> {
    compiling_engine(Target::host(), Metering::Off).map_err(|error| format!("{error:#}"))
}

/// A store with limits on memory and on time.
pub(super) struct Run {
    pub(super) store: Store<StoreLimits>,
}

impl Run {
    pub(super) fn new(engine: &Engine) -> Self {
        let limits = StoreLimitsBuilder::new().memory_size(MEMORY_MAX).trap_on_grow_failure(true).build();
        let mut store = Store::new(engine, limits);
        store.limiter(|limits| limits);
        store.set_epoch_deadline(1);
        Self { store }
    }

    /// Runs `work`, which is interrupted when its time is over.
    pub(super) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Store<StoreLimits>) -> wasmtime::Result<T>,
    ) -> Result<T, String> {
        let engine = self.store.engine().clone();
        let (done, waits) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Over when `done` is dropped, whichever way `work` ended.
                if waits.recv_timeout(TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                    engine.increment_epoch();
                }
            });
            let result = work(&mut self.store).map_err(|error| format!("{error:#}"));
            drop(done);
            result
        })
    }
}

/// A function of the host that is not there yet.
pub(super) fn refusing(store: &mut Store<StoreLimits>, ty: FuncType) -> Func {
    Func::new(store, ty, |_, _, _| Err(wasmtime::Error::msg("it calls the host before there is a request")))
}
