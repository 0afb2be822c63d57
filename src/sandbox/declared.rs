//! `sandbox/<role>.json`: capabilities, Landlock, resource limits, descriptors and the rest of a role's state, as data.
//!
//! The code applies what the files say and `portcullis attest` compares the running system with them; there is no other
//! list. They are compiled in: a file that could be changed beside a program would be one more thing to guard.

use caps::Capability;
use nix::sys::resource::Resource;
use serde::Deserialize;

use super::Role;

/// One role's file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    pub role: String,
    pub comment: String,
    /// Permitted, effective and bounding, where the service may have capabilities at all. Inheritable and ambient are
    /// empty in every role.
    pub capabilities: Vec<DeclaredCapability>,
    pub process: DeclaredProcess,
    /// Entered in this order.
    pub landlock: Vec<DeclaredDomain>,
    pub limits: Vec<DeclaredLimit>,
    pub descriptors: DeclaredDescriptors,
}

/// A capability the role keeps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredCapability {
    /// As in capabilities(7): `CAP_KILL`.
    pub capability: String,
    pub comment: String,
}

/// State of the process as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredProcess {
    pub dumpable: bool,
    pub no_new_privs: bool,
    /// Octal.
    pub umask: String,
    pub directory: String,
    pub environment: Environment,
    pub session: Session,
    pub comment: String,
}

/// What a role is started with in its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Environment {
    #[serde(rename = "empty")]
    Empty,
    #[serde(rename = "as started")]
    AsStarted,
}

/// Whether a role leads a session of its own, and so has no terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Session {
    #[serde(rename = "own")]
    Own,
    #[serde(rename = "as started")]
    AsStarted,
}

/// One Landlock domain: all that it handles is denied, but for what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredDomain {
    pub handles: Vec<Handled>,
    pub allow: Vec<DeclaredAllow>,
    pub comment: String,
}

/// What a domain may deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handled {
    /// Every right to files that ABI 6 knows.
    Files,
    /// Binding and connecting TCP.
    Tcp,
    /// Signals to processes outside.
    Signals,
    /// Connecting to abstract Unix sockets made outside.
    AbstractSockets,
}

/// One thing a domain allows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredAllow {
    pub access: DeclaredAccess,
    /// A path, or a name in braces for paths that the configuration gives (`{store}`).
    pub path: String,
    /// What is not there cannot be needed. Otherwise a missing path is an error, not a rule less.
    #[serde(default)]
    pub optional: bool,
    pub comment: String,
}

/// What may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclaredAccess {
    /// Read one file.
    ReadFile,
    /// List a directory and read everything beneath.
    ReadDirectory,
    /// List, read, make, write, rename and remove files, directories and sockets beneath.
    ReadWriteDirectory,
    /// Remove files and sockets beneath, and nothing else.
    RemoveFile,
    /// Read and execute everything beneath (shared libraries).
    Execute,
    /// Read and execute one program.
    ExecuteFile,
    /// Connect to TCP ports, on any machine. They have names, as paths have that the configuration gives.
    ConnectTcp,
}

/// One resource limit, soft and hard.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredLimit {
    pub limit: LimitName,
    pub value: LimitValue,
    pub comment: String,
}

/// As in setrlimit(2), without `RLIMIT_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitName {
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rtprio,
}

impl LimitName {
    /// As the kernel and its manual call it.
    #[must_use]
    pub const fn resource(self) -> (&'static str, Resource) {
        match self {
            Self::Core => ("RLIMIT_CORE", Resource::RLIMIT_CORE),
            Self::Cpu => ("RLIMIT_CPU", Resource::RLIMIT_CPU),
            Self::Data => ("RLIMIT_DATA", Resource::RLIMIT_DATA),
            Self::Fsize => ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
            Self::Memlock => ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
            Self::Msgqueue => ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
            Self::Nice => ("RLIMIT_NICE", Resource::RLIMIT_NICE),
            Self::Nofile => ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
            Self::Nproc => ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
            Self::Rtprio => ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
        }
    }
}

/// A number, or one that follows from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum LimitValue {
    Number(u64),
    FromConfiguration(ConfiguredLimit),
}

/// Numbers that follow from the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfiguredLimit {
    /// Connections and policies.
    OpenFiles,
    /// Threads of all generations that may live at one time; not set where the UID is shared.
    Processes,
    /// Of a builder, seconds of processor time. The hard limit is a second more, so that the kernel says which one it was.
    BuildCpu,
    /// Of a builder, bytes of its own.
    BuildMemory,
    /// Of a builder, bytes of one file.
    BuildOutput,
}

