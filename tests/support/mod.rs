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
use portcullis::bundle::write::{self, NewAttachment};
use portcullis::bundle::{self, Annotations, Draft, Platform};
use portcullis::client::blocking::{Client, Connection};
use portcullis::client::{ClientError, Deadline, Question, Settings};
use portcullis::compile::{self, Built, Terms};
use portcullis::decision::{Decision, PolicyName, Tenant};
use portcullis::engine::{Metering, WASMTIME_VERSION, World, monotonic_ns, settings_digest};
use portcullis::signature::{self, Subject};
use portcullis::wire::control::Process;
use portcullis::wire::frame;
use portcullis::wire::operator::{
    OPERATOR_REPLY_MAX, OPERATOR_REQUEST_MAX, OperatorReply, OperatorRequest, Status,
};
use tempfile::TempDir;

/// UIDs of the roles when started as root. Nothing else on a test machine uses them.
pub const FRONTEND_UID: u32 = 61_000;
pub const FIRST_CLASS_UID: u32 = 61_001;
/// How far the registry's UID is from the frontend's.
const REGISTRY_AFTER: u32 = 15;
/// And the exporter's.
const EXPORTER_AFTER: u32 = 16;
/// And the gateway's.
const GATEWAY_AFTER: u32 = 17;
/// Longest a step of the service may take before a test gives up: only met when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

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
    let key = Digest::of(
        &[Digest::of(&source).as_bytes().as_slice(), settings_digest(Metering::Off).as_bytes()].concat(),
    );
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", key.short()));
    if let (Ok(facts), Ok(cwasm)) = (fs::read(&kept), fs::read(kept.with_extension("cwasm"))) {
        let (world, imports, exports, memory, table_elements): (String, _, _, _, _) =
            serde_json::from_slice(&facts).unwrap();
        let (source, world) = (Digest::of(&source), World::named(&world).unwrap());
        let compiled = vec![(Platform::host(), cwasm)];
        let metering = Metering::Off;
        return Built {
            source,
            world,
            prepares: false,
            metering,
            imports,
            exports,
            memory,
            table_elements,
            compiled,
        };
    }
    let built = compile::build(&source, Terms::default(), &[Platform::host()])
        .unwrap_or_else(|error| panic!("build {name}: {error}"));
    let facts = (built.world.name(), &built.imports, &built.exports, built.memory, built.table_elements);
    let facts = serde_json::to_vec(&facts).unwrap();
    let cwasm = code(&built);
    artifact::store::replace(&kept.with_extension("cwasm"), cwasm, 0o644).unwrap();
    artifact::store::replace(&kept, &facts, 0o644).unwrap();
    built
}

/// What was built for this machine.
pub fn code(built: &Built) -> &[u8] {
    built.code_for(Platform::host()).unwrap()
}

/// What a registry says of code to a worker.
pub fn statement(built: &Built, tenant: &Tenant, policy: &PolicyName, version: u64) -> Statement {
    Statement {
        policy: policy.clone(),
        tenant: tenant.clone(),
        version,
        bundle: Digest::of(b"no bundle"),
        cwasm: Digest::of(code(built)),
        source: built.source,
        architecture: Architecture::host(),
        wasmtime: WASMTIME_VERSION.into(),
        engine: settings_digest(Metering::Off),
        world: built.world.name().into(),
        imports: built.imports.clone(),
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
    }
}

/// The committed component of that name as a bundle of one platform, not signed. It may take a minute: a machine that stops for
/// a second is not what is tested.
pub fn draft(name: &str, tenant_name: &str, policy_name: &str, version: u64) -> Draft {
    let limits = Limits { deadline_us: 60_000_000, ..Limits::default() };
    built(name).draft(component(name), tenant(tenant_name), policy(policy_name), version, limits)
}

/// Writes a bundle and has somebody vouch for it. Returns the digest of this machine's code.
pub fn write_signed(draft: Draft, path: &Path, key: &SigningKey) -> Digest {
    let assembled = draft.assemble().unwrap();
    write::create(&assembled, path).unwrap();
    sign_bundle(path, key);
    assembled.bundle.config.compiled_for(Platform::host()).map_or(assembled.digest(), |code| code.cwasm)
}

/// Adds a signature to a bundle.
pub fn sign_bundle(path: &Path, key: &SigningKey) {
    let bundle = bundle::open_path(path).unwrap().read().unwrap();
    let signed = signature::sign(&Subject::of(&bundle.index_bytes), key).unwrap();
    let attachment = NewAttachment::one(signature::sigstore::MEDIA_TYPE, signed, Annotations::default());
    write::attach(path, &attachment, |_| false).unwrap();
}

