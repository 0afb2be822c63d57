//! `portcullis policy ...` and `portcullis trust ...` as they are typed: what is written, what is refused, and the exit codes.

#![cfg(feature = "compiler")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use portcullis::artifact::Digest;
use portcullis::bundle::write::{NewAttachment, attach};
use portcullis::bundle::{Annotations, media, open_path};
use serde_json::Value;

const POLICY: &str = r#"(module
    (import "portcullis:policy/clock@0.1.0" "now" (func (result i64)))
    (memory (export "memory") 2)
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;

/// Who it is for, as `build` wants to know it.
const WHO: &str = "--tenant acme --policy gate";

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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(arguments).current_dir(self.path()).env_remove("SOURCE_DATE_EPOCH");
        // A checkout of this test's own, whatever the machine's users have configured.
        command.env("HOME", self.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        command
    }

    fn run(&self, arguments: &str) -> Output {
        let mut all = vec!["policy"];
        if arguments.starts_with("trust ") || arguments.starts_with("data ") {
            all.clear();
        }
        all.extend(arguments.split(' '));
        self.command(&all).output().unwrap()
    }

    /// Done, with nothing on standard error.
    fn good(&self, arguments: &str) -> String {
        self.ends(arguments, 0)
    }

    fn ends(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Refused, with nothing on standard output.
    fn bad(&self, arguments: &str, code: i32) -> String {
        let (error, output) = self.refused(arguments, code);
        assert!(output.is_empty(), "{output}");
        error
    }

    /// Refused after a report.
    fn refused(&self, arguments: &str, code: i32) -> (String, String) {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {error}");
        assert!(error.starts_with("portcullis: ") || code == 64, "{error}");
        (error, String::from_utf8(output.stdout).unwrap())
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.good(&format!("{arguments} --json"))).unwrap()
    }

    /// Makes a key and `gate.bundle`, version 3, for this machine only, signed.
    fn signed(&self, key: &str) {
        self.good(&format!("keygen --out {key}"));
        self.built("gate.bundle", 3);
        self.good(&format!("sign gate.bundle --key {key}"));
    }

    fn built(&self, out: &str, version: u64) -> Value {
        self.json(&format!("build gate.wat {WHO} --version {version} --platform {} -o {out}", host()))
    }
}

fn host() -> String {
    portcullis::bundle::Platform::host().to_string()
}

/// The names of the checks of `verify`, and how each ended.
fn verdicts(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = report["checks"].as_array().unwrap();
    checks.iter().map(|check| (text(&check["check"]), text(&check["verdict"]))).collect()
}

fn verdict<'a>(verdicts: &'a [(String, String)], check: &str) -> &'a str {
    let found = verdicts.iter().find(|(name, _)| name == check);
    &found.unwrap_or_else(|| panic!("no {check} in {verdicts:?}")).1
}

/// The whole way of a policy, with two signers of two algorithms, until after a key was rotated.
#[test]
fn from_source_to_verified_after_a_rotation() {
    let desk = Desk::new();
    let release = desk.json("keygen --out release");
    let security = desk.json("keygen --out security --algorithm p256");
    desk.good("keygen --out ci");

    // Two platforms, and the same bundle each time, as a folder and as a tar.
    let built = desk.json(&format!("build gate.wat {WHO} --version 3 --deadline 100ms -o gate.bundle"));
    assert_eq!(built["config"]["imports"], serde_json::json!(["clock"]));
    assert_eq!(built["config"]["limits"]["deadline_us"], 100_000);
    let platforms: Vec<_> = built["code"].as_array().unwrap().iter().map(|code| &code["platform"]).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    let both = "--platform linux/arm64,linux/amd64";
    let again = desk.json(&format!("build gate.wat {WHO} --version 3 --deadline 100ms {both} -o again.tar"));
    assert_eq!((&again["bundle"], &again["code"]), (&built["bundle"], &built["code"]));
    assert_eq!(desk.ends("diff gate.bundle again.tar", 0).lines().next(), Some("the same bundle"));

    // Two people vouch for it, and whoever built it says how.
    for (key, id) in [("release", &release["key_id"]), ("security", &security["key_id"])] {
        let signed = desk.json(&format!("sign gate.bundle --key {key}"));
        assert_eq!(
            (&signed["signer"], &signed["rebuilt"], &signed["again"]),
            (id, &true.into(), &false.into())
        );
    }
    desk.json(
        "attest gate.bundle --key ci --builder-id https://ci.example.test/runner \
         --repository https://example.test/acme/policies --ref refs/tags/v3 \
         --commit 0123456789abcdef0123456789abcdef01234567"
            .replace("  ", "")
            .as_str(),
    );
    desk.good(
        "trust new --key release=release.pub --key security=security.pub --key ci=ci.pub -o trust.toml",
    );
    // `ci` attests and does not vouch.
    let trust = fs::read_to_string(desk.path().join("trust.toml")).unwrap();
    let trust =
        trust.replace("all_of = [\"release\", \"security\", \"ci\"]", "all_of = [\"release\", \"security\"]");
    let provenance = "\n[default.provenance]\nsigners = [\"ci\"]\nbuilder = \"https://ci.example.test/runner\"\n\
                      repository = \"https://example.test/acme/*\"\nref = \"refs/tags/*\"\n";
    fs::write(desk.path().join("trust.toml"), trust + provenance).unwrap();
    desk.good("trust check trust.toml");

    let verify = "verify gate.bundle --trust trust.toml --tenant acme --policy gate --minimum-version 3";
    let report = desk.json(verify);
    let found = verdicts(&report);
    for check in ["layout", "contents", "policy", "machine code", "names", "version", "trust"] {
        assert_eq!(verdict(&found, check), "ok", "{report}");
    }
    assert_eq!((&report["good"], &report["bundle"]), (&true.into(), &built["bundle"]));
    let text = desk.good(verify);
    for said in ["trust         ok", "release (key", "security (key", "built as ci says", "(runs here)"] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
    let accepted = desk.json("trust check trust.toml --bundle gate.bundle");
    assert_eq!(accepted["signers"], serde_json::json!(["release", "security"]));

    let shown = desk.json("inspect gate.bundle --key release.pub");
    assert_eq!(shown["evidence"]["signers"], serde_json::json!([{ "key": release["key_id"] }]));
    let kinds: Vec<_> =
        shown["attached"].as_array().unwrap().iter().map(|one| one["kind"].as_str().unwrap()).collect();
    for (kind, count) in [("signature", 2), ("provenance", 1), ("sbom", 1)] {
        assert_eq!(kinds.iter().filter(|found| **found == kind).count(), count, "{kind} in {kinds:?}");
    }
    let text = desk.good("inspect gate.bundle");
    for said in
        ["gate", "acme", "clock", "decide", "100 ms", "4 MiB", "linux/arm64", "refs/tags/v3", "not checked"]
    {
        assert!(text.contains(said), "{said} is not in {text}");
    }

    // The release key is replaced. Until the window ends the old signature is enough, afterwards it is not.
    desk.good("keygen --out release-2");
    let rotated = desk.json("trust rotate trust.toml --signer release --new release-2.pub --overlap 30d");
    assert_eq!(rotated["old"], release["key_id"]);
    let end = rotated["old_until"].as_str().unwrap();
    desk.good(verify);
    let after = format!("{verify} --at {end}");
    let (error, text) = desk.refused(&after, 1);
    assert!(error.contains("refused by 1 of 8 checks: trust"), "{error}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("needs signer \"release\", and it signed with a key that counted until"),
        "{text}"
    );

    // So the new key vouches for what the old one vouched for, without a compiler. The bundle stays what it was.
    let resigned = desk.json("sign gate.bundle --key release-2 --resign --signed-by release.pub");
    assert_eq!((&resigned["rebuilt"], &resigned["bundle"]), (&false.into(), &built["bundle"]));
    desk.good(verify);
    desk.good(&after);

    let changes: Value =
        serde_json::from_str(&desk.ends("diff again.tar gate.bundle --trust trust.toml --json", 2)).unwrap();
    assert_eq!((&changes["widens"], &changes["same"]), (&false.into(), &false.into()));
    let what: Vec<_> = changes["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["what"].as_str().unwrap())
        .collect();
    assert!(what.iter().any(|what| what.starts_with("signer release")), "{what:?}");
    assert!(what.contains(&"source commit"), "{what:?}");
}

