//! Installing, starting, what it looks like then, being started by a client, and stopping.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use nix::sys::signal::Signal;

use crate::Test;
use crate::machine::{
    CACHE, DECIDE, OPERATOR, Process, SERVICE, SOCKETS, SOUND, TRUST, answers, configure, drop_in, installed,
    journal, listed, output, process, processes, property, roles, run, settled, started, systemctl, text,
};

pub(crate) const TESTS: &[Test] = &[
    (
        "start::an_installed_service_starts_with_a_uid_for_each_role",
        an_installed_service_starts_with_a_uid_for_each_role,
    ),
    ("start::sockets_have_the_modes_and_owners_declared", sockets_have_the_modes_and_owners_declared),
    ("start::a_client_that_connects_starts_the_service", a_client_that_connects_starts_the_service),
    ("start::the_trust_policy_comes_as_a_credential", the_trust_policy_comes_as_a_credential),
    ("start::the_running_service_is_attested", the_running_service_is_attested),
    ("start::what_the_unit_takes_away_is_gone", what_the_unit_takes_away_is_gone),
    (
        "start::slices_are_short_where_the_unit_allows_the_call",
        slices_are_short_where_the_unit_allows_the_call,
    ),
    ("start::programs_are_replaced_under_a_running_service", programs_are_replaced_under_a_running_service),
    ("start::stopping_leaves_no_process_and_no_residue", stopping_leaves_no_process_and_no_residue),
];

/// Nothing that the unit does to the service makes it other than declared, and what is changed is noticed here too.
fn the_running_service_is_attested() {
    started();
    answers();
    let attested = output("portcullis", &["attest", "--json"]);
    assert_eq!(attested.status.code(), Some(0), "{attested:?}");
    println!("measured: {}", run("portcullis", &["attest"]).lines().last().unwrap_or_default());
    fs::set_permissions(CACHE, PermissionsExt::from_mode(0o755)).expect("chmod");
    let attested = output("portcullis", &["attest"]);
    assert_eq!(attested.status.code(), Some(1), "{attested:?}");
    assert!(text(&attested).contains(CACHE), "{attested:?}");
}

fn an_installed_service_starts_with_a_uid_for_each_role() {
    started();
    assert_eq!(property(SERVICE, "ActiveState"), "active");
    // Text that only the service itself can have sent, after READY=1 or with it.
    assert_eq!(property(SERVICE, "StatusText"), "serving");
    let shown = systemctl(&["status", "--no-pager", SERVICE]);
    assert!(shown.contains("Status: \"serving\""), "{shown}");
    answers();

    let own: u32 = run("id", &["--user", "portcullis"]).trim().parse().expect("a number");
    let processes = settled();
    assert_eq!(roles(), ["frontend", "registry", "spawner", "supervisor", "worker"]);
    assert_eq!(property(SERVICE, "MainPID"), number(&processes, "supervisor").to_string());
    for (pid, role) in &processes {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let uid = match role.as_str() {
            "frontend" => 61000,
            "worker" => 61001,
            "registry" => 61009,
            // Supervisor and spawner are the service's own user's.
            _ => own,
        };
        for line in [
            format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
            "NoNewPrivs:\t1".to_owned(),
            "Seccomp:\t2".to_owned(),
        ] {
            assert!(status.contains(&line), "{role}: no {line:?}\n{status}");
        }
        let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).expect("CapPrm");
        let permitted = u64::from_str_radix(permitted, 16).expect("hexadecimal");
        // CAP_KILL is 5; CAP_SETGID, CAP_SETUID and CAP_SETPCAP are 6 to 8.
        let expected = match role.as_str() {
            "supervisor" => 0x20,
            "spawner" => 0x1c0,
            _ => 0,
        };
        assert_eq!(permitted, expected, "{role}: {permitted:#x}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("core");
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{role}: {core}");
        let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("files");
        let hard: u64 = files.split_whitespace().nth(4).and_then(|text| text.parse().ok()).expect("number");
        assert!(hard <= 65536, "{role}: {files}");
    }
    // All of them, and nobody else, are where systemd counts them.
    let group = property(SERVICE, "ControlGroup");
    let counted = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .find_map(|tree| fs::read_to_string(format!("{tree}{group}/cgroup.procs")).ok())
        .expect("the service's control group");
    let mut counted: Vec<i32> = counted.lines().map(|line| line.parse().expect("number")).collect();
    counted.sort_unstable();
    assert_eq!(counted, processes.keys().copied().collect::<Vec<_>>());
}

