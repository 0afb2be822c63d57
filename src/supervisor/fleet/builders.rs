//! Builders: one job each, a few at a time, and no lineage: who asked for one hears if it ends badly, and asks again or
//! not.
//!
//! They are in no class's control group: what a policy does to its builder must not be the end of that class's workers.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::Instant;

use super::survey::Gone;
use super::{Fleet, LEFT};
use crate::decision::TrustClass;
use crate::supervisor::child::{Child, Misbehaviour, Stage};
use crate::supervisor::config::Builder;
use crate::supervisor::control_groups;
use crate::supervisor::log::say;
use crate::wire::channel::SendError;
use crate::wire::control::ToChild;
use crate::wire::spawner::Part;

/// At one time; the others wait.
const AT_ONCE: usize = 2;

/// Of what became of a builder, characters.
const WHY_MAX: usize = 1024;

/// What the registry asked for.
#[derive(Debug, Default)]
pub(super) struct Builders {
    waiting: VecDeque<(u64, TrustClass)>,
    /// Serials there is no builder for, or none any more, and why: what the registry is told next.
    missing: VecDeque<(u64, String)>,
    /// The highest serial of the present registry.
    last: u64,
    /// How many there have ever been.
    made: u64,
}

impl Builders {
    /// One more is wanted. `most` may wait.
    fn ask(&mut self, serial: u64, class: TrustClass, most: usize) -> Result<(), Misbehaviour> {
        if serial <= self.last {
            return Err(Misbehaviour::OldSerial);
        }
        if self.waiting.len() >= most {
            return Err(Misbehaviour::Flood);
        }
        self.last = serial;
        self.waiting.push_back((serial, class));
        Ok(())
    }

    /// There is no builder, or none any more. Why may be its own words, as long as a message: with the serial they would not
    /// fit into one, and the registry would be ended for what it cannot be told.
    fn miss(&mut self, serial: u64, why: &str) {
        self.missing.push_back((serial, why.chars().take(WHY_MAX).collect()));
    }
}

impl Fleet {
    /// The registry wants a builder.
    pub(super) fn heard_build(&mut self, index: usize, serial: u64, class: TrustClass, now: Instant) {
        let most = self.children.get(index).map_or(0, Child::messages_allowed);
        if let Err(misbehaviour) = self.builders.ask(serial, class, most) {
            self.condemn(index, &format!("misbehaved: {misbehaviour}"), now);
        }
    }

    pub(super) fn start_builders(&mut self, now: Instant) {
        let builder = |child: &&Child| matches!(child.part, Part::Builder(_));
        while self.children.iter().filter(builder).count() < AT_ONCE {
            let Some(registry) = self.find(|child| child.part == Part::Registry && child.takes_orders())
            else {
                return;
            };
            let Some((serial, class)) = self.builders.waiting.pop_front() else { return };
            let edition = self.children.get(registry).and_then(|child| child.asked.clone());
            let edition = edition.unwrap_or_else(|| self.current.clone());
            self.builders.made = self.builders.made.saturating_add(1);
            let part = Part::Builder(class);
            match self.start(&part, self.builders.made, &edition, now) {
                Ok(mut child) => {
                    child.job = Some(serial);
                    self.children.push(child);
                    self.changed = true;
                }
                Err(why) if why.is_the_spawners_end() => {
                    self.spawner_lost = Some(format!("failed: {why}"));
                    return;
                }
                Err(why) => {
                    say!("{part}: did not start: {why}");
                    self.builders.miss(serial, &why.to_string());
                }
            }
        }
    }

    /// Gives the registry the builders that were witnessed, and tells it of those that are no more.
    pub(super) fn hand_out_builders(&mut self, now: Instant) {
        let Some(registry) = self.find(|child| child.part == Part::Registry && child.takes_orders()) else {
            return;
        };
        let idle = |child: &Child| {
            matches!(child.part, Part::Builder(_))
                && child.stage == Stage::Witnessed
                && child.closed.is_none()
        };
        while let Some(index) = self.find(idle) {
            let (Some(to), Some(child)) = (self.children.get(registry), self.children.get(index)) else {
                return;
            };
            let (Some(serial), Some(handover)) = (child.job, &child.handover) else { return };
            match to.channel.send(&ToChild::Builder { serial }, Some(handover.as_fd())) {
                Ok(()) => {}
                Err(SendError::Full) => {
                    self.retry = true;
                    return;
                }
                Err(why) => return self.not_told(registry, "give it a builder", &why, now),
            }
            let Some(child) = self.children.get_mut(index) else { return };
            // Ours would keep the registry from seeing the builder's end.
            child.handover = None;
            child.begin_working(now);
            self.changed = true;
            if let Err(why) = child.channel.send(&ToChild::Serve, None) {
                self.not_told(index, "tell it to begin", &why, now);
            }
        }
        while let Some((serial, why)) = self.builders.missing.front() {
            let Some(to) = self.children.get(registry) else { return };
            let message = ToChild::NoBuilder { serial: *serial, why: why.clone() };
            match to.channel.send(&message, None) {
                Ok(()) => drop(self.builders.missing.pop_front()),
                Err(SendError::Full) => {
                    self.retry = true;
                    return;
                }
                Err(why) => return self.not_told(registry, "tell it of a builder", &why, now),
            }
        }
    }

