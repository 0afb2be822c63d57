//! What the service is started from: a directory with keys, signed policies and a configuration. Removed when dropped.

use std::collections::HashSet;
use std::env;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Instant;

use caps::{CapSet, Capability};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, mkdtemp};

use super::event::{Event, Signed, micros};
use crate::artifact::{Digest, KeyError, Limits, SigningKey, store};
use crate::bundle::write::{self, NewAttachment, WriteError};
use crate::bundle::{Annotations, Bundle, DraftError, Platform};
use crate::compile::{self, BuildError, Built, Terms};
use crate::decision::{InvalidName, PolicyName, Tenant};
use crate::sandbox::privileges::SERVICE_NEEDS;
use crate::signature::{self, SignError, Subject, sigstore};

/// Version of every policy when the service starts.
const VERSION: u64 = 1;
/// What a policy may be given, microseconds. Requests say themselves what they have; a demo may have to share its processors with
/// compilers, and an answer that is late for that shows nothing.
const LONGEST_US: u32 = 10_000_000;
/// Where the demo looks for UIDs that no process has: the frontend's, one for each class, the registry's.
const FIRST_UID: u32 = 61_000;
const LAST_UID: u32 = 65_000;
/// The gateway's and the registry's place among them.
const GATEWAY: u32 = 8;
const REGISTRY: u32 = 9;

/// A tenant and the class it is in.
#[derive(Debug)]
pub(super) struct SceneTenant {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
}

/// Two tenants that never share a process.
pub(super) const TENANTS: [SceneTenant; 2] =
    [SceneTenant { name: "acme", class: "shared" }, SceneTenant { name: "bank", class: "alone" }];

/// A component that is in this program, and whose policy it becomes.
#[derive(Debug)]
pub(super) struct Source {
    policy: &'static str,
    component: &'static [u8],
    tenants: &'static [&'static str],
}

const SOURCES: &[Source] = &[
    Source {
        policy: "jwt-gate",
        component: include_bytes!("../../../policies/jwt-gate/jwt-gate.wasm"),
        tenants: &["acme", "bank"],
    },
    Source {
        policy: "rate-class",
        component: include_bytes!("../../../policies/rate-class/rate-class.wasm"),
        tenants: &["acme"],
    },
    Source {
        policy: "spin",
        component: include_bytes!("../../../policies/hostile/spin.wasm"),
        tenants: &["acme"],
    },
    Source {
        policy: "trap",
        component: include_bytes!("../../../policies/hostile/trap.wasm"),
        tenants: &["acme"],
    },
    Source {
        policy: "ip-allowlist",
        component: include_bytes!("../../../policies/ip-allowlist/ip-allowlist.wasm"),
        tenants: &["bank"],
    },
];

/// In Rego, for who asks through the gateway as they would ask OPA.
static ROLES: Source = Source {
    policy: "roles",
    component: include_bytes!("../../../policies/template/rego/policy.wasm"),
    tenants: &["acme"],
};

