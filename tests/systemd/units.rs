//! The units by themselves, as systemd's own tools judge them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::Test;
use crate::machine::{installed, output, run, text};

pub(crate) const TESTS: &[Test] = &[
    ("units::systemd_has_nothing_to_say_about_the_units", systemd_has_nothing_to_say_about_the_units),
    ("units::the_services_exposure_is_at_most_1_1", the_services_exposure_is_at_most_1_1),
    (
        "units::the_service_may_make_every_call_that_its_profiles_have",
        the_service_may_make_every_call_that_its_profiles_have,
    ),
    ("units::every_setting_of_the_service_has_its_comment", every_setting_of_the_service_has_its_comment),
];

const UNITS: &str = "/etc/systemd/system";
const UNIT_FILES: [&str; 5] = [
    "portcullis.service",
    "portcullis.socket",
    "portcullis-operator.socket",
    "portcullis-telemetry.socket",
    "portcullis-gateway.socket",
];

/// The exit code says nothing of it: unknown settings and unknown groups of system calls are only told of.
fn systemd_has_nothing_to_say_about_the_units() {
    installed();
    let verify = |directory: &str| {
        let of = |name| format!("{directory}/{name}");
        let units = UNIT_FILES.map(of);
        let mut arguments = vec!["verify"];
        arguments.extend(units.iter().map(String::as_str));
        output("systemd-analyze", &arguments)
    };
    let verified = verify(UNITS);
    assert_eq!((text(&verified).as_str(), verified.status.code()), ("", Some(0)));
    // Controls: a mistyped setting, and a group of system calls that this systemd does not know.
    for (wrong, complaint) in [
        ("[Service]\nNoNewPrivilege=yes\n", "Unknown key 'NoNewPrivilege'"),
        ("[Service]\nSystemCallFilter=@sandbox-of-tomorrow\n", "@sandbox-of-tomorrow"),
    ] {
        let copies = tempfile::tempdir().expect("tempdir");
        for name in UNIT_FILES {
            let unit = fs::read_to_string(format!("{UNITS}/{name}")).expect("unit");
            let unit =
                if name == "portcullis.service" { unit.replacen("[Service]\n", wrong, 1) } else { unit };
            fs::write(copies.path().join(name), unit).expect("write");
        }
        let said = text(&verify(&copies.path().display().to_string()));
        assert!(said.contains(complaint), "{said}");
    }
}

fn the_services_exposure_is_at_most_1_1() {
    installed();
    let unit = format!("{UNITS}/portcullis.service");
    let judge = |threshold: &str| {
        output("systemd-analyze", &["security", "--offline=true", "--no-pager", threshold, &unit])
    };
    let judged = judge("--threshold=11");
    let table = text(&judged);
    assert!(judged.status.success(), "{table}");
    let overall = table.lines().find(|line| line.contains("Overall exposure level")).expect("a verdict");
    println!("measured: {}", overall.trim_start_matches(['→', ' ']));
    // The threshold is one that can be missed.
    assert!(!judge("--threshold=1").status.success());
}

fn every_setting_of_the_service_has_its_comment() {
    let unit = repository("systemd/portcullis.service");
    let hardening = unit.split("# --- who it is ---").nth(1).expect("the part about hardening");
    let hardening = hardening.split("[Install]").next().unwrap_or_default();
    let mut settings = 0;
    let mut above = "";
    for line in hardening.lines() {
        if line.contains('=') && !line.starts_with('#') {
            settings += 1;
            assert!(above.starts_with('#'), "no comment above {line}");
        }
        above = line;
    }
    assert!(settings > 30, "{settings} settings: the test does not see them");
}

/// What the unit refuses with EPERM, no process of the service can need.
fn the_service_may_make_every_call_that_its_profiles_have() {
    let systemd = groups();
    let unit = repository("systemd/portcullis.service");
    let mut allowed = BTreeSet::new();
    add(&mut allowed, &systemd, "@default");
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let mut named = BTreeSet::new();
        let names = filter.strip_prefix('~').unwrap_or(filter);
        names.split(' ').for_each(|name| add(&mut named, &systemd, name));
        if filter.starts_with('~') {
            allowed.retain(|name| !named.contains(name));
        } else {
            allowed.extend(named);
        }
    }
    for not in ["mount", "ptrace", "bpf", "unshare", "chown", "setrlimit", "io_uring_setup"] {
        assert!(!allowed.contains(not), "{not}: the test reads the unit wrongly");
    }
    for role in ["supervisor", "spawner", "frontend", "worker"] {
        let profile = repository(&format!("sandbox/{}/{role}.json", std::env::consts::ARCH));
        let profile: serde_json::Value = serde_json::from_str(&profile).expect("JSON");
        let rules =
            profile.pointer(&format!("/{role}/filter")).and_then(|rules| rules.as_array()).expect("rules");
        let calls = rules.iter().map(|rule| rule["syscall"].as_str().expect("a call"));
        let mut refused: BTreeSet<&str> = calls.filter(|call| !allowed.contains(*call)).collect();
        // What a worker does without where it is refused: docs/systemd.md says what it is for and how it is allowed.
        assert_eq!(refused.remove("sched_setattr"), role == "spawner");
        assert_eq!(refused, BTreeSet::new(), "{role}");
    }
}

/// The groups of this systemd, each with what stands in it: calls and other groups.
fn groups() -> BTreeMap<String, Vec<String>> {
    let listed = run("systemd-analyze", &["--no-pager", "syscall-filter"]);
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut group = String::new();
    for line in listed.lines() {
        match line.trim() {
            "" => {}
            text if text.starts_with('#') => {}
            text if line.starts_with('@') => text.clone_into(&mut group),
            text => groups.entry(group.clone()).or_default().push(text.to_owned()),
        }
    }
    groups
}

/// Adds a call, or all that is in a group.
fn add(to: &mut BTreeSet<String>, groups: &BTreeMap<String, Vec<String>>, name: &str) {
    match groups.get(name) {
        Some(members) => members.iter().for_each(|member| add(to, groups, member)),
        None => {
            assert!(!name.starts_with('@'), "this systemd has no {name}");
            to.insert(name.to_owned());
        }
    }
}

fn repository(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|why| panic!("read {path}: {why}"))
}
