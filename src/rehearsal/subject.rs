//! What is tried: a bundle as it is shipped, a component or a module as a compiler left it, or the folder that one of them
//! lies in.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use wasmparser::{Parser, Payload};

use super::stage::{Stage, StageError, engines};
use crate::artifact::{Ceiling, Digest, Limits, SealError, SealedBytes};
use crate::bundle::{self, BundleError, LayoutError, Platform, PolicyConfig};
use crate::compile::{self, BuildError, Built, SOURCE_MAX, Terms, VouchError, vouch};
use crate::decision::{InvalidName, PolicyName, Tenant};
use crate::engine::{self, LoadError, Metering, Policy, World, counting_engine};

/// Whose policy it is where nothing says so.
const TENANT: &str = "nobody";
/// What every image layout has.
const LAYOUT: &str = "oci-layout";

/// What somebody who tries a policy grants it. Of a bundle, no more than its manifest asks for.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    pub memory: Option<u32>,
    pub table_elements: Option<u32>,
    pub output: Option<u32>,
    pub deadline_us: Option<u32>,
    pub stack: Option<u32>,
    pub host_calls: Option<u32>,
    pub fuel: Option<u64>,
    /// What its class gives an instance.
    pub class_memory: Option<u32>,
    /// Counters of a policy without a manifest.
    pub metrics: Vec<String>,
    /// What the service that it will run in gives it, where that is known.
    pub service: Option<Service>,
}

/// What a configuration says of the policies of a tenant, or of any tenant of a class.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    pub ceiling: Ceiling,
    /// Longest that a decision may take.
    pub max_deadline_us: u32,
    /// The same where a client does not say how long it waits.
    pub default_deadline_us: u32,
}

/// A policy on a stage of its own, ready to be asked.
#[derive(Debug)]
pub struct Subject {
    /// The file or the bundle that it came from.
    pub path: PathBuf,
    /// What its bundle says of it, or what can be said of it without one.
    pub manifest: PolicyConfig,
    /// As its author built it.
    pub source: Vec<u8>,
    /// Whether its bundle has the very code that was compiled here. What a bundle brings is never run: nobody has looked at a
    /// signature, and there is no sandbox around this process.
    pub shipped: bool,
    pub(super) policy: Arc<Policy>,
    pub(super) stage: Stage,
    /// Longest that a decision takes where nobody says how long to wait, microseconds.
    pub(super) patience_us: u32,
}

/// A policy in an engine that counts.
#[derive(Debug)]
pub struct Counting {
    pub policy: Arc<Policy>,
    /// As it runs there, with its names.
    pub component: Vec<u8>,
}

/// Why there is nothing to be tried.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    #[error("read policy {path:?}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error("read policy {path:?}: it has more than {SOURCE_MAX} bytes")]
    TooLong { path: PathBuf },
    #[error("find policy in {path:?}: there is no .wasm and no bundle in it; build it first")]
    Nothing { path: PathBuf },
    #[error("find policy in {path:?}: there are {}; say which one", names.join(" and "))]
    Several { path: PathBuf, names: Vec<String> },
    #[error(transparent)]
    Layout(Box<LayoutError>),
    #[error("read bundle {path:?}: {cause}")]
    Bundle { path: PathBuf, cause: Box<BundleError> },
    #[error("build {path:?}: {cause}")]
    Build { path: PathBuf, cause: Box<BuildError> },
    #[error("try {path:?}: it starts with {needs} {what}, its limit is {limit}; raise {option}")]
    Starts { path: PathBuf, what: &'static str, needs: u64, limit: u32, option: &'static str },
    #[error("try {path:?}: {cause}")]
    Load { path: PathBuf, cause: Box<LoadError> },
    #[error("try {path:?}: {cause}")]
    Seal { path: PathBuf, cause: Box<SealError> },
    #[error("try {path:?}: {cause}")]
    Vouch { path: PathBuf, cause: Box<VouchError> },
    #[error("build {path:?}: it has no instance: {why}{}", .start.as_deref().unwrap_or_default())]
    NoInstance { path: PathBuf, why: String, start: Option<String> },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Name(#[from] InvalidName),
}

impl Subject {
    /// Opens what is at `path`.
    ///
    /// # Errors
    /// What is wrong with it, as a builder or a worker would say.
    pub fn open(path: &Path, granted: &Granted) -> Result<Self, SubjectError> {
        let path = &find(path)?;
        if is_bundle(path) { Self::of_bundle(path, granted) } else { Self::of_file(path, granted) }
    }

