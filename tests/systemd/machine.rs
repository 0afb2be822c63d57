//! The inside: a machine with systemd, on which the service is installed, configured and asked.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::SigningKey;
use portcullis::client::blocking::Client;
use portcullis::client::{ClientError, Deadline, Question, Settings};
use portcullis::decision::{Decision, Outcome};

use crate::support::{PATIENCE, draft, policy, tenant, trust_policy, write_signed};

/// One of the programs under test, as built; the others are beside it.
pub(crate) const PROGRAMS: &str = env!("CARGO_BIN_EXE_portcullis-supervisor");
/// Compiled outside, before the machine is there, and found compiled inside.
pub(crate) const COMPONENTS: [&str; 1] = [SELECTIVE];
/// Does what its input says: `allow`, `deny:why`, `number:7`.
const SELECTIVE: &str = "hostile/selective";

pub(crate) const SERVICE: &str = "portcullis.service";
pub(crate) const SOCKETS: [&str; 2] = ["portcullis.socket", "portcullis-operator.socket"];
pub(crate) const DECIDE: &str = "/run/portcullis/decide.sock";
pub(crate) const OPERATOR: &str = "/run/portcullis/operator.sock";
/// Where the programs are that systemd starts.
const INSTALLED: &str = "/usr/lib/portcullis";
/// A test's own part of a unit, and the one that all have.
const DROP_IN: &str = "test.conf";
const PATIENT: &str = "patient.conf";
/// The role of those that live for one job.
const BUILDER: &str = "builder";
pub(crate) const CONFIGURATION: &str = "/etc/portcullis/portcullis.toml";
pub(crate) const CACHE: &str = "/var/cache/portcullis/shared";
pub(crate) const TRUST: &str = "/etc/portcullis/trust.toml";

/// A configuration with one class and one tenant that root may ask for.
pub(crate) const SOUND: &str = r#"
[service]
socket = "/run/portcullis/decide.sock"
operator_socket = "/run/portcullis/operator.sock"
store = "/var/lib/portcullis/store"
state = "/var/lib/portcullis/state"
trust = "/etc/portcullis/trust.toml"
tenants = "/etc/portcullis/tenants.d"
answer_within = "10s"                 # machines boot beside this one
[frontend]
uid = 61000
gid = 61000
[registry]
uid = 61009
gid = 61009
[class.shared]
uid = 61001
gid = 61001
cache = "/var/cache/portcullis/shared"
[tenant.acme]
class = "shared"
policies = ["gate"]
uids = [0]
max_deadline = "5s"
default_deadline = "5s"
"#;

/// Everything in its place as after an installation, a policy and a sound configuration; nothing is started.
pub(crate) fn installed() {
    install();
    populated();
    // A machine that stops for two seconds is not what is tested, but where it is said so.
    part(SERVICE, PATIENT, "[Service]\nWatchdogSec=1min\n");
}

/// With the packaged unit's own watchdog.
pub(crate) fn impatient() {
    fs::remove_file(place_of(SERVICE, PATIENT)).expect("remove");
    systemctl(&["daemon-reload"]);
}

/// A key, a policy and a configuration that names them, for a service that is installed.
pub(crate) fn populated() {
    let key = SigningKey::generate_ed25519().expect("key");
    write(TRUST, trust_policy(&[&key]).as_bytes());
    let mut draft = draft(SELECTIVE, "acme", "gate", 1);
    // The class's and the tenant's limits are those that count.
    draft.limits.memory = 1 << 30;
    draft.limits.deadline_us = 5_000_000;
    let store = Path::new("/var/lib/portcullis/store/acme");
    fs::create_dir_all(store).expect("mkdir");
    fs::set_permissions(store, fs::Permissions::from_mode(0o755)).expect("chmod");
    write_signed(draft, &store.join("gate"), &key);
    configure(SOUND);
}

/// The same, and the service runs.
pub(crate) fn started() {
    installed();
    systemctl(&["start", SERVICE]);
}

/// Tries to start the service; what systemctl said, and what the service did.
pub(crate) fn start() -> (Output, String) {
    let before = journal().len();
    let output = output("systemctl", &["start", SERVICE]);
    (output, journal().split_off(before))
}

