//! `portcullis policy ...` as it is typed: what is written, what is refused, and the exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const POLICY: &str = r#"(module
    (import "portcullis:policy/clock@0.1.0" "now" (func (result i64)))
    (memory (export "memory") 2)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;

const WHO: &str = "--policy gate --tenant acme";

/// A directory with a policy in it, to run commands in.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        fs::write(desk.path().join("gate.wat"), POLICY).unwrap();
        desk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("policy")
            .args(arguments.split(' '))
            .current_dir(self.path())
            .output()
            .unwrap()
    }

    fn good(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    }

    fn bad(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {error}");
        assert!(output.stdout.is_empty());
        error
    }

    fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_str(&self.good(arguments)).unwrap()
    }

    /// Makes a key and `gate.cwasm` with its statement.
    fn signed(&self, key: &str) {
        self.good(&format!("keygen --out {key}"));
        self.good("build gate.wat -o gate.cwasm");
        self.good(&format!(
            "sign gate.cwasm --source gate.wat --key {key} {WHO} --version 3 --deadline 100ms"
        ));
    }
}

#[test]
fn from_key_to_verified_policy() {
    for algorithm in ["ed25519", "p256"] {
        let desk = Desk::new();
        let key = desk.json(&format!("keygen --out k --algorithm {algorithm} --json"));
        assert_eq!(key["algorithm"], algorithm);
        let mode = |name: &str| fs::metadata(desk.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("k"), mode("k.pub")), (0o600, 0o644));

        let built = desk.json("build gate.wat -o gate.cwasm --json");
        assert_eq!((&built["imports"][0], &built["memory"]), (&"clock".into(), &131_072.into()));
        let signed = desk.json(&format!(
            "sign gate.cwasm --source gate.wat --key k {WHO} --version 3 --memory 1MiB --deadline 100ms --json"
        ));
        assert_eq!(signed["path"], "gate.statement.json");
        assert_eq!(signed["statement"]["cwasm"], built["cwasm"]);
        assert_eq!(signed["statement"]["limits"]["memory"], 1 << 20);
        assert_eq!(signed["statement"]["limits"]["deadline_us"], 100_000);

        let verified = desk.json(&format!("verify gate.cwasm --key k.pub {WHO} --json"));
        assert_eq!((&verified["signer"], &verified["statement"]), (&key["key_id"], &signed["statement"]));
        assert!(desk.good(&format!("verify gate.cwasm --key k.pub {WHO}")).starts_with("good"));

        let text = desk.good("inspect gate.cwasm");
        for said in ["gate", "acme", "\"clock\"", "100 ms", "1 MiB", "(the file beside it)", "not checked"] {
            assert!(text.contains(said), "{said} is not in {text}");
        }
        assert!(desk.good("inspect gate.statement.json --key k.pub").contains("good, by key"));
        assert_eq!(desk.json("inspect gate.cwasm --json")["cwasm_matches"], true);
    }
}

#[test]
fn a_key_is_never_overwritten() {
    let desk = Desk::new();
    desk.good("keygen --out k");
    let before = fs::read(desk.path().join("k")).unwrap();
    assert!(desk.bad("keygen --out k", 1).starts_with("portcullis: write \"k\": File exists"));
    assert_eq!(fs::read(desk.path().join("k")).unwrap(), before);

    fs::write(desk.path().join("other.pub"), "mine").unwrap();
    desk.bad("keygen --out other", 1);
    assert_eq!(desk.names(), ["gate.wat", "k", "k.pub", "other.pub"]);
    assert_eq!(fs::read(desk.path().join("other.pub")).unwrap(), b"mine");
}

#[test]
fn a_policy_that_is_refused_leaves_nothing_behind() {
    let desk = Desk::new();
    let wasi = r#"(component (import "wasi:cli/stdin@0.2.0" (instance)))"#;
    fs::write(desk.path().join("wasi.wat"), wasi).unwrap();
    fs::write(desk.path().join("junk.wasm"), b"\x7fELF").unwrap();
    fs::write(desk.path().join("old.cwasm"), "old").unwrap();
    let error = desk.bad("build wasi.wat -o old.cwasm", 1);
    assert!(error.starts_with("portcullis: check policy: it imports \"wasi:cli/stdin@0.2.0\""), "{error}");
    desk.bad("build junk.wasm -o new.cwasm", 1);
    let error = desk.bad("build missing.wasm -o new.cwasm", 1);
    assert!(error.starts_with("portcullis: open \"missing.wasm\": No such"), "{error}");
    let error = desk.bad("build gate.wat -o nowhere/new.cwasm", 1);
    assert!(error.starts_with("portcullis: write \"nowhere/new.cwasm\""), "{error}");
    assert_eq!(desk.names(), ["gate.wat", "junk.wasm", "old.cwasm", "wasi.wat"]);
    assert_eq!(fs::read(desk.path().join("old.cwasm")).unwrap(), b"old");
}

