//! From what is wanted to what is: code for this host, a builder's word on it, the change of the draft; and where that does not
//! come about, what was active stays.

use std::sync::Arc;

use super::begin::next_order;
use super::goal::{Goal, PolicyTask, Task};
use super::judge::kept;
use super::served::shelved;
use super::store::of_kept;
use super::{Built, Key, NotBuilt, Standing, Survey, Wanted, builders, shortened};
use crate::artifact::{Digest, SealedBytes};
use crate::bundle::confidential::LayerOf;
use crate::bundle::{Kind, Platform};
use crate::decision::TrustClass;
use crate::engine::{MadeFor, Metering, WASMTIME_VERSION, settings_digest};
use crate::ledger::{Code, Entry, HeldBack, Order, Origin, PlacedOrder, Record, Target, What};
use crate::registry::state::State;
use crate::wire::job::Job;

/// What is needed before an entry can serve.
enum Provided {
    Ready(Arc<SealedBytes>),
    /// A builder's word.
    Build(Job, Vec<Arc<SealedBytes>>),
    Failed(String),
}

impl Survey {
    /// Begins with a policy.
    pub(super) fn take_up(&mut self, state: &State, key: Key) {
        let Some(class) = self.setting.class(&key).cloned() else { return };
        let order = next_order(&mut self.orders, &key);
        let task = match order.as_ref().map(|order| (&order.order, order)) {
            Some((Order::Rollback { to, reason, .. }, order)) => {
                self.look_back(state, &key, &class, (to, reason), order)
            }
            Some((_, order)) => self.look_in_store(state, &key, &class, Some(order)),
            None => self.look_in_store(state, &key, &class, None),
        };
        self.pursue(state, task);
    }

    /// A builder answered, or died.
    pub(super) fn go_on(&mut self, state: &State, task: Task, result: Result<Built, NotBuilt>) {
        let mut task = match task {
            Task::Recall { class, cwasm } => return self.recalled(&class, &cwasm, result),
            Task::Clear { class, tenants } => return self.cleared(&class, tenants, result),
            Task::Policy(task) => task,
        };
        match result {
            Ok(Built::Sound) => {
                // Its code is what was looked at.
                match task.code.take() {
                    Some(code) => self.settle(state, task, code),
                    None => self.give_up(state, task, "its code is gone".into()),
                }
            }
            Ok(Built::Compiled(code)) => {
                let config = match &task.goal {
                    Goal::New { entry, .. } | Goal::Back { entry, .. } => Some(&entry.config),
                    Goal::Stay => self.wanted_entry(&task).map(|entry| &entry.config),
                };
                let metering = config.map(|config| Metering::of(&config.limits)).unwrap_or_default();
                let made = Code {
                    cwasm: code.digest(),
                    origin: Origin::Builder,
                    wasmtime: WASMTIME_VERSION.to_owned(),
                    engine: settings_digest(metering),
                };
                self.shelf.insert(code.digest(), Arc::clone(&code));
                match &mut task.goal {
                    Goal::New { entry, .. } | Goal::Back { entry, .. } => entry.code = made,
                    Goal::Stay => self.rebuilt(&task, made),
                }
                self.settle(state, task, code);
            }
            Ok(Built::Recalled { .. } | Built::Cleared) => {
                self.give_up(state, task, "a builder answered what was not asked".into())
            }
            Err(NotBuilt { why, lasting }) => {
                if lasting && let Goal::New { entry, .. } = &task.goal {
                    self.unsound.insert(entry.bundle, why.clone());
                }
                self.give_up(state, task, why);
            }
        }
    }

    /// Says that an order was not carried out.
    pub(super) fn refuse_order(
        &mut self,
        key: &Key,
        order: &PlacedOrder,
        bundle: Option<(Digest, u64)>,
        why: &str,
    ) {
        self.remember(What::OrderRefused, key, bundle, Some(order.number), why);
    }

