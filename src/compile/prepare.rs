//! What a component does once, before there is a request: its `prepare` is run here, where it is built, and its memory as it is
//! then is what every instance starts with. What is shipped has no `prepare` any more.
//!
//! A snapshot has memories and numbers. Tables and segments of a running instance cannot be asked what they are by then, so
//! code that changes them is refused, wherever it is in the component.

use std::task::{Context, Poll, Waker};
use std::thread;

use wasm_encoder::reencode::{Error as ReencodeError, Reencode, ReencodeComponent, component_utils};
use wasm_encoder::{Component as Encoder, ComponentExportSection, ComponentSectionId, RawSection};
use wasmparser::{
    CanonicalFunction, ComponentAlias, ComponentExternalKind, KnownCustom, Operator, Parser, Payload,
    Validator,
};
use wasmtime::component::{Component, ComponentNamedList, Instance, Lift, Linker, WasmList};
use wasmtime::{Store, StoreLimits};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use super::componentize::PREPARE;
use super::run::{MEMORY_MAX, Run, run_engine};
use super::{SOURCE_MAX, STACK};
use crate::artifact::Digest;
use crate::bundle::PreparedConfig;
use crate::engine::FEATURES;

/// A component that has everything behind it but requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    pub component: Vec<u8>,
    pub config: PreparedConfig,
}

/// Why a component was not run before it is shipped.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("prepare policy: {0}")]
    Component(String),
    #[error(
        "prepare policy: no snapshot can be taken of it: {0}; leave that out, or let it start unprepared with \
         `snapshot = \"optional\"` in its policy.toml"
    )]
    Unfit(String),
    #[error("prepare policy: it gave up: {0}")]
    GaveUp(String),
    #[error("prepare policy: run it: {0}")]
    Trap(String),
    #[error(
        "prepare policy: with what it prepared it has {len} bytes, at most {SOURCE_MAX} are built; read large data with \
         the world's `data` functions instead"
    )]
    TooLarge { len: usize },
    #[error("prepare policy: taking the snapshot crashed; please report it together with the policy")]
    Crashed,
}

impl PrepareError {
    fn component(error: impl std::fmt::Display) -> Self {
        Self::Component(error.to_string())
    }
}

/// Whether a component, or a core module that becomes one, has something to do before it is shipped.
#[must_use]
pub fn is_prepared(wasm: &[u8]) -> bool {
    let mut depth = 0_usize;
    let is_component = Parser::is_component(wasm);
    Parser::new(0).parse_all(wasm).map_while(Result::ok).any(|payload| {
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(section) if depth == 0 => {
                let mut exports = section.into_iter().map_while(Result::ok);
                return exports.any(|export| export.name.name == PREPARE);
            }
            Payload::ExportSection(section) if !is_component => {
                return section.into_iter().map_while(Result::ok).any(|export| export.name == PREPARE);
            }
            _ => {}
        }
        false
    })
}

/// Runs `prepare` of a component with its data, and makes a component of what that leaves. With `optional`, one that no
/// snapshot can be taken of is shipped as it is, without its `prepare`, which is never called then.
///
/// # Errors
/// Why that is not possible.
pub fn prepare(component: &[u8], data: Option<&[u8]>, optional: bool) -> Result<Prepared, PrepareError> {
    Validator::new_with_features(FEATURES).validate_all(component).map_err(PrepareError::component)?;
    let taken = thread::scope(|scope| {
        // What is not foreseen in there is a panic of a thread of its own.
        let builder = thread::Builder::new().name("prepare".into()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, || take(component, data.unwrap_or_default()));
        thread.map_err(PrepareError::component)?.join().unwrap_or(Err(PrepareError::Crashed))
    });
    let (snapshot, taken) = match taken {
        Ok(snapshot) => (snapshot, true),
        Err(PrepareError::Unfit(_)) if optional => (component.to_vec(), false),
        Err(error) => return Err(error),
    };
    let shipped = without_prepare(&snapshot)?;
    if shipped.len() > SOURCE_MAX {
        return Err(PrepareError::TooLarge { len: shipped.len() });
    }
    let config = PreparedConfig { component: Digest::of(component), data: data.map(Digest::of), taken };
    Ok(Prepared { component: shipped, config })
}

