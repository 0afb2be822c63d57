//! A bundle as a plain tar. It is looked through once, header by header, and then read where it lies; nothing is unpacked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tar::{EntryType, Header};

use super::file::{Refusal, Section};
use super::layout::Member;

/// Largest tar, bytes: source, code for two platforms and what is attached.
pub const TAR_MAX: u64 = 4 << 30;
/// Most entries in it.
const ENTRIES_MAX: usize = 1024;
/// Most zeroes behind the end: other tools fill up the last 10 KiB or so.
const PADDING_MAX: u64 = 64 << 10;
const BLOCK: u64 = 512;
/// What lies before the tar's own bytes, and how to get it off.
const COMPRESSED: [(&[u8], &str, &str); 6] = [
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
];

/// Why a tar is not read. One variant per check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    #[error(
        "is compressed with {by}; bundles are plain tars, so that nothing has to be unpacked to know its size: run {with} first"
    )]
    Compressed { by: &'static str, with: &'static str },
    #[error("is no tar: the header at byte {at} has a wrong checksum")]
    Header { at: u64 },
    #[error("has more than {ENTRIES_MAX} entries")]
    TooMany,
    #[error(
        "has entry {name:?} of kind {kind}, expected regular files only; write it with `portcullis policy build` or `tar --format=ustar`"
    )]
    Kind { name: String, kind: String },
    #[error("has entry {name:?}, expected oci-layout, index.json and blobs/sha256/<digest> only")]
    Name { name: String },
    #[error("has entry {name:?} twice")]
    Twice { name: String },
    #[error("has entry {name:?} that ends behind the end of the file: the file was cut short")]
    Size { name: String },
    #[error("has something behind entry {name:?} where zeroes fill up its last block")]
    Padding { name: String },
    #[error("has no end mark: the file was cut short")]
    CutShort,
    #[error("goes on behind its end mark at byte {at}")]
    Trailing { at: u64 },
}

/// A tar and where in it the parts of the bundle lie.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<File>,
    members: BTreeMap<Member, (u64, u64)>,
}

impl Archive {
    pub(super) fn open(whole: &Section) -> Result<Self, Refusal> {
        if whole.len() > TAR_MAX {
            return Err(Refusal::TooLong { len: whole.len(), max: TAR_MAX });
        }
        let file = whole.file();
        let mut start = [0; 8];
        let count = read_at(file, &mut start, 0)?;
        let start = start.get(..count).unwrap_or_default();
        if let Some((_, by, with)) = COMPRESSED.iter().find(|(magic, ..)| start.starts_with(magic)) {
            return Err(TarError::Compressed { by, with }.into());
        }
        let members = members(file, whole.len())?;
        Ok(Self { file: Arc::clone(file), members })
    }

    pub(super) fn find(&self, member: Member) -> Result<Section, Refusal> {
        let (offset, len) = self.members.get(&member).ok_or(Refusal::Missing)?;
        Ok(Section::of(Arc::clone(&self.file), *offset, *len))
    }
}

fn members(file: &File, len: u64) -> Result<BTreeMap<Member, (u64, u64)>, Refusal> {
    let mut members = BTreeMap::new();
    let (mut at, mut entries) = (0_u64, 0_usize);
    while let Some(header) = header(file, at)? {
        entries = entries.saturating_add(1);
        if entries > ENTRIES_MAX {
            return Err(TarError::TooMany.into());
        }
        let path = header.path_bytes();
        let name = String::from_utf8_lossy(&path).chars().take(120).collect::<String>();
        let start = at.saturating_add(BLOCK);
        let size = header.entry_size().map_err(|_| TarError::Size { name: name.clone() })?;
        let end = start.checked_add(size).and_then(|end| end.checked_next_multiple_of(BLOCK));
        at = end.filter(|end| *end <= len).ok_or_else(|| TarError::Size { name: name.clone() })?;
        if !is_zero(file, start.saturating_add(size), at)? {
            return Err(TarError::Padding { name }.into());
        }
        match header.entry_type() {
            EntryType::Regular => {}
            EntryType::Directory if size == 0 && is_folder(&path) => continue,
            EntryType::Directory => return Err(TarError::Name { name }.into()),
            kind => return Err(TarError::Kind { name, kind: kind_of(kind) }.into()),
        }
        let Some(member) = std::str::from_utf8(&path).ok().and_then(Member::from_path) else {
            return Err(TarError::Name { name }.into());
        };
        if members.insert(member, (start, size)).is_some() {
            return Err(TarError::Twice { name }.into());
        }
    }
    check_end(file, at, len)?;
    Ok(members)
}

/// The header at `at`, or nothing at the end mark.
fn header(file: &File, at: u64) -> Result<Option<Header>, Refusal> {
    let mut header = Header::new_old();
    if read_at(file, header.as_mut_bytes(), at)? < header.as_bytes().len() {
        return Err(TarError::CutShort.into());
    }
    if header.as_bytes().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let mut again = header.clone();
    again.set_cksum();
    match (header.cksum(), again.cksum()) {
        (Ok(found), Ok(expected)) if found == expected => Ok(Some(header)),
        _ => Err(TarError::Header { at }.into()),
    }
}

/// Two blocks of zeroes at least, and nothing but zeroes behind them: no second archive that other tools would find.
fn check_end(file: &File, at: u64, len: u64) -> Result<(), Refusal> {
    let left = len.saturating_sub(at);
    if left < 2 * BLOCK {
        return Err(TarError::CutShort.into());
    }
    if left > PADDING_MAX {
        return Err(TarError::Trailing { at: at.saturating_add(PADDING_MAX) }.into());
    }
    let mut rest = vec![0; usize::try_from(left).unwrap_or(0)];
    let count = read_at(file, &mut rest, at)?;
    match rest.get(..count).unwrap_or_default().iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(first) => {
            let first = u64::try_from(first).unwrap_or(u64::MAX);
            Err(TarError::Trailing { at: at.saturating_add(first) }.into())
        }
    }
}

/// Whether there are zeroes from `from` to `to`, less than a block.
fn is_zero(file: &File, from: u64, to: u64) -> Result<bool, Refusal> {
    let mut rest = [0; 512];
    let len = usize::try_from(to.saturating_sub(from)).unwrap_or(rest.len()).min(rest.len());
    let Some(rest) = rest.get_mut(..len) else { return Ok(false) };
    Ok(read_at(file, rest, from)? == len && rest.iter().all(|byte| *byte == 0))
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> Result<usize, Refusal> {
    let mut done = 0_usize;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let offset = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, offset) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refusal::Read(error)),
        }
    }
    Ok(done)
}

/// `tar -c .` has these as well. They say nothing, so they do no harm.
fn is_folder(path: &[u8]) -> bool {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let path = path.strip_suffix(b"/").unwrap_or(path);
    [b"" as &[u8], b".", b"blobs", b"blobs/sha256"].contains(&path)
}

fn kind_of(kind: EntryType) -> String {
    match kind {
        EntryType::Link => "hard link".into(),
        EntryType::Symlink => "symbolic link".into(),
        EntryType::Char => "character device".into(),
        EntryType::Block => "block device".into(),
        EntryType::Fifo => "FIFO".into(),
        EntryType::GNUSparse => "sparse file".into(),
        EntryType::GNULongName | EntryType::GNULongLink => "long name (GNU)".into(),
        EntryType::XHeader | EntryType::XGlobalHeader => "extension (PAX)".into(),
        other => format!("{:?}", char::from(other.as_byte())),
    }
}