/// What `docs/trust.md` has one type, from the first key to its revocation, as it stands there.
#[test]
fn the_worked_example_of_the_document_works() {
    let desk = Desk::new();
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trust.md")).unwrap();
    let (_, example) = document.split_once("\n## From a key to its revocation\n").unwrap();
    let blocks = example.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let script: String = blocks.collect();
    for step in
        ["policy attest", "policy sign gate --key release.key", "trust rotate", "--resign", "policy revoke"]
    {
        assert!(script.contains(step), "the example does not {step}");
    }
    let git = "git init --quiet && git add gate.wat && git -c user.name=x -c user.email=x@example.test commit --quiet -m x";
    let programs = Path::new(env!("CARGO_BIN_EXE_portcullis")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &format!("{git}\n{script}")])
        .current_dir(desk.path())
        .env("PATH", path)
        .env("HOME", desk.path())
        .output()
        .unwrap();
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{error}\napt-get install openssl git, if one of them is missing");
    // One that only the old key signed, which is the point of it.
    desk.built("old", 8);
    let (error, text) = desk.refused(
        "verify old --trust trust.toml --revocations revocations.json --tenant acme --policy gate",
        1,
    );
    assert!(error.contains(": trust"), "{error}{text}");
    desk.good("sign old --key release.key");
    let (_, text) = desk.refused("verify old --trust trust.toml --revocations revocations.json", 1);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("found on a laptop"), "{text}");
}

#[test]
fn keys_have_their_modes_and_are_never_overwritten() {
    let desk = Desk::new();
    for algorithm in ["ed25519", "p256"] {
        let key = desk.json(&format!("keygen --out {algorithm} --algorithm {algorithm}"));
        assert_eq!(key["algorithm"], algorithm);
        let mode = |name: &str| fs::metadata(desk.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(algorithm), mode(&format!("{algorithm}.pub"))), (0o600, 0o644));
    }
    let before = fs::read(desk.path().join("p256")).unwrap();
    assert!(desk.bad("keygen --out p256", 1).starts_with("portcullis: write \"p256\": File exists"));
    assert_eq!(fs::read(desk.path().join("p256")).unwrap(), before);

    fs::write(desk.path().join("other.pub"), "mine").unwrap();
    desk.bad("keygen --out other", 1);
    assert!(!desk.names().contains(&"other".to_owned()));
    assert_eq!(fs::read(desk.path().join("other.pub")).unwrap(), b"mine");
}

/// What would have no instance on any host is not found out there.
#[test]
fn a_start_that_traps_or_does_not_end_is_refused_when_it_is_built() {
    let desk = Desk::new();
    let build = |begin: &str| {
        let module = format!(
            r#"(module (memory (export "memory") 1) (table 1 funcref) (func $begin {begin})
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
                (func (export "decide") (param i32) (result i32) (i32.const 512)))"#
        );
        fs::write(desk.path().join("begin.wat"), module).unwrap();
        format!("build begin.wat {WHO} --version 1 --deadline 50ms -o begin")
    };
    let where_it_is = "its start function is function 0, by the section at 0x";
    for (begin, why, place) in [
        ("unreachable) (start $begin", "it traps (Unreachable); ", where_it_is),
        ("(loop br 0)) (start $begin", "what it does at its start does not end in 50 ms; ", where_it_is),
        ("call $begin) (start $begin", "it traps (Stack); ", where_it_is),
        (") (elem (i32.const 7) $begin", "it traps (OutOfBounds)", ""),
    ] {
        let error = desk.bad(&build(begin), 1);
        let expected = format!("portcullis: build \"begin.wat\": it has no instance: {why}{place}");
        assert!(error.starts_with(&expected), "{error}");
        assert!(!desk.path().join("begin").exists(), "{begin}");
    }
    // The control: a start that ends.
    desk.good(&build("nop) (start $begin"));
}

