//! What `portcullis policy new` makes, in every language: built, asked, signed, verified; and what is said where something is
//! missing. `policies/languages.sh` installs the toolchains; Rust is found as `policies/build.sh` finds it.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use portcullis::bundle::{Platform, SOURCE_MAX, open_path};
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
    /// Whether its bundle has machine code. Megabytes are compiled once here, to be asked: not to be shipped, and not by who signs.
    ships_code: bool,
}

const RUST: Language = Language {
    name: "rust",
    needs: None,
    imports: &[],
    size_max: 64 << 10,
    covers: Some("functions"),
    ships_code: true,
};
const GO: Language = Language {
    name: "go",
    needs: Some("python/bin/go"),
    imports: &["clock", "log", "random"],
    size_max: 4 << 20,
    covers: None,
    ships_code: false,
};
const JS: Language = Language {
    name: "js",
    needs: Some("js/node_modules/@bytecodealliance/componentize-js"),
    imports: &[],
    size_max: 16 << 20,
    covers: None,
    ships_code: false,
};
const PYTHON: Language = Language {
    name: "python",
    needs: Some("python/bin/componentize-py"),
    imports: &[],
    size_max: 24 << 20,
    covers: None,
    ships_code: false,
};
const C: Language = Language {
    name: "c",
    needs: Some("python/bin/python-zig"),
    imports: &[],
    size_max: 16 << 10,
    covers: Some("functions"),
    ships_code: true,
};
const ASSEMBLYSCRIPT: Language = Language {
    name: "assemblyscript",
    needs: Some("assemblyscript/node_modules/assemblyscript"),
    imports: &[],
    size_max: 64 << 10,
    covers: Some("functions"),
    ships_code: true,
};
const REGO: Language =
    Language { name: "rego", needs: None, imports: &[], size_max: 1 << 20, covers: None, ships_code: true };

/// What cargo built is overwritten by the next with the same target directory.
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

    /// With machine code for this host, or with none.
    fn build(&self, code: bool) {
        let host = Platform::host().to_string();
        let code = if code { ["--platform", &host].to_vec() } else { vec!["--no-code"] };
        self.build_with(&code);
    }

    /// What the language's compiler made, of which nothing is built.
    pub(crate) fn module(&self) -> Vec<u8> {
        let mut script = self.script("build.sh");
        self.alone(script.env("PORTCULLIS_BIN", "true"));
        std::fs::read(self.dir.join("gate.wasm")).unwrap()
    }

    /// Gives it the packages of npm that are installed for its language.
    pub(crate) fn link_tools(&self, language: &str) {
        let node_modules = tools().join(language).join("node_modules");
        if node_modules.exists() {
            symlink(node_modules, self.dir.join("node_modules")).unwrap();
        }
    }

    /// A decision may take a minute: a machine that stops for a second is not what is tested.
    pub(crate) fn build_with(&self, arguments: &[&str]) {
        self.alone(self.script("build.sh").args(arguments).args(["--deadline", "60s"]));
    }

    /// With nobody else in the directory that what is written in Rust is built in.
    fn alone(&self, script: &mut Command) {
        let _one = self
            .dir
            .join("Cargo.toml")
            .exists()
            .then(|| CARGO.lock().unwrap_or_else(PoisonError::into_inner));
        succeeded(&script.output().unwrap());
    }
}

fn succeeded(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn works(language: &Language) {
    holds(language, &ready(language));
}

/// A project with everything that it is built with.
fn ready(language: &Language) -> Project {
    if let Some(needs) = language.needs {
        assert!(tools().join(needs).exists(), "{needs} is missing: run policies/languages.sh");
    }
    let mut project = Project::new(language.name);
    project.link_tools(language.name);
    if language.name == REGO.name && std::env::var_os("OPA_BIN").is_none() {
        project.opa = Some(opa_of_what_it_made(&project.dir));
    }
    project
}

/// What stands for OPA where there is none: it makes what OPA made of the same files.
fn opa_of_what_it_made(dir: &Path) -> PathBuf {
    let made = root().join("policies/template/rego/opa.tar.gz");
    let opa = dir.join("opa");
    std::fs::write(&opa, format!("#!/bin/sh\nexec cp {} \"$7\"\n", made.display())).unwrap();
    std::fs::set_permissions(&opa, PermissionsExt::from_mode(0o755)).unwrap();
    let mut of = Command::new("sha256sum");
    succeeded(&of.args(["--check", "opa.txt"]).current_dir(made.parent().unwrap()).output().unwrap());
    opa
}

/// What was made of it answers as it has to, and is what it says.
fn holds(language: &Language, project: &Project) {
    project.build(language.ships_code);

    let mut test = project.script("test.sh");
    test.arg("--json").args(language.covers.map(|_| "--coverage"));
    let tested = succeeded(&test.output().unwrap());
    let report: Value = serde_json::from_str(&tested).unwrap();
    let cases = cases(project);
    assert!(cases.cases.len() > 20);
    assert_eq!((&report["passed"], &report["failed"]), (&cases.cases.len().into(), &0.into()), "{report}");
    let covered = report["policies"][0]["coverage"]["of"].as_str();
    assert_eq!(covered, language.covers);
    let code = if language.ships_code { "as in the bundle" } else { "compiled here" };
    assert_eq!(report["policies"][0]["policy"]["code"], code);

    let bundle = project.dir.join("gate.bundle");
    let layout = open_path(&bundle).unwrap();
    let shipped = layout.read().unwrap();
    let source = layout.bytes(&shipped.source, SOURCE_MAX).unwrap();
    assert_eq!(shipped.config.imports, language.imports, "{}", language.name);
    assert_eq!(shipped.config.world, portcullis::engine::WORLD);
    let modules = Parser::new(0).parse_all(&source);
    let is_module = |payload: &Payload<'_>| matches!(payload, Payload::ModuleSection { .. });
    let modules = modules.map(Result::unwrap).filter(is_module).count();
    // Its own, and what stands behind WASI with two of wit-component.
    assert!(modules <= 4, "{modules} core modules");
    assert!(source.len() < language.size_max, "{} bytes", source.len());

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
}

fn cases(project: &Project) -> Cases {
    let path = project.dir.join("cases.json");
    Cases::read(&path, &std::fs::read(&path).unwrap(), None).unwrap()
}

/// The table of `docs/languages.md`.
#[test]
#[ignore = "prints figures: cargo test --test languages figures -- --ignored --nocapture"]
fn figures() {
    for language in [ASSEMBLYSCRIPT, RUST, C, JS, GO, PYTHON, REGO] {
        let project = ready(&language);
        project.build(true);
        let subject = Subject::open(&project.dir.join("gate.bundle"), &Granted::default()).unwrap();
        let cases = cases(&project);
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
        let bundle = open_path(&subject.path).unwrap().read().unwrap();
        println!(
            "| `{}` | {} | {} | {:.1} | {:.1} |",
            language.name,
            subject.source.len(),
            bundle.compiled_for(Platform::host()).unwrap().1.cwasm.size,
            middle(|decision| decision.timing.instantiate_ns),
            middle(|decision| decision.timing.run_ns),
        );
    }
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

/// With what OPA made of the same files, where there is no OPA.
#[test]
fn rego() {
    works(&REGO);
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
