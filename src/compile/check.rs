//! Is it a policy? Structure first, then the language, then the types of the world.

use std::collections::BTreeSet;

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentOuterAliasKind, ComponentTypeRef, Data, DataKind,
    Instance, Operator, Parser, Payload, TypeBounds, Validator,
};
use wit_parser::Resolve;

use super::componentize::{PREPARE, of_world};
use crate::engine::{
    CORE_INSTANCES_PER_COMPONENT, FEATURES, TABLE_ELEMENTS, TABLES_PER_COMPONENT, WORLD, World,
};

/// Most that a policy may have besides its data, bytes: all that is validated and compiled.
const CODE_MAX: usize = 32 << 20;

/// Longest section of component types, bytes. Types nest, and reading them recurses; this bounds how deep. The world
/// takes 600 bytes.
const TYPES_MAX: usize = 32 << 10;
/// Components within components: tools wrap exported interfaces in one.
const NESTING_MAX: usize = 4;
/// Exports of a component, which has one function to offer, and of a module in it, which may be made of many.
const EXPORTS_MAX: u32 = 256;
const MODULE_EXPORTS_MAX: u32 = 8192;
const PAGE: u64 = 64 << 10;
/// The one function of the world that a policy has to have.
const DECIDE: &str = "decide";
/// What the world calls the interface that has nothing but types: it grants nothing.
const TYPES: &str = "types";

/// What the check found out on its way.
pub(super) struct Found {
    pub(super) world: World,
    /// It wants to be called once when it is built.
    pub(super) prepares: bool,
    pub(super) imports: Vec<String>,
    pub(super) exports: Vec<String>,
    pub(super) memory: u64,
    pub(super) table_elements: u64,
}

/// Why something is not a policy. Offsets are bytes from the start of the component.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("it is not a WebAssembly component")]
    NotComponent,
    #[error("it has {len} bytes besides its data, at most {CODE_MAX} are compiled")]
    Code { len: usize },
    #[error("{0}; policies may use today's WebAssembly without threads, GC, exceptions and 64-bit memories")]
    Invalid(wasmparser::Error),
    #[error("types at {at:#x} take more than {TYPES_MAX} bytes")]
    Types { at: usize },
    #[error("component at {at:#x} is nested more than {NESTING_MAX} deep")]
    Nesting { at: usize },
    #[error("component nested at {at:#x} runs code of its own; link everything into one module")]
    NestedCode { at: usize },
    #[error("start function of a component at {at:#x}: a policy starts when it is asked")]
    Start { at: usize },
    #[error("alias of a core module at {at:#x}: instantiate modules where they are defined")]
    ModuleAlias { at: usize },
    #[error("it starts with {found} {what}, at most {limit} are given")]
    TooMuch { what: &'static str, found: u64, limit: u64 },
    #[error(
        "it imports {name:?} at {at:#x}, which world {WORLD:?} does not have; policies get {capabilities}, nothing else",
        capabilities = World::LATEST.capabilities().iter().map(|one| one.name()).collect::<Vec<_>>().join(", ")
    )]
    Import { name: String, at: usize },
    #[error("it imports {name:?} at {at:#x}, which world \"{world}\" does not have")]
    NotInWorld { name: String, world: World, at: usize },
    #[error("it imports of world \"{0}\", and at {at:#x} of world \"{1}\"; build it against one of them", .of.0, .of.1)]
    Worlds { of: (World, World), at: usize },
    #[error("{what} at {at:#x} has {found} exports, at most {limit} are looked at")]
    Exports { what: &'static str, found: u32, limit: u32, at: usize },
    #[error(
        "data segment at {at:#x} ends at {end} of a memory that starts with {memory} bytes: it would have no instance"
    )]
    Data { at: usize, end: u64, memory: u64 },
    #[error("it does not export \"decide\", the one function of world {WORLD:?}")]
    NoDecide,
    #[error("its types are not those of world \"{0}\": {1}")]
    World(World, String),
}

impl From<wasmparser::Error> for CheckError {
    fn from(error: wasmparser::Error) -> Self {
        Self::Invalid(error)
    }
}

/// What an instance of a core module takes from the pool.
#[derive(Default, Clone, Copy)]
struct Needs {
    instances: u64,
    memories: u64,
    memory: u64,
    tables: u64,
    table_elements: u64,
}

