//! What a sealed role must still be able to do.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2_stderr, getpid};
use portcullis::sandbox::privileges::surrender;
use portcullis::sandbox::{
    Confined, Given, Places, Role, end, install_panic_hook, prove_landlock, settle_allocator, witness,
};
use portcullis::wire::channel::{Channel, Received};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wasmtime::{
    Config, Enabled, Engine, Instance, InstanceAllocationStrategy, Module, PoolingAllocationConfig, Store,
    Trap,
};

use crate::child::{
    End, KILLED_BY_FILTER, LIMITS, check, confine, exec, identity, pipe, places, report_and_wait, reported,
    run, run_unsealed, start, strip, this_program, wait,
};

pub(crate) fn panics() {
    for role in Role::ALL {
        let (mut read, write) = pipe();
        let end = run_unsealed(role, move || {
            dup2_stderr(&write).expect("stderr");
            drop(write);
            let _sealed = confine(role).seal().expect("seal");
            panic!("boom\nand a second line");
        });
        assert_eq!(end, End::Signal(Signal::SIGABRT), "{role}");
        let mut said = String::new();
        read.read_to_string(&mut said).expect("read");
        assert!(said.starts_with(&format!("portcullis-{role}: panic at tests/sandbox/life.rs:")), "{said}");
        assert!(said.ends_with(": boom\\nand a second line\n"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// A fault of our own machine code: not SIGSYS, which is for what the filter stopped.
pub(crate) fn crashes() {
    let faults: [(&str, fn()); 3] = [
        ("SIGSEGV (", || {
            // SAFETY: not safe; this is the crash.
            black_box(unsafe { std::ptr::read_volatile(black_box(8 as *const u8)) });
        }),
        ("SIGSEGV (", || {
            #[expect(unconditional_recursion, reason = "this is the crash")]
            fn deeper(n: u64) -> u64 {
                let frame = black_box([n; 512]);
                deeper(frame[0] + 1) + frame[1]
            }
            black_box(deeper(0));
        }),
        ("SIGILL (", || {
            // SAFETY: not safe; this is the crash. It touches no memory.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("ud2")
            };
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            unsafe {
                std::arch::asm!("udf #0")
            };
        }),
    ];
    for role in Role::ALL {
        for (expected, crash) in faults {
            let (mut read, write) = pipe();
            let end = run_unsealed(role, move || {
                dup2_stderr(&write).expect("stderr");
                drop(write);
                let given = check(role);
                // wasmtime has handlers of its own, which must pass on what is not a guest's.
                let _engine = Engine::default();
                let _sealed = given.confine(&places(role)).expect("confine").seal().expect("seal");
                crash();
            });
            let mut said = String::new();
            read.read_to_string(&mut said).expect("read");
            assert_eq!(end, End::Signal(Signal::SIGABRT), "{role}: {said}");
            assert!(said.starts_with("portcullis: crash: ") && said.contains(expected), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

/// Calls, growth, traps, stack overflow, deadlines: in the way the worker sets wasmtime up.
pub(crate) fn guests_run_sealed() {
    let end = run_unsealed(Role::Worker, || {
        let given = check(Role::Worker);
        run_guests(given);
    });
    assert_eq!(end, End::Exit(0));
}

const GUEST: &str = r#"(module
    (memory (export "memory") 2 64)
    (data (i32.const 8) "some initial data, so that there is a copy-on-write image")
    (func (export "work") (memory.fill (i32.const 0) (i32.const 7) (i32.const 100000)))
    (func (export "grow") (drop (memory.grow (i32.const 40))) (i32.store8 (i32.const 2000000) (i32.const 1)))
    (func (export "trap") unreachable)
    (func (export "divide") (drop (i32.div_u (i32.const 1) (i32.load (i32.const 4096)))))
    (func (export "outside") (drop (i32.load (i32.const 0x7fffffff))))
    (func $deeper (export "recurse") (call $deeper) (call $deeper))
    (func (export "spin") (loop (br 0)))
)"#;

fn run_guests(given: Given) {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(4).total_memories(4).max_memory_size(4 << 20);
    pool.linear_memory_keep_resident(64 << 10).pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config.epoch_interruption(true).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let engine = Engine::new(&config).expect("engine");
    let module = Module::new(&engine, wat::parse_str(GUEST).expect("wat")).expect("module");

    let confined = given.confine(&Places::default()).expect("confine");
    let (warm, warmed) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let timer = EpochTimer::new(&engine);
        evaluate(&engine, &module, &timer);
        warm.send(prove_landlock()).expect("warm");
        gone.recv().expect("go");
        for _ in 0..20 {
            evaluate(&engine, &module, &timer);
        }
        tell.send(()).expect("tell");
        thread::park();
    });
    warmed.recv().expect("warmed").expect("proof");
    let sealed = confined.seal().expect("seal");
    assert_eq!(sealed.role(), Role::Worker);
    go.send(()).expect("go");
    told.recv().expect("told");
}

fn evaluate(engine: &Engine, module: &Module, timer: &EpochTimer) {
    let outcomes = [
        ("work", None),
        ("grow", None),
        ("trap", Some(Trap::UnreachableCodeReached)),
        ("divide", Some(Trap::IntegerDivisionByZero)),
        ("outside", Some(Trap::MemoryOutOfBounds)),
        ("recurse", Some(Trap::StackOverflow)),
        ("spin", Some(Trap::Interrupt)),
    ];
    for (function, expected) in outcomes {
        let mut store = Store::new(engine, ());
        store.set_epoch_deadline(if function == "spin" { 2 } else { u64::MAX / 2 });
        let instance = Instance::new(&mut store, module, &[]).expect("instance");
        let function = instance.get_typed_func::<(), ()>(&mut store, function).expect("export");
        timer.arm(true);
        let trap =
            function.call(&mut store, ()).err().map(|error| *error.downcast_ref::<Trap>().expect("trap"));
        timer.arm(false);
        assert_eq!(trap, expected);
    }
}

/// A timer whose signal goes to the thread that made it and moves the engine's epoch.
struct EpochTimer {
    timer: libc::timer_t,
}

static ENGINE: OnceLock<Engine> = OnceLock::new();

impl EpochTimer {
    fn new(engine: &Engine) -> Self {
        extern "C" fn tick(_signal: i32) {
            if let Some(engine) = ENGINE.get() {
                engine.increment_epoch();
            }
        }
        assert!(ENGINE.set(engine.clone()).is_ok(), "one engine");
        // SAFETY: all zero is a valid value of both structures.
        let (mut action, mut event): (libc::sigaction, libc::sigevent) = unsafe { std::mem::zeroed() };
        action.sa_sigaction = tick as *const () as usize;
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the handler is async-signal-safe: it loads and adds.
        assert_eq!(unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) }, 0);
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGRTMIN();
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer = std::ptr::null_mut();
        // SAFETY: both pointers are to live values of the right type.
        assert_eq!(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) }, 0);
        Self { timer }
    }

    fn arm(&self, on: bool) {
        let every = libc::timespec { tv_sec: 0, tv_nsec: if on { 200_000 } else { 0 } };
        let value = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: the timer is this one's, the value is live.
        assert_eq!(unsafe { libc::timer_settime(self.timer, 0, &value, std::ptr::null_mut()) }, 0);
    }
}

