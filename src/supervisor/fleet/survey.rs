//! The registry's part: no worker starts before it has surveyed, no configuration is adopted before it has surveyed for
//! that one, and every worker that serves is at the end of a supply channel of the registry that is here now.
//!
//! While there is none the workers that serve go on: what they have was good when the registry went. A worker that dies
//! in that time has no successor until the registry has one.

use std::os::fd::AsFd;
use std::time::Instant;

use super::{DRAINING_MAX, Fleet};
use crate::supervisor::child::{Child, Stage};
use crate::supervisor::config::Config;
use crate::supervisor::generations::{Edition, Lineage};
use crate::supervisor::log::say;
use crate::supervisor::spawn;
use crate::wire::channel::SendError;
use crate::wire::control::ToChild;
use crate::wire::spawner::Part;

/// So many registries in a row that did not come to a survey are not just one that died.
const UNWELL: u32 = 2;

/// What is wanted of the registry, and what has become of it.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) lineage: Lineage,
    /// Not in force before the registry has surveyed for it.
    pending: Option<Edition>,
    /// What became of the last that was pending, until somebody asks: an error is why not.
    outcome: Option<Result<(), String>>,
    /// The registry says that it would find something else now.
    changed: bool,
    /// How many ended without a good survey since the last good one, and what the last of them died of.
    unwell: (u32, String),
    /// Why the first survey ever was refused.
    refused_at_start: Option<String>,
}

impl Survey {
    pub(super) fn new() -> Self {
        Self {
            lineage: Lineage::new(Part::Registry),
            pending: None,
            outcome: None,
            changed: false,
            unwell: (0, String::new()),
            refused_at_start: None,
        }
    }

    /// What the next registry is started with.
    pub(super) fn edition<'a>(&'a self, current: &'a Edition) -> &'a Edition {
        self.pending.as_ref().unwrap_or(current)
    }

    fn settle(&mut self, epoch: u64, outcome: Result<(), String>) {
        if self.pending.as_ref().is_some_and(|pending| pending.epoch == epoch) {
            if outcome.is_err() {
                self.pending = None;
            }
            self.outcome = Some(outcome);
        }
    }
}

impl Fleet {
    /// Has the registry survey for this configuration; [`Fleet::surveyed`] says how it went.
    pub(in crate::supervisor) fn survey(&mut self, config: Option<Config>) {
        let config = config.map_or_else(|| self.current.config.clone(), Into::into);
        self.survey.pending = Some(Edition { config, epoch: self.current.epoch.saturating_add(1) });
        self.survey.outcome = None;
        // What it was going to look at again is looked at now.
        self.survey.changed = false;
        self.survey.lineage.try_again();
    }

    /// How the survey that was asked for went; `None` while it is under way.
    pub(in crate::supervisor) fn surveyed(&mut self) -> Option<Result<(), String>> {
        self.survey.outcome.take()
    }

    /// There is something to ask [`Fleet::surveyed`] for.
    pub(super) fn has_surveyed(&self) -> bool {
        self.survey.outcome.is_some()
    }

    /// The configuration that was surveyed for is in force: what is outdated will be replaced.
    pub(in crate::supervisor) fn adopt(&mut self) {
        let Some(edition) = self.survey.pending.take() else { return };
        self.current = edition;
        let exporter = self.exporter.as_mut().map(|exporter| &mut exporter.lineage);
        let lineages = std::iter::once(&mut self.frontend).chain(&mut self.classes);
        for lineage in lineages.chain(exporter).chain(&mut self.gateway) {
            lineage.try_again();
        }
    }

    /// The registry would find something else now than it did.
    pub(in crate::supervisor) fn wants_survey(&self) -> bool {
        self.survey.changed
    }

    /// Why the registry refuses what the service was started with.
    pub(in crate::supervisor) fn refused_at_start(&mut self) -> Option<String> {
        self.survey.refused_at_start.take()
    }