/// Checks everything that can be said without compiling.
pub(super) fn check(component: &[u8]) -> Result<Found, CheckError> {
    if !Parser::is_component(component) {
        return Err(CheckError::NotComponent);
    }
    check_nesting(component)?;
    Validator::new_with_features(FEATURES).validate_all(component)?;
    let Structure { world, prepares, imports, needs } = check_structure(component)?;
    let world = check_types(component, world, prepares)?;
    // Of those that the host calls for a request the world has one, and `check_structure` saw it.
    let exports = vec![DECIDE.to_owned()];
    let (memory, table_elements) = (needs.memory, needs.table_elements);
    Ok(Found { world, prepares, imports, exports, memory, table_elements })
}

/// Who instantiates what, and which names come in and go out.
struct Structure {
    /// The one that its imports name, if they name any.
    world: Option<World>,
    prepares: bool,
    imports: Vec<String>,
    needs: Needs,
}

/// What has to be known before a recursive reader may see it. Reads section headers only.
fn check_nesting(component: &[u8]) -> Result<(), CheckError> {
    let mut depth = 0_usize;
    let mut code = component.len();
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::DataSection(section) => code = code.saturating_sub(section.range().len()),
            Payload::ComponentSection { unchecked_range, .. } => {
                depth += 1;
                if depth > NESTING_MAX {
                    return Err(CheckError::Nesting { at: unchecked_range.start });
                }
            }
            Payload::ModuleSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentTypeSection(section) => check_types_len(section.range())?,
            Payload::CoreTypeSection(section) => check_types_len(section.range())?,
            _ => {}
        }
    }
    if code > CODE_MAX { Err(CheckError::Code { len: code }) } else { Ok(()) }
}

fn check_types_len(range: std::ops::Range<usize>) -> Result<(), CheckError> {
    if range.len() > TYPES_MAX { Err(CheckError::Types { at: range.start }) } else { Ok(()) }
}

/// Walks a component that is known to be valid.
fn check_structure(component: &[u8]) -> Result<Structure, CheckError> {
    let mut depth = Depth::default();
    let mut imports = BTreeSet::new();
    let mut world: Option<World> = None;
    let mut prepares = false;
    let mut modules: Vec<Needs> = Vec::new();
    let mut total = Needs::default();
    let mut exports_decide = false;
    let mut exports = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload?;
        depth.enter(&payload);
        match payload {
            Payload::ModuleSection { .. } if depth.components == 0 => {
                modules.push(Needs { instances: 1, ..Needs::default() });
            }
            Payload::MemorySection(section) if depth.components == 0 => {
                for memory in section {
                    let memory = memory?;
                    add_needs(
                        &mut modules,
                        Needs {
                            memories: 1,
                            memory: memory.initial.saturating_mul(PAGE),
                            ..Needs::default()
                        },
                    );
                }
            }
            Payload::TableSection(section) if depth.components == 0 => {
                for table in section {
                    add_needs(
                        &mut modules,
                        Needs { tables: 1, table_elements: table?.ty.initial, ..Needs::default() },
                    );
                }
            }
            Payload::InstanceSection(section) => {
                let at = section.range().start;
                for instance in section {
                    let Instance::Instantiate { module_index, .. } = instance? else { continue };
                    if depth.components > 0 {
                        return Err(CheckError::NestedCode { at });
                    }
                    let module = usize::try_from(module_index).ok().and_then(|index| modules.get(index));
                    total.add(*module.ok_or(CheckError::ModuleAlias { at })?);
                }
            }
            Payload::ComponentAliasSection(section) => {
                let at = section.range().start;
                for alias in section {
                    if let ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. }
                    | ComponentAlias::Outer { kind: ComponentOuterAliasKind::CoreModule, .. } = alias?
                    {
                        return Err(CheckError::ModuleAlias { at });
                    }
                }
            }
            Payload::ComponentStartSection { range, .. } => {
                return Err(CheckError::Start { at: range.start });
            }
            Payload::ComponentImportSection(section) if depth.components == 0 => {
                for import in section.into_iter_with_offsets() {
                    let (at, import) = import?;
                    // The world's own names for its types: a type is not something that can be called.
                    if !matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_))) {
                        let (of, interface) = interface(import.name.name, at)?;
                        if let Some(other) = world.replace(of).filter(|other| *other != of) {
                            return Err(CheckError::Worlds { of: (other, of), at });
                        }
                        imports.extend(interface);
                    }
                }
            }
            Payload::ExportSection(section) => {
                let (found, at) = (section.count(), section.range().start);
                check_exports("module", found, MODULE_EXPORTS_MAX, at)?;
            }
            Payload::DataSection(section) => {
                let memory = memory_of_last(&modules, &depth);
                for segment in section {
                    check_segment(&segment?, memory)?;
                }
            }
            Payload::ComponentExportSection(section) if depth.components > 0 => {
                let (found, at) = (section.count(), section.range().start);
                check_exports("component", found, MODULE_EXPORTS_MAX, at)?;
            }
            Payload::ComponentExportSection(section) => {
                exports = exports.saturating_add(section.count());
                check_exports("component", exports, EXPORTS_MAX, section.range().start)?;
                for export in section {
                    let name = export?.name.name;
                    exports_decide |= name == DECIDE;
                    prepares |= name == PREPARE;
                }
            }
            _ => {}
        }
    }
    total.check()?;
    if !exports_decide {
        return Err(CheckError::NoDecide);
    }
    let imports = imports.into_iter().map(Into::into).collect();
    Ok(Structure { world, prepares, imports, needs: total })
}

