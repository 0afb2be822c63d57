//! One evaluation, written down: what was asked, what the policy asked of the host and got, and what it answered. A record
//! has a case in it, which may be copied to a file of cases as it is.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Difference};
use super::case::Case;
use super::facts::facts_read;
use super::perform::PrepareError;
use super::question;
use super::stage::Asked;
use super::subject::Subject;
use super::{Clock, Seed, perform};
use crate::artifact::Digest;
use crate::decision::PolicyName;
use crate::engine::HostCall;

/// Longest record that is read, bytes.
pub const RECORD_MAX: usize = 64 << 20;

/// What was written down.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub policy: Recorded,
    pub case: Case,
    /// In the order in which they were made.
    pub calls: Vec<HostCall>,
}

/// Which policy it was.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    pub name: PolicyName,
    pub version: u64,
    /// Of its source.
    pub source: Digest,
}

/// Why a record cannot be read or played.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("read record: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
}

impl Record {
    /// Writes down what was asked of a policy and how it went; of its data, what it read.
    #[must_use]
    pub fn write(subject: &Subject, case: &Case, asked: &Asked) -> String {
        let record = json!({
            "policy": {
                "name": subject.manifest.policy,
                "version": subject.manifest.version,
                "source": subject.manifest.source,
            },
            "case": {
                "name": case.name,
                "clock": case.clock.unwrap_or_default(),
                "seed": case.seed.unwrap_or_default(),
                "deadline_us": case.deadline_us,
                "data": facts_read(&asked.notes.calls),
                "input": question::as_json(&case.input.input()),
                "expect": Answer::of(&asked.decision, &asked.notes),
            },
            "calls": asked.notes.calls,
        });
        format!("{record:#}\n")
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn read(text: &[u8]) -> Result<Self, RecordError> {
        Ok(serde_json::from_slice(text)?)
    }

    /// Asks the same again, and says what is another now: of the answer, and of what the policy asked of the host.
    ///
    /// # Errors
    /// When it is longer than a question may be.
    pub fn play(&self, subject: &Subject) -> Result<(Asked, Vec<Difference>), RecordError> {
        let (call, data) = perform::prepared(&self.case)?;
        let asked = subject.ask(call, data, self.case.deadline_us);
        let answer = Answer::of(&asked.decision, &asked.notes);
        let mut differences = self.case.expect.differences(&answer);
        differences.extend(calls(&self.calls, &asked.notes.calls));
        Ok((asked, differences))
    }

    /// Whether it is of exactly this policy.
    #[must_use]
    pub fn is_of(&self, subject: &Subject) -> bool {
        self.policy.source == subject.manifest.source
    }
}

/// The first call that is another one, and how many there are: what follows is often only shifted.
fn calls(expected: &[HostCall], found: &[HostCall]) -> Vec<Difference> {
    let json = |call: Option<&HostCall>| call.map(|call| json!(call));
    let mut differences = Vec::new();
    let longest = expected.len().max(found.len());
    if let Some(at) = (0..longest).find(|at| expected.get(*at) != found.get(*at)) {
        differences.push(Difference {
            what: format!("host call {}", at + 1),
            expected: json(expected.get(at)),
            found: json(found.get(at)),
        });
    }
    if expected.len() != found.len() {
        let count = |calls: &[HostCall]| Some(Value::from(calls.len()));
        differences.push(Difference {
            what: "host calls".to_owned(),
            expected: count(expected),
            found: count(found),
        });
    }
    differences
}

/// A question of the command line, as a case that expects nothing yet.
#[must_use]
pub fn case_of(question: question::Question, clock: Clock, seed: Seed, deadline_us: Option<u32>) -> Case {
    Case {
        name: "recorded".to_owned(),
        clock: Some(clock),
        seed: Some(seed),
        deadline_us,
        data: None,
        tables: None,
        input: question,
        expect: Answer::nothing(),
        layers: Vec::new(),
        line: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_compared_one_by_one() {
        let clock = |ns| HostCall::Clock { ns };
        let said = |expected: &[HostCall], found: &[HostCall]| -> Vec<String> {
            calls(expected, found).iter().map(ToString::to_string).collect()
        };
        assert_eq!(said(&[clock(1)], &[clock(1)]), Vec::<String>::new());
        assert_eq!(
            said(&[clock(1), clock(2)], &[clock(1), clock(3)]),
            [r#"host call 2: expected {"clock":{"ns":2}}, found {"clock":{"ns":3}}"#]
        );
        assert_eq!(
            said(&[clock(1)], &[clock(1), HostCall::Random { bytes: 8 }]),
            [
                r#"host call 2: expected nothing, found {"random":{"bytes":8}}"#,
                "host calls: expected 1, found 2"
            ]
        );
    }
}
