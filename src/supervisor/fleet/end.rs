//! The end of the service: drained, or killed.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};

use super::Fleet;
use crate::supervisor::child::Stage;
use crate::wire::control::ToChild;

impl Fleet {
    /// Everybody finishes what was begun; who has not even begun goes.
    pub(in crate::supervisor) fn drain_all(&mut self, until: Instant, now: Instant) {
        for index in 0..self.children.len() {
            let Some(child) = self.children.get_mut(index) else { return };
            match child.stage {
                Stage::Starting { .. } | Stage::Witnessed | Stage::Working { .. } => {
                    self.condemn(index, "the service stops", now)
                }
                Stage::Serving { .. } => {
                    child.stage = Stage::Draining { until };
                    match child.channel.send(&ToChild::Drain, None) {
                        Ok(()) => {}
                        // A worker also leaves when the frontend does, and may have been quicker than this.
                        Err(why) => self.not_told(index, "tell it to drain", &why, now),
                    }
                }
                Stage::Draining { until: before } => {
                    child.stage = Stage::Draining { until: before.min(until) }
                }
                Stage::Condemned => {}
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