/// Which descriptors a role has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredDescriptors {
    /// Those it is started with: these, but for what is optional, and no others.
    pub inherited: Vec<InheritedDescriptor>,
    /// Kinds of those it makes or receives itself.
    pub later: Vec<LaterDescriptor>,
}

/// A descriptor at an agreed number (see [`crate::wire::control::fd`]).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InheritedDescriptor {
    pub number: i32,
    /// How `/proc/<pid>/fd` shows it, without inode numbers: `socket`, `/dev/null`, `memfd:<name>`, `log` for whatever
    /// the supervisor's standard error is, `any`.
    pub is: String,
    /// Read before the seal and closed.
    #[serde(default)]
    pub closed_when_sealed: bool,
    /// There only where the configuration says so.
    #[serde(default)]
    pub optional: bool,
    pub comment: String,
}

/// A kind of descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaterDescriptor {
    /// As in [`InheritedDescriptor::is`]; also `anon_inode:[..]`, `pagemap` for the process's own, `program` for one of
    /// the service's programs, and a name in braces for a directory that the configuration gives and all that is in it
    /// (`{store}`).
    pub is: String,
    pub comment: String,
}

impl Declared {
    /// The file of a role, as text.
    #[must_use]
    pub const fn text(role: Role) -> &'static str {
        match role {
            Role::Supervisor => include_str!("../../sandbox/supervisor.json"),
            Role::Spawner => include_str!("../../sandbox/spawner.json"),
            Role::Frontend => include_str!("../../sandbox/frontend.json"),
            Role::Worker => include_str!("../../sandbox/worker.json"),
            Role::Registry => include_str!("../../sandbox/registry.json"),
            Role::Builder => include_str!("../../sandbox/builder.json"),
            Role::Exporter => include_str!("../../sandbox/exporter.json"),
            Role::Gateway => include_str!("../../sandbox/gateway.json"),
            Role::Fetcher => include_str!("../../sandbox/fetcher.json"),
        }
    }

    /// The file of a role.
    ///
    /// # Errors
    /// What is wrong with the file; a test reads every one of them.
    pub fn of(role: Role) -> Result<Self, DeclaredError> {
        let wrong = |why: String| DeclaredError { role: role.name().to_owned(), why };
        let declared: Self =
            serde_json::from_str(Self::text(role)).map_err(|error| wrong(error.to_string()))?;
        if declared.role != role.name() {
            return Err(wrong(format!("it is of role {:?}", declared.role)));
        }
        declared.kept_capabilities()?;
        Ok(declared)
    }

    /// The capabilities the role keeps.
    pub(super) fn kept_capabilities(&self) -> Result<Vec<Capability>, DeclaredError> {
        let parse = |kept: &DeclaredCapability| {
            kept.capability.parse().map_err(|_| DeclaredError {
                role: self.role.clone(),
                why: format!("{:?} is no capability", kept.capability),
            })
        };
        self.capabilities.iter().map(parse).collect()
    }

    /// The same as `/proc/<pid>/status` shows them.
    #[must_use]
    pub fn capability_mask(&self) -> u64 {
        let kept = self.kept_capabilities().unwrap_or_default();
        kept.iter().fold(0, |mask, capability| mask | capability.bitmask())
    }
}

/// A file that is not as it must be.
#[derive(Debug, thiserror::Error)]
#[error("read sandbox/{role}.json: {why}")]
pub struct DeclaredError {
    role: String,
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::fd;
    use crate::wire::fetch;
    use crate::wire::gateway::LISTENERS_MAX;

    fn every() -> impl Iterator<Item = (Role, Declared)> {
        Role::ALL.into_iter().map(|role| (role, Declared::of(role).expect("file")))
    }

    #[test]
    fn every_line_has_a_reason() {
        for (role, declared) in every() {
            let mut comments = vec![&declared.comment, &declared.process.comment];
            comments.extend(declared.capabilities.iter().map(|one| &one.comment));
            comments.extend(declared.landlock.iter().map(|one| &one.comment));
            comments.extend(declared.landlock.iter().flat_map(|one| &one.allow).map(|one| &one.comment));
            comments.extend(declared.limits.iter().map(|one| &one.comment));
            comments.extend(declared.descriptors.inherited.iter().map(|one| &one.comment));
            comments.extend(declared.descriptors.later.iter().map(|one| &one.comment));
            assert!(comments.iter().all(|comment| comment.len() > 5), "{role}");
        }
    }

