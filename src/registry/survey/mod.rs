//! One look at everything: which policy may decide from now on, and why another may not.
//!
//! ```text
//! begin    trust policy, revocation list, orders: if one of them is wrong nothing changes at all
//! step     one policy: does what is active hold? is there something newer, and may it take its place?
//! built    a builder's word on one policy; the others do not wait for it
//! removed  what there still is of tenants who are no more: out of the caches first, then out of the table
//! finish   the table, on the disk at once; then what serves
//! ```
//!
//! Data snapshots go the same way, and before the policies that read them: what does not serve keeps a policy from it ([`data`]).
//!
//! A policy that is no good is named and held back, and never stops the others. The survey works on a draft of the table:
//! until [`Survey::finish`] nothing has happened.

mod begin;
mod data;
mod goal;
mod judge;
mod pursue;
mod removed;
mod served;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use jiff::Timestamp;

use super::revoked::InForce;
use super::setting::{Key, Setting};
use super::state::{PlaceError, State, StateError};
use crate::artifact::{Digest, SealedBytes};
use crate::bundle::{Kind, PolicyConfig};
use crate::decision::{Tenant, TrustClass};
use crate::engine::{Metering, settings_digest};
use crate::ledger::{Event, PlacedOrder, Table, What};
use crate::signature::{Evidence, Signer};
use crate::trust::{Revocations, TrustErrors};
use crate::wire::job::Job;

pub(super) use begin::Before;
use goal::Task;

/// Most policies that wait for a builder at one time. The supervisor starts two; the others are ready when those are done.
const WAITING_MAX: usize = 4;

/// Longest reason that is written down or sent, bytes: people read it, and it may quote at length what a stranger wrote. If
/// everything were kept, one of those in the store could make the table too long to be written.
pub(super) const WHY_MAX: usize = 4096;

/// What is in memory already: machine code by its digest, opened layers and tables by their bundle ([`served::shelved`]).
pub(super) type Shelf = BTreeMap<Digest, Arc<SealedBytes>>;

/// Bundles that a builder found no good, and why: not built again before somebody asks for it.
pub(super) type Unsound = BTreeMap<Digest, String>;

/// A survey under way.
pub(super) struct Survey {
    setting: Setting,
    draft: Table,
    in_force: InForce,
    /// One time for the whole of it.
    seconds: u64,
    now: Timestamp,
    /// The store, or why it cannot be opened.
    store: Result<OwnedFd, String>,
    orders: BTreeMap<Key, VecDeque<PlacedOrder>>,
    /// Policies that were not looked at yet.
    todo: VecDeque<Key>,
    /// Policies that wait for a builder, by its serial.
    waiting: BTreeMap<u64, Task>,
    wanted: Vec<Wanted>,
    standings: BTreeMap<Key, Standing>,
    shelf: Shelf,
    /// What the classes' caches were asked for and did not have, and why.
    lost: BTreeMap<Digest, String>,
    unsound: Unsound,
    /// Tenants who are no more, and whose caches could not be cleared.
    stuck: BTreeSet<Tenant>,
    /// Those whose caches were cleared by a survey before this one.
    cleared: BTreeSet<Tenant>,
    /// Nothing may be written: only what is active is looked at.
    unwritable: Option<String>,
    serial: u64,
    rebuilt: u64,
}

/// How a policy stands.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    Serves(Box<Served>),
    Refused { class: TrustClass, kind: Kind, why: String },
}

impl Standing {
    /// Whether it is a policy, which workers are told of.
    pub(super) fn is_policy(&self) -> bool {
        match self {
            Self::Serves(served) => served.config.kind() == Kind::Policy,
            Self::Refused { kind, .. } => *kind == Kind::Policy,
        }
    }
}

/// A policy that decides, or data that is read, and all that is needed to supply it, and to see whether it still may.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) class: TrustClass,
    pub(super) bundle: Digest,
    pub(super) config: PolicyConfig,
    pub(super) evidence: Evidence,
    pub(super) signed: Vec<u8>,
    /// Machine code, or the plain table.
    pub(super) code: Arc<SealedBytes>,
    /// What it is on the shelf as ([`served::shelved`]).
    pub(super) shelved: Digest,
    /// The data that it reads.
    pub(super) reads: Vec<(Key, Arc<Self>)>,
    /// Why what is newer does not serve instead.
    pub(super) held_back: Option<String>,
    /// It may not decide any longer than that.
    pub(super) until: Option<Timestamp>,
}