fn check_exports(what: &'static str, found: u32, limit: u32, at: usize) -> Result<(), CheckError> {
    if found > limit { Err(CheckError::Exports { what, found, limit, at }) } else { Ok(()) }
}

/// Bytes that the module which is being read starts with; None where its memory is another's.
fn memory_of_last(modules: &[Needs], depth: &Depth) -> Option<u64> {
    modules.last().filter(|of| depth.components == 0 && of.memories > 0).map(|of| of.memory)
}

/// A segment that does not fit traps whenever an instance is made. Only where it is said in numbers, which is nearly everywhere.
fn check_segment(segment: &Data<'_>, memory: Option<u64>) -> Result<(), CheckError> {
    let (DataKind::Active { offset_expr, .. }, Some(memory)) = (&segment.kind, memory) else { return Ok(()) };
    let mut operators = offset_expr.get_operators_reader();
    if let Operator::I32Const { value } = operators.read()? {
        let length = u64::try_from(segment.data.len()).unwrap_or(u64::MAX);
        let end = u64::from(value.cast_unsigned()).saturating_add(length);
        if end > memory {
            return Err(CheckError::Data { at: segment.range.start, end, memory });
        }
    }
    Ok(())
}

/// The world that an import is of, and the host interface that it names; `types` grants nothing and has no name.
fn interface(import: &str, at: usize) -> Result<(World, Option<&'static str>), CheckError> {
    let shown = || import.chars().take(200).collect::<String>();
    let unknown = || CheckError::Import { name: shown(), at };
    let (name, version) = import
        .strip_prefix("portcullis:policy/")
        .and_then(|rest| rest.split_once('@'))
        .ok_or_else(unknown)?;
    let world = World::ALL.into_iter().find(|world| world.version() == version).ok_or_else(unknown)?;
    if name == TYPES {
        return Ok((world, None));
    }
    let granted = world.capabilities().iter().find(|one| one.name() == name);
    let granted = granted.ok_or_else(|| CheckError::NotInWorld { name: shown(), world, at })?;
    Ok((world, Some(granted.name())))
}

/// Imports and exports have exactly the types of a world: of the one that is named, or of the newest that fits where
/// nothing is imported that would name one. Returns which.
fn check_types(component: &[u8], world: Option<World>, prepares: bool) -> Result<World, CheckError> {
    let fits = |world: World| {
        let mut resolve = Resolve::default();
        resolve
            .push_str("policy.wit", world.wit())
            .and_then(|package| resolve.select_world(&[package], Some(of_world(prepares))))
            .and_then(|of| wit_component::targets(&resolve, of, component))
            .map(|()| world)
            .map_err(|error| CheckError::World(world, error.root_cause().to_string()))
    };
    match world {
        Some(world) => fits(world),
        None => {
            let newest = fits(World::LATEST);
            let older = World::ALL.into_iter().filter(|world| *world != World::LATEST);
            newest.or_else(|why| older.into_iter().find_map(|world| fits(world).ok()).ok_or(why))
        }
    }
}

fn add_needs(modules: &mut [Needs], more: Needs) {
    if let Some(module) = modules.last_mut() {
        module.add(more);
    }
}

