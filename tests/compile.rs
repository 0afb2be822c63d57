//! From a policy to machine code: the same bytes wherever and whenever it is built, for every platform.
#![cfg(feature = "compiler")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::path::Path;
use std::process::Command;

use portcullis::artifact::Digest;
use portcullis::bundle::Platform;
use portcullis::compile::{Terms, build};

const POLICIES: [&str; 3] = ["hash/hash.wasm", "jwt-gate/jwt-gate.wasm", "hostile/selective.wasm"];
/// Set in the second process.
const PRINT: &str = "PORTCULLIS_TEST_PRINT_DIGESTS";

fn digests() -> Vec<String> {
    POLICIES
        .iter()
        .flat_map(|name| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(name);
            let built = build(&std::fs::read(path).unwrap(), Terms::default(), &Platform::ALL).unwrap();
            built.compiled.into_iter().map(move |(platform, code)| {
                format!("digest {name} {platform} {} {}", Digest::of(&code), code.len())
            })
        })
        .collect()
}

/// Another process has other addresses, other seeds of hash tables and another order of threads.
#[test]
fn two_processes_build_the_same_bytes_for_every_platform() {
    let here = digests();
    if std::env::var_os(PRINT).is_some() {
        println!("\n{}", here.join("\n"));
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "two_processes_build_the_same_bytes_for_every_platform", "--nocapture"])
        .env(PRINT, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let there: Vec<&str> = text.lines().filter(|line| line.starts_with("digest ")).collect();
    assert_eq!(here, there, "{text}");
    assert_eq!(here.len(), POLICIES.len() * Platform::ALL.len());
    let different: std::collections::BTreeSet<&str> =
        here.iter().filter_map(|line| line.split(' ').nth(3)).collect();
    assert_eq!(different.len(), here.len(), "no two of them are the same code: {here:#?}");
}