    /// What keeps the registry from coming back, once it is more than one that died.
    pub(super) fn registry_unwell(&self) -> Option<&str> {
        let (times, why) = &self.survey.unwell;
        (*times >= UNWELL).then_some(why)
    }

    /// The registry that can supply workers, and its key.
    pub(super) fn supplier(&self) -> Option<(usize, &str)> {
        let index = self.find(|child| child.part == Part::Registry && child.takes_orders())?;
        let key = self.children.get(index)?.host_key.as_deref()?;
        Some((index, key))
    }

    /// Tells a registry that was witnessed to begin, and one that serves what to survey for.
    pub(super) fn ask_registry(&mut self, now: Instant) {
        if let Some(index) =
            self.find(|child| child.part == Part::Registry && child.stage == Stage::Witnessed)
            && let Some(child) = self.children.get_mut(index)
        {
            child.begin_serving(now);
            child.asked = Some(child.edition());
            self.changed = true;
            if let Err(why) = child.channel.send(&ToChild::Serve, None) {
                return self.not_told(index, "tell it to survey", &why, now);
            }
        }
        let (Some(pending), Some((index, _))) = (self.survey.pending.clone(), self.supplier()) else {
            return;
        };
        let Some(child) = self.children.get_mut(index) else { return };
        if child.asked.is_some() || child.epoch() >= pending.epoch {
            return;
        }
        let memfd = match spawn::assignment(&pending.config.registry_assignment(&self.books, self.isolation))
        {
            Ok(memfd) => memfd,
            // No fault of the registry's.
            Err(why) => return self.survey.settle(pending.epoch, Err(why.to_string())),
        };
        match child.channel.send(&ToChild::Reassign, Some(memfd.as_fd())) {
            Ok(()) => child.expect_survey(pending),
            Err(SendError::Full) => self.retry = true,
            Err(why) => self.not_told(index, "reassign it", &why, now),
        }
    }

    /// The registry has looked at everything.
    pub(super) fn heard_survey(
        &mut self,
        index: usize,
        host_key: String,
        refused: Option<String>,
        now: Instant,
    ) {
        let Some(child) = self.children.get_mut(index) else { return };
        let Some(asked) = child.asked.take() else { return };
        match refused {
            None => {
                say!("{child}: surveyed");
                child.host_key = Some(host_key);
                child.adopt(asked.clone());
                self.survey.settle(asked.epoch, Ok(()));
                self.survey.unwell = (0, String::new());
                self.survey.lineage.serves(asked);
                self.changed = true;
            }
            Some(why) if child.host_key.is_some() => {
                say!("{child}: refused to survey: {why}");
                self.survey.settle(asked.epoch, Err(why));
            }
            Some(why) => {
                self.survey.refused_at_start.get_or_insert_with(|| why.clone());
                self.condemn(index, &format!("refused to survey: {why}"), now);
            }
        }
    }

    /// The registry will have to survey again; when, is not for it to say.
    pub(super) fn heard_change(&mut self) {
        self.survey.changed = true;
    }

    /// No registry came of it that has surveyed for `epoch`.
    pub(super) fn registry_did_not_start(&mut self, epoch: u64, why: &str, now: Instant) {
        // Of no epoch in particular: the next one may be asked for another.
        self.survey.lineage.did_not_start(0, why, now);
        self.survey.unwell = (self.survey.unwell.0.saturating_add(1), why.to_owned());
        let why = format!("registry: {why}");
        self.failures.push(why.clone());
        self.survey.settle(epoch, Err(why));
    }

