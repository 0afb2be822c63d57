//! What lies in the store for one policy, and what becomes of it. Nothing of it is believed; what is good is copied to the
//! registry's own directory before anything else happens to it.

use std::cell::RefCell;
use std::io;

use super::goal::{Goal, PolicyTask};
use super::judge::{Word, may_follow};
use super::{Key, Survey};
use crate::artifact::Digest;
use crate::bundle::write::tar_into;
use crate::bundle::{Bundle, Layout, LayoutError, Ownership, Refusal, open_policy};
use crate::bundle::{Kind, Platform};
use crate::decision::TrustClass;
use crate::engine::{Metering, WASMTIME_VERSION, settings_digest};
use crate::ledger::{Code, Entry, HeldBack, Order, Origin, PlacedOrder};
use crate::registry::evidence;
use crate::registry::state::State;
use crate::signature::{Anchors, Evidence};

/// A bundle in the store whose parts fit together.
struct Delivered {
    layout: Layout,
    bundle: Bundle,
}

impl Survey {
    /// What to do about a policy, by what is in the store and an operator's order to activate it, if there is one.
    pub(super) fn look_in_store(
        &mut self,
        state: &State,
        key: &Key,
        class: &TrustClass,
        order: Option<&PlacedOrder>,
    ) -> PolicyTask {
        let task = |goal| PolicyTask::new(key.clone(), class.clone(), goal);
        let delivered = match self.delivered(key) {
            Ok(Some(delivered)) => delivered,
            Ok(None) => {
                if let Some(order) = order {
                    self.refuse_order(key, order, None, "nothing is in the store for it");
                }
                return task(Goal::Stay);
            }
            Err(why) => {
                if let Some(order) = order {
                    self.refuse_order(key, order, None, &why);
                }
                // Without a store what is active goes on, and there is nothing newer to speak of.
                let nothing_new = self.store.is_err() && self.has_active(key);
                let of_nothing = HeldBack { bundle: None, version: None, why, unsound: None };
                let held_back = (!nothing_new).then_some(of_nothing);
                return task(Goal::Stay).held_back(held_back);
            }
        };
        let found = Some((delivered.bundle.digest(), delivered.bundle.config.version));
        let is_active = self
            .draft
            .record(&key.0, &key.1)
            .and_then(|record| record.active.as_ref())
            .is_some_and(|active| active.bundle == delivered.bundle.digest());
        if is_active {
            if let Some(order) = order {
                self.refuse_order(key, order, found, "that bundle is active already");
            }
            self.take_news(state, key, &delivered);
            return task(Goal::Stay);
        }
        match self.examine(state, key, class, &delivered, order) {
            Ok((entry, why)) => task(Goal::New { entry: Box::new(entry), why }),
            Err(why) => {
                if let Some(order) = order {
                    self.refuse_order(key, order, found, &why);
                }
                let (bundle, version) = found.unzip();
                task(Goal::Stay).held_back(Some(HeldBack { bundle, version, why, unsound: None }))
            }
        }
    }

    fn has_active(&self, key: &Key) -> bool {
        self.draft.record(&key.0, &key.1).is_some_and(|record| record.active.is_some())
    }

    /// The version in the store, if it might become active: a number that nobody vouches for would keep everything out.
    pub(super) fn delivered_version(&self, key: &Key, class: &TrustClass) -> Option<u64> {
        let Delivered { layout, bundle } = self.delivered(key).ok().flatten()?;
        let evidence = evidence::of(&layout, &bundle, &self.setting.anchors).ok()?;
        let about = (bundle.digest(), &bundle.config);
        self.setting.judge(key, class, about, &evidence, (&self.in_force.list, self.now)).ok()?;
        Some(bundle.config.version)
    }

    /// Puts the bundle of the active entry back where it is kept, if the store still has it.
    pub(super) fn restore(&self, state: &State, key: &Key, bundle: Digest) -> Result<(), String> {
        match self.delivered(key)? {
            Some(delivered) if delivered.bundle.digest() == bundle => {
                let kept = self.worth_keeping(&delivered.layout, &delivered.bundle);
                let kept = kept.map_err(|error| error.to_string())?;
                keep(state, &kept, |blob| delivered.layout.bytes(blob, usize::MAX))
            }
            _ => Err("the store does not have that bundle any more".into()),
        }
    }

