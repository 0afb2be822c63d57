//! What an intruder in a sealed process would try. Unsealed, as the same unprivileged user, each must survive, and
//! work where the kernel lets an ordinary user do it.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::unistd::{getpid, getppid};
use portcullis::sandbox::Role;

use crate::child::{End, KILLED_BY_FILTER, call, confine, run, run_sealed, run_unsealed};

struct Escape {
    name: &'static str,
    /// What the kernel answers an ordinary user without our sandbox.
    unsealed: Answer,
    attempt: fn() -> i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Works,
    /// Refused to ordinary users everywhere, or on some machines; the sealed process still has to die, not to be told.
    Survives,
}

use Answer::{Survives, Works};

const PAGE: u64 = 4096;
const NONE: u64 = u64::MAX;

const fn escape(name: &'static str, unsealed: Answer, attempt: fn() -> i64) -> Escape {
    Escape { name, unsealed, attempt }
}

const ESCAPES: &[Escape] = &[
    escape("open a file", Works, || open(c"/etc/passwd")),
    escape("open a file with openat2", Works, || {
        let how = [0_u64; 3];
        call(libc::SYS_openat2, [at_cwd(), text(c"/etc/passwd"), how.as_ptr() as u64, 24, 0, 0])
    }),
    escape("open a file by handle", Survives, || {
        call(libc::SYS_open_by_handle_at, [at_cwd(), 0, 0, 0, 0, 0])
    }),
    escape("ask about a file", Works, || {
        let mut buffer = [0_u8; 512];
        call(libc::SYS_newfstatat, [at_cwd(), text(c"/etc/passwd"), buffer.as_mut_ptr() as u64, 0, 0, 0])
    }),
    escape("remove a file", Survives, || {
        call(libc::SYS_unlinkat, [at_cwd(), text(c"/nonexistent/x"), 0, 0, 0, 0])
    }),
    escape("change directory", Works, || call(libc::SYS_chdir, [text(c"/"), 0, 0, 0, 0, 0])),
    escape("change root", Survives, || call(libc::SYS_chroot, [text(c"/"), 0, 0, 0, 0, 0])),
    escape("mount", Survives, || call(libc::SYS_mount, [0; 6])),
    escape("open a filesystem", Survives, || call(libc::SYS_fsopen, [text(c"tmpfs"), 0, 0, 0, 0, 0])),
    escape("pivot root", Survives, || call(libc::SYS_pivot_root, [text(c"/"), text(c"/"), 0, 0, 0, 0])),
    escape("TCP socket", Works, || socket(libc::AF_INET, libc::SOCK_STREAM)),
    escape("UDP socket", Works, || socket(libc::AF_INET, libc::SOCK_DGRAM)),
    escape("IPv6 socket", Survives, || socket(libc::AF_INET6, libc::SOCK_STREAM)),
    escape("netlink socket", Works, || socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    escape("packet socket", Survives, || socket(libc::AF_PACKET, libc::SOCK_RAW)),
    escape("vsock socket", Survives, || socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    escape("Unix socket", Works, || socket(libc::AF_UNIX, libc::SOCK_STREAM)),
    escape("connect", Survives, || call(libc::SYS_connect, [NONE, 0, 0, 0, 0, 0])),
    escape("exec a program", Works, || {
        let arguments = [text(c"/bin/true"), 0];
        call(libc::SYS_execve, [text(c"/bin/true"), arguments.as_ptr() as u64, 0, 0, 0, 0])
    }),
    escape("exec a memfd", Works, || {
        let fd = call(libc::SYS_memfd_create, [text(c"x"), 0, 0, 0, 0, 0]);
        let program = std::fs::read("/bin/true").expect("read");
        call(libc::SYS_write, [fd as u64, program.as_ptr() as u64, program.len() as u64, 0, 0, 0]);
        let arguments = [text(c"x"), 0];
        call(
            libc::SYS_execveat,
            [fd as u64, text(c""), arguments.as_ptr() as u64, 0, libc::AT_EMPTY_PATH as u64, 0],
        )
    }),
    escape("make a memfd", Works, || call(libc::SYS_memfd_create, [text(c"x"), 0, 0, 0, 0, 0])),
    escape("clone a process", Works, || {
        let child = call(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]);
        if child == 0 {
            call(libc::SYS_exit_group, [0; 6]);
        }
        child
    }),
    escape("clone3 a process", Works, || {
        let arguments = [0, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0_u64];
        let child = call(libc::SYS_clone3, [arguments.as_ptr() as u64, 64, 0, 0, 0, 0]);
        if child == 0 {
            call(libc::SYS_exit_group, [0; 6]);
        }
        child
    }),
    escape("user namespace", Survives, || {
        call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0])
    }),
    escape("enter a namespace", Survives, || call(libc::SYS_setns, [NONE, 0, 0, 0, 0, 0])),
    escape("io_uring", Survives, || {
        let mut parameters = [0_u8; 120];
        call(libc::SYS_io_uring_setup, [1, parameters.as_mut_ptr() as u64, 0, 0, 0, 0])
    }),
    escape("io_uring enter", Survives, || call(libc::SYS_io_uring_enter, [NONE, 0, 0, 0, 0, 0])),
    escape("io_uring register", Survives, || call(libc::SYS_io_uring_register, [NONE, 0, 0, 0, 0, 0])),
    escape("bpf", Survives, || call(libc::SYS_bpf, [0; 6])),
    escape("perf events", Survives, || call(libc::SYS_perf_event_open, [0; 6])),
    escape("key ring", Works, || call(libc::SYS_keyctl, [0, -2_i64 as u64, 1, 0, 0, 0])),
    escape("add a key", Survives, || call(libc::SYS_add_key, [0; 6])),
    escape("request a key", Survives, || call(libc::SYS_request_key, [0; 6])),
    escape("userfaultfd", Survives, || call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0])),
    escape("map executable memory", Works, || map(libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE)),
    escape("map writable executable memory", Works, || {
        map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE)
    }),
    escape("map shared memory", Works, || map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)),
    escape("make memory executable", Works, || {
        let page = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        call(libc::SYS_mprotect, [page as u64, PAGE, (libc::PROT_READ | libc::PROT_EXEC) as u64, 0, 0, 0])
    }),
    escape("make memory executable with pkey_mprotect", Works, || {
        let page = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        call(
            libc::SYS_pkey_mprotect,
            [page as u64, PAGE, (libc::PROT_READ | libc::PROT_EXEC) as u64, NONE, 0, 0],
        )
    }),
    escape("attach shared memory", Survives, || {
        call(libc::SYS_shmat, [NONE, 0, libc::SHM_EXEC as u64, 0, 0, 0])
    }),
    escape("remap file pages", Survives, || call(libc::SYS_remap_file_pages, [0; 6])),
    escape("become root", Survives, || call(libc::SYS_setuid, [0; 6])),
    escape("become root with setresuid", Survives, || call(libc::SYS_setresuid, [0; 6])),
    escape("become another class", Survives, || call(libc::SYS_setresuid, [61_002, 61_002, 61_002, 0, 0, 0])),
    escape("set groups", Survives, || call(libc::SYS_setgroups, [0; 6])),
    escape("set capabilities", Works, || {
        let header = [0x2008_0522_u32, 0];
        let data = [0_u32; 6];
        call(libc::SYS_capset, [header.as_ptr() as u64, data.as_ptr() as u64, 0, 0, 0, 0])
    }),
    escape("be traced", Works, || call(libc::SYS_ptrace, [0; 6])),
    escape("read a process's memory", Works, || {
        let (mut to, from) = ([0_u8; 1], [1_u8; 1]);
        let (to, from) = ([to.as_mut_ptr() as u64, 1], [from.as_ptr() as u64, 1]);
        let me = u64::from(std::process::id());
        call(libc::SYS_process_vm_readv, [me, to.as_ptr() as u64, 1, from.as_ptr() as u64, 1, 0])
    }),
    escape("write a process's memory", Survives, || call(libc::SYS_process_vm_writev, [0; 6])),
    escape("signal a process", Works, || {
        call(libc::SYS_kill, [u64::from(std::process::id()), 0, 0, 0, 0, 0])
    }),
    escape("stop a thread", Works, || {
        let me = u64::from(std::process::id());
        call(libc::SYS_tgkill, [me, me, 0, 0, 0, 0])
    }),
    escape("take a pidfd", Works, || {
        call(libc::SYS_pidfd_open, [u64::from(std::process::id()), 0, 0, 0, 0, 0])
    }),
    escape("signal a pidfd", Survives, || call(libc::SYS_pidfd_send_signal, [NONE, 0, 0, 0, 0, 0])),
    escape("take another's descriptor", Survives, || call(libc::SYS_pidfd_getfd, [NONE, 0, 0, 0, 0, 0])),
    escape("become dumpable", Works, || call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0])),
    escape("change the process's name", Works, || {
        call(libc::SYS_prctl, [libc::PR_SET_NAME as u64, text(c"x"), 0, 0, 0, 0])
    }),
    escape("add a filter", Survives, || call(libc::SYS_seccomp, [1, 0, 0, 0, 0, 0])),
    escape("change personality", Works, || call(libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0])),
    escape("raise a limit", Survives, || {
        let limit = [1_u64 << 20; 2];
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as u64, limit.as_ptr() as u64, 0, 0, 0])
    }),
    escape("make a thread's timer", Survives, || call(libc::SYS_timer_create, [0; 6])),
    escape("install a signal handler", Survives, || call(libc::SYS_rt_sigaction, [10, 0, 0, 8, 0, 0])),
    escape("sleep", Survives, || call(libc::SYS_clock_nanosleep, [NONE, 0, 0, 0, 0, 0])),
];

