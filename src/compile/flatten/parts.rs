//! What one core module has.

use std::collections::{BTreeMap, BTreeSet};

use wasmparser::{ConstExpr, ExternalKind, Operator, Parser, Payload, TypeRef};

use super::{FlattenError, count};

/// What modules import and export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Function,
    Table,
    Memory,
    Global,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Function, Self::Table, Self::Memory, Self::Global];

    pub(super) fn of(kind: ExternalKind) -> Result<Self, FlattenError> {
        match kind {
            ExternalKind::Func => Ok(Self::Function),
            ExternalKind::Table => Ok(Self::Table),
            ExternalKind::Memory => Ok(Self::Memory),
            ExternalKind::Global => Ok(Self::Global),
            ExternalKind::Tag | ExternalKind::FuncExact => Err(FlattenError::Unlike("it has exceptions")),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Import<'a> {
    pub(super) module: &'a str,
    pub(super) name: &'a str,
    /// Of a function.
    pub(super) ty: u32,
}

#[derive(Default)]
pub(super) struct Part<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) types: u32,
    pub(super) elements: u32,
    pub(super) data: u32,
    imports: BTreeMap<Kind, Vec<Import<'a>>>,
    defines: BTreeMap<Kind, u32>,
    pub(super) exports: BTreeMap<&'a str, (Kind, u32)>,
    /// What its own globals begin as.
    pub(super) globals: Vec<ConstExpr<'a>>,
    /// Globals that its code sets, imported ones first.
    pub(super) written: BTreeSet<u32>,
}

impl<'a> Part<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, FlattenError> {
        let mut part = Self { bytes, ..Self::default() };
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::TypeSection(section) => part.types = section.count(),
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        let (kind, ty) = match import.ty {
                            TypeRef::Func(ty) => (Kind::Function, ty),
                            TypeRef::Table(_) => (Kind::Table, 0),
                            TypeRef::Memory(_) => (Kind::Memory, 0),
                            TypeRef::Global(_) => (Kind::Global, 0),
                            _ => return Err(FlattenError::Unlike("it has exceptions")),
                        };
                        let import = Import { module: import.module, name: import.name, ty };
                        part.imports.entry(kind).or_default().push(import);
                    }
                }
                Payload::FunctionSection(section) => part.define(Kind::Function, section.count()),
                Payload::TableSection(section) => part.define(Kind::Table, section.count()),
                Payload::MemorySection(section) => part.define(Kind::Memory, section.count()),
                Payload::GlobalSection(section) => {
                    part.define(Kind::Global, section.count());
                    for global in section {
                        part.globals.push(global?.init_expr);
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        part.exports.insert(export.name, (Kind::of(export.kind)?, export.index));
                    }
                }
                Payload::ElementSection(section) => part.elements = section.count(),
                Payload::DataSection(section) => part.data = section.count(),
                // Its own would run before the segments of the next are there.
                Payload::StartSection { .. } => return Err(FlattenError::Unlike("it has a start function")),
                Payload::TagSection(_) => return Err(FlattenError::Unlike("it has exceptions")),
                Payload::CodeSectionEntry(body) => {
                    for operator in body.get_operators_reader()? {
                        if let Operator::GlobalSet { global_index } = operator? {
                            part.written.insert(global_index);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(part)
    }

    fn define(&mut self, kind: Kind, number: u32) {
        self.defines.insert(kind, number);
    }

    pub(super) fn imports(&self, kind: Kind) -> &[Import<'a>] {
        self.imports.get(&kind).map_or(&[], Vec::as_slice)
    }

    pub(super) fn defines(&self, kind: Kind) -> u32 {
        self.defines.get(&kind).copied().unwrap_or(0)
    }

    /// The number that an index of this module has among those that it defines itself.
    pub(super) fn own(&self, kind: Kind, index: u32) -> Option<u32> {
        let number = index.checked_sub(count(self.imports(kind).len()))?;
        (number < self.defines(kind)).then_some(number)
    }
}
