//! Other processes, new processes, namespaces.

use nix::libc;

use super::Instead::{Errno, May};
use super::Unsealed::{Lives, Refused, Works};
use super::{NONE, Probe, flag, number, open, probe, then};
use crate::hijack::{Answer, Thread};

pub(crate) fn no_other_process_is_touched() -> Vec<Probe> {
    vec![
        probe("trace a process of the same user", Works, |thread, around| {
            thread.call(libc::SYS_ptrace, [SEIZE, number(around.stranger), 0, 0, 0, 0])
        }),
        probe("trace the frontend", Refused(libc::EPERM), |thread, around| {
            thread.call(libc::SYS_ptrace, [SEIZE, number(around.frontend), 0, 0, 0, 0])
        }),
        probe("read the memory of a process of the same user", Works, |thread, around| {
            // Where nothing is mapped: who may not look is told so first.
            let (to, from) = (thread.place(&[0; 8]), thread.place_words(&[0, 0]));
            let to = thread.place_words(&[to, 8]);
            thread.call(libc::SYS_process_vm_readv, [number(around.stranger), to, 1, from, 1, 0])
        }),
        probe("write the memory of a process of the same user", Works, |thread, around| {
            let (to, from) = (thread.place_words(&[0, 0]), thread.place_words(&[0, 0]));
            thread.call(libc::SYS_process_vm_writev, [number(around.stranger), to, 1, from, 1, 0])
        }),
        probe("open the memory of a process of the same user", Works, |thread, around| {
            open(thread, &format!("/proc/{}/mem", around.stranger))
        }),
        probe("open the memory of the supervisor", Refused(libc::EACCES), |thread, around| {
            open(thread, &format!("/proc/{}/mem", around.supervisor))
        })
        .but(&[("supervisor", May("its own memory, which it has"))]),
        probe("open the memory of another class's worker", Refused(libc::EACCES), |thread, around| {
            open(thread, &format!("/proc/{}/mem", around.sibling))
        }),
        probe("signal a process of the same user", Works, |thread, around| {
            thread.call(libc::SYS_kill, [number(around.stranger), 0, 0, 0, 0, 0])
        }),
        probe("signal init", Refused(libc::EPERM), |thread, _| {
            thread.call(libc::SYS_kill, [1, 0, 0, 0, 0, 0])
        }),
        probe("signal the supervisor", Refused(libc::EPERM), |thread, around| {
            thread.call(libc::SYS_kill, [number(around.supervisor), 0, 0, 0, 0, 0])
        }),
        probe("end a process of the same user", Works, |thread, around| {
            thread.call(libc::SYS_kill, [number(around.stranger), flag(libc::SIGKILL), 0, 0, 0, 0])
        }),
        probe("signal a thread of a process of the same user", Works, |thread, around| {
            let stranger = number(around.stranger);
            thread.call(libc::SYS_tgkill, [stranger, stranger, 0, 0, 0, 0])
        }),
        probe("abort a thread of a process of the same user", Works, |thread, around| {
            let stranger = number(around.stranger);
            thread.call(libc::SYS_tgkill, [stranger, stranger, flag(libc::SIGABRT), 0, 0, 0])
        })
        // The call is there for a process's own end; whom it reaches is Landlock's to say.
        .but(&[
            ("worker", Errno(libc::EPERM)),
            ("frontend", Errno(libc::EPERM)),
            ("exporter", Errno(libc::EPERM)),
            ("gateway", Errno(libc::EPERM)),
        ]),
        probe("signal by descriptor", Works, |thread, around| {
            then(thread.call(libc::SYS_pidfd_open, [number(around.stranger), 0, 0, 0, 0, 0]), |fd| {
                thread.call(libc::SYS_pidfd_send_signal, [fd, 0, 0, 0, 0, 0])
            })
        }),
        probe("take another's descriptor", Works, |thread, around| {
            then(thread.call(libc::SYS_pidfd_open, [number(around.stranger), 0, 0, 0, 0, 0]), |fd| {
                thread.call(libc::SYS_pidfd_getfd, [fd, 0, 0, 0, 0, 0])
            })
        }),
        probe("change the priority of a process", Works, |thread, around| {
            thread.call(libc::SYS_setpriority, [0, number(around.stranger), 19, 0, 0, 0])
        }),
        probe("change the slices of a process", Works, |thread, around| {
            schedule(thread, around.stranger.as_raw(), 0, 0)
        }),
        probe("go before others", Refused(libc::EPERM), |thread, _| schedule(thread, 0, 0, -1)),
        probe("go before everybody, in real time", Refused(libc::EPERM), |thread, _| {
            schedule(thread, 0, libc::SCHED_FIFO, 0)
        }),
        probe("change the limits of a process", Works, |thread, around| {
            let limit = thread.place_words(&[0, 0]);
            let resource = u64::from(libc::RLIMIT_CORE);
            thread.call(libc::SYS_prlimit64, [number(around.stranger), resource, limit, 0, 0, 0])
        }),
    ]
}

