//! What the registry writes down, and what an operator leaves for it: the files of its directory that a person may look at.
//!
//! ```text
//! <state>/               0700, the registry's own
//!   host.key             private half of this host's key, PKCS#8
//!   table.json           [`Table`]: what is active, what was, what was decided when; signed with the host's key
//!   bundles/<hex>.tar    every bundle that the table names
//!   orders/<number>.json [`Order`]: what an operator wants done, carried out once
//! ```
//!
//! The registry alone writes the table. Orders are written by root ([`place`]): who can write to the store, where bundles
//! are dropped, cannot go back to an older version by it, nor accept what a policy newly asks for.

mod order;
mod place;
mod table;

pub use order::{ORDER_MAX, ORDERS, Order, OrderError, PlacedOrder, Target, order_name};
pub use place::{LedgerError, place, read};
pub use table::{
    BUNDLES, Code, Entry, Event, HISTORY_MAX, HOST_KEY, HeldBack, KnownRevocations, Origin, PEM_MAX, Record,
    TABLE, TABLE_MAX, Table, TableError, What,
};
