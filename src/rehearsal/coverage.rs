//! Which parts of a policy its cases made run. What a part is depends on what the language leaves in the module: rules of
//! Rego, functions with names, functions without; interpreters leave nothing that would say anything of the policy.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use wasmparser::{KnownCustom, Name, Parser, Payload, TypeRef};

use crate::engine::{Function, Notes};

/// How `opa build` names the function of a rule.
const RULE: &str = "g0.";
/// Modules that tools put around a policy's own.
const AROUND: &str = "wit-component:";
/// First parts of names that are of a language's own library, not of a policy.
const LIBRARIES: [&str; 16] = [
    "core",
    "alloc",
    "std",
    "compiler_builtins",
    "wit_bindgen",
    "wit_bindgen_rt",
    "dlmalloc",
    "hashbrown",
    "rustc_demangle",
    "runtime",
    "internal",
    "reflect",
    "~lib",
    "syscall",
    "unicode",
    "sync",
];
/// What compiles a whole interpreter into a policy.
const INTERPRETERS: [&str; 4] = ["component-init-transform", "componentize-js", "componentize-py", "jco"];

/// What there is to be covered, and what was.
#[derive(Debug)]
pub struct Coverage {
    grain: Grain,
    parts: Vec<(Function, String)>,
    ran: BTreeSet<(String, u32)>,
    /// Of the language's library: nobody writes cases for it.
    library: usize,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grain {
    /// Of Rego.
    Rules,
    /// By name, without those of the language's library.
    Functions,
    /// The module has no names: which is which cannot be said.
    Numbers,
    /// The policy is data of an interpreter: its functions are the same whatever the policy says.
    Nothing,
}

/// A rule or a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    pub name: String,
    pub ran: bool,
}

impl Coverage {
    /// Of a policy as it runs, with its names ([`crate::compile::interruptible_here`]), made from `source`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(component: &[u8], source: &[u8]) -> Result<Self, wasmparser::Error> {
        let functions = defined(component)?;
        let interpreted = producers(source)?.iter().any(|name| INTERPRETERS.contains(&name.as_str()));
        let rule = |function: &Function| function.name.as_deref().is_some_and(|name| name.starts_with(RULE));
        let (grain, parts): (Grain, Vec<Function>) = if interpreted {
            (Grain::Nothing, Vec::new())
        } else if functions.iter().any(rule) {
            (Grain::Rules, functions.iter().filter(|function| rule(function)).cloned().collect())
        } else if functions.iter().any(|function| function.name.is_some()) {
            let named = |function: &&Function| function.name.as_deref().is_some_and(|name| !is_library(name));
            (Grain::Functions, functions.iter().filter(named).cloned().collect())
        } else {
            (Grain::Numbers, functions.clone())
        };
        let library = functions.len() - parts.len();
        let parts = parts.into_iter().map(|function| (shown_name(&function), function));
        let mut parts: Vec<_> = parts.map(|(name, function)| (function, name)).collect();
        parts.sort_by(|(_, one), (_, other)| one.cmp(other));
        Ok(Self { grain, parts, ran: BTreeSet::new(), library })
    }

    /// One case more.
    pub fn add(&mut self, notes: &Notes) {
        self.ran.extend(notes.functions.iter().map(|one| (one.module.clone(), one.index)));
    }

    #[must_use]
    pub fn grain(&self) -> Grain {
        self.grain
    }

    /// Every part, by name.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let ran = |function: &Function| self.ran.contains(&(function.module.clone(), function.index));
        self.parts.iter().map(|(function, name)| Part { name: name.clone(), ran: ran(function) }).collect()
    }

    /// How many functions were left out, because they are of a library or of an interpreter.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.library
    }
}

impl fmt::Display for Grain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rules => "rules",
            Self::Functions => "functions",
            Self::Numbers => "functions, of which the module does not say the names",
            Self::Nothing => "nothing: its code is an interpreter's, whatever the policy says",
        })
    }
}

/// A function for people.
pub(super) fn shown_name(function: &Function) -> String {
    match &function.name {
        Some(name) => match name.strip_prefix(RULE) {
            Some(rule) => rule.to_owned(),
            None => demangled(name),
        },
        None if function.module.is_empty() => format!("function {}", function.index),
        None => format!("function {} of {}", function.index, function.module),
    }
}

/// Rust's names without their hashes; others are what they are.
fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

fn is_library(name: &str) -> bool {
    let name = demangled(name);
    let path = name.trim_start_matches(['<', '&', '*', '(', '[', '_']);
    let first = path.split([':', '.', '/', '>', ' ']).next().unwrap_or(path);
    LIBRARIES.contains(&first)
}

/// Functions with a body, of every module that is a policy's own.
fn defined(component: &[u8]) -> Result<Vec<Function>, wasmparser::Error> {
    let mut all = Vec::new();
    let mut open: Vec<Option<Module>> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } => open.push(Some(Module::default())),
            Payload::ComponentSection { .. } => open.push(None),
            Payload::End(_) => {
                if let Some(Some(module)) = open.pop() {
                    all.extend(module.functions());
                }
            }
            payload => {
                if let Some(Some(module)) = open.last_mut() {
                    module.read(payload)?;
                }
            }
        }
    }
    Ok(all)
}

