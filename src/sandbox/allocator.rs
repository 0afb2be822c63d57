//! What glibc's malloc would do lazily, after sealing, and no profile allows.

/// Larger than any top of a thread's heap (64 MiB including its header), so that malloc never shrinks one: before it
/// does that for the first time it opens /proc/sys/vm/overcommit_memory.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: i32 = 64 << 20;

/// Settles malloc for a process that will be sealed. Call it in the first lines of main, before anything large is
/// allocated: blocks that have a mapping of their own by then would still be resized with mremap.
///
/// Blocks no longer get mappings of their own, and memory goes back to the kernel only from the main heap, above
/// 64 MiB. A libc other than glibc has none of this to settle.
pub fn settle_allocator() {
    #[cfg(target_env = "gnu")]
    set(&[(nix::libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD), (nix::libc::M_MMAP_MAX, 0)]);
}

/// For a process whose threads take large blocks, besides [`settle_allocator`]: all of them use the main heap. A thread's own
/// ends at 64 MiB, and what does not fit into it gets a mapping of its own after all.
pub fn share_the_main_heap() {
    #[cfg(target_env = "gnu")]
    set(&[(nix::libc::M_ARENA_MAX, 1)]);
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc's settings have no safe interface")]
fn set(settings: &[(nix::libc::c_int, nix::libc::c_int)]) {
    for (setting, value) in settings {
        // JUSTIFICATION: glibc offers no other way at run time; the environment is empty by then.
        // SAFETY: mallopt takes two integers and locks malloc's own state.
        unsafe { nix::libc::mallopt(*setting, *value) };
    }
}
