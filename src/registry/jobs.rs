//! Builders: asked for through the supervisor, given one job each, and believed in nothing that can be checked.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::survey::{Built, NotBuilt, Wanted};
use super::tally::Spent;
use crate::artifact::{ARTIFACT_MAX, Digest, SealedBytes};
use crate::decision::TrustClass;
use crate::engine::{MadeFor, Metering};
use crate::wire::channel::{Channel, Received};
use crate::wire::job::{JOB_MAX, Job, Report};

/// How long the supervisor's word on a builder's end is awaited, once its channel is closed.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What was asked for and has not come yet.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    asked: BTreeMap<u64, Wanted>,
    running: BTreeMap<u64, Running>,
    /// Jobs that are over and were not counted yet.
    spent: Vec<Spent>,
}

#[derive(Debug)]
struct Running {
    channel: Channel<Job, Report>,
    job: Job,
    began: Instant,
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
                let (job, began) = (wanted.job, Instant::now());
                self.running.insert(serial, Running { channel, job, began, found, lost, ended: None });
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
        let heard = running.listen(&mut buffer);
        let result = heard.unwrap_or_else(|| Err(lasting(format!("builder {why}"))));
        self.spent.extend(running.spent(&result));
        Some((serial, result))
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
        for (serial, result) in &done {
            let running = self.running.remove(serial);
            self.spent.extend(running.and_then(|running| running.spent(result)));
        }
        done
    }

    /// What the jobs took that have ended since this was last asked.
    pub(super) fn take_spent(&mut self) -> Vec<Spent> {
        std::mem::take(&mut self.spent)
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
    /// Looking for what a cache has is not building.
    fn spent(&self, result: &Result<Built, NotBuilt>) -> Option<Spent> {
        let manifest = match &self.job {
            Job::Check { manifest, .. } | Job::Compile { manifest, .. } => manifest,
            Job::Recall { .. } | Job::Clear => return None,
        };
        Some(Spent { tenant: manifest.tenant.clone(), took: self.began.elapsed(), good: result.is_ok() })
    }

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
            (Job::Clear, Report::Cleared) => Ok(Built::Cleared),
            (Job::Compile { manifest, .. }, Report::Compiled { cwasm }) => {
                let metering = Metering::of(&manifest.limits);
                let code = sealed(code, cwasm).and_then(|code| fits(code, metering));
                code.map(Built::Compiled).map_err(lasting)
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
fn fits(code: Arc<SealedBytes>, metering: Metering) -> Result<Arc<SealedBytes>, String> {
    match MadeFor::read(&code).and_then(|made| made.check(metering)) {
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
        Report::Cleared => "Cleared",
        Report::Refused { .. } => "Refused",
    }
}

fn lasting(why: String) -> NotBuilt {
    NotBuilt { why, lasting: true }
}

fn passing(why: String) -> NotBuilt {
    NotBuilt { why, lasting: false }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::artifact::Ceiling;
    use crate::bundle::PolicyConfig;
    use crate::registry::tests::key;

    type Builder = Channel<Report, Job>;

    fn code(bytes: &[u8]) -> Arc<SealedBytes> {
        Arc::new(SealedBytes::of(bytes).unwrap())
    }

    fn recall(digests: &[&[u8]]) -> Job {
        Job::Recall { cwasm: digests.iter().map(|bytes| Digest::of(bytes)).collect() }
    }

    fn manifest() -> Box<PolicyConfig> {
        let (tenant, policy) = key("gate");
        Box::new(PolicyConfig::plain(tenant, policy, 1, Digest::of(b"source")))
    }

    fn compile() -> Job {
        Job::Compile { manifest: manifest(), ceiling: Ceiling::MOST }
    }

    fn check() -> Job {
        Job::Check { manifest: manifest(), ceiling: Ceiling::MOST }
    }

    /// A builder with this job, and how many descriptors came with it.
    fn builder(jobs: &mut Jobs, job: Job) -> (Builder, usize) {
        let descriptors = match job {
            Job::Check { .. } => vec![code(b"source"), code(b"code")],
            Job::Compile { .. } => vec![code(b"source")],
            Job::Recall { .. } => vec![],
            Job::Clear => vec![code(b"digests")],
        };
        let class = TrustClass::new("web").unwrap();
        let asks = jobs.ask(Wanted { serial: 7, class: class.clone(), job: job.clone(), descriptors });
        assert_eq!(asks, (7, class));
        let (ours, theirs) = Channel::<Job, Report>::pair(JOB_MAX).unwrap();
        assert!(jobs.builder(7, ours.into()).is_none());
        let Ok(Received::Message(heard, came)) = theirs.receive_many(&mut Vec::new()) else {
            panic!("a job")
        };
        assert_eq!(heard, job);
        (theirs, came.len())
    }

    fn word(jobs: &mut Jobs) -> Option<Result<Built, NotBuilt>> {
        let mut done = jobs.go_on(Instant::now(), &mut Vec::new());
        assert!(done.len() <= 1);
        let (serial, result) = done.pop()?;
        assert_eq!(serial, 7);
        assert_eq!(jobs.watched().count(), 0, "one job, one answer");
        Some(result)
    }

    /// What is made of an answer that is not one.
    fn refused(job: Job, say: impl FnOnce(&Builder)) -> String {
        let mut jobs = Jobs::default();
        let (builder, _) = builder(&mut jobs, job);
        assert!(word(&mut jobs).is_none(), "control: nothing was said yet");
        say(&builder);
        match word(&mut jobs) {
            Some(Err(NotBuilt { why, lasting: true })) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_comes_with_its_descriptors_and_its_answer_counts() {
        let mut jobs = Jobs::default();
        let (builder, came) = builder(&mut jobs, check());
        assert_eq!(came, 2);
        builder.send(&Report::Sound, None).unwrap();
        assert!(matches!(word(&mut jobs), Some(Ok(Built::Sound))));
    }

    #[test]
    fn a_builder_is_believed_in_nothing_that_can_be_checked() {
        let sealed = code(b"other code");
        let named = Report::Compiled { cwasm: Digest::of(b"code") };
        let why = refused(compile(), |builder| builder.send(&named, Some(sealed.as_fd())).unwrap());
        assert!(why.contains("has digest") && why.contains("it named"), "{why}");
        let why = refused(compile(), |builder| builder.send(&named, None).unwrap());
        assert!(why.contains("did not give it"), "{why}");
        let why = refused(compile(), |builder| {
            let name = c"open";
            let flags = nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING;
            let memfd = nix::sys::memfd::memfd_create(name, flags).unwrap();
            let mut file = std::fs::File::from(memfd);
            file.write_all(b"code").unwrap();
            builder.send(&named, Some(file.as_fd())).unwrap();
        });
        assert!(why.contains("seals") && why.contains("missing"), "{why}");
        let honest = Report::Compiled { cwasm: sealed.digest() };
        let why = refused(compile(), |builder| builder.send(&honest, Some(sealed.as_fd())).unwrap());
        assert!(why.contains("does not fit this host"), "{why}");
        let why = refused(compile(), |builder| builder.send(&Report::Sound, None).unwrap());
        assert_eq!(why, "builder misbehaved: answered Sound");
        let why = refused(check(), |builder| builder.send(&honest, Some(sealed.as_fd())).unwrap());
        assert_eq!(why, "builder misbehaved: answered Compiled");
        let no = Report::Refused { why: "it traps".into() };
        assert_eq!(refused(check(), |builder| builder.send(&no, None).unwrap()), "it traps");
    }

    #[test]
    fn a_cache_answers_for_each_digest_in_order() {
        let mut jobs = Jobs::default();
        let (builder, _) = builder(&mut jobs, recall(&[b"a", b"b", b"c"]));
        builder.send(&Report::Recalled { cwasm: Digest::of(b"a") }, Some(code(b"a").as_fd())).unwrap();
        let lost = Report::Lost { cwasm: Digest::of(b"b"), why: "half of it".into(), corrupt: true };
        builder.send(&lost, None).unwrap();
        assert!(word(&mut jobs).is_none(), "not all yet");
        // Other code than it says.
        builder.send(&Report::Recalled { cwasm: Digest::of(b"c") }, Some(code(b"x").as_fd())).unwrap();
        let Some(Ok(Built::Recalled { found, lost })) = word(&mut jobs) else { panic!("an answer") };
        assert_eq!(found.iter().map(|code| code.digest()).collect::<Vec<_>>(), [Digest::of(b"a")]);
        assert!(lost[0].1.contains("was broken in the cache: half of it"), "{lost:?}");
        assert!(lost[1].0 == Digest::of(b"c") && lost[1].1.contains("has digest"), "{lost:?}");
        let other = Report::Recalled { cwasm: Digest::of(b"b") };
        let why = refused(recall(&[b"a", b"b"]), |builder| {
            builder.send(&other, Some(code(b"b").as_fd())).unwrap();
        });
        assert_eq!(why, "builder misbehaved: answered Recalled");
    }

    #[test]
    fn a_builder_that_dies_is_spoken_of_by_the_supervisor_or_not_waited_for() {
        let mut jobs = Jobs::default();
        drop(builder(&mut jobs, compile()));
        assert!(word(&mut jobs).is_none(), "the supervisor says why in a moment");
        assert!(jobs.next_deadline().is_some());
        let Some((7, Err(NotBuilt { why, lasting: true }))) = jobs.no_builder(7, "killed by SIGXCPU") else {
            panic!("spoken of")
        };
        assert_eq!(why, "builder killed by SIGXCPU");

        drop(builder(&mut jobs, compile()));
        assert!(word(&mut jobs).is_none());
        let later = Instant::now() + LAST_WORD + Duration::from_secs(1);
        let done = jobs.go_on(later, &mut Vec::new());
        assert!(matches!(&done[..], [(7, Err(NotBuilt { lasting: true, .. }))]), "{done:?}");
        assert!(jobs.no_builder(7, "too late").is_none());
    }

    #[test]
    fn what_was_said_before_the_end_counts() {
        let mut jobs = Jobs::default();
        let (builder, _) = builder(&mut jobs, check());
        builder.send(&Report::Sound, None).unwrap();
        drop(builder);
        assert!(matches!(jobs.no_builder(7, "killed by SIGKILL"), Some((7, Ok(Built::Sound)))));
    }

    #[test]
    fn where_there_is_no_builder_it_may_be_asked_for_again() {
        let mut jobs = Jobs::default();
        let class = TrustClass::new("web").unwrap();
        jobs.ask(Wanted { serial: 1, class, job: recall(&[b"a"]), descriptors: vec![] });
        let done = jobs.no_builder(1, "out of processes");
        let Some((1, Err(NotBuilt { why, lasting: false }))) = done else { panic!("{done:?}") };
        assert_eq!(why, "no builder: out of processes");
    }
}
