//! What a module of OPA is, and what it asks for. It is run for that: its tables of names are values on its heap.

use std::collections::BTreeMap;
use std::fmt;

use wasmparser::{DataKind, ExternalKind, Operator, Parser, Payload, TypeRef, Validator};
use wasmtime::{Extern, Instance, Memory, MemoryType, Module};

use super::RegoError;
use crate::compile::run::{Run, refusing, run_engine};
use crate::engine::FEATURES;

/// Imports that OPA's modules have, all of them functions of module "env".
const HOST: [&str; 7] = [
    "opa_abort",
    "opa_println",
    "opa_builtin0",
    "opa_builtin1",
    "opa_builtin2",
    "opa_builtin3",
    "opa_builtin4",
];
/// More than OPA has.
const BUILTINS_MAX: u32 = 1_000;
/// Most memory that a module may start with: 16 MiB.
const PAGES_MAX: u64 = 256;

/// The version of OPA's contract between module and host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abi {
    major: i32,
    minor: i32,
}

impl fmt::Display for Abi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What has to be known of a module before it is merged.
pub(super) struct Inspected {
    pub(super) abi: Abi,
    /// Of memory that its own data takes, and one more for what it allocates when it starts.
    pub(super) pages: u32,
    pub(super) builtins: BTreeMap<String, u32>,
    pub(super) entrypoints: BTreeMap<String, u32>,
}

pub(super) fn inspect(module: &[u8]) -> Result<Inspected, RegoError> {
    if !Parser::is_core_wasm(module) {
        return Err(RegoError::Module("it is no core module of WebAssembly".into()));
    }
    Validator::new_with_features(FEATURES).validate_all(module).map_err(RegoError::module)?;
    let (mut globals, mut exported, mut pages) = (Vec::new(), BTreeMap::new(), None);
    // The end of its data. OPA may say that it needs less memory than that: its own hosts give more.
    let mut end = 0_u64;
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(RegoError::module)? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(RegoError::module)?;
                    let unknown = || RegoError::Import {
                        module: import.module.to_owned(),
                        name: import.name.to_owned(),
                    };
                    match import.ty {
                        TypeRef::Memory(memory) if (import.module, import.name) == ("env", "memory") => {
                            pages = Some(memory.initial);
                        }
                        TypeRef::Func(_) if import.module == "env" && HOST.contains(&import.name) => {}
                        _ => return Err(unknown()),
                    }
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let mut init = global.map_err(RegoError::module)?.init_expr.get_operators_reader();
                    globals.push(match init.read().map_err(RegoError::module)? {
                        Operator::I32Const { value } => Some(value),
                        _ => None,
                    });
                }
            }
            Payload::DataSection(section) => {
                for data in section {
                    let data = data.map_err(RegoError::module)?;
                    if let DataKind::Active { offset_expr, .. } = data.kind
                        && let Ok(Operator::I32Const { value }) = offset_expr.get_operators_reader().read()
                    {
                        end =
                            end.max(u64::from(value.cast_unsigned()).saturating_add(data.data.len() as u64));
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(RegoError::module)?;
                    if export.kind == ExternalKind::Global {
                        exported.insert(export.name.to_owned(), export.index);
                    }
                }
            }
            _ => {}
        }
    }
    let global = |name: &str| {
        let index = usize::try_from(*exported.get(name)?).ok()?;
        globals.get(index).copied().flatten()
    };
    let major = global("opa_wasm_abi_version").ok_or(RegoError::NoAbi)?;
    let minor = global("opa_wasm_abi_minor_version").ok_or(RegoError::NoAbi)?;
    // A minor version adds functions, of which none is needed.
    if major != 1 || !(0..=3).contains(&minor) {
        return Err(RegoError::Abi { major, minor });
    }
    let pages = pages.ok_or_else(|| RegoError::Module("no memory is imported".into()))?;
    let pages = pages.max(end.div_ceil(64 << 10)).saturating_add(1);
    if pages > PAGES_MAX {
        return Err(RegoError::Module(format!(
            "it starts with {pages} pages of memory, at most {PAGES_MAX} are given"
        )));
    }
    let pages = u32::try_from(pages).map_err(RegoError::module)?;
    let (builtins, entrypoints) = names(module, pages)?;
    if let Some((name, number)) = builtins.iter().find(|(_, number)| **number >= BUILTINS_MAX) {
        return Err(RegoError::Module(format!(
            "builtin {name:?} has number {number}, there are fewer than {BUILTINS_MAX}"
        )));
    }
    Ok(Inspected { abi: Abi { major, minor }, pages, builtins, entrypoints })
}

/// Whether a module exports the version of an ABI of OPA.
pub(super) fn has_abi(module: &[u8]) -> bool {
    Parser::is_core_wasm(module)
        && Parser::new(0).parse_all(module).map_while(Result::ok).any(|payload| match payload {
            Payload::ExportSection(section) => {
                section.into_iter().map_while(Result::ok).any(|export| export.name == "opa_wasm_abi_version")
            }
            _ => false,
        })
}

type Names = BTreeMap<String, u32>;

/// Builtins and entrypoints, each by its number.
fn names(module: &[u8], pages: u32) -> Result<(Names, Names), RegoError> {
    let engine = run_engine().map_err(RegoError::Snapshot)?;
    let compiled = Module::new(&engine, module).map_err(RegoError::module)?;
    let mut run = Run::new(&engine);
    let memory = Memory::new(&mut run.store, MemoryType::new(pages, None)).map_err(RegoError::module)?;
    let imports: Vec<Extern> = compiled
        .imports()
        .map(|import| match import.ty() {
            wasmtime::ExternType::Func(ty) => Extern::Func(refusing(&mut run.store, ty)),
            _ => Extern::Memory(memory),
        })
        .collect();
    run.guarded(|store| {
        let instance = Instance::new(&mut *store, &compiled, &imports)?;
        let mut table = |name| {
            let value = instance.get_typed_func::<(), u32>(&mut *store, name)?.call(&mut *store, ())?;
            let dump = instance.get_typed_func::<u32, u32>(&mut *store, "opa_json_dump")?;
            let text = dump.call(&mut *store, value)?;
            let bytes = memory.data(&*store).get(text as usize..).unwrap_or_default();
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            Ok::<Names, wasmtime::Error>(serde_json::from_slice(text).unwrap_or_default())
        };
        Ok((table("builtins")?, table("entrypoints")?))
    })
    .map_err(|why| RegoError::Module(format!("ask for its names: {why}")))
}
