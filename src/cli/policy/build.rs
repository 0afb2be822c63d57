//! `portcullis policy build`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;

use super::inspect;
use super::rebuild::{LimitError, check_limits};
use super::sbom::{self, PartsError};
use super::source::{Source, SourceArgs};
use super::stored::Stored;
use crate::artifact::{Digest, Limits};
use crate::bundle::write::{self, NewAttachment};
use crate::bundle::{Attachment, Draft, Platform, PolicyConfig, SecretKeys, media};
use crate::cli::{CommandResult, EXIT_CODES, files, output, units};
use crate::compile::{self, Built, Terms};
use crate::decision::{PolicyName, Tenant};
use crate::engine::{METRIC_NAME_MAX, Metering, World, is_metric_name};
use crate::rehearsal::{begins, start_of};

/// Check a policy, compile it, and write it as a bundle
///
/// SOURCE is a component, a core module that becomes one, a module or bundle that `opa build -t wasm` wrote, or a folder with
/// Rego, which the installed `opa` compiles. Data is parsed, and a component's `prepare` run, here and never again.
///
/// A bundle is an OCI image layout: a folder, or one file where OUT ends in .tar. It has the source, machine code for
/// each platform, what the policy asks for, and a list of what it is made of. The same input always gives the same
/// bundle, on any machine, so a signer can build again and compare. On any error nothing is written.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Build {
    /// A component of the world portcullis:policy@1.0.0 or @0.1.0, a core module of it, what OPA compiled, or a folder with
    /// Rego
    source: PathBuf,
    #[command(flatten)]
    made: SourceArgs,
    /// Who it decides for
    #[arg(long, value_name = "NAME")]
    tenant: Tenant,
    /// Name of the policy
    #[arg(long, value_name = "NAME")]
    policy: PolicyName,
    /// Grows with every release; a lower one never replaces a higher one
    #[arg(long, value_name = "N")]
    version: u64,
    /// What to compile it for, with commas between
    #[arg(
        long,
        value_name = "PLATFORMS",
        value_delimiter = ',',
        default_value = "linux/amd64,linux/arm64",
        value_parser = PossibleValuesParser::new(["linux/amd64", "linux/arm64"]).try_map(|name| name.parse::<Platform>())
    )]
    platform: Vec<Platform>,
    /// No machine code: each host compiles the source itself
    #[arg(long, conflicts_with = "platform")]
    no_code: bool,
    /// Where to write the bundle: a folder, or a file that ends in .tar. A bundle that is there is replaced
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    limits: LimitArgs,
    /// A counter it may add to; several times for several, at most 16
    #[arg(long = "metric", value_name = "NAME", value_parser = metric)]
    metrics: Vec<String>,
    /// A data snapshot of its tenant that it may read; several times for several
    #[arg(long = "data", value_name = "NAME", value_parser = data)]
    data: Vec<String>,
    /// It is confidential: encrypt source and machine code with the first key of this file (`portcullis data keygen`)
    #[arg(long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// What it is made of: SPDX or CycloneDX in JSON, or a Cargo.lock to make it from [default: made from the source]
    #[arg(long, value_name = "FILE")]
    sbom: Option<PathBuf>,
    /// No list of what it is made of
    #[arg(long, conflicts_with = "sbom")]
    no_sbom: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a policy may use, at most.
#[derive(Debug, Args)]
struct LimitArgs {
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
    /// Native stack it may use: 64KiB, 128KiB, 256KiB, 512KiB or 1MiB [default: 256KiB]
    #[arg(long, value_name = "SIZE", value_parser = stack)]
    stack: Option<u32>,
    /// Most calls of host functions in a decision [default: 10000]
    #[arg(long, value_name = "N")]
    host_calls: Option<u32>,
    /// Most instructions of a decision; its code then counts them, which takes time [default: not counted]
    #[arg(long, value_name = "N")]
    fuel: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("build {path:?}: {source}")]
struct OverLimit {
    path: PathBuf,
    source: LimitError,
}

