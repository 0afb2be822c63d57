//! What `portcullis policy new` makes is built by its own script, and decides its own cases.

use std::path::Path;
use std::process::Command;

use portcullis::compile::Terms;

use crate::{cases, folder};

/// Makes a project and builds it. Returns the module that its script left.
fn project(directory: &Path) -> Vec<u8> {
    let made = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["policy", "new", "door", "--dir"])
        .arg(directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // What the policies of this repository need is compiled there already, once build.sh has run.
    let built = Command::new(directory.join("build.sh"))
        .env("CARGO_TARGET_DIR", folder().join("target"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    std::fs::read(directory.join("door.wasm")).unwrap()
}

#[test]
fn a_new_policy_builds_and_decides_its_cases() {
    let desk = tempfile::tempdir().unwrap();
    let module = project(&desk.path().join("one"));
    let built =
        portcullis::compile::build(&module, Terms::default(), &[portcullis::bundle::Platform::host()])
            .unwrap();
    assert!(built.imports.is_empty(), "{:?}", built.imports);
    assert!(cases::run_folder(&desk.path().join("one")) >= 5);
    // The same source gives the same bytes in every directory.
    assert!(module == project(&desk.path().join("another-place")), "the directory shows in what was built");
}
