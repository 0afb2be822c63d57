//! What a survey wants with one policy.

use std::sync::Arc;

use crate::artifact::{Digest, SealedBytes};
use crate::decision::{Tenant, TrustClass};
use crate::ledger::{Entry, HeldBack};

use super::super::setting::Key;

/// A policy, or a class's cache, that is being worked on.
#[derive(Debug)]
pub(super) enum Task {
    Policy(PolicyTask),
    Recall {
        class: TrustClass,
        cwasm: Vec<Digest>,
    },
    /// What these tenants had in it, who are no more, goes.
    Clear {
        class: TrustClass,
        tenants: Vec<Tenant>,
    },
}

#[derive(Debug)]
pub(super) struct PolicyTask {
    pub(super) key: Key,
    pub(super) class: TrustClass,
    pub(super) goal: Goal,
    /// What is in the store and will not be active.
    pub(super) held_back: Option<HeldBack>,
    /// Why code has to be compiled again, if it has.
    pub(super) rebuild: Option<String>,
    /// What a builder looks at.
    pub(super) code: Option<Arc<SealedBytes>>,
    /// The kept bundle was put back from the store, which is tried once.
    pub(super) restored: bool,
}

/// Which entry is to be active.
#[derive(Debug)]
pub(super) enum Goal {
    /// From the store, and who accepted it if somebody had to.
    New { entry: Box<Entry>, why: String },
    /// One that was active before.
    Back { entry: Box<Entry>, why: String, pin: u64 },
    /// The one that is.
    Stay,
}

impl PolicyTask {
    pub(super) fn new(key: Key, class: TrustClass, goal: Goal) -> Self {
        Self { key, class, goal, held_back: None, rebuild: None, code: None, restored: false }
    }

    pub(super) fn held_back(mut self, held_back: Option<HeldBack>) -> Self {
        self.held_back = held_back;
        self
    }
}
