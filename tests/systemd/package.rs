//! Put in place as users do it, by `portcullis install` and by the Debian package; used; and taken away again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Test;
use crate::machine::{
    CONFIGURATION, PROGRAMS, SERVICE, SOCKETS, answers, listed, output, populated, processes, property,
    roles, run, systemctl, text,
};

pub(crate) const TESTS: &[Test] = &[
    (
        "package::what_install_puts_in_place_runs_is_upgraded_and_goes_without_residue",
        what_install_puts_in_place_runs_is_upgraded_and_goes_without_residue,
    ),
    (
        "package::what_install_put_in_place_goes_although_a_user_is_in_use",
        what_install_put_in_place_goes_although_a_user_is_in_use,
    ),
    (
        "package::a_package_runs_is_upgraded_and_goes_without_residue",
        a_package_runs_is_upgraded_and_goes_without_residue,
    ),
    (
        "package::a_package_is_not_installed_where_its_users_would_be_somebody_else",
        a_package_is_not_installed_where_its_users_would_be_somebody_else,
    ),
    (
        "package::a_package_takes_nothing_away_that_is_not_its_own",
        a_package_takes_nothing_away_that_is_not_its_own,
    ),
];

/// Where anything could be left. What the kernel and the running systemd keep is in /run and is looked at by name.
const PLACES: [&str; 7] = ["/etc", "/usr", "/opt", "/root", "/srv", "/var", "/home"];
const INSTALLED: &str = "/usr/lib/portcullis";
const USERS: [&str; 7] = [
    "portcullis",
    "portcullis-frontend",
    "portcullis-registry",
    "portcullis-exporter",
    "portcullis-gateway",
    "portcullis-fetcher",
    "portcullis-shared",
];

fn what_install_puts_in_place_runs_is_upgraded_and_goes_without_residue() {
    let before = Snapshot::take();
    let programs = Path::new(PROGRAMS).parent().expect("a directory");
    let portcullis = programs.join("portcullis");
    let portcullis = portcullis.to_str().expect("text");
    let said = run(portcullis, &["install", "--systemd", "--start"]);
    assert!(said.trim_end().ends_with("it runs; next: portcullis status"), "{said}");
    runs_with_nothing_to_decide();
    decides_after_a_reload();

    // The next version: the same programs, each with a byte at its end that nobody looks at.
    let next = Path::new("/var/tmp/next");
    fs::create_dir(next).expect("mkdir");
    for name in programs_installed() {
        let mut bytes = fs::read(programs.join(&name)).expect("program");
        bytes.push(0);
        fs::write(next.join(&name), bytes).expect("write");
        run("chmod", &["0755", next.join(&name).to_str().expect("text")]);
    }
    let supervisor = property(SERVICE, "MainPID");
    let said = run(portcullis, &["install", "--systemd", "--from", next.to_str().expect("text")]);
    assert!(said.contains("\nnext: systemctl restart portcullis.service"), "{said}");
    assert!(said.contains(&format!("left alone: {CONFIGURATION} is there already")), "{said}");
    // What runs goes on, and even starts its children anew, from the programs that it has open.
    assert_eq!(property(SERVICE, "MainPID"), supervisor);
    run("portcullis", &["reload"]);
    answers();
    systemctl(&["stop", SERVICE]);
    started_again();
    assert_eq!(
        length(&running()),
        length(&programs.join("portcullis-supervisor")) + 1,
        "the next version runs"
    );

    // And back.
    run(&format!("{INSTALLED}/previous/portcullis"), &["install", "--systemd"]);
    systemctl(&["stop", SERVICE]);
    started_again();
    assert_eq!(
        length(&running()),
        length(&programs.join("portcullis-supervisor")),
        "the version before runs"
    );

    fs::remove_dir_all(next).expect("remove");
    let said = run("portcullis", &["uninstall", "--purge"]);
    assert!(said.ends_with("nothing of it is left\n"), "{said}");
    nothing_is_left(&before);
}