pub(crate) fn every_escape() {
    let mut wrong = Vec::new();
    for Escape { name, unsealed, attempt } in ESCAPES {
        let end = run_unsealed(Role::Worker, || {
            let answer = attempt();
            let worked = answer >= 0 || *unsealed == Survives;
            assert!(worked, "{name}: errno {}", -answer);
        });
        if end != End::Exit(0) {
            wrong.push(format!("{name}: unsealed: {end:?}"));
        }
        for role in [Role::Worker, Role::Frontend] {
            let end = run_sealed(role, |_| {
                attempt();
            });
            if end != KILLED_BY_FILTER {
                wrong.push(format!("{name}: sealed {role}: {end:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// 32-bit calls have other numbers, so a filter that compared numbers alone would let others through.
#[cfg(target_arch = "x86_64")]
pub(crate) fn foreign_architectures() {
    fn int80() -> i64 {
        let result: i64;
        // SAFETY: getpid by the 32-bit table; touches no memory.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
        };
        result
    }
    // 39 is getpid; bit 30 asks for the x32 table.
    let x32 = || call(0x4000_0000 | libc::SYS_getpid, [0; 6]);

    let control = run_unsealed(Role::Worker, || {
        assert_eq!(int80(), i64::from(getpid().as_raw()), "int 0x80");
        // A kernel without x32 says ENOSYS, which is not death.
        x32();
    });
    assert_eq!(control, End::Exit(0));
    for role in Role::ALL {
        let end = run_sealed(role, |_| {
            int80();
        });
        assert_eq!(end, KILLED_BY_FILTER, "{role}: int 0x80");
        let end = run_sealed(role, |_| {
            x32();
        });
        assert_eq!(end, KILLED_BY_FILTER, "{role}: x32");
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn foreign_architectures() {}

/// The layer beneath seccomp, by itself.
pub(crate) fn landlock_alone() {
    let name = format!("portcullis-test-{}", std::process::id());
    let abstract_socket = SocketAddr::from_abstract_name(name.as_bytes()).expect("name");
    let _listener = UnixListener::bind_addr(&abstract_socket).expect("listen");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = tcp.local_addr().expect("address").port();

    let connect_tcp = || std::net::TcpStream::connect(("127.0.0.1", port)).map(drop);
    let connect_abstract = || UnixStream::connect_addr(&abstract_socket).map(drop);
    let read = || std::fs::read("/etc/passwd").map(drop);
    let exec = || std::process::Command::new("/bin/true").status().map(drop);
    // Of the same UID, so that only Landlock stands between.
    let signal_parent = || nix::sys::signal::kill(getppid(), None);
    let trace_parent = || call(libc::SYS_ptrace, [0x4206, parent(), 0, 0, 0, 0]);
    let read_parent = || {
        let (mut to, from) = ([0_u8; 1], [0_u8; 1]);
        // At the same place in the parent, which was this very process before it forked.
        let (to, from) = ([to.as_mut_ptr() as u64, 1], [from.as_ptr() as u64, 1]);
        call(libc::SYS_process_vm_readv, [parent(), to.as_ptr() as u64, 1, from.as_ptr() as u64, 1, 0])
    };
    let signal_parents_pidfd = || {
        let pidfd = call(libc::SYS_pidfd_open, [parent(), 0, 0, 0, 0, 0]);
        assert!(pidfd >= 0, "a name for it");
        call(libc::SYS_pidfd_send_signal, [pidfd as u64, 0, 0, 0, 0, 0])
    };

    let control = run_unsealed(Role::Worker, || {
        connect_tcp().expect("TCP");
        connect_abstract().expect("abstract socket");
        read().expect("file");
        exec().expect("exec");
        let outside = || {
            signal_parent().expect("signal");
            assert_eq!(read_parent(), 1, "its memory");
            assert_eq!(signal_parents_pidfd(), 0, "signal by descriptor");
            assert_eq!(trace_parent(), 0, "trace");
        };
        // Its parent can be looked into again, which a change of UID takes away.
        nix::sys::prctl::set_dumpable(true).expect("dumpable");
        assert_eq!(run(Role::Worker, outside), End::Exit(0));
    });
    assert_eq!(control, End::Exit(0));
    let confined = run_unsealed(Role::Worker, || {
        let _confined = confine(Role::Worker);
        let errno = |result: std::io::Result<()>| result.expect_err("stopped").raw_os_error();
        assert_eq!(errno(connect_tcp()), Some(libc::EACCES), "TCP");
        assert_eq!(errno(connect_abstract()), Some(libc::EPERM), "abstract socket");
        assert_eq!(errno(read()), Some(libc::EACCES), "file");
        assert_eq!(errno(exec()), Some(libc::EACCES), "exec");
    });
    assert_eq!(confined, End::Exit(0));
    let signals = run_unsealed(Role::Worker, || {
        nix::sys::prctl::set_dumpable(true).expect("dumpable");
        let end = run(Role::Worker, || {
            let _confined = confine(Role::Worker);
            assert_eq!(signal_parent(), Err(nix::errno::Errno::EPERM));
            let refused = -i64::from(libc::EPERM);
            assert_eq!(read_parent(), refused, "its memory");
            assert_eq!(signal_parents_pidfd(), refused, "signal by descriptor");
            assert_eq!(trace_parent(), refused, "trace");
        });
        assert_eq!(end, End::Exit(0));
    });
    assert_eq!(signals, End::Exit(0));
}

fn parent() -> u64 {
    getppid().as_raw() as u64
}

fn open(path: &std::ffi::CStr) -> i64 {
    call(libc::SYS_openat, [at_cwd(), text(path), 0, 0, 0, 0])
}

fn socket(family: i32, kind: i32) -> i64 {
    call(libc::SYS_socket, [family as u64, kind as u64, 0, 0, 0, 0])
}

fn map(protection: i32, sharing: i32) -> i64 {
    call(libc::SYS_mmap, [0, PAGE, protection as u64, (sharing | libc::MAP_ANONYMOUS) as u64, NONE, 0])
}

fn text(text: &std::ffi::CStr) -> u64 {
    text.as_ptr() as u64
}

fn at_cwd() -> u64 {
    libc::AT_FDCWD as u64
}
