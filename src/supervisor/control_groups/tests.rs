//! Against a directory that stands for a control group, whose files only keep what is written; and, as root, against the
//! kernel: a real group, real processes, and whichever controllers this machine's unified hierarchy has. What
//! `memory.max` and `pids.max` do to a worker is shown where that hierarchy has them, by the tests under systemd.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::supervisor::config::GroupLimits;
use crate::supervisor::generations::tests::config;

const PID: u32 = 4711;

fn limited(names: &[&str], group: GroupLimits) -> Vec<Class> {
    let mut classes = config(names).classes;
    classes.iter_mut().for_each(|class| class.group = group);
    classes
}

const BOTH: GroupLimits = GroupLimits { memory_max: Some(512 << 20), tasks_max: Some(64) };
const NEITHER: GroupLimits = GroupLimits { memory_max: None, tasks_max: None };

/// A delegated group, as far as files show.
struct StandIn(tempfile::TempDir);

impl StandIn {
    fn new() -> Self {
        let made = Self(tempfile::tempdir().expect("tempdir"));
        made.put("cgroup.controllers", "cpu memory pids\n");
        made.put("cgroup.events", "populated 1\nfrozen 0\n");
        made.put("cgroup.procs", &format!("{PID}\n"));
        made.put("cgroup.subtree_control", "");
        made.put("supervisor/cgroup.procs", "");
        for class in ["class-a", "class-b"] {
            for file in [
                "cgroup.procs",
                "memory.max",
                "memory.swap.max",
                "memory.oom.group",
                "memory.events",
                "pids.max",
            ] {
                made.put(&format!("{class}/{file}"), "");
            }
        }
        made
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    fn has(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).expect("read")
    }

    fn divide(&self, classes: &[Class]) -> Result<ControlGroups, ControlGroupError> {
        let classes: Vec<&Class> = classes.iter().collect();
        divide(self.path(), PID, &controllers(&classes), &classes)
    }

    #[track_caller]
    fn refused(&self, expected: &str) {
        let why = self.divide(&limited(&["a"], BOTH)).expect_err("refused").to_string();
        let why = why.replace(&self.path().display().to_string(), "@");
        assert!(why.starts_with(&format!("limit classes: {expected}; where the hierarchy of")), "{why}");
    }
}

#[test]
fn each_limited_class_gets_a_group_with_what_its_configuration_says() {
    let group = StandIn::new();
    group.divide(&limited(&["a", "b"], BOTH)).expect("divided");
    assert_eq!(group.has("supervisor/cgroup.procs"), "4711");
    assert_eq!(group.has("cgroup.subtree_control"), "+memory +pids");
    for class in ["class-a", "class-b"] {
        assert_eq!(group.has(&format!("{class}/memory.max")), "536870912");
        assert_eq!(group.has(&format!("{class}/memory.swap.max")), "0");
        assert_eq!(group.has(&format!("{class}/memory.oom.group")), "1");
        assert_eq!(group.has(&format!("{class}/pids.max")), "64");
        assert_eq!(group.has(&format!("{class}/cgroup.procs")), "", "nobody goes in by being limited");
    }
}

#[test]
fn only_the_controllers_that_are_needed_are_asked_for() {
    let group = StandIn::new();
    group.put("cgroup.controllers", "pids\n");
    group.divide(&limited(&["a"], GroupLimits { tasks_max: Some(64), ..NEITHER })).expect("divided");
    assert_eq!(group.has("cgroup.subtree_control"), "+pids");
    assert_eq!(group.has("class-a/memory.max"), "");

    let group = StandIn::new();
    group.put("cgroup.controllers", "memory\n");
    // A kernel without swap has no such file.
    fs::remove_file(group.path().join("class-a/memory.swap.max")).expect("remove");
    group.divide(&limited(&["a"], GroupLimits { memory_max: Some(16 << 20), ..NEITHER })).expect("divided");
    assert_eq!(group.has("cgroup.subtree_control"), "+memory");
    assert_eq!(group.has("class-a/pids.max"), "");
}

#[test]
fn without_a_limit_nothing_is_looked_at() {
    let groups = ControlGroups::prepare(&config(&["a", "b"])).expect("nothing to do");
    assert!(groups.classes.is_empty());
    assert!(groups.entrance(&TrustClass::new("a").expect("name")).is_none());
}