    /// The power of the service, divided: nobody has all of it.
    #[test]
    fn who_meets_strangers_has_no_capability_and_nobody_has_all() {
        let mask = |role| Declared::of(role).expect("file").capability_mask();
        assert_eq!(mask(Role::Frontend), 0);
        assert_eq!(mask(Role::Worker), 0);
        assert_eq!(mask(Role::Registry), 0);
        assert_eq!(mask(Role::Builder), 0);
        assert_eq!(mask(Role::Exporter), 0);
        assert_eq!(mask(Role::Gateway), 0);
        assert_eq!(mask(Role::Fetcher), 0);
        assert_eq!(mask(Role::Supervisor), 1 << 5, "CAP_KILL");
        assert_eq!(mask(Role::Spawner), 1 << 6 | 1 << 7 | 1 << 8, "CAP_SETGID, CAP_SETUID, CAP_SETPCAP");
    }

    #[test]
    fn every_domain_of_a_role_together_handles_everything() {
        for (role, declared) in every() {
            for what in [Handled::Files, Handled::Tcp, Handled::Signals, Handled::AbstractSockets] {
                let handled =
                    declared.landlock.iter().filter(|domain| domain.handles.contains(&what)).count();
                assert_eq!(handled, 1, "{role}: {what:?}");
            }
            let files = declared.landlock.iter().filter(|domain| !domain.allow.is_empty());
            assert!(files.clone().all(|domain| domain.handles.contains(&Handled::Files)), "{role}");
            let strict = matches!(role, Role::Frontend | Role::Worker | Role::Exporter | Role::Gateway);
            let mut allowed = files.flat_map(|domain| &domain.allow);
            assert!(
                !strict || allowed.all(|one| one.access == DeclaredAccess::ConnectTcp),
                "{role} is allowed a file"
            );
            let ports = declared.landlock.iter().flat_map(|domain| &domain.allow);
            let ports = ports.filter(|one| one.access == DeclaredAccess::ConnectTcp).count();
            // The exporter is born under the spawner's rules, so they have its port too.
            let may = matches!(role, Role::Exporter | Role::Fetcher | Role::Spawner);
            assert!(ports == 0 || may, "{role} is allowed a port");
        }
    }

    #[test]
    fn nobody_leaves_a_core_and_nobody_is_dumpable() {
        for (role, declared) in every() {
            let core = declared.limits.iter().find(|limit| limit.limit == LimitName::Core).expect("core");
            assert_eq!(core.value, LimitValue::Number(0), "{role}");
            assert!(!declared.process.dumpable && declared.process.no_new_privs, "{role}");
        }
    }

    #[test]
    fn the_numbers_of_descriptors_are_the_agreed_ones() {
        let numbers = |role| {
            let declared = Declared::of(role).expect("file");
            declared.descriptors.inherited.iter().map(|one| one.number).collect::<Vec<_>>()
        };
        let worker = [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT, fd::FIRST, fd::SECOND, fd::ACCOUNTS];
        assert_eq!(numbers(Role::Worker), worker);
        assert_eq!(numbers(Role::Registry), [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT, fd::ACCOUNTS]);
        assert_eq!(numbers(Role::Builder), [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT, fd::FIRST]);
        assert_eq!(numbers(Role::Frontend), [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT, fd::FIRST, fd::SECOND]);
        assert_eq!(numbers(Role::Exporter), [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT, fd::FIRST, fd::SECOND]);
        let listeners = (fd::GATEWAY_FIRST..).take(LISTENERS_MAX);
        let gateway: Vec<i32> =
            [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT, fd::FIRST].into_iter().chain(listeners).collect();
        assert_eq!(numbers(Role::Gateway), gateway);
        assert_eq!(
            gateway.last(),
            Some(&fd::GATEWAY_LAST),
            "its profile tells connections from them by that"
        );
        assert_eq!(numbers(Role::Fetcher), [fetch::fd::CHANNEL, fetch::fd::FOLDER, 2]);
        assert_eq!(numbers(Role::Spawner), [0, 1, 2, fd::CONTROL, fd::ASSIGNMENT]);
        assert_eq!(numbers(Role::Supervisor), [0, 1, 2]);
    }
}
