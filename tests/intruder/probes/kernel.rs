//! Parts of the kernel that have been ways in before, and foreign ways to call it.

use nix::libc;

use super::Unsealed::{Lives, Works};
use super::{NONE, PAGE, Probe, flag, probe, then};

pub(crate) fn no_kernel_interface_is_opened() -> Vec<Probe> {
    vec![
        probe("io_uring", Lives, |thread, _| {
            let parameters = thread.place(&[0; 120]);
            thread.call(libc::SYS_io_uring_setup, [1, parameters, 0, 0, 0, 0])
        }),
        probe("io_uring enter", Lives, |thread, _| {
            thread.call(libc::SYS_io_uring_enter, [NONE, 0, 0, 0, 0, 0])
        }),
        probe("io_uring register", Lives, |thread, _| {
            thread.call(libc::SYS_io_uring_register, [NONE, 0, 0, 0, 0, 0])
        }),
        probe("asynchronous input and output", Works, |thread, _| {
            let context = thread.place_words(&[0]);
            thread.call(libc::SYS_io_setup, [1, context, 0, 0, 0, 0])
        }),
        probe("bpf", Lives, |thread, _| thread.call(libc::SYS_bpf, [0; 6])),
        probe("performance counters", Lives, |thread, _| {
            let attributes = thread.place(&[0; 128]);
            thread.call(libc::SYS_perf_event_open, [attributes, 0, NONE, NONE, 0, 0])
        }),
        probe("key ring", Works, |thread, _| {
            // KEYCTL_GET_KEYRING_ID of the process's session.
            thread.call(libc::SYS_keyctl, [0, (-3_i64).cast_unsigned(), 1, 0, 0, 0])
        }),
        probe("add a key", Works, |thread, _| {
            let (kind, name) = (thread.text("user"), thread.text("portcullis-probe"));
            // KEY_SPEC_PROCESS_KEYRING: gone with the process.
            thread.call(libc::SYS_add_key, [kind, name, name, 4, (-2_i64).cast_unsigned(), 0])
        }),
        probe("request a key", Lives, |thread, _| {
            let (kind, name) = (thread.text("user"), thread.text("no-such-key"));
            thread.call(libc::SYS_request_key, [kind, name, 0, 0, 0, 0])
        }),
        // 1 is UFFD_USER_MODE_ONLY.
        probe("userfaultfd", Lives, |thread, _| thread.call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0])),
        probe("shared memory of System V", Works, |thread, _| {
            thread.call(libc::SYS_shmget, [0, PAGE, 0o600, 0, 0, 0])
        }),
        probe("message queue of System V", Lives, |thread, _| thread.call(libc::SYS_msgget, [0; 6])),
        probe("message queue", Lives, |thread, _| {
            let name = thread.text("no-such-queue");
            thread.call(libc::SYS_mq_open, [name, 0, 0, 0, 0, 0])
        }),
        probe("watch all files", Lives, |thread, _| thread.call(libc::SYS_fanotify_init, [0; 6])),
        probe("load a module", Lives, |thread, _| thread.call(libc::SYS_finit_module, [NONE, 0, 0, 0, 0, 0])),
        probe("load another kernel", Lives, |thread, _| {
            // A flag that does not exist.
            thread.call(libc::SYS_kexec_load, [0, 0, 0, 1 << 20, 0, 0])
        }),
        // Without the magic numbers.
        probe("reboot", Lives, |thread, _| thread.call(libc::SYS_reboot, [0; 6])),
        probe("set the clock", Lives, |thread, _| {
            thread.call(libc::SYS_clock_settime, [u64::from(u32::MAX), 0, 0, 0, 0, 0])
        }),
        probe("read the kernel's log", Lives, |thread, _| {
            // SYSLOG_ACTION_SIZE_BUFFER
            thread.call(libc::SYS_syslog, [10, 0, 0, 0, 0, 0])
        }),
        probe("splice pages into a pipe", Lives, |thread, _| {
            thread.call(libc::SYS_vmsplice, [NONE, 0, 0, 0, 0, 0])
        }),
        probe("a pipe", Works, |thread, _| {
            let ends = thread.place(&[0; 8]);
            thread.call(libc::SYS_pipe2, [ends, 0, 0, 0, 0, 0])
        }),
        probe("a number that no kernel has", Lives, |thread, _| thread.call(1000, [0; 6])),
    ]
}