/// The control shows that malloc really does what no profile allows; where libc is not glibc there is nothing to show.
pub(crate) fn malloc() {
    /// Larger than any cache of malloc's, smaller than what gets a mapping of its own; 4 MiB in all.
    fn shrink() {
        let blocks: Vec<_> = (0..40).map(|_| black_box(vec![1_u8; 100_000])).collect();
        drop(blocks);
    }
    fn resize() {
        let mut block = black_box(vec![1_u8; 1 << 20]);
        for _ in 0..4 {
            let double = block.len() * 2;
            black_box(&mut block).resize(double, 1);
        }
    }
    fn after_sealing(work: fn(), seal: fn()) -> End {
        run_unsealed(Role::Worker, || {
            let (go, gone) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel();
            thread::spawn(move || {
                // The first block makes this thread's heap, as a worker's warm-up does.
                black_box(vec![1_u8; 1000]);
                tell.send(()).expect("warm");
                gone.recv().expect("go");
                work();
                tell.send(()).expect("done");
                thread::park();
            });
            told.recv().expect("warm");
            seal();
            go.send(()).expect("go");
            told.recv().expect("done");
        })
    }
    fn filter() {
        let arch = std::env::consts::ARCH.try_into().expect("arch");
        let programs =
            seccompiler::compile_from_json(Role::Worker.profile().as_bytes(), arch).expect("compile");
        seccompiler::apply_filter_all_threads(&programs["worker"]).expect("apply");
    }
    fn settle_and_filter() {
        settle_allocator();
        filter();
    }
    for work in [shrink as fn(), resize] {
        assert_eq!(after_sealing(work, settle_and_filter), End::Exit(0));
        if cfg!(target_env = "gnu") {
            assert_eq!(after_sealing(work, filter), KILLED_BY_FILTER, "control");
        }
    }
}

