//! A log that nobody reads holds no decision up, whatever it is; and when somebody reads again, lines come, and say how many
//! are missing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use portcullis::artifact::Limits;
use portcullis::bundle::Platform;
use portcullis::compile::{self, Terms};
use portcullis::decision::Outcome;
use support::{Service, Site};

/// Allows, and writes a line.
const TALKS: &str = r#"(module
    (import "portcullis:policy/log@1.0.0" "write" (func $log (param i32 i32 i32)))
    (memory (export "memory") 1)
    (data (i32.const 2048) "a word")
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
    (func (export "decide") (param i32) (result i32)
        (call $log (i32.const 1) (i32.const 2048) (i32.const 6))
        (i32.const 512)))"#;

fn site() -> Site {
    let site = Site::new().class("one", "").tenant_of("acme", "one", &["gate"], "");
    let component = compile::componentize(TALKS.as_bytes()).unwrap();
    let built = compile::build(&component, Terms::default(), &[Platform::host()]).unwrap();
    let (acme, gate) = (support::tenant("acme"), support::policy("gate"));
    // It may take a minute: a machine that stops for a second is not what is tested.
    let limits = Limits { deadline_us: 60_000_000, ..Limits::default() };
    let draft = built.draft(component, acme, gate, 1, limits);
    support::write_signed(draft, &site.bundle("acme", "gate"), &site.key);
    site
}

/// Makes it full, and leaves it blocking, as whoever starts a service would.
fn fill(to: &OwnedFd) {
    let flags = OFlag::from_bits_retain(fcntl(to, FcntlArg::F_GETFL).unwrap());
    fcntl(to, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    let mut file = File::from(to.try_clone().unwrap());
    while file.write(&[b'\n'; 512]).is_ok() {}
    while file.write(b"\n").is_ok() {}
    fcntl(to, FcntlArg::F_SETFL(flags)).unwrap();
}

/// Starts the service with `to`, which is full, as its standard error.
fn start(mut site: Site, to: &OwnedFd) -> Service {
    fill(to);
    fcntl(to, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let number = to.as_raw_fd();
    site.through =
        ["bash", "-c", &format!("exec \"$@\" 2>&{number} {number}>&-"), "bash"].map(str::to_owned).into();
    site.start()
}

fn holds_nobody_up(service: Service, reader: impl Into<OwnedFd>) {
    // Dropped before the service, so that nothing waits for it if this test fails.
    let reader: OwnedFd = reader.into();
    let decides = || assert_eq!(service.ask("acme", "gate", b"").outcome, Outcome::Allow);
    (0..50).for_each(|_| decides());

    let flags = OFlag::from_bits_retain(fcntl(&reader, FcntlArg::F_GETFL).unwrap());
    fcntl(&reader, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    let mut reader = File::from(reader);
    let mut read = || {
        let (mut text, mut bytes) = (Vec::new(), [0; 65536]);
        while let Ok(length @ 1..) = reader.read(&mut bytes) {
            text.extend_from_slice(&bytes[..length]);
        }
        String::from_utf8(text).unwrap()
    };
    let before = read();
    assert!(!before.contains("guest="), "the control: it was full: {}", before.trim());

    let mut after = String::new();
    // One is enough; a worker that was not heard of may have been replaced meanwhile.
    for _ in 0..1000 {
        decides();
        after += &read();
        if after.contains("guest=") {
            break;
        }
    }
    let lost = after.lines().find_map(|line| line.split_once("worker: lines lost that nobody took lines="));
    let count: u64 = lost.expect(&after).1.parse().unwrap();
    assert!(count >= 50, "{after}");
    let said = after.lines().find(|line| line.contains("guest=\"")).expect(&after);
    assert!(said.starts_with("INFO worker: ") && said.contains(" decision="), "{said}");
}

#[test]
fn a_full_pipe_holds_no_decision_up() {
    let (reader, to) = nix::unistd::pipe().unwrap();
    holds_nobody_up(start(site(), &to), reader);
}

#[test]
fn a_full_socket_holds_no_decision_up() {
    let (reader, to) = UnixStream::pair().unwrap();
    holds_nobody_up(start(site(), &to.into()), reader);
}

#[test]
fn a_full_fifo_holds_no_decision_up() {
    let site = site();
    let path = site.path("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = File::options().read(true).write(true).open(&path).unwrap();
    let to = File::options().write(true).open(&path).unwrap();
    holds_nobody_up(start(site, &to.into()), reader);
}
