//! OCI's descriptor: what a blob is, its digest and its length. What names a blob checks it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Platform, UnknownPlatform};
use crate::artifact::Digest;

/// A blob by its digest. Fields in the order of OCI's own programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub annotations: Annotations,
    /// The blob itself in base64: other tools do that for the empty config. Never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<OciPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// A machine in OCI's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OciPlatform {
    architecture: String,
    os: String,
}

/// Strings by name, each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Annotations(pub BTreeMap<String, String>);

impl Descriptor {
    /// Of these bytes.
    #[must_use]
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.into(),
            digest: Digest::of(bytes),
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            annotations: Annotations::default(),
            data: None,
            platform: None,
            artifact_type: None,
        }
    }

    /// The same blob without what an index says of it.
    pub(super) fn plain(&self) -> Self {
        Self {
            annotations: Annotations::default(),
            data: None,
            platform: None,
            artifact_type: None,
            ..self.clone()
        }
    }

    pub(super) fn with_artifact_type(self, artifact_type: &str) -> Self {
        Self { artifact_type: Some(artifact_type.into()), ..self }
    }

    pub(super) fn with_platform(self, platform: Platform) -> Self {
        let platform = OciPlatform { architecture: platform.oci_architecture().into(), os: "linux".into() };
        Self { platform: Some(platform), ..self }
    }
}

impl TryFrom<&OciPlatform> for Platform {
    type Error = UnknownPlatform;

    fn try_from(platform: &OciPlatform) -> Result<Self, UnknownPlatform> {
        format!("{}/{}", platform.os, platform.architecture).parse()
    }
}

impl Annotations {
    /// One annotation.
    #[must_use]
    pub fn one(name: &str, value: impl Into<String>) -> Self {
        Self([(name.to_owned(), value.into())].into())
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EachOnce)
    }
}

/// serde itself would take the last of two.
struct EachOnce;

impl<'de> Visitor<'de> for EachOnce {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut found = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            if found.insert(name, value).is_some() {
                return Err(A::Error::custom("doubled key in an object of strings"));
            }
        }
        Ok(Annotations(found))
    }
}
