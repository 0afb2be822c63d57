//! A whole service for one test: keys, signed policies, a configuration, the supervisor with all its processes.
//!
//! Started as root, every role has its own UID, as in production; started by an ordinary user they share one.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "a module of several programs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]
#![allow(clippy::print_stderr, reason = "what a failed test's service said")]

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::{self, Architecture, Digest, Limits, SigningKey, Statement};
use portcullis::bundle::Platform;
use portcullis::client::blocking::{Client, Connection};
use portcullis::client::{ClientError, Deadline, Question};
use portcullis::compile::{self, Built};
use portcullis::decision::{Decision, PolicyName, Tenant};
use portcullis::engine::{WASMTIME_VERSION, WORLD, settings_digest};
use portcullis::wire::frame;
use portcullis::wire::operator::{
    OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest, Status,
};
use tempfile::TempDir;

/// UIDs of the roles when started as root. Nothing else on a test machine uses them.
pub const FRONTEND_UID: u32 = 61_000;
pub const FIRST_CLASS_UID: u32 = 61_001;
/// Longest a step of the service may take before a test gives up: only met when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

pub fn policy(name: &str) -> PolicyName {
    PolicyName::new(name).unwrap()
}

/// The committed component of that name: `hash`, `hostile/spin`, ...
pub fn component(name: &str) -> Vec<u8> {
    let (folder, file) = name.rsplit_once('/').unwrap_or((name, name));
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(folder).join(format!("{file}.wasm"));
    fs::read(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}; run policies/build.sh"))
}

/// Compiled for this machine. Kept between test programs under the digest of what it was made from.
pub fn built(name: &str) -> Built {
    // Tests of one program run side by side and want the same policies.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = component(name);
    let key = Digest::of(&[Digest::of(&source).as_bytes().as_slice(), settings_digest().as_bytes()].concat());
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", key.short()));
    if let (Ok(facts), Ok(cwasm)) = (fs::read(&kept), fs::read(kept.with_extension("cwasm"))) {
        let (imports, exports, memory, table_elements) = serde_json::from_slice(&facts).unwrap();
        let (source, compiled) = (Digest::of(&source), vec![(Platform::host(), cwasm)]);
        return Built { source, imports, exports, memory, table_elements, compiled };
    }
    let built =
        compile::build(&source, &[Platform::host()]).unwrap_or_else(|error| panic!("build {name}: {error}"));
    let facts =
        serde_json::to_vec(&(&built.imports, &built.exports, built.memory, built.table_elements)).unwrap();
    artifact::store::replace(&kept.with_extension("cwasm"), code(&built), 0o644).unwrap();
    artifact::store::replace(&kept, &facts, 0o644).unwrap();
    built
}

/// The machine code for this host.
pub fn code(built: &Built) -> &[u8] {
    built.code_for(Platform::host()).expect("built for this host")
}

pub fn statement(built: &Built, tenant: &Tenant, policy: &PolicyName, version: u64) -> Statement {
    Statement {
        policy: policy.clone(),
        tenant: tenant.clone(),
        version,
        cwasm: Digest::of(code(built)),
        source: built.source,
        bundle: built.source,
        architecture: Architecture::host(),
        wasmtime: WASMTIME_VERSION.into(),
        engine: settings_digest(),
        world: WORLD.into(),
        imports: built.imports.clone(),
        limits: Limits::default(),
    }
}

/// What a service is started from: a directory with everything in it.
pub struct Site {
    pub dir: TempDir,
    pub key: SigningKey,
    /// Lines of `[service]`, `[frontend]`, and whole tables.
    pub service: String,
    pub frontend: String,
    pub tables: String,
    /// The supervisor to start; it starts what lies beside it.
    pub supervisor: PathBuf,
    frontend_uid: u32,
    /// A program and its arguments that the supervisor is started through; none by itself.
    pub through: Vec<String>,
    classes: u32,
}

