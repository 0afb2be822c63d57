//! Open descriptors, number by number, against those the role is declared to have.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, TMPFS_MAGIC, fstatfs};

use super::Expectations;
use super::family;
use super::process::Subject;
use super::report::{Area, Findings, Verdict};
use super::view::{self, Unseen};
use crate::sandbox::{Declared, Role};
use crate::supervisor::config::Place;

/// Of one process's descriptors, until none vanishes meanwhile.
const LOOKS: usize = 20;
/// See [`crate::accounts`].
const ACCOUNTS: &str = "memfd:portcullis-accounts";
/// `__SO_ACCEPTCON` in `/proc/net/unix`: it listens.
const LISTENS: u64 = 1 << 16;

/// What a descriptor leads to, without the numbers that differ from one process to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    /// As the kernel's link says it.
    link: String,
    /// `socket`, `/dev/null`, `memfd:<name>`, `anon_inode:[..]`, `pagemap`, `program`, `control group`, or the link.
    kind: String,
}

/// Compares each descriptor with what its number is for, or with the kinds that may come later.
pub(super) fn check(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let Some(declared) = expected.declared(subject.role) else { return };
    let open = match all(subject.pid, expected) {
        Ok(open) => open,
        Err(unseen) => {
            return findings.add(Area::Descriptors, "descriptors", Verdict::unseen(&unseen, "a list"));
        }
    };
    let log = view::link(expected.supervisor, "fd/2").ok();
    kinds(&open, declared, log.as_deref(), &|place| expected.place(subject, place), findings);
    sockets(subject, &open, &expected.sockets, &listeners(subject.role, expected), findings);
    for (number, one) in open.iter().filter(|(_, one)| one.kind.starts_with("memfd:")) {
        let check = format!("{number} ({}) is sealed", one.kind);
        let place = view::place(subject.pid, &format!("fd/{number}"));
        // Numbers that are there to be written; nobody can change how many.
        let written = one.kind == ACCOUNTS;
        findings.add(
            Area::Descriptors,
            check,
            if written { resized_by_nobody(&place) } else { sealed(&place) },
        );
    }
}

/// A descriptor that was closed since the list was made may be open again under another number: then the whole list is
/// taken again, and what keeps changing has not been seen.
fn all(pid: i32, expected: &Expectations) -> Result<BTreeMap<i32, Open>, Unseen> {
    settled(|| once(pid, expected))
}

/// What all of which was seen at some look. `None` is one that something vanished from.
fn settled<T>(mut look: impl FnMut() -> Result<Option<T>, Unseen>) -> Result<T, Unseen> {
    for _ in 0..LOOKS {
        if let Some(open) = look()? {
            return Ok(open);
        }
    }
    Err(Unseen::Hidden(format!("descriptors came and went during each of {LOOKS} looks; look again")))
}

fn once(pid: i32, expected: &Expectations) -> Result<Option<BTreeMap<i32, Open>>, Unseen> {
    let mut open = BTreeMap::new();
    for number in view::numbers(pid, "fd")? {
        match view::link(pid, &format!("fd/{number}")) {
            Ok(link) => {
                let kind = kind(pid, number, &link, expected.programs().as_deref());
                open.insert(number, Open { link, kind });
            }
            Err(Unseen::Gone) => return Ok(None),
            Err(unseen) => return Err(unseen),
        }
    }
    Ok(Some(open))
}

fn kind(pid: i32, number: i32, link: &str, programs: Option<&Path>) -> String {
    let alone = link.strip_suffix(" (deleted)").unwrap_or(link);
    if link.starts_with("socket:[") {
        return "socket".to_owned();
    }
    if let Some(name) = alone.strip_prefix("/memfd:") {
        return format!("memfd:{name}");
    }
    if link == format!("/proc/{pid}/pagemap") {
        return "pagemap".to_owned();
    }
    if link == "/dev/null" && !is_null(pid, number) {
        return "something else that is called /dev/null".to_owned();
    }
    if is_of_a_class(link) && is_control_group(pid, number) {
        return "control group".to_owned();
    }
    let is_program = |name: &str| programs.is_some_and(|directory| Path::new(link) == directory.join(name));
    let started = ["frontend", "worker", "registry", "builder", "exporter", "gateway"];
    if started.into_iter().any(|role| is_program(&format!("portcullis-{role}"))) {
        return "program".to_owned();
    }
    link.to_owned()
}

