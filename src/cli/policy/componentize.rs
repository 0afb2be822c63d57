//! `portcullis policy componentize`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::source::SourceArgs;
use crate::artifact::Digest;
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::compile;

/// Turn a core WebAssembly module into a component
///
/// For toolchains that make core modules. `build` does the same by itself; this is for whoever wants the component.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Componentize {
    /// A core module that implements the world portcullis:policy@1.0.0 or @0.1.0, what OPA compiled, or a folder with Rego
    module: PathBuf,
    #[command(flatten)]
    made: SourceArgs,
    /// Where to write the component
    #[arg(short, long, value_name = "OUT.wasm")]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Componentize {
    pub(super) fn run(self) -> CommandResult {
        let component = compile::componentize_as(&self.made.read(&self.module)?.wasm, self.made.world)?;
        files::write(&self.out, &component)?;
        let digest = Digest::of(&component);
        if self.json {
            output::json(&json!({ "component": digest, "path": self.out, "bytes": component.len() }))?;
        } else {
            output::text(format_args!(
                "written    {} ({} bytes)\ncomponent  {digest}\n",
                self.out.display(),
                component.len()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