    /// An operator wants a version back.
    fn look_back(
        &mut self,
        state: &State,
        key: &Key,
        class: &TrustClass,
        (to, reason): (&Target, &str),
        order: &PlacedOrder,
    ) -> PolicyTask {
        let task = |goal| PolicyTask::new(key.clone(), class.clone(), goal);
        let found = kept(self.draft.record(&key.0, &key.1), to).cloned();
        let entry = found.and_then(|mut entry| {
            self.refresh(state, &mut entry);
            let about = (entry.bundle, &entry.config);
            let rules = (&self.in_force.list, self.now);
            let judged = self.setting.judge(key, class, about, &entry.evidence, rules).map(drop);
            match judged.and_then(|()| self.data_of(key, &entry.config).map(drop)) {
                Ok(()) => Ok(entry),
                Err(why) => Err(format!("version {} may not decide any more: {why}", entry.version())),
            }
        });
        match entry {
            Ok(entry) => {
                // Whatever is in the store now is known to whoever goes back; and what was left there before stays left.
                let record = self.draft.record(&key.0, &key.1);
                let before = record.map_or(0, |record| record.floor.max(record.pinned.unwrap_or(0)));
                let pin = self.delivered_version(key, class).unwrap_or(0).max(before);
                let entry = Entry { order: Some(order.number), since: self.seconds, ..entry };
                task(Goal::Back { entry: Box::new(entry), why: reason.to_owned(), pin })
            }
            Err(why) => {
                self.refuse_order(key, order, None, &why);
                task(Goal::Stay)
            }
        }
    }

    fn pursue(&mut self, state: &State, mut task: PolicyTask) {
        if matches!(task.goal, Goal::Stay) && !self.still_holds(state, &task) {
            return self.next(&task.key);
        }
        let Some(entry) = self.wanted_entry(&task).cloned() else {
            let why = match &task.held_back {
                Some(held_back) => held_back.why.clone(),
                None => "nothing is in the store for it, and nothing was active before".to_owned(),
            };
            return self.conclude(state, task, Err(why));
        };
        let is_new = matches!(task.goal, Goal::New { .. });
        match self.provide(state, &entry, is_new, &mut task) {
            Provided::Ready(code) => self.settle(state, task, code),
            Provided::Build(job, descriptors) => {
                self.serial = self.serial.saturating_add(1);
                let (serial, class) = (self.serial, task.class.clone());
                if matches!(job, Job::Check { .. }) {
                    task.code = descriptors.last().cloned();
                }
                self.wanted.push(Wanted { serial, class, job, descriptors });
                self.waiting.insert(serial, Task::Policy(task));
            }
            Provided::Failed(why) => self.give_up(state, task, why),
        }
    }

    /// Which entry is to serve.
    pub(super) fn wanted_entry<'a>(&'a self, task: &'a PolicyTask) -> Option<&'a Entry> {
        match &task.goal {
            Goal::New { entry, .. } | Goal::Back { entry, .. } => Some(entry),
            Goal::Stay => self.draft.record(&task.key.0, &task.key.1)?.active.as_ref(),
        }
    }

    /// Whether what is active may go on; if not, that is how the policy stands. True where nothing is active.
    fn still_holds(&mut self, state: &State, task: &PolicyTask) -> bool {
        let (tenant, policy) = &task.key;
        let Some(mut active) = self.draft.record(tenant, policy).and_then(|record| record.active.clone())
        else {
            return true;
        };
        self.refresh(state, &mut active);
        let about = (active.bundle, &active.config);
        let rules = (&self.in_force.list, self.now);
        let verdict = self.setting.judge(&task.key, &task.class, about, &active.evidence, rules);
        let verdict = verdict.err().map(|why| shortened(&why));
        let seen = Some((active.bundle, active.version()));
        let before = self.draft.record(tenant, policy).and_then(|record| record.withdrawn.clone());
        match (&before, &verdict) {
            (None, Some(why)) => self.remember(What::Withdrawn, &task.key, seen, None, why),
            (Some(_), None) => {
                self.remember(What::Restored, &task.key, seen, None, "what was against it is gone")
            }
            _ => {}
        }
        if let Some(record) = self.draft.record_mut(tenant, policy) {
            record.withdrawn.clone_from(&verdict);
            record.active = Some(active);
        }
        let Some(why) = verdict else { return true };
        let held_back = self.hold_back(task);
        let why = match held_back {
            Some(held_back) => format!("{why}; and what is in the store does not serve instead: {held_back}"),
            None => why,
        };
        let refused = self.refused(task, why);
        self.standings.insert(task.key.clone(), refused);
        false
    }

    /// Works the evidence out again where the keys are others now.
    fn refresh(&self, state: &State, entry: &mut Entry) {
        if entry.keys == self.setting.keys {
            return;
        }
        match of_kept(state, entry.bundle, &self.setting.anchors) {
            Ok(evidence) => {
                entry.evidence = evidence;
                entry.keys = self.setting.keys;
            }
            // What was known of it is still true, and counts only for keys that are still trusted.
            Err(why) => tracing::warn!(bundle = %entry.bundle, why, "look at signatures of a kept bundle"),
        }
    }

