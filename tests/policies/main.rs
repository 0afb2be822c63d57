//! The policies in `policies/`: every case of every one of them, and that each hostile guest is as hostile as it says.
//!
//! They run in an engine of this test's own, with the builder's settings and next to no host around it.

#![cfg(feature = "compiler")]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so do the functions it is made of"
)]

mod cases;
mod guest;
mod hostile;
mod tokens;
mod tried;

use std::path::{Path, PathBuf};

use portcullis::engine::World;
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")
}

/// The committed component of a policy (`jwt-gate`) or of a hostile guest (`hostile/spin`).
fn component(name: &str) -> Vec<u8> {
    let file = match name.strip_prefix("hostile/") {
        Some(guest) => folder().join(format!("hostile/{guest}.wasm")),
        None => folder().join(format!("{name}/{name}.wasm")),
    };
    std::fs::read(&file).unwrap_or_else(|error| panic!("read {file:?}: {error}"))
}

/// Every `.wasm` in `policies/<folder>/`, as `<folder>/<file>`.
fn committed() -> Vec<String> {
    let entries = |path: &Path| -> Vec<PathBuf> {
        path.read_dir().into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let mut names: Vec<_> = [folder(), folder().join("template")]
        .iter()
        .flat_map(|path| entries(path))
        .flat_map(|path| entries(&path))
        .filter(|path| path.extension().is_some_and(|extension| extension == "wasm"))
        .map(|path| path.strip_prefix(folder()).unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_digests_are_those_of_the_committed_components() {
    let listed = std::fs::read_to_string(folder().join("digests.txt")).unwrap();
    let listed: Vec<_> = listed.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let actual: Vec<_> = committed()
        .iter()
        .map(|name| {
            format!("{}  {name}", hex::encode(Sha256::digest(std::fs::read(folder().join(name)).unwrap())))
        })
        .collect();
    assert!(actual.len() > 15, "components are missing: {actual:?}");
    assert_eq!(listed, actual, "run policies/build.sh");
}

#[test]
fn the_text_guests_are_what_their_text_says() {
    let texts: Vec<_> = ["hostile", "since-0.1"]
        .into_iter()
        .flat_map(|name| folder().join(name).read_dir().unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wat"))
        .collect();
    assert!(texts.len() > 10, "guests are missing: {texts:?}");
    for text in texts {
        let built = portcullis::compile::componentize(&std::fs::read(&text).unwrap()).unwrap();
        assert!(
            built == std::fs::read(text.with_extension("wasm")).unwrap(),
            "{text:?}: run policies/build.sh"
        );
    }
}

#[test]
fn a_policy_imports_only_what_it_uses() {
    for (name, world, imports) in [
        ("hash", World::V1_0, &[][..]),
        ("ip-allowlist", World::V1_0, &[]),
        ("jwt-gate", World::V1_0, &["clock"]),
        ("rate-class", World::V1_0, &[]),
        ("hostile/spin", World::V1_0, &[]),
        ("hostile/selective", World::V1_0, &["clock", "data", "log", "metric", "random"]),
        ("since-0.1", World::V0_1, &["log"]),
    ] {
        let expected: Vec<_> = imports.iter().map(|name| world.interface(name)).collect();
        let mut actual = guest::imports(&component(name));
        actual.retain(|import| *import != world.interface("types"));
        actual.sort();
        assert_eq!(actual, expected, "{name}");
    }
    assert!(
        guest::imports(&component("hostile/import-wasi")).contains(&"wasi:cli/environment@0.2.0".to_owned())
    );
}

#[test]
fn every_guest_builds_but_the_one_that_wants_too_much() {
    for name in committed() {
        let built = portcullis::compile::build(
            &std::fs::read(folder().join(&name)).unwrap(),
            portcullis::compile::Terms::default(),
            &portcullis::bundle::Platform::ALL,
        );
        match (name.as_str(), built) {
            ("hostile/import-wasi.wasm", Err(error)) => {
                assert!(error.to_string().contains("wasi:cli/environment@0.2.0"), "{error}");
            }
            ("hostile/import-wasi.wasm", Ok(_)) => panic!("{name} was built"),
            (_, Ok(built)) => assert_eq!(built.compiled.len(), 2, "{name}"),
            (_, Err(error)) => panic!("{name}: {error}"),
        }
    }
}

/// Code for a processor of the first generation runs where the best does not: it has to give the same answers.
#[test]
fn code_for_every_target_of_this_platform_decides_the_same() {
    use portcullis::engine::{Metering, Target, compiling_engine};
    let body = vec![0xa5; 100_000];
    let answer = |target: Target| {
        let engine = compiling_engine(target, Metering::Off).unwrap();
        let hash = guest::Guest::with_engine(engine.clone(), &component("hash")).unwrap();
        let selective = guest::Guest::with_engine(engine, &component("hostile/selective")).unwrap();
        let hashed = hash.ask(&guest::opaque(&body), 1).unwrap();
        let worked = selective.ask(&guest::opaque(b"work:5000"), 1).unwrap();
        format!("{hashed:?} {worked:?}")
    };
    let here = |target: &Target| target.platform() == Target::host().platform();
    let answers: Vec<String> = Target::ALL.into_iter().filter(here).map(answer).collect();
    assert!(!answers.is_empty() && answers.iter().all(|one| *one == answers[0]), "{answers:#?}");
}
