//! The control groups of classes that are limited in memory or tasks, where this service's own group is delegated.
//!
//! Without such a limit nothing here touches anything: whoever starts the service by hand stays where they are. With
//! one, the limit holds or the service does not start. This process's own group is divided, since processes may only be
//! in the leaves of the tree: `supervisor` for this process, the spawner and the frontend, `class-<name>` for the workers
//! of a class, whichever generation they are of.
//!
//! Every file is opened before the seal. The kernel asks who opened a file, not who writes to it, so a child that is
//! given a group's entrance needs no right of its own to enter.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::config::{Class, Config};
use super::log::say;
use crate::decision::TrustClass;

const WAY_OUT: &str = "where the hierarchy of control groups is unified, give the service a group of its own (Delegate=memory \
                       pids and ProtectControlGroups=no in the unit), or take memory_max and tasks_max out of the \
                       configuration";
/// Where this process, the spawner and the frontend are.
const OWN: &str = "supervisor";
/// More than `memory.events` ever has, bytes.
const EVENTS_MAX: u64 = 4096;

/// Why a limit cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlGroupError {
    #[error("limit classes: no unified hierarchy of control groups is mounted; {WAY_OUT}")]
    NoHierarchy,
    #[error("limit classes: read {path:?}: {source}; {WAY_OUT}")]
    Read { path: PathBuf, source: io::Error },
    #[error("limit classes: control group {0:?} is the root of the hierarchy; {WAY_OUT}")]
    Root(PathBuf),
    #[error(
        "limit classes: control group {group:?} has no controller {missing:?}, it has {there:?}; {WAY_OUT}"
    )]
    NoController { group: PathBuf, missing: &'static str, there: String },
    #[error("limit classes: process {other} is in control group {group:?} too; {WAY_OUT}")]
    Shared { group: PathBuf, other: String },
    #[error("limit classes: make control group {path:?}: {source}; {WAY_OUT}")]
    Make { path: PathBuf, source: io::Error },
    #[error("limit classes: write {text:?} to {path:?}: {source}; {WAY_OUT}")]
    Write { path: PathBuf, text: String, source: io::Error },
    #[error("limit classes: open {path:?}: {source}; {WAY_OUT}")]
    Open { path: PathBuf, source: io::Error },
}

/// The limited classes' groups.
#[derive(Debug, Default)]
pub(super) struct ControlGroups {
    classes: BTreeMap<TrustClass, Group>,
}

impl ControlGroups {
    /// Divides this process's own group, if any class is limited.
    pub(super) fn prepare(config: &Config) -> Result<Self, ControlGroupError> {
        let limited: Vec<&Class> = config.classes.iter().filter(|class| is_limited(class)).collect();
        if limited.is_empty() {
            return Ok(Self::default());
        }
        let own = own_group(Path::new("/proc/self"))?;
        divide(&own, std::process::id(), &controllers(&limited), &limited)
    }

    /// Where a worker of this class goes in, if the class has a group.
    pub(super) fn entrance(&self, class: &TrustClass) -> Option<BorrowedFd<'_>> {
        self.classes.get(class).map(|group| group.entrance.file.as_fd())
    }

    /// The numbers of another configuration, for workers that live and those to come. It limits what the first one
    /// did: see [`Config::fixed_parts_changed`].
    pub(super) fn set(&self, config: &Config) -> Result<(), ControlGroupError> {
        for class in config.classes.iter().filter(|class| is_limited(class)) {
            if let Some(group) = self.classes.get(&class.name) {
                group.set(class)?;
            }
        }
        Ok(())
    }

    /// Whether the kernel has killed somebody of this class for want of memory that this has not been asked for yet.
    pub(super) fn ran_out_of_memory(&mut self, class: &TrustClass) -> bool {
        let memory = self.classes.get_mut(class).and_then(|group| group.memory.as_mut());
        memory.is_some_and(Memory::killed_one_more)
    }
}

