//! Workers that seal themselves like any other, so that the supervisor lets them serve, but did something before that no
//! worker does. A class's name says what.

use std::convert::Infallible;
use std::ffi::c_void;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::ptr::NonNull;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, mprotect};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use portcullis::sandbox::{Given, Places, Role, check_inherited, install_panic_hook, settle_allocator};
use portcullis::wire::channel::{Channel, Received, take_inherited};
use portcullis::wire::control::{CONTROL_MAX, FromChild, Ready, ToChild, WorkerAssignment, fd};
use portcullis::wire::frame;
use portcullis::wire::handover::{FromWorker, HANDOVER_MAX, ToWorker};

use super::copies::copy_program;
use super::{Report, Test, attest, is_root, site};

pub(super) const TESTS: &[Test] =
    &[("wrong::a_worker_that_was_started_wrongly_is_noticed", a_worker_that_was_started_wrongly_is_noticed)];

/// What a class's worker does, and what is to be said of it. The first does nothing wrong.
const CLASSES: [(&str, &[&str]); 8] = [
    ("right", &[]),
    (
        "rwx",
        &[
            "memory: writable and executable: ",
            "anonymous memory: code is: no file's",
            "anonymous memory: written",
        ],
    ),
    (
        "written",
        &["anonymous memory: code is: no file's", "anonymous memory: written to before or since: 4 kB"],
    ),
    ("patched", &["portcullis-worker: written to before or since: 4 kB"]),
    ("memfd", &["(deleted): sealed: , expected write", "descriptors: ", "(deleted): written"]),
    ("descriptors", &["descriptors: ", "descriptors: "]),
    ("dumpable", &["surroundings: dumpable: yes, expected no"]),
    ("around", &["surroundings: working directory: /proc, expected /", "limits: Max open files: 64 soft"]),
];

fn a_worker_that_was_started_wrongly_is_noticed() {
    if !is_root() {
        return;
    }
    let mut site = site();
    for (class, _) in CLASSES {
        site = site.class(class, "threads = 1\n");
    }
    let programs = site.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::set_permissions(&programs, fs::Permissions::from_mode(0o755)).unwrap();
    let own = std::env::current_exe().unwrap();
    for (from, to) in [
        (Path::new(env!("CARGO_BIN_EXE_portcullis-supervisor")), "portcullis-supervisor"),
        (Path::new(env!("CARGO_BIN_EXE_portcullis-spawner")), "portcullis-spawner"),
        (Path::new(env!("CARGO_BIN_EXE_portcullis-registry")), "portcullis-registry"),
        (Path::new(env!("CARGO_BIN_EXE_portcullis-builder")), "portcullis-builder"),
        (Path::new(env!("CARGO_BIN_EXE_portcullis-exporter")), "portcullis-exporter"),
        (Path::new(env!("CARGO_BIN_EXE_portcullis-gateway")), "portcullis-gateway"),
        (Path::new(env!("CARGO_BIN_EXE_portcullis-frontend")), "portcullis-frontend"),
        (&own, "portcullis-worker"),
    ] {
        copy_program(from, &programs.join(to));
    }
    site.supervisor = programs.join("portcullis-supervisor");
    let service = site.start();
    let report = attest(&service);
    assert_eq!(report.code, 1);
    for (class, expected) in CLASSES {
        let found = of_class(&report, class);
        assert_eq!(found.len(), expected.len(), "{class}: {found:#?}");
        for said in expected {
            assert!(found.iter().any(|one| one.contains(said)), "{class}: no {said:?} in {found:#?}");
        }
    }
    let others = report.differences().into_iter().filter(|one| !one.starts_with("worker "));
    assert_eq!(others.collect::<Vec<_>>(), [""; 0]);
}

fn of_class(report: &Report, class: &str) -> Vec<String> {
    let start = format!("worker {class}: ");
    report.differences().into_iter().filter(|one| one.starts_with(&start)).collect()
}

/// Runs the worker that this process was started as, if it was.
pub(super) fn run_if_asked() {
    let name = std::env::args().next().unwrap_or_default();
    if let Some(class) = name.strip_prefix("portcullis-worker: ") {
        worker(class);
    }
}

fn inherited(number: i32) -> OwnedFd {
    take_inherited(number).unwrap()
}