#[test]
fn only_what_was_built_from_the_source_is_signed() {
    let desk = Desk::new();
    desk.signed("k");
    fs::remove_file(desk.path().join("gate.statement.json")).unwrap();
    let sign = format!("sign gate.cwasm {WHO} --version 3");

    fs::write(desk.path().join("other.wat"), POLICY.replace("512", "600")).unwrap();
    let error = desk.bad(&format!("{sign} --key k --source other.wat"), 1);
    assert!(error.contains("build it again"), "{error}");
    let error = desk.bad(&format!("{sign} --key k --source gate.wat --memory 64KiB"), 1);
    assert!(error.contains("starts with 131072 bytes of memory, its limit would be 65536"), "{error}");
    let error = desk.bad(&format!("{sign} --key k.pub --source gate.wat"), 1);
    assert!(error.contains("BEGIN PRIVATE KEY"), "{error}");
    assert!(!desk.names().contains(&"gate.statement.json".to_owned()));
    desk.good(&format!("{sign} --key k --source gate.wat"));
}

#[test]
fn verify_refuses_what_a_worker_would() {
    let desk = Desk::new();
    desk.signed("k");
    desk.good("keygen --out stranger");
    let refused = |arguments: &str, why: &str| {
        let error = desk.bad(&format!("verify gate.cwasm {arguments}"), 1);
        assert!(error.starts_with("portcullis: verify \"gate.cwasm\": "), "{error}");
        assert_eq!(error.matches(why).count(), 1, "{why:?} once in {error}");
    };
    refused(
        "--key k.pub --policy gate --tenant globex",
        "statement is for tenant \"acme\", expected \"globex\"",
    );
    refused(&format!("--key stranger.pub {WHO}"), "which is not trusted here");
    refused(&format!("--key k.pub {WHO} --minimum-version 4"), "at least 4 is needed");

    let path = desk.path().join("gate.cwasm");
    let mut cwasm = fs::read(&path).unwrap();
    let last = cwasm.len() - 1;
    cwasm[last] ^= 1;
    fs::write(&path, cwasm).unwrap();
    refused(&format!("--key k.pub {WHO}"), "it was changed after signing");
    assert!(desk.good("inspect gate.cwasm").contains("NOT the file beside it"));
    assert!(desk.good("inspect gate.cwasm --key stranger.pub").contains("NOT GOOD"));
}

#[test]
fn a_core_module_becomes_a_component() {
    let desk = Desk::new();
    desk.good("componentize gate.wat -o gate.wasm");
    assert_eq!(fs::read(desk.path().join("gate.wasm")).unwrap()[..8], *b"\0asm\x0d\0\x01\0");
    let built = desk.json("build gate.wasm -o from-component.cwasm --json");
    assert_eq!(built["cwasm"], desk.json("build gate.wat -o from-module.cwasm --json")["cwasm"]);
}

#[test]
fn a_wrong_command_line_is_exit_code_64_and_help_is_not() {
    let desk = Desk::new();
    let sign = "sign gate.cwasm --source gate.wat --key k --tenant acme";
    for wrong in [
        "build".to_owned(),
        "frobnicate".to_owned(),
        "keygen --out k --algorithm rsa".to_owned(),
        format!("{sign} --policy ../x --version 1"),
        format!("{sign} --policy x --version -1"),
        format!("{sign} --policy x --version 1 --memory lots"),
        format!("{sign} --policy x --policy y --version 1"),
    ] {
        assert!(!desk.bad(&wrong, 64).is_empty());
    }
    assert_eq!(desk.names(), ["gate.wat"]);
    // Lines are wrapped to the terminal's width.
    let help = |arguments| desk.good(arguments).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help("--help").contains("64 the command line is wrong"));
    assert!(help("build --help").contains("On any error nothing is written"));
}

#[test]
fn a_reader_that_went_away_is_no_reason_to_complain() {
    let desk = Desk::new();
    desk.signed("k");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["policy", "inspect", "gate.cwasm"])
        .current_dir(desk.path())
        .stdout(Stdio::from(writer))
        .output()
        .unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
}
