//! Memory for one decision, in chunks that OPA's allocator gives.
//!
//! Blocks have sizes that are powers of two. What is given back is used again for blocks of that size, so a policy that calls
//! a builtin a thousand times needs no more memory than one that calls it once.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr;

use crate::opa;

/// Of the first chunk and those after it, bytes.
const CHUNK: usize = 16 << 10;
/// Smallest block, and what every block is aligned to, bytes.
const BLOCK: usize = 16;
/// Sizes of blocks: 16 bytes, twice that, and so on.
const CLASSES: usize = 28;

struct Heap {
    /// First free byte, and the end of the chunk; both 0 before the first allocation.
    next: Cell<usize>,
    end: Cell<usize>,
    /// Address of the first free block of each size, which begins with the address of the next; 0 is none.
    free: [Cell<usize>; CLASSES],
}

// SAFETY: the world has no threads; `Cell` is never seen by two of them.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap { next: Cell::new(0), end: Cell::new(0), free: [const { Cell::new(0) }; CLASSES] };

/// What a block takes that holds this.
fn size_of(layout: Layout) -> Option<usize> {
    layout.size().max(layout.align()).max(BLOCK).checked_next_power_of_two()
}

impl Heap {
    fn list(&self, size: usize) -> Option<&Cell<usize>> {
        self.free.get(usize::try_from(size.trailing_zeros()).ok()?.checked_sub(4)?)
    }

    fn take(&self, layout: Layout) -> Option<usize> {
        let size = size_of(layout)?;
        let list = self.list(size)?;
        let free = list.get();
        if free != 0 {
            // SAFETY: a block in the list is nobody's, and holds the address of the next one.
            list.set(unsafe { ptr::with_exposed_provenance::<usize>(free).read() });
            return Some(free);
        }
        let align = layout.align().max(BLOCK);
        let start = self.next.get().checked_next_multiple_of(align)?;
        let end = start.checked_add(size)?;
        if self.end.get() != 0 && end <= self.end.get() {
            self.next.set(end);
            return Some(start);
        }
        let chunk = CHUNK.max(size.checked_add(align)?);
        let start = opa::allocate(chunk)?;
        let end = start.checked_add(chunk)?;
        let start = start.checked_next_multiple_of(align)?;
        self.end.set(end);
        self.next.set(start.checked_add(size)?);
        Some(start)
    }
}

// SAFETY: blocks never overlap, since `next` only moves forward within a chunk that OPA's allocator gave to nobody else, and a
// block is in a list only from when it was given back until it is given out again.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout).map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(list) = size_of(layout).and_then(|size| self.list(size)) {
            // SAFETY: the block is nobody's any more, has room for an address, and is aligned to more than one.
            unsafe { block.cast::<usize>().write(list.get()) };
            list.set(block.expose_provenance());
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: `size` is not 0 and does not overflow, as the caller of `realloc` promises.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if size_of(wanted) == size_of(layout) {
            return block;
        }
        // SAFETY: as above.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both blocks hold that much, and a new block overlaps no other.
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
            // SAFETY: the caller gives this block up for the new one.
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}
