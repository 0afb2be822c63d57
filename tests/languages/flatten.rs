//! Components of many core modules, as linkers of shared libraries leave them: they become one, and answer the same.

use portcullis::compile::{componentize, is_scattered};
use wasm_encoder::{ComponentSection, InstanceSection, ModuleArg, RawSection};
use wasmparser::{Parser, Payload};

use crate::policy::{ask, opened};
use crate::preview1::patient;

/// The policy: its status is 100 and what the function at 2 in its table says.
const POLICY: &str = r#"(module
    (memory (export "memory") 1) (table (export "table") 4 funcref)
    (global (export "place") (mut i32) (i32.const 768)) (global (export "count") (mut i32) (i32.const 40))
    (data (i32.const 768) "\03")
    (type $say (func (result i32)))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
    (func (export "decide") (param i32) (result i32)
        (i32.store16 (i32.const 530) (i32.add (i32.const 100) (call_indirect (type $say) (i32.const 2))))
        (i32.store8 (i32.const 516) (i32.const 1))
        (i32.store8 (i32.const 528) (i32.const 1))
        (i32.const 512)))"#;
/// Where a library goes in the table.
const PLACE: &str = r#"(module (global (export "base") i32 (i32.const 2)))"#;
/// It puts its function there, reads the policy's memory at a place that nobody changes, and counts.
const LIBRARY: &str = r#"(module
    (import "policy" "table" (table 4 funcref)) (import "policy" "memory" (memory 1))
    (import "policy" "place" (global $place (mut i32))) (import "policy" "count" (global $count (mut i32)))
    (import "place" "base" (global $base i32)) (import "other" "one" (func $one (result i32)))
    (elem (global.get $base) func $say)
    (func $say (result i32)
        (global.set $count (i32.add (global.get $count) (call $one)))
        (i32.add (i32.load8_u (global.get $place)) (global.get $count))))"#;
const OTHER: &str = r#"(module (func (export "one") (result i32) (i32.const 1)) (func $start) START)"#;

/// A component of these four, with `again` more instances of one of them.
fn linked(start: &str, again: u32) -> Vec<u8> {
    let mut component = componentize(POLICY.as_bytes()).unwrap();
    for text in [PLACE, LIBRARY, &OTHER.replace("START", start)] {
        let data = &wat::parse_str(text).unwrap();
        RawSection { id: 1, data }.append_to_component(&mut component);
    }
    let mut instances = InstanceSection::new();
    let none = || std::iter::empty::<(&str, ModuleArg)>();
    instances.instantiate(1, none());
    for _ in 0..=again {
        instances.instantiate(3, none());
    }
    let of = |instance| ModuleArg::Instance(instance);
    instances.instantiate(2, [("policy", of(0)), ("place", of(1)), ("other", of(2))]);
    instances.append_to_component(&mut component);
    component
}

fn modules(component: &[u8]) -> usize {
    let is_module = |payload: &Payload<'_>| matches!(payload, Payload::ModuleSection { .. });
    Parser::new(0).parse_all(component).map(Result::unwrap).filter(is_module).count()
}

fn status(component: &[u8]) -> Option<u16> {
    ask(&opened(component, &patient()), "", 0, 0).obligations.status
}

#[test]
fn many_modules_become_one_that_answers_the_same() {
    let component = linked("", 0);
    assert!(is_scattered(&component));
    let one = componentize(&component).unwrap();
    assert_eq!((modules(&component), modules(&one)), (4, 1));
    assert_eq!((status(&component), status(&one)), (Some(144), Some(144)));
    assert!(!is_scattered(&one));
    assert_eq!(componentize(&component).unwrap(), one);
}

/// What would not do the same as one module stays what it is.
#[test]
fn a_component_that_does_more_with_its_modules_stays_what_it_is() {
    for (what, component) in
        [("a start function", linked("(start $start)", 0)), ("an instance more", linked("", 1))]
    {
        assert_eq!(componentize(&component).unwrap(), component, "{what}");
        assert_eq!(status(&component), Some(144), "{what}");
    }
}
