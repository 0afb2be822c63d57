//! The supervisor: the only process with privilege, and with as little else as possible.
//!
//! One thread, std and nix, no runtime. It parses the configuration and the few small messages of
//! [`crate::wire::control`], and nothing else that anybody wrote. From top to bottom:
//!
//! [`arguments`] -> give up all but four capabilities -> [`config`] -> programs opened ([`spawn`]) -> sockets bound
//! ([`listen`]) -> its own sandbox -> the loop ([`supervise`]), in which the [`fleet`] of children is started, looked
//! at from outside, routed, watched, replaced and drained. What a child may say when is in [`child`], which
//! generation is wanted in [`generations`].

mod arguments;
mod child;
pub mod config;
mod fleet;
mod generations;
mod listen;
mod log;
mod notify;
mod signals;
mod spawn;
mod supervise;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use arguments::Arguments;
use config::{Config, ConfigErrors, Surroundings};
use fleet::Fleet;
use generations::Edition;
use listen::{ListenError, Sockets};
use log::say;
use notify::Notifier;
use signals::Signals;
use spawn::{Programs, SpawnError};
use supervise::{GaveUp, Supervision};

use crate::sandbox::privileges::{SurrenderError, settle};
use crate::sandbox::{Allowed, Given, Role, SealError, Sealed, install_panic_hook, system_paths};
use crate::wire::control::Isolation;

/// EX_USAGE, EX_UNAVAILABLE and EX_CONFIG of sysexits.h.
const EXIT_USAGE: u8 = 64;
const EXIT_UNAVAILABLE: u8 = 69;
const EXIT_CONFIG: u8 = 78;

/// Why the service does not run (any more).
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("find \"{path}\": {source}")]
    ConfigPath { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Privileges(#[from] SurrenderError),
    #[error(transparent)]
    Programs(#[from] SpawnError),
    #[error(transparent)]
    Sockets(#[from] ListenError),
    #[error("connect to service manager: {0}")]
    Notify(#[source] std::io::Error),
    #[error("take signals: {0}")]
    Signals(#[source] std::io::Error),
    #[error(transparent)]
    Sandbox(#[from] SealError),
    #[error(transparent)]
    GaveUp(#[from] GaveUp),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::ConfigPath { .. } => EXIT_CONFIG,
            _ => EXIT_UNAVAILABLE,
        }
    }
}

/// `portcullis-supervisor`. Exits 0 after SIGTERM or SIGINT, 64 on wrong usage, 78 on a wrong configuration and 69 if
/// the service cannot run.
#[must_use]
pub fn main() -> ExitCode {
    install_panic_hook(Role::Supervisor);
    let arguments = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(why) => {
            say!("{why}\n{}", arguments::USAGE.trim_end());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let outcome = match arguments {
        Arguments::Help => return print(arguments::USAGE),
        Arguments::Version => {
            return print(concat!("portcullis-supervisor ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        Arguments::Run { config, check: true } => check(&config),
        Arguments::Run { config, check: false } => run(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Every line by itself: editors and people jump to `path:line:col`.
        Err(Failure::Config(errors)) => {
            log::plain(&errors.to_string());
            ExitCode::from(EXIT_CONFIG)
        }
        Err(failure) => {
            say!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn check(config: &Path) -> Result<(), Failure> {
    let path = absolute(config)?;
    let surroundings = surroundings(settle()?);
    config::load(&path, &surroundings)?;
    Ok(())
}

/// The whole life of the service, in order.
fn run(config: &Path) -> Result<(), Failure> {
    let path = absolute(config)?;
    let surroundings = surroundings(settle()?);
    let config = config::load(&path, &surroundings)?;
    announce(surroundings.isolation, surroundings.uid);
    let programs = Programs::open(surroundings.isolation)?;
    let notifier = Notifier::from_environment(Instant::now()).map_err(Failure::Notify)?;
    let sockets = Sockets::open(&config.service)?;
    let sealed = Signals::open().map_err(Failure::Signals).and_then(|signals| {
        let sealed = lock_in(&surroundings, &path, &config, &programs, &sockets)?;
        Ok((signals, sealed))
    });
    let (signals, sealed) = sealed.inspect_err(|_| sockets.remove())?;
    let first = Edition { config: config.into(), epoch: 1 };
    let fleet = Fleet::new(programs, sockets, surroundings.isolation, first);
    let supervision = Supervision { config_path: path, surroundings, fleet, signals, notifier };
    Ok(supervision.serve(sealed)?)
}

/// The supervisor's own sandbox. Its children are born into it, so it has to leave them what they need until they
/// have their own.
fn lock_in(
    surroundings: &Surroundings,
    path: &Path,
    config: &Config,
    programs: &Programs,
    sockets: &Sockets,
) -> Result<Sealed, SealError> {
    let given = Given::check(Role::Supervisor, surroundings.uid, surroundings.gid, surroundings.isolation)?;
    let socket_directories = sockets.directories();
    let keys = &config.service.trusted_keys;
    // The loader and its libraries, and /proc for the witness.
    let mut allowed = system_paths();
    allowed.push(Allowed::ReadDir(&config.service.store));
    allowed.push(Allowed::Execute(programs.directory()));
    // Editors replace files, so a reload finds a new file in the same directory.
    allowed.extend(path.parent().map(Allowed::ReadDir));
    allowed.extend(keys.iter().filter_map(|key| key.path.parent()).map(Allowed::ReadDir));
    allowed.extend(config.classes.iter().map(|class| Allowed::ReadWriteDir(&class.cache)));
    allowed.extend(socket_directories.iter().map(|directory| Allowed::ReadWriteDir(directory)));
    given.confine(&allowed)?.seal()
}

/// Relative to where the service is started from: it leaves that place at once.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|source| Failure::ConfigPath { path: path.to_owned(), source })
}

fn surroundings(isolation: Isolation) -> Surroundings {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Surroundings {
        isolation,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        systemd: ["NOTIFY_SOCKET", "INVOCATION_ID"].iter().any(|name| std::env::var_os(name).is_some()),
    }
}

fn announce(isolation: Isolation, uid: u32) {
    match isolation {
        Isolation::DistinctUids => say!("every process gets a UID of its own"),
        Isolation::SharedUid => say!(
            "WARNING: started without privilege, so all processes share UID {uid} and the uid and gid of the \
             configuration are ignored; every other wall stands"
        ),
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
