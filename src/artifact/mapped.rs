//! Sealed memory as bytes that can be read without a call: mapped once, read-only, shared by all who map the same.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::SealedBytes;

/// A read-only mapping of sealed memory. Its pages are those of the memory file: however many processes map them and however
/// many instances read them, they are in memory once.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

impl Mapped {
    /// Maps all of it and brings its pages in, so that no reader ever waits for one. The descriptor is not needed afterwards.
    ///
    /// JUSTIFICATION: neither std nor nix has a safe mapping, since the file behind one could become shorter or change under
    /// those who read. Nobody can do that to this file: [`SealedBytes`] is only made with all four seals on it.
    ///
    /// # Errors
    /// When the kernel does not map it.
    #[expect(unsafe_code, reason = "a mapping has no safe interface")]
    pub fn new(bytes: &SealedBytes) -> std::io::Result<Self> {
        let Some(length) = NonZeroUsize::new(bytes.len()) else {
            return Ok(Self { start: NonNull::dangling(), len: 0 });
        };
        // Private: the kernel has no shared mapping of a file that is sealed against writing, where one could be made writable.
        // Nothing is ever written, so every page stays the file's.
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing. It is as long as the file, which is sealed
        // against shrinking, so that every byte of it stays there; and against writing, so that no byte of it changes.
        let start = unsafe { mmap(None, length, ProtFlags::PROT_READ, flags, bytes, 0) }?;
        Ok(Self { start: start.cast(), len: bytes.len() })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    #[expect(unsafe_code, reason = "a mapping is known by its address")]
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a mapping that lives as long as `self` (or no bytes at all, at an address that
        // is not null). Nobody writes to it: it is mapped for reading alone, and the file behind it is sealed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Mapped {
    #[expect(unsafe_code, reason = "a mapping has no safe interface")]
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: it is the mapping that `new` made, whole, and nobody borrows from it any more.
            // An error would leave it mapped, which does no harm.
            let _ = unsafe { munmap(self.start.cast(), self.len) };
        }
    }
}

// SAFETY: it is memory that nobody writes to, owned by nothing of a thread's.
#[expect(unsafe_code, reason = "a pointer says nothing of who may use it")]
unsafe impl Send for Mapped {}

// SAFETY: as above: all that can be done with a reference is to read.
#[expect(unsafe_code, reason = "a pointer says nothing of who may use it")]
unsafe impl Sync for Mapped {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_what_was_sealed() {
        for len in [0_usize, 1, 4095, 4096, 4097, 200_000] {
            let bytes: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let sealed = SealedBytes::of(&bytes).unwrap();
            let mapped = Mapped::new(&sealed).unwrap();
            drop(sealed);
            assert_eq!(&*mapped, bytes);
        }
    }
}
