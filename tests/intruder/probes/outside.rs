//! Files, the network, mounts, other programs.

use nix::libc;

use super::Instead::{Errno, May};
use super::Unsealed::{Lives, Refused, Works};
use super::{AT_CWD, NONE, Probe, flag, open, probe, then};
use crate::hijack::{Answer, Thread};

pub(crate) fn no_file_is_reached() -> Vec<Probe> {
    vec![
        probe("open a file", Works, |thread, _| open(thread, "/etc/passwd")),
        probe("open a file with openat2", Works, |thread, _| {
            let path = thread.text("/etc/passwd");
            let how = thread.place_words(&[0; 3]);
            thread.call(libc::SYS_openat2, [AT_CWD, path, how, 24, 0, 0])
        }),
        probe("open a file by handle", Lives, |thread, _| {
            let handle = thread.place_words(&[8, 0]);
            thread.call(libc::SYS_open_by_handle_at, [AT_CWD, handle, 0, 0, 0, 0])
        }),
        probe("open the shadow file", Refused(libc::EACCES), |thread, _| open(thread, "/etc/shadow")),
        probe("list another class's cache", Refused(libc::EACCES), |thread, around| {
            open(thread, around.other_cache.to_str().expect("text"))
        }),
        probe("list a directory of the process's own user", Works, |thread, around| {
            open(thread, around.own_directory.path().to_str().expect("text"))
        }),
        probe("make a file", Works, |thread, _| {
            let name = thread.text("/tmp");
            let flags = flag(libc::O_TMPFILE | libc::O_WRONLY);
            thread.call(libc::SYS_openat, [AT_CWD, name, flags, 0o600, 0, 0])
        }),
        probe("remove a file of the process's own user", Works, |thread, around| {
            let name = thread.text(around.own_file().to_str().expect("text"));
            thread.call(libc::SYS_unlinkat, [AT_CWD, name, 0, 0, 0, 0])
        }),
        #[cfg(target_arch = "x86_64")]
        probe("remove a file of the process's own user with unlink", Works, |thread, around| {
            let name = thread.text(around.own_file().to_str().expect("text"));
            thread.call(libc::SYS_unlink, [name, 0, 0, 0, 0, 0])
        }),
        probe("write a file of the process's own user", Works, |thread, around| {
            let name = thread.text(around.own_file().to_str().expect("text"));
            thread.call(libc::SYS_openat, [AT_CWD, name, flag(libc::O_WRONLY), 0, 0, 0])
        }),
        probe("ask about a file", Works, |thread, _| {
            let name = thread.text("/etc/passwd");
            let answer = thread.place(&[0; 256]);
            thread.call(libc::SYS_newfstatat, [AT_CWD, name, answer, 0, 0, 0])
        })
        .but(&[
            (
                "supervisor",
                May("no Landlock right covers it: names, sizes and times of files are to be seen"),
            ),
            ("spawner", May("no Landlock right covers it: names, sizes and times of files are to be seen")),
            ("registry", May("no Landlock right covers it: names, sizes and times of files are to be seen")),
            ("builder", May("no Landlock right covers it: names, sizes and times of files are to be seen")),
        ]),
        probe("change the mode of a file", Lives, |thread, _| {
            let name = thread.text("/tmp/no/such/file");
            thread.call(libc::SYS_fchmodat, [AT_CWD, name, 0o777, 0, 0, 0])
        }),
        probe("make a set-user-ID file", Works, |thread, around| {
            let name = thread.text(around.own_directory.path().join("s").to_str().expect("text"));
            let flags = flag(libc::O_CREAT | libc::O_WRONLY);
            thread.call(libc::SYS_openat, [AT_CWD, name, flags, 0o4755, 0, 0])
        }),
        // Of whatever descriptor: standard error is there in every role.
        probe("give a file the set-user-ID bit", Lives, |thread, _| {
            thread.call(libc::SYS_fchmod, [2, 0o4755, 0, 0, 0, 0])
        }),
        probe("let others write what it makes", Works, |thread, _| thread.call(libc::SYS_umask, [0; 6])),
        probe("watch files", Works, |thread, _| thread.call(libc::SYS_inotify_init1, [0; 6])),
        probe("list the descriptors of a process", Works, |thread, _| open(thread, "/proc/self/fd")).but(&[
            ("supervisor", May("looks at each child before it gets traffic: /proc is allowed")),
            ("spawner", May("children check themselves before they are sealed: /proc is allowed")),
        ]),
    ]
}

