//! Who vouches for a bundle: what is attached to it, read and checked against the keys of the trust policy.

use crate::bundle::{ATTACHMENTS_MAX, Attachment, Bundle, Descriptor, Layout, LayoutError};
use crate::signature::{ATTACHED_MAX, Anchors, Evidence, Material, Subject, check, cosign, sigstore};

/// Most attachments that are spoken of because they say nothing: it is written down with what they are attached to.
pub(super) const DISREGARDED_MAX: usize = 4;
/// Most bytes that are kept of what says nothing of trust.
const REST_MAX: u64 = 4 << 20;

/// What the signatures on a bundle say.
///
/// # Errors
/// When an attachment cannot be read.
pub(super) fn of(layout: &Layout, bundle: &Bundle, anchors: &Anchors) -> Result<Evidence, LayoutError> {
    of_attachments(layout, bundle, &bundle.attachments.iter().collect::<Vec<_>>(), anchors)
}

/// Of these attachments those that say something which neither `known` says nor one before them; `known` grows by it. A
/// signature can be written in any number of ways, so whoever writes to the store could fill every place there is with one.
///
/// # Errors
/// When an attachment cannot be read.
pub(super) fn telling(
    layout: &Layout,
    bundle: &Bundle,
    attachments: &[Attachment],
    known: &mut Evidence,
    anchors: &Anchors,
) -> Result<Vec<Attachment>, LayoutError> {
    let (mut telling, mut layers) = (Vec::new(), 0_usize);
    for attachment in attachments {
        layers =
            layers.saturating_add(attachment.layers.iter().filter(|layer| limit(layer).is_some()).count());
        // Nobody else is heard meanwhile, and each may have to be tried with each key.
        if layers > ATTACHED_MAX {
            break;
        }
        let said = of_attachments(layout, bundle, &[attachment], anchors)?;
        let before = known.signers.len().saturating_add(known.provenance.len());
        for signer in said.signers {
            if !known.signers.contains(&signer) {
                known.signers.push(signer);
            }
        }
        for provenance in said.provenance {
            if !known.provenance.contains(&provenance) {
                known.provenance.push(provenance);
            }
        }
        if known.signers.len().saturating_add(known.provenance.len()) > before {
            telling.push(attachment.clone());
        }
    }
    Ok(telling)
}

/// What is kept of what is attached: all that is telling, as far as all of it will be looked at again, and of the rest (lists
/// of parts, signatures by keys that nobody knows yet) what is small.
pub(super) fn worth_keeping(telling: Vec<Attachment>, rest: &[Attachment]) -> Vec<Attachment> {
    let (mut layers, mut bytes) = (0_usize, 0_u64);
    let mut kept: Vec<Attachment> = Vec::new();
    let told = telling.len();
    for (number, attachment) in telling.iter().chain(rest).enumerate() {
        let size = attachment.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        let is_rest = number >= told;
        let fits = kept.len() < ATTACHMENTS_MAX
            && layers.saturating_add(attachment.layers.len()) <= ATTACHED_MAX
            && (!is_rest || bytes.saturating_add(size) <= REST_MAX);
        if !fits || kept.iter().any(|other| other.manifest.digest == attachment.manifest.digest) {
            continue;
        }
        layers = layers.saturating_add(attachment.layers.len());
        bytes = if is_rest { bytes.saturating_add(size) } else { bytes };
        kept.push(attachment.clone());
    }
    kept.sort_by_key(|attachment| attachment.manifest.digest);
    kept
}

fn of_attachments(
    layout: &Layout,
    bundle: &Bundle,
    attachments: &[&Attachment],
    anchors: &Anchors,
) -> Result<Evidence, LayoutError> {
    let mut read = Vec::new();
    for layer in attachments.iter().flat_map(|attachment| &attachment.layers) {
        let Some(max) = limit(layer) else { continue };
        read.push((layer, layout.bytes(layer, max)?));
        // One more than is looked at, so that it is said.
        if read.len() > ATTACHED_MAX {
            break;
        }
    }
    let materials: Vec<Material<'_>> = read
        .iter()
        .map(|(layer, bytes)| Material {
            media_type: &layer.media_type,
            bytes,
            annotations: &layer.annotations.0,
        })
        .collect();
    let subject = Subject { index: bundle.digest(), bytes: &bundle.index_bytes };
    let mut evidence = check(&subject, &materials, anchors);
    evidence.disregarded.truncate(DISREGARDED_MAX);
    Ok(evidence)
}

/// How long a layer may be that says something of trust. Lists of parts and whatever else there may be says nothing of it.
fn limit(layer: &Descriptor) -> Option<usize> {
    match layer.media_type.as_str() {
        sigstore::MEDIA_TYPE => Some(sigstore::BUNDLE_MAX),
        cosign::MEDIA_TYPE => Some(cosign::PAYLOAD_MAX),
        _ => None,
    }
}