#[test]
fn a_policy_that_is_refused_leaves_nothing_behind() {
    let desk = Desk::new();
    let imports = r#"(component (import "another:world/files@1.0.0" (instance)))"#;
    fs::write(desk.path().join("imports.wat"), imports).unwrap();
    fs::write(desk.path().join("junk.wasm"), b"\x7fELF").unwrap();
    let old = desk.built("old", 1);
    let before = desk.names();
    let build = |source: &str, more: &str, out: &str| {
        desk.bad(&format!("build {source} {WHO} --version 2{more} -o {out}"), 1)
    };
    let error = build("imports.wat", "", "old");
    assert!(
        error.starts_with("portcullis: check policy: it imports \"another:world/files@1.0.0\""),
        "{error}"
    );
    build("junk.wasm", "", "new");
    let error = build("missing.wasm", "", "new");
    assert!(error.starts_with("portcullis: open \"missing.wasm\": No such"), "{error}");
    let error = build("gate.wat", "", "nowhere/new");
    assert!(error.contains("nowhere/new"), "{error}");
    let error = build("gate.wat", " --memory 64KiB", "new");
    assert!(
        error.contains("starts with 131072 bytes of memory, its limit would be 65536; raise --memory"),
        "{error}"
    );
    let error = build("gate.wat", " --sbom junk.wasm", "new");
    assert!(error.contains("junk.wasm") && error.contains("expected SPDX or CycloneDX"), "{error}");
    // What is no bundle is nobody's to replace.
    fs::write(desk.path().join("mine"), "mine").unwrap();
    build("gate.wat", "", "mine");
    assert_eq!(fs::read(desk.path().join("mine")).unwrap(), b"mine");
    fs::remove_file(desk.path().join("mine")).unwrap();
    assert_eq!(desk.names(), before);
    assert_eq!(desk.json("inspect old")["bundle"], old["bundle"]);
}

