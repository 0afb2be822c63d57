//! Landlock: no file, no TCP, no signal and no abstract socket beyond this process, except what is listed.
//!
//! All rights of ABI 6 are handled and required (Linux 6.12); there is no best effort. It covers the calling thread and
//! those made after it, and /proc shows nothing of it, so every thread proves it by an `open` that fails.

use std::fs::File;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::unistd::gettid;

use super::declared::{Declared, DeclaredAccess, DeclaredAllow, DeclaredDomain, Handled};
use super::{Role, SealError};

/// The rights we know and require: files with truncate and device ioctls, TCP, signals, abstract sockets.
const REQUIRED: ABI = ABI::V6;

/// Which paths the names in braces stand for, in a role's `landlock` rules (`sandbox/<role>.json`). A name may have any
/// number of paths; one without a path allows nothing. Ports have names in the same way.
#[derive(Debug, Clone, Default)]
pub struct Places {
    paths: Vec<(&'static str, PathBuf)>,
    ports: Vec<(&'static str, u16)>,
}

impl Places {
    /// One more path for `name`, which is without its braces.
    #[must_use]
    pub fn with(mut self, name: &'static str, path: impl Into<PathBuf>) -> Self {
        self.paths.push((name, path.into()));
        self
    }

    /// One more TCP port to connect to for `name`, which is without its braces.
    #[must_use]
    pub fn with_port(mut self, name: &'static str, port: u16) -> Self {
        self.ports.push((name, port));
        self
    }

    fn of<'a>(&'a self, rule: &'a DeclaredAllow) -> Vec<&'a Path> {
        match named(rule) {
            None => vec![Path::new(&rule.path)],
            Some(name) => {
                self.paths.iter().filter(|(of, _)| *of == name).map(|(_, path)| path.as_path()).collect()
            }
        }
    }

    fn ports_of(&self, rule: &DeclaredAllow) -> impl Iterator<Item = u16> {
        let name = named(rule);
        self.ports.iter().filter(move |(of, _)| Some(*of) == name).map(|(_, port)| *port)
    }
}

fn named(rule: &DeclaredAllow) -> Option<&str> {
    rule.path.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
}

fn rights(access: DeclaredAccess) -> BitFlags<AccessFs> {
    match access {
        DeclaredAccess::ReadFile => AccessFs::ReadFile.into(),
        DeclaredAccess::ReadDirectory => AccessFs::ReadFile | AccessFs::ReadDir,
        DeclaredAccess::ReadWriteDirectory => {
            AccessFs::ReadFile
                | AccessFs::ReadDir
                | AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSock
                | AccessFs::RemoveFile
                | AccessFs::RemoveDir
                | AccessFs::Refer
        }
        DeclaredAccess::RemoveFile => AccessFs::RemoveFile.into(),
        DeclaredAccess::ExecuteFile => AccessFs::Execute | AccessFs::ReadFile,
        // Not a right to files.
        DeclaredAccess::ConnectTcp => BitFlags::EMPTY,
        DeclaredAccess::Execute => AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir,
    }
}

/// Proof: the supervisor has entered the first of its two domains.
#[derive(Debug)]
#[must_use = "entered before the spawner is started"]
pub struct Enclosed(());

/// For the supervisor, before its first fork: enters the first domain of its file, which everything it ever starts is
/// born into. It says whom signals reach: had the supervisor entered it after a fork, it could not end its children.
///
/// # Errors
/// The kernel lacks a right that is required here.
pub fn enclose() -> Result<Enclosed, SealError> {
    let declared = Declared::of(Role::Supervisor)?;
    for domain in declared.landlock.iter().filter(|domain| is_shared(Role::Supervisor, domain)) {
        restrict(domain, &Places::default())?;
    }
    Ok(Enclosed(()))
}

/// Entered by [`enclose`], and not by [`Given::confine`](super::Given::confine).
pub(super) fn is_shared(role: Role, domain: &DeclaredDomain) -> bool {
    role == Role::Supervisor && domain.handles.contains(&Handled::Signals)
}

/// Proves on the calling thread, which may be any, that Landlock is in force there, for any of the spawner's children: an `open`
/// that worked in [`Given::check`](super::Given::check) fails now.
///
/// # Errors
/// The `open` succeeded (this thread was started before `confine`) or failed for another reason.
pub fn prove_landlock() -> Result<(), SealError> {
    prove(Role::Worker)
}

/// What to open. The spawner's children live under the spawner's Landlock as well as their own, so their probe must be
/// something that the spawner's allows; supervisor and spawner are allowed /proc, so their probe is the root directory.
pub(super) const fn probe(role: Role) -> &'static str {
    match role {
        Role::Supervisor | Role::Spawner => "/",
        Role::Frontend
        | Role::Worker
        | Role::Registry
        | Role::Builder
        | Role::Exporter
        | Role::Gateway
        | Role::Fetcher => "/proc/self/status",
    }
}

pub(super) fn prove(role: Role) -> Result<(), SealError> {
    let path = probe(role);
    let thread = gettid().as_raw();
    match File::open(path) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EACCES) => Ok(()),
        Err(source) => Err(SealError::Unproven { path, thread, source }),
        Ok(_) => Err(SealError::StillOpen { path, thread }),
    }
}

