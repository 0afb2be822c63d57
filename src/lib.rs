//! Portcullis: may this request go through?
//!
//! A sidecar that answers that question with signed WebAssembly policies, each decision in a fresh instance, under a
//! strict deadline, in a process without privilege. This page is the map; each room tells its own story.
//!
//! ```text
//!              systemd / init / shell
//!                      | listening sockets
//!             +--------v--------+   orders   +---------+
//!             |   supervisor    |----------->| spawner |  SETUID SETGID SETPCAP; starts the others
//!             +---+---------+---+  KILL      +---------+
//!                 | watches all of them
//!     +-----------v--+     +-------------------+
//!     |   frontend   |     |  worker @ class   |  one live generation per trust class
//!     |  accept, who +---->|  no caps, no fs,  |
//!     |  is it, hand | fd  |  no net, no exec  |
//!     |  over the fd |<----+  fresh instances  |
//!     +--------------+     +---------^---------+
//!                                    | sealed code, signed by this host
//!            store      +------------+--+   +------------------+
//!            of bundles |   registry    |<->| builder @ class  |  one job, then exit
//!                  ---->|  verifies     |   | checks, compiles |
//!                       +---------------+   +------------------+
//! ```
//!
//! One decision, top to bottom: [`frontend`] accepts and greets, [`wire::handover`] carries the connection to a
//! [`worker`], whose connection, admission, schedule and evaluate steps end in [`engine`], and the reply leaves by
//! [`wire::client`]. One policy, from its author to there: [`compile`], [`bundle`], [`signature`], then [`registry`] by the
//! rules in [`trust`], [`builder`], and over [`wire::supply`] to a worker.

pub mod accounts;
pub mod artifact;
#[cfg(feature = "compiler")]
pub mod builder;
pub mod bundle;
#[cfg(feature = "compiler")]
pub mod cli;
pub mod client;
#[cfg(feature = "compiler")]
pub mod compile;
pub mod decision;
pub mod document;
pub mod engine;
#[cfg(feature = "exporter")]
pub mod exporter;
#[cfg(feature = "fetcher")]
pub mod fetcher;
pub mod frontend;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod journal;
pub mod ledger;
pub mod otlp;
pub mod registry;
#[cfg(feature = "compiler")]
pub mod rehearsal;
pub mod sandbox;
pub mod signature;
pub mod spawner;
pub mod supervisor;
pub mod table;
pub mod trust;
pub mod wire;
pub mod worker;

/// Writes into a program which one it is and of which version, for `portcullis install` to find there.
#[doc(hidden)]
#[macro_export]
macro_rules! mark {
    () => {
        // Nothing reads it in here, and what nothing reads would not be in the program.
        std::hint::black_box(concat!(
            "portcullis program ",
            env!("CARGO_BIN_NAME"),
            " ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))
    };
}
