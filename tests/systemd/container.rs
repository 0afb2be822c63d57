//! The outside: boots a throw-away container, runs one test in it, carries out what it said and how it ended.
//!
//! systemd-nspawn with a memory overlay on a tree that nobody writes to, no network, its own /proc and UIDs that mean
//! the same as outside. Two things are not as nspawn would have them. `SYSTEMD_SECCOMP=0`: its own filter would
//! forbid Landlock, which only makes sense of a test that wants that. And each container begins in control groups of its
//! own: nspawn would put all of them into one, where systemds find each other's processes; and in the hierarchies of
//! version 1 limits would not be enforced.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::Failed;

use crate::machine::PROGRAMS;
use crate::support;

/// How to get what the tests run in.
const HOW: &str = "apt-get install systemd-container debootstrap && debootstrap --variant=minbase \
                   --include=systemd,systemd-sysv,dbus,util-linux,procps bookworm /var/tmp/portcullis-rootfs";
/// A machine that hangs is ended after so many seconds. The slowest test takes ten on a quiet machine, and may start the
/// service eleven times.
const PATIENCE: &str = "300";
/// Where systemd counts processes, and where limits are: of version 1, both side by side, or of version 2 alone.
const HIERARCHIES: [&str; 5] = ["systemd", "unified", "pids", "memory", ""];
/// Where a test's own files are, in the container.
const SHARED: &str = "/portcullis-test";

/// The tree to boot from, where the tests are to run at all.
pub(crate) fn rootfs() -> Option<PathBuf> {
    let named = std::env::var_os("PORTCULLIS_SYSTEMD_ROOTFS").filter(|path| !path.is_empty());
    named.filter(|_| support::is_root()).map(PathBuf::from)
}

/// Boots, runs `test` of this program inside, and fails as it fails.
pub(crate) fn run(test: &str, rootfs: &Path) -> Result<(), Failed> {
    check(rootfs)?;
    for component in crate::machine::COMPONENTS {
        support::built(component);
    }
    let shared = tempfile::Builder::new().prefix("portcullis-systemd-").tempdir()?;
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755))?;
    fs::write(shared.path().join("test.service"), service(test)?)?;
    fs::write(shared.path().join("test.target"), TARGET)?;
    let groups = Groups::make();
    let console = fs::File::create(shared.path().join("console"))?;
    let status = Command::new("sh")
        .arg("-c")
        .arg(groups.enter_and_exec())
        .args(["sh", "timeout", "--kill-after=10", PATIENCE, "systemd-nspawn"])
        .args(nspawn(rootfs, shared.path(), &groups.name)?)
        .env("SYSTEMD_SECCOMP", "0")
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .status()?;
    let said = fs::read_to_string(shared.path().join("out")).unwrap_or_default();
    if status.success() {
        for line in said.lines().filter(|line| line.starts_with("measured: ")) {
            println!("{test}: {line}");
        }
        return Ok(());
    }
    let console = fs::read(shared.path().join("console")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console).into_owned();
    let last: Vec<&str> = console.lines().rev().take(15).collect();
    let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(format!("{status}\n--- the test said\n{said}\n--- the machine's last lines\n{last}").into())
}

/// Said before anything fails for want of it.
fn check(rootfs: &Path) -> Result<(), Failed> {
    if !rootfs.join("lib/systemd/systemd").exists() {
        return Err(format!("{rootfs:?} has no systemd to boot; {HOW}").into());
    }
    let found = Command::new("systemd-nspawn").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err(format!("no systemd-nspawn here; {HOW}").into());
    }
    Ok(())
}

fn nspawn(rootfs: &Path, shared: &Path, name: &str) -> Result<Vec<OsString>, Failed> {
    let mut arguments: Vec<OsString> = [
        "--quiet",
        "--volatile=overlay",
        "--boot",
        "--register=no",
        "--keep-unit",
        "--console=pipe",
        "--private-network",
        "--machine",
        name,
        "--directory",
    ]
    .map(OsString::from)
    .into();
    arguments.push(rootfs.into());
    let mut bind = |option: &str, from: &Path, to: &Path| {
        let mut argument = OsString::from(option);
        argument.extend([from.as_os_str(), ":".as_ref(), to.as_os_str()]);
        arguments.push(argument);
    };
    bind("--bind=", shared, Path::new(SHARED));
    for unit in ["test.service", "test.target"] {
        bind("--bind-ro=", &shared.join(unit), &Path::new("/etc/systemd/system").join(unit));
    }
    // What the tests read is where it is outside: this program, those it tests, compiled policies, the units.
    let own = std::env::current_exe()?;
    let own = own.parent().ok_or("this program is in no directory")?;
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = Vec::new();
    for path in [
        repository,
        own,
        Path::new(PROGRAMS).parent().ok_or("no programs")?,
        Path::new(env!("CARGO_TARGET_TMPDIR")),
    ] {
        if !seen.iter().any(|above: &&Path| path.starts_with(above)) {
            bind("--bind-ro=", path, path);
            seen.push(path);
        }
    }
    arguments.push("systemd.unit=test.target".into());
    Ok(arguments)
}

fn service(test: &str) -> Result<String, Failed> {
    let own = std::env::current_exe()?;
    Ok(format!(
        "[Unit]\n\
         Description=A test\n\
         After=multi-user.target\n\
         SuccessAction=exit-force\n\
         FailureAction=exit-force\n\
         [Service]\n\
         Type=oneshot\n\
         TimeoutStartSec={PATIENCE}\n\
         ExecStart={} --inside {test}\n\
         StandardOutput=file:{SHARED}/out\n\
         StandardError=inherit\n",
        own.display(),
    ))
}

const TARGET: &str =
    "[Unit]\nRequires=multi-user.target test.service\nAfter=multi-user.target\nAllowIsolate=yes\n";

/// The container's own control groups, removed when it is gone.
struct Groups {
    name: String,
    directories: Vec<PathBuf>,
}

impl Groups {
    fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("portcullis-{}-{count}", std::process::id());
        let made = |hierarchy: &str| {
            let parent = Path::new("/sys/fs/cgroup").join(hierarchy);
            let directory = parent.join(&name);
            (parent.join("cgroup.procs").exists() && fs::create_dir(&directory).is_ok()).then_some(directory)
        };
        Self { directories: HIERARCHIES.into_iter().filter_map(made).collect(), name }
    }

    /// A line of shell that goes there and becomes its arguments.
    fn enter_and_exec(&self) -> String {
        let mut script = String::from("set -e; ");
        for directory in &self.directories {
            script += &format!("echo $$ >'{}/cgroup.procs'; ", directory.display());
        }
        script + "exec \"$@\""
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        fn remove(directory: &Path) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            if let Err(why) = fs::remove_dir(directory) {
                eprintln!("remove {directory:?}: {why}");
            }
        }
        self.directories.iter().for_each(|directory| remove(directory));
    }
}
