//! The registry at work: surveys when it is told to, supplies workers, and has them stop what does not hold any more.
//!
//! One thread. Nothing in here waits for anybody: a survey goes on a policy at a time, and between two of them everyone is
//! heard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::clock::Clock;
use super::jobs::Jobs;
use super::revoked::InForce;
use super::setting::{Key, Setting};
use super::state::State;
use super::supply::Supplies;
use super::survey::{
    Before, Findings, Progress, Served, Shelf, Standing, Survey, SurveyError, Unsound, Unwritten,
};
use super::tally::Tally;
use super::watch::Watch;
use crate::accounts::{Map, RegistryAccount};
use crate::decision::Tenant;
use crate::sandbox::Sealed;
use crate::trust::RevocationError;
use crate::wire::channel::{Channel, ReceiveError, Received, SendError};
use crate::wire::control::{ASSIGNMENT_MAX, FromChild, RegistryAssignment, ToChild};
use crate::wire::frame;

/// The channel to the supervisor.
pub(super) type Control = Channel<FromChild, ToChild>;

/// Longest sleep while something expires some day: the clock on the wall may be set forward meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// Before what could not be sent is tried again, where the kernel does not say when it can be.
const RETRY: Duration = Duration::from_millis(2);
/// Longest reason why a survey was refused, bytes.
const REFUSED_MAX: usize = 16 << 10;