/// Why the stage could not be set.
#[derive(Debug, thiserror::Error)]
pub(super) enum SceneError {
    #[error("make directory in {path:?}: {cause}; set TMPDIR to one that can be written")]
    Directory { path: PathBuf, cause: io::Error },
    #[error(
        "make directory: users other than root cannot pass through {path:?}; set TMPDIR to a directory they can"
    )]
    Closed { path: PathBuf },
    #[error("write {path:?}: {cause}")]
    Write { path: PathBuf, cause: io::Error },
    #[error("read {path:?}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error("give {path:?} to uid {uid}: {cause}; start the demo as an ordinary user instead")]
    Owner { path: PathBuf, uid: u32, cause: io::Error },
    #[error("find uids that nobody uses: all from {FIRST_UID} to {LAST_UID} are in use")]
    NoUid,
    #[error("remove {path:?}: {cause}")]
    Remove { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("policy {policy}: {cause}")]
    Build { policy: &'static str, cause: BuildError },
    #[error("policy {policy}: {cause}")]
    Draft { policy: &'static str, cause: DraftError },
    #[error("policy {policy}: {cause}")]
    Sign { policy: &'static str, cause: SignError },
    #[error(transparent)]
    Bundle(#[from] WriteError),
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// The directory and the key.
pub(super) struct Scene {
    dir: PathBuf,
    key: SigningKey,
    /// The frontend's UID, if each role can have its own.
    first_uid: Option<u32>,
    /// Tables of the gateway's listeners, if there is to be one.
    listeners: Option<String>,
    removed: bool,
}

impl Source {
    pub(super) fn build(&self) -> Result<(Built, Instant), SceneError> {
        let start = Instant::now();
        let built = compile::build(self.component, Terms::default(), &[Platform::host()])
            .map_err(|cause| SceneError::Build { policy: self.policy, cause })?;
        Ok((built, start))
    }
}

impl Scene {
    /// Makes the directory, everything in it that is no policy, and a key. `listeners` are tables of a gateway.
    pub(super) fn create(listeners: Option<String>) -> Result<Self, SceneError> {
        // Others pass through what is made here, whatever this user's habits are.
        umask(Mode::from_bits_truncate(0o022));
        let first_uid = if can_change_uids() { Some(free_uids()?) } else { None };
        let key = SigningKey::generate_ed25519()?;
        let dir = new_directory(first_uid.is_some())?;
        // From here on, dropping it removes the directory.
        let scene = Self { dir, key, first_uid, listeners, removed: false };
        for name in ["store", "cache", "run"] {
            scene.make_directory(&scene.path(name), 0o755)?;
        }
        for (index, tenant) in (1..).zip(&TENANTS) {
            scene.make_directory(&scene.path("store").join(tenant.name), 0o755)?;
            scene.make_private(&scene.path("cache").join(tenant.class), index)?;
        }
        scene.make_private(&scene.path("state"), REGISTRY)?;
        let pem = scene.key.public_key().to_pem()?;
        let trust = format!(
            "[signer.release]\nkey = \"\"\"\n{pem}\"\"\"\n\n[default]\nall_of = [\"release\"]\n\
             capabilities = [\"clock\", \"log\"]\n"
        );
        scene.write("trust.toml", trust.as_bytes())?;
        Ok(scene)
    }

    /// What is built and installed before the service starts.
    pub(super) fn sources(&self) -> impl Iterator<Item = &'static Source> {
        SOURCES.iter().chain(self.listeners.as_ref().map(|_| &ROLES))
    }

    pub(super) fn introduction(&self) -> Event {
        Event::Start {
            version: env!("CARGO_PKG_VERSION"),
            dir: self.dir.clone(),
            uid: geteuid().as_raw(),
            key_id: self.key.public_key().id().to_string(),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path("run/decide.sock")
    }

    pub(super) fn operator_socket(&self) -> PathBuf {
        self.path("run/operator.sock")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Signs a built policy for each of its tenants and puts it into the store.
    pub(super) fn install(
        &self,
        source: &Source,
        (built, start): &(Built, Instant),
    ) -> Result<Vec<Signed>, SceneError> {
        let build_micros = micros(start.elapsed());
        let mut installed = Vec::new();
        for tenant in source.tenants.iter().copied() {
            let bundle = self.publish(source, built, tenant, VERSION)?;
            installed.push(Signed {
                tenant,
                policy: source.policy,
                version: VERSION,
                bundle: bundle.digest(),
                digest: code(&bundle),
                source: built.source,
                bytes: built.code_for(Platform::host()).map_or(0, <[u8]>::len),
                build_micros,
            });
        }
        Ok(installed)
    }

    /// Makes a signed bundle and puts it into the store, in place of what was there.
    fn publish(
        &self,
        source: &Source,
        built: &Built,
        tenant: &str,
        version: u64,
    ) -> Result<Bundle, SceneError> {
        let policy = source.policy;
        let (tenant_name, name) = (Tenant::new(tenant)?, PolicyName::new(policy)?);
        let limits = Limits { deadline_us: LONGEST_US, ..Limits::default() };
        let draft = built.draft(source.component.to_vec(), tenant_name, name, version, limits);
        let assembled = draft.assemble().map_err(|cause| SceneError::Draft { policy, cause })?;
        let signed = signature::sign(&Subject::of(&assembled.bundle.index_bytes), &self.key)
            .map_err(|cause| SceneError::Sign { policy, cause })?;
        let path = self.bundle(tenant, policy);
        write::create(&assembled, &path)?;
        let attachment = NewAttachment::one(sigstore::MEDIA_TYPE, signed, Annotations::default());
        Ok(write::attach(&path, &attachment, |_| false)?)
    }

    fn bundle(&self, tenant: &str, policy: &str) -> PathBuf {
        self.path("store").join(tenant).join(policy)
    }

    /// Publishes the next version of a policy, and changes one byte in the middle of its code. Gives the byte's place and
    /// the digest of what lies there now.
    pub(super) fn tamper(&self, tenant: &str, policy: &str) -> Result<(usize, Digest), SceneError> {
        let Some(source) = SOURCES.iter().find(|source| source.policy == policy) else {
            return Ok((0, Digest::of(b"")));
        };
        let (built, _) = source.build()?;
        let bundle = self.publish(source, &built, tenant, VERSION + 1)?;
        let blob = hex::encode(code(&bundle).as_bytes());
        let path = self.bundle(tenant, policy).join("blobs/sha256").join(blob);
        let mut bytes = fs::read(&path).map_err(|cause| SceneError::Read { path: path.clone(), cause })?;
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        store::replace(&path, &bytes, 0o644).map_err(|cause| SceneError::Write { path, cause })?;
        Ok((middle, Digest::of(&bytes)))
    }

    /// Where the configuration is, once [`Scene::configure`] has written it.
    pub(super) fn config(&self) -> PathBuf {
        self.path("portcullis.toml")
    }

    /// Writes the configuration.
    pub(super) fn configure(&self) -> Result<(), SceneError> {
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2));
        let identity = |index: u32| match self.first_uid {
            Some(first) => format!("uid = {0}\ngid = {0}\n", first + index),
            None => String::new(),
        };
        let mut text = format!(
            "[service]\nsocket = {:?}\noperator_socket = {:?}\nstore = {:?}\nstate = {:?}\n\
             trust = {:?}\nrequire_distinct_uids = {}\n\
             # A demo may have to share its processors with compilers.\nanswer_within = \"5s\"\n\n[frontend]\n{}\n\
             [registry]\n{}",
            self.socket(),
            self.operator_socket(),
            self.path("store"),
            self.path("state"),
            self.path("trust.toml"),
            self.first_uid.is_some(),
            identity(0),
            identity(REGISTRY),
        );
        if let Some(listeners) = &self.listeners {
            // Writing to a String does not fail.
            let _ = write!(text, "\n[gateway]\n{}\n{listeners}", identity(GATEWAY));
        }
        for (index, SceneTenant { name, class }) in (1..).zip(&TENANTS) {
            let cache = self.path("cache").join(class);
            let policies: Vec<_> =
                self.sources().filter(|source| source.tenants.contains(name)).map(|s| s.policy).collect();
            let _ = write!(
                text,
                "\n[class.{class}]\n{}cache = {cache:?}\nthreads = {threads}\nconnections = 64\n\n\
                 [tenant.{name}]\nclass = {class:?}\npolicies = {policies:?}\nuids = [{}]\n\
                 max_deadline = \"{LONGEST_US}us\"\ndefault_deadline = \"5s\"\n",
                identity(index),
                geteuid(),
            );
        }
        self.write("portcullis.toml", text.as_bytes())
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), SceneError> {
        let path = self.path(name);
        fs::write(&path, bytes).map_err(|cause| SceneError::Write { path, cause })
    }

    pub(super) fn make_directory(&self, path: &Path, mode: u32) -> Result<(), SceneError> {
        DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(|cause| SceneError::Write { path: path.to_owned(), cause })
    }

    /// A directory that only the role with this number can enter.
    fn make_private(&self, path: &Path, role: u32) -> Result<(), SceneError> {
        self.make_directory(path, 0o700)?;
        let Some(first) = self.first_uid else { return Ok(()) };
        let uid = first + role;
        chown(path, Some(uid), Some(uid)).map_err(|cause| SceneError::Owner { path: path.into(), uid, cause })
    }

    /// Removes everything, and says what.
    pub(super) fn remove(mut self) -> Result<PathBuf, SceneError> {
        self.removed = true;
        let path = self.dir.clone();
        match fs::remove_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(cause) => Err(SceneError::Remove { path, cause }),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !self.removed {
            // There is an error already that says more.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The digest of a bundle's code for this machine.
fn code(bundle: &Bundle) -> Digest {
    bundle.config.compiled_for(Platform::host()).map_or(bundle.digest(), |code| code.cwasm)
}

/// As the supervisor will judge it ([`crate::sandbox::privileges::settle`]).
fn can_change_uids() -> bool {
    let holds =
        |capability: &Capability| caps::has_cap(None, CapSet::Permitted, *capability).unwrap_or(false);
    SERVICE_NEEDS.iter().all(holds)
}

/// The first of enough UIDs in a row that no process has: two demos at a time must not share any.
fn free_uids() -> Result<u32, SceneError> {
    let path = Path::new("/proc");
    let entries = fs::read_dir(path).map_err(|cause| SceneError::Read { path: path.to_owned(), cause })?;
    // Processes that end meanwhile do not count.
    let used: HashSet<u32> =
        entries.flatten().filter_map(|entry| Some(entry.metadata().ok()?.uid())).collect();
    (FIRST_UID..LAST_UID)
        .step_by(10)
        .find(|first| (0..=REGISTRY).all(|index| !used.contains(&(first + index))))
        .ok_or(SceneError::NoUid)
}

/// A new directory in the first of the usual places that every role can get to.
fn new_directory(for_all: bool) -> Result<PathBuf, SceneError> {
    let place = env::temp_dir();
    let places = [place.as_path(), Path::new("/tmp"), Path::new("/var/tmp")];
    let open = |place: &&Path| {
        let passable = |above: &Path| above.metadata().is_ok_and(|found| found.mode() & 0o001 != 0);
        !for_all || place.canonicalize().is_ok_and(|real| real.ancestors().all(passable))
    };
    let Some(place) = places.into_iter().find(open) else { return Err(SceneError::Closed { path: place }) };
    let failed = |cause| SceneError::Directory { path: place.to_owned(), cause };
    // The configuration knows no relative paths.
    let place = place.canonicalize().map_err(failed)?;
    let dir = mkdtemp(&place.join("portcullis-demo-XXXXXX")).map_err(|errno| failed(errno.into()))?;
    if let Err(cause) = fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)) {
        let _ = fs::remove_dir(&dir);
        return Err(failed(cause));
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_ends_the_demo_removes_the_directory() {
        let scene = Scene::create(None).unwrap();
        let dir = scene.dir.clone();
        assert!(dir.join("trust.toml").exists() && dir.join("cache/alone").exists());
        drop(scene);
        assert!(!dir.exists());
    }

    #[test]
    fn every_tenant_of_a_policy_is_in_the_scene() {
        let names: Vec<_> = TENANTS.iter().map(|tenant| tenant.name).collect();
        for source in SOURCES {
            assert!(!source.tenants.is_empty() && source.tenants.iter().all(|name| names.contains(name)));
        }
    }
}