impl Needs {
    /// No more than a slot of a worker's pool has.
    fn check(&self) -> Result<(), CheckError> {
        let table_elements = u64::try_from(TABLE_ELEMENTS).unwrap_or(u64::MAX);
        for (what, found, limit) in [
            ("linear memories", self.memories, 1),
            ("instances of core modules", self.instances, CORE_INSTANCES_PER_COMPONENT.into()),
            ("tables", self.tables, TABLES_PER_COMPONENT.into()),
            ("table elements", self.table_elements, table_elements),
        ] {
            if found > limit {
                return Err(CheckError::TooMuch { what, found, limit });
            }
        }
        Ok(())
    }

    fn add(&mut self, more: Self) {
        self.instances = self.instances.saturating_add(more.instances);
        self.tables = self.tables.saturating_add(more.tables);
        self.memories = self.memories.saturating_add(more.memories);
        self.memory = self.memory.saturating_add(more.memory);
        self.table_elements = self.table_elements.saturating_add(more.table_elements);
    }
}

/// How many nested components the walk is in; modules end with the same marker, so they are remembered as well.
#[derive(Default)]
struct Depth {
    components: usize,
    /// For what is open: is it a component?
    open: Vec<bool>,
}

impl Depth {
    fn enter(&mut self, payload: &Payload<'_>) {
        match payload {
            Payload::ComponentSection { .. } => self.open.push(true),
            Payload::ModuleSection { .. } => self.open.push(false),
            Payload::End(_) => drop(self.open.pop()),
            _ => {}
        }
        self.components = self.open.iter().filter(|is_component| **is_component).count();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Terms, rewrite, samples};
    use super::*;