/// A trust policy in which these keys' holders are enough, each by itself, for everything.
pub fn trust_policy(keys: &[&SigningKey]) -> String {
    let mut text = String::new();
    let mut names = Vec::new();
    for (number, key) in (1..).zip(keys) {
        let pem = key.public_key().to_pem().unwrap();
        writeln!(text, "[signer.key-{number}]\nkey = \"\"\"\n{pem}\"\"\"\n").unwrap();
        names.push(format!("key-{number}"));
    }
    writeln!(
        text,
        "[default]\nany_of = {{ minimum = 1, signers = {names:?} }}\n\
         capabilities = [\"clock\", \"data\", \"log\", \"metric\", \"random\"]\n\n[revocation]\nsigners = {names:?}"
    )
    .unwrap();
    text
}

/// What a service is started from: a directory with everything in it.
pub struct Site {
    pub dir: TempDir,
    pub key: SigningKey,
    /// Lines of `[service]`, `[registry]`, `[frontend]`, and whole tables.
    pub service: String,
    pub registry: String,
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
        for name in ["store", "cache", "run"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let key = SigningKey::generate_ed25519().unwrap();
        fs::write(dir.path().join("trust.toml"), trust_policy(&[&key])).unwrap();
        Self {
            dir,
            key,
            // Tests run beside compilers: only those about it want a short one.
            service: "answer_within = \"10s\"\n".into(),
            registry: String::new(),
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

    /// An exporter, with more lines for its table.
    #[must_use]
    pub fn telemetry(mut self, more: &str) -> Self {
        let uid = self.frontend_uid + EXPORTER_AFTER;
        let socket = self.path("run/telemetry.sock");
        writeln!(self.tables, "[telemetry]\nuid = {uid}\ngid = {uid}\nsocket = {socket:?}\n{more}").unwrap();
        self
    }

    /// A listener of the gateway, with more lines for its table: at `run/<name>.sock`, unless they say where to listen.
    #[must_use]
    pub fn gateway(mut self, name: &str, more: &str) -> Self {
        let uid = self.frontend_uid + GATEWAY_AFTER;
        if !self.tables.contains("[gateway]") {
            writeln!(self.tables, "[gateway]\nuid = {uid}\ngid = {uid}").unwrap();
        }
        writeln!(self.tables, "[gateway.listener.{name}]\n{more}").unwrap();
        if !more.contains("listen =") {
            writeln!(self.tables, "socket = {:?}", self.path(&format!("run/{name}.sock"))).unwrap();
        }
        self
    }

    /// A tenant that this process may ask for, with policies out of components: `("gate", "hostile/selective")`.
    #[must_use]
    pub fn tenant(self, name: &str, class: &str, policies: &[(&str, &str)], more: &str) -> Self {
        for (policy, component) in policies {
            self.install(name, policy, component, 1);
        }
        let names: Vec<&str> = policies.iter().map(|(policy, _)| *policy).collect();
        self.tenant_of(name, class, &names, more)
    }

    /// The same with policies that somebody else puts into the store.
    #[must_use]
    pub fn tenant_of(mut self, name: &str, class: &str, policies: &[&str], more: &str) -> Self {
        let uid = nix::unistd::geteuid();
        writeln!(
            self.tables,
            "[tenant.{name}]\nclass = \"{class}\"\npolicies = {policies:?}\nuids = [{uid}]\n\
             max_deadline = \"60s\"\ndefault_deadline = \"20s\"\n{more}"
        )
        .unwrap();
        self
    }

    /// Builds, signs and puts a policy into the store, in place of what is there. Returns the digest of the code.
    pub fn install(&self, tenant_name: &str, policy_name: &str, component: &str, version: u64) -> Digest {
        let draft = draft(component, tenant_name, policy_name, version);
        write_signed(draft, &self.bundle(tenant_name, policy_name), &self.key)
    }

    /// Where a policy's bundle is, a folder.
    pub fn bundle(&self, tenant_name: &str, policy_name: &str) -> PathBuf {
        let folder = self.path("store").join(tenant_name);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        folder.join(policy_name)
    }

    pub fn config(&self) -> String {
        let (run, uid) = (self.path("run"), self.frontend_uid);
        let registry = self.registry_uid();
        format!(
            "[service]\nsocket = {:?}\noperator_socket = {:?}\nstore = {:?}\nstate = {:?}\n\
             trust = {:?}\nrequire_distinct_uids = {}\n{}\n[registry]\nuid = {registry}\ngid = {registry}\n{}\n\
             [frontend]\nuid = {uid}\ngid = {uid}\n{}\n{}",
            run.join("decide.sock"),
            run.join("operator.sock"),
            self.path("store"),
            self.path("state"),
            self.path("trust.toml"),
            is_root(),
            self.service,
            self.registry,
            self.frontend,
            self.tables,
        )
    }

    /// Starts the service and waits until it is ready.
    pub fn start(self) -> Service {
        self.try_start().unwrap_or_else(|(status, log)| panic!("service did not start: {status}\n{log}"))
    }

    /// The registry's UID, beyond those of the classes.
    pub fn registry_uid(&self) -> u32 {
        self.frontend_uid + REGISTRY_AFTER
    }

    /// The registry's directory, if it is not there yet.
    pub fn make_state(&self) {
        let state = self.path("state");
        if state.exists() {
            return;
        }
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        if is_root() {
            chown(&state, Some(self.registry_uid()), Some(self.registry_uid())).unwrap();
        }
    }

    /// The same for one that has much to do before it is ready.
    pub fn start_within(self, patience: Duration) -> Service {
        self.try_start_within(patience)
            .unwrap_or_else(|(status, log)| panic!("service did not start: {status}\n{log}"))
    }

    /// Starts the service; gives the exit status and what it said if it ends before it is ready.
    pub fn try_start(self) -> Result<Service, (ExitStatus, String)> {
        self.try_start_within(PATIENCE)
    }

    fn try_start_within(self, patience: Duration) -> Result<Service, (ExitStatus, String)> {
        self.make_state();
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
        let patience = std::time::Instant::now() + patience;
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
        // The answer is asked for, however busy the machine is: not that the client gives up.
        let settings = Settings { grace: PATIENCE, ..Settings::default() };
        Client::with_settings(self.socket(), settings)
            .decide(&tenant(tenant_name), &policy(policy_name), deadline, question.input())
            .unwrap_or_else(|error| panic!("decide: {error}\n{}", self.log()))
    }

    /// A connection whose question loops until its deadline, and the question's id. The worker has read it: a
    /// connection is read in order, and what was asked after it is answered.
    pub fn spinning(&self, tenant_name: &str, deadline: Deadline) -> (Connection, u64) {
        let mut connection = self.connect(tenant_name);
        let mut send = |policy_name: &str| {
            let question = Question::opaque("", b"spin");
            connection.send(&tenant(tenant_name), &policy(policy_name), deadline, question.input()).unwrap()
        };
        let (spins, unknown) = (send("gate"), send("none"));
        connection.flush().unwrap();
        let (answered, decision) = connection.receive().unwrap();
        assert_eq!(answered, unknown, "{decision:?}\n{}", self.log());
        (connection, spins)
    }

    /// In which every worker has its say.
    pub fn status(&self) -> Status {
        let patience = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status_now();
            if status.untold.is_empty() {
                return status;
            }
            assert!(std::time::Instant::now() < patience, "{:?}\n{}", status.untold, self.log());
        }
    }

    /// Even where a worker does not answer.
    fn status_now(&self) -> Status {
        match self.operator(&OperatorRequest::Status) {
            OperatorReply::Status(status) => status,
            OperatorReply::NotPermitted => panic!("operator not permitted"),
        }
    }

    /// The processes that stay: a builder comes with a bundle that is looked at, and goes when it likes.
    pub fn processes(&self) -> Vec<Process> {
        let mut processes = self.status_now().processes.processes;
        processes.retain(|process| process.role != "builder");
        processes
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

    /// Stops the supervisor itself, and waits until it is: then it sees to nobody any more.
    pub fn suspend(&self) {
        self.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.pid());
        let patience = std::time::Instant::now() + PATIENCE;
        while !fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T') {
            assert!(std::time::Instant::now() < patience, "{stat}");
        }
    }

    /// Reloads, and waits until that has ended one way or the other. Returns the error if it was refused.
    pub fn reload(&self) -> Option<String> {
        // One that began before, perhaps of the service's own accord, may have read what was there before.
        let asked_ns = monotonic_ns();
        self.signal(Signal::SIGHUP);
        self.await_notification("READY=1");
        // The frontend, which tells the status, hears of it on another channel.
        let patience = std::time::Instant::now() + PATIENCE;
        loop {
            let asked = self.status_now().processes.asked;
            if let Some(asked) = asked.filter(|asked| asked.began_ns >= asked_ns) {
                return asked.error;
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
    pub fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// Waits for the end of one that was asked to stop, or ends for another reason. Asked twice it kills everybody.
    pub fn ended(mut self) -> (ExitStatus, String) {
        (self.child.wait().unwrap(), self.log())
    }

    /// Stops it and starts it again from the same directory.
    #[must_use]
    pub fn restart(self) -> Self {
        self.into_site().start()
    }

    /// Stops it and gives back what it was started from.
    #[must_use]
    pub fn into_site(mut self) -> Site {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
        let site = std::mem::replace(&mut self.site, Site::new());
        let _ = fs::remove_file(site.path("run/notify.sock"));
        site
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
