//! `portcullis data build`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::entries::{self, Form};
use crate::bundle::{DataDraft, write};
use crate::cli::policy::stored::Stored;
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::decision::{PolicyName, Tenant};

/// Make a data snapshot of a document, and write it as a bundle
///
/// A JSON document is an object: each of its keys is a key, what is under it the value, as compact JSON. With --depth more, objects
/// in it are taken apart as well, and their keys joined with "/". A file of lines (.ndjson, .jsonl) has one object a line: {"key":…,
/// "value":…}, or {"key":…, "base64":…} for bytes. In a folder each file is a key by its path, and its bytes the value. The same
/// input always gives the same bundle. Sign it with `portcullis policy sign`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Build {
    /// A JSON document, a file of lines, or a folder
    source: PathBuf,
    /// Whose policies read it
    #[arg(long, value_name = "NAME")]
    tenant: Tenant,
    /// Name of the snapshot; no policy of this tenant has the same
    #[arg(long, value_name = "NAME")]
    name: PolicyName,
    /// Grows with every release; a lower one never replaces a higher one
    #[arg(long, value_name = "N")]
    version: u64,
    /// What the source is [default: a folder is one, .ndjson and .jsonl are lines, all else a document]
    #[arg(long, value_enum)]
    form: Option<Form>,
    /// How many objects deep a document is taken apart
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    depth: u8,
    /// It is confidential: encrypt it with the first key of this file (`portcullis data keygen`)
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// Where to write the bundle: a folder, or a file that ends in .tar. A bundle that is there is replaced
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Build {
    pub(super) fn run(self) -> CommandResult {
        let secrets = self.secret.as_deref().map(files::read_secrets).transpose()?;
        let table = entries::read(&self.source, self.form, self.depth)?;
        let entries = table.entries();
        let draft =
            DataDraft { name: self.name, tenant: self.tenant, version: self.version, table: table.build() };
        drop(table);
        let size = draft.table.len();
        let assembled = draft.assemble(secrets.as_ref().and_then(|secrets| secrets.first()))?;
        // The same again: signatures stay on it.
        let unchanged =
            Stored::open(&self.out).is_ok_and(|there| there.bundle.digest() == assembled.digest());
        if !unchanged {
            write::create(&assembled, &self.out)?;
        }
        let (config, digest) = (&assembled.bundle.config, assembled.digest());
        let secret = config.confidential.as_ref();
        if self.json {
            output::json(&json!({
                "bundle": digest, "path": self.out, "tenant": config.tenant, "data": config.policy,
                "version": config.version, "entries": entries, "bytes": size, "secret": secret,
            }))?;
        } else {
            let secret =
                secret.map_or_else(|| "not encrypted".to_owned(), |id| format!("encrypted with key {id}"));
            output::text(format_args!(
                "built    data {} version {} for tenant {}\nbundle   {digest}\n         {}\ntable    {entries} entries, {size} bytes, {secret}\n",
                config.policy,
                config.version,
                config.tenant,
                self.out.display(),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
