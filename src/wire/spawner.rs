//! Supervisor <-> spawner. The spawner hears nobody else, and nothing that anybody else wrote comes through here.

use serde::{Deserialize, Serialize};

use crate::decision::TrustClass;
use crate::sandbox::Role;
use crate::wire::control::{BuildLimits, Isolation};
use crate::wire::gateway::LISTENERS_MAX;

/// Largest message, bytes: names and numbers.
pub const SPAWNER_MAX: usize = 4096;
/// Descriptors that come with one order.
pub const ORDER_DESCRIPTORS_MAX: usize = 3 + LISTENERS_MAX;

/// What a child is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    Frontend,
    Worker(TrustClass),
    Registry,
    Builder(TrustClass),
    Exporter,
    Gateway,
}

impl Part {
    #[must_use]
    pub const fn role(&self) -> Role {
        match self {
            Self::Frontend => Role::Frontend,
            Self::Worker(_) => Role::Worker,
            Self::Registry => Role::Registry,
            Self::Builder(_) => Role::Builder,
            Self::Exporter => Role::Exporter,
            Self::Gateway => Role::Gateway,
        }
    }

    /// Whose workers or builders.
    #[must_use]
    pub const fn class(&self) -> Option<&TrustClass> {
        match self {
            Self::Frontend | Self::Registry | Self::Exporter | Self::Gateway => None,
            Self::Worker(class) | Self::Builder(class) => Some(class),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frontend => f.write_str("frontend"),
            Self::Worker(class) => write!(f, "worker {class}"),
            Self::Registry => f.write_str("registry"),
            Self::Builder(class) => write!(f, "builder {class}"),
            Self::Exporter => f.write_str("exporter"),
            Self::Gateway => f.write_str("gateway"),
        }
    }
}

/// What the spawner may do, fixed for its life: whom it may start, and where they read and write before they are
/// sealed. A supervisor that was taken over cannot add to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnerAssignment {
    /// The spawner's own, which are the supervisor's.
    pub uid: u32,
    pub gid: u32,
    pub isolation: Isolation,
    pub members: Vec<Member>,
    /// Where bundles are dropped: the registry reads there.
    pub store: String,
    /// The registry's own directory.
    pub state: String,
    /// The classes' directories.
    pub caches: Vec<String>,
    /// The port that the exporter connects to, where traces are sent somewhere.
    pub collector: Option<u16>,
}

/// Somebody the spawner may start, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub part: Part,
    pub uid: u32,
    pub gid: u32,
}

/// Start one child. With it come its descriptors, in this order: control channel, assignment, up to two more, of a gateway
/// as many as it has listeners and one (see [`super::control::fd`]), and where there are such, those of its accounts and of its control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Counted up with each order; the answer has the same, so that a late one is known for what it is.
    pub serial: u64,
    pub part: Part,
    /// See [`crate::sandbox::privileges::ConfiguredLimits`].
    pub open_files: u64,
    pub processes: Option<u64>,
    /// Of a builder.
    pub build: Option<BuildLimits>,
    /// Before that of the control group comes the memory of its accounts.
    pub accounted: bool,
    /// The last descriptor is `cgroup.procs` of the control group that the child enters before anything else.
    pub grouped: bool,
}

/// What the spawner answers: once when it is sealed, and then once to each order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSpawner {
    Ready {
        landlock_abi: u32,
    },
    /// A child of the supervisor's now. What goes wrong in it from here on it tells the supervisor itself.
    Started {
        serial: u64,
        pid: i32,
    },
    /// There is no child.
    Refused {
        serial: u64,
        why: String,
    },
    /// It is not sealed, and ends.
    Failed {
        why: String,
    },
}
