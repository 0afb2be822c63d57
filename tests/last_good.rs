//! Disks that are full, policies that are bombs, keys whose time is over: a whole service goes on deciding with the last good
//! version, says what is wrong, and stops only what has to stop.
#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a failed test panics; numbers of system calls are the kernel's"
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was counted, and what takes root")]

#[path = "support/bomb.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod bomb;
#[path = "power_cuts/cutting.rs"]
mod cutting;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::{Limits, SigningKey};
use portcullis::bundle::{Draft, open_path};
use portcullis::client::{Deadline, Question};
use portcullis::decision::{Decision, Outcome, Refusal};
use portcullis::engine::WORLD;
use portcullis::trust::{RevocationList, Revokes};
use portcullis::wire::control::ProcessState;
use portcullis::wire::operator::PolicyStatus;
use support::{PATIENCE, Service, Site, is_root, policy, tenant};

const ROOT: &str = "skipped: mounting a small file system takes root; run the tests with sudo";

fn site() -> Site {
    let policies = [("gate", "hostile/selective"), ("other", "hash")];
    Site::new().class("one", "").tenant("acme", "one", &policies, "")
}

fn decides(service: &Service, name: &str) -> Decision {
    service.ask("acme", name, b"allow")
}

/// What the status says of a policy in the newest worker.
fn shown(service: &Service, name: &str) -> PolicyStatus {
    let newest = service.status().workers.into_iter().max_by_key(|worker| worker.generation).unwrap();
    newest.policies.into_iter().find(|one| one.policy.as_str() == name).unwrap()
}

/// Asks until it is answered so. How it was answered otherwise is in the panic.
fn ask_until(service: &Service, name: &str, wanted: impl Fn(&Outcome) -> bool) {
    let patience = Instant::now() + PATIENCE;
    loop {
        // A worker may be replaced meanwhile, which closes its connections.
        let question = Question::opaque("", b"allow");
        let deadline = Deadline::Default;
        match service.client().decide(&tenant("acme"), &policy(name), deadline, question.input()) {
            Ok(decision) if wanted(&decision.outcome) => return,
            other => assert!(Instant::now() < patience, "{other:?}\n{}", service.log()),
        }
    }
}

/// Waits until the service has reloaded of its own accord, since something has changed.
fn its_own_reload(service: &Service, before: u64) {
    let patience = Instant::now() + PATIENCE;
    while service.status().processes.reloads == before {
        assert!(Instant::now() < patience, "{}", service.log());
    }
}

/// Kills the registry and waits until another one serves.
fn another_registry(service: &Service) {
    let registry = |besides: Option<i32>| {
        let patience = Instant::now() + PATIENCE;
        loop {
            let found = service.processes().into_iter().find(|one| {
                one.role == "registry" && one.state == ProcessState::Serving && Some(one.pid) != besides
            });
            match found {
                Some(process) => return process.pid,
                None => assert!(Instant::now() < patience, "no registry\n{}", service.log()),
            }
        }
    };
    let before = registry(None);
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    registry(Some(before));
}

