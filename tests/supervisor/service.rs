//! The real supervisor, in a directory of its own, with this binary as its children.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::wire::control::{Process, ProcessState, ProcessTable};

/// Long enough for a machine that does other things; only ever waited for when something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Directory with the supervisor, the spawner and this binary under the names of all others, made once.
pub(crate) fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<tempfile::TempDir> = OnceLock::new();
    PROGRAMS
        .get_or_init(|| {
            let directory = tempfile::tempdir().expect("tempdir");
            let own = std::env::current_exe().expect("exe");
            let supervisor = PathBuf::from(env!("CARGO_BIN_EXE_portcullis-supervisor"));
            let spawner = PathBuf::from(env!("CARGO_BIN_EXE_portcullis-spawner"));
            for (from, to) in [
                (&supervisor, "portcullis-supervisor"),
                (&spawner, "portcullis-spawner"),
                (&own, "portcullis-frontend"),
                (&own, "portcullis-worker"),
                (&own, "portcullis-registry"),
                (&own, "portcullis-builder"),
                (&own, "portcullis-exporter"),
                (&own, "portcullis-gateway"),
            ] {
                let to = directory.path().join(to);
                fs::copy(from, &to).expect("copy");
                fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("chmod");
            }
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).expect("chmod");
            directory
        })
        .path()
}

/// Who starts the service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// Whoever runs the tests: root, with a UID for each role, or an ordinary user.
    Caller,
    /// A UID without any privilege.
    Ordinary,
    /// A UID with the four capabilities, as under systemd.
    Ambient,
}

/// The UID of [`As::Ordinary`] and [`As::Ambient`].
const STARTER: u32 = 61009;

pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    starter: As,
}

impl Site {
    /// Everything a configuration with the classes a and b names.
    pub(crate) fn new(starter: As) -> Self {
        let site = Self { directory: tempfile::tempdir().expect("tempdir"), starter };
        let own = nix::unistd::geteuid().as_raw();
        let (own, distinct) = match starter {
            As::Caller => (own, own == 0),
            As::Ordinary => (STARTER, false),
            As::Ambient => (STARTER, true),
        };
        site.give(".", 0o711, own);
        for (name, owner) in [
            ("run", own),
            ("store", own),
            ("trust", own),
            ("state", if distinct { 61010 } else { own }),
            ("a", if distinct { 61001 } else { own }),
            ("b", if distinct { 61002 } else { own }),
        ] {
            fs::create_dir(site.path(name)).expect("mkdir");
            // The children have to reach the socket's directory's parent no more than anybody else.
            site.give(name, if name == "run" { 0o755 } else { 0o700 }, owner);
        }
        site.trust("");
        site.configure("");
        site
    }

    /// What the registry is told: see `children`.
    pub(crate) fn trust(&self, orders: &str) {
        let new = self.path("trust/new");
        fs::write(&new, orders).expect("write");
        fs::rename(&new, self.path("trust/trust.toml")).expect("rename");
        self.give("trust/trust.toml", 0o644, fs::metadata(self.path("trust")).expect("stat").uid());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn give(&self, name: &str, mode: u32, owner: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).expect("chmod");
        chown(self.path(name), Some(owner), Some(owner)).expect("chown");
    }

    /// Writes a sound configuration and `more`. Answers may take long here: the machine does other things.
    pub(crate) fn configure(&self, more: &str) {
        self.write(&self.sound("10s", more));
    }

    pub(crate) fn sound(&self, answer_within: &str, more: &str) -> String {
        format!(
            r#"
[service]
socket = "@/run/decide.sock"
operator_socket = "@/run/operator.sock"
store = "@/store"
state = "@/state"
trust = "@/trust/trust.toml"
drain = "10s"
answer_within = "{answer_within}"
[frontend]
uid = 61000
gid = 61000
[registry]
uid = 61010
gid = 61010
[class.a]
uid = 61001
gid = 61001
cache = "@/a"
threads = 1
[class.b]
uid = 61002
gid = 61002
cache = "@/b"
threads = 1
{more}"#
        )
    }

    pub(crate) fn write(&self, text: &str) {
        let text = text.replace('@', &self.directory.path().display().to_string());
        let new = self.path("new");
        fs::write(&new, text).expect("write");
        fs::rename(&new, self.path("portcullis.toml")).expect("rename");
        fs::set_permissions(self.path("portcullis.toml"), fs::Permissions::from_mode(0o644)).expect("chmod");
    }

