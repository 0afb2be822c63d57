//! A process that the service says is starting: not sealed yet, and without traffic.
//!
//! That is the service's word, so it is believed only as long as the kernel says that the process is young. What it was
//! born with is compared all the same; the rest is hidden for now.

use super::Expectations;
use super::process::Subject;
use super::report::{Area, Findings, Verdict};
use super::view::{self, Stat, Unseen};
use crate::sandbox::{Declared, Role};

/// The supervisor gives up after 60 seconds, and then has to notice and to kill.
const STARTS_WITHIN: u64 = 75;

/// Whether the kernel agrees that the process can be starting; if not, it is to be looked at like any other.
pub(super) fn is_believed(
    subject: &Subject,
    stat: &Result<Stat, Unseen>,
    now: Option<u64>,
    findings: &mut Findings,
) -> bool {
    let expected = format!("a worker or frontend of no more than {STARTS_WITHIN} s");
    if !matches!(subject.role, Role::Worker | Role::Frontend) {
        let found = format!("a {} that is said to be starting", subject.role);
        findings.add(Area::Threads, "sealed", Verdict::different(&found, &expected));
        return false;
    }
    let started = match stat {
        Ok(stat) => stat.started,
        Err(unseen) => {
            findings.add(Area::Threads, "sealed", Verdict::unseen(unseen, &expected));
            return false;
        }
    };
    let age = now.map(|now| now.saturating_sub(started) / view::ticks_of_a_second());
    if age.is_some_and(|age| age <= STARTS_WITHIN) {
        return true;
    }
    let age = age.map_or_else(|| "an unknown time".to_owned(), |age| format!("{age} s"));
    let found = format!("said to be starting, for {age}");
    findings.add(Area::Threads, "sealed", Verdict::different(&found, &expected));
    false
}

/// What its parent left it, thread by thread, and where it lives.
pub(super) fn check(subject: &Subject, expected: &Expectations, findings: &mut Findings) {
    let threads = match view::numbers(subject.pid, "task") {
        Ok(threads) => threads,
        Err(unseen) => {
            return findings.add(Area::Threads, "threads", Verdict::unseen(&unseen, "a list of threads"));
        }
    };
    let held = expected.declared(Role::Spawner).map_or(0, Declared::capability_mask);
    for thread in threads {
        let mut add =
            |check: &str, verdict| findings.add(Area::Threads, format!("thread {thread}: {check}"), verdict);
        let status = match view::status(subject.pid, thread) {
            Ok(status) => status,
            Err(unseen) => {
                add("status", Verdict::unseen(&unseen, "a status"));
                continue;
            }
        };
        let within = status.expect_capabilities_within(held, expected.isolation);
        add("capabilities", Verdict::of(within, "no more than the spawner's"));
        add(
            "no_new_privs and seccomp",
            match expected.filters_at_birth() {
                Some(filters) => {
                    Verdict::of(status.expect_filtered(filters), &format!("at least {filters} filters"))
                }
                None => Verdict::hidden("the supervisor's filters, which are the measure, cannot be counted"),
            },
        );
        add("tracer", Verdict::compare(status.tracer, 0));
    }
    super::surroundings::inherited(subject, expected, findings);
    let why = "it is starting, by the service's word, and gets no traffic: it is not sealed yet; look again";
    findings.add(Area::Threads, "sealed", Verdict::hidden(why));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::ProcessState;

    fn believed(role: Role, age: Option<u64>) -> (bool, usize) {
        let subject = Subject {
            role,
            class: None,
            generation: 1,
            pid: 7,
            uid: 0,
            state: ProcessState::Starting,
            threads: None,
            ready: None,
        };
        let stat = Stat { ended: false, session: 7, terminal: 0, started: 1_000 };
        let now = age.map(|age| 1_000 + age * view::ticks_of_a_second());
        let mut findings = Findings::of_service();
        let believed = is_believed(&subject, &Ok(stat), now, &mut findings);
        let different =
            findings.list.iter().filter(|one| matches!(one.verdict, Verdict::Different { .. })).count();
        (believed, different)
    }

    #[test]
    fn who_is_said_to_be_starting_is_believed_while_the_kernel_says_it_is_young() {
        for role in [Role::Worker, Role::Frontend] {
            for age in [0, 1, STARTS_WITHIN] {
                assert_eq!(believed(role, Some(age)), (true, 0), "{age}");
            }
            for age in [Some(STARTS_WITHIN + 1), Some(100_000), None] {
                assert_eq!(believed(role, age), (false, 1), "{age:?}");
            }
        }
        // There is no answer before they are sealed.
        for role in [Role::Supervisor, Role::Spawner] {
            assert_eq!(believed(role, Some(0)), (false, 1));
        }
    }

    #[test]
    fn the_kernels_clock_is_that_of_the_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        let started = view::stat(own).unwrap().started;
        // Whole seconds are rounded down.
        assert!(started <= view::now().unwrap() + view::ticks_of_a_second());
    }
}
