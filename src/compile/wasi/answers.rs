//! What functions of preview 2 do behind a policy, as core functions in the guest's memory.

use std::collections::{BTreeMap, BTreeSet};

use wit_component::DecodedWasm;
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{Resolve, SizeAlign, Type, TypeDefKind, TypeId, WorldItem};

use super::preview1::LINES;

/// What the names of all its interfaces begin with.
pub(super) const NAMESPACE: &str = "wasi:";

/// Largest result that can say so, bytes: none of WASI is half as large.
const DENIAL_MAX: usize = 512;

/// An interface as it is imported, and what of it.
pub(super) type Name = (String, String);

/// What the guest calls.
#[derive(Clone)]
pub(super) enum Call {
    Function(Name),
    /// `resource.drop`
    Drop,
}

/// A function of WASI, as the guest calls it.
struct Function {
    /// "wasi:io/streams [method]output-stream.write"
    name: String,
    params: Vec<WasmType>,
    results: Vec<WasmType>,
    /// Bytes of a result that can say which error there was, and needs nothing else to say so.
    denial: Option<usize>,
}

/// What the component's own types say.
pub(super) struct Known {
    functions: BTreeMap<Name, Function>,
    resources: BTreeSet<Name>,
}

impl Known {
    pub(super) fn of(component: &[u8]) -> Result<Self, String> {
        let decoded = wit_component::decode(component).map_err(|error| format!("{error:#}"))?;
        let DecodedWasm::Component(resolve, world) = decoded else { return Err("it is no component".into()) };
        let mut sizes = SizeAlign::default();
        sizes.fill(&resolve);
        let mut known = Self { functions: BTreeMap::new(), resources: BTreeSet::new() };
        let world = resolve.worlds.get(world).ok_or("it has no world")?;
        for (key, item) in &world.imports {
            let WorldItem::Interface { id, .. } = item else { continue };
            let import = resolve.name_world_key(key);
            let Some(interface) = resolve.interfaces.get(*id).filter(|_| import.starts_with(NAMESPACE))
            else {
                continue;
            };
            let plain = import.split('@').next().unwrap_or_default();
            for (name, function) in &interface.functions {
                let signature = resolve.wasm_signature(AbiVariant::GuestImport, function);
                let denial = function
                    .result
                    .filter(|_| signature.retptr)
                    .and_then(|result| denial(&resolve, &sizes, result));
                let function = Function {
                    name: format!("{plain} {name}"),
                    params: signature.params,
                    results: signature.results,
                    denial,
                };
                known.functions.insert((import.clone(), name.clone()), function);
            }
            for (name, ty) in &interface.types {
                if is_resource(&resolve, *ty) {
                    known.resources.insert((import.clone(), name.clone()));
                }
            }
        }
        Ok(known)
    }

    /// True if an interface has a resource of that name.
    pub(super) fn is_resource(&self, name: &Name) -> bool {
        self.resources.contains(name)
    }

    /// The text of a module with these functions, by their numbers. `kind` is what it has of the guest: nothing, its memory, and
    /// room in it as well; `has` says which capabilities there are.
    pub(super) fn module(
        &self,
        kind: usize,
        calls: &[Call],
        has: impl Fn(&str) -> bool,
    ) -> Result<String, String> {
        let mut text = "(module\n".to_owned();
        let import = |name: &str, ty: &str| format!("(import \"env\" \"{name}\" {ty})\n");
        if has("clock") {
            text += &import("clock", "(func $clock (result i64))");
        }
        if has("random") {
            text += &import("random", "(func $random (result i64))");
        }
        if has("log") && kind > 0 {
            text += &import("log", "(func $log (param i32 i32 i32))");
        }
        if kind > 0 {
            text += &import("memory", "(memory 0)");
        }
        if kind > 1 {
            text += &import("realloc", "(func $realloc (param i32 i32 i32 i32) (result i32))");
        }
        // What is not there traps.
        for (name, ty) in [("clock", "(result i64)"), ("random", "(result i64)")] {
            if !has(name) {
                text += &format!("(func ${name} {ty} unreachable)\n");
            }
        }
        if kind > 0 {
            text += if has("log") { LINES } else { "(func $lines (param i32 i32 i32))\n" };
        }
        for (number, call) in calls.iter().enumerate() {
            let (name, params, results, body) = match call {
                Call::Drop => ("resource.drop", "i32".to_owned(), String::new(), String::new()),
                Call::Function(key) => {
                    let function = self.functions.get(key).ok_or_else(|| format!("it calls {key:?}"))?;
                    let list = |types: &[WasmType]| types.iter().map(of_wasm).collect::<Vec<_>>().join(" ");
                    (function.name.as_str(), list(&function.params), list(&function.results), function.body())
                }
            };
            text += &format!(
                ";; {name}\n(func (export \"{number}\") (param {params}) (result {results}) {body})\n"
            );
        }
        Ok(text + ")")
    }
}

