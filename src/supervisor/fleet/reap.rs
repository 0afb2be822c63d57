//! Who has ended, and of what.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::survey::Gone;
use super::{Fleet, KILLED, LEFT, builders};
use crate::supervisor::child::{Child, Stage};
use crate::supervisor::control_groups;
use crate::supervisor::log::say;
use crate::wire::spawner::Part;

impl Fleet {
    /// Collects the children that ended; kills those that were stopped, since nothing stopped answers.
    pub(in crate::supervisor) fn reap(&mut self, now: Instant) {
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
            if let Part::Worker(class) = &child.part {
                let of_class = self.children.iter().filter(|other| other.part == child.part);
                let living: Vec<u64> = of_class.map(|other| other.generation).collect();
                if let Err(why) = self.books.end(class, &living) {
                    say!("{child}: close its accounts: {why}");
                }
            }
            let how = self.with_reason(&child, how);
            match child.stage {
                Stage::Condemned => {}
                Stage::Draining { .. } if how == LEFT => say!("{child}: drained"),
                // One for each policy.
                Stage::Working { .. } if how == LEFT => {}
                _ => say!("{child}: {how}"),
            }
            self.changed = true;
            match (child.stage, &child.part) {
                (Stage::Serving { since }, Part::Worker(_)) if how == LEFT => {
                    self.lineage(&child.part).left(since, now);
                }
                _ => self.lost(&Gone::at(child.stage, &child), &how, now),
            }
        }
    }

    /// Says of a worker that the kernel killed for want of memory that this is why, and of a builder which limit it was.
    fn with_reason(&mut self, child: &Child, how: String) -> String {
        if let Part::Builder(_) = child.part {
            return builders::reason(&child.edition().config.builder, how);
        }
        let Part::Worker(class) = &child.part else { return how };
        if how != KILLED || !self.groups.ran_out_of_memory(class) {
            return how;
        }
        let limit = self.current.config.class(class).and_then(|class| class.group.memory_max).unwrap_or(0);
        format!("{how}: out of memory (memory_max = {})", control_groups::size(limit))
    }
}