/// std tidies up on the way out of main, and of `exit`; a sealed role ends without.
pub(crate) fn ends() {
    for role in [Role::Worker, Role::Frontend] {
        let sealed_then = |way_out: fn()| {
            run_unsealed(role, || {
                let _sealed = confine(role).seal().expect("seal");
                way_out();
            })
        };
        assert_eq!(sealed_then(|| end(3)), End::Exit(3));
        assert_eq!(sealed_then(|| std::process::exit(3)), KILLED_BY_FILTER, "control");
    }
}

/// A tokio runtime as the frontend uses it: accept, who is it, read, answer, hand the descriptor on.
pub(crate) fn runtime_runs_sealed() {
    let home = tempfile::tempdir().expect("tempdir");
    let path = home.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("listen");
    listener.set_nonblocking(true).expect("non-blocking");
    let (ours, theirs) = Channel::<u32, u32>::pair(1024).expect("channel");
    let frontend = start(Role::Frontend, {
        let supervisor = getpid();
        let listener = listener.try_clone().expect("clone");
        move || {
            strip(Role::Frontend, supervisor);
            serve(confine(Role::Frontend), listener, &theirs);
        }
    });
    let mut client = std::os::unix::net::UnixStream::connect(&path).expect("connect");
    std::io::Write::write_all(&mut client, b"ping").expect("send");
    let mut answer = [0; 4];
    client.read_exact(&mut answer).expect("answer");
    assert_eq!(&answer, b"pong");
    assert_eq!(wait(frontend), End::Exit(0));
    match ours.receive(&mut Vec::new()).expect("receive") {
        Received::Message(uid, Some(_descriptor)) => assert_eq!(uid, nix::unistd::getuid().as_raw()),
        other => panic!("{other:?}"),
    }
}

fn serve(confined: Confined, listener: std::os::unix::net::UnixListener, channel: &Channel<u32, u32>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().expect("runtime");
    let _sealed = confined.seal().expect("seal");
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener).expect("listener");
        let (mut client, _) = listener.accept().await.expect("accept");
        let uid = client.peer_cred().expect("credentials").uid();
        let mut greeting = [0; 4];
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), client.read_exact(&mut greeting));
        read.await.expect("in time").expect("greeting");
        let task = tokio::spawn(async { 4_u8 });
        assert_eq!(task.await.expect("task"), 4);
        client.write_all(b"pong").await.expect("answer");
        let client = client.into_std().expect("std");
        channel.send(&uid, Some(std::os::fd::AsFd::as_fd(&client))).expect("hand over");
        let seeds: std::collections::HashMap<u32, u32> = [(1, 2)].into();
        assert_eq!(black_box(seeds).get(&1), Some(&2));
    });
}

