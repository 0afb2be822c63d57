//! One module of several: OPA's, and the adapters behind it. They share one memory, which is defined here and not imported,
//! so that an instance of it begins as a copy-on-write mapping. The adapters share a stack and a table of functions.
//!
//! Indexes: functions of the host, then OPA's, then each adapter's, then stand-ins for what the policy must not call. OPA's
//! imports become the first adapter's exports, and what one adapter does not know it asks of the next.

use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{
    CodeSection, CustomSection, DataSection, ElementSection, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, ImportSection, MemorySection, MemoryType, Module, NameMap, NameSection,
    RefType, TableSection, TableType, TypeSection,
};
use wasmparser::{ElementKind, Operator, Parser, Payload};

use super::RegoError;
use super::conflict::{Conflicts, TOLD};
use super::inspect::Inspected;
use super::part::Part;
use super::relocate::Placed;

const PAGE: u32 = 64 << 10;
/// Where wasm modules end here: 1 GiB.
const PAGES_MAX: u64 = 16_384;
/// What OPA's module does when it starts, under the name that the snapshot calls it by.
pub(super) const START: &str = "rego_start";
/// What the finished policy exports; everything else is for the snapshot.
pub(super) const KEPT: [&str; 4] = ["memory", "decide", "cabi_realloc", "cabi_post_decide"];

/// What an adapter imports of the one behind it.
const NEXT: &str = "next";
/// What an adapter exports for the snapshot to tell it which builtins are its own.
const BIND: &str = "rego_bind";

/// The name under which the merged module has that of an adapter.
pub(super) fn bind_of(adapter: usize) -> String {
    format!("{BIND}{adapter}")
}

/// Which builtins need which of the world's interfaces.
const CAPABILITIES: [(&str, &[&str]); 4] = [
    ("clock", &["time.now_ns", "io.jwt.decode_verify"]),
    ("random", &["rand.intn", "uuid.rfc4122"]),
    ("log", &["trace", "internal.print"]),
    ("data", &["portcullis.data.get", "portcullis.data.entries"]),
];

/// How the indexes of a part change.
struct Shift {
    /// By their old index: where each function is now.
    functions: Vec<u32>,
    types: u32,
    tables: u32,
    globals: u32,
    /// What its addresses grew by: the stack pointer, a global that can change, does as well.
    base: u32,
    /// A global of this part that is one of another part instead.
    instead: Option<(u32, u32)>,
    /// Where its functions begin in a table that it shares; None if it has its own.
    table: Option<u32>,
    /// Where its code finds contradictions, and the function to tell.
    conflicts: Option<(Conflicts, u32)>,
}

impl Reencode for Shift {
    type Error = RegoError;

    fn function_index(&mut self, index: u32) -> Result<u32, Error<RegoError>> {
        let found = usize::try_from(index).ok().and_then(|index| self.functions.get(index));
        found
            .copied()
            .ok_or_else(|| Error::UserError(RegoError::Module("a function that is not there".into())))
    }

    fn type_index(&mut self, index: u32) -> Result<u32, Error<RegoError>> {
        Ok(index.saturating_add(self.types))
    }

    fn table_index(&mut self, index: u32) -> Result<u32, Error<RegoError>> {
        Ok(index.saturating_add(self.tables))
    }

    fn global_index(&mut self, index: u32) -> Result<u32, Error<RegoError>> {
        match self.instead {
            Some((own, other)) if own == index => Ok(other),
            _ => Ok(index.saturating_add(self.globals)),
        }
    }
}

#[derive(Default)]
struct Sections {
    types: TypeSection,
    functions: FunctionSection,
    tables: TableSection,
    globals: GlobalSection,
    elements: ElementSection,
    code: CodeSection,
    data: DataSection,
}

