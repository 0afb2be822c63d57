//! Starting what is wanted: the assignment, the channels, the limits of one child.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{DRAINING_MAX, Fleet};
use crate::accounts;
use crate::sandbox::privileges::ConfiguredLimits;
use crate::supervisor::child::Child;
use crate::supervisor::config::Identity;
use crate::supervisor::generations::Edition;
use crate::supervisor::log::say;
use crate::supervisor::spawn::{self, Launch, SpawnError};
use crate::wire::channel::Channel;
use crate::wire::control::{BuildLimits, Isolation};
use crate::wire::gateway::{VISIT_MAX, Visit};
use crate::wire::handover::{FromWorker, HANDOVER_MAX, ToWorker};
use crate::wire::job::{JOB_MAX, Job, Report};
use crate::wire::spawner::Part;
use crate::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};

/// From the order to Ready: verifying and loading ten thousand policies takes seconds.
const START_WITHIN: Duration = Duration::from_secs(60);

impl Fleet {
    pub(super) fn start_wanted(&mut self, now: Instant) {
        self.renew_cut_off();
        let parts: Vec<Part> = self.lineages().map(|lineage| lineage.part.clone()).collect();
        for part in parts {
            let mut living = self.living(&part);
            let current = match part {
                Part::Registry => self.survey.edition(&self.current).clone(),
                Part::Frontend | Part::Worker(_) | Part::Builder(_) | Part::Exporter | Part::Gateway => {
                    self.current.clone()
                }
            };
            match part {
                // They learn of a new edition while they serve, see `reassign`, `ask_registry` and `serve_exporter`.
                Part::Frontend | Part::Registry | Part::Exporter => {
                    living.serving = living.serving.map(|_| current.epoch);
                }
                // There would be no policies for it.
                Part::Worker(_) if self.supplier().is_none() => continue,
                // One that is as old as it may be goes on until others have gone: there are so many columns in the accounts.
                Part::Worker(_) if living.serving.is_some() && self.draining() >= DRAINING_MAX => continue,
                Part::Gateway if living.serving.is_some() && self.draining() >= DRAINING_MAX => continue,
                Part::Worker(_) | Part::Builder(_) | Part::Gateway => {}
            }
            let Some(edition) = self.lineage(&part).wanted(&current, living, now) else { continue };
            let generation = self.next_generation(&part);
            match self.start(&part, generation, &edition, now) {
                Ok(child) => {
                    self.children.push(child);
                    self.changed = true;
                }
                Err(why) => {
                    if why.is_the_spawners_end() {
                        self.spawner_lost = Some(format!("failed: {why}"));
                        return;
                    }
                    let why = why.to_string();
                    say!("{part} generation {generation}: did not start: {why}");
                    if part == Part::Registry {
                        self.registry_did_not_start(edition.epoch, &why, now);
                        continue;
                    }
                    if part == Part::Exporter {
                        self.exporter_did_not_start(&why, now);
                        continue;
                    }
                    self.lineage(&part).did_not_start(edition.epoch, &why, now);
                    self.failures.push(format!("{part}: {why}"));
                }
            }
        }
    }

    /// A number whose column in the class's accounts is no living worker's: one may drain for longer than it takes so many
    /// others to come and go.
    fn next_generation(&mut self, part: &Part) -> u64 {
        const COLUMNS: u64 = accounts::COLUMNS as u64;
        let of_it = self.children.iter().filter(|child| child.part == *part);
        let taken: Vec<u64> = of_it.map(|child| child.generation % COLUMNS).collect();
        let mut generation = self.lineage(part).start();
        // There are fewer living ones than columns, but nothing here has to rely on it.
        for _ in 0..COLUMNS {
            if !taken.contains(&(generation % COLUMNS)) {
                break;
            }
            generation = self.lineage(part).start();
        }
        generation
    }

    pub(super) fn start(
        &self,
        part: &Part,
        generation: u64,
        edition: &Edition,
        now: Instant,
    ) -> Result<Child, SpawnError> {
        let wanted = self.wanted(part, generation, edition)?;
        let limits = ConfiguredLimits {
            open_files: spawn::open_files(u64::from(wanted.open_files).saturating_add(256), part),
            // Where the UID is the role's own, what it may start is bounded: all generations that live at one time.
            processes: match self.isolation {
                Isolation::DistinctUids => Some(u64::from(wanted.threads).saturating_mul(32)),
                Isolation::SharedUid => None,
            },
            build: wanted.build,
        };
        let pairs = || [&wanted.first, &wanted.second].into_iter().flatten().map(|pair| pair.theirs.as_fd());
        let more = match part {
            Part::Frontend => vec![self.sockets.clients(), self.sockets.operators()],
            Part::Exporter => {
                let (unix, tcp) = self.sockets.scrapers().ok_or(SpawnError::NoTelemetry)?;
                std::iter::once(unix).chain(tcp).collect()
            }
            Part::Gateway => pairs().chain(self.sockets.proxies()).collect(),
            Part::Registry | Part::Worker(_) | Part::Builder(_) => pairs().collect(),
        };
        let group = match part {
            // A builder is not in its class's: see `builders`.
            Part::Frontend | Part::Registry | Part::Builder(_) | Part::Exporter | Part::Gateway => None,
            Part::Worker(class) => self.groups.entrance(class),
        };
        let accounts = match part {
            Part::Frontend | Part::Builder(_) | Part::Exporter | Part::Gateway => None,
            Part::Registry => Some(self.books.registry()),
            Part::Worker(class) => self.books.class(class),
        };
        let assignment = wanted.assignment.as_fd();
        let launch = Launch { part: part.clone(), limits, assignment, more, accounts, group };
        let known: Vec<_> = self.children.iter().map(|child| child.pid).collect();
        let launched = self.spawner.launch(&launch, &known)?;
        if *part == Part::Exporter
            && let Err(why) = self.hand_accounts(&launched.channel)
        {
            // It sees the end of its channel, and goes; who it was is of no importance by then.
            say!("{part} generation {generation}: {why}");
        }
        let until = now + START_WITHIN;
        let handover = wanted.first.map(|pair| pair.others);
        let mut child = Child::new(
            (part.clone(), generation),
            edition.clone(),
            wanted.identity,
            launched,
            handover,
            until,
        );
        child.supply = wanted.second.map(|pair| pair.others);
        child.supplier = child.supply.is_some().then_some(self.survey.lineage.generation);
        Ok(child)
    }

