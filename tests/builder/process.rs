//! One builder, started as the spawner starts it: its UID, its limits, its descriptors, sealed.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{geteuid, getgid, getpid};
use portcullis::artifact::{Ceiling, Digest, Limits, SealedBytes};
use portcullis::bundle::PolicyConfig;
use portcullis::decision::{PolicyName, Tenant, TrustClass};
use portcullis::sandbox::Role;
use portcullis::sandbox::launch;
use portcullis::sandbox::privileges::{ConfiguredLimits, surrender};
use portcullis::wire::channel::{Channel, Received};
use portcullis::wire::control::{
    BuildLimits, BuilderAssignment, CONTROL_MAX, FromChild, Isolation, Ready, ToChild, fd,
};
use portcullis::wire::frame;
use portcullis::wire::job::{JOB_MAX, Job, Report};
use tempfile::TempDir;

/// Only met when something is broken.
const PATIENCE_MS: u16 = 60_000;
/// A class's UID and GID in these tests.
pub(crate) const CLASS: u32 = 61_031;

pub(crate) const LIMITS: BuildLimits = BuildLimits { cpu: 30, memory: 1 << 30, output: 64 << 20 };

pub(crate) fn identity() -> (u32, u32, Isolation) {
    if geteuid().is_root() {
        (CLASS, CLASS, Isolation::DistinctUids)
    } else {
        (geteuid().as_raw(), getgid().as_raw(), Isolation::SharedUid)
    }
}

/// A class's cache, and nothing else.
pub(crate) struct Class {
    pub(crate) dir: TempDir,
}

