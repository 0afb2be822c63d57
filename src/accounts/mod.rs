//! What is counted of tenants, and what their quotas are taken from: one piece of shared memory for each trust class and one
//! of the registry's, made by the supervisor when the service starts.
//!
//! Every worker of the class maps it before it is sealed, the exporter maps it to read. So counters and buckets outlive the
//! process that wrote them: a worker that was restarted refills no bucket, and a generation that takes over goes on where
//! the last one stopped. Everything in there is an atomic number ([`layout`]); there are no names, only slots, which the
//! supervisor gives and never gives twice. A worker that was taken over can write what it likes, and harms its own class.
//!
//! Quotas are buckets with one number each ([`bucket`]), taken by compare-and-swap before the work is done. [`meter`] is
//! where a worker takes them for one tenant.

mod bucket;
mod gauge;
mod histogram;
mod host_function;
mod layout;
mod map;
mod meter;
mod quotas;
mod spans;

pub use bucket::{Bucket, TooSoon};
pub use gauge::{Counter, Gauge};
pub use histogram::{BUCKETS, Exemplar, Histogram, Sampled, bound_ns};
pub use host_function::HostFunction;
pub use layout::{
    COLUMNS, ClassAccount, Column, MODULES_MAX, ModuleAccount, OutcomeKind, RegistryAccount,
    RegistryTenantAccount, StageOf, TENANTS_MAX, TenantAccount, TenantGauges, end_of_column,
};
pub use map::{Access, Layout, Map, MapError, create};
pub use meter::{Exceeded, Memory, Meter, UnderWay};
pub use quotas::{Quotas, Rate};
pub use spans::{SPANS, Span, SpanReader, SpanRing};