/// Merges OPA's module with the adapters, the first of which has what the world exports.
pub(super) fn merge(opa: &[u8], placed: &[Placed], inspected: &Inspected) -> Result<Vec<u8>, RegoError> {
    let opa_part = Part::of(opa).map_err(RegoError::module)?;
    let adapters: Vec<Part<'_>> = placed
        .iter()
        .map(|placed| Part::of(&placed.module))
        .collect::<Result<_, _>>()
        .map_err(|error| RegoError::Adapter(error.to_string()))?;
    let mut merging = Merging::default();
    let mut types = opa_part.types;
    for adapter in &adapters {
        merging.grant(adapter, types, inspected);
        types = types.saturating_add(adapter.types);
    }
    // Where the functions of each begin.
    let opa_first = u32::try_from(merging.granted.len()).map_err(RegoError::module)?;
    let mut first = opa_first.saturating_add(opa_part.functions);
    let mut begins = Vec::new();
    for adapter in &adapters {
        begins.push((first, adapter));
        first = first.saturating_add(adapter.functions);
    }
    merging.stubs_first = first;
    let &[(main_first, main), ..] = begins.as_slice() else {
        return Err(RegoError::Adapter("there is none".into()));
    };

    let mut functions = Vec::new();
    for (_, name, _) in &opa_part.imports {
        let index = main.at(main_first, name);
        functions.push(index.ok_or_else(|| RegoError::Adapter(format!("it has no {name:?}")))?);
    }
    functions.extend((opa_first..).take(usize::try_from(opa_part.functions).unwrap_or(0)));
    let told = main.at(main_first, TOLD).ok_or_else(|| RegoError::Adapter(format!("it has no {TOLD:?}")))?;
    let conflicts = Some((Conflicts::of(opa).map_err(RegoError::module)?, told));
    let mut shift =
        Shift { functions, types: 0, tables: 0, globals: 0, base: 0, instead: None, table: None, conflicts };
    let start = opa_part.start.map(|start| shift.function_index(start)).transpose();
    let start = start.map_err(|error| RegoError::Module(error.to_string()))?;
    append(&mut merging.sections, opa, &mut shift)?;
    shift.conflicts = None;

    (shift.types, shift.tables, shift.globals) = (opa_part.types, opa_part.tables, opa_part.globals);
    let mut stack_pointer = None;
    for (number, ((first, adapter), placed)) in begins.iter().zip(placed).enumerate() {
        let next = begins.get(number.saturating_add(1)).copied();
        shift.functions = merging.functions(adapter, *first, shift.types, (opa_first, &opa_part), next)?;
        shift.base = placed.base;
        shift.table = Some(placed.table);
        let [own] = adapter.mutable.as_slice() else {
            return Err(RegoError::Adapter("it has globals that change besides its stack pointer".into()));
        };
        shift.instead = stack_pointer.map(|other| (*own, other));
        stack_pointer = stack_pointer.or(Some(own.saturating_add(shift.globals)));
        append(&mut merging.sections, &placed.module, &mut shift)?;
        shift.types = shift.types.saturating_add(adapter.types);
        shift.globals = shift.globals.saturating_add(adapter.globals);
    }

    merging.sections.tables.table(TableType {
        element_type: RefType::FUNCREF,
        minimum: placed.last().map_or(0, |placed| placed.table_end.into()),
        maximum: placed.last().map(|placed| placed.table_end.into()),
        table64: false,
        shared: false,
    });

    let exports = &mut merging.exports;
    exports.export("memory", ExportKind::Memory, 0);
    // What OPA imports the adapter exports: nobody else calls it.
    let is_ours = |name: &str| !name.starts_with("opa_builtin") && name != BIND && name != TOLD;
    for (first, part) in [(opa_first, &opa_part), (main_first, main)] {
        for name in part.exports.keys().filter(|name| is_ours(name)) {
            if let Some(index) = part.at(first, name) {
                exports.export(name, ExportKind::Func, index);
            }
        }
    }
    for (number, (first, adapter)) in begins.iter().enumerate() {
        let index = adapter.at(*first, BIND);
        let index = index.ok_or_else(|| RegoError::Adapter(format!("it has no {BIND:?}")))?;
        exports.export(&bind_of(number), ExportKind::Func, index);
    }
    if let Some(start) = start {
        exports.export(START, ExportKind::Func, start);
    }
    for (index, name) in &opa_part.names {
        if let Some(index) = opa_part.defined(*index) {
            merging.names.append(opa_first.saturating_add(index), name);
        }
    }
    Ok(merging.finish(placed.last().map_or(0, |placed| placed.end)))
}

