//! How a role locks itself in, in this order, each step a value that only the step before can make:
//!
//! [`Given`] (checked what the supervisor left us: UID, no capabilities, no groups, limits)
//! -> [`Confined`] (not dumpable, no new privileges, Landlock)
//! -> [`Sealed`] (seccomp on every thread).
//!
//! Every serve loop takes [`Sealed`] by value, so a role that forgets its sandbox does not compile. There is no off
//! switch.
//!
//! A child's main, from its first line:
//!
//! ```text
//! install_panic_hook(role)                      settle_allocator()
//! check_inherited(role)?                        the descriptors that were agreed on, no environment
//! Given::check(role, uid, gid, isolation)?      one thread, nothing left of the supervisor's power
//!   .. load everything: engine, policies ..     still one thread
//! given.confine(&Places::default())?            Landlock, on this thread and all made from here on
//!   .. start every thread there will ever be, each: warm up, prove_landlock()?, wait ..
//! confined.seal()?                              seccomp on all of them at once
//! serve(sealed, ..)
//! end(0)                                        never a return from main: see there
//! ```
//!
//! What a role keeps, and what its sandbox lets by, is in `sandbox/`: system calls in `<arch>/<role>.json`, everything
//! else in `<role>.json` ([`Declared`]).
//!
//! The spawner takes a child's power away between clone and exec ([`privileges::surrender`]). The supervisor reduces its
//! own before it starts the spawner ([`privileges::settle`]) and once more after ([`privileges::keep`]), and looks at
//! every thread of a child from outside before any traffic reaches it ([`witness::look`]).

mod allocator;
mod declared;
mod end;
mod given;
mod inherited;
mod landlock;
pub mod launch;
mod panic;
pub mod privileges;
mod promptness;
mod seccomp;
mod status;
pub mod witness;

use std::fmt;

pub use allocator::{settle_allocator, share_the_main_heap};
pub use declared::{
    ConfiguredLimit, Declared, DeclaredAccess, DeclaredDomain, DeclaredError, DeclaredLimit, Environment,
    Handled, LimitName, LimitValue, Session,
};
pub use end::end;
pub use given::Given;
pub use inherited::check_inherited;
pub use landlock::{Enclosed, Places, enclose, prove_landlock};
pub use panic::{install_panic_hook, outlive_long_files};
pub use promptness::ask_for_short_slices;
#[cfg(feature = "compiler")]
pub(crate) use status::Status;
pub use status::{Mismatch, StatusError};

/// A program of the service. One role is one binary, one folder in `src/`, one profile in `sandbox/<arch>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Supervisor,
    Spawner,
    Frontend,
    Worker,
    Registry,
    Builder,
    Exporter,
    Gateway,
    /// Not of the service: `portcullis policy push | pull` starts it.
    Fetcher,
}

impl Role {
    /// Every role there is.
    pub const ALL: [Self; 9] = [
        Self::Supervisor,
        Self::Spawner,
        Self::Registry,
        Self::Builder,
        Self::Frontend,
        Self::Worker,
        Self::Exporter,
        Self::Gateway,
        Self::Fetcher,
    ];

