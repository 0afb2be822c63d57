//! What `portcullis policy new` makes, in every language: built, asked, signed, verified; and what is said where something is
//! missing. `policies/languages.sh` installs the toolchains; Rust is found as `policies/build.sh` finds it.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use portcullis::bundle::Platform;
use portcullis::decision::Decision;
use portcullis::rehearsal::{Cases, Granted, Subject, prepared};
use serde_json::Value;
use tempfile::TempDir;
use wasmparser::{Parser, Payload};

const PORTCULLIS: &str = env!("CARGO_BIN_EXE_portcullis");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tools() -> PathBuf {
    root().join("target/languages")
}

/// A language, and what its policy comes to.
struct Language {
    name: &'static str,
    /// What has to be there, below the tools.
    needs: Option<&'static str>,
    imports: &'static [&'static str],
    /// As it is shipped, bytes.
    size_max: usize,
    /// What `test.sh --coverage` counts, where that is worth asking: the others are compiled once more for it.
    covers: Option<&'static str>,
}

const RUST: Language =
    Language { name: "rust", needs: None, imports: &[], size_max: 64 << 10, covers: Some("functions") };
const GO: Language = Language {
    name: "go",
    needs: Some("python/bin/go"),
    imports: &["clock", "log", "random"],
    size_max: 4 << 20,
    covers: None,
};
const JS: Language = Language {
    name: "js",
    needs: Some("js/node_modules/@bytecodealliance/componentize-js"),
    imports: &[],
    size_max: 16 << 20,
    covers: None,
};
const PYTHON: Language = Language {
    name: "python",
    needs: Some("python/bin/componentize-py"),
    imports: &[],
    size_max: 24 << 20,
    covers: None,
};
const C: Language = Language {
    name: "c",
    needs: Some("python/bin/python-zig"),
    imports: &[],
    size_max: 16 << 10,
    covers: Some("functions"),
};
const ASSEMBLYSCRIPT: Language = Language {
    name: "assemblyscript",
    needs: Some("assemblyscript/node_modules/assemblyscript"),
    imports: &[],
    size_max: 64 << 10,
    covers: Some("functions"),
};
const REGO: Language = Language { name: "rego", needs: None, imports: &[], size_max: 1 << 20, covers: None };

/// Cargo builds one after the other anyway, and what it built is overwritten by the next with the same target directory.
static CARGO: Mutex<()> = Mutex::new(());

/// A project in an empty directory.
pub(crate) struct Project {
    _desk: TempDir,
    pub(crate) dir: PathBuf,
    /// Where its OPA is, if not where it usually is.
    opa: Option<PathBuf>,
}

impl Project {
    pub(crate) fn new(language: &str) -> Self {
        let desk = tempfile::tempdir().unwrap();
        let dir = desk.path().join("project");
        let made = Command::new(PORTCULLIS)
            .args(["policy", "new", "gate", "--lang", language, "--dir"])
            .arg(&dir)
            .output()
            .unwrap();
        succeeded(&made);
        Self { _desk: desk, dir, opa: None }
    }

    fn script(&self, name: &str) -> Command {
        let mut script = Command::new(self.dir.join(name));
        let path = format!("{}:{}", tools().join("python/bin").display(), std::env::var("PATH").unwrap());
        script
            .env("PATH", path)
            .env("PORTCULLIS_BIN", PORTCULLIS)
            // What the policies of this repository need is compiled there already, once build.sh has run.
            .env("CARGO_TARGET_DIR", root().join("policies/target"))
            .current_dir(self.dir.parent().unwrap());
        if let Some(opa) = &self.opa {
            script.env("OPA_BIN", opa);
        }
        script
    }

    fn build(&self) {
        self.build_with(&["--platform", &Platform::host().to_string()]);
    }

    /// What the language's compiler made, without what is no module yet.
    pub(crate) fn module(&self) -> Vec<u8> {
        self.build_with(&["--no-code"]);
        std::fs::read(self.dir.join("gate.wasm")).unwrap()
    }

