//! `portcullis policy bench`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgGroup, Args};
use serde::Serialize;
use serde_json::json;

use super::tried::{GrantArgs, TriedError, cases_of, read_cases, subject_json, subject_line};
use crate::cli::question::QuestionArgs;
use crate::cli::terminal::{hanging, printable};
use crate::cli::{CommandResult, EXIT_CODES, files, output, units};
use crate::decision::{Decision, Outcome, Refusal};
use crate::engine::{Call, Data, Notes};
use crate::rehearsal::{Case, Clock, QUESTION_MAX, Seed, Subject, case_of, count, flame_graph, prepared};

/// Decisions that are not measured: the first ones touch memory that nobody has touched before.
const WARM_UP: usize = 200;
/// What is asked where no case says: the first second of 2026.
const CLOCK: Clock = Clock(1_767_225_600_000_000_000);

/// Measure a policy: time, instructions, memory, and how near it is to its limits
///
/// Asks each of its cases, or one question, again and again. Times are of the engine that a worker has, with its settings
/// and nothing besides. Instructions and the flame graph are of another engine, which counts and is slower: they are the same
/// on every machine.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
#[command(group(ArgGroup::new("asked").args(["url", "opaque", "json_input", "cases"])))]
pub(in crate::cli) struct Bench {
    /// A component, a module, a bundle, or the folder that one of them is in
    policy: PathBuf,
    /// The file of cases [default: cases.json in the policy's folder or beside it, if no question is asked]
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Only cases with this in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// How many decisions to measure
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    runs: u32,
    /// Write a picture of where the instructions went, an SVG
    #[arg(long, value_name = "FILE")]
    flame: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    question: QuestionArgs,
    #[command(flatten)]
    grant: GrantArgs,
}

/// A question, and what there is to be looked up.
type Prepared = (Call, Option<Arc<Data>>);

#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("measure {path:?}: none of its {all} cases has {filter:?} in its name")]
    Nothing { path: PathBuf, all: usize, filter: String },
}

/// Nanoseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    p50: u64,
    p99: u64,
    max: u64,
}

/// The most of something, and in which case.
#[derive(Debug, Clone, Default, Serialize)]
struct Most {
    most: u64,
    limit: Option<u64>,
    case: String,
}

/// What each case takes, which is the same each time.
#[derive(Debug, Default)]
struct Taken {
    instructions: Most,
    least_instructions: u64,
    memory: Most,
    input: Most,
    output: Most,
    refused: usize,
    /// More than was counted.
    cut_short: bool,
    /// Of all cases together.
    counted: Notes,
}

