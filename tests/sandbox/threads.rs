//! Layers that hold per thread, and the witness who looks at every one.

use std::sync::mpsc;
use std::thread;

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, Uid, getpid, setresuid};
use portcullis::sandbox::witness::{Expected, WitnessError, Witnessed, look};
use portcullis::sandbox::{Places, Role, SealError, prove_landlock};

use crate::child::{
    CLASS, End, check, confine, identity, pipe, report_and_wait, reported, run_unsealed, start, strip, wait,
};

pub(crate) fn landlock_on_every_thread() {
    let end = run_unsealed(Role::Worker, || {
        assert!(matches!(prove_landlock(), Err(SealError::StillOpen { .. })), "control");
        let confined = confine(Role::Worker);
        assert!(confined.landlock_abi() >= 6);
        let (tell, told) = mpsc::channel();
        for _ in 0..3 {
            let tell = tell.clone();
            thread::spawn(move || {
                tell.send(prove_landlock()).expect("tell");
                // A sealed worker's threads never end.
                loop {
                    thread::park();
                }
            });
        }
        for _ in 0..3 {
            told.recv().expect("told").expect("proof");
        }
        let _sealed = confined.seal().expect("seal");
    });
    assert_eq!(end, End::Exit(0));
}

pub(crate) fn confine_refuses_a_second_thread() {
    let end = run_unsealed(Role::Worker, || {
        let given = check(Role::Worker);
        thread::spawn(thread::park);
        let error = given.confine(&Places::default()).expect_err("two threads");
        assert!(matches!(error, SealError::TooManyThreads { threads: 2, .. }), "{error}");
        // Refused before anything was done.
        assert!(matches!(prove_landlock(), Err(SealError::StillOpen { .. })));
    });
    assert_eq!(end, End::Exit(0));
}

pub(crate) fn thread_sync_failure() {
    let end = run_unsealed(Role::Worker, || {
        let confined = confine(Role::Worker);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            // The widest, so that it can still tell.
            filter_this_thread(Role::Spawner);
            tell.send(nix::unistd::gettid().as_raw()).expect("tell");
            thread::park();
        });
        let other = told.recv().expect("told");
        match confined.seal().expect_err("not every thread") {
            SealError::ThreadSync { thread, role: Role::Worker } => assert_eq!(thread, i64::from(other)),
            error => panic!("{error}"),
        }
    });
    assert_eq!(end, End::Exit(0));
}

pub(crate) fn witness_accepts() {
    // A frontend has one thread, and no call to wait for another.
    for (role, others) in [(Role::Worker, 2), (Role::Frontend, 0)] {
        let seen = witnessed(expected(role), || {
            let confined = confine(role);
            (0..others).for_each(|_| warm_thread());
            let _sealed = confined.seal().expect("seal");
        });
        assert_eq!(seen.expect("as expected"), Witnessed { threads: 1 + others });
    }
}

pub(crate) fn witness_without_seccomp() {
    let error = refused(expected(Role::Worker), || drop(confine(Role::Worker)));
    assert!(error.ends_with(": Seccomp is 0, expected 2"), "{error}");
}

pub(crate) fn witness_without_no_new_privs() {
    let error = refused(expected(Role::Worker), || {});
    assert!(error.ends_with(": NoNewPrivs is 0, expected 1"), "{error}");
}

pub(crate) fn witness_one_unsealed_thread() {
    let seen = witnessed(expected(Role::Worker), || {
        drop(confine(Role::Worker));
        warm_thread();
        filter_this_thread(Role::Worker);
    });
    match seen.expect_err("one thread has no filter") {
        WitnessError::Thread { pid, thread, mismatch, .. } => {
            assert_ne!(pid, thread, "the first thread is sealed");
            assert_eq!(mismatch.to_string(), "Seccomp is 0, expected 2");
        }
        error => panic!("{error}"),
    }
}

pub(crate) fn witness_wrong_uid() {
    let other = Expected { uid: CLASS + 1, ..expected(Role::Worker) };
    let error = refused(other, || drop(confine(Role::Worker).seal().expect("seal")));
    assert!(error.contains(": Uid is [61001, 61001, 61001, 61001], expected [61002, "), "{error}");
}

/// What `setresuid` alone leaves of a supervisor with ambient capabilities, sealed all the same.
pub(crate) fn witness_kept_capability() {
    let (ready, tell) = pipe();
    let (hold, _release) = pipe();
    let child = start(Role::Worker, move || {
        nix::sys::prctl::set_keepcaps(true).expect("keepcaps");
        let (user, group) = (Uid::from_raw(CLASS), nix::unistd::Gid::from_raw(CLASS));
        nix::unistd::setgroups(&[]).expect("groups");
        nix::unistd::setresgid(group, group, group).expect("gid");
        setresuid(user, user, user).expect("uid");
        filter_this_thread(Role::Worker);
        report_and_wait(tell, hold);
    });
    assert!(reported(ready));
    let error = look(child.as_raw(), &expected(Role::Worker)).expect_err("kept").to_string();
    assert!(error.contains(": CapPrm is 0x"), "{error}");
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("clean up");
    wait(child);
}

pub(crate) fn witness_dead() {
    let child = start(Role::Worker, || {});
    // Dead, and not yet waited for: its status can still be read.
    waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("wait");
    let error = look(child.as_raw(), &expected(Role::Worker)).expect_err("dead");
    assert!(matches!(error, WitnessError::Gone { .. }), "{error}");
    wait(child);
}

fn expected(role: Role) -> Expected {
    let (uid, gid, isolation) = identity();
    let filters = portcullis::sandbox::witness::own_filters().expect("filters") + role.filters();
    Expected { role, uid, gid, isolation, filters }
}

fn refused(expected: Expected, lock_in: impl FnOnce()) -> String {
    let error = witnessed(expected, lock_in).expect_err("refused").to_string();
    assert!(error.starts_with(&format!("witness {} pid ", expected.role)), "{error}");
    error
}

/// What the witness says of a child that did `lock_in` and is alive for as long as the witness looks.
fn witnessed(expected: Expected, lock_in: impl FnOnce()) -> Result<Witnessed, WitnessError> {
    let (ready, tell) = pipe();
    // Held open here, so that the child's wait ends only with the child.
    let (hold, _release) = pipe();
    let supervisor = getpid();
    let child: Pid = start(expected.role, move || {
        strip(expected.role, supervisor);
        lock_in();
        report_and_wait(tell, hold);
    });
    assert!(reported(ready), "child ended early: {:?}", wait(child));
    let seen = look(child.as_raw(), &expected);
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("end it");
    assert_eq!(wait(child), End::Signal(nix::sys::signal::Signal::SIGKILL), "it lived until it was killed");
    seen
}

/// A thread's own start takes calls that no profile has, so it has to be through that before anything is sealed.
fn warm_thread() {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        tell.send(()).expect("tell");
        loop {
            thread::park();
        }
    });
    told.recv().expect("told");
}

/// The role's filter without the other threads.
fn filter_this_thread(role: Role) {
    let arch = std::env::consts::ARCH.try_into().expect("arch");
    let programs = seccompiler::compile_from_json(role.profile().as_bytes(), arch).expect("compile");
    seccompiler::apply_filter(&programs[role.name()]).expect("apply");
}
