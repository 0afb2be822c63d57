//! `portcullis policy test`

mod junit;
mod report;
mod watch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use self::report::{PolicyReport, Report};
use self::watch::Watch;
use super::tried::{CASES, GrantArgs, TriedError, cases_of, read_cases, tables_of};
use crate::cli::{CommandResult, chain, files, output};
use crate::compile::BuildError;
use crate::rehearsal::{Case, Coverage, Performed, Subject, count, find, is_bundle, perform, prepared};

/// Ask a policy its cases, and say which answers are not as expected
///
/// In the engine of a worker, under the limits that a worker would hold it to; no service has to run. A path is a folder with
/// a policy and cases.json, a folder of such folders, a component, a module, or a bundle with cases.json beside it.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 every answer is as expected; 1 one is not; 2 a policy or its cases cannot be read; \
                        64 the command line is wrong."
)]
pub(in crate::cli) struct Test {
    /// What to test [default: this folder]
    paths: Vec<PathBuf>,
    /// The file of cases, if it is not cases.json in the policy's folder or beside it
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Only cases with this in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Say which rules or functions no case made run
    #[arg(long)]
    coverage: bool,
    /// Write a report in the form of JUnit as well
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Test again whenever the policy or its cases change, until interrupted
    #[arg(long)]
    watch: bool,
    /// Print JSON: one line for each time that it was tested
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    grant: GrantArgs,
}

/// A policy, and its cases.
struct Pair {
    policy: PathBuf,
    cases: PathBuf,
}

impl Test {
    pub(super) fn run(self) -> CommandResult {
        if !self.watch {
            return self.once();
        }
        loop {
            // Before it is read: what changes from here on is seen.
            let watch = Watch::new(&self.places())?;
            self.once()?;
            watch.wait()?;
        }
    }

    fn once(&self) -> CommandResult {
        let report = match self.test() {
            Ok(report) => report,
            Err(error) => {
                output::error(&chain(&*error));
                return Ok(ExitCode::from(2));
            }
        };
        if let Some(path) = &self.junit {
            files::write(path, junit::written(&report).as_bytes())?;
        }
        if self.json {
            output::json(&report)?;
        } else {
            output::text(format_args!("{}", report.for_people()))?;
        }
        Ok(ExitCode::from(match &report {
            Report { failed: 1.., .. } => 1,
            // A filter that lets nothing through tests nothing.
            Report { passed: 0, .. } => 2,
            _ => 0,
        }))
    }

    fn test(&self) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
        let mut report = Report::default();
        for pair in self.pairs()? {
            report.add(self.test_one(&pair)?);
        }
        Ok(report)
    }

    fn test_one(&self, pair: &Pair) -> Result<PolicyReport, Box<dyn std::error::Error + Send + Sync>> {
        let mut cases = read_cases(&pair.cases)?.cases;
        let all = cases.len();
        if let Some(filter) = &self.filter {
            cases.retain(|case| case.name.contains(filter));
        }
        let subject =
            Subject::open(&pair.policy, &self.grant.granted(&pair.policy)?).map_err(TriedError::from)?;
        let performed: Vec<Performed> = cases.iter().map(|case| perform(&subject, case)).collect();
        let coverage = if self.coverage { Some(covered(&subject, &cases)?) } else { None };
        Ok(PolicyReport::new(&subject, &pair.cases, &performed, all - cases.len(), coverage.as_ref()))
    }

    /// Every policy that the paths mean, with its cases.
    fn pairs(&self) -> Result<Vec<Pair>, TriedError> {
        let mut pairs = Vec::new();
        for path in self.paths() {
            match &self.cases {
                Some(cases) => pairs.push(Pair { policy: path, cases: cases.clone() }),
                None => pairs.extend(beneath(&path)?),
            }
        }
        Ok(pairs)
    }

    fn paths(&self) -> Vec<PathBuf> {
        if self.paths.is_empty() { vec![PathBuf::from(".")] } else { self.paths.clone() }
    }

    /// Whatever can change an outcome.
    fn places(&self) -> Vec<PathBuf> {
        let pairs = self.pairs().unwrap_or_default();
        let tables: Vec<PathBuf> = pairs.iter().flat_map(|pair| tables_of(&pair.cases)).collect();
        let besides = tables.into_iter().chain(self.grant.config().map(Path::to_owned));
        let of_pairs =
            pairs.into_iter().flat_map(|pair| [find(&pair.policy).unwrap_or(pair.policy), pair.cases]);
        // What a file of cases names and is not there is said when it is tested.
        self.paths().into_iter().chain(of_pairs).chain(besides.filter(|path| path.exists())).collect()
    }
}

fn beneath(path: &Path) -> Result<Vec<Pair>, TriedError> {
    let own = cases_of(path);
    let is_folder = path.is_dir() && !is_bundle(path);
    if own.is_file() || !is_folder {
        return Ok(vec![Pair { policy: path.into(), cases: own }]);
    }
    let none = || TriedError::NoCases { path: path.into() };
    let entries = fs::read_dir(path).map_err(|_| none())?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.retain(|folder| folder.join(CASES).is_file());
    folders.sort();
    if folders.is_empty() {
        return Err(none());
    }
    let pair = |policy: PathBuf| Pair { cases: policy.join(CASES), policy };
    Ok(folders.into_iter().map(pair).collect())
}

/// The cases once more, in an engine that sees which functions run.
fn covered(subject: &Subject, cases: &[Case]) -> Result<Coverage, Box<dyn std::error::Error + Send + Sync>> {
    let counting = subject.counting().map_err(TriedError::from)?;
    let mut coverage = Coverage::of(&counting.component, &subject.source).map_err(BuildError::from)?;
    for case in cases {
        // What cannot be asked is said where it was tried.
        if let Ok((call, data)) = prepared(case) {
            coverage.add(&count(&counting.policy, call, data).notes);
        }
    }
    Ok(coverage)
}
