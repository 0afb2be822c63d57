//! Who vouches for a bundle: what is attached to it, read and checked against the keys of the trust policy.

use crate::artifact::Digest;
use crate::bundle::{Attachment, Bundle, Layout, LayoutError};
use crate::signature::{Anchors, Evidence, Material, Subject, check, cosign, sigstore};

/// What the signatures on a bundle say.
///
/// # Errors
/// When an attachment cannot be read.
pub(super) fn of(layout: &Layout, bundle: &Bundle, anchors: &Anchors) -> Result<Evidence, LayoutError> {
    of_attachments(layout, bundle, &bundle.attachments.iter().collect::<Vec<_>>(), anchors)
}

/// Of a bundle that is kept already, what is attached in the store now and was not when it was kept, and says something: it
/// was signed again, with a new key maybe.
///
/// # Errors
/// When an attachment cannot be read.
pub(super) fn news(
    layout: &Layout,
    bundle: &Bundle,
    kept: &[Digest],
    anchors: &Anchors,
) -> Result<Vec<Attachment>, LayoutError> {
    let mut news = Vec::new();
    for attachment in &bundle.attachments {
        if kept.binary_search(&attachment.manifest.digest).is_err() {
            let said = of_attachments(layout, bundle, &[attachment], anchors)?;
            if !said.signers.is_empty() || !said.provenance.is_empty() {
                news.push(attachment.clone());
            }
        }
    }
    Ok(news)
}

fn of_attachments(
    layout: &Layout,
    bundle: &Bundle,
    attachments: &[&Attachment],
    anchors: &Anchors,
) -> Result<Evidence, LayoutError> {
    let mut read = Vec::new();
    for layer in attachments.iter().flat_map(|attachment| &attachment.layers) {
        // Lists of parts and whatever else there may be says nothing of trust.
        let max = match layer.media_type.as_str() {
            sigstore::MEDIA_TYPE => sigstore::BUNDLE_MAX,
            cosign::MEDIA_TYPE => cosign::PAYLOAD_MAX,
            _ => continue,
        };
        read.push((layer, layout.bytes(layer, max)?));
    }
    let materials: Vec<Material<'_>> = read
        .iter()
        .map(|(layer, bytes)| Material {
            media_type: &layer.media_type,
            bytes,
            annotations: &layer.annotations.0,
        })
        .collect();
    Ok(check(&Subject { index: bundle.digest(), bytes: &bundle.index_bytes }, &materials, anchors))
}
