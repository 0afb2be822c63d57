//! The shared memory itself: made once, sealed against resizing, mapped by whoever is handed its descriptor.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::layout::{ClassAccount, RegistryAccount};

/// What may lie in shared memory that others write at the same time.
///
/// # Safety
/// Made of atomics alone, without padding that matters: every byte pattern is a valid value, and every access is atomic.
#[expect(unsafe_code, reason = "only these two are made of atomics alone")]
pub unsafe trait Layout: Sync + Sized {}

// SAFETY: counters, gauges, buckets, sequence locks: `AtomicU64` and arrays of it, `repr(C)`.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Layout for ClassAccount {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "see the trait")]
unsafe impl Layout for RegistryAccount {}

/// Why there is no shared memory to be had.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("accounts: {found} bytes, expected {expected}; the processes are not of one build")]
    Length { found: u64, expected: usize },
    /// Somebody could make it shorter, and whoever touches what is missing is killed.
    #[error("accounts: the memory can be resized")]
    NotSealed,
    #[error("accounts: {0}")]
    Io(#[from] io::Error),
    #[error("map accounts: {0}")]
    Map(#[source] Errno),
}

/// What a process does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only looks: what writes would end the process.
    Read,
    Write,
}

/// New memory for a `T`, all zeros, whose length nobody can change any more. Only what is written takes space.
pub fn create<T: Layout>() -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC
        | MFdFlags::MFD_ALLOW_SEALING
        | MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL);
    let file = File::from(memfd_create(c"portcullis-accounts", flags)?);
    file.set_len(size_of::<T>() as u64)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file.into())
}

const SEALS: SealFlag = SealFlag::F_SEAL_GROW.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_SEAL);

/// A `T` that other processes have too. Unmapped when dropped.
///
/// JUSTIFICATION: numbers that several processes count in at the same time, without a system call, need memory that they
/// share; nix maps it and has no type for what is in it.
#[derive(Debug)]
pub struct Map<T: Layout> {
    start: NonNull<c_void>,
    account: PhantomData<T>,
}

// SAFETY: an address; what is there is `Sync`, and no thread's own.
#[expect(unsafe_code, reason = "a pointer is not Send by itself")]
unsafe impl<T: Layout> Send for Map<T> {}
// SAFETY: as above; only `&T` comes out of it.
#[expect(unsafe_code, reason = "a pointer is not Sync by itself")]
unsafe impl<T: Layout> Sync for Map<T> {}

impl<T: Layout> Map<T> {
    /// Maps what [`create`] made. The descriptor is not needed afterwards.
    ///
    /// # Errors
    /// It is something else.
    #[expect(unsafe_code, reason = "mapping memory has no safe form")]
    pub fn new(descriptor: impl AsFd, access: Access) -> Result<Self, MapError> {
        let seals = fcntl(&descriptor, FcntlArg::F_GET_SEALS).map_err(io::Error::from)?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(MapError::NotSealed);
        }
        let found = File::from(descriptor.as_fd().try_clone_to_owned()?).metadata()?.len();
        let (expected, Some(length)) = (size_of::<T>(), NonZeroUsize::new(size_of::<T>())) else {
            return Err(MapError::Length { found, expected: 0 });
        };
        if found != expected as u64 {
            return Err(MapError::Length { found, expected });
        }
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a new mapping, at an address that the kernel chooses; it replaces nothing.
        let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, descriptor, 0) };
        Ok(Self { start: start.map_err(MapError::Map)?, account: PhantomData })
    }
}

impl<T: Layout> Deref for Map<T> {
    type Target = T;

    #[expect(unsafe_code, reason = "shared memory becomes a reference somewhere")]
    fn deref(&self) -> &T {
        // SAFETY: mapped for as long as `self` lives, as long as a `T` and sealed at that length, aligned to a page; any bytes
        // are a valid `T`, and all of them are atomic, so that others may write at the same time.
        unsafe { self.start.cast::<T>().as_ref() }
    }
}

impl<T: Layout> Drop for Map<T> {
    #[expect(unsafe_code, reason = "unmapping memory has no safe form")]
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no reference outlives `self`.
        let _ = unsafe { munmap(self.start, size_of::<T>()) };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Shared with nobody.
    pub(in crate::accounts) fn fresh<T: Layout>() -> Map<T> {
        Map::new(create::<T>().unwrap(), Access::Write).unwrap()
    }

    #[test]
    fn what_one_writes_the_other_reads_and_it_outlives_who_wrote() {
        let memory = create::<ClassAccount>().unwrap();
        let writer = Map::<ClassAccount>::new(&memory, Access::Write).unwrap();
        let reader = Map::<ClassAccount>::new(&memory, Access::Read).unwrap();
        let last = reader.tenants.last().unwrap();
        assert_eq!(last.cpu_ns.get(), 0);
        writer.tenants.last().unwrap().cpu_ns.add(7);
        drop(writer);
        assert_eq!(last.cpu_ns.get(), 7);
    }

    #[test]
    fn nobody_can_change_its_length() {
        let file = File::from(create::<RegistryAccount>().unwrap());
        let length = size_of::<RegistryAccount>() as u64;
        for other in [0, length - 1, length + 1] {
            assert_eq!(file.set_len(other).unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        }
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
    }

    #[test]
    fn what_is_not_ours_is_not_mapped() {
        let registrys = create::<RegistryAccount>().unwrap();
        let error = Map::<ClassAccount>::new(registrys, Access::Read).unwrap_err();
        assert!(matches!(error, MapError::Length { .. }), "{error}");
        let plain = memfd_create(c"plain", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let error = Map::<ClassAccount>::new(plain, Access::Read).unwrap_err();
        assert!(matches!(error, MapError::NotSealed), "{error}");
        let error = Map::<ClassAccount>::new(std::io::stderr(), Access::Read).unwrap_err();
        assert!(matches!(error, MapError::Io(_)), "{error}");
    }
}