/// Runs a test in a mount namespace of its own, so that nothing is left behind; unshare is per thread.
fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        eprintln!("{ROOT}");
        return;
    }
    let ended = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        test();
    });
    if let Err(panic) = ended.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A file system of its own in this directory's place, the directory's owner's.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(path: PathBuf) -> Self {
        use std::os::unix::fs::MetadataExt;
        let uid = fs::metadata(&path).unwrap().uid();
        let options = format!("size=16m,mode=0700,uid={uid},gid={uid}");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(path)
    }

    /// Not with a dot in front: that would be what is left of an attempt to write, and is removed.
    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Not a byte more goes on it.
    fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).unwrap();
        for step in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; step]).is_ok() {}
        }
        let error = fs::write(self.0.join("more"), b"x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let _ = fs::remove_file(self.0.join("more"));
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn revoke(site: &Site, what: Revokes) {
    let list = RevocationList { version: 0, revoked: vec![] };
    let signed = list.and(what, "leaked", "2026-01-01T00:00:00Z".parse().unwrap()).sign(&site.key).unwrap();
    let path = site.path("store/revocations.json");
    fs::write(path.with_extension("new"), signed).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

#[test]
fn with_a_full_state_the_last_good_version_decides_and_a_revocation_still_stops() {
    with_own_mounts(|| {
        let site = site();
        site.make_state();
        let disk = SmallDisk::on(site.path("state"));
        let service = site.start();
        let first = decides(&service, "gate").digest;
        assert!(first.is_some(), "control");
        disk.fill();

        let second = service.site.install("acme", "gate", "hostile/trap", 2);
        let error = service.reload().expect("nothing can be written down");
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(decides(&service, "gate").digest, first);
        // Neither a new registry nor a whole new service can write, and both decide as before.
        another_registry(&service);
        ask_until(&service, "gate", Outcome::is_allow);
        let service = service.restart();
        assert_eq!(decides(&service, "gate").digest, first, "{}", service.log());
        let shown = shown(&service, "gate");
        let why = shown.held_back.unwrap_or_default();
        assert!(why.contains("cannot become active") && why.contains("No space left"), "{why}");

        // What is revoked stops, though that cannot be written down either.
        let other = open_path(&service.site.bundle("acme", "other")).unwrap().read().unwrap().digest();
        assert!(decides(&service, "other").outcome.is_allow(), "control");
        let reloads = service.status().processes.reloads;
        revoke(&service.site, Revokes::Digest(other));
        ask_until(&service, "other", |outcome| !outcome.is_allow());
        its_own_reload(&service, reloads);
        assert_eq!(decides(&service, "gate").digest, first, "and nothing else does");

        // With room it goes on as if nothing had been.
        disk.make_room();
        assert_eq!(service.reload(), None);
        assert_eq!(decides(&service, "gate").digest, Some(second));
        assert!(!decides(&service, "other").outcome.is_allow());
        drop(service);
    });
}

/// A policy for which every host compiles the source.
fn source_only(site: &Site, component: &str, version: u64) {
    let mut draft = support::draft(component, "acme", "gate", version);
    draft.compiled.clear();
    support::write_signed(draft, &site.bundle("acme", "gate"), &site.key);
}

#[test]
fn with_a_full_cache_the_last_good_version_decides() {
    with_own_mounts(|| {
        let site = site();
        source_only(&site, "hostile/selective", 1);
        let disk = SmallDisk::on(site.path("cache/one"));
        let service = site.start();
        let first = decides(&service, "gate").digest;
        let kept = fs::read_dir(service.site.path("cache/one")).unwrap().count();
        assert!(first.is_some() && kept == 1, "control: it was compiled here");
        disk.fill();

        source_only(&service.site, "hash", 2);
        assert_eq!(service.reload(), None, "{}", service.log());
        assert_eq!(decides(&service, "gate").digest, first);
        let why = shown(&service, "gate").held_back.unwrap_or_default();
        assert!(why.contains("make room on that file system"), "{why}");
        // What is in the cache can be read.
        another_registry(&service);
        ask_until(&service, "gate", Outcome::is_allow);
        assert_eq!(decides(&service, "gate").digest, first);

        disk.make_room();
        source_only(&service.site, "hash", 3);
        assert_eq!(service.reload(), None);
        let third = decides(&service, "gate");
        assert!(third.outcome.is_allow() && third.digest != first, "{third:?}\n{}", service.log());
        drop(service);
    });
}

#[test]
fn a_compile_bomb_in_the_store_is_refused_by_its_limit_and_harms_nobody() {
    let mut site = site();
    site.tables += "[builder]\ncpu = \"1s\"\nmemory = \"1GiB\"\n";
    let service = site.start();
    let first = decides(&service, "gate").digest;
    let bomb = bomb::policy(bomb::alive(3_000, 700), b"", 2);
    let draft = Draft {
        policy: policy("gate"),
        tenant: tenant("acme"),
        version: 2,
        world: WORLD.into(),
        imports: vec![],
        exports: vec!["decide".into()],
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
        source: bomb,
        compiled: vec![],
        rego: None,
        prepared: None,
    };
    support::write_signed(draft, &service.site.bundle("acme", "gate"), &service.site.key);
    let before = service.status().processes.reloads;
    service.signal(Signal::SIGHUP);
    // While it is being compiled, and until it is over.
    let (mut asked, patience) = (0, Instant::now() + PATIENCE);
    loop {
        assert!(decides(&service, "other").outcome.is_allow());
        assert_eq!(decides(&service, "gate").digest, first);
        asked += 1;
        let processes = service.status().processes;
        if processes.reloads > before {
            assert_eq!(processes.last_reload_error, None);
            break;
        }
        assert!(Instant::now() < patience, "{}", service.log());
    }
    println!("{asked} times two decisions while a bomb was compiled, each as before");
    assert_eq!(decides(&service, "gate").digest, first);
    let why = shown(&service, "gate").held_back.unwrap_or_default();
    assert!(why.contains("SIGXCPU") && why.contains("builder.cpu"), "{why}");
    // It is not tried again by itself, and what comes after it is.
    assert_eq!(service.reload(), None);
    assert!(shown(&service, "gate").held_back.is_some());
    let third = service.site.install("acme", "gate", "hostile/selective", 3);
    assert_eq!(service.reload(), None);
    assert_eq!(decides(&service, "gate").digest, Some(third));
}

/// Of two policies the old key signed both, and the new key one: until the window ends both decide, afterwards that one.
#[test]
fn what_only_a_retired_key_signed_decides_until_its_window_ends_and_not_afterwards() {
    let service = site().start();
    let next = SigningKey::generate_p256().unwrap();
    support::sign_bundle(&service.site.bundle("acme", "other"), &next);
    let pem = |key: &SigningKey| key.public_key().to_pem().unwrap();
    let (old, new) = (pem(&service.site.key), pem(&next));
    let trust = |until: jiff::Timestamp| {
        format!(
            "[signer.release]\nkey = '''\n{new}'''\n[[signer.release.retired]]\nkey = '''\n{old}'''\nnot_after = {until}\n\
             [default]\nall_of = ['release']\ncapabilities = ['clock', 'data', 'log', 'metric', 'random']\n"
        )
    };
    // A window that a slow machine slept through shows nothing: then a longer one.
    let mut window = 2;
    let reloads = loop {
        let until = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + window).unwrap();
        fs::write(service.site.path("trust.toml"), trust(until)).unwrap();
        assert_eq!(service.reload(), None);
        let reloads = service.status().processes.reloads;
        if decides(&service, "gate").outcome.is_allow() {
            break reloads;
        }
        assert!(window < 60, "control, within {window} s: {}", service.log());
        window *= 2;
    };
    // Nobody says reload.
    ask_until(&service, "gate", |outcome| {
        matches!(outcome, Outcome::Refused(Refusal::Revoked | Refusal::UnknownPolicy))
    });
    its_own_reload(&service, reloads);
    ask_until(&service, "other", Outcome::is_allow);
    // A new signature on the same bundle brings it back.
    support::sign_bundle(&service.site.bundle("acme", "gate"), &next);
    assert_eq!(service.reload(), None);
    assert!(decides(&service, "gate").outcome.is_allow(), "{}", service.log());
}

#[test]
fn these_tests_know_how_full_a_disk_is() {
    with_own_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::create_dir(&path).unwrap();
        let disk = SmallDisk::on(path.clone());
        fs::write(path.join("before"), b"x").unwrap();
        disk.fill();
        fs::write(path.join("while"), b"x").unwrap_err();
        disk.make_room();
        fs::write(path.join("after"), b"x").unwrap();
    });
}