fn take(component: &[u8], data: &[u8]) -> Result<Vec<u8>, PrepareError> {
    check_fit(component)?;
    let unfit = |error: wasmtime::Error| PrepareError::Unfit(format!("{error:#}"));
    let mut wizer = Wizer::new();
    // Its name is one of the core module's exports as well, and what lifts it is still there.
    wizer.init_func(PREPARE).keep_init_func(true);
    let (context, instrumented) = wizer.instrument_component(component).map_err(unfit)?;
    let engine = run_engine().map_err(PrepareError::Component)?;
    let compiled = Component::new(&engine, &instrumented)
        .map_err(|error| PrepareError::Component(format!("{error:#}")))?;
    let mut linker: Linker<StoreLimits> = Linker::new(&engine);
    linker
        .define_unknown_imports_as_traps(&compiled)
        .map_err(|error| PrepareError::Component(format!("{error:#}")))?;
    let mut run = Run::new(&engine);
    let (instance, answer) = run
        .guarded(|store| {
            let instance = linker.instantiate(&mut *store, &compiled)?;
            let prepare = instance.get_typed_func::<(&[u8],), (Result<(), String>,)>(&mut *store, PREPARE)?;
            Ok((instance, prepare.call(&mut *store, (data,))?.0))
        })
        .map_err(PrepareError::Trap)?;
    answer.map_err(|why| PrepareError::GaveUp(why.chars().take(1_000).collect()))?;
    let mut state = State { store: &mut run.store, instance, failed: None };
    let snapshot = {
        let snapshot = std::pin::pin!(wizer.snapshot_component(&context, &mut state));
        match Future::poll(snapshot, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(snapshot) => snapshot.map_err(unfit)?,
            Poll::Pending => return Err(PrepareError::Component("it waits for something".into())),
        }
    };
    match state.failed {
        None => Ok(snapshot),
        Some(why) => Err(PrepareError::Unfit(why)),
    }
}

/// Refuses by name and place what cannot be in a snapshot, before anything is run.
fn check_fit(component: &[u8]) -> Result<(), PrepareError> {
    for payload in Parser::new(0).parse_all(component) {
        let Payload::CodeSectionEntry(body) = payload.map_err(PrepareError::component)? else { continue };
        let mut operators = body.get_operators_reader().map_err(PrepareError::component)?;
        while !operators.eof() {
            let (operator, at) = operators.read_with_offset().map_err(PrepareError::component)?;
            let name = match operator {
                Operator::TableSet { .. } => "table.set",
                Operator::TableGrow { .. } => "table.grow",
                Operator::TableInit { .. } => "table.init",
                Operator::TableCopy { .. } => "table.copy",
                Operator::TableFill { .. } => "table.fill",
                Operator::ElemDrop { .. } => "elem.drop",
                Operator::DataDrop { .. } => "data.drop",
                _ => continue,
            };
            return Err(PrepareError::Unfit(format!("its code at {at:#x} has {name}")));
        }
    }
    Ok(())
}

/// The same component without the export, and with the numbers that change by that. What it exported stays, uncalled.
fn without_prepare(component: &[u8]) -> Result<Vec<u8>, PrepareError> {
    let mut without = Without { removed: removed_function(component)?, referred: false };
    let mut shipped = Encoder::new();
    without
        .parse_component(&mut shipped, Parser::new(0), component)
        .map_err(|error| PrepareError::Component(format!("leave out \"prepare\": {error}")))?;
    if without.referred {
        return Err(PrepareError::Component("something else in it uses its export \"prepare\"".into()));
    }
    let shipped = shipped.finish();
    Validator::new_with_features(FEATURES).validate_all(&shipped).map_err(PrepareError::component)?;
    Ok(shipped)
}

/// An export is a function of its own, with an index: which one is it?
fn removed_function(component: &[u8]) -> Result<u32, PrepareError> {
    let (mut depth, mut functions) = (0_usize, 0_u32);
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(PrepareError::component)?;
        let mut count = |is_function: bool| functions = functions.saturating_add(u32::from(is_function));
        match payload {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let kind = import.map_err(PrepareError::component)?.ty.kind();
                    count(kind == ComponentExternalKind::Func);
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    let alias = alias.map_err(PrepareError::component)?;
                    let func = ComponentExternalKind::Func;
                    count(matches!(alias, ComponentAlias::InstanceExport { kind, .. } if kind == func));
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for function in section {
                    let function = function.map_err(PrepareError::component)?;
                    count(matches!(function, CanonicalFunction::Lift { .. }));
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    let export = export.map_err(PrepareError::component)?;
                    if export.name.name == PREPARE && export.kind == ComponentExternalKind::Func {
                        return Ok(functions);
                    }
                    count(export.kind == ComponentExternalKind::Func);
                }
            }
            _ => {}
        }
    }
    Err(PrepareError::Component("it exports no function \"prepare\"".into()))
}