fn is_resource(resolve: &Resolve, mut ty: TypeId) -> bool {
    loop {
        match resolve.types.get(ty).map(|ty| &ty.kind) {
            Some(TypeDefKind::Resource) => return true,
            Some(TypeDefKind::Type(Type::Id(id))) => ty = *id,
            _ => return false,
        }
    }
}

/// Bytes of a `result` whose error is a plain enumeration.
fn denial(resolve: &Resolve, sizes: &SizeAlign, result: Type) -> Option<usize> {
    let Type::Id(id) = result else { return None };
    let TypeDefKind::Result(of) = &resolve.types.get(id)?.kind else { return None };
    let Some(Type::Id(mut error)) = of.err else { return None };
    while let TypeDefKind::Type(Type::Id(id)) = &resolve.types.get(error)?.kind {
        error = *id;
    }
    let size = sizes.size(&result).size_wasm32();
    // Each byte becomes an instruction's text; a component's own types can make it as many as there are addresses.
    let is_plain = matches!(resolve.types.get(error)?.kind, TypeDefKind::Enum(_));
    (is_plain && size <= DENIAL_MAX).then_some(size)
}

impl Function {
    /// What it does, of its parameters. The last is where the result goes, if it does not fit into a number.
    fn body(&self) -> String {
        let known = match self.name.as_str() {
            "wasi:cli/stdin get-stdin" => "(i32.const 3)",
            "wasi:cli/stdout get-stdout" => "(i32.const 1)",
            "wasi:cli/stderr get-stderr" => "(i32.const 2)",
            // Empty lists.
            "wasi:cli/environment get-environment"
            | "wasi:cli/environment get-arguments"
            | "wasi:filesystem/preopens get-directories" => "(i64.store align=4 (local.get 0) (i64.const 4))",
            // None.
            "wasi:cli/environment initial-cwd"
            | "wasi:cli/environment get-initial-cwd"
            | "wasi:cli/terminal-stdin get-terminal-stdin"
            | "wasi:cli/terminal-stdout get-terminal-stdout"
            | "wasi:cli/terminal-stderr get-terminal-stderr" => "(i32.store8 (local.get 0) (i32.const 0))",
            "wasi:io/streams [method]output-stream.check-write" => {
                "(i64.store (local.get 1) (i64.const 0)) (i64.store offset=8 (local.get 1) (i64.const 65536))"
            }
            // The number is the level: 1 info, 2 warn.
            "wasi:io/streams [method]output-stream.write"
            | "wasi:io/streams [method]output-stream.blocking-write-and-flush" => {
                "(call $lines (local.get 0) (local.get 1) (local.get 2)) (i32.store8 (local.get 3) (i32.const 0))"
            }
            "wasi:io/streams [method]output-stream.flush"
            | "wasi:io/streams [method]output-stream.blocking-flush" => {
                "(i32.store8 (local.get 1) (i32.const 0))"
            }
            // Closed.
            "wasi:io/streams [method]input-stream.read"
            | "wasi:io/streams [method]input-stream.blocking-read" => {
                "(i32.store8 (local.get 2) (i32.const 1)) (i32.store8 offset=4 (local.get 2) (i32.const 1))"
            }
            "wasi:clocks/monotonic-clock now" => "(call $clock)",
            "wasi:clocks/monotonic-clock resolution" | "wasi:clocks/monotonic-clock get-resolution" => {
                "(i64.const 1)"
            }
            "wasi:clocks/wall-clock now" => {
                "(local $now i64) (local.set $now (call $clock))
                 (i64.store (local.get 0) (i64.div_u (local.get $now) (i64.const 1000000000)))
                 (i64.store32 offset=8 (local.get 0) (i64.rem_u (local.get $now) (i64.const 1000000000)))"
            }
            "wasi:clocks/wall-clock resolution" => {
                "(i64.store (local.get 0) (i64.const 0)) (i32.store offset=8 (local.get 0) (i32.const 1))"
            }
            "wasi:random/random get-random-u64" | "wasi:random/insecure get-insecure-random-u64" => {
                "(call $random)"
            }
            "wasi:random/insecure-seed insecure-seed" | "wasi:random/insecure-seed get-insecure-seed" => {
                "(i64.store (local.get 0) (call $random)) (i64.store offset=8 (local.get 0) (call $random))"
            }
            "wasi:random/random get-random-bytes" | "wasi:random/insecure get-insecure-random-bytes" => {
                "(local $at i32) (local $end i32) (local $len i32)
                 (if (i64.gt_u (local.get 0) (i64.const 1048576)) (then unreachable))
                 (local.set $len (i32.wrap_i64 (local.get 0)))
                 (local.set $at (call $realloc (i32.const 0) (i32.const 0) (i32.const 1) (local.get $len)))
                 (i32.store (local.get 1) (local.get $at)) (i32.store offset=4 (local.get 1) (local.get $len))
                 (local.set $end (i32.add (local.get $at) (local.get $len)))
                 (block $done (loop $next
                   (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
                   (i64.store8 (local.get $at) (call $random))
                   (local.set $at (i32.add (local.get $at) (i32.const 1)))
                   (br $next)))"
            }
            _ => "",
        };
        match (known, self.denial) {
            ("", None) => "unreachable".into(),
            // An error, and of those the first: access, or one that nobody knows.
            ("", Some(size)) => {
                let at = self.params.len().saturating_sub(1);
                let zeroes: String = (0..size)
                    .map(|byte| format!("(i32.store8 offset={byte} (local.get {at}) (i32.const 0))"))
                    .collect();
                format!("{zeroes} (i32.store8 (local.get {at}) (i32.const 1))")
            }
            (body, _) => body.into(),
        }
    }
}

fn of_wasm(ty: &WasmType) -> &'static str {
    match ty {
        WasmType::I64 | WasmType::PointerOrI64 => "i64",
        WasmType::F32 => "f32",
        WasmType::F64 => "f64",
        WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_types_make_large_makes_no_text_as_large() {
        // Each tuple has eight of the one before.
        let tuples: String = (1..9)
            .map(|level| {
                format!("type t{level} = tuple<{}>;\n", vec![format!("t{}", level - 1); 8].join(", "))
            })
            .collect();
        let text = format!(
            "package test:large;
             interface large {{
                 enum no {{ access }}
                 type t0 = u64;
                 {tuples}
                 fits: func() -> result<tuple<t1, t1>, no>;
                 large: func() -> result<t2, no>;
                 huge: func() -> result<t8, no>;
             }}"
        );
        let mut resolve = Resolve::default();
        let package = resolve.push_str("large.wit", &text).unwrap();
        let mut sizes = SizeAlign::default();
        sizes.fill(&resolve);
        let interface = resolve.packages[package].interfaces["large"];
        let bytes = |name: &str| {
            let result = resolve.interfaces[interface].functions[name].result.unwrap();
            denial(&resolve, &sizes, result)
        };
        assert_eq!(bytes("fits"), Some(136), "control");
        assert_eq!((bytes("large"), bytes("huge")), (None, None));
        let function = |denial| Function {
            name: "test:large/large large".into(),
            params: vec![WasmType::I32],
            results: vec![],
            denial,
        };
        assert_eq!(function(bytes("huge")).body(), "unreachable");
        assert!(function(bytes("fits")).body().len() < 10_000);
    }
}
