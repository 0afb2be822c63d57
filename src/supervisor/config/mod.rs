//! The one TOML file, parsed into types that cannot be wrong; everything that is wrong with it is said at once.
//!
//! [`load`] reads the text, [`crate::document`] finds each key's place in it, [`values`] says what a single value may look
//! like, [`read`] what they mean together, and [`places`] looks at the files and directories they name. Children never
//! see the file: each gets the part it needs as an assignment.

mod builder;
mod ceilings;
mod class;
mod distinct;
mod gateway;
mod listener;
mod places;
mod plans;
mod read;
mod telemetry;
mod tenant;
mod tenants;
mod values;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::gateway::{Gateway, GatewayListener, Place};
pub use self::telemetry::Telemetry;
pub use crate::document::DocumentErrors as ConfigErrors;
pub use tenants::{EXTENSION, FiledTenant, TenantState};

use super::books::Books;
use crate::accounts::Quotas;
use crate::artifact::Ceiling;
use crate::decision::{PolicyName, Tenant, TrustClass};
use crate::wire::control::{
    BuildLimits, BuilderAssignment, ClassLimits, ClassSeats, FrontendAssignment, Isolation,
    RegistryAssignment, RegistryClass, RegistryTenant, SecretText, TenantAssignment, TrustText,
    WorkerAssignment,
};

/// Largest configuration, bytes: ten thousand tenants.
const CONFIG_MAX: u64 = 16 << 20;

/// What the file cannot say of itself: who reads it, and on what machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether this process can give each role its own UID.
    pub isolation: Isolation,
    pub uid: u32,
    pub gid: u32,
    pub cores: u32,
    /// Started by systemd: then distinct UIDs are required unless the file says otherwise.
    pub systemd: bool,
    /// Where systemd has put the unit's credentials (`LoadCredential=`).
    pub credentials: Option<PathBuf>,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub service: Service,
    pub frontend: Frontend,
    pub registry: Registry,
    pub builder: Builder,
    /// `None`: there is no exporter.
    pub telemetry: Option<Telemetry>,
    /// `None`: there is no gateway.
    pub gateway: Option<Gateway>,
    /// At least one; sorted by name.
    pub classes: Vec<Class>,
    /// Those that are served. Sorted by name; each in one of `classes`.
    pub tenants: Vec<TenantConfig>,
    /// Those that have a file of their own, in whatever state. Sorted by name.
    pub filed: Vec<FiledTenant>,
}

/// What concerns all processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub socket: PathBuf,
    /// Permission bits.
    pub socket_mode: u32,
    pub operator_socket: PathBuf,
    pub operators: Vec<u32>,
    /// Where bundles are dropped. Whose it is does not matter: nothing in there is trusted.
    pub store: PathBuf,
    pub store_inode: Inode,
    /// The registry's own directory.
    pub state: PathBuf,
    pub state_inode: Inode,
    pub trust: TrustFile,
    /// Where tenants have files of their own, if anywhere.
    pub tenants: Option<PathBuf>,
    pub tenants_inode: Inode,
    /// Versions of each policy that are kept for a way back.
    pub keep_previous: u32,
    pub require_distinct_uids: bool,
    /// Longest a retiring process may take.
    pub drain: Duration,
    /// A child that answers no ping for this long is replaced.
    pub answer_within: Duration,
}

/// The trust policy, as its file had it when the configuration was read. What it says is the registry's to understand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFile {
    pub path: PathBuf,
    pub text: String,
}

/// Which directory it is, whatever it is called. Landlock lets processes reach directories, not names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }
}

/// Who a role runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

/// The frontend's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    pub identity: Identity,
    pub hello_timeout: Duration,
    pub max_connections: u32,
    /// If the file says so.
    pub max_connections_per_uid: Option<u32>,
}

impl Frontend {
    /// Of a UID that the file says nothing of: a quarter of all, and no more than half of what any class takes, so that nobody
    /// keeps all others of a class out by connecting.
    fn of_one_uid(&self, classes: &[Class]) -> u32 {
        self.max_connections_per_uid.unwrap_or_else(|| {
            let classes = classes.iter().map(|class| class.limits.connections / 2);
            classes.chain([self.max_connections / 4]).min().unwrap_or(1).max(1)
        })
    }
}

/// The registry's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    pub identity: Identity,
    /// Keys that open what is confidential, if there are any.
    pub secret: Option<SecretFile>,
}

/// A file of keys, as it was when the configuration was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    pub path: PathBuf,
    pub text: SecretText,
}

/// What one builder may use, whichever class it works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Builder {
    pub limits: BuildLimits,
    /// By the clock on the wall.
    pub wall: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        let limits = BuildLimits { cpu: 30, memory: 1 << 30, output: 64 << 20 };
        Self { limits, wall: Duration::from_secs(60) }
    }
}

impl Builder {
    fn cpu(&self) -> Duration {
        Duration::from_secs(self.limits.cpu.into())
    }
}

