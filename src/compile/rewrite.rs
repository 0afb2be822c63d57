//! The walk through a component: core modules are rewritten, custom sections dropped, everything else copied byte by
//! byte.
//!
//! Names, debug information and the like are for tools; a worker never reads them, and two builds of the same code
//! should not differ by where they were made.

use wasm_encoder::{CodeSection, Component, ComponentSectionId, Encode, Module, RawSection, SectionId};
use wasmparser::{BinaryReader, DataKind, Error, FunctionBody, Parser, Payload, TypeRef};

use super::bulk::Helpers;
use super::pace;

/// Magic number, version and layer.
const HEADER: usize = 8;
const CUSTOM: u8 = SectionId::Custom as u8;
const CORE_MODULE: u8 = ComponentSectionId::CoreModule as u8;
const COMPONENT: u8 = ComponentSectionId::Component as u8;
const TYPE: u8 = SectionId::Type as u8;
const FUNCTION: u8 = SectionId::Function as u8;
const CODE: u8 = SectionId::Code as u8;

/// What becomes of the names of functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Dropped,
    /// For those who look at where a policy spends its time.
    Kept,
}

/// Rewrites a component that has been checked; nesting is bounded by that check.
pub(super) fn component(bytes: &[u8], names: Names) -> Result<Vec<u8>, Error> {
    let mut rewritten = Component::new();
    for section in sections(bytes) {
        let (id, data) = section?;
        match id {
            CUSTOM => {}
            CORE_MODULE => {
                rewritten.section(&RawSection { id, data: &module(data, names)? });
            }
            COMPONENT => {
                rewritten.section(&RawSection { id, data: &component(data, names)? });
            }
            _ => {
                rewritten.section(&RawSection { id, data });
            }
        }
    }
    Ok(rewritten.finish())
}

/// Rewrites one core module: bodies as [`pace::body`] does, and the helper functions they call at the end, so that no
/// index that was there before changes.
pub(super) fn module(bytes: &[u8], names: Names) -> Result<Vec<u8>, Error> {
    let survey = Survey::of(bytes)?;
    let mut helpers = Helpers::new(survey.functions, survey.segments);
    let bodies =
        survey.bodies.iter().map(|body| pace::body(body, &mut helpers)).collect::<Result<Vec<_>, _>>()?;

    let mut rewritten = Module::new();
    for section in sections(bytes) {
        let (id, data) = section?;
        let changed = match id {
            // No index changes, so they still say what they said.
            CUSTOM if names == Names::Kept && is_names(data) => data.to_vec(),
            CUSTOM => continue,
            TYPE if !helpers.is_empty() => appended(data, 1, &Helpers::TYPE)?,
            FUNCTION if !helpers.is_empty() => {
                let mut entries = Vec::new();
                (0..helpers.len()).for_each(|_| survey.types.encode(&mut entries));
                appended(data, helpers.len(), &entries)?
            }
            CODE => {
                let mut code = CodeSection::new();
                for body in &bodies {
                    code.raw(body);
                }
                for body in helpers.bodies() {
                    code.function(&body);
                }
                rewritten.section(&code);
                continue;
            }
            _ => data.to_vec(),
        };
        rewritten.section(&RawSection { id, data: &changed });
    }
    Ok(rewritten.finish())
}

fn is_names(custom: &[u8]) -> bool {
    BinaryReader::new(custom, 0).read_string().is_ok_and(|name| name == "name")
}

/// What has to be known of a module before its code can be changed.
#[derive(Default)]
struct Survey<'a> {
    types: u32,
    /// Imported and defined.
    functions: u32,
    /// Length of each data segment; 0 for those that are gone when code runs.
    segments: Vec<usize>,
    bodies: Vec<FunctionBody<'a>>,
}

impl<'a> Survey<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut survey = Self::default();
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::TypeSection(section) => survey.types = section.count(),
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        if let TypeRef::Func(_) = import?.ty {
                            survey.functions = survey.functions.saturating_add(1);
                        }
                    }
                }
                Payload::FunctionSection(section) => {
                    survey.functions = survey.functions.saturating_add(section.count());
                }
                Payload::DataSection(section) => {
                    for segment in section {
                        let segment = segment?;
                        let passive = matches!(segment.kind, DataKind::Passive);
                        survey.segments.push(if passive { segment.data.len() } else { 0 });
                    }
                }
                Payload::CodeSectionEntry(body) => survey.bodies.push(body),
                _ => {}
            }
        }
        Ok(survey)
    }
}

