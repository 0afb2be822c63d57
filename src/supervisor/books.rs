//! Who is which number in the accounts, for as long as the service lives.
//!
//! The memory is made before the supervisor is sealed, one piece for each class and one for the registry. A tenant has the same slot in all of them, and a slot is never given to another: who is removed takes its counters along, and nobody
//! begins with what another has used.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::config::Config;
use crate::accounts::{
    self, COLUMNS, ClassAccount, MODULES_MAX, RegistryAccount, TENANTS_MAX, end_of_column,
};
use crate::decision::{PolicyName, Tenant, TrustClass};

/// There are no more slots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there have been {max} {what} since the service started, and no number is given twice; restart the service"
)]
pub(super) struct BooksFull {
    what: &'static str,
    max: usize,
}

/// The accounts' memory, and whose slot is which.
#[derive(Debug)]
pub(super) struct Books {
    classes: BTreeMap<TrustClass, File>,
    registry: OwnedFd,
    /// The same to be read: each class's, and the registry's under `None`.
    to_read: Vec<(Option<TrustClass>, OwnedFd)>,
    tenants: HashMap<Tenant, u32>,
    modules: HashMap<Tenant, HashMap<PolicyName, u32>>,
    modules_given: usize,
}

impl Books {
    /// Empty books for these classes. Their set never changes while a service lives.
    pub(super) fn open<'a>(classes: impl Iterator<Item = &'a TrustClass>) -> io::Result<Self> {
        let make = |class: &TrustClass| Ok((class.clone(), accounts::create::<ClassAccount>()?.into()));
        let classes: BTreeMap<TrustClass, File> = classes.map(make).collect::<io::Result<_>>()?;
        let registry = accounts::create::<RegistryAccount>()?;
        let each = classes.iter().map(|(class, memory)| (Some(class), memory.as_fd()));
        let each = each.chain([(None, registry.as_fd())]);
        let to_read = each.map(|(whose, memory)| Ok((whose.cloned(), reopened(memory)?)));
        Ok(Self {
            to_read: to_read.collect::<io::Result<_>>()?,
            classes,
            registry,
            tenants: HashMap::new(),
            modules: HashMap::new(),
            modules_given: 0,
        })
    }

    /// Gives a slot to every tenant and policy that has none.
    pub(super) fn enter(&mut self, config: &Config) -> Result<(), BooksFull> {
        for tenant in &config.tenants {
            if !self.tenants.contains_key(&tenant.name) {
                let slot = next(self.tenants.len(), TENANTS_MAX, "tenants")?;
                self.tenants.insert(tenant.name.clone(), slot);
            }
            let modules = self.modules.entry(tenant.name.clone()).or_default();
            for policy in &tenant.policies {
                if !modules.contains_key(policy) {
                    let slot = next(self.modules_given, MODULES_MAX, "policies")?;
                    modules.insert(policy.clone(), slot);
                    self.modules_given += 1;
                }
            }
        }
        Ok(())
    }

    /// `None` for whom [`Books::enter`] was not called.
    pub(super) fn tenant(&self, tenant: &Tenant) -> Option<u32> {
        self.tenants.get(tenant).copied()
    }

    /// Of one policy of a tenant, likewise.
    pub(super) fn module(&self, tenant: &Tenant, policy: &PolicyName) -> Option<u32> {
        self.modules.get(tenant)?.get(policy).copied()
    }

    /// A class's memory.
    pub(super) fn class(&self, class: &TrustClass) -> Option<BorrowedFd<'_>> {
        self.classes.get(class).map(AsFd::as_fd)
    }

    /// The registry's.
    pub(super) fn registry(&self) -> BorrowedFd<'_> {
        self.registry.as_fd()
    }

    /// Everybody's, with descriptors that nothing can be written through. Without a name, the registry's.
    pub(super) fn to_read(&self) -> impl Iterator<Item = (Option<&TrustClass>, BorrowedFd<'_>)> {
        self.to_read.iter().map(|(whose, memory)| (whose.as_ref(), memory.as_fd()))
    }

    /// How many slots of tenants have been given.
    pub(super) fn slots(&self) -> u32 {
        u32::try_from(self.tenants.len()).unwrap_or(u32::MAX)
    }

    /// A worker has ended: what it had counts for nothing from now on, nor does anything else that is no living process's,
    /// whoever wrote it there.
    pub(super) fn end(&self, class: &TrustClass, living: &[u64]) -> io::Result<()> {
        let Some(mut memory) = self.classes.get(class) else { return Ok(()) };
        for column in 0..COLUMNS as u64 {
            let place = SeekFrom::Start(end_of_column(column) as u64);
            let mut generation = [0; 8];
            memory.seek(place)?;
            memory.read_exact(&mut generation)?;
            let generation = u64::from_ne_bytes(generation);
            if generation != 0 && !living.contains(&generation) {
                memory.seek(place)?;
                memory.write_all(&[0; 8])?;
            }
        }
        Ok(())
    }
}

/// The same memory, to be read and not to be written.
fn reopened(memory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?.into())
}

fn next(given: usize, max: usize, what: &'static str) -> Result<u32, BooksFull> {
    let slot = u32::try_from(given).ok().filter(|_| given < max);
    slot.ok_or(BooksFull { what, max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Access, Map};

    fn books(class: &TrustClass) -> Books {
        Books::open(std::iter::once(class)).expect("memory")
    }

    #[test]
    fn a_worker_that_ended_counts_for_nothing() {
        let class = TrustClass::new("a").expect("name");
        let books = books(&class);
        let account =
            Map::<ClassAccount>::new(books.class(&class).expect("class"), Access::Write).expect("map");
        for generation in [3, 4] {
            assert!(account.column(generation).expect("column").begin(generation, 8), "its own");
        }
        assert_eq!(account.other_columns(4).count(), 1);
        let next = account.column(19).expect("column");
        assert!(!next.begin(19, 8), "the same column, whose process lives");
        // Nobody's: somebody was taken over.
        account.column(8).expect("column").generation.set(24);
        books.end(&class, &[4]).expect("end");
        assert!(next.begin(19, 8));
        books.end(&class, &[4]).expect("end");
        assert_eq!(account.other_columns(4).count(), 0);
        assert_eq!(account.column(4).expect("column").generation.get(), 4);
    }

    #[test]
    fn who_only_reads_cannot_write() {
        let class = TrustClass::new("a").expect("name");
        let books = books(&class);
        let (whose, to_read) = books.to_read().next().expect("the class's");
        assert_eq!(whose, Some(&class));
        let written =
            Map::<ClassAccount>::new(books.class(&class).expect("class"), Access::Write).expect("map");
        written.pool_hits.add(3);
        let read = Map::<ClassAccount>::new(to_read, Access::Read).expect("map");
        assert_eq!(read.pool_hits.get(), 3);
        assert!(Map::<ClassAccount>::new(to_read, Access::Write).is_err());
        assert_eq!(books.to_read().map(|(whose, _)| whose.is_some()).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn slots_run_out_with_a_sentence() {
        assert_eq!(next(2, 3, "tenants"), Ok(2));
        let why = next(3, 3, "tenants").expect_err("full").to_string();
        assert!(why.contains("3 tenants") && why.contains("restart"), "{why}");
    }
}