impl Served {
    /// Whether it may still decide, by the rules of this moment.
    ///
    /// # Errors
    /// Every reason why not.
    pub(super) fn holds(
        &self,
        setting: &Setting,
        key: &Key,
        class: &TrustClass,
        rules: (&Revocations, Timestamp),
    ) -> Result<(), String> {
        // Machine code made here may be revoked as well as what was shipped.
        if let Some(revoked) = rules.0.digest(&self.code.digest()) {
            return Err(format!("machine code {} was revoked: {:?}", self.code.digest(), revoked.reason));
        }
        setting.judge(key, class, (self.bundle, &self.config), &self.evidence, rules)?;
        self.reads.iter().try_for_each(|(key, data)| {
            data.holds(setting, key, class, rules)
                .map_err(|why| format!("data \"{}\", which it reads: {why}", key.1))
        })
    }

    /// What is left to ask of one that is no longer configured, for which there may be no rule any more: whether nothing of it,
    /// and no key that signed it, was revoked.
    ///
    /// # Errors
    /// What was revoked, and why.
    pub(super) fn is_not_revoked(&self, revoked: &Revocations) -> Result<(), String> {
        let compiled = self.config.compiled.iter().map(|compiled| compiled.cwasm);
        let mut digests = [self.bundle, self.config.source, self.code.digest()].into_iter().chain(compiled);
        let mut signers = self.evidence.signers.iter();
        let entry = digests.find_map(|digest| revoked.digest(&digest)).or_else(|| {
            signers.find_map(|signer| match signer {
                Signer::Key(key) => revoked.key(key),
                Signer::Identity { .. } => None,
            })
        });
        if let Some(entry) = entry {
            return Err(format!("{} was revoked: {:?}", entry.what, entry.reason));
        }
        self.reads.iter().try_for_each(|(_, data)| data.is_not_revoked(revoked))
    }

    /// The same code of the same bundle, reading the same data, whatever was found out about its signatures since.
    pub(super) fn is_the_same(&self, other: &Self) -> bool {
        let data = |of: &Self| of.reads.iter().map(|(_, data)| data.bundle).collect::<Vec<_>>();
        self.bundle == other.bundle && self.code.digest() == other.code.digest() && data(self) == data(other)
    }
}

/// A builder that is needed.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) serial: u64,
    pub(super) class: TrustClass,
    pub(super) job: Job,
    /// In the order that the job says.
    pub(super) descriptors: Vec<Arc<SealedBytes>>,
}

/// What a builder said at last.
#[derive(Debug)]
pub(super) enum Built {
    Sound,
    Compiled(Arc<SealedBytes>),
    Recalled { found: Vec<Arc<SealedBytes>>, lost: Vec<(Digest, String)> },
    Cleared,
}

/// Why there is nothing from a builder.
#[derive(Debug)]
pub(super) struct NotBuilt {
    pub(super) why: String,
    /// It would be the same again: the builder said so, or died of this very job.
    pub(super) lasting: bool,
}

/// What comes after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to do at once.
    More,
    /// Nothing goes on before a builder answers.
    Waits,
    Done,
}

/// What a survey comes to.
pub(super) struct Findings {
    pub(super) setting: Setting,
    pub(super) in_force: InForce,
    pub(super) standings: BTreeMap<Key, Standing>,
    pub(super) shelf: Shelf,
    pub(super) unsound: Unsound,
    pub(super) rebuilt: u64,
    /// Tenants who are no more, and of whose code the caches are free.
    pub(super) cleared: BTreeSet<Tenant>,
}

