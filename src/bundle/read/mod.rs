//! From an open layout to a [`Bundle`] whose parts all say the same.
//!
//! Every part is read once, its digest is compared with the name it goes by, its form with the one form it may have, and
//! what is said in two places with each other. Who signed it is not looked at here.

mod attached;
mod error;

use std::collections::BTreeSet;

use attached::read_attachment;
pub use attached::{ATTACHED_LAYERS_MAX, ATTACHED_MAX, Attachment, cosign_tag};
pub use error::{BundleError, Part};

use super::config::DataConfig;
use super::form;
use super::layout::{Layout, Member};
use super::manifest::{Index, LAYOUT_INDEX_MAX, MANIFEST_MAX, Manifest, SCHEMA_VERSION};
use super::{CONFIG_MAX, CompiledFor, Descriptor, Kind, Platform, PolicyConfig, SOURCE_MAX, media};
use crate::artifact::{ARTIFACT_MAX, Digest};
use crate::table::TABLE_MAX;

/// The whole of `oci-layout`.
pub(super) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Most things attached to one bundle.
pub const ATTACHMENTS_MAX: usize = 32;
/// Most manifests in a bundle index: one per platform and the source.
const MANIFESTS_MAX: usize = Platform::ALL.len() + 1;

/// A policy as it was shipped: everything fits together; nobody has looked at signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Of the bundle index: its digest is the bundle's, and what signers sign.
    pub index: Descriptor,
    pub index_bytes: Vec<u8>,
    /// What the policy is and asks for: one and the same blob in every manifest.
    pub config: PolicyConfig,
    pub config_blob: Descriptor,
    /// In the order of [`PolicyConfig::compiled`].
    pub compiled: Vec<Compiled>,
    pub source_manifest: Descriptor,
    /// The component as its author built it.
    pub source: Descriptor,
    /// Sorted by the digest of their manifest.
    pub attachments: Vec<Attachment>,
}

/// Machine code for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    pub platform: Platform,
    pub manifest: Descriptor,
    pub cwasm: Descriptor,
}

impl Layout {
    /// Reads everything but code, source and what the attachments consist of.
    ///
    /// # Errors
    /// One variant per check; the first that fails.
    pub fn read(&self) -> Result<Bundle, BundleError> {
        if self.member(Member::Layout, OCI_LAYOUT.len())? != OCI_LAYOUT {
            return Err(BundleError::LayoutVersion);
        }
        let bytes = self.member(Member::Index, LAYOUT_INDEX_MAX)?;
        let listed: Index =
            form::parse(&bytes, LAYOUT_INDEX_MAX).map_err(|source| Part::Layout.form(source))?;
        check_index(&listed, Part::Layout, None)?;
        let (first, attached) = listed.manifests.split_first().ok_or(BundleError::Empty)?;
        let bundle = self.read_bundle(first, attached)?;
        // Tag, kinds and order: all that index.json says besides is said by what it names.
        let expected = bundle.layout_index().map_err(|source| Part::Layout.form(source))?;
        if bytes == expected { Ok(bundle) } else { Err(difference(&bundle, first, attached)) }
    }

    /// Reads a bundle that no index.json speaks of, from a folder of blobs: by its digest, and those of the manifests that
    /// are attached to it.
    ///
    /// # Errors
    /// One variant per check; the first that fails.
    pub fn read_named(&self, bundle: Digest, attached: &[Digest]) -> Result<Bundle, BundleError> {
        let descriptor = |media_type: &str, digest: Digest| {
            let size = self.length(digest)?;
            Ok(Descriptor { digest, size, ..Descriptor::of(media_type, b"") })
        };
        let index: Descriptor = descriptor(media::OCI_INDEX, bundle)?;
        let attached = attached
            .iter()
            .map(|digest| descriptor(media::OCI_MANIFEST, *digest))
            .collect::<Result<Vec<_>, BundleError>>()?;
        self.read_bundle(&index, &attached)
    }

    /// Reads every blob of a bundle once and compares it with its digest.
    ///
    /// # Errors
    /// The first that is missing or not what it should be.
    pub fn check_blobs(&self, bundle: &Bundle) -> Result<(), BundleError> {
        for blob in bundle.blobs() {
            self.sealed(&blob)?;
        }
        Ok(())
    }

