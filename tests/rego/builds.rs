//! What is built of a module, and what is refused.

use portcullis::artifact::Digest;
use portcullis::compile::{Rego, RegoError, Terms};

use crate::asked::built;
use crate::read;

fn refused(module: &[u8], entrypoint: Option<&str>) -> String {
    built(module, None, entrypoint).map(|_| ()).expect_err("was built").to_string()
}

#[test]
fn a_policy_says_what_it_is_and_imports_what_it_needs() {
    let rbac = built(&read("policies/rbac.wasm"), Some(&read("policies/rbac.json")), Some("app/rbac/allow"))
        .unwrap();
    let config = &rbac.config;
    assert_eq!((config.abi.as_str(), config.entrypoint.as_str()), ("1.3", "app/rbac/allow"));
    assert_eq!(config.module, Digest::of(&read("policies/rbac.wasm")));
    assert_eq!(config.data, Some(Digest::of(&read("policies/rbac.json"))));
    assert!(config.builtins.is_empty(), "{:?}", config.builtins);
    assert!(config.data_address > 0 && config.heap_base > config.data_address);
    let imports = |component: &[u8]| {
        let host = [portcullis::bundle::Platform::host()];
        portcullis::compile::build(component, Terms::default(), &host).unwrap().imports
    };
    assert_eq!(imports(&rbac.component), Vec::<String>::new());
    let world = built(&read("policies/world.wasm"), None, None).unwrap();
    assert_eq!(world.config.builtins, ["rand.intn", "sprintf", "time.now_ns", "uuid.rfc4122"]);
    assert_eq!(world.config.data, None);
    assert_eq!(imports(&world.component), ["clock", "random"]);
}

#[test]
fn building_twice_gives_the_same_bytes() {
    let once = || built(&read("policies/envoy.wasm"), None, None).unwrap().component;
    assert!(once() == once());
}

#[test]
fn what_a_policy_must_not_do_is_refused_by_name() {
    let why = refused(&read("policies/fetch.wasm"), None);
    assert_eq!(
        why,
        "module calls builtin \"http.send\", which is refused: a policy reaches no network; put what it would fetch \
         into its data"
    );
}

#[test]
fn an_entrypoint_is_named_or_there_is_one() {
    let module = read("policies/rbac.wasm");
    assert!(refused(&module, None).starts_with("module has the entrypoints [\"app/rbac/allow\""));
    let why = refused(&module, Some("app/rbac/deny"));
    assert!(why.starts_with("entrypoint \"app/rbac/deny\" is not in the module; it has"), "{why}");
}

