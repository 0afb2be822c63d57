//! `portcullis attest`: is what runs what is declared?
//!
//! Nothing that a process says of itself is believed: the kernel is asked, by `/proc` and the file system. The service
//! is asked only which processes it thinks it has ([`process`], compared with the kernel both ways) and what Landlock
//! probes came to, which the kernel shows to nobody. Each check is one finding: as declared, different, or not visible
//! to who asks; what cannot be seen is never called right.
//!
//! What is expected comes from `sandbox/<role>.json` ([`crate::sandbox::Declared`]), from the configuration where it
//! can be read, and where neither has anything to say, from the supervisor: the service is one, so its processes share
//! its namespaces and live at or below its control group.
//!
//! [`process`] which processes there are -> for each, unless it is [`starting`], [`threads`], [`descriptors`], [`memory`], [`limits`] and
//! [`surroundings`] -> [`files`] -> [`report`]. How the kernel is read, and what it may refuse, is in [`view`].

mod descriptors;
mod family;
mod files;
mod group;
mod limits;
mod memory;
mod process;
mod report;
mod starting;
mod surroundings;
mod threads;
mod view;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use nix::fcntl::OFlag;

use super::operator::{OperatorError, ask_status, socket};
use super::output;
use super::terminal::printable;
use crate::sandbox::{Declared, DeclaredError, Role, Status as ThreadStatus};
use crate::supervisor::config::{self, Class, Config, Identity, Surroundings};
use crate::wire::control::{Isolation, ProcessState};
use crate::wire::operator::Status;
use process::{Census, Configured, Subject};
use report::{Finding, Findings, Report, Row, Summary, Verdict};

/// Where the configuration is, unless said otherwise.
const CONFIGURATION: &str = "/etc/portcullis/portcullis.toml";
/// Stands for a directory of which only the supervisor's environment knows the name. There is none of this one.
const UNSEEN_CREDENTIALS: &str = "/proc/credentials-of-the-supervisor";
/// Processes come and go while a set of policies is replaced; what changes while it is looked at is looked at again.
const LOOKS: usize = 10;
/// What differs must still do so when looked at again: a supervisor that is just starting a worker holds its assignment.
const LOOKS_AT_DIFFERENCES: usize = 3;

const EXIT_CODES: &str = "Exit codes: 0 nothing differs; 1 something does (with --strict, or is hidden from this user); \
                          3 the service is not there, or not for you; 64 the command line is wrong.";

/// Compare the running service with its declared sandbox, as the kernel sees it
///
/// Reads every thread's status, descriptors, mappings, limits, namespaces and control groups from /proc, and the owners
/// and modes of sockets, caches, keys and programs. Root sees everything; for others, what the kernel hides is "not
/// visible".
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct AttestArgs {
    /// The operators' socket [default: $PORTCULLIS_OPERATOR_SOCKET or /run/portcullis/operator.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The configuration the service runs with
    #[arg(long, value_name = "PATH", default_value = CONFIGURATION)]
    config: PathBuf,
    /// Print every finding as JSON
    #[arg(long)]
    json: bool,
    /// Exit 1 also when something is hidden from this user
    #[arg(long)]
    strict: bool,
}

/// Why nothing can be said of the service.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttestError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Declared(#[from] DeclaredError),
    #[error("print the report: {0}")]
    Print(#[from] io::Error),
}

impl AttestError {
    /// 3: the service is not there, or does not answer this user.
    #[must_use]
    pub(super) fn exit_code(&self) -> u8 {
        3
    }
}

