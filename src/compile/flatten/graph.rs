//! What a component makes of its modules: which instance has what of which other.

use std::collections::{BTreeMap, BTreeSet};

use wasmparser::{
    CanonicalFunction, CanonicalOption, ComponentAlias, ComponentExternalKind, ComponentTypeRef, Instance,
    Parser, Payload,
};

use crate::engine::World;

use super::FlattenError;
use super::parts::{Kind, Part};

/// More instances are nobody's compiler's.
const INSTANCES_MAX: usize = 1000;

/// Something of the core, by the name under which it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Core<'a> {
    Of(u32, &'a str),
    Host(&'a str, &'a str),
}

/// What that is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// Instance, and the number among those of its kind that its module defines.
    Own(u32, u32),
    Host(&'a str, &'a str),
}

enum Made<'a> {
    Of { module: u32, arguments: BTreeMap<&'a str, u32> },
    Bag(BTreeMap<&'a str, (Kind, u32)>),
}

/// A function of the component.
enum Function<'a> {
    Host(&'a str, &'a str),
    Lifted { core: u32, options: Box<[CanonicalOption]> },
    Other,
}

#[derive(Default)]
pub(super) struct Graph<'a> {
    pub(super) modules: Vec<Part<'a>>,
    made: Vec<Made<'a>>,
    core: BTreeMap<Kind, Vec<Core<'a>>>,
    functions: Vec<Function<'a>>,
    /// Names of instances that the component imports.
    instances: Vec<Option<&'a str>>,
    /// What functions of the host allocate with.
    reallocs: BTreeSet<u32>,
    decide: Option<u32>,
    /// What it was made by.
    pub(super) producers: Option<&'a [u8]>,
}