#[test]
fn a_list_of_parts_is_made_taken_or_left_out() {
    let desk = Desk::new();
    let kinds = |bundle: &str| {
        let shown = desk.json(&format!("inspect {bundle}"));
        let kinds = shown["attached"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["artifact_type"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let one = format!("build gate.wat {WHO} --version 1 --no-code");
    let first = desk.json(&format!("{one} -o made"));
    assert_eq!(kinds("made"), [media::SBOM]);
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/template/rust/Cargo.lock");
    let second = desk.json(&format!("{one} --sbom {} -o locked", lock.display()));
    assert_eq!(kinds("locked"), [media::SBOM]);
    fs::write(desk.path().join("parts.json"), r#"{"bomFormat":"CycloneDX","specVersion":"1.6"}"#).unwrap();
    desk.good(&format!("{one} --sbom parts.json -o given"));
    assert_eq!(kinds("given"), ["application/vnd.cyclonedx+json"]);
    desk.good(&format!("{one} --no-sbom -o without"));
    assert!(kinds("without").is_empty());
    // It is attached, so it is no part of what is signed.
    assert_eq!(first["bundle"], second["bundle"]);
    // A bundle without code is a policy all the same: each host compiles it.
    assert!(desk.good("inspect made").contains("each host compiles the source itself"));
    desk.bad(&format!("{one} --sbom parts.json --no-sbom -o both"), 64);
}

#[test]
fn building_the_same_again_keeps_its_signatures() {
    let desk = Desk::new();
    desk.signed("k");
    desk.built("gate.bundle", 3);
    desk.good("verify gate.bundle --key k.pub");
    // Another version is another bundle, which nobody has signed.
    desk.built("gate.bundle", 4);
    let (error, _) = desk.refused("verify gate.bundle --key k.pub", 1);
    assert!(error.contains("refused by 1 of 7 checks: signatures"), "{error}");
}

/// Neither the directory, the clock, the user, the language nor the umask of who builds is in it.
#[test]
fn the_same_source_gives_the_same_files_wherever_and_whenever_it_is_built() {
    let build = |environment: &[(&str, &str)], umask: &str| {
        let desk = Desk::new();
        let folder = desk.path().join("some/where else");
        fs::create_dir_all(&folder).unwrap();
        fs::rename(desk.path().join("gate.wat"), folder.join("gate.wat")).unwrap();
        let program = env!("CARGO_BIN_EXE_portcullis");
        let script = format!(
            "umask {umask}; for out in gate gate.tar; do {program} policy build gate.wat {WHO} --version 3 -o $out; done"
        );
        let mut command = Command::new("sh");
        command.args(["-ec", &script]).current_dir(&folder).env_remove("SOURCE_DATE_EPOCH");
        command.envs(environment.iter().copied()).stdout(Stdio::null());
        assert!(command.status().unwrap().success());
        let mut files = std::collections::BTreeMap::new();
        for folder in [folder.join("gate"), folder.join("gate/blobs/sha256"), folder.clone()] {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let mode = fs::metadata(&path).unwrap().permissions().mode();
                    files.insert(path.file_name().unwrap().to_owned(), (mode, fs::read(&path).unwrap()));
                }
            }
        }
        files.remove(std::ffi::OsStr::new("gate.wat"));
        files
    };
    let here = build(&[], "022");
    // Two platforms: an index, its manifests, config, code, source, list of parts with its manifest, and what is around it.
    assert!(here.len() > 10, "{:?}", here.keys());
    let there = build(
        &[
            ("TZ", "Asia/Tokyo"),
            ("LANG", "tr_TR.UTF-8"),
            ("HOME", "/"),
            ("USER", "x"),
            ("RAYON_NUM_THREADS", "1"),
        ],
        "077",
    );
    assert_eq!(here, there);
    // The control: when it was built is told if somebody says so, in what is attached only.
    let dated = build(&[("SOURCE_DATE_EPOCH", "1000000000")], "022");
    assert_ne!(here, dated);
    let shared = here.keys().filter(|name| dated.contains_key(*name)).count();
    assert!(shared > 10 && shared < here.len(), "{shared} of {}", here.len());
}

#[test]
fn only_what_its_source_builds_to_is_signed() {
    let desk = Desk::new();
    desk.good("keygen --out k");
    desk.good("keygen --out other");
    let error = desk.bad("sign missing --key k", 1);
    assert!(error.contains("missing"), "{error}");

    // A bundle whose parts all fit together, with code that another source gives.
    desk.built("gate.bundle", 3);
    fs::write(desk.path().join("other.wat"), POLICY.replace("512", "600")).unwrap();
    desk.good(&format!("build other.wat {WHO} --version 3 --platform {} -o other.bundle", host()));
    swap_code(&desk, "other.bundle", "gate.bundle", "swapped.tar");
    desk.good("inspect swapped.tar");
    let error = desk.bad("sign swapped.tar --key k", 1);
    assert!(error.contains("its source builds to") && error.contains("build it again"), "{error}");
    let (error, text) = desk.refused("verify swapped.tar --key k.pub --rebuild", 1);
    assert!(error.contains("signatures, rebuilt") && text.contains("rebuilt       FAILED"), "{error}{text}");
    // It was never looked at, so somebody who trusts a signature alone would run it.
    let error = desk.bad("sign swapped.tar --key k --resign --signed-by other.pub", 1);
    assert!(error.contains("none of the keys of --signed-by has a good signature on it"), "{error}");

    let error = desk.bad("sign gate.bundle --key k.pub", 1);
    assert!(error.contains("BEGIN PRIVATE KEY"), "{error}");
    desk.bad("sign gate.bundle --key k --resign", 64);
    desk.bad("sign gate.bundle --key k --signed-by other.pub", 64);
    assert_eq!(desk.json("inspect gate.bundle --key k.pub")["evidence"]["signers"], serde_json::json!([]));

    assert_eq!(desk.json("sign gate.bundle --key k")["again"], false);
    let before = fs::read(desk.path().join("gate.bundle/index.json")).unwrap();
    assert_eq!(desk.json("sign gate.bundle --key k")["again"], true);
    assert_eq!(fs::read(desk.path().join("gate.bundle/index.json")).unwrap(), before);
}

/// Makes a bundle of the source of one and the code of another.
fn swap_code(desk: &Desk, source: &str, code: &str, out: &str) {
    use portcullis::bundle::{Draft, DraftCompiled, write};
    let layouts = [source, code].map(|name| open_path(&desk.path().join(name)).unwrap());
    let [source, code] = layouts.each_ref().map(|layout| layout.read().unwrap());
    let bytes = |layout: usize, blob| layouts[layout].bytes(blob, 64 << 20).unwrap();
    let (said, compiled) = code.compiled_for(portcullis::bundle::Platform::host()).unwrap();
    let draft = Draft {
        policy: source.config.policy.clone(),
        tenant: source.config.tenant.clone(),
        version: source.config.version,
        world: source.config.world.clone(),
        imports: source.config.imports.clone(),
        exports: source.config.exports.clone(),
        limits: source.config.limits,
        metrics: vec![],
        data: vec![],
        source: bytes(0, &source.source),
        compiled: vec![DraftCompiled {
            platform: said.platform,
            cwasm: bytes(1, &compiled.cwasm),
            wasmtime: said.wasmtime.clone(),
            engine: said.engine,
        }],
        rego: None,
        prepared: None,
    };
    write::create(&draft.assemble().unwrap(), &desk.path().join(out)).unwrap();
}

#[test]
fn what_is_attested_is_said_in_full_or_refused() {
    let desk = Desk::new();
    desk.signed("k");
    let attest = "attest gate.bundle --key k --builder-id";
    let only_builder = desk.json(&format!("{attest} https://ci.example.test/runner"));
    assert_eq!(only_builder["commit"], Value::Null);
    let error = desk.bad(&format!("{attest} runner"), 1);
    assert!(error.contains("builder \"runner\" is not a URI"), "{error}");
    let source = "--repository https://example.test/acme/policies";
    desk.bad(&format!("{attest} https://ci.example.test/runner {source}"), 64);
    let error = desk.bad(&format!("{attest} https://ci.example.test/runner {source} --commit 123"), 1);
    assert!(error.contains("commit \"123\" is not 40 or 64"), "{error}");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let error =
        desk.bad(&format!("{attest} https://ci.example.test/runner {source} --commit {commit} --ref v3"), 1);
    assert!(error.contains("ref \"v3\" is not a full one"), "{error}");
    // To say how it was built is not to vouch for it.
    desk.built("unsigned", 3);
    desk.good("attest unsigned --key k --builder-id https://ci.example.test/runner");
    let (error, _) = desk.refused("verify unsigned --key k.pub", 1);
    assert!(error.contains("signatures"), "{error}");
}

#[test]
fn a_checkout_says_where_source_is_from() {
    let desk = Desk::new();
    desk.signed("k");
    let git = |arguments: &str| {
        let status = Command::new("git")
            .args(["-C", "checkout", "-c", "user.name=x", "-c", "user.email=x@example.test"])
            .args(arguments.split(' '))
            .current_dir(desk.path())
            .env("HOME", desk.path())
            .stdout(Stdio::null())
            .status();
        assert!(status.expect_git().success(), "git {arguments}");
    };
    let attest = "attest gate.bundle --key k --builder-id https://ci.example.test/runner --from-git checkout";
    let error = desk.bad(attest, 1);
    assert!(error.contains("ask git about \"checkout\""), "{error}");
    fs::create_dir(desk.path().join("checkout")).unwrap();
    fs::write(desk.path().join("checkout/lib.rs"), "x").unwrap();
    git("init --quiet --initial-branch=main");
    let error = desk.bad(attest, 1);
    assert!(error.contains("HEAD"), "{error}");
    git("add lib.rs");
    git("commit --quiet -m x");
    let error = desk.bad(attest, 1);
    assert!(error.contains("has no remote called origin"), "{error}");
    git("remote add origin /srv/policies");
    let error = desk.bad(attest, 1);
    assert!(error.contains("which nobody else could fetch from"), "{error}");
    git("remote set-url origin https://me:secret@example.test/acme/policies");
    let said = desk.json(attest);
    assert_eq!(said["repository"], "https://example.test/acme/policies");
    assert_eq!(said["ref"], "refs/heads/main");
    assert_eq!(said["commit"].as_str().unwrap().len(), 40);
    git("tag v1");
    assert_eq!(desk.json(attest)["ref"], "refs/tags/v1");
    git("tag v1.0");
    let error = desk.bad(attest, 1);
    assert!(error.contains("its commit has 2 tags; say which with --ref"), "{error}");
    assert_eq!(desk.json(&format!("{attest} --ref refs/tags/v1"))["ref"], "refs/tags/v1");
    // Nobody could build again what was never committed.
    fs::write(desk.path().join("checkout/lib.rs"), "y").unwrap();
    let error = desk.bad(&format!("{attest} --ref refs/tags/v1"), 1);
    assert!(error.contains("1 files differ from its commit, \"lib.rs\" for one"), "{error}");
}

trait ExpectGit {
    fn expect_git(self) -> std::process::ExitStatus;
}

impl ExpectGit for std::io::Result<std::process::ExitStatus> {
    fn expect_git(self) -> std::process::ExitStatus {
        self.unwrap_or_else(|error| panic!("start git: {error}; apt-get install git"))
    }
}

#[test]
fn verify_refuses_what_the_registry_would() {
    let desk = Desk::new();
    desk.signed("k");
    desk.good("keygen --out stranger");
    let refused = |arguments: &str, check: &str, why: &str| {
        let (error, text) = desk.refused(&format!("verify gate.bundle {arguments}"), 1);
        assert!(error.starts_with("portcullis: verify \"gate.bundle\": refused by 1 of "), "{error}");
        assert!(error.trim_end().ends_with(&format!(": {check}")), "{error}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&format!("{check} FAILED")) && words.contains(why), "{why:?} in {text}");
        assert_eq!(text.matches("FAILED").count(), 1, "{text}");
    };
    refused("--key k.pub --tenant globex", "names", "bundle is for tenant \"acme\", expected \"globex\"");
    refused("--key k.pub --policy door", "names", "bundle is for policy \"gate\", expected \"door\"");
    refused("--key stranger.pub", "signatures", "no key that was named has signed it");
    refused("--key k.pub --minimum-version 4", "version", "at least 4 is needed");
    desk.good(
        "verify gate.bundle --key stranger.pub --key k.pub --tenant acme --policy gate --minimum-version 3",
    );

    desk.good("trust new --key release=k.pub -o trust.toml");
    desk.good("trust new --key release=stranger.pub -o other.toml");
    desk.good("verify gate.bundle --trust trust.toml");
    refused(
        "--trust other.toml",
        "trust",
        "[default] needs signer \"release\", and it did not sign this bundle",
    );
    let trust = fs::read_to_string(desk.path().join("trust.toml")).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(trust.contains(from), "{trust}");
        fs::write(desk.path().join("changed.toml"), trust.replacen(from, to, 1)).unwrap();
    };
    changed("\"clock\", \"data\", \"log\", \"metric\", \"random\"]\n", "\"log\"]\n");
    refused("--trust changed.toml", "trust", "policy imports \"clock\"");
    changed("#[default.limits]\n#memory = \"4MiB\"", "[default.limits]\nmemory = \"1MiB\"");
    refused("--trust changed.toml", "trust", "asks for 4194304 bytes of memory");
    changed("#expires = 2027-12-31T00:00:00Z", "expires = 2020-01-01T00:00:00Z");
    refused("--trust changed.toml", "trust", "trust policy expired");
    changed("[default]", "[class.web]");
    let error = desk.bad("verify gate.bundle --trust changed.toml", 1);
    assert!(error.contains("\"default\"") || error.contains("--class"), "{error}");

    // Neither standard, or both.
    desk.bad("verify gate.bundle", 64);
    desk.bad("verify gate.bundle --key k.pub --trust trust.toml", 64);
}

#[test]
fn a_changed_byte_is_refused_and_named() {
    let desk = Desk::new();
    desk.signed("k");
    let flip = |path: &Path| {
        let before = fs::read(path).unwrap();
        let mut bytes = before.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
        before
    };
    let mut files =
        vec![desk.path().join("gate.bundle/index.json"), desk.path().join("gate.bundle/oci-layout")];
    let blobs = fs::read_dir(desk.path().join("gate.bundle/blobs/sha256")).unwrap();
    files.extend(blobs.map(|blob| blob.unwrap().path()));
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let before = flip(&file);
        let (error, text) = desk.refused("verify gate.bundle --key k.pub", 1);
        assert!(error.contains("refused by "), "{error}");
        let check = if text.contains("layout        FAILED") { "layout" } else { "contents" };
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&format!("{check} FAILED read ")), "{file:?}: {text}");
        fs::write(&file, before).unwrap();
    }
    desk.good("verify gate.bundle --key k.pub");
    let error = {
        flip(&desk.path().join("gate.bundle/index.json"));
        desk.bad("inspect gate.bundle", 1)
    };
    assert!(error.contains("gate.bundle"), "{error}");
}