/// Looks, compares, prints.
pub(super) fn run(args: &AttestArgs) -> Result<ExitCode, AttestError> {
    let socket = socket(args.socket.as_deref());
    let report = look(&socket, &args.config)?;
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(io::Error::other)? + "\n"
    } else {
        report.for_people()
    };
    output::text(format_args!("{text}"))?;
    let Summary { different, not_visible, not_visible_to_anybody, .. } = report.summary;
    let hidden = not_visible > not_visible_to_anybody;
    Ok(if different > 0 || (args.strict && hidden) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn look(socket: &Path, configuration: &Path) -> Result<Report, AttestError> {
    let mut looks = 1;
    loop {
        let status = ask_status(socket)?;
        let expected = Expectations::of(&status, configuration)?;
        let census = process::take(&status, &expected.configured());
        let (findings, changed) = compare(&census, &expected);
        let report = report(&status, &census, findings);
        let differs = report.summary.different > 0;
        if (looks < LOOKS && (changed || !census.agrees())) || (looks < LOOKS_AT_DIFFERENCES && differs) {
            looks += 1;
            continue;
        }
        return Ok(report);
    }
}

/// All findings of all processes and of the files, and whether a process went away meanwhile.
fn compare(census: &Census, expected: &Expectations) -> (Vec<Finding>, bool) {
    let mut all = Vec::new();
    let mut changed = false;
    for subject in &census.subjects {
        let before = view::stat(subject.pid);
        let mut findings = Findings::of(subject);
        if subject.state == ProcessState::Starting
            && starting::is_believed(subject, &before, view::now(), &mut findings)
        {
            starting::check(subject, expected, &mut findings);
            // Soon it can be looked at like any other.
            changed = true;
        } else {
            threads::check(subject, expected, &mut findings);
            descriptors::check(subject, expected, &mut findings);
            memory::check(subject, &mut findings);
            limits::check(subject, expected, &mut findings);
            surroundings::check(subject, expected, &mut findings);
        }
        // A number is a process's only as long as that lives.
        let after = view::stat(subject.pid);
        changed |= after != before || after.is_err() || after.is_ok_and(|stat| stat.ended);
        all.append(&mut findings.list);
    }
    let mut findings = Findings::of_service();
    files::check(expected, &mut findings);
    all.append(&mut findings.list);
    (all, changed)
}

fn report(status: &Status, census: &Census, findings: Vec<Finding>) -> Report {
    let rows = census.subjects.iter().map(|subject| Row {
        subject: subject.title(),
        generation: subject.generation,
        pid: subject.pid,
        uid: subject.uid,
        state: subject.state,
    });
    let processes = rows.collect();
    let mut all = census.findings.list.clone();
    all.extend(findings);
    Report {
        // The frontend's word, and JSON writes most control characters as they are.
        version: printable(&status.version),
        supervisor_pid: status.supervisor_pid,
        isolation: status.processes.isolation,
        seen_as_uid: nix::unistd::geteuid().as_raw(),
        processes,
        summary: Summary::of(&all),
        findings: all,
    }
}

/// What things are compared with.
#[derive(Debug)]
struct Expectations {
    isolation: Isolation,
    /// The supervisor's number.
    supervisor: i32,
    supervisor_uid: u32,
    /// The supervisor as the kernel has it; its own findings say why, where it cannot be seen.
    measure: Option<ThreadStatus>,
    /// Those of all network namespaces, and whether each listens; asked for once at most, and only if it has to be.
    sockets: OnceCell<BTreeMap<u64, bool>>,
    /// Directory of the programs.
    programs: Option<PathBuf>,
    declared: Vec<(Role, Declared)>,
    configuration_path: PathBuf,
    /// Or what is to be said of there being none.
    configuration: Result<Configuration, Verdict>,
}

/// The configuration as it is now, which may be newer than what runs.
#[derive(Debug)]
struct Configuration {
    config: Config,
    /// What a reload would say.
    complaints: Verdict,
}

impl Expectations {
    fn of(status: &Status, configuration: &Path) -> Result<Self, DeclaredError> {
        let supervisor = status.supervisor_pid;
        let isolation = status.processes.isolation;
        let measure = view::status(supervisor, 0).ok();
        let [supervisor_uid, ..] = measure.as_ref().map_or([0; 4], |measure| measure.uid);
        let [gid, ..] = measure.as_ref().map_or([0; 4], |measure| measure.gid);
        let declared = Role::ALL.into_iter().map(|role| Ok((role, Declared::of(role)?)));
        let program = view::link(supervisor, "exe").ok();
        let program = program.map(|program| view::program(&program));
        Ok(Self {
            isolation,
            supervisor,
            supervisor_uid,
            measure,
            sockets: OnceCell::new(),
            programs: program.and_then(|program| program.parent().map(Path::to_owned)),
            declared: declared.collect::<Result<_, DeclaredError>>()?,
            configuration_path: configuration.to_owned(),
            configuration: read(configuration, isolation, Identity { uid: supervisor_uid, gid }, supervisor),
        })
    }

    fn declared(&self, role: Role) -> Option<&Declared> {
        self.declared.iter().find(|(of, _)| *of == role).map(|(_, declared)| declared)
    }

    fn programs(&self) -> Option<PathBuf> {
        self.programs.clone()
    }

    fn filters(&self, role: Role) -> Option<u32> {
        // How many the service was started under is not declared: what the supervisor has besides its own.
        let outer = self.measure.as_ref()?.seccomp_filters.saturating_sub(Role::Supervisor.filters());
        Some(outer.saturating_add(role.filters_in_force()))
    }

    /// Of the spawner: what its children are born under.
    fn filters_at_birth(&self) -> Option<u32> {
        self.filters(Role::Spawner)
    }

    /// `None` where only the configuration could say.
    fn identity(&self, subject: &Subject) -> Option<Identity> {
        let measure = self.measure.as_ref()?;
        let ([uid, ..], [gid, ..]) = (measure.uid, measure.gid);
        let config = self.configuration.as_ref().ok().map(|configuration| &configuration.config);
        match (self.isolation, subject.role) {
            (Isolation::SharedUid, _) | (_, Role::Supervisor | Role::Spawner) => Some(Identity { uid, gid }),
            (_, Role::Frontend) => Some(config?.frontend.identity),
            (_, Role::Registry) => Some(config?.registry.identity),
            (_, Role::Exporter) => config?.telemetry.as_ref().map(|telemetry| telemetry.identity),
            (_, Role::Gateway) => config?.gateway.as_ref().map(|gateway| gateway.identity),
            // No part of the service.
            (_, Role::Fetcher) => None,
            (_, Role::Worker | Role::Builder) => {
                let class = subject.class.as_deref();
                let of_it = |one: &&Class| Some(one.name.as_str()) == class;
                config?.classes.iter().find(of_it).map(|one| one.identity)
            }
        }
    }

    /// The directory that `sandbox/<role>.json` has a name for. `None` where only the configuration could say.
    fn place(&self, subject: &Subject, name: &str) -> Option<PathBuf> {
        let config = &self.configuration.as_ref().ok()?.config;
        match name {
            "store" => Some(config.service.store.clone()),
            "state" => Some(config.service.state.clone()),
            "cache" => {
                let of_it = |one: &&Class| Some(one.name.as_str()) == subject.class.as_deref();
                config.classes.iter().find(of_it).map(|class| class.cache.clone())
            }
            _ => None,
        }
    }

    /// Who there must be, by the configuration.
    fn configured(&self) -> Configured {
        let Ok(Configuration { config, .. }) = &self.configuration else {
            let classes = Err(self.why_no_configuration());
            return Configured { uids: Vec::new(), classes, telemetry: None, gateway: None };
        };
        let uids = match self.isolation {
            Isolation::SharedUid => Vec::new(),
            Isolation::DistinctUids => {
                let classes = config.classes.iter().map(|class| class.identity.uid);
                let exporter = config.telemetry.as_ref().map(|telemetry| telemetry.identity.uid);
                let gateway = config.gateway.as_ref().map(|gateway| gateway.identity.uid);
                let others = [config.frontend.identity.uid, config.registry.identity.uid];
                classes.chain(others).chain(exporter).chain(gateway).collect()
            }
        };
        let classes = config.classes.iter().map(|class| class.name.to_string()).collect();
        Configured {
            uids,
            classes: Ok(classes),
            telemetry: Some(config.telemetry.is_some()),
            gateway: Some(config.gateway.is_some()),
        }
    }

    fn why_no_configuration(&self) -> String {
        format!(
            "takes the configuration, and {} cannot be read; --config",
            view::shown(&self.configuration_path)
        )
    }
}

/// As the supervisor would read it.
fn read(
    path: &Path,
    isolation: Isolation,
    Identity { uid, gid }: Identity,
    supervisor: i32,
) -> Result<Configuration, Verdict> {
    // O_NONBLOCK: a FIFO must not hold us up.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    if let Err(error) = std::fs::File::options().read(true).custom_flags(flags.bits()).open(path) {
        // One that is not there may be elsewhere: that is not the service's fault.
        let why = format!("{}: {error}; --config says where it is", view::shown(path));
        return Err(Verdict::hidden(why));
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    // Who may not see its environment may not open what lies there, wherever it is.
    let credentials = match view::text(supervisor, "environ") {
        Ok(environment) => environment
            .split('\0')
            .find_map(|variable| variable.strip_prefix("CREDENTIALS_DIRECTORY="))
            .map(PathBuf::from),
        Err(_) => Some(UNSEEN_CREDENTIALS.into()),
    };
    let surroundings = Surroundings { isolation, uid, gid, cores, systemd: false, credentials };
    let (config, said) = config::look(path, &surroundings)
        .map_err(|errors| Verdict::different(&errors.to_string(), "a configuration that can be used"))?;
    let complaints = match said {
        Ok(()) => Verdict::ok("nothing"),
        Err(errors) => complaints(&errors.to_string()),
    };
    Ok(Configuration { config, complaints })
}

/// That something may not be opened is news of who asks, not of the service.
fn complaints(lines: &str) -> Verdict {
    let denied = io::Error::from_raw_os_error(nix::libc::EACCES).to_string();
    let (hidden, wrong): (Vec<&str>, Vec<&str>) =
        lines.lines().partition(|line| line.contains(&denied) || line.contains(UNSEEN_CREDENTIALS));
    if wrong.is_empty() {
        return Verdict::hidden(format!("{} of the configuration's files cannot be seen", hidden.len()));
    }
    Verdict::different(&wrong.join("; "), "nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_opened_is_not_visible_and_anything_else_is_different() {
        let denied = "a.toml:1:2: open cache \"/c\": Permission denied (os error 13)";
        let wrong = "a.toml:3:4: open trusted key \"/k\": others may write it (mode 0666)";
        assert!(matches!(complaints(denied), Verdict::NotVisible { to_anybody: false, .. }));
        let unseen =
            format!("a.toml:1:2: open trusted key \"{UNSEEN_CREDENTIALS}/k\": No such file or directory");
        assert!(matches!(complaints(&unseen), Verdict::NotVisible { .. }));
        let verdict = complaints(&format!("{denied}\n{wrong}"));
        assert_eq!(verdict, Verdict::different(wrong, "nothing"));
    }
}
