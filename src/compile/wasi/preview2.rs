//! Preview 2: what components of Python, or of `wasm32-wasip2`, import.
//!
//! A component that was made of core modules lowers each function of WASI to one of theirs. Here each of those becomes a function of a
//! core module of ours, and the imports go: nothing is composed, no second memory is needed, and a call costs no more
//! than one within the guest. Resources are plain numbers then: 1 and 2 are standard output and standard error.
//!
//! What reaches outside fails with its own error where its type has one, and is a trap where it has none. Clocks, random
//! numbers and log stand behind WASI where the component imports `clock`, `random` and `log` of the world itself, since
//! what a policy asks for is its author's to say; without, they are traps, and what is printed is nobody's.

use std::collections::BTreeMap;

use wasm_encoder::{
    Alias, CanonicalFunctionSection, CanonicalOption, Component, ComponentAliasSection, ComponentExportKind,
    ComponentExportSection, ComponentImportSection, ComponentInstanceSection, ComponentSectionId,
    ComponentTypeSection, ExportKind, InstanceSection, ModuleArg, PrimitiveValType, RawSection, ValType,
};
use wasmparser::{
    CanonicalFunction, ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentTypeRef,
    ExternalKind, Instance,
};

use super::answers::{Call, Known, NAMESPACE, Name};
use super::read::{Error, at, entries, export_kind, sections};
use crate::compile::ComponentizeError;

/// What of the world stands behind WASI.
const CAPABILITIES: [&str; 3] = ["clock", "log", "random"];

/// True if a component imports anything of it.
pub(in crate::compile) fn is_imported(component: &[u8]) -> bool {
    sections(component).map_while(Result::ok).any(|(id, data)| {
        id == ComponentSectionId::Import as u8
            && entries::<wasmparser::ComponentImport<'_>>(data).is_ok_and(|mut imports| {
                imports.any(|one| one.is_ok_and(|one| one.name.name.starts_with(NAMESPACE)))
            })
    })
}

/// The component without its imports of it.
pub(in crate::compile) fn answered(component: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    rewritten(component).map_err(ComponentizeError::StandIn)
}

/// What of the world the component imports itself: instances, by the capability's name.
#[derive(Default)]
struct World {
    instances: BTreeMap<&'static str, u32>,
}

fn rewritten(component: &[u8]) -> Result<Vec<u8>, Error> {
    let known = Known::of(component)?;
    let mut rewriting = Rewriting::new(&known);
    let sections = sections(component).collect::<Result<Vec<_>, _>>()?;
    for (id, data) in &sections {
        rewriting.section(*id, data)?;
    }
    let (calls, world) = (rewriting.calls, rewriting.world);
    // Once more, now that it is known which functions are called.
    let mut rewriting = Rewriting::new(&known);
    rewriting.modules(&calls, &world)?;
    for (id, data) in &sections {
        rewriting.section(*id, data)?;
    }
    Ok(rewriting.out.finish())
}

/// Which functions are called, in the order in which they are lowered: without a memory, with one, and with one in which
/// room can be had. Each kind is a module of ours, since what it needs is there at another time.
type Calls = [Vec<Call>; 3];

/// Where an item of the component is now.
#[derive(Clone)]
enum Place {
    At(u32),
    Wasi(Name),
}

struct Rewriting<'k> {
    known: &'k Known,
    out: Component,
    calls: Calls,
    /// Instances of our modules, once they are there.
    ours: [Option<u32>; 3],
    modules: u32,
    /// By their old index.
    core_instances: Vec<u32>,
    next_core_instance: u32,
    core_functions: Vec<u32>,
    next_core_function: u32,
    functions: Vec<Place>,
    next_function: u32,
    /// Names of the imports of WASI, by instance.
    instances: Vec<Option<String>>,
    /// By type: is it one of WASI?
    types: Vec<bool>,
    world: World,
    memory: Option<u32>,
}

impl<'k> Rewriting<'k> {
    fn new(known: &'k Known) -> Self {
        Self {
            known,
            out: Component::new(),
            calls: Calls::default(),
            ours: [None; 3],
            modules: 0,
            core_instances: Vec::new(),
            next_core_instance: 0,
            core_functions: Vec::new(),
            next_core_function: 0,
            functions: Vec::new(),
            next_function: 0,
            instances: Vec::new(),
            types: Vec::new(),
            world: World::default(),
            memory: None,
        }
    }

