//! A data snapshot as it is stored, signed and mapped: one sorted table of keys and values, read where it lies.
//!
//! ```text
//!  0  16  "portcullis-table"
//! 16   4  version: 1          20  4  zero
//! 24   8  entries             32  8  bytes of keys         40  8  bytes of values
//! 48      for each entry: where its key ends, where its value ends (8 and 8)
//!         keys, one behind the other, in the order of their bytes
//!         values, one behind the other
//! ```
//!
//! Numbers are little-endian. Each key and each value begins where the one before ends, so every byte belongs to one entry, and
//! the same entries have one form. [`Table::check`] looks at every number and every key once; after that a lookup is a binary
//! search over the bytes, with nothing to parse and nothing to copy.

mod build;
mod read;

pub use build::{BuildError, Builder};
pub use read::{Entries, Table, TableError};

/// What a bundle's config says of it.
pub const FORMAT: &str = "portcullis:table@1";
/// Largest table, bytes.
pub const TABLE_MAX: usize = 256 << 20;
/// Longest key, bytes; the shortest has one.
pub const KEY_MAX: usize = 1024;
/// Longest value, bytes: a guest has to find room for it.
pub const VALUE_MAX: usize = 1 << 20;

const MAGIC: &[u8; 16] = b"portcullis-table";
const VERSION: u32 = 1;
/// Bytes in front of the index.
const HEADER: usize = 48;
/// Bytes of the index for one entry.
const SLOT: usize = 16;