    fn read_bundle(&self, index: &Descriptor, attached: &[Descriptor]) -> Result<Bundle, BundleError> {
        if attached.len() > ATTACHMENTS_MAX {
            return Err(Part::Layout.too_many(attached.len(), ATTACHMENTS_MAX));
        }
        let mut bundle = self.read_policy(index)?;
        for descriptor in attached {
            let attachment = read_attachment(self, descriptor, &bundle.index)?;
            if bundle.attachments.iter().any(|other| other.manifest.digest == attachment.manifest.digest) {
                return Err(BundleError::Twice { part: Part::Layout, digest: attachment.manifest.digest });
            }
            bundle.attachments.push(attachment);
        }
        bundle.attachments.sort_by_key(|attachment| attachment.manifest.digest);
        Ok(bundle)
    }

    /// The bundle without what is attached.
    fn read_policy(&self, index: &Descriptor) -> Result<Bundle, BundleError> {
        check_media_type(index, Part::Index, media::OCI_INDEX)?;
        let index_bytes = self.bytes(index, MANIFEST_MAX)?;
        let listed: Index =
            form::parse(&index_bytes, MANIFEST_MAX).map_err(|source| Part::Index.form(source))?;
        let kind = match listed.artifact_type.as_deref() {
            Some(media::DATA_BUNDLE) => Kind::Data,
            _ => Kind::Policy,
        };
        check_index(&listed, Part::Index, Some(media::bundle(kind)))?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = listed.manifests.iter().find(|manifest| !seen.insert(manifest.digest)) {
            return Err(BundleError::Twice { part: Part::Index, digest: twice.digest });
        }
        let (source, compiled) = listed.manifests.split_last().ok_or(BundleError::Empty)?;
        let (source_layer, config_blob) = self.read_manifest(source, Part::Source, kind)?;
        if source.platform.is_some() {
            return Err(BundleError::Platform { part: Part::Source, found: "one".into() });
        }
        let config = self.read_config(&config_blob, kind)?;
        check_media_type(&source_layer, Part::Source, media::source(&config))?;
        if source_layer.digest != config.source {
            return Err(BundleError::SourceDigest { found: source_layer.digest, expected: config.source });
        }
        let compiled = self.read_compiled(compiled, &config, &config_blob)?;
        Ok(Bundle {
            index: index.plain(),
            index_bytes,
            config,
            config_blob,
            compiled,
            source_manifest: source.plain(),
            source: source_layer,
            attachments: Vec::new(),
        })
    }

    fn read_compiled(
        &self,
        listed: &[Descriptor],
        config: &PolicyConfig,
        config_blob: &Descriptor,
    ) -> Result<Vec<Compiled>, BundleError> {
        let mut compiled: Vec<Compiled> = Vec::new();
        for descriptor in listed {
            let platform = platform_of(descriptor)?;
            let part = Part::Compiled(platform);
            if compiled.iter().any(|other| other.platform == platform) {
                return Err(BundleError::PlatformTwice { platform });
            }
            let (cwasm, its_config) = self.read_manifest(descriptor, part, config.kind())?;
            if its_config != *config_blob {
                return Err(BundleError::ConfigDiffers { part });
            }
            let declared = config.compiled_for(platform).ok_or(BundleError::NotDeclared { platform })?;
            if cwasm.digest != declared.cwasm {
                let (found, expected) = (cwasm.digest, declared.cwasm);
                return Err(BundleError::CwasmDigest { platform, found, expected });
            }
            check_media_type(&cwasm, part, media::code(config))?;
            compiled.push(Compiled { platform, manifest: descriptor.plain(), cwasm });
        }
        let has = |platform| compiled.iter().any(|found| found.platform == platform);
        if let Some(missing) = config.compiled.iter().find(|declared| !has(declared.platform)) {
            return Err(BundleError::NotThere { platform: missing.platform });
        }
        if !compiled.is_sorted_by_key(|found| found.platform) {
            return Err(BundleError::Order { part: Part::Index });
        }
        Ok(compiled)
    }