pub(crate) fn no_socket_is_made_or_used() -> Vec<Probe> {
    vec![
        // One end of it can send to every datagram socket whose path may be reached: the journal's, for one.
        probe("a datagram socket by way of a pair", Works, |thread, _| {
            let ends = thread.place(&[0; 8]);
            let pair = (flag(libc::AF_UNIX), flag(libc::SOCK_DGRAM));
            thread.call(libc::SYS_socketpair, [pair.0, pair.1, 0, ends, 0, 0])
        }),
        probe("TCP socket", Works, |thread, _| socket(thread, libc::AF_INET, libc::SOCK_STREAM)),
        probe("TCP socket as for the collector", Works, |thread, _| collectors(thread)).but(&[
            ("exporter", May("the collector of traces: Landlock says which port, and here there is none")),
            ("spawner", May("the exporter is started under its filter; Landlock says which port")),
        ]),
        probe("connect by TCP", Refused(libc::EINPROGRESS), |thread, _| {
            then(collectors(thread), |fd| {
                let address = inet(thread);
                thread.call(libc::SYS_connect, [fd, address, 16, 0, 0, 0])
            })
        })
        .but(&[("exporter", Errno(libc::EACCES)), ("spawner", Errno(libc::EACCES))]),
        probe("connect by TCP without connect", Refused(libc::EINPROGRESS), |thread, _| {
            then(collectors(thread), |fd| {
                let (address, byte) = (inet(thread), thread.place(&[1]));
                let part = thread.place_words(&[byte, 1]);
                let message = thread.place_words(&[address, 16, part, 1, 0, 0, 0]);
                thread.call(libc::SYS_sendmsg, [fd, message, flag(libc::MSG_FASTOPEN), 0, 0, 0])
            })
        }),
        probe("UDP datagram", Works, |thread, _| {
            then(socket(thread, libc::AF_INET, libc::SOCK_DGRAM), |fd| {
                let address = inet(thread);
                thread.call(libc::SYS_sendto, [fd, address, 1, 0, address, 16])
            })
        }),
        probe("datagram to an address over what is there", Lives, |thread, _| {
            let address = inet(thread);
            thread.call(libc::SYS_sendto, [NONE, address, 1, 0, address, 16])
        }),
        probe("IPv6 socket", Lives, |thread, _| socket(thread, libc::AF_INET6, libc::SOCK_STREAM)),
        probe("netlink socket", Works, |thread, _| socket(thread, libc::AF_NETLINK, libc::SOCK_RAW)),
        probe("packet socket", Refused(libc::EPERM), |thread, _| {
            socket(thread, libc::AF_PACKET, libc::SOCK_RAW)
        }),
        probe("vsock socket", Lives, |thread, _| socket(thread, libc::AF_VSOCK, libc::SOCK_STREAM)),
        probe("connect to the service's own socket", Works, |thread, around| {
            let path = around.socket.to_str().expect("text").to_owned();
            then(socket(thread, libc::AF_UNIX, libc::SOCK_STREAM), |fd| {
                let address = thread.place(&unix(path.as_bytes()));
                thread.call(libc::SYS_connect, [fd, address, 3 + path.len() as u64, 0, 0, 0])
            })
        }),
        probe("connect to an abstract socket", Refused(libc::ECONNREFUSED), |thread, _| {
            then(socket(thread, libc::AF_UNIX, libc::SOCK_STREAM), |fd| {
                let address = thread.place(&unix(b"\0no such socket"));
                thread.call(libc::SYS_connect, [fd, address, 17, 0, 0, 0])
            })
        }),
        probe("connect what is there", Lives, |thread, _| {
            let address = thread.place(&unix(b"\0no such socket"));
            thread.call(libc::SYS_connect, [3, address, 17, 0, 0, 0])
        })
        .but(&[("exporter", Errno(libc::ECONNREFUSED)), ("spawner", Errno(libc::ECONNREFUSED))]),
        probe("bind", Lives, |thread, _| {
            let address = thread.place(&unix(b"\0portcullis"));
            thread.call(libc::SYS_bind, [3, address, 13, 0, 0, 0])
        }),
        probe("listen", Lives, |thread, _| thread.call(libc::SYS_listen, [3, 1, 0, 0, 0, 0])),
        probe("send many messages", Lives, |thread, _| {
            thread.call(libc::SYS_sendmmsg, [NONE, 0, 0, 0, 0, 0])
        }),
    ]
}