#[test]
fn what_asks_for_more_is_marked_and_would_be_held_back() {
    let desk = Desk::new();
    desk.signed("k");
    let wider = POLICY.replace(
        "portcullis:policy/clock@0.1.0\" \"now\" (func (result i64))",
        "portcullis:policy/random@0.1.0\" \"get-u64\" (func (result i64))",
    );
    fs::write(desk.path().join("gate.wat"), wider).unwrap();
    desk.good(&format!(
        "build gate.wat {WHO} --version 4 --platform {} --memory 8MiB --output 1KiB -o next.tar",
        host()
    ));
    desk.good("sign next.tar --key k");

    let text = desk.ends("diff gate.bundle next.tar --key k.pub", 3);
    for line in [
        "+ import random: new",
        "  import clock: gone",
        "+ limit memory (bytes): 4194304 -> 8388608",
        "  limit output (bytes): 65536 -> 1024",
        "  version: 3 -> 4",
        "2 widenings: activation needs --accept-capabilities",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    let changes: Value = serde_json::from_str(&desk.ends("diff gate.bundle next.tar --json", 3)).unwrap();
    assert_eq!((&changes["widens"], &changes["signers_checked"]), (&true.into(), &false.into()));
    // The other way round it asks for `clock`, which the other does not.
    let text = desk.ends("diff next.tar gate.bundle", 3);
    assert!(text.contains("+ import clock: new"), "{text}");
    let error = desk.bad("diff gate.bundle missing", 1);
    assert!(error.contains("missing"), "{error}");
    desk.bad("diff gate.bundle", 64);

    let verify = "verify next.tar --key k.pub";
    desk.good(verify);
    let report: Value =
        serde_json::from_str(&desk.ends(&format!("{verify} --active gate.bundle --json"), 2)).unwrap();
    assert_eq!((&report["good"], &report["held_back"]), (&true.into(), &true.into()));
    assert_eq!(verdict(&verdicts(&report), "capabilities"), "held_back");
    desk.good(&format!("{verify} --active next.tar"));
    // Nor does what is older, or differs without a version of its own.
    let (error, _) = desk.refused("verify gate.bundle --key k.pub --active next.tar", 1);
    assert!(error.contains(": succession"), "{error}");
    desk.good(&format!("build gate.wat {WHO} --version 4 --no-code -o other.tar"));
    desk.good("sign other.tar --key k");
    let (_, text) = desk.refused("verify next.tar --key k.pub --active other.tar", 1);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("succession FAILED") && words.contains("a version of its own"), "{text}");
}