    fn refused(component: &[u8]) -> String {
        match check(component) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("taken for a policy"),
        }
    }

    fn wat(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn a_policy_is_accepted_and_its_needs_are_counted() {
        let found = check(&samples::policy("")).unwrap();
        assert_eq!(found.imports, Vec::<String>::new());
        assert_eq!((found.memory, found.table_elements), (2 * PAGE, 0));

        let found = check(&samples::policy(
            r#"(import "portcullis:policy/random@1.0.0" "get-u64" (func (result i64)))
               (import "portcullis:policy/clock@1.0.0" "now" (func (result i64)))
               (table 7 9 funcref)"#,
        ))
        .unwrap();
        assert_eq!(found.imports, ["clock", "random"]);
        assert_eq!(found.table_elements, 7);
    }

    #[test]
    fn what_is_not_a_component_is_refused() {
        assert_eq!(refused(b""), "it is not a WebAssembly component");
        assert_eq!(refused(&wat("(module)")), "it is not a WebAssembly component");
        let whole = samples::policy("");
        for len in 8..whole.len() {
            match check(&whole[..len]) {
                Err(error) => assert!(!error.to_string().is_empty()),
                // Only tool sections are missing.
                Ok(_) => assert_eq!(
                    rewrite::component(&whole[..len], rewrite::Names::Dropped).unwrap(),
                    rewrite::component(&whole, rewrite::Names::Dropped).unwrap(),
                    "{len} of {} bytes were taken for a policy",
                    whole.len()
                ),
            }
        }
    }

    #[test]
    fn the_language_is_limited() {
        for (module, why) in [
            ("(memory 1) (memory 1)", "multiple memories"),
            ("(memory i64 1)", "memory64"),
            ("(memory 1 1 shared)", "threads"),
            ("(tag)", "exceptions"),
            ("(table i64 1 funcref)", "memory64"),
            ("(type (array i32))", "gc"),
            ("(func (param (ref null any)))", "gc"),
            ("(type (struct))", "gc"),
        ] {
            let error = refused(&wat(&format!("(component (core module {module}))")));
            assert!(error.contains(why) && error.contains("offset"), "{module}: {error}");
        }
    }

    #[test]
    fn imports_beyond_the_world_are_refused_by_name_and_place() {
        let refused_import = |import: &str| {
            let text = format!(r#"(component (import "{import}" (instance (export "f" (func)))))"#);
            let error = refused(&wat(&text));
            assert!(error.starts_with(&format!("it imports {import:?} at 0x")), "{error}");
            error
        };
        for import in [
            "wasi:cli/environment@0.2.0",
            "wasi:http/outgoing-handler@0.2.0",
            "portcullis:policy/log@0.2.0",
            "portcullis:policy/log",
            "portcullis:other/log@1.0.0",
            "log",
        ] {
            let error = refused_import(import);
            assert!(error.contains("policies get clock, data, log, metric, random, nothing else"), "{error}");
        }
        for (import, world) in
            [("portcullis:policy/data@0.1.0", World::V0_1), ("portcullis:policy/files@1.0.0", World::V1_0)]
        {
            assert!(refused_import(import).ends_with(&format!("which world \"{world}\" does not have")));
        }
        for version in ["0.1.0", "1.0.0"] {
            let text = format!(
                r#"(component (import "portcullis:policy/log@{version}" (instance (export "steal" (func)))))"#
            );
            let error = refused(&wat(&text));
            assert!(error.contains("decide"), "{error}");
        }
        let both = r#"(component
            (import "portcullis:policy/log@1.0.0" (instance))
            (import "portcullis:policy/clock@0.1.0" (instance)))"#;
        let error = refused(&wat(both));
        assert!(error.starts_with("it imports of world \"portcullis:policy@1.0.0\", and at 0x"), "{error}");
        assert!(
            error.ends_with("of world \"portcullis:policy@0.1.0\"; build it against one of them"),
            "{error}"
        );
    }

    /// What it imports says which; where nothing does, its types.
    #[test]
    fn the_world_of_a_component_is_recognised() {
        let clock = |world: World| {
            let import = world.interface("clock");
            check(&samples::policy(&format!(r#"(import "{import}" "now" (func (result i64)))"#))).unwrap()
        };
        for world in World::ALL {
            let found = clock(world);
            assert_eq!((found.world, found.imports.as_slice()), (world, &["clock".to_owned()][..]));
            let plain = r#"(module (memory (export "memory") 1)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
                (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;
            let component = super::super::componentize_as(plain.as_bytes(), Some(world)).unwrap();
            assert_eq!(check(&component).unwrap().world, world);
        }
        // The types of one under the name of the other: every type that it takes from the other's interface is missing there.
        let old = super::super::componentize_as(
            br#"(module (memory (export "memory") 1)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
                (func (export "decide") (param i32) (result i32) (i32.const 512)))"#,
            Some(World::V0_1),
        );
        let mut old = old.unwrap();
        let (from, to) = (b"portcullis:policy/types@0.1.0", b"portcullis:policy/types@1.0.0");
        let places: Vec<_> = (0..old.len() - from.len()).filter(|at| old[*at..].starts_with(from)).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|at| old[*at..*at + to.len()].copy_from_slice(to));
        let error = refused(&old);
        assert!(error.starts_with("its types are not those of world \"portcullis:policy@1.0.0\""), "{error}");
    }

    #[test]
    fn a_policy_may_be_prepared_once_and_only_as_the_world_says() {
        let prepare = |core: &str, result: &str| {
            wat(&format!(
                r#"(component
                    (core module $m (memory (export "memory") 1)
                        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))
                        (func (export "prepare") {core} (i32.const 0)))
                    (core instance $i (instantiate $m))
                    (func (export "prepare") {result}
                        (canon lift (core func $i "prepare") (memory $i "memory") (realloc (func $i "realloc")))))"#
            ))
        };
        // It has to decide as well.
        let error = refused(&prepare(
            "(param i32 i32) (result i32)",
            "(param \"document\" (list u8)) (result (result (error string)))",
        ));
        assert!(error.contains("does not export \"decide\""), "{error}");
        assert!(!check(&samples::policy("")).unwrap().prepares);
    }

    #[test]
    fn more_exports_than_anybody_needs_are_refused() {
        let exports = |count: usize| {
            (0..count).map(|n| format!("(export \"e{n}\" (func $f))")).collect::<Vec<_>>().join(" ")
        };
        let module = |count: usize| format!("(core module $m (func $f) {})", exports(count));
        let error = refused(&wat(&format!("(component {})", module(10_000))));
        assert!(error.starts_with("module at 0x") || error.contains("module at 0x"), "{error}");
        assert!(error.ends_with("has 10000 exports, at most 8192 are looked at"), "{error}");
        assert!(refused(&wat(&format!("(component {})", module(8_192)))).contains("does not export"));
        let component = |count: usize| {
            format!(
                "(component (core module $m (func (export \"f\"))) (core instance $i (instantiate $m)) \
                 (func $f (canon lift (core func $i \"f\"))) {})",
                exports(count)
            )
        };
        let error = refused(&wat(&component(10_000)));
        assert!(error.starts_with("component at 0x"), "{error}");
        assert!(error.ends_with("has 10000 exports, at most 256 are looked at"), "{error}");
        assert!(refused(&wat(&component(256))).contains("does not export \"decide\""));
    }

    #[test]
    fn data_that_fits_no_instance_is_refused() {
        for (data, why) in [
            (
                "(data (i32.const 131072) \"x\")",
                Some("ends at 131073 of a memory that starts with 131072 bytes"),
            ),
            ("(data (i32.const -1) \"x\")", Some("ends at 4294967296 of a memory")),
            ("(data (i32.const 131071) \"x\")", None),
            ("(data \"passive\")", None),
        ] {
            match (check(&samples::policy(data)), why) {
                (Ok(_), None) => {}
                (Err(error), Some(why)) => {
                    let error = error.to_string();
                    assert!(error.starts_with("data segment at 0x") && error.contains(why), "{error}");
                }
                (found, _) => panic!("{data}: {:?}", found.err()),
            }
        }
    }

    #[test]
    fn exports_and_types_are_those_of_the_world() {
        assert!(refused(&wat("(component)")).contains("does not export \"decide\""));
        let decide = r#"(component
            (core module $m (func (export "f") (result i32) i32.const 1))
            (core instance $i (instantiate $m))
            (func (export "decide") (result u32) (canon lift (core func $i "f"))))"#;
        assert!(
            refused(&wat(decide)).starts_with("its types are not those of world"),
            "{}",
            refused(&wat(decide))
        );
        // The name of an interface is there, but with a function that it does not have.
        let steal = decide.replacen(
            "(component",
            r#"(component (import "portcullis:policy/log@0.1.0" (instance (export "steal" (func))))"#,
            1,
        );
        assert!(refused(&wat(&steal)).starts_with("its types are not those of world"));
    }

    #[test]
    fn structure_that_hides_code_is_refused() {
        let nested = "(component (component (core module $m) (core instance (instantiate $m))))";
        assert!(refused(&wat(nested)).contains("runs code of its own"));
        let alias = "(component (core module $m) (component (alias outer 1 $m (core module))))";
        assert!(refused(&wat(alias)).contains("alias of a core module"));
        let deep = "(component ".repeat(NESTING_MAX + 2) + &")".repeat(NESTING_MAX + 2);
        assert!(refused(&wat(&deep)).contains("nested more than"));
        let deepest = "(component ".repeat(100) + &")".repeat(100);
        assert!(refused(&wat(&deepest)).starts_with("component at 0x"));
    }

    #[test]
    fn what_no_pool_could_hold_is_refused() {
        for (module, instances, why) in [
            ("(memory 1)", 2, "2 linear memories, at most 1"),
            ("(table 1 funcref) (table 1 funcref)", 3, "6 tables, at most 4"),
            ("(table 5001 funcref)", 2, "10002 table elements, at most 10000"),
            ("", 65, "65 instances of core modules, at most 64"),
        ] {
            let instances = "(core instance (instantiate $m))".repeat(instances);
            let error = refused(&wat(&format!("(component (core module $m {module}) {instances})")));
            assert_eq!(error, format!("it starts with {why} are given"));
        }
    }

    /// Each level is three bytes and one call of a recursive reader.
    #[test]
    fn types_that_nest_without_end_are_refused_before_a_recursive_reader_sees_them() {
        let component = |levels: usize| {
            let mut types = vec![1];
            (0..levels).for_each(|_| types.extend_from_slice(&[0x42, 1, 1]));
            types.extend_from_slice(&[0x42, 0]);
            let mut component = wasm_encoder::Component::new();
            component.section(&wasm_encoder::RawSection { id: 7, data: &types });
            component.finish()
        };
        assert!(refused(&component(1_000_000)).contains("take more than"));
        // The most that gets through ends in an error, not in an overflow, with the stack that a build has.
        let most = component(TYPES_MAX / 3 - 2);
        assert!(matches!(
            super::super::build(&most, Terms::default(), &crate::bundle::Platform::ALL),
            Err(super::super::BuildError::Check(CheckError::Invalid(_) | CheckError::NoDecide))
        ));
    }
}
