//! A case, asked and compared.

use std::sync::Arc;

use bytes::Bytes;

use super::answer::{Answer, Difference};
use super::case::Case;
use super::facts::{FactsError, facts};
use super::question::Question;
use super::subject::Subject;
use super::{Clock, QUESTION_MAX, Seed};
use crate::decision::Timing;
use crate::engine::{Call, Data, Notes};
use crate::wire::frame::{self, EncodeError};

/// What became of a case.
#[derive(Debug)]
pub struct Performed {
    pub name: String,
    /// Where it is in its file, from 1; 0 where that is not known.
    pub line: usize,
    /// None: it is as expected.
    pub differences: Vec<Difference>,
    pub timing: Timing,
    pub notes: Notes,
}

impl Performed {
    /// Whether the answer is the one that was expected.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Asks one case of a policy, and says where the answer is another one than expected.
#[must_use]
pub fn perform(subject: &Subject, case: &Case) -> Performed {
    let (name, line) = (case.name.clone(), case.line);
    match prepared(case) {
        Ok((call, data)) => {
            let asked = subject.ask(call, data, case.deadline_us);
            let answer = Answer::of(&asked.decision, &asked.notes);
            let differences = case.expect.differences(&answer);
            Performed { name, line, differences, timing: asked.decision.timing, notes: asked.notes }
        }
        // No client could ask that either.
        Err(error) => {
            let found = Some(format!("{error}").into());
            let difference = Difference { what: "input".to_owned(), expected: None, found };
            let (timing, notes) = (Timing::default(), Notes::default());
            Performed { name, line, differences: vec![difference], timing, notes }
        }
    }
}

/// What a case asks, as a worker would hear it, and what there is to be looked up.
///
/// # Errors
/// When it is longer than a question may be, or its data is none.
pub fn prepared(case: &Case) -> Result<(Call, Option<Arc<Data>>), PrepareError> {
    let Clock(clock_ns) = case.clock.unwrap_or_default();
    let Seed(seed) = case.seed.unwrap_or_default();
    let own = case.data.as_ref().map(facts).transpose()?;
    let data = match (own, case.layers.as_slice()) {
        (None, []) => None,
        (own, layers) => Some(Arc::new(own.unwrap_or_default().upon(layers))),
    };
    Ok((Call { input: encode(&case.input)?, clock_ns, seed, id: None }, data))
}

/// Why a case cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("ask: {0}")]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Facts(#[from] FactsError),
}

fn encode(question: &Question) -> Result<Bytes, EncodeError> {
    frame::encode(&question.input(), QUESTION_MAX).map(Bytes::from)
}