#[test]
fn trust_policies_are_checked_with_line_and_column() {
    let desk = Desk::new();
    desk.signed("k");
    desk.good("trust new --key release=k.pub -o trust.toml");
    assert_eq!(desk.json("trust check trust.toml")["may_revoke"], true);
    let trust = fs::read_to_string(desk.path().join("trust.toml")).unwrap();
    fs::write(
        desk.path().join("wrong.toml"),
        trust.replace("all_of = [\"release\"]", "all_of = [\"relaese\"]\nsometimes = 1"),
    )
    .unwrap();
    let error = desk.bad("trust check wrong.toml", 1);
    for line in error.trim_start_matches("portcullis: ").lines() {
        let mut parts = line.splitn(4, ':');
        assert_eq!(parts.next(), Some("wrong.toml"), "{error}");
        assert!(
            parts.next().unwrap().parse::<u32>().is_ok() && parts.next().unwrap().parse::<u32>().is_ok(),
            "{error}"
        );
    }
    assert!(
        error.lines().count() >= 2 && error.contains("relaese") && error.contains("sometimes"),
        "{error}"
    );

    // Nothing is overwritten, and what would be no trust policy is not written.
    let error = desk.bad("trust new --key release=k.pub -o trust.toml", 1);
    assert!(error.contains("something is there already"), "{error}");
    desk.bad("trust new --key a=k.pub --key b=k.pub -o new.toml", 1);
    desk.bad("trust new --key release -o new.toml", 64);
    assert!(!desk.names().contains(&"new.toml".to_owned()));

    let error = desk.bad("trust check trust.toml --bundle missing", 1);
    assert!(error.contains("missing"), "{error}");
    desk.good("keygen --out stranger");
    desk.good("trust new --key release=stranger.pub -o other.toml");
    let (error, text) = desk.refused("trust check other.toml --bundle gate.bundle --json", 1);
    assert!(error.contains("does not accept bundle \"gate.bundle\", for 1 reasons"), "{error}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["accepted"], false);
    assert_eq!(report["refusals"].as_array().unwrap().len(), 1);
    let (error, _) = desk.refused("trust check trust.toml --bundle gate.bundle --tenant globex", 1);
    assert!(error.contains("does not accept"), "{error}");
}

#[test]
fn a_key_is_rotated_and_nothing_else_changes() {
    let desk = Desk::new();
    desk.good("keygen --out k");
    desk.good("keygen --out k2 --algorithm p256");
    desk.good("trust new --key release=k.pub -o trust.toml");
    let before = fs::read_to_string(desk.path().join("trust.toml")).unwrap();
    let rotate = "trust rotate trust.toml --overlap 30d --new k2.pub --signer";
    let error = desk.bad(&format!("{rotate} nobody"), 1);
    assert!(error.contains("there is no such signer"), "{error}");
    let error = desk.bad("trust rotate trust.toml --overlap 30d --new k.pub --signer release", 1);
    assert!(error.contains("already one of signer"), "{error}");
    desk.bad("trust rotate trust.toml --overlap soon --new k2.pub --signer release", 64);
    assert_eq!(fs::read_to_string(desk.path().join("trust.toml")).unwrap(), before);

    desk.good(&format!("{rotate} release --out elsewhere.toml"));
    assert_eq!(fs::read_to_string(desk.path().join("trust.toml")).unwrap(), before);
    desk.good(&format!("{rotate} release"));
    let after = fs::read_to_string(desk.path().join("trust.toml")).unwrap();
    let pem = fs::read_to_string(desk.path().join("k2.pub")).unwrap();
    assert!(after.contains(&pem) && after.contains("[[signer.release.retired]]"), "{after}");
    for comment in before.lines().filter(|line| line.starts_with('#')) {
        assert!(after.contains(comment), "{comment} is gone");
    }
    desk.good("trust check trust.toml");
}

#[test]
fn what_is_revoked_is_on_a_list_that_only_grows() {
    let desk = Desk::new();
    desk.signed("k");
    let id = desk.json("inspect gate.bundle --key k.pub")["evidence"]["signers"][0]["key"]
        .as_str()
        .unwrap()
        .to_owned();
    let bundle = desk.json("inspect gate.bundle")["bundle"].as_str().unwrap().to_owned();
    desk.good("trust new --key release=k.pub -o trust.toml");
    let revoke = |what: &str| format!("revoke {what} --reason leaked --sign-key k --list revocations.json");
    let first = desk.json(&revoke(&format!("--bundle {bundle}")));
    assert_eq!((&first["version"], &first["in_force"]), (&1.into(), &false.into()));
    let (error, text) =
        desk.refused("verify gate.bundle --trust trust.toml --revocations revocations.json", 1);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        error.contains(": trust") && words.contains("was revoked on") && words.contains("leaked"),
        "{error}{text}"
    );
    let error = desk.bad(&revoke(&format!("--bundle {bundle}")), 1);
    assert!(error.contains("is on the list already"), "{error}");
    assert_eq!(desk.json(&revoke(&format!("--key-id {id}")))["version"], 2);

    // A list that somebody else signed, and one that was changed, count for nothing.
    desk.good("keygen --out stranger");
    desk.good(&format!("revoke --bundle {bundle} --reason x --sign-key stranger --list theirs.json"));
    let (error, _) = desk.refused("verify gate.bundle --trust trust.toml --revocations theirs.json", 1);
    assert!(error.contains("revocations"), "{error}");
    let list = fs::read_to_string(desk.path().join("revocations.json")).unwrap();
    fs::write(desk.path().join("revocations.json"), list.replace("ey", "eY")).unwrap();
    let error = desk.bad(&revoke("--source sha256:x"), 64);
    assert!(error.contains("sha256"), "{error}");
    desk.bad(&revoke(&format!("--source {}", Digest::of(b"x"))), 1);
    desk.bad(&revoke(""), 64);
    desk.bad(&revoke(&format!("--bundle {bundle} --key-id {id}")), 64);
    // By its public half it is the same key.
    fs::write(desk.path().join("revocations.json"), list).unwrap();
    let error = desk.bad(&revoke("--key k.pub"), 1);
    assert!(error.contains(&id) && error.contains("is on the list already"), "{error}");
    assert_eq!(desk.json(&revoke("--key stranger.pub"))["version"], 3);
}

