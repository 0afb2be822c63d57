//! What a policy runs in. The same code in the worker, the builder and the command line, so that limits cannot differ.
//!
//! [`settings`] has the one configuration, for each [`target`], [`engines`] what runs under it; [`made_for`] reads what code was compiled for; [`load`] turns a verified artifact into a [`Policy`]; [`evaluate`] is one
//! decision: a fresh instance, the request in, the decision out, checked.

mod bindings;
mod data;
mod engines;
mod evaluate;
mod host;
mod load;
mod made_for;
mod metric;
mod outcome;
mod settings;
mod slice;
mod target;
mod watch;
mod world;

pub use data::{Data, Snapshot, SnapshotError};
pub use engines::Engines;
pub use evaluate::{Call, Evaluated, Residue, Used, evaluate, evaluate_watched};
pub use host::Importable;
#[cfg(feature = "compiler")]
pub use load::load_counting;
pub use load::{Granted, LoadError, Policy, load};
pub use made_for::{MadeFor, Unfit};
pub use metric::{METRIC_NAME_MAX, METRICS_MAX, Metrics, is_metric_name};
#[cfg(feature = "compiler")]
pub(crate) use settings::{CORE_INSTANCES_PER_COMPONENT, FEATURES, TABLE_ELEMENTS, TABLES_PER_COMPONENT};
pub use settings::{Metering, PoolLimits, WASMTIME_VERSION, settings_digest, settings_digest_of};
#[cfg(feature = "compiler")]
pub use settings::{compiling_engine, counting_engine, preparing_engine};
pub use slice::{Slice, monotonic_ns, realtime_ns, run_for, thread_cpu_ns};
pub use target::Target;
pub use watch::{Function, HostCall, Listed, LogLevel, Notes, Watch};
pub use world::{WORLD, World};
