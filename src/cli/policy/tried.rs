//! What `test`, `run` and `bench` have in common: which policy, under which limits, with which cases.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::files::{self, FileError};
use crate::cli::units;
use crate::rehearsal::{CASES_MAX, Cases, CasesError, Granted, Subject, SubjectError, TOKENS, is_bundle};

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
}

impl From<SubjectError> for TriedError {
    fn from(error: SubjectError) -> Self {
        Self::Subject(Box::new(error))
    }
}

impl GrantArgs {
    pub(super) fn granted(&self) -> Granted {
        Granted {
            memory: self.memory,
            table_elements: self.table_elements,
            output: self.output,
            deadline_us: self.deadline,
            stack: self.stack,
            host_calls: self.host_calls,
            fuel: self.fuel,
            class_memory: self.class_memory,
            metrics: self.metrics.clone(),
        }
    }
}

/// Where the cases of a policy are unless somebody says so: in its folder, or beside it.
pub(super) fn cases_of(policy: &Path) -> PathBuf {
    if policy.is_dir() && !is_bundle(policy) { policy.join(CASES) } else { policy.with_file_name(CASES) }
}

/// Reads a file of cases, and the tokens beside it.
pub(super) fn read_cases(path: &Path) -> Result<Cases, TriedError> {
    let text = files::read(path, CASES_MAX)?;
    let tokens = match files::read(&path.with_file_name(TOKENS), CASES_MAX) {
        Ok(text) => Some(text),
        Err(error) if error.is_missing() => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Cases::read(path, &text, tokens.as_deref())?)
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