    /// A registry is no more.
    pub(super) fn registry_lost(&mut self, gone: &Gone, why: &str, now: Instant) {
        match gone.stage {
            Stage::Serving { since } if gone.had_surveyed => {
                self.survey.lineage.died(since, now);
                for epoch in [Some(gone.epoch), gone.asked].into_iter().flatten() {
                    self.survey.settle(epoch, Err(format!("registry: {why}")));
                }
            }
            Stage::Starting { .. } | Stage::Witnessed | Stage::Serving { .. } => {
                self.registry_did_not_start(gone.epoch, why, now);
            }
            Stage::Working { .. } | Stage::Draining { .. } | Stage::Condemned => return,
        }
        // The next one looks at everything in any case.
        self.survey.changed = false;
        self.forget_builders(now);
        let cut_off = |child: &Child| {
            child.supplier == Some(gone.generation) && matches!(child.stage, Stage::Starting { .. })
        };
        while let Some(index) = self.find(cut_off) {
            let part = self.children.get(index).map(|child| child.part.clone());
            self.end(index, "the registry is gone");
            if let Some(part) = part {
                self.lineage(&part).cut_off(now);
            }
        }
    }

    /// Whether the registry that was to supply a worker is gone, whichever of their ends is seen first. A process that ends
    /// closes its lower descriptors first, and so its control channel before any supply channel.
    pub(super) fn lost_its_registry(&mut self, generation: u64, now: Instant) -> bool {
        let of_it = |child: &Child| child.part == Part::Registry && child.generation == generation;
        let Some(index) = self.find(of_it) else { return true };
        self.listen_to(index, now);
        self.children.get(index).is_none_or(|child| !child.takes_orders())
    }

    /// Who serves without the registry that is here now has a successor coming: nothing could be withdrawn from it.
    pub(super) fn renew_cut_off(&mut self) {
        if self.supplier().is_none() {
            return;
        }
        let generation = self.survey.lineage.generation;
        for lineage in &mut self.classes {
            let of_it = || self.children.iter().filter(|child| child.part == lineage.part);
            let cut_off = of_it().any(|child| child.is_serving() && child.supplier != Some(generation));
            let draining = of_it().filter(|child| matches!(child.stage, Stage::Draining { .. })).count();
            if cut_off && draining < DRAINING_MAX {
                lineage.renew();
            }
        }
    }

    /// Gives the registry its ends of the supply channels of new workers.
    pub(super) fn supply_workers(&mut self, now: Instant) {
        let Some((registry, _)) = self.supplier() else { return };
        while let Some(index) = self.find(|child| child.supply.is_some() && child.stage != Stage::Condemned) {
            let (Some(to), Some(child)) = (self.children.get(registry), self.children.get(index)) else {
                return;
            };
            let (Part::Worker(class), Some(supply)) = (&child.part, &child.supply) else { return };
            let message = ToChild::Supply { class: class.clone(), generation: child.generation };
            match to.channel.send(&message, Some(supply.as_fd())) {
                Ok(()) => {}
                Err(SendError::Full) => {
                    self.retry = true;
                    return;
                }
                Err(why) => return self.not_told(registry, "have it supply", &why, now),
            }
            if let Some(child) = self.children.get_mut(index) {
                // Ours would keep the worker from seeing the registry's end.
                child.supply = None;
            }
        }
    }
}

/// A child that is no more, as it was.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) part: Part,
    pub(super) generation: u64,
    pub(super) stage: Stage,
    pub(super) epoch: u64,
    /// Of a registry: the epoch that it was asked to survey for and did not.
    pub(super) asked: Option<u64>,
    pub(super) had_surveyed: bool,
    /// Of a worker: the registry it was to get its policies from.
    pub(super) supplier: Option<u64>,
    /// Of a builder.
    pub(super) job: Option<u64>,
}

impl Gone {
    pub(super) fn at(stage: Stage, child: &Child) -> Self {
        Self {
            part: child.part.clone(),
            generation: child.generation,
            stage,
            epoch: child.epoch(),
            asked: child.asked.as_ref().map(|edition| edition.epoch),
            had_surveyed: child.host_key.is_some(),
            supplier: child.supplier,
            job: child.job,
        }
    }
}
