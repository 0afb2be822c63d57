//! What `test`, `run` and `bench` have in common: which policy, under which limits, with which cases.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::service::configuration;
use super::stored::{Stored, StoredError};
use crate::artifact::Ceiling;
use crate::cli::data::entries::{self, EntriesError};
use crate::cli::files::{self, FileError};
use crate::cli::units;
use crate::decision::{Tenant, TrustClass};
use crate::engine::{Snapshot, SnapshotError};
use crate::rehearsal::{
    CASES_MAX, Cases, CasesError, Granted, Service, Subject, SubjectError, TOKENS, find, is_bundle,
};
use crate::supervisor::config::ConfigErrors;

/// The file of cases in a policy's folder.
pub(super) const CASES: &str = "cases.json";

/// What a policy may use while it is tried. A bundle gets no more than its manifest asks for.
#[derive(Debug, Args)]
pub(super) struct GrantArgs {
    /// Most linear memory it may use [default: what its bundle asks for, or 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, help_heading = "Limits")]
    memory: Option<u32>,
    /// Most table elements it may have, all tables together [default: what its bundle asks for, or 10000]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    table_elements: Option<u32>,
    /// Most bytes a decision may return [default: what its bundle asks for, or 64KiB]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, help_heading = "Limits")]
    output: Option<u32>,
    /// Longest a decision may take [default: what its bundle asks for, or 1s]
    #[arg(long, value_name = "TIME", value_parser = units::microseconds, help_heading = "Limits")]
    deadline: Option<u32>,
    /// Native stack it may use: 64KiB, 128KiB, 256KiB, 512KiB or 1MiB [default: what its bundle asks for, or 256KiB]
    #[arg(long, value_name = "SIZE", value_parser = super::build::stack, help_heading = "Limits")]
    stack: Option<u32>,
    /// Most calls of host functions in a decision [default: what its bundle asks for, or 10000]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    host_calls: Option<u32>,
    /// Most instructions of a decision; its code then counts them, which takes time [default: what its bundle asks for]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    fuel: Option<u64>,
    /// Most linear memory that the class it will serve in gives an instance (`class.NAME.memory`) [default: no less than it asks for]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes, help_heading = "Limits")]
    class_memory: Option<u32>,
    /// A counter that a policy without a bundle may add to; may be repeated
    #[arg(long = "metric", value_name = "NAME", help_heading = "Limits")]
    metrics: Vec<String>,
    /// A service's configuration: nothing is given more than its class and its tenant are there
    #[arg(long, value_name = "PATH", help_heading = "Limits")]
    config: Option<PathBuf>,
    /// The tenant in --config that it will decide for [default: the one that its bundle names]
    #[arg(long, value_name = "NAME", requires = "config", help_heading = "Limits")]
    tenant: Option<Tenant>,
    /// The class in --config, for a tenant that is not there yet
    #[arg(
        long,
        value_name = "NAME",
        requires = "config",
        conflicts_with = "tenant",
        help_heading = "Limits"
    )]
    class: Option<TrustClass>,
}

/// Why cases cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum TriedError {
    #[error(transparent)]
    Subject(Box<SubjectError>),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Cases(#[from] CasesError),
    #[error(
        "look for cases in {path:?}: there is no {CASES} in it, nor in a folder in it; write one, or say where with --cases"
    )]
    NoCases { path: PathBuf },
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("look for {what} in {path:?}: it is not there; there are {}", names.join(" "))]
    NotThere { what: String, path: PathBuf, names: Vec<String> },
    #[error(
        "take limits from {path:?}: say --tenant or --class, since what is tried is no bundle that names one"
    )]
    Whose { path: PathBuf },
    #[error(transparent)]
    Stored(#[from] StoredError),
    #[error("read table {path:?}: {cause}")]
    Entries { path: PathBuf, cause: Box<EntriesError> },
    #[error("read table {path:?}: {cause}")]
    Table { path: PathBuf, cause: SnapshotError },
}

impl From<SubjectError> for TriedError {
    fn from(error: SubjectError) -> Self {
        Self::Subject(Box::new(error))
    }
}

impl GrantArgs {
    /// The file that says what a service gives.
    pub(super) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Of what is at `policy`.
    pub(super) fn granted(&self, policy: &Path) -> Result<Granted, TriedError> {
        Ok(Granted {
            memory: self.memory,
            table_elements: self.table_elements,
            output: self.output,
            deadline_us: self.deadline,
            stack: self.stack,
            host_calls: self.host_calls,
            fuel: self.fuel,
            class_memory: self.class_memory,
            metrics: self.metrics.clone(),
            service: self.config.as_deref().map(|config| self.service(config, policy)).transpose()?,
        })
    }

