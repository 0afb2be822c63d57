//! What `portcullis policy new` makes, in every language: built, asked, signed, verified; and what is said where something is
//! missing. `policies/languages.sh` installs the toolchains; Rust is found as `policies/build.sh` finds it.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use portcullis::bundle::Platform;
use portcullis::decision::Decision;
use tempfile::TempDir;

use crate::cases;
use crate::engine::Asked;

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
    /// Of the component, bytes.
    size_max: u64,
}

const RUST: Language = Language { name: "rust", needs: None, imports: &[], size_max: 64 << 10 };
const GO: Language = Language {
    name: "go",
    needs: Some("python/bin/go"),
    imports: &["clock", "log", "random"],
    size_max: 4 << 20,
};
const JS: Language = Language {
    name: "js",
    needs: Some("js/node_modules/@bytecodealliance/componentize-js"),
    imports: &[],
    size_max: 16 << 20,
};
const PYTHON: Language =
    Language { name: "python", needs: Some("python/bin/componentize-py"), imports: &[], size_max: 24 << 20 };
const C: Language =
    Language { name: "c", needs: Some("python/bin/python-zig"), imports: &[], size_max: 16 << 10 };
const ASSEMBLYSCRIPT: Language = Language {
    name: "assemblyscript",
    needs: Some("assemblyscript/node_modules/assemblyscript"),
    imports: &[],
    size_max: 64 << 10,
};

/// A project in an empty directory.
pub(crate) struct Project {
    _desk: TempDir,
    pub(crate) dir: PathBuf,
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
        Self { _desk: desk, dir }
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
        script
    }

    fn build(&self) -> Vec<u8> {
        self.build_with(&["--platform", &Platform::host().to_string()])
    }

    pub(crate) fn build_with(&self, arguments: &[&str]) -> Vec<u8> {
        let built = self.script("build.sh").args(arguments).output().unwrap();
        succeeded(&built);
        std::fs::read(self.dir.join("gate.wasm")).unwrap()
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
    let node_modules = tools().join(language.name).join("node_modules");
    if node_modules.exists() {
        symlink(node_modules, project.dir.join("node_modules")).unwrap();
    }
    let began = Instant::now();
    let module = project.build();
    let building = began.elapsed();

    let (asked, config) = Asked::of_bundle(&project.dir.join("gate.bundle"));
    assert_eq!(config.imports, language.imports, "{}", language.name);
    assert_eq!(config.world, portcullis::engine::WORLD);
    let cases = cases::read(&project.dir.join("cases.json"));
    assert!(cases.len() > 20);
    let wrong: Vec<_> = cases.iter().filter_map(|case| case.wrong(&case.ask(&asked))).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let size = u64::try_from(module.len()).unwrap();
    assert!(size < language.size_max, "{} bytes", module.len());

    succeeded(&project.script("sign.sh").output().unwrap());
    let key = project.dir.join("release.key.pub");
    let verify = |policy: &str| {
        Command::new(PORTCULLIS)
            .args(["policy", "verify", "--tenant", "acme", "--policy", policy, "--key"])
            .args([&key, &project.dir.join("gate.bundle")])
            .output()
            .unwrap()
    };
    succeeded(&verify("gate"));
    assert!(!verify("another").status.success());

    figures(language.name, &module, &project.dir, &asked, &cases, building.as_secs());
}

/// Prints what `docs/languages.md` has: `cargo test --test languages -- --nocapture --test-threads 1`.
fn figures(name: &str, module: &[u8], dir: &Path, asked: &Asked, cases: &[cases::Case], building_s: u64) {
    let case = cases.iter().find(|case| case.name == "many headers").unwrap();
    let decisions: Vec<Decision> = (0..300).map(|_| case.ask(asked)).collect();
    let middle = |of: fn(&Decision) -> u64| {
        let mut all: Vec<_> = decisions.iter().skip(50).map(of).collect();
        all.sort_unstable();
        all[all.len() / 2] as f64 / 1000.0
    };
    let config = portcullis::bundle::open_path(&dir.join("gate.bundle")).unwrap().read().unwrap();
    let code = config.compiled.iter().find(|one| one.platform == Platform::host()).unwrap().cwasm.size;
    println!(
        "| {name} | {} | {code} | {:.1} | {:.1} | {building_s} |",
        module.len(),
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
        assert!(
            one.build_with(&["--no-code"]) == another.build_with(&["--no-code"]),
            "{language}: the directory shows in what was built"
        );
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
        ("rego", "OPA 0.27 to 1.9 is missing"),
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
