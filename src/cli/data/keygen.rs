//! `portcullis data keygen`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::bundle::SecretKey;
use crate::cli::{CommandResult, EXIT_CODES, files, output};

/// Make a key that confidential bundles are encrypted with
///
/// One line of text. Whoever builds what is confidential has it, and the registry ([registry] secret): nobody else. To change it, put
/// a new line in front of the old one: the first key encrypts, all of them open.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Keygen {
    /// Where to write it; it may not exist
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Keygen {
    pub(super) fn run(self) -> CommandResult {
        let key = SecretKey::generate()?;
        files::create(&self.out, key.to_text().as_bytes(), 0o600)?;
        if self.json {
            output::json(&json!({ "secret": self.out, "id": key.id() }))?;
        } else {
            output::text(format_args!(
                "secret  {}  (keep it secret)\nid      {}\n",
                self.out.display(),
                key.id()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