/// As an administrator does it.
fn install() {
    let from = Path::new(PROGRAMS).parent().expect("a directory");
    let portcullis = from.join("portcullis");
    run(portcullis.to_str().expect("text"), &["install", "--systemd"]);
}

pub(crate) fn write(path: &str, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|why| panic!("write {path}: {why}"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("chmod");
}

pub(crate) fn configure(text: &str) {
    write(CONFIGURATION, text.as_bytes());
}

/// Settings in addition to a unit's, in force with the next start of it.
pub(crate) fn drop_in(unit: &str, text: &str) {
    part(unit, DROP_IN, text);
}

pub(crate) fn without_drop_in(unit: &str) {
    fs::remove_file(place_of(unit, DROP_IN)).expect("remove");
    systemctl(&["daemon-reload"]);
}

fn part(unit: &str, name: &str, text: &str) {
    let place = place_of(unit, name);
    fs::create_dir_all(place.parent().expect("directory")).expect("mkdir");
    write(place.to_str().expect("path"), text.as_bytes());
    systemctl(&["daemon-reload"]);
}

fn place_of(unit: &str, name: &str) -> PathBuf {
    Path::new("/run/systemd/system").join(format!("{unit}.d")).join(name)
}

/// Runs a program to its end, whatever that is.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|why| panic!("run {program}: {why}"))
}

/// Runs a program that has to succeed; what it printed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = text(&output);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{}", output.status, journal());
    text
}

#[track_caller]
pub(crate) fn systemctl(arguments: &[&str]) -> String {
    run("systemctl", arguments)
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// One property of a unit, as `systemctl show` has it.
pub(crate) fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, unit]).trim().to_owned()
}

/// What the service, and systemd about it, said so far.
pub(crate) fn journal() -> String {
    let _ = output("journalctl", &["--sync"]);
    text(&output("journalctl", &["--quiet", "--no-pager", "--output=cat", "--unit=portcullis*"]))
}

/// The service's processes by number, each with its role: the part of the program's name behind `portcullis-`. Not those that
/// have ended and are only not waited for yet.
pub(crate) fn processes() -> BTreeMap<i32, String> {
    let role = |pid: &i32| {
        // Gone, if it cannot be read.
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name = program.strip_prefix(INSTALLED).ok()?.to_str()?;
        Some(name.strip_prefix("portcullis-")?.to_owned())
    };
    let numbers = fs::read_dir("/proc")
        .expect("list /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(|pid| Some((pid, role(&pid)?))).collect()
}

/// The processes that stay: a builder comes with a bundle that is looked at, and goes when it likes.
pub(crate) fn lasting() -> BTreeMap<i32, String> {
    let mut processes = processes();
    processes.retain(|_, role| role != BUILDER);
    processes
}

/// The same of a service with one class, as soon as nobody else is there: a builder may be on its way out when the service is
/// ready, and whom a reload has replaced finishes what was begun.
pub(crate) fn settled() -> BTreeMap<i32, String> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let processes = processes();
        let mut roles: Vec<&str> = processes.values().map(String::as_str).collect();
        roles.sort_unstable();
        roles.dedup();
        if roles.len() == processes.len() && !roles.contains(&BUILDER) {
            return processes;
        }
        assert!(Instant::now() < patience, "{processes:?}\n{}", journal());
        std::thread::yield_now();
    }
}

/// The roles there are, each once, without builders.
pub(crate) fn roles() -> Vec<String> {
    let mut roles: Vec<String> = lasting().into_values().collect();
    roles.sort();
    roles.dedup();
    roles
}

/// The process of this role, as soon as there is one and no other: one that was replaced may not have ended yet.
pub(crate) fn process(role: &str) -> Process {
    let patience = Instant::now() + PATIENCE;
    loop {
        let found: Vec<i32> =
            processes().into_iter().filter(|(_, name)| name == role).map(|(pid, _)| pid).collect();
        if let [pid] = found[..]
            && let Some(process) = Process::find(pid)
        {
            return process;
        }
        assert!(Instant::now() < patience, "there is not one {role}, but {found:?}\n{}", journal());
        std::thread::yield_now();
    }
}

