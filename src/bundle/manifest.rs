//! OCI's index and manifest, with exactly the fields that are used.

use serde::{Deserialize, Serialize};

use super::descriptor::{Annotations, Descriptor};
use super::form::{self, FormError};
use super::media;

/// Largest index.json, bytes: the bundle and all that is attached to it.
pub const LAYOUT_INDEX_MAX: usize = 64 << 10;
/// Largest bundle index and largest manifest in it, bytes.
pub const MANIFEST_MAX: usize = 16 << 10;
/// Largest manifest of an attachment, bytes: signatures may be annotations of it.
pub const ATTACHED_MANIFEST_MAX: usize = 64 << 10;
/// The one version there is.
pub(super) const SCHEMA_VERSION: u32 = 2;

/// A list of manifests: index.json and the bundle index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    pub(super) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    pub(super) manifests: Vec<Descriptor>,
}

/// A config and layers: one platform's code, the source, or what is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    pub(super) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub(super) annotations: Annotations,
}

impl Index {
    pub(super) fn of(artifact_type: Option<&str>, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            media_type: media::OCI_INDEX.into(),
            artifact_type: artifact_type.map(Into::into),
            manifests,
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, FormError> {
        form::encode(self)
    }
}

impl Manifest {
    pub(super) fn of(artifact_type: &str, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            media_type: media::OCI_MANIFEST.into(),
            artifact_type: Some(artifact_type.into()),
            config,
            layers,
            subject: None,
            annotations: Annotations::default(),
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, FormError> {
        form::encode(self)
    }
}
