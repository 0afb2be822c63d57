//! All children, and what becomes of them: started, witnessed, routed, drained, killed, replaced.
//!
//! Every wake-up of the loop in [`super::supervise`] calls the steps here in the order they stand: what the children
//! said, which of them ended, which of them are late, and then [`Fleet::step_forward`], which compares what there is
//! with what is wanted and does the difference.
//!
//! When the frontend dies its channels to the workers die with it. The workers that serve own their clients'
//! connections, so they are let drain, not killed; a new frontend and new workers start at the same time.

mod end;
mod forward;
mod start;

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::child::{Child, Misbehaviour, Permitted, Stage, all_well};
use super::config::Config;
use super::control_groups::{self, ControlGroupError, ControlGroups};
use super::generations::{Edition, Lineage, Living};
use super::listen::Sockets;
use super::log::say;
use super::spawn::Spawner;
use crate::sandbox::witness::{self, Expected};
use crate::wire::channel::{ReceiveError, Received};
use crate::wire::control::{Isolation, Ready, ToChild};
use crate::wire::spawner::Part;

/// From the end of the control channel to the end of the process.
const END_WITHIN: Duration = Duration::from_millis(50);
/// How the end of a process that wanted to end is called.
const LEFT: &str = "exited with 0";
/// And that of one that was killed.
const KILLED: &str = "killed by SIGKILL";
/// A full channel is tried again after this.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// Messages read from one child in one wake-up, so that none keeps us from the others.
const MESSAGES_A_ROUND: usize = 16;
/// Of an error in the process table, bytes: it shares a message with the table.
const ERROR_MAX: usize = 2048;

/// Every child of this process, and the lines they come from.
pub(super) struct Fleet {
    spawner: Spawner,
    /// What became of the spawner, if it is of no use any more: nobody can be started.
    spawner_lost: Option<String>,
    /// Its end was seen.
    spawner_gone: bool,
    groups: ControlGroups,
    sockets: Sockets,
    isolation: Isolation,
    current: Edition,
    children: Vec<Child>,
    frontend: Lineage,
    classes: Vec<Lineage>,
    /// What did not start since [`Fleet::take_failures`].
    failures: Vec<String>,
    reloads: u64,
    last_reload_error: Option<String>,
    /// The frontend does not know the present table yet.
    changed: bool,
    /// Everything has served once.
    began: bool,
    /// A channel was full.
    retry: bool,
    buffer: Vec<u8>,
}

