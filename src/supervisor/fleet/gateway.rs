//! The gateway's part: started where there is one, made known to the frontend, replaced when it dies or when a reload
//! changes what it is to do. Clients that speak the service's own protocol never notice.
//!
//! Each has a channel to whichever frontend there is: its own end is with it from its start, the other end stays here for as
//! long as it lives, and every frontend gets a copy. So a frontend that dies takes no gateway with it, and what was on its
//! way to it is the next one's.

use std::os::fd::AsFd;
use std::time::Instant;

use super::Fleet;
use crate::supervisor::child::{Child, Stage};
use crate::supervisor::log::say;
use crate::wire::channel::SendError;
use crate::wire::control::ToChild;
use crate::wire::spawner::Part;

fn is_gateway(child: &Child) -> bool {
    child.part == Part::Gateway
}

impl Fleet {
    /// One that does what the present configuration wants goes on: who reloads for another reason breaks no connection.
    pub(super) fn keep_gateway(&mut self) {
        let (current, isolation) = (self.current.clone(), self.isolation);
        let outdated =
            |child: &Child| is_gateway(child) && child.is_serving() && child.epoch() < current.epoch;
        let Some(child) = self.children.iter_mut().find(|child| outdated(child)) else { return };
        let has = child.edition().config.gateway_assignment(isolation);
        if has == current.config.gateway_assignment(isolation) {
            child.adopt(current.clone());
            self.lineage(&Part::Gateway).serves(current);
        }
    }

    /// Makes gateways known to a frontend that accepts, and has those begin that it knows; the one before drains then.
    pub(super) fn serve_gateway(&mut self, now: Instant) {
        let accepts = |child: &Child| child.part == Part::Frontend && child.takes_orders() && child.accepts;
        let Some(frontend) = self.find(accepts) else { return };
        for index in 0..self.children.len() {
            let (Some(front), Some(child)) = (self.children.get(frontend), self.children.get(index)) else {
                return;
            };
            let lives =
                matches!(child.stage, Stage::Witnessed | Stage::Serving { .. } | Stage::Draining { .. });
            if !is_gateway(child) || !lives || child.known_to == front.generation {
                continue;
            }
            let Some(visits) = &child.handover else { continue };
            let (uid, known_to) = (child.identity.uid, front.generation);
            let visits_of = ToChild::Visits { uid, generation: child.generation };
            match front.channel.send(&visits_of, Some(visits.as_fd())) {
                Ok(()) => {}
                Err(SendError::Full) => {
                    self.retry = true;
                    return;
                }
                Err(why) => return self.not_told(frontend, "tell it of the gateway", &why, now),
            }
            if let Some(child) = self.children.get_mut(index) {
                child.known_to = known_to;
            }
            self.begin_gateway(index, now);
        }
    }

    fn begin_gateway(&mut self, index: usize, now: Instant) {
        let Some(child) = self.children.get(index) else { return };
        if child.stage != Stage::Witnessed || child.closed.is_some() {
            return;
        }
        let until = now + self.current.config.service.drain;
        for before in self.children.iter_mut().filter(|child| is_gateway(child) && child.is_serving()) {
            before.stage = Stage::Draining { until };
            // Who does not hear it is killed in time.
            let _ = before.channel.send(&ToChild::Drain, None);
        }
        let Some(child) = self.children.get_mut(index) else { return };
        child.begin_serving(now);
        say!("{child}: serves");
        let (sent, edition) = (child.channel.send(&ToChild::Serve, None), child.edition());
        self.lineage(&Part::Gateway).serves(edition);
        self.changed = true;
        if let Err(why) = sent {
            self.not_told(index, "tell it to serve", &why, now);
        }
    }

    /// The frontend hears that one no more: it can bring nobody, however well it answers us. That the frontend may lie costs
    /// no more than it can take anyway, who is the only way to a worker.
    pub(super) fn gateway_cut(&mut self, generation: u64, now: Instant) {
        if let Some(index) = self.find(|child| is_gateway(child) && child.generation == generation) {
            self.condemn(index, "the frontend hears it no more", now);
        }
    }

    /// Whether any is left that may still finish something.
    pub(super) fn has_gateway(&self) -> bool {
        let lives = |child: &Child| matches!(child.stage, Stage::Serving { .. } | Stage::Draining { .. });
        self.find(|child| is_gateway(child) && lives(child)).is_some()
    }

    /// Whether it is done with `epoch`: `None` as long as that is still to come, then why it goes on without, if it does.
    pub(super) fn gateway_settled(&self, epoch: u64) -> Option<Result<(), String>> {
        let Some(lineage) = &self.gateway else { return Some(Ok(())) };
        let living = self.living(&lineage.part);
        match lineage.settled(epoch, living) {
            Some(settled) => Some(settled.map_err(ToOwned::to_owned)),
            // It is tried again and again; nobody else has to wait for that.
            None if living.serving.is_none() && !living.coming => Some(Err("it is away".to_owned())),
            None => None,
        }
    }
}
