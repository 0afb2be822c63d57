//! A stored policy is changed by one byte, and the service told to load it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::event::{Event, Tampered, Unexpected, micros};
use super::scene::Scene;
use super::script::{self, Asker};
use super::service::PATIENCE;
use super::show::Show;
use super::signals::Signals;
use super::{DemoError, GRACE};
use crate::artifact::Digest;
use crate::cli::operator::{OperatorError, ask_status};
use crate::cli::reload::reload;
use crate::client::{Settings, blocking};
use crate::wire::operator::{PolicyStatus, Status, WorkerStatus};

const TENANT: &str = "bank";
const CLASS: &str = "alone";
const POLICY: &str = "ip-allowlist";

/// Tampers, reloads, looks at what `status` says of it, and asks the policy: over the old connection, which the new
/// worker took over, and over a new one.
pub(super) fn tell(
    scene: &Scene,
    asker: &mut Asker,
    signals: &Signals,
    show: &mut Show,
) -> Result<(), DemoError> {
    signals.check()?;
    let socket = scene.operator_socket();
    let before = told(&socket, ask_status(&socket)?)?;
    let (byte, stored) = scene.tamper(TENANT, POLICY)?;
    let start = Instant::now();
    let after = reload(&socket, PATIENCE)?;
    let took = start.elapsed();
    let after = told(&socket, after)?;
    show.event(&Event::Tampered(compare(&before, &after, (byte, stored), took)))?;

    show.event(
        &asker.ask(&script::to_ip_allowlist("the tampered policy, over the connection from before"))?,
    )?;
    let settings = Settings { grace: GRACE, ..Settings::default() };
    let mut newcomer = Asker::new(blocking::Client::with_settings(scene.socket(), settings));
    newcomer.connect(TENANT, PATIENCE)?;
    show.event(&newcomer.ask(&script::to_ip_allowlist("the tampered policy, over a new connection"))?)?;
    asker.count(newcomer.asked());
    Ok(())
}

/// That status, or the next in which the class has its say.
fn told(socket: &Path, mut status: Status) -> Result<Status, OperatorError> {
    let until = Instant::now() + PATIENCE;
    while status.untold.iter().any(|one| one.class.as_str() == CLASS) && Instant::now() < until {
        status = ask_status(socket)?;
    }
    Ok(status)
}

fn compare(before: &Status, after: &Status, (byte, stored): (usize, Digest), took: Duration) -> Tampered {
    let (then, now) = (find(before), find(after));
    let digest = |found: Option<(&WorkerStatus, &PolicyStatus)>| {
        found.and_then(|(_, policy)| policy.serving.as_ref()).map(|serving| serving.digest)
    };
    let generation =
        |found: Option<(&WorkerStatus, &PolicyStatus)>| found.map(|(worker, _)| worker.generation);
    let refused = now.and_then(|(_, policy)| policy.held_back.clone());
    let serving = digest(now);
    let expectations = [
        (refused.is_some(), "expected the tampered policy to be refused by name"),
        (serving.is_some() && serving == digest(then), "expected the last good policy to go on serving"),
        (serving != Some(stored), "expected the tampered code not to serve"),
        (generation(now) > generation(then), "expected a new generation of the worker"),
    ];
    Tampered {
        tenant: TENANT,
        class: CLASS,
        policy: POLICY,
        byte,
        stored,
        refused,
        serving,
        generation: generation(now),
        reload_micros: micros(took),
        unexpected: Unexpected::where_not(expectations),
    }
}

/// The policy, in the newest worker that has it.
fn find(status: &Status) -> Option<(&WorkerStatus, &PolicyStatus)> {
    let of_class = status.workers.iter().filter(|worker| worker.class.as_str() == CLASS);
    of_class
        .filter_map(|worker| {
            let ours =
                |policy: &&PolicyStatus| policy.tenant.as_str() == TENANT && policy.policy.as_str() == POLICY;
            Some((worker, worker.policies.iter().find(ours)?))
        })
        .max_by_key(|(worker, _)| worker.generation)
}