pub(crate) fn no_program_is_started() -> Vec<Probe> {
    vec![
        probe("run a program", Works, |thread, _| {
            let path = thread.text("/bin/true");
            let arguments = thread.place_words(&[path, 0]);
            thread.call(libc::SYS_execve, [path, arguments, 0, 0, 0, 0])
        }),
        probe("run a program with execveat", Works, |thread, _| {
            let path = thread.text("/bin/true");
            let arguments = thread.place_words(&[path, 0]);
            thread.call(libc::SYS_execveat, [AT_CWD, path, arguments, 0, 0, 0])
        }),
        probe("run a program with the flag for descriptors", Works, |thread, _| {
            let path = thread.text("/bin/true");
            let arguments = thread.place_words(&[path, 0]);
            let flags = flag(libc::AT_EMPTY_PATH);
            thread.call(libc::SYS_execveat, [AT_CWD, path, arguments, 0, flags, 0])
        }),
        probe("run a program made in memory", Works, |thread, _| {
            let name = thread.text("x");
            then(thread.call(libc::SYS_memfd_create, [name, 0, 0, 0, 0, 0]), |fd| {
                let bytes = smallest_program();
                let program = thread.place(&bytes);
                then(thread.call(libc::SYS_write, [fd, program, bytes.len() as u64, 0, 0, 0]), |_| {
                    let nothing = thread.text("");
                    let arguments = thread.place_words(&[nothing, 0]);
                    let flags = flag(libc::AT_EMPTY_PATH);
                    thread.call(libc::SYS_execveat, [fd, nothing, arguments, 0, flags, 0])
                })
            })
        })
        .but(&[(
            "spawner",
            May("starts programs by descriptor; what runs is under the same filter and Landlock"),
        )]),
        probe("make a file in memory", Works, |thread, _| {
            let name = thread.text("x");
            thread.call(libc::SYS_memfd_create, [name, 0, 0, 0, 0, 0])
        })
        .but(&[
            ("supervisor", May("assignments are files in memory")),
            ("spawner", May("its children make sealed files in memory")),
            ("registry", May("policies on their way to workers are sealed files in memory")),
            ("builder", May("what it compiled goes to the registry as a sealed file in memory")),
        ]),
    ]
}

pub(crate) fn no_mount_or_root_is_changed() -> Vec<Probe> {
    vec![
        probe("change directory", Works, |thread, _| {
            let path = thread.text("/tmp");
            thread.call(libc::SYS_chdir, [path, 0, 0, 0, 0, 0])
        })
        .but(&[("spawner", May("a child starts in /; without a right to files the place gives nothing"))]),
        probe("change root", Lives, |thread, _| {
            let path = thread.text("/tmp");
            thread.call(libc::SYS_chroot, [path, 0, 0, 0, 0, 0])
        }),
        probe("mount", Lives, |thread, _| thread.call(libc::SYS_mount, [0; 6])),
        probe("unmount", Lives, |thread, _| {
            let path = thread.text("/no/such/mount");
            thread.call(libc::SYS_umount2, [path, 0, 0, 0, 0, 0])
        }),
        probe("pivot root", Lives, |thread, _| {
            let path = thread.text("/no/such/root");
            thread.call(libc::SYS_pivot_root, [path, path, 0, 0, 0, 0])
        }),
        probe("open a filesystem", Lives, |thread, _| {
            let name = thread.text("tmpfs");
            thread.call(libc::SYS_fsopen, [name, 0, 0, 0, 0, 0])
        }),
        probe("open a tree", Lives, |thread, _| {
            let path = thread.text("/");
            thread.call(libc::SYS_open_tree, [AT_CWD, path, 0, 0, 0, 0])
        }),
        probe("move a mount", Lives, |thread, _| thread.call(libc::SYS_move_mount, [NONE, 0, NONE, 0, 0, 0])),
    ]
}

fn socket(thread: &mut Thread, family: i32, kind: i32) -> Answer {
    thread.call(libc::SYS_socket, [flag(family), flag(kind), 0, 0, 0, 0])
}

/// The one kind that an exporter may make.
fn collectors(thread: &mut Thread) -> Answer {
    socket(thread, libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
}

/// 127.0.0.1, the port for what is thrown away.
fn inet(thread: &mut Thread) -> u64 {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&libc::AF_INET.to_ne_bytes()[..2]);
    address[2..8].copy_from_slice(&[0, 9, 127, 0, 0, 1]);
    thread.place(&address)
}

fn unix(path: &[u8]) -> Vec<u8> {
    [&libc::AF_UNIX.to_ne_bytes()[..2], path, &[0]].concat()
}

/// An ELF file that does nothing but end well.
fn smallest_program() -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    // xor edi, edi; mov eax, 60; syscall
    const CODE: (u16, &[u8]) = (62, &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    #[cfg(target_arch = "aarch64")]
    // mov x0, 0; mov x8, 93; svc 0
    const CODE: (u16, &[u8]) = (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4]);
    const HEADERS: u64 = 64 + 56;
    const AT: u64 = 0x40_0000;
    let (machine, code) = CODE;
    let length = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |file: &mut Vec<u8>, numbers: &[u16]| {
        numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
    };
    // An executable, for this machine, version 1; where it begins, where its one program header is.
    halves(&mut file, &[2, machine, 1, 0]);
    [AT + HEADERS, 64, 0].iter().for_each(|number| file.extend(number.to_le_bytes()));
    halves(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // To be loaded, readable and executable: all of the file.
    halves(&mut file, &[1, 0, 5, 0]);
    [0, AT, AT, length, length, 4096].iter().for_each(|number| file.extend(number.to_le_bytes()));
    file.extend(code);
    file
}
