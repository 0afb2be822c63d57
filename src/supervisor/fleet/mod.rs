//! All children, and what becomes of them: started, witnessed, routed, drained, killed, replaced.
//!
//! Every wake-up of the loop in [`super::supervise`] calls the steps here in the order they stand: what the children
//! said, which of them ended, which of them are late, and then [`Fleet::step_forward`], which compares what there is
//! with what is wanted and does the difference.
//!
//! When the frontend dies its channels to the workers die with it. The workers that serve own their clients'
//! connections, so they are let drain, not killed; a new frontend and new workers start at the same time. When the
//! registry dies nobody else does: see [`survey`].

mod builders;
mod end;
mod exporter;
mod forward;
mod gateway;
mod reap;
mod reload;
mod start;
mod survey;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

pub(super) use reload::Ended;

use super::books::Books;
use super::child::{Child, Misbehaviour, Permitted, Stage, all_well};
use super::config::Config;
use super::control_groups::ControlGroups;
use super::generations::{Edition, Lineage, Living};
use super::listen::Sockets;
use super::log::say;
use super::spawn::Spawner;
use builders::Builders;
use exporter::Exporter;
use survey::{Gone, Survey};

use crate::sandbox::witness::{self, Expected};
use crate::wire::channel::{ReceiveError, Received, SendError};
use crate::wire::control::{AskedReload, Isolation, Ready, ToChild};
use crate::wire::spawner::Part;

/// From the end of the control channel to the end of the process: whoever is on its way out says itself why, if it is given a
/// moment for it, and whoever is not is killed.
const END_WITHIN: Duration = Duration::from_millis(500);
/// How the end of a process that wanted to end is called.
const LEFT: &str = "exited with 0";
/// And that of one that was killed.
const KILLED: &str = "killed by SIGKILL";
/// A full channel is tried again after this.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// Messages read from one child in one wake-up, so that none keeps us from the others.
const MESSAGES_A_ROUND: usize = 16;
/// With this many old generations of one class still draining, nothing makes another.
pub(super) const DRAINING_MAX: usize = 4;

