//! Generated from the profiles: each rule lives with arguments it allows, and dies with any condition broken.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::Signal;
use portcullis::sandbox::Role;
use serde_json::Value;

use crate::child::{End, KILLED_BY_FILTER, call, run_sealed};

/// One more than the largest number this kernel knows; what is added later has no rule either.
const NUMBERS: std::ops::Range<i64> = 0..480;

/// uretprobe and uprobe of x86-64: the kernel lets them by every filter, for its own trampolines. Called from anywhere
/// else they are refused or an illegal instruction.
const PROBES: [i64; 2] = [335, 336];

pub(crate) fn worker() {
    rules_of(Role::Worker);
}

pub(crate) fn frontend() {
    rules_of(Role::Frontend);
}

pub(crate) fn exporter() {
    rules_of(Role::Exporter);
}

pub(crate) fn gateway() {
    rules_of(Role::Gateway);
}

pub(crate) fn fetcher() {
    rules_of(Role::Fetcher);
}

/// Landlock's rules for TCP do not hold for MPTCP: a socket of it is not to be had.
pub(crate) fn no_other_protocol() {
    let made = |family: i32, protocol: i32| {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        run_sealed(Role::Fetcher, |_| {
            call(libc::SYS_socket, [family as u64, kind as u64, protocol as u64, 0, 0, 0]);
        })
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [libc::IPPROTO_MPTCP, libc::IPPROTO_SCTP, libc::IPPROTO_ICMP] {
            assert_eq!(made(family, protocol), KILLED_BY_FILTER, "{family} {protocol}");
        }
        for protocol in [0, libc::IPPROTO_TCP] {
            assert_eq!(made(family, protocol), allowed_end("socket"), "the control: {family} {protocol}");
        }
    }
}

/// A call that sends, with more flags, and the roles that have it.
type Way<'w> = (&'static str, &'w dyn Fn(u64) -> i64, &'static [Role]);

/// TCP Fast Open connects without connect(2), and Landlock's rules for ports are not asked.
pub(crate) fn no_fast_open() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port().to_be_bytes();
    let address = {
        let mut address = [0_u8; 16];
        address[..2].copy_from_slice(&libc::AF_INET.to_ne_bytes()[..2]);
        address[2..8].copy_from_slice(&[port[0], port[1], 127, 0, 0, 1]);
        address
    };
    let to = address.as_ptr() as u64;
    let bytes = b"hello";
    let part = [bytes.as_ptr() as u64, bytes.len() as u64];
    // msghdr, and mmsghdr with it: name, its length, parts, how many, no control, no flags, room for an answer.
    let message = [to, 16, part.as_ptr() as u64, 1, 0, 0, 0, 0_u64];
    let message = message.as_ptr() as u64;
    // The number that a sealed exporter may send messages to.
    let socket = || {
        call(libc::SYS_close, [3, 0, 0, 0, 0, 0]);
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        assert_eq!(call(libc::SYS_socket, [libc::AF_INET as u64, kind as u64, 0, 0, 0, 0]), 3);
    };
    let quiet = libc::MSG_NOSIGNAL as u64;
    let sendmsg = |flags: u64| call(libc::SYS_sendmsg, [3, message, quiet | flags, 0, 0, 0]);
    let sendmmsg = |flags: u64| call(libc::SYS_sendmmsg, [3, message, 1, quiet | flags, 0, 0]);
    let sendto = |flags: u64| {
        let [at, length] = part;
        call(libc::SYS_sendto, [3, at, length, quiet | flags, to, 16])
    };
    let (connects, tells) = (libc::MSG_FASTOPEN as u64, 0);
    let ways: [Way<'_>; 3] = [
        ("sendmsg", &sendmsg, &[Role::Exporter, Role::Spawner, Role::Fetcher]),
        ("sendmmsg", &sendmmsg, &[Role::Fetcher]),
        ("sendto", &sendto, &[Role::Fetcher]),
    ];
    for (name, way, roles) in ways {
        let unsealed = crate::child::run_unsealed(Role::Exporter, || {
            socket();
            let answer = way(connects);
            // It is on its way, or it has arrived.
            assert!(answer > 0 || answer == -i64::from(libc::EINPROGRESS), "{name}: errno {}", -answer);
        });
        assert_eq!(unsealed, End::Exit(0), "the control: {name}");
        listener.accept().expect("the control: it connects");
        for role in roles {
            let end = |flags| {
                run_sealed(*role, |_| {
                    socket();
                    way(flags);
                })
            };
            assert_eq!(end(connects), KILLED_BY_FILTER, "{role}: {name}");
            assert_eq!(end(tells), allowed_end(name), "the control: {role}: {name}");
        }
    }
    listener.set_nonblocking(true).expect("non-blocking");
    let came = listener.accept().map(drop).map_err(|why| why.kind());
    assert_eq!(came, Err(std::io::ErrorKind::WouldBlock));
}