#[derive(Default)]
struct Module {
    name: String,
    imported: u32,
    defined: u32,
    names: Vec<(u32, String)>,
}

impl Module {
    fn read(&mut self, payload: Payload<'_>) -> Result<(), wasmparser::Error> {
        match payload {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if let TypeRef::Func(_) = import?.ty {
                        self.imported = self.imported.saturating_add(1);
                    }
                }
            }
            Payload::FunctionSection(section) => self.defined = section.count(),
            Payload::CustomSection(section) => {
                let KnownCustom::Name(names) = section.as_known() else { return Ok(()) };
                // Names are for people: what cannot be read of them is not there.
                for name in names.into_iter().flatten() {
                    match name {
                        Name::Module { name, .. } => self.name = name.to_owned(),
                        Name::Function(functions) => {
                            let read = functions.into_iter().flatten();
                            self.names.extend(read.map(|naming| (naming.index, naming.name.to_owned())));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn functions(self) -> Vec<Function> {
        if self.name.starts_with(AROUND) {
            return Vec::new();
        }
        let names: std::collections::BTreeMap<u32, String> = self.names.into_iter().collect();
        let defined = self.imported..self.imported.saturating_add(self.defined);
        defined
            .map(|index| Function { module: self.name.clone(), index, name: names.get(&index).cloned() })
            .collect()
    }
}

/// What made it, as its parts say.
fn producers(source: &[u8]) -> Result<BTreeSet<String>, wasmparser::Error> {
    let mut made_by = BTreeSet::new();
    for payload in Parser::new(0).parse_all(source) {
        let Payload::CustomSection(section) = payload? else { continue };
        let KnownCustom::Producers(fields) = section.as_known() else { continue };
        for field in fields.into_iter().flatten() {
            made_by.extend(field.values.into_iter().flatten().map(|value| value.name.to_ascii_lowercase()));
        }
    }
    Ok(made_by)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: &str = r#"(component
        (core module $policy
            (import "h" "f" (func $import))
            (func $decide) (func $_ZN4rule5never17h0123456789abcdefE) (func $_ZN4core3fmt17h0123456789abcdefE)
            (func $main.other))
        (core module (@name "wit-component:shim") (func $shim)))"#;

    fn coverage(text: &str) -> Coverage {
        let component = wat::parse_str(text).unwrap();
        Coverage::of(&component, &component).unwrap()
    }

    fn ran(module: &str, index: u32) -> Notes {
        let function = Function { module: module.into(), index, name: None };
        Notes { functions: vec![function], ..Notes::default() }
    }

    #[test]
    fn functions_of_libraries_and_of_what_tools_put_around_are_left_out() {
        let mut coverage = coverage(NAMED);
        coverage.add(&ran("policy", 1));
        let parts: Vec<_> = coverage.parts().into_iter().map(|part| (part.name, part.ran)).collect();
        assert_eq!(
            parts,
            [
                ("decide".to_owned(), true),
                ("main.other".to_owned(), false),
                ("rule::never".to_owned(), false)
            ]
        );
        assert_eq!((coverage.grain(), coverage.left_out()), (Grain::Functions, 1));
    }

    #[test]
    fn of_rego_rules_are_what_counts() {
        let mut coverage = coverage(
            "(component (core module $m (func $opa_eval) (func $g0.data.shop.allow) (func $g0.data.shop.deny)))",
        );
        coverage.add(&ran("m", 2));
        let parts: Vec<_> = coverage.parts().into_iter().map(|part| (part.name, part.ran)).collect();
        assert_eq!(parts, [("data.shop.allow".to_owned(), false), ("data.shop.deny".to_owned(), true)]);
        assert_eq!((coverage.grain(), coverage.left_out()), (Grain::Rules, 1));
    }

    #[test]
    fn where_there_are_no_names_functions_are_counted_and_of_interpreters_nothing_is_said() {
        let mut numbers = coverage("(component (core module (func) (func)))");
        numbers.add(&ran("", 1));
        let parts: Vec<_> = numbers.parts().into_iter().map(|part| (part.name, part.ran)).collect();
        assert_eq!(parts, [("function 0".to_owned(), false), ("function 1".to_owned(), true)]);
        assert_eq!(numbers.grain(), Grain::Numbers);
        let python = coverage(
            r#"(component (core module $m (@producers (processed-by "componentize-py" "1")) (func $PyEval)))"#,
        );
        assert_eq!((python.grain(), python.parts().len(), python.left_out()), (Grain::Nothing, 0, 1));
    }

    #[test]
    fn libraries_are_told_by_where_they_are() {
        for library in [
            "core::fmt::write",
            "<alloc::string::String as core::fmt::Write>::write_str",
            "runtime.alloc",
            "~lib/rt/itcms/__new",
            "<&core::a as b>::c",
        ] {
            assert!(is_library(library), "{library}");
        }
        for own in [
            "rbac::decide",
            "main.decide",
            "assembly/index/decide",
            "<rbac::Role as core::fmt::Debug>::fmt",
            "decide",
            "corelation::x",
        ] {
            assert!(!is_library(own), "{own}");
        }
    }
}