pub(crate) fn no_memory_becomes_code() -> Vec<Probe> {
    use super::Instead::May;
    const LOADS: &[(&str, super::Instead)] =
        &[("spawner", May("children are born into its filter, and load programs and policies"))];
    const READ_EXECUTE: u64 = 5;
    const ALL: u64 = 7;
    vec![
        probe("map executable memory", Works, |thread, _| map(thread, READ_EXECUTE, PRIVATE)).but(LOADS),
        probe("map writable and executable memory", Works, |thread, _| map(thread, ALL, PRIVATE)).but(LOADS),
        probe("map shared executable memory", Works, |thread, _| map(thread, READ_EXECUTE, SHARED))
            .but(LOADS),
        probe("make memory executable", Works, |thread, _| {
            then(map(thread, 3, PRIVATE), |page| {
                thread.call(libc::SYS_mprotect, [page, PAGE, READ_EXECUTE, 0, 0, 0])
            })
        })
        .but(&[
            ("spawner", May("children are born into its filter, and load programs and policies")),
            (
                "builder",
                May("what it compiled is tried; it may write no such page and has nothing to give away"),
            ),
        ]),
        probe("make the stack executable", Works, |thread, _| {
            let page = thread.place(&[0; 8]) & !(PAGE - 1);
            thread.call(libc::SYS_mprotect, [page, PAGE, ALL, 0, 0, 0])
        })
        .but(LOADS),
        probe("make memory executable with a protection key", Works, |thread, _| {
            then(map(thread, 3, PRIVATE), |page| {
                thread.call(libc::SYS_pkey_mprotect, [page, PAGE, READ_EXECUTE, NONE, 0, 0])
            })
        }),
        probe("map a file in memory as code", Works, |thread, _| {
            let name = thread.text("x");
            then(thread.call(libc::SYS_memfd_create, [name, 0, 0, 0, 0, 0]), |fd| {
                thread.call(libc::SYS_mmap, [0, PAGE, READ_EXECUTE, flag(libc::MAP_PRIVATE), fd, 0])
            })
        })
        .but(LOADS),
        probe("attach shared memory as code", Lives, |thread, _| {
            thread.call(libc::SYS_shmat, [NONE, 0, flag(libc::SHM_EXEC), 0, 0, 0])
        }),
        probe("remap pages of a file", Lives, |thread, _| thread.call(libc::SYS_remap_file_pages, [0; 6])),
        probe("make every reading executable", Works, |thread, _| {
            // READ_IMPLIES_EXEC
            thread.call(libc::SYS_personality, [0x0040_0000, 0, 0, 0, 0, 0])
        }),
    ]
}

/// Calls that a filter which compares numbers alone would take for others.
#[cfg(target_arch = "x86_64")]
pub(crate) fn no_foreign_call_is_made() -> Vec<Probe> {
    vec![
        // 20 is getpid in the 32-bit table, writev in ours.
        probe("a call by the 32-bit gate", Works, |thread, _| thread.call_32(20)),
        // 5 is open there, fstat in ours.
        probe("open by the 32-bit gate", Lives, |thread, _| thread.call_32(5)),
        probe("a call by the x32 table", Lives, |thread, _| {
            thread.call(0x4000_0000 | libc::SYS_getpid, [0; 6])
        }),
        probe("open by the x32 table", Lives, |thread, _| {
            let path = thread.text("/etc/passwd");
            thread.call(0x4000_0000 | libc::SYS_openat, [super::AT_CWD, path, 0, 0, 0, 0])
        }),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn no_foreign_call_is_made() -> Vec<Probe> {
    vec![]
}

const PRIVATE: i32 = libc::MAP_PRIVATE;
const SHARED: i32 = libc::MAP_SHARED;

fn map(thread: &mut crate::hijack::Thread, protection: u64, sharing: i32) -> crate::hijack::Answer {
    let flags = flag(sharing | libc::MAP_ANONYMOUS);
    thread.call(libc::SYS_mmap, [0, PAGE, protection, flags, NONE, 0])
}
