//! How long something that was revoked goes on deciding.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis::artifact::Digest;
use portcullis::bundle;
use portcullis::client::blocking::Connection;
use portcullis::client::{Deadline, Question};
use portcullis::decision::{Outcome, Refusal};
use portcullis::trust::{RevocationList, Revokes};

use crate::Plan;
use crate::load::percentile;
use crate::report::{Reach, Row, Spread};
use crate::subject::TENANT;
use crate::support::{PATIENCE, Service, Site, policy, tenant};

/// Between two questions.
const PAUSE: Duration = Duration::from_micros(500);
/// Between a revocation and the next, so that each falls elsewhere between two looks of the registry.
const PHASE: Duration = Duration::from_millis(37);
/// The registry's time between two looks, and more: what a revocation sets off is over by then.
const SETTLED: Duration = Duration::from_millis(700);

/// Revokes one bundle after the other, half of them by a list that is renamed into the store, half by the command.
pub(super) fn takes_effect(plan: &Plan) -> Vec<Row> {
    let names: Vec<String> = (0..2 * plan.revocations).map(|number| format!("p{number:03}")).collect();
    let policies: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "hash")).collect();
    let site = Site::new().class("one", "").tenant(TENANT, "one", &policies, "");
    fs::write(site.path("revoker.key"), site.key.to_pem().unwrap().as_bytes()).unwrap();
    let service = site.start();
    let (renamed, ordered) = names.split_at(plan.revocations);
    let mut list = RevocationList::default();
    let by_rename = renamed.iter().enumerate().map(|(round, name)| {
        list = list.and(Revokes::Digest(bundle_of(&service, name)), "benchmark", now());
        let beside = service.site.path("store/.next");
        fs::write(&beside, list.sign(&service.site.key).unwrap()).unwrap();
        let place = service.site.path("store/revocations.json");
        until_refused(&service, name, round, || fs::rename(&beside, &place).unwrap())
    });
    let by_rename: Vec<f64> = by_rename.collect();
    let by_command = ordered.iter().enumerate().map(|(round, name)| {
        let bundle = bundle_of(&service, name);
        until_refused(&service, name, round, || revoke(&service, bundle))
    });
    let by_command: Vec<f64> = by_command.collect();
    vec![
        row(
            "revocation/list",
            "from a revocation list renamed into the store to the first refusal, largest",
            by_rename,
        ),
        row(
            "revocation/command",
            "from the start of `portcullis policy revoke` to the first refusal, largest",
            by_command,
        ),
    ]
}

fn row(name: &str, what: &str, mut times_ms: Vec<f64>) -> Row {
    times_ms.sort_by(f64::total_cmp);
    let spread = Spread::of(times_ms.iter().copied());
    let detail = format!("p50 {:.0} ms of {}", percentile(&times_ms, 50.0), times_ms.len());
    Row::new(name, what, "ms", spread).judged_by(spread.high).reach(Reach::AtMost(1000.0)).detail(detail)
}

fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap()
}

fn bundle_of(service: &Service, name: &str) -> Digest {
    bundle::open_path(&service.site.bundle(TENANT, name)).unwrap().read().unwrap().digest()
}

/// Milliseconds from before `revoke` until the policy is refused as revoked.
fn until_refused(service: &Service, name: &str, round: usize, revoke: impl FnOnce()) -> f64 {
    thread::sleep(SETTLED + PHASE * (round % 11) as u32);
    let mut connection = service.connect(TENANT);
    assert_eq!(ask(&mut connection, name), Outcome::Allow, "control: {name}");
    let began = Instant::now();
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while ask(&mut connection, name) != Outcome::Refused(Refusal::Revoked) {
                assert!(began.elapsed() < PATIENCE, "{name} still decides\n{}", service.log());
                thread::sleep(PAUSE);
            }
            began.elapsed().as_secs_f64() * 1e3
        });
        revoke();
        asking.join().unwrap()
    })
}

/// Allowed, or refused as revoked: nothing else may come of it.
fn ask(connection: &mut Connection, name: &str) -> Outcome {
    let question = Question::opaque("", b"still?");
    connection.send(&tenant(TENANT), &policy(name), Deadline::Default, question.input()).unwrap();
    connection.flush().unwrap();
    let outcome = connection.receive().unwrap().1.outcome;
    assert!(matches!(outcome, Outcome::Allow | Outcome::Refused(Refusal::Revoked)), "{name}: {outcome:?}");
    outcome
}

fn revoke(service: &Service, bundle: Digest) {
    let path = |name: &str| -> PathBuf { service.site.path(name) };
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["policy", "revoke", "--reason", "benchmark", "--bundle", &bundle.to_string(), "--sign-key"])
        .arg(path("revoker.key"))
        .arg("--config")
        .arg(path("portcullis.toml"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