fn worker(class: &str) -> Infallible {
    install_panic_hook(Role::Worker);
    settle_allocator();
    check_inherited(Role::Worker).unwrap();
    let control = Channel::<FromChild, ToChild>::new(inherited(fd::CONTROL), CONTROL_MAX);
    let mut bytes = Vec::new();
    File::from(inherited(fd::ASSIGNMENT)).read_to_end(&mut bytes).unwrap();
    let assignment: WorkerAssignment = frame::decode(&bytes).unwrap();
    drop(inherited(fd::ACCOUNTS));
    let handover = Channel::<FromWorker, ToWorker>::new(inherited(fd::FIRST), HANDOVER_MAX);
    let given = Given::check(Role::Worker, assignment.uid, assignment.gid, assignment.isolation).unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(&control, EpollEvent::new(EpollFlags::EPOLLIN, 1)).unwrap();
    epoll.add(&handover, EpollEvent::new(EpollFlags::EPOLLIN, 2)).unwrap();
    do_wrong(class);
    let confined = given.confine(&Places::default()).unwrap();
    if class == "dumpable" {
        prctl::set_dumpable(true).unwrap();
    }
    let ready = FromChild::Ready(Ready {
        loaded: 0,
        refused: 0,
        pagemap_scan: false,
        landlock_abi: confined.landlock_abi(),
        landlock_proven_threads: 1,
    });
    let _sealed = confined.seal().unwrap();
    control.send(&ready, None).unwrap();
    serve(&epoll, &control, &handover)
}

/// Answers pings until it is told to go, or left alone.
fn serve(
    epoll: &Epoll,
    control: &Channel<FromChild, ToChild>,
    handover: &Channel<FromWorker, ToWorker>,
) -> Infallible {
    let mut buffer = Vec::new();
    let mut events = [EpollEvent::empty()];
    loop {
        epoll.wait(&mut events, EpollTimeout::NONE).ok();
        if events[0].data() == 2 {
            if let Ok(Received::Message(ToWorker::Drain, _) | Received::End) = handover.receive(&mut buffer) {
                exit();
            }
            continue;
        }
        match control.receive(&mut buffer).unwrap() {
            Received::Message(ToChild::Ping { nonce }, _) => {
                control.send(&FromChild::Pong { nonce }, None).unwrap();
            }
            Received::Message(ToChild::Drain, _) | Received::End => exit(),
            Received::Message(_, _) | Received::Nothing => {}
        }
    }
}

/// Does not run what std does at exit: a sealed process may not touch its signal stack any more.
#[expect(unsafe_code, reason = "_exit has no safe form")]
fn exit() -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(0) }
}

fn keep_open(descriptor: impl Into<OwnedFd>) {
    let _ = descriptor.into().into_raw_fd();
}

fn do_wrong(class: &str) {
    let rw = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let rx = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
    match class {
        "rwx" => write(anonymous(rw | rx)),
        "written" => {
            let page = anonymous(rw);
            write(page);
            protect(page, rx);
        }
        "patched" => {
            let page = map(File::open("/proc/self/exe").unwrap(), rw);
            write(page);
            protect(page, rx);
        }
        "memfd" => {
            let mut memory =
                File::from(memfd_create("portcullis-policy", MFdFlags::MFD_ALLOW_SEALING).unwrap());
            memory.write_all(&[0; 4096]).unwrap();
            let page = map(&memory, rw);
            write(page);
            protect(page, rx);
            keep_open(memory);
        }
        "descriptors" => {
            // As little as a worker may still open before it has a sandbox of its own.
            keep_open(File::open("/proc").unwrap());
            keep_open(File::open("/proc/self/maps").unwrap());
        }
        "around" => {
            std::env::set_current_dir("/proc").unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, 64, 128).unwrap();
        }
        _ => {}
    }
}

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

#[expect(unsafe_code, reason = "mmap has no safe form")]
fn anonymous(protection: ProtFlags) -> NonNull<c_void> {
    // SAFETY: a new mapping, where nothing was.
    unsafe { mmap_anonymous(None, PAGE, protection, MapFlags::MAP_PRIVATE) }.unwrap()
}

#[expect(unsafe_code, reason = "mmap has no safe form")]
fn map(file: impl AsFd, protection: ProtFlags) -> NonNull<c_void> {
    // SAFETY: a new private mapping, where nothing was.
    unsafe { mmap(None, PAGE, protection, MapFlags::MAP_PRIVATE, file, 0) }.unwrap()
}

#[expect(unsafe_code, reason = "the page has no owner that Rust knows")]
fn write(page: NonNull<c_void>) {
    // SAFETY: our own page, and nobody else knows it.
    unsafe { page.cast::<u8>().write_volatile(0xc3) }
}

#[expect(unsafe_code, reason = "mprotect has no safe form")]
fn protect(page: NonNull<c_void>, protection: ProtFlags) {
    // SAFETY: our own page, and nobody writes to it any more.
    unsafe { mprotect(page, PAGE.get(), protection) }.unwrap();
}
