//! `portcullis policy attest`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::git::{self, Checkout};
use super::stored::Stored;
use crate::bundle::Annotations;
use crate::bundle::media;
use crate::bundle::write::{NewAttachment, attach};
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::signature::{self, BUILD_TYPE, BuildFacts, GitSource};

/// Say how a bundle was built, and sign that
///
/// For whoever builds: SLSA provenance, version 1, is attached to the bundle. It does not vouch for the bundle, `sign`
/// does; a trust policy may ask for both, by different keys. Nothing of it is checked here but its form.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Attest {
    /// The bundle, a folder or a tar
    bundle: PathBuf,
    /// The builder's private key
    #[arg(long)]
    key: PathBuf,
    /// Who builds, as a URI such as https://ci.example.test/runner
    #[arg(long, value_name = "URI")]
    builder_id: String,
    /// Where the source is from, such as https://example.test/acme/policies
    #[arg(long, value_name = "URI", requires = "source")]
    repository: Option<String>,
    /// Which of its refs it was, in full: refs/tags/v3
    #[arg(long = "ref", value_name = "REF", requires = "source")]
    reference: Option<String>,
    /// Which commit it was, in full
    #[arg(long, value_name = "HEX", group = "source", requires = "repository")]
    commit: Option<String>,
    /// Take repository (origin), ref and commit from this git checkout, in which everything has to be committed
    #[arg(long, value_name = "DIR", group = "source")]
    from_git: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum RefusedToAttest {
    #[error(
        "attest {bundle:?}: the checkout {dir:?} has no remote called origin; say where it is from with --repository"
    )]
    NoOrigin { bundle: PathBuf, dir: PathBuf },
}

impl Attest {
    pub(super) fn run(self) -> CommandResult {
        let key = files::read_signing_key(&self.key)?;
        let stored = Stored::open(&self.bundle)?;
        stored.check_blobs()?;
        let source = self.source()?;
        let facts = BuildFacts {
            builder: self.builder_id.clone(),
            build_type: BUILD_TYPE.into(),
            parameters: parameters(&stored),
            source: source.clone(),
        };
        let provenance = signature::attest(&stored.subject(), &facts, &key)?;
        let again = stored.has_signature(&provenance);
        if !again {
            let new = NewAttachment::one(media::SIGSTORE_BUNDLE, provenance, Annotations::default());
            attach(&self.bundle, &new, |_| false)?;
        }
        let (digest, id) = (stored.bundle.digest(), key.public_key().id());
        let (repository, reference, commit) = match source {
            Some(GitSource { repository, reference, commit }) => (Some(repository), reference, Some(commit)),
            None => (None, None, None),
        };
        if self.json {
            output::json(&json!({
                "bundle": digest, "path": self.bundle, "signer": id, "again": again, "builder": self.builder_id,
                "repository": repository, "ref": reference, "commit": commit,
            }))?;
        } else {
            let unknown = || "not said".to_owned();
            output::text(format_args!(
                "attested   bundle {digest}\nbuilder    {}\nsource     {}\nref        {}\ncommit     {}\nkey id     {id}\n",
                self.builder_id,
                repository.unwrap_or_else(unknown),
                reference.unwrap_or_else(unknown),
                commit.unwrap_or_else(unknown),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn source(&self) -> Result<Option<GitSource>, Box<dyn std::error::Error + Send + Sync>> {
        let (repository, reference) = (self.repository.clone(), self.reference.clone());
        match (&self.from_git, &self.commit, repository) {
            (Some(dir), _, repository) => {
                let Checkout { repository, reference, commit } = git::checkout(dir, repository, reference)?;
                let repository = repository.ok_or_else(|| RefusedToAttest::NoOrigin {
                    bundle: self.bundle.clone(),
                    dir: dir.clone(),
                })?;
                Ok(Some(GitSource { repository, reference, commit }))
            }
            (None, Some(commit), Some(repository)) => {
                Ok(Some(GitSource { repository, reference, commit: commit.clone() }))
            }
            _ => Ok(None),
        }
    }
}

/// What `build` was told, as far as the bundle still shows it.
fn parameters(stored: &Stored) -> BTreeMap<String, String> {
    let config = &stored.bundle.config;
    let platforms: Vec<String> =
        config.compiled.iter().map(|compiled| compiled.platform.to_string()).collect();
    [
        ("tenant", config.tenant.to_string()),
        ("policy", config.policy.to_string()),
        ("version", config.version.to_string()),
        ("platform", platforms.join(",")),
        ("source", config.source.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
