//! From started to serving: the frontend first, then each worker that the frontend is told of, then the doors.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::unistd::{Pid, geteuid, getpid};

use super::Fleet;
use crate::sandbox::Role;
use crate::supervisor::child::{Child, Stage};
use crate::supervisor::log::say;
use crate::supervisor::spawn;
use crate::wire::channel::SendError;
use crate::wire::control::{CONTROL_MAX, Process, ProcessState, ProcessTable, Ready, ToChild};
use crate::wire::spawner::Part;

impl Fleet {
    pub(super) fn serve_frontend(&mut self, now: Instant) {
        let Some(index) = self.find(|child| child.part == Part::Frontend && child.stage == Stage::Witnessed)
        else {
            return;
        };
        let Some(child) = self.children.get_mut(index) else { return };
        child.begin_serving(now);
        let edition = child.edition();
        self.frontend.serves(edition);
        self.changed = true;
    }

    /// Has the frontend accept, after it was told what there is. At the first start not before every class is served:
    /// who connects until then waits at the socket, instead of being told that its class is unavailable. Later, one
    /// class that is away must not keep the others' clients waiting.
    pub(super) fn open_doors(&mut self, now: Instant) {
        if !self.began && !self.all_decide() {
            return;
        }
        self.began = true;
        let Some(index) = self.find(|child| child.part == Part::Frontend && child.takes_orders()) else {
            return;
        };
        let Some(child) = self.children.get_mut(index) else { return };
        if child.accepts {
            return;
        }
        match child.channel.send(&ToChild::Serve, None) {
            Ok(()) => child.accepts = true,
            Err(SendError::Full) => self.retry = true,
            Err(why) => self.not_told(index, "tell it to serve", &why, now),
        }
    }

    /// After a reload: who may ask for whom.
    pub(super) fn reassign(&mut self, now: Instant) {
        let current = self.current.clone();
        let outdated = |child: &Child| {
            child.part == Part::Frontend && child.takes_orders() && child.epoch() < current.epoch
        };
        let Some(index) = self.find(outdated) else { return };
        let Some(child) = self.children.get_mut(index) else { return };
        let memfd = match spawn::assignment(&current.config.frontend_assignment(self.isolation)) {
            Ok(memfd) => memfd,
            Err(why) => return self.condemn(index, &format!("reassign it: {why}"), now),
        };
        match child.channel.send(&ToChild::Reassign, Some(memfd.as_fd())) {
            Ok(()) => {
                child.adopt(current.clone());
                self.frontend.serves(current);
            }
            Err(SendError::Full) => self.retry = true,
            Err(why) => self.not_told(index, "reassign it", &why, now),
        }
    }

    /// Makes workers known to a frontend that serves; the frontend then drains the one before, in order.
    pub(super) fn route_workers(&mut self, now: Instant) {
        let Some(frontend) = self.find(|child| child.part == Part::Frontend && child.takes_orders()) else {
            return;
        };
        let routable = |child: &Child| {
            matches!(child.part, Part::Worker(_)) && child.stage == Stage::Witnessed && child.closed.is_none()
        };
        while let Some(index) = self.find(routable) {
            let (Some(front), Some(child)) = (self.children.get(frontend), self.children.get(index)) else {
                return;
            };
            let (Part::Worker(class), Some(handover)) = (&child.part, &child.handover) else { return };
            let route = ToChild::Route { class: class.clone(), generation: child.generation };
            match front.channel.send(&route, Some(handover.as_fd())) {
                Ok(()) => {}
                Err(SendError::Full) => {
                    self.retry = true;
                    return;
                }
                Err(why) => return self.not_told(frontend, "route to it", &why, now),
            }
            let part = child.part.clone();
            self.retire(&part, now);
            let Some(child) = self.children.get_mut(index) else { return };
            // The frontend has its own copy; ours would keep the worker from seeing the frontend's end.
            child.handover = None;
            child.begin_serving(now);
            say!("{child}: serves");
            let (sent, edition) = (child.channel.send(&ToChild::Serve, None), child.edition());
            self.lineage(&part).serves(edition);
            self.changed = true;
            if let Err(why) = sent {
                self.not_told(index, "tell it to serve", &why, now);
            }
        }
    }

    /// The one of this class that served so far drains from now on: the frontend, or its end, tells it to.
    fn retire(&mut self, part: &Part, now: Instant) {
        let until = now + self.current.config.service.drain;
        for child in self.children.iter_mut().filter(|child| child.part == *part && child.is_serving()) {
            child.stage = Stage::Draining { until };
        }
    }

    pub(super) fn tell_table(&mut self) {
        if !self.changed {
            return;
        }
        self.tell_exporter();
        let Some(index) = self.find(|child| child.part == Part::Frontend && child.takes_orders()) else {
            return;
        };
        let table = ToChild::Processes(self.table());
        let Some(child) = self.children.get(index) else { return };
        match child.channel.send(&table, None) {
            Err(SendError::Full) => self.retry = true,
            Err(SendError::Encode(_)) => {
                say!("process table does not fit {CONTROL_MAX} bytes");
                self.changed = false;
            }
            // If the frontend is gone, the next one gets it.
            Ok(()) | Err(_) => self.changed = false,
        }
    }

    pub(super) fn table(&self) -> ProcessTable {
        let mut rows: Vec<_> = self.children.iter().collect();
        rows.sort_by_key(|child| (child.part != Part::Frontend, child.part.to_string(), child.generation));
        let restarts = |part: &Part| {
            let of_it = self.lineages().filter(|lineage| lineage.part == *part);
            of_it.map(|lineage| lineage.restarts).sum()
        };
        ProcessTable {
            isolation: self.isolation,
            reloads: self.reloads,
            last_reload_error: self.last_reload_error.clone(),
            asked: self.asked.clone(),
            processes: self
                .lasting()
                .into_iter()
                .chain(rows.iter().map(|child| child.row(restarts(&child.part))))
                .collect(),
        }
    }

    /// This process and the spawner: here for as long as the service is.
    fn lasting(&self) -> [Process; 2] {
        let row = |role: Role, pid: Pid, landlock_abi| Process {
            role: role.name().to_owned(),
            class: None,
            generation: 1,
            pid: pid.as_raw(),
            uid: geteuid().as_raw(),
            state: ProcessState::Serving,
            threads: 1,
            restarts: 0,
            ready: Some(Ready {
                loaded: 0,
                refused: 0,
                pagemap_scan: false,
                landlock_abi,
                landlock_proven_threads: 1,
            }),
        };
        let abi = self.spawner.landlock_abi;
        [row(Role::Supervisor, getpid(), abi), row(Role::Spawner, self.spawner.pid, abi)]
    }
}