/// A section that is a count and that many entries, with `more` of them.
fn appended(data: &[u8], more: u32, entries: &[u8]) -> Result<Vec<u8>, Error> {
    let mut reader = BinaryReader::new(data, 0);
    let count = reader.read_var_u32()?;
    let rest = reader.read_bytes(reader.bytes_remaining())?;
    let mut changed = Vec::with_capacity(data.len() + entries.len() + 1);
    count.saturating_add(more).encode(&mut changed);
    changed.extend_from_slice(rest);
    changed.extend_from_slice(entries);
    Ok(changed)
}

/// The sections of a module or a component, each as its id and its contents.
fn sections(bytes: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), Error>> {
    let mut reader = BinaryReader::new(bytes.get(HEADER..).unwrap_or_default(), HEADER);
    std::iter::from_fn(move || {
        if reader.eof() {
            return None;
        }
        let mut next = || {
            let id = reader.read_u8()?;
            let len = reader.read_var_u32()?;
            // A length that does not fit is longer than what is left, which the reader refuses.
            Ok((id, reader.read_bytes(usize::try_from(len).unwrap_or(usize::MAX))?))
        };
        Some(next())
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;
    use wasmparser::Validator;
    use wasmtime::{Engine, Instance, Store, Trap, UpdateDeadline};

    use super::*;
    use crate::engine::{FEATURES, Metering, compiling_engine};

    /// 512 KiB of memory, a data segment of 200,000 bytes, and each bulk instruction behind an export.
    fn bulk_module() -> Vec<u8> {
        let mut data = String::new();
        for i in 0..200_000_u32 {
            write!(data, "\\{:02x}", (i * 7 + i / 256) % 251).unwrap();
        }
        wat::parse_str(format!(
            r#"(module
                (memory (export "memory") 8)
                (data "short")
                (data $long "{data}")
                (func (export "fill") (param i32 i32 i32)
                    local.get 0 local.get 1 local.get 2 memory.fill)
                (func (export "copy") (param i32 i32 i32)
                    local.get 0 local.get 1 local.get 2 memory.copy)
                (func (export "init") (param i32 i32 i32)
                    local.get 0 local.get 1 local.get 2 memory.init $long)
                (func (export "short") (param i32 i32 i32)
                    local.get 0 local.get 1 local.get 2 memory.init 0)
                (func (export "drop") (param i32 i32 i32) data.drop $long)
                (func (export "grow") (param i32 i32 i32) (drop (memory.grow (i32.const 1))))
                (func (export "constant") (param i32 i32 i32)
                    local.get 0 local.get 1 i32.const 100 memory.copy
                    local.get 1 local.get 0 i32.const 70000 memory.fill))"#
        ))
        .unwrap()
    }

    struct Machine {
        store: Store<()>,
        instance: Instance,
    }

    impl Machine {
        fn new(engine: &Engine, module: &[u8]) -> Self {
            Validator::new_with_features(FEATURES).validate_all(module).expect("valid");
            let module = wasmtime::Module::new(engine, module).expect("module");
            let mut store = Store::new(engine, ());
            store.set_epoch_deadline(1 << 40);
            let instance = Instance::new(&mut store, &module, &[]).expect("instance");
            Self { store, instance }
        }

        fn call(&mut self, name: &str, operands: (u32, u32, u32)) -> Result<(), Trap> {
            let function =
                self.instance.get_typed_func::<(u32, u32, u32), ()>(&mut self.store, name).expect("export");
            function.call(&mut self.store, operands).map_err(|error| error.downcast().expect("trap"))
        }

        fn memory(&mut self) -> Vec<u8> {
            let memory = self.instance.get_memory(&mut self.store, "memory").expect("memory");
            memory.data(&self.store).to_vec()
        }

        /// How often the engine looks at the deadline while `name` runs.
        fn looks(&mut self, name: &str, operands: (u32, u32, u32)) -> u32 {
            let looks = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
            let counter = looks.clone();
            self.store.epoch_deadline_callback(move |_| {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(UpdateDeadline::Continue(0))
            });
            self.store.set_epoch_deadline(0);
            self.call(name, operands).expect("no trap");
            looks.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    fn operand() -> impl Strategy<Value = u32> {
        prop_oneof![
            4 => 0..600_000_u32,
            2 => 0..2000_u32,
            2 => (0..9_u32, -2..3_i32).prop_map(|(steps, more)| (steps << 16).wrapping_add_signed(more)),
            1 => 199_990..200_010_u32,
            1 => any::<u32>(),
            1 => (0..200_000_u32).prop_map(|less| u32::MAX - less),
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<(&'static str, (u32, u32, u32))>> {
        let name = prop_oneof![
            5 => Just("copy"), 3 => Just("fill"), 3 => Just("init"), 1 => Just("short"),
            1 => Just("drop"), 1 => Just("grow"), 1 => Just("constant"),
        ];
        prop::collection::vec((name, (operand(), operand(), operand())), 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_rewritten_module_does_what_the_original_does(steps in steps()) {
            thread_local! {
                static MODULES: (Engine, Vec<u8>, Vec<u8>) = {
                    let original = bulk_module();
                    let rewritten = module(&original, Names::Dropped).expect("rewritten");
                    (compiling_engine(crate::engine::Target::host(), Metering::Off).expect("engine"), original, rewritten)
                };
            }
            MODULES.with(|(engine, original, rewritten)| {
                let mut machines = [Machine::new(engine, original), Machine::new(engine, rewritten)];
                // Something to see copies by.
                for machine in &mut machines {
                    machine.call("init", (1000, 0, 200_000)).expect("init");
                    machine.call("init", (300_000, 100, 199_000)).expect("init");
                }
                for (name, operands) in steps {
                    let [first, second] = machines.each_mut().map(|machine| machine.call(name, operands));
                    prop_assert_eq!(first, second, "{} {:?}", name, operands);
                    let [first, second] = machines.each_mut().map(Machine::memory);
                    prop_assert!(first == second, "memory differs after {} {:?}", name, operands);
                }
                Ok(())
            })?;
        }
    }

    #[test]
    fn edges_of_overlap_and_bounds() {
        let original = bulk_module();
        let engine = compiling_engine(crate::engine::Target::host(), Metering::Off).unwrap();
        let rewritten = module(&original, Names::Dropped).unwrap();
        let (end, long) = (8 << 16, 200_000);
        let mut traps = 0;
        for (name, operands) in [
            ("copy", (0, 1, long)),
            ("copy", (1, 0, long)),
            ("copy", (65_536, 0, 3 << 16)),
            ("copy", (0, 65_536, 3 << 16)),
            ("copy", (5, 5, 3 << 16)),
            ("copy", (end - long, 0, long)),
            ("copy", (end - long + 1, 0, long)),
            ("copy", (0, end - long + 1, long)),
            ("copy", (end, end, 0)),
            ("copy", (end + 1, 0, 0)),
            ("copy", (0, 0, u32::MAX)),
            ("copy", (u32::MAX, 0, 65_537)),
            ("fill", (0, 7, end)),
            ("fill", (0, 7, end + 1)),
            ("fill", (1, 7, end)),
            ("fill", (end + 1, 7, 0)),
            ("fill", (u32::MAX, 7, u32::MAX)),
            ("init", (0, 0, long)),
            ("init", (0, 1, long)),
            ("init", (end - long + 1, 0, long)),
            ("init", (0, u32::MAX, 65_537)),
            ("drop", (0, 0, 0)),
            ("init", (0, 0, long)),
            ("init", (0, 0, 0)),
        ] {
            let mut machines = [Machine::new(&engine, &original), Machine::new(&engine, &rewritten)];
            for machine in &mut machines {
                machine.call("init", (1000, 0, long)).unwrap();
                if name == "drop" {
                    machine.call("drop", operands).unwrap();
                }
            }
            let name = if name == "drop" { "init" } else { name };
            let operands = if operands == (0, 0, 0) { (0, 0, 100_000) } else { operands };
            let [first, second] = machines.each_mut().map(|machine| machine.call(name, operands));
            assert_eq!(first, second, "{name} {operands:?}");
            traps += u32::from(first == Err(Trap::MemoryOutOfBounds));
            let [first, second] = machines.each_mut().map(Machine::memory);
            assert!(first == second, "memory differs after {name} {operands:?}");
        }
        assert!(traps >= 11, "{traps} of these are out of bounds");
    }

    #[test]
    fn bulk_instructions_can_be_interrupted_every_64_kib() {
        let original = bulk_module();
        let engine = compiling_engine(crate::engine::Target::host(), Metering::Off).unwrap();
        let rewritten = module(&original, Names::Dropped).unwrap();
        for (name, operands) in [
            ("fill", (0, 1, 8 << 16)),
            ("copy", (0, 65_536, 7 << 16)),
            ("copy", (65_536, 0, 7 << 16)),
            ("init", (0, 0, 200_000)),
            ("constant", (0, 0, 0)),
        ] {
            let steps = match name {
                "constant" => 2,
                "init" => 3,
                _ => 7,
            };
            let before = Machine::new(&engine, &original).looks(name, operands);
            let after = Machine::new(&engine, &rewritten).looks(name, operands);
            assert!(before <= 3, "{name}: {before} looks without rewriting: the test shows nothing");
            assert!(after >= before + steps - 1, "{name}: {before} looks before, {after} after");
        }
    }

    #[test]
    fn straight_code_can_be_interrupted() {
        let engine = compiling_engine(crate::engine::Target::host(), Metering::Off).unwrap();
        let straight = "local.get 0 i32.const 3 i32.mul local.set 0\n".repeat(40_000);
        // A branch is never taken just where a look would be due if only lengths were counted.
        let evasive = "local.get 0 i32.const 3 i32.mul local.set 0\n".repeat(500)
            + "i32.const 0 if\n"
            + &"local.get 0 i32.const 3 i32.mul local.set 0\n".repeat(100)
            + "end\n";
        let skipping =
            format!("block\n i32.const 1 br_if 0\n {} end\n", "nop\n".repeat(8000)) + &"nop\n".repeat(3000);
        let chosen = format!(
            "block block block local.get 0 br_table 0 1 2 end {0} end {0} end\n",
            "nop\n".repeat(3500)
        );
        // Each with what is passed to it and the bytes of code that are then executed at least.
        for (code, argument, executed) in [
            (straight, 0, 40_000 * 7),
            (evasive.repeat(40), 0, 40 * 500 * 7),
            (skipping.repeat(40), 0, 40 * 3000),
            (chosen.repeat(40), 0, 40 * 7000),
            (chosen.repeat(40), 1, 40 * 3500),
        ] {
            let text = format!(
                "(module (memory (export \"memory\") 1) (func (export \"f\") (param i32 i32 i32) {code}))"
            );
            let least = executed / 4096;
            let original = wat::parse_str(text).unwrap();
            let rewritten = module(&original, Names::Dropped).unwrap();
            let before = Machine::new(&engine, &original).looks("f", (argument, 0, 0));
            let after = Machine::new(&engine, &rewritten).looks("f", (argument, 0, 0));
            assert_eq!(before, 1, "only where the function begins");
            assert!(after >= least, "{after} looks in {} bytes, at least {least} expected", original.len());
            assert!(rewritten.len() < original.len() + original.len() / 500 + 40);
        }
    }

    #[test]
    fn code_that_needs_nothing_stays_as_it_is() {
        let text = r#"(module (memory 1) (func (param i32) (local i64)
            (loop (br_if 0 (local.get 0)))
            (memory.copy (i32.const 1) (i32.const 2) (i32.const 64))))"#;
        let original = wat::parse_str(text).unwrap();
        assert_eq!(module(&original, Names::Dropped).unwrap(), original);
    }

    #[test]
    fn rewriting_again_changes_no_behaviour() {
        let engine = compiling_engine(crate::engine::Target::host(), Metering::Off).unwrap();
        let once = module(&bulk_module(), Names::Dropped).unwrap();
        let twice = module(&once, Names::Dropped).unwrap();
        let mut machines = [Machine::new(&engine, &once), Machine::new(&engine, &twice)];
        let [first, second] = machines.each_mut().map(|machine| {
            machine.call("init", (1000, 0, 200_000)).unwrap();
            machine.call("copy", (70_000, 500, 200_000)).unwrap();
            machine.memory()
        });
        assert!(first == second);
    }
}