    pub(crate) fn command(&self) -> Command {
        let program = programs().join("portcullis-supervisor");
        let mut command = match self.starter {
            As::Caller => Command::new(program),
            As::Ordinary | As::Ambient => {
                let mut command = Command::new("setpriv");
                command
                    .args([&format!("--reuid={STARTER}"), &format!("--regid={STARTER}")])
                    .arg("--clear-groups");
                if self.starter == As::Ambient {
                    let four = "+setuid,+setgid,+setpcap,+kill";
                    command.args([format!("--inh-caps={four}"), format!("--ambient-caps={four}")]);
                }
                command.arg(program);
                command
            }
        };
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("INVOCATION_ID")
            .env("CANARY", "must not reach the children");
        command.arg("--config").arg(self.path("portcullis.toml")).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end, which must come by itself; its exit code and what it said.
    pub(crate) fn run_to_end(&self) -> (Option<i32>, String) {
        let output = self.command().output().expect("run");
        let said = String::from_utf8(output.stderr).expect("text");
        (output.status.code(), said.replace(&self.directory.path().display().to_string(), "@"))
    }

    pub(crate) fn start(&self) -> Service {
        self.start_with(self.command())
    }

    pub(crate) fn start_with(&self, mut command: Command) -> Service {
        let sockets = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ATTRIB;
        sockets.add_watch(&self.path("run"), changes).expect("watch");
        let process = command.spawn().expect("spawn");
        Service {
            process,
            sockets,
            socket: self.path("run/decide.sock"),
            tables: None,
            last: None,
            lasting: Vec::new(),
        }
    }
}

/// A running supervisor. Dropped without having ended, it is killed.
pub(crate) struct Service {
    pub(crate) process: Child,
    socket: PathBuf,
    /// Tells of what appears where the sockets are bound.
    sockets: Inotify,
    tables: Option<BufReader<UnixStream>>,
    /// Of the last table: children that come and go.
    last: Option<(usize, ProcessTable)>,
    /// And the supervisor and the spawner, which do not.
    pub(crate) lasting: Vec<Process>,
}

impl Service {
    /// Waits until something happens where sockets are bound; not for long, since the supervisor may also have ended.
    fn news_of_sockets(&self) {
        let mut waiting = [PollFd::new(self.sockets.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(100_u8)).expect("poll") > 0 {
            self.sockets.read_events().expect("events");
        }
    }

    /// Reads process tables, which the frontend sends whenever they change, until one is as `wanted`. The one read last
    /// is looked at first.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, wanted: impl Fn(usize, &ProcessTable) -> bool) -> ProcessTable {
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some((tenants, table)) = &self.last
                && wanted(*tenants, table)
            {
                return table.clone();
            }
            if let Some(status) = self.process.try_wait().expect("wait") {
                panic!("supervisor ended: {status}: {}", self.said());
            }
            let Some(reader) = &mut self.tables else {
                match UnixStream::connect(&self.socket) {
                    Ok(stream) => {
                        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
                        self.tables = Some(BufReader::new(stream));
                    }
                    Err(_) => self.news_of_sockets(),
                }
                continue;
            };
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(1..) => {
                    let (tenants, mut table): (usize, ProcessTable) =
                        serde_json::from_str(&line).expect("table");
                    // The first one is empty: the frontend knows of nothing yet.
                    self.lasting = table.processes.drain(..table.processes.len().min(2)).collect();
                    self.last = Some((tenants, table));
                }
                // The frontend died; the next one takes over the listening socket.
                _ => self.tables = None,
            }
        }
        panic!("never came about; the last table was {:?}", self.last)
    }

    #[track_caller]
    pub(crate) fn wait_until_all_serve(&mut self) -> ProcessTable {
        self.wait_until(|_, table| {
            let serving = |process: &&Process| process.state == ProcessState::Serving;
            table.processes.len() == 4 && table.processes.iter().filter(serving).count() == 4
        })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signal");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().expect("pid"))
    }

    /// Waits for the end; what it said.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let said = self.said();
        (self.process.wait().expect("wait"), said)
    }

    /// Until everybody who holds the log has closed it.
    /// Waits until it ends by itself, with this exit code.
    #[track_caller]
    pub(crate) fn ends_saying(&mut self, code: i32) -> String {
        let status = self.process.wait().expect("wait");
        let said = self.said();
        assert_eq!(status.code(), Some(code), "{said}");
        said
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            stderr.read_to_string(&mut said).expect("text");
        }
        said
    }

    #[track_caller]
    pub(crate) fn stop(self) -> String {
        self.signal(Signal::SIGTERM);
        let (status, said) = self.end();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{said}");
        said
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its children die with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The worker of class `class` that serves.
pub(crate) fn serving<'t>(table: &'t ProcessTable, class: &str) -> Option<&'t Process> {
    let of_class = |process: &&Process| {
        process.role == "worker" && process.class.as_ref().is_some_and(|name| name.as_str() == class)
    };
    table.processes.iter().filter(of_class).find(|process| process.state == ProcessState::Serving)
}

/// The registry that serves.
pub(crate) fn registry(table: &ProcessTable) -> Option<&Process> {
    let serving = |process: &&Process| process.state == ProcessState::Serving;
    table.processes.iter().filter(serving).find(|process| process.role == "registry")
}

pub(crate) fn generation(table: &ProcessTable, class: &str) -> Option<u64> {
    serving(table, class).map(|process| process.generation)
}
