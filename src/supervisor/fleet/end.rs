//! The end of the service: drained, or killed.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;

use super::Fleet;
use crate::supervisor::child::Stage;
use crate::wire::channel::SendError;
use crate::wire::control::ToChild;

impl Fleet {
    /// Everybody finishes what was begun; who has not even begun goes.
    pub(in crate::supervisor) fn drain_all(&mut self, until: Instant, now: Instant) {
        for index in 0..self.children.len() {
            let Some(child) = self.children.get_mut(index) else { return };
            match child.stage {
                Stage::Starting { .. } | Stage::Witnessed => self.condemn(index, "the service stops", now),
                Stage::Serving { .. } => {
                    child.stage = Stage::Draining { until };
                    match child.channel.send(&ToChild::Drain, None) {
                        // A worker also leaves when the frontend does, and may have been quicker than this.
                        Ok(()) | Err(SendError::Closed) => {}
                        Err(why) => self.condemn(index, &format!("tell it to drain: {why}"), now),
                    }
                }
                Stage::Draining { until: before } => {
                    child.stage = Stage::Draining { until: before.min(until) }
                }
                Stage::Condemned => {}
            }
        }
    }

    /// The last one: it has nothing to finish.
    pub(in crate::supervisor) fn end_spawner(&mut self) {
        let pid = self.spawner.pid;
        // Not once it was waited for: the number may mean somebody else by now.
        if self.spawner_lost.is_none() || self.spawner_is_stopped {
            let _ = kill(pid, Signal::SIGKILL);
            while waitpid(pid, None) == Err(Errno::EINTR) {}
        }
    }

    pub(in crate::supervisor) fn kill_all(&mut self, why: &str, now: Instant) {
        for index in 0..self.children.len() {
            self.condemn(index, why, now);
        }
    }
}
