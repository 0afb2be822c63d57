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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Limits;
    use crate::bundle::Platform;
    use crate::bundle::config::CompiledFor;
    use crate::decision::{PolicyName, Tenant};

    fn config() -> PolicyConfig {
        PolicyConfig {
            policy: PolicyName::new("p").unwrap(),
            tenant: Tenant::new("t").unwrap(),
            version: 3,
            world: "portcullis:policy@0.1.0".into(),
            imports: Vec::new(),
            exports: Vec::new(),
            limits: Limits::default(),
            metrics: vec![],
            data: vec![],
            confidential: None,
            source: Digest::of(b"source"),
            compiled: vec![CompiledFor {
                platform: Platform::LinuxAmd64,
                cwasm: Digest::of(b"code"),
                wasmtime: "48.0.8".into(),
                engine: Digest::of(b"engine"),
            }],
            rego: None,
            prepared: None,
        }
    }

    #[test]
    fn the_minimal_list_names_source_code_and_compiler_and_is_the_same_every_time() {
        let bundle = Digest::of(b"bundle");
        let bytes = minimal(&config(), bundle, 0).unwrap();
        assert_eq!(bytes, minimal(&config(), bundle, 0).unwrap());
        let list: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(list["creationInfo"]["created"], "1970-01-01T00:00:00Z");
        assert_eq!(list["documentNamespace"], format!("urn:portcullis:bundle:{bundle}"));
        let checksum = |package: usize| list["packages"][package]["checksums"][0]["checksumValue"].clone();
        assert_eq!(checksum(0), hex::encode(Digest::of(b"source").as_bytes()));
        assert_eq!(checksum(2), hex::encode(Digest::of(b"code").as_bytes()));
        assert_eq!(list["packages"][3]["versionInfo"], "48.0.8");
        // Each that is related is there.
        let ids: Vec<_> = list["packages"].as_array().unwrap().iter().map(|p| p["SPDXID"].clone()).collect();
        for relationship in list["relationships"].as_array().unwrap() {
            assert!(ids.contains(&relationship["relatedSpdxElement"]), "{relationship}");
        }
        assert_eq!(attachment(bytes).unwrap().artifact_type, media::SBOM);
        let later: Value =
            serde_json::from_slice(&minimal(&config(), bundle, 1_700_000_000).unwrap()).unwrap();
        assert_eq!(later["creationInfo"]["created"], "2023-11-14T22:13:20Z");
    }

    #[test]
    fn what_is_no_list_is_not_attached() {
        let error = |bytes: &[u8]| attachment(bytes.to_vec()).unwrap_err();
        assert!(matches!(error(b"{"), SbomError::Json(_)));
        assert!(matches!(error(b"{}"), SbomError::Version));
        assert!(matches!(error(br#"{"spdxVersion":"SPDX-3.0"}"#), SbomError::Version));
        assert!(matches!(error(&vec![b' '; SBOM_MAX + 1]), SbomError::TooLong { .. }));
        assert_eq!(source_date_epoch(None).unwrap(), 0);
        assert_eq!(source_date_epoch(Some("12")).unwrap(), 12);
        assert!(matches!(source_date_epoch(Some("today")), Err(SbomError::Epoch(_))));
    }
}