/// Everybody who is there.
pub(crate) fn everybody() -> Vec<Process> {
    processes().into_keys().filter_map(Process::find).collect()
}

/// A process that cannot be mistaken for a later one of the same number.
pub(crate) struct Process {
    pub(crate) pid: i32,
    descriptor: OwnedFd,
}

impl Process {
    /// None if it is gone.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        // JUSTIFICATION: neither std nor nix has this call.
        // SAFETY: it takes two numbers and gives back a new descriptor.
        #[expect(unsafe_code, reason = "pidfd_open by number")]
        let made = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if made < 0 {
            let why = std::io::Error::last_os_error();
            assert_eq!(why.raw_os_error(), Some(libc::ESRCH), "{why}");
            return None;
        }
        let number = i32::try_from(made).expect("a descriptor");
        // SAFETY: just made, and nobody else knows it.
        #[expect(unsafe_code, reason = "a new descriptor arrives as a number")]
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        Some(Self { pid, descriptor })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("signal");
    }

    /// Waits until it has ended.
    #[track_caller]
    pub(crate) fn ended(&self) {
        let mut watched = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("short enough");
        let ready = poll(&mut watched, patience).expect("poll");
        assert_eq!(ready, 1, "process {} has not ended\n{}", self.pid, journal());
    }
}

/// A client with so much patience that it comes through any restart.
pub(crate) fn client() -> Client {
    let settings = Settings {
        patience: PATIENCE,
        retry_first: Duration::from_millis(1),
        retry_longest: Duration::from_millis(20),
        ..Settings::default()
    };
    Client::with_settings(DECIDE, settings)
}

pub(crate) fn try_ask(client: &mut Client, input: &str) -> Result<Decision, ClientError> {
    let question = Question::opaque("", input.as_bytes());
    client.decide(&tenant("acme"), &policy("gate"), Deadline::Default, question.input())
}

/// Asks on a new connection; waits for a service that is not there yet.
#[track_caller]
pub(crate) fn ask(input: &str) -> Outcome {
    match try_ask(&mut client(), input) {
        Ok(decision) => decision.outcome,
        Err(why) => panic!("ask {input}: {why}\n{}", journal()),
    }
}

/// The service answers, and both ways.
#[track_caller]
pub(crate) fn answers() {
    assert_eq!(ask("allow"), Outcome::Allow);
    assert_eq!(ask("deny:so"), Outcome::Deny { reason: "so".into() });
}

/// Asks with `portcullis decide` as somebody else, for what is allowed; its exit code and what it said.
pub(crate) fn ask_as(uid: u32, groups: &str, deadline: &str) -> (Option<i32>, String) {
    let (uid, groups) = (uid.to_string(), format!("--groups={groups}"));
    let groups = if groups == "--groups=" { "--clear-groups".to_owned() } else { groups };
    let mut child = Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &uid, &groups, "/usr/bin/portcullis", "decide"])
        .args(["--tenant", "acme", "--policy", "gate", "--opaque", "-", "--deadline", deadline])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run setpriv");
    let mut stdin = child.stdin.take().expect("stdin");
    // Who is refused at once does not read.
    let _ = stdin.write_all(b"allow");
    drop(stdin);
    let output = child.wait_with_output().expect("wait");
    (output.status.code(), text(&output))
}

/// Every path below these, for comparing before and after; of what is mounted there (the checkout may be) only the place.
pub(crate) fn listed(roots: &[&str]) -> Vec<PathBuf> {
    fn walk(path: &Path, device: u64, found: &mut Vec<PathBuf>) {
        found.push(path.to_owned());
        if fs::symlink_metadata(path).is_ok_and(|one| one.is_dir() && one.dev() == device) {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                walk(&entry.path(), device, found);
            }
        }
    }
    let mut found = Vec::new();
    for root in roots {
        let device = fs::symlink_metadata(root).map_or(0, |root| root.dev());
        walk(Path::new(root), device, &mut found);
    }
    found.sort();
    found
}
