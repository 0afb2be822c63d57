//! `portcullis policy activate | rollback | list | history | revoke` and `portcullis trust recover` with a whole service:
//! what they say, what becomes of it, and the exit codes.

#![cfg(feature = "compiler")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

mod support;

use std::fs;
use std::process::{Command, Output};

use portcullis::artifact::{Digest, SigningKey};
use portcullis::bundle::open_path;
use portcullis::decision::{Outcome, Refusal};
use portcullis::trust::RevocationList;
use serde_json::Value;
use support::{Service, Site};

const GATE: &str = "--tenant acme --policy gate";

fn site() -> Site {
    Site::new().class("one", "").tenant("acme", "one", &[("gate", "hash")], "")
}

fn run(site: &Site, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    if !arguments.starts_with("trust ") {
        command.arg("policy");
    }
    let config = site.path("portcullis.toml");
    // A word with a space in it is written with a ~.
    command.args(arguments.split(' ').map(|word| word.replace('~', " "))).arg("--config").arg(config);
    command.env_remove("PORTCULLIS_OPERATOR_SOCKET").current_dir(site.dir.path()).output().unwrap()
}

/// What a command said that ended with this code and complained only if that is 1 or 3.
#[track_caller]
fn ends(site: &Site, arguments: &str, code: i32) -> String {
    let output = run(site, arguments);
    let (text, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments}: {text}{error}");
    assert_eq!(matches!(code, 1 | 3), error.starts_with("portcullis: "), "{error}");
    text + &error
}

