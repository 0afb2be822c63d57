//! One core module of the many that a component consists of.
//!
//! Where libraries are linked when a component is put together (componentize-py), each of them stays a module of its own, and each
//! decision instantiates them all: every import is handed over, every function that another module may call is
//! written to a table, every place of a symbol is a global. Here they become one module before they are shipped. What is
//! imported is then simply called, what a global says for good stands where it was read, and the table and the memory are
//! images that an instance begins with.
//!
//! A component that does more than instantiate each module once stays what it is.

mod graph;
mod parts;

use std::collections::{BTreeMap, BTreeSet};

use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
    CodeSection, ConstExpr, CustomSection, DataCountSection, DataSection, ElementSection, EntityType,
    ExportKind, ExportSection, FunctionSection, GlobalSection, ImportSection, Instruction, MemorySection,
    Module, TableSection, TypeSection,
};
use wasmparser::{DataKind, ElementKind, Operator, Parser, Payload};

use crate::engine::World;
use graph::{Graph, Target};
use parts::{Kind, Part};

/// With fewer there is little to win: what a module imports of the host takes two more.
const MODULES_MIN: usize = 4;

/// Why a component stays what it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum FlattenError {
    #[error(transparent)]
    Read(#[from] wasmparser::Error),
    #[error("{0}")]
    Unlike(&'static str),
    #[error("{0}")]
    Encode(String),
}

/// Whether a component has so many modules that one is better.
pub(super) fn is_scattered(component: &[u8]) -> bool {
    let module = |payload: &Result<Payload<'_>, _>| matches!(payload, Ok(Payload::ModuleSection { .. }));
    Parser::is_component(component)
        && Parser::new(0).parse_all(component).filter(module).count() >= MODULES_MIN
}

/// A core module that does what a component does, and the world of both.
///
/// # Errors
/// Why it is not to be made of this one.
pub(super) fn flatten(component: &[u8]) -> Result<(World, Vec<u8>), FlattenError> {
    if !is_scattered(component) {
        return Err(FlattenError::Unlike("it has few modules"));
    }
    let graph = Graph::read(component)?;
    let world = graph.world().ok_or(FlattenError::Unlike("it does not say which world it is of"))?;
    let mut plan = Plan::of(&graph)?;
    plan.constants()?;
    let mut merged = Sections::default();
    for (instance, part) in &plan.order {
        let mut shift = plan.shift(*instance, part)?;
        append(&mut merged, part, &mut shift).map_err(|error| match error {
            Error::UserError(error) => error,
            other => FlattenError::Encode(other.to_string()),
        })?;
    }
    Ok((world, plan.finish(&merged)?))
}

/// Where everything goes.
struct Plan<'g, 'a> {
    graph: &'g Graph<'a>,
    /// Each module with its instance, in the order in which they are made.
    order: Vec<(u32, &'g Part<'a>)>,
    /// Functions of the host, by interface and name, with the index of their type.
    hosts: Vec<((&'a str, &'a str), u32)>,
    /// For each instance and kind, the index of the first that it defines.
    first: BTreeMap<(u32, Kind), u32>,
    /// For each instance: types, element and data segments that were there before.
    before: BTreeMap<u32, [u32; 3]>,
    /// Globals that are what they are for good.
    constants: BTreeMap<(u32, u32), i32>,
    /// Where the others are.
    globals: BTreeMap<(u32, u32), u32>,
}

impl<'g, 'a> Plan<'g, 'a> {
    fn of(graph: &'g Graph<'a>) -> Result<Self, FlattenError> {
        let order = graph.order()?;
        let mut plan = Plan {
            graph,
            order,
            hosts: Vec::new(),
            first: BTreeMap::new(),
            before: BTreeMap::new(),
            constants: BTreeMap::new(),
            globals: BTreeMap::new(),
        };
        let mut before = [0_u32; 3];
        for (instance, part) in &plan.order {
            plan.before.insert(*instance, before);
            for (index, import) in (0..).zip(part.imports(Kind::Function)) {
                if let Target::Host(interface, name) = graph.find(*instance, Kind::Function, index)?
                    && !plan.hosts.iter().any(|(host, _)| *host == (interface, name))
                {
                    plan.hosts.push(((interface, name), import.ty.saturating_add(before[0])));
                }
            }
            for (sum, more) in before.iter_mut().zip([part.types, part.elements, part.data]) {
                *sum = sum.saturating_add(more);
            }
        }
        for kind in Kind::ALL {
            let mut first = if kind == Kind::Function { count(plan.hosts.len()) } else { 0 };
            for (instance, part) in &plan.order {
                plan.first.insert((*instance, kind), first);
                first = first.saturating_add(part.defines(kind));
            }
            if kind == Kind::Memory && first != 1 {
                return Err(FlattenError::Unlike("it has more than one memory"));
            }
        }
        Ok(plan)
    }

    /// Which globals nobody writes to, and what they are.
    fn constants(&mut self) -> Result<(), FlattenError> {
        let mut written = BTreeSet::new();
        for (instance, part) in &self.order {
            for index in &part.written {
                if let Target::Own(of, number) = self.graph.find(*instance, Kind::Global, *index)? {
                    written.insert((of, number));
                }
            }
        }
        let mut index = 0_u32;
        for (instance, part) in &self.order {
            for (number, init) in (0..).zip(&part.globals) {
                let global = (*instance, number);
                let value = if written.contains(&global) { None } else { self.value(*instance, init)? };
                if let Some(value) = value {
                    self.constants.insert(global, value);
                } else {
                    self.globals.insert(global, index);
                    index = index.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    /// What an expression comes to, if it can be said now.
    fn value(&self, instance: u32, expr: &wasmparser::ConstExpr<'_>) -> Result<Option<i32>, FlattenError> {
        let mut stack = Vec::new();
        for operator in expr.get_operators_reader() {
            let value = match operator? {
                Operator::I32Const { value } => Some(value),
                Operator::GlobalGet { global_index } => {
                    match self.graph.find(instance, Kind::Global, global_index)? {
                        Target::Own(of, number) => self.constants.get(&(of, number)).copied(),
                        Target::Host(..) => None,
                    }
                }
                Operator::I32Add => {
                    let both = stack.pop().zip(stack.pop());
                    both.map(|(one, other): (i32, i32)| one.wrapping_add(other))
                }
                Operator::End => return Ok(stack.pop()),
                _ => None,
            };
            let Some(value) = value else { return Ok(None) };
            stack.push(value);
        }
        Ok(None)
    }

    fn at(&self, instance: u32, kind: Kind, index: u32) -> Result<u32, FlattenError> {
        match self.graph.find(instance, kind, index)? {
            Target::Own(of, number) if kind == Kind::Global => {
                self.globals.get(&(of, number)).copied().ok_or(FlattenError::Unlike("a global is nowhere"))
            }
            Target::Own(of, number) => {
                let first = self.first.get(&(of, kind)).copied();
                first
                    .map(|first| first.saturating_add(number))
                    .ok_or(FlattenError::Unlike("no such instance"))
            }
            Target::Host(interface, name) => {
                let found = self.hosts.iter().position(|(host, _)| *host == (interface, name));
                found.map(count).ok_or(FlattenError::Unlike("it uses a function of the host in another way"))
            }
        }
    }

    fn shift<'p>(&'p self, instance: u32, part: &Part<'a>) -> Result<Shift<'p, 'g, 'a>, FlattenError> {
        let mut functions = Vec::new();
        for (index, _) in (0..).zip(part.imports(Kind::Function)) {
            functions.push(self.at(instance, Kind::Function, index)?);
        }
        let before = self.before.get(&instance).copied().unwrap_or_default();
        let own = self.first.get(&(instance, Kind::Function)).copied().unwrap_or_default();
        Ok(Shift { plan: self, instance, functions, own, before })
    }

    fn finish(&self, sections: &Sections) -> Result<Vec<u8>, FlattenError> {
        let mut imports = ImportSection::new();
        for ((interface, name), ty) in &self.hosts {
            imports.import(interface, name, EntityType::Function(*ty));
        }
        let mut exports = ExportSection::new();
        exports.export("memory", ExportKind::Memory, 0);
        for (name, core) in self.graph.exports()? {
            let index = match self.graph.resolve(&core, Kind::Function)? {
                Target::Own(of, number) => {
                    let first = self.first.get(&(of, Kind::Function)).copied().unwrap_or_default();
                    first.saturating_add(number)
                }
                Target::Host(..) => return Err(FlattenError::Unlike("the host's function is its own")),
            };
            exports.export(name, ExportKind::Func, index);
        }
        let mut merged = Module::new();
        merged.section(&sections.types);
        if !imports.is_empty() {
            merged.section(&imports);
        }
        merged
            .section(&sections.functions)
            .section(&sections.tables)
            .section(&sections.memories)
            .section(&sections.globals)
            .section(&exports)
            .section(&sections.elements)
            .section(&DataCountSection { count: sections.data.len() })
            .section(&sections.code)
            .section(&sections.data);
        if let Some(producers) = self.graph.producers {
            merged.section(&CustomSection { name: "producers".into(), data: producers.into() });
        }
        Ok(merged.finish())
    }
}

#[derive(Default)]
struct Sections {
    types: TypeSection,
    functions: FunctionSection,
    tables: TableSection,
    memories: MemorySection,
    globals: GlobalSection,
    elements: ElementSection,
    code: CodeSection,
    data: DataSection,
}

/// How the indexes of one module change.
struct Shift<'p, 'g, 'a> {
    plan: &'p Plan<'g, 'a>,
    instance: u32,
    /// Where the functions are that it imports.
    functions: Vec<u32>,
    /// Where its own begin.
    own: u32,
    /// Types, element and data segments that were there before.
    before: [u32; 3],
}

impl Shift<'_, '_, '_> {
    fn at(&self, kind: Kind, index: u32) -> Result<u32, Error<FlattenError>> {
        self.plan.at(self.instance, kind, index).map_err(Error::UserError)
    }

    fn value(&self, expr: &wasmparser::ConstExpr<'_>) -> Result<ConstExpr, Error<FlattenError>> {
        let value = self.plan.value(self.instance, expr).map_err(Error::UserError)?;
        let value =
            value.ok_or(Error::UserError(FlattenError::Unlike("a segment is at a computed place")))?;
        Ok(ConstExpr::i32_const(value))
    }
}

impl Reencode for Shift<'_, '_, '_> {
    type Error = FlattenError;

    fn type_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        Ok(index.saturating_add(self.before[0]))
    }

    fn element_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        Ok(index.saturating_add(self.before[1]))
    }

    fn data_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        Ok(index.saturating_add(self.before[2]))
    }

    fn function_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        let imported = usize::try_from(index).ok().and_then(|index| self.functions.get(index));
        let own = index.wrapping_sub(count(self.functions.len())).saturating_add(self.own);
        Ok(imported.copied().unwrap_or(own))
    }

    fn table_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        self.at(Kind::Table, index)
    }

    fn memory_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        self.at(Kind::Memory, index)
    }

    fn global_index(&mut self, index: u32) -> Result<u32, Error<FlattenError>> {
        self.at(Kind::Global, index)
    }

    fn instruction<'b>(&mut self, operator: Operator<'b>) -> Result<Instruction<'b>, Error<FlattenError>> {
        if let Operator::GlobalGet { global_index } = operator {
            let found = self.plan.graph.find(self.instance, Kind::Global, global_index);
            if let Target::Own(of, number) = found.map_err(Error::UserError)?
                && let Some(value) = self.plan.constants.get(&(of, number))
            {
                return Ok(Instruction::I32Const(*value));
            }
        }
        utils::instruction(self, operator)
    }
}

