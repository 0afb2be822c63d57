//! Every attempt, in every role: without a sandbox it works, in the running service it does not.

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::builder::{self, Builder, Class};
use crate::hijack::{Answer, Death, Thread, threads};
use crate::probes::{Instead, Probe, Unsealed};
use crate::scene::{self, Process, answers_again, process, surroundings, wait_until_gone, wait_until_said};
use crate::standin::StandIn;
use crate::support::Service;

/// Tries all of `probes` in the processes of one role.
pub(crate) fn try_all(role: &str, probes: &[Probe]) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut service = scene::start(scene::site());
    for (number, probe) in probes.iter().enumerate() {
        let Target { process: target, alone } = Target::of(role, &service);
        if let Err(why) = unsealed(probe, target.uid, &service) {
            wrong.push(format!("{role}: {}: without a sandbox: {why}", probe.name));
        }
        let stranger = StandIn::start(target.uid);
        let around = surroundings(&service, target.uid, &stranger);
        // A filter is on each thread by itself, so they take turns.
        let all = threads(target.pid);
        let mut thread = Thread::take_over_thread(target.pid, all[number % all.len()]);
        let answer = (probe.attempt)(&mut thread, &around);
        drop(thread);
        if let Err(why) = stopped(role, probe, answer) {
            wrong.push(format!("{role}: {}: {why}", probe.name));
        }
        if answer.is_err() {
            wait_until_gone(target.pid);
            match role {
                "supervisor" | "builder" => {}
                // Nobody could be started any more: the service ends, which its manager sees.
                "spawner" => wait_until_said(&service, "the spawner killed by SIGSYS"),
                _ => {
                    // By SIGSYS, which was seen above, or by the supervisor, if this machine took long to let it die.
                    wait_until_said(&service, &format!("pid {}): killed", target.pid));
                    // Once a role is enough.
                    if number == 0 {
                        answers_again(&service);
                    }
                }
            }
        }
        drop(alone);
        // What got anywhere may have changed the process.
        if !matches!(answer, Ok(..0)) {
            service = scene::start(scene::site());
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// The process of a service that is attacked.
struct Target {
    process: Process,
    /// A builder lives for one job, which is over before anybody could take it over. This one waits for its job, started as
    /// the spawner does it, but without the spawner's own filter: less holds it than in a service.
    alone: Option<(Class, Builder)>,
}

impl Target {
    fn of(role: &str, service: &Service) -> Self {
        if role != "builder" {
            return Self { process: process(service, role), alone: None };
        }
        let class = Class::new();
        let builder = class.builder(builder::LIMITS);
        let pid = Pid::from_raw(i32::try_from(builder.pid()).expect("pid"));
        let title = "portcullis-builder".to_owned();
        let process = Process { role: role.to_owned(), title, pid, uid: builder::CLASS };
        Self { process, alone: Some((class, builder)) }
    }
}

/// The same attempt in a process of the same user that has no sandbox.
fn unsealed(probe: &Probe, uid: u32, service: &Service) -> Result<(), String> {
    let (stranger, stand_in) = (StandIn::start(uid), StandIn::start(uid));
    let around = surroundings(service, uid, &stranger);
    let answer = (probe.attempt)(&mut Thread::take_over(stand_in.pid()), &around);
    match (probe.unsealed, answer) {
        (_, Err(death)) => Err(format!("{death:?}")),
        (Unsealed::Works, Ok(0..)) | (Unsealed::Lives, Ok(_)) => Ok(()),
        (Unsealed::Refused(errno), Ok(answer)) if answer == -i64::from(errno) => Ok(()),
        // Root is refused little.
        (Unsealed::Refused(_), Ok(0..)) if uid == 0 => Ok(()),
        (expected, Ok(answer)) => Err(format!("{}, expected {expected:?}", say(answer))),
    }
}

fn stopped(role: &str, probe: &Probe, answer: Answer) -> Result<(), String> {
    let instead = probe.but.iter().find(|(who, _)| *who == role).map(|(_, instead)| *instead);
    // Filters of the roles that start others are wider: there, what is not of their business may be Landlock's or the
    // kernel's to refuse.
    let wide = !["worker", "frontend", "exporter", "gateway"].contains(&role);
    match (instead, answer) {
        (None, Err(Death::Signal(Signal::SIGSYS))) => Ok(()),
        (None, Ok(answer)) if wide && [libc::EACCES, libc::EPERM].contains(&errno(answer)) => Ok(()),
        (Some(Instead::Errno(expected)), Ok(answer)) if errno(answer) == expected => Ok(()),
        (Some(Instead::May(_)), Ok(0..)) => Ok(()),
        (_, Ok(answer)) => Err(format!("GOT FURTHER: {}, expected {instead:?}", say(answer))),
        (_, Err(death)) => Err(format!("{death:?}, expected {instead:?}")),
    }
}

fn errno(answer: i64) -> i32 {
    i32::try_from(-answer).unwrap_or(0)
}

fn say(answer: i64) -> String {
    if answer < 0 { Errno::from_raw(errno(answer)).to_string() } else { format!("answered {answer}") }
}