impl Class {
    pub(crate) fn new() -> Self {
        let dir = TempDir::with_prefix("portcullis-builder-").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let class = Self { dir };
        fs::create_dir(class.cache()).unwrap();
        fs::set_permissions(class.cache(), fs::Permissions::from_mode(0o700)).unwrap();
        give(&class.cache());
        class
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(crate) fn entry(&self, digest: Digest) -> PathBuf {
        self.cache().join(format!("{}.cwasm", hex::encode(digest.as_bytes())))
    }

    /// Names of what is in the cache.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// One job for a builder with the usual limits: what it reported, and how it ended.
    pub(crate) fn ask(&self, job: &Job, given: &[&SealedBytes]) -> Vec<Answer> {
        let (answers, status) = self.builder(LIMITS).ask(job, given);
        assert!(status.success(), "{status}: {answers:?}");
        answers
    }

    pub(crate) fn builder(&self, limits: BuildLimits) -> Builder {
        Builder::start(&self.cache(), limits).unwrap_or_else(|why| panic!("did not start: {why}"))
    }
}

/// Makes something the class's.
pub(crate) fn give(path: &Path) {
    let (uid, gid, isolation) = identity();
    if isolation == Isolation::DistinctUids {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// A report, with the code that came with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) report: Report,
    pub(crate) code: Option<SealedBytes>,
}

impl Answer {
    pub(crate) fn refused(&self) -> &str {
        match &self.report {
            Report::Refused { why } => why,
            other => panic!("{other:?}"),
        }
    }
}

/// A process that is sealed and waits for its job.
pub(crate) struct Builder {
    pub(crate) child: Child,
    pub(crate) ready: Ready,
    control: Channel<ToChild, FromChild>,
    jobs: Channel<Job, Report>,
}

impl Builder {
    /// What a builder says that cannot start comes back as the error.
    pub(crate) fn start(cache: &Path, limits: BuildLimits) -> Result<Self, String> {
        Self::start_with_log(cache, limits, std::io::stderr().as_fd().try_clone_to_owned().unwrap())
    }

    /// With this for its standard error.
    pub(crate) fn start_with_log(cache: &Path, limits: BuildLimits, log: OwnedFd) -> Result<Self, String> {
        // Descriptors of one must not be inherited by another that is started at the same moment; and the parent of a
        // child is the thread that made it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (uid, gid, isolation) = identity();
        let assignment = BuilderAssignment {
            class: TrustClass::new("web").unwrap(),
            uid,
            gid,
            isolation,
            cache: cache.to_str().unwrap().to_owned(),
            memory: 8 << 20,
            limits,
        };
        let memfd = memfd_create("assignment", MFdFlags::MFD_CLOEXEC).unwrap();
        fs::File::from(memfd.try_clone().unwrap())
            .write_all(&frame::encode(&assignment, 1 << 16).unwrap())
            .unwrap();
        nix::unistd::lseek(&memfd, 0, nix::unistd::Whence::SeekSet).unwrap();
        let (control, theirs) = Channel::<ToChild, FromChild>::pair(CONTROL_MAX).unwrap();
        let (jobs, workers) = Channel::<Job, Report>::pair(JOB_MAX).unwrap();
        let child = spawn(&theirs.into(), &memfd, &workers.into(), limits, log);
        drop(guard);
        let mut builder = Self {
            child,
            ready: Ready {
                loaded: 0,
                refused: 0,
                pagemap_scan: false,
                landlock_abi: 0,
                landlock_proven_threads: 0,
            },
            control,
            jobs,
        };
        match receive(&builder.control).map(|(message, _)| message) {
            Some(FromChild::Ready(ready)) => builder.ready = ready,
            Some(FromChild::Failed { why }) => {
                builder.child.wait().unwrap();
                return Err(why);
            }
            other => panic!("{other:?}, and it ended {}", builder.child.wait().unwrap()),
        }
        Ok(builder)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn give_job(&self, job: &Job, given: &[&SealedBytes]) {
        self.give_job_with(job, &given.iter().map(|bytes| bytes.as_fd()).collect::<Vec<_>>());
    }

    pub(crate) fn give_job_with(&self, job: &Job, descriptors: &[BorrowedFd<'_>]) {
        self.control.send(&ToChild::Serve, None).unwrap();
        self.jobs.send_with(job, descriptors).unwrap();
    }

    /// It has no job to do after all.
    pub(crate) fn dismiss(self) -> (Vec<Answer>, ExitStatus) {
        self.control.send(&ToChild::Serve, None).unwrap();
        nix::sys::socket::shutdown(self.jobs.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
        self.answers()
    }

    /// Until it closes its end.
    pub(crate) fn answers(mut self) -> (Vec<Answer>, ExitStatus) {
        let mut answers = Vec::new();
        while let Some((report, descriptor)) = receive(&self.jobs) {
            let code = descriptor.map(|fd| SealedBytes::from_fd(fd, 256 << 20).unwrap());
            answers.push(Answer { report, code });
        }
        (answers, self.child.wait().unwrap())
    }

    pub(crate) fn ask(self, job: &Job, given: &[&SealedBytes]) -> (Vec<Answer>, ExitStatus) {
        self.give_job(job, given);
        self.answers()
    }
}

/// The way of `src/spawner/child.rs`, from a program with threads: what happens between fork and exec allocates little.
fn spawn(
    control: &OwnedFd,
    assignment: &OwnedFd,
    jobs: &OwnedFd,
    limits: BuildLimits,
    log: OwnedFd,
) -> Child {
    let (uid, gid, isolation) = identity();
    let configured = ConfiguredLimits { open_files: 64, processes: None, build: Some(limits) };
    let path = Path::new(env!("CARGO_BIN_EXE_portcullis-builder"));
    let program: OwnedFd = fs::File::open(path).unwrap().into();
    let null = launch::null().unwrap();
    let parent = getpid().as_raw();
    let copies = [control, assignment, jobs].map(|fd| fd.try_clone().unwrap());
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let become_builder = move || -> std::io::Result<()> {
        let [control, assignment, jobs] = &copies;
        let wanted = [
            (null.as_fd(), 0),
            (log.as_fd(), 1),
            (log.as_fd(), 2),
            (control.as_fd(), fd::CONTROL),
            (assignment.as_fd(), fd::ASSIGNMENT),
            (jobs.as_fd(), fd::FIRST),
        ];
        let program = launch::place(&wanted, program.as_fd())?;
        surrender(Role::Builder, (uid, gid), isolation, &configured, parent)
            .map_err(|why| std::io::Error::other(why.to_string()))?;
        Err(launch::exec(&program, "portcullis-builder"))
    };
    // SAFETY: glibc's malloc may be used after fork, and nothing else here takes a lock of another thread's.
    unsafe { command.pre_exec(become_builder) };
    command.spawn().expect("spawn builder")
}

fn receive<Tx: serde::Serialize, Rx: serde::de::DeserializeOwned>(
    channel: &Channel<Tx, Rx>,
) -> Option<(Rx, Option<OwnedFd>)> {
    let mut buffer = Vec::new();
    loop {
        match channel.receive(&mut buffer).unwrap() {
            Received::Message(message, descriptor) => return Some((message, descriptor)),
            Received::End => return None,
            Received::Nothing => {
                let mut wanted = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                let events = poll(&mut wanted, PollTimeout::from(PATIENCE_MS)).unwrap();
                assert!(events > 0, "nothing came on descriptor {}", channel.as_raw_fd());
            }
        }
    }
}

pub(crate) fn tenant() -> Tenant {
    Tenant::new("acme").unwrap()
}

pub(crate) fn policy() -> PolicyName {
    PolicyName::new("gate").unwrap()
}

pub(crate) fn imports() -> Vec<String> {
    ["clock", "data", "log", "metric", "random"].map(str::to_owned).to_vec()
}

/// What a manifest says that asks for all of this.
pub(crate) fn manifest(imports: Vec<String>, limits: Limits) -> Box<PolicyConfig> {
    let plain = PolicyConfig::plain(tenant(), policy(), 1, Digest::of(b"source"));
    Box::new(PolicyConfig { imports, limits, ..plain })
}

pub(crate) fn check() -> Job {
    Job::Check { manifest: manifest(imports(), Limits::default()), ceiling: Ceiling::MOST }
}

pub(crate) fn compile() -> Job {
    Job::Compile { manifest: manifest(imports(), Limits::default()), ceiling: Ceiling::MOST }
}