fn what_install_put_in_place_goes_although_a_user_is_in_use() {
    let before = Snapshot::take();
    let portcullis = Path::new(PROGRAMS).with_file_name("portcullis");
    run(portcullis.to_str().expect("text"), &["install", "--systemd"]);
    let mut sleeper = Command::new("sleep").arg("infinity").uid(61_001).spawn().expect("sleep");
    let said = run("portcullis", &["uninstall", "--purge"]);
    sleeper.kill().expect("kill");
    sleeper.wait().expect("wait");
    assert!(said.contains("left alone: run userdel: ") && said.contains("remove it by hand"), "{said}");
    assert!(said.ends_with("everything else is gone\n"), "{said}");
    run("userdel", &["portcullis-shared"]);
    nothing_is_left(&before);
}

fn a_package_runs_is_upgraded_and_goes_without_residue() {
    let package = package();
    let package = package.to_str().expect("text");
    let before = Snapshot::take();
    run("apt-get", &["install", "--yes", package]);
    let installed = fs::read(format!("{INSTALLED}/portcullis-supervisor")).expect("the supervisor");
    let built = fs::read(PROGRAMS).expect("the supervisor as built");
    assert!(
        installed == built,
        "{package} was made from other programs than those under test; make it again"
    );
    runs_with_nothing_to_decide();
    for unit in SOCKETS.iter().chain([&SERVICE]) {
        assert_eq!(property(unit, "UnitFileState"), "enabled", "{unit}");
    }
    decides_after_a_reload();

    // Two ways of installing do not get into each other's way.
    let refused = output("portcullis", &["install", "--systemd"]);
    assert!(text(&refused).contains("install over the package \"portcullis\""), "{refused:?}");

    // The same version again is what an upgrade does, too: the configuration stays, new programs are started.
    let configuration = fs::read(CONFIGURATION).expect("configuration");
    let supervisor = property(SERVICE, "MainPID");
    run("dpkg", &["--install", package]);
    answers();
    assert_ne!(property(SERVICE, "MainPID"), supervisor);
    assert_eq!(fs::read(CONFIGURATION).expect("configuration"), configuration);

    run("apt-get", &["remove", "--yes", "portcullis"]);
    assert_eq!(processes(), BTreeMap::new());
    assert!(!Path::new(INSTALLED).exists() && Path::new(CONFIGURATION).exists());
    run("apt-get", &["purge", "--yes", "portcullis"]);
    nothing_is_left(&before);
}

fn a_package_is_not_installed_where_its_users_would_be_somebody_else() {
    let package = package();
    let package = package.to_str().expect("text");
    let before = Snapshot::take();
    type Line = &'static [&'static str];
    let cases: [(Line, Line, &str); 5] = [
        (&["useradd", "-u", "61001", "eve"], &["userdel", "eve"], "\"eve\" has number 61001; rename"),
        (&["groupadd", "-g", "61000", "eve"], &["groupdel", "eve"], "\"eve\" has number 61000; rename"),
        (
            &["groupadd", "-g", "7777", "portcullis-shared"],
            &["groupdel", "portcullis-shared"],
            "\"portcullis-shared\" has number 7777; rename",
        ),
        (
            &["useradd", "-o", "-u", "0", "-s", "/usr/sbin/nologin", "-N", "portcullis"],
            // userdel finds process 1 in use.
            &["sed", "-i", "/^portcullis:/d", "/etc/passwd", "/etc/shadow"],
            "use passwd entry \"portcullis\": number 0, expected one of the system's (1 to 999)",
        ),
        (
            &["useradd", "-r", "-s", "/bin/sh", "-N", "portcullis"],
            &["userdel", "portcullis"],
            "use user \"portcullis\": it can log in (shell \"/bin/sh\")",
        ),
    ];
    for (set, unset, expected) in cases {
        run(set[0], &set[1..]);
        let refused = output("dpkg", &["--install", package]);
        assert!(!refused.status.success() && text(&refused).contains(expected), "{set:?}: {refused:?}");
        run(unset[0], &unset[1..]);
        nothing_is_left(&before);
    }

    symlink("/srv", "/var/cache/portcullis").expect("symlink");
    let refused = output("dpkg", &["--install", package]);
    assert!(
        !refused.status.success()
            && text(&refused).contains("use /var/cache/portcullis: it is a symbolic link"),
        "{refused:?}"
    );
    // And where nobody is in the way it is installed.
    fs::remove_file("/var/cache/portcullis").expect("remove");
    run("dpkg", &["--configure", "portcullis"]);
    runs_with_nothing_to_decide();
    run("dpkg", &["--purge", "portcullis"]);
    nothing_is_left(&before);
}

