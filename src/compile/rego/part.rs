//! What one of the modules that are merged has.

use std::collections::BTreeMap;

use wasmparser::{ExternalKind, KnownCustom, Name, Parser, Payload, TypeRef};

/// As far as merging has to know of it.
#[derive(Default)]
pub(super) struct Part<'a> {
    pub(super) types: u32,
    /// Module, name and type of each function it imports.
    pub(super) imports: Vec<(&'a str, &'a str, u32)>,
    /// Functions it defines, tables, globals, data and element segments.
    pub(super) functions: u32,
    pub(super) tables: u32,
    pub(super) globals: u32,
    pub(super) exports: BTreeMap<&'a str, u32>,
    pub(super) start: Option<u32>,
    /// Globals that change: the stack pointer of an adapter.
    pub(super) mutable: Vec<u32>,
    /// What its functions are called: of OPA's, rules have theirs.
    pub(super) names: BTreeMap<u32, &'a str>,
}

impl<'a> Part<'a> {
    pub(super) fn of(module: &'a [u8]) -> Result<Self, wasmparser::Error> {
        let mut part = Self::default();
        for payload in Parser::new(0).parse_all(module) {
            match payload? {
                Payload::TypeSection(section) => part.types = section.count(),
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        if let TypeRef::Func(ty) = import.ty {
                            part.imports.push((import.module, import.name, ty));
                        }
                    }
                }
                Payload::FunctionSection(section) => part.functions = section.count(),
                Payload::TableSection(section) => part.tables = section.count(),
                Payload::GlobalSection(section) => {
                    part.globals = section.count();
                    for (index, global) in (0..).zip(section) {
                        if global?.ty.mutable {
                            part.mutable.push(index);
                        }
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        if export.kind == ExternalKind::Func {
                            part.exports.insert(export.name, export.index);
                        }
                    }
                }
                Payload::StartSection { func, .. } => part.start = Some(func),
                Payload::CustomSection(section) => {
                    // Names are for people: what cannot be read of them is not there.
                    let KnownCustom::Name(names) = section.as_known() else { continue };
                    for name in names.into_iter().flatten() {
                        if let Name::Function(functions) = name {
                            let read = functions.into_iter().flatten();
                            part.names.extend(read.map(|naming| (naming.index, naming.name)));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(part)
    }

    /// The index that a function of this part has among those that it defines itself.
    pub(super) fn defined(&self, index: u32) -> Option<u32> {
        index.checked_sub(u32::try_from(self.imports.len()).ok()?)
    }

    /// Where an export of its own is, if its functions begin at `first`.
    pub(super) fn at(&self, first: u32, name: &str) -> Option<u32> {
        let index = self.exports.get(name).and_then(|index| self.defined(*index))?;
        Some(index.saturating_add(first))
    }
}