/// One trust class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    pub name: TrustClass,
    pub identity: Identity,
    pub cache: PathBuf,
    pub cache_inode: Inode,
    pub limits: ClassLimits,
    pub ceiling: Ceiling,
    pub group: GroupLimits,
}

/// What the kernel lets a class's workers have together, by their control group. Nothing: they are in none of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Bytes.
    pub memory_max: Option<u64>,
    /// Threads, of all processes.
    pub tasks_max: Option<u64>,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantConfig {
    pub name: Tenant,
    pub class: TrustClass,
    pub policies: Vec<PolicyName>,
    /// Data snapshots that its policies may read. No name is also a policy's.
    pub data: Vec<PolicyName>,
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    pub weight: u32,
    pub max_deadline: Duration,
    pub default_deadline: Duration,
    /// Within its class's.
    pub ceiling: Ceiling,
    /// Whose quotas it has; `None` if there is no plan for it.
    pub plan: Option<String>,
    pub quotas: Quotas,
}

/// Reads and checks the file and everything it names, or says everything that is wrong.
pub fn load(path: &Path, surroundings: &Surroundings) -> Result<Config, ConfigErrors> {
    let text = places::read_config(path, surroundings, CONFIG_MAX)
        .map_err(|why| ConfigErrors::whole_file(path, why))?;
    read::config(path, &text, surroundings)
}

/// The configuration as it is written, whatever state the files it names are in, and what [`load`] would say of it. For
/// looking at a service from outside; nothing may be started from it.
///
/// # Errors
/// The file cannot be read, others may write it, or it makes no sense.
pub fn look(
    path: &Path,
    surroundings: &Surroundings,
) -> Result<(Config, Result<(), ConfigErrors>), ConfigErrors> {
    let text = places::read_config(path, surroundings, CONFIG_MAX)
        .map_err(|why| ConfigErrors::whole_file(path, why))?;
    read::look(path, &text, surroundings)
}

/// The same, and what would be wrong with a tenant's file of that path and text if it were there and active.
///
/// # Errors
/// The configuration cannot be read, others may write it, or it makes no sense.
pub fn look_with(
    path: &Path,
    surroundings: &Surroundings,
    candidate: (&Path, &str),
) -> Result<(Config, Option<ConfigErrors>), ConfigErrors> {
    let text = places::read_config(path, surroundings, CONFIG_MAX)
        .map_err(|why| ConfigErrors::whole_file(path, why))?;
    let (looked, refused) = read::look_with(path, &text, surroundings, Some(candidate));
    looked.map(|(config, _)| (config, refused))
}

impl Config {
    /// What the frontend needs of it.
    #[must_use]
    pub fn frontend_assignment(&self, isolation: Isolation) -> FrontendAssignment {
        FrontendAssignment {
            uid: self.frontend.identity.uid,
            gid: self.frontend.identity.gid,
            isolation,
            tenants: self.grants(),
            operators: self.service.operators.clone(),
            hello_timeout_ms: milliseconds(self.frontend.hello_timeout),
            max_connections: self.frontend.max_connections,
            max_connections_per_uid: self.frontend.of_one_uid(&self.classes),
            classes: self
                .classes
                .iter()
                .map(|class| ClassSeats { class: class.name.clone(), connections: class.limits.connections })
                .collect(),
        }
    }

    /// What the registry needs of it.
    pub(super) fn registry_assignment(&self, books: &Books, isolation: Isolation) -> RegistryAssignment {
        let tenants = self.tenants.iter().map(|tenant| RegistryTenant {
            tenant: tenant.name.clone(),
            slot: books.tenant(&tenant.name).unwrap_or(u32::MAX),
            class: tenant.class.clone(),
            policies: tenant.policies.clone(),
            ceiling: self.ceiling(tenant),
            data: tenant.data.clone(),
        });
        let classes = self.classes.iter();
        let service = &self.service;
        RegistryAssignment {
            uid: self.registry.identity.uid,
            gid: self.registry.identity.gid,
            isolation,
            store: service.store.display().to_string(),
            state: service.state.display().to_string(),
            trust: TrustText {
                path: service.trust.path.display().to_string(),
                text: service.trust.text.clone(),
            },
            tenants: tenants.collect(),
            classes: classes
                .map(|class| RegistryClass { class: class.name.clone(), memory: class.limits.memory })
                .collect(),
            keep_previous: service.keep_previous,
            secret: self.registry.secret.as_ref().map(|secret| secret.text.clone()),
            removed: self.removed(),
        }
    }

    /// Those of whom nothing is kept any longer.
    fn removed(&self) -> Vec<Tenant> {
        let removed = self.filed.iter().filter(|one| one.state == TenantState::Removed);
        removed.map(|one| one.name.clone()).collect()
    }

    /// What a builder of `class` needs of it.
    #[must_use]
    pub fn builder_assignment(&self, class: &Class, isolation: Isolation) -> BuilderAssignment {
        BuilderAssignment {
            class: class.name.clone(),
            uid: class.identity.uid,
            gid: class.identity.gid,
            isolation,
            cache: class.cache.display().to_string(),
            memory: class.limits.memory,
            limits: self.builder.limits,
        }
    }

