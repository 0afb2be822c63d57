//! Reload, replace, renew, stop: what happens to decisions while processes come and go.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis::artifact::{Digest, Limits, SigningKey};
use portcullis::bundle::Platform;
use portcullis::client::{ClientError, Question};
use portcullis::compile::{self, Terms};
use portcullis::decision::{Outcome, Refusal, Stage};
use portcullis::ledger::What;
use portcullis::wire::client::Deadline;
use portcullis::wire::control::{Process, ProcessState};
use portcullis::wire::operator::PolicyStatus;
use support::{PATIENCE, Service, Site, policy, tenant};

fn one_class(more: &str) -> Site {
    Site::new().class("one", more).tenant("acme", "one", &[("gate", "hostile/selective")], "")
}

fn serving(service: &Service, role: &str) -> Process {
    let wait_until = Instant::now() + PATIENCE;
    loop {
        let processes = service.processes();
        let found = processes
            .into_iter()
            .filter(|process| process.role == role && process.state == ProcessState::Serving)
            .max_by_key(|process| process.generation);
        match found {
            Some(process) => return process,
            None => assert!(Instant::now() < wait_until, "no {role} serves\n{}", service.log()),
        }
    }
}

/// Asks until there is an answer again. Counts how often there was none.
fn ask_until_answered(service: &Service) -> u32 {
    let wait_until = Instant::now() + PATIENCE;
    let mut failures = 0;
    loop {
        let question = Question::opaque("", b"allow");
        let answer =
            service.client().decide(&tenant("acme"), &policy("gate"), Deadline::Default, question.input());
        match answer {
            Ok(decision) => {
                assert_eq!(decision.outcome, Outcome::Allow);
                return failures;
            }
            Err(error) => {
                failures += 1;
                assert!(Instant::now() < wait_until, "no answer: {error}\n{}", service.log());
            }
        }
    }
}

fn gone(pid: i32) -> bool {
    // A process that is waited for by nobody we know: gone, or dead and not reaped by its new parent yet.
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
    }
}

fn wait_until_gone(pid: i32) {
    let wait_until = Instant::now() + PATIENCE;
    while !gone(pid) {
        assert!(Instant::now() < wait_until, "process {pid} is still there");
        thread::yield_now();
    }
}

