//! What is attached to a bundle: signatures, attestations, lists of parts. Other tools write such manifests too, so their
//! fields may come in any order; their digest covers them.

use serde::Serialize;

use super::error::{BundleError, Part};
use super::{check_media_type, check_schema, check_size, check_type};
use crate::artifact::Digest;
use crate::bundle::manifest::{ATTACHED_MANIFEST_MAX, Manifest};
use crate::bundle::{Annotations, Descriptor, Layout, form, media};

/// Most layers of one attachment.
pub const ATTACHED_LAYERS_MAX: usize = 16;

/// Most that one attachment brings, bytes.
pub const ATTACHED_MAX: usize = 16 << 20;

/// A manifest that says what it is about, and what it brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// One of [`media`], or anything.
    pub artifact_type: String,
    pub manifest: Descriptor,
    pub config: Descriptor,
    /// Read them with [`Layout::bytes`].
    pub layers: Vec<Descriptor>,
    pub annotations: Annotations,
    /// Whether it names the bundle itself. If not, it is cosign's older form and its tag names the bundle.
    pub has_subject: bool,
}

impl Attachment {
    /// How index.json lists it.
    pub(super) fn listed(&self, bundle: Digest) -> Descriptor {
        let listed = self.manifest.plain().with_artifact_type(&self.artifact_type);
        if self.has_subject {
            return listed;
        }
        Descriptor { annotations: Annotations::one(media::REF_NAME, cosign_tag(bundle)), ..listed }
    }
}

/// The tag under which cosign's older form keeps the signatures of a digest.
#[must_use]
pub fn cosign_tag(bundle: Digest) -> String {
    format!("{}.sig", bundle.to_string().replace(':', "-"))
}

pub(super) fn read_attachment(
    layout: &Layout,
    listed: &Descriptor,
    bundle: &Descriptor,
) -> Result<Attachment, BundleError> {
    let part = Part::Attached(listed.digest);
    check_media_type(listed, part, media::OCI_MANIFEST)?;
    let bytes = layout.bytes(listed, ATTACHED_MANIFEST_MAX)?;
    let manifest: Manifest =
        form::parse_any(&bytes, ATTACHED_MANIFEST_MAX).map_err(|source| part.form(source))?;
    check_schema(manifest.schema_version, part)?;
    check_type(&manifest.media_type, part, media::OCI_MANIFEST)?;
    let found = manifest.layers.len();
    if found > ATTACHED_LAYERS_MAX {
        return Err(BundleError::AttachedLayers { part, found, max: ATTACHED_LAYERS_MAX });
    }
    let sizes = manifest.layers.iter().map(|layer| layer.size);
    check_size(sizes.fold(manifest.config.size, u64::saturating_add), part, ATTACHED_MAX)?;
    let artifact_type = artifact_type(&manifest);
    match &manifest.subject {
        Some(subject) if subject.digest != bundle.digest || subject.size != bundle.size => {
            return Err(BundleError::Subject { part, found: subject.digest });
        }
        Some(subject) => check_media_type(subject, part, media::OCI_INDEX)?,
        // What is signed is in the layer, which whoever checks the signature compares.
        None if artifact_type == media::COSIGN_SIMPLE_SIGNING => {}
        None => return Err(BundleError::NoSubject { part }),
    }
    Ok(Attachment {
        artifact_type,
        manifest: listed.plain(),
        has_subject: manifest.subject.is_some(),
        config: manifest.config,
        layers: manifest.layers,
        annotations: manifest.annotations,
    })
}

/// OCI's rule: without a type of its own an artifact is what its config is. Cosign's older form has an image's config,
/// but its layers are of one kind.
fn artifact_type(manifest: &Manifest) -> String {
    let cosign = |layers: &[Descriptor]| {
        !layers.is_empty() && layers.iter().all(|layer| layer.media_type == media::COSIGN_SIMPLE_SIGNING)
    };
    match &manifest.artifact_type {
        Some(artifact_type) => artifact_type.clone(),
        None if cosign(&manifest.layers) => media::COSIGN_SIMPLE_SIGNING.into(),
        None => manifest.config.media_type.clone(),
    }
}
