//! The loop: sleeps until something happens or is due, and does what follows from it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsFd;

use super::config::{self, Surroundings};
use super::fleet::{DRAINING_MAX, Ended, Fleet};
use super::log::say;
use super::notify::Notifier;
use super::signals::Signals;
use crate::sandbox::Sealed;

/// How long the end of killed children is waited for; the kernel kills them with us in any case.
const KILLED_WITHIN: Duration = Duration::from_secs(2);

/// The running service.
pub(super) struct Supervision {
    pub(super) config_path: PathBuf,
    pub(super) surroundings: Surroundings,
    pub(super) fleet: Fleet,
    pub(super) signals: Signals,
    pub(super) notifier: Notifier,
    /// When the reload that is under way began, if somebody asked for it.
    pub(super) asked: Option<u64>,
}

/// Why the service ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum GaveUp {
    #[error("start: {0}")]
    Start(String),
    #[error("start: the registry refused to survey: {0}")]
    Survey(String),
    #[error("the spawner {0}; without it nobody can be started")]
    Spawner(String),
    #[error("wait for events: {0}")]
    Wait(#[source] std::io::Error),
}

#[derive(Debug)]
enum Phase {
    /// Until everything has served once; whatever does not start ends the service.
    Starting,
    Running,
    /// The registry looks at what a configuration would mean, which is not in force yet.
    Surveying,
    /// Accepted, and not everything has followed yet.
    Reloading,
    Stopping {
        until: Instant,
        why: Option<GaveUp>,
    },
}

impl Supervision {
    /// Serves until asked to stop. The supervisor's own sandbox is in force: it holds [`Sealed`].
    pub(super) fn serve(mut self, _sealed: Sealed) -> Result<(), GaveUp> {
        let mut phase = Phase::Starting;
        let mut reload_wanted = false;
        self.fleet.step_forward(Instant::now());
        let outcome = loop {
            let next_feed = self.feed_watchdog(&phase);
            let asked = match self.wait(next_feed, &phase).and_then(|()| self.signals.read()) {
                Ok(asked) => asked,
                Err(why) => {
                    self.fleet.kill_all("the service cannot go on", Instant::now());
                    break Err(GaveUp::Wait(why));
                }
            };
            let now = Instant::now();
            self.fleet.listen(now);
            self.fleet.reap(now);
            self.fleet.watch(now);
            if asked.stop {
                phase = self.stop(phase, now);
            }
            if let Some(how) = self.fleet.spawner_lost()
                && !matches!(phase, Phase::Stopping { .. })
            {
                let why = GaveUp::Spawner(how.to_owned());
                self.notifier.stopping();
                self.fleet.kill_all("the service cannot go on", now);
                phase = Phase::Stopping { until: now, why: Some(why) };
            }
            reload_wanted |= asked.reload;
            phase = match phase {
                Phase::Starting => self.starting(now),
                Phase::Running if self.fleet.draining() >= DRAINING_MAX => Phase::Running,
                Phase::Running if reload_wanted => {
                    reload_wanted = false;
                    self.reload()
                }
                Phase::Running if self.fleet.wants_survey() => self.survey_again(),
                Phase::Running => Phase::Running,
                Phase::Surveying => self.surveying(),
                Phase::Reloading => self.reloading(),
                Phase::Stopping { until, why } => {
                    self.fleet.drain_rest(now);
                    if self.fleet.all_gone() || now >= until + KILLED_WITHIN {
                        break why.map_or(Ok(()), Err);
                    }
                    Phase::Stopping { until, why }
                }
            };
            if !matches!(phase, Phase::Stopping { .. }) {
                // Nobody asks what did not start but the first start.
                self.fleet.take_failures();
                self.fleet.step_forward(Instant::now());
            }
        };
        self.fleet.remove_sockets();
        outcome
    }

    fn starting(&mut self, now: Instant) -> Phase {
        let failures = self.fleet.take_failures();
        if !failures.is_empty() {
            self.notifier.stopping();
            self.fleet.kill_all("the service does not start", now);
            let refused = self.fleet.refused_at_start().map(GaveUp::Survey);
            let why = refused.unwrap_or_else(|| GaveUp::Start(failures.join("; ")));
            return Phase::Stopping { until: now, why: Some(why) };
        }
        if !self.fleet.all_serve() {
            return Phase::Starting;
        }
        say!("ready");
        self.notifier.status("serving");
        self.notifier.ready();
        Phase::Running
    }