/// Puts what a module defines behind what is there already.
fn append(
    to: &mut Sections,
    part: &Part<'_>,
    shift: &mut Shift<'_, '_, '_>,
) -> Result<(), Error<FlattenError>> {
    for payload in Parser::new(0).parse_all(part.bytes) {
        match payload? {
            Payload::TypeSection(section) => shift.parse_type_section(&mut to.types, section)?,
            Payload::FunctionSection(section) => shift.parse_function_section(&mut to.functions, section)?,
            Payload::TableSection(section) => shift.parse_table_section(&mut to.tables, section)?,
            Payload::MemorySection(section) => shift.parse_memory_section(&mut to.memories, section)?,
            Payload::GlobalSection(section) => {
                for (number, global) in (0..).zip(section) {
                    if shift.plan.globals.contains_key(&(shift.instance, number)) {
                        shift.parse_global(&mut to.globals, global?)?;
                    }
                }
            }
            Payload::ElementSection(section) => {
                for element in section {
                    let element = element?;
                    if let ElementKind::Active { table_index, offset_expr } = &element.kind {
                        let (at, table) =
                            (shift.value(offset_expr)?, shift.table_index(table_index.unwrap_or(0))?);
                        let items = shift.element_items(element.items.clone())?;
                        to.elements.active(Some(table), &at, items);
                    } else {
                        shift.parse_element(&mut to.elements, element)?;
                    }
                }
            }
            Payload::CodeSectionEntry(body) => shift.parse_function_body(&mut to.code, body)?,
            Payload::DataSection(section) => {
                for data in section {
                    let data = data?;
                    match &data.kind {
                        DataKind::Active { memory_index, offset_expr } => {
                            let (at, memory) =
                                (shift.value(offset_expr)?, shift.memory_index(*memory_index)?);
                            to.data.active(memory, &at, data.data.iter().copied());
                        }
                        DataKind::Passive => shift.parse_data(&mut to.data, data)?,
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
