//! The first start, every other one, and beginning anew on an operator's word.
//!
//! The host's key and the table belong together, and two files cannot appear at once. So a third one, [`BEGINNING`], says
//! that both are being made: it is on the disk before either, and gone, on the disk too, before anything is activated.

use std::io::Write;

use super::disk::Disk;
use super::{PlaceError, State, StateError, orders, write_table};
use crate::artifact::SigningKey;
use crate::ledger::{
    BUNDLES, Event, HOST_KEY, ORDERS, Order, PEM_MAX, PlacedOrder, TABLE, TABLE_MAX, Table, What,
};

/// Says that a key and a table are being made, and that nothing was ever activated with them.
const BEGINNING: &str = "beginning";
/// In front of the name of what was there before an operator had it begun anew, for whoever wants to know how it came to that.
/// Beside it, not in a directory of its own: the sandbox lets nobody rename from one directory to another.
const LOST: &str = "lost-";

pub(super) fn open(disk: Disk) -> Result<State, StateError> {
    disk.tidy("")?;
    disk.tidy(BUNDLES)?;
    let names = disk.names("")?;
    let there = |name: &str| names.iter().any(|found| found == name);
    if there(BEGINNING) {
        return match whole(&disk) {
            // Only its end was missing.
            Ok((key, table)) => finish(disk, key, table),
            Err(_) => begin(disk, None),
        };
    }
    let untouched = !there(HOST_KEY) && !there(TABLE) && disk.names(BUNDLES)?.is_empty();
    if untouched {
        return begin(disk, None);
    }
    match whole(&disk) {
        Ok((key, table)) => Ok(State { disk, key, table }),
        Err(error) => match recover(&disk)? {
            Some(order) => {
                tracing::error!(%error, order = order.number, "begins anew, on an operator's word");
                begin(disk, Some(&order))
            }
            None => Err(error),
        },
    }
}

/// Key and table, if both are there and belong together.
fn whole(disk: &Disk) -> Result<(SigningKey, Table), StateError> {
    let key = read_key(disk)?;
    let lost = |error: PlaceError| match error.is_missing() {
        true => StateError::Lost { path: disk.path(TABLE), other: "this host's key".into() },
        false => error.into(),
    };
    let bytes = disk.read(TABLE, TABLE_MAX).map_err(lost)?;
    let table = Table::from_bytes(&bytes, &key.public_key())
        .map_err(|source| StateError::Table { path: disk.path(TABLE), source })?;
    Ok((key, table))
}

fn read_key(disk: &Disk) -> Result<SigningKey, StateError> {
    let lost = |error: PlaceError| match error.is_missing() {
        true => StateError::Lost { path: disk.path(HOST_KEY), other: "what it signed".into() },
        false => error.into(),
    };
    let pem = zeroize::Zeroizing::new(disk.read_secret(HOST_KEY, PEM_MAX).map_err(lost)?);
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&pem).into_owned());
    SigningKey::from_pem(&text).map_err(|source| StateError::Key { path: disk.path(HOST_KEY), source })
}

/// An operator's word that it may begin anew.
fn recover(disk: &Disk) -> Result<Option<PlacedOrder>, StateError> {
    Ok(orders(disk, 0)?.into_iter().rev().find_map(|found| match found.order {
        Ok(order @ Order::Recover { .. }) => Some(PlacedOrder { number: found.number, order }),
        _ => None,
    }))
}

/// Makes key and table. The key stays if there is a good one.
fn begin(disk: Disk, order: Option<&PlacedOrder>) -> Result<State, StateError> {
    // A power cut while it began anew: the order is still there.
    let found;
    let order = match order {
        Some(order) => Some(order),
        None => {
            found = recover(&disk)?;
            found.as_ref()
        }
    };
    disk.replace(BEGINNING, |_| Ok(()))?;
    disk.make_directory(BUNDLES)?;
    disk.make_directory(ORDERS)?;
    disk.sync_directory("")?;
    let old_key = read_key(&disk).ok();
    let key = match old_key {
        Some(key) => key,
        None => {
            set_aside(&disk, HOST_KEY)?;
            let key = SigningKey::generate_ed25519().map_err(StateError::MakeKey)?;
            let pem = key.to_pem().map_err(StateError::MakeKey)?;
            disk.replace(HOST_KEY, |file| file.write_all(pem.as_bytes()))?;
            key
        }
    };
    set_aside(&disk, TABLE)?;
    let mut table = Table::new(key.public_key().id());
    if let Some(PlacedOrder { number, order: Order::Recover { reason } }) = order {
        table.orders = *number;
        table.remember(Event {
            at: 0,
            what: What::Recovered,
            tenant: None,
            policy: None,
            bundle: None,
            version: None,
            order: Some(*number),
            why: reason.clone(),
        });
    }
    write_table(&disk, &table, &key)?;
    finish(disk, key, table)
}

/// Key and table are on the disk: from here on they are never made again.
fn finish(disk: Disk, key: SigningKey, table: Table) -> Result<State, StateError> {
    disk.remove(BEGINNING)?;
    disk.sync_directory("")?;
    let state = State { disk, key, table };
    // The order that it began anew by, and bundles that only the lost table named.
    state.sweep();
    Ok(state)
}

fn set_aside(disk: &Disk, name: &str) -> Result<(), StateError> {
    if disk.names("")?.iter().any(|found| found == name) {
        disk.rename(name, &format!("{LOST}{name}"))?;
        disk.sync_directory("")?;
    }
    Ok(())
}