/// A filter and a Landlock domain are inherited: whatever a child needs before it seals, the spawner's must allow.
pub(crate) fn children_of_sealed_spawner() {
    let supervisor = getpid();
    let [worker, frontend] = [Role::Worker, Role::Frontend].map(|role| (role, pipe(), pipe()));
    let (mut started, tell) = pipe();
    let end = run(Role::Spawner, {
        let births = [&worker, &frontend].map(|(role, (_, tell), (hold, _))| (*role, tell, hold));
        move || {
            let this = this_program();
            strip(Role::Spawner, supervisor);
            let _sealed = confine(Role::Spawner).seal().expect("seal");
            for (role, ready, hold) in births {
                let pid = sibling(|| become_role(&this, role, (ready, hold), supervisor));
                (&tell).write_all(&pid.as_raw().to_ne_bytes()).expect("tell");
            }
        }
    });
    assert_eq!(end, End::Exit(0));
    for (role, (ready, told), (held, release)) in [worker, frontend] {
        drop((told, held));
        let mut pid = [0; 4];
        started.read_exact(&mut pid).expect("started");
        witness_and_wait(role, Pid::from_raw(i32::from_ne_bytes(pid)), ready, release);
    }
}

/// A child of this process's parent, as the spawner makes them.
fn sibling(body: impl Fn()) -> Pid {
    let mut stack = vec![0; 256 << 10];
    let flags = nix::sched::CloneFlags::CLONE_PARENT;
    let body = Box::new(|| {
        body();
        0
    });
    // SAFETY: shares no memory, and this process has one thread.
    unsafe { nix::sched::clone(body, &mut stack, flags, Some(libc::SIGCHLD)) }.expect("clone")
}

/// Numbers at which a program finds its two pipes.
const TELL: u32 = 100;
const HOLD: u32 = 101;

fn become_role(this: &File, role: Role, (tell, hold): (&File, &File), supervisor: Pid) {
    for (pipe, number) in [(tell, TELL as i32), (hold, HOLD as i32)] {
        // SAFETY: numbers that nothing in this process owns.
        assert_eq!(unsafe { libc::dup2(pipe.as_raw_fd(), number) }, number);
    }
    for (first, last) in [(3, TELL - 1), (HOLD + 1, u32::MAX)] {
        // SAFETY: all that is not to be inherited is closed by exec, which is next.
        let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
        assert_eq!(done, 0);
    }
    let (uid, gid, isolation) = identity();
    surrender(role, (uid, gid), isolation, &LIMITS, supervisor.as_raw()).expect("surrender");
    exec(this, role.name());
}

fn witness_and_wait(role: Role, child: Pid, ready: File, release: File) {
    assert!(reported(ready), "{role} ended: {:?}", wait(child));
    let (uid, gid, isolation) = identity();
    let filters = witness::own_filters().expect("filters") + role.filters_in_force();
    let expected = witness::Expected { role, uid, gid, isolation, filters };
    let seen = witness::look(child.as_raw(), &expected).expect("witness");
    assert_eq!(seen.threads, if role == Role::Worker { 2 } else { 1 });
    drop(release);
    assert_eq!(wait(child), End::Exit(0), "{role}");
}

/// What `exec` starts in [`become_role`]: a role from its first line, as `sandbox/mod.rs` tells it.
pub(crate) fn program(role: Role) {
    install_panic_hook(role);
    settle_allocator();
    // SAFETY: the supervisor put them there, and nothing else in this process owns them.
    let tell = unsafe { File::from_raw_fd(TELL as i32) };
    // SAFETY: as above.
    let hold = unsafe { File::from_raw_fd(HOLD as i32) };
    assert_eq!(std::env::vars_os().count(), 0, "the environment is empty");
    match role {
        Role::Worker => run_guests(check(role)),
        // Of a builder `tests/builder/` runs the whole program.
        Role::Frontend
        | Role::Spawner
        | Role::Supervisor
        | Role::Exporter
        | Role::Gateway
        | Role::Fetcher => {
            let confined = confine(role);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let _sealed = confined.seal().expect("seal");
            runtime.block_on(tokio::task::yield_now());
        }
        Role::Registry | Role::Builder => {
            let _sealed = confine(role).seal().expect("seal");
        }
    }
    report_and_wait(tell, hold);
    end(0)
}
