//! `portcullis policy push`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::transfer::{self, EXIT_CODES, Fetcher, RegistryArgs, TransferError};
use crate::bundle::{self, Bundle, Descriptor, Layout, Reference, cosign_tag, media};
use crate::cli::{CommandResult, output};
use crate::sandbox::launch;
use crate::wire::fetch::{Action, FromFetcher, Object, ObjectKind, ToFetcher};

/// Send a bundle, and all that is attached to it, to a registry
///
/// The tag is written last: whoever pulls by it gets this bundle with its signatures, or the one from before. A registry
/// without the referrers API gets a list of what is attached under the tag sha256-<digest>. Credentials are docker's.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Push {
    /// The bundle, a folder or a tar
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// Where to: registry[:port]/repository:tag
    #[arg(value_name = "REFERENCE")]
    reference: Reference,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The tag is what others pull by.
#[derive(Debug, thiserror::Error)]
#[error(
    "push to {0}: a bundle is pushed under a tag, and what its digest is its bytes say; name it registry/repository:tag"
)]
struct NoTag(Reference);

impl Push {
    pub(super) fn run(self) -> CommandResult {
        if self.reference.tag().is_none() || self.reference.digest().is_some() {
            return Err(NoTag(self.reference).into());
        }
        let layout = bundle::open_path(&self.bundle)?;
        let bundle = layout.read()?;
        let prepared = self.registry.prepare(Action::Push, &self.reference)?;
        let whom = self.registry.whom(None)?;
        let mut progress = self.registry.progress();
        let fetcher = prepared.start(&whom, launch::null()?)?;
        hand_over(&layout, &bundle, &fetcher)?;
        match fetcher.finish(&mut progress) {
            Ok(FromFetcher::Pushed { bundle: digest, sent, reused }) if digest == bundle.digest() => {
                self.say(&bundle, sent, reused)
            }
            Ok(_) => Ok(transfer::complain(&TransferError::OutOfOrder)),
            Err(error) => Ok(transfer::complain(&error)),
        }
    }

    fn say(&self, bundle: &Bundle, sent: u64, reused: u64) -> CommandResult {
        let attached = bundle.attachments.len();
        if self.json {
            output::json(&json!({
                "reference": self.reference,
                "bundle": bundle.digest(),
                "tenant": bundle.config.tenant,
                "policy": bundle.config.policy,
                "version": bundle.config.version,
                "attachments": attached,
                "sent": sent,
                "reused": reused,
            }))?;
        } else {
            output::text(format_args!(
                "pushed   policy {} version {} for tenant {}, with {attached} attached\nto       {}\nbundle   {}\n",
                bundle.config.policy,
                bundle.config.version,
                bundle.config.tenant,
                self.reference,
                bundle.digest(),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Objects before what names them. Each is sealed memory whose digest has been checked.
fn hand_over(
    layout: &Layout,
    bundle: &Bundle,
    fetcher: &Fetcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut sent = BTreeSet::new();
    let mut send =
        |blob: &Descriptor, kind: ObjectKind| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let is_last = matches!(kind, ObjectKind::Bundle { .. });
            if sent.insert(blob.digest) || is_last {
                let bytes = layout.sealed(blob)?;
                let object = Object { digest: blob.digest, size: blob.size, kind };
                fetcher.tell(&ToFetcher::Object(object), Some(bytes.as_fd()))?;
            }
            Ok(())
        };
    let manifest = |tag| ObjectKind::Manifest { media_type: media::OCI_MANIFEST.to_owned(), tag };
    let index = media::OCI_INDEX.to_owned();
    send(&bundle.config_blob, ObjectKind::Blob)?;
    send(&bundle.source, ObjectKind::Blob)?;
    for compiled in &bundle.compiled {
        send(&compiled.cwasm, ObjectKind::Blob)?;
        send(&compiled.manifest, manifest(None))?;
    }
    send(&bundle.source_manifest, manifest(None))?;
    // By its digest, for what is attached to it.
    send(&bundle.index, ObjectKind::Manifest { media_type: index.clone(), tag: None })?;
    for attachment in &bundle.attachments {
        for blob in std::iter::once(&attachment.config).chain(&attachment.layers) {
            send(blob, ObjectKind::Blob)?;
        }
        let kind = if attachment.has_subject {
            let mut listed = attachment.manifest.clone();
            listed.artifact_type = Some(attachment.artifact_type.clone());
            listed.annotations = attachment.annotations.clone();
            let descriptor = serde_json::to_string(&listed)?;
            ObjectKind::Attached { media_type: media::OCI_MANIFEST.to_owned(), descriptor }
        } else {
            manifest(Some(cosign_tag(bundle.digest())))
        };
        send(&attachment.manifest, kind)?;
    }
    send(&bundle.index, ObjectKind::Bundle { media_type: index })?;
    fetcher.tell(&ToFetcher::NoMore, None)?;
    Ok(())
}