    /// What it may use here.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        self.policy.limits()
    }

    /// Of the machine code that decides.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.policy.digest()
    }

    /// The same policy, in an engine that counts.
    ///
    /// # Errors
    /// When it does not compile that way.
    pub fn counting(&self) -> Result<Counting, SubjectError> {
        let build = |cause| SubjectError::Build { path: self.path.clone(), cause: Box::new(cause) };
        let terms = terms(&self.manifest);
        let component = on_large_stack(|| compile::interruptible_here(&self.source, terms)).map_err(build)?;
        let engine = counting_engine(self.limits().stack)
            .map_err(|error| SubjectError::Stage(StageError::Engine(format!("{error:#}"))))?;
        let policy = engine::load_counting(&engine, &component, &self.manifest.imports, &self.policy)
            .map_err(|cause| SubjectError::Load { path: self.path.clone(), cause: Box::new(cause) })?;
        Ok(Counting { policy: Arc::new(policy), component })
    }

    fn of_bundle(path: &Path, granted: &Granted) -> Result<Self, SubjectError> {
        let layout = bundle::open_path(path).map_err(Box::new).map_err(SubjectError::Layout)?;
        let bundle = layout
            .read()
            .map_err(|cause| SubjectError::Bundle { path: path.into(), cause: Box::new(cause) })?;
        let source =
            layout.bytes(&bundle.source, SOURCE_MAX).map_err(Box::new).map_err(SubjectError::Layout)?;
        let mut manifest = bundle.config.clone();
        let deadline = manifest.limits.deadline_us;
        manifest.limits.deadline_us = granted.deadline_us.map_or(deadline, |most| most.min(deadline));
        let shipped = bundle.compiled_for(Platform::host()).map(|(said, _)| said.cwasm);
        Self::with(path, manifest, source, shipped, (granted.ceiling(), granted.service))
    }

    fn of_file(path: &Path, granted: &Granted) -> Result<Self, SubjectError> {
        let read = |cause| SubjectError::Read { path: path.into(), cause };
        if fs::metadata(path).map_err(read)?.len() > SOURCE_MAX as u64 {
            return Err(SubjectError::TooLong { path: path.into() });
        }
        let build = |cause: BuildError| SubjectError::Build { path: path.into(), cause: Box::new(cause) };
        let mut source = fs::read(path).map_err(read)?;
        if !source.starts_with(b"\0asm") {
            source = compile::componentize(&source).map_err(BuildError::from).map_err(build)?;
        }
        let limits = granted.or_default();
        let asked = Terms { world: None, metering: Metering::of(&limits) };
        let built = on_large_stack(|| compile::check_here(&source, asked)).map_err(build)?;
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
        let name = PolicyName::new(&stem).or_else(|_| PolicyName::new("policy"))?;
        let manifest = PolicyConfig {
            world: built.world.name().into(),
            imports: built.imports,
            exports: built.exports,
            limits,
            metrics: granted.metrics.clone(),
            ..PolicyConfig::plain(Tenant::new(TENANT)?, name, 0, built.source)
        };
        let ceiling = Ceiling { memory: granted.class_memory.unwrap_or(u32::MAX), ..Ceiling::MOST };
        Self::with(path, manifest, source, None, (ceiling, granted.service))
    }

    fn with(
        path: &Path,
        mut manifest: PolicyConfig,
        source: Vec<u8>,
        shipped: Option<Digest>,
        (ceiling, service): (Ceiling, Option<Service>),
    ) -> Result<Self, SubjectError> {
        let own = manifest.limits.deadline_us;
        manifest.limits.deadline_us = service.map_or(own, |service| own.min(service.max_deadline_us));
        let patience_us = service.map_or(u32::MAX, |service| service.default_deadline_us);
        let ceiling = service.map_or(ceiling, |service| service.ceiling.and(&ceiling));
        let build = |cause: BuildError| SubjectError::Build { path: path.into(), cause: Box::new(cause) };
        let (terms, target) = (terms(&manifest), engine::Target::host());
        let built = on_large_stack(|| compile::build_here(&source, terms, &[target])).map_err(build)?;
        starts_within(path, &manifest.limits, built.memory, built.table_elements)?;
        let subject = Self::of(path, manifest, &built, shipped, ceiling)?;
        Ok(Self { source, patience_us, ..subject })
    }

    /// Of what was compiled; it has no source to be counted with.
    fn of(
        path: &Path,
        manifest: PolicyConfig,
        built: &Built,
        shipped: Option<Digest>,
        ceiling: Ceiling,
    ) -> Result<Self, SubjectError> {
        let seal = |cause| SubjectError::Seal { path: path.into(), cause: Box::new(cause) };
        let vouched = |cause| SubjectError::Vouch { path: path.into(), cause: Box::new(cause) };
        let code = built.code_for(Platform::host()).unwrap_or_default();
        let code = SealedBytes::of(code).map_err(seal)?;
        let is_shipped = shipped == Some(code.digest());
        let engines = engines(manifest.limits.memory.min(ceiling.memory))?;
        let artifact = vouch(&manifest, built.source, code).map_err(vouched)?;
        let policy = engine::load(&engines, &artifact, engine::Granted { ceiling, data: None })
            .map_err(|cause| SubjectError::Load { path: path.into(), cause: Box::new(cause) })?;
        let stage = Stage::start(&engines)?;
        let policy = Arc::new(policy);
        let (path, source) = (path.into(), Vec::new());
        Ok(Self { path, manifest, source, shipped: is_shipped, policy, stage, patience_us: u32::MAX })
    }
}

