//! For people's commands, as root: leaves an order, reads the table.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, open, openat, renameat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::order::{ORDERS, Order, OrderError, PlacedOrder, order_name};
use super::table::{HOST_KEY, PEM_MAX, TABLE, TABLE_MAX, Table, TableError};
use crate::artifact::{KeyError, SigningKey};

/// How often another command may take the number that was wanted.
const TRIES: u32 = 100;

/// Why an order cannot be left, or the table not be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("open state {path:?}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("open state {path:?}: mode {mode:04o}, expected 0700: it is not a registry's own directory")]
    Mode { path: PathBuf, mode: u32 },
    #[error("list orders {path:?}: {source}; the registry makes this directory when it starts first")]
    Orders { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("read {path:?}: {source}")]
    Key { path: PathBuf, source: KeyError },
    #[error("read table {path:?}: it {source}")]
    Table { path: PathBuf, source: TableError },
    #[error("order {0}")]
    Order(#[from] OrderError),
    #[error("write order {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("write order {path:?}: others take every number first; try again")]
    Crowded { path: PathBuf },
}

/// Leaves an order in a registry's directory, for its next survey (`portcullis reload` brings that about). Returns the
/// number by which the table's history tells what became of it.
///
/// # Errors
/// When the directory is not a registry's, or cannot be written to.
pub fn place(state: &Path, order: &Order) -> Result<u64, LedgerError> {
    let bytes = order.to_bytes()?;
    open_state(state)?;
    let path = state.join(ORDERS);
    let orders_error = |source: io::Error| LedgerError::Orders { path: path.clone(), source };
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = open(&path, flags, Mode::empty()).map_err(|errno| orders_error(errno.into()))?;
    let temporary = format!(".{}.tmp", std::process::id());
    let write_error = |source: io::Error| LedgerError::Write { path: path.clone(), source };
    write_new(&dir, &temporary, &bytes).map_err(write_error)?;
    let placed = number_it(state, &path, &dir, &temporary);
    if placed.is_err() {
        // The error that counts is the one being returned.
        let _ = unlinkat(&dir, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        return placed;
    }
    File::from(dir).sync_all().map_err(write_error)?;
    placed
}

/// The table of a registry's directory, its signature checked.
///
/// # Errors
/// When there is none, or it is not whole.
pub fn read(state: &Path) -> Result<Table, LedgerError> {
    open_state(state)?;
    let path = state.join(HOST_KEY);
    let pem = read_file(&path, PEM_MAX)?;
    let key = SigningKey::from_pem(&String::from_utf8_lossy(&pem))
        .map_err(|source| LedgerError::Key { path, source })?;
    let path = state.join(TABLE);
    let bytes = read_file(&path, TABLE_MAX)?;
    Table::from_bytes(&bytes, &key.public_key()).map_err(|source| LedgerError::Table { path, source })
}

fn open_state(state: &Path) -> Result<(), LedgerError> {
    let io = |source| LedgerError::Open { path: state.to_owned(), source };
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let dir = File::options().read(true).custom_flags(flags).open(state).map_err(io)?;
    let mode = dir.metadata().map_err(io)?.mode() & 0o7777;
    if mode == 0o700 { Ok(()) } else { Err(LedgerError::Mode { path: state.to_owned(), mode }) }
}

/// Gives the file the first number that was never used. The list comes before the table: an order that is carried out
/// between the two is in the second then.
fn number_it(state: &Path, path: &Path, dir: &OwnedFd, temporary: &str) -> Result<u64, LedgerError> {
    for _ in 0..TRIES {
        let names =
            fs::read_dir(path).map_err(|source| LedgerError::Orders { path: path.to_owned(), source })?;
        let waiting =
            names.flatten().filter_map(|entry| PlacedOrder::number_of(entry.file_name().to_str()?)).max();
        // Without a table that can be read there is only one order that helps, and it is told apart by what it says.
        let done = read(state).map_or(0, |table| table.orders);
        let number = waiting.unwrap_or(0).max(done).saturating_add(1);
        let name = order_name(number);
        match renameat2(dir, temporary, dir, name.as_str(), RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => return Ok(number),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(LedgerError::Write { path: path.join(name), source: errno.into() }),
        }
    }
    Err(LedgerError::Crowded { path: path.to_owned() })
}

fn write_new(dir: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    // What a killed command of the same id left behind.
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    // The registry, who is somebody else, has to read it; nobody else gets into the directory.
    let mut file = File::from(openat(dir, name, flags, Mode::from_bits_truncate(0o644))?);
    nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(0o644))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn read_file(path: &Path, max: usize) -> Result<Vec<u8>, LedgerError> {
    let io = |source| LedgerError::Read { path: path.to_owned(), source };
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(io)?;
    let mut bytes = Vec::new();
    // One more than is read, so that the reader says it is too long.
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}
