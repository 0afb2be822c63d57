//! `portcullis policy sign`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::artifact::{self, Architecture, Digest, Limits, Statement};
use crate::bundle::Platform;
use crate::cli::{CommandResult, output, units};
use crate::compile::{self, Built, SOURCE_MAX};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{WASMTIME_VERSION, WORLD, settings_digest};

/// Sign a compiled policy for one tenant
///
/// Builds the source again and signs only if the result is the same, byte for byte: a signature says that this machine
/// code comes from that source. Writes OUT.statement.json beside OUT.cwasm.
#[derive(Debug, Args)]
pub(in crate::cli) struct Sign {
    /// The compiled policy
    #[arg(value_name = "OUT.cwasm")]
    cwasm: PathBuf,
    /// What it was built from
    #[arg(long, value_name = "COMPONENT.wasm")]
    source: PathBuf,
    /// The private key
    #[arg(long)]
    key: PathBuf,
    /// Name of the policy
    #[arg(long, value_name = "NAME")]
    policy: PolicyName,
    /// Who it decides for
    #[arg(long, value_name = "NAME")]
    tenant: Tenant,
    /// Grows with every release; a lower one never replaces a higher one
    #[arg(long, value_name = "N")]
    version: u64,
    /// Most linear memory it may use [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    memory: Option<u32>,
    /// Most table elements it may have, all tables together [default: 10000]
    #[arg(long, value_name = "N")]
    table_elements: Option<u32>,
    /// Most bytes a decision may return [default: 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    output: Option<u32>,
    /// Longest a decision may take [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = units::microseconds)]
    deadline: Option<u32>,
    /// Where to write the statement, if not beside OUT.cwasm
    #[arg(long, value_name = "FILE")]
    statement: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a policy was not signed, besides files that cannot be read.
#[derive(Debug, thiserror::Error)]
enum RefusedToSign {
    #[error(
        "sign {cwasm:?}: it has digest {found}, but {source_path:?} builds to {built}; build it again, with this version"
    )]
    OtherSource { cwasm: PathBuf, found: Digest, source_path: PathBuf, built: Digest },
    #[error("sign {cwasm:?}: it starts with {needs} {what}, its limit would be {limit}; raise {option}")]
    Limit { cwasm: PathBuf, what: &'static str, needs: u64, limit: u32, option: &'static str },
}

impl Sign {
    pub(super) fn run(self) -> CommandResult {
        let path = match &self.statement {
            Some(path) => path.clone(),
            None => super::statement_beside(&self.cwasm)?,
        };
        let key = super::read_signing_key(&self.key)?;
        let cwasm = super::read_sealed(&self.cwasm)?;
        let built = compile::build(&super::read(&self.source, SOURCE_MAX)?, &[Platform::host()])?;
        let limits = self.limits();
        self.check(cwasm.digest(), &built, &limits)?;

        let statement = Statement {
            policy: self.policy,
            tenant: self.tenant,
            version: self.version,
            cwasm: cwasm.digest(),
            source: built.source,
            bundle: built.source,
            architecture: Architecture::host(),
            wasmtime: WASMTIME_VERSION.into(),
            engine: settings_digest(),
            world: WORLD.into(),
            imports: built.imports,
            limits,
        };
        super::write(&path, &artifact::sign(&statement, &key)?)?;
        let signer = key.public_key().id();
        if self.json {
            output::json(&json!({ "path": path, "signer": signer, "statement": statement }))?;
        } else {
            output::text(format_args!(
                "signed   policy {} version {} for tenant {}\nwritten  {}\nkey id   {signer}\n",
                statement.policy,
                statement.version,
                statement.tenant,
                path.display(),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            memory: self.memory.unwrap_or(default.memory),
            table_elements: self.table_elements.unwrap_or(default.table_elements),
            output: self.output.unwrap_or(default.output),
            deadline_us: self.deadline.unwrap_or(default.deadline_us),
        }
    }

    fn check(&self, found: Digest, built: &Built, limits: &Limits) -> Result<(), RefusedToSign> {
        let cwasm = || self.cwasm.clone();
        let digest = Digest::of(built.code_for(Platform::host()).unwrap_or_default());
        if digest != found {
            let source_path = self.source.clone();
            return Err(RefusedToSign::OtherSource { cwasm: cwasm(), found, source_path, built: digest });
        }
        for (what, needs, limit, option) in [
            ("bytes of memory", built.memory, limits.memory, "--memory"),
            ("table elements", built.table_elements, limits.table_elements, "--table-elements"),
        ] {
            if needs > limit.into() {
                return Err(RefusedToSign::Limit { cwasm: cwasm(), what, needs, limit, option });
            }
        }
        Ok(())
    }
}
