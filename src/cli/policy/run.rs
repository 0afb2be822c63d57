//! `portcullis policy run`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::json;

use super::tried::{GrantArgs, TriedError, cases_of, read_cases, subject_json, subject_line};
use crate::cli::decide::{answer_json, described};
use crate::cli::question::{QuestionArgs, QuestionError};
use crate::cli::terminal::{hanging, printable};
use crate::cli::{CommandResult, complain, files, output, units};
use crate::decision::{Outcome, Refusal};
use crate::engine::{HostCall, Notes, realtime_ns};
use crate::rehearsal::{
    Asked, CASES_MAX, Case, Clock, Difference, Facts, PrepareError, RECORD_MAX, Record, RecordError, Seed,
    Subject, case_of, count, prepared,
};

const FAILED: u8 = 3;
const DIFFERS: u8 = 4;

/// Ask a policy once, without a service, and print what it answers
///
/// In the engine of a worker, under the limits that a worker would hold it to; instructions are counted in another engine.
/// With --record everything that the answer depends on is written to a file, and --replay asks that again.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 allow, or a replay that is the same; 1 deny; 2 refused; 3 it could not be asked; \
                        4 a replay that differs; 64 the command line is wrong."
)]
#[command(group(ArgGroup::new("asked").required(true).args(["url", "opaque", "json_input", "case", "replay"])))]
pub(in crate::cli) struct Run {
    /// A component, a module, a bundle, or the folder that one of them is in
    policy: PathBuf,
    /// Ask the case of that name, out of cases.json in the policy's folder or beside it
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// The file of cases, if it is another one
    #[arg(long, value_name = "FILE", requires = "case")]
    cases: Option<PathBuf>,
    /// When the request was received, like 2026-01-01T00:00:00Z [default: now, or as the case says]
    #[arg(long, value_name = "TIME", conflicts_with = "replay")]
    clock: Option<Clock>,
    /// Seed of random numbers: a number, or 64 hexadecimal digits [default: 0, or as the case says]
    #[arg(long, value_name = "SEED", conflicts_with = "replay")]
    seed: Option<Seed>,
    /// What it may look up: a file with a JSON object, whose keys are the keys [default: as the case says]
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    data: Option<PathBuf>,
    /// Write down what was asked, what the policy asked of the host, and what it answered
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Ask what was written down again, and compare
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    question: QuestionArgs,
    #[command(flatten)]
    grant: GrantArgs,
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Tried(#[from] TriedError),
    #[error(transparent)]
    Question(#[from] QuestionError),
    #[error("look for case {name:?} in {path:?}: it has none of that name")]
    NoCase { name: String, path: PathBuf },
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("read data {path:?}: {cause}")]
    Data { path: PathBuf, cause: serde_json::Error },
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error("{path:?}: {cause}")]
    Record { path: PathBuf, cause: RecordError },
    #[error("print the answer: {0}")]
    Print(#[from] std::io::Error),
}

/// What was asked, and how it went.
struct Ran {
    subject: Subject,
    case: Case,
    asked: Asked,
    /// Of a replay.
    differences: Option<Vec<Difference>>,
    /// The policy is another one than the one that was recorded.
    other_policy: bool,
    instructions: Option<u64>,
}

impl Run {
    pub(super) fn run(self) -> CommandResult {
        match self.print() {
            Ok(code) => Ok(code),
            // The reader's business, and said as such.
            Err(RunError::Print(error)) => Err(error.into()),
            Err(RunError::Question(error)) => complain(&error, 64),
            Err(error) => complain(&error, FAILED),
        }
    }

    fn print(&self) -> Result<ExitCode, RunError> {
        let ran = self.ask()?;
        if let Some(path) = &self.record {
            files::write(path, Record::write(&ran.subject, &ran.case, &ran.asked).as_bytes())?;
        }
        if self.json {
            output::json(&ran.as_json())?;
        } else {
            output::text(format_args!("{}", ran.for_people()))?;
        }
        Ok(ExitCode::from(match (&ran.differences, &ran.asked.decision.outcome) {
            (Some(differences), _) if differences.is_empty() => 0,
            (Some(_), _) => DIFFERS,
            (None, Outcome::Allow) => 0,
            (None, Outcome::Deny { .. }) => 1,
            (None, Outcome::Refused(_)) => 2,
        }))
    }