    /// A builder is no more. If it did not end well the registry hears why; if it did, it has a report.
    pub(super) fn builder_lost(&mut self, gone: &Gone, how: &str) {
        let Some(serial) = gone.job else { return };
        match gone.stage {
            Stage::Condemned => {}
            Stage::Working { .. } if how == LEFT => {}
            _ => self.builders.miss(serial, how),
        }
    }

    /// Nobody is there any more who wanted anything built.
    pub(super) fn forget_builders(&mut self, now: Instant) {
        let made = self.builders.made;
        let orphan =
            |child: &Child| matches!(child.part, Part::Builder(_)) && child.stage != Stage::Condemned;
        while let Some(index) = self.find(orphan) {
            self.condemn(index, "the registry is gone", now);
        }
        self.builders = Builders { made, ..Builders::default() };
    }
}

/// Says of a builder that was ended by a limit which one it was.
pub(super) fn reason(builder: &Builder, how: String) -> String {
    let limits = &builder.limits;
    match how.as_str() {
        "killed by SIGXCPU" => format!("{how}: used its {} s of processor time (builder.cpu)", limits.cpu),
        "killed by SIGXFSZ" => {
            format!("{how}: wrote more than {} (builder.output)", control_groups::size(limits.output))
        }
        "killed by SIGABRT" | "killed by SIGSEGV" => format!(
            "{how}: crashed, or needed more memory than {} (builder.memory)",
            control_groups::size(limits.memory)
        ),
        _ => how,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::CONTROL_MAX;
    use crate::wire::frame;

    fn class() -> TrustClass {
        TrustClass::new("a").expect("name")
    }

    #[test]
    fn serials_only_ever_grow() {
        let mut builders = Builders::default();
        assert_eq!(builders.ask(1, class(), 8), Ok(()));
        assert_eq!(builders.ask(1, class(), 8), Err(Misbehaviour::OldSerial));
        assert_eq!(builders.ask(7, class(), 8), Ok(()));
        assert_eq!(builders.ask(3, class(), 8), Err(Misbehaviour::OldSerial));
        assert_eq!(builders.waiting.len(), 2);
    }

    #[test]
    fn only_so_many_may_wait() {
        let mut builders = Builders::default();
        for serial in 1..=8 {
            assert_eq!(builders.ask(serial, class(), 8), Ok(()));
        }
        assert_eq!(builders.ask(9, class(), 8), Err(Misbehaviour::Flood));
        builders.waiting.pop_front();
        assert_eq!(builders.ask(9, class(), 8), Ok(()), "room again");
    }

    #[test]
    fn what_a_builder_says_at_last_fits_into_what_the_registry_is_told() {
        let message = |why: &str| {
            let mut builders = Builders::default();
            builders.miss(7, why);
            let (serial, why) = builders.missing.pop_front().expect("one");
            frame::encode(&ToChild::NoBuilder { serial, why }, CONTROL_MAX)
        };
        assert!(message(&"\u{10348}".repeat(CONTROL_MAX)).is_ok());
        let whole = ToChild::NoBuilder { serial: 7, why: "x".repeat(CONTROL_MAX - 3) };
        assert!(frame::encode(&whole, CONTROL_MAX).is_err(), "control");
    }

    #[test]
    fn which_limit_ended_a_builder_is_said() {
        let builder = Builder::default();
        let of = |how: &str| reason(&builder, how.to_owned());
        assert_eq!(
            of("killed by SIGXCPU"),
            "killed by SIGXCPU: used its 30 s of processor time (builder.cpu)"
        );
        assert_eq!(of("killed by SIGXFSZ"), "killed by SIGXFSZ: wrote more than 64MiB (builder.output)");
        assert!(of("killed by SIGABRT").ends_with("needed more memory than 1GiB (builder.memory)"));
        assert_eq!(of(LEFT), LEFT);
    }
}
