//! `portcullis policy new`

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::template::Language;
use crate::artifact::store;
use crate::cli::{CommandResult, EXIT_CODES, output};
use crate::decision::PolicyName;

/// Make a folder with a new policy, ready to build
///
/// It decides something already: who may use what, by an identity that the proxy has authenticated; the same in every
/// language. With its cases, scripts that build, test and sign it with one command each, and a README that says what has to
/// be installed. Any other language works as well: see `portcullis policy componentize`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct New {
    /// What the policy is called
    name: PolicyName,
    /// What to write it in
    #[arg(long, value_enum, default_value = "rust")]
    lang: Language,
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
        let files = self.lang.files(self.name.as_str());
        if let Err(error) = write(&dir, &files) {
            let _ = fs::remove_dir_all(&dir);
            return Err(error.into());
        }
        if self.json {
            let files: Vec<_> = files.iter().map(|(path, ..)| *path).collect();
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

fn write(dir: &Path, files: &[(&str, u32, String)]) -> Result<(), NewError> {
    for (path, mode, text) in files {
        let path = dir.join(path);
        let above = path.parent().unwrap_or(dir);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(above)
            .map_err(|source| NewError::Directory { path: above.into(), source })?;
        store::replace(&path, text.as_bytes(), *mode).map_err(|source| NewError::Write { path, source })?;
    }
    Ok(())
}
