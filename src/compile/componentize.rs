//! From what a compiler leaves behind, a core module, to the component that a policy is.
//!
//! Adds no authority: the component imports what the module imports, and what the world does not name is an error here,
//! but for WASI, which the stand-ins of [`wasi`](super::wasi) answer.

use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

use super::flatten;
use super::wasi::{preview1, preview2, started};
use crate::engine::{WORLD, World};

/// The function that is called once when a policy is built.
pub(super) const PREPARE: &str = "prepare";

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentizeError {
    #[error("read policy: neither WebAssembly nor its text form: {0}")]
    NotWasm(String),
    #[error("read the world \"{0}\": {1}")]
    World(World, String),
    #[error(
        "make a component of world \"{WORLD}\": {0}; check the module's imports and exports against policy.wit"
    )]
    Encode(String),
    #[error("put stand-ins for WASI into the policy: {0}")]
    StandIn(String),
    #[error("start policy: {0}")]
    Start(String),
}

/// Makes a component of `policy`, which is a core module in binary or in text form. The world is what it says itself, or
/// the newest.
///
/// # Errors
/// As [`componentize_as`].
pub fn componentize(policy: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    componentize_as(policy, None)
}

/// Makes a component of `policy`, which is a core module in binary or in text form.
///
/// The module's `component-type` section, which wit-bindgen writes, says which world it implements. A module that has
/// none, from a toolchain that knows nothing of components, is taken to implement `world`; where nobody says which, the one
/// that its imports name, or the newest. A component comes back unchanged (a text component as its binary form), but for one
/// that is scattered over many modules, which has one from then on. What either imports of WASI is answered by stand-ins, and
/// a reactor has been started. The same input always gives the same bytes.
///
/// # Errors
/// It is no WebAssembly, or imports or exports what the world does not have.
pub fn componentize_as(policy: &[u8], world: Option<World>) -> Result<Vec<u8>, ComponentizeError> {
    let binary = binary(policy)?;
    if Parser::is_component(&binary) {
        let answered = if preview2::is_imported(&binary) { preview2::answered(&binary)? } else { binary };
        return Ok(gathered(&answered).unwrap_or(answered));
    }
    let mut module = typed(binary, world)?;
    let world = world_of(&module);
    if started::is_needed(&module) {
        module = started::started(&module, world)?;
    }
    let adapter = preview1::is_imported(&module).then(|| preview1::adapter(world)).transpose()?;
    encode(&module, adapter.as_deref())
}

/// A component of a core module, for a builder: nothing of it is run, and what it imports of WASI is an error. Whoever made
/// its bundle has put that in, so that what is signed has it.
pub(super) fn component_of(policy: &[u8], world: Option<World>) -> Result<Vec<u8>, ComponentizeError> {
    let binary = binary(policy)?;
    if Parser::is_component(&binary) { Ok(binary) } else { encode(&typed(binary, world)?, None) }
}

/// True if [`componentize`] has to put something into a policy, or to start it.
#[must_use]
pub fn asks_for_wasi(policy: &[u8]) -> bool {
    if Parser::is_component(policy) {
        preview2::is_imported(policy)
    } else {
        preview1::is_imported(policy) || started::is_needed(policy)
    }
}

/// True if [`componentize`] makes one module of the many that a component has, where it can.
#[must_use]
pub fn is_scattered(policy: &[u8]) -> bool {
    flatten::is_scattered(policy)
}

/// A component of one module instead of many; nothing where it has to stay what it is.
fn gathered(component: &[u8]) -> Option<Vec<u8>> {
    match flatten::flatten(component) {
        Ok((world, module)) => encode(&typed(module, Some(world)).ok()?, None).ok(),
        Err(why) => {
            tracing::debug!(%why, "the component keeps its modules");
            None
        }
    }
}

/// WebAssembly, whichever form it was written in.
fn binary(policy: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    match wat::parse_bytes(policy) {
        Ok(binary) => Ok(binary.into_owned()),
        Err(error) => Err(ComponentizeError::NotWasm(error.to_string())),
    }
}

/// A component of a module, with the stand-in for preview 1 between them if there is one.
fn encode(module: &[u8], adapter: Option<&[u8]>) -> Result<Vec<u8>, ComponentizeError> {
    let mut encoder = ComponentEncoder::default().validate(true).module(module);
    if let Some(adapter) = adapter {
        encoder = encoder.and_then(|encoder| encoder.adapter(preview1::MODULE, adapter));
    }
    encoder
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| ComponentizeError::Encode(format!("{error:#}")))
}