fn number(processes: &BTreeMap<i32, String>, role: &str) -> i32 {
    *processes.iter().find(|(_, name)| *name == role).expect(role).0
}

fn sockets_have_the_modes_and_owners_declared() {
    installed();
    systemctl(&["start", SOCKETS[0], SOCKETS[1]]);
    for path in [DECIDE, OPERATOR] {
        let metadata = fs::symlink_metadata(path).expect("the socket");
        assert!(metadata.file_type().is_socket(), "{path}");
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o666, 0, 0), "{path}");
    }
    for (path, mode, owner) in [
        ("/run/portcullis", 0o755, 0),
        ("/etc/portcullis", 0o755, 0),
        ("/var/cache/portcullis", 0o711, 0),
        ("/var/cache/portcullis/shared", 0o700, 61001),
    ] {
        let metadata = fs::symlink_metadata(path).expect(path);
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            (mode, owner, owner),
            "{path}"
        );
    }
}

fn a_client_that_connects_starts_the_service() {
    installed();
    systemctl(&["start", SOCKETS[0], SOCKETS[1]]);
    assert_eq!(property(SERVICE, "ActiveState"), "inactive");
    assert_eq!(processes().len(), 0, "nothing runs");
    answers();
    assert_eq!(property(SERVICE, "ActiveState"), "active");
    // The other socket belongs to the same service.
    systemctl(&["stop", SERVICE]);
    assert_eq!(processes().len(), 0);
    run("portcullis", &["status"]);
    assert_ne!(processes().len(), 0);
}

fn the_trust_policy_comes_as_a_credential() {
    installed();
    drop_in(SERVICE, "[Service]\nLoadCredential=trust.toml:/etc/portcullis/trust.toml\n");
    configure(&SOUND.replace(TRUST, CREDENTIAL));
    systemctl(&["start", SERVICE]);
    answers();
    // Nothing of the original is needed any more, not even by a reload.
    let policy = fs::read(TRUST).expect("read");
    fs::remove_file(TRUST).expect("remove");
    run("portcullis", &["reload"]);
    answers();
    // But by the next start, which systemd refuses by itself.
    let refused = |why: &str| {
        systemctl(&["stop", SERVICE]);
        assert!(!output("systemctl", &["start", SERVICE]).status.success());
        let said = journal();
        assert!(said.contains(why), "{said}");
    };
    // Said by systemd itself; the sentence of the child that failed may not be in the journal yet.
    refused("status=243/CREDENTIALS");
    // And one that the unit does not load is missed by name.
    fs::write(TRUST, policy).expect("write");
    configure(&SOUND.replace(TRUST, "$CREDENTIALS_DIRECTORY/other.toml"));
    refused(&format!("open trust policy \"/run/credentials/{SERVICE}/other.toml\""));
}

/// With the lines that the documentation gives for it, and with nothing else.
fn slices_are_short_where_the_unit_allows_the_call() {
    const DOCUMENTED: &str = "[Service]\nSystemCallFilter=sched_setattr\n";
    const SHORT_NS: u64 = 100_000;
    assert!(include_str!("../../docs/systemd.md").contains(DOCUMENTED));
    started();
    answers();
    let usual = shortest_slice("worker");
    assert!(usual > SHORT_NS, "the control: {usual} ns without it");
    systemctl(&["stop", SERVICE]);
    drop_in(SERVICE, DOCUMENTED);
    systemctl(&["start", SERVICE]);
    answers();
    assert_eq!(shortest_slice("worker"), SHORT_NS, "{}", journal());
    println!("measured: slices of {usual} ns, and of {SHORT_NS} ns with the call");
}

/// Of the threads of the process of that role, nanoseconds.
fn shortest_slice(role: &str) -> u64 {
    let tasks = format!("/proc/{}/task", process(role).pid);
    let tasks = fs::read_dir(&tasks).unwrap_or_else(|why| panic!("{tasks}: {why}"));
    let slice = |task: fs::DirEntry| {
        let said =
            fs::read_to_string(task.path().join("sched")).expect("what the scheduler says of a thread");
        let line = said.lines().find(|line| line.starts_with("se.slice")).expect("Linux 6.12 says its slice");
        line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
    };
    tasks.map(|task| slice(task.expect("a thread"))).min().expect("threads")
}

const CREDENTIAL: &str = "$CREDENTIALS_DIRECTORY/trust.toml";

