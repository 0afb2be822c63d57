//! Preview 1: what Go, C and others of `wasm32-wasip1` import.

use wasmparser::{Parser, Payload, TypeRef};
use wit_component::StringEncoding;
use wit_parser::Resolve;

use crate::compile::ComponentizeError;
use crate::engine::World;

/// What the import is called.
pub(in crate::compile) const MODULE: &str = "wasi_snapshot_preview1";
const TEXT: &str = include_str!("preview1.wat");
/// `$lines` of a text that may be anything.
pub(super) const LINES: &str = include_str!("lines.wat");
/// What the stand-in may use of the world; a component imports what is called of it.
const CAPABILITIES: [&str; 3] = ["clock", "log", "random"];

/// True if a core module imports anything of it.
pub(in crate::compile) fn is_imported(module: &[u8]) -> bool {
    Parser::new(0).parse_all(module).any(|payload| match payload {
        Ok(Payload::ImportSection(section)) => section.into_imports().any(|import| {
            import.is_ok_and(|import| import.module == MODULE && matches!(import.ty, TypeRef::Func(_)))
        }),
        _ => false,
    })
}

/// The stand-in as a core module, which imports what it uses of the world.
pub(super) fn module(world: World) -> Result<Vec<u8>, wat::Error> {
    wat::parse_str(TEXT.replace("VERSION", world.version()).replace(";; LINES", LINES))
}

/// The stand-in, made for a version of the world: an adapter for `ComponentEncoder`.
pub(in crate::compile) fn adapter(world: World) -> Result<Vec<u8>, ComponentizeError> {
    let failed = |error: &dyn std::fmt::Display| ComponentizeError::StandIn(format!("{error:#}"));
    let mut module = module(world).map_err(|error| failed(&error))?;
    let mut resolve = Resolve::default();
    resolve.push_str("policy.wit", world.wit()).map_err(|error| failed(&error))?;
    let imports: String =
        CAPABILITIES.iter().map(|name| format!("import {};\n", world.interface(name))).collect();
    let own = format!("package portcullis:wasi;\nworld preview1 {{\n{imports}}}\n");
    let package = resolve.push_str("wasi.wit", &own).map_err(|error| failed(&error))?;
    let own = resolve.select_world(&[package], Some("preview1")).map_err(|error| failed(&error))?;
    wit_component::embed_component_metadata(&mut module, &resolve, own, StringEncoding::UTF8)
        .map_err(|error| failed(&error))?;
    Ok(module)
}
