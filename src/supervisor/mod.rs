//! The supervisor: reads the configuration, has the others started, watches them and ends them.
//!
//! One thread, std and nix, no runtime, one capability (CAP_KILL) and no way to start a process itself. It parses the configuration and the few small messages of
//! [`crate::wire::control`], and nothing else that anybody wrote. From top to bottom:
//!
//! [`arguments`] -> give up all but four capabilities -> [`config`] -> [`control_groups`] of limited classes -> sockets bound ([`listen`]) -> the spawner
//! started, which takes three of the four ([`spawn`]) -> its own sandbox -> the loop ([`supervise`]), in which the [`fleet`] of children is started, looked
//! at from outside, routed, watched, replaced and drained. What a child may say when is in [`child`], which
//! generation is wanted in [`generations`].

mod arguments;
mod books;
mod child;
pub mod config;
mod control_groups;
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
use books::{Books, BooksFull};
use config::{Config, ConfigErrors, Surroundings};
use control_groups::{ControlGroupError, ControlGroups};
use fleet::Fleet;
use generations::Edition;
use listen::{ListenError, Sockets};
use log::say;
use notify::Notifier;
use signals::Signals;
use spawn::{SpawnError, Spawner};
use supervise::{GaveUp, Supervision};

use crate::sandbox::launch::close_from;
use crate::sandbox::privileges::{SurrenderError, keep, settle};
use crate::sandbox::{
    Enclosed, Given, Places, Role, SealError, Sealed, enclose, end, install_panic_hook, settle_allocator,
};
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
    ControlGroups(#[from] ControlGroupError),
    #[error("make the memory of the accounts: {0}")]
    Books(#[source] std::io::Error),
    #[error(transparent)]
    BooksFull(#[from] BooksFull),
    #[error(transparent)]
    Spawner(#[from] SpawnError),
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
            Self::Config(_) | Self::ConfigPath { .. } | Self::GaveUp(GaveUp::Survey(_)) => EXIT_CONFIG,
            _ => EXIT_UNAVAILABLE,
        }
    }
}

/// `portcullis-supervisor`. Exits 0 after SIGTERM or SIGINT, 64 on wrong usage, 78 on a wrong configuration and 69 if
/// the service cannot run.
#[must_use]
pub fn main() -> ExitCode {
    settle_allocator();
    install_panic_hook(Role::Supervisor);
    // What the shell or manager that started this left open is nobody's business here.
    if let Err(why) = close_from(listen::first_not_ours()) {
        say!("close inherited descriptors: {why}");
        return ExitCode::from(EXIT_UNAVAILABLE);
    }
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
    // It may be sealed by now.
    match outcome {
        Ok(()) => end(0),
        // Every line by itself: editors and people jump to `path:line:col`.
        Err(Failure::Config(errors)) => {
            log::plain(&errors.to_string());
            end(EXIT_CONFIG)
        }
        Err(failure) => {
            say!("{failure}");
            end(failure.exit_code())
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
    // While it may still open what is somebody else's. All children inherit it.
    if let Err(why) = crate::journal::stderr::reopen() {
        say!("WARNING: {why}");
    }
    let path = absolute(config)?;
    let surroundings = surroundings(settle()?);
    let config = config::load(&path, &surroundings)?;
    announce(surroundings.isolation, surroundings.uid);
    // First, while nothing else can have taken the numbers that systemd passes.
    let sockets = Sockets::open(&config)?;
    let ready = Notifier::from_environment(Instant::now()).map_err(Failure::Notify).and_then(|notifier| {
        // Before there is another process, and before any file can no longer be opened for writing.
        let groups = ControlGroups::prepare(&config)?;
        let mut books =
            Books::open(config.classes.iter().map(|class| &class.name)).map_err(Failure::Books)?;
        books.enter(&config)?;
        let enclosed = enclose()?;
        Ok((notifier, groups, books, divide_and_lock_in(enclosed, &surroundings, &path, &config, &sockets)?))
    });
    let (notifier, groups, books, (spawner, signals, sealed)) = ready.inspect_err(|_| sockets.remove())?;
    let first = Edition { config: config.into(), epoch: 1 };
    let fleet = Fleet::new(spawner, groups, books, sockets, surroundings.isolation, first);
    let supervision = Supervision { config_path: path, surroundings, fleet, signals, notifier, asked: None };
    Ok(supervision.serve(sealed)?)
}

/// From one process with all the power there is to two with a part each: the spawner can make processes and give them
/// UIDs, this one can end them. From here on it reads, tells and ends, and starts nothing.
fn divide_and_lock_in(
    enclosed: Enclosed,
    surroundings: &Surroundings,
    path: &Path,
    config: &Config,
    sockets: &Sockets,
) -> Result<(Spawner, Signals, Sealed), Failure> {
    let spawner = Spawner::start(&enclosed, config, surroundings)?;
    let signals = Signals::open().map_err(Failure::Signals)?;
    keep(Role::Supervisor, surroundings.isolation)?;
    let given = Given::check(Role::Supervisor, surroundings.uid, surroundings.gid, surroundings.isolation)?;
    // Editors replace files, so a reload finds a new file in the same directory.
    let trust = config.service.trust.path.parent();
    let secret = config.registry.secret.as_ref().and_then(|secret| secret.path.parent());
    let places = path
        .parent()
        .into_iter()
        .chain(trust)
        .chain(secret)
        .chain(config.service.tenants.as_deref())
        .fold(Places::default(), |places, directory| places.with("configuration", directory));
    let places =
        sockets.directories().into_iter().fold(places, |places, directory| places.with("sockets", directory));
    let sealed = given.confine(&places)?.seal()?;
    Ok((spawner, signals, sealed))
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
        credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
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
