//! A reactor is started where it is built: its memory as it is then is what instances begin with, and none of them runs
//! what a language does before the first call.
//!
//! It has the stand-in of preview 1 meanwhile, and no request: it is always the same time, random numbers are always the same,
//! and what it prints is only told if it fails. So what a language seeds while it starts (the hashes of its maps, its quick
//! generator) is the same in every instance, as it is in every replay.

use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use wasmparser::{Parser, Payload};
use wasmtime::{
    Caller, Engine, Extern, Func, Instance, Memory, Module, ResourceLimiter, Store, StoreLimits, Val,
};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};

use super::preview1;
use crate::compile::ComponentizeError;
use crate::compile::run::limits;
use crate::engine::{Metering, Target, World, compiling_engine};

/// What toolchains call the function that starts a reactor.
const INITIALIZE: &str = "_initialize";
/// Longest that it may take.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Most memory that it may take, bytes.
const MEMORY_MAX: usize = 256 << 20;
/// What its clocks say: a second after 1970, since Go takes zero for a clock that is broken.
const NOW: i64 = 1_000_000_000;
const RANDOM: i64 = 0x5851_f42d_4c95_7f2d;
/// Bytes of what it prints that are told.
const PRINTED_MAX: usize = 500;

/// True if a core module has to be started before it is asked.
pub(in crate::compile) fn is_needed(module: &[u8]) -> bool {
    Parser::new(0).parse_all(module).any(|payload| match payload {
        Ok(Payload::ExportSection(section)) => {
            section.into_iter().any(|export| export.is_ok_and(|export| export.name == INITIALIZE))
        }
        _ => false,
    })
}

/// The module as it is once it has been started.
pub(in crate::compile) fn started(module: &[u8], world: World) -> Result<Vec<u8>, ComponentizeError> {
    run(module, world).map_err(|error| ComponentizeError::Start(format!("{error:#}")))
}

fn run(module: &[u8], world: World) -> wasmtime::Result<Vec<u8>> {
    let mut wizer = Wizer::new();
    wizer.init_func(INITIALIZE);
    let (context, instrumented) = wizer.instrument(module)?;
    let engine = compiling_engine(Target::host(), Metering::Off)?;
    let mut store = Store::new(&engine, Host::new());
    store.limiter(|host| host);
    store.set_epoch_deadline(1);
    let module = Module::new(&engine, &instrumented)?;
    let instance = within(&engine, TIME_MAX, || initialize(&mut store, &module, world));
    let instance = instance.map_err(|error| match store.data().printed.trim() {
        "" => error,
        printed => wasmtime::Error::msg(format!("{error:#}; it printed {printed:?}")),
    })?;
    let mut state = State { store: &mut store, instance };
    let snapshot = std::pin::pin!(wizer.snapshot(&context, &mut state));
    match Future::poll(snapshot, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(snapshot) => snapshot,
        Poll::Pending => Err(wasmtime::Error::msg("it waits for something")),
    }
}

/// Limits, and what functions of preview 1 are forwarded to: it needs a memory that is only there after them.
struct Host {
    limits: StoreLimits,
    stand_in: OnceLock<Instance>,
    printed: String,
}

impl Host {
    fn new() -> Self {
        Self { limits: limits(MEMORY_MAX), stand_in: OnceLock::new(), printed: String::new() }
    }
}

impl ResourceLimiter for Host {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.memory_growing(current, desired, maximum)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

fn initialize(store: &mut Store<Host>, module: &Module, world: World) -> wasmtime::Result<Instance> {
    let mut imports = Vec::new();
    for import in module.imports() {
        let Extern::Func(func) = stand_for(store, &import)? else { continue };
        imports.push(func.into());
    }
    let instance = Instance::new(&mut *store, module, &imports)?;
    if let Some(memory) = instance.get_memory(&mut *store, "memory") {
        let stand_in = Module::new(store.engine(), preview1::module(world)?)?;
        let mut imports: Vec<Extern> = Vec::new();
        for import in stand_in.imports() {
            imports.push(match import.ty().func().cloned() {
                None => memory.into(),
                Some(ty) => Func::new(&mut *store, ty, world_of(import.name(), memory)).into(),
            });
        }
        let stand_in = Instance::new(&mut *store, &stand_in, &imports)?;
        let _ = store.data().stand_in.set(stand_in);
    }
    instance.get_typed_func::<(), ()>(&mut *store, INITIALIZE)?.call(&mut *store, ())?;
    Ok(instance)
}

/// What a module imports: functions of preview 1 are those of the stand-in; nothing else can be called before a request.
fn stand_for(store: &mut Store<Host>, import: &wasmtime::ImportType<'_>) -> wasmtime::Result<Extern> {
    let (of, name) = (import.module().to_owned(), import.name().to_owned());
    let Some(ty) = import.ty().func().cloned() else {
        return Err(wasmtime::Error::msg(format!("it imports {of:?} {name:?}, which is no function")));
    };
    let call = move |mut caller: Caller<'_, Host>, parameters: &[Val], results: &mut [Val]| {
        let stand_in = caller.data().stand_in.get().filter(|_| of == preview1::MODULE).copied();
        let function = stand_in.and_then(|stand_in| stand_in.get_func(&mut caller, &name));
        match function {
            Some(function) => function.call(&mut caller, parameters, results),
            None => Err(wasmtime::Error::msg(format!("it calls {of:?} {name:?} before there is a request"))),
        }
    };
    Ok(Func::new(store, ty, call).into())
}

/// What the stand-in has of the world meanwhile.
fn world_of(
    function: &str,
    memory: Memory,
) -> impl Fn(Caller<'_, Host>, &[Val], &mut [Val]) -> wasmtime::Result<()> + Send + Sync + 'static {
    let number = if function == "now" { NOW } else { RANDOM };
    move |mut caller, parameters, results| {
        results.fill(Val::I64(number));
        if let [Val::I32(_), Val::I32(at), Val::I32(len)] = *parameters {
            let (bytes, host) = memory.data_and_store_mut(&mut caller);
            let place = |value: i32| usize::try_from(value.cast_unsigned()).unwrap_or(usize::MAX);
            let text = bytes.get(place(at)..).and_then(|bytes| bytes.get(..place(len))).unwrap_or_default();
            if host.printed.len() < PRINTED_MAX {
                host.printed += &String::from_utf8_lossy(text.get(..PRINTED_MAX).unwrap_or(text));
            }
        }
        Ok(())
    }
}

/// Does `work`, which is interrupted when its time is over.
fn within<T>(
    engine: &Engine,
    longest: Duration,
    work: impl FnOnce() -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let (done, waits) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Over when `done` is dropped, whichever way `work` ended.
            if waits.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
                engine.increment_epoch();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// What wizer reads.
struct State<'a> {
    store: &'a mut Store<Host>,
    instance: Instance,
}

impl InstanceState for State<'_> {
    async fn global_get(&mut self, name: &str, _: wasmparser::ValType) -> SnapshotVal {
        let global = self.instance.get_global(&mut *self.store, name);
        match global.map(|global| global.get(&mut *self.store)) {
            Some(Val::I64(value)) => SnapshotVal::I64(value),
            Some(Val::F32(value)) => SnapshotVal::F32(value),
            Some(Val::F64(value)) => SnapshotVal::F64(value),
            Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
            Some(Val::I32(value)) => SnapshotVal::I32(value),
            _ => SnapshotVal::I32(0),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&mut *self.store, name);
        contents(memory.map_or(&[], |memory| memory.data(&*self.store)));
    }
}
