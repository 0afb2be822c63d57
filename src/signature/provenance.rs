//! SLSA provenance, version 1: who built a bundle, from which source.
//!
//! Of what others write only this is read: the builder's id, and the one git repository that it was built from, which is the
//! resolved dependency named "source", or the only one that is a git repository. If there are several, none is taken:
//! a rule could not know which of them it speaks of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Provenance, Signer};

/// What `externalParameters` of ours mean: the arguments of `portcullis policy build`.
pub const BUILD_TYPE: &str = "https://portcullis.invalid/policy-build/v1";

/// What a builder says of its work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildFacts {
    /// A URI for who builds, "https://ci.example.test/runner".
    pub builder: String,
    /// A URI for what the parameters mean; [`BUILD_TYPE`] if nothing else.
    pub build_type: String,
    pub parameters: BTreeMap<String, String>,
    pub source: Option<GitSource>,
}

/// Where the source was taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSource {
    /// As git takes it, "https://example.test/acme/policies"; written with "git+" in front.
    pub repository: String,
    /// In full, "refs/tags/v3".
    pub reference: Option<String>,
    /// Hex.
    pub commit: String,
}

/// Facts that cannot be written down so that they would be read again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    #[error("builder {0:?} is not a URI; write for example \"https://ci.example.test/runner\"")]
    Builder(String),
    #[error("build type {0:?} is not a URI")]
    BuildType(String),
    #[error(
        "repository {0:?} is not a URI without '@refs/' and white space; write for example \"https://example.test/acme/policies\""
    )]
    Repository(String),
    #[error("ref {0:?} is not a full one; write for example \"refs/tags/v3\"")]
    Reference(String),
    #[error("commit {0:?} is not 40 or 64 lower-case hex digits")]
    Commit(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PredicateJson {
    build_definition: DefinitionJson,
    run_details: RunJson,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionJson {
    build_type: String,
    external_parameters: serde_json::Value,
    #[serde(default)]
    resolved_dependencies: Vec<DependencyJson>,
}

#[derive(Serialize, Deserialize)]
struct DependencyJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default)]
    uri: String,
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct RunJson {
    builder: BuilderJson,
}

#[derive(Serialize, Deserialize)]
struct BuilderJson {
    id: String,
}

const SOURCE: &str = "source";
const GIT: &str = "git+";
/// Between a repository and its ref.
const REF: &str = "@refs/";
const COMMIT: &str = "gitCommit";

impl BuildFacts {
    /// The predicate that says this.
    ///
    /// # Errors
    /// When something in it would be read as something else.
    pub(super) fn predicate(&self) -> Result<PredicateJson, FactsError> {
        if !is_uri(&self.builder) {
            return Err(FactsError::Builder(self.builder.clone()));
        }
        if !is_uri(&self.build_type) {
            return Err(FactsError::BuildType(self.build_type.clone()));
        }
        let source = self.source.as_ref().map(GitSource::dependency).transpose()?;
        Ok(PredicateJson {
            build_definition: DefinitionJson {
                build_type: self.build_type.clone(),
                external_parameters: serde_json::json!(self.parameters),
                resolved_dependencies: source.into_iter().collect(),
            },
            run_details: RunJson { builder: BuilderJson { id: self.builder.clone() } },
        })
    }
}

impl GitSource {
    fn dependency(&self) -> Result<DependencyJson, FactsError> {
        let repository = self.repository.strip_prefix(GIT).unwrap_or(&self.repository);
        if !is_uri(repository) || repository.contains(REF) {
            return Err(FactsError::Repository(self.repository.clone()));
        }
        let reference = match &self.reference {
            Some(reference) if !is_reference(reference) => {
                return Err(FactsError::Reference(reference.clone()));
            }
            Some(reference) => format!("@{reference}"),
            None => String::new(),
        };
        if !is_commit(&self.commit) {
            return Err(FactsError::Commit(self.commit.clone()));
        }
        Ok(DependencyJson {
            name: Some(SOURCE.to_owned()),
            uri: format!("{GIT}{repository}{reference}"),
            digest: BTreeMap::from([(COMMIT.to_owned(), self.commit.clone())]),
        })
    }
}

impl PredicateJson {
    /// What rules can be made of.
    pub(super) fn read(self, signer: Signer) -> Provenance {
        let source = the_source(&self.build_definition.resolved_dependencies);
        let (repository, reference) = match source {
            Some(source) => match source.uri.split_once(REF) {
                // A branch may be called "x@refs/tags/v1", and nobody can tell where that begins.
                Some((_, rest)) if rest.contains(REF) => (None, None),
                Some((repository, rest)) => (Some(repository.to_owned()), Some(format!("refs/{rest}"))),
                None => (Some(source.uri.clone()), None),
            },
            None => (None, None),
        };
        let commit = source.and_then(|source| source.digest.get(COMMIT)).filter(|commit| is_commit(commit));
        let commit = commit.cloned();
        Provenance { signer, builder: self.run_details.builder.id, repository, reference, commit }
    }
}

fn the_source(dependencies: &[DependencyJson]) -> Option<&DependencyJson> {
    let git = || dependencies.iter().filter(|dependency| dependency.uri.starts_with(GIT));
    let named = git().filter(|dependency| dependency.name.as_deref() == Some(SOURCE));
    only(named).or_else(|| only(git()))
}

fn only<T>(mut several: impl Iterator<Item = T>) -> Option<T> {
    match (several.next(), several.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

fn is_uri(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    !scheme.is_empty()
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        && is_plain(text)
}

fn is_reference(text: &str) -> bool {
    text.len() > "refs/".len() && text.starts_with("refs/") && !text.contains(REF) && is_plain(text)
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_whitespace() || c.is_control())
}