#[track_caller]
fn json(site: &Site, arguments: &str) -> Value {
    serde_json::from_str(&ends(site, &format!("{arguments} --json"), 0)).unwrap()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn bundle_digest(site: &Site) -> Digest {
    open_path(&site.bundle("acme", "gate")).unwrap().read().unwrap().digest()
}

/// Which code decides.
fn decides(service: &Service) -> Option<Digest> {
    service.ask("acme", "gate", b"x").digest
}

fn active_version(site: &Site) -> Value {
    json(site, &format!("list {GATE}"))["policies"][0]["active"]["config"]["version"].clone()
}

#[test]
fn what_asks_for_more_waits_until_an_operator_accepts_it() {
    let service = site().start();
    let site = &service.site;
    let first = decides(&service);
    assert!(first.is_some(), "nothing decides");
    let text = ends(site, "list", 0);
    for said in [
        "no revocation list is in force",
        "acme/gate: version 1 serves",
        "from the bundle",
        "signed by key-1 (key ",
        "floor 1:",
    ] {
        assert!(words(&text).contains(said), "{said:?} is not in\n{text}");
    }

    // `hash` imports nothing.
    site.install("acme", "gate", "hostile/selective", 2);
    assert_eq!(service.reload(), None);
    assert_eq!(decides(&service), first);
    let held_back = json(site, "list")["policies"][0]["held_back"].clone();
    assert_eq!(held_back["version"], 2);
    assert!(words(&ends(site, "list", 0)).contains("held back version 2"));

    // Neither without looking, nor another bundle than the one that was looked at.
    let text = ends(site, &format!("activate {GATE}"), 2);
    assert!(text.contains("+ import clock: new") && text.contains("--accept-capabilities"), "{text}");
    let other = Digest::of(b"another");
    let text = ends(site, &format!("activate {GATE} --accept-capabilities --bundle {other}"), 1);
    assert!(text.contains("deliver that one first"), "{text}");
    assert_eq!(decides(&service), first);

    let digest = bundle_digest(site);
    let done = json(site, &format!("activate {GATE} --accept-capabilities --bundle {digest}"));
    assert_eq!((&done["outcome"], &done["active"]["config"]["version"]), (&"done".into(), &2.into()));
    assert_ne!(decides(&service), first);
    let text = ends(site, &format!("activate {GATE}"), 0);
    assert!(words(&text).contains("version 2, as before"), "{text}");

    let events = json(site, &format!("history {GATE}"))["events"].as_array().unwrap().clone();
    let what: Vec<_> = events.iter().map(|event| event["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["activated", "held_back", "activated"]);
    assert_eq!(events[2]["order"], done["order"]);
    let text = ends(site, "history -n 1", 0);
    assert!(text.contains("acme/gate  activated  version 2") && !text.contains("HELD BACK"), "{text}");
    assert!(ends(site, "history --tenant globex", 0).contains("nothing has happened"));
}

#[test]
fn a_version_comes_back_and_stays_until_an_operator_says_otherwise() {
    let service = site().start();
    let site = &service.site;
    let text = ends(site, &format!("rollback {GATE} --reason none"), 1);
    assert!(text.contains("keeps no earlier version"), "{text}");
    site.install("acme", "gate", "ip-allowlist", 2);
    assert_eq!(service.reload(), None);
    assert_eq!(active_version(site), 2);

    let text = ends(site, &format!("rollback {GATE} --to-version 9 --reason no~such~version"), 2);
    assert!(text.starts_with("refused "), "{text}");
    assert_eq!(active_version(site), 2);
    let text = ends(site, &format!("rollback {GATE} --reason it~lets~too~much~through"), 0);
    assert!(words(&text).contains("policy gate for tenant acme: version 1"), "{text}");
    assert!(words(&text).contains("versions up to 2, until `portcullis policy activate`"), "{text}");
    // The store still has the newer one.
    assert_eq!(service.reload(), None);
    assert_eq!(active_version(site), 1);
    let text = ends(site, "history", 0);
    assert!(text.contains("rolled back  version 1") && text.contains("it lets too much through"), "{text}");

    assert_eq!(json(site, &format!("activate {GATE}"))["outcome"], "done");
    assert_eq!(active_version(site), 2);

    // Left for later, it is carried out once.
    let left = json(site, &format!("rollback {GATE} --to-version 1 --reason later --no-reload"));
    assert_eq!((&left["outcome"], active_version(site)), (&"ordered".into(), 2.into()));
    assert_eq!(service.reload(), None);
    assert_eq!(active_version(site), 1);
    let text = ends(site, &format!("activate {GATE} --socket {}", site.path("nowhere.sock").display()), 3);
    assert!(text.contains("is the service running"), "{text}");
}

#[test]
fn what_is_revoked_stops_deciding_and_everybody_is_told_why() {
    let service = site().start();
    let site = &service.site;
    let outcome = || service.ask("acme", "gate", b"x").outcome;
    assert_eq!(outcome(), Outcome::Allow);
    fs::write(site.path("mine.key"), site.key.to_pem().unwrap().as_bytes()).unwrap();
    fs::write(site.path("other.key"), SigningKey::generate_ed25519().unwrap().to_pem().unwrap().as_bytes())
        .unwrap();
    let digest = bundle_digest(site);
    let revoke = |key: &str| format!("revoke --bundle {digest} --reason it~leaks --sign-key {key}");

    // Who may not revoke hears so, and nothing is written.
    let text = ends(site, &revoke("other.key"), 1);
    assert!(text.contains("would not take it"), "{text}");
    assert!(!site.path("store/revocations.json").exists());
    assert_eq!(outcome(), Outcome::Allow);

    let done = json(site, &revoke("mine.key"));
    assert_eq!((&done["version"], &done["in_force"]), (&1.into(), &true.into()));
    assert_eq!(done["out_of_service"][0]["policy"], "gate");
    assert!(done["out_of_service"][0]["why"].as_str().unwrap().contains("it leaks"), "{done}");
    assert!(matches!(outcome(), Outcome::Refused(Refusal::UnknownPolicy)), "{:?}", outcome());
    let text = ends(site, "list", 0);
    assert!(text.contains("version 1 DOES NOT SERVE") && words(&text).contains("it leaks"), "{text}");
    assert_eq!(json(site, "list")["revocations"], 1);
    assert!(text.contains("revocation list version 1 is in force"), "{text}");
    let text = ends(site, &revoke("mine.key"), 1);
    assert!(text.contains("is on the list already"), "{text}");

    // Without the file the list is still known: the next one goes on from it.
    fs::remove_file(site.path("store/revocations.json")).unwrap();
    let source = Digest::of(b"another source");
    let next = json(site, &format!("revoke --source {source} --reason x --sign-key mine.key"));
    assert_eq!(next["version"], 2);
    assert!(fs::read_to_string(site.path("store/revocations.json")).is_ok());
    assert!(matches!(outcome(), Outcome::Refused(_)));
    assert!(words(&ends(site, "history", 0)).contains("WITHDRAWN version 1"));
}

/// Who writes to the store would else have the operator sign that nothing is revoked any more.
#[test]
fn a_list_that_somebody_left_in_the_store_is_not_gone_on_from() {
    let service = site().start();
    let site = &service.site;
    fs::write(site.path("mine.key"), site.key.to_pem().unwrap().as_bytes()).unwrap();
    let list = site.path("store/revocations.json");
    let revoke = |source: &[u8]| {
        let source = Digest::of(source);
        let output = run(site, &format!("revoke --source {source} --reason x --sign-key mine.key --json"));
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{error}");
        let signed = RevocationList::peek(&fs::read(&list).unwrap()).unwrap();
        (signed.version, signed.revoked.len(), error)
    };
    assert_eq!(revoke(b"first"), (1, 1, String::new()));
    let stranger = SigningKey::generate_ed25519().unwrap();
    let nothing = RevocationList { version: 70, revoked: vec![] };
    fs::write(&list, nothing.sign(&stranger).unwrap()).unwrap();
    let (version, entries, error) = revoke(b"second");
    assert_eq!((version, entries), (2, 2), "{error}");
    assert!(error.contains("it is replaced"), "{error}");
    // Nothing is waited for either.
    fs::remove_file(&list).unwrap();
    nix::unistd::mkfifo(&list, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (version, entries, error) = revoke(b"third");
    assert_eq!((version, entries), (3, 3), "{error}");
    // Control: what a key that may revoke signed is gone on from, though the service has not taken it yet.
    fs::remove_file(&list).unwrap();
    let mut newer = json(site, "list")["revocations"].as_u64().unwrap();
    newer += 5;
    fs::write(&list, RevocationList { version: newer, revoked: vec![] }.sign(&site.key).unwrap()).unwrap();
    assert_eq!(revoke(b"fourth"), (newer + 1, 1, String::new()));
}

#[test]
fn a_table_that_is_broken_is_begun_anew_on_an_operators_word_only() {
    let service = site().start();
    let recover = "trust recover --reason the~disk~died";
    let text = ends(&service.site, recover, 1);
    assert!(text.contains("is whole: there is nothing to recover from"), "{text}");

    let site = service.into_site();
    let table = site.path("state/table.json");
    let text = fs::read_to_string(&table).unwrap();
    fs::write(&table, text.replacen("\"floor\":1", "\"floor\":0", 1)).unwrap();
    let error = ends(&site, "list", 1);
    assert!(error.contains("table.json"), "{error}");
    let ordered = json(&site, recover);
    assert!(ordered["broken"].as_str().unwrap().contains("table.json"), "{ordered}");

    let service = site.start();
    assert!(decides(&service).is_some());
    let what = json(&service.site, "history")["events"].clone();
    assert!(what.as_array().unwrap().iter().any(|event| event["what"] == "recovered"), "{what}");
}