/// Puts the calling thread under Landlock; sets no_new_privs too. Returns the kernel's ABI.
pub(super) fn restrict(domain: &DeclaredDomain, places: &Places) -> Result<u32, SealError> {
    let handles = |what| domain.handles.contains(&what);
    let scopes = [(Handled::Signals, Scope::Signal), (Handled::AbstractSockets, Scope::AbstractUnixSocket)]
        .into_iter()
        .filter(|(what, _)| handles(*what))
        .fold(BitFlags::<Scope>::EMPTY, |scopes, (_, scope)| scopes | scope);
    let mut ruleset = Ok(Ruleset::default().set_compatibility(CompatLevel::HardRequirement));
    if handles(Handled::Files) {
        ruleset = ruleset.and_then(|ruleset| ruleset.handle_access(AccessFs::from_all(REQUIRED)));
    }
    if handles(Handled::Tcp) {
        ruleset = ruleset.and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(REQUIRED)));
    }
    if !scopes.is_empty() {
        ruleset = ruleset.and_then(|ruleset| ruleset.scope(scopes));
    }
    let mut ruleset =
        ruleset.map_err(|source| SealError::LandlockMissing { source })?.create().map_err(|source| {
            match source {
                RulesetError::CreateRuleset(_) => SealError::LandlockMissing { source },
                other => SealError::Landlock(other),
            }
        })?;
    for rule in &domain.allow {
        if rule.access == DeclaredAccess::ConnectTcp {
            for port in places.ports_of(rule) {
                ruleset = ruleset
                    .add_rule(NetPort::new(port, AccessNet::ConnectTcp))
                    .map_err(SealError::Landlock)?;
            }
            continue;
        }
        for place in places.of(rule) {
            // Distributions differ in what there is.
            if rule.optional && !place.exists() {
                continue;
            }
            let refused = |source: Box<dyn std::error::Error + Send + Sync>| SealError::LandlockRule {
                path: place.to_owned(),
                source,
            };
            let path = PathFd::new(place).map_err(|error| refused(Box::new(error)))?;
            ruleset = ruleset
                .add_rule(PathBeneath::new(path, rights(rule.access)))
                .map_err(|error| refused(Box::new(error)))?;
        }
    }
    let status = ruleset.restrict_self().map_err(SealError::Landlock)?;
    match (status.ruleset, status.no_new_privs, status.landlock) {
        (RulesetStatus::FullyEnforced, true, LandlockStatus::Available { effective_abi, kernel_abi }) => {
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            u32::try_from(abi).map_err(|_| SealError::LandlockPartial(format!("ABI {abi}")))
        }
        (ruleset, no_new_privs, landlock) => {
            Err(SealError::LandlockPartial(format!("{ruleset:?}, no_new_privs {no_new_privs}, {landlock:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn domain(role: Role) -> DeclaredDomain {
        Declared::of(role).expect("file").landlock.pop().expect("a domain")
    }

    fn allow(access: DeclaredAccess, path: &Path) -> DeclaredAllow {
        let path = path.to_str().expect("text").to_owned();
        DeclaredAllow { access, path, optional: false, comment: String::new() }
    }

    fn files(allow: Vec<DeclaredAllow>) -> DeclaredDomain {
        DeclaredDomain { handles: vec![Handled::Files], allow, comment: String::new() }
    }

    /// /proc says NoNewPrivs 1 and Seccomp 2 of such a thread all the same: only the proof shows it.
    #[test]
    fn landlock_is_proven_on_threads_made_after_it_and_refused_on_one_made_before() {
        let (ask, asked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        // Landlock covers single threads, so this test's own thread can be the confined process.
        thread::scope(|scope| {
            scope.spawn(move || {
                asked.recv().expect("asked");
                tell.send(prove_landlock()).expect("tell");
            });
            scope.spawn(move || {
                assert!(matches!(prove_landlock(), Err(SealError::StillOpen { .. })), "control");
                let abi = restrict(&domain(Role::Worker), &Places::default()).expect("landlock");
                assert!(abi >= 6, "ABI {abi}");
                prove_landlock().expect("the thread that asked for it");
                for _ in 0..3 {
                    thread::spawn(|| prove_landlock().expect("a thread made after")).join().expect("join");
                }
                ask.send(()).expect("ask");
            });
        });
        let before = told.recv().expect("told");
        assert!(matches!(before, Err(SealError::StillOpen { .. })), "{before:?}");
    }

    #[test]
    fn what_is_allowed_can_be_done_and_nothing_beside() {
        let home = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| home.path().join(name);
        for name in ["read", "write", "other"] {
            std::fs::create_dir(at(name)).expect("mkdir");
            std::fs::write(at(name).join("file"), b"x").expect("write");
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                let (read, write) = (at("read"), at("write"));
                let allowed = vec![
                    allow(DeclaredAccess::ReadDirectory, Path::new("{read}")),
                    allow(DeclaredAccess::ReadWriteDirectory, &write),
                    // A name without a path allows nothing.
                    allow(DeclaredAccess::ReadWriteDirectory, Path::new("{nobody}")),
                ];
                restrict(&files(allowed), &Places::default().with("read", &read)).expect("landlock");
                std::fs::read(read.join("file")).expect("read");
                std::fs::write(read.join("file"), b"y").expect_err("write where only reading is allowed");
                std::fs::write(write.join("new"), b"y").expect("write");
                std::fs::rename(write.join("new"), write.join("file")).expect("rename");
                std::fs::remove_file(write.join("file")).expect("remove");
                let other = std::fs::read(at("other").join("file")).expect_err("not listed");
                assert_eq!(other.raw_os_error(), Some(nix::libc::EACCES));
            });
        });
    }

    #[test]
    fn ports_that_are_named_are_reached_and_others_are_not() {
        use std::net::{TcpListener, TcpStream};
        let listen = || TcpListener::bind("127.0.0.1:0").expect("bind");
        let (allowed, other) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().expect("address").port();
        let connect = |listener: &TcpListener| TcpStream::connect(("127.0.0.1", port(listener)));
        thread::scope(|scope| {
            scope.spawn(|| {
                connect(&other).expect("before");
                let rule = |name: &str| allow(DeclaredAccess::ConnectTcp, Path::new(name));
                let handles = vec![Handled::Files, Handled::Tcp];
                let allow = vec![rule("{registry}"), rule("{nobody}")];
                let domain = DeclaredDomain { handles, allow, comment: String::new() };
                let places = Places::default().with_port("registry", port(&allowed));
                restrict(&domain, &places).expect("landlock");
                connect(&allowed).expect("a port that is named");
                let error = connect(&other).expect_err("another port");
                assert_eq!(error.raw_os_error(), Some(nix::libc::EACCES));
            });
        });
    }

    #[test]
    fn a_path_that_is_not_there_is_an_error_that_names_it() {
        thread::spawn(|| {
            let missing = || allow(DeclaredAccess::ReadFile, Path::new("/nonexistent/x"));
            let error = restrict(&files(vec![missing()]), &Places::default()).expect_err("refused");
            assert!(error.to_string().starts_with("allow \"/nonexistent/x\" in Landlock: "), "{error}");
            prove_landlock().expect_err("nothing was enforced");
        })
        .join()
        .expect("join");
    }

    /// Pinned, so that a change of the rights a role is denied shows up in review.
    #[test]
    fn the_rights_that_are_denied() {
        assert_eq!(AccessFs::from_all(REQUIRED).bits(), 0xffff);
        assert_eq!(AccessNet::from_all(REQUIRED).bits(), 0b11);
        assert_eq!(Scope::from_all(REQUIRED).bits(), 0b11);
    }

    #[test]
    fn a_kernel_without_landlock_is_refused_with_what_it_takes() {
        let source = Ruleset::default().create().expect_err("nothing handled");
        let text = SealError::LandlockMissing { source }.to_string();
        assert!(text.contains("Linux 6.12") && text.contains("/sys/kernel/security/lsm"), "{text}");
    }
}