impl Bench {
    pub(super) fn run(self) -> CommandResult {
        let cases = self.asked()?;
        let subject =
            Subject::open(&self.policy, &self.grant.granted(&self.policy)?).map_err(TriedError::from)?;
        let mut calls = Vec::new();
        for case in &cases {
            calls.push(prepared(case)?);
        }
        let taken = taken(&subject, &cases, &calls)?;
        let (start, ran) = self.times(&subject, &calls);
        if let Some(path) = &self.flame {
            let title = format!(
                "{}: {} instructions in {} cases, counted in an engine that is only for that",
                subject.manifest.policy,
                taken.counted.instructions.unwrap_or(0),
                cases.len()
            );
            files::write(path, flame_graph(&title, &taken.counted).as_bytes())?;
        }
        if self.json {
            output::json(&json!({
                "policy": subject_json(&subject), "cases": cases.len(), "refused": taken.refused,
                "timing": { "engine": "worker", "runs": self.runs, "start_ns": start, "run_ns": ran },
                "instructions": {
                    "engine": "counting", "least": taken.least_instructions, "most": taken.instructions.most,
                    "case": taken.instructions.case, "cut_short": taken.cut_short,
                },
                "memory": taken.memory, "input": taken.input, "output": taken.output, "flame": self.flame,
            }))?;
        } else {
            output::text(format_args!("{}", self.for_people(&subject, cases.len(), &taken, start, ran)))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn asked(&self) -> Result<Vec<Case>, Box<dyn std::error::Error + Send + Sync>> {
        if self.cases.is_none() && self.question.is_asked() {
            return Ok(vec![case_of(self.question.read()?, CLOCK, Seed::default(), None)]);
        }
        let path = self.cases.clone().unwrap_or_else(|| cases_of(&self.policy));
        let mut cases = read_cases(&path)?.cases;
        if let Some(filter) = &self.filter {
            let all = cases.len();
            cases.retain(|case| case.name.contains(filter));
            if cases.is_empty() {
                return Err(BenchError::Nothing { path, all, filter: filter.clone() }.into());
            }
        }
        Ok(cases)
    }

    /// Each case in turn, so that none has the caches to itself.
    fn times(&self, subject: &Subject, calls: &[Prepared]) -> (Spread, Spread) {
        let measured = usize::try_from(self.runs).unwrap_or(usize::MAX);
        let (mut start, mut run) = (Vec::with_capacity(measured), Vec::with_capacity(measured));
        for (number, (call, data)) in calls.iter().cycle().take(WARM_UP.saturating_add(measured)).enumerate()
        {
            let timing = subject.time(call.clone(), data.clone()).timing;
            if number >= WARM_UP {
                start.push(timing.instantiate_ns);
                run.push(timing.run_ns);
            }
        }
        (Spread::of(start), Spread::of(run))
    }

    fn for_people(
        &self,
        subject: &Subject,
        cases: usize,
        taken: &Taken,
        start: Spread,
        ran: Spread,
    ) -> String {
        let mut text = hanging("policy        ", &subject_line(subject));
        text += &format!("asked         {cases} different, of which {} were refused\n\n", taken.refused);
        text += &format!("In the engine that a worker has, {} decisions:\n", self.runs);
        text += &format!("  start       {start}\n  run         {ran}\n");
        text += &taken.memory.line("memory");
        text += &taken.input.line("input");
        text += &taken.output.line("output");
        text += "\nIn an engine that counts:\n";
        let most = &taken.instructions;
        let more = if taken.cut_short { ", and more that were not counted" } else { "" };
        let line =
            format!("{} to {} (\"{}\"){more}", taken.least_instructions, most.most, printable(&most.case));
        text += &hanging("  instructions ", &line);
        if let Some(path) = &self.flame {
            text += &format!("  flame graph {}\n", path.display());
        }
        text
    }
}

/// Asks each case once in either engine.
fn taken(
    subject: &Subject,
    cases: &[Case],
    calls: &[Prepared],
) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>> {
    let counting = subject.counting().map_err(TriedError::from)?;
    let limits = subject.limits();
    let mut taken = Taken { least_instructions: u64::MAX, ..Taken::default() };
    for (case, (call, data)) in cases.iter().zip(calls) {
        let length = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        let asked = subject.ask(call.clone(), data.clone(), None);
        taken.refused += usize::from(matches!(asked.decision.outcome, Outcome::Refused(_)));
        taken.memory.see(asked.notes.memory, Some(limits.memory.into()), &case.name);
        taken.input.see(length(call.input.len()), Some(length(QUESTION_MAX)), &case.name);
        taken.output.see(length(output_of(&asked.decision)), Some(limits.output.into()), &case.name);
        if let Outcome::Refused(Refusal::Deadline(_)) = asked.decision.outcome {
            // What did not end by itself would not end there either.
            taken.cut_short = true;
            continue;
        }
        let notes = count(&counting.policy, call.clone(), data.clone()).notes;
        let instructions = notes.instructions.unwrap_or(0);
        taken.instructions.see(instructions, None, &case.name);
        taken.least_instructions = taken.least_instructions.min(instructions);
        taken.cut_short |= notes.cut_short;
        taken.counted.merge(&notes);
    }
    Ok(taken)
}

/// Bytes of the strings and lists that a policy answered.
fn output_of(decision: &Decision) -> usize {
    let obligations = &decision.obligations;
    let reason = if let Outcome::Deny { reason } = &decision.outcome { reason.len() } else { 0 };
    let headers = obligations.headers_set.iter().chain(&obligations.headers_append);
    reason
        + headers.map(|header| header.name.len() + header.value.len()).sum::<usize>()
        + obligations.headers_remove.iter().map(String::len).sum::<usize>()
        + obligations.body.as_ref().map_or(0, bytes::Bytes::len)
        + obligations.metadata.iter().map(|one| one.key.len() + one.value.len()).sum::<usize>()
}

impl Most {
    fn see(&mut self, value: u64, limit: Option<u64>, case: &str) {
        self.limit = limit;
        if value > self.most || self.case.is_empty() {
            self.most = value;
            case.clone_into(&mut self.case);
        }
    }

    fn line(&self, what: &str) -> String {
        let limit = self.limit.map_or_else(String::new, |limit| format!(" of {}", units::show_bytes(limit)));
        let text = format!("at most {}{limit} (\"{}\")", units::show_bytes(self.most), printable(&self.case));
        hanging(&format!("  {what:<11} "), &text)
    }
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let at =
            |percent: usize| values.get((values.len() * percent / 100).min(values.len().saturating_sub(1)));
        let at = |percent| at(percent).copied().unwrap_or(0);
        Self { p50: at(50), p99: at(99), max: at(100) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = |ns: u64| format!("{}.{}", ns / 1000, ns % 1000 / 100);
        write!(f, "p50 {} us, p99 {} us, longest {} us", us(self.p50), us(self.p99), us(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let spread = Spread::of((1..=100).rev().collect());
        assert_eq!((spread.p50, spread.p99, spread.max), (51, 100, 100));
        let one = Spread::of(vec![1234]);
        assert_eq!(one.to_string(), "p50 1.2 us, p99 1.2 us, longest 1.2 us");
        assert_eq!(Spread::of(Vec::new()).max, 0);
    }
}