    /// What a part is started with, by the configuration.
    fn wanted(&self, part: &Part, generation: u64, edition: &Edition) -> Result<Wanted, SpawnError> {
        let config = &edition.config;
        let class = |name| config.class(name).ok_or(SpawnError::NoClass);
        let policies = |assigned: usize| u32::try_from(assigned).unwrap_or(u32::MAX).saturating_mul(2);
        let plain = |identity, assignment, open_files, threads| Wanted {
            identity,
            assignment,
            open_files,
            threads,
            build: None,
            first: None,
            second: None,
        };
        match part {
            Part::Frontend => {
                let open = config.frontend.max_connections.saturating_add(
                    // Carried over from one worker to the next, they pass through here.
                    config.classes.iter().map(|class| class.limits.connections).fold(0, u32::saturating_add),
                );
                let assignment = spawn::assignment(&config.frontend_assignment(self.isolation))?;
                Ok(plain(config.frontend.identity, assignment, open, 64))
            }
            Part::Registry => {
                let assignment = config.registry_assignment(&self.books, self.isolation);
                // A policy on its way to a worker, and what it is made from; each generation that may live has a channel.
                let named = assignment.tenants.iter().map(|tenant| tenant.policies.len() + tenant.data.len());
                let open = policies(named.sum());
                let open = open.saturating_add(policies(config.classes.len()).saturating_mul(8));
                Ok(plain(config.registry.identity, spawn::assignment(&assignment)?, open, 16))
            }
            Part::Exporter => {
                let assignment = self.exporter_assignment(config)?;
                let identity = Identity { uid: assignment.uid, gid: assignment.gid };
                Ok(plain(identity, spawn::assignment(&assignment)?, 64, 16))
            }
            Part::Gateway => {
                let assignment = config.gateway_assignment(self.isolation).ok_or(SpawnError::NoGateway)?;
                let identity = Identity { uid: assignment.uid, gid: assignment.gid };
                let proxies = assignment.listeners.iter().map(|listener| listener.max_connections);
                // Of each thread one to each class, and as many as it has; others on their way; both ends are here for a moment.
                let classes = u32::try_from(config.classes.len()).unwrap_or(u32::MAX);
                let connections = assignment.classes.iter().map(|class| class.connections);
                let of_thread = connections.fold(classes, u32::saturating_add);
                let service = assignment.threads.saturating_mul(of_thread).saturating_mul(4);
                let open = proxies.fold(service, u32::saturating_add);
                let threads = assignment.threads.saturating_add(16);
                Ok(Wanted {
                    first: Some(Pair::of::<(), Visit>(VISIT_MAX)?),
                    ..plain(identity, spawn::assignment(&assignment)?, open, threads)
                })
            }
            Part::Worker(name) => {
                let class = class(name)?;
                let key = self.supplier().map(|(_, key)| key).ok_or(SpawnError::NoRegistry)?;
                let assignment =
                    config.worker_assignment(&self.books, class, generation, self.isolation, key);
                // A policy is held as its image, and while it is loaded as its files.
                let named: usize = assignment.tenants.iter().map(|tenant| tenant.policies.len()).sum();
                let open = u32::try_from(named).unwrap_or(u32::MAX).saturating_add(class.limits.connections);
                let threads = class.limits.threads.saturating_add(16);
                Ok(Wanted {
                    first: Some(Pair::of::<ToWorker, FromWorker>(HANDOVER_MAX)?),
                    second: Some(Pair::of::<FromRegistry, ToRegistry>(SUPPLY_MAX)?),
                    ..plain(class.identity, spawn::assignment(&assignment)?, open, threads)
                })
            }
            Part::Builder(name) => {
                let class = class(name)?;
                let assignment = spawn::assignment(&config.builder_assignment(class, self.isolation))?;
                // The workers of its class are of its UID.
                let threads = class.limits.threads.saturating_add(32);
                Ok(Wanted {
                    build: Some(config.builder.limits),
                    first: Some(Pair::of::<Job, Report>(JOB_MAX)?),
                    ..plain(class.identity, assignment, 64, threads)
                })
            }
        }
    }
}

/// What one child is to be.
struct Wanted {
    identity: Identity,
    assignment: OwnedFd,
    open_files: u32,
    threads: u32,
    build: Option<BuildLimits>,
    /// Channels to others that it is started with.
    first: Option<Pair>,
    second: Option<Pair>,
}

/// Both ends of a channel between two children.
struct Pair {
    /// Of whoever is not started now.
    others: OwnedFd,
    theirs: OwnedFd,
}

impl Pair {
    fn of<Tx, Rx>(max: usize) -> Result<Self, SpawnError> {
        let (others, theirs) = Channel::<Tx, Rx>::pair(max).map_err(SpawnError::Pair)?;
        Ok(Self { others: others.into(), theirs: theirs.into() })
    }
}
