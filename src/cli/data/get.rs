//! `portcullis data get`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use base64ct::{Base64, Encoding};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::policy::stored::Stored;
use crate::cli::terminal::printable;
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::table::Table;

/// Look up a key in a data snapshot, or list its keys
///
/// As a policy would: the same code reads it. Whether it would be accepted is what `portcullis policy verify` says.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Get {
    /// The bundle, a folder or a tar
    bundle: PathBuf,
    /// Print the value of this key as it is, and nothing else [default: list keys, and how long their values are]
    key: Option<String>,
    /// List only keys that begin with this
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with = "key")]
    prefix: String,
    /// List only keys behind this one
    #[arg(long, value_name = "KEY", conflicts_with = "key")]
    after: Option<String>,
    /// List at most so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, conflicts_with = "key")]
    limit: usize,
    /// The file of the key that it is encrypted with
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("get {key:?} of {bundle:?}: there is no such key")]
struct NoSuchKey {
    key: String,
    bundle: PathBuf,
}

impl Get {
    pub(super) fn run(self) -> CommandResult {
        let secrets = self.secret.as_deref().map(files::read_secrets).transpose()?;
        let stored = Stored::open(&self.bundle)?;
        let table = Table::check(stored.table(secrets.as_ref())?)?;
        if let Some(key) = &self.key {
            let none = || NoSuchKey { key: key.clone(), bundle: self.bundle.clone() };
            let value = table.get(key).ok_or_else(none)?;
            match self.json {
                true => output::json(&entry(key, value))?,
                false => {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(value)?;
                    stdout.flush()?;
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let listed = table.entries(&self.prefix, self.after.as_deref()).take(self.limit);
        if self.json {
            let entries: Vec<Value> = listed.map(|(key, value)| entry(key, value)).collect();
            output::json(&json!({ "entries": table.len(), "listed": entries }))?;
        } else {
            let text: String =
                listed.map(|(key, value)| format!("{:>8}  {}\n", value.len(), printable(key))).collect();
            output::text(format_args!("{text}{} entries in all\n", table.len()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn entry(key: &str, value: &[u8]) -> Value {
    match std::str::from_utf8(value) {
        Ok(text) => json!({ "key": key, "text": text }),
        Err(_) => json!({ "key": key, "base64": Base64::encode_string(value) }),
    }
}