fn a_package_takes_nothing_away_that_is_not_its_own() {
    let package = package();
    let package = package.to_str().expect("text");
    run("groupadd", &["--system", "portcullis"]);
    let before = Snapshot::take();
    run("dpkg", &["--install", package]);
    run("dpkg", &["--remove", "portcullis"]);
    let programs = Path::new(PROGRAMS).parent().expect("a directory");
    let portcullis = programs.join("portcullis");
    let refused = output(portcullis.to_str().expect("text"), &["install", "--systemd"]);
    assert!(text(&refused).contains("even after apt remove; apt purge it first"), "{refused:?}");

    // As if it had been installed by hand in between.
    run("dpkg", &["--install", package]);
    run("dpkg", &["--remove", "portcullis"]);
    let (manifest, policy) = (format!("{INSTALLED}/manifest.json"), "/var/cache/portcullis/shared/policy");
    fs::create_dir_all(INSTALLED).expect("mkdir");
    for path in [&manifest, policy] {
        fs::write(path, b"{}").expect("write");
    }
    let made = fs::read("/var/lib/portcullis/made").expect("what was made");
    let said = run("dpkg", &["--purge", "portcullis"]);
    assert!(said.contains("left alone: what `portcullis install` placed"), "{said}");
    assert!(Path::new(policy).exists() && Path::new("/var/lib/portcullis/state").exists());
    for user in USERS {
        run("getent", &["passwd", user]);
    }
    fs::remove_dir_all(INSTALLED).expect("remove");

    // What is mounted below the caches is not removed, nor is anything else while it is.
    run("dpkg", &["--install", package]);
    fs::write("/var/lib/portcullis/made", made).expect("write");
    let mounted = "/var/cache/portcullis/shared/a place";
    for path in [mounted, "/srv/kept"] {
        fs::create_dir(path).expect("mkdir");
    }
    run("mount", &["--bind", "/srv", mounted]);
    let refused = output("dpkg", &["--purge", "portcullis"]);
    assert!(
        !refused.status.success()
            && text(&refused).contains("a\\040place is mounted there; unmount it and purge"),
        "{refused:?}"
    );
    assert!(Path::new("/srv/kept").exists() && Path::new("/var/lib/portcullis/state").exists());
    run("umount", &[mounted]);
    fs::remove_dir("/srv/kept").expect("remove");

    // A user that somebody uses stays, and says so, and the rest goes.
    let mut sleeper = Command::new("sleep").arg("infinity").uid(61_001).spawn().expect("sleep");
    let said = run("dpkg", &["--purge", "portcullis"]);
    sleeper.kill().expect("kill");
    sleeper.wait().expect("wait");
    assert!(said.contains("left alone: portcullis-shared in passwd; remove it by hand"), "{said}");
    run("userdel", &["portcullis-shared"]);
    // The group that was there before is there still.
    nothing_is_left(&before);
}

/// The package, made beforehand from the programs under test.
fn package() -> PathBuf {
    let target = Path::new(PROGRAMS).ancestors().nth(2).expect("a target directory").join("debian");
    let found = fs::read_dir(&target).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut packages: Vec<PathBuf> =
        found.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
    assert_eq!(
        packages.len(),
        1,
        "one package is expected in {target:?}; cargo install cargo-deb --locked --version 3.8.0 && target/debug/portcullis man --out target/man --completions && cargo deb --no-build \
         --no-strip --fast --profile dev"
    );
    packages.remove(0)
}