#[test]
fn a_group_without_the_controller_is_refused_and_left_as_it_is() {
    let group = StandIn::new();
    group.put("cgroup.controllers", "hugetlb cpu pids\n");
    group.refused("control group \"@\" has no controller \"memory\", it has \"hugetlb cpu pids\"");
    group.put("cgroup.controllers", "memory\n");
    group.refused("control group \"@\" has no controller \"pids\", it has \"memory\"");
    // Part of a name is not the name.
    group.put("cgroup.controllers", "memory2 pids\n");
    group.refused("control group \"@\" has no controller \"memory\", it has \"memory2 pids\"");
    assert_eq!(group.has("supervisor/cgroup.procs"), "");
    assert_eq!(group.has("cgroup.subtree_control"), "");
}

#[test]
fn a_group_that_is_not_this_services_own_is_refused_and_left_as_it_is() {
    let group = StandIn::new();
    group.put("cgroup.procs", &format!("{PID}\n99\n"));
    group.refused("process 99 is in control group \"@\" too");
    // One whose number cannot be told from here: of another PID namespace.
    group.put("cgroup.procs", &format!("0\n{PID}\n"));
    group.refused("process 0 is in control group \"@\" too");
    group.put("cgroup.procs", &format!("{PID}\n"));
    fs::remove_file(group.path().join("cgroup.events")).expect("remove");
    group.refused("control group \"@\" is the root of the hierarchy");
    assert_eq!(group.has("supervisor/cgroup.procs"), "");
    assert_eq!(group.has("cgroup.subtree_control"), "");
}

#[test]
fn what_cannot_be_made_or_written_is_named() {
    let group = StandIn::new();
    fs::remove_file(group.path().join("class-a/memory.max")).expect("remove");
    group.refused("open \"@/class-a/memory.max\": No such file or directory (os error 2)");
    fs::remove_dir_all(group.path().join("supervisor")).expect("remove");
    group.refused("open \"@/supervisor/cgroup.procs\": No such file or directory (os error 2)");
    assert!(!group.path().join("supervisor").exists(), "it is as it was");
    fs::remove_file(group.path().join("cgroup.controllers")).expect("remove");
    group.refused("read \"@/cgroup.controllers\": No such file or directory (os error 2)");
}

/// Root may write everything, so this is another user.
#[test]
fn a_group_of_somebody_else_is_refused() {
    let group = StandIn::new();
    fs::remove_dir_all(group.path().join("supervisor")).expect("remove");
    fs::set_permissions(group.path(), fs::Permissions::from_mode(0o555)).expect("chmod");
    let own = nix::unistd::geteuid();
    if own.is_root() {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(61_001));
    }
    group.refused("make control group \"@/supervisor\": Permission denied (os error 13)");
    nix::unistd::setfsuid(own);
    fs::set_permissions(group.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
}

#[test]
fn a_reload_changes_the_numbers() {
    let group = StandIn::new();
    let mut other = config(&["a", "b"]);
    let mut classes = limited(&["a", "b"], BOTH);
    classes[1].group = NEITHER;
    other.classes = classes;
    let only_a: Vec<&Class> = other.classes.iter().filter(|class| is_limited(class)).collect();
    let groups = divide(group.path(), PID, &controllers(&only_a), &only_a).expect("divided");
    other.classes[0].group = GroupLimits { memory_max: Some(256 << 20), tasks_max: Some(99) };
    groups.set(&other).expect("set");
    assert_eq!(group.has("class-a/memory.max"), "268435456");
    assert_eq!(group.has("class-a/pids.max"), "99");
    assert_eq!(group.has("class-b/memory.max"), "");
}

#[test]
fn each_death_for_want_of_memory_is_told_once() {
    let group = StandIn::new();
    let name = TrustClass::new("a").expect("name");
    let events =
        |kills: u32| group.put("class-a/memory.events", &format!("max 9\noom 7\noom_kill {kills}\n"));
    // From an earlier life of the service.
    events(3);
    let mut groups = group.divide(&limited(&["a"], BOTH)).expect("divided");
    assert!(!groups.ran_out_of_memory(&name));
    events(5);
    assert!(groups.ran_out_of_memory(&name));
    assert!(groups.ran_out_of_memory(&name), "both of the two");
    assert!(!groups.ran_out_of_memory(&name));
    assert!(!groups.ran_out_of_memory(&TrustClass::new("b").expect("name")), "a class without a limit");
    group.put("class-a/memory.events", "nonsense");
    assert!(!groups.ran_out_of_memory(&name));
}