    fn delivered(&self, key: &Key) -> Result<Option<Delivered>, String> {
        let store = self.store.as_ref().map_err(Clone::clone)?;
        let ownership = Ownership::of(store)
            .map_err(|error| format!("look at store {:?}: {error}", self.setting.assignment.store))?;
        let layout = match open_policy(store, &key.0, &key.1, &ownership) {
            Ok(layout) => layout,
            Err(LayoutError { why: Refusal::Missing, .. }) => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let bundle = layout.read().map_err(|error| format!("bundle {:?}: {error}", layout.path()))?;
        Ok(Some(Delivered { layout, bundle }))
    }

    /// Whether a bundle may become active, all but a builder's word; if so it is kept.
    fn examine(
        &mut self,
        state: &State,
        key: &Key,
        class: &TrustClass,
        delivered: &Delivered,
        order: Option<&PlacedOrder>,
    ) -> Result<(Entry, String), String> {
        let Delivered { layout, bundle } = delivered;
        let word = match order.map(|order| &order.order) {
            Some(Order::Activate { bundle: named, accept_capabilities, .. }) => {
                if *named != bundle.digest() {
                    return Err(format!("the order names {named}, and {} is in the store", bundle.digest()));
                }
                Word { activate: true, accept_capabilities: *accept_capabilities }
            }
            _ => Word::default(),
        };
        let evidence =
            evidence::of(layout, bundle, &self.setting.anchors).map_err(|error| error.to_string())?;
        let (digest, config) = (bundle.digest(), &bundle.config);
        let accepted =
            self.setting.judge(key, class, (digest, config), &evidence, (&self.in_force.list, self.now))?;
        may_follow(self.draft.record(&key.0, &key.1), digest, config, word)?;
        self.data_of(key, config)?;
        if word.activate {
            self.unsound.remove(&digest);
        }
        if let Some(why) = self.unsound.get(&digest) {
            return Err(why.clone());
        }
        if let Some(why) = &self.unwritable {
            return Err(format!("it cannot become active: {why}"));
        }
        let kept = self.worth_keeping(layout, bundle).map_err(|error| error.to_string())?;
        keep(state, &kept, |blob| layout.bytes(blob, usize::MAX))?;
        let entry = Entry {
            bundle: digest,
            config: config.clone(),
            code: match config.kind() {
                Kind::Policy => shipped(bundle).unwrap_or_else(|| to_be_compiled(bundle)),
                Kind::Data => table_of(bundle),
            },
            evidence,
            keys: self.setting.keys,
            attached: attached(&kept),
            order: order.map(|order| order.number),
            since: self.seconds,
        };
        Ok((entry, accepted.to_string()))
    }

    /// The bundle in the store is the active one: maybe somebody signed it again.
    fn take_news(&mut self, state: &State, key: &Key, delivered: &Delivered) {
        if self.unwritable.is_some() {
            return;
        }
        let Some(active) = self.draft.record(&key.0, &key.1).and_then(|record| record.active.clone()) else {
            return;
        };
        match self.with_news(state, delivered, &active) {
            Ok(Some(entry)) => {
                if let Some(record) = self.draft.record_mut(&key.0, &key.1) {
                    record.active = Some(entry);
                }
            }
            Ok(None) => {}
            // What is kept is enough, or it will be seen that it is not.
            Err(why) => tracing::warn!(tenant = %key.0, policy = %key.1, why, "look at new signatures"),
        }
    }

    fn with_news(
        &self,
        state: &State,
        delivered: &Delivered,
        active: &Entry,
    ) -> Result<Option<Entry>, String> {
        let Delivered { layout, bundle } = delivered;
        let text = |error: LayoutError| error.to_string();
        let anchors = &self.setting.anchors;
        let mut found = bundle.attachments.clone();
        found.retain(|attachment| active.attached.binary_search(&attachment.manifest.digest).is_err());
        if found.is_empty() {
            return Ok(None);
        }
        let kept_layout = state.layout(active.bundle).map_err(text)?;
        let kept = kept_layout.read().map_err(|error| error.to_string())?;
        // What is known already goes first: nothing that the store brings can take its place.
        let mut known = Evidence::default();
        let before = &kept.attachments;
        let mut telling =
            evidence::telling(&kept_layout, &kept, before, &mut known, anchors).map_err(text)?;
        let news = evidence::telling(layout, bundle, &found, &mut known, anchors).map_err(text)?;
        if news.is_empty() {
            return Ok(None);
        }
        telling.extend(news);
        let mut merged = kept.clone();
        merged.attachments = evidence::worth_keeping(telling, before);
        keep(state, &merged, |blob| {
            kept_layout.bytes(blob, usize::MAX).or_else(|_| layout.bytes(blob, usize::MAX))
        })?;
        let evidence = of_kept(state, active.bundle, anchors)?;
        Ok(Some(Entry { evidence, keys: self.setting.keys, attached: attached(&merged), ..active.clone() }))
    }

    /// A bundle as it is kept.
    fn worth_keeping(&self, layout: &Layout, bundle: &Bundle) -> Result<Bundle, LayoutError> {
        let (mut kept, mut known) = (bundle.clone(), Evidence::default());
        let all = &bundle.attachments;
        let telling = evidence::telling(layout, bundle, all, &mut known, &self.setting.anchors)?;
        kept.attachments = evidence::worth_keeping(telling, all);
        Ok(kept)
    }
}

/// What is attached to a bundle, sorted.
fn attached(bundle: &Bundle) -> Vec<Digest> {
    bundle.attachments.iter().map(|attachment| attachment.manifest.digest).collect()
}

/// What the signatures on a kept bundle say.
pub(super) fn of_kept(state: &State, bundle: Digest, anchors: &Anchors) -> Result<Evidence, String> {
    let layout = state.layout(bundle).map_err(|error| error.to_string())?;
    let read = layout.read().map_err(|error| error.to_string())?;
    evidence::of(&layout, &read, anchors).map_err(|error| error.to_string())
}

fn keep(
    state: &State,
    bundle: &Bundle,
    content: impl Fn(&crate::bundle::Descriptor) -> Result<Vec<u8>, LayoutError>,
) -> Result<(), String> {
    // What cannot be read is not the fault of the place it is written to.
    let unreadable = RefCell::new(None);
    let content =
        |blob: &_| content(blob).inspect_err(|error| *unreadable.borrow_mut() = Some(error.to_string()));
    let written = |file: &mut std::fs::File| {
        tar_into(file.try_clone()?, bundle, content).map_err(|error| io::Error::other(error.to_string()))
    };
    let kept = state.keep(bundle.digest(), written);
    kept.map_err(|error| unreadable.take().unwrap_or_else(|| error.to_string()))
}

/// The machine code in a bundle that says that it is for this host.
fn shipped(bundle: &Bundle) -> Option<Code> {
    let (said, _) = bundle.compiled_for(Platform::host())?;
    let fits = said.wasmtime == WASMTIME_VERSION
        && said.engine == settings_digest(Metering::of(&bundle.config.limits));
    fits.then(|| Code {
        cwasm: said.cwasm,
        origin: Origin::Bundle,
        wasmtime: said.wasmtime.clone(),
        engine: said.engine,
    })
}

/// There is nothing to be compiled: what is mapped is what the bundle has.
fn table_of(bundle: &Bundle) -> Code {
    Code {
        cwasm: bundle.config.source,
        origin: Origin::Bundle,
        wasmtime: String::new(),
        engine: settings_digest(Metering::Off),
    }
}

/// Where there is none; its digest is known when it is compiled.
fn to_be_compiled(bundle: &Bundle) -> Code {
    Code {
        cwasm: bundle.config.source,
        origin: Origin::Builder,
        wasmtime: String::new(),
        engine: settings_digest(Metering::of(&bundle.config.limits)),
    }
}
