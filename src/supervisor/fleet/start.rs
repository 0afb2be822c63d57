//! Starting what is wanted: the assignment, the channels, the limits of one child.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Fleet;
use crate::sandbox::privileges::ConfiguredLimits;
use crate::supervisor::child::Child;
use crate::supervisor::generations::Edition;
use crate::supervisor::log::say;
use crate::supervisor::spawn::{self, Launch, SpawnError};
use crate::wire::channel::Channel;
use crate::wire::control::Isolation;
use crate::wire::handover::{FromWorker, HANDOVER_MAX, ToWorker};
use crate::wire::spawner::Part;

/// From the order to Ready: verifying and loading ten thousand policies takes seconds.
const START_WITHIN: Duration = Duration::from_secs(60);

impl Fleet {
    pub(super) fn start_wanted(&mut self, now: Instant) {
        let parts: Vec<Part> =
            std::iter::once(&self.frontend).chain(&self.classes).map(|l| l.part.clone()).collect();
        for part in parts {
            let mut living = self.living(&part);
            if part == Part::Frontend && living.serving.is_some() {
                // A frontend learns of a new edition while it serves, see `reassign`.
                living.serving = Some(self.current.epoch);
            }
            let current = self.current.clone();
            let Some(edition) = self.lineage(&part).wanted(&current, living, now) else { continue };
            let generation = self.lineage(&part).start();
            match self.start(&part, generation, &edition, now) {
                Ok(child) => {
                    self.children.push(child);
                    self.changed = true;
                }
                Err(why) => {
                    if why.is_the_spawners_end() {
                        self.spawner_lost = Some(format!("failed: {why}"));
                        return;
                    }
                    let why = why.to_string();
                    say!("{part} generation {generation}: did not start: {why}");
                    self.lineage(&part).did_not_start(edition.epoch, &why, now);
                    self.failures.push(format!("{part}: {why}"));
                }
            }
        }
    }

    fn start(
        &self,
        part: &Part,
        generation: u64,
        edition: &Edition,
        now: Instant,
    ) -> Result<Child, SpawnError> {
        let config = &edition.config;
        let (title, identity, assignment, limits, handover) = match part {
            Part::Frontend => {
                let open = config.frontend.max_connections.saturating_add(
                    // Carried over from one worker to the next, they pass through here.
                    config.classes.iter().map(|class| class.limits.connections).fold(0, u32::saturating_add),
                );
                let assignment = spawn::assignment(&config.frontend_assignment(self.isolation))?;
                ("portcullis-frontend".to_owned(), config.frontend.identity, assignment, (open, 64), None)
            }
            Part::Registry | Part::Builder(_) => return Err(SpawnError::NoClass),
            Part::Worker(name) => {
                let Some(class) = config.class(name) else { return Err(SpawnError::NoClass) };
                let assignment = config.worker_assignment(class, generation, self.isolation, "");
                let policies = assignment.tenants.iter().map(|tenant| tenant.policies.len()).sum::<usize>();
                // A policy is held as its image and, while it is loaded, as its files.
                let policies = u32::try_from(policies).unwrap_or(u32::MAX).saturating_mul(2);
                let open = policies.saturating_add(class.limits.connections);
                let threads = class.limits.threads.saturating_add(16);
                let pair =
                    Channel::<ToWorker, FromWorker>::pair(HANDOVER_MAX).map_err(SpawnError::Handover)?;
                let title = format!("portcullis-worker: {name}");
                (title, class.identity, spawn::assignment(&assignment)?, (open, threads), Some(pair))
            }
        };
        let (open_files, threads) = limits;
        let limits = ConfiguredLimits {
            open_files: spawn::open_files(u64::from(open_files).saturating_add(256), &title),
            // Where the UID is the role's own, what it may start is bounded: all generations that live at one time.
            processes: match self.isolation {
                Isolation::DistinctUids => Some(u64::from(threads).saturating_mul(32)),
                Isolation::SharedUid => None,
            },
            build: None,
        };
        let (ours, theirs) = match handover {
            None => (None, None),
            Some((ours, theirs)) => (Some(OwnedFd::from(ours)), Some(OwnedFd::from(theirs))),
        };
        let (first, second) = match &theirs {
            Some(theirs) => (theirs.as_fd(), None),
            None => (self.sockets.clients(), Some(self.sockets.operators())),
        };
        let group = match part {
            Part::Frontend | Part::Registry | Part::Builder(_) => None,
            Part::Worker(class) => self.groups.entrance(class),
        };
        let assignment = assignment.as_fd();
        let launch = Launch { part: part.clone(), limits, assignment, first: Some(first), second, group };
        let known: Vec<_> = self.children.iter().map(|child| child.pid).collect();
        let launched = self.spawner.launch(&launch, &known)?;
        let until = now + START_WITHIN;
        Ok(Child::new((part.clone(), generation), edition.clone(), identity, launched, ours, until))
    }
}
