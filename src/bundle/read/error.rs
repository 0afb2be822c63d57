//! Why a bundle is refused: one variant per check, each saying where.

use std::fmt;

use crate::artifact::Digest;
use crate::bundle::form::FormError;
use crate::bundle::{LayoutError, Platform};
use crate::engine::METRICS_MAX;

/// Where in a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// index.json
    Layout,
    /// The bundle index.
    Index,
    Config,
    /// The manifest of a platform.
    Compiled(Platform),
    /// The manifest of the source.
    Source,
    /// The manifest of this digest that is attached.
    Attached(Digest),
}

/// Parts of a bundle that do not fit together.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error(transparent)]
    File(#[from] LayoutError),
    #[error("{part} {source}")]
    Form { part: Part, source: FormError },
    #[error("oci-layout is not that of image layout version 1.0.0")]
    LayoutVersion,
    #[error("index.json or the bundle index is empty, expected a bundle with its source")]
    Empty,
    #[error("{part} lists {found} manifests, at most {max} are read")]
    TooMany { part: Part, found: usize, max: usize },
    #[error("{part} has schema version {found}, expected 2")]
    SchemaVersion { part: Part, found: u32 },
    #[error("{part} has media type {found:?} where {expected:?} is expected")]
    MediaType { part: Part, found: String, expected: &'static str },
    #[error("{part} has artifact type {found:?}, expected {expected:?}")]
    ArtifactType { part: Part, found: Option<String>, expected: String },
    #[error("{part} has {field}, where there is nothing to be said")]
    Surplus { part: Part, field: &'static str },
    #[error("index.json has tag {found:?} for the bundle, expected its version {expected:?}")]
    Tag { found: Option<String>, expected: String },
    #[error("index.json has a tag for {part}, expected one tag, the bundle's")]
    TagTwice { part: Part },
    #[error("{part} lists {digest} twice")]
    Twice { part: Part, digest: Digest },
    #[error("{part} is not sorted")]
    Order { part: Part },
    #[error("{part} has platform {found}")]
    Platform { part: Part, found: String },
    #[error("bundle index has manifest {digest} without a platform")]
    NoPlatform { digest: Digest },
    #[error("bundle index has platform {platform} twice")]
    PlatformTwice { platform: Platform },
    #[error("bundle index has its source in another place than the last, or twice")]
    SeveralSources,
    #[error("{part} has {found} layers, expected one")]
    Layers { part: Part, found: usize },
    #[error("{part} brings {size} bytes, at most {max} are read")]
    TooLarge { part: Part, size: u64, max: u64 },
    #[error("{part} has another config than the source's manifest; one config is the policy's")]
    ConfigDiffers { part: Part },
    #[error(
        "config of a bundle that is {kind} says that it is {world:?}, which is something else, or not known here"
    )]
    Kind { kind: &'static str, world: String },
    #[error("config has its {list} unsorted or twice")]
    ConfigOrder { list: &'static str },
    #[error(
        "config has {count} metrics, or one that is not called as a counter may be; at most {METRICS_MAX} are counted, of \
         a-z 0-9 _ . -, a letter first"
    )]
    Metrics { count: usize },
    #[error("bundle index has code for {platform}, of which the config says nothing")]
    NotDeclared { platform: Platform },
    #[error("config names code for {platform}, which the bundle index does not have")]
    NotThere { platform: Platform },
    #[error(
        "code for {platform} has digest {found}, the config says {expected}: layers were swapped or changed"
    )]
    CwasmDigest { platform: Platform, found: Digest, expected: Digest },
    #[error("source has digest {found}, the config says {expected}: layers were swapped or changed")]
    SourceDigest { found: Digest, expected: Digest },
    #[error("{part} is about {found}, which is not this bundle")]
    Subject { part: Part, found: Digest },
    #[error("{part} does not say what it is about")]
    NoSubject { part: Part },
    #[error("{part} has {found} layers of {max} at most")]
    AttachedLayers { part: Part, found: usize, max: usize },
}

impl Part {
    pub(super) fn form(self, source: FormError) -> BundleError {
        BundleError::Form { part: self, source }
    }

    pub(super) fn too_many(self, found: usize, max: usize) -> BundleError {
        BundleError::TooMany { part: self, found, max }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout => f.write_str("index.json"),
            Self::Index => f.write_str("bundle index"),
            Self::Config => f.write_str("config"),
            Self::Compiled(platform) => write!(f, "manifest of {platform}"),
            Self::Source => f.write_str("manifest of the source"),
            Self::Attached(digest) => write!(f, "attachment {digest}"),
        }
    }
}