#[test]
fn what_opa_did_not_make_is_refused() {
    assert!(refused(b"", None).starts_with("read module of OPA: "));
    assert!(refused(&crate::support::component("hash"), None).starts_with("read module of OPA: "));
    let wat = |text: &str| wat::parse_str(text).unwrap();
    let why = refused(&wat(r#"(module (import "env" "memory" (memory 2)))"#), None);
    assert!(why.starts_with("module has no ABI version"), "{why}");
    let why = refused(&wat(r#"(module (import "env" "open" (func)))"#), None);
    assert_eq!(why, r#"module imports "env" "open", which is nothing that OPA's modules import"#);
    let versions = |major: i32, minor: i32| {
        wat(&format!(
            r#"(module (import "env" "memory" (memory 2))
                (global (export "opa_wasm_abi_version") i32 (i32.const {major}))
                (global (export "opa_wasm_abi_minor_version") i32 (i32.const {minor})))"#
        ))
    };
    assert!(refused(&versions(2, 0), None).starts_with("module has ABI 2.0 of OPA"));
    assert!(refused(&versions(1, 4), None).starts_with("module has ABI 1.4 of OPA"));
    assert!(refused(&versions(1, 2), None).starts_with("read module of OPA: ask for its names"));
    // One that never ends when it starts would take the builder's minute, so it is not tried here.
    let traps = r#"(module (import "env" "memory" (memory 2)) (start 0) (func unreachable)
        (global (export "opa_wasm_abi_version") i32 (i32.const 1))
        (global (export "opa_wasm_abi_minor_version") i32 (i32.const 3)))"#;
    assert!(refused(&wat(traps), None).contains("unreachable"));
}

#[test]
fn data_has_to_be_json_of_a_size_that_fits() {
    let with = |data: &[u8]| {
        built(&read("policies/results.wasm"), Some(data), None)
            .map(|_| ())
            .expect_err("was built")
            .to_string()
    };
    assert!(with(b"{").starts_with("data.json is not JSON: "));
    assert!(with(b"[]").starts_with("data.json is not JSON: "));
    let large = vec![b' '; portcullis::compile::DATA_MAX + 1];
    assert!(
        with(&large)
            .starts_with("data.json has 52428801 bytes, at most 52428800 are parsed, and about 786432015")
    );
}

#[test]
fn bundles_that_are_none_are_refused() {
    let bundle = read("policies/rbac.tar.gz");
    Rego::read(&bundle, None).unwrap();
    assert!(matches!(Rego::read(&bundle[..bundle.len() / 2], None), Err(RegoError::Bundle(_))));
    assert!(matches!(Rego::read(&[0x1f, 0x8b, 8], None), Err(RegoError::Bundle(_))));
}

/// The module of a policy that calls builtins, as an older OPA would have made it: what later versions of the ABI added is
/// under names that nobody knows.
fn of_abi(minor: u8) -> Vec<u8> {
    let mut module = read("policies/world.wasm");
    let (mut index, mut constants) = (0, Vec::new());
    for payload in wasmparser::Parser::new(0).parse_all(&module) {
        match payload.unwrap() {
            wasmparser::Payload::GlobalSection(section) => {
                let first = |global: wasmparser::Result<wasmparser::Global<'_>>| {
                    global.unwrap().init_expr.get_binary_reader().original_position()
                };
                constants = section.into_iter().map(first).collect();
            }
            wasmparser::Payload::ExportSection(section) => {
                let is_minor = |export: &wasmparser::Export<'_>| export.name == "opa_wasm_abi_minor_version";
                index = section.into_iter().map(Result::unwrap).find(is_minor).unwrap().index;
            }
            _ => {}
        }
    }
    // Behind the instruction, i32.const, is its number.
    let number = constants[index as usize] + 1;
    assert_eq!(module[number], 3);
    module[number] = minor;
    let added: [(&[u8], u8); 2] = [(b"\x08opa_eval", 2), (b"\x15opa_heap_blocks_stash", 3)];
    for (name, since) in added {
        let found: Vec<usize> =
            (0..module.len() - name.len()).filter(|at| module[*at..].starts_with(name)).collect();
        for at in found.iter().filter(|_| minor < since) {
            module[at + 5] = b'X';
        }
    }
    module
}

#[test]
fn every_version_of_opas_abi_that_is_served_decides() {
    for minor in 0..=3 {
        let made = built(&of_abi(minor), None, None).unwrap_or_else(|error| panic!("1.{minor}: {error}"));
        assert_eq!(made.config.abi, format!("1.{minor}"));
        let policy = crate::asked::loaded(&made.component, 64 << 20);
        let decision = crate::asked::ask_document(&policy, "{}");
        assert_eq!(decision.outcome, portcullis::decision::Outcome::Allow, "1.{minor}");
    }
    assert!(refused(&of_abi(4), None).starts_with("module has ABI 1.4 of OPA"));
}

#[test]
fn a_builtin_that_nobody_knows_is_found_when_it_is_built() {
    let module = read("policies/world.wasm");
    let at = module.windows(8).position(|window| window == b"sprintf\0").unwrap();
    let mut unknown = module.clone();
    unknown[at..at + 7].copy_from_slice(b"sprintg");
    assert!(built(&module, None, None).is_ok(), "control");
    assert!(matches!(built(&unknown, None, None), Err(RegoError::Unknown(name)) if name == "sprintg"));
    assert!(refused(&unknown, None).contains("\"sprintg\""), "{}", refused(&unknown, None));
}