/// `.../class-<name>/pids.max` and others that the supervisor holds.
fn is_of_a_class(link: &str) -> bool {
    let path = Path::new(link);
    let group = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    let file = path.file_name().and_then(|name| name.to_str());
    group.is_some_and(|group| group.starts_with("class-"))
        && file
            .is_some_and(|file| ["cgroup.procs", "memory.max", "memory.events", "pids.max"].contains(&file))
}

/// And no file of that name elsewhere.
fn is_control_group(pid: i32, number: i32) -> bool {
    let path = view::place(pid, &format!("fd/{number}"));
    nix::sys::statfs::statfs(&path).is_ok_and(|there| there.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Memory's null device, number 1:3, and no file of that name.
fn is_null(pid: i32, number: i32) -> bool {
    let path = view::place(pid, &format!("fd/{number}"));
    let null = nix::sys::stat::makedev(1, 3);
    path.metadata().is_ok_and(|file| file.file_type().is_char_device() && file.rdev() == null)
}

fn kinds(
    open: &BTreeMap<i32, Open>,
    declared: &Declared,
    log: Option<&str>,
    place: &dyn Fn(&str) -> Option<PathBuf>,
    findings: &mut Findings,
) {
    let mut later: BTreeMap<&str, usize> =
        declared.descriptors.later.iter().map(|kind| (kind.is.as_str(), 0)).collect();
    let mut inherited: BTreeMap<i32, &str> = BTreeMap::new();
    for one in declared.descriptors.inherited.iter().filter(|one| !one.closed_when_sealed) {
        // Where it was not given one, the number is anything else's.
        if one.optional && open.get(&one.number).is_some_and(|found| found.kind != one.is) {
            continue;
        }
        inherited.insert(one.number, &one.is);
        let verdict = match (open.get(&one.number), one.is.as_str()) {
            (None, _) if one.optional => Verdict::ok("not open"),
            (None, is) => Verdict::different("not open", is),
            (Some(_), "any") => Verdict::ok("any"),
            (Some(found), "log") => match log {
                // What it is like is the service manager's choice.
                Some(log) => Verdict::compare(&found.link, log),
                None => Verdict::hidden("the supervisor's standard error cannot be seen"),
            },
            (Some(found), is) => Verdict::compare(&found.kind, is),
        };
        findings.add(Area::Descriptors, one.number.to_string(), verdict);
    }
    let places: Vec<(&str, Option<PathBuf>)> =
        later.keys().filter_map(|kind| Some((*kind, place(braced(kind)?)))).collect();
    for (number, found) in open.iter().filter(|(number, _)| !inherited.contains_key(number)) {
        let is_below = |path: &PathBuf| Path::new(&found.link).starts_with(path);
        let below = places.iter().find(|(_, path)| path.as_ref().is_some_and(is_below));
        let kind = below.map_or(found.kind.as_str(), |(kind, _)| kind);
        if let Some(count) = later.get_mut(kind) {
            *count += 1;
            continue;
        }
        let verdict = if found.link.starts_with('/') && places.iter().any(|(_, path)| path.is_none()) {
            Verdict::hidden("takes the configuration, which cannot be read; --config")
        } else {
            Verdict::different(&found.link, "closed, or of a declared kind")
        };
        findings.add(Area::Descriptors, number.to_string(), verdict);
    }
    for (kind, count) in later {
        findings.add(Area::Descriptors, format!("others: {kind}"), Verdict::ok(&count.to_string()));
    }
}

/// `store` of `{store}`: the directory of that name, and all that is in it.
fn braced(kind: &str) -> Option<&str> {
    kind.strip_prefix('{')?.strip_suffix('}')
}

/// Who listens at what.
struct Listeners {
    /// `None`: only the configuration could say.
    count: Option<usize>,
    /// TCP is nothing out of the ordinary, on an address that only this machine reaches.
    tcp: bool,
}

fn listeners(role: Role, expected: &Expectations) -> Listeners {
    let config = expected.configuration.as_ref().ok().map(|configuration| &configuration.config);
    let telemetry = config.map(|config| {
        let listen = config.telemetry.as_ref().map(|telemetry| telemetry.listen.is_some());
        listen.map_or((0, false), |tcp| (1 + usize::from(tcp), tcp))
    });
    let (count, tcp) = telemetry.map_or((None, true), |(count, tcp)| (Some(count), tcp));
    let gateway = config.map(|config| {
        let listeners = config.gateway.iter().flat_map(|gateway| &gateway.listeners);
        (listeners.clone().count(), listeners.clone().any(|one| matches!(one.place, Place::Tcp(_))))
    });
    let (proxies, proxies_by_tcp) = gateway.map_or((None, true), |(count, tcp)| (Some(count), tcp));
    match role {
        Role::Supervisor => {
            let all = count.zip(proxies).map(|(count, proxies)| 2 + count + proxies);
            Listeners { count: all, tcp: tcp || proxies_by_tcp }
        }
        Role::Exporter => Listeners { count, tcp },
        Role::Gateway => Listeners { count: proxies, tcp: proxies_by_tcp },
        Role::Frontend => Listeners { count: Some(2), tcp: false },
        _ => Listeners { count: Some(0), tcp: false },
    }
}

/// Every socket is a Unix one, but for telemetry's and the gateway's where they are asked over TCP, and nobody listens but those who hold the service's sockets. The first
/// the kernel says of each; the second only lists say, one for each network namespace.
fn sockets(
    subject: &Subject,
    open: &BTreeMap<i32, Open>,
    everywhere: &OnceCell<BTreeMap<u64, bool>>,
    expected: &Listeners,
    findings: &mut Findings,
) {
    let check = "sockets";
    let here = match listed(subject.pid) {
        Ok(sockets) => sockets,
        Err(unseen) => return findings.add(Area::Descriptors, check, Verdict::unseen(&unseen, "a list")),
    };
    let mut listening = 0_usize;
    let mut count = 0_usize;
    let mut unlisted = 0_usize;
    for (number, one) in open.iter().filter(|(_, one)| one.kind == "socket") {
        let Some(inode) = inode(&one.link) else { continue };
        let place = format!("fd/{number}");
        let family = family::of(&view::place(subject.pid, &place));
        // It may be another namespace's.
        let listens =
            here.get(&inode).or_else(|| everywhere.get_or_init(listed_everywhere).get(&inode)).copied();
        if view::link(subject.pid, &place).ok().as_ref() != Some(&one.link) {
            // Closed by now.
            continue;
        }
        count += 1;
        match family {
            Ok(family) if family::is_unix(&family) => {}
            Ok(family) if expected.tcp && family::is_tcp(&family) => {
                if listens.is_none() {
                    let what = format!("{number} is on an address of this machine alone");
                    findings.add(
                        Area::Descriptors,
                        what,
                        Verdict::different("on another", "127.0.0.1 or ::1"),
                    );
                }
            }
            Ok(family) => {
                let what = format!("{number} is a Unix socket");
                findings.add(Area::Descriptors, what, Verdict::different(&family, "UNIX"));
            }
            Err(unseen) => {
                let what = format!("{number} is a Unix socket");
                findings.add(Area::Descriptors, what, Verdict::unseen(&unseen, "UNIX"));
            }
        }
        match listens {
            Some(true) => listening += 1,
            Some(false) => {}
            None => unlisted += 1,
        }
    }
    if unlisted > 0 {
        let why =
            "whether they listen is in no list: their clients' network namespaces have no process any more";
        findings.add(Area::Descriptors, format!("{unlisted} sockets"), Verdict::invisible(why));
    }
    let verdict = match expected.count {
        Some(count) => Verdict::compare(listening, count),
        None => Verdict::hidden("takes the configuration, which cannot be read; --config"),
    };
    findings.add(Area::Descriptors, "listening sockets", verdict);
    findings.add(Area::Descriptors, check, Verdict::ok(&format!("{count} looked at")));
}

/// The sockets of every network namespace there is: a connection belongs to that of who connected, what listens to the
/// service manager's.
fn listed_everywhere() -> BTreeMap<u64, bool> {
    let mut sockets = BTreeMap::new();
    let mut seen = BTreeSet::new();
    // Not being shown one can only make a difference more, not one less.
    for pid in view::processes().unwrap_or_default() {
        let Ok(namespace) = view::link(pid, "ns/net") else { continue };
        if !seen.contains(&namespace)
            && let Ok(there) = listed(pid)
        {
            seen.insert(namespace);
            sockets.extend(there);
        }
    }
    sockets
}

/// Inodes of the Unix sockets of a process's network namespace, and of its TCP sockets on addresses that only this machine
/// reaches; and whether each listens.
fn listed(pid: i32) -> Result<BTreeMap<u64, bool>, Unseen> {
    let mut sockets = unix_sockets(&view::text(pid, "net/unix")?);
    for list in ["net/tcp", "net/tcp6"] {
        // The second is not there without IPv6.
        sockets.extend(tcp_sockets(&view::text(pid, list).unwrap_or_default()));
    }
    Ok(sockets)
}

/// Of `/proc/net/tcp` and `tcp6`. Addresses are in the machine's order of bytes, four at a time.
fn tcp_sockets(text: &str) -> BTreeMap<u64, bool> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, _port) = fields.get(1)?.split_once(':')?;
        let own = match address.len() {
            8 => u32::from_str_radix(address, 16).ok()?.to_ne_bytes()[0] == 127,
            32 => {
                let (zeros, last) = address.split_at_checked(24)?;
                let one = u32::from_str_radix(last, 16).ok()?.to_ne_bytes() == [0, 0, 0, 1];
                one && zeros.bytes().all(|digit| digit == b'0')
            }
            _ => false,
        };
        let listens = *fields.get(3)? == "0A";
        own.then_some((fields.get(9)?.parse().ok()?, listens))
    };
    text.lines().skip(1).filter_map(line).collect()
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Inodes of `/proc/net/unix`, and whether each listens.
fn unix_sockets(text: &str) -> BTreeMap<u64, bool> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = u64::from_str_radix(fields.get(3)?, 16).ok()?;
        Some((fields.get(6)?.parse().ok()?, flags & LISTENS != 0))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Whether nobody can change the memory file behind a link of `/proc` any more.
