//! Attaching to a bundle that exists: its digest stays the same, what index.json lists grows.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use super::inside::Inside;
use super::place::Place;
use super::{WriteError, failed, name, put};
use crate::artifact::{ARTIFACT_MAX, Digest};
use crate::bundle::draft::Blobs;
use crate::bundle::layout::Member;
use crate::bundle::manifest::Manifest;
use crate::bundle::read::{ATTACHMENTS_MAX, Part};
use crate::bundle::{Annotations, Attachment, Bundle, BundleError, Descriptor, media, open_path};

/// A signature, an attestation or a list of parts, to be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAttachment {
    /// One of [`media`].
    pub artifact_type: String,
    pub layers: Vec<NewLayer>,
    /// Of the manifest.
    pub annotations: Annotations,
}

/// A blob of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub annotations: Annotations,
}

impl NewAttachment {
    /// One blob, of the type that the attachment has.
    #[must_use]
    pub fn one(artifact_type: &str, bytes: Vec<u8>, annotations: Annotations) -> Self {
        let layer = NewLayer { media_type: artifact_type.into(), bytes, annotations: Annotations::default() };
        Self { artifact_type: artifact_type.into(), layers: vec![layer], annotations }
    }
}

/// Attaches something to a bundle, a folder or a tar, in place of those attachments that `replaces` says. Readers find the
/// old list or the new one. Attaching the same again changes nothing.
///
/// # Errors
/// When the bundle is not good, when there is no room for more, or when the file system says no.
pub fn attach(
    path: &Path,
    new: &NewAttachment,
    replaces: impl Fn(&Attachment) -> bool,
) -> Result<Bundle, WriteError> {
    let place = Place::lock(path)?;
    let layout = open_path(path)?;
    let before = layout.read()?;
    let mut bundle = before.clone();
    let (attachment, blobs) =
        assemble(&bundle, new).map_err(|source| WriteError::Form { path: path.into(), source })?;
    bundle.attachments.retain(|old| !replaces(old) && old.manifest.digest != attachment.manifest.digest);
    bundle.attachments.push(attachment);
    bundle.attachments.sort_by_key(|attachment| attachment.manifest.digest);
    let found = bundle.attachments.len();
    if found > ATTACHMENTS_MAX {
        return Err(BundleError::TooMany { part: Part::Layout, found, max: ATTACHMENTS_MAX }.into());
    }
    if layout.is_tar() {
        return put(place, path, &bundle, |blob| match blobs.0.get(&blob.digest) {
            Some(bytes) => Ok(Cow::Borrowed(bytes.as_slice())),
            None => layout.bytes(blob, ARTIFACT_MAX).map(Cow::Owned),
        });
    }
    let inside = Inside::open(path).map_err(|source| failed(path, source))?;
    for (digest, bytes) in &blobs.0 {
        inside.put(Member::Blob(*digest), bytes).map_err(|source| failed(path, source))?;
    }
    layout.read_named(bundle.digest(), &attached(&bundle))?;
    name(&inside, path, &bundle)?;
    let still = digests(&bundle);
    for digest in digests(&before).difference(&still) {
        // Best effort: a blob that nobody names does no harm.
        let _ = inside.remove(Member::Blob(*digest));
    }
    Ok(bundle)
}

fn digests(bundle: &Bundle) -> BTreeSet<Digest> {
    bundle.blobs().into_iter().map(|blob| blob.digest).collect()
}

fn attached(bundle: &Bundle) -> Vec<Digest> {
    bundle.attachments.iter().map(|attachment| attachment.manifest.digest).collect()
}

fn assemble(bundle: &Bundle, new: &NewAttachment) -> Result<(Attachment, Blobs), crate::bundle::FormError> {
    let mut blobs = Blobs::default();
    let config = blobs.add(media::OCI_EMPTY, media::OCI_EMPTY_BYTES.to_vec());
    let layers: Vec<Descriptor> = new
        .layers
        .iter()
        .map(|layer| Descriptor {
            annotations: layer.annotations.clone(),
            ..blobs.add(&layer.media_type, layer.bytes.clone())
        })
        .collect();
    let manifest = Manifest {
        subject: Some(bundle.index.clone()),
        annotations: new.annotations.clone(),
        ..Manifest::of(&new.artifact_type, config.clone(), layers.clone())
    };
    let attachment = Attachment {
        artifact_type: new.artifact_type.clone(),
        manifest: blobs.add(media::OCI_MANIFEST, manifest.encode()?),
        config,
        layers,
        annotations: new.annotations.clone(),
        has_subject: true,
    };
    Ok((attachment, blobs))
}
