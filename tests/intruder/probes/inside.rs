//! The process's own walls: who it is, what it may, what its descriptors mean.

use nix::libc;

use super::Instead::May;
use super::Unsealed::{Lives, Refused, Works};
use super::{NONE, Probe, flag, probe};

pub(crate) fn no_identity_or_capability_is_gained() -> Vec<Probe> {
    const IDENTITIES: &[(&str, super::Instead)] =
        &[("spawner", May("gives each child its identity, and holds the capabilities for it"))];
    vec![
        probe("become root", Refused(libc::EPERM), |thread, _| thread.call(libc::SYS_setuid, [0; 6])),
        probe("become root with setresuid", Refused(libc::EPERM), |thread, _| {
            thread.call(libc::SYS_setresuid, [0; 6])
        })
        .but(IDENTITIES),
        probe("become another class", Refused(libc::EPERM), |thread, _| {
            thread.call(libc::SYS_setresuid, [61_777, 61_777, 61_777, 0, 0, 0])
        })
        .but(IDENTITIES),
        probe("change group", Refused(libc::EPERM), |thread, _| {
            thread.call(libc::SYS_setresgid, [61_777, 61_777, 61_777, 0, 0, 0])
        })
        .but(IDENTITIES),
        probe("change group with setgid", Refused(libc::EPERM), |thread, _| {
            thread.call(libc::SYS_setgid, [61_777, 0, 0, 0, 0, 0])
        }),
        probe("join groups", Refused(libc::EPERM), |thread, _| {
            let groups = thread.place(&[0; 4]);
            thread.call(libc::SYS_setgroups, [1, groups, 0, 0, 0, 0])
        })
        .but(IDENTITIES),
        probe("change the UID for files", Lives, |thread, _| thread.call(libc::SYS_setfsuid, [0; 6])),
        probe("take every capability", Refused(libc::EPERM), |thread, _| capset(thread, u32::MAX >> 1)),
        probe("take the capability to trace", Refused(libc::EPERM), |thread, _| capset(thread, 1 << 19)),
    ]
}

pub(crate) fn no_wall_is_taken_down() -> Vec<Probe> {
    const CHILDREN: &[(&str, super::Instead)] = &[("spawner", May("children do it before they are sealed"))];
    vec![
        probe("become dumpable", Works, |thread, _| prctl(thread, libc::PR_SET_DUMPABLE, 1)).but(CHILDREN),
        probe("change the name of the process", Works, |thread, _| {
            let name = thread.text("x");
            thread.call(libc::SYS_prctl, [flag(libc::PR_SET_NAME), name, 0, 0, 0, 0])
        })
        .but(CHILDREN),
        probe("set strict seccomp", Lives, |thread, _| prctl(thread, libc::PR_SET_SECCOMP, 0)),
        probe("let a process trace this one", Lives, |thread, _| prctl(thread, 0x5961_6d61, u64::MAX)),
        probe("keep capabilities", Works, |thread, _| prctl(thread, libc::PR_SET_KEEPCAPS, 1)),
        probe("add a filter", Refused(libc::EACCES), |thread, _| {
            // One instruction: allow everything.
            let program = thread.place_words(&[0x7fff_0000 << 32 | 6]);
            let filter = thread.place_words(&[1, program]);
            thread.call(libc::SYS_seccomp, [1, 0, filter, 0, 0, 0])
        })
        .but(&[("spawner", May("children seal themselves; a filter can only take away"))]),
        probe("listen to a filter", Lives, |thread, _| thread.call(libc::SYS_seccomp, [3, 0, 0, 0, 0, 0])),
        probe("change personality", Works, |thread, _| {
            thread.call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0])
        }),
        #[cfg(target_arch = "x86_64")]
        probe("move a segment", Works, |thread, _| {
            // ARCH_SET_GS
            thread.call(libc::SYS_arch_prctl, [0x1001, 0, 0, 0, 0, 0])
        }),
        #[cfg(target_arch = "x86_64")]
        probe("change the local descriptor table", Lives, |thread, _| {
            thread.call(libc::SYS_modify_ldt, [0; 6])
        }),
        probe("allow cores", Lives, |thread, _| {
            let limit = thread.place_words(&[1 << 20, 1 << 20]);
            thread.call(libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_CORE), limit, 0, 0, 0])
        }),
        probe("raise the number of descriptors", Lives, |thread, _| {
            let limit = thread.place_words(&[1 << 30, 1 << 30]);
            thread.call(libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_NOFILE), limit, 0, 0, 0])
        }),
        probe("start a session", Lives, |thread, _| thread.call(libc::SYS_setsid, [0; 6])),
        probe("ignore signals", Works, |thread, _| {
            // SIG_IGN for SIGUSR1
            let action = thread.place_words(&[1, 0, 0, 0]);
            thread.call(libc::SYS_rt_sigaction, [10, action, 0, 8, 0, 0])
        })
        .but(&[("spawner", May("children install handlers before they are sealed"))]),
        probe("lock memory", Lives, |thread, _| thread.call(libc::SYS_mlockall, [1, 0, 0, 0, 0, 0])),
        probe("be scheduled before others", Lives, |thread, _| {
            let priority = thread.place(&[0; 4]);
            thread.call(libc::SYS_sched_setscheduler, [0, 3, priority, 0, 0, 0])
        }),
    ]
}

