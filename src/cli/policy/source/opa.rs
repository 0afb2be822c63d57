//! Rego as text, compiled by the `opa` that is installed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli::files::{self, FileError};
use crate::compile::MODULE_MAX;

/// Names another than the one in PATH.
const BINARY: &str = "OPA_BIN";
/// What policies may call here besides OPA's own builtins, in the form of OPA's capabilities.
const CAPABILITIES: &str = include_str!("../../../../policies/rego/capabilities.json");
/// Most of what it says that is shown, bytes.
const SAID_MAX: usize = 4 << 10;

#[derive(Debug, thiserror::Error)]
pub(in crate::cli::policy) enum OpaError {
    #[error(
        "build {path:?}: it is a folder, so it is taken for a policy in Rego, and nothing says which rule decides; say \
         `entrypoint = \"package/rule\"` in its policy.toml, or --entrypoint"
    )]
    NoEntrypoint { path: PathBuf },
    #[error(
        "build {path:?}: Rego is compiled by OPA, and there is no {program:?}: {source}; install `opa`, the Open Policy \
         Agent's one program, version 0.27 or newer, into PATH, or name it with OPA_BIN; or give the bundle that \
         `opa build -t wasm -e {entrypoint}` writes elsewhere"
    )]
    Start { path: PathBuf, program: OsString, entrypoint: String, source: io::Error },
    #[error("build {path:?}: opa does not compile it: {said}")]
    Refused { path: PathBuf, said: String },
    #[error("make a temporary directory: {0}")]
    Directory(#[source] io::Error),
    #[error(transparent)]
    File(#[from] FileError),
}

/// The bundle that OPA makes of the policies and the data in a folder; tests are left out.
pub(super) fn build(path: &Path, entrypoint: &str) -> Result<Vec<u8>, OpaError> {
    let program = std::env::var_os(BINARY).unwrap_or_else(|| "opa".into());
    let scratch = Scratch::new().map_err(OpaError::Directory)?;
    let bundle = scratch.0.join("bundle.tar.gz");
    let mut command = Command::new(&program);
    command.args(["build", "--target", "wasm", "--entrypoint", entrypoint, "--output"]).arg(&bundle);
    if let Some(all) = capabilities(&program) {
        let file = scratch.0.join("capabilities.json");
        std::fs::write(&file, all).map_err(OpaError::Directory)?;
        command.arg("--capabilities").arg(file);
    }
    let output = command
        // Names of files are in what it makes: the same wherever the folder is.
        .args(["--ignore", "*_test.rego", "--bundle", "."])
        .current_dir(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| OpaError::Start {
            path: path.into(),
            program: program.clone(),
            entrypoint: entrypoint.to_owned(),
            source,
        })?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(said.get(..SAID_MAX).unwrap_or(&said)).trim().to_owned();
        return Err(OpaError::Refused { path: path.into(), said });
    }
    Ok(files::read(&bundle, MODULE_MAX)?)
}

/// OPA's own, and ours. None of an OPA that does not say: policies that call none of ours need nothing of it.
fn capabilities(program: &OsStr) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(["capabilities", "--current"]).stdin(Stdio::null()).output().ok()?;
    let mut all: Value = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())?;
    let ours: Value = serde_json::from_str(CAPABILITIES).ok()?;
    let builtins = all.get_mut("builtins")?.as_array_mut()?;
    builtins.extend(ours.get("builtins")?.as_array()?.iter().cloned());
    Some(all.to_string())
}

/// A directory of ours, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("portcullis-opa-{:016x}", getrandom::u64()?));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