/// sched_setattr of a `struct sched_attr` of 48 bytes, with the shortest slice there is.
fn schedule(thread: &mut Thread, pid: i32, policy: i32, nice: i32) -> Answer {
    let (policy, priority) = (flag(policy) << 32, u64::from(policy != 0) << 32);
    let nice = u64::from(u32::from_ne_bytes(nice.to_ne_bytes()));
    let slice = if policy == 0 { 100_000 } else { 0 };
    let attributes = thread.place_words(&[48 | policy, 0, nice | priority, slice, 0, 0]);
    thread.call(libc::SYS_sched_setattr, [flag(pid), attributes, 0, 0, 0, 0])
}

pub(crate) fn no_process_or_namespace_is_made() -> Vec<Probe> {
    let mut probes = vec![
        probe("clone a process", Works, |thread, _| {
            thread.call(libc::SYS_clone, [flag(libc::SIGCHLD), 0, 0, 0, 0, 0])
        })
        .but(&[("spawner", May("starts the others"))]),
        probe("clone3 a process", Works, |thread, _| clone3(thread, 0))
            .but(&[("spawner", Errno(libc::ENOSYS))]),
        probe("clone into a user namespace", Works, |thread, _| {
            let flags = flag(libc::CLONE_NEWUSER | libc::SIGCHLD);
            thread.call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0])
        }),
        probe("clone3 into a user namespace", Works, |thread, _| clone3(thread, libc::CLONE_NEWUSER))
            .but(&[("spawner", Errno(libc::ENOSYS))]),
        // CLONE_INTO_CGROUP is a flag of clone3 alone, above those of clone.
        probe("clone3 into another control group", Lives, |thread, _| {
            let arguments = thread.place_words(&[1 << 33, 0, 0, 0, flag(libc::SIGCHLD), 0, 0, 0, 0, 0, NONE]);
            thread.call(libc::SYS_clone3, [arguments, 88, 0, 0, 0, 0])
        })
        .but(&[("spawner", Errno(libc::ENOSYS))]),
        probe("leave for a user namespace", Works, |thread, _| {
            thread.call(libc::SYS_unshare, [flag(libc::CLONE_NEWUSER), 0, 0, 0, 0, 0])
        }),
        probe("enter a namespace", Lives, |thread, _| thread.call(libc::SYS_setns, [NONE, 0, 0, 0, 0, 0])),
    ];
    #[cfg(target_arch = "x86_64")]
    probes.extend([
        probe("fork", Works, |thread, _| thread.call(libc::SYS_fork, [0; 6])),
        probe("vfork", Works, |thread, _| thread.call(libc::SYS_vfork, [0; 6])),
    ]);
    probes
}

const SEIZE: u64 = 0x4206;

fn clone3(thread: &mut crate::hijack::Thread, flags: i32) -> crate::hijack::Answer {
    let arguments = thread.place_words(&[flag(flags), 0, 0, 0, flag(libc::SIGCHLD), 0, 0, 0]);
    thread.call(libc::SYS_clone3, [arguments, 64, 0, 0, 0, 0])
}
