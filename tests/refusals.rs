//! Each layer made unavailable in turn: the service does not start, and says what to do. Nothing ever runs with less.
//!
//! As root, which is who can give roles UIDs of their own. The control is [`it_starts_where_nothing_is_missing`]: the same
//! site, the same start, and no layer taken away.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says no by panicking"
)]

mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use support::{FIRST_CLASS_UID, Site, is_root};

/// EX_UNAVAILABLE and EX_CONFIG of sysexits.h: the service cannot run here; the configuration is wrong.
const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;

fn site() -> Site {
    Site::new().class("one", "").tenant("acme", "one", &[("hash", "hash")], "")
}

/// Starts the service after `spoil` has done something to its process, and returns how it ended and what it said.
fn end_of(
    site: &Site,
    spoil: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> (Option<i32>, String) {
    match start(site, spoil) {
        Ok(said) => panic!("it started:\n{said}"),
        Err(end) => end,
    }
}

/// What it said until it was ready, and no more of it; or how it ended, and what it said.
fn start(
    site: &Site,
    spoil: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> Result<String, (Option<i32>, String)> {
    fs::write(site.path("portcullis.toml"), site.config()).unwrap();
    site.make_state();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-supervisor"));
    command.arg("--config").arg(site.path("portcullis.toml")).stdin(Stdio::null());
    #[expect(unsafe_code, reason = "pre_exec has no safe form")]
    // SAFETY: what the tests do there is a few system calls; programs were made before the fork.
    unsafe {
        command.pre_exec(spoil)
    };
    let mut service = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(service.stderr.take().unwrap()).lines() {
        said += &(line.unwrap() + "\n");
        if said.ends_with("portcullis-supervisor: ready\n") {
            service.kill().unwrap();
            service.wait().unwrap();
            return Ok(said);
        }
    }
    let status = service.wait().unwrap();
    // Nobody is left who could answer.
    assert!(!site.path("run/decide.sock").exists(), "a socket is left: {said}");
    Err((status.code(), said))
}

/// A filter as an outer sandbox would have it: these calls fail, all others pass.
fn without(calls: &[i64], errno: Errno) -> BpfProgram {
    let rules = calls.iter().map(|call| (*call, vec![])).collect();
    filter(rules, errno)
}

fn filter(rules: std::collections::BTreeMap<i64, Vec<SeccompRule>>, errno: Errno) -> BpfProgram {
    let refuse = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap().try_into().unwrap()
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(io::Error::other)
}

#[track_caller]
fn refused_without(calls: &[i64], errno: Errno, expected: &[&str]) {
    let program = without(calls, errno);
    let (code, said) = end_of(&site(), move || apply(&program));
    assert_eq!(code, Some(UNAVAILABLE), "{said}");
    for part in expected {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

#[test]
fn it_starts_where_nothing_is_missing() {
    let service = site().start();
    let decision = service.ask("acme", "hash", b"x");
    assert!(decision.digest.is_some(), "{decision:?}\n{}", service.log());
    drop(service);
    // An outer filter by itself is no reason to refuse.
    let program = without(&[libc::SYS_mount], Errno::EPERM);
    let started = std::panic::catch_unwind(|| end_of(&site(), move || apply(&program)));
    let said = started.expect_err("it starts");
    assert!(said.downcast_ref::<String>().is_some_and(|said| said.starts_with("it started:")), "{said:?}");
}

#[test]
fn without_landlock_it_does_not_start() {
    if !is_root() {
        return;
    }
    // ENOSYS and EOPNOTSUPP: kernels without it. EPERM: an outer sandbox.
    for errno in [Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EPERM] {
        refused_without(
            &[libc::SYS_landlock_create_ruleset],
            errno,
            &["enforce Landlock: the kernel does not offer ABI 6", "/sys/kernel/security/lsm"],
        );
    }
    refused_without(
        &[libc::SYS_landlock_restrict_self],
        Errno::EPERM,
        &["enforce Landlock: ", "a filter around the service that blocks landlock_restrict_self"],
    );
}

#[test]
fn without_seccomp_it_does_not_start() {
    refused_without(
        &[libc::SYS_seccomp],
        Errno::EPERM,
        &["apply seccomp profile of spawner: ", "the kernel or an outer filter refuses seccomp"],
    );
}

/// A unit whose filter blocks capset would otherwise leave every child what the supervisor had.
#[test]
fn without_capset_it_does_not_start() {
    if !is_root() {
        return;
    }
    refused_without(
        &[libc::SYS_capset],
        Errno::EPERM,
        &["a filter around the service that blocks capset or prctl does this"],
    );
}

/// One of the steps between fork and exec, which are the children's: the start is refused, not the step left out.
#[test]
fn without_any_step_of_giving_up_power_it_does_not_start() {
    if !is_root() {
        return;
    }
    let advice = "a filter or limit around the service does this";
    for (call, expected) in [
        (libc::SYS_setresuid, "change uid: "),
        (libc::SYS_setresgid, "change gid: "),
        (libc::SYS_setgroups, "drop supplementary groups: "),
        (libc::SYS_setsid, "start a session: "),
        (libc::SYS_chdir, "change to \"/\": "),
    ] {
        refused_without(&[call], Errno::EPERM, &[expected, advice]);
    }
}

#[test]
fn without_any_step_by_prctl_it_does_not_start() {
    for (option, expected) in [
        (libc::PR_SET_PDEATHSIG, "set the parent death signal: "),
        (libc::PR_SET_DUMPABLE, "clear PR_SET_DUMPABLE: "),
        (libc::PR_CAP_AMBIENT, "clear the ambient set: "),
        (libc::PR_SET_NO_NEW_PRIVS, "enforce Landlock: "),
    ] {
        let condition = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(option.unsigned_abs()),
        )
        .unwrap();
        let rule = SeccompRule::new(vec![condition]).unwrap();
        let program = filter([(libc::SYS_prctl, vec![rule])].into(), Errno::EPERM);
        let (code, said) = end_of(&site(), move || apply(&program));
        assert_eq!(code, Some(UNAVAILABLE), "{option}: {said}");
        assert!(said.contains(expected), "no {expected:?} in: {said}");
        assert!(said.contains("around the service"), "no way out in: {said}");
    }
}

/// What children may open is theirs to say; a shell's limits may be too low for it.
#[test]
fn with_too_few_descriptors_it_does_not_start() {
    for few in [16, 20] {
        let (code, said) = end_of(&site(), move || Ok(setrlimit(Resource::RLIMIT_NOFILE, few, few)?));
        assert_eq!(code, Some(UNAVAILABLE), "{few}: {said}");
        assert!(said.contains("LimitNOFILE="), "{few}: {said}");
    }
}

/// A service that cannot look at its children must not believe them.
#[test]
fn where_proc_hides_the_children_it_does_not_start() {
    if !is_root() {
        return;
    }
    let (code, said) = end_of(&site(), || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        Ok(mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("hidepid=ptraceable"))?)
    });
    assert_eq!(code, Some(UNAVAILABLE), "{said}");
    assert!(
        said.contains("witness spawner pid ") && said.contains("/proc must show other users' processes"),
        "{said}"
    );
}

#[test]
fn a_cache_that_others_could_read_or_that_is_not_the_classs_is_refused() {
    let own = nix::unistd::geteuid().as_raw();
    let class = if is_root() { FIRST_CLASS_UID } else { own };
    let of_one = site();
    fs::set_permissions(of_one.path("cache/one"), fs::Permissions::from_mode(0o750)).unwrap();
    refused_by_configuration(&of_one, &["cache", "mode 0750", "chmod"]);
    if is_root() {
        let of_one = site();
        chown(of_one.path("cache/one"), Some(class + 7), None).unwrap();
        let (wrong, right) = (format!("uid {}", class + 7), class.to_string());
        refused_by_configuration(&of_one, &["cache", &wrong, &right]);
    }
}

#[test]
fn a_state_that_others_could_read_or_that_is_not_the_registrys_is_refused() {
    let of_one = site();
    of_one.make_state();
    fs::set_permissions(of_one.path("state"), fs::Permissions::from_mode(0o750)).unwrap();
    refused_by_configuration(&of_one, &["state", "mode 0750", "chmod"]);
    if is_root() {
        let of_one = site();
        of_one.make_state();
        let registry = of_one.registry_uid();
        chown(of_one.path("state"), Some(registry + 7), None).unwrap();
        let (wrong, right) = (format!("uid {}", registry + 7), registry.to_string());
        refused_by_configuration(&of_one, &["state", &wrong, &right]);
    }
}

#[test]
fn uids_that_keep_nobody_apart_are_refused() {
    if !is_root() {
        return;
    }
    for (wrong, expected) in [
        (0, "is root"),
        (support::FRONTEND_UID, "uid: "),
        // Of nobody, and of whoever has no name on this machine.
        (65_534, "uid: "),
    ] {
        let mut site = site();
        site.tables = site.tables.replace(&format!("uid = {FIRST_CLASS_UID}"), &format!("uid = {wrong}"));
        refused_by_configuration(&site, &[expected, &wrong.to_string()]);
    }
}

#[test]
fn a_configuration_or_trust_policy_that_others_may_write_is_refused() {
    let site = site();
    fs::set_permissions(site.path("trust.toml"), fs::Permissions::from_mode(0o664)).unwrap();
    refused_by_configuration(&site, &["trust.toml", "chmod"]);
    fs::set_permissions(site.path("trust.toml"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(site.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    refused_by_configuration(&site, &["above it", "chmod"]);
}

/// A group of the unified hierarchy that was given nothing to hand down.
struct ControlGroup {
    outer: PathBuf,
    inner: PathBuf,
}

impl ControlGroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted = mounts
            .lines()
            .filter(|line| line.contains(" - cgroup2 "))
            .find_map(|line| line.split(' ').nth(4));
        let mounted = Path::new(mounted.expect(
            "no unified hierarchy of control groups; mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 \
             /sys/fs/cgroup/unified",
        ));
        let outer = mounted.join(format!("portcullis-refusals-{}", std::process::id()));
        let inner = outer.join("inner");
        fs::create_dir_all(&inner).unwrap();
        Self { outer, inner }
    }

    /// For [`start`]: goes there.
    fn enter(&self) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
        let entrance = fs::File::options().write(true).open(self.inner.join("cgroup.procs")).unwrap();
        move || (&entrance).write_all(b"0")
    }

    fn groups_within(&self) -> usize {
        fs::read_dir(&self.inner).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Killed children of the service may take a moment to be gone, and nothing tells of that but this.
        for path in [&self.inner, &self.outer] {
            while fs::remove_dir(path).is_err_and(|why| why.kind() == io::ErrorKind::ResourceBusy) {
                std::thread::yield_now();
            }
        }
    }
}

/// What the configuration limits is limited, or nothing runs. Shown where it is kept by the tests under systemd.
#[test]
fn limits_that_no_control_group_can_keep_are_refused() {
    if !is_root() {
        return;
    }
    let group = ControlGroup::new();
    for (limit, controller) in [("memory_max = \"64MiB\"\n", "memory"), ("tasks_max = 100000\n", "pids")] {
        let limited = Site::new().class("one", limit).tenant("acme", "one", &[("hash", "hash")], "");
        let (code, said) = end_of(&limited, group.enter());
        assert_eq!(code, Some(UNAVAILABLE), "{said}");
        for part in [
            &format!("control group {:?} has no controller {controller:?}", group.inner),
            "Delegate=memory pids and ProtectControlGroups=no",
            "or take memory_max and tasks_max out of the configuration",
        ] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
        assert_eq!(group.groups_within(), 0, "it was left as it was");
    }
    // Control: the same place, and nothing to be limited.
    let said = start(&site(), group.enter()).unwrap();
    assert!(!said.contains("limit classes"), "{said}");
    assert_eq!(group.groups_within(), 0, "nothing was asked for, nothing was touched");
}

#[track_caller]
fn refused_by_configuration(site: &Site, expected: &[&str]) {
    let (code, said) = end_of(site, || Ok(()));
    assert_eq!(code, Some(CONFIG), "{said}");
    for part in expected {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}