/// Ends whoever asks, also where the test fails in between.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn twenty_activations_under_load_fail_no_decision() {
    let service = Site::new().class("one", "").tenant("acme", "one", &[("gate", "hash")], "").start();
    let mut versions = BTreeSet::from([decides(&service, "gate").digest]);
    let enough = AtomicBool::new(false);
    let ask = || {
        let mut connection = service.connect("acme");
        let question = Question::opaque("", b"anything");
        let (mut answers, mut by) = (0, BTreeSet::new());
        while !enough.load(Ordering::SeqCst) {
            connection.send(&tenant("acme"), &policy("gate"), Deadline::Default, question.input()).unwrap();
            connection.flush().unwrap();
            let (_, decision) = connection.receive().unwrap();
            assert!(matches!(decision.outcome, Outcome::Allow | Outcome::Deny { .. }), "{decision:?}");
            by.insert(decision.digest);
            answers += 1;
        }
        (answers, by)
    };
    let (answers, by) = thread::scope(|scope| {
        let ended = Enough(&enough);
        let asking = [scope.spawn(ask), scope.spawn(ask)];
        for version in 2..=21 {
            let component = if version % 2 == 0 { "ip-allowlist" } else { "hash" };
            let code = service.site.install("acme", "gate", component, version);
            assert_eq!(service.reload(), None);
            assert_eq!(
                decides(&service, "gate").digest,
                Some(code),
                "version {version} decides from here on"
            );
            versions.insert(Some(code));
        }
        drop(ended);
        let (mut answers, mut by) = (0, BTreeSet::new());
        for (some, whose) in asking.map(|asking| asking.join().unwrap()) {
            answers += some;
            by.extend(whose);
        }
        (answers, by)
    });
    println!("{answers} decisions during twenty activations, none failed");
    assert_eq!(by, versions, "each was made by one of the versions, and none by both");
    assert_eq!(by.len(), 2);
}

