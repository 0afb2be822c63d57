//! What was placed, so that it can be taken away again. It is written before the first file is placed, and once more
//! after the last: whatever happens in between, `uninstall` knows what may be there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tree::{Tree, TreeError};
use crate::artifact::Digest;

/// Where it lies.
pub(super) const MANIFEST: &str = "/usr/lib/portcullis/manifest.json";
/// What this program writes and understands.
const FORMAT: u32 = 1;
/// Longest that is read, bytes.
const MANIFEST_MAX: u64 = 1 << 20;

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("read manifest {path:?}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("read manifest {path:?}: format {found}, expected {FORMAT}; use the portcullis that wrote it")]
    Format { path: PathBuf, found: u32 },
    #[error("read manifest {path:?}: {named:?} is no absolute path without \"..\"")]
    Path { path: PathBuf, named: PathBuf },
    #[error("read manifest {path:?}: {named:?} is no name of a user")]
    User { path: PathBuf, named: String },
}

/// An installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    /// Of the `portcullis` that wrote it.
    version: String,
    /// In the order in which they were placed.
    pub(super) files: Vec<Placed>,
    /// That were not there before.
    pub(super) directories: Vec<PathBuf>,
    /// That were not there before.
    pub(super) users: Vec<String>,
    /// That were not there before: a user's group may have been there without the user.
    #[serde(default)]
    pub(super) groups: Vec<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Placed {
    pub(super) path: PathBuf,
    /// Its content as it was placed. While it is being replaced: before and after.
    pub(super) digests: Vec<Digest>,
    /// The administrator's from the moment it is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) configuration: bool,
}

impl Manifest {
    pub(super) fn new(
        files: Vec<Placed>,
        directories: Vec<PathBuf>,
        users: Vec<String>,
        groups: Vec<String>,
    ) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { format: FORMAT, version, files, directories, users, groups }
    }

    /// The one in `tree`, if there is one.
    pub(super) fn read(tree: &Tree) -> Result<Option<Self>, ManifestError> {
        let path = Path::new(MANIFEST);
        let Some(text) = tree.text(path, MANIFEST_MAX)? else { return Ok(None) };
        Self::parse(&text, &tree.shown(path)).map(Some)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ManifestError> {
        let manifest: Self =
            serde_json::from_str(text).map_err(|source| ManifestError::Json { path: path.into(), source })?;
        if manifest.format != FORMAT {
            return Err(ManifestError::Format { path: path.into(), found: manifest.format });
        }
        let paths = manifest.files.iter().map(|placed| &placed.path).chain(&manifest.directories);
        for named in paths {
            let plain = named.is_absolute() && !named.components().any(|part| part.as_os_str() == "..");
            if !plain || named.parent().is_none() {
                return Err(ManifestError::Path { path: path.into(), named: named.clone() });
            }
        }
        for named in manifest.users.iter().chain(&manifest.groups) {
            // They become arguments of userdel and groupdel.
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if !named.starts_with("portcullis") || !named.chars().all(plain) {
                return Err(ManifestError::User { path: path.into(), named: named.clone() });
            }
        }
        Ok(manifest)
    }

    pub(super) fn placed(&self, path: &Path) -> Option<&Placed> {
        self.files.iter().find(|placed| placed.path == path)
    }

    /// Writes it in the place of the one before.
    pub(super) fn write(&self, tree: &Tree) -> Result<(), ManifestError> {
        let path = Path::new(MANIFEST);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| ManifestError::Json { path: tree.shown(path), source })?;
        text.push(b'\n');
        Ok(tree.place(path, &mut text.as_slice(), &Digest::of(&text), 0o644)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let placed =
            Placed { path: "/usr/bin/x".into(), digests: vec![Digest::of(b"x")], configuration: false };
        Manifest::new(
            vec![placed],
            vec!["/usr/lib/portcullis".into()],
            vec!["portcullis-shared".to_owned()],
            vec!["portcullis-shared".to_owned()],
        )
    }

    fn parse(manifest: &Manifest) -> Result<Manifest, ManifestError> {
        Manifest::parse(&serde_json::to_string(manifest).unwrap(), Path::new(MANIFEST))
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(&manifest()).unwrap(), manifest());
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for path in ["etc/passwd", "/usr/../etc/passwd", "/"] {
            let mut wrong = manifest();
            wrong.files[0].path = path.into();
            assert!(matches!(parse(&wrong), Err(ManifestError::Path { .. })), "{path}");
            let mut wrong = manifest();
            wrong.directories[0] = path.into();
            assert!(matches!(parse(&wrong), Err(ManifestError::Path { .. })), "{path}");
        }
        for user in ["root", "--root=/x", "portcullis x", ""] {
            let mut wrong = manifest();
            wrong.users[0] = user.to_owned();
            assert!(matches!(parse(&wrong), Err(ManifestError::User { .. })), "{user}");
            let mut wrong = manifest();
            wrong.groups[0] = user.to_owned();
            assert!(matches!(parse(&wrong), Err(ManifestError::User { .. })), "{user}");
        }
        let mut wrong = manifest();
        wrong.format = 2;
        assert!(matches!(parse(&wrong), Err(ManifestError::Format { found: 2, .. })));
    }
}
