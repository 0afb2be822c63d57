//! What a policy does once: it is run here, where it is built, and its memory as it is then is what instances start with.
//!
//! Nothing of the world is there meanwhile: whatever the module calls of the host ends the build.

use std::task::{Context, Poll, Waker};

use wasmtime::{Extern, Instance, Memory, Module, Store, StoreLimits, Val};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};

use super::merge::{START, bind_of, finish};
use super::relocate::Placed;
use super::{RegoError, weight};
use crate::bundle::RegoResult;
use crate::compile::run::{Run, refusing, run_engine};

/// How wasmtime begins to say that a memory would grow beyond its limit.
const GREW: &str = "forcing trap when growing memory";
const PAGE: u32 = 64 << 10;

/// What its author chose.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    /// By OPA's number of it.
    pub(super) entrypoint: u32,
    pub(super) result: RegoResult,
}

/// A policy that has everything behind it but requests.
pub(super) struct Taken {
    pub(super) module: Vec<u8>,
    pub(super) data: u32,
    pub(super) heap: u32,
}

/// Runs everything that comes before a request. None if OPA's start took memory that the adapters have.
/// `names`: of builtins, for each adapter.
pub(super) fn take(
    merged: &[u8],
    placed: &[Placed],
    names: &[Vec<String>],
    data: &[u8],
    settings: Settings,
) -> Result<Option<Taken>, RegoError> {
    let failed = |error: wasmtime::Error| RegoError::Snapshot(format!("{error:#}"));
    let wizer = Wizer::new();
    let (context, instrumented) = wizer.instrument(merged).map_err(failed)?;
    let engine = run_engine().map_err(RegoError::Snapshot)?;
    let module = Module::new(&engine, &instrumented).map_err(failed)?;
    let mut run = Run::new(&engine);
    let imports: Vec<Extern> = module
        .imports()
        .filter_map(|import| import.ty().func().cloned())
        .map(|ty| Extern::Func(refusing(&mut run.store, ty)))
        .collect();
    let started = run
        .guarded(|store| {
            let instance = Instance::new(&mut *store, &module, &imports)?;
            let memory = instance
                .get_memory(&mut *store, "memory")
                .ok_or_else(|| wasmtime::Error::msg("no memory"))?;
            initialise(&mut Machine { store, instance, memory }, placed, names, data, settings)
                .map(|settled| settled.map(|settled| (instance, settled)))
        })
        .map_err(|why| match why.contains(GREW) {
            true => RegoError::Memory { len: data.len(), parsed: weight::parsed(data) },
            false => RegoError::Snapshot(why),
        })?;
    let Some((instance, settled)) = started else { return Ok(None) };
    if settled.data == 0 {
        return Err(RegoError::Data("OPA does not read it".into()));
    }
    if let Some(unknown) = settled.unknown {
        return Err(RegoError::Unknown(unknown));
    }
    let mut state = State { store: &mut run.store, instance };
    let snapshot = std::pin::pin!(wizer.snapshot(&context, &mut state));
    let Poll::Ready(snapshot) = Future::poll(snapshot, &mut Context::from_waker(Waker::noop())) else {
        return Err(RegoError::Snapshot("it waits for something".into()));
    };
    let module =
        finish(&snapshot.map_err(failed)?).map_err(|error| RegoError::Snapshot(error.to_string()))?;
    Ok(Some(Taken { module, data: settled.data, heap: settled.heap }))
}

/// What came of it.
struct Settled {
    data: u32,
    heap: u32,
    unknown: Option<String>,
}

struct Machine<'a> {
    store: &'a mut Store<StoreLimits>,
    instance: Instance,
    memory: Memory,
}

impl Machine<'_> {
    fn call<P: wasmtime::WasmParams, R: wasmtime::WasmResults>(
        &mut self,
        name: &str,
        parameters: P,
    ) -> wasmtime::Result<R> {
        self.instance.get_typed_func::<P, R>(&mut *self.store, name)?.call(&mut *self.store, parameters)
    }

    /// Puts `text` into a block of OPA's heap.
    fn text(&mut self, text: &[u8]) -> wasmtime::Result<u32> {
        let len = u32::try_from(text.len())?;
        let block = self.call::<u32, u32>("opa_malloc", len)?;
        self.memory.write(&mut *self.store, block as usize, text)?;
        Ok(block)
    }

    /// Gives a block back, with nothing left in it: what is zero is not in the snapshot.
    fn forget(&mut self, block: u32, len: usize) -> wasmtime::Result<()> {
        let start = block as usize;
        if let Some(bytes) = self.memory.data_mut(&mut *self.store).get_mut(start..start.saturating_add(len))
        {
            bytes.fill(0);
        }
        self.call::<u32, ()>("opa_free", block)
    }
}

fn initialise(
    machine: &mut Machine<'_>,
    placed: &[Placed],
    names: &[Vec<String>],
    data: &[u8],
    settings: Settings,
) -> wasmtime::Result<Option<Settled>> {
    let (base, end) =
        placed.first().zip(placed.last()).map_or((0, 0), |(first, last)| (first.base, last.end));
    if machine.instance.get_func(&mut *machine.store, START).is_some() {
        machine.call::<(), ()>(START, ())?;
    }
    if machine.call::<(), u32>("opa_heap_ptr_get", ())? > base {
        return Ok(None);
    }
    machine.call::<u32, ()>("opa_heap_ptr_set", end)?;

    let data = if data.is_empty() { b"{}" } else { data };
    let block = machine.text(data)?;
    let value = machine.call::<(u32, u32), u32>("opa_json_parse", (block, u32::try_from(data.len())?))?;
    machine.forget(block, data.len())?;
    // As the adapter has them.
    let result = match settings.result {
        RegoResult::Any => 0_u32,
        RegoResult::Boolean => 1,
        RegoResult::Object => 2,
        RegoResult::Envoy => 3,
    };
    machine.call::<(u32, u32, u32), ()>("rego_settle", (value, settings.entrypoint, result))?;

    let mut unknown = None;
    for (number, names) in names.iter().enumerate() {
        let text = names.join("\n");
        let block = machine.text(text.as_bytes())?;
        let len = u32::try_from(text.len())?;
        let found = machine.call::<(u32, u32), i32>(&bind_of(number), (block, len))?;
        machine.forget(block, text.len())?;
        unknown = unknown.or(usize::try_from(found).ok().and_then(|number| names.get(number)));
    }

    // What was on the adapter's stack is nobody's any more.
    let stack = base as usize..base.saturating_add(8 * PAGE) as usize;
    if let Some(stack) = machine.memory.data_mut(&mut *machine.store).get_mut(stack) {
        stack.fill(0);
    }
    let heap = machine.call::<(), u32>("opa_heap_ptr_get", ())?;
    Ok(Some(Settled { data: value, heap, unknown: unknown.cloned() }))
}

/// What wizer reads.
struct State<'a> {
    store: &'a mut Store<StoreLimits>,
    instance: Instance,
}

impl InstanceState for State<'_> {
    async fn global_get(&mut self, name: &str, _: wasmparser::ValType) -> SnapshotVal {
        let value =
            self.instance.get_global(&mut *self.store, name).map(|global| global.get(&mut *self.store));
        match value {
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
