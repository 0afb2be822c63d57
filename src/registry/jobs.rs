//! Builders: asked for through the supervisor, given one job each, and believed in nothing that can be checked.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::survey::{Built, NotBuilt, Wanted};
use crate::artifact::{ARTIFACT_MAX, Digest, SealedBytes};
use crate::decision::TrustClass;
use crate::engine::MadeFor;
use crate::wire::channel::{Channel, Received};
use crate::wire::job::{JOB_MAX, Job, Report};

/// How long the supervisor's word on a builder's end is awaited, once its channel is closed.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What was asked for and has not come yet.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    asked: BTreeMap<u64, Wanted>,
    running: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    channel: Channel<Job, Report>,
    job: Job,
    found: Vec<Arc<SealedBytes>>,
    lost: Vec<(Digest, String)>,
    /// It closed its channel, and has to be spoken of by then.
    ended: Option<Instant>,
}

/// The end of a job.
pub(super) type Done = (u64, Result<Built, NotBuilt>);

impl Jobs {
    /// Takes a job; the supervisor is to be asked for a builder of this serial and class.
    pub(super) fn ask(&mut self, wanted: Wanted) -> (u64, TrustClass) {
        let asks = (wanted.serial, wanted.class.clone());
        self.asked.insert(wanted.serial, wanted);
        asks
    }

    /// The supervisor gives a builder.
    pub(super) fn builder(&mut self, serial: u64, socket: OwnedFd) -> Option<Done> {
        // Of a survey that is over: the builder sees that its channel ends.
        let wanted = self.asked.remove(&serial)?;
        let channel: Channel<Job, Report> = Channel::new(socket, JOB_MAX);
        let descriptors: Vec<BorrowedFd<'_>> = wanted.descriptors.iter().map(|code| code.as_fd()).collect();
        match channel.send_with(&wanted.job, &descriptors) {
            Ok(()) => {
                let (found, lost) = (Vec::new(), Vec::new());
                self.running.insert(serial, Running { channel, job: wanted.job, found, lost, ended: None });
                None
            }
            Err(error) => Some((serial, Err(passing(format!("give builder its job: {error}"))))),
        }
    }

    /// There is no builder, or it did not end well.
    pub(super) fn no_builder(&mut self, serial: u64, why: &str) -> Option<Done> {
        if self.asked.remove(&serial).is_some() {
            return Some((serial, Err(passing(format!("no builder: {why}")))));
        }
        let mut running = self.running.remove(&serial)?;
        // It may have said all that was asked before it died.
        let mut buffer = Vec::new();
        match running.listen(&mut buffer) {
            Some(result) => Some((serial, result)),
            None => Some((serial, Err(lasting(format!("builder {why}"))))),
        }
    }

    /// What builders said.
    pub(super) fn go_on(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Vec<Done> {
        let mut done = Vec::new();
        for (serial, running) in &mut self.running {
            if running.ended.is_none()
                && let Some(result) = running.listen(buffer)
            {
                done.push((*serial, result));
            } else if running.ended.is_some_and(|ended| now >= ended + LAST_WORD) {
                done.push((*serial, Err(lasting("builder ended without a word".into()))));
            }
        }
        for (serial, _) in &done {
            self.running.remove(serial);
        }
        done
    }

    /// Channels that something may come from.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let open = self.running.values().filter(|running| running.ended.is_none());
        open.map(|running| running.channel.as_fd())
    }

    /// When a builder that ended has to have been spoken of.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.running.values().filter_map(|running| running.ended).min().map(|ended| ended + LAST_WORD)
    }

    /// Nobody waits for any of it any more.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Running {
    /// Until there is nothing more, or the job is done.
    fn listen(&mut self, buffer: &mut Vec<u8>) -> Option<Result<Built, NotBuilt>> {
        loop {
            match self.channel.receive(buffer) {
                Ok(Received::Nothing) => return None,
                Ok(Received::End) => {
                    self.ended.get_or_insert_with(Instant::now);
                    return None;
                }
                Ok(Received::Message(report, code)) => {
                    if let Some(done) = self.hear(report, code) {
                        return Some(done);
                    }
                }
                Err(error) => return Some(Err(lasting(format!("builder misbehaved: {error}")))),
            }
        }
    }

    fn hear(&mut self, report: Report, code: Option<OwnedFd>) -> Option<Result<Built, NotBuilt>> {
        let done = match (&self.job, report) {
            (_, Report::Refused { why }) => Err(lasting(why)),
            (Job::Check { .. }, Report::Sound) => Ok(Built::Sound),
            (Job::Compile { .. }, Report::Compiled { cwasm }) => {
                sealed(code, cwasm).and_then(fits).map(Built::Compiled).map_err(lasting)
            }
            (Job::Recall { cwasm }, report @ (Report::Recalled { .. } | Report::Lost { .. })) => {
                let all = cwasm.clone();
                return self.recall(&all, report, code);
            }
            (_, report) => Err(lasting(format!("builder misbehaved: answered {}", said(&report)))),
        };
        Some(done)
    }

    /// One answer for each digest, in their order.
    fn recall(
        &mut self,
        all: &[Digest],
        report: Report,
        code: Option<OwnedFd>,
    ) -> Option<Result<Built, NotBuilt>> {
        let asked = all.get(self.found.len().saturating_add(self.lost.len()));
        match report {
            Report::Recalled { cwasm } if asked == Some(&cwasm) => match sealed(code, cwasm) {
                Ok(code) => self.found.push(code),
                Err(why) => self.lost.push((cwasm, why)),
            },
            Report::Lost { cwasm, why, corrupt } if asked == Some(&cwasm) => {
                let state = if corrupt { "was broken in the cache" } else { "was not in the cache" };
                self.lost.push((cwasm, format!("code {state}: {why}")));
            }
            other => return Some(Err(lasting(format!("builder misbehaved: answered {}", said(&other))))),
        }
        if self.found.len().saturating_add(self.lost.len()) < all.len() {
            return None;
        }
        let (found, lost) = (std::mem::take(&mut self.found), std::mem::take(&mut self.lost));
        Some(Ok(Built::Recalled { found, lost }))
    }
}

/// Memory that nobody can change, with the digest that was named.
fn sealed(code: Option<OwnedFd>, expected: Digest) -> Result<Arc<SealedBytes>, String> {
    let code = code.ok_or("builder named code and did not give it")?;
    let code =
        SealedBytes::from_fd(code, ARTIFACT_MAX).map_err(|error| format!("builder's code: {error}"))?;
    if code.digest() != expected {
        return Err(format!("builder's code has digest {}, and it named {expected}", code.digest()));
    }
    Ok(Arc::new(code))
}

/// What was compiled here has to be for here.
fn fits(code: Arc<SealedBytes>) -> Result<Arc<SealedBytes>, String> {
    match MadeFor::read(&code).and_then(|made| made.check()) {
        Ok(()) => Ok(code),
        Err(unfit) => Err(format!("builder's code does not fit this host: {unfit}")),
    }
}

fn said(report: &Report) -> &'static str {
    match report {
        Report::Sound => "Sound",
        Report::Compiled { .. } => "Compiled",
        Report::Recalled { .. } => "Recalled",
        Report::Lost { .. } => "Lost",
        Report::Refused { .. } => "Refused",
    }
}

fn lasting(why: String) -> NotBuilt {
    NotBuilt { why, lasting: true }
}

fn passing(why: String) -> NotBuilt {
    NotBuilt { why, lasting: false }
}