    /// The one layer and the config of a manifest in the bundle index.
    fn read_manifest(
        &self,
        descriptor: &Descriptor,
        part: Part,
        kind: Kind,
    ) -> Result<(Descriptor, Descriptor), BundleError> {
        check_media_type(descriptor, part, media::OCI_MANIFEST)?;
        let artifact_type = match part {
            Part::Source => media::source_manifest(kind),
            _ => media::COMPILED,
        };
        let (layer_type, encrypted_type, layer_max) = match (part, kind) {
            (Part::Source, Kind::Policy) => (media::WASM, media::ENCRYPTED_WASM, SOURCE_MAX),
            (Part::Source, Kind::Data) => (media::TABLE, media::ENCRYPTED_TABLE, TABLE_MAX),
            _ => (media::CWASM, media::ENCRYPTED_CWASM, ARTIFACT_MAX),
        };
        check_artifact_type(descriptor.artifact_type.as_deref(), part, artifact_type)?;
        check_says_no_more(descriptor, part)?;
        let bytes = self.bytes(descriptor, MANIFEST_MAX)?;
        let manifest: Manifest = form::parse(&bytes, MANIFEST_MAX).map_err(|source| part.form(source))?;
        check_schema(manifest.schema_version, part)?;
        check_type(&manifest.media_type, part, media::OCI_MANIFEST)?;
        check_artifact_type(manifest.artifact_type.as_deref(), part, artifact_type)?;
        if manifest.subject.is_some() || !manifest.annotations.is_empty() {
            return Err(BundleError::Surplus { part, field: "subject or annotations" });
        }
        check_media_type(&manifest.config, part, media::config(kind))?;
        let count = manifest.layers.len();
        let [layer] = <[Descriptor; 1]>::try_from(manifest.layers)
            .map_err(|_| BundleError::Layers { part, found: count })?;
        // Which of the two it has to be is in the config.
        let encrypted = layer.media_type == encrypted_type;
        check_media_type(&layer, part, if encrypted { encrypted_type } else { layer_type })?;
        check_size(layer.size, part, layer_max)?;
        for blob in [&manifest.config, &layer] {
            if *blob != blob.plain() {
                return Err(BundleError::Surplus { part, field: "annotations, platform or data of a blob" });
            }
        }
        Ok((layer, manifest.config))
    }

    fn read_config(&self, blob: &Descriptor, kind: Kind) -> Result<PolicyConfig, BundleError> {
        let bytes = self.bytes(blob, CONFIG_MAX)?;
        let wrong = |source| Part::Config.form(source);
        let config: PolicyConfig = match kind {
            Kind::Policy => form::parse(&bytes, CONFIG_MAX).map_err(wrong)?,
            Kind::Data => form::parse::<DataConfig>(&bytes, CONFIG_MAX).map_err(wrong)?.into(),
        };
        if config.kind() != kind {
            let world = config.world.chars().take(80).collect();
            return Err(BundleError::Kind { kind: kind.name(), world });
        }
        config.check_order().map_err(|list| BundleError::ConfigOrder { list })?;
        if !config.has_bounded_metrics() {
            return Err(BundleError::Metrics { count: config.metrics.len() });
        }
        Ok(config)
    }
}

impl Bundle {
    /// What it is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.index.digest
    }

    /// The machine code for a platform, and what was said of it.
    #[must_use]
    pub fn compiled_for(&self, platform: Platform) -> Option<(&CompiledFor, &Compiled)> {
        let compiled = self.compiled.iter().find(|compiled| compiled.platform == platform)?;
        Some((self.config.compiled_for(platform)?, compiled))
    }

    /// Every blob that belongs to it, each once: what has to be copied to have it somewhere else. In the order that
    /// registries want: the bundle index behind all that it names, and attachments behind what they are about.
    #[must_use]
    pub fn blobs(&self) -> Vec<Descriptor> {
        let mut blobs = vec![self.config_blob.clone(), self.source.clone()];
        blobs.extend(self.compiled.iter().map(|compiled| compiled.cwasm.clone()));
        blobs.extend(self.compiled.iter().map(|compiled| compiled.manifest.clone()));
        blobs.extend([self.source_manifest.clone(), self.index.clone()]);
        for attachment in &self.attachments {
            blobs.push(attachment.config.plain());
            blobs.extend(attachment.layers.iter().map(Descriptor::plain));
            blobs.push(attachment.manifest.clone());
        }
        let mut seen = BTreeSet::new();
        blobs.retain(|blob| seen.insert(blob.digest));
        blobs
    }

    /// The tag it goes by in index.json and, unless somebody says otherwise, in a registry: its version.
    #[must_use]
    pub fn tag(&self) -> String {
        self.config.version.to_string()
    }

    /// The one index.json it can have.
    pub(super) fn layout_index(&self) -> Result<Vec<u8>, form::FormError> {
        let tag = super::Annotations::one(media::REF_NAME, self.tag());
        let bundle = Descriptor { annotations: tag, ..self.index.clone() }
            .with_artifact_type(media::bundle(self.config.kind()));
        let attached = self.attachments.iter().map(|attachment| attachment.listed(self.index.digest));
        Index::of(None, std::iter::once(bundle).chain(attached).collect()).encode()
    }
}