pub(super) fn sealed(link: &Path) -> Verdict {
    has_seals(link, &SEALS)
}

/// Whether nobody can make it longer or shorter.
fn resized_by_nobody(link: &Path) -> Verdict {
    let [_write, resize @ ..] = SEALS;
    has_seals(link, &resize)
}

const SEALS: [(SealFlag, &str); 4] = [
    (SealFlag::F_SEAL_WRITE, "write"),
    (SealFlag::F_SEAL_GROW, "grow"),
    (SealFlag::F_SEAL_SHRINK, "shrink"),
    (SealFlag::F_SEAL_SEAL, "seal"),
];

fn has_seals(link: &Path, needed: &[(SealFlag, &str)]) -> Verdict {
    let expected = needed.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
    let file = match memory_file(link) {
        Ok(Some(file)) => file,
        Ok(None) => return Verdict::different("no memory file", &expected),
        Err(error) => return Verdict::unseen(&Unseen::of(link, &error), &expected),
    };
    match fcntl(&file, FcntlArg::F_GET_SEALS) {
        Ok(bits) => {
            let seals = SealFlag::from_bits_retain(bits);
            let found = needed.iter().filter(|(seal, _)| seals.contains(*seal)).map(|(_, name)| *name);
            Verdict::compare(found.collect::<Vec<_>>().join(", "), expected)
        }
        Err(errno) => Verdict::different(&format!("no memory file ({errno})"), &expected),
    }
}

