//! The exporter's part: started where there is telemetry, told of processes and tenants, replaced when it dies. Nobody
//! waits for it: the service starts, decides, reloads and drains with it or without.

use std::os::fd::AsFd;
use std::time::Instant;

use super::Fleet;
use super::survey::Gone;
use crate::supervisor::child::Stage;
use crate::supervisor::config::Config;
use crate::supervisor::generations::Lineage;
use crate::supervisor::listen::Sockets;
use crate::supervisor::spawn::{self, SpawnError};
use crate::wire::channel::{Channel, SendError};
use crate::wire::control::{ExporterAssignment, FromChild, ToChild};
use crate::wire::spawner::Part;

/// What is wanted of the exporter, and what has become of it.
#[derive(Debug)]
pub(super) struct Exporter {
    pub(super) lineage: Lineage,
    /// Why the last one did not come to serve, or ended.
    lost: Option<String>,
}

impl Exporter {
    /// `None` if nobody asked for one, or there is nothing to ask it at.
    pub(super) fn wanted(config: &Config, sockets: &Sockets) -> Option<Self> {
        let wanted = config.telemetry.is_some() && sockets.scrapers().is_some();
        wanted.then(|| Self { lineage: Lineage::new(Part::Exporter), lost: None })
    }
}

impl Fleet {
    /// Hands one that was just started what it is to read from. It waits for it before it seals itself.
    pub(super) fn hand_accounts(&self, channel: &Channel<ToChild, FromChild>) -> Result<(), SpawnError> {
        for (class, memory) in self.books.to_read() {
            channel
                .send(&ToChild::Accounts { class: class.cloned() }, Some(memory))
                .map_err(SpawnError::Accounts)?;
        }
        Ok(())
    }

    /// Tells one that was witnessed to begin, and one that serves of what a reload has changed.
    pub(super) fn serve_exporter(&mut self, now: Instant) {
        if let Some(index) =
            self.find(|child| child.part == Part::Exporter && child.stage == Stage::Witnessed)
            && let Some(child) = self.children.get_mut(index)
        {
            child.begin_serving(now);
            let (sent, edition) = (child.channel.send(&ToChild::Serve, None), child.edition());
            self.changed = true;
            if let Some(exporter) = &mut self.exporter {
                exporter.lineage.serves(edition);
                exporter.lost = None;
            }
            if let Err(why) = sent {
                return self.not_told(index, "tell it to serve", &why, now);
            }
        }
        let current = self.current.clone();
        let outdated = |child: &super::Child| {
            child.part == Part::Exporter && child.takes_orders() && child.epoch() < current.epoch
        };
        let Some(index) = self.find(outdated) else { return };
        let memfd =
            self.exporter_assignment(&current.config).and_then(|assignment| spawn::assignment(&assignment));
        let Some(child) = self.children.get_mut(index) else { return };
        let memfd = match memfd {
            Ok(memfd) => memfd,
            Err(why) => return self.condemn(index, &format!("reassign it: {why}"), now),
        };
        match child.channel.send(&ToChild::Reassign, Some(memfd.as_fd())) {
            Ok(()) => child.adopt(current),
            Err(SendError::Full) => self.retry = true,
            Err(why) => self.not_told(index, "reassign it", &why, now),
        }
    }

    /// The process table; one that is not taken now is told with the next change, and after a restart.
    pub(super) fn tell_exporter(&mut self) {
        let Some(index) = self.find(|child| child.part == Part::Exporter && child.takes_orders()) else {
            return;
        };
        let table = ToChild::Processes(self.table());
        if let Some(child) = self.children.get(index) {
            let _ = child.channel.send(&table, None);
        }
    }

    pub(super) fn exporter_assignment(&self, config: &Config) -> Result<ExporterAssignment, SpawnError> {
        let tcp = self.sockets.scrapers().is_some_and(|(_, tcp)| tcp.is_some());
        config.exporter_assignment(&self.books, self.isolation, tcp).ok_or(SpawnError::NoTelemetry)
    }

    /// An exporter is no more. That is for the log and for its own next start, and for nothing else.
    pub(super) fn exporter_lost(&mut self, gone: &Gone, why: &str, now: Instant) {
        match gone.stage {
            Stage::Starting { .. } | Stage::Witnessed => self.exporter_did_not_start(why, now),
            Stage::Serving { since } => {
                self.lineage(&gone.part).died(since, now);
                self.note_lost(why);
            }
            Stage::Working { .. } | Stage::Draining { .. } | Stage::Condemned => {}
        }
    }

    pub(super) fn exporter_did_not_start(&mut self, why: &str, now: Instant) {
        // Of no epoch in particular: there is no older configuration that it had better be started with.
        self.lineage(&Part::Exporter).did_not_start(0, why, now);
        self.note_lost(why);
    }

    fn note_lost(&mut self, why: &str) {
        if let Some(exporter) = &mut self.exporter {
            exporter.lost = Some(why.to_owned());
        }
    }

    /// Why there is no telemetry although it was asked for.
    pub(in crate::supervisor) fn without_telemetry(&self) -> Option<&str> {
        self.config().telemetry.as_ref()?;
        match &self.exporter {
            None => Some("there is no socket for it; restart the service once there can be"),
            Some(exporter) => exporter.lost.as_deref(),
        }
    }
}
