//! A bundle that somebody named on the command line: opened, read, and what is attached to it told apart.

use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use serde::Serialize;
use serde_json::Value;

use crate::bundle::confidential::{LayerOf, decrypt};
use crate::bundle::{
    self, Attachment, Bundle, BundleError, Descriptor, Layout, LayoutError, SecretKeys, media,
};
use crate::cli::terminal::printable;
use crate::compile::SOURCE_MAX;
use crate::signature::sigstore::{self, ClaimedSigner, Content};
use crate::signature::{Anchors, Evidence, Material, Signer, Subject, check, cosign, intoto};
use crate::table::TABLE_MAX;

/// A bundle whose parts fit together. Code and source are not read yet.
#[derive(Debug)]
pub(in crate::cli) struct Stored {
    pub(in crate::cli) layout: Layout,
    pub(in crate::cli) bundle: Bundle,
    /// Layers of signatures.
    signatures: Vec<(Descriptor, Vec<u8>)>,
}

#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum StoredError {
    #[error(transparent)]
    Layout(Box<LayoutError>),
    #[error("read bundle {path:?}: {source}")]
    Bundle { path: PathBuf, source: Box<BundleError> },
    #[error("read bundle {path:?}: {why}")]
    Confidential { path: PathBuf, why: String },
    #[error("read bundle {path:?}: it is a policy, and no data")]
    NoData { path: PathBuf },
}

impl From<LayoutError> for StoredError {
    fn from(error: LayoutError) -> Self {
        Self::Layout(error.into())
    }
}

/// What an attachment says it is, before anybody has checked it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) struct Claim {
    pub(super) kind: Kind,
    pub(super) artifact_type: String,
    pub(super) size: u64,
    /// The key that it says it was signed with; empty where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) builder: Option<String>,
    /// "git+https://example.test/acme/policies@refs/tags/v3"
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) commit: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Signature,
    Provenance,
    Sbom,
    Other,
}

impl Stored {
    pub(in crate::cli) fn open(path: &Path) -> Result<Self, StoredError> {
        Self::read(bundle::open_path(path)?)
    }

    /// The bundle in a layout that is open already.
    pub(in crate::cli) fn read(layout: Layout) -> Result<Self, StoredError> {
        let bundle = layout.read().map_err(|error| wrong(&layout, error))?;
        let mut signatures = Vec::new();
        for layer in bundle.attachments.iter().flat_map(|attachment| &attachment.layers) {
            let max = match layer.media_type.as_str() {
                sigstore::MEDIA_TYPE => sigstore::BUNDLE_MAX,
                cosign::MEDIA_TYPE => cosign::PAYLOAD_MAX,
                _ => continue,
            };
            signatures.push((layer.clone(), layout.bytes(layer, max)?));
        }
        Ok(Self { layout, bundle, signatures })
    }

    /// Reads every blob once: is each what its digest says?
    pub(super) fn check_blobs(&self) -> Result<(), StoredError> {
        self.layout.check_blobs(&self.bundle).map_err(|error| wrong(&self.layout, error))
    }

    /// The source of a policy, in plain.
    pub(super) fn source(&self, secrets: Option<&SecretKeys>) -> Result<Vec<u8>, StoredError> {
        self.plain(&self.bundle.source, LayerOf::Source(&self.bundle.config), SOURCE_MAX, secrets)
    }

    /// The table of a data snapshot, in plain.
    pub(in crate::cli) fn table(&self, secrets: Option<&SecretKeys>) -> Result<Vec<u8>, StoredError> {
        if self.bundle.config.kind() != bundle::Kind::Data {
            return Err(StoredError::NoData { path: self.layout.path().into() });
        }
        self.plain(&self.bundle.source, LayerOf::Source(&self.bundle.config), TABLE_MAX, secrets)
    }