    /// What the next worker of `class` needs of it, and of the registry's key.
    pub(super) fn worker_assignment(
        &self,
        books: &Books,
        class: &Class,
        generation: u64,
        isolation: Isolation,
        host_key: &str,
    ) -> WorkerAssignment {
        let tenants = self.tenants.iter().filter(|tenant| tenant.class == class.name);
        let tenants = tenants.map(|tenant| TenantAssignment {
            tenant: tenant.name.clone(),
            slot: books.tenant(&tenant.name).unwrap_or(u32::MAX),
            policies: tenant.policies.clone(),
            modules: modules(books, tenant),
            quotas: tenant.quotas.clone(),
            weight: tenant.weight,
            max_deadline_us: microseconds(tenant.max_deadline),
            default_deadline_us: microseconds(tenant.default_deadline),
            ceiling: self.ceiling(tenant),
        });
        WorkerAssignment {
            class: class.name.clone(),
            generation,
            uid: class.identity.uid,
            gid: class.identity.gid,
            isolation,
            host_key: host_key.to_owned(),
            tenants: tenants.collect(),
            slots: books.slots(),
            limits: class.limits.clone(),
        }
    }

    /// What a tenant's policies may have at most: what its class gives, and what it does.
    #[must_use]
    pub fn ceiling(&self, tenant: &TenantConfig) -> Ceiling {
        let class = self.class(&tenant.class).map_or(Ceiling::MOST, |class| class.ceiling);
        tenant.ceiling.and(&class)
    }

    #[must_use]
    pub fn class(&self, name: &TrustClass) -> Option<&Class> {
        self.classes.iter().find(|class| class.name == *name)
    }

    /// What `next` changes that only a restart can change: it is bound, dropped or locked in when the service starts.
    #[must_use]
    pub fn fixed_parts_changed(&self, next: &Self) -> Vec<String> {
        let (old, new) = (&self.service, &next.service);
        let mut changed = Vec::new();
        let mut compare = |same: bool, what: String| {
            if !same {
                changed.push(what);
            }
        };
        compare(old.socket == new.socket, "service.socket".to_owned());
        compare(old.socket_mode == new.socket_mode, "service.socket_mode".to_owned());
        compare(old.operator_socket == new.operator_socket, "service.operator_socket".to_owned());
        compare(old.store == new.store, "service.store".to_owned());
        // A link that leads elsewhere now, or a directory that took the other's name.
        compare(
            old.store != new.store || old.store_inode == new.store_inode,
            format!("the directory that is {:?}", old.store),
        );
        compare(old.state == new.state, "service.state".to_owned());
        compare(
            old.state != new.state || old.state_inode == new.state_inode,
            format!("the directory that is {:?}", old.state),
        );
        compare(old.tenants == new.tenants, "service.tenants".to_owned());
        compare(
            old.tenants != new.tenants || old.tenants_inode == new.tenants_inode,
            format!("the directory that is {:?}", old.tenants.as_deref().unwrap_or(Path::new(""))),
        );
        compare(self.frontend.identity == next.frontend.identity, "frontend.uid or gid".to_owned());
        compare(self.registry.identity == next.registry.identity, "registry.uid or gid".to_owned());
        for what in telemetry::fixed_parts_changed(self.telemetry.as_ref(), next.telemetry.as_ref()) {
            compare(false, what);
        }
        for what in gateway::fixed_parts_changed(self.gateway.as_ref(), next.gateway.as_ref()) {
            compare(false, what);
        }
        let names = |config: &Self| config.classes.iter().map(|class| class.name.clone()).collect::<Vec<_>>();
        compare(names(self) == names(next), "the set of classes".to_owned());
        for class in &self.classes {
            let Some(other) = next.class(&class.name) else { continue };
            compare(class.identity == other.identity, format!("class.{}.uid or gid", class.name));
            compare(class.cache == other.cache, format!("class.{}.cache", class.name));
            compare(
                class.cache != other.cache || class.cache_inode == other.cache_inode,
                format!("the directory that is {:?}", class.cache),
            );
            // The number may change, not whether there is one: control groups are made when the service starts.
            let (old, new) = (class.group, other.group);
            let same = old.memory_max.is_some() == new.memory_max.is_some();
            compare(same, format!("whether there is a class.{}.memory_max", class.name));
            let same = old.tasks_max.is_some() == new.tasks_max.is_some();
            compare(same, format!("whether there is a class.{}.tasks_max", class.name));
        }
        changed
    }
}

/// Where its policies are in the accounts, in order. What is not in the books is not counted.
fn modules(books: &Books, tenant: &TenantConfig) -> Vec<u32> {
    let of = |policy| books.module(&tenant.name, policy).unwrap_or(u32::MAX);
    tenant.policies.iter().map(of).collect()
}

/// The ranges in [`read`] keep durations far below these types' ends.
fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
