//! Questions and answers of one greeted connection, without the socket: what is to be written, and who waits for what.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use bytes::{Buf, BytesMut};

use super::{Breach, ClientError};
use crate::decision::{Decision, Input, PolicyName, Tenant, TraceContext};
use crate::wire::client::{BATCH_MAX, CLIENT_FRAME_MAX, ClientFrame, Deadline, ServerFrame};
use crate::wire::frame::{self, PREFIX};

/// To whom a question is put, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) tenant: &'a Tenant,
    pub(super) policy: &'a PolicyName,
    pub(super) deadline: Deadline,
    pub(super) trace: Option<TraceContext>,
}

/// What comes back.
#[expect(clippy::large_enum_variant, reason = "nearly all are decisions, each moved once or twice")]
#[derive(Debug)]
pub(super) enum Answer {
    Decision(Decision),
    Decisions(Vec<Decision>),
    Pong,
}

/// The state of one connection; `W` is told when its answer is there.
#[derive(Debug)]
pub(super) struct Exchange<W> {
    outgoing: BytesMut,
    /// Bytes written before the first of `outgoing`, since the Welcome.
    written: u64,
    /// Encoded inputs of the question at hand.
    inputs: BytesMut,
    last_id: u64,
    waiting: HashMap<u64, Waiting<W>>,
}

#[derive(Debug)]
struct Waiting<W> {
    waiter: W,
    expects: Expects,
    /// Where its frame starts, counted like `written`.
    start: u64,
    given_up: Option<Instant>,
}

#[derive(Debug)]
enum Expects {
    Decision,
    Decisions(usize),
    Pong,
}

impl<W> Exchange<W> {
    pub(super) fn new() -> Self {
        Self {
            outgoing: BytesMut::new(),
            written: 0,
            inputs: BytesMut::new(),
            last_id: 0,
            waiting: HashMap::new(),
        }
    }

    /// Adds a question to what is to be written. Gives its id.
    pub(super) fn decide(
        &mut self,
        subject: Subject<'_>,
        input: &Input<'_>,
        waiter: W,
    ) -> Result<u64, ClientError> {
        self.inputs.clear();
        let range = append(input, &mut self.inputs)?;
        let id = self.last_id.wrapping_add(1);
        let frame = ClientFrame::Decide {
            id,
            tenant: subject.tenant.as_str(),
            policy: subject.policy.as_str(),
            deadline: subject.deadline,
            trace: subject.trace,
            input: self.inputs.get(range).unwrap_or_default(),
        };
        let start = enqueue(&frame, &mut self.outgoing, self.written)?;
        Ok(self.wait(id, Expects::Decision, start, waiter))
    }

    /// The same for several questions at once.
    pub(super) fn decide_batch(
        &mut self,
        subject: Subject<'_>,
        inputs: &[Input<'_>],
        waiter: W,
    ) -> Result<u64, ClientError> {
        if inputs.is_empty() || inputs.len() > BATCH_MAX {
            return Err(ClientError::BatchSize(inputs.len()));
        }
        self.inputs.clear();
        let mut ranges = Vec::with_capacity(inputs.len());
        for input in inputs {
            ranges.push(append(input, &mut self.inputs)?);
            if self.inputs.len() > CLIENT_FRAME_MAX {
                return Err(ClientError::TooLong);
            }
        }
        let id = self.last_id.wrapping_add(1);
        let frame = ClientFrame::DecideBatch {
            id,
            tenant: subject.tenant.as_str(),
            policy: subject.policy.as_str(),
            deadline: subject.deadline,
            trace: subject.trace,
            inputs: ranges.into_iter().map(|range| self.inputs.get(range).unwrap_or_default()).collect(),
        };
        let start = enqueue(&frame, &mut self.outgoing, self.written)?;
        Ok(self.wait(id, Expects::Decisions(inputs.len()), start, waiter))
    }

    /// Asks for a sign of life.
    pub(super) fn ping(&mut self, waiter: W) -> Result<u64, ClientError> {
        let nonce = self.last_id.wrapping_add(1);
        let start = enqueue(&ClientFrame::Ping { nonce }, &mut self.outgoing, self.written)?;
        Ok(self.wait(nonce, Expects::Pong, start, waiter))
    }

    /// Gives a question up: the service is told, and its answer is still waited for, once. Nothing if it is answered.
    pub(super) fn cancel(&mut self, id: u64) -> Result<(), ClientError> {
        let Some(waiting) = self.waiting.get_mut(&id) else { return Ok(()) };
        if waiting.given_up.replace(Instant::now()).is_none() && !matches!(waiting.expects, Expects::Pong) {
            enqueue(&ClientFrame::Cancel { id }, &mut self.outgoing, self.written)?;
        }
        Ok(())
    }

    /// What is to be written next.
    pub(super) fn outgoing(&self) -> &[u8] {
        &self.outgoing
    }

    /// That many bytes of [`Self::outgoing`] were written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        let bytes = bytes.min(self.outgoing.len());
        self.outgoing.advance(bytes);
        self.written = self.written.saturating_add(bytes as u64);
    }

