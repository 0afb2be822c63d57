//! Bytes that nobody can change any more: a memory file with every seal on it.
//!
//! What was hashed is what is loaded, because between the two there is nothing that could be written to: no path that
//! can be swapped, no file that can be edited, no mapping that can be shared for writing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest as _, Sha256};

use super::Digest;

/// Largest compiled policy that is read, in bytes: what is in its memory when it starts is in there, and that ends at 1 GiB as
/// well.
pub const ARTIFACT_MAX: usize = 1 << 30;

const STEP: usize = 64 << 10;
/// `MFD_NOEXEC_SEAL` of linux/memfd.h (since Linux 6.3): the file can never be executed. Mapping code from it still works.
const NOEXEC_SEAL: u32 = 0x0008;

/// A sealed memory file: nobody, the owner included, can write to it, grow it or shrink it.
#[derive(Debug)]
pub struct SealedBytes {
    file: File,
    len: usize,
    digest: Digest,
}

/// Why bytes could not be sealed, or why a descriptor is not sealed memory.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("read bytes to seal: more than {max} bytes, which is the limit here")]
    TooLong { max: usize },
    #[error("read bytes to seal: {0}")]
    Read(#[source] io::Error),
    #[error("make sealed memory: {0}")]
    Create(#[source] io::Error),
    #[error("read sealed memory: {0}")]
    ReadBack(#[source] io::Error),
    #[error("take descriptor as sealed memory: it is not a memory file ({0})")]
    NotMemory(#[source] io::Error),
    #[error("take descriptor as sealed memory: seals {missing} are missing, so it could still change")]
    NotSealed { missing: String },
}

impl SealedBytes {
    /// Reads `reader` to its end, once, and seals what it read.
    ///
    /// # Errors
    /// When there are more than `max` bytes, when reading fails, or when the kernel gives no memory file.
    pub fn read(mut reader: impl Read, max: usize) -> Result<Self, SealError> {
        let mut file = create().map_err(|errno| SealError::Create(errno.into()))?;
        let mut buffer = vec![0; STEP];
        let mut len = 0_usize;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(SealError::Read(error)),
            };
            len = len.saturating_add(count);
            if len > max {
                return Err(SealError::TooLong { max });
            }
            // A reader that claims more than it was given room for is broken; treat it as an error, not as an index.
            let part =
                buffer.get(..count).ok_or_else(|| SealError::Read(io::ErrorKind::InvalidData.into()))?;
            file.write_all(part).map_err(SealError::Create)?;
        }
        fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals())).map_err(|errno| SealError::Create(errno.into()))?;
        Self::of_sealed(file, len)
    }

    /// A sealed copy of `bytes`.
    ///
    /// # Errors
    /// When the kernel gives no memory file.
    pub fn of(bytes: &[u8]) -> Result<Self, SealError> {
        Self::read(bytes, bytes.len())
    }

    /// Takes a descriptor that somebody else made, after checking that nobody can change what is behind it.
    ///
    /// # Errors
    /// When it is not a memory file, lacks one of the four seals, or is longer than `max` bytes.
    pub fn from_fd(fd: OwnedFd, max: usize) -> Result<Self, SealError> {
        let bits = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|errno| SealError::NotMemory(errno.into()))?;
        let missing = all_seals().difference(SealFlag::from_bits_retain(bits));
        if !missing.is_empty() {
            let missing = missing.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
            return Err(SealError::NotSealed { missing });
        }
        let file = File::from(fd);
        let len = file.metadata().map_err(SealError::ReadBack)?.len();
        let len = usize::try_from(len).ok().filter(|len| *len <= max).ok_or(SealError::TooLong { max })?;
        Self::of_sealed(file, len)
    }

    fn of_sealed(file: File, len: usize) -> Result<Self, SealError> {
        let digest = digest_of(&file).map_err(SealError::ReadBack)?;
        Ok(Self { file, len, digest })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Of the bytes behind the seals: computed once, after sealing, from the memory file itself.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// For interfaces that only take a path. It names this descriptor, so it is good as long as `self` is, in this
    /// process only.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// A second descriptor for the same memory.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub fn try_clone(&self) -> Result<Self, SealError> {
        let file = self.file.try_clone().map_err(SealError::ReadBack)?;
        Ok(Self { file, len: self.len, digest: self.digest })
    }

    /// Reads it from its beginning. By position, so that nobody shares an offset.
    pub fn reader(&self) -> impl Read + '_ {
        SealedReader { file: &self.file, at: 0 }
    }

    /// A copy in ordinary memory.
    ///
    /// # Errors
    /// When reading fails.
    pub fn to_vec(&self) -> Result<Vec<u8>, SealError> {
        let mut bytes = vec![0; self.len];
        self.file.read_exact_at(&mut bytes, 0).map_err(SealError::ReadBack)?;
        Ok(bytes)
    }
}