impl Granted {
    fn or_default(&self) -> Limits {
        let default = Limits::default();
        Limits {
            memory: self.memory.unwrap_or(default.memory),
            table_elements: self.table_elements.unwrap_or(default.table_elements),
            output: self.output.unwrap_or(default.output),
            deadline_us: self.deadline_us.unwrap_or(default.deadline_us),
            stack: self.stack.unwrap_or(default.stack),
            host_calls: self.host_calls.unwrap_or(default.host_calls),
            fuel: self.fuel.or(default.fuel),
        }
    }

    fn ceiling(&self) -> Ceiling {
        let most = Ceiling::MOST;
        Ceiling {
            memory: self.memory.into_iter().chain(self.class_memory).min().unwrap_or(most.memory),
            table_elements: self.table_elements.unwrap_or(most.table_elements),
            output: self.output.unwrap_or(most.output),
            stack: self.stack.unwrap_or(most.stack),
            host_calls: self.host_calls.unwrap_or(most.host_calls),
            fuel: self.fuel,
        }
    }
}

/// Makes an instance of what was built, as a builder does later on the host that is to serve it: so whoever builds is told of a
/// start that traps or does not end. Where there is no code for this machine, only that builder finds out.
/// `start` is [`start_of`] its source.
///
/// # Errors
/// Why there is no instance, and where what it does at its start is.
pub fn begins(
    path: &Path,
    manifest: &PolicyConfig,
    built: &Built,
    start: Option<String>,
) -> Result<(), SubjectError> {
    if built.code_for(Platform::host()).is_none() {
        return Ok(());
    }
    let subject = match Subject::of(path, manifest.clone(), built, None, Ceiling::MOST) {
        // What this machine's processor lacks is no fault of the policy's.
        Err(SubjectError::Load { cause, .. }) if matches!(*cause, LoadError::Unfit(..)) => return Ok(()),
        subject => subject?,
    };
    let no_instance = |why| SubjectError::NoInstance { path: path.into(), why, start };
    subject.begin().map_err(no_instance)
}

/// Where a policy says what it does at its start, for people.
#[must_use]
pub fn start_of(source: &[u8]) -> Option<String> {
    Parser::new(0).parse_all(source).find_map(|payload| match payload {
        Ok(Payload::StartSection { func, range }) => {
            Some(format!("; its start function is function {func}, by the section at {:#x}", range.start))
        }
        _ => None,
    })
}

/// Whether a bundle is there, rather than a module.
#[must_use]
pub fn is_bundle(path: &Path) -> bool {
    path.join(LAYOUT).is_file() || (path.extension() == Some(OsStr::new("tar")) && path.is_file())
}

/// The file or the bundle that a path means: itself, or what lies in the folder.
///
/// # Errors
/// When there is nothing, or more than one.
pub fn find(path: &Path) -> Result<PathBuf, SubjectError> {
    if is_bundle(path) || !path.is_dir() {
        return Ok(path.into());
    }
    let read = |cause| SubjectError::Read { path: path.into(), cause };
    // What is called as the folder is its policy, whatever else lies there.
    let named = fs::canonicalize(path).map_err(read)?;
    if let Some(name) = named.file_name() {
        let named = path.join(name).with_extension("wasm");
        if named.is_file() {
            return Ok(named);
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let inside = entry.map_err(read)?.path();
        if inside.extension() == Some(OsStr::new("wasm")) {
            found.push(inside);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Err(SubjectError::Nothing { path: path.into() }),
        [one] => Ok(one.clone()),
        several => {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Err(SubjectError::Several { path: path.into(), names: several.iter().map(name).collect() })
        }
    }
}

/// What a manifest says of how its source is to be read.
fn terms(manifest: &PolicyConfig) -> Terms {
    Terms { world: World::named(&manifest.world), metering: Metering::of(&manifest.limits) }
}

fn starts_within(path: &Path, limits: &Limits, memory: u64, table: u64) -> Result<(), SubjectError> {
    for (what, needs, limit, option) in [
        ("bytes of memory", memory, limits.memory, "--memory"),
        ("table elements", table, limits.table_elements, "--table-elements"),
    ] {
        if needs > limit.into() {
            return Err(SubjectError::Starts { path: path.into(), what, needs, limit, option });
        }
    }
    Ok(())
}

/// Readers and compiler recurse over what they read.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, BuildError> + Send) -> Result<T, BuildError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("build".into()).stack_size(compile::STACK);
        let thread = builder
            .spawn_scoped(scope, work)
            .map_err(|error| BuildError::Compile(format!("start a thread: {error}")))?;
        thread.join().unwrap_or(Err(BuildError::Crashed))
    })
}