#[test]
fn sizes_are_said_as_they_are_written() {
    let said = [1 << 40, 512 << 20, 3 << 10, (1 << 20) + 1, 0].map(size);
    assert_eq!(said, ["1024GiB", "512MiB", "3KiB", "1048577B", "0B"]);
}

#[test]
fn the_own_group_is_found_wherever_the_hierarchy_is_mounted() {
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                          35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                          41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
    const UNIFIED: &str = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const BIND: &str = "30 23 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    for (groups, mounts, expected) in [
        ("4:memory:/m\n0::/a/b\n", HYBRID, Some("/sys/fs/cgroup/unified/a/b")),
        (
            "0::/system.slice/portcullis.service\n",
            UNIFIED,
            Some("/sys/fs/cgroup/system.slice/portcullis.service"),
        ),
        ("0::/docker/x/y\n", BIND, Some("/sys/fs/cgroup/y")),
        ("0::/\n", UNIFIED, Some("/sys/fs/cgroup/")),
        // Not in the part that is mounted here.
        ("0::/elsewhere\n", BIND, None),
        ("0::/../elsewhere\n", UNIFIED, None),
        ("4:memory:/m\n", HYBRID, None),
        ("0::/a\n", "", None),
        ("0::/a\n", "30 23 0:27 / /with\\040space rw - cgroup2 cgroup2 rw\n", None),
    ] {
        let process = tempfile::tempdir().expect("tempdir");
        fs::write(process.path().join("cgroup"), groups).expect("write");
        fs::write(process.path().join("mountinfo"), mounts).expect("write");
        match (own_group(process.path()), expected) {
            (Ok(found), Some(expected)) => assert_eq!(found, Path::new(expected)),
            (Err(ControlGroupError::NoHierarchy), None) => {}
            (found, _) => panic!("{groups:?} {mounts:?}: {found:?}"),
        }
    }
}

/// A group of this test's own in the machine's unified hierarchy, with a process in it that waits to be told to go.
struct Real {
    path: PathBuf,
    process: Child,
    /// The domain controllers that can be handed down.
    controllers: Vec<&'static str>,
    /// The hierarchy's root, and what it has handed down for this test only.
    root: (PathBuf, Vec<&'static str>),
    _one_at_a_time: MutexGuard<'static, ()>,
}

impl Real {
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: skipped");
            return None;
        }
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // The hierarchy's root is where every process's group is below.
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let (_, root) = mounts.lines().find_map(unified_mount).expect(
            "no unified hierarchy of control groups; mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 \
             /sys/fs/cgroup/unified",
        );
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).expect("controllers");
        let has = |name: &&str| controllers.split_whitespace().any(|one| one == *name);
        let controllers: Vec<&str> = ["memory", "pids", "hugetlb"].into_iter().filter(has).collect();
        let handed = fs::read_to_string(root.join("cgroup.subtree_control")).expect("handed down");
        let new = |name: &&str| !handed.split_whitespace().any(|one| one == *name);
        let new: Vec<&str> = controllers.iter().copied().filter(new).collect();
        for controller in &new {
            write(&root.join("cgroup.subtree_control"), &format!("+{controller}")).expect("hand down");
        }
        let path = root.join(format!("portcullis-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("mkdir");
        let process = waiting(Command::new("cat"));
        write(&path.join("cgroup.procs"), &process.id().to_string()).expect("move");
        Some(Self { path, process, controllers, root: (root.to_owned(), new), _one_at_a_time: guard })
    }

    fn divide(&self, classes: &[Class]) -> Result<ControlGroups, ControlGroupError> {
        let classes: Vec<&Class> = classes.iter().collect();
        divide(&self.path, self.process.id(), &self.controllers, &classes)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let inside = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in inside.filter(|path| path.is_dir()).chain([self.path.clone()]) {
            fs::remove_dir(&path).unwrap_or_else(|why| eprintln!("remove {path:?}: {why}"));
        }
        let (root, new) = &self.root;
        for controller in new {
            let _ = write(&root.join("cgroup.subtree_control"), &format!("-{controller}"));
        }
    }
}

