//! The life of tenants with a whole service: `portcullis tenant add | suspend | resume | remove | list | show`, cut at every step,
//! two at one time, with a neighbour who has the same code, and with files that somebody has spoilt.
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
#![allow(clippy::print_stdout, reason = "how many cuts there were")]

#[path = "power_cuts/cutting.rs"]
#[allow(dead_code, reason = "each test program uses its part")]
mod cutting;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use portcullis::client::blocking::Connection;
use portcullis::client::{ClientError, Deadline, Question};
use portcullis::decision::{Outcome, Refusal};
use portcullis::wire::client::Farewell;
use serde_json::Value;
use support::{PATIENCE, Service, Site, policy, tenant};

/// A neighbour in the configuration, and a directory of tenants without any.
fn site() -> Site {
    let mut site = Site::new().class("one", "").tenant("neighbour", "one", &[("gate", "hash")], "");
    let directory = site.path("tenants.d");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    site.service += &format!("tenants = {directory:?}\n");
    site
}

/// A site with acme's bundle delivered, for this user to ask for.
fn with_acme() -> Site {
    let site = site();
    site.install("acme", "gate", "hash", 1);
    site
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn add(name: &str) -> String {
    format!("add {name} --class one --policy gate --uid {} --max-deadline 60s --default-deadline 20s", uid())
}

fn command(site: &Site, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("tenant").args(arguments.split(' ')).arg("--config").arg(site.path("portcullis.toml"));
    command.env_remove("PORTCULLIS_OPERATOR_SOCKET").current_dir(site.dir.path());
    command
}

fn output(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

/// What a command said that ended with this code.
#[track_caller]
fn ends(site: &Site, arguments: &str, code: i32) -> String {
    let (found, text) = output(command(site, arguments).output().unwrap());
    assert_eq!(found, code, "{arguments}: {text}");
    text
}

#[track_caller]
fn says(site: &Site, arguments: &str, code: i32, what: &str) {
    let text = ends(site, arguments, code);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains(what), "{arguments}: {what:?} is not in\n{text}");
}

fn json(site: &Site, arguments: &str, code: i32) -> Value {
    let output = command(site, &format!("{arguments} --json")).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn file(site: &Site, name: &str) -> PathBuf {
    site.path("tenants.d").join(format!("{name}.toml"))
}

fn state(site: &Site, name: &str) -> Option<String> {
    let text = fs::read_to_string(file(site, name)).ok()?;
    let line = text.lines().find(|line| line.starts_with("state = ")).unwrap_or_else(|| panic!("{text}"));
    Some(line.trim_start_matches("state = ").trim_matches('"').to_owned())
}

fn unfinished(site: &Site) -> bool {
    site.path("tenants.d/.unfinished").exists()
}

/// Whether the exporter tells anything of it.
fn has_series(site: &Site, name: &str) -> bool {
    let mut stream = UnixStream::connect(site.path("run/telemetry.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains(" 200 "), "{text}");
    text.contains(&format!("tenant=\"{name}\""))
}

fn ask(connection: &mut Connection, name: &str) -> Outcome {
    let question = Question::opaque("", b"x");
    connection.send(&tenant(name), &policy("gate"), Deadline::Default, question.input()).unwrap();
    connection.flush().unwrap();
    connection.receive().unwrap().1.outcome
}

/// Has the service reload and says why it refused, if it did. What it told its manager meanwhile nobody has read.
fn reload(service: &Service) -> Option<String> {
    let socket = service.site.path("run/operator.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let (code, text) = output(command.arg("reload").arg("--socket").arg(socket).output().unwrap());
    assert!(code == 0 || text.contains("reload refused") || text.contains("not everybody"), "{code}: {text}");
    (code != 0).then_some(text)
}

/// Who is served; a tenant who is not is no tenant.
fn is_served(service: &Service, name: &str) -> bool {
    match service.try_connect(name) {
        Ok(mut connection) => match ask(&mut connection, name) {
            Outcome::Allow | Outcome::Deny { .. } => true,
            refused @ Outcome::Refused(_) => panic!("{refused:?}\n{}", service.log()),
        },
        Err(ClientError::Farewell(Farewell::NotPermitted)) => false,
        Err(error) => panic!("{error}\n{}", service.log()),
    }
}

#[test]
fn a_tenant_comes_is_suspended_comes_back_and_goes_for_good() {
    let service = with_acme().telemetry("").start();
    let site = &service.site;
    assert!(!is_served(&service, "acme") && is_served(&service, "neighbour"), "control");
    says(site, "list", 0, "neighbour active one");

    says(site, &add("acme"), 0, "active tenant acme since reload 1");
    assert!(is_served(&service, "acme"));
    assert_eq!((state(site, "acme").as_deref(), unfinished(site)), (Some("active"), false));
    says(site, "list", 0, "acme active one");
    assert_eq!(json(site, "show acme", 0)["served_with"]["policies"][0], "gate");
    for name in ["acme", "neighbour"] {
        says(site, &add(name), 1, "already");
    }

    // It hears of a reload after the others: control.
    let patience = Instant::now() + PATIENCE;
    while !(has_series(site, "acme") && has_series(site, "neighbour")) {
        assert!(Instant::now() < patience, "no series of it");
    }
    let done = json(site, "suspend acme", 0);
    assert_eq!((&done["outcome"], &done["state"]), (&"done".into(), &"suspended".into()), "{done}");
    assert!(!is_served(&service, "acme") && is_served(&service, "neighbour"));
    says(site, "suspend acme", 0, "as before");
    says(site, "list --state suspended", 0, "acme suspended one");
    says(site, "resume acme", 0, "active tenant acme");
    assert!(is_served(&service, "acme"));

    let gone = json(site, "remove acme", 0);
    assert_eq!(gone["state"], "removed", "{gone}");
    assert!(
        gone["residue"]["places"]
            .as_array()
            .unwrap()
            .iter()
            .all(|place| place["left"] == Value::Array(vec![]))
    );
    assert!(gone["residue"]["places"].as_array().unwrap().iter().any(|place| place["place"] == "metrics"));
    assert!(!has_series(site, "acme") && has_series(site, "neighbour"));
    assert!(gone["residue"]["store"].as_str().unwrap().contains("--purge-store"), "{gone}");
    assert!(site.path("store/acme/gate").exists(), "that is the operator's");
    assert!(!is_served(&service, "acme") && is_served(&service, "neighbour"));
    says(site, &add("acme"), 1, "a name is never used again: choose another name");
    for verb in ["suspend", "resume"] {
        says(site, &format!("{verb} acme"), 1, "tenant acme is removed");
    }
    says(site, "remove acme --purge-store", 0, "bundles removed");
    assert!(!site.path("store/acme").exists());
    // Nor by who writes the configuration, nor after a restart.
    let path = site.path("portcullis.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[tenant.acme]\nclass = \"one\"\npolicies = []\nuids = [1]\n")).unwrap();
    let refused = reload(&service).unwrap();
    assert!(
        refused.contains("tenant \"acme\" was removed") && refused.contains("choose another name"),
        "{refused}"
    );
    fs::write(&path, text).unwrap();
    assert_eq!(reload(&service), None);
    let service = service.restart();
    assert!(!is_served(&service, "acme") && is_served(&service, "neighbour"));
}

#[test]
fn suspension_reaches_connections_that_are_open() {
    let site = with_acme();
    site.install("bystander", "gate", "hash", 1);
    let service = site.start();
    let site = &service.site;
    for name in ["acme", "bystander"] {
        ends(site, &add(name), 0);
    }
    let mut open = service.connect("acme");
    let mut ask = |name: &str| ask(&mut open, name);
    assert_eq!(ask("acme"), Outcome::Allow);
    ends(site, "suspend acme", 0);
    // The generation before may have it for a moment still, and gives it back.
    let mut answers = std::iter::repeat_with(|| ask("acme")).take_while(|one| *one == Outcome::Allow);
    assert!(answers.by_ref().take(1_000_000).count() < 1_000_000, "it still decides");
    assert_eq!(ask("acme"), Outcome::Refused(Refusal::NotPermitted), "on the same connection");
    assert_eq!(ask("bystander"), Outcome::Allow, "which goes on for others");
    ends(site, "resume acme", 0);
    let mut answers = std::iter::repeat_with(|| ask("acme")).take(1_000_000);
    assert!(answers.any(|one| one == Outcome::Allow), "never again");
}

#[test]
fn what_the_service_refuses_is_failed_and_says_why() {
    let service = with_acme().start();
    let site = &service.site;
    // What can be seen beforehand is never written.
    says(site, &add("acme").replace("--class one", "--class two"), 1, "there is no [class.two]");
    says(site, &format!("{} --weight 5000", add("acme")), 1, "weight: 5000 is out of range");
    says(site, &format!("{} --plan gold", add("acme")), 1, "there is no [plan.gold]");
    says(site, &format!("{} --set colour=red", add("acme")), 1, "unknown key \"colour\"");
    says(site, &add("other"), 1, "other");
    assert_eq!(state(site, "acme"), None);
    // What cannot: the registry's word.
    let trust = fs::read_to_string(site.path("trust.toml")).unwrap();
    fs::write(site.path("trust.toml"), "[signer").unwrap();
    says(site, &add("acme"), 1, "the service refused");
    assert_eq!((state(site, "acme").as_deref(), unfinished(site)), (Some("failed"), false));
    assert!(!is_served(&service, "acme") && is_served(&service, "neighbour"), "the last good goes on");
    says(site, "show acme", 0, "cause");
    let cause = json(site, "show acme", 0)["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("trust.toml"), "{cause}");
    // A failed one is in nobody's way.
    fs::write(site.path("trust.toml"), trust).unwrap();
    assert_eq!(reload(&service), None);
    says(site, "resume acme", 0, "active tenant acme");
    assert!(is_served(&service, "acme"));
    assert_eq!(json(site, "show acme", 0)["cause"], Value::Null);
    // What is refused does not become suspended either.
    let text = fs::read_to_string(site.path("portcullis.toml")).unwrap();
    fs::write(site.path("portcullis.toml"), text.replace("[class.one]", "[class.one]\ncolour = 1")).unwrap();
    says(site, "suspend acme", 1, "tenant acme is active");
    assert!(is_served(&service, "acme"));
    says(site, "remove acme", 1, "still serves it");
    assert!(unfinished(site));
    fs::write(site.path("portcullis.toml"), text).unwrap();
    says(site, "remove acme", 0, "finished remove of tenant acme");
    assert!(!is_served(&service, "acme") && !unfinished(site));
}

/// Whoever lets processes of the service open no more than this many files from now on.
const FILES: u32 = 6000;

/// A class that would not start with the new configuration is not in the way of tenants of another one.
#[test]
fn a_class_that_does_not_follow_is_a_warning_to_tenants_of_others() {
    if !support::is_root() {
        println!("skipped: changing the limits of another process takes root; run the tests with sudo");
        return;
    }
    let site =
        with_acme().class("two", "connections = 64\n").tenant("other-one", "two", &[("gate", "hash")], "");
    for name in ["fresh", "far"] {
        site.install(name, "gate", "hash", 1);
    }
    let service = site.start();
    let site = &service.site;
    ends(site, &add("acme"), 0);
    ends(site, &add("fresh").replace("fresh", "old"), 0);
    ends(site, &add("far").replace("--class one", "--class two"), 0);
    // More connections than it may have descriptors: this class's next worker does not start.
    let spawner = service.processes().into_iter().find(|one| one.role == "spawner").unwrap();
    let limit = Command::new("prlimit")
        .args([format!("--pid={}", spawner.pid), format!("--nofile={FILES}:{FILES}")])
        .status()
        .unwrap();
    assert!(limit.success());
    let path = site.path("portcullis.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("connections = 64\n", &format!("connections = {}\n", FILES + 1000)))
        .unwrap();
    assert!(reload(&service).unwrap().contains("worker two"), "control");

    says(site, "suspend acme", 0, "WARNING not everybody follows this reload");
    assert_eq!((state(site, "acme").as_deref(), is_served(&service, "acme")), (Some("suspended"), false));
    let done = json(site, "resume acme", 0);
    assert_eq!((&done["outcome"], &done["state"]), (&"done".into(), &"active".into()), "{done}");
    assert!(done["why"].as_str().unwrap().contains("worker two"), "{done}");
    says(site, &add("fresh"), 0, "active tenant fresh");
    assert!(is_served(&service, "acme") && is_served(&service, "fresh") && is_served(&service, "other-one"));
    says(site, "remove old", 0, "WARNING not everybody follows this reload");
    assert_eq!((state(site, "old").as_deref(), unfinished(site)), (Some("removed"), false));

    // Its own class's tenants are told, and wait for no good news.
    says(site, "suspend far", 1, "its class goes on with what it had; tenant far is suspended");
    assert_eq!(state(site, "far").as_deref(), Some("suspended"));
    says(site, "resume far", 1, "tenant far is failed");
    says(site, "remove far", 1, "its class did not start without it");
    assert_eq!((state(site, "far").as_deref(), unfinished(site)), (Some("removed"), true));
    // What is not over there keeps nobody else from their work.
    says(site, "suspend acme", 0, "remove of tenant far, which was interrupted: refused now");
    assert_eq!((state(site, "acme").as_deref(), is_served(&service, "acme")), (Some("suspended"), false));

    fs::write(&path, text).unwrap();
    says(site, "remove far", 0, "removed tenant far");
    assert!(is_served(&service, "other-one") && !is_served(&service, "far") && !unfinished(site));
}

#[test]
fn where_nobody_answers_nothing_is_changed() {
    let site = with_acme();
    site.make_state();
    fs::write(site.path("portcullis.toml"), site.config()).unwrap();
    says(&site, &add("acme"), 3, "nothing was changed");
    assert_eq!((state(&site, "acme"), unfinished(&site)), (None, false));
    says(&site, "list", 0, "neighbour active");
}

/// Ends each command before each of its changes to the disk; then another command comes.
#[test]
fn a_command_that_ends_anywhere_is_taken_up_by_the_next() {
    let service = with_acme().start();
    let site = &service.site;
    let directory = site.path("tenants.d");
    let (mut number, mut cuts) = (0, 0);
    let mut met = std::collections::BTreeSet::new();
    for (verb, from, to) in [
        ("add", None, Some("active")),
        ("suspend", Some("active"), Some("suspended")),
        ("remove", Some("active"), Some("removed")),
    ] {
        for cut in 0.. {
            number += 1;
            let name = format!("t{number}");
            site.install(&name, "gate", "hash", 1);
            if from.is_some() {
                ends(site, &add(&name), 0);
            }
            let line = if verb == "add" { add(&name) } else { format!("{verb} {name}") };
            let run = cutting::run(&command(site, &line), &directory, Some(cut));
            assert_eq!(run.careless, Vec::<String>::new(), "{line}");
            if run.code.is_some() {
                assert_eq!((run.code, state(site, &name).as_deref()), (Some(0), to), "{line}");
                break;
            }
            cuts += 1;
            let (begun, interrupted) = (unfinished(site), state(site, &name));
            met.insert((verb, begun, interrupted.clone()));
            // At any moment it is a configuration.
            assert_eq!(reload(&service), None, "{line}, cut before change {cut}");
            // Somebody else's command.
            says(site, "resume neighbour", 1, "change [tenant.neighbour] there");
            let found = state(site, &name);
            assert!(!unfinished(site), "{line}, cut before change {cut}");
            // What has begun ends; what has not, or only means to, is as it was; and at the very end all is done.
            let expected = match (begun, &interrupted) {
                (true, Some(_)) => to,
                (true, None) => from,
                (false, there) => there.as_deref(),
            };
            assert_eq!(found.as_deref(), expected, "{line}, cut before change {cut}");
            assert!(begun || [from, to].contains(&found.as_deref()), "{line}, cut before change {cut}");
            assert_eq!(is_served(&service, &name), found.as_deref() == Some("active"), "{line}, cut {cut}");
            let left =
                fs::read_dir(&directory).unwrap().flatten().map(|one| one.file_name().into_string().unwrap());
            assert_eq!(left.filter(|name| name.ends_with(".tmp")).count(), 0);
        }
    }
    println!("{cuts} cuts, {met:?}");
    let met = |verb, begun, state: Option<&str>| met.contains(&(verb, begun, state.map(str::to_owned)));
    assert!(met("add", false, None) && met("add", true, None), "before anything was there");
    assert!(met("add", true, Some("pending")) && met("add", true, Some("active")));
    assert!(met("suspend", true, Some("active")) && met("suspend", true, Some("suspended")));
    assert!(met("remove", true, Some("active")) && met("remove", true, Some("removed")));
}

#[test]
fn two_commands_at_one_time_come_one_after_the_other() {
    let site = site();
    for name in ["red", "green", "blue"] {
        site.install(name, "gate", "hash", 1);
    }
    let service = site.start();
    let site = &service.site;
    let run =
        |name: &str| command(site, &add(name)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The last two want the same name.
    let running = [run("red"), run("green"), run("blue"), run("blue")];
    let mut ended: Vec<(i32, String)> =
        running.into_iter().map(|one| output(one.wait_with_output().unwrap())).collect();
    let twice = ended.split_off(2);
    assert!(ended.iter().all(|(code, _)| *code == 0), "{ended:?}");
    assert_eq!(twice.iter().filter(|(code, _)| *code == 0).count(), 1, "{twice:?}");
    assert!(twice.iter().any(|(code, text)| *code == 1 && text.contains("is there already")), "{twice:?}");
    assert!(["red", "green", "blue"].iter().all(|name| is_served(&service, name)));
}

/// Code that was compiled here is in the class's cache, once for all who have it.
#[test]
fn what_a_neighbour_has_too_stays_the_neighbours() {
    let site = site();
    // Without code in the bundle a builder compiles it.
    for (name, component) in [("acme", "hash"), ("twin", "hash"), ("acme-2", "ip-allowlist")] {
        let mut draft = support::draft(component, name, "gate", 1);
        draft.compiled.clear();
        support::write_signed(draft, &site.bundle(name, "gate"), &site.key);
    }
    let service = site.start();
    let site = &service.site;
    for name in ["acme", "twin", "acme-2"] {
        ends(site, &add(name), 0);
    }
    let cached = || fs::read_dir(site.path("cache/one")).unwrap().count();
    let kept = || fs::read_dir(site.path("state/bundles")).unwrap().count();
    assert_eq!(
        (cached(), kept()),
        (2, 4),
        "one for two, and one; with the neighbour's, which has its own code"
    );
    // Something that nobody's version names any more: perhaps it was this tenant's.
    let orphan = site.path("cache/one").join(format!("{}.cwasm", "ab".repeat(32)));
    fs::write(&orphan, b"superseded").unwrap();

    says(site, "remove acme", 0, "removed tenant acme");
    assert_eq!((cached(), kept(), orphan.exists()), (2, 3, false));
    assert!(is_served(&service, "twin") && is_served(&service, "acme-2"));
    says(site, "remove acme-2", 0, "removed tenant acme-2");
    assert_eq!((cached(), kept()), (1, 2));
    // The twin's is whole: it is served from there after a restart, without another compilation.
    let service = service.restart();
    assert!(is_served(&service, "twin"));
    let table = fs::read_to_string(service.site.path("state/table.json")).unwrap();
    assert!(
        !table.contains("\"tenant\":\"acme\",\"policy\":\"") && table.contains("tenant_removed"),
        "{table}"
    );
    assert!(!table.contains("\"rebuilt\":1"), "{table}");
}

/// Somebody may have made up their mind since.
#[test]
fn an_unfinished_command_does_not_bring_back_who_was_removed_meanwhile() {
    let service = with_acme().start();
    let site = &service.site;
    for operation in ["add", "resume", "suspend"] {
        fs::write(file(site, "acme"), "state = \"removed\"\nclass = \"one\"\n").unwrap();
        let intent = format!("{{\"operation\":\"{operation}\",\"tenant\":\"acme\"}}");
        fs::write(site.path("tenants.d/.unfinished"), intent).unwrap();
        says(site, "resume neighbour", 1, "change [tenant.neighbour] there");
        assert_eq!(
            (state(site, "acme").as_deref(), unfinished(site)),
            (Some("removed"), false),
            "{operation}"
        );
    }
    says(site, &add("acme"), 1, "a name is never used again");
}

#[test]
fn what_is_left_is_said() {
    let service = with_acme().start();
    let site = &service.site;
    ends(site, &add("acme"), 0);
    says(site, "remove acme", 0, "removed tenant acme");
    let spoilt = site.path("cache/one").join(format!("{}.cwasm", "cd".repeat(32)));
    fs::write(&spoilt, b"nobody's").unwrap();
    says(site, "remove acme", 2, "LEFT");
    fs::remove_file(spoilt).unwrap();
    says(site, "remove acme", 0, "none of which has it");
}

#[test]
fn files_that_somebody_spoilt_stop_a_reload_and_nobody_who_is_served() {
    let service = with_acme().start();
    let site = &service.site;
    ends(site, &add("acme"), 0);
    let good = fs::read_to_string(file(site, "acme")).unwrap();
    let long = format!("{good}# {}", "x".repeat(70_000));
    for (name, text, why) in [
        ("bad", "state = \"active\"\nclass = \"one\"\n", "\"policies\" is missing"),
        ("bad", "state = \"gone\"\n", "is no state"),
        ("bad", "class = \"one\"\n", "\"state\" is missing"),
        ("bad", "state = [[[[", "bad.toml:1:"),
        ("bad", "state = \"suspended\"\nx = \u{0}", "bad.toml:2:"),
        ("Bad", good.as_str(), "is no tenant's file"),
        ("bad", long.as_str(), "longer than 65536 bytes"),
        ("neighbour", good.as_str(), "tenant \\\"neighbour\\\" is also in"),
        ("other", good.as_str(), "other"),
    ] {
        fs::write(file(site, name), text).unwrap();
        let refused = reload(&service).unwrap_or_else(|| panic!("{name}: {text:?} was accepted"));
        assert!(refused.contains(&why.replace("\\\"", "\"")), "{why}: {refused}");
        assert!(is_served(&service, "acme") && is_served(&service, "neighbour"));
        fs::remove_file(file(site, name)).unwrap();
    }
    symlink("/etc/passwd", file(site, "link")).unwrap();
    nix::unistd::mkfifo(&file(site, "pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(site.path("tenants.d/notes.txt"), "").unwrap();
    let refused = reload(&service).unwrap();
    for why in ["link.toml", "pipe.toml:1:1: open tenant", "not a regular file", "notes.txt"] {
        assert!(refused.contains(why), "all at once: {why}: {refused}");
    }
    for name in ["link.toml", "pipe.toml", "notes.txt"] {
        fs::remove_file(site.path("tenants.d").join(name)).unwrap();
    }
    fs::write(site.path("tenants.d/.swap"), "whatever").unwrap();
    assert_eq!(reload(&service), None, "control");
    // An intent that is none is not guessed at.
    fs::write(site.path("tenants.d/.unfinished"), "{\"operation\":\"sell\"}").unwrap();
    says(site, "suspend acme", 1, ".unfinished");
    fs::remove_file(site.path("tenants.d/.unfinished")).unwrap();
    says(site, "suspend acme", 0, "suspended tenant acme");
}