/// Orders are left by a command, and carried out by the registry.
#[test]
fn a_power_cut_while_an_order_is_left_leaves_a_whole_one_or_none() {
    let service = site().start();
    let first = decides(&service, "gate").digest;
    service.site.install("acme", "gate", "hash", 2);
    assert_eq!(service.reload(), None);
    assert_ne!(decides(&service, "gate").digest, first);
    let site = service.into_site();
    let orders = site.path("state/orders");
    let rollback = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["policy", "rollback", "--tenant", "acme", "--policy", "gate", "--reason", "x"]);
        command.arg("--no-reload").arg("--config").arg(site.path("portcullis.toml"));
        command
    };
    // Without what is unfinished, as the registry reads them.
    let left = || -> Vec<Vec<u8>> {
        let names = fs::read_dir(&orders).unwrap().map(|entry| entry.unwrap());
        let names = names.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
        names.map(|entry| fs::read(entry.path()).unwrap()).collect()
    };
    let forget = || {
        for entry in fs::read_dir(&orders).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    };
    let whole = cutting::run(&rollback(), &orders, None);
    assert_eq!((whole.code, whole.careless), (Some(0), vec![]));
    let expected = left();
    assert_eq!(expected.len(), 1);
    let mut were_left = 0;
    for cut in 0..whole.changes {
        forget();
        assert_eq!(cutting::run(&rollback(), &orders, Some(cut)).code, None);
        let found = left();
        assert!(found.is_empty() || found == expected, "cut before change {cut}: {found:?}");
        were_left += found.len();
    }
    println!("{} cuts, {were_left} times the order was there", whole.changes);
    assert!((1..whole.changes).contains(&were_left));
    // What is left behind is in nobody's way.
    forget();
    fs::write(orders.join(".4711.tmp"), b"{").unwrap();
    assert!(rollback().output().unwrap().status.success());
    let service = site.start();
    assert_eq!(decides(&service, "gate").digest, first, "{}", service.log());
}
