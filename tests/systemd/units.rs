//! The units by themselves, as systemd's own tools judge them.

use std::fs;

use crate::Test;
use crate::machine::{installed, output, text};

pub(crate) const TESTS: &[Test] = &[
    ("units::systemd_has_nothing_to_say_about_the_units", systemd_has_nothing_to_say_about_the_units),
    ("units::the_services_exposure_is_at_most_1_1", the_services_exposure_is_at_most_1_1),
    ("units::every_setting_of_the_service_has_its_comment", every_setting_of_the_service_has_its_comment),
];

const UNITS: &str = "/usr/lib/systemd/system";

/// The exit code says nothing of it: unknown settings and unknown groups of system calls are only told of.
fn systemd_has_nothing_to_say_about_the_units() {
    installed();
    let verify = |directory: &str| {
        let of = |name: &str| format!("{directory}/{name}");
        let units = [of("portcullis.service"), of("portcullis.socket"), of("portcullis-operator.socket")];
        output("systemd-analyze", &["verify", &units[0], &units[1], &units[2]])
    };
    let verified = verify(UNITS);
    assert_eq!((text(&verified).as_str(), verified.status.code()), ("", Some(0)));
    // Controls: a mistyped setting, and a group of system calls that this systemd does not know.
    for (wrong, complaint) in [
        ("[Service]\nNoNewPrivilege=yes\n", "Unknown key 'NoNewPrivilege'"),
        ("[Service]\nSystemCallFilter=@sandbox-of-tomorrow\n", "@sandbox-of-tomorrow"),
    ] {
        let copies = tempfile::tempdir().expect("tempdir");
        for name in ["portcullis.service", "portcullis.socket", "portcullis-operator.socket"] {
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
    let unit = fs::read_to_string(format!("{}/systemd/portcullis.service", env!("CARGO_MANIFEST_DIR")));
    let unit = unit.expect("unit");
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
