//! Memory for one decision: taken from the front, never given back, gone with the instance.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32;
use core::cell::Cell;
use core::panic::PanicInfo;
use core::ptr;

const PAGE: usize = 64 << 10;

struct Heap {
    /// First free byte, and the end of memory; both 0 before the first allocation.
    next: Cell<usize>,
    end: Cell<usize>,
}

// SAFETY: the world has no threads; `Cell` is never seen by two of them.
unsafe impl Sync for Heap {}

unsafe extern "C" {
    /// Where the linker's own data ends.
    static __heap_base: u8;
}

#[global_allocator]
static HEAP: Heap = Heap { next: Cell::new(0), end: Cell::new(0) };

impl Heap {
    /// Moves the end of what is taken to `next`, asking for pages where there are none.
    fn take_until(&self, next: usize) -> Option<()> {
        if next > self.end.get() {
            let pages = (next - self.end.get()).div_ceil(PAGE);
            if wasm32::memory_grow(0, pages) == usize::MAX {
                return None;
            }
            self.end.set(wasm32::memory_size(0) * PAGE);
        }
        self.next.set(next);
        Some(())
    }
}

// SAFETY: blocks never overlap, since `next` only moves forward, and lie below `end`, since `take_until` made it so.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.end.get() == 0 {
            self.next.set(ptr::addr_of!(__heap_base) as usize);
            self.end.set(wasm32::memory_size(0) * PAGE);
        }
        let taken = self.next.get().checked_next_multiple_of(layout.align()).and_then(|start| {
            self.take_until(start.checked_add(layout.size())?)?;
            Some(start)
        });
        taken.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let start = block.expose_provenance();
        // The last block grows where it is; so does the vector that a policy is just filling.
        if start + layout.size() == self.next.get() {
            return match start.checked_add(size).and_then(|end| self.take_until(end)) {
                Some(()) => block,
                None => ptr::null_mut(),
            };
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

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // Memory starts as zeros and is handed out once, except for the shrunken end of a last block.
        // SAFETY: as the caller promises.
        let block = unsafe { self.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block is ours and that long.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    wasm32::unreachable()
}