    fn ask(&self) -> Result<Ran, RunError> {
        let open = || {
            let granted = self.grant.granted(&self.policy)?;
            Subject::open(&self.policy, &granted).map_err(TriedError::from)
        };
        let Some(path) = &self.replay else {
            let case = self.case()?;
            let subject = open()?;
            let (call, data) = prepared(&case)?;
            let asked = subject.ask(call, data, case.deadline_us);
            let instructions = instructions(&subject, &case, &asked)?;
            return Ok(Ran { subject, case, asked, differences: None, other_policy: false, instructions });
        };
        let wrong = |cause| RunError::Record { path: path.clone(), cause };
        let record = Record::read(&files::read(path, RECORD_MAX)?).map_err(wrong)?;
        let subject = open()?;
        let (asked, differences) = record.play(&subject).map_err(wrong)?;
        let other_policy = !record.is_of(&subject);
        let instructions = instructions(&subject, &record.case, &asked)?;
        let differences = Some(differences);
        Ok(Ran { subject, case: record.case, asked, differences, other_policy, instructions })
    }

    fn case(&self) -> Result<Case, RunError> {
        let Some(name) = &self.case else {
            let clock = self.clock.unwrap_or(Clock(realtime_ns()));
            let case = case_of(self.question.read()?, clock, self.seed.unwrap_or_default(), None);
            return Ok(Case { data: self.facts()?, ..case });
        };
        let path = self.cases.clone().unwrap_or_else(|| cases_of(&self.policy));
        let cases = read_cases(&path)?.cases;
        let found = cases.into_iter().find(|case| case.name == *name);
        let mut case = found.ok_or_else(|| RunError::NoCase { name: name.clone(), path })?;
        case.clock = self.clock.or(case.clock);
        case.seed = self.seed.or(case.seed);
        case.data = self.facts()?.or(case.data);
        Ok(case)
    }

    fn facts(&self) -> Result<Option<Facts>, RunError> {
        let Some(path) = &self.data else { return Ok(None) };
        let text = files::read(path, CASES_MAX)?;
        serde_json::from_slice(&text).map(Some).map_err(|cause| RunError::Data { path: path.clone(), cause })
    }
}

/// Nothing where there are more than anybody waits for.
fn instructions(subject: &Subject, case: &Case, asked: &Asked) -> Result<Option<u64>, RunError> {
    // What did not end by itself would not end there either.
    if let Outcome::Refused(Refusal::Deadline(_)) = asked.decision.outcome {
        return Ok(None);
    }
    let counting = subject.counting().map_err(TriedError::from)?;
    let (call, data) = prepared(case)?;
    let notes = count(&counting.policy, call, data).notes;
    Ok(notes.instructions.filter(|_| !notes.cut_short))
}

impl Ran {
    fn as_json(&self) -> serde_json::Value {
        let notes = &self.asked.notes;
        let mut json = answer_json(&self.asked.decision);
        if let Some(json) = json.as_object_mut() {
            json.insert("policy".into(), subject_json(&self.subject));
            json.insert("host_calls".into(), json!(notes.calls));
            json.insert("memory".into(), notes.memory.into());
            json.insert("instructions".into(), json!(self.instructions));
            if let Some(differences) = &self.differences {
                json.insert("differences".into(), json!(differences));
                json.insert("other_policy".into(), self.other_policy.into());
            }
        }
        json
    }

    fn for_people(&self) -> String {
        let (decision, notes) = (&self.asked.decision, &self.asked.notes);
        let mut text = described(decision);
        for call in &notes.calls {
            if let HostCall::Log { level, message } = call {
                text += &format!("  log {level}: {}\n", printable(message));
            }
        }
        text += &format!("  host calls: {}\n", host_calls(notes));
        let us = |ns: u64| ns.div_ceil(1000);
        let timing = decision.timing;
        text += &format!(
            "  {} us to start, {} us to run, {} us of it in host functions (once, and so the slowest of all)\n",
            us(timing.instantiate_ns),
            us(timing.run_ns),
            us(timing.host_ns)
        );
        let instructions = match self.instructions {
            Some(instructions) => {
                format!("{instructions} instructions, counted in an engine that is only for that")
            }
            None => "how many instructions was not counted, there are too many".to_owned(),
        };
        text += &format!("  {} of memory; {instructions}\n", units::show_bytes(notes.memory));
        text += &hanging("  by ", &subject_line(&self.subject));
        if let Some(differences) = &self.differences {
            if self.other_policy {
                text += "  the policy is another one than the one that was recorded\n";
            }
            text += match differences.as_slice() {
                [] => "the same as recorded\n",
                _ => "NOT as recorded\n",
            };
            for difference in differences {
                text += &format!("  {}\n", printable(&difference.to_string()));
            }
        }
        text
    }
}

/// How many of which kind.
fn host_calls(notes: &Notes) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for call in &notes.calls {
        *counts.entry(call.interface()).or_insert(0_usize) += 1;
    }
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(interface, count)| format!("{count} of {interface}")).collect::<Vec<_>>().join(", ")
}