impl Site {
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("portcullis-").unwrap();
        // Other UIDs pass through it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["store", "cache", "run", "keys"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let key = SigningKey::generate_ed25519().unwrap();
        fs::write(dir.path().join("keys/release.pub"), key.public_key().to_pem().unwrap()).unwrap();
        Self {
            dir,
            key,
            // Tests run beside compilers: only those about it want a short one.
            service: "answer_within = \"10s\"\n".into(),
            frontend: String::new(),
            tables: String::new(),
            supervisor: env!("CARGO_BIN_EXE_portcullis-supervisor").into(),
            frontend_uid: FRONTEND_UID,
            through: Vec::new(),
            classes: 0,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Other UIDs than those of other tests: the frontend's, and the classes' after it. Before the first class.
    #[must_use]
    pub fn uids_from(mut self, frontend: u32) -> Self {
        assert_eq!(self.classes, 0, "classes have theirs already");
        self.frontend_uid = frontend;
        self
    }

    /// A trust class with its cache, and more lines for its table.
    #[must_use]
    pub fn class(mut self, name: &str, more: &str) -> Self {
        let uid = self.frontend_uid + 1 + self.classes;
        self.classes += 1;
        let cache = self.path("cache").join(name);
        fs::create_dir(&cache).unwrap();
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
        if is_root() {
            chown(&cache, Some(uid), Some(uid)).unwrap();
        }
        writeln!(self.tables, "[class.{name}]\nuid = {uid}\ngid = {uid}\ncache = {cache:?}\n{more}").unwrap();
        self
    }

    /// A tenant that this process may ask for, with policies out of components: `("gate", "hostile/selective")`.
    #[must_use]
    pub fn tenant(mut self, name: &str, class: &str, policies: &[(&str, &str)], more: &str) -> Self {
        for (policy, component) in policies {
            self.install(name, policy, component, 1);
        }
        let names: Vec<&str> = policies.iter().map(|(policy, _)| *policy).collect();
        let uid = nix::unistd::geteuid();
        writeln!(
            self.tables,
            "[tenant.{name}]\nclass = \"{class}\"\npolicies = {names:?}\nuids = [{uid}]\n\
             max_deadline = \"5s\"\ndefault_deadline = \"2s\"\n{more}"
        )
        .unwrap();
        self
    }

    /// Builds, signs and puts a policy into the store. Returns the digest of the code.
    pub fn install(&self, tenant_name: &str, policy_name: &str, component: &str, version: u64) -> Digest {
        let built = built(component);
        let statement = statement(&built, &tenant(tenant_name), &policy(policy_name), version);
        self.put(tenant_name, policy_name, code(&built), &artifact::sign(&statement, &self.key).unwrap());
        statement.cwasm
    }

    pub fn put(&self, tenant_name: &str, policy_name: &str, cwasm: &[u8], signed: &[u8]) {
        artifact::store::write(
            &self.path("store"),
            &tenant(tenant_name),
            &policy(policy_name),
            cwasm,
            signed,
        )
        .unwrap();
    }

    pub fn config(&self) -> String {
        let (run, uid) = (self.path("run"), self.frontend_uid);
        format!(
            "[service]\nsocket = {:?}\noperator_socket = {:?}\nstore = {:?}\ntrusted_keys = [{:?}]\n\
             require_distinct_uids = {}\n{}\n[frontend]\nuid = {uid}\ngid = {uid}\n{}\n{}",
            run.join("decide.sock"),
            run.join("operator.sock"),
            self.path("store"),
            self.path("keys/release.pub"),
            is_root(),
            self.service,
            self.frontend,
            self.tables,
        )
    }

    /// Starts the service and waits until it is ready.
    pub fn start(self) -> Service {
        self.try_start().unwrap_or_else(|(status, log)| panic!("service did not start: {status}\n{log}"))
    }

    /// Starts the service; gives the exit status and what it said if it ends before it is ready.
    pub fn try_start(self) -> Result<Service, (ExitStatus, String)> {
        fs::write(self.path("portcullis.toml"), self.config()).unwrap();
        let notify = UnixDatagram::bind(self.path("run/notify.sock")).unwrap();
        // The supervisor may be another user, as under a real manager.
        fs::set_permissions(self.path("run/notify.sock"), fs::Permissions::from_mode(0o777)).unwrap();
        notify.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let log = fs::File::create(self.path("log")).unwrap();
        let supervisor = self.supervisor.display().to_string();
        let line: Vec<&String> = self.through.iter().chain([&supervisor]).collect();
        let mut child = Command::new(line[0])
            .args(&line[1..])
            .arg("--config")
            .arg(self.path("portcullis.toml"))
            .env("NOTIFY_SOCKET", self.path("run/notify.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let patience = std::time::Instant::now() + PATIENCE;
        while !said.iter().any(|state: &String| state.contains("READY=1")) {
            match receive(&notify) {
                Some(state) => said.push(state),
                None => {
                    if let Some(status) = child.try_wait().unwrap() {
                        return Err((status, fs::read_to_string(self.path("log")).unwrap()));
                    }
                    if std::time::Instant::now() > patience {
                        let _ = child.kill();
                        let status = child.wait().unwrap();
                        return Err((status, fs::read_to_string(self.path("log")).unwrap()));
                    }
                }
            }
        }
        Ok(Service { site: self, child, notify })
    }
}

fn receive(notify: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 4096];
    let length = notify.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A running service. Stopped, and its end waited for, when dropped.
pub struct Service {
    pub site: Site,
    child: Child,
    notify: UnixDatagram,
}

impl Service {
    pub fn socket(&self) -> PathBuf {
        self.site.path("run/decide.sock")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.site.path("log")).unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    pub fn connect(&self, name: &str) -> Connection {
        self.try_connect(name).unwrap_or_else(|error| panic!("connect: {error}\n{}", self.log()))
    }

    pub fn try_connect(&self, name: &str) -> Result<Connection, ClientError> {
        Connection::open(&self.socket(), &tenant(name), PATIENCE)
    }

    /// Asks one question of opaque bytes on a connection of its own.
    pub fn ask(&self, tenant_name: &str, policy_name: &str, bytes: &[u8]) -> Decision {
        self.ask_within(tenant_name, policy_name, bytes, Deadline::Default)
    }

    pub fn ask_within(
        &self,
        tenant_name: &str,
        policy_name: &str,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Decision {
        let question = Question::opaque("", bytes);
        self.client()
            .decide(&tenant(tenant_name), &policy(policy_name), deadline, question.input())
            .unwrap_or_else(|error| panic!("decide: {error}\n{}", self.log()))
    }

    pub fn status(&self) -> Status {
        match self.operator(&OperatorRequest::Status) {
            OperatorReply::Status(status) => status,
            OperatorReply::NotPermitted => panic!("operator not permitted"),
        }
    }

    pub fn operator(&self, request: &OperatorRequest) -> OperatorReply {
        let mut stream = UnixStream::connect(self.site.path("run/operator.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = bytes::BytesMut::new();
        frame::encode_frame(request, &mut buffer, OPERATOR_REQUEST_MAX).unwrap();
        stream.write_all(&buffer).unwrap();
        let reply = read_frame(&mut stream, OPERATOR_REPLY_MAX).expect("a reply");
        frame::decode(&reply).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Reloads, and waits until that has ended one way or the other. Returns the error if it was refused.
    pub fn reload(&self) -> Option<String> {
        let before = self.status().processes.reloads;
        self.signal(Signal::SIGHUP);
        self.await_notification("READY=1");
        // The frontend, which tells the status, hears of it on another channel.
        let patience = std::time::Instant::now() + PATIENCE;
        loop {
            let processes = self.status().processes;
            if processes.reloads > before {
                assert_eq!(processes.reloads, before + 1, "{}", self.log());
                return processes.last_reload_error;
            }
            assert!(std::time::Instant::now() < patience, "{}", self.log());
        }
    }

    /// Waits until the service tells its manager this.
    pub fn await_notification(&self, wanted: &str) {
        let patience = std::time::Instant::now() + PATIENCE;
        loop {
            if receive(&self.notify).is_some_and(|state| state.lines().any(|line| line.starts_with(wanted))) {
                return;
            }
            assert!(std::time::Instant::now() < patience, "service did not say {wanted}\n{}", self.log());
        }
    }

    /// Asks it to stop and returns how it ended, and what it had said.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        (self.child.wait().unwrap(), self.log())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(self.pid(), Signal::SIGTERM);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- what the service said ---\n{}", self.log());
        }
    }
}

/// One frame off a stream, or `None` if the other side closed first.
pub fn read_frame(stream: &mut UnixStream, max: usize) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut prefix = [0; frame::PREFIX];
    stream.read_exact(&mut prefix).ok()?;
    let length = u32::from_be_bytes(prefix) as usize;
    assert!((1..=max).contains(&length), "frame of {length} bytes");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