/// What was found and could not be written down.
pub(super) struct Unwritten {
    pub(super) error: StateError,
    pub(super) setting: Setting,
}

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SurveyError {
    #[error("{0}")]
    Trust(#[from] TrustErrors),
    #[error("state: list orders: {0}")]
    Orders(#[from] PlaceError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl Survey {
    /// Looks at one more policy.
    pub(super) fn step(&mut self, state: &State) -> Progress {
        // Where what is active was compiled here, the caches have it: nobody builds anything before they were asked.
        // And where something goes, nobody puts anything.
        let caches = |task: &Task| matches!(task, Task::Recall { .. } | Task::Clear { .. });
        if self.waiting.values().any(caches) || self.waiting.len() >= WAITING_MAX {
            return Progress::Waits;
        }
        match self.todo.pop_front() {
            Some(key) => self.take_up(state, key),
            None if self.waiting.is_empty() => return Progress::Done,
            None => return Progress::Waits,
        }
        Progress::More
    }

    /// The highest number of a builder that was asked for.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// Builders that are needed, each said once.
    pub(super) fn wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.wanted)
    }

    /// A builder is done, or died.
    pub(super) fn built(&mut self, state: &State, serial: u64, result: Result<Built, NotBuilt>) {
        if let Some(task) = self.waiting.remove(&serial) {
            self.go_on(state, task, result);
        }
    }

    /// Makes it so. An error means that nothing changed.
    pub(super) fn finish(mut self, state: &mut State) -> Result<Findings, Box<Unwritten>> {
        self.draft.latest = self.draft.latest.max(self.seconds);
        let removed = self.let_go();
        if self.unwritable.is_none()
            && let Err(error) = self.commit(state, &removed)
        {
            return Err(Box::new(Unwritten { error, setting: self.setting }));
        }
        // What does not serve needs no memory.
        let serving: BTreeMap<Digest, Arc<SealedBytes>> = self
            .standings
            .values()
            .filter_map(|standing| match standing {
                Standing::Serves(served) => Some((served.shelved, Arc::clone(&served.code))),
                Standing::Refused { .. } => None,
            })
            .collect();
        Ok(Findings {
            setting: self.setting,
            in_force: self.in_force,
            standings: self.standings,
            shelf: serving,
            unsound: self.unsound,
            rebuilt: self.rebuilt,
            cleared: removed,
        })
    }

    fn commit(&mut self, state: &mut State, removed: &BTreeSet<Tenant>) -> Result<(), StateError> {
        let draft = std::mem::replace(&mut self.draft, Table::new(state.table().host.clone()));
        let nothing_new = Table { latest: state.table().latest, ..draft.clone() } == *state.table();
        match state.commit(draft, removed) {
            // Only the time would have been written down.
            Err(error) if nothing_new => {
                tracing::warn!(%error, "write down what time it is");
                Ok(())
            }
            result => result,
        }
    }

    /// Adds to the history.
    fn remember(
        &mut self,
        what: What,
        key: &Key,
        bundle: Option<(Digest, u64)>,
        order: Option<u64>,
        why: &str,
    ) {
        let (tenant, policy) = key;
        let (digest, version) = bundle.unzip();
        let shown = digest.map(|digest| digest.to_string());
        match what {
            What::Activated | What::RolledBack | What::Restored | What::Revocations | What::Recovered => {
                tracing::info!(%tenant, %policy, version, bundle = shown, why, "{}", said(what));
            }
            What::TenantRemoved | What::Withdrawn | What::HeldBack | What::OrderRefused | What::Rebuilt => {
                tracing::warn!(%tenant, %policy, version, bundle = shown, why, "{}", said(what));
            }
        }
        self.draft.remember(Event {
            at: self.seconds,
            what,
            tenant: Some(tenant.clone()),
            policy: Some(policy.clone()),
            bundle: digest,
            version,
            order,
            why: shortened(why),
        });
    }
}

/// Which builders there are: what one of another program, or with another compiler, finds may be something else.
pub(super) fn builders() -> String {
    format!("{} {}", env!("CARGO_PKG_VERSION"), settings_digest(Metering::Off).short())
}

/// A reason of which people read the beginning.
pub(super) fn shortened(why: &str) -> String {
    if why.len() <= WHY_MAX {
        return why.to_owned();
    }
    let end = (0..=WHY_MAX).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", why.get(..end).unwrap_or_default())
}

fn said(what: What) -> &'static str {
    match what {
        What::Activated => "policy activated",
        What::RolledBack => "policy rolled back",
        What::Withdrawn => "policy withdrawn",
        What::Restored => "policy decides again",
        What::HeldBack => "policy held back",
        What::OrderRefused => "order refused",
        What::Rebuilt => "policy compiled again",
        What::Revocations => "revocation list taken",
        What::Recovered => "table begun anew",
        What::TenantRemoved => "tenant removed",
    }
}
