//! What a policy is made of, in SPDX 2.3: the source by its digest, the compiler and the builder by their versions. Somebody
//! who knows more (the crates of a policy, say) attaches their own list instead.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::write::NewAttachment;
use super::{Annotations, PolicyConfig, media};
use crate::artifact::Digest;

/// Largest list that is attached, bytes.
pub const SBOM_MAX: usize = 15 << 20;

/// A list that is not one.
#[derive(Debug, thiserror::Error)]
pub enum SbomError {
    #[error("list of parts is {len} bytes long, at most {SBOM_MAX} are attached")]
    TooLong { len: usize },
    #[error("list of parts is no JSON: {0}")]
    Json(#[source] serde_json::Error),
    #[error("list of parts has no \"spdxVersion\" that begins with \"SPDX-2.\"; write it as SPDX 2 JSON")]
    Version,
    #[error("SOURCE_DATE_EPOCH is {0:?}, expected seconds since 1970")]
    Epoch(String),
}

/// The list that every bundle gets which nobody made a better one for. `created` is the time it says, in seconds since 1970:
/// SOURCE_DATE_EPOCH or 0, since a clock would give the same bundle another list each time.
///
/// # Errors
/// When `created` is no time.
pub fn minimal(config: &PolicyConfig, bundle: Digest, created: i64) -> Result<Vec<u8>, SbomError> {
    let created = Timestamp::from_second(created).map_err(|_| SbomError::Epoch(created.to_string()))?;
    let policy = format!("{}/{}", config.tenant, config.policy);
    let mut packages = vec![package("policy", &policy, &config.version.to_string(), Some(config.source))];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "policy")];
    let builder = concat!("portcullis ", env!("CARGO_PKG_VERSION"));
    packages.push(package("portcullis", "portcullis", env!("CARGO_PKG_VERSION"), None));
    relationships.push(relationship("SPDXRef-portcullis", "BUILD_TOOL_OF", "policy"));
    for (number, compiled) in config.compiled.iter().enumerate() {
        let code = format!("code-{}", compiled.platform.oci_architecture());
        let name = format!("{policy} ({})", compiled.platform);
        packages.push(package(&code, &name, &config.version.to_string(), Some(compiled.cwasm)));
        relationships.push(relationship(&format!("SPDXRef-{code}"), "GENERATED_FROM", "policy"));
        let compiler = format!("wasmtime-{number}");
        packages.push(package(&compiler, "wasmtime", &compiled.wasmtime, None));
        relationships.push(relationship(&format!("SPDXRef-{compiler}"), "BUILD_TOOL_OF", &code));
    }
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": policy,
        "documentNamespace": format!("urn:portcullis:bundle:{bundle}"),
        "creationInfo": { "created": created.to_string(), "creators": [format!("Tool: {}", builder.replace(' ', "-"))] },
        "packages": packages,
        "relationships": relationships,
    });
    serde_json::to_vec(&document).map_err(SbomError::Json)
}

/// A list that somebody made, as an attachment. Its contents are theirs; that it is SPDX is looked at.
///
/// # Errors
/// When it is too long or not SPDX 2 in JSON.
pub fn attachment(bytes: Vec<u8>) -> Result<NewAttachment, SbomError> {
    if bytes.len() > SBOM_MAX {
        return Err(SbomError::TooLong { len: bytes.len() });
    }
    let document: Value = serde_json::from_slice(&bytes).map_err(SbomError::Json)?;
    let version = document.get("spdxVersion").and_then(Value::as_str);
    if !version.is_some_and(|version| version.starts_with("SPDX-2.")) {
        return Err(SbomError::Version);
    }
    Ok(NewAttachment::one(media::SBOM, bytes, Annotations::default()))
}

/// SOURCE_DATE_EPOCH, as whoever wants to build reproducibly sets it; 0 if nobody did.
///
/// # Errors
/// When it is not a number.
pub fn source_date_epoch(variable: Option<&str>) -> Result<i64, SbomError> {
    let text = variable.unwrap_or("0");
    text.parse().map_err(|_| SbomError::Epoch(text.chars().take(40).collect()))
}

fn package(id: &str, name: &str, version: &str, digest: Option<Digest>) -> Value {
    let mut package = json!({
        "SPDXID": format!("SPDXRef-{id}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    });
    if let (Some(digest), Some(fields)) = (digest, package.as_object_mut()) {
        let value = hex::encode(digest.as_bytes());
        fields.insert("checksums".into(), json!([{ "algorithm": "SHA256", "checksumValue": value }]));
    }
    package
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({
        "spdxElementId": from,
        "relationshipType": kind,
        "relatedSpdxElement": format!("SPDXRef-{to}"),
    })
}