/// As it is right after it was installed.
fn runs_with_nothing_to_decide() {
    assert_eq!(property(SERVICE, "ActiveState"), "active");
    let status = run("portcullis", &["status"]);
    assert!(status.contains("no policies"), "{status}");
    let asked = output(
        "portcullis",
        &["decide", "--tenant", "acme", "--policy", "gate", "--url", "https://shop.example/"],
    );
    assert!(matches!(asked.status.code(), Some(2 | 3)), "{asked:?}");
    for user in USERS {
        run("getent", &["passwd", user]);
    }
    let cache = fs::metadata("/var/cache/portcullis/shared").expect("cache");
    assert_eq!((cache.uid(), cache.mode() & 0o7777), (61_001, 0o700));
}

/// A key, a policy and a tenant are added to what runs already.
fn decides_after_a_reload() {
    populated();
    run("portcullis", &["reload"]);
    answers();
}

/// A client is enough: it waits until the service is there.
fn started_again() {
    answers();
    assert!(roles().len() >= 3, "{:?}", processes());
}

fn running() -> PathBuf {
    let pid = property(SERVICE, "MainPID");
    Path::new("/proc").join(pid).join("exe")
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap_or_else(|why| panic!("{path:?}: {why}")).len()
}

fn programs_installed() -> Vec<String> {
    let roles = fs::read_dir(INSTALLED).expect("programs").flatten();
    let roles = roles.filter_map(|entry| entry.file_name().into_string().ok());
    roles.filter(|name| name.starts_with("portcullis-")).chain(["portcullis".to_owned()]).collect()
}

/// A machine before it had anything of ours.
struct Snapshot {
    files: Vec<PathBuf>,
    users: Vec<String>,
}

impl Snapshot {
    fn take() -> Self {
        let lists = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];
        // Not their order: who removes a line may sort the others.
        let users = lists.iter().flat_map(|list| {
            let list = fs::read_to_string(list).unwrap_or_default();
            let mut lines: Vec<String> = list.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        });
        Self { files: listed(&PLACES), users: users.collect() }
    }
}

fn nothing_is_left(before: &Snapshot) {
    assert_eq!(processes(), BTreeMap::new());
    let now = Snapshot::take();
    let left: Vec<&PathBuf> =
        now.files.iter().filter(|path| !before.files.contains(path)).filter(|path| !others(path)).collect();
    assert_eq!(left, Vec::<&PathBuf>::new());
    let lost: Vec<&PathBuf> =
        before.files.iter().filter(|path| !now.files.contains(path)).filter(|path| !others(path)).collect();
    assert_eq!(lost, Vec::<&PathBuf>::new());
    assert_eq!(now.users, before.users);
    for place in ["/run/portcullis", "/run/credentials/portcullis.service"] {
        assert!(!Path::new(place).exists(), "{place}");
    }
    let units = systemctl(&[
        "list-units",
        "--all",
        "--no-legend",
        "--plain",
        "portcullis.*",
        "portcullis-operator.*",
    ]);
    assert_eq!(units, "");
    // It fails where it finds none.
    let files =
        output("systemctl", &["list-unit-files", "--no-legend", "portcullis.*", "portcullis-operator.*"]);
    assert_eq!(text(&files).trim(), "");
}

/// What systemd, dpkg and the programs for users keep for themselves, whoever called them.
fn others(path: &Path) -> bool {
    let backups = [
        "/etc/passwd-",
        "/etc/group-",
        "/etc/shadow-",
        "/etc/gshadow-",
        "/etc/.pwd.lock",
        "/etc/subuid-",
        "/etc/subgid-",
    ];
    let own = [
        "/var/cache/apt/",
        "/var/cache/ldconfig",
        "/var/lib/apt/",
        "/var/lib/dpkg/",
        "/var/lib/systemd",
        "/var/log",
        "/var/tmp/systemd-private-",
    ];
    let text = path.to_string_lossy();
    (backups.contains(&&*text) || own.iter().any(|place| text.starts_with(place)))
        && !text.contains("portcullis")
}
