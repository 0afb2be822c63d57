//! `portcullis policy new`

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::artifact::store;
use crate::cli::{CommandResult, EXIT_CODES, output};
use crate::decision::PolicyName;

/// What a new policy consists of. The word in the middle of `build.sh` and `README.md` becomes the policy's name.
const FILES: [(&str, u32, &str); 10] = [
    (".gitignore", 0o644, include_str!("../../../policies/template/gitignore")),
    ("Cargo.lock", 0o644, include_str!("../../../policies/template/Cargo.lock")),
    ("Cargo.toml", 0o644, include_str!("../../../policies/template/Cargo.toml")),
    ("build.sh", 0o755, include_str!("../../../policies/template/build.sh")),
    ("cases.json", 0o644, include_str!("../../../policies/template/cases.json")),
    ("src/lib.rs", 0o644, include_str!("../../../policies/template/src/lib.rs")),
    ("guest/Cargo.toml", 0o644, include_str!("../../../policies/guest/Cargo.toml")),
    ("guest/src/lib.rs", 0o644, include_str!("../../../policies/guest/src/lib.rs")),
    ("guest/src/heap.rs", 0o644, include_str!("../../../policies/guest/src/heap.rs")),
    ("wit/policy.wit", 0o644, include_str!("../../../policies/wit/policy.wit")),
];
/// The last of them: who finds it finds a whole project.
const README: &str = include_str!("../../../policies/template/README.md");
const NAME: &str = "policy-name";

/// Make a folder with a new policy in Rust, ready to build
///
/// With the world, bindings, a build script, cases and a README that has the next commands. It decides something small
/// already. Any other language works as well: see `portcullis policy componentize`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct New {
    /// What the policy is called
    name: PolicyName,
    /// Where to make it; nothing may be there yet [default: ./NAME]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum NewError {
    #[error("make policy {dir:?}: something is there already; say another place with --dir")]
    There { dir: PathBuf },
    #[error("make directory {path:?}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("write {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

impl New {
    pub(super) fn run(self) -> CommandResult {
        let dir = self.dir.unwrap_or_else(|| self.name.as_str().into());
        // A directory of ours, or none: what goes wrong later takes away what was made here and nothing else.
        DirBuilder::new().mode(0o755).create(&dir).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => NewError::There { dir: dir.clone() },
            _ => NewError::Directory { path: dir.clone(), source },
        })?;
        if let Err(error) = write(&dir, &self.name) {
            let _ = fs::remove_dir_all(&dir);
            return Err(error.into());
        }
        if self.json {
            let files: Vec<_> = FILES.iter().map(|(path, ..)| *path).chain(["README.md"]).collect();
            output::json(&json!({ "policy": self.name, "path": dir, "files": files }))?;
        } else {
            output::text(format_args!(
                "made     policy {} in {}\nnext     cd {} && ./build.sh, then as its README.md says\n",
                self.name,
                dir.display(),
                dir.display()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn write(dir: &Path, name: &PolicyName) -> Result<(), NewError> {
    for (path, mode, text) in FILES.into_iter().chain([("README.md", 0o644, README)]) {
        let path = dir.join(path);
        let above = path.parent().unwrap_or(dir);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(above)
            .map_err(|source| NewError::Directory { path: above.into(), source })?;
        let text = text.replace(NAME, name.as_str());
        store::replace(&path, text.as_bytes(), mode).map_err(|source| NewError::Write { path, source })?;
    }
    Ok(())
}