    /// What a worker would be told of its class and of its tenant.
    fn service(&self, path: &Path, policy: &Path) -> Result<Service, TriedError> {
        let config = configuration(path)?;
        let not_there =
            |what: String, names: Vec<String>| TriedError::NotThere { what, path: path.into(), names };
        if let Some(name) = &self.class {
            let names = config.classes.iter().map(|class| class.name.to_string()).collect();
            let class = config
                .class(name)
                .ok_or_else(|| not_there(format!("class {:?}", name.to_string()), names))?;
            let ceiling = class.ceiling.and(&Ceiling { memory: class.limits.memory, ..Ceiling::MOST });
            return Ok(Service { ceiling, max_deadline_us: u32::MAX, default_deadline_us: u32::MAX });
        }
        let policy = find(policy)?;
        let name = match &self.tenant {
            Some(tenant) => tenant.clone(),
            None if is_bundle(&policy) => Stored::open(&policy)?.bundle.config.tenant.clone(),
            None => return Err(TriedError::Whose { path: path.into() }),
        };
        let names = config.tenants.iter().map(|tenant| tenant.name.to_string()).collect();
        let tenant = config.tenants.iter().find(|tenant| tenant.name == name);
        let tenant = tenant.ok_or_else(|| not_there(format!("tenant {:?}", name.to_string()), names))?;
        let class = config.class(&tenant.class).map_or(u32::MAX, |class| class.limits.memory);
        let us = |duration: std::time::Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        Ok(Service {
            ceiling: config.ceiling(tenant).and(&Ceiling { memory: class, ..Ceiling::MOST }),
            max_deadline_us: us(tenant.max_deadline),
            default_deadline_us: us(tenant.default_deadline),
        })
    }
}

/// Where the cases of a policy are unless somebody says so: in its folder, or beside it.
pub(super) fn cases_of(policy: &Path) -> PathBuf {
    if policy.is_dir() && !is_bundle(policy) { policy.join(CASES) } else { policy.with_file_name(CASES) }
}

/// Reads a file of cases, the tokens beside it, and the tables that it names.
pub(super) fn read_cases(path: &Path) -> Result<Cases, TriedError> {
    let mut cases = cases_alone(path)?;
    cases.lay_out(table)?;
    Ok(cases)
}

/// The tables that a file of cases names, if it can be read.
pub(super) fn tables_of(path: &Path) -> Vec<PathBuf> {
    cases_alone(path).map_or_else(|_| Vec::new(), |cases| cases.tables().into_iter().collect())
}

fn cases_alone(path: &Path) -> Result<Cases, TriedError> {
    let text = files::read(path, CASES_MAX)?;
    let tokens = match files::read(&path.with_file_name(TOKENS), CASES_MAX) {
        Ok(text) => Some(text),
        Err(error) if error.is_missing() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Cases::read(path, &text, tokens.as_deref())?)
}

/// A bundle of data, or what `portcullis data build` makes one of.
fn table(path: &Path) -> Result<Snapshot, TriedError> {
    let bytes = if is_bundle(path) {
        Stored::open(path)?.table(None)?
    } else {
        let entries = entries::read(path, None, 1);
        entries.map_err(|cause| TriedError::Entries { path: path.into(), cause: Box::new(cause) })?.build()
    };
    Snapshot::of(bytes).map_err(|cause| TriedError::Table { path: path.into(), cause })
}

/// Which policy was tried, and how.
pub(super) fn subject_json(subject: &Subject) -> Value {
    let manifest = &subject.manifest;
    json!({
        "path": subject.path,
        "policy": manifest.policy,
        "version": manifest.version,
        "world": manifest.world,
        "source": manifest.source,
        "cwasm": subject.digest(),
        "code": if subject.shipped { "as in the bundle" } else { "compiled here" },
        "limits": subject.limits(),
    })
}

/// The same in a line.
pub(super) fn subject_line(subject: &Subject) -> String {
    let code = if subject.shipped { "the code in it" } else { "compiled here" };
    let limits = subject.limits();
    format!(
        "{} ({code}; memory {}, output {}, deadline {})",
        subject.path.display(),
        units::show_bytes(limits.memory.into()),
        units::show_bytes(limits.output.into()),
        units::show_microseconds(limits.deadline_us),
    )
}