/// A size as the configuration has it: `512MiB`.
pub(super) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.into_iter().find(|(shift, _)| bytes.trailing_zeros() >= *shift && bytes != 0);
    whole.map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

fn is_limited(class: &Class) -> bool {
    class.group.memory_max.is_some() || class.group.tasks_max.is_some()
}

fn controllers(classes: &[&Class]) -> Vec<&'static str> {
    let memory = classes.iter().any(|class| class.group.memory_max.is_some()).then_some("memory");
    let pids = classes.iter().any(|class| class.group.tasks_max.is_some()).then_some("pids");
    memory.into_iter().chain(pids).collect()
}

/// Looks first and changes afterwards, so that a group that will not do is left as it is.
fn divide(
    own: &Path,
    pid: u32,
    controllers: &[&'static str],
    classes: &[&Class],
) -> Result<ControlGroups, ControlGroupError> {
    check(own, pid, controllers)?;
    let leaf = own.join(OWN);
    make(&leaf)?;
    if let Err(why) = write(&leaf.join("cgroup.procs"), &pid.to_string()) {
        // Nobody is in it.
        let _ = fs::remove_dir(&leaf);
        return Err(why);
    }
    let down: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    write(&own.join("cgroup.subtree_control"), &down.join(" "))?;
    let mut groups = ControlGroups::default();
    for class in classes {
        let group = Group::make(&own.join(format!("class-{}", class.name)), class)?;
        groups.classes.insert(class.name.clone(), group);
    }
    Ok(groups)
}

fn check(own: &Path, pid: u32, controllers: &[&'static str]) -> Result<(), ControlGroupError> {
    let there = read(&own.join("cgroup.controllers"))?;
    // The root alone has no such file. All that runs on the machine is below it.
    if !own.join("cgroup.events").exists() {
        return Err(ControlGroupError::Root(own.to_owned()));
    }
    if let Some(missing) = controllers.iter().find(|name| !there.split_whitespace().any(|one| one == **name))
    {
        let there = there.trim().to_owned();
        return Err(ControlGroupError::NoController { group: own.to_owned(), missing, there });
    }
    // A shell, say, whose user never meant to give it away.
    let processes = read(&own.join("cgroup.procs"))?;
    match processes.lines().find(|line| line.parse() != Ok(pid)) {
        None => Ok(()),
        Some(other) => Err(ControlGroupError::Shared { group: own.to_owned(), other: other.to_owned() }),
    }
}

/// One class's group.
#[derive(Debug)]
struct Group {
    entrance: Kept,
    memory: Option<Memory>,
    tasks: Option<Kept>,
}

#[derive(Debug)]
struct Memory {
    max: Kept,
    events: Kept,
    /// How many kills have been told of.
    told: u64,
}

/// A file that stays open.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: File,
}

impl Group {
    fn make(path: &Path, class: &Class) -> Result<Self, ControlGroupError> {
        make(path)?;
        let mut memory = None;
        if class.group.memory_max.is_some() {
            // A limit that swapping gets around is none, and what is swapped out has left the process.
            let swap = path.join("memory.swap.max");
            if swap.exists() {
                write(&swap, "0")?;
            }
            write(&path.join("memory.oom.group"), "1")?;
            let max = Kept::open(path.join("memory.max"), true)?;
            let mut kept = Memory { max, events: Kept::open(path.join("memory.events"), false)?, told: 0 };
            // Not all of them need be of this life of the service.
            kept.told = kept.kills();
            memory = Some(kept);
        }
        let tasks = class.group.tasks_max.map(|_| Kept::open(path.join("pids.max"), true)).transpose()?;
        let group = Self { entrance: Kept::open(path.join("cgroup.procs"), true)?, memory, tasks };
        group.set(class)?;
        Ok(group)
    }

    fn set(&self, class: &Class) -> Result<(), ControlGroupError> {
        if let (Some(memory), Some(bytes)) = (&self.memory, class.group.memory_max) {
            memory.max.put(&bytes.to_string())?;
            let guests = u64::from(class.limits.instances) * u64::from(class.limits.memory);
            say!("class {}: memory_max = {} for its workers together", class.name, size(bytes));
            if bytes < guests {
                say!(
                    "class {}: WARNING: memory_max is less than instances x memory, {}: guests that use what they \
                     may have get the worker killed",
                    class.name,
                    size(guests)
                );
            }
        }
        if let (Some(tasks), Some(number)) = (&self.tasks, class.group.tasks_max) {
            tasks.put(&number.to_string())?;
            say!("class {}: tasks_max = {number} for its workers together", class.name);
        }
        Ok(())
    }
}

impl Memory {
    fn killed_one_more(&mut self) -> bool {
        let more = self.kills() > self.told;
        self.told = self.told.saturating_add(u64::from(more));
        more
    }

    /// The kernel counts before it kills, so a death that was seen is in here. What cannot be read tells nothing.
    fn kills(&self) -> u64 {
        let mut text = String::new();
        let mut file = &self.events.file;
        let read = file.rewind().and_then(|()| file.take(EVENTS_MAX).read_to_string(&mut text));
        let counted = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        read.ok().and(counted).unwrap_or(self.told)
    }
}

impl Kept {
    /// Not waiting: a lower `memory.max` would otherwise keep the writer until the class has given its memory back.
    fn open(path: PathBuf, writing: bool) -> Result<Self, ControlGroupError> {
        let mut options = File::options();
        options.read(!writing).write(writing).custom_flags(nix::libc::O_NONBLOCK);
        match options.open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(ControlGroupError::Open { path, source }),
        }
    }

    fn put(&self, text: &str) -> Result<(), ControlGroupError> {
        let mut file = &self.file;
        file.rewind().and_then(|()| file.write_all(text.as_bytes())).map_err(|source| {
            ControlGroupError::Write { path: self.path.clone(), text: text.to_owned(), source }
        })
    }
}

