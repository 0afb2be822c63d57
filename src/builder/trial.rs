//! The code decides once, under its own limits, before anybody has to rely on it.
//!
//! What is asked is nothing in particular, so a policy may deny it, trap over it, answer nonsense or not be done with it in
//! time: that is its answer, and a client that asks the same gets the same refusal. What is refused here is what could
//! never answer anybody: code that does not load, imports what it may not, or has no instance.

use std::mem;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use crate::artifact::{Ceiling, SealedBytes};
use crate::bundle::PolicyConfig;
use crate::compile::{Built, VouchError, vouch};
use crate::decision::{Input, Outcome};
use crate::engine::{self, Call, Engines, Granted, LoadError, Slice, realtime_ns};
use crate::wire::frame::{self, EncodeError};

/// Longest that a trial may take, nanoseconds of processor time, whatever the policy's own limit is.
const LONGEST_NS: u64 = 1_000_000_000;
/// Largest question, bytes: nothing, and its length.
const QUESTION_MAX: usize = 64;

/// Why nothing can be asked of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error(transparent)]
    Vouch(#[from] VouchError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("ask it: {0}")]
    Question(#[from] EncodeError),
    #[error("it has no instance: {0}")]
    Instance(String),
    #[error("it has no instance: what it does at its start does not end")]
    NeverBegins,
}

/// Loads the code and asks it once.
pub(super) fn decides(
    engines: &Engines,
    manifest: &PolicyConfig,
    built: &Built,
    code: SealedBytes,
    ceiling: Ceiling,
) -> Result<(), TrialError> {
    let granted = Granted { ceiling, data: None };
    let artifact = vouch(manifest, built.source, code)?;
    let policy = Arc::new(engine::load(engines, &artifact, granted)?);
    let input = frame::encode(&Input::Opaque { content_type: "", bytes: b"" }, QUESTION_MAX)?;
    let call = Call { input: Bytes::from(input), clock_ns: realtime_ns(), seed: [0; 32], id: None };
    let slice = Arc::new(Slice::default());
    // To the end of the process, as everything that a guest leaves: giving it back takes system calls.
    mem::forget(Arc::clone(&policy));
    let longest = u64::from(manifest.limits.deadline_us).saturating_mul(1000).min(LONGEST_NS);
    let mut evaluation = Box::pin(engine::evaluate(policy, call, Arc::clone(&slice), None));
    let PolicyConfig { tenant, policy, .. } = manifest;
    match engine::run_for(evaluation.as_mut(), &slice, longest) {
        Poll::Pending => {
            let begun = slice.made() > 0;
            mem::forget(slice);
            if !begun {
                mem::forget(evaluation);
                return Err(TrialError::NeverBegins);
            }
            tracing::warn!(%tenant, %policy, "on trial it did not answer in its time");
            mem::forget(evaluation);
        }
        Poll::Ready(evaluated) => {
            mem::forget(evaluated.residue);
            if let Outcome::Refused(refusal) = evaluated.decision.outcome {
                if !evaluated.instantiated {
                    return Err(TrialError::Instance(format!("{refusal:?}")));
                }
                tracing::warn!(%tenant, %policy, outcome = ?refusal, "on trial it did not answer");
            }
        }
    }
    Ok(())
}