/// As the kernel has it for the running service; the test's own process is the control.
fn what_the_unit_takes_away_is_gone() {
    started();
    let service = process("worker").pid.to_string();
    let options = |pid: &str, place: &str| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).expect("mounts");
        // The last one there is what is seen.
        let found = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(place));
        found.map(|line| line.rsplit(' ').nth(2).unwrap_or_default().split(',').map(str::to_owned).collect())
    };
    let has = |pid: &str, place: &str, option: &str| {
        options(pid, place).is_some_and(|options: Vec<String>| options.iter().any(|found| found == option))
    };
    for (place, option) in
        [("/", "ro"), ("/proc", "subset=pid"), ("/", "noexec"), ("/home", "ro"), ("/run", "ro")]
    {
        assert!(has(&service, place, option), "{place}: no {option} in {:?}", options(&service, place));
        assert!(!has("self", place, option), "{place}: {option} in {:?}", options("self", place));
    }
    // And what has to be left is left, the first two with nothing to spare.
    for (place, option) in [("/usr/lib", "ro"), ("/usr/bin/kill", "ro"), ("/var/cache/portcullis", "rw")] {
        assert!(has(&service, place, option), "{place}: no {option} in {:?}", options(&service, place));
    }
    assert!(!has(&service, "/usr/lib", "noexec"));
    // Every place that can be written; the kernel's own devices have owners.
    let mounts = fs::read_to_string(format!("/proc/{service}/mountinfo")).expect("mounts");
    let mut seen = BTreeMap::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        // A later mount hides an earlier one.
        seen.insert(fields[4], fields[5]);
    }
    // What the container puts into its /run is not there on a machine.
    seen.retain(|place, options| {
        options.starts_with("rw") && !place.starts_with("/dev/") && !place.starts_with("/run/host/")
    });
    let writable: Vec<&str> = seen.keys().copied().collect();
    assert_eq!(writable, ["/proc", "/tmp", "/var/cache/portcullis", "/var/lib/portcullis/state", "/var/tmp"]);
    for (place, options) in seen {
        assert!(options.split(',').any(|option| option == "noexec"), "{place}: {options}");
    }
    for namespace in ["net", "mnt", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("namespace");
        assert_ne!(of(&service), of("self"), "{namespace}");
    }
}

fn programs_are_replaced_under_a_running_service() {
    started();
    let program = "/usr/lib/portcullis/portcullis-worker";
    let is = |process: &Process| {
        let of = fs::metadata(format!("/proc/{}/exe", process.pid)).expect("program");
        (of.dev(), of.ino())
    };
    let before = is(&process("worker"));
    fs::copy(program, format!("{program}.new")).expect("copy");
    fs::rename(format!("{program}.new"), program).expect("rename");
    // Those that start later are the old ones, too: what was witnessed and what is opened belong together.
    answers();
    let workers = || -> Vec<Process> {
        // The kernel says of a program that is not in its place any more that it is deleted. A builder has the same UID.
        let workers = processes().into_iter().filter(|(_, role)| role.starts_with("worker"));
        workers.filter_map(|(pid, _)| Process::find(pid)).collect()
    };
    let old = workers();
    old[0].signal(Signal::SIGKILL);
    old[0].ended();
    answers();
    assert_eq!(workers().iter().map(is).collect::<Vec<_>>(), [before]);
    systemctl(&["restart", SERVICE]);
    answers();
    assert_ne!(is(&process("worker")), before);
}

fn stopping_leaves_no_process_and_no_residue() {
    installed();
    let places =
        ["/etc", "/run/portcullis", "/run/credentials", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"];
    let (files, mounts) = (listed(&places), mounts());
    systemctl(&["start", SERVICE]);
    answers();
    assert_ne!(listed(&places), files, "the sockets, at least: the comparison sees something");
    systemctl(&["stop", SERVICE, SOCKETS[0], SOCKETS[1]]);
    assert_eq!(processes().len(), 0);
    for unit in [SERVICE, SOCKETS[0], SOCKETS[1]] {
        assert_eq!(
            (property(unit, "ActiveState"), property(unit, "Result")),
            ("inactive".into(), "success".into())
        );
    }
    let left: Vec<_> =
        listed(&places).into_iter().filter(|path| files.binary_search(path).is_err()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert_eq!(self::mounts(), mounts);
    for table in ["msg", "sem", "shm"] {
        let table = fs::read_to_string(format!("/proc/sysvipc/{table}")).expect("table");
        assert_eq!(table.lines().count(), 1, "System V IPC is left: {table}");
    }
}

fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mut points: Vec<String> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect();
    points.sort();
    points
}
