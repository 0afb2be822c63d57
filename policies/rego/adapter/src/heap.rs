//! Memory for one decision, in chunks that OPA's allocator gives.
//!
//! Nothing is given back one by one. What a builtin used is free again when it has returned ([`scoped`]): nothing of ours
//! outlives a call but its result, which is OPA's.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr;

use crate::opa;

/// Of the first chunk and those after it, bytes.
const CHUNK: usize = 16 << 10;

struct Heap {
    /// First free byte, and the end of the chunk; both 0 before the first allocation.
    next: Cell<usize>,
    end: Cell<usize>,
}

// SAFETY: the world has no threads; `Cell` is never seen by two of them.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap { next: Cell::new(0), end: Cell::new(0) };

impl Heap {
    fn take(&self, size: usize, align: usize) -> Option<usize> {
        let start = self.next.get().checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        if self.end.get() != 0 && end <= self.end.get() {
            self.next.set(end);
            return Some(start);
        }
        let chunk = CHUNK.max(size.checked_add(align)?);
        let start = opa::allocate(chunk)?;
        self.next.set(start);
        self.end.set(start.checked_add(chunk)?);
        let start = start.checked_next_multiple_of(align)?;
        self.next.set(start.checked_add(size)?);
        Some(start)
    }
}

// SAFETY: blocks never overlap, since `next` only moves forward within a chunk that OPA's allocator gave to nobody else,
// until `scoped` moves it back to where it was before blocks that nobody has any more.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size(), layout.align()).map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // The last block is the one that there is a way back from.
        let start = block.expose_provenance();
        if start + layout.size() == self.next.get() {
            self.next.set(start);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let start = block.expose_provenance();
        // The last block grows where it is; so does the string that is just being filled.
        if start + layout.size() == self.next.get()
            && start.checked_add(size).is_some_and(|end| end <= self.end.get())
        {
            self.next.set(start + size);
            return block;
        }
        if size <= layout.size() {
            return block;
        }
        // SAFETY: `size` is not 0 and does not overflow, as the caller of `realloc` promises.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both blocks hold `layout.size()` bytes, and a new block overlaps no other.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size()) };
        }
        new
    }
}

/// Runs `work` and frees what it allocated, of which its result must hold nothing.
pub(crate) fn scoped<T: Copy>(work: impl FnOnce() -> T) -> T {
    let (next, end) = (HEAP.next.get(), HEAP.end.get());
    let result = work();
    if HEAP.end.get() == end {
        HEAP.next.set(next);
    }
    // Else there is a new chunk, which the next call uses further; what was left of the old one is lost.
    result
}