    fn section(&mut self, id: u8, data: &[u8]) -> Result<(), Error> {
        const CUSTOM: u8 = ComponentSectionId::CoreCustom as u8;
        const CORE_INSTANCE: u8 = ComponentSectionId::CoreInstance as u8;
        const INSTANCE: u8 = ComponentSectionId::Instance as u8;
        const ALIAS: u8 = ComponentSectionId::Alias as u8;
        const TYPE: u8 = ComponentSectionId::Type as u8;
        const CANONICAL: u8 = ComponentSectionId::CanonicalFunction as u8;
        const IMPORT: u8 = ComponentSectionId::Import as u8;
        const EXPORT: u8 = ComponentSectionId::Export as u8;
        match id {
            // Names and the like, of things that are somewhere else now.
            CUSTOM => Ok(()),
            CORE_INSTANCE => entries(data)?.try_for_each(|one| self.core_instance(&one?)),
            INSTANCE => entries(data)?.try_for_each(|one| self.instance(&one?)),
            ALIAS => entries(data)?.try_for_each(|one| self.alias(&one?)),
            CANONICAL => entries(data)?.try_for_each(|one| self.canonical(&one?)),
            IMPORT => entries(data)?.try_for_each(|one| self.import(&one?)),
            EXPORT => entries(data)?.try_for_each(|one| self.export(&one?)),
            _ => {
                if id == TYPE {
                    let count = entries::<wasmparser::ComponentType<'_>>(data)?.count();
                    self.types.extend(std::iter::repeat_n(false, count));
                }
                self.out.section(&RawSection { id, data });
                Ok(())
            }
        }
    }

    fn import(&mut self, import: &wasmparser::ComponentImport<'_>) -> Result<(), Error> {
        let name = import.name.name;
        match import.ty {
            ComponentTypeRef::Instance(_) => {
                let is_wasi = name.starts_with(NAMESPACE);
                let index = u32::try_from(self.instances.len()).map_err(|_| "too many instances")?;
                self.instances.push(is_wasi.then(|| name.to_owned()));
                if is_wasi {
                    // Nothing is taken from it any more, but it has its number.
                    let mut section = ComponentInstanceSection::new();
                    section.export_items::<&str, [(&str, ComponentExportKind, u32); 0]>([]);
                    self.out.section(&section);
                    return Ok(());
                }
                let plain = name.strip_prefix("portcullis:policy/").and_then(|rest| rest.split('@').next());
                if let Some(capability) = CAPABILITIES.iter().find(|one| Some(**one) == plain) {
                    self.world.instances.insert(capability, index);
                }
            }
            ComponentTypeRef::Func(_) => self.new_function(),
            ComponentTypeRef::Type(_) => self.types.push(false),
            _ => return Err(format!("it imports {name:?}, which is no instance")),
        }
        let mut section = ComponentImportSection::new();
        section.import(import.name, import.ty.into());
        self.out.section(&section);
        Ok(())
    }

    fn new_function(&mut self) {
        self.functions.push(Place::At(self.next_function));
        self.next_function += 1;
    }

    fn new_core_function(&mut self) {
        self.core_functions.push(self.next_core_function);
        self.next_core_function += 1;
    }

    fn alias(&mut self, alias: &ComponentAlias<'_>) -> Result<(), Error> {
        let mut section = ComponentAliasSection::new();
        match *alias {
            ComponentAlias::InstanceExport { kind, instance_index, name } => {
                let import = at(&self.instances, instance_index)?.clone();
                match (kind, import) {
                    (ComponentExternalKind::Func, Some(import)) => {
                        self.functions.push(Place::Wasi((import, name.to_owned())));
                        return Ok(());
                    }
                    (ComponentExternalKind::Type, Some(import)) => {
                        self.types.push(true);
                        let mut section = ComponentTypeSection::new();
                        if self.known.is_resource(&(import, name.to_owned())) {
                            section.resource(ValType::I32, None);
                        } else {
                            section.defined_type().primitive(PrimitiveValType::Bool);
                        }
                        self.out.section(&section);
                        return Ok(());
                    }
                    (_, Some(import)) => return Err(format!("it takes {name:?} of {import:?}")),
                    (ComponentExternalKind::Func, None) => self.new_function(),
                    (ComponentExternalKind::Type, None) => self.types.push(false),
                    (ComponentExternalKind::Instance, None) => self.instances.push(None),
                    _ => {}
                }
                section.alias(Alias::InstanceExport { instance: instance_index, kind: kind.into(), name });
            }
            ComponentAlias::CoreInstanceExport { kind, instance_index, name } => {
                let instance = *at(&self.core_instances, instance_index)?;
                if kind == ExternalKind::Func {
                    self.new_core_function();
                }
                section.alias(Alias::CoreInstanceExport { instance, kind: export_kind(kind)?, name });
            }
            ComponentAlias::Outer { .. } => return Err("it is part of another component".into()),
        }
        self.out.section(&section);
        Ok(())
    }