impl<'a> Graph<'a> {
    pub(super) fn read(component: &'a [u8]) -> Result<Self, FlattenError> {
        let mut graph = Self::default();
        // Modules are read as such, components within have nothing that runs.
        let mut inside: u32 = 0;
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload?;
            match &payload {
                Payload::ModuleSection { unchecked_range, .. } => {
                    if inside == 0 {
                        let bytes = component.get(unchecked_range.clone());
                        graph.modules.push(Part::of(bytes.unwrap_or_default())?);
                    } else {
                        return Err(FlattenError::Unlike("a component in it has modules"));
                    }
                    inside = inside.saturating_add(1);
                }
                Payload::ComponentSection { .. } => inside = inside.saturating_add(1),
                Payload::End(_) => inside = inside.saturating_sub(1),
                _ if inside == 0 => graph.add(payload)?,
                _ => {}
            }
        }
        if graph.made.len() > INSTANCES_MAX {
            return Err(FlattenError::Unlike("it has many instances"));
        }
        Ok(graph)
    }

    fn add(&mut self, payload: Payload<'a>) -> Result<(), FlattenError> {
        match payload {
            Payload::InstanceSection(section) => {
                for instance in section {
                    self.made.push(match instance? {
                        Instance::Instantiate { module_index: module, args } => {
                            let arguments = args.iter().map(|arg| (arg.name, arg.index)).collect();
                            Made::Of { module, arguments }
                        }
                        Instance::FromExports(exports) => {
                            let mut bag = BTreeMap::new();
                            for export in exports {
                                bag.insert(export.name, (Kind::of(export.kind)?, export.index));
                            }
                            Made::Bag(bag)
                        }
                    });
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    self.alias(alias?)?;
                }
            }
            Payload::ComponentCanonicalSection(section) => {
                for function in section {
                    self.canonical(function?)?;
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import?;
                    match import.ty {
                        ComponentTypeRef::Instance(_) => self.instances.push(Some(import.name.name)),
                        ComponentTypeRef::Type(_) => {}
                        _ => return Err(FlattenError::Unlike("it imports what is no instance")),
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                self.instances.extend((0..section.count()).map(|_| None));
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    let export = export?;
                    match export.kind {
                        ComponentExternalKind::Func => {
                            if export.name.name == "decide" {
                                self.decide = Some(export.index);
                            }
                            self.functions.push(Function::Other);
                        }
                        ComponentExternalKind::Instance => self.instances.push(None),
                        ComponentExternalKind::Type => {}
                        _ => return Err(FlattenError::Unlike("it exports components")),
                    }
                }
            }
            Payload::ComponentStartSection { .. } => {
                return Err(FlattenError::Unlike("it has a start function"));
            }
            Payload::CustomSection(section) if section.name() == "producers" => {
                self.producers = Some(section.data());
            }
            _ => {}
        }
        Ok(())
    }

    fn alias(&mut self, alias: ComponentAlias<'a>) -> Result<(), FlattenError> {
        match alias {
            ComponentAlias::CoreInstanceExport { kind, instance_index, name } => {
                self.core.entry(Kind::of(kind)?).or_default().push(Core::Of(instance_index, name));
            }
            ComponentAlias::InstanceExport { kind, instance_index, name } => match kind {
                ComponentExternalKind::Func => {
                    let instance = usize::try_from(instance_index).ok();
                    let of = instance.and_then(|index| self.instances.get(index)).copied().flatten();
                    self.functions.push(of.map_or(Function::Other, |of| Function::Host(of, name)));
                }
                ComponentExternalKind::Instance => self.instances.push(None),
                ComponentExternalKind::Type => {}
                _ => return Err(FlattenError::Unlike("it takes components from instances")),
            },
            ComponentAlias::Outer { .. } => {}
        }
        Ok(())
    }

    fn canonical(&mut self, function: CanonicalFunction) -> Result<(), FlattenError> {
        match function {
            CanonicalFunction::Lift { core_func_index, options, .. } => {
                self.functions.push(Function::Lifted { core: core_func_index, options });
            }
            CanonicalFunction::Lower { func_index, options } => {
                for option in &options {
                    match option {
                        CanonicalOption::UTF8 | CanonicalOption::Memory(_) => {}
                        CanonicalOption::Realloc(index) => drop(self.reallocs.insert(*index)),
                        _ => return Err(FlattenError::Unlike("it calls the host in an unusual way")),
                    }
                }
                let host = usize::try_from(func_index).ok().and_then(|index| self.functions.get(index));
                let Some(Function::Host(interface, name)) = host else {
                    return Err(FlattenError::Unlike("it calls itself through the host"));
                };
                let core = Core::Host(interface, name);
                self.core.entry(Kind::Function).or_default().push(core);
            }
            _ => return Err(FlattenError::Unlike("it uses more of the component model than functions")),
        }
        Ok(())
    }

    /// The one that all of its imports are of.
    pub(super) fn world(&self) -> Option<World> {
        let version = |name: &'a str| Some(name.split_once('@')?.1);
        let mut versions = self.instances.iter().flatten().map(|name| version(name));
        let first = versions.next()??;
        let is_of = |world: &World| version(world.name()) == Some(first);
        versions.all(|other| other == Some(first)).then(|| World::ALL.into_iter().find(is_of))?
    }

    /// Every module with its instance, in the order in which they are made; each of them once.
    pub(super) fn order(&self) -> Result<Vec<(u32, &Part<'a>)>, FlattenError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for (instance, made) in (0..).zip(&self.made) {
            if let Made::Of { module, .. } = made {
                if !seen.insert(*module) {
                    return Err(FlattenError::Unlike("a module is instantiated twice"));
                }
                order.push((instance, self.part(*module)?));
            }
        }
        Ok(order)
    }

    /// What an index means in the module of an instance.
    pub(super) fn find(&self, instance: u32, kind: Kind, index: u32) -> Result<Target<'a>, FlattenError> {
        let Some(Made::Of { module, arguments }) = self.made(instance) else {
            return Err(FlattenError::Unlike("an instance is of no module"));
        };
        let part = self.part(*module)?;
        if let Some(number) = part.own(kind, index) {
            return Ok(Target::Own(instance, number));
        }
        let import = usize::try_from(index).ok().and_then(|index| part.imports(kind).get(index));
        let import = import.ok_or(FlattenError::Unlike("an index is beyond the end"))?;
        let from = arguments.get(import.module).filter(|from| **from < instance);
        let from = from.ok_or(FlattenError::Unlike("an instance is not given what it imports"))?;
        self.resolve(&Core::Of(*from, import.name), kind)
    }

    /// What something of the core is.
    pub(super) fn resolve(&self, core: &Core<'a>, kind: Kind) -> Result<Target<'a>, FlattenError> {
        let (instance, name) = match *core {
            Core::Host(interface, name) => return Ok(Target::Host(interface, name)),
            Core::Of(instance, name) => (instance, name),
        };
        let missing = FlattenError::Unlike("an instance does not have what is taken from it");
        match self.made(instance) {
            Some(Made::Of { module, .. }) => match self.part(*module)?.exports.get(name) {
                Some((of, index)) if *of == kind => self.find(instance, kind, *index),
                _ => Err(missing),
            },
            Some(Made::Bag(bag)) => match bag.get(name) {
                Some((of, index)) if *of == kind => {
                    let core = self.core(kind, *index)?;
                    // Only what was there before an instance was put together can be in it.
                    match core {
                        Core::Of(from, _) if from >= instance => Err(missing),
                        core => self.resolve(&core, kind),
                    }
                }
                _ => Err(missing),
            },
            None => Err(missing),
        }
    }

    /// What a core module of the world exports, by its name there.
    pub(super) fn exports(&self) -> Result<Vec<(&'static str, Core<'a>)>, FlattenError> {
        let lifted = self.decide.and_then(|index| self.functions.get(usize::try_from(index).ok()?));
        let Some(Function::Lifted { core, options }) = lifted else {
            return Err(FlattenError::Unlike("its decide is not its own"));
        };
        let mut exports = vec![("decide", self.core(Kind::Function, *core)?)];
        for option in options {
            match option {
                CanonicalOption::UTF8 | CanonicalOption::Memory(_) => {}
                CanonicalOption::Realloc(index) => {
                    let own = self.core(Kind::Function, *index)?;
                    let is_the_same = |other: &u32| {
                        let other = self.core(Kind::Function, *other)?;
                        let kind = Kind::Function;
                        Ok::<_, FlattenError>(self.resolve(&other, kind)? == self.resolve(&own, kind)?)
                    };
                    for other in &self.reallocs {
                        if !is_the_same(other)? {
                            return Err(FlattenError::Unlike("it allocates in two ways"));
                        }
                    }
                    exports.push(("cabi_realloc", own));
                }
                CanonicalOption::PostReturn(index) => {
                    exports.push(("cabi_post_decide", self.core(Kind::Function, *index)?));
                }
                _ => return Err(FlattenError::Unlike("it is called in an unusual way")),
            }
        }
        Ok(exports)
    }

    fn core(&self, kind: Kind, index: u32) -> Result<Core<'a>, FlattenError> {
        let of = self.core.get(&kind).zip(usize::try_from(index).ok());
        of.and_then(|(all, index)| all.get(index)).copied().ok_or(FlattenError::Unlike("no such item"))
    }

    fn made(&self, instance: u32) -> Option<&Made<'a>> {
        self.made.get(usize::try_from(instance).ok()?)
    }

    fn part(&self, module: u32) -> Result<&Part<'a>, FlattenError> {
        let part = usize::try_from(module).ok().and_then(|index| self.modules.get(index));
        part.ok_or(FlattenError::Unlike("a module is not there"))
    }
}
