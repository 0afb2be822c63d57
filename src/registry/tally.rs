//! What the registry counts, in memory that outlives it: signatures by bundle, builders' time by tenant.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::accounts::{Map, RegistryAccount};
use crate::artifact::Digest;
use crate::decision::Tenant;
use crate::wire::control::RegistryAssignment;

/// Bundles that are remembered as counted after they have gone; whoever writes to the store can make any number.
const REMEMBERED_MAX: usize = 65_536;

/// A job that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) tenant: Tenant,
    /// By the clock on the wall.
    pub(super) took: Duration,
    pub(super) good: bool,
}

/// The account, and whose place in it is which.
#[derive(Debug)]
pub(super) struct Tally {
    /// `None` in tests of what does not count.
    account: Option<&'static Map<RegistryAccount>>,
    slots: HashMap<Tenant, u32>,
    /// Each bundle counts once, however often it is looked at.
    counted: BTreeMap<Digest, bool>,
    /// A registry before this one has counted what lies in the store, and this one was told of nothing yet.
    counted_before: bool,
}

impl Tally {
    pub(super) fn new(
        account: Option<&'static Map<RegistryAccount>>,
        assignment: &RegistryAssignment,
    ) -> Self {
        let counted_before = account.is_some_and(|account| {
            account.signatures_verified.get() > 0 || account.signatures_refused.get() > 0
        });
        let mut tally = Self { account, slots: HashMap::new(), counted: BTreeMap::new(), counted_before };
        tally.assign(assignment);
        tally
    }

    /// A tenant has the same place for as long as the service lives.
    pub(super) fn assign(&mut self, assignment: &RegistryAssignment) {
        self.slots.extend(assignment.tenants.iter().map(|one| (one.tenant.clone(), one.slot)));
    }

    /// What was found out about these bundles' signatures, of all that lie in the store.
    ///
    /// The first that a registry finds which took another's place was counted by that one: a bundle that is refused would
    /// raise the alarm once more with each registry otherwise. One that came between the two is in the log, and not counted.
    pub(super) fn signed(&mut self, bundles: BTreeMap<Digest, bool>) {
        let Some(account) = self.account else { return };
        if std::mem::take(&mut self.counted_before) {
            self.counted = bundles;
            return;
        }
        if self.counted.len().saturating_add(bundles.len()) > REMEMBERED_MAX {
            // Those that are still there must not count again.
            self.counted.retain(|bundle, _| bundles.contains_key(bundle));
        }
        for (bundle, good) in bundles {
            if self.counted.insert(bundle, good) == Some(good) {
                continue;
            }
            let counter = if good { &account.signatures_verified } else { &account.signatures_refused };
            counter.add(1);
        }
    }

    pub(super) fn spent(&self, Spent { tenant, took, good }: &Spent) {
        let slot = self.slots.get(tenant).and_then(|slot| usize::try_from(*slot).ok());
        let account = self.account.zip(slot).and_then(|(account, slot)| account.tenants.get(slot));
        let Some(account) = account else { return };
        account.compile_ns.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        let counter = if *good { &account.compiled } else { &account.refused };
        counter.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Access, create};
    use crate::wire::control::{Isolation, TrustText};

    #[test]
    fn a_bundle_counts_once_and_again_when_its_signatures_come_to_be_good() {
        let assignment = RegistryAssignment {
            uid: 1,
            gid: 1,
            isolation: Isolation::SharedUid,
            store: String::new(),
            state: String::new(),
            trust: TrustText { path: String::new(), text: String::new() },
            tenants: Vec::new(),
            removed: Vec::new(),
            classes: Vec::new(),
            keep_previous: 0,
            secret: None,
        };
        let account = Map::new(create::<RegistryAccount>().unwrap(), Access::Write).unwrap();
        let account: &'static _ = Box::leak(Box::new(account));
        let mut tally = Tally::new(Some(account), &assignment);
        let numbers = |tally: &Tally| {
            let account = tally.account.as_ref().unwrap();
            (account.signatures_verified.get(), account.signatures_refused.get())
        };
        let bundle = |name: &[u8], good| BTreeMap::from([(Digest::of(name), good)]);
        tally.signed(bundle(b"a", false));
        tally.signed(bundle(b"a", false));
        tally.signed(bundle(b"b", true));
        assert_eq!(numbers(&tally), (1, 1));
        tally.signed(bundle(b"a", true));
        assert_eq!(numbers(&tally), (2, 1));
        tally.signed(bundle(b"c", false));
        assert_eq!(numbers(&tally), (2, 2));

        // Another registry takes its place, and looks at the store anew.
        let mut tally = Tally::new(Some(account), &assignment);
        tally.signed(
            [bundle(b"a", true), bundle(b"b", true), bundle(b"c", false)].into_iter().flatten().collect(),
        );
        assert_eq!(numbers(&tally), (2, 2));
        tally.signed(bundle(b"c", false));
        tally.signed(bundle(b"d", false));
        assert_eq!(numbers(&tally), (2, 3), "what comes later counts");

        // More than are remembered, of which one has been there before.
        let many = (0..REMEMBERED_MAX).map(|number| (Digest::of(&number.to_le_bytes()), true));
        tally.signed(many.chain(bundle(b"d", false)).collect());
        assert_eq!(tally.account.unwrap().signatures_refused.get(), 3);

        let tenant = Tenant::new("acme").unwrap();
        let spent = |good| Spent { tenant: tenant.clone(), took: Duration::from_millis(5), good };
        tally.spent(&spent(true));
        tally.slots.insert(tenant.clone(), 3);
        tally.spent(&spent(true));
        tally.spent(&spent(false));
        let account = &tally.account.as_ref().unwrap().tenants[3];
        assert_eq!(
            (account.compile_ns.get(), account.compiled.get(), account.refused.get()),
            (10_000_000, 1, 1)
        );
    }
}
