//! The registry's own directory: this host's key, the table of what is active, and every bundle that the table names.
//!
//! ```text
//! keep(bundle)   what the new table names is on the disk before the table is
//! commit(table)  one rename: the old table or the new one
//! sweep()        what no table names any more goes, orders that were carried out among it
//! ```
//!
//! So whenever power fails there is the old state or the new one, and no floor is ever lower than it was. A table that is
//! lost or broken is not begun anew by itself: whoever can bring that about could bring back an old version. An operator
//! can say so ([`Order::Recover`]).

mod begin;
mod disk;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::artifact::{Digest, KeyError, SigningKey};
use crate::bundle::{self, Layout, LayoutError, Ownership};
use crate::decision::Tenant;
use crate::ledger::{
    BUNDLES, Event, KnownRevocations, ORDER_MAX, ORDERS, Order, OrderError, PlacedOrder, TABLE, Table,
    TableError, order_name,
};

use disk::Disk;
pub(crate) use disk::{DiskError, PlaceError};

/// The state, and the only way to change it.
#[derive(Debug)]
pub(crate) struct State {
    disk: Disk,
    key: SigningKey,
    table: Table,
}

/// Why the state cannot be used, or not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("state: {0}")]
    Place(#[from] PlaceError),
    #[error("state: {0}")]
    Disk(#[from] DiskError),
    #[error("state: read {path:?}: {source}; {WAY_OUT}")]
    Key { path: PathBuf, source: KeyError },
    #[error("state: make this host's key: {0}")]
    MakeKey(#[source] KeyError),
    #[error("state: read {path:?}: it {source}; {WAY_OUT}")]
    Table { path: PathBuf, source: TableError },
    #[error("state: {path:?} is not there, but {other} is; {WAY_OUT}")]
    Lost { path: PathBuf, other: String },
    #[error("state: write table: it {0}")]
    Write(#[source] TableError),
    #[error("state: write table: it would lower {0}, which never happens")]
    Lower(String),
    #[error("state: write table: bundle {0} is not kept yet")]
    NotKept(Digest),
}

/// What a broken state says last.
const WAY_OUT: &str = "versions that were left behind could come back if it began anew by itself: put the directory \
    back from a backup, or say that it may with `portcullis trust recover` and look at minimum_version in the trust policy";

/// A file in the directory of orders.
#[derive(Debug)]
pub(crate) struct FoundOrder {
    pub(crate) number: u64,
    pub(crate) order: Result<Order, BadOrder>,
}

/// Why a file in the directory of orders is no order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadOrder {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("order {0}")]
    Order(#[from] OrderError),
}

impl State {
    /// Opens the directory, and makes in it what the first start needs.
    ///
    /// # Errors
    /// When it is not this user's alone, or was whole once and is not any more.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        begin::open(Disk::open(path)?)
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Whether a bundle is kept.
    pub(crate) fn has(&self, bundle: Digest) -> bool {
        self.disk.file(&bundle_name(bundle)).is_ok()
    }

    /// A kept bundle. It is believed no more than one in the store: what is read of it is compared with its digest.
    ///
    /// # Errors
    /// When it is not there, or cannot be opened.
    pub(crate) fn layout(&self, bundle: Digest) -> Result<Layout, LayoutError> {
        let owner = Ownership::only(&[geteuid().as_raw()]);
        bundle::open(self.disk.root(), Path::new(&bundle_name(bundle)), &owner)
    }

    /// Keeps a bundle, as the tar that `write` writes, in place of one of the same digest if there is one. It is on the disk
    /// when this returns, and goes at the next commit of a table that does not name it.
    pub(crate) fn keep(
        &self,
        bundle: Digest,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), StateError> {
        Ok(self.disk.replace(&bundle_name(bundle), write)?)
    }

    /// The orders that were not carried out yet, by number.
    pub(crate) fn orders(&self) -> Result<Vec<FoundOrder>, PlaceError> {
        orders(&self.disk, self.table.orders)
    }

    /// Makes this the table: on the disk when this returns. An error leaves the old one, here and on the disk. Of tenants who
    /// are `removed` nothing has to be left in it.
    pub(crate) fn commit(&mut self, mut table: Table, removed: &BTreeSet<Tenant>) -> Result<(), StateError> {
        table.revision = self.table.revision.saturating_add(1);
        nothing_is_lower(&self.table, &table, removed)?;
        // What the old one names as well was there when that was written.
        let before: BTreeSet<Digest> = self.table.entries().map(|entry| entry.bundle).collect();
        let new =
            table.entries().map(|entry| entry.bundle).find(|new| !before.contains(new) && !self.has(*new));
        if let Some(bundle) = new {
            return Err(StateError::NotKept(bundle));
        }
        write_table(&self.disk, &table, &self.key)?;
        self.table = table;
        self.sweep();
        Ok(())
    }

    /// Writes down that a revocation list came into force, and nothing else: a survey that is under way keeps bundles which no
    /// table names yet.
    pub(crate) fn commit_revocations(
        &mut self,
        known: Option<KnownRevocations>,
        event: Event,
    ) -> Result<(), StateError> {
        let mut table = self.table.clone();
        table.revision = table.revision.saturating_add(1);
        table.revocations = known;
        table.remember(event);
        nothing_is_lower(&self.table, &table, &BTreeSet::new())?;
        write_table(&self.disk, &table, &self.key)?;
        self.table = table;
        Ok(())
    }

    /// Removes what the table does not name: bundles, and orders that were carried out. What cannot be removed now is
    /// removed later.
    fn sweep(&self) {
        let named: BTreeSet<String> = self.table.entries().map(|entry| file_name(entry.bundle)).collect();
        let bundles = self.disk.names(BUNDLES).unwrap_or_default();
        let bundles =
            bundles.iter().filter(|name| !named.contains(*name)).map(|name| format!("{BUNDLES}/{name}"));
        let orders = self.disk.names(ORDERS).unwrap_or_default();
        let done =
            |name: &&String| PlacedOrder::number_of(name).is_some_and(|number| number <= self.table.orders);
        let orders = orders.iter().filter(done).map(|name| format!("{ORDERS}/{name}"));
        for name in bundles.chain(orders) {
            if let Err(error) = self.disk.remove(&name) {
                tracing::warn!(%error, "what is not needed any more stays");
            }
        }
    }
}

/// The orders above `done`, by number.
fn orders(disk: &Disk, done: u64) -> Result<Vec<FoundOrder>, PlaceError> {
    let mut numbers: Vec<u64> = disk
        .names(ORDERS)?
        .iter()
        .filter_map(|name| PlacedOrder::number_of(name))
        .filter(|at| *at > done)
        .collect();
    numbers.sort_unstable();
    Ok(numbers
        .into_iter()
        .map(|number| {
            let name = format!("{ORDERS}/{}", order_name(number));
            let order = disk.read(&name, ORDER_MAX.saturating_add(1)).map_err(BadOrder::from);
            FoundOrder { number, order: order.and_then(|bytes| Ok(Order::from_bytes(&bytes)?)) }
        })
        .collect())
}

fn write_table(disk: &Disk, table: &Table, key: &SigningKey) -> Result<(), StateError> {
    let bytes = table.to_bytes(key).map_err(StateError::Write)?;
    Ok(disk.replace(TABLE, |file| file.write_all(&bytes))?)
}

/// Whatever a survey thinks it found: these numbers only grow.
fn nothing_is_lower(old: &Table, new: &Table, removed: &BTreeSet<Tenant>) -> Result<(), StateError> {
    let lower = |what: String| Err(StateError::Lower(what));
    if new.latest < old.latest || new.orders < old.orders {
        return lower("the time or the number of orders".into());
    }
    let version = |table: &Table| table.revocations.as_ref().map(|known| known.version);
    if version(new) < version(old) {
        return lower("the version of the revocation list".into());
    }
    for before in &old.policies {
        let after = new.record(&before.tenant, &before.policy);
        if after.is_none() && removed.contains(&before.tenant) {
            continue;
        }
        if after.is_none_or(|after| after.floor < before.floor) {
            return lower(format!(
                "the floor of policy \"{}\" of tenant \"{}\"",
                before.policy, before.tenant
            ));
        }
    }
    Ok(())
}

fn bundle_name(bundle: Digest) -> String {
    format!("{BUNDLES}/{}", file_name(bundle))
}

fn file_name(bundle: Digest) -> String {
    format!("{}.tar", hex::encode(bundle.as_bytes()))
}