/// What in index.json is not what the bundle says.
fn difference(bundle: &Bundle, first: &Descriptor, attached: &[Descriptor]) -> BundleError {
    let tag = first.annotations.get(media::REF_NAME);
    if first.annotations.0.len() != 1 || tag != Some(bundle.tag().as_str()) {
        let found = tag.map(|tag| tag.chars().take(80).collect());
        return BundleError::Tag { found, expected: bundle.tag() };
    }
    if let Err(error) =
        check_artifact_type(first.artifact_type.as_deref(), Part::Index, media::bundle(bundle.config.kind()))
    {
        return error;
    }
    if !attached.is_sorted_by_key(|attachment| attachment.digest) {
        return BundleError::Order { part: Part::Layout };
    }
    for (listed, attachment) in attached.iter().zip(&bundle.attachments) {
        let part = Part::Attached(listed.digest);
        if listed.annotations.get(media::REF_NAME).is_some() && attachment.has_subject {
            return BundleError::TagTwice { part };
        }
        if let Err(error) =
            check_artifact_type(listed.artifact_type.as_deref(), part, &attachment.artifact_type)
        {
            return error;
        }
        if *listed != attachment.listed(bundle.index.digest) {
            return BundleError::Surplus { part, field: "annotations, platform or data" };
        }
    }
    BundleError::Surplus { part: Part::Index, field: "platform or data" }
}

fn platform_of(descriptor: &Descriptor) -> Result<Platform, BundleError> {
    // A source that is not last, or a second one.
    if descriptor.artifact_type.as_deref() == Some(media::SOURCE) {
        return Err(BundleError::SeveralSources);
    }
    let Some(platform) = &descriptor.platform else {
        return Err(BundleError::NoPlatform { digest: descriptor.digest });
    };
    Platform::try_from(platform)
        .map_err(|error| BundleError::Platform { part: Part::Index, found: error.to_string() })
}

fn check_index(index: &Index, part: Part, artifact_type: Option<&str>) -> Result<(), BundleError> {
    check_schema(index.schema_version, part)?;
    check_type(&index.media_type, part, media::OCI_INDEX)?;
    if let Some(expected) = artifact_type {
        check_artifact_type(index.artifact_type.as_deref(), part, expected)?;
        if index.manifests.len() > MANIFESTS_MAX {
            return Err(part.too_many(index.manifests.len(), MANIFESTS_MAX));
        }
    } else if index.artifact_type.is_some() {
        return Err(BundleError::Surplus { part, field: "artifactType" });
    }
    Ok(())
}

pub(super) fn check_schema(found: u32, part: Part) -> Result<(), BundleError> {
    if found == SCHEMA_VERSION { Ok(()) } else { Err(BundleError::SchemaVersion { part, found }) }
}

pub(super) fn check_media_type(
    descriptor: &Descriptor,
    part: Part,
    expected: &'static str,
) -> Result<(), BundleError> {
    check_type(&descriptor.media_type, part, expected)
}

fn check_type(found: &str, part: Part, expected: &'static str) -> Result<(), BundleError> {
    if found == expected {
        return Ok(());
    }
    Err(BundleError::MediaType { part, found: found.chars().take(80).collect(), expected })
}

fn check_size(size: u64, part: Part, max: usize) -> Result<(), BundleError> {
    let max = u64::try_from(max).unwrap_or(u64::MAX);
    if size <= max { Ok(()) } else { Err(BundleError::TooLarge { part, size, max }) }
}

fn check_artifact_type(found: Option<&str>, part: Part, expected: &str) -> Result<(), BundleError> {
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.map(|found| found.chars().take(80).collect());
    Err(BundleError::ArtifactType { part, found, expected: expected.into() })
}

/// Nothing that would have to be compared with anything.
fn check_says_no_more(descriptor: &Descriptor, part: Part) -> Result<(), BundleError> {
    if descriptor.annotations.is_empty() && descriptor.data.is_none() {
        return Ok(());
    }
    Err(BundleError::Surplus { part, field: "annotations or data" })
}