struct SealedReader<'a> {
    file: &'a File,
    at: u64,
}

impl Read for SealedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }
}

impl AsFd for SealedBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL
}

fn create() -> Result<File, Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create("portcullis-policy", flags | MFdFlags::from_bits_retain(NOEXEC_SEAL)) {
        // A kernel before 6.3 does not know the flag. Nothing that runs policies may exec anyway.
        Err(Errno::EINVAL) => memfd_create("portcullis-policy", flags),
        result => result,
    }
    .map(File::from)
}

/// Reads by position: the offset is shared with every process that has a copy of the descriptor.
fn digest_of(file: &File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; STEP];
    let mut offset = 0_u64;
    loop {
        let count = match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(Digest::from_bytes(hasher.finalize().into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(buffer.get(..count).unwrap_or_default());
        offset = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn plain_memfd() -> File {
        memfd_create("t", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap().into()
    }

    #[test]
    fn sealed_bytes_cannot_be_written_grown_shrunk_or_unsealed() {
        let attempts = |file: &File| {
            let errno = |error: io::Error| error.raw_os_error().unwrap();
            let reopened = OpenOptions::new()
                .write(true)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                .and_then(|file| file.write_at(b"EVIL", 0));
            [
                file.write_at(b"EVIL", 0).map(drop).map_err(errno),
                reopened.map(drop).map_err(errno),
                file.set_len(1).map_err(errno),
                file.set_len(1000).map_err(errno),
                fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE))
                    .map(drop)
                    .map_err(|errno| errno as i32),
            ]
        };
        let sealed = SealedBytes::of(b"good").unwrap();
        assert_eq!(attempts(&sealed.file), [Err(Errno::EPERM as i32); 5]);
        assert_eq!(sealed.to_vec().unwrap(), b"good");

        let plain = plain_memfd();
        (&plain).write_all(b"good").unwrap();
        assert_eq!(
            attempts(&plain),
            [Ok(()); 5],
            "the attempts themselves must work on memory without seals"
        );
    }

    #[test]
    fn length_digest_and_copy_are_those_of_the_bytes() {
        for len in [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP + 17] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let sealed = SealedBytes::of(&bytes).unwrap();
            assert_eq!((sealed.len(), sealed.digest()), (len, Digest::of(&bytes)));
            assert_eq!(sealed.try_clone().unwrap().to_vec().unwrap(), bytes);
            assert_eq!(std::fs::read(sealed.path()).unwrap(), bytes);
        }
    }

    #[test]
    fn reading_stops_at_the_limit() {
        assert_eq!(SealedBytes::read(&[7; 100][..], 100).unwrap().len(), 100);
        let error = SealedBytes::read(io::repeat(7), 100).unwrap_err();
        assert!(matches!(error, SealError::TooLong { max: 100 }));
        assert_eq!(error.to_string(), "read bytes to seal: more than 100 bytes, which is the limit here");
    }

    #[test]
    fn a_descriptor_is_taken_only_with_all_four_seals() {
        let sealed = SealedBytes::of(b"good").unwrap();
        let taken = SealedBytes::from_fd(sealed.try_clone().unwrap().file.into(), 4).unwrap();
        assert_eq!((taken.len(), taken.digest()), (4, Digest::of(b"good")));
        let long = SealedBytes::from_fd(sealed.file.into(), 3).unwrap_err();
        assert!(matches!(long, SealError::TooLong { max: 3 }));

        for left_out in
            [SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_GROW, SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_SEAL]
        {
            let file = plain_memfd();
            fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals() - left_out)).unwrap();
            let error = SealedBytes::from_fd(file.into(), 10).unwrap_err();
            let SealError::NotSealed { missing } = error else { panic!("{error}") };
            assert_eq!(missing, left_out.iter_names().next().unwrap().0);
        }
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert!(matches!(SealedBytes::from_fd(file.into(), 10), Err(SealError::NotMemory(_))));
    }
}
