//! `portcullis policy sign`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::rebuild::{RebuildError, rebuild};
use super::stored::Stored;
use crate::bundle::media;
use crate::bundle::write::{NewAttachment, attach};
use crate::bundle::{Annotations, Kind};
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::signature::{self, Anchors, Signer};

/// Vouch for a bundle with a key
///
/// Builds the source again and signs only if the result is the same, byte for byte: a signature says that this machine
/// code comes from that source. Data is looked at as whoever maps it does. It is attached to the bundle as a sigstore bundle; signatures of others stay. The same
/// key never signs twice.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Sign {
    /// The bundle, a folder or a tar
    bundle: PathBuf,
    /// The private key
    #[arg(long)]
    key: PathBuf,
    /// Build nothing, but vouch for what one of the keys of --signed-by vouched for: for a new key, or where this program
    /// compiles in another way than the one that the bundle was built with
    #[arg(long, requires = "signed_by")]
    resign: bool,
    /// The file of the key that it is encrypted with, if it is confidential: what is vouched for is looked at
    #[arg(long, value_name = "FILE", conflicts_with = "resign")]
    secret: Option<PathBuf>,
    /// A public key whose signature is to be on it already; may be given more than once
    #[arg(long, value_name = "PUB", requires = "resign")]
    signed_by: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a bundle was not signed, besides files that cannot be read.
#[derive(Debug, thiserror::Error)]
enum RefusedToSign {
    #[error("sign {bundle:?}: {source}")]
    Rebuild { bundle: PathBuf, source: RebuildError },
    #[error("sign {bundle:?}: none of the keys of --signed-by has a good signature on it{}", reasons(.disregarded))]
    NotSigned { bundle: PathBuf, disregarded: Vec<String> },
}

impl Sign {
    pub(super) fn run(self) -> CommandResult {
        let key = files::read_signing_key(&self.key)?;
        let before = files::read_public_keys(&self.signed_by)?;
        let stored = Stored::open(&self.bundle)?;
        let grounds = if self.resign {
            stored.check_blobs()?;
            let evidence = stored.evidence(&Anchors { keys: before, ..Anchors::default() });
            if evidence.signers.is_empty() {
                let disregarded = evidence.disregarded;
                return Err(RefusedToSign::NotSigned { bundle: self.bundle, disregarded }.into());
            }
            "already signed by a key that was named: not built again"
        } else {
            let secrets = self.secret.as_deref().map(files::read_secrets).transpose()?;
            rebuild(&stored, secrets.as_ref())
                .map_err(|source| RefusedToSign::Rebuild { bundle: self.bundle.clone(), source })?;
            match stored.bundle.config.kind() {
                Kind::Policy => "its source builds to exactly this code",
                Kind::Data => "its table is whole",
            }
        };

        let own = Anchors { keys: vec![key.public_key()], ..Anchors::default() };
        let again = stored.evidence(&own).signers == [Signer::Key(key.public_key().id())];
        if !again {
            let signature = signature::sign(&stored.subject(), &key)?;
            let new = NewAttachment::one(media::SIGSTORE_BUNDLE, signature, Annotations::default());
            attach(&self.bundle, &new, |_| false)?;
        }
        let (config, digest, id) = (&stored.bundle.config, stored.bundle.digest(), key.public_key().id());
        if self.json {
            output::json(&json!({
                "bundle": digest, "path": self.bundle, "signer": id, "again": again, "rebuilt": !self.resign,
                "tenant": config.tenant, "policy": config.policy, "version": config.version,
            }))?;
        } else {
            output::text(format_args!(
                "{}   {} {} version {} for tenant {}\nbundle   {digest}\ngrounds  {grounds}\nkey id   {id}\n",
                if again { "signed before" } else { "signed" },
                config.kind().name(),
                config.policy,
                config.version,
                config.tenant,
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Behind an error, what was found and does not count.
fn reasons(disregarded: &[String]) -> String {
    disregarded.iter().map(|reason| format!("; {}", crate::cli::terminal::printable(reason))).collect()
}
