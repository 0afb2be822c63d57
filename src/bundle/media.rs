//! The names of everything in a bundle. `docs/bundle.md` lists them for whoever reads bundles with other tools.

use super::{Kind, PolicyConfig};

/// `artifactType` of a bundle index: a whole policy.
pub const BUNDLE: &str = "application/vnd.portcullis.policy.v1";
/// `artifactType` of the manifest of one platform's machine code.
pub const COMPILED: &str = "application/vnd.portcullis.policy.compiled.v1";
/// `artifactType` of the manifest of the source.
pub const SOURCE: &str = "application/vnd.portcullis.policy.source.v1";
/// The config blob: [`super::PolicyConfig`].
pub const CONFIG: &str = "application/vnd.portcullis.policy.config.v1+json";
/// The layer of a platform's manifest: what wasmtime compiled.
pub const CWASM: &str = "application/vnd.portcullis.policy.cwasm.v1";
/// The layer of the source's manifest: the component (or core module) as its author built it.
pub const WASM: &str = "application/wasm";

/// `artifactType` of a bundle index: a whole data snapshot.
pub const DATA_BUNDLE: &str = "application/vnd.portcullis.data.v1";
/// `artifactType` of the one manifest in it.
pub const DATA_TABLE: &str = "application/vnd.portcullis.data.snapshot.v1";
/// Its config blob.
pub const DATA_CONFIG: &str = "application/vnd.portcullis.data.config.v1+json";
/// Its layer: [`crate::table`].
pub const TABLE: &str = "application/vnd.portcullis.data.table.v1";
/// The layers of what is confidential: [`super::confidential`].
pub const ENCRYPTED_TABLE: &str = "application/vnd.portcullis.data.table.v1+encrypted";
pub const ENCRYPTED_WASM: &str = "application/vnd.portcullis.policy.wasm.v1+encrypted";
pub const ENCRYPTED_CWASM: &str = "application/vnd.portcullis.policy.cwasm.v1+encrypted";

/// Attached: a list of what the policy is made of, SPDX 2.3 in JSON.
pub const SBOM: &str = "application/spdx+json";
/// Attached: a signature or an attestation, sigstore bundle v0.3.
pub const SIGSTORE_BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Attached: cosign's older form of a signature. It has no `subject`; a tag says what it is about.
pub const COSIGN_SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// OCI's index and manifest.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The config of an artifact that needs none, and its bytes.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const OCI_EMPTY_BYTES: &[u8] = b"{}";

/// The annotation of a descriptor in index.json that is its tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What a bundle of this kind is called.
pub(super) fn bundle(kind: Kind) -> &'static str {
    match kind {
        Kind::Policy => BUNDLE,
        Kind::Data => DATA_BUNDLE,
    }
}

/// What the manifest of its source is called.
pub(super) fn source_manifest(kind: Kind) -> &'static str {
    match kind {
        Kind::Policy => SOURCE,
        Kind::Data => DATA_TABLE,
    }
}

/// What its config is called.
pub(super) fn config(kind: Kind) -> &'static str {
    match kind {
        Kind::Policy => CONFIG,
        Kind::Data => DATA_CONFIG,
    }
}

/// What its source is called, encrypted or not.
pub(super) fn source(config: &PolicyConfig) -> &'static str {
    match (config.kind(), config.confidential.is_some()) {
        (Kind::Policy, false) => WASM,
        (Kind::Policy, true) => ENCRYPTED_WASM,
        (Kind::Data, false) => TABLE,
        (Kind::Data, true) => ENCRYPTED_TABLE,
    }
}

/// What its machine code is called, encrypted or not.
pub(super) fn code(config: &PolicyConfig) -> &'static str {
    if config.confidential.is_some() { ENCRYPTED_CWASM } else { CWASM }
}