    fn canonical(&mut self, function: &CanonicalFunction) -> Result<(), Error> {
        let mut section = CanonicalFunctionSection::new();
        match function {
            CanonicalFunction::Lift { core_func_index, type_index, options } => {
                let options = self.options(options)?;
                section.lift(*at(&self.core_functions, *core_func_index)?, *type_index, options);
                self.new_function();
            }
            CanonicalFunction::Lower { func_index, options } => {
                match at(&self.functions, *func_index)?.clone() {
                    Place::Wasi(name) => return self.call(Call::Function(name), options),
                    Place::At(function) => {
                        let options = self.options(options)?;
                        section.lower(function, options);
                        self.new_core_function();
                    }
                }
            }
            CanonicalFunction::ResourceDrop { resource } => {
                if *at(&self.types, *resource)? {
                    return self.call(Call::Drop, &[]);
                }
                section.resource_drop(*resource);
                self.new_core_function();
            }
            other => return Err(format!("it has {other:?}")),
        }
        self.out.section(&section);
        Ok(())
    }

    /// A core function of ours in the place of a lowered one.
    fn call(&mut self, call: Call, options: &[wasmparser::CanonicalOption]) -> Result<(), Error> {
        let memory = options.iter().find_map(|option| match option {
            wasmparser::CanonicalOption::Memory(memory) => Some(*memory),
            _ => None,
        });
        let realloc = options.iter().find_map(|option| match option {
            wasmparser::CanonicalOption::Realloc(function) => Some(*function),
            _ => None,
        });
        if memory.is_some_and(|memory| self.memory.is_some_and(|other| other != memory)) {
            return Err("its functions of WASI are lowered with more than one memory".into());
        }
        let which = usize::from(memory.is_some()) + usize::from(realloc.is_some());
        let instance = match self.ours.get(which).copied().flatten() {
            Some(instance) => instance,
            None => {
                self.memory = self.memory.or(memory);
                let realloc =
                    realloc.map(|realloc| at(&self.core_functions, realloc).copied()).transpose()?;
                self.instantiate(which, memory, realloc)?
            }
        };
        let (Some(ours), Some(calls)) = (self.ours.get_mut(which), self.calls.get_mut(which)) else {
            return Err("there is no such module".into());
        };
        *ours = Some(instance);
        let name = calls.len().to_string();
        calls.push(call);
        let mut section = ComponentAliasSection::new();
        section.alias(Alias::CoreInstanceExport { instance, kind: ExportKind::Func, name: &name });
        self.out.section(&section);
        self.new_core_function();
        Ok(())
    }

    /// An instance of one of our modules, with what there is of the world and of the guest.
    fn instantiate(&mut self, which: usize, memory: Option<u32>, realloc: Option<u32>) -> Result<u32, Error> {
        let mut items: Vec<(&str, ExportKind, u32)> = Vec::new();
        for (capability, function) in [("clock", "now"), ("random", "get-u64"), ("log", "write")] {
            let Some(instance) = self.world.instances.get(capability).copied() else { continue };
            let options = match (capability, memory) {
                ("log", None) => continue,
                ("log", Some(memory)) => vec![CanonicalOption::UTF8, CanonicalOption::Memory(memory)],
                _ => Vec::new(),
            };
            let mut aliases = ComponentAliasSection::new();
            aliases.alias(Alias::InstanceExport {
                instance,
                kind: ComponentExportKind::Func,
                name: function,
            });
            self.out.section(&aliases);
            let mut lowered = CanonicalFunctionSection::new();
            lowered.lower(self.next_function, options);
            self.out.section(&lowered);
            items.push((capability, ExportKind::Func, self.next_core_function));
            self.next_function += 1;
            self.next_core_function += 1;
        }
        items.extend(memory.map(|memory| ("memory", ExportKind::Memory, memory)));
        items.extend(realloc.map(|realloc| ("realloc", ExportKind::Func, realloc)));
        let mut section = InstanceSection::new();
        section.export_items(items);
        let module = u32::try_from(which).unwrap_or_default();
        section.instantiate(module, [("env", ModuleArg::Instance(self.next_core_instance))]);
        self.out.section(&section);
        self.next_core_instance += 2;
        Ok(self.next_core_instance - 1)
    }

