//! Limits of one class: kept by the kernel where the hierarchy of control groups is unified and systemd has it to give,
//! and refused with the way out where it is not. Which of the two a machine shows depends on the machine; it is said.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Output;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Test;
use crate::machine::{
    SERVICE, SOUND, answers, ask, client, configure, installed, journal, lasting, output, processes, run,
    systemctl, text, try_ask,
};
use crate::refusal::{refuses_to_start, starts};

pub(crate) const TESTS: &[Test] =
    &[("limits::limits_of_a_class_are_kept_or_refused", limits_of_a_class_are_kept_or_refused)];

const GROUP: &str = "/sys/fs/cgroup/system.slice/portcullis.service";
/// The least there may be with one thread.
const TASKS: usize = 30;
/// What the guest takes: more than the class may have.
const TOO_MUCH: &str = "memory:200000000";

fn limits_of_a_class_are_kept_or_refused() {
    installed();
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if ["memory", "pids"].iter().all(|name| controllers.split_whitespace().any(|one| one == *name)) {
        println!("measured: the hierarchy is unified, limits of a class are kept");
        kept();
    } else {
        println!("measured: the hierarchy is not unified, limits of a class are refused");
        refused();
    }
}

fn refused() {
    for (limit, controller) in [("memory_max = \"64MiB\"", "memory"), ("tasks_max = 100000", "pids")] {
        configure(&limited(limit));
        refuses_to_start(&format!("has no controller \"{controller}\""));
        assert!(journal().contains("or take memory_max and tasks_max out of the configuration"));
    }
    configure(SOUND);
    starts();
}

/// One limited class, and one beside it that is not.
fn limited(lines: &str) -> String {
    let class = "cache = \"/var/cache/portcullis/shared\"\n";
    let other = "[class.alone]\nuid = 61002\ngid = 61002\ncache = \"/var/cache/portcullis/alone\"\n\
                 [tenant.bank]\nclass = \"alone\"\npolicies = []\nuids = [0]\n";
    let cache = "/var/cache/portcullis/alone";
    fs::create_dir_all(cache).expect("mkdir");
    fs::set_permissions(cache, fs::Permissions::from_mode(0o700)).expect("chmod");
    chown(cache, Some(61002), Some(61002)).expect("chown");
    SOUND.replace(class, &format!("{class}threads = 1\nmemory = \"1GiB\"\ninstances = 2\n{lines}\n")) + other
}

fn kept() {
    configure(&limited(&format!("memory_max = \"64MiB\"\ntasks_max = {TASKS}")));
    systemctl(&["start", SERVICE]);
    answers();
    everybody_is_in_the_right_group();
    run("portcullis", &["attest"]);

    // Numbers are changed by a reload; whether there is one is not.
    configure(&limited(&format!("memory_max = \"80MiB\"\ntasks_max = {TASKS}")));
    run("portcullis", &["reload"]);
    assert_eq!(limit("memory.max"), "83886080");
    everybody_is_in_the_right_group();
    configure(&limited("memory_max = \"80MiB\""));
    let reloaded = output("portcullis", &["reload"]);
    assert!(!reloaded.status.success());
    let sentence = "restart the service to change whether there is a class.shared.tasks_max";
    assert!(text(&reloaded).contains(sentence), "{}", text(&reloaded));
    assert_eq!(limit("pids.max"), TASKS.to_string());

    memory_runs_out_for_that_class_only();
    a_bomb_of_processes_goes_off_within_its_group();
    systemctl(&["stop", SERVICE]);
    assert_eq!(processes(), BTreeMap::new());
    assert!(!fs::exists(GROUP).expect("look"), "systemd removes the groups with the service");
    // Without a limit nothing is divided.
    configure(SOUND);
    systemctl(&["start", SERVICE]);
    answers();
    assert!(!fs::exists(format!("{GROUP}/supervisor")).expect("look"));
}

fn limit(file: &str) -> String {
    fs::read_to_string(format!("{GROUP}/class-shared/{file}")).expect("limit").trim().to_owned()
}

/// Who stays, by the title that ps shows, and where.
fn groups() -> BTreeMap<String, (i32, String)> {
    let of = |pid: i32| {
        // Gone, if it cannot be read: a worker that was replaced.
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let title = title.split('\0').next().filter(|title| !title.is_empty())?.to_owned();
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some((title, (pid, group.trim().rsplit('/').next().unwrap_or_default().to_owned())))
    };
    lasting().into_keys().filter_map(of).collect()
}

#[track_caller]
fn everybody_is_in_the_right_group() {
    let groups = groups();
    assert_eq!(groups.len(), 5, "{groups:?}");
    for (title, (_, group)) in groups {
        let expected = if title == "portcullis-worker: shared" { "class-shared" } else { "supervisor" };
        assert_eq!(group, expected, "{title}");
    }
}

fn memory_runs_out_for_that_class_only() {
    let before = groups();
    // Nobody is there to answer it. What does come is no decision of the policy.
    let outcome = try_ask(&mut client(), TOO_MUCH);
    let sentence = "killed by SIGKILL: out of memory (memory_max = 80MiB)";
    assert!(journal().contains(sentence), "{outcome:?}\n{}", journal());
    answers();
    let after = groups();
    for (title, (pid, _)) in &before {
        let same = after.get(title).is_some_and(|(now, _)| now == pid);
        assert_eq!(same, title != "portcullis-worker: shared", "{title}: {before:?} {after:?}");
    }
    // Control: what fits is decided. The limit, and not the size of an instance, was in the way.
    let fits = ask("memory:20000000");
    assert!(!format!("{fits:?}").contains("Refused"), "{fits:?}");
}

/// No worker could: it has no call for it. So somebody else does, where the worker is.
fn a_bomb_of_processes_goes_off_within_its_group() {
    let bomb = |group: &str| -> Output {
        let script = format!(
            "echo $$ >{group}/cgroup.procs; i=0; while [ $i -lt 100 ]; do sleep 600 >/dev/null 2>&1 & echo $!; \
             i=$((i+1)); done"
        );
        let output = output("sh", &["-c", &script]);
        for pid in String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
        }
        output
    };
    let within = bomb(&format!("{GROUP}/class-shared"));
    let made = String::from_utf8_lossy(&within.stdout).lines().count();
    assert!(!within.status.success() && made < TASKS, "{made}: {}", text(&within));
    assert!(text(&within).contains("Cannot fork"), "{}", text(&within));
    answers();
    // Control: elsewhere it is no trouble to make them.
    let elsewhere = bomb(&format!("{GROUP}/supervisor"));
    assert!(elsewhere.status.success(), "{}", text(&elsewhere));
}
