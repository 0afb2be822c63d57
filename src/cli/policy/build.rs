//! `portcullis policy build`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::artifact::{Architecture, Digest};
use crate::bundle::Platform;
use crate::cli::{CommandResult, output, units};
use crate::compile::{self, SOURCE_MAX};
use crate::engine::{WASMTIME_VERSION, settings_digest};

/// Check a policy and compile it for this kind of machine
///
/// The same input always gives the same output, so a signer can build again and compare. On any error nothing is
/// written.
#[derive(Debug, Args)]
pub(in crate::cli) struct Build {
    /// A component of the world portcullis:policy@0.1.0, or a core module of it
    component: PathBuf,
    /// Where to write the compiled policy
    #[arg(short, long, value_name = "OUT.cwasm")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Build {
    pub(super) fn run(self) -> CommandResult {
        let built = compile::build(&super::read(&self.component, SOURCE_MAX)?, &[Platform::host()])?;
        let code = built.code_for(Platform::host()).unwrap_or_default();
        super::write(&self.out, code)?;
        let digest = Digest::of(code);
        if self.json {
            output::json(&json!({
                "cwasm": digest, "path": self.out, "bytes": code.len(), "source": built.source,
                "imports": built.imports, "memory": built.memory, "table_elements": built.table_elements,
                "architecture": Architecture::host(), "wasmtime": WASMTIME_VERSION,
                "engine": settings_digest(),
            }))?;
        } else {
            output::text(format_args!(
                "built    {} ({} bytes)\ncwasm    {digest}\nsource   {}\nimports  {}\nstarts   with {} of memory\n",
                self.out.display(),
                code.len(),
                built.source,
                if built.imports.is_empty() { "nothing".into() } else { built.imports.join(", ") },
                units::show_bytes(built.memory),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