/// Every child of this process, and the lines they come from.
pub(super) struct Fleet {
    spawner: Spawner,
    /// What became of the spawner, if it is of no use any more: nobody can be started.
    spawner_lost: Option<String>,
    /// Its end was seen.
    spawner_gone: bool,
    groups: ControlGroups,
    books: Books,
    sockets: Sockets,
    isolation: Isolation,
    current: Edition,
    children: Vec<Child>,
    survey: Survey,
    builders: Builders,
    frontend: Lineage,
    classes: Vec<Lineage>,
    /// `None`: there is no telemetry.
    exporter: Option<Exporter>,
    /// `None`: there is no gateway.
    gateway: Option<Lineage>,
    /// The service ends by then; whom the gateway still asks is told once it is gone.
    ends: Option<Instant>,
    /// What did not start since [`Fleet::take_failures`].
    failures: Vec<String>,
    reloads: u64,
    last_reload_error: Option<String>,
    asked: Option<Box<AskedReload>>,
    /// The frontend and the exporter do not know the present table yet.
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
        books: Books,
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
            books,
            isolation,
            survey: Survey::new(),
            builders: Builders::default(),
            frontend: Lineage::new(Part::Frontend),
            exporter: Exporter::wanted(&first.config, &sockets),
            gateway: first.config.gateway.as_ref().map(|_| Lineage::new(Part::Gateway)),
            ends: None,
            classes: classes.map(|class| Lineage::new(Part::Worker(class.name.clone()))).collect(),
            sockets,
            current: first,
            children: Vec::new(),
            failures: Vec::new(),
            reloads: 0,
            last_reload_error: None,
            asked: None,
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
                    Ok(Permitted::Surveyed { host_key, refused }) => {
                        self.heard_survey(index, host_key, refused, now);
                    }
                    Ok(Permitted::Build { serial, class }) => self.heard_build(index, serial, class, now),
                    Ok(Permitted::Changed) => self.heard_change(),
                    Ok(Permitted::GatewayCut { generation }) => self.gateway_cut(generation, now),
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
                match child.part {
                    Part::Worker(_) | Part::Frontend => say!(
                        "{child}: sealed: {} threads, {} policies loaded, {} refused",
                        witnessed.threads,
                        ready.loaded,
                        ready.refused
                    ),
                    Part::Registry | Part::Exporter => say!("{child}: sealed"),
                    Part::Gateway => say!("{child}: sealed: {} threads", witnessed.threads),
                    // One for each policy.
                    Part::Builder(_) => {}
                }
                child.threads = witnessed.threads;
                child.ready = Some(ready);
                child.stage = Stage::Witnessed;
                self.changed = true;
            }
            Err(why) => self.condemn(index, &why.to_string(), now),
        }
    }

    /// Pings, and kills those that are late with anything.
    pub(super) fn watch(&mut self, now: Instant) {
        for index in 0..self.children.len() {
            let Some(child) = self.children.get_mut(index) else { return };
            let late = match child.stage {
                Stage::Starting { until } if now >= until => Some("was not ready in time"),
                Stage::Draining { until } if now >= until => Some("did not drain in time"),
                Stage::Working { until } if now >= until => Some("took longer than builder.wall"),
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
        self.ask_registry(now);
        self.keep_gateway();
        self.start_wanted(now);
        self.supply_workers(now);
        self.start_builders(now);
        self.hand_out_builders(now);
        self.serve_frontend(now);
        self.serve_exporter(now);
        self.reassign(now);
        self.route_workers(now);
        self.tell_table();
        self.open_doors(now);
        self.serve_gateway(now);
        // Once all serve, that is said, and whoever asks then is to hear of all.
        self.tell_table();
    }

    /// A child could not be told what it has to hear. Whoever closed its channel is at its end, and what it ended by says
    /// more than that it did not hear us.
    fn not_told(&mut self, index: usize, what: &str, why: &SendError, now: Instant) {
        match why {
            SendError::Closed => self.listen_to(index, now),
            why => self.condemn(index, &format!("{what}: {why}"), now),
        }
    }

    /// Kills a child that must not go on, and thinks of what that means at once: its end may take its time.
    fn condemn(&mut self, index: usize, why: &str, now: Instant) {
        if let Some(gone) = self.end(index, why) {
            self.lost(&gone, why, now);
        }
    }

    /// Kills a child. `None` if that was done before.
    fn end(&mut self, index: usize, why: &str) -> Option<Gone> {
        let child = self.children.get_mut(index)?;
        let stage = std::mem::replace(&mut child.stage, Stage::Condemned);
        if stage == Stage::Condemned {
            return None;
        }
        say!("{child}: killed: {why}");
        (child.handover, child.supply) = (None, None);
        if let Err(errno) = kill(child.pid, Signal::SIGKILL) {
            say!("{child}: kill: {errno}");
        }
        self.changed = true;
        Some(Gone::at(stage, child))
    }

    /// A child is no more.
    fn lost(&mut self, gone: &Gone, why: &str, now: Instant) {
        match (&gone.part, gone.stage) {
            (Part::Registry, _) => self.registry_lost(gone, why, now),
            (Part::Builder(_), _) => self.builder_lost(gone, why),
            (Part::Exporter, _) => self.exporter_lost(gone, why, now),
            (part @ Part::Worker(_), Stage::Starting { .. })
                if gone.supplier.is_some_and(|generation| self.lost_its_registry(generation, now)) =>
            {
                self.lineage(part).cut_off(now);
            }
            (part, Stage::Starting { .. } | Stage::Witnessed) => {
                self.lineage(part).did_not_start(gone.epoch, why, now);
                self.failures.push(format!("{part}: {why}"));
            }
            (part, Stage::Serving { since }) => {
                self.lineage(part).died(since, now);
                if *part == Part::Frontend {
                    self.orphan_workers(now);
                }
            }
            (_, Stage::Working { .. } | Stage::Draining { .. } | Stage::Condemned) => {}
        }
    }

    fn orphan_workers(&mut self, now: Instant) {
        let until = now + self.current.config.service.drain;
        let orphan = |child: &&mut Child| matches!(child.part, Part::Worker(_)) && child.is_serving();
        for child in self.children.iter_mut().filter(orphan) {
            child.stage = Stage::Draining { until };
            // They see the end of their channel to the frontend as well.
            let _ = child.channel.send(&ToChild::Drain, None);
        }
    }

    /// The frontend and a worker of every class serve.
    fn all_decide(&self) -> bool {
        std::iter::once(&self.frontend).chain(&self.classes).all(|lineage| self.serves(lineage))
    }

    /// And the gateway, if there is to be one.
    pub(super) fn all_serve(&self) -> bool {
        self.all_decide() && self.gateway.iter().all(|lineage| self.serves(lineage))
    }

    fn serves(&self, lineage: &Lineage) -> bool {
        self.living(&lineage.part).serving.is_some()
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

    /// The most generations of one class, or of the gateway, that drain at this moment.
    pub(super) fn draining(&self) -> usize {
        let draining = |lineage: &Lineage| {
            let of_it =
                |child: &&Child| child.part == lineage.part && matches!(child.stage, Stage::Draining { .. });
            self.children.iter().filter(of_it).count()
        };
        self.classes.iter().chain(&self.gateway).map(draining).max().unwrap_or(0)
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
            (Stage::Starting { until } | Stage::Working { until }, _) => Some(until),
            (Stage::Serving { .. }, _) => Some(child.answers.next()),
            (Stage::Witnessed, _) => None,
        });
        let lineages = self.lineages().filter_map(|lineage| lineage.next(now));
        let retry = self.retry.then(|| now + TRY_AGAIN);
        let surveyed = self.has_surveyed().then_some(now);
        children.chain(lineages).chain(retry).chain(surveyed).min()
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
        if *part == Part::Registry {
            return &mut self.survey.lineage;
        }
        if *part == Part::Exporter
            && let Some(exporter) = &mut self.exporter
        {
            return &mut exporter.lineage;
        }
        if *part == Part::Gateway
            && let Some(gateway) = &mut self.gateway
        {
            return gateway;
        }
        // Every part but a builder has a lineage, made with the fleet; the frontend's stands in where there is none.
        self.classes.iter_mut().find(|lineage| lineage.part == *part).unwrap_or(&mut self.frontend)
    }

    fn lineages(&self) -> impl Iterator<Item = &Lineage> {
        let exporter = self.exporter.as_ref().map(|exporter| &exporter.lineage);
        let first = [&self.survey.lineage, &self.frontend].into_iter();
        first.chain(&self.classes).chain(exporter).chain(&self.gateway)
    }

    fn find(&self, what: impl Fn(&Child) -> bool) -> Option<usize> {
        self.children.iter().position(what)
    }
}