    /// Code for this host, or how to come by it.
    fn provide(&self, state: &State, entry: &Entry, is_new: bool, task: &mut PolicyTask) -> Provided {
        if entry.config.kind() == Kind::Data {
            return self.table(state, entry).map_or_else(Provided::Failed, Provided::Ready);
        }
        let metering = Metering::of(&entry.config.limits);
        let here = entry.code.wasmtime == WASMTIME_VERSION && entry.code.engine == settings_digest(metering);
        if here
            && !is_new
            && let Some(code) = self.shelf.get(&shelved(entry))
        {
            return Provided::Ready(Arc::clone(code));
        }
        let layout = match state.layout(entry.bundle) {
            Ok(layout) => layout,
            Err(error) => return Provided::Failed(error.to_string()),
        };
        let bundle = match layout.read() {
            Ok(bundle) => bundle,
            Err(error) => return Provided::Failed(format!("kept bundle {}: {error}", entry.bundle)),
        };
        let manifest = || Box::new(entry.config.clone());
        let ceiling = self.setting.ceiling(&task.key.0);
        let read = |blob, layer| self.plain(&layout, blob, layer);
        let source = || read(&bundle.source, LayerOf::Source(&entry.config));
        let why = if !here {
            format!("it was compiled with wasmtime {:?} or for other settings", entry.code.wasmtime)
        } else if entry.code.origin == Origin::Builder && entry.config.confidential.is_some() {
            "it is confidential, so no cache keeps what was compiled from it".to_owned()
        } else if entry.code.origin == Origin::Builder {
            let lost = self.lost.get(&entry.code.cwasm);
            lost.map_or_else(|| "the class's cache was not asked for it".to_owned(), Clone::clone)
        } else {
            let Some((_, compiled)) = bundle.compiled_for(Platform::host()) else {
                return Provided::Failed(format!("kept bundle {}: its code is not there", entry.bundle));
            };
            let code = match read(&compiled.cwasm, LayerOf::Code(&entry.config, compiled.platform)) {
                Ok(code) => code,
                Err(why) => return Provided::Failed(why),
            };
            match MadeFor::read(&code).and_then(|made| made.check(metering)) {
                Ok(()) if !is_new => return Provided::Ready(code),
                Ok(()) => {
                    return match source() {
                        Ok(source) => {
                            Provided::Build(Job::Check { manifest: manifest(), ceiling }, vec![source, code])
                        }
                        Err(why) => Provided::Failed(why),
                    };
                }
                Err(unfit) => unfit.to_string(),
            }
        };
        task.rebuild = Some(why);
        match source() {
            Ok(source) => Provided::Build(Job::Compile { manifest: manifest(), ceiling }, vec![source]),
            Err(why) => Provided::Failed(why),
        }
    }

    /// What was wanted does not come about; what is active stays.
    fn give_up(&mut self, state: &State, mut task: PolicyTask, why: String) {
        match std::mem::replace(&mut task.goal, Goal::Stay) {
            Goal::New { entry, .. } => {
                let seen = (entry.bundle, entry.version());
                if let Some(order) = entry.order {
                    self.remember(What::OrderRefused, &task.key, Some(seen), Some(order), &why);
                }
                let (bundle, version) = (Some(seen.0), Some(seen.1));
                task.held_back = Some(HeldBack { bundle, version, why, unsound: None });
            }
            Goal::Back { entry, .. } => {
                let seen = Some((entry.bundle, entry.version()));
                self.remember(What::OrderRefused, &task.key, seen, entry.order, &why);
            }
            Goal::Stay => {
                let bundle = self.wanted_entry(&task).map(|entry| entry.bundle);
                let restored = match bundle {
                    Some(bundle) if !task.restored && self.unwritable.is_none() => {
                        self.restore(state, &task.key, bundle)
                    }
                    _ => Err(String::new()),
                };
                task.restored = true;
                if restored.is_err() {
                    return self.conclude(state, task, Err(why));
                }
                tracing::warn!(tenant = %task.key.0, policy = %task.key.1, why, "kept bundle was put back from the store");
            }
        }
        self.pursue(state, task);
    }

