//! The end of the service: drained, or killed.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};

use super::Fleet;
use crate::supervisor::child::Stage;
use crate::wire::control::ToChild;
use crate::wire::spawner::Part;

impl Fleet {
    /// Everybody finishes what was begun; who has not even begun goes. The gateway first, for half of the time: what proxies
    /// have asked already is still decided.
    pub(in crate::supervisor) fn drain_all(&mut self, until: Instant, now: Instant) {
        for index in 0..self.children.len() {
            let Some(child) = self.children.get_mut(index) else { return };
            if matches!(child.stage, Stage::Starting { .. } | Stage::Witnessed | Stage::Working { .. }) {
                self.condemn(index, "the service stops", now);
            }
        }
        let half = now + until.saturating_duration_since(now) / 2;
        self.drain(half, now, |part| *part == Part::Gateway);
        self.ends = Some(until);
        self.drain_rest(now);
    }

    /// The others, once no gateway is left that could ask them.
    pub(in crate::supervisor) fn drain_rest(&mut self, now: Instant) {
        if !self.has_gateway()
            && let Some(until) = self.ends.take()
        {
            self.drain(until, now, |_| true);
        }
    }

    fn drain(&mut self, until: Instant, now: Instant, whom: impl Fn(&Part) -> bool) {
        for index in 0..self.children.len() {
            let Some(child) = self.children.get_mut(index) else { return };
            match child.stage {
                Stage::Serving { .. } if whom(&child.part) => {
                    child.stage = Stage::Draining { until };
                    match child.channel.send(&ToChild::Drain, None) {
                        Ok(()) => {}
                        // A worker also leaves when the frontend does, and may have been quicker than this.
                        Err(why) => self.not_told(index, "tell it to drain", &why, now),
                    }
                }
                Stage::Draining { until: before } if whom(&child.part) => {
                    child.stage = Stage::Draining { until: before.min(until) }
                }
                _ => {}
            }
        }
    }

    /// Nobody is left, the spawner included; it is ended last, and has nothing to finish.
    pub(in crate::supervisor) fn all_gone(&mut self) -> bool {
        if !self.children.is_empty() {
            return false;
        }
        // Not once it was waited for: the number may mean somebody else by now.
        if !self.spawner_gone {
            let _ = kill(self.spawner.pid, Signal::SIGKILL);
        }
        self.spawner_gone
    }

    pub(in crate::supervisor) fn kill_all(&mut self, why: &str, now: Instant) {
        for index in 0..self.children.len() {
            self.condemn(index, why, now);
        }
    }
}