/// A core module that says which world it implements.
fn typed(mut module: Vec<u8>, world: Option<World>) -> Result<Vec<u8>, ComponentizeError> {
    if !Parser::is_core_wasm(&module) {
        return Err(ComponentizeError::NotWasm("wrong magic number or version".into()));
    }
    let named = named(&module)?;
    if !named.has_type {
        add_world(&mut module, world.or(named.world).unwrap_or(World::LATEST), named.prepares)?;
    }
    Ok(module)
}

/// The world that a module's type is of.
fn world_of(module: &[u8]) -> World {
    let decoded = wit_component::metadata::decode(module).map(|(_, bindings)| bindings.resolve);
    let is_of = |world: &World| {
        decoded.as_ref().is_ok_and(|resolve| {
            resolve.package_names.keys().any(|package| package.to_string() == world.name())
        })
    };
    World::ALL.into_iter().find(is_of).unwrap_or(World::LATEST)
}

/// What a module says itself of what it implements.
#[derive(Default)]
struct Named {
    /// It has a section that says so in full.
    has_type: bool,
    /// The world of the first import that is of one.
    world: Option<World>,
    /// It exports what is called once when it is built.
    prepares: bool,
}

fn named(module: &[u8]) -> Result<Named, ComponentizeError> {
    let mut named = Named::default();
    let unread = |error: wasmparser::BinaryReaderError| ComponentizeError::NotWasm(error.to_string());
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(unread)? {
            Payload::CustomSection(section) if section.name().starts_with("component-type") => {
                named.has_type = true;
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let of = import.map_err(unread)?.module;
                    let of = of.strip_prefix("portcullis:policy/").and_then(|rest| rest.split_once('@'));
                    let world = |(_, version): (&str, &str)| {
                        World::ALL.into_iter().find(|world| world.version() == version)
                    };
                    named.world = named.world.or(of.and_then(world));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    named.prepares |= export.map_err(unread)?.name == PREPARE;
                }
            }
            _ => {}
        }
    }
    Ok(named)
}

/// What a policy's world is called in the package, with and without `prepare`.
pub(super) fn of_world(prepares: bool) -> &'static str {
    if prepares { "prepared-policy" } else { "policy" }
}

/// Adds the type of a world to a module.
fn add_world(module: &mut Vec<u8>, world: World, prepares: bool) -> Result<(), ComponentizeError> {
    let failed = |error: &dyn std::fmt::Display| ComponentizeError::World(world, format!("{error:#}"));
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", world.wit()).map_err(|error| failed(&error))?;
    let of = resolve.select_world(&[package], Some(of_world(prepares))).map_err(|error| failed(&error))?;
    wit_component::embed_component_metadata(module, &resolve, of, StringEncoding::UTF8)
        .map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows everything: a decision is 72 bytes, of which all may be zero.
    const ALLOW: &str = r#"(module
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;

    #[test]
    fn a_module_without_a_type_becomes_a_component_of_the_world() {
        let component = componentize(ALLOW.as_bytes()).expect("component");
        assert!(Parser::is_component(&component));
        assert_eq!(
            componentize(&wat::parse_str(ALLOW).unwrap()).unwrap(),
            component,
            "text and binary differ"
        );
    }

    #[test]
    fn a_component_stays_as_it_is() {
        let component = componentize(ALLOW.as_bytes()).unwrap();
        assert_eq!(componentize(&component).unwrap(), component);
    }

    #[test]
    fn what_the_world_does_not_have_is_refused() {
        let refused = |module: &str| match componentize(module.as_bytes()) {
            Err(ComponentizeError::Encode(why)) => why,
            other => panic!("{module}: {other:?}"),
        };
        let import = |import: &str| ALLOW.replacen("(module", &format!("(module {import}"), 1);
        let clock = r#"(import "portcullis:policy/clock@1.0.0" "now" (func (result i64)))"#;
        componentize(import(clock).as_bytes()).expect("the clock is in the world");

        let files = r#"(import "env" "fd_write" (func (param i32 i32 i32 i32) (result i32)))"#;
        assert!(refused(&import(files)).contains("env"));
        assert!(refused(&import(&clock.replace("i64", "i32"))).contains("now"));
        assert!(refused(&ALLOW.replace("\"decide\"", "\"decided\"")).contains("decide"));
    }

    #[test]
    fn what_is_no_wasm_is_refused() {
        for bytes in [&b""[..], b"\0asm", b"\0asm\x01\0\0\0\x01", b"ELF", b"(module", b"(component (core"] {
            let outcome = componentize(bytes);
            assert!(outcome.is_err(), "{bytes:?} became a component");
        }
    }
}
