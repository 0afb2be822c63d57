//! A frontend and workers that do nothing but what the supervisor sees of them: they seal themselves for real, serve,
//! answer, drain, and misbehave where a tenant's name asks for it. The registry is told by the trust policy what to do, one
//! order a line, and a builder by the policy of its job.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use portcullis::sandbox::{
    Given, Places, Role, Sealed, check_inherited, install_panic_hook, settle_allocator,
};
use portcullis::wire::channel::{Channel, Received, take_inherited};
use portcullis::wire::control::{
    CONTROL_MAX, FromChild, FrontendAssignment, ProcessTable, Ready, ToChild, WorkerAssignment, fd,
};
use portcullis::wire::frame;
use portcullis::wire::handover::{FromWorker, HANDOVER_MAX, ToWorker};
use portcullis::wire::supply::{FromRegistry, SUPPLY_MAX, ToRegistry};
use serde::de::DeserializeOwned;

pub(crate) type Control = Channel<FromChild, ToChild>;

const CONTROL: u64 = 1;
const SECOND: u64 = 2;

/// Runs the child that this process was started as, if it was.
pub(crate) fn run_if_asked() {
    let name = std::env::args().next().unwrap_or_default();
    if name == "portcullis-frontend" {
        frontend();
    } else if name.starts_with("portcullis-worker: ") {
        worker();
    } else if name == "portcullis-registry" {
        crate::makers::registry();
    } else if name.starts_with("portcullis-builder: ") {
        crate::makers::builder();
    }
}

/// Does not run what std does at exit: a sealed process may not touch its signal stack any more.
#[expect(unsafe_code, reason = "_exit has no safe form")]
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { nix::libc::_exit(code) }
}

pub(crate) fn inherited(number: i32) -> OwnedFd {
    take_inherited(number).expect("inherited")
}

pub(crate) fn assignment<T: DeserializeOwned>() -> T {
    let mut bytes = Vec::new();
    std::fs::File::from(inherited(fd::ASSIGNMENT)).read_to_end(&mut bytes).expect("read assignment");
    frame::decode(&bytes).expect("decode assignment")
}

pub(crate) fn seal(given: Given, control: &Control) -> Sealed {
    let confined = given.confine(&Places::default()).expect("confine");
    let ready = FromChild::Ready(Ready {
        loaded: 1,
        refused: 0,
        pagemap_scan: false,
        landlock_abi: confined.landlock_abi(),
        landlock_proven_threads: 1,
    });
    let sealed = confined.seal().expect("seal");
    control.send(&ready, None).expect("ready");
    sealed
}

fn watch(epoll: &Epoll, what: impl AsFd, token: u64) {
    epoll.add(what, EpollEvent::new(EpollFlags::EPOLLIN, token)).expect("epoll");
}