/// The numbers 3 and 5 mean something to a worker's filter, and control messages carry descriptors.
pub(crate) fn no_descriptor_is_forged() -> Vec<Probe> {
    vec![
        probe("another descriptor in the place of the control channel", Works, |thread, _| {
            thread.call(libc::SYS_dup3, [0, 3, 0, 0, 0, 0])
        }),
        probe("close the control channel", Lives, |thread, _| {
            thread.call(libc::SYS_close, [3, 0, 0, 0, 0, 0])
        }),
        probe("close the hand-over channel", Lives, |thread, _| {
            thread.call(libc::SYS_close, [5, 0, 0, 0, 0, 0])
        }),
        probe("a message with descriptors on standard error", Lives, |thread, _| {
            let message = thread.place_words(&[0; 7]);
            thread.call(libc::SYS_sendmsg, [2, message, 0, 0, 0, 0])
        }),
        probe("a message with descriptors from another socket", Lives, |thread, _| {
            let message = thread.place_words(&[0; 7]);
            thread.call(libc::SYS_recvmsg, [9, message, flag(libc::MSG_DONTWAIT), 0, 0, 0])
        }),
        probe("put a character into a terminal", Lives, |thread, _| {
            let byte = thread.place(b"x");
            thread.call(libc::SYS_ioctl, [0, flag_of(libc::TIOCSTI), byte, 0, 0, 0])
        }),
        probe("ask how much there is to read", Lives, |thread, _| {
            let count = thread.place(&[0; 8]);
            thread.call(libc::SYS_ioctl, [2, flag_of(libc::FIONREAD), count, 0, 0, 0])
        }),
        probe("make a socket non-blocking by ioctl", Lives, |thread, _| {
            let on = thread.place(&[1, 0, 0, 0]);
            thread.call(libc::SYS_ioctl, [NONE, flag_of(libc::FIONBIO), on, 0, 0, 0])
        }),
        probe("a pair of sockets to pass descriptors over", Works, |thread, _| {
            let ends = thread.place(&[0; 8]);
            thread.call(libc::SYS_socketpair, [1, 5, 0, ends, 0, 0])
        }),
        probe("the type of a seal", Lives, |thread, _| {
            // F_ADD_SEALS
            thread.call(libc::SYS_fcntl, [3, 1033, 0, 0, 0, 0])
        }),
    ]
}

fn prctl(thread: &mut crate::hijack::Thread, what: i32, value: u64) -> crate::hijack::Answer {
    thread.call(libc::SYS_prctl, [flag(what), value, 0, 0, 0, 0])
}

/// Effective and permitted, of version 3.
fn capset(thread: &mut crate::hijack::Thread, set: u32) -> crate::hijack::Answer {
    let header = thread.place(&[0x2008_0522_u32.to_ne_bytes(), [0; 4]].concat());
    let low = [set, set, 0].map(u32::to_ne_bytes).concat();
    let data = thread.place(&[low, vec![0; 12]].concat());
    thread.call(libc::SYS_capset, [header, data, 0, 0, 0, 0])
}

#[allow(clippy::unnecessary_cast, reason = "its type differs between C libraries")]
fn flag_of(request: libc::Ioctl) -> u64 {
    request as u64
}