    fn plain(
        &self,
        blob: &Descriptor,
        layer: LayerOf<'_>,
        max: usize,
        secrets: Option<&SecretKeys>,
    ) -> Result<Vec<u8>, StoredError> {
        let Some(id) = &self.bundle.config.confidential else { return Ok(self.layout.bytes(blob, max)?) };
        let wrong = |why: String| StoredError::Confidential { path: self.layout.path().into(), why };
        let Some(secrets) = secrets else {
            return Err(wrong(format!(
                "it is encrypted with key {id}; name the file of that key with --secret"
            )));
        };
        let opened = decrypt(secrets, id, layer, &self.layout.sealed(blob)?);
        opened.map_err(|error| wrong(error.to_string()))?.to_vec().map_err(|error| wrong(error.to_string()))
    }

    /// Whether exactly this signature is attached already.
    pub(super) fn has_signature(&self, bytes: &[u8]) -> bool {
        self.signatures.iter().any(|(_, signature)| signature == bytes)
    }

    /// Which of these keys signed it, and what they say.
    pub(in crate::cli) fn evidence(&self, anchors: &Anchors) -> Evidence {
        let materials: Vec<Material<'_>> = self
            .signatures
            .iter()
            .map(|(layer, bytes)| Material {
                media_type: &layer.media_type,
                bytes,
                annotations: &layer.annotations.0,
            })
            .collect();
        check(&self.subject(), &materials, anchors)
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        Subject { index: self.bundle.digest(), bytes: &self.bundle.index_bytes }
    }

    /// Bytes of everything that belongs to it.
    pub(super) fn size(&self) -> u64 {
        self.bundle.blobs().iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }

    /// What is attached, in its own words.
    pub(super) fn claims(&self) -> Vec<Claim> {
        self.bundle.attachments.iter().map(|attachment| self.claim(attachment)).collect()
    }

    fn claim(&self, attachment: &Attachment) -> Claim {
        let size = attachment.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        let mut claim = Claim {
            kind: match attachment.artifact_type.as_str() {
                sigstore::MEDIA_TYPE | cosign::MEDIA_TYPE => Kind::Signature,
                media::SBOM | super::sbom::CYCLONEDX => Kind::Sbom,
                _ => Kind::Other,
            },
            artifact_type: attachment.artifact_type.clone(),
            size,
            key: None,
            builder: None,
            source: None,
            commit: None,
        };
        let mine = |(layer, _): &&(Descriptor, Vec<u8>)| {
            attachment.layers.iter().any(|other| other.digest == layer.digest)
        };
        if let Some((_, bytes)) = self.signatures.iter().find(mine) {
            claim.read(bytes);
        }
        claim
    }
}

impl Claim {
    fn read(&mut self, bytes: &[u8]) {
        let Ok(bundle) = sigstore::Bundle::from_bytes(bytes) else { return };
        if let ClaimedSigner::Key { hint } = &bundle.signer {
            self.key = Base64::decode_vec(hint).ok().filter(|id| id.len() == 32).map(hex::encode);
        }
        let Content::Statement(signed) = &bundle.content else { return };
        let Ok(statement) = serde_json::from_slice::<Value>(&signed.payload) else { return };
        if statement.get("predicateType").and_then(Value::as_str) != Some(intoto::PROVENANCE) {
            return;
        }
        self.kind = Kind::Provenance;
        let text = |pointer: &str| statement.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let dependency = "/predicate/buildDefinition/resolvedDependencies/0";
        self.builder = text("/predicate/runDetails/builder/id");
        self.source = text(&format!("{dependency}/uri"));
        self.commit = text(&format!("{dependency}/digest/gitCommit"));
    }
}

fn wrong(layout: &Layout, error: BundleError) -> StoredError {
    StoredError::Bundle { path: layout.path().into(), source: error.into() }
}

/// A signer for people: by the name that a trust policy has for it, where it has one. Who has none is named in full.
pub(in crate::cli) fn signer(signer: &Signer, name: Option<&str>) -> String {
    let who = match signer {
        Signer::Key(id) if name.is_some() => format!("key {}", id.short()),
        Signer::Key(id) => format!("key {id}"),
        Signer::Identity { issuer, identity } => {
            format!("{} by {}", printable(identity), printable(issuer))
        }
    };
    match name {
        Some(name) => format!("{} ({who})", printable(name)),
        None => who,
    }
}