fn waiting(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start")
}

/// A process's group, by the last part of its name.
fn group_of(process: &Child) -> String {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.id())).expect("group");
    let group = text.lines().find_map(|line| line.strip_prefix("0::")).expect("unified");
    group.rsplit('/').next().expect("a name").to_owned()
}

#[test]
fn the_kernel_takes_the_division_and_lets_in_who_is_given_the_entrance_and_nobody_else() {
    let Some(real) = Real::new("divided") else { return };
    let name = TrustClass::new("a").expect("name");
    let groups = real.divide(&limited(&["a"], NEITHER)).expect("divided");
    assert_eq!(group_of(&real.process), "supervisor");
    let handed = fs::read_to_string(real.path.join("cgroup.subtree_control")).expect("read");
    assert_eq!(handed.split_whitespace().count(), real.controllers.len(), "{handed}");

    // Without any right, by the descriptor alone.
    let entrance = groups.entrance(&name).expect("limited").try_clone_to_owned().expect("dup");
    let own = real.path.join("class-a/cgroup.procs");
    let mut command = Command::new("cat");
    command.uid(61_001).gid(61_001);
    #[expect(unsafe_code, reason = "pre_exec has no safe form")]
    // SAFETY: two system calls, on what was made before the fork; the path's text is the only allocation, before it.
    unsafe {
        command.pre_exec(move || {
            let by_name = nix::fcntl::open(&own, nix::fcntl::OFlag::O_WRONLY, nix::sys::stat::Mode::empty());
            if by_name.is_ok() {
                return Err(io::Error::other("anybody could go in"));
            }
            nix::unistd::write(&entrance, b"0")?;
            Ok(())
        })
    };
    let mut child = waiting(command);
    assert_eq!(group_of(&child), "class-a");
    child.kill().expect("kill");
    child.wait().expect("wait");
    // A second life finds the groups of the first, and moves in as well.
    drop(groups);
}

#[test]
fn the_kernel_has_a_group_with_another_process_in_it_refused() {
    let Some(real) = Real::new("shared") else { return };
    let mut other = waiting(Command::new("cat"));
    write(&real.path.join("cgroup.procs"), &other.id().to_string()).expect("move");
    let why = real.divide(&limited(&["a"], NEITHER)).expect_err("refused").to_string();
    assert!(why.contains(&format!("process {} is in control group", other.id())), "{why}");
    assert!(!real.path.join("supervisor").exists());
    // Control: that process was the reason.
    other.kill().expect("kill");
    other.wait().expect("wait");
    real.divide(&limited(&["a"], NEITHER)).expect("divided");
}

/// The sentence where memory and tasks are of version 1; elsewhere the files are what the kernel says they are.
#[test]
fn the_kernel_keeps_the_limits_or_they_are_refused() {
    let Some(real) = Real::new("limited") else { return };
    let classes = limited(&["a"], BOTH);
    let classes: Vec<&Class> = classes.iter().collect();
    let divided = divide(&real.path, real.process.id(), &controllers(&classes), &classes);
    if real.controllers.contains(&"memory") && real.controllers.contains(&"pids") {
        let groups = divided.expect("divided");
        let has = |file: &str| fs::read_to_string(real.path.join("class-a").join(file)).expect("read");
        assert_eq!((has("memory.max").as_str(), has("pids.max").as_str()), ("536870912\n", "64\n"));
        assert_eq!(has("memory.oom.group"), "1\n");
        let mut other = config(&["a"]);
        other.classes = limited(&["a"], GroupLimits { memory_max: Some(256 << 20), tasks_max: Some(99) });
        groups.set(&other).expect("set");
        assert_eq!((has("memory.max").as_str(), has("pids.max").as_str()), ("268435456\n", "99\n"));
    } else {
        let why = divided.expect_err("refused").to_string();
        assert!(why.contains("has no controller \"memory\", it has"), "{why}");
        assert!(!real.path.join("supervisor").exists(), "and nothing was changed");
    }
}
