//! What holds for every policy: read before the first one is looked at, and if it is wrong, nothing is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::goal::Task;
use super::{Shelf, Survey, SurveyError, Unsound, Wanted, builders};
use crate::artifact::Digest;
use crate::decision::{Tenant, TrustClass};
use crate::ledger::{Entry, Event, Order, Origin, PlacedOrder, Table, What};
use crate::registry::clock::{Clock, timestamp};
use crate::registry::revoked::InForce;
use crate::registry::setting::{Key, Setting};
use crate::registry::state::State;
use crate::wire::job::Job;

/// Most digests that one class's cache is asked for: more do not fit into a message.
const RECALLED_MAX: usize = 1_900;

/// What a survey goes on with from the one before.
pub(in crate::registry) struct Before {
    pub(in crate::registry) in_force: InForce,
    pub(in crate::registry) shelf: Shelf,
    pub(in crate::registry) unsound: Unsound,
    pub(in crate::registry) serial: u64,
    /// Tenants who are no more, and of whose code the caches are free.
    pub(in crate::registry) cleared: BTreeSet<Tenant>,
}

impl Survey {
    /// Reads what holds for every policy.
    ///
    /// # Errors
    /// When the trust policy or the state is wrong.
    pub(in crate::registry) fn begin(
        setting: Setting,
        state: &State,
        clock: &Clock,
        before: Before,
    ) -> Result<Self, SurveyError> {
        let seconds = clock.seconds();
        let mut draft = state.table().clone();
        let mut in_force = before.in_force;
        in_force.look(Path::new(&setting.assignment.store), &setting.trust, clock);
        write_down(&mut draft, &in_force, seconds);
        // A registry that starts anew does not try again what the one before had found no good: where one bomb after the other
        // has its time, nobody would be served for as long.
        let mut unsound = before.unsound;
        for held_back in draft.policies.iter().filter_map(|record| record.held_back.as_ref()) {
            if let (Some(bundle), Some(by)) = (held_back.bundle, &held_back.unsound)
                && *by == builders()
            {
                unsound.entry(bundle).or_insert_with(|| held_back.why.clone());
            }
        }
        let mut survey = Self {
            store: open_store(&setting),
            todo: setting.in_order().cloned().collect(),
            setting,
            draft,
            in_force,
            seconds,
            now: timestamp(seconds),
            orders: BTreeMap::new(),
            waiting: BTreeMap::new(),
            wanted: Vec::new(),
            standings: BTreeMap::new(),
            shelf: before.shelf,
            lost: BTreeMap::new(),
            stuck: BTreeSet::new(),
            cleared: before.cleared,
            unsound,
            unwritable: None,
            serial: before.serial,
            rebuilt: 0,
        };
        if let Err(why) = &survey.store {
            tracing::warn!(why, "what is active goes on, nothing becomes active");
        }
        survey.take_orders(state)?;
        survey.recall();
        survey.clear_caches();
        Ok(survey)
    }

    /// The same, where nothing can be written down: what is active is looked at, and nothing becomes active.
    ///
    /// # Errors
    /// When the trust policy or the state is wrong.
    pub(in crate::registry) fn begin_unwritable(
        setting: Setting,
        state: &State,
        clock: &Clock,
        before: Before,
        why: String,
    ) -> Result<Self, SurveyError> {
        let mut survey = Self::begin(setting, state, clock, before)?;
        survey.orders.clear();
        survey.unwritable = Some(why);
        Ok(survey)
    }

    /// A newer revocation list came into force while this was under way, and is in the table of that revision.
    pub(in crate::registry) fn take_revocations(&mut self, in_force: &InForce, revision: u64) {
        self.draft.revision = revision;
        if in_force.list.version() > self.in_force.list.version() {
            self.in_force = in_force.clone();
            write_down(&mut self.draft, in_force, self.seconds);
        }
    }

    fn take_orders(&mut self, state: &State) -> Result<(), SurveyError> {
        for found in state.orders()? {
            self.draft.orders = self.draft.orders.max(found.number);
            let refused = match found.order {
                Err(error) => error.to_string(),
                Ok(Order::Recover { .. }) => "the table is whole: there is nothing to begin anew".to_owned(),
                Ok(order) => match order.subject().map(|(tenant, policy)| (tenant.clone(), policy.clone())) {
                    Some(key) if self.setting.class(&key).is_some() => {
                        let order = PlacedOrder { number: found.number, order };
                        self.orders.entry(key).or_default().push_back(order);
                        continue;
                    }
                    _ => "that policy is not configured".to_owned(),
                },
            };
            tracing::warn!(order = found.number, why = refused, "order refused");
            self.draft.remember(event(self.seconds, What::OrderRefused, Some(found.number), refused));
        }
        Ok(())
    }

    /// Asks for what only the classes' caches have. That is also how a cache gets rid of what nothing names any more, so it is
    /// asked for all that it shall keep.
    fn recall(&mut self) {
        let mut named: BTreeMap<TrustClass, Named> = BTreeMap::new();
        for record in &self.draft.policies {
            let key = (record.tenant.clone(), record.policy.clone());
            let Some(class) = self.setting.class(&key) else { continue };
            let named = named.entry(class.clone()).or_default();
            // What is confidential no cache has.
            let ours =
                |entry: &&Entry| entry.code.origin == Origin::Builder && entry.config.confidential.is_none();
            for active in record.active.iter().filter(ours) {
                named.missing |= !self.shelf.contains_key(&active.code.cwasm);
                named.active.insert(active.code.cwasm);
            }
            named.previous.extend(record.previous.iter().filter(ours).map(|entry| entry.code.cwasm));
        }
        for (class, named) in named.into_iter().filter(|(_, named)| named.missing) {
            let all = named.active.iter().chain(named.previous.difference(&named.active));
            let cwasm: Vec<Digest> = all.copied().take(RECALLED_MAX).collect();
            self.serial = self.serial.saturating_add(1);
            let (serial, job) = (self.serial, Job::Recall { cwasm: cwasm.clone() });
            self.wanted.push(Wanted { serial, class: class.clone(), job, descriptors: Vec::new() });
            self.waiting.insert(serial, Task::Recall { class, cwasm });
        }
    }
}

/// What a class's cache shall keep.
#[derive(Default)]
struct Named {
    active: BTreeSet<Digest>,
    previous: BTreeSet<Digest>,
    /// Something active is not in memory.
    missing: bool,
}

fn write_down(draft: &mut Table, in_force: &InForce, seconds: u64) {
    let known = in_force.known();
    if known != draft.revocations {
        draft.remember(in_force.event(seconds));
        draft.revocations = known;
    }
}

fn open_store(setting: &Setting) -> Result<OwnedFd, String> {
    let path = &setting.assignment.store;
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    open(Path::new(path), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::EACCES => format!(
            "open store {path:?}: {errno}; if another directory was put in its place the service has to be restarted, since \
             it is bound to the one it started with"
        ),
        _ => format!("open store {path:?}: {errno}"),
    })
}

fn event(at: u64, what: What, order: Option<u64>, why: String) -> Event {
    Event { at, what, tenant: None, policy: None, bundle: None, version: None, order, why }
}

/// Nobody is asked for the same policy twice at one time.
pub(super) fn next_order(
    orders: &mut BTreeMap<Key, VecDeque<PlacedOrder>>,
    key: &Key,
) -> Option<PlacedOrder> {
    orders.get_mut(key).and_then(VecDeque::pop_front)
}