/// Why a registry ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("wait: {0}")]
    Wait(#[source] Errno),
    #[error("hear supervisor: {0}")]
    Hear(#[from] ReceiveError),
    #[error("tell supervisor: {0}")]
    Tell(#[from] SendError),
    #[error("the supervisor is gone")]
    Gone,
    #[error("the supervisor's message came without its descriptor")]
    NoDescriptor,
}

/// Everything that it knows and does.
pub(super) struct Registry {
    control: Control,
    outbox: VecDeque<FromChild>,
    state: State,
    clock: Clock,
    watch: Watch,
    /// What the next survey goes by.
    assignment: RegistryAssignment,
    survey: Option<Survey>,
    live: Option<Live>,
    in_force: InForce,
    shelf: Shelf,
    unsound: Unsound,
    /// Tenants who are no more, and of whose code the caches are free.
    cleared: BTreeSet<Tenant>,
    serial: u64,
    supplies: Supplies,
    jobs: Jobs,
    tally: Tally,
    /// The supervisor was told that it would find something else now.
    said_changed: bool,
    draining: bool,
}

/// What the last good survey found.
struct Live {
    setting: Setting,
    standings: BTreeMap<Key, Standing>,
    /// When something expires or begins.
    next: Option<Timestamp>,
}

impl Registry {
    /// # Errors
    /// When the table's revocation list is none.
    pub(super) fn new(
        control: Control,
        assignment: RegistryAssignment,
        state: State,
        clock: Clock,
        account: Option<&'static Map<RegistryAccount>>,
    ) -> Result<Self, RevocationError> {
        Ok(Self {
            tally: Tally::new(account, &assignment),
            in_force: InForce::kept(state.table())?,
            control,
            outbox: VecDeque::new(),
            state,
            clock,
            watch: Watch::default(),
            assignment,
            survey: None,
            live: None,
            shelf: Shelf::new(),
            unsound: Unsound::new(),
            cleared: BTreeSet::new(),
            serial: 0,
            supplies: Supplies::default(),
            jobs: Jobs::default(),
            said_changed: false,
            draining: false,
        })
    }

    /// Until the supervisor has it end.
    pub(super) fn serve(mut self, _sealed: Sealed) -> Result<(), ServeError> {
        let mut buffer = Vec::new();
        while !self.draining {
            self.turn(&mut buffer)?;
        }
        Ok(())
    }

    /// Waits for something, and does what there is to do.
    pub(super) fn turn(&mut self, buffer: &mut Vec<u8>) -> Result<(), ServeError> {
        let timeout = if self.go_on_surveying() { Duration::ZERO } else { self.timeout() };
        self.wait(timeout)?;
        self.hear(buffer)?;
        self.watch_revocations();
        self.look_at_time();
        self.supplies.go_on(buffer);
        for spent in self.jobs.take_spent() {
            self.tally.spent(&spent);
        }
        for (serial, result) in self.jobs.go_on(Instant::now(), buffer) {
            if let Some(survey) = &mut self.survey {
                survey.built(&self.state, serial, result);
            }
        }
        self.tell()
    }

    /// Takes a step of the survey, if there is one. True if there is more to do at once.
    fn go_on_surveying(&mut self) -> bool {
        let Some(survey) = &mut self.survey else { return false };
        let progress = survey.step(&self.state);
        for wanted in survey.wanted() {
            let (serial, class) = self.jobs.ask(wanted);
            self.outbox.push_back(FromChild::Build { serial, class });
        }
        if progress == Progress::Done
            && let Some(survey) = self.survey.take()
        {
            self.finish(survey);
            return true;
        }
        progress == Progress::More
    }

    /// Begins to look at everything.
    fn begin(&mut self) {
        // Whatever else comes of it: what is revoked already stops now.
        self.look_at_revocations();
        self.said_changed = false;
        self.jobs.forget();
        if let Some(survey) = self.survey.take() {
            // Serials only ever grow, whatever becomes of a survey.
            self.serial = survey.serial();
        }
        let begun = match Setting::new(self.assignment.clone()) {
            Ok(setting) => {
                let before = self.before();
                Survey::begin(setting, &self.state, &self.clock, before)
            }
            Err(error) => Err(SurveyError::Trust(error)),
        };
        match begun {
            Ok(survey) => self.survey = Some(survey),
            Err(error) => self.refuse(&error),
        }
    }

    fn before(&self) -> Before {
        Before {
            in_force: self.in_force.clone(),
            shelf: self.shelf.clone(),
            unsound: self.unsound.clone(),
            serial: self.serial,
            cleared: self.cleared.clone(),
        }
    }

    /// Everything was looked at.
    fn finish(&mut self, survey: Survey) {
        self.serial = survey.serial();
        match survey.finish(&mut self.state) {
            Ok(findings) => self.adopt(findings),
            Err(unwritten) if self.live.is_none() => {
                let Unwritten { error, setting } = *unwritten;
                // A host that comes up with a full disk decides as it did before.
                tracing::error!(%error, "nothing can be written down; what was active serves, nothing becomes active");
                let before = self.before();
                match Survey::begin_unwritable(setting, &self.state, &self.clock, before, error.to_string()) {
                    Ok(survey) => self.survey = Some(survey),
                    Err(error) => self.refuse(&error),
                }
            }
            Err(unwritten) => self.refuse(&unwritten.error.into()),
        }
    }

    fn adopt(&mut self, findings: Findings) {
        let Findings { setting, in_force, standings, shelf, unsound, rebuilt, cleared } = findings;
        let serving = standings.values().filter(|standing| matches!(standing, Standing::Serves(_))).count();
        let refused = standings.len().saturating_sub(serving);
        tracing::info!(serving, refused, rebuilt, revision = self.state.table().revision, "surveyed");
        let now = self.clock.now();
        let ends = standings.values().filter_map(|standing| match standing {
            Standing::Serves(served) => served.until,
            Standing::Refused { .. } => None,
        });
        let next = ends.chain(setting.trust.next_beginning(now)).filter(|at| *at > now).min();
        (self.in_force, self.shelf, self.unsound, self.cleared) = (in_force, shelf, unsound, cleared);
        self.tally.assign(&setting.assignment);
        self.tally.signed(setting.take_signed());
        self.live = Some(Live { setting, standings, next });
        self.withdraw();
        let host_key = match self.state.key().public_key().to_pem() {
            Ok(pem) => pem,
            Err(error) => return self.say(String::new(), Some(error.to_string())),
        };
        self.say(host_key, None);
    }

    fn refuse(&mut self, error: &SurveyError) {
        tracing::error!(%error, "survey refused; nothing changes");
        let why: String = error.to_string().chars().take(REFUSED_MAX / 4).collect();
        // The assignment that the last good survey went by stays in force.
        if let Some(live) = &self.live {
            self.assignment = live.setting.assignment.clone();
        }
        self.say(String::new(), Some(why));
    }

    fn say(&mut self, host_key: String, refused: Option<String>) {
        self.outbox.push_back(FromChild::Surveyed { host_key, refused });
    }

    /// Sees whether there is a newer revocation list.
    fn watch_revocations(&mut self) {
        let Some(live) = &self.live else { return };
        if self.watch.has_changed(Path::new(&live.setting.assignment.store), Instant::now())
            && self.look_at_revocations()
        {
            self.changed();
        }
    }

    /// Takes a newer revocation list into force. True if there is one.
    fn look_at_revocations(&mut self) -> bool {
        let Some(live) = &self.live else { return false };
        let store = Path::new(&live.setting.assignment.store);
        let newer = self.in_force.look(store, &live.setting.trust, &self.clock);
        if newer {
            self.withdraw();
            self.write_down_revocations();
        }
        newer
    }

    /// What is in force stays so, whatever becomes of the file in the store, of this process, or of the survey under way.
    fn write_down_revocations(&mut self) {
        let seconds = self.clock.seconds();
        if let Err(error) = self.state.commit_revocations(self.in_force.known(), self.in_force.event(seconds))
        {
            tracing::error!(%error, "revocation list is in force; the next survey writes it down");
        }
        if let Some(survey) = &mut self.survey {
            survey.take_revocations(&self.in_force, self.state.table().revision);
        }
    }

    /// Something may have expired, or count from now on.
    fn look_at_time(&mut self) {
        let now = self.clock.now();
        let Some(live) = &mut self.live else { return };
        if live.next.is_some_and(|next| next <= now) {
            live.next = None;
            self.withdraw();
            self.changed();
        }
    }

    /// A survey would find something else now. The supervisor has it survey.
    fn changed(&mut self) {
        if !self.said_changed {
            self.said_changed = true;
            self.outbox.push_back(FromChild::Changed);
        }
    }

    /// Has workers stop what does not hold any more, by what is known this very moment.
    fn withdraw(&mut self) {
        let Some(live) = &mut self.live else { return };
        let rules = (&self.in_force.list, self.clock.now());
        let setting = &live.setting;
        let holds = |key: &Key, served: &Served| match setting.class(key) {
            // No longer configured: nobody can ask for it once its worker has drained, which may take its time.
            None => served.is_not_revoked(&self.in_force.list),
            Some(class) => served.holds(setting, key, class, rules),
        };
        // Who starts from now on does not get it either.
        for (key, standing) in &mut live.standings {
            if let Standing::Serves(served) = standing
                && let Err(why) = holds(key, served)
            {
                let kind = served.config.kind();
                *standing = Standing::Refused { class: served.class.clone(), kind, why };
            }
        }
        let standings = &live.standings;
        self.supplies.withdraw(|key, served| match standings.get(key) {
            // The same one, whose signatures may have been looked at again since.
            Some(Standing::Serves(now)) if now.is_the_same(served) => Ok(()),
            _ => holds(key, served),
        });
    }

    fn hear(&mut self, buffer: &mut Vec<u8>) -> Result<(), ServeError> {
        loop {
            match self.control.receive(buffer)? {
                Received::Nothing => return Ok(()),
                Received::End => return Err(ServeError::Gone),
                Received::Message(message, descriptor) => self.heed(message, descriptor)?,
            }
        }
    }

    fn heed(&mut self, message: ToChild, descriptor: Option<OwnedFd>) -> Result<(), ServeError> {
        let needed = |descriptor: Option<OwnedFd>| descriptor.ok_or(ServeError::NoDescriptor);
        match message {
            ToChild::Serve => self.begin(),
            ToChild::Ping { nonce } => self.outbox.push_back(FromChild::Pong { nonce }),
            ToChild::Drain => self.draining = true,
            ToChild::Reassign => match read_assignment(needed(descriptor)?) {
                Ok(assignment) => {
                    self.assignment = assignment;
                    self.begin();
                }
                Err(error) => self.say(String::new(), Some(format!("read assignment: {error}"))),
            },
            ToChild::Supply { class, generation } => {
                let socket = needed(descriptor)?;
                match &self.live {
                    Some(live) => self.supplies.add((class, generation), socket, &live.standings),
                    // Its end closes, and the worker says that it got nothing.
                    None => tracing::warn!(%class, generation, "a worker before the first survey"),
                }
            }
            ToChild::Builder { serial } => {
                let done = self.jobs.builder(serial, needed(descriptor)?);
                self.built(done);
            }
            ToChild::NoBuilder { serial, why } => {
                let done = self.jobs.no_builder(serial, &why);
                self.built(done);
            }
            ToChild::Route { .. }
            | ToChild::Processes(_)
            | ToChild::Accounts { .. }
            | ToChild::Visits { .. } => {
                tracing::warn!("the supervisor's message is not one for a registry");
            }
        }
        Ok(())
    }

    fn built(&mut self, done: Option<super::jobs::Done>) {
        if let (Some((serial, result)), Some(survey)) = (done, &mut self.survey) {
            survey.built(&self.state, serial, result);
        }
    }

    fn tell(&mut self) -> Result<(), ServeError> {
        while let Some(message) = self.outbox.front() {
            match self.control.send(message, None) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(SendError::Full) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// How long there is nothing to do, if nobody says anything.
    fn timeout(&self) -> Duration {
        let job = self.jobs.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let expiry = self.live.as_ref().and_then(|live| live.next).map(|next| {
            let left = next.duration_since(self.clock.now());
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(SLEEP_MAX)
        });
        let full =
            (!self.outbox.is_empty() || self.supplies.watched().any(|(_, waits)| waits)).then_some(RETRY);
        let watch = self.live.as_ref().map(|_| self.watch.due(Instant::now()));
        [job, expiry, full, watch].into_iter().flatten().min().unwrap_or(Duration::MAX)
    }

    fn wait(&self, timeout: Duration) -> Result<(), ServeError> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut watched: Vec<PollFd<'_>> = vec![readable(self.control.as_fd())];
        watched.extend(self.supplies.watched().map(|(fd, _)| readable(fd)));
        watched.extend(self.jobs.watched().map(readable));
        // Rounded up, or it would spin through the last millisecond.
        let timeout = match timeout {
            Duration::MAX => PollTimeout::NONE,
            Duration::ZERO => PollTimeout::ZERO,
            some => PollTimeout::try_from(some.saturating_add(Duration::from_millis(1)))
                .unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(ServeError::Wait(errno)),
        }
    }
}

/// What the supervisor left, or sent.
pub(super) fn read_assignment(memfd: OwnedFd) -> io::Result<RegistryAssignment> {
    let mut bytes = Vec::new();
    let mut file = File::from(memfd);
    // Its place is shared with whoever wrote it.
    file.rewind()?;
    file.take(u64::try_from(ASSIGNMENT_MAX).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    frame::decode(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::artifact::{PublicKey, SealedBytes};
    use crate::decision::TrustClass;
    use crate::ledger::What;
    use crate::registry::revoked::REVOCATIONS;
    use crate::registry::tests::{World, key};
    use crate::trust::Revokes;
    use crate::wire::control::CONTROL_MAX;
    use crate::wire::job::{JOB_MAX, Job, Report};
    use crate::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};

    /// A registry that serves, and the supervisor that it hears. Its classes' caches have what is on the shelf, and its builders
    /// find no new policy any good.
    struct Service {
        registry: Registry,
        supervisor: Channel<ToChild, FromChild>,
        shelf: Shelf,
        asked: Vec<u64>,
        buffer: Vec<u8>,
    }

    impl Service {
        /// After its first survey, on a state that a survey of `world` left.
        fn start(world: &mut World) -> Self {
            let shelf = world.shelf();
            world.restart();
            let (ours, theirs) = Channel::<ToChild, FromChild>::pair(CONTROL_MAX).unwrap();
            let state = State::open(&world.state_path()).unwrap();
            let clock = Clock::on(&world.wall, state.table().latest);
            let registry = Registry::new(theirs, world.assignment.clone(), state, clock, None).unwrap();
            let mut service = Self { registry, supervisor: ours, shelf, asked: vec![], buffer: vec![] };
            service.supervisor.send(&ToChild::Serve, None).unwrap();
            service.survey();
            service
        }

        /// Has it survey anew, by what `world` is configured with now.
        fn reassign(&mut self, world: &World) {
            let memfd = SealedBytes::of(&frame::encode(&world.assignment, ASSIGNMENT_MAX).unwrap()).unwrap();
            self.supervisor.send(&ToChild::Reassign, Some(memfd.as_fd())).unwrap();
        }

        /// Until the supervisor hears what it waits for.
        fn until(&mut self, awaited: impl Fn(&FromChild) -> bool) {
            loop {
                self.registry.turn(&mut self.buffer).unwrap();
                while let Received::Message(said, _) = self.supervisor.receive(&mut self.buffer).unwrap() {
                    if let FromChild::Build { serial, .. } = said {
                        self.asked.push(serial);
                    }
                    if awaited(&said) {
                        return;
                    }
                }
            }
        }

        /// Until the survey that is under way is done.
        fn survey(&mut self) {
            while self.registry.survey.is_some() || self.registry.live.is_none() {
                for serial in std::mem::take(&mut self.asked) {
                    self.build(serial);
                }
                self.until(|said| matches!(said, FromChild::Build { .. } | FromChild::Surveyed { .. }));
            }
        }

        fn build(&mut self, serial: u64) {
            let (registrys, builder) = Channel::<Job, Report>::pair(JOB_MAX).unwrap();
            let descriptor = OwnedFd::from(registrys);
            self.supervisor.send(&ToChild::Builder { serial }, Some(descriptor.as_fd())).unwrap();
            let job = loop {
                self.registry.turn(&mut self.buffer).unwrap();
                if let Received::Message(job, _) = builder.receive_many(&mut self.buffer).unwrap() {
                    break job;
                }
            };
            let Job::Recall { cwasm } = job else {
                let why = "no good".to_owned();
                return builder.send(&Report::Refused { why }, None).unwrap();
            };
            for cwasm in cwasm {
                match self.shelf.get(&cwasm) {
                    Some(code) => builder.send(&Report::Recalled { cwasm }, Some((**code).as_fd())).unwrap(),
                    None => {
                        let why = String::new();
                        builder.send(&Report::Lost { cwasm, why, corrupt: false }, None).unwrap();
                    }
                }
            }
        }

        /// What a worker that starts now gets: `P` for a policy, `R` for a refusal.
        fn supplied(&mut self) -> String {
            let worker = self.worker();
            self.heard(&worker).replace('C', "")
        }

        fn worker(&mut self) -> Channel<ToRegistry, FromRegistry> {
            let (ours, theirs) = Channel::<FromRegistry, ToRegistry>::pair(SUPPLY_MAX).unwrap();
            let class = TrustClass::new("web").unwrap();
            let descriptor = OwnedFd::from(ours);
            self.registry.heed(ToChild::Supply { class, generation: 1 }, Some(descriptor)).unwrap();
            theirs
        }

        fn heard(&mut self, worker: &Channel<ToRegistry, FromRegistry>) -> String {
            let mut said = String::new();
            while let Received::Message(message, _) = worker.receive(&mut self.buffer).unwrap() {
                said.push(match message {
                    FromRegistry::Data { .. } => 'D',
                    FromRegistry::Policy { .. } => 'P',
                    FromRegistry::Refused { .. } => 'R',
                    FromRegistry::Complete => 'C',
                    FromRegistry::Withdraw { .. } => 'W',
                });
            }
            said
        }
    }

    fn has_changed(said: &FromChild) -> bool {
        matches!(said, FromChild::Changed)
    }

    #[test]
    fn a_revocation_that_comes_during_a_survey_is_not_undone_by_it() {
        let mut world = World::with(&["gate", "quota"]);
        let gate = world.release("gate", 1);
        world.release("quota", 1);
        world.survey();
        let mut service = Service::start(&mut world);
        assert_eq!(service.supplied(), "PP", "control");
        let worker = service.worker();
        assert_eq!(service.heard(&worker), "PPC");

        // A survey that waits for a builder.
        world.release("quota", 2);
        service.reassign(&world);
        service.until(|said| matches!(said, FromChild::Build { .. }));
        world.revoke(Revokes::Digest(gate));
        service.until(has_changed);
        assert_eq!(service.heard(&worker), "W");
        assert_eq!(service.supplied(), "RP");
        // Whoever writes to the store takes the list away again.
        fs::remove_file(world.home.path().join("store").join(REVOCATIONS)).unwrap();
        service.survey();
        assert_eq!(service.supplied(), "RP", "the survey began before it was revoked, and ended after it");
        assert_eq!(service.registry.in_force.list.version(), 1);

        drop(service);
        world.survey();
        assert_eq!(world.serves("gate"), None, "and is on the disk");
    }

    #[test]
    fn a_revocation_is_on_the_disk_before_anybody_surveys() {
        let mut world = World::with(&["gate"]);
        let gate = world.release("gate", 1);
        world.survey();
        let mut service = Service::start(&mut world);
        world.revoke(Revokes::Digest(gate));
        service.until(has_changed);
        drop(service);
        fs::remove_file(world.home.path().join("store").join(REVOCATIONS)).unwrap();
        world.survey();
        assert_eq!(world.serves("gate"), None, "{}", world.why("gate"));
        let lists = world.history().iter().filter(|event| event.what == What::Revocations);
        assert_eq!(lists.count(), 1, "and is said once");
    }

    #[test]
    fn what_is_no_longer_configured_is_revoked_while_its_worker_drains() {
        let mut world = World::with(&["gate", "quota"]);
        let gate = world.release("gate", 1);
        world.release("quota", 1);
        world.survey();
        let mut service = Service::start(&mut world);
        let worker = service.worker();
        assert_eq!(service.heard(&worker), "PPC");
        world.assignment.tenants[0].policies.retain(|policy| *policy != key("gate").1);
        service.reassign(&world);
        service.until(|said| matches!(said, FromChild::Surveyed { .. }));
        assert_eq!(service.heard(&worker), "", "control: what is no longer configured may finish");
        world.revoke(Revokes::Digest(gate));
        service.until(has_changed);
        assert_eq!(service.heard(&worker), "W");
        let by = PublicKey::id(&world.release.public_key());
        world.revoke(Revokes::Key(by));
        service.reassign(&world);
        service.until(|said| matches!(said, FromChild::Surveyed { .. }));
        assert_eq!(service.heard(&worker), "W", "the other, whose key this was");
    }
}