#[test]
fn commands_for_a_service_say_that_there_is_none() {
    let desk = Desk::new();
    let place = "--config missing.toml";
    for command in [
        "list",
        "history",
        "activate --tenant acme --policy gate",
        "rollback --tenant acme --policy gate --reason x",
    ] {
        let error = desk.bad(&format!("{command} {place}"), 1);
        assert!(error.contains("missing.toml"), "{command}: {error}");
    }
    desk.bad("rollback --tenant acme --policy gate", 64);
    desk.bad("activate --tenant acme", 64);
    desk.bad("activate --tenant acme --policy gate --bundle sha256:x", 64);
    desk.bad("list --tenant ../etc", 64);
    let error = desk.bad(&format!("trust recover --reason x {place}"), 1);
    assert!(error.contains("missing.toml"), "{error}");
}

/// Texts in a bundle are whoever's who made it.
#[test]
fn a_bundle_cannot_drive_the_terminal() {
    let desk = Desk::new();
    desk.signed("k");
    let escape = "\u{1b}[2J\u{202e}";
    let hostile = NewAttachment::one(&format!("x/{escape}"), b"x".to_vec(), Annotations::default());
    attach(&desk.path().join("gate.bundle"), &hostile, |_| false).unwrap();
    let not_sigstore = NewAttachment::one(
        media::SIGSTORE_BUNDLE,
        format!("{{\"{escape}\":1}}").into_bytes(),
        Annotations::default(),
    );
    attach(&desk.path().join("gate.bundle"), &not_sigstore, |_| false).unwrap();
    for command in
        ["inspect gate.bundle", "inspect gate.bundle --key k.pub", "verify gate.bundle --key k.pub"]
    {
        let text = desk.good(command);
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{command}: {text:?}");
    }
    assert!(desk.good("inspect gate.bundle").contains("x/\\u{1b}[2J"));
    // In JSON they are data.
    let shown = desk.json("inspect gate.bundle");
    let kinds =
        shown["attached"].as_array().unwrap().iter().map(|one| one["artifact_type"].as_str().unwrap());
    assert!(kinds.into_iter().any(|kind| kind.contains(escape)));
}

#[test]
fn a_core_module_becomes_a_component() {
    let desk = Desk::new();
    desk.good("componentize gate.wat -o gate.wasm");
    assert_eq!(fs::read(desk.path().join("gate.wasm")).unwrap()[..8], *b"\0asm\x0d\0\x01\0");
    let build = format!("{WHO} --version 1 --no-code");
    let from_component = desk.json(&format!("build gate.wasm {build} -o component.bundle"));
    assert_eq!(
        from_component["bundle"],
        desk.json(&format!("build gate.wat {build} -o module.bundle"))["bundle"]
    );
    desk.bad("componentize missing.wat -o x.wasm", 1);
    fs::write(desk.path().join("junk.wat"), "junk").unwrap();
    desk.bad("componentize junk.wat -o x.wasm", 1);
    assert!(!desk.names().contains(&"x.wasm".to_owned()));
}

#[test]
fn a_new_policy_is_a_whole_project() {
    let desk = Desk::new();
    let made = desk.json("new door");
    assert_eq!((&made["policy"], &made["path"]), (&"door".into(), &"door".into()));
    for file in made["files"].as_array().unwrap() {
        let path = desk.path().join("door").join(file.as_str().unwrap());
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert!(!text.contains("policy-name"), "{path:?}");
    }
    let script = fs::metadata(desk.path().join("door/build.sh")).unwrap();
    assert_eq!(script.permissions().mode() & 0o777, 0o755);
    let readme = fs::read_to_string(desk.path().join("door/README.md")).unwrap();
    assert!(readme.contains("portcullis policy inspect door.bundle"), "{readme}");

    // Whatever is there stays.
    let error = desk.bad("new door", 1);
    assert!(error.contains("something is there already"), "{error}");
    symlink("nowhere", desk.path().join("link")).unwrap();
    desk.bad("new gate --dir link", 1);
    desk.bad("new gate --dir missing/gate", 1);
    desk.bad("new ../gate", 64);
    assert_eq!(desk.names(), ["door", "gate.wat", "link"]);
}

#[test]
fn a_wrong_command_line_is_exit_code_64_and_help_is_not() {
    let desk = Desk::new();
    for wrong in [
        "build".to_owned(),
        "frobnicate".to_owned(),
        "keygen --out k --algorithm rsa".to_owned(),
        "build gate.wat --tenant acme --policy ../x --version 1 -o x".to_owned(),
        format!("build gate.wat {WHO} --version -1 -o x"),
        format!("build gate.wat {WHO} --version 1 --memory lots -o x"),
        format!("build gate.wat {WHO} --policy y --version 1 -o x"),
        format!("build gate.wat {WHO} --version 1 --platform linux/mips -o x"),
        format!("build gate.wat {WHO} --version 1 --platform linux/amd64 --no-code -o x"),
        "verify x --key y --at tomorrow".to_owned(),
    ] {
        assert!(!desk.bad(&wrong, 64).is_empty());
    }
    assert_eq!(desk.names(), ["gate.wat"]);
    // Lines are wrapped to the terminal's width.
    let help = |arguments: &str| desk.good(arguments).split_whitespace().collect::<Vec<_>>().join(" ");
    for (command, codes) in [
        ("build", "0 done; 1 refused or failed"),
        ("diff", "2 something changed; 3 something changed and the later one may do more"),
        ("verify", "2 good, but it asks for more than --active does"),
        ("activate", "2 held back, with the reason"),
        ("revoke", "3 written, but not known whether it is in force"),
    ] {
        assert!(help(&format!("{command} --help")).contains(codes), "{command}");
    }
    assert!(help("build --help").contains("On any error nothing is written"));
}