    /// Finds who waits for this frame.
    pub(super) fn answered(&mut self, frame: ServerFrame) -> Result<(u64, W, Answer), ClientError> {
        let (id, answer) = match frame {
            ServerFrame::Decision { id, decision } => (id, Answer::Decision(decision)),
            ServerFrame::Decisions { id, decisions } => (id, Answer::Decisions(decisions)),
            ServerFrame::Pong { nonce } => (nonce, Answer::Pong),
            ServerFrame::Farewell(farewell) => return Err(ClientError::Farewell(farewell)),
            ServerFrame::Welcome { .. } => return Err(ClientError::Protocol(Breach::WelcomeTwice)),
        };
        let waiting = self.waiting.remove(&id).ok_or(ClientError::Protocol(Breach::NotAsked))?;
        match (&waiting.expects, &answer) {
            (Expects::Decision, Answer::Decision(_)) | (Expects::Pong, Answer::Pong) => {}
            (Expects::Decisions(asked), Answer::Decisions(given)) if *asked == given.len() => {}
            _ => return Err(ClientError::Protocol(Breach::Mismatch)),
        }
        // Whoever acts on them should not have to ask whether the worker is still its own master.
        let decisions = match &answer {
            Answer::Decision(decision) => std::slice::from_ref(decision),
            Answer::Decisions(decisions) => decisions.as_slice(),
            Answer::Pong => &[],
        };
        for decision in decisions {
            decision.obligations.check().map_err(Breach::from).map_err(ClientError::Protocol)?;
        }
        Ok((id, waiting.waiter, answer))
    }

    /// Whether any byte of an unanswered question has been written.
    pub(super) fn any_written(&self, id: u64) -> bool {
        self.waiting.get(&id).is_some_and(|waiting| waiting.start < self.written)
    }

    /// When the question was given up that has been unanswered for longest since.
    pub(super) fn longest_given_up(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiting| waiting.given_up).min()
    }

    /// Everybody whose answer is not there.
    pub(super) fn waiters(&mut self) -> impl Iterator<Item = &mut W> {
        self.waiting.values_mut().map(|waiting| &mut waiting.waiter)
    }

    /// Everybody who still waits, and whether any byte of their question was written. The connection is over.
    pub(super) fn end(&mut self) -> impl Iterator<Item = (W, bool)> + use<W> {
        let written = self.written;
        std::mem::take(&mut self.waiting)
            .into_values()
            .map(move |waiting| (waiting.waiter, waiting.start < written))
    }

    fn wait(&mut self, id: u64, expects: Expects, start: u64, waiter: W) -> u64 {
        self.last_id = id;
        self.waiting.insert(id, Waiting { waiter, expects, start, given_up: None });
        id
    }
}

/// Appends an encoded input; gives where it is.
fn append(input: &Input<'_>, inputs: &mut BytesMut) -> Result<Range<usize>, ClientError> {
    let start = inputs.len() + PREFIX;
    frame::encode_frame(input, inputs, CLIENT_FRAME_MAX).map_err(|_| ClientError::TooLong)?;
    Ok(start..inputs.len())
}

/// Appends a frame; gives where it starts, counted from the first byte ever written.
fn enqueue(frame: &ClientFrame<'_>, outgoing: &mut BytesMut, written: u64) -> Result<u64, ClientError> {
    let start = written.saturating_add(outgoing.len() as u64);
    frame::encode_frame(frame, outgoing, CLIENT_FRAME_MAX).map_err(|_| ClientError::TooLong)?;
    Ok(start)
}