/// Left over from an earlier life is as good as new.
fn make(path: &Path) -> Result<(), ControlGroupError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(ControlGroupError::Make { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<(), ControlGroupError> {
    Kept::open(path.to_owned(), true)?.put(text)
}

fn read(path: &Path) -> Result<String, ControlGroupError> {
    fs::read_to_string(path).map_err(|source| ControlGroupError::Read { path: path.to_owned(), source })
}

/// This process's group in the unified hierarchy, as a path that can be opened.
fn own_group(process: &Path) -> Result<PathBuf, ControlGroupError> {
    let groups = read(&process.join("cgroup"))?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let mounts = read(&process.join("mountinfo"))?;
    let mut mounts = mounts.lines().filter_map(unified_mount);
    group
        .and_then(|group| {
            mounts.find_map(|(root, mounted)| below(group, root).map(|rest| mounted.join(rest)))
        })
        .ok_or(ControlGroupError::NoHierarchy)
}

/// Of a line of mountinfo (proc(5)), if it is about the unified hierarchy: which part of it is mounted, and where.
fn unified_mount(line: &str) -> Option<(&str, &Path)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    filesystem.starts_with("cgroup2 ").then_some(())?;
    let mut fields = mount.split(' ').skip(3);
    let (root, mounted) = (fields.next()?, fields.next()?);
    // A name with a space in it would be written with backslashes; there is another mount, or none.
    (!mounted.contains('\\')).then_some((root, Path::new(mounted)))
}

/// What is left of a group's path below `root`; `None` if it is not below it, as from within another namespace.
fn below<'a>(group: &'a str, root: &str) -> Option<&'a str> {
    let rest = Path::new(group).strip_prefix(root).ok()?.to_str()?;
    (!rest.split('/').any(|part| part == "..")).then_some(rest)
}

#[cfg(test)]
mod tests;