/// Whoever has it chose its name, and may swap it for a device or what waits: so it is opened for reading only after a
/// look at what it is, and then that very file. `None` if it cannot be a memory file.
fn memory_file(link: &Path) -> io::Result<Option<File>> {
    let open = |flags: OFlag, path: &Path| File::options().read(true).custom_flags(flags.bits()).open(path);
    let place = open(OFlag::O_PATH, link)?;
    if !place.metadata()?.is_file() || fstatfs(&place)?.filesystem_type() != TMPFS_MAGIC {
        return Ok(None);
    }
    let itself = format!("/proc/self/fd/{}", place.as_raw_fd());
    open(OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Path::new(&itself)).map(Some)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    use super::*;
    use crate::artifact::SealedBytes;
    use crate::wire::control::ProcessState;

    fn open(list: &[(i32, &str, &str)]) -> BTreeMap<i32, Open> {
        let one = |(number, link, kind): &(i32, &str, &str)| {
            (*number, Open { link: (*link).to_owned(), kind: (*kind).to_owned() })
        };
        list.iter().map(one).collect()
    }

    const WORKER: [(i32, &str, &str); 7] = [
        (0, "/dev/null", "/dev/null"),
        (1, "/var/log/p", "/var/log/p"),
        (2, "/var/log/p", "/var/log/p"),
        (3, "socket:[3]", "socket"),
        (5, "socket:[5]", "socket"),
        (6, "socket:[6]", "socket"),
        (7, "anon_inode:[eventfd]", "anon_inode:[eventfd]"),
    ];

    fn differences(list: &[(i32, &str, &str)]) -> Vec<String> {
        said_of(Role::Worker, list, |_| panic!("a worker has no directory"))
    }

    fn said_of(
        role: Role,
        list: &[(i32, &str, &str)],
        place: impl Fn(&str) -> Option<PathBuf>,
    ) -> Vec<String> {
        let declared = Declared::of(role).unwrap();
        let mut findings = Findings::of_service();
        kinds(&open(list), &declared, Some("/var/log/p"), &place, &mut findings);
        let different = findings.list.into_iter().filter_map(|finding| match finding.verdict {
            Verdict::Different { found, .. } => Some(format!("{}: {found}", finding.check)),
            Verdict::NotVisible { .. } => Some(format!("{}: not visible", finding.check)),
            Verdict::AsDeclared { .. } => None,
        });
        different.collect()
    }

    #[test]
    fn what_is_declared_may_be_open() {
        assert_eq!(differences(&WORKER), [""; 0]);
        // The assignment's number is free again when it was read.
        assert_eq!(differences(&[&WORKER[..], &[(4, "/proc/1/pagemap", "pagemap")]].concat()), [""; 0]);
    }

    #[test]
    fn what_is_not_declared_or_not_there_is_a_difference() {
        for (extra, said) in [
            ((8, "/", "/"), "8: /"),
            ((8, "/dev/kvm", "/dev/kvm"), "8: /dev/kvm"),
            ((8, "/memfd:x (deleted)", "memfd:x"), "8: /memfd:x (deleted)"),
            ((4, "/memfd:assignment (deleted)", "memfd:assignment"), "4: /memfd:assignment (deleted)"),
            ((8, "/dev/null", "/dev/null"), "8: /dev/null"),
            ((8, "pipe:[9]", "pipe:[9]"), "8: pipe:[9]"),
        ] {
            assert_eq!(differences(&[&WORKER[..], &[extra]].concat()), [said]);
        }
        let without = |number| WORKER.into_iter().filter(|(n, ..)| *n != number).collect::<Vec<_>>();
        assert_eq!(differences(&without(5)), ["5: not open"]);
        let other_log = [&without(2)[..], &[(2, "/tmp/x", "/tmp/x")]].concat();
        assert_eq!(differences(&other_log), ["2: /tmp/x"]);
    }

    #[test]
    fn files_are_those_of_the_declared_directories() {
        let registry = [&WORKER[..4], &[(4, "/var/state", "/var/state")]].concat();
        let places = |name: &str| Some(Path::new("/var").join(name));
        assert_eq!(said_of(Role::Registry, &registry, places), [""; 0]);
        for within in ["/var/store/acme/gate.tar", "/var/state/table (deleted)"] {
            let list = [&registry[..], &[(9, within, within)]].concat();
            assert_eq!(said_of(Role::Registry, &list, places), [""; 0]);
        }
        for outside in ["/var", "/var/stores/x", "/var/cache/x", "/etc/passwd", "pipe:[7]"] {
            let list = [&registry[..], &[(9, outside, outside)]].concat();
            assert_eq!(said_of(Role::Registry, &list, places), [format!("9: {outside}")]);
        }
        // Where they are only the configuration says.
        let list = [&registry[..], &[(9, "pipe:[7]", "pipe:[7]")]].concat();
        assert_eq!(said_of(Role::Registry, &list, |_| None), ["4: not visible", "9: pipe:[7]"]);
    }

    #[test]
    fn links_are_named_by_kind() {
        let programs = Path::new("/usr/libexec");
        for (link, is) in [
            ("socket:[77]", "socket"),
            ("/memfd:portcullis-policy (deleted)", "memfd:portcullis-policy"),
            ("/proc/7/pagemap", "pagemap"),
            ("/proc/8/pagemap", "/proc/8/pagemap"),
            ("/usr/libexec/portcullis-worker", "program"),
            ("/usr/libexec/portcullis-worker (deleted)", "/usr/libexec/portcullis-worker (deleted)"),
            ("/usr/libexec/bash", "/usr/libexec/bash"),
            ("anon_inode:[eventpoll]", "anon_inode:[eventpoll]"),
        ] {
            assert_eq!(kind(7, 9, link, Some(programs)), is);
        }
        // Only a device is /dev/null.
        assert_ne!(kind(i32::MAX, 0, "/dev/null", None), "/dev/null");
    }

    #[test]
    fn what_vanishes_while_it_is_looked_at_is_looked_at_again_and_finally_hidden() {
        let mut looks = 0;
        let vanishing = |times: usize, looks: &mut usize| {
            settled(|| {
                *looks += 1;
                Ok((*looks > times).then_some("all"))
            })
        };
        assert_eq!((vanishing(1, &mut looks), looks), (Ok("all"), 2));
        looks = 0;
        assert!(matches!(vanishing(usize::MAX, &mut looks), Err(Unseen::Hidden(_))));
        assert_eq!(looks, LOOKS);
    }

    #[test]
    fn lists_of_sockets_that_make_no_sense_have_no_sockets_in_them() {
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        let lines = "0000000000000000: 00000002 00000000 00010000 0001 01 4022387 /run/x y\n\
                     0000000000000000: 00000003 00000000 00000000 0005 03 4022394\n\
                     0000000000000000: 00000003 00000000 zzzz 0005 03 1\n\
                     : \n\n\
                     0000000000000000: 00000003 00000000 00000000 0005 03 -7\n";
        let sockets = unix_sockets(&format!("{head}{lines}"));
        assert_eq!(sockets, BTreeMap::from([(4_022_387, true), (4_022_394, false)]));
        assert_eq!((inode("socket:[7]"), inode("socket:[x]"), inode("pipe:[7]")), (Some(7), None, None));
    }

    /// The kernel's lists, with sockets that a worker has no way to make.
    #[test]
    fn sockets_of_other_families_and_listening_ones_are_noticed() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let subject = Subject {
            role: Role::Worker,
            class: None,
            generation: 1,
            pid,
            uid: 0,
            state: ProcessState::Serving,
            threads: None,
            ready: None,
        };
        let differences = |socket: &dyn AsRawFd| {
            let number = socket.as_raw_fd();
            let link = view::link(pid, &format!("fd/{number}")).unwrap();
            let kind = kind(pid, number, &link, None);
            let mut findings = Findings::of_service();
            sockets(
                &subject,
                &BTreeMap::from([(number, Open { link, kind })]),
                &OnceCell::new(),
                &Listeners { count: Some(0), tcp: false },
                &mut findings,
            );
            let different = findings.list.into_iter().filter_map(|finding| match finding.verdict {
                Verdict::Different { found, .. } => Some(format!("{}: {found}", finding.check)),
                _ => None,
            });
            different.collect::<Vec<_>>()
        };
        let (connected, _peer) = UnixStream::pair().unwrap();
        assert_eq!(differences(&connected), [""; 0]);
        let name = SocketAddr::from_abstract_name(format!("portcullis-test-{pid}")).unwrap();
        let listening = UnixListener::bind_addr(&name).unwrap();
        assert_eq!(differences(&listening), ["listening sockets: 1"]);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let said = format!("{} is a Unix socket: UDP", udp.as_raw_fd());
        assert_eq!(differences(&udp), [said]);
    }

    #[test]
    fn seals_are_read_from_the_file_itself() {
        let bytes = SealedBytes::of(b"x").unwrap();
        assert!(matches!(sealed(&bytes.path()), Verdict::AsDeclared { .. }));
        let open =
            nix::sys::memfd::memfd_create("portcullis-policy", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING);
        let open = File::from(open.unwrap());
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
        assert!(matches!(sealed(Path::new(&path)), Verdict::Different { .. }));
        // What is something else is not opened: a socket's file would not let itself be.
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("memfd:x");
        let _listener = UnixListener::bind(&socket).unwrap();
        for other in [&socket, Path::new("/dev/null"), Path::new("/proc/self/status")] {
            let Verdict::Different { found, .. } = sealed(other) else { panic!("{other:?}") };
            assert_eq!(found, "no memory file", "{other:?}");
        }
    }
}