    /// The goal is reached: the draft says so.
    fn settle(&mut self, state: &State, mut task: PolicyTask, code: Arc<SealedBytes>) {
        if let Some(shelved) = self.wanted_entry(&task).map(shelved) {
            self.shelf.insert(shelved, Arc::clone(&code));
        }
        let most = usize::try_from(self.setting.assignment.keep_previous).unwrap_or(usize::MAX);
        let (key, goal) = (task.key.clone(), std::mem::replace(&mut task.goal, Goal::Stay));
        let (what, entry, why) = match goal {
            Goal::Stay => return self.conclude(state, task, Ok(code)),
            Goal::New { entry, why } => (What::Activated, entry, why),
            Goal::Back { entry, why, pin } => {
                if let Some(record) = self.draft.record_mut(&key.0, &key.1) {
                    record.pinned = Some(pin);
                }
                (What::RolledBack, entry, why)
            }
        };
        self.remember(what, &key, Some((entry.bundle, entry.version())), entry.order, &why);
        if let Some(record) = self.draft.record_mut(&key.0, &key.1) {
            activate(record, *entry, most);
        }
        self.conclude(state, task, Ok(code));
    }

    /// The active entry has other code now.
    fn rebuilt(&mut self, task: &PolicyTask, made: Code) {
        let Some(record) = self.draft.record_mut(&task.key.0, &task.key.1) else { return };
        let Some(active) = &mut record.active else { return };
        active.code = made;
        record.rebuilt = record.rebuilt.saturating_add(1);
        let seen = Some((active.bundle, active.version()));
        self.rebuilt = self.rebuilt.saturating_add(1);
        let why = task.rebuild.clone().unwrap_or_default();
        self.remember(What::Rebuilt, &task.key, seen, None, &why);
    }

    /// How the policy stands.
    fn conclude(&mut self, state: &State, task: PolicyTask, code: Result<Arc<SealedBytes>, String>) {
        let held_back = self.hold_back(&task);
        let standing = code.and_then(|code| self.served(state, &task, code, held_back));
        let standing = match standing {
            Ok(served) => Standing::Serves(Box::new(served)),
            Err(why) => self.refused(&task, why),
        };
        self.standings.insert(task.key.clone(), standing);
        self.next(&task.key);
    }

    /// Writes down what is in the store and not active, and says it once.
    fn hold_back(&mut self, task: &PolicyTask) -> Option<String> {
        let (tenant, policy) = &task.key;
        let before = self.draft.record(tenant, policy).and_then(|record| record.held_back.clone());
        let short = |HeldBack { bundle, version, why, .. }: &HeldBack| {
            let unsound = bundle.filter(|bundle| self.unsound.contains_key(bundle)).map(|_| builders());
            HeldBack { bundle: *bundle, version: *version, why: shortened(why), unsound }
        };
        let held_back = task.held_back.as_ref().map(short);
        if before != held_back {
            if let Some(HeldBack { bundle, version, why, .. }) = &held_back {
                let seen = bundle.zip(*version);
                self.remember(What::HeldBack, &task.key, seen, None, why);
            }
            if let Some(record) = self.draft.record_mut(tenant, policy) {
                record.held_back.clone_from(&held_back);
            }
        }
        held_back.map(|held_back| held_back.why)
    }

    /// One more order about the same policy is for later, and not for the next survey.
    fn next(&mut self, key: &Key) {
        if self.orders.get(key).is_some_and(|orders| !orders.is_empty()) {
            self.todo.push_front(key.clone());
        }
    }

    /// What a class's cache had.
    fn recalled(&mut self, class: &TrustClass, asked: &[Digest], result: Result<Built, NotBuilt>) {
        let (found, lost) = match result {
            Ok(Built::Recalled { found, lost }) => (found, lost),
            Ok(_) => (Vec::new(), every(asked, "a builder answered what was not asked")),
            Err(NotBuilt { why, .. }) => (Vec::new(), every(asked, &why)),
        };
        for code in found {
            self.shelf.insert(code.digest(), code);
        }
        for (cwasm, why) in lost {
            tracing::warn!(%class, %cwasm, why, "cache does not have it");
            self.lost.insert(cwasm, why);
        }
    }
}

fn every(digests: &[Digest], why: &str) -> Vec<(Digest, String)> {
    digests.iter().map(|digest| (*digest, why.to_owned())).collect()
}

/// Makes an entry the active one.
fn activate(record: &mut Record, entry: Entry, most: usize) {
    let version = entry.version();
    if version >= record.floor {
        record.floor = version;
        record.floor_bundle = Some(entry.bundle);
    }
    if record.pinned.is_some_and(|pinned| version >= pinned) {
        record.pinned = None;
    }
    record.previous.retain(|previous| previous.bundle != entry.bundle);
    if let Some(before) = record.active.replace(entry) {
        record.previous.insert(0, before);
    }
    record.previous.truncate(most);
    record.withdrawn = None;
    record.held_back = None;
}