    /// Reads the configuration again. One that is wrong, or changes what cannot change, changes nothing; neither does one
    /// that the registry refuses.
    fn reload(&mut self) -> Phase {
        self.notifier.reloading();
        self.asked = Some(monotonic_ns());
        let refused = match config::load(&self.config_path, &self.surroundings) {
            Err(errors) => errors.to_string(),
            Ok(config) => {
                let fixed = self.fleet.config().fixed_parts_changed(&config);
                if !fixed.is_empty() {
                    format!("restart the service to change {}", fixed.join(", "))
                } else if let Err(why) = self.fleet.enter(&config) {
                    why.to_string()
                } else if let Err(why) = self.fleet.set_limits(&config) {
                    why.to_string()
                } else {
                    self.fleet.survey(Some(config));
                    return Phase::Surveying;
                }
            }
        };
        self.reloaded(Ended::Refused(refused))
    }

    /// As a reload, but with the configuration that is in force: its file may be half edited, and nobody asked for it.
    fn survey_again(&mut self) -> Phase {
        say!("the registry has news");
        self.notifier.reloading();
        self.fleet.survey(None);
        Phase::Surveying
    }

    fn surveying(&mut self) -> Phase {
        match self.fleet.surveyed() {
            None => Phase::Surveying,
            Some(Ok(())) => {
                say!("reload: configuration accepted");
                self.fleet.adopt();
                Phase::Reloading
            }
            Some(Err(why)) => {
                self.fleet.restore_limits();
                self.reloaded(Ended::Refused(why))
            }
        }
    }

    fn reloading(&mut self) -> Phase {
        match self.fleet.settled() {
            None => Phase::Reloading,
            Some(adopted) => self.reloaded(Ended::Adopted(adopted)),
        }
    }

    fn reloaded(&mut self, ended: Ended) -> Phase {
        match (&ended, ended.error()) {
            (_, None) => {
                say!("reloaded");
                if let Some(why) = self.fleet.without_telemetry() {
                    say!("WARNING: there is no telemetry: {why}");
                }
                self.notifier.status("serving");
            }
            (Ended::Adopted(_), Some(error)) => {
                say!("reloaded, but not everybody follows; who does not goes on with what it had:\n{error}");
                self.notifier.status(&format!("serving; not everybody follows the last reload: {error}"));
            }
            (Ended::Refused(_), Some(error)) => {
                say!("reload refused, what served before goes on:\n{error}");
                self.notifier.status(&format!("serving; last reload refused: {error}"));
            }
        }
        self.fleet.reloaded(ended, self.asked.take());
        self.notifier.ready();
        Phase::Running
    }

    /// Asked once: drains. Asked again: does not wait.
    fn stop(&mut self, phase: Phase, now: Instant) -> Phase {
        if let Phase::Stopping { why, .. } = phase {
            self.fleet.kill_all("asked to stop twice", now);
            return Phase::Stopping { until: now, why };
        }
        say!("stopping");
        self.notifier.stopping();
        let until = now + self.fleet.config().service.drain;
        self.fleet.drain_all(until, now);
        Phase::Stopping { until, why: None }
    }

    /// This loop turns, the frontend serves, and whoever serves answers.
    fn feed_watchdog(&mut self, phase: &Phase) -> Option<Instant> {
        let now = Instant::now();
        let well = match phase {
            Phase::Starting => false,
            Phase::Running | Phase::Surveying | Phase::Reloading => self.fleet.is_well(now),
            Phase::Stopping { .. } => true,
        };
        if well { self.notifier.all_is_well(now) } else { None }
    }

    fn wait(&self, next_feed: Option<Instant>, phase: &Phase) -> std::io::Result<()> {
        let now = Instant::now();
        let stop = match phase {
            Phase::Stopping { until, .. } => Some(*until + KILLED_WITHIN),
            _ => None,
        };
        let failed = (stop.is_none() && self.fleet.has_failures()).then_some(now);
        let next = [self.fleet.next(now), next_feed, stop, failed].into_iter().flatten().min();
        let timeout = match next {
            None => PollTimeout::NONE,
            // Rounded up: waking a little early would only mean to wake twice.
            Some(next) => {
                let wait = next.saturating_duration_since(now) + Duration::from_micros(999);
                PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        watched
            .extend(self.fleet.audible().map(|child| PollFd::new(child.channel.as_fd(), PollFlags::POLLIN)));
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, which every process of this host reads alike.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