    /// As in the binary's name, the folder's and the profile's.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Spawner => "spawner",
            Self::Frontend => "frontend",
            Self::Worker => "worker",
            Self::Registry => "registry",
            Self::Builder => "builder",
            Self::Exporter => "exporter",
            Self::Gateway => "gateway",
            Self::Fetcher => "fetcher",
        }
    }

    /// The role's seccomp profile for this architecture, as it is in `sandbox/`.
    #[must_use]
    pub const fn profile(self) -> &'static str {
        seccomp::profile(self)
    }

    /// How many seccomp filters the role adds to those it was born under.
    #[must_use]
    pub const fn filters(self) -> u32 {
        seccomp::filters(self)
    }

    /// How many are in force in it, besides those that the service as a whole was started under.
    #[must_use]
    pub const fn filters_in_force(self) -> u32 {
        match self {
            Self::Supervisor | Self::Spawner | Self::Fetcher => self.filters(),
            // Born under the spawner's.
            Self::Frontend
            | Self::Worker
            | Self::Registry
            | Self::Builder
            | Self::Exporter
            | Self::Gateway => Self::Spawner.filters() + self.filters(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not dumpable, no new privileges, Landlock in force on this thread and on every thread made after it.
#[derive(Debug)]
#[must_use = "a role that is not sealed must not serve"]
pub struct Confined {
    role: Role,
    landlock_abi: u32,
}

impl Confined {
    /// The Landlock ABI of the running kernel.
    #[must_use]
    pub const fn landlock_abi(&self) -> u32 {
        self.landlock_abi
    }

    /// Puts the role's seccomp profile on every thread of this process, at once.
    ///
    /// # Errors
    /// The profile does not compile, the kernel refuses it, or one thread could not be brought under it.
    pub fn seal(self) -> Result<Sealed, SealError> {
        seccomp::apply(self.role)?;
        Ok(Sealed { role: self.role })
    }
}

/// The whole sandbox is in force. Cannot be made, copied or cloned anywhere else.
#[derive(Debug)]
#[must_use = "a role is sealed in order to serve"]
pub struct Sealed {
    role: Role,
}

impl Sealed {
    /// Whose profile is in force.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// For unit tests of serve loops inside this crate; not compiled into any binary.
    #[cfg(test)]
    #[expect(dead_code, reason = "used by the unit tests of the rooms that serve")]
    pub(crate) const fn pretend_for_unit_test(role: Role) -> Self {
        Self { role }
    }
}

/// Why a role could not lock itself in. It must not serve; it says why and exits.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Declared(#[from] DeclaredError),
    /// The supervisor left more, or other, than it should have.
    #[error("check what was left to {role}: {mismatch}")]
    Left { role: Role, mismatch: Mismatch },
    #[error("check what was left to {role}: runs as uid 0; give it an unprivileged uid of its own")]
    Root { role: Role },
    #[error("check what was left to {role}: setresuid to 0 succeeded after all power was given up")]
    Regained { role: Role },
    #[error("{step}: {source}; a filter around the service does this: take it off")]
    Call { step: &'static str, source: std::io::Error },
    #[error(
        "confine {role}: {threads} threads exist, expected 1: Landlock would cover only the one that asks for it; \
         start threads after confine"
    )]
    TooManyThreads { role: Role, threads: usize },
    /// A probe that must work before Landlock did not, so its failure afterwards would prove nothing.
    #[error("open \"{path}\" before Landlock: {source}; mount /proc in this namespace")]
    Control { path: &'static str, source: std::io::Error },
    #[error(
        "enforce Landlock: the kernel does not offer ABI 6 ({source}); it takes Linux 6.12 or newer with \"landlock\" \
         in /sys/kernel/security/lsm, and no outer seccomp filter that blocks it (systemd-nspawn 252 does)"
    )]
    LandlockMissing { source: ::landlock::RulesetError },
    #[error(
        "enforce Landlock: {0}; a filter around the service that blocks landlock_restrict_self or prctl does this"
    )]
    Landlock(#[source] ::landlock::RulesetError),
    #[error("enforce Landlock: kernel reports {0}, expected fully enforced with no_new_privs")]
    LandlockPartial(String),
    #[error("allow \"{path}\" in Landlock: {source}")]
    LandlockRule { path: std::path::PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("prove Landlock: open \"{path}\" succeeded on thread {thread}, expected EACCES")]
    StillOpen { path: &'static str, thread: i32 },
    #[error("prove Landlock: open \"{path}\" on thread {thread}: {source}, expected EACCES")]
    Unproven { path: &'static str, thread: i32, source: std::io::Error },
    #[error("compile seccomp profile of {role}: {why}")]
    Profile { role: Role, why: String },
    #[error(
        "apply seccomp profile of {role}: thread {thread} could not be brought under it; it has a filter of its own"
    )]
    ThreadSync { role: Role, thread: i64 },
    #[error("apply seccomp profile of {role}: {source}; the kernel or an outer filter refuses seccomp")]
    Seccomp { role: Role, source: seccompiler::Error },
}
