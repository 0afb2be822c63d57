//! What a policy is made of, for `build`: what is known without asking, a list that somebody made, or a `Cargo.lock` made into
//! one.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::artifact::Digest;
use crate::bundle::sbom::{SBOM_MAX, SbomError, attachment, minimal, source_date_epoch};
use crate::bundle::write::NewAttachment;
use crate::bundle::{Annotations, PolicyConfig};
use crate::cli::files::{self, FileError};

/// The other format that lists of parts come in. It is attached as it is.
pub(super) const CYCLONEDX: &str = "application/vnd.cyclonedx+json";

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum PartsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("list what the policy is made of: {0}")]
    Made(#[source] SbomError),
    #[error("attach {path:?}: {source}; expected SPDX or CycloneDX in JSON, or a Cargo.lock")]
    Given { path: PathBuf, source: SbomError },
    #[error("read {path:?}: {cause}")]
    Lock { path: PathBuf, cause: String },
}

/// Source, machine code, compiler.
pub(super) fn made(config: &PolicyConfig, bundle: Digest) -> Result<NewAttachment, PartsError> {
    attachment(known(config, bundle)?).map_err(PartsError::Made)
}

/// From a file of somebody's.
pub(super) fn given(path: &Path, config: &PolicyConfig, bundle: Digest) -> Result<NewAttachment, PartsError> {
    let text = files::read(path, SBOM_MAX)?;
    let given = |source| PartsError::Given { path: path.into(), source };
    if path.file_name().is_some_and(|name| name == "Cargo.lock") {
        return attachment(with_crates(path, &text, known(config, bundle)?)?).map_err(given);
    }
    let value = serde_json::from_slice::<Value>(&text).unwrap_or_default();
    if value.get("bomFormat").is_some_and(|format| format == "CycloneDX") {
        return Ok(NewAttachment::one(CYCLONEDX, text, Annotations::default()));
    }
    attachment(text).map_err(given)
}

fn known(config: &PolicyConfig, bundle: Digest) -> Result<Vec<u8>, PartsError> {
    let variable = std::env::var("SOURCE_DATE_EPOCH").ok();
    let created = source_date_epoch(variable.as_deref()).map_err(PartsError::Made)?;
    minimal(config, bundle, created).map_err(PartsError::Made)
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// What has none is part of the project itself.
    source: Option<String>,
    checksum: Option<String>,
}

/// Adds every crate that is not the project's own.
fn with_crates(path: &Path, lock: &[u8], list: Vec<u8>) -> Result<Vec<u8>, PartsError> {
    let wrong = |cause: String| PartsError::Lock { path: path.into(), cause };
    let text = std::str::from_utf8(lock).map_err(|error| wrong(error.to_string()))?;
    let lock: Lock = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let mut document: Value =
        serde_json::from_slice(&list).map_err(|error| PartsError::Made(SbomError::Json(error)))?;
    let crates = || lock.package.iter().zip(1..).filter(|(package, _)| package.source.is_some());
    if let Some(packages) = document.get_mut("packages").and_then(Value::as_array_mut) {
        packages.extend(crates().map(|(package, number)| package.describe(number)));
    }
    if let Some(relationships) = document.get_mut("relationships").and_then(Value::as_array_mut) {
        relationships.extend(crates().map(|(_, number)| {
            json!({
                "spdxElementId": "SPDXRef-policy",
                "relationshipType": "DEPENDS_ON",
                "relatedSpdxElement": format!("SPDXRef-crate-{number}"),
            })
        }));
    }
    serde_json::to_vec(&document).map_err(|error| PartsError::Made(SbomError::Json(error)))
}

impl Package {
    fn describe(&self, number: usize) -> Value {
        let Self { name, version, source, checksum } = self;
        let checksums: Vec<_> = checksum
            .iter()
            .map(|checksum| json!({ "algorithm": "SHA256", "checksumValue": checksum }))
            .collect();
        // Only what is from the public registry has an address that others understand.
        let registry = source.as_deref().is_some_and(|source| source.starts_with("registry+"));
        let references: Vec<_> = registry
            .then(|| {
                json!({
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": format!("pkg:cargo/{name}@{version}"),
                })
            })
            .into_iter()
            .collect();
        json!({
            "SPDXID": format!("SPDXRef-crate-{number}"),
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "checksums": checksums,
            "externalRefs": references,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Limits;
    use crate::bundle::media;
    use crate::decision::{PolicyName, Tenant};
    use crate::engine::WORLD;

    fn config() -> PolicyConfig {
        PolicyConfig {
            policy: PolicyName::new("gate").unwrap(),
            tenant: Tenant::new("acme").unwrap(),
            version: 3,
            world: WORLD.into(),
            imports: Vec::new(),
            exports: vec!["decide".into()],
            limits: Limits::default(),
            metrics: vec![],
            data: vec![],
            confidential: None,
            source: Digest::of(b"source"),
            compiled: Vec::new(),
            rego: None,
            prepared: None,
        }
    }

    fn given_here(path: &Path) -> Result<NewAttachment, PartsError> {
        given(path, &config(), Digest::of(b"bundle"))
    }

    #[test]
    fn a_lock_file_becomes_a_list_of_crates() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/template/rust/Cargo.lock");
        let list = given_here(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(list.artifact_type, media::SBOM);
        let value: Value = serde_json::from_slice(&list.layers[0].bytes).unwrap();
        let packages = value["packages"].as_array().unwrap();
        let part = packages.iter().find(|part| part["name"] == "wit-bindgen").unwrap();
        assert_eq!(part["externalRefs"][0]["referenceLocator"], "pkg:cargo/wit-bindgen@0.61.1");
        assert_eq!(part["checksums"][0]["checksumValue"].as_str().unwrap().len(), 64);
        assert!(!packages.iter().any(|part| part["name"] == "guest"), "the project's own");
        let ids: std::collections::BTreeSet<_> =
            packages.iter().map(|part| part["SPDXID"].as_str()).collect();
        assert_eq!(ids.len(), packages.len());
    }

    #[test]
    fn lists_of_others_are_taken_as_they_are_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("x.json", "{}"), ("x.json", "not json"), ("Cargo.lock", "[[package]")] {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            let Err(error) = given_here(&path) else { panic!("{text:?} was taken") };
            assert!(error.to_string().contains(name), "{error}");
        }
        for (text, media_type) in [
            (r#"{"bomFormat":"CycloneDX","specVersion":"1.5"}"#, CYCLONEDX),
            (r#"{"spdxVersion":"SPDX-2.3"}"#, media::SBOM),
        ] {
            let path = directory.path().join("x.json");
            std::fs::write(&path, text).unwrap();
            let list = given_here(&path).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                (list.artifact_type.as_str(), list.layers[0].bytes.as_slice()),
                (media_type, text.as_bytes())
            );
        }
    }
}
