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
//! The digest of the bundle index covers every byte of what is run and what it may do, so it is what signers sign.
//! Nothing in here is trusted: a blob is known by its digest, and read into sealed memory once.

mod config;
mod platform;

pub use config::{CONFIG_MAX, CompiledFor, PolicyConfig};
pub use platform::Platform;