pub(crate) fn builder() {
    rules_of(Role::Builder);
}

pub(crate) fn supervisor() {
    rules_of(Role::Supervisor);
}

pub(crate) fn spawner() {
    rules_of(Role::Spawner);
}

fn rules_of(role: Role) {
    let rules = read(role);
    let mut wrong = Vec::new();
    for rule in &rules {
        let end = run_sealed(role, |_| {
            call(rule.number, rule.arguments());
        });
        if end != allowed_end(&rule.name) {
            wrong.push(format!("{} with allowed arguments: {end:?}", rule.name));
        }
        for broken in rule.broken(&rules) {
            let end = run_sealed(role, |_| {
                call(rule.number, broken);
            });
            if end != KILLED_BY_FILTER {
                wrong.push(format!("{} with {broken:x?}: {end:?}", rule.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{role}:\n{}", wrong.join("\n"));
}

pub(crate) fn every_other_call_dies() {
    for role in Role::ALL {
        let listed: BTreeSet<i64> = read(role).iter().map(|rule| rule.number).collect();
        assert!(listed.len() >= 15);
        for number in NUMBERS.filter(|number| !listed.contains(number)) {
            if cfg!(target_arch = "x86_64") && PROBES.contains(&number) {
                continue;
            }
            let end = run_sealed(role, |_| {
                call(number, [0; 6]);
            });
            assert_eq!(end, KILLED_BY_FILTER, "{role}: system call {number}");
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Condition {
    index: usize,
    mask: u64,
    value: u64,
    holds: Holds,
}

/// For which arguments, of those bits that the mask has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    At,
    /// Every value but this one.
    Beside,
    Above,
}

impl Condition {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        let (argument, value) = (arguments[self.index] & self.mask, self.value & self.mask);
        match self.holds {
            Holds::At => argument == value,
            Holds::Beside => argument != value,
            Holds::Above => argument > value,
        }
    }
}

#[derive(Debug)]
struct Rule {
    name: String,
    number: i64,
    conditions: Vec<Condition>,
}

impl Rule {
    /// Arguments that satisfy the rule and otherwise mean nothing to the kernel: no descriptor, no memory, no length.
    fn arguments(&self) -> [u64; 6] {
        let mut arguments = [u64::MAX, 0, 0, 0, 0, 0];
        match self.name.as_str() {
            // Takes a new thread pointer only from the upper half, where it is refused.
            "arch_prctl" => arguments[1] = u64::MAX,
            // No descriptors, and back at once.
            "poll" => arguments = [0; 6],
            // A timeout that cannot be read; NULL would wait for ever.
            "ppoll" => arguments = [0, 0, u64::MAX, 0, 0, 0],
            // No process has that number.
            "kill" => arguments = [i32::MAX as u64, 0, 0, 0, 0, 0],
            "exit_group" => arguments = [0; 6],
            _ => {}
        }
        for condition in self.conditions.iter().filter(|condition| condition.holds == Holds::At) {
            let kept = arguments[condition.index] & !condition.mask;
            // What a condition does not look at is 0, except in a 32-bit argument given as -1.
            arguments[condition.index] = if kept == !condition.mask { 0 } else { kept } | condition.value;
        }
        arguments
    }

    /// For each condition, the allowed arguments with that one broken, so that no other rule of the call allows them.
    fn broken(&self, rules: &[Self]) -> Vec<[u64; 6]> {
        let same: Vec<_> = rules.iter().filter(|rule| rule.number == self.number).collect();
        let allowed = |arguments: &[u64; 6]| {
            same.iter().any(|rule| rule.conditions.iter().all(|condition| condition.holds(arguments)))
        };
        assert!(allowed(&self.arguments()), "{self:?} with {:x?}", self.arguments());
        self.conditions
            .iter()
            .flat_map(|condition| {
                if condition.holds != Holds::At {
                    let mut arguments = self.arguments();
                    arguments[condition.index] = condition.value;
                    assert!(!allowed(&arguments), "{self:?} cannot be broken");
                    return vec![arguments];
                }
                let flips = (0..64).map(|bit| 1_u64 << bit).filter(|bit| bit & condition.mask != 0);
                let broken: Vec<_> = flips
                    .map(|flip| {
                        let mut arguments = self.arguments();
                        arguments[condition.index] ^= flip;
                        arguments
                    })
                    .filter(|arguments| !allowed(arguments))
                    .collect();
                assert!(!broken.is_empty(), "{self:?} cannot be broken");
                // The lowest and the highest bit that matter, and one between.
                vec![broken[0], broken[broken.len() / 2], broken[broken.len() - 1]]
            })
            .collect()
    }
}

fn read(role: Role) -> Vec<Rule> {
    let file: Value = serde_json::from_str(role.profile()).expect("JSON");
    let numbers = numbers();
    file[role.name()]["filter"]
        .as_array()
        .expect("filter")
        .iter()
        .map(|rule| {
            let name = rule["syscall"].as_str().expect("name").to_owned();
            let number =
                *numbers.get(name.as_str()).unwrap_or_else(|| panic!("add {name} to the test's table"));
            let conditions = rule["args"].as_array().into_iter().flatten().map(condition).collect();
            Rule { name, number, conditions }
        })
        .collect()
}

fn condition(json: &Value) -> Condition {
    let width = if json["type"] == "dword" { u64::from(u32::MAX) } else { u64::MAX };
    let mask = match &json["op"] {
        Value::String(op) if ["eq", "ne", "gt"].contains(&op.as_str()) => u64::MAX,
        op => op["masked_eq"].as_u64().expect("eq, ne, gt or masked_eq"),
    };
    Condition {
        index: json["index"].as_u64().expect("index") as usize,
        mask: mask & width,
        value: json["val"].as_u64().expect("val"),
        holds: match json["op"].as_str() {
            Some("ne") => Holds::Beside,
            Some("gt") => Holds::Above,
            _ => Holds::At,
        },
    }
}

/// How a process ends that makes the call as allowed.
fn allowed_end(name: &str) -> End {
    match name {
        // There is no signal frame to return from: a crash, which ends as a panic does.
        "rt_sigreturn" => End::Signal(Signal::SIGABRT),
        _ => End::Exit(0),
    }
}

macro_rules! table {
    ($($name:ident)*) => {
        BTreeMap::from([$((stringify!($name).trim_start_matches("SYS_"), libc::$name)),*])
    };
}

/// Numbers of all calls in the profiles, from libc and not from the crate that compiles the profiles.
fn numbers() -> BTreeMap<&'static str, i64> {
    #[cfg_attr(target_arch = "aarch64", expect(unused_mut, reason = "nothing to add"))]
    let mut all = table![
        SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_gettime SYS_clone SYS_clone3
        SYS_close SYS_close_range SYS_connect SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_eventfd2
        SYS_execveat SYS_exit_group SYS_faccessat SYS_fchmod SYS_fcntl SYS_fstat
        SYS_fsync SYS_futex SYS_getcwd SYS_getdents64 SYS_geteuid SYS_getgid SYS_getpeername SYS_getpid
        SYS_getppid SYS_getrandom SYS_getsockname SYS_getsockopt SYS_gettid SYS_ioctl SYS_kill
        SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lseek SYS_madvise
        SYS_membarrier SYS_memfd_create SYS_mkdirat SYS_mmap SYS_mprotect SYS_munmap SYS_newfstatat
        SYS_openat SYS_ppoll SYS_prctl SYS_pread64 SYS_prlimit64 SYS_pwritev2
        SYS_read SYS_readlinkat SYS_recvfrom SYS_recvmsg SYS_renameat SYS_restart_syscall
        SYS_rseq SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sched_getaffinity SYS_sched_getattr
        SYS_sched_setattr SYS_sched_yield SYS_seccomp SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list SYS_set_tid_address SYS_setgroups SYS_setresgid
        SYS_setresuid SYS_setsid SYS_setsockopt SYS_shutdown SYS_sigaltstack SYS_socket SYS_socketpair SYS_statx
        SYS_tgkill SYS_timer_create SYS_timer_settime SYS_umask
        SYS_uname SYS_unlinkat SYS_wait4 SYS_waitid SYS_write SYS_writev
    ];
    #[cfg(target_arch = "x86_64")]
    all.append(&mut table![
        SYS_access SYS_arch_prctl SYS_dup2 SYS_epoll_wait SYS_mkdir SYS_poll SYS_readlink SYS_rename SYS_unlink
    ]);
    all
}
