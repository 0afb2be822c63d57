//! `portcullis policy verify`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::artifact::{self, Expected, SIGNED_STATEMENT_MAX};
use crate::cli::{CommandResult, output};
use crate::decision::{PolicyName, Tenant};

/// Check a compiled policy exactly as a worker does before it loads it
///
/// The same function with the same checks; what passes here loads on a host with the same release.
#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    /// The compiled policy
    #[arg(value_name = "OUT.cwasm")]
    cwasm: PathBuf,
    /// Its signed statement, if not beside it
    #[arg(long, value_name = "FILE")]
    statement: Option<PathBuf>,
    /// A public key that is trusted; may be given more than once
    #[arg(long = "key", value_name = "PUB", required = true)]
    keys: Vec<PathBuf>,
    /// Who it should decide for
    #[arg(long, value_name = "NAME")]
    tenant: Tenant,
    /// Which policy it should be
    #[arg(long, value_name = "NAME")]
    policy: PolicyName,
    /// Refuse versions lower than this
    #[arg(long, value_name = "N", default_value_t = 0)]
    minimum_version: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Which file was refused, and why.
#[derive(Debug, thiserror::Error)]
#[error("verify {cwasm:?}: {source}")]
struct Refused {
    cwasm: PathBuf,
    source: artifact::VerifyError,
}

impl Verify {
    pub(super) fn run(self) -> CommandResult {
        let statement_path = match self.statement {
            Some(path) => path,
            None => super::statement_beside(&self.cwasm)?,
        };
        let keys = super::read_public_keys(&self.keys)?;
        let signed = super::read(&statement_path, SIGNED_STATEMENT_MAX)?;
        let bytes = super::read_sealed(&self.cwasm)?;
        let expected =
            Expected { tenant: &self.tenant, policy: &self.policy, minimum_version: self.minimum_version };
        let artifact = artifact::verify(bytes, &signed, &keys, &expected)
            .map_err(|source| Refused { cwasm: self.cwasm.clone(), source })?;
        let statement = artifact.statement();
        if self.json {
            output::json(&json!({ "signer": artifact.signer(), "statement": statement }))?;
        } else {
            output::text(format_args!(
                "good     policy {} version {} for tenant {}\ncwasm    {}\nsource   {}\nsigner   {}\n",
                statement.policy,
                statement.version,
                statement.tenant,
                artifact.digest(),
                statement.source,
                artifact.signer(),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