    /// Gives it the packages of npm that are installed for its language.
    pub(crate) fn link_tools(&self, language: &str) {
        let node_modules = tools().join(language).join("node_modules");
        if node_modules.exists() {
            symlink(node_modules, self.dir.join("node_modules")).unwrap();
        }
    }

    pub(crate) fn build_with(&self, arguments: &[&str]) {
        let _one = CARGO.lock().unwrap_or_else(PoisonError::into_inner);
        succeeded(&self.script("build.sh").args(arguments).output().unwrap());
    }
}

fn succeeded(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn works(language: &Language) {
    if let Some(needs) = language.needs {
        assert!(tools().join(needs).exists(), "{needs} is missing: run policies/languages.sh");
    }
    let project = Project::new(language.name);
    project.link_tools(language.name);
    holds(language, &project);
}

/// What was made of it answers as it has to, and is what it says.
fn holds(language: &Language, project: &Project) {
    let began = Instant::now();
    project.build();
    let building = began.elapsed();

    let mut test = project.script("test.sh");
    test.arg("--json").args(language.covers.map(|_| "--coverage"));
    let tested = succeeded(&test.output().unwrap());
    let report: Value = serde_json::from_str(&tested).unwrap();
    let path = project.dir.join("cases.json");
    let cases = Cases::read(&path, &std::fs::read(&path).unwrap(), None).unwrap();
    assert!(cases.cases.len() > 20);
    assert_eq!((&report["passed"], &report["failed"]), (&cases.cases.len().into(), &0.into()), "{report}");
    let covered = report["policies"][0]["coverage"]["of"].as_str();
    assert_eq!(covered, language.covers);
    assert_eq!(report["policies"][0]["policy"]["code"], "from the bundle");

    let bundle = project.dir.join("gate.bundle");
    let subject = Subject::open(&bundle, &Granted::default()).unwrap();
    assert_eq!(subject.manifest.imports, language.imports, "{}", language.name);
    assert_eq!(subject.manifest.world, portcullis::engine::WORLD);
    let modules = Parser::new(0).parse_all(&subject.source);
    let is_module = |payload: &Payload<'_>| matches!(payload, Payload::ModuleSection { .. });
    let modules = modules.map(Result::unwrap).filter(is_module).count();
    // Its own, and what stands behind WASI with two of wit-component.
    assert!(modules <= 4, "{modules} core modules");
    assert!(subject.source.len() < language.size_max, "{} bytes", subject.source.len());

    succeeded(&project.script("sign.sh").output().unwrap());
    let key = project.dir.join("release.key.pub");
    let verify = |policy: &str| {
        Command::new(PORTCULLIS)
            .args(["policy", "verify", "--tenant", "acme", "--policy", policy, "--key"])
            .args([&key, &bundle])
            .output()
            .unwrap()
    };
    succeeded(&verify("gate"));
    assert!(!verify("another").status.success());

    figures(language.name, &subject, &cases, building.as_secs());
}

/// Prints what `docs/languages.md` has: `cargo test --test languages -- --nocapture --test-threads 1`.
fn figures(name: &str, subject: &Subject, cases: &Cases, building_s: u64) {
    let case = cases.cases.iter().find(|case| case.name == "many headers").unwrap();
    let ask = || {
        let (call, data) = prepared(case).unwrap();
        subject.time(call, data)
    };
    let decisions: Vec<Decision> = (0..300).map(|_| ask()).collect();
    let middle = |of: fn(&Decision) -> u64| {
        let mut all: Vec<_> = decisions.iter().skip(50).map(of).collect();
        all.sort_unstable();
        all[all.len() / 2] as f64 / 1000.0
    };
    let code = subject.manifest.compiled_for(Platform::host()).unwrap().cwasm;
    let bundle = portcullis::bundle::open_path(&subject.path).unwrap().read().unwrap();
    let code = bundle.compiled.iter().find(|one| one.cwasm.digest == code).unwrap().cwasm.size;
    println!(
        "| {name} | {} | {code} | {:.1} | {:.1} | {building_s} |",
        subject.source.len(),
        middle(|decision| decision.timing.instantiate_ns),
        middle(|decision| decision.timing.run_ns),
    );
}

#[test]
fn rust() {
    works(&RUST);
}

/// Whoever signs builds again and compares.
#[test]
fn the_same_source_gives_the_same_bytes_in_every_directory() {
    for language in ["rust", "c", "go"] {
        let [one, another] = [Project::new(language), Project::new(language)];
        assert_ne!(one.dir, another.dir);
        assert!(one.module() == another.module(), "{language}: the directory shows in what was built");
    }
}

#[test]
fn go() {
    works(&GO);
}

#[test]
fn javascript() {
    works(&JS);
}

#[test]
fn python() {
    works(&PYTHON);
}

#[test]
fn c() {
    works(&C);
}

#[test]
fn assemblyscript() {
    works(&ASSEMBLYSCRIPT);
}

#[test]
#[ignore = "takes OPA: OPA_BIN=/usr/local/bin/opa cargo test --test languages rego -- --ignored"]
fn rego_with_opa() {
    assert!(std::env::var_os("OPA_BIN").is_some(), "OPA_BIN has to name an opa");
    works(&REGO);
}

/// Without OPA, with what OPA made of the same files.
#[test]
fn rego() {
    let mut project = Project::new("rego");
    let made = root().join("policies/template/rego/opa.tar.gz");
    let opa = project.dir.join("opa");
    std::fs::write(&opa, format!("#!/bin/sh\nexec cp {} \"$7\"\n", made.display())).unwrap();
    std::fs::set_permissions(&opa, PermissionsExt::from_mode(0o755)).unwrap();
    let mut of = Command::new("sha256sum");
    succeeded(&of.args(["--check", "opa.txt"]).current_dir(made.parent().unwrap()).output().unwrap());
    project.opa = Some(opa);
    holds(&REGO, &project);
}

/// What says which package is missing, where a language's toolchain is not installed.
#[test]
fn what_is_missing_is_named_with_the_command_that_installs_it() {
    let nothing = tempfile::tempdir().unwrap();
    let expected = BTreeMap::from([
        ("rust", "rustup target add wasm32-unknown-unknown"),
        ("go", "Go 1.24 or newer is missing: pip install --require-hashes -r requirements.txt"),
        ("js", "Node.js 20 or newer is missing: apt-get install nodejs npm"),
        ("python", "componentize-py is missing: pip install --require-hashes -r requirements.txt"),
        ("c", "a C compiler for WebAssembly is missing: pip install --require-hashes -r requirements.txt"),
        ("assemblyscript", "Node.js 20 or newer is missing: apt-get install nodejs npm"),
        ("rego", "OPA 1.0 or newer is missing"),
    ]);
    for (language, message) in expected {
        let project = Project::new(language);
        let built = Command::new("/bin/sh")
            .arg(project.dir.join("build.sh"))
            .env_clear()
            .env("PATH", nothing.path())
            .env("HOME", nothing.path())
            .env("PORTCULLIS_BIN", PORTCULLIS)
            .env("POLICY_TOOLCHAIN", "rustup")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&built.stderr);
        assert_eq!(built.status.code(), Some(1), "{language}: {text}");
        assert!(text.contains(message), "{language}: {text}");
        assert!(!project.dir.join("gate.wasm").exists());
    }
    // Where only packages of npm are missing.
    for (language, message) in [
        ("js", "componentize-js is missing: npm ci"),
        ("assemblyscript", "AssemblyScript is missing: npm ci"),
    ] {
        let built = Project::new(language).script("build.sh").output().unwrap();
        let text = String::from_utf8_lossy(&built.stderr);
        assert!(!built.status.success() && text.contains(message), "{language}: {text}");
    }
}

/// No project says of itself that it is something that was replaced.
#[test]
fn every_file_has_the_policys_name() {
    for language in ["rust", "go", "js", "python", "c", "assemblyscript", "rego"] {
        let project = Project::new(language);
        let mut files = vec![project.dir.clone()];
        let mut seen = 0;
        while let Some(path) = files.pop() {
            if path.is_dir() {
                files.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("policy-name") && !text.contains("OF-THE-LANGUAGE"), "{path:?}");
            seen += 1;
        }
        assert!(seen >= 8, "{language}: {seen} files");
    }
}