/// Reloads, and waits for what a reload does not: the generation before has given its connections back and is gone.
fn reload_and_carry_over(service: &Service) {
    let before = serving(service, "worker");
    assert_eq!(service.reload(), None);
    wait_until_gone(before.pid);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbered questions, pipelined, while `meanwhile` runs. Returns how many were answered, each once and with its own
/// number; anything else fails the test.
fn numbered_questions(service: &Service, connections: u64, meanwhile: impl FnOnce()) -> u64 {
    const DEEP: usize = 16;
    let stop = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..connections {
            let (stop, answered) = (&stop, &answered);
            scope.spawn(move || {
                let mut connection = service.connect("acme");
                let mut next = number << 32;
                let mut open = HashSet::new();
                let (acme, gate) = (tenant("acme"), policy("gate"));
                loop {
                    while open.len() < DEEP && !stop.load(Ordering::Relaxed) {
                        let bytes = format!("number:{next}");
                        let question = Question::opaque("", bytes.as_bytes());
                        let deadline = Deadline::in_(PATIENCE);
                        let id = connection.send(&acme, &gate, deadline, question.input()).unwrap();
                        assert!(open.insert((id, next.to_string())));
                        next += 1;
                    }
                    connection.flush().unwrap();
                    if open.is_empty() {
                        return;
                    }
                    let (id, decision) = connection.receive().unwrap_or_else(|error| {
                        panic!("connection {number}, {} open: {error}\n{}", open.len(), service.log())
                    });
                    assert_eq!(decision.outcome, Outcome::Allow);
                    let value = decision.obligations.metadata[0].value.clone();
                    assert!(open.remove(&(id, value.clone())), "reply {id} with number {value} was not open");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also when `meanwhile` fails: the scope waits for its threads.
        let _stop = SetOnDrop(&stop);
        meanwhile();
    });
    answered.into_inner()
}

#[test]
fn two_hundred_reloads_lose_and_double_nothing() {
    let service = one_class("").start();
    let before = serving(&service, "worker");
    let answered = numbered_questions(&service, 4, || {
        for _ in 0..200 {
            assert_eq!(service.reload(), None);
        }
    });
    let after = serving(&service, "worker");
    assert!(after.generation >= before.generation + 200, "{after:?}");
    assert!(answered >= 200, "{answered}");
    assert!(service.status().frontend.carried_over >= 200, "{:?}", service.status().frontend);
}

/// There are sixteen columns for a class's generations to write their numbers into.
#[test]
fn a_generation_that_drains_for_long_keeps_no_other_from_starting() {
    let mut site = one_class("");
    site.service.push_str("drain = \"60s\"\n");
    let service = site.start();
    let first = serving(&service, "worker");
    let (connection, _) = service.spinning("acme", Deadline::in_(PATIENCE));
    for _ in 0..20 {
        assert_eq!(service.reload(), None);
    }
    let drains = service.processes().into_iter().any(|one| one.pid == first.pid);
    assert!(drains, "the control: it is still there");
    ask_until_answered(&service);
    drop(connection);
    wait_until_gone(first.pid);
}

#[test]
fn a_generation_is_renewed_by_its_number_of_decisions() {
    let service = one_class("renew_after_decisions = 100").start();
    let before = serving(&service, "worker");
    let answered = numbered_questions(&service, 2, || {
        let wait_until = Instant::now() + PATIENCE;
        while serving(&service, "worker").generation < before.generation + 3 {
            assert!(Instant::now() < wait_until, "{}", service.log());
        }
    });
    assert!(answered >= 300, "{answered}");
}

#[test]
fn a_generation_is_renewed_by_age() {
    let service = one_class("renew_after = \"1s\"").start();
    let before = serving(&service, "worker");
    numbered_questions(&service, 1, || {
        let wait_until = Instant::now() + PATIENCE;
        while serving(&service, "worker").generation < before.generation + 2 {
            assert!(Instant::now() < wait_until, "{}", service.log());
        }
    });
}

#[test]
fn a_killed_worker_is_replaced_and_its_clients_see_a_closed_connection() {
    let service =
        one_class("").class("two", "").tenant("globex", "two", &[("gate", "hostile/selective")], "").start();
    let worker = |class: &str| {
        let processes = service.processes();
        processes
            .into_iter()
            .find(|one| one.class.as_ref().is_some_and(|name| name.as_str() == class))
            .unwrap()
    };
    let (one, two) = (worker("one"), worker("two"));
    let (mut connection, _) = service.spinning("acme", Deadline::in_(PATIENCE));
    kill(Pid::from_raw(one.pid), Signal::SIGKILL).unwrap();
    assert!(matches!(connection.receive(), Err(ClientError::Closed(_))));
    ask_until_answered(&service);
    let replaced = serving(&service, "worker");
    assert!(replaced.pid != one.pid);
    assert_eq!(worker("two").pid, two.pid, "the other class has nothing to do with it");
}

#[test]
fn a_stopped_worker_is_replaced() {
    let service = one_class("").start();
    let before = serving(&service, "worker");
    kill(Pid::from_raw(before.pid), Signal::SIGSTOP).unwrap();
    wait_until_gone(before.pid);
    ask_until_answered(&service);
    assert!(serving(&service, "worker").generation > before.generation);
}

#[test]
fn a_killed_frontend_is_replaced() {
    let service = one_class("").start();
    let before = serving(&service, "frontend");
    kill(Pid::from_raw(before.pid), Signal::SIGKILL).unwrap();
    wait_until_gone(before.pid);
    ask_until_answered(&service);
    assert_ne!(serving(&service, "frontend").pid, before.pid);
}

#[test]
fn nobody_outlives_the_supervisor_not_even_stopped() {
    let service = one_class("").start();
    let children: Vec<i32> = service.processes().iter().map(|one| one.pid).collect();
    assert!(children.len() >= 2, "{children:?}");
    let children: Vec<i32> = children.into_iter().filter(|pid| *pid != service.pid().as_raw()).collect();
    // First, so that it does not see to those that are stopped.
    service.suspend();
    for pid in &children {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    service.signal(Signal::SIGKILL);
    children.into_iter().for_each(wait_until_gone);
}

#[test]
fn stopping_answers_what_was_asked_and_leaves_nothing_behind() {
    let service = one_class("").start();
    let (mut connection, _) = service.spinning("acme", Deadline::Budget { us: 2_000_000 });
    let children: Vec<i32> = service.processes().iter().map(|one| one.pid).collect();
    let socket = service.socket();
    let waiting = thread::spawn(move || connection.receive().map(|(_, decision)| decision.outcome));
    let (status, log) = service.stop();
    assert!(status.success(), "{status}\n{log}");
    assert_eq!(waiting.join().unwrap().unwrap(), Outcome::Refused(Refusal::Deadline(Stage::Run)), "{log}");
    assert!(!socket.exists());
    children.into_iter().for_each(wait_until_gone);
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let service = one_class("").start();
    let before = serving(&service, "worker");
    let path = service.site.path("portcullis.toml");
    let sound = fs::read_to_string(&path).unwrap();
    fs::write(&path, sound.replace("[tenant.acme]", "surprise = 1\n[tenant.acme]")).unwrap();
    let error = service.reload().expect("refused");
    assert!(error.contains("surprise"), "{error}");
    assert_eq!(serving(&service, "worker").pid, before.pid);
    ask_until_answered(&service);

    fs::write(&path, &sound).unwrap();
    assert_eq!(service.reload(), None);
    assert!(serving(&service, "worker").generation > before.generation);
}

#[test]
fn a_reload_takes_new_tenants_grants_and_policies_and_reaches_open_connections() {
    let service = one_class("").start();
    let mut connection = service.connect("acme");
    let ask = |connection: &mut portcullis::client::blocking::Connection, name: &str| {
        let question = Question::opaque("", b"allow");
        connection.send(&tenant(name), &policy("gate"), Deadline::Default, question.input()).unwrap();
        connection.flush().unwrap();
        connection.receive().unwrap().1.outcome
    };
    assert_eq!(ask(&mut connection, "globex"), Outcome::Refused(Refusal::NotPermitted));

    service.site.install("globex", "gate", "hostile/selective", 1);
    let path = service.site.path("portcullis.toml");
    let config = fs::read_to_string(&path).unwrap();
    let uid = nix::unistd::geteuid();
    // With a busy machine's deadlines, like the tenant that was there before.
    let more = format!(
        "[tenant.globex]\nclass = \"one\"\npolicies = [\"gate\"]\nuids = [{uid}]\n\
         max_deadline = \"5s\"\ndefault_deadline = \"2s\"\n"
    );
    fs::write(&path, format!("{config}\n{more}")).unwrap();
    reload_and_carry_over(&service);
    assert_eq!(ask(&mut connection, "globex"), Outcome::Allow, "the open connection has the new grant");

    // Taken away again: globex is there, but not for this peer.
    fs::write(&path, format!("{config}\n{}", more.replace(&format!("uids = [{uid}]"), "uids = [4242]")))
        .unwrap();
    reload_and_carry_over(&service);
    assert_eq!(ask(&mut connection, "globex"), Outcome::Refused(Refusal::NotPermitted));
    assert_eq!(ask(&mut connection, "acme"), Outcome::Allow);
}

#[test]
fn a_bad_policy_is_refused_by_name_and_the_last_good_one_serves() {
    let site = one_class("").tenant("globex", "one", &[("gate", "hostile/selective")], "");
    let good = site.install("acme", "gate", "hostile/selective", 1);
    let service = site.start();
    assert_eq!(service.ask("acme", "gate", b"allow").digest, Some(good));

    // A newer version, one byte of whose code has changed on its way.
    let changed = service.site.install("acme", "gate", "hostile/trap", 2);
    let blob = format!("blobs/sha256/{}", hex::encode(changed.as_bytes()));
    let cwasm = service.site.bundle("acme", "gate").join(blob);
    let mut bytes = fs::read(&cwasm).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&cwasm, &bytes).unwrap();
    assert_eq!(service.reload(), None, "one bad policy does not stop the others");
    let decision = service.ask("acme", "gate", b"allow");
    assert_eq!((decision.outcome, decision.digest), (Outcome::Allow, Some(good)));
    assert_eq!(service.ask("globex", "gate", b"allow").outcome, Outcome::Allow);
    let shown = shown(&service, "acme");
    assert!(shown.held_back.as_deref().is_some_and(|why| why.contains("digest")), "{shown:?}");
    assert_eq!(shown.serving.map(|serving| (serving.digest, serving.version)), Some((good, 1)));

    // The same version as it was signed.
    let newer = service.site.install("acme", "gate", "hostile/trap", 2);
    assert_eq!(service.reload(), None);
    assert_eq!(service.ask("acme", "gate", b"allow").digest, Some(newer));

    // An older version does not replace it, though its signature is good.
    service.site.install("acme", "gate", "hostile/selective", 1);
    assert_eq!(service.reload(), None);
    assert_eq!(service.ask("acme", "gate", b"allow").digest, Some(newer));
}

/// What the status says of a tenant's policy in the newest worker.
fn shown(service: &Service, tenant: &str) -> PolicyStatus {
    let workers = service.status().workers;
    let newest = workers.into_iter().max_by_key(|worker| worker.generation).unwrap();
    newest.policies.into_iter().find(|one| one.tenant.as_str() == tenant).unwrap()
}

#[test]
fn without_a_store_the_last_good_set_serves() {
    let service = one_class("").start();
    let digest = service.ask("acme", "gate", b"allow").digest;
    fs::remove_dir_all(service.site.path("store/acme")).unwrap();
    assert_eq!(service.reload(), None);
    let decision = service.ask("acme", "gate", b"allow");
    assert_eq!((decision.outcome, decision.digest), (Outcome::Allow, digest));

    // Not even a new registry and a new worker need it.
    kill(Pid::from_raw(serving(&service, "registry").pid), Signal::SIGKILL).unwrap();
    kill(Pid::from_raw(serving(&service, "worker").pid), Signal::SIGKILL).unwrap();
    ask_until_answered(&service);
    assert_eq!(service.ask("acme", "gate", b"allow").digest, digest);
}

#[test]
fn a_policy_that_verifies_but_cannot_be_loaded_does_not_take_the_place_of_the_last_good_one() {
    // Signed and unchanged, and it starts with more memory than the class has.
    let service = one_class("memory = \"1MiB\"").start();
    let good = service.ask("acme", "gate", b"allow").digest;
    assert!(good.is_some());
    // Always allows: 72 bytes of zero are an answer. 32 pages are 2 MiB.
    let large = r#"(module
        (memory (export "memory") 32)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
        (func (export "decide") (param i32) (result i32) (i32.const 512)))"#;
    let component = compile::componentize(large.as_bytes()).unwrap();
    let built = compile::build(&component, Terms::default(), &[Platform::host()]).unwrap();
    let draft = built.draft(component, tenant("acme"), policy("gate"), 2, Limits::default());
    support::write_signed(draft, &service.site.bundle("acme", "gate"), &service.site.key);
    for _ in 0..3 {
        assert_eq!(service.reload(), None);
        let decision = service.ask("acme", "gate", b"allow");
        assert_eq!((decision.outcome, decision.digest), (Outcome::Allow, good));
        let shown = shown(&service, "acme");
        assert!(shown.held_back.as_deref().is_some_and(|why| why.contains("memory")), "{shown:?}");
    }
}

/// What is wrong with a bundle, and a word of the reason that `status` gives.
#[test]
fn every_bad_bundle_is_refused_by_name_beside_one_that_serves() {
    let mut site = one_class("");
    let cases = [
        ("truncated", "bytes long"),
        ("extended", "bytes long"),
        ("tenant", "tenant"),
        ("policy", "policy"),
        ("unsigned", "it did not sign this bundle"),
        ("stranger", "it did not sign this bundle"),
        ("ungranted", "import"),
        ("unheard-of", "files"),
    ];
    for (name, _) in cases {
        site = site.tenant(name, "one", &[("gate", "hostile/selective")], "");
        let mut draft = support::draft("hostile/selective", name, "gate", 1);
        let mut key = None;
        match name {
            "tenant" => draft.tenant = tenant("acme"),
            "policy" => draft.policy = policy("other"),
            "ungranted" => draft.imports.clear(),
            "unheard-of" => draft.imports.push("files".into()),
            "stranger" => key = Some(SigningKey::generate_p256().unwrap()),
            _ => {}
        }
        let path = site.bundle(name, "gate");
        if name == "unsigned" {
            portcullis::bundle::write::create(&draft.assemble().unwrap(), &path).unwrap();
            continue;
        }
        let digest = support::write_signed(draft, &path, key.as_ref().unwrap_or(&site.key));
        let blob = path.join("blobs/sha256").join(hex::encode(digest.as_bytes()));
        let mut cwasm = fs::read(&blob).unwrap();
        match name {
            "truncated" => drop(cwasm.pop()),
            "extended" => cwasm.push(0),
            _ => continue,
        }
        fs::write(&blob, cwasm).unwrap();
    }
    let service = site.start();
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    for (name, word) in cases {
        let decision = service.ask(name, "gate", b"allow");
        assert_eq!(decision.outcome, Outcome::Refused(Refusal::UnknownPolicy), "{name}");
        let shown = shown(&service, name);
        assert!(shown.serving.is_none(), "{name}");
        let why = shown.refused.as_deref().unwrap_or_default();
        assert!(why.contains(word), "{name}: {why}");
    }
}

/// Code for another wasmtime or another engine is no reason to stop: the signed source is compiled here.
#[test]
fn what_has_no_code_for_this_host_is_compiled_from_its_signed_source() {
    let mut site = one_class("");
    let cases = ["no-code", "wasmtime", "engine"];
    for name in cases {
        site = site.tenant(name, "one", &[("gate", "hash")], "");
        let mut draft = support::draft("hash", name, "gate", 1);
        match name {
            "no-code" => draft.compiled.clear(),
            "wasmtime" => draft.compiled[0].wasmtime = "47.0.0".into(),
            _ => draft.compiled[0].engine = Digest::of(b"another engine"),
        }
        support::write_signed(draft, &site.bundle(name, "gate"), &site.key);
    }
    let here = Digest::of(support::code(&support::built("hash")));
    let service = site.start();
    for name in cases {
        let decision = service.ask(name, "gate", b"anything");
        assert_eq!((decision.outcome, decision.digest), (Outcome::Allow, Some(here)), "{name}");
    }

    // What the cache holds is looked at before it is used: a changed byte is noticed, and the source compiled again.
    let cached = service.site.path("cache/one").join(format!("{}.cwasm", hex::encode(here.as_bytes())));
    let mut bytes = fs::read(&cached).unwrap();
    bytes[4000] ^= 1;
    fs::write(&cached, &bytes).unwrap();
    let service = service.restart();
    for name in cases {
        let decision = service.ask(name, "gate", b"anything");
        assert_eq!((decision.outcome, decision.digest), (Outcome::Allow, Some(here)), "{name}");
    }
    assert_eq!(Digest::of(&fs::read(&cached).unwrap()), here);
    // It is counted, and said why: once, or for each of those that asked before it was there again.
    let table = portcullis::ledger::read(&service.site.path("state")).unwrap();
    let counted = cases.map(|name| table.record(&tenant(name), &policy("gate")).unwrap().rebuilt);
    assert!((1..=3).contains(&counted.iter().sum::<u64>()), "{counted:?}");
    let rebuilt = table.history.iter().rfind(|event| event.what == What::Rebuilt).unwrap();
    assert!(rebuilt.why.contains("have digest sha256:"), "{rebuilt:?}");
}

#[test]
fn what_is_no_plain_file_in_the_store_is_refused_without_waiting() {
    let mut site = one_class("");
    for name in ["link", "pipe", "folder", "tenant-link"] {
        site = site.tenant(name, "one", &[("gate", "hostile/selective")], "");
        let index = site.bundle(name, "gate").join("index.json");
        let kept = site.path(&format!("{name}.kept"));
        fs::rename(&index, &kept).unwrap();
        match name {
            "link" => std::os::unix::fs::symlink(&kept, &index).unwrap(),
            // Whoever opened it the plain way would wait for a writer for ever.
            "pipe" => nix::unistd::mkfifo(&index, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap(),
            "folder" => fs::create_dir(&index).unwrap(),
            _ => {
                fs::rename(&kept, &index).unwrap();
                let (folder, elsewhere) = (site.path("store/tenant-link"), site.path("elsewhere"));
                fs::rename(&folder, &elsewhere).unwrap();
                std::os::unix::fs::symlink(&elsewhere, &folder).unwrap();
            }
        }
    }
    let service = site.start();
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow, "the control: a plain file");
    for (name, word) in [
        ("link", "links are not followed"),
        ("pipe", "regular file"),
        ("folder", "regular file"),
        ("tenant-link", "links are not followed"),
    ] {
        let shown = shown(&service, name);
        assert!(shown.serving.is_none(), "{name}");
        assert!(shown.refused.as_deref().is_some_and(|why| why.contains(word)), "{shown:?}");
    }
}

#[test]
fn a_key_that_is_no_longer_trusted_loses_what_it_signed() {
    let service = one_class("").start();
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
    let other = SigningKey::generate_p256().unwrap();
    fs::write(service.site.path("trust.toml"), support::trust_policy(&[&other])).unwrap();
    assert_eq!(service.reload(), None);
    // Neither the store's nor what was active: both were signed by the key that is gone.
    let decision = service.ask("acme", "gate", b"allow");
    assert_eq!(decision.outcome, Outcome::Refused(Refusal::UnknownPolicy));

    // And serves again with another signature on the same bundle.
    support::sign_bundle(&service.site.bundle("acme", "gate"), &other);
    assert_eq!(service.reload(), None);
    assert_eq!(service.ask("acme", "gate", b"allow").outcome, Outcome::Allow);
}

#[test]
fn a_new_version_of_the_same_code_raises_the_floor() {
    let service = one_class("").start();
    let version = |service: &Service| shown(service, "acme").serving.map(|serving| serving.version);
    assert_eq!(version(&service), Some(1));
    service.site.install("acme", "gate", "hostile/selective", 9);
    assert_eq!(service.reload(), None);
    assert_eq!(version(&service), Some(9));
    service.site.install("acme", "gate", "hostile/selective", 2);
    assert_eq!(service.reload(), None);
    assert_eq!(version(&service), Some(9), "an older one does not come back");
}

/// What is wrong with the trust policy is wrong with the configuration: nothing changes, and it is said where.
#[test]
fn a_wrong_trust_policy_refuses_the_reload() {
    let service = one_class("").start();
    let path = service.site.path("trust.toml");
    let sound = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("surprise = 1\n{sound}")).unwrap();
    let error = service.reload().expect("refused");
    assert!(error.contains("trust.toml:1:1:") && error.contains("surprise"), "{error}");
    ask_until_answered(&service);
    fs::write(&path, &sound).unwrap();
    assert_eq!(service.reload(), None);
    ask_until_answered(&service);
}
