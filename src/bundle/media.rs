//! The names of everything in a bundle. `docs/bundle.md` lists them for whoever reads bundles with other tools.

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
