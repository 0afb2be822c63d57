//! Where a process lives: program, directories, environment, session, control group, namespaces, who may look into it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Expectations;
use super::process::Subject;
use super::report::{Area, Findings, Verdict};
use super::view::{self, Unseen};
use crate::sandbox::{Environment, Role, Session};

/// What the kernel puts behind the name of a program whose file is not there any more.
const DELETED: &str = " (deleted)";
/// Every kind that Linux has.
const NAMESPACES: [&str; 10] =
    ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];

/// Compares with the role's file, and where there is nothing to declare, with the supervisor.
pub(super) fn check(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    program(subject, expected, findings);
    declared(subject, expected, findings);
    let is_supervisor = subject.pid == expected.supervisor;
    if !is_supervisor {
        same_as_supervisor(subject, expected, findings);
    }
}

/// What a process has from birth, before it has sealed itself: its program may still be who made it.
pub(super) fn inherited(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let names = [subject.role, Role::Spawner].map(|role| format!("portcullis-{role}"));
    let wanted = names.join(" or ");
    let verdict = match (view::link(subject.pid, "exe"), expected.programs()) {
        (Err(unseen), _) => Verdict::unseen(&unseen, &wanted),
        (Ok(found), Some(directory))
            if names.iter().any(|name| Path::new(&found) == directory.join(name)) =>
        {
            Verdict::ok(&found)
        }
        (Ok(found), _) => Verdict::different(&found, &format!("{wanted}, beside the supervisor")),
    };
    findings.add(Area::Surroundings, "program", verdict);
    same_as_supervisor(subject, expected, findings);
}

/// Its own role's, beside the supervisor's, and still the file that is there.
fn program(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let name = format!("portcullis-{}", subject.role);
    let wanted = expected.programs().map(|directory| directory.join(&name));
    let verdict = match (view::link(subject.pid, "exe"), wanted) {
        (Err(unseen), _) => Verdict::unseen(&unseen, &name),
        (Ok(found), _) if found.ends_with(DELETED) => Verdict::different(
            &format!("{found}: replaced or removed since; restart after an upgrade"),
            &name,
        ),
        (Ok(found), Some(wanted)) if Path::new(&found) == wanted => same_file(subject.pid, &wanted),
        (Ok(found), Some(wanted)) => Verdict::different(&found, &view::shown(&wanted)),
        (Ok(found), None) => Verdict::different(&found, &format!("{name} beside the supervisor")),
    };
    findings.add(Area::Surroundings, "program", verdict);
}

/// Names are the mount namespace's and may be mounted over: the files must be the same.
fn same_file(pid: i32, wanted: &Path) -> Verdict {
    let look = |path: &Path| path.metadata().map_err(|error| Unseen::of(path, &error));
    let expected = format!("the file {}", view::shown(wanted));
    match (look(&view::place(pid, "exe")), look(wanted)) {
        (Ok(runs), Ok(there)) if (runs.dev(), runs.ino()) == (there.dev(), there.ino()) => {
            Verdict::ok(&view::shown(wanted))
        }
        (Ok(_), Ok(_)) => Verdict::different("another file that had this name", &expected),
        (Err(unseen), _) | (_, Err(unseen)) => Verdict::unseen(&unseen, &expected),
    }
}

fn declared(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let Some(declared) = expected.declared(subject.role) else { return };
    let (pid, process) = (subject.pid, &declared.process);
    let mut seen = |check, seen: Result<String, Unseen>, expected: &str| {
        findings.seen(Area::Surroundings, check, seen, expected);
    };
    let umask = view::status(pid, 0).map(|status| {
        status.umask.map_or_else(|| "none: it has ended".to_owned(), |umask| format!("{umask:03o}"))
    });
    seen("umask", umask, &process.umask);
    seen("working directory", view::link(pid, "cwd"), &process.directory);
    if process.environment == Environment::Empty {
        let environment = view::text(pid, "environ").map(|text| match text.len() {
            0 => "empty".to_owned(),
            length => format!("{length} bytes"),
        });
        seen("environment", environment, "empty");
    }
    if process.session == Session::Own {
        let stat = view::stat(pid);
        seen("session", stat.clone().map(|stat| stat.session.to_string()), &pid.to_string());
        let terminal = stat.map(|stat| match stat.terminal {
            0 => "none".to_owned(),
            number => format!("device {number:#x}"),
        });
        seen("controlling terminal", terminal, "none");
    }
    if !process.dumpable {
        let verdict = not_dumpable(subject);
        findings.add(Area::Surroundings, "dumpable", verdict);
    }
}

/// The files in `/proc/<pid>` are the process's user's, unless the process is not dumpable: then they are root's.
fn not_dumpable(subject: &Subject) -> Verdict {
    let expected = "no";
    if subject.uid == 0 {
        return Verdict::invisible("whether a process of root's is dumpable is not shown in /proc");
    }
    let path = view::place(subject.pid, "status");
    match path.metadata() {
        Ok(file) => Verdict::compare(if file.uid() == 0 { "no" } else { "yes" }, expected),
        Err(error) => Verdict::unseen(&Unseen::of(&path, &error), expected),
    }
}

