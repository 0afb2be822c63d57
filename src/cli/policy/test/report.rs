//! What became of the cases: for people, and as JSON.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::cli::policy::tried::{subject_json, subject_line};
use crate::cli::terminal::{hanging, printable};
use crate::decision::Timing;
use crate::engine::{HostCall, LogLevel};
use crate::rehearsal::{Coverage, Difference, Grain, Part, Performed, Subject};

/// Names of what did not run that are shown to people; all of them are in the JSON.
const NAMES: usize = 20;

/// All of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) policies: Vec<PolicyReport>,
}

/// The cases of one policy.
#[derive(Debug, Serialize)]
pub(super) struct PolicyReport {
    pub(super) policy: Value,
    pub(super) file: PathBuf,
    pub(super) left_out: usize,
    pub(super) cases: Vec<CaseReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coverage: Option<CoverageReport>,
    #[serde(skip)]
    line: String,
    #[serde(skip)]
    pub(super) name: String,
}

#[derive(Debug, Serialize)]
pub(super) struct CaseReport {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) passed: bool,
    pub(super) differences: Vec<Difference>,
    pub(super) timing: Timing,
    pub(super) memory: u64,
    pub(super) host_calls: usize,
    #[serde(skip)]
    pub(super) log: Vec<(LogLevel, String)>,
}

#[derive(Debug, Serialize)]
struct CoverageReport {
    of: Grain,
    ran: usize,
    all: usize,
    /// Functions of libraries and interpreters, which were not counted.
    left_out: usize,
    parts: Vec<Part>,
}

impl Report {
    pub(super) fn add(&mut self, policy: PolicyReport) {
        let passed = policy.cases.iter().filter(|case| case.passed).count();
        self.passed += passed;
        self.failed += policy.cases.len() - passed;
        self.policies.push(policy);
    }

    pub(super) fn for_people(&self) -> String {
        let mut text: String = self.policies.iter().map(PolicyReport::for_people).collect();
        let (cases, policies) = (self.passed + self.failed, self.policies.len());
        text += &match self.failed {
            0 => format!("all as expected: {}", counted(cases, "case")),
            failed => format!("NOT as expected: {failed} of {}", counted(cases, "case")),
        };
        if policies != 1 {
            text += &format!(" of {policies} policies");
        }
        text + "\n"
    }
}

impl PolicyReport {
    pub(super) fn new(
        subject: &Subject,
        file: &Path,
        performed: &[Performed],
        left_out: usize,
        coverage: Option<&Coverage>,
    ) -> Self {
        Self {
            policy: subject_json(subject),
            file: file.into(),
            left_out,
            cases: performed.iter().map(CaseReport::new).collect(),
            coverage: coverage.map(CoverageReport::new),
            line: subject_line(subject),
            name: subject.manifest.policy.to_string(),
        }
    }

    fn for_people(&self) -> String {
        let mut text = hanging("policy   ", &self.line);
        for case in self.cases.iter().filter(|case| !case.passed) {
            let place = format!("{}:{}", self.file.display(), case.line);
            text += &format!("  FAILED {} ({place})\n", printable(&case.name));
            for difference in &case.differences {
                text += &format!("         {}\n", printable(&difference.to_string()));
            }
            for (level, line) in &case.log {
                text += &format!("         log {level}: {}\n", printable(line));
            }
        }
        let passed = self.cases.iter().filter(|case| case.passed).count();
        text += &format!("  passed {passed} of {}", counted(self.cases.len(), "case"));
        if self.left_out > 0 {
            text += &format!(", {} left out", self.left_out);
        }
        text.push('\n');
        if let Some(coverage) = &self.coverage {
            text += &coverage.for_people();
        }
        text
    }
}

impl CaseReport {
    fn new(performed: &Performed) -> Self {
        let notes = &performed.notes;
        let log = notes.calls.iter().filter_map(|call| match call {
            HostCall::Log { level, message } => Some((*level, message.clone())),
            _ => None,
        });
        Self {
            name: performed.name.clone(),
            line: performed.line,
            passed: performed.is_good(),
            differences: performed.differences.clone(),
            timing: performed.timing,
            memory: notes.memory,
            host_calls: notes.calls.len(),
            log: log.collect(),
        }
    }
}

impl CoverageReport {
    fn new(coverage: &Coverage) -> Self {
        let parts = coverage.parts();
        Self {
            of: coverage.grain(),
            ran: parts.iter().filter(|part| part.ran).count(),
            all: parts.len(),
            left_out: coverage.left_out(),
            parts,
        }
    }

    fn for_people(&self) -> String {
        if self.of == Grain::Nothing {
            return hanging("  cover  ", &self.of.to_string());
        }
        let mut text = format!("{} of {} {}", self.ran, self.all, self.of);
        let missing: Vec<String> =
            self.parts.iter().filter(|part| !part.ran).map(|part| printable(&part.name)).collect();
        if !missing.is_empty() && self.of != Grain::Numbers {
            let shown: Vec<&str> = missing.iter().take(NAMES).map(String::as_str).collect();
            text += &format!("; no case runs {}", shown.join(", "));
            if missing.len() > NAMES {
                text += &format!(" and {} more", missing.len() - NAMES);
            }
        }
        hanging("  cover  ", &text)
    }
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