    fn core_instance(&mut self, instance: &Instance<'_>) -> Result<(), Error> {
        let mut section = InstanceSection::new();
        match instance {
            Instance::Instantiate { module_index, args } => {
                let arguments = args.iter().map(|argument| {
                    Ok((argument.name, ModuleArg::Instance(*at(&self.core_instances, argument.index)?)))
                });
                let arguments = arguments.collect::<Result<Vec<_>, Error>>()?;
                section.instantiate(module_index + self.modules, arguments);
            }
            Instance::FromExports(exports) => {
                let items = exports.iter().map(|export| {
                    let index = match export.kind {
                        ExternalKind::Func => *at(&self.core_functions, export.index)?,
                        _ => export.index,
                    };
                    Ok((export.name, export_kind(export.kind)?, index))
                });
                section.export_items(items.collect::<Result<Vec<_>, Error>>()?);
            }
        }
        self.core_instances.push(self.next_core_instance);
        self.next_core_instance += 1;
        self.out.section(&section);
        Ok(())
    }

    fn instance(&mut self, instance: &ComponentInstance<'_>) -> Result<(), Error> {
        let mut section = ComponentInstanceSection::new();
        match instance {
            ComponentInstance::Instantiate { component_index, args } => {
                let arguments = args.iter().map(|argument| {
                    Ok((argument.name, argument.kind.into(), self.item(argument.kind, argument.index)?))
                });
                section.instantiate(*component_index, arguments.collect::<Result<Vec<_>, Error>>()?);
            }
            ComponentInstance::FromExports(exports) => {
                let items = exports.iter().map(|export| {
                    Ok((export.name.name, export.kind.into(), self.item(export.kind, export.index)?))
                });
                section.export_items(items.collect::<Result<Vec<_>, Error>>()?);
            }
        }
        self.instances.push(None);
        self.out.section(&section);
        Ok(())
    }

    fn export(&mut self, export: &wasmparser::ComponentExport<'_>) -> Result<(), Error> {
        let index = self.item(export.kind, export.index)?;
        let mut section = ComponentExportSection::new();
        section.export(export.name, export.kind.into(), index, export.ty.map(Into::into));
        self.out.section(&section);
        match export.kind {
            ComponentExternalKind::Func => self.new_function(),
            ComponentExternalKind::Type => self.types.push(false),
            ComponentExternalKind::Instance => self.instances.push(None),
            _ => {}
        }
        Ok(())
    }

    fn item(&self, kind: ComponentExternalKind, index: u32) -> Result<u32, Error> {
        match kind {
            ComponentExternalKind::Func => match at(&self.functions, index)? {
                Place::At(function) => Ok(*function),
                Place::Wasi((_, name)) => Err(format!("it passes {name:?} on")),
            },
            ComponentExternalKind::Instance if at(&self.instances, index)?.is_some() => {
                Err("it passes an import of WASI on".into())
            }
            _ => Ok(index),
        }
    }

    fn options(&self, options: &[wasmparser::CanonicalOption]) -> Result<Vec<CanonicalOption>, Error> {
        let moved = |option: &wasmparser::CanonicalOption| {
            Ok(match option {
                wasmparser::CanonicalOption::Realloc(function) => {
                    CanonicalOption::Realloc(*at(&self.core_functions, *function)?)
                }
                wasmparser::CanonicalOption::PostReturn(function) => {
                    CanonicalOption::PostReturn(*at(&self.core_functions, *function)?)
                }
                other => (*other).into(),
            })
        };
        options.iter().map(moved).collect()
    }

    /// Our modules, before everything else.
    fn modules(&mut self, calls: &Calls, world: &World) -> Result<(), Error> {
        for (which, calls) in calls.iter().enumerate() {
            let text =
                self.known.module(which, calls, |capability| world.instances.contains_key(capability))?;
            let data = wat::parse_str(&text).map_err(|error| error.to_string())?;
            self.out.section(&RawSection { id: ComponentSectionId::CoreModule as u8, data: &data });
            self.modules += 1;
        }
        Ok(())
    }
}
