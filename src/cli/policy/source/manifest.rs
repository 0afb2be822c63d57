//! `policy.toml`: what the author of a policy says of it beside its code. It is not shipped; what follows from it is in the
//! signed manifest.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bundle::RegoResult;
use crate::cli::files::{self, FileError};

/// Where it is looked for in a folder.
pub(super) const MANIFEST: &str = "policy.toml";
const MANIFEST_MAX: usize = 64 << 10;

/// Paths in it are relative to where it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Manifest {
    /// `package/rule`
    pub(super) entrypoint: Option<String>,
    pub(super) result: Option<RegoResult>,
    /// JSON.
    pub(super) document: Option<PathBuf>,
    #[serde(default)]
    pub(super) snapshot: SnapshotRule,
}

/// Whether a component that cannot be run before it is shipped may be shipped at all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SnapshotRule {
    #[default]
    Required,
    /// Then `prepare` is never called.
    Optional,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::cli::policy) enum ManifestError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("read manifest {path:?}: {why}")]
    Form { path: PathBuf, why: String },
}

impl Manifest {
    pub(super) fn read(path: &Path) -> Result<Self, ManifestError> {
        let bytes = files::read(path, MANIFEST_MAX)?;
        let form = |why: String| ManifestError::Form { path: path.into(), why };
        let text = str::from_utf8(&bytes).map_err(|_| form("it is not text".into()))?;
        let mut manifest: Self = toml::from_str(text).map_err(|error| form(error.to_string()))?;
        if let (Some(document), Some(folder)) = (&manifest.document, path.parent()) {
            manifest.document = Some(folder.join(document));
        }
        Ok(manifest)
    }
}