impl Fleet {
    /// Nothing runs yet; [`Fleet::step_forward`] starts everything.
    pub(super) fn new(
        spawner: Spawner,
        groups: ControlGroups,
        sockets: Sockets,
        isolation: Isolation,
        first: Edition,
    ) -> Self {
        let classes = first.config.classes.iter();
        Self {
            spawner,
            spawner_lost: None,
            spawner_gone: false,
            groups,
            sockets,
            isolation,
            frontend: Lineage::new(Part::Frontend),
            classes: classes.map(|class| Lineage::new(Part::Worker(class.name.clone()))).collect(),
            current: first,
            children: Vec::new(),
            failures: Vec::new(),
            reloads: 0,
            last_reload_error: None,
            changed: true,
            began: false,
            retry: false,
            buffer: Vec::new(),
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.current.config
    }

    /// Reads what the children said.
    pub(super) fn listen(&mut self, now: Instant) {
        for index in 0..self.children.len() {
            self.listen_to(index, now);
        }
    }

    fn listen_to(&mut self, index: usize, now: Instant) {
        for _ in 0..MESSAGES_A_ROUND {
            let Some(child) = self.children.get_mut(index) else { return };
            if child.closed.is_some() || child.stage == Stage::Condemned {
                return;
            }
            match child.channel.receive(&mut self.buffer) {
                Ok(Received::Nothing) => return,
                Ok(Received::End) => {
                    child.closed = Some(now);
                    if child.part == Part::Frontend && child.is_serving() {
                        // Its workers see their ends and leave, maybe before we see its death.
                        self.orphan_workers(now);
                    }
                    return;
                }
                Ok(Received::Message(_, Some(_descriptor))) => {
                    self.condemn(index, &Misbehaviour::Descriptor.to_string(), now);
                }
                Ok(Received::Message(message, None)) => match child.judge(message) {
                    Ok(Permitted::Ready(ready)) => self.witness(index, ready, now),
                    Ok(Permitted::Failed(why)) => self.condemn(index, &format!("did not start: {why}"), now),
                    Ok(Permitted::Renew) => {
                        let part = child.part.clone();
                        self.lineage(&part).renew();
                    }
                    Ok(Permitted::Answered | Permitted::Nothing) => {}
                    Err(misbehaviour) => self.condemn(index, &format!("misbehaved: {misbehaviour}"), now),
                },
                Err(ReceiveError::Io(why)) => self.condemn(index, &format!("receive from it: {why}"), now),
                Err(why) => self.condemn(index, &format!("misbehaved: {why}"), now),
            }
        }
    }

    /// Looks at a child that says it is sealed. Only who is found to be gets traffic.
    fn witness(&mut self, index: usize, ready: Ready, now: Instant) {
        let Some(child) = self.children.get_mut(index) else { return };
        let role = child.part.role();
        let expected = Expected {
            role,
            uid: child.identity.uid,
            gid: child.identity.gid,
            isolation: self.isolation,
            // Born under the spawner's.
            filters: self.spawner.filters.saturating_add(role.filters()),
        };
        match witness::look(child.pid.as_raw(), &expected) {
            // The kernel shows nothing of Landlock, so each thread proves it itself.
            Ok(witnessed) if witnessed.threads != ready.landlock_proven_threads => {
                let why = format!(
                    "only {} of its {} threads have proved Landlock",
                    ready.landlock_proven_threads, witnessed.threads
                );
                self.condemn(index, &why, now);
            }
            Ok(witnessed) => {
                say!(
                    "{child}: sealed: {} threads, {} policies loaded, {} refused",
                    witnessed.threads,
                    ready.loaded,
                    ready.refused
                );
                child.threads = witnessed.threads;
                child.ready = Some(ready);
                child.stage = Stage::Witnessed;
                self.changed = true;
            }
            Err(why) => self.condemn(index, &why.to_string(), now),
        }
    }

    /// Collects the children that ended; kills those that were stopped, since nothing stopped answers.
    pub(super) fn reap(&mut self, now: Instant) {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
        loop {
            let (pid, how) = match waitpid(None::<Pid>, Some(flags)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exited with {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("killed by {signal}")),
                Ok(WaitStatus::Stopped(pid, signal)) if pid == self.spawner.pid => {
                    self.spawner_lost = Some(format!("was stopped by {signal}"));
                    continue;
                }
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    if let Some(index) = self.children.iter().position(|child| child.pid == pid) {
                        self.condemn(index, &format!("stopped by {signal}"), now);
                    }
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if pid == self.spawner.pid {
                self.spawner_lost.get_or_insert(how);
                self.spawner_gone = true;
                continue;
            }
            // As process 1 of a container we also inherit strangers.
            let Some(index) = self.children.iter().position(|child| child.pid == pid) else { continue };
            // Its last words may say why.
            self.listen_to(index, now);
            let child = self.children.remove(index);
            let how = self.with_reason(&child, how);
            match child.stage {
                Stage::Condemned => {}
                Stage::Draining { .. } if how == LEFT => say!("{child}: drained"),
                _ => say!("{child}: {how}"),
            }
            self.changed = true;
            match (child.stage, &child.part) {
                (Stage::Serving { since }, Part::Worker(_)) if how == LEFT => {
                    self.lineage(&child.part).left(since, now);
                }
                _ => self.lost(&child.part, child.stage, child.epoch(), &how, now),
            }
        }
    }

    /// Says of a worker that the kernel killed for want of memory that this is why.
    fn with_reason(&mut self, child: &Child, how: String) -> String {
        let Part::Worker(class) = &child.part else { return how };
        if how != KILLED || !self.groups.ran_out_of_memory(class) {
            return how;
        }
        let limit = self.current.config.class(class).and_then(|class| class.group.memory_max).unwrap_or(0);
        format!("{how}: out of memory (memory_max = {})", control_groups::size(limit))
    }

    /// Pings, and kills those that are late with anything.
    pub(super) fn watch(&mut self, now: Instant) {
        for index in 0..self.children.len() {
            let Some(child) = self.children.get_mut(index) else { return };
            let late = match child.stage {
                Stage::Starting { until } if now >= until => Some("was not ready in time"),
                Stage::Draining { until } if now >= until => Some("did not drain in time"),
                Stage::Serving { .. } if child.answers.too_late(now) => Some("does not answer"),
                Stage::Draining { .. } => None,
                // It has no business without us.
                _ if child.closed.is_some_and(|closed| now >= closed + END_WITHIN) => {
                    Some("closed its control channel and lives on")
                }
                _ => None,
            };
            if let Some(why) = late {
                self.condemn(index, why, now);
                continue;
            }
            if child.is_serving()
                && child.closed.is_none()
                && let Some(nonce) = child.answers.ping_due(now)
            {
                child.refill_messages();
                // Not being able to tell it anything is silence, too.
                let _ = child.channel.send(&ToChild::Ping { nonce }, None);
            }
        }
    }

    /// Does whatever brings what there is closer to what is wanted.
    pub(super) fn step_forward(&mut self, now: Instant) {
        self.retry = false;
        self.start_wanted(now);
        self.serve_frontend(now);
        self.reassign(now);
        self.route_workers(now);
        self.tell_table();
        self.open_doors(now);
    }

    /// Kills a child that must not go on, and thinks of what that means at once: its end may take its time.
    fn condemn(&mut self, index: usize, why: &str, now: Instant) {
        let Some(child) = self.children.get_mut(index) else { return };
        let stage = std::mem::replace(&mut child.stage, Stage::Condemned);
        if stage == Stage::Condemned {
            return;
        }
        say!("{child}: killed: {why}");
        child.handover = None;
        if let Err(errno) = kill(child.pid, Signal::SIGKILL) {
            say!("{child}: kill: {errno}");
        }
        let (part, epoch) = (child.part.clone(), child.epoch());
        self.changed = true;
        self.lost(&part, stage, epoch, why, now);
    }

    /// A child that was at `stage` is no more.
    fn lost(&mut self, part: &Part, stage: Stage, epoch: u64, why: &str, now: Instant) {
        match stage {
            Stage::Starting { .. } | Stage::Witnessed => {
                self.lineage(part).did_not_start(epoch, why, now);
                self.failures.push(format!("{part}: {why}"));
            }
            Stage::Serving { since } => {
                self.lineage(part).died(since, now);
                if *part == Part::Frontend {
                    self.orphan_workers(now);
                }
            }
            Stage::Draining { .. } | Stage::Condemned => {}
        }
    }

    fn orphan_workers(&mut self, now: Instant) {
        let until = now + self.current.config.service.drain;
        for child in
            self.children.iter_mut().filter(|child| child.part != Part::Frontend && child.is_serving())
        {
            child.stage = Stage::Draining { until };
            // They see the end of their channel to the frontend as well.
            let _ = child.channel.send(&ToChild::Drain, None);
        }
    }

    /// Limits of classes as `config` has them, or as they were.
    pub(super) fn set_limits(&mut self, config: &Config) -> Result<(), ControlGroupError> {
        self.groups.set(config).inspect_err(|_| {
            let _ = self.groups.set(&self.current.config);
        })
    }

    /// A new edition: what is outdated will be replaced.
    pub(super) fn adopt(&mut self, config: Config) {
        self.current = Edition { config: config.into(), epoch: self.current.epoch.saturating_add(1) };
        for lineage in std::iter::once(&mut self.frontend).chain(&mut self.classes) {
            lineage.try_again();
        }
    }

    /// Counts a reload that ended.
    pub(super) fn reloaded(&mut self, error: Option<&str>) {
        self.reloads = self.reloads.saturating_add(1);
        self.last_reload_error = error.map(|error| {
            let end = (0..=ERROR_MAX.min(error.len())).rev().find(|end| error.is_char_boundary(*end));
            error.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
        });
        self.changed = true;
    }

    /// `None` until the frontend and every class are done with the present edition; then what would not start.
    pub(super) fn settled(&self) -> Option<Vec<String>> {
        let epoch = self.current.epoch;
        self.find(|child| child.part == Part::Frontend && child.is_serving() && child.epoch() >= epoch)?;
        let mut refused = Vec::new();
        for lineage in &self.classes {
            if let Err(why) = lineage.settled(epoch, self.living(&lineage.part))? {
                refused.push(format!("{}: {why}", lineage.part));
            }
        }
        Some(refused)
    }

    /// The frontend and a worker of every class serve.
    pub(super) fn all_serve(&self) -> bool {
        let mut lineages = std::iter::once(&self.frontend).chain(&self.classes);
        lineages.all(|lineage| self.living(&lineage.part).serving.is_some())
    }

    /// Clients get an answer, be it that a class is unavailable, and nobody who serves is silent.
    pub(super) fn is_well(&self, now: Instant) -> bool {
        all_well(&self.children, now)
    }

    /// How the spawner ended, if it did.
    pub(super) fn spawner_lost(&self) -> Option<&str> {
        self.spawner_lost.as_deref()
    }

    /// Somebody did not start, and that has not been looked at: nothing else may ever happen.
    pub(super) fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// What did not start since the last call.
    pub(super) fn take_failures(&mut self) -> Vec<String> {
        std::mem::take(&mut self.failures)
    }

    /// The most generations of one class that drain at this moment.
    pub(super) fn draining(&self) -> usize {
        let draining = |lineage: &Lineage| {
            let of_it =
                |child: &&Child| child.part == lineage.part && matches!(child.stage, Stage::Draining { .. });
            self.children.iter().filter(of_it).count()
        };
        self.classes.iter().map(draining).max().unwrap_or(0)
    }

    /// Those from whom something may come.
    pub(super) fn audible(&self) -> impl Iterator<Item = &Child> {
        self.children.iter().filter(|child| child.closed.is_none() && child.stage != Stage::Condemned)
    }

    /// When there is something to do although nothing happens.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let children = self.children.iter().filter_map(|child| match (child.stage, child.closed) {
            (Stage::Condemned, _) => None,
            (Stage::Draining { until }, _) => Some(until),
            (_, Some(closed)) => Some(closed + END_WITHIN),
            (Stage::Starting { until }, _) => Some(until),
            (Stage::Serving { .. }, _) => Some(child.answers.next()),
            (Stage::Witnessed, _) => None,
        });
        let lineages = std::iter::once(&self.frontend).chain(&self.classes).filter_map(|l| l.next(now));
        let retry = self.retry.then(|| now + TRY_AGAIN);
        children.chain(lineages).chain(retry).min()
    }

    pub(super) fn remove_sockets(&self) {
        self.sockets.remove();
    }

    fn living(&self, part: &Part) -> Living {
        let mut living = Living::default();
        for child in self.children.iter().filter(|child| child.part == *part) {
            living.coming |= child.is_coming();
            if child.is_serving() {
                living.serving = Some(child.epoch());
            }
        }
        living
    }

    fn lineage(&mut self, part: &Part) -> &mut Lineage {
        // Every part has a lineage, made with the fleet; the frontend's stands in where there is none.
        self.classes.iter_mut().find(|lineage| lineage.part == *part).unwrap_or(&mut self.frontend)
    }

    fn find(&self, what: impl Fn(&Child) -> bool) -> Option<usize> {
        self.children.iter().position(what)
    }
}
