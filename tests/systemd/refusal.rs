//! What must not start, who must not ask, and limits that hold. Each with its control: without the one thing that is
//! wrong it works.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::Test;
use crate::machine::{
    CACHE, CONFIGURATION, SERVICE, SOCKETS, SOUND, answers, ask_as, configure, drop_in, installed, processes,
    property, run, start, systemctl, text, without_drop_in,
};

pub(crate) const TESTS: &[Test] = &[
    ("refusal::wrong_permissions_start_nothing_and_are_named", wrong_permissions_start_nothing_and_are_named),
    ("refusal::shared_or_privileged_uids_start_nothing", shared_or_privileged_uids_start_nothing),
    (
        "refusal::a_unit_that_takes_landlock_seccomp_or_capset_starts_nothing",
        a_unit_that_takes_landlock_seccomp_or_capset_starts_nothing,
    ),
    ("refusal::strangers_do_not_reach_the_socket", strangers_do_not_reach_the_socket),
    ("refusal::limits_of_tasks_and_memory_hold", limits_of_tasks_and_memory_hold),
];

/// A start that fails, with this sentence where an operator looks for it.
#[track_caller]
pub(crate) fn refuses_to_start(sentence: &str) {
    refuses_to_start_by_one_of(&[sentence]);
}

/// The same, where it is chance which of these is said.
#[track_caller]
fn refuses_to_start_by_one_of(sentences: &[&str]) {
    let (started, said) = start();
    assert!(!started.status.success(), "it starts, without one of: {sentences:?}");
    assert!(sentences.iter().any(|sentence| said.contains(sentence)), "none of {sentences:?} in\n{said}");
    if said.contains("status=78/CONFIG") {
        assert_eq!(property(SERVICE, "ActiveState"), "failed", "a wrong configuration is not tried again");
    }
    // What else there is is tried again, which does not help.
    systemctl(&["stop", SERVICE]);
    assert_eq!(processes().len(), 0, "nothing is left running");
    systemctl(&["reset-failed", SERVICE]);
}

/// And a start that works.
#[track_caller]
pub(crate) fn starts() {
    let (started, said) = start();
    assert!(started.status.success(), "{}\n{said}", text(&started));
    answers();
    systemctl(&["stop", SERVICE]);
}

fn mode(path: &str, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn wrong_permissions_start_nothing_and_are_named() {
    installed();
    starts();

    mode(CONFIGURATION, 0o664);
    refuses_to_start("others may write it (mode 0664); chmod go-w /etc/portcullis/portcullis.toml");
    mode(CONFIGURATION, 0o644);

    mode(CACHE, 0o755);
    refuses_to_start(&format!("open cache \"{CACHE}\": mode 0755, expected 0700; chmod 0700 {CACHE}"));
    mode(CACHE, 0o700);

    chown(CACHE, Some(0), Some(0)).expect("chown");
    refuses_to_start(&format!("open cache \"{CACHE}\": owned by uid 0, expected 61001"));
    chown(CACHE, Some(61001), Some(61001)).expect("chown");

    mode("/usr/lib/portcullis/portcullis-worker", 0o775);
    refuses_to_start("others may write it (mode 0775); chmod go-w /usr/lib/portcullis/portcullis-worker");
    mode("/usr/lib/portcullis/portcullis-worker", 0o755);

    starts();
}

fn shared_or_privileged_uids_start_nothing() {
    installed();
    configure(&SOUND.replace("uid = 61001\n", "uid = 61000\n"));
    refuses_to_start("uid: [class.shared] has the same UID as [frontend], 61000");
    configure(&SOUND.replace("uid = 61001\n", "uid = 0\n"));
    refuses_to_start("uid: 0 is root; every role needs a UID and GID without privilege");
    // Nobody gets by without the privilege that makes UIDs distinct, either.
    configure(SOUND);
    drop_in(SERVICE, "[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\n");
    refuses_to_start("require_distinct_uids: all processes would share one UID, for want of privilege");
    without_drop_in(SERVICE);
    starts();
}

fn a_unit_that_takes_landlock_seccomp_or_capset_starts_nothing() {
    installed();
    for (calls, sentence) in [
        (
            "landlock_create_ruleset landlock_add_rule landlock_restrict_self",
            "with \"landlock\" in /sys/kernel/security/lsm, and no outer seccomp filter that blocks it",
        ),
        ("seccomp", "the kernel or an outer filter refuses seccomp"),
        ("capset", "a filter around the service that blocks capset or prctl does this"),
    ] {
        drop_in(SERVICE, &format!("[Service]\nSystemCallFilter=~{calls}\n"));
        refuses_to_start(sentence);
        without_drop_in(SERVICE);
    }
    starts();
}

fn strangers_do_not_reach_the_socket() {
    const STRANGER: u32 = 12345;
    /// A client keeps trying to connect until its deadline.
    const SOON: &str = "100ms";
    const PATIENTLY: &str = "5s";
    installed();
    assert_eq!(run("getent", &["group", "33"]), "www-data:x:33:\n");
    drop_in(SOCKETS[0], "[Socket]\nSocketMode=0660\nSocketGroup=www-data\n");
    systemctl(&["start", SERVICE]);
    answers();
    let (code, said) = ask_as(STRANGER, "", SOON);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("connect to \"/run/portcullis/decide.sock\": Permission denied"), "{said}");
    // Past the socket it is still nobody's tenant.
    let (code, said) = ask_as(STRANGER, "33", PATIENTLY);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("this peer may not ask for that tenant"), "{said}");
    // With a grant it gets its answer: both walls, and nothing else, had stopped it.
    configure(&SOUND.replace("uids = [0]", &format!("uids = [0, {STRANGER}]")));
    run("portcullis", &["reload"]);
    let (code, said) = ask_as(STRANGER, "33", PATIENTLY);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = ask_as(STRANGER, "", SOON);
    assert_eq!(code, Some(3), "{said}");
}

fn limits_of_tasks_and_memory_hold() {
    installed();
    // The container has its own groups in these, mounted read-only at first; systemd has to look again.
    for hierarchy in ["pids", "memory"] {
        let mounted = format!("/sys/fs/cgroup/{hierarchy}");
        if fs::metadata(&mounted).is_ok() {
            run("mount", &["-o", "remount,rw,bind", &mounted]);
        }
    }
    systemctl(&["daemon-reexec"]);
    starts();
    drop_in(SERVICE, "[Service]\nTasksMax=2\n");
    refuses_to_start("make a process: EAGAIN");
    without_drop_in(SERVICE);
    // The whole service takes about three without a request: somebody is killed for it.
    drop_in(SERVICE, "[Service]\nMemoryMax=2M\n");
    // The supervisor itself, or one of its children.
    refuses_to_start_by_one_of(&["code=killed, status=9/KILL", "killed by SIGKILL"]);
    without_drop_in(SERVICE);
    starts();
}