fn wait(epoll: &Epoll) -> u64 {
    let mut events = [EpollEvent::empty()];
    loop {
        match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(1..) => return events[0].data(),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// Closes by the system call alone: std's own check of what it closes (F_GETFD, with debug assertions) is in no profile.
fn close(descriptor: impl Into<OwnedFd>) {
    nix::unistd::close(descriptor.into()).expect("close");
}

fn epoll() -> Epoll {
    Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll")
}

fn worker() -> Infallible {
    install_panic_hook(Role::Worker);
    settle_allocator();
    check_inherited(Role::Worker)
        .expect("what was agreed on, and nothing of the supervisor's or its parent's");
    let control = Control::new(inherited(fd::CONTROL), CONTROL_MAX);
    let assignment: WorkerAssignment = assignment();
    let handover = Channel::<FromWorker, ToWorker>::new(inherited(fd::FIRST), HANDOVER_MAX);
    let supply = Channel::<ToRegistry, FromRegistry>::new(inherited(fd::SECOND), SUPPLY_MAX);
    let first = assignment.generation == 1;
    let asked = |what: &str| assignment.tenants.iter().any(|tenant| tenant.tenant.as_str() == what);
    let given =
        Given::check(Role::Worker, assignment.uid, assignment.gid, assignment.isolation).expect("given");
    if asked("fails") {
        control.send(&FromChild::Failed { why: "no policy could be loaded".into() }, None).expect("send");
        exit(1);
    }
    if asked("unproven") {
        let epoll = epoll();
        watch(&epoll, &handover, SECOND);
        let _sealed = given.confine(&Places::default()).expect("confine").seal().expect("seal");
        let ready =
            Ready { loaded: 0, refused: 0, pagemap_scan: false, landlock_abi: 9, landlock_proven_threads: 0 };
        control.send(&FromChild::Ready(ready), None).expect("send");
        wait(&epoll);
        exit(0);
    }
    if asked("unsealed") {
        let ready =
            Ready { loaded: 0, refused: 0, pagemap_scan: false, landlock_abi: 9, landlock_proven_threads: 1 };
        control.send(&FromChild::Ready(ready), None).expect("send");
        let epoll = epoll();
        watch(&epoll, &handover, SECOND);
        wait(&epoll);
        exit(0);
    }
    assert_eq!(assignment.host_key, crate::makers::KEY);
    let mut buffer = Vec::new();
    poll(&mut [PollFd::new(supply.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).expect("poll");
    match supply.receive(&mut buffer).expect("receive") {
        Received::Message(FromRegistry::Complete, None) => {}
        Received::End => {
            control.send(&FromChild::Failed { why: "the registry is gone".into() }, None).expect("send");
            exit(1);
        }
        other => panic!("{other:?}"),
    }
    let epoll = epoll();
    watch(&epoll, &control, CONTROL);
    watch(&epoll, &handover, SECOND);
    let _sealed = seal(given, &control);
    loop {
        if wait(&epoll) == SECOND {
            // Nothing is ever handed over: to be told to drain, or the frontend's end, is the end.
            match handover.receive(&mut buffer) {
                Ok(Received::Message(ToWorker::Drain, _)) => {
                    handover.send(&FromWorker::Drained, None).ok();
                    exit(0);
                }
                Ok(Received::End) => exit(0),
                other => panic!("{other:?}"),
            }
        }
        match control.receive(&mut buffer).expect("receive") {
            Received::Message(ToChild::Serve, _) if first && asked("renews") => {
                control.send(&FromChild::Renew, None).expect("send");
            }
            Received::Message(ToChild::Serve, _) if first && asked("ready-twice") => {
                let ready = Ready {
                    loaded: 0,
                    refused: 0,
                    pagemap_scan: false,
                    landlock_abi: 7,
                    landlock_proven_threads: 1,
                };
                control.send(&FromChild::Ready(ready), None).expect("send");
            }
            Received::Message(ToChild::Serve, _) if first && asked("garbage") => {
                nix::sys::socket::send(fd::CONTROL, &[0xff; 100], nix::sys::socket::MsgFlags::empty())
                    .expect("send");
            }
            Received::Message(ToChild::Ping { .. }, _) if first && asked("mute") => {}
            Received::Message(ToChild::Ping { nonce }, _) => {
                control.send(&FromChild::Pong { nonce }, None).expect("send");
            }
            Received::Message(ToChild::Drain, _) | Received::End => exit(0),
            Received::Message(_, _) | Received::Nothing => {}
        }
    }
}

/// Tells whoever connects the process table, again each time it changes.
fn frontend() -> Infallible {
    install_panic_hook(Role::Frontend);
    settle_allocator();
    check_inherited(Role::Frontend)
        .expect("what was agreed on, and nothing of the supervisor's or its parent's");
    let control = Control::new(inherited(fd::CONTROL), CONTROL_MAX);
    let assignment: FrontendAssignment = assignment();
    let clients = UnixListener::from(inherited(fd::FIRST));
    let _operators = UnixListener::from(inherited(fd::SECOND));
    let given =
        Given::check(Role::Frontend, assignment.uid, assignment.gid, assignment.isolation).expect("given");
    let epoll = epoll();
    watch(&epoll, &control, CONTROL);
    let _sealed = seal(given, &control);
    let mut tenants = assignment.tenants.len();
    let mut table = ProcessTable::default();
    let mut watchers: Vec<UnixStream> = Vec::new();
    let mut routes: Vec<(String, Channel<ToWorker, FromWorker>)> = Vec::new();
    let mut buffer = Vec::new();
    loop {
        if wait(&epoll) == SECOND {
            if let Ok((stream, _)) = clients.accept() {
                watchers = tell_all(watchers.into_iter().chain([stream]), tenants, &table);
            }
            continue;
        }
        match control.receive(&mut buffer).expect("receive") {
            Received::Message(ToChild::Route { class, .. }, Some(worker)) => {
                let worker = Channel::<ToWorker, FromWorker>::new(worker, HANDOVER_MAX);
                let class = class.as_str().to_owned();
                if let Some(old) = routes.iter().position(|(name, _)| *name == class) {
                    let (_, old) = routes.swap_remove(old);
                    old.send(&ToWorker::Drain, None).ok();
                    close(old);
                }
                routes.push((class, worker));
            }
            Received::Message(ToChild::Processes(new), None) => {
                table = new;
                watchers = tell_all(watchers, tenants, &table);
            }
            Received::Message(ToChild::Reassign, Some(memfd)) => {
                let mut bytes = vec![0; 1 << 16];
                let length = nix::sys::uio::pread(&memfd, &mut bytes, 0).expect("read");
                close(memfd);
                tenants =
                    frame::decode::<FrontendAssignment>(&bytes[..length]).expect("decode").tenants.len();
            }
            Received::Message(ToChild::Ping { nonce }, _) => {
                control.send(&FromChild::Pong { nonce }, None).expect("send");
            }
            Received::Message(ToChild::Drain, _) | Received::End => exit(0),
            // Only now anybody is accepted.
            Received::Message(ToChild::Serve, None) => watch(&epoll, &clients, SECOND),
            Received::Nothing => {}
            Received::Message(other, descriptor) => panic!("{other:?} with {descriptor:?}"),
        }
    }
}

/// Those who still listen.
fn tell_all(
    watchers: impl IntoIterator<Item = UnixStream>,
    tenants: usize,
    table: &ProcessTable,
) -> Vec<UnixStream> {
    let mut told = Vec::new();
    for stream in watchers {
        match tell(&stream, tenants, table) {
            Ok(()) => told.push(stream),
            Err(_) => close(stream),
        }
    }
    told
}

fn tell(mut stream: &UnixStream, tenants: usize, table: &ProcessTable) -> io::Result<()> {
    let mut line = serde_json::to_string(&(tenants, table)).expect("JSON");
    line.push('\n');
    stream.write_all(line.as_bytes())
}