struct Without {
    removed: u32,
    referred: bool,
}

impl Reencode for Without {
    type Error = std::convert::Infallible;
}

type Reencoded = Result<(), ReencodeError<std::convert::Infallible>>;

impl ReencodeComponent for Without {
    fn component_func_index(&mut self, index: u32) -> u32 {
        self.referred |= index == self.removed;
        if index > self.removed { index - 1 } else { index }
    }

    /// Names of functions by their number are nobody's any more.
    fn parse_component_custom_section(
        &mut self,
        to: &mut Encoder,
        section: wasmparser::CustomSectionReader<'_>,
    ) -> Reencoded {
        match section.as_known() {
            KnownCustom::ComponentName(_) => Ok(()),
            _ => component_utils::parse_component_custom_section(self, to, section),
        }
    }

    /// Byte for byte.
    fn parse_component_submodule(&mut self, to: &mut Encoder, _: Parser, module: &[u8]) -> Reencoded {
        to.section(&RawSection { id: ComponentSectionId::CoreModule.into(), data: module });
        Ok(())
    }

    /// The same: it has numbers of its own.
    fn parse_component_subcomponent(
        &mut self,
        to: &mut Encoder,
        _: Parser,
        component: &[u8],
        _: &[u8],
    ) -> Reencoded {
        to.section(&RawSection { id: ComponentSectionId::Component.into(), data: component });
        Ok(())
    }

    fn parse_component_export_section(
        &mut self,
        exports: &mut ComponentExportSection,
        section: wasmparser::ComponentExportSectionReader<'_>,
    ) -> Reencoded {
        for export in section {
            let export = export?;
            if export.name.name != PREPARE {
                component_utils::parse_component_export(self, exports, export)?;
            }
        }
        Ok(())
    }
}

/// What a snapshot is made of, through functions that were added for it.
struct State<'a> {
    store: &'a mut Store<StoreLimits>,
    instance: Instance,
    /// The first that cannot be read; the snapshot is thrown away then.
    failed: Option<String>,
}

impl State<'_> {
    fn ask<R: Lift + Send + Sync + 'static>(&mut self, instance: &str, function: &str) -> Option<R>
    where
        (R,): ComponentNamedList,
    {
        match self.call(instance, function) {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.get_or_insert_with(|| {
                    format!(
                        "read {function} of it: {error:#}; a memory needs room for one page more than it has, below its \
                         own maximum and {MEMORY_MAX} bytes"
                    )
                });
                None
            }
        }
    }

    fn call<R: Lift + Send + Sync + 'static>(&mut self, instance: &str, function: &str) -> wasmtime::Result<R>
    where
        (R,): ComponentNamedList,
    {
        let missing = || wasmtime::Error::msg("it is not there");
        let (_, at) = self.instance.get_export(&mut *self.store, None, instance).ok_or_else(missing)?;
        let (_, at) = self.instance.get_export(&mut *self.store, Some(&at), function).ok_or_else(missing)?;
        let function = self.instance.get_typed_func::<(), (R,)>(&mut *self.store, at)?;
        Ok(function.call(&mut *self.store, ())?.0)
    }
}

impl ComponentInstanceState for State<'_> {
    async fn call_func_ret_list_u8(
        &mut self,
        instance: &str,
        function: &str,
        contents: impl FnOnce(&[u8]) + Send,
    ) {
        match self.ask::<WasmList<u8>>(instance, function) {
            Some(list) => contents(list.as_le_slice(&*self.store)),
            None => contents(&[]),
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, function: &str) -> i32 {
        self.ask(instance, function).unwrap_or(0)
    }

    async fn call_func_ret_s64(&mut self, instance: &str, function: &str) -> i64 {
        self.ask(instance, function).unwrap_or(0)
    }

    async fn call_func_ret_f32(&mut self, instance: &str, function: &str) -> u32 {
        self.ask(instance, function).map_or(0, f32::to_bits)
    }

    async fn call_func_ret_f64(&mut self, instance: &str, function: &str) -> u64 {
        self.ask(instance, function).map_or(0, f64::to_bits)
    }
}
