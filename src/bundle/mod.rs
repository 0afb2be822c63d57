//! A policy as it is stored and shipped: an OCI image layout, as a folder or a tar.
//!
//! ```text
//! index.json                the layout's: names the bundle's index, and what is attached to it
//!   bundle index            one manifest per platform and one for the source; its digest is the bundle's
//!     manifest linux/amd64  config: [`PolicyConfig`], layer: the .cwasm
//!     manifest linux/arm64  the same for another machine
//!     manifest source       config: the same blob, layer: the .wasm
//!   attached: signatures, provenance, SBOM   manifests whose `subject` is the bundle index
//! ```
//!
//! A data snapshot is a bundle as well, with one manifest: config, and a layer that is a [`crate::table`]. Everything that is
//! done with bundles is done with it: signed, delivered, held to the rules, activated, rolled back, revoked. What is confidential
//! has its layers encrypted ([`confidential`]).
//!
//! The digest of the bundle index covers every byte of what is run and what it may do, so it is what signers sign.
//! Nothing in here is trusted: a blob is known by its digest, and read into sealed memory once.

mod archive;
pub mod confidential;
mod config;
mod descriptor;
pub mod diff;
mod draft;
mod file;
mod folder;
mod form;
mod layout;
mod manifest;
pub mod media;
mod platform;
mod read;
mod reference;
pub mod sbom;
pub mod write;

pub use archive::{TAR_MAX, TarError};
pub use confidential::{ConfidentialError, SecretId, SecretKey, SecretKeys};
pub use config::{
    CONFIG_MAX, CompiledFor, DATA_MAX, Kind, PolicyConfig, PreparedConfig, RegoConfig, RegoResult,
};
pub use descriptor::{Annotations, Descriptor};
pub use draft::{Assembled, DataDraft, Draft, DraftCompiled, DraftError};
pub use file::{Ownership, Refusal};
pub use form::FormError;
pub use layout::{Layout, LayoutError, open, open_path, open_policy};
pub use manifest::{ATTACHED_MANIFEST_MAX, LAYOUT_INDEX_MAX, MANIFEST_MAX};
pub use platform::{Platform, UnknownPlatform};
pub use read::{
    ATTACHED_LAYERS_MAX, ATTACHED_MAX, ATTACHMENTS_MAX, Attachment, Bundle, BundleError, Compiled, Part,
    cosign_tag,
};
pub use reference::{InvalidReference, Reference};

/// Largest source, bytes.
pub const SOURCE_MAX: usize = crate::artifact::ARTIFACT_MAX;
