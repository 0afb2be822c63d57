//! As much of OCI's manifests as it takes to find everything that belongs to a bundle. Whether it is a good one is the
//! registry role's to say, which reads the bytes again.

use serde::Deserialize;

use super::error::{FetchError, said};
use crate::artifact::Digest;
use crate::bundle::media;

/// Names an object. What else its JSON says stays in the bytes that are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// An index: of a bundle, or of what is attached to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    pub(super) manifests: Vec<Descriptor>,
}

/// A manifest: a config, layers, and what it is attached to.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    pub(super) config: Descriptor,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(super) subject: Option<Descriptor>,
}

impl Index {
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self, FetchError> {
        let index: Self = serde_json::from_slice(bytes).map_err(|error| {
            FetchError::not_a_bundle(what, format!("it is no OCI index: {}", said(&error.to_string())))
        })?;
        check(index.schema_version, index.media_type.as_deref(), media::OCI_INDEX, what)?;
        Ok(index)
    }
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self, FetchError> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            FetchError::not_a_bundle(what, format!("it is no OCI manifest: {}", said(&error.to_string())))
        })?;
        check(manifest.schema_version, manifest.media_type.as_deref(), media::OCI_MANIFEST, what)?;
        Ok(manifest)
    }

    /// The blobs it names.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

fn check(schema: u32, media_type: Option<&str>, expected: &str, what: &str) -> Result<(), FetchError> {
    if schema != 2 {
        return Err(FetchError::not_a_bundle(what, format!("its schemaVersion is {schema}, expected 2")));
    }
    match media_type {
        Some(found) if found != expected => Err(FetchError::not_a_bundle(
            what,
            format!("its mediaType is {:?}, expected {expected:?}", said(found)),
        )),
        _ => Ok(()),
    }
}