/// A module in the making.
#[derive(Default)]
struct Merging<'a> {
    sections: Sections,
    imports: ImportSection,
    exports: ExportSection,
    /// Functions of the host, by module and name, in the order of their indexes.
    granted: Vec<(&'a str, &'a str)>,
    /// Types of functions that are not there, and the index of the first.
    stubs: Vec<u32>,
    stubs_first: u32,
    /// Of OPA's functions, so that coverage and flame graphs can name rules. A worker's machine code has none.
    names: NameMap,
}

impl<'a> Merging<'a> {
    /// Imports what an adapter asks of the host, as far as the policy's builtins need it.
    fn grant(&mut self, adapter: &Part<'a>, types: u32, inspected: &Inspected) {
        for (module, name, ty) in &adapter.imports {
            if is_granted(module, inspected) && !self.granted.contains(&(*module, *name)) {
                let ty = wasm_encoder::EntityType::Function(ty.saturating_add(types));
                self.imports.import(module, name, ty);
                self.granted.push((*module, *name));
            }
        }
    }

    /// Where each function of an adapter is, by the index that it had: what it imports are OPA's exports, the next adapter's,
    /// the host's functions, or stand-ins.
    fn functions(
        &mut self,
        adapter: &Part<'a>,
        first: u32,
        types: u32,
        (opa_first, opa): (u32, &Part<'a>),
        next: Option<(u32, &Part<'a>)>,
    ) -> Result<Vec<u32>, RegoError> {
        let mut functions = Vec::new();
        for (module, name, ty) in &adapter.imports {
            let there = match (*module, next) {
                ("opa", _) => {
                    let index = opa.at(opa_first, name);
                    Some(index.ok_or_else(|| RegoError::Module(format!("it has no {name:?}")))?)
                }
                (NEXT, Some((first, next))) => {
                    let index = next.at(first, name);
                    Some(index.ok_or_else(|| RegoError::Adapter(format!("it has no {name:?}")))?)
                }
                _ => {
                    let granted = self.granted.iter().position(|one| *one == (*module, *name));
                    granted.and_then(|index| u32::try_from(index).ok())
                }
            };
            functions.push(there.unwrap_or_else(|| self.stub(ty.saturating_add(types))));
        }
        functions.extend((first..).take(usize::try_from(adapter.functions).unwrap_or(0)));
        Ok(functions)
    }

    /// A function that ends the decision.
    fn stub(&mut self, ty: u32) -> u32 {
        let index = self.stubs_first.saturating_add(u32::try_from(self.stubs.len()).unwrap_or(u32::MAX));
        self.stubs.push(ty);
        index
    }

    /// With a memory that ends at `end` when it starts.
    fn finish(mut self, end: u32) -> Vec<u8> {
        for ty in &self.stubs {
            self.sections.functions.function(*ty);
            let mut body = Function::new([]);
            body.instructions().unreachable().end();
            self.sections.code.function(&body);
        }
        let mut memories = MemorySection::new();
        memories.memory(MemoryType {
            minimum: u64::from(end.div_ceil(PAGE)),
            maximum: Some(PAGES_MAX),
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        let mut merged = Module::new();
        merged.section(&self.sections.types);
        if !self.imports.is_empty() {
            merged.section(&self.imports);
        }
        merged.section(&self.sections.functions);
        merged.section(&self.sections.tables);
        merged.section(&memories);
        merged.section(&self.sections.globals);
        merged.section(&self.exports);
        merged.section(&self.sections.elements);
        merged.section(&self.sections.code);
        merged.section(&self.sections.data);
        let mut names = NameSection::new();
        names.functions(&self.names);
        merged.section(&names);
        merged.finish()
    }
}

/// Whether a builtin that the policy calls needs this interface of the world.
fn is_granted(module: &str, inspected: &Inspected) -> bool {
    let interface = module.split(['/', '@']).nth(1).unwrap_or_default();
    let needs = CAPABILITIES.iter().find(|(name, _)| *name == interface);
    needs.is_some_and(|(_, builtins)| builtins.iter().any(|name| inspected.builtins.contains_key(*name)))
}

/// Puts what a part defines behind what is there already.
fn append(sections: &mut Sections, module: &[u8], shift: &mut Shift) -> Result<(), RegoError> {
    let failed = |error: Error<RegoError>| match error {
        Error::UserError(error) => error,
        other => RegoError::Module(other.to_string()),
    };
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(RegoError::module)? {
            Payload::TypeSection(section) => {
                shift.parse_type_section(&mut sections.types, section).map_err(failed)?;
            }
            Payload::FunctionSection(section) => {
                shift.parse_function_section(&mut sections.functions, section).map_err(failed)?;
            }
            Payload::TableSection(section) if shift.table.is_none() => {
                shift.parse_table_section(&mut sections.tables, section).map_err(failed)?;
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    let global = global.map_err(RegoError::module)?;
                    let ty = shift.global_type(global.ty).map_err(failed)?;
                    let mut init = shift.const_expr(global.init_expr.clone()).map_err(failed)?;
                    if let (true, Ok(Operator::I32Const { value })) =
                        (ty.mutable, global.init_expr.get_operators_reader().read())
                    {
                        let value = value.cast_unsigned().wrapping_add(shift.base);
                        init = wasm_encoder::ConstExpr::i32_const(value.cast_signed());
                    }
                    sections.globals.global(ty, &init);
                }
            }
            Payload::ElementSection(section) => {
                for element in section {
                    let element = element.map_err(RegoError::module)?;
                    match (&element.kind, shift.table) {
                        (ElementKind::Active { offset_expr, .. }, Some(base)) => {
                            let Ok(Operator::I32Const { value }) = offset_expr.get_operators_reader().read()
                            else {
                                return Err(RegoError::Adapter("functions at a computed place".into()));
                            };
                            let at = value.cast_unsigned().wrapping_add(base).cast_signed();
                            let items = shift.element_items(element.items.clone()).map_err(failed)?;
                            let at = wasm_encoder::ConstExpr::i32_const(at);
                            sections.elements.active(Some(shift.tables), &at, items);
                        }
                        _ => shift.parse_element(&mut sections.elements, element).map_err(failed)?,
                    }
                }
            }
            Payload::CodeSectionEntry(body) => match shift.conflicts.take() {
                Some((conflicts, told)) => {
                    conflicts.append(&mut sections.code, &body, shift, told).map_err(failed)?;
                    shift.conflicts = Some((conflicts, told));
                }
                None => shift.parse_function_body(&mut sections.code, body).map_err(failed)?,
            },
            Payload::DataSection(section) => {
                for data in section {
                    let data = data.map_err(RegoError::module)?;
                    let wasmparser::DataKind::Active { offset_expr, .. } = data.kind else {
                        return Err(RegoError::Module("data that is not there at the start".into()));
                    };
                    let Ok(Operator::I32Const { value }) = offset_expr.get_operators_reader().read() else {
                        return Err(RegoError::Module("data at a computed place".into()));
                    };
                    let at = value.cast_unsigned().wrapping_add(shift.base);
                    let at = wasm_encoder::ConstExpr::i32_const(at.cast_signed());
                    sections.data.active(0, &at, data.data.iter().copied());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The module without what only the snapshot needed.
pub(super) fn finish(module: &[u8]) -> Result<Vec<u8>, wasmparser::Error> {
    let mut finished = Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        if let Payload::ExportSection(section) = &payload {
            let mut exports = ExportSection::new();
            for export in section.clone() {
                let export = export?;
                if KEPT.contains(&export.name) {
                    exports.export(export.name, export.kind.into(), export.index);
                }
            }
            finished.section(&exports);
        } else if let Payload::CustomSection(section) = &payload {
            finished.section(&CustomSection { name: section.name().into(), data: section.data().into() });
        } else if let Some((id, range)) = payload.as_section() {
            let data = module.get(range).unwrap_or_default();
            finished.section(&wasm_encoder::RawSection { id, data });
        }
    }
    Ok(finished.finish())
}