#[test]
fn a_reader_that_went_away_is_no_reason_to_complain() {
    let desk = Desk::new();
    desk.signed("k");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        desk.command(&["policy", "inspect", "gate.bundle"]).stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]));
}

#[test]
fn pages_and_completions_are_those_of_the_program() {
    let desk = Desk::new();
    let run = |arguments: &[&str]| {
        let output = desk.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["man", "--out", "pages", "--completions"]);
    let pages: Vec<String> = fs::read_dir(desk.path().join("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in [
        "portcullis.1",
        "portcullis-policy-build.1",
        "portcullis-trust-rotate.1",
        "portcullis",
        "_portcullis",
    ] {
        assert!(pages.contains(&page.to_owned()), "{page} is not in {pages:?}");
    }
    for (shell, file) in [("bash", "portcullis"), ("zsh", "_portcullis"), ("fish", "portcullis.fish")] {
        let printed = run(&["completions", shell]);
        assert_eq!(printed, fs::read_to_string(desk.path().join("pages").join(file)).unwrap(), "{shell}");
        assert!(printed.contains("accept-capabilities"), "{shell}");
    }
    run(&["man", "--out", "only-pages"]);
    assert!(!desk.path().join("only-pages/_portcullis").exists());
    assert_eq!(desk.command(&["completions", "tcsh"]).output().unwrap().status.code(), Some(64));
    let file = desk.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(desk.command(&["man", "--out", "file"]).output().unwrap().status.code(), Some(1));
}

/// Data from its document to a signed bundle, in plain and confidential, with the commands that policies have.
#[test]
fn data_is_built_signed_verified_and_looked_into() {
    let desk = Desk::new();
    desk.good("keygen --out key");
    desk.good("data keygen --out secret");
    let mode = fs::metadata(desk.path().join("secret")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    desk.bad("data keygen --out secret", 1);
    fs::write(desk.path().join("d.json"), r#"{"users":{"ann":{"team":"a"},"bob":7},"limit":3}"#).unwrap();
    let built = "data build d.json --tenant acme --name users --depth 2";
    desk.good(&format!("{built} --version 1 --out plain"));
    assert!(desk.good("sign plain --key key").contains("its table is whole"));
    assert!(desk.good("verify plain --key key.pub --policy users").contains("3 entries, 133 bytes"));
    assert!(desk.good("inspect plain").contains("data        users\n"));
    assert_eq!(desk.good("data get plain users/ann"), r#"{"team":"a"}"#);
    assert!(desk.bad("data get plain users", 1).contains("there is no such key"));
    let listed = desk.json("data get plain --prefix users/");
    assert_eq!(listed["listed"][1]["key"], "users/bob");
    let again = desk.json(&format!("{built} --version 1 --out again.tar"));
    assert_eq!(again["bundle"], desk.json("inspect plain")["bundle"], "the same input, the same bundle");

    desk.good(&format!("{built} --version 2 --secret secret --out hidden"));
    let blobs = fs::read_dir(desk.path().join("hidden/blobs/sha256")).unwrap();
    for blob in blobs {
        let bytes = fs::read(blob.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("team"));
    }
    assert!(desk.bad("sign hidden --key key", 1).contains("name the file of that key with --secret"));
    desk.good("sign hidden --key key --secret secret");
    assert!(desk.good("verify hidden --key key.pub").contains("not looked into"));
    assert!(desk.good("verify hidden --key key.pub --secret secret").contains("3 entries"));
    assert_eq!(desk.good("data get hidden users/ann --secret secret"), r#"{"team":"a"}"#);
    desk.good("data keygen --out other");
    assert!(desk.bad("data get hidden --secret other", 1).contains("and here is only"));

    // A policy with secrets in it: encrypted, and built again by who signs.
    let policy = format!("build gate.wat {WHO} --version 1 --platform linux/amd64 --no-sbom");
    desk.good(&format!("{policy} --secret secret --out gate.bundle"));
    assert!(desk.bad("sign gate.bundle --key key", 1).contains("--secret"));
    assert!(desk.good("sign gate.bundle --key key --secret secret").contains("builds to exactly this code"));
    assert!(desk.bad("data get gate.bundle", 1).contains("it is a policy, and no data"));
}

/// What OPA wrote, with its data, to a policy that somebody else can verify.
#[test]
fn a_bundle_of_opa_is_built_signed_and_verified() {
    let desk = Desk::new();
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rego/policies/rbac.tar.gz");
    fs::copy(bundle, desk.path().join("bundle.tar.gz")).unwrap();
    let build = format!("build bundle.tar.gz {WHO} --version 1 --platform {} --out gate.tar", host());
    let error = desk.bad(&format!("{build} --entrypoint app/rbac/deny"), 1);
    assert!(error.contains("entrypoint \"app/rbac/deny\" is not in the module; it has"), "{error}");
    assert!(!desk.names().contains(&"gate.tar".to_owned()));
    let built = desk.json(&format!("{build} --entrypoint app/rbac/allow --result boolean"));
    assert_eq!(built["config"]["rego"]["entrypoint"], "app/rbac/allow");

    desk.good("keygen --out key");
    desk.good("keygen --out other");
    desk.refused("verify gate.tar --key key.pub", 1);
    assert!(desk.good("sign gate.tar --key key").contains("builds to exactly this code"));
    let verify = "verify gate.tar --key key.pub --tenant acme --policy gate --minimum-version 1";
    assert_eq!(desk.json(verify)["good"], true);
    assert_eq!(desk.json(verify)["bundle"], built["bundle"]);
    desk.refused("verify gate.tar --key other.pub", 1);

    // Made without it, of the same module with the same data: the same bundle.
    let again = desk.json(&format!(
        "{} --entrypoint app/rbac/allow --result boolean",
        build.replace("gate.tar", "again")
    ));
    assert_eq!(again["bundle"], built["bundle"]);
}
