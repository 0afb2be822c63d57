//! `portcullis demo`: the whole service, from keys to the last process, in about a minute and one temporary directory.
//!
//! The story in order is [`tell`]: a [`scene`] (directory, keys, signed policies, configuration), the [`service`] that
//! runs in it, the questions of the [`script`], a stored policy tampered with, a [`burst`] of questions, and the
//! processes as the [`kernel`] sees them. Whatever happens is an [`event`], and [`show`] prints it. Every answer is
//! compared with the expected one: the demo is also a test.

mod burst;
mod event;
mod kernel;
mod scene;
mod script;
mod service;
mod show;
mod signals;
mod tamper;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::CommandResult;
use super::operator::{OperatorError, ask_status};
use super::reload::ReloadError;
use crate::client::{ClientError, Settings, blocking};
use event::{Event, Summary};
use scene::{Scene, SceneError};
use script::Asker;
use service::{Program, Service, ServiceError};
use show::Show;
use signals::Signals;

/// How long the client waits for the service's own word on a passed deadline: demos run on busy machines, too.
const GRACE: Duration = Duration::from_secs(2);

/// Watch the whole service at work: keys, signed policies, two tenants, good and bad requests, the kernel's view
///
/// Makes everything in a temporary directory, needs no configuration and no checkout, and removes all of it. Started as
/// root, every process gets a UID of its own; started by anybody else, they share one. Exits with 1 if any answer is not
/// the expected one.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave the service running until Ctrl-C, and say how to ask it
    #[arg(long)]
    keep: bool,
    /// Print every event as one line of JSON
    #[arg(long)]
    json: bool,
    /// How long the burst of questions lasts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=60))]
    seconds: u16,
    /// Start a gateway as well, with the [gateway.listener.NAME] tables of this file: tenant acme, policies jwt-gate, rate-class and roles
    #[arg(long, value_name = "FILE")]
    gateway: Option<PathBuf>,
}

/// Why the demo did not go to its end.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Scene(#[from] SceneError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error("connect for tenant {tenant}: {cause}")]
    Connect { tenant: &'static str, cause: ClientError },
    #[error("look at pid {pid}: {cause}")]
    Look { pid: i32, cause: io::Error },
    #[error("read listeners of the gateway from {path:?}: {cause}")]
    Listeners { path: PathBuf, cause: io::Error },
    #[error("wait for signals: {0}")]
    Signals(io::Error),
    #[error("print: {0}")]
    Print(io::Error),
    #[error("demo interrupted; the service is stopped and its directory removed")]
    Interrupted,
    #[error("demo: {0} of what happened was not as expected, see above")]
    Unexpected(usize),
}

/// Runs the demo. The service is stopped and the directory removed on every way out of it.
pub(super) fn run(args: &DemoArgs) -> CommandResult {
    match perform(args) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // As itself, so that a closed pipe is no complaint.
        Err(DemoError::Print(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

fn perform(args: &DemoArgs) -> Result<(), DemoError> {
    // Before any thread is started, so that all of them leave the signals to us.
    let signals = Signals::open().map_err(DemoError::Signals)?;
    let mut show = Show::new(args.json);
    let program = Program::find()?;
    let listeners = args.gateway.as_ref().map(|path| {
        fs::read_to_string(path).map_err(|cause| DemoError::Listeners { path: path.clone(), cause })
    });
    let scene = Scene::create(listeners.transpose()?)?;
    let service = tell(args, &program, &scene, &signals, &mut show)?;
    service.stop(&signals)?;
    let dir = scene.remove()?;
    show.event(&Event::Stopped { dir })?;
    match show.unexpected() {
        0 => Ok(()),
        count => Err(DemoError::Unexpected(count)),
    }
}

/// From an empty directory to the summary; gives back the service, still running.
fn tell(
    args: &DemoArgs,
    program: &Program,
    scene: &Scene,
    signals: &Signals,
    show: &mut Show,
) -> Result<Service, DemoError> {
    show.event(&scene.introduction())?;
    for source in scene.sources() {
        let built = source.build()?;
        signals.check()?;
        for signed in scene.install(source, &built)? {
            show.event(&Event::Policy(signed))?;
        }
    }
    scene.configure()?;

    let (mut service, started) = Service::start(program, scene, signals)?;
    show.event(&Event::Ready(started))?;
    let settings = Settings { grace: GRACE, ..Settings::default() };
    let mut asker = Asker::new(blocking::Client::with_settings(scene.socket(), settings));
    for tenant in &scene::TENANTS {
        let micros = asker.connect(tenant.name, service::PATIENCE)?;
        show.event(&Event::Connected { tenant: tenant.name, class: tenant.class, micros })?;
    }

    for ask in script::mixed() {
        signals.check()?;
        show.event(&asker.ask(&ask)?)?;
    }
    tamper::tell(scene, &mut asker, signals, show)?;
    let burst = burst::run(scene, Duration::from_secs(args.seconds.into()), signals)?;
    show.event(&Event::Burst(burst.clone()))?;

    let status = ask_status(&scene.operator_socket())?;
    let (processes, isolation) = kernel::look(&status)?;
    show.event(&Event::Processes { processes, isolation })?;
    let summary = Summary::new(asker.asked() + burst.decisions, show.unexpected(), isolation, &burst);
    show.event(&Event::Summary(summary))?;
    if args.keep {
        show.event(&Event::Keeping(script::examples(scene)?))?;
        service.stay(signals)?;
    }
    Ok(service)
}