impl Build {
    pub(super) fn run(self) -> CommandResult {
        let platforms = self.platforms();
        let source = self.made.read(&self.source)?;
        let limits = self.limits.limits();
        let terms = Terms { world: self.made.world, metering: Metering::of(&limits) };
        let built = compile::build(&source.wasm, terms, &platforms)?;
        check_limits(&limits, &built).map_err(|source| OverLimit { path: self.source.clone(), source })?;
        let start = start_of(&source.wasm);
        let draft = self.draft(source, &built, limits);
        let secrets = self.secret.as_deref().map(files::read_secrets).transpose()?;
        let assembled = match secrets.as_ref().and_then(SecretKeys::first) {
            Some(key) => draft.assemble_confidential(key)?,
            None => draft.assemble()?,
        };
        begins(&self.source, &assembled.bundle.config, &built, start)?;
        let parts = self.parts(&assembled.bundle.config, assembled.digest())?;
        // The same again: signatures stay on it.
        let unchanged =
            Stored::open(&self.out).is_ok_and(|there| there.bundle.digest() == assembled.digest());
        if !unchanged {
            write::create(&assembled, &self.out)?;
        }
        if let Some(parts) = &parts {
            let is_list =
                |old: &Attachment| [media::SBOM, sbom::CYCLONEDX].contains(&old.artifact_type.as_str());
            write::attach(&self.out, parts, is_list)?;
        }
        self.report(&Stored::open(&self.out)?, &built)
    }

    fn draft(&self, source: Source, built: &Built, limits: Limits) -> Draft {
        let (tenant, policy) = (self.tenant.clone(), self.policy.clone());
        Draft {
            metrics: self.metrics.clone(),
            data: self.data.clone(),
            rego: source.rego,
            prepared: source.prepared,
            ..built.draft(source.wasm, tenant, policy, self.version, limits)
        }
    }

    fn report(&self, stored: &Stored, built: &Built) -> CommandResult {
        let (bundle, digest) = (&stored.bundle, stored.bundle.digest());
        if self.json {
            let code: Vec<_> = bundle
                .compiled
                .iter()
                .map(|code| json!({ "platform": code.platform, "cwasm": code.cwasm.digest, "bytes": code.cwasm.size }))
                .collect();
            output::json(&json!({
                "bundle": digest, "path": self.out, "bytes": stored.size(), "config": bundle.config, "code": code,
                "memory": built.memory, "table_elements": built.table_elements,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let config = &bundle.config;
        let mut text = format!(
            "built    policy {} version {} for tenant {}\nbundle   {digest}\n         {} ({} bytes)\nsource   {}\n",
            config.policy,
            config.version,
            config.tenant,
            self.out.display(),
            stored.size(),
            config.source,
        );
        for code in &bundle.compiled {
            text +=
                &format!("code     {}: {} ({} bytes)\n", code.platform, code.cwasm.digest, code.cwasm.size);
        }
        text += &inspect::origin(config, 9);
        text += &format!(
            "imports  {}\nstarts   with {} of memory\n",
            if built.imports.is_empty() { "nothing".into() } else { built.imports.join(", ") },
            units::show_bytes(built.memory),
        );
        output::text(format_args!("{text}"))?;
        Ok(ExitCode::SUCCESS)
    }

    fn platforms(&self) -> Vec<Platform> {
        let mut platforms = if self.no_code { Vec::new() } else { self.platform.clone() };
        platforms.sort_unstable();
        platforms.dedup();
        platforms
    }

    fn parts(&self, config: &PolicyConfig, bundle: Digest) -> Result<Option<NewAttachment>, PartsError> {
        match &self.sbom {
            Some(path) => sbom::given(path, config, bundle).map(Some),
            None if self.no_sbom => Ok(None),
            None => sbom::made(config, bundle).map(Some),
        }
    }
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        let default = Limits::default();
        Limits {
            memory: self.memory.unwrap_or(default.memory),
            table_elements: self.table_elements.unwrap_or(default.table_elements),
            output: self.output.unwrap_or(default.output),
            deadline_us: self.deadline.unwrap_or(default.deadline_us),
            stack: self.stack.unwrap_or(default.stack),
            host_calls: self.host_calls.unwrap_or(default.host_calls),
            fuel: self.fuel,
        }
    }
}

/// A world, by its name or by its version.
pub(super) fn world(text: &str) -> Result<World, String> {
    let known = World::ALL.into_iter().find(|world| [world.name(), world.version()].contains(&text));
    known.ok_or_else(|| format!("known are {}", World::ALL.map(World::name).join(" and ")))
}

pub(super) fn stack(text: &str) -> Result<u32, String> {
    let stack = units::bytes(text)?;
    if Limits::STACKS.contains(&stack) {
        return Ok(stack);
    }
    let known = Limits::STACKS.map(|stack| units::show_bytes(stack.into()));
    Err(format!("there are stacks of {}", known.join(", ")))
}

fn metric(name: &str) -> Result<String, String> {
    if is_metric_name(name) {
        Ok(name.to_owned())
    } else {
        Err(format!("a counter's name has 1 to {METRIC_NAME_MAX} of a-z 0-9 _ . -, a letter first"))
    }
}

fn data(name: &str) -> Result<String, String> {
    PolicyName::new(name).map(String::from).map_err(|error| error.to_string())
}