/// The service is one: nothing of it is elsewhere than its supervisor, but in a control group below.
fn same_as_supervisor(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let (pid, supervisor) = (subject.pid, expected.supervisor);
    let mut same = |check: String, seen: Result<String, Unseen>, measure: Result<String, Unseen>| {
        let verdict = match (seen, measure) {
            (Ok(found), Ok(measure)) => Verdict::compare(found, measure),
            (Err(unseen), _) | (Ok(_), Err(unseen)) => Verdict::unseen(&unseen, "the supervisor's"),
        };
        findings.add(Area::Surroundings, check, verdict);
    };
    same("root directory".to_owned(), view::link(pid, "root"), view::link(supervisor, "root"));
    for kind in NAMESPACES {
        let name = format!("ns/{kind}");
        if Path::new("/proc/self").join(&name).symlink_metadata().is_err() {
            // This kernel has no such kind.
            continue;
        }
        same(format!("{kind} namespace"), view::link(pid, &name), view::link(supervisor, &name));
    }
    let verdict = match (view::text(pid, "cgroup"), view::text(supervisor, "cgroup")) {
        (Ok(found), Ok(measure)) if is_within(&found, &measure) => Verdict::ok(&cgroup(&found)),
        (Ok(found), Ok(measure))
            if of_class(&measure, subject.class.as_deref()).is_some_and(|own| is_within(&found, &own)) =>
        {
            Verdict::ok(&cgroup(&found))
        }
        (Ok(found), Ok(measure)) => {
            Verdict::different(&cgroup(&found), &format!("{} or below", cgroup(&measure)))
        }
        (Err(unseen), _) | (_, Err(unseen)) => Verdict::unseen(&unseen, "the supervisor's, or below"),
    };
    findings.add(Area::Surroundings, "control group", verdict);
}

/// Where the workers of a class with limits of its own are, if this is where its supervisor is: the group beside it.
fn of_class(measure: &str, class: Option<&str>) -> Option<String> {
    let class = class?;
    let line = |line: &str| match line.strip_prefix("0::") {
        Some(path) => Some(format!("0::{}/class-{class}\n", path.strip_suffix("/supervisor")?)),
        None => Some(format!("{line}\n")),
    };
    measure.lines().map(line).collect()
}

fn cgroup(text: &str) -> String {
    text.trim_end().replace('\n', " ")
}

/// Each hierarchy's group is the supervisor's or one below it. Every line is "number:controllers:path".
fn is_within(found: &str, measure: &str) -> bool {
    let lines = |text: &str| -> Option<Vec<(String, String)>> {
        let line = |line: &str| {
            let (number, rest) = line.split_once(':')?;
            let (_controllers, path) = rest.split_once(':')?;
            Some((number.to_owned(), path.to_owned()))
        };
        text.lines().map(line).collect()
    };
    let (Some(found), Some(measure)) = (lines(found), lines(measure)) else { return false };
    let mine = |number: &str| found.iter().find(|(n, _)| n == number).map(|(_, path)| path.as_str());
    // `/a` is above `/a/b` and not above `/ab`; Path compares by component.
    let within = |(number, path): &(String, String)| {
        mine(number).is_some_and(|mine| Path::new(mine).starts_with(path) && !mine.contains("/../"))
    };
    !measure.is_empty() && found.len() == measure.len() && measure.iter().all(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_its_file_and_not_its_name() {
        let own = i32::try_from(std::process::id()).unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(matches!(same_file(own, &program), Verdict::AsDeclared { .. }));
        let directory = tempfile::tempdir().unwrap();
        let other = directory.path().join(program.file_name().unwrap());
        std::fs::write(&other, "").unwrap();
        assert!(matches!(same_file(own, &other), Verdict::Different { .. }));
    }

    #[test]
    fn a_limited_class_has_its_own_control_group_beside_the_supervisors() {
        let measure = "4:memory:/a\n0::/a/portcullis.service/supervisor\n";
        let own = "4:memory:/a\n0::/a/portcullis.service/class-web\n";
        assert_eq!(of_class(measure, Some("web")).as_deref(), Some(own));
        assert_ne!(of_class(measure, Some("other")).as_deref(), Some(own));
        assert_eq!(of_class(measure, None), None, "the frontend is in none");
        // Where nothing was divided, there is nothing beside it.
        assert_eq!(of_class("0::/a/portcullis.service\n", Some("web")), None);
        assert!(!is_within(own, measure));
    }

    #[test]
    fn a_control_group_is_the_supervisors_or_below() {
        let measure = "4:memory:/system.slice/portcullis.service\n0::/system.slice/portcullis.service\n";
        let with = |path: &str| measure.replace("0::/system.slice/portcullis.service", &format!("0::{path}"));
        assert!(is_within(measure, measure));
        assert!(is_within(&with("/system.slice/portcullis.service/class-a"), measure));
        for elsewhere in
            ["/system.slice/portcullis.service2", "/system.slice", "/", "/../portcullis.service", ""]
        {
            assert!(!is_within(&with(elsewhere), measure), "{elsewhere}");
        }
        for broken in ["", "0\n", "0::/system.slice/portcullis.service\n"] {
            assert!(!is_within(broken, measure), "{broken}");
            assert!(!is_within(measure, broken), "{broken}");
        }
        assert!(is_within("0::/\n", "0::/\n"));
    }

    #[test]
    fn this_kernels_namespaces_are_all_known() {
        let own = i32::try_from(std::process::id()).unwrap();
        let entries = std::fs::read_dir(view::place(own, "ns")).unwrap();
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(NAMESPACES.contains(&name.as_str()), "{name} is not looked at");
        }
    }
}
