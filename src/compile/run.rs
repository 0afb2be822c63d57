//! Policies that are run where they are built, before there is a request: in a store of their own, with limits on memory and
//! time, and without a host.

use std::sync::mpsc;
use std::time::Duration;

use wasmtime::{Engine, Func, FuncType, Store, StoreLimits, StoreLimitsBuilder};

use crate::engine::{TABLE_ELEMENTS, preparing_engine};

/// Longest that a policy may run.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Most memory that it may take, bytes.
pub(super) const MEMORY_MAX: usize = 1 << 30;

/// Memories of one policy, which have as much each: a component that runs has no more.
const MEMORIES_MAX: usize = 2;

/// What a policy may take of the machine that it is built on.
pub(super) fn limits(memory: usize) -> StoreLimits {
    StoreLimitsBuilder::new()
        .memory_size(memory)
        .memories(MEMORIES_MAX)
        .table_elements(TABLE_ELEMENTS)
        .trap_on_grow_failure(true)
        .build()
}

/// The engine that policies are run with while they are built.
pub(super) fn run_engine() -> Result<Engine, String> {
    preparing_engine().map_err(|error| format!("{error:#}"))
}

/// A store with limits on memory and on time.
pub(super) struct Run {
    pub(super) store: Store<StoreLimits>,
}

impl Run {
    pub(super) fn new(engine: &Engine) -> Self {
        let mut store = Store::new(engine, limits(MEMORY_MAX));
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

#[cfg(test)]
mod tests {
    use wasmtime::{Instance, Module};

    use super::*;
    use crate::engine::{Metering, Target, compiling_engine};

    /// Each memory may be as large as all are allowed to be, so there may not be many.
    #[test]
    fn a_policy_takes_no_more_of_the_machine_than_one_that_runs() {
        let engine = run_engine().unwrap();
        let module = |text: &str| Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let mut run = Run::new(&engine);
        let memory = module("(module (memory 1))");
        for _ in 0..MEMORIES_MAX {
            Instance::new(&mut run.store, &memory, &[]).expect("control");
        }
        Instance::new(&mut run.store, &memory, &[]).expect_err("one memory more");
        let mut run = Run::new(&engine);
        let table = |elements: usize| module(&format!("(module (table {elements} funcref))"));
        Instance::new(&mut run.store, &table(TABLE_ELEMENTS), &[]).expect("control");
        Instance::new(&mut run.store, &table(TABLE_ELEMENTS + 1), &[]).expect_err("a larger table");
    }

    #[test]
    fn what_does_not_end_is_interrupted() {
        let engine = run_engine().unwrap();
        let text = "(module (func (export \"spin\") (loop br 0)))";
        let module = Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let mut run = Run::new(&engine);
        let instance = Instance::new(&mut run.store, &module, &[]).unwrap();
        engine.increment_epoch();
        let spin = instance.get_typed_func::<(), ()>(&mut run.store, "spin").unwrap();
        run.guarded(|store| spin.call(store, ())).expect_err("it does not end");
    }

    /// The bits of a NaN that the machine makes.
    fn nan(engine: &Engine) -> u32 {
        let module = r#"(module (func (export "nan") (param f32) (result i32)
            (i32.reinterpret_f32 (f32.div (local.get 0) (local.get 0)))))"#;
        let module = Module::new(engine, wat::parse_str(module).unwrap()).unwrap();
        Run::new(engine)
            .guarded(|store| {
                let instance = Instance::new(&mut *store, &module, &[])?;
                instance.get_typed_func::<f32, u32>(&mut *store, "nan")?.call(store, 0.0)
            })
            .unwrap()
    }

    #[test]
    fn a_nan_is_the_same_on_every_machine_that_builds() {
        const CANONICAL: u32 = 0x7fc0_0000;
        assert_eq!(nan(&run_engine().unwrap()), CANONICAL);
        if cfg!(target_arch = "x86_64") {
            // Control: what this machine makes by itself has a sign.
            let worker = compiling_engine(Target::host(), Metering::Off).unwrap();
            assert_eq!(nan(&worker), CANONICAL | 1 << 31);
        }
    }
}
