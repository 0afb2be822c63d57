use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::accounts::{HostFunction, Rate};
use crate::supervisor::books::Books;

const TRUST: &str = "# who may sign\n";

/// A directory with everything that a sound configuration names, and the text of one.
struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { directory: tempfile::tempdir().expect("tempdir") };
        for directory in ["run", "store", "state", "trust", "cache-a", "cache-b"] {
            fs::create_dir(site.path(directory)).expect("mkdir");
            site.chmod(directory, 0o700);
        }
        fs::write(site.path("trust/trust.toml"), TRUST).expect("trust policy");
        site.chmod("trust/trust.toml", 0o644);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }

    fn chown(&self, name: &str, uid: u32) {
        nix::unistd::chown(&self.path(name), Some(uid.into()), Some(uid.into())).expect("chown, as root");
    }

    /// A sound configuration; `@` stands for the directory.
    fn sound() -> String {
        r#"
[service]
socket = "@/run/decide.sock"
operator_socket = "@/run/operator.sock"
operators = [0, 1000]
store = "@/store"
state = "@/state"
trust = "@/trust/trust.toml"
[frontend]
uid = 61000
gid = 61000
[registry]
uid = 61009
gid = 61009
[class.a]
uid = 61001
gid = 61001
cache = "@/cache-a"
threads = 2
[class.b]
uid = 61002
gid = 61002
cache = "@/cache-b"
[tenant.acme]
class = "a"
policies = ["jwt-gate", "ip-allowlist"]
uids = [1000]
max_deadline = "50ms"
[tenant.blue]
class = "b"
policies = []
gids = [1001]
"#
        .to_owned()
    }

    fn load(&self, text: &str, around: &Surroundings) -> Result<Config, ConfigErrors> {
        let path = self.path("portcullis.toml");
        fs::write(&path, text.replace('@', &self.directory.path().display().to_string())).expect("write");
        self.chmod("portcullis.toml", 0o644);
        load(&path, around)
    }

    /// The errors' `line:column: message`, with `@` for the directory.
    fn errors(&self, text: &str, around: &Surroundings) -> Vec<String> {
        let directory = self.directory.path().display().to_string();
        let all = self.load(text, around).expect_err("must be refused").to_string();
        let prefix = format!("{directory}/portcullis.toml:");
        all.lines()
            .map(|line| line.strip_prefix(&prefix).expect("path first").replace(&directory, "@"))
            .collect()
    }
}

/// One UID for all: what an ordinary user has.
fn ordinary() -> Surroundings {
    Surroundings {
        isolation: Isolation::SharedUid,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        cores: 2,
        systemd: false,
        credentials: None,
    }
}

fn privileged() -> Surroundings {
    Surroundings { isolation: Isolation::DistinctUids, ..ordinary() }
}

fn sound_and(change: impl FnOnce(String) -> String) -> String {
    change(Site::sound())
}

#[track_caller]
fn only_error(change: impl FnOnce(String) -> String, expected: &str) {
    let errors = Site::new().errors(&sound_and(change), &ordinary());
    assert_eq!(errors, [expected]);
}

/// With everybody of this configuration in them.
fn books(config: &Config) -> Books {
    let mut books = Books::open(config.classes.iter().map(|class| &class.name)).expect("memory");
    books.enter(config).expect("room");
    books
}

#[test]
fn a_sound_file_becomes_assignments() {
    let site = Site::new();
    let config = site.load(&Site::sound(), &ordinary()).expect("sound");
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!(config.frontend.identity.uid, own, "without privilege all share the caller's UID");

    let frontend = config.frontend_assignment(Isolation::SharedUid);
    assert_eq!(frontend.hello_timeout_ms, 1000);
    assert_eq!(frontend.max_connections_per_uid, 512, "half of a class's");
    assert_eq!(frontend.operators, [0, 1000]);
    assert_eq!(frontend.tenants.len(), 2);
    assert_eq!(frontend.tenants[0].tenant.as_str(), "acme");
    assert_eq!(
        (frontend.tenants[0].uids.as_slice(), frontend.tenants[1].gids.as_slice()),
        (&[1000][..], &[1001][..])
    );

    let worker =
        config.worker_assignment(&books(&config), &config.classes[0], 7, Isolation::SharedUid, "key");
    assert_eq!((worker.class.as_str(), worker.generation), ("a", 7));
    assert_eq!(worker.host_key, "key");
    assert_eq!(worker.limits.memory, 4 << 20);
    assert_eq!(worker.tenants.len(), 1, "only the class's own tenants");
    assert_eq!(worker.tenants[0].policies.len(), 2);
    assert_eq!((worker.tenants[0].max_deadline_us, worker.tenants[0].default_deadline_us), (50_000, 20_000));

    let registry = config.registry_assignment(&books(&config), Isolation::SharedUid);
    assert_eq!(registry.uid, own);
    assert_eq!(registry.trust.text, TRUST, "as it is written: nobody here understands it");
    assert_eq!(registry.state, site.path("state").display().to_string());
    assert_eq!(registry.keep_previous, 3);
    assert_eq!(registry.tenants.len(), 2, "those of every class");
    assert_eq!(registry.tenants[0].policies.len(), 2);
    assert_eq!(registry.classes.len(), 2);

    let builder = config.builder_assignment(&config.classes[1], Isolation::SharedUid);
    assert_eq!(builder.cache, site.path("cache-b").display().to_string());
    assert_eq!(builder.memory, 4 << 20);
    assert_eq!(builder.limits, BuildLimits { cpu: 30, memory: 1 << 30, output: 64 << 20 });
    assert_eq!(config.builder.wall, Duration::from_secs(60));
}

#[test]
fn what_a_builder_may_use_is_written_or_taken_for_granted() {
    let with = |lines: &str| sound_and(|text| format!("{text}[builder]\n{lines}"));
    let config = Site::new()
        .load(&with("cpu = \"2m\"\nmemory = \"512MiB\"\nwall = \"5m\"\noutput = \"1MiB\"\n"), &ordinary())
        .expect("sound");
    assert_eq!(config.builder.limits, BuildLimits { cpu: 120, memory: 512 << 20, output: 1 << 20 });
    assert_eq!(config.builder.wall, Duration::from_secs(300));
    for (line, why) in [
        ("cpu = \"0s\"", "cpu: \"0s\" is out of range, expected 1s to 3600s"),
        ("cpu = \"1500ms\"", "cpu: the kernel counts whole seconds of processor time"),
        ("memory = \"1MiB\"", "memory: \"1MiB\" is out of range, expected 67108864 to 1099511627776 bytes"),
        ("wall = \"2h\"", "wall: \"2h\" is out of range, expected 1s to 3600s"),
        ("output = \"2GiB\"", "output: \"2GiB\" is out of range, expected 1048576 to 1073741824 bytes"),
    ] {
        let errors = Site::new().errors(&with(line), &ordinary());
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].ends_with(why), "{errors:?}");
    }
}

#[test]
fn all_errors_are_reported_together_each_at_its_place() {
    let site = Site::new();
    let text = r#"
[service]
socket = "run/decide.sock"
operator_socket = "@/run/operator.sock"
store = "@/nothing-here"
state = "@/cache-b"
trust = 5
keep_previous = 101
drain = "soon"
colour = "red"
[class.A]
cache = "@/cache-a"
threads = 99
[class.b]
cache = "@/cache-a"
memory = "4MB"
memory_max = "512"
tasks_max = "max"
[tenant.acme]
class = "c"
policies = ["../x"]
uids = [65534, 4294967295, -1]
"#;
    let expected = [
        "3:10: socket: \"run/decide.sock\" is not an absolute path without \"..\"",
        "5:9: open store \"@/nothing-here\": No such file or directory (os error 2)",
        "7:9: trust: expected a string, found integer",
        "8:17: keep_previous: 101 is out of range, expected 0 to 100",
        "9:9: drain: \"soon\" is not a duration; write a number and us, ms, s, m or h",
        "10:1: [service]: unknown key \"colour\"; known are: answer_within, drain, keep_previous, operator_socket, \
         operators, require_distinct_uids, socket, socket_mode, state, store, tenants, trust",
        "11:8: name \"A\": must start with a letter a-z or a digit",
        "13:11: threads: 99 is out of range, expected 1 to 2",
        "15:9: cache: \"@/cache-a\" is another class's cache too",
        "16:10: memory: \"4MB\" is not a size; write a number and B, KiB, MiB or GiB",
        "17:14: memory_max: \"512\" is not a size; write a number and B, KiB, MiB or GiB",
        "18:13: tasks_max: expected a whole number, found string",
        "20:9: class: there is no [class.c]",
        "21:13: policies: name \"../x\": must start with a letter a-z or a digit",
        "22:9: uids: 65534 stands for every user that has no UID here; it is never granted",
        "22:16: uids: 4294967295 is not a UID or GID",
        "22:28: uids: -1 is out of range, expected 0 to 4294967295",
    ];
    assert_eq!(site.errors(text, &ordinary()), expected);
}

#[test]
fn nonsense_in_the_syntax_does_not_hide_the_other_errors() {
    let errors = Site::new()
        .errors(&sound_and(|text| text.replace("threads = 2", "threads = = 2\nqueue = 0")), &ordinary());
    assert!(errors.iter().any(|error| error.starts_with("19:11: extra")), "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("20:9: queue: 0 is out of range")), "{errors:?}");
    assert!(!errors.iter().any(|error| error.contains("threads:")), "no guess at what was meant: {errors:?}");
}

/// What does not fit would be found out by whichever policy is the first to ask for another engine, in a worker that serves.
#[test]
fn instances_for_which_a_process_has_no_address_space_are_refused() {
    let class =
        |lines: &str| sound_and(|text| text.replace("threads = 2\n", &format!("threads = 2\n{lines}\n")));
    for (lines, why) in [
        (
            "instances = 1600\nstack = \"1MiB\"",
            "instances: 1600 in each of the 10 engines that policies may ask for (stacks of 64 to 1024 KiB, with fuel and \
             without) reserve 126 TiB of address space, a worker has 91 for them; at most 1164, or a smaller stack, or \
             fuel for all, or another class",
        ),
        (
            "instances = 16384\nstack = \"64KiB\"\nfuel = 1000",
            "instances: 16384 in each of the 2 engines that policies may ask for (stacks of 64 to 64 KiB) reserve 258 TiB of \
             address space, a worker has 54 for them; at most 3492, or a smaller stack, or fuel for all, or another class",
        ),
    ] {
        assert_eq!(Site::new().errors(&class(lines), &ordinary()), [format!("20:13: {why}")]);
    }
    for lines in ["instances = 1164\nstack = \"1MiB\"", "instances = 1746", "instances = 2328\nfuel = 1000"] {
        Site::new().load(&class(lines), &ordinary()).expect(lines);
    }
}

#[test]
fn a_tenant_in_two_classes_is_a_duplicate() {
    let text = sound_and(|text| text + "[tenant.acme]\nclass = \"b\"\npolicies = []\nuids = [1]\n");
    let errors = Site::new().errors(&text, &ordinary());
    assert_eq!(errors[0], "33:9: duplicate key \"acme\"");
}

#[test]
fn unknown_sections_are_named() {
    only_error(
        |text| text + "[gate]\nport = 1\n",
        "33:2: file: unknown key \"gate\"; known are: builder, class, frontend, gateway, plan, registry, \
         service, telemetry, tenant",
    );
}

#[test]
fn missing_parts_are_named() {
    let errors = Site::new().errors("", &privileged());
    let expected = ["[class.<name>]", "[frontend]", "[registry]", "service"]
        .map(|name| format!("1:1: file: \"{name}\" is missing"));
    assert_eq!(errors, expected);
    only_error(
        |text| text.replace("uids = [1000]\n", ""),
        "24:9: [tenant.acme]: \"uids\" or \"gids\" is missing",
    );
}

#[test]
fn state_and_trust_policy_are_needed() {
    for (line, key) in [("state = \"@/state\"\n", "state"), ("trust = \"@/trust/trust.toml\"\n", "trust")] {
        only_error(|text| text.replace(line, ""), &format!("2:2: [service]: \"{key}\" is missing"));
    }
}

#[test]
fn the_key_list_of_earlier_versions_is_named() {
    let errors = Site::new().errors(
        &sound_and(|text| text.replace("operators =", "trusted_keys = [\"/k.pub\"]\noperators =")),
        &ordinary(),
    );
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("5:1: [service]: unknown key \"trusted_keys\""), "{errors:?}");
}

#[test]
fn state_and_cache_are_two_directories() {
    only_error(
        |text| text.replace("@/state", "@/cache-a"),
        "18:9: cache: \"@/cache-a\" is the registry's state too",
    );
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (key, value, why) in [
        ("weight", "0", "0 is out of range, expected 1 to 1000"),
        ("weight", "1001", "1001 is out of range, expected 1 to 1000"),
        ("weight", "99999999999999999999", "99999999999999999999 is out of range, expected 1 to 1000"),
        ("weight", "1.5", "expected a whole number, found float"),
        ("max_deadline", "\"1us\"", "\"1us\" is out of range, expected 100µs to 60s"),
        (
            "max_deadline",
            "\"99999999999999999999h\"",
            "\"99999999999999999999h\" is not a duration; write a number and us, ms, s, m or h",
        ),
        (
            "max_deadline",
            "\"9999999999999999h\"",
            "\"9999999999999999h\" is out of range, expected 100µs to 60s",
        ),
        ("max_deadline", "5", "expected a string, found integer"),
        ("default_deadline", "\"51ms\"", "is longer than max_deadline, 50ms"),
    ] {
        let line = match key {
            "max_deadline" => {
                sound_and(|text| text.replace("max_deadline = \"50ms\"", &format!("{key} = {value}")))
            }
            _ => sound_and(|text| text.replace("uids = [1000]", &format!("uids = [1000]\n{key} = {value}"))),
        };
        let errors = Site::new().errors(&line, &ordinary());
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].ends_with(&format!(" {key}: {why}")), "{errors:?}");
    }
}

#[test]
fn limits_of_a_class_that_no_worker_could_live_within_are_refused() {
    for (line, why) in [
        (
            "memory_max = \"15MiB\"",
            "memory_max: \"15MiB\" is out of range, expected 16777216 to 1099511627776 bytes",
        ),
        (
            "memory_max = \"1025GiB\"",
            "memory_max: \"1025GiB\" is out of range, expected 16777216 to 1099511627776 bytes",
        ),
        ("tasks_max = 0", "tasks_max: 0 is out of range, expected 1 to 4194304"),
        ("tasks_max = 35", "tasks_max: 35 is less than 36, 6 generations of 2 threads and 4 more"),
    ] {
        let text = sound_and(|text| text.replace("threads = 2\n", &format!("threads = 2\n{line}\n")));
        let errors = Site::new().errors(&text, &ordinary());
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("20:") && errors[0].ends_with(why), "{errors:?}");
    }
    let text = sound_and(|text| {
        text.replace("threads = 2\n", "threads = 2\nmemory_max = \"16MiB\"\ntasks_max = 36\n")
            .replace("cache = \"@/cache-b\"\n", "cache = \"@/cache-b\"\nmemory_max = \"1024GiB\"\n")
    });
    let config = Site::new().load(&text, &ordinary()).expect("sound");
    let (a, b) = (config.classes[0].group, config.classes[1].group);
    assert_eq!(a, GroupLimits { memory_max: Some(16 << 20), tasks_max: Some(36) });
    assert_eq!(b, GroupLimits { memory_max: Some(1 << 40), tasks_max: None });
}

#[test]
fn lists_with_an_entry_twice_are_refused() {
    only_error(|text| text.replace("[1000]\n", "[1000, 1000]\n"), "27:15: uids: listed twice");
}

#[test]
fn both_sockets_in_one_place_are_refused() {
    only_error(
        |text| text.replace("operator.sock", "decide.sock"),
        "4:19: operator_socket: is the same as socket",
    );
}

/// From outside, a file that is not as it must be is no reason to know nothing of the others.
#[test]
fn a_look_gives_what_is_written_and_what_is_wrong_with_it() {
    let site = Site::new();
    let path = site.path("portcullis.toml");
    let text = Site::sound().replace('@', &site.directory.path().display().to_string());
    fs::write(&path, &text).expect("write");
    site.chmod("portcullis.toml", 0o644);
    let (config, said) = look(&path, &ordinary()).expect("look");
    assert_eq!((load(&path, &ordinary()), said), (Ok(config.clone()), Ok(())));
    site.chmod("cache-a", 0o755);
    let (mut same, said) = look(&path, &ordinary()).expect("look");
    // Which directory it is is not asked of one that is not as it must be.
    same.classes[0].cache_inode = config.classes[0].cache_inode;
    assert_eq!(same, config);
    let said = said.expect_err("wrong").to_string();
    assert!(said.contains("mode 0755, expected 0700"), "{said}");
    load(&path, &ordinary()).expect_err("refused all the same");
    fs::write(&path, text.replace("[service]", "[servce]")).expect("write");
    look(&path, &ordinary()).expect_err("nothing to look at");
}

#[test]
fn what_others_may_write_is_refused() {
    for (name, mode, expected) in [
        (
            "run",
            0o777,
            "3:10: open socket's directory \"@/run\": others may write it (mode 0777); chmod go-w @/run",
        ),
        (
            "trust/trust.toml",
            0o664,
            "8:9: open trust policy \"@/trust/trust.toml\": others may write it (mode 0664); chmod go-w \
             @/trust/trust.toml",
        ),
        (
            "trust",
            0o777,
            "8:9: open trust policy \"@/trust/trust.toml\": others may write \"@/trust\" above it (mode 0777); chmod \
             go-w it",
        ),
        ("state", 0o750, "7:9: open state \"@/state\": mode 0750, expected 0700; chmod 0700 @/state"),
        ("cache-a", 0o750, "18:9: open cache \"@/cache-a\": mode 0750, expected 0700; chmod 0700 @/cache-a"),
    ] {
        let site = Site::new();
        site.chmod(name, mode);
        let errors = site.errors(&Site::sound(), &ordinary());
        assert_eq!(errors.first().map(String::as_str), Some(expected));
        site.chmod(name, 0o700);
        site.load(&Site::sound(), &ordinary()).expect("the mode was all that was wrong");
    }
}

/// What is in there is not trusted, so it may be anybody's; a group of those who deliver may write it.
#[test]
fn whose_the_store_is_does_not_matter() {
    let site = Site::new();
    site.chmod("store", 0o2775);
    site.load(&Site::sound(), &ordinary()).expect("sound");
    fs::remove_dir(site.path("store")).expect("rmdir");
    fs::write(site.path("store"), "").expect("write");
    let errors = site.errors(&Site::sound(), &ordinary());
    assert_eq!(errors, ["6:9: open store \"@/store\": Not a directory (os error 20)"]);
}

#[test]
fn a_configuration_others_may_write_is_refused() {
    let site = Site::new();
    site.load(&Site::sound(), &ordinary()).expect("sound");
    site.chmod("portcullis.toml", 0o666);
    let error = load(&site.path("portcullis.toml"), &ordinary()).expect_err("writable").to_string();
    assert!(error.contains(":1:1: open configuration") && error.contains("others may write it"), "{error}");
}

#[test]
fn a_configuration_that_is_not_there_or_no_file_is_refused() {
    let site = Site::new();
    let error = load(&site.path("nothing.toml"), &ordinary()).expect_err("not there").to_string();
    assert!(error.ends_with("No such file or directory (os error 2)"), "{error}");
    let error = load(&site.path("store"), &ordinary()).expect_err("directory").to_string();
    assert!(error.ends_with("not a regular file"), "{error}");
    nix::unistd::mkfifo(&site.path("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    let error = load(&site.path("fifo"), &ordinary()).expect_err("fifo").to_string();
    assert!(error.ends_with("not a regular file"), "{error}");
}

#[test]
fn data_has_names_that_no_policy_has() {
    let list = "policies = [\"jwt-gate\", \"ip-allowlist\"]\n";
    let with = |data: &str| sound_and(|text| text.replace(list, &format!("{list}data = {data}\n")));
    let site = Site::new();
    let errors = site.errors(&with("[\"prices\", \"jwt-gate\", \"prices\"]"), &ordinary());
    let expected =
        ["27:19: data: \"jwt-gate\" is the name of a policy of this tenant", "27:31: data: listed twice"];
    assert_eq!(errors, expected);
    let config = site.load(&with("[\"prices\"]"), &ordinary()).expect("sound");
    let assignment = config.registry_assignment(&books(&config), Isolation::SharedUid);
    let names = |names: &[PolicyName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&assignment.tenants[0].data), ["prices"]);
    assert_eq!(names(&assignment.tenants[1].data), [""; 0]);
}

#[test]
fn half_of_a_threads_part_of_the_queue_holds_a_whole_batch() {
    let queues = |cores| {
        let site = Site::new();
        let config = site.load(&Site::sound(), &Surroundings { cores, ..ordinary() }).expect("sound");
        // Class a says that it has two threads, b has one for each core.
        [config.classes[0].limits.queue, config.classes[1].limits.queue]
    };
    assert_eq!(queues(2), [1024, 1024]);
    assert_eq!(queues(8), [1024, 4096]);
}

#[test]
fn tenants_have_the_quotas_of_their_plans() {
    let site = Site::new();
    let plans = "
[plan.default]
requests = 100
weight = 3
[plan.large]
requests = 5
requests_burst = 20
cpu = \"250ms\"
bytes_in = \"2MiB\"
bytes_out = \"1KiB\"
concurrent = 16
memory = \"64MiB\"
host_calls_per_decision = 7
reserved = 2
max_wait = \"20ms\"
[plan.large.host_calls]
\"data.get\" = 1000
";
    let acme = |text: String| text.replace("[tenant.acme]\n", "[tenant.acme]\nplan = \"large\"\n");
    let config = site.load(&(sound_and(acme) + plans), &ordinary()).expect("sound");
    let (acme, other) = (&config.tenants[0], &config.tenants[1]);
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let expected = Quotas {
        requests: rate(5, 20),
        cpu: rate(250_000_000, 250_000_000),
        bytes_in: rate(2 << 20, 2 << 20),
        // The largest frame has to fit.
        bytes_out: rate(1 << 10, 1 << 20),
        concurrent: Some(16),
        memory: Some(64 << 20),
        host_calls: vec![(HostFunction::DataGet, Rate { per_second: 1000, burst: 1000 })],
        host_calls_per_decision: Some(7),
        reserved: 2,
        max_wait_us: Some(20_000),
    };
    assert_eq!((acme.plan.as_deref(), &acme.quotas), (Some("large"), &expected));
    assert_eq!((other.plan.as_deref(), other.quotas.requests), (Some("default"), rate(100, 100)));
    assert_eq!((acme.weight, other.weight), (1, 3), "what a tenant does not say its plan does");
    let none = site.load(&Site::sound(), &ordinary()).expect("sound");
    assert_eq!((&none.tenants[0].plan, &none.tenants[0].quotas), (&None, &Quotas::default()));
}

#[test]
fn what_is_wrong_with_plans_is_said_at_once() {
    let site = Site::new();
    let plans = "
[plan.greedy]
reserved = 33
cpu_burst = \"1s\"
bytes_in_burst = \"1KiB\"
speed = 1
[plan.greedy.host_calls]
\"files.open\" = 1
[plan.Free]
";
    let tenant = |text: String| {
        let text = text.replace("[tenant.acme]\n", "[tenant.acme]\nplan = \"greedy\"\n");
        text.replace("[tenant.blue]\n", "[tenant.blue]\nplan = \"silver\"\n")
    };
    let errors = site.errors(&(sound_and(tenant) + plans), &ordinary()).join("\n");
    for expected in [
        "plan: there is no [plan.silver]",
        "cpu_burst: of what? There is no cpu",
        "bytes_in_burst: \"1KiB\" is out of range",
        "[plan.greedy]: unknown key \"speed\"",
        "[plan.greedy.host_calls]: unknown key \"files.open\"; known are: clock.now,",
        "name of a plan: 1 to 64 of a-z",
    ] {
        assert!(errors.contains(expected), "{expected}:\n{errors}");
    }
    let tenant = |text: String| text.replace("[tenant.acme]\n", "[tenant.acme]\nplan = \"greedy\"\n");
    let errors = site.errors(&(sound_and(tenant) + "[plan.greedy]\nreserved = 33\n"), &ordinary()).join("\n");
    assert!(errors.contains("the plans of its tenants reserve 33 of 64"), "{errors}");
    // One for each of two tenants is a third of the class's, and all but one of what each thread has.
    let both = |text: String| {
        let text = text.replace("threads = 2\n", "threads = 2\ninstances = 6\n");
        text.replace("class = \"b\"", "class = \"a\"")
    };
    let errors = site.errors(&(sound_and(both) + "[plan.default]\nreserved = 1\n"), &ordinary()).join("\n");
    assert!(
        errors.contains("reserve 2 of 6, each rounded up on each thread: 2 of 3 on each of 2"),
        "{errors}"
    );
    let text = sound_and(|text| text.replace("[tenant.acme]", "[tenant.other]"));
    assert!(site.errors(&text, &ordinary()).join("\n").contains("other: telemetry calls so"));
}

#[test]
fn a_secret_is_the_registrys_alone_and_shown_nowhere() {
    let site = Site::new();
    fs::write(site.path("secret"), "portcullis-secret-v1 of nobody").expect("write");
    site.chmod("secret", 0o644);
    let text = sound_and(|text| text.replace("gid = 61009\n", "gid = 61009\nsecret = \"@/secret\"\n"));
    let expected = "15:10: open secret \"@/secret\": everybody may read it (mode 0644); chmod 0600 @/secret";
    assert_eq!(site.errors(&text, &ordinary()), [expected]);
    site.chmod("secret", 0o600);
    let config = site.load(&text, &ordinary()).expect("sound");
    assert!(!format!("{config:?}").contains("of nobody"));
    let assignment = config.registry_assignment(&books(&config), Isolation::SharedUid);
    assert_eq!(assignment.secret.as_ref().expect("given").0, "portcullis-secret-v1 of nobody");
    assert!(!format!("{assignment:?}").contains("of nobody"));
    let none = site.load(&Site::sound(), &ordinary()).expect("sound");
    assert_eq!(none.registry_assignment(&books(&none), Isolation::SharedUid).secret, None);
}

#[test]
fn a_trust_policy_that_is_too_long_or_private_is_refused() {
    let long = "#".repeat((1 << 20) + 1);
    for (content, expected) in [
        (
            "-----BEGIN PRIVATE KEY-----",
            "open trust policy \"@/trust/trust.toml\": holds a private key; only public halves belong on this machine",
        ),
        (long.as_str(), "read trust policy \"@/trust/trust.toml\": longer than 1048576 bytes"),
    ] {
        let site = Site::new();
        fs::write(site.path("trust/trust.toml"), content).expect("write");
        let errors = site.errors(&Site::sound(), &ordinary());
        assert_eq!(errors, [format!("8:9: {expected}")]);
    }
}

#[test]
fn distinct_uids_are_required_under_systemd_or_on_request_and_refused_without_privilege() {
    let under_systemd = Surroundings { systemd: true, ..ordinary() };
    let errors = Site::new().errors(&Site::sound(), &under_systemd);
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].starts_with("2:2: require_distinct_uids: all processes would share one UID"),
        "{errors:?}"
    );
    let on_request =
        sound_and(|text| text.replace("operators =", "require_distinct_uids = true\noperators ="));
    assert_eq!(Site::new().errors(&on_request, &ordinary()).len(), 1);
    let waived = sound_and(|text| text.replace("operators =", "require_distinct_uids = false\noperators ="));
    Site::new().load(&waived, &under_systemd).expect("waived");
}

#[test]
fn the_trust_policy_may_be_a_credential() {
    let site = Site::new();
    let with = |written: &str| sound_and(|text| text.replace("@/trust/trust.toml", written));
    let around = Surroundings { credentials: Some(site.path("trust")), ..ordinary() };
    let config = site.load(&with("$CREDENTIALS_DIRECTORY/trust.toml"), &around).expect("sound");
    assert_eq!(config.service.trust.path, site.path("trust/trust.toml"));
    assert_eq!(config.service.trust.text, TRUST);
    for written in [
        "$CREDENTIALS_DIRECTORY/",
        "$CREDENTIALS_DIRECTORY/../trust/trust.toml",
        "$CREDENTIALS_DIRECTORY//etc/passwd",
        "$CREDENTIALS_DIRECTORY/./trust.toml",
    ] {
        let expected = format!("8:9: trust: {written:?} names no file in the directory of the credentials");
        assert!(site.errors(&with(written), &around).contains(&expected), "{written}");
    }
    // Nothing else is looked up in the environment, and this only where a path begins.
    for written in ["$HOME/trust.toml", "/x/$CREDENTIALS_DIRECTORY/../trust.toml", "$CREDENTIALS_DIRECTORY"] {
        let expected = format!("8:9: trust: {written:?} is not an absolute path without \"..\"");
        assert!(site.errors(&with(written), &around).contains(&expected), "{written}");
    }
    let expected = "8:9: trust: \"$CREDENTIALS_DIRECTORY/trust.toml\": CREDENTIALS_DIRECTORY is not set; \
                    start with LoadCredential= in the unit, or write the file's own path";
    let errors = site.errors(&with("$CREDENTIALS_DIRECTORY/trust.toml"), &ordinary());
    assert!(errors.iter().any(|error| error == expected), "{errors:?}");
}

/// These look at files of other owners, which only root can make.
mod as_root {
    use super::*;

    fn site() -> Option<Site> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not root: skipped");
            return None;
        }
        let site = Site::new();
        site.chown("state", 61009);
        site.chown("cache-a", 61001);
        site.chown("cache-b", 61002);
        Some(site)
    }

    #[test]
    fn each_role_gets_its_own_uid() {
        let Some(site) = site() else { return };
        let config = site.load(&Site::sound(), &privileged()).expect("sound");
        assert_eq!(config.frontend.identity, Identity { uid: 61000, gid: 61000 });
        assert_eq!(config.registry.identity, Identity { uid: 61009, gid: 61009 });
        assert_eq!(config.classes[1].identity, Identity { uid: 61002, gid: 61002 });
    }

    #[test]
    fn shared_or_privileged_uids_are_refused() {
        let Some(site) = site() else { return };
        let text = sound_and(|text| {
            text.replace("uid = 61000\ngid = 61000", "uid = 0\ngid = 65534")
                .replace("uid = 61002\ngid = 61002", "uid = 61001\ngid = 61001")
                .replace("uids = [1000]", "uids = [61001, 61009]")
                .replace("cache-b", "cache-a")
        });
        let expected = [
            "10:7: uid: 0 is root; every role needs a UID and GID without privilege",
            "11:7: gid: 65534 stands for every user that has no UID here; it is never granted",
            "21:7: gid: [class.b] has the same GID as [class.a], 61001",
            "21:7: uid: [class.b] has the same UID as [class.a], 61001",
            "23:9: cache: \"@/cache-a\" is another class's cache too",
            "27:9: uids: 61001 is the UID of [class.a], which may not ask",
            "27:16: uids: 61009 is the UID of [registry], which may not ask",
        ];
        assert_eq!(site.errors(&text, &privileged()), expected);
    }

    #[test]
    fn roles_need_uids() {
        let Some(site) = site() else { return };
        let text = sound_and(|text| text.replace("uid = 61001\ngid = 61001\n", ""));
        let expected = ["15:8: [class.a]: \"gid\" is missing", "15:8: [class.a]: \"uid\" is missing"];
        assert_eq!(site.errors(&text, &privileged()), expected);
    }

    #[test]
    fn files_of_strangers_are_refused() {
        let Some(site) = site() else { return };
        site.chown("cache-a", 61002);
        site.chown("state", 61002);
        site.chown("store", 1000);
        site.chown("trust/trust.toml", 1000);
        let expected = [
            "7:9: open state \"@/state\": owned by uid 61002, expected 61009; chown 61009 @/state",
            "8:9: open trust policy \"@/trust/trust.toml\": owned by uid 1000, expected 0; chown root \
             @/trust/trust.toml",
            "18:9: open cache \"@/cache-a\": owned by uid 61002, expected 61001; chown 61001 @/cache-a",
        ];
        assert_eq!(site.errors(&Site::sound(), &privileged()), expected);
    }
}

#[test]
fn what_is_fixed_when_the_service_starts_is_known() {
    let site = Site::new();
    let config = site.load(&Site::sound(), &ordinary()).expect("sound");
    assert_eq!(config.fixed_parts_changed(&config.clone()), Vec::<String>::new());

    let mut next = config.clone();
    next.tenants.clear();
    next.service.trust.text.clear();
    next.service.trust.path = "/elsewhere".into();
    next.service.keep_previous = 1;
    next.builder.limits.cpu = 1;
    next.classes[0].limits.threads = 1;
    let mut limited = next.clone();
    limited.classes[0].group = GroupLimits { memory_max: Some(16 << 20), tasks_max: None };
    limited.classes[1].group = GroupLimits { memory_max: None, tasks_max: Some(64) };
    assert_eq!(
        config.fixed_parts_changed(&limited),
        ["whether there is a class.a.memory_max", "whether there is a class.b.tasks_max"]
    );
    let mut higher = limited.clone();
    higher.classes[0].group.memory_max = Some(32 << 20);
    higher.classes[1].group.tasks_max = Some(65);
    assert_eq!(limited.fixed_parts_changed(&higher), Vec::<String>::new(), "a number a reload may change");
    assert_eq!(config.fixed_parts_changed(&next), Vec::<String>::new(), "these a reload may change");

    next.service.socket = "/elsewhere".into();
    next.service.store = "/elsewhere".into();
    next.service.state = "/elsewhere".into();
    next.frontend.identity.uid += 1;
    next.registry.identity.uid += 1;
    next.classes[1].cache = "/elsewhere".into();
    assert_eq!(
        config.fixed_parts_changed(&next),
        [
            "service.socket",
            "service.store",
            "service.state",
            "frontend.uid or gid",
            "registry.uid or gid",
            "class.b.cache"
        ]
    );
    next.classes.remove(0);
    assert!(config.fixed_parts_changed(&next).contains(&"the set of classes".to_owned()));
}

const TELEMETRY: &str = "[telemetry]\nuid = 61010\ngid = 61010\nsocket = \"@/run/telemetry.sock\"\n";

#[test]
fn telemetry_is_told_where_only_this_machine_reaches_it() {
    let site = Site::new();
    let config = site.load(&Site::sound(), &ordinary()).expect("sound");
    assert_eq!(config.telemetry, None);
    assert_eq!(config.exporter_assignment(&books(&config), Isolation::SharedUid, false), None);
    let text = Site::sound() + TELEMETRY + "listen = \"[::1]:9464\"\nmax_tenants = 7\n";
    let config = site.load(&text, &ordinary()).expect("sound");
    let telemetry = config.telemetry.as_ref().expect("there");
    assert_eq!((telemetry.socket_mode, telemetry.max_tenants), (0o660, 7));
    assert_eq!(telemetry.listen.map(|address| address.port()), Some(9464));
    let books = books(&config);
    let exporter = config.exporter_assignment(&books, Isolation::SharedUid, true).expect("one");
    let acme = &exporter.tenants[0];
    assert_eq!((acme.tenant.as_str(), acme.class.as_str(), acme.modules.len()), ("acme", "a", 2));
    assert_eq!(Some(acme.slot), books.tenant(&acme.tenant));
    assert!(exporter.tcp && exporter.max_tenants == 7 && exporter.classes.len() == 2);

    for (line, expected) in [
        ("listen = \"0.0.0.0:9464\"", "listen: \"0.0.0.0:9464\" can be reached from other machines"),
        ("listen = \"[::ffff:127.0.0.1]:9464\"", "can be reached from other machines"),
        ("listen = \"localhost:9464\"", "is not an address and a port"),
        ("listen = \"127.0.0.1:0\"", "is any port"),
        ("max_tenants = 10001", "max_tenants: "),
        ("port = 1", "[telemetry]: unknown key \"port\""),
    ] {
        let errors = site.errors(&(Site::sound() + TELEMETRY + line + "\n"), &ordinary()).join("\n");
        assert!(errors.contains(expected), "{expected}:\n{errors}");
    }
    for (taken, whose) in [("decide.sock", "service.socket"), ("operator.sock", "service.operator_socket")] {
        let text = Site::sound() + &TELEMETRY.replace("telemetry.sock", taken);
        let errors = site.errors(&text, &ordinary()).join("\n");
        assert!(errors.contains(&format!("socket is the same as {whose}")), "{errors}");
    }
    let without = site.errors(&(Site::sound() + "[telemetry]\n"), &ordinary()).join("\n");
    assert!(without.contains("\"socket\""), "{without}");
}

#[test]
fn of_telemetry_only_its_limit_changes_while_the_service_runs() {
    let site = Site::new();
    let none = site.load(&Site::sound(), &ordinary()).expect("sound");
    let some = site.load(&(Site::sound() + TELEMETRY), &ordinary()).expect("sound");
    assert_eq!(none.fixed_parts_changed(&some), ["whether there is [telemetry]"]);
    let mut next = some.clone();
    let telemetry = next.telemetry.as_mut().expect("there");
    telemetry.max_tenants = 1;
    assert_eq!(some.fixed_parts_changed(&next), Vec::<String>::new());
    let telemetry = next.telemetry.as_mut().expect("there");
    telemetry.listen = "127.0.0.1:1".parse().ok();
    telemetry.socket_mode = 0o600;
    assert_eq!(some.fixed_parts_changed(&next), ["telemetry.socket_mode", "telemetry.listen"]);
}

const GATEWAY: &str = "[gateway]\nuid = 61008\ngid = 61008\n";

/// One listener, with these lines instead of or beside its usual ones.
fn with_listener(lines: &str) -> String {
    let usual = [
        ("socket", "socket = \"@/run/proxy.sock\""),
        ("protocol", "protocol = \"envoy-grpc\""),
        ("tenant", "tenant = \"acme\""),
        ("policy", "policy = \"jwt-gate\""),
    ];
    let keys: Vec<&str> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
    let instead = |key: &str| keys.contains(&key) || (key == "socket" && keys.contains(&"listen"));
    let missing = keys.iter().filter_map(|key| key.strip_prefix('-'));
    let missing: Vec<&str> = missing.collect();
    let usual = usual.into_iter().filter(|(key, _)| !instead(key) && !missing.contains(key));
    let usual: Vec<&str> = usual.map(|(_, line)| line).collect();
    let lines: Vec<&str> = lines.lines().filter(|line| !line.starts_with('-')).collect();
    let sound = Site::sound();
    format!("{sound}{GATEWAY}[gateway.listener.proxy]\n{}\n{}\n", usual.join("\n"), lines.join("\n"))
}

#[test]
fn a_gateway_is_told_what_its_listeners_are_for() {
    use crate::wire::gateway::{Binding, HttpForm, Original, SocketKind, Speaks};
    let site = Site::new();
    let none = site.load(&Site::sound(), &ordinary()).expect("sound");
    assert_eq!((&none.gateway, none.gateway_assignment(Isolation::SharedUid)), (&None, None));
    let config = site.load(&with_listener(""), &ordinary()).expect("sound");
    let told = config.gateway_assignment(Isolation::SharedUid).expect("one");
    assert_eq!((told.threads, told.classes[0].connections), (1, 2), "it reaches both threads of the class");
    assert_eq!(told.listeners.len(), 1);
    let class = &told.classes[0];
    assert_eq!(told.classes.len(), 1, "who is not asked for is nobody's business");
    assert_eq!((class.class.as_str(), class.pipeline), ("a", 256));
    assert_eq!(class.tenants, ["acme".parse().expect("name")]);
    let one = &told.listeners[0];
    assert_eq!(
        (one.name.as_str(), one.socket, one.speaks.clone()),
        ("proxy", SocketKind::Unix, Speaks::EnvoyGrpc)
    );
    assert_eq!((one.deadline_us, one.max_connections, one.details), (50_000, 1024, false));
    assert_eq!(one.max_body, (1 << 20) - (32 << 10), "what goes with it still fits a frame");
    assert_eq!(one.tenant, Binding::Fixed("acme".parse().expect("name")));
    let place = &config.gateway.as_ref().expect("there").listeners[0].place;
    assert_eq!(place, &Place::Unix(site.path("run/proxy.sock"), 0o660));

    let of = |lines: &str| {
        let config =
            site.load(&with_listener(lines), &ordinary()).unwrap_or_else(|why| panic!("{lines}: {why}"));
        config.gateway_assignment(Isolation::SharedUid).expect("one").listeners.remove(0)
    };
    let http = of(
        "listen = \"[::1]:9191\"\nprotocol = \"http\"\nrequest = \"own\"\nprefix = \"/authz\"\ntimeout = \"x-t\"",
    );
    assert_eq!(http.socket, SocketKind::Tcp);
    let form = HttpForm {
        original: Original::Own { prefix: "/authz".to_owned() },
        client_address: None,
        timeout_ms: Some("x-t".to_owned()),
    };
    assert_eq!(http.speaks, Speaks::Http(form));
    for (request, original) in [
        ("x-original", Original::XOriginal),
        ("x-original-url", Original::XOriginalUrl),
        ("x-forwarded", Original::XForwarded),
    ] {
        let lines = format!("protocol = \"http\"\nrequest = \"{request}\"\nclient_address = \"x-real-ip\"");
        let Speaks::Http(form) = of(&lines).speaks else { panic!("{lines}") };
        assert_eq!((form.original, form.client_address.as_deref()), (original, Some("x-real-ip")));
    }
    let opa =
        of("protocol = \"opa\"\npaths = { \"b/allow\" = \"jwt-gate\", \"a\" = \"ip-allowlist\" }\n-policy");
    let Speaks::Opa { paths } = opa.speaks else { panic!("OPA") };
    let paths: Vec<_> = paths.iter().map(|(path, policy)| (path.as_str(), policy.as_str())).collect();
    assert_eq!(paths, [("a", "ip-allowlist"), ("b/allow", "jwt-gate")]);
    let bound = of(
        "peers = [33, 34]\ntenant = { peer = { \"34\" = \"acme\", \"33\" = \"acme\" } }\npolicy = { header = \"x-policy\", among = [\"jwt-gate\"] }",
    );
    assert_eq!(bound.peers, [33, 34]);
    let by_table = "tenant = { peer = { \"34\" = \"acme\", \"33\" = \"acme\" } }";
    assert_eq!(of(by_table).peers, [33, 34], "who is not in the table could only take up room");
    assert_eq!(of(&format!("peers = [33, 35]\n{by_table}")).peers, [33]);
    assert_eq!(of("peers = [33, 35]").peers, [33, 35]);
    let acme = || "acme".parse().expect("name");
    assert_eq!(bound.tenant, Binding::Peer(vec![(33, acme()), (34, acme())]));
    let among = vec!["jwt-gate".parse().expect("name")];
    assert_eq!(bound.policy, Binding::Header { name: "x-policy".to_owned(), among });
    let spoe = of("protocol = \"spoe\"\ntenant = { context = \"tenant\", among = [\"acme\"] }");
    assert_eq!(spoe.tenant, Binding::Context { key: "tenant".to_owned(), among: vec![acme()] });
}

#[test]
fn a_gateway_may_ask_for_whom_its_listeners_name_and_for_nobody_else() {
    let site = Site::new();
    let config = site.load(&with_listener(""), &privileged()).err();
    // As an ordinary user nobody can own the directories; what is granted is the same.
    drop(config);
    let mut config = site.load(&with_listener(""), &ordinary()).expect("sound");
    config.gateway.as_mut().expect("there").identity = Identity { uid: 61008, gid: 61008 };
    let frontend = config.frontend_assignment(Isolation::DistinctUids);
    let uids = |at: usize| frontend.tenants[at].uids.clone();
    assert_eq!((uids(0), uids(1)), (vec![1000, 61008], vec![]), "acme, and not blue");
}

#[test]
fn whoever_names_tenants_over_tcp_is_warned() {
    let site = Site::new();
    let listener = |lines: &str| {
        let config =
            site.load(&with_listener(lines), &ordinary()).unwrap_or_else(|why| panic!("{lines}: {why}"));
        config.gateway.expect("there").listeners.remove(0)
    };
    let header = "tenant = { header = \"x-tenant\", among = [\"acme\"] }";
    let tcp = "listen = \"127.0.0.1:9191\"";
    let two = |mut one: GatewayListener| {
        let crate::wire::gateway::Binding::Header { among, .. } = &mut one.listener.tenant else {
            panic!("{one:?}")
        };
        among.push("blue".parse().expect("name"));
        one
    };
    let said = two(listener(&format!("{tcp}\n{header}"))).caution().expect("a warning");
    assert!(said.contains("every user of this machine reaches 127.0.0.1:9191"), "{said}");
    let mut context = two(listener(&format!("{tcp}\n{header}")));
    let crate::wire::gateway::Binding::Header { among, .. } = context.listener.tenant else {
        panic!("{context:?}")
    };
    context.listener.tenant = crate::wire::gateway::Binding::Context { key: "tenant".into(), among };
    let said = context.caution().expect("a warning");
    assert!(said.contains("its 2 tenants it names in tenant"), "{said}");
    let sound = [two(listener(header)), listener(&format!("{tcp}\n{header}")), listener(tcp)];
    for one in sound {
        assert_eq!(one.caution(), None, "{one:?}");
    }
}

#[test]
fn what_is_wrong_with_a_listener_is_said() {
    let site = Site::new();
    for (lines, expected) in [
        ("-socket", "[gateway.listener.proxy]: expected either \"socket\" or \"listen\""),
        ("socket = \"@/run/p\"\nlisten = \"127.0.0.1:1\"", "expected either \"socket\" or \"listen\""),
        ("listen = \"0.0.0.0:9191\"", "can be reached from other machines"),
        ("listen = \"127.0.0.1:9191\"\nsocket_mode = \"0600\"", "socket_mode: every user of this machine"),
        ("listen = \"127.0.0.1:9191\"\npeers = [33]", "peers: who connects over TCP has no UID"),
        ("tenant = { peer = { \"65534\" = \"acme\" } }", "tenant: 65534 stands for every user"),
        ("policy = { peer = { \"4294967295\" = \"jwt-gate\" } }", "policy: 4294967295 is not a UID"),
        (
            "peers = [34]\ntenant = { peer = { \"33\" = \"acme\" } }",
            "no UID is in all of peers and the tables",
        ),
        (
            "listen = \"127.0.0.1:9191\"\ntenant = { peer = { \"33\" = \"acme\" } }",
            "tenant: who connects over TCP has no UID",
        ),
        ("socket = \"@/run/decide.sock\"", "its socket is the same as service.socket"),
        ("-protocol", "[gateway.listener.proxy]: \"protocol\" is missing"),
        ("protocol = \"grpc\"", "protocol: \"grpc\" is none; expected envoy-grpc, http, spoe or opa"),
        ("protocol = \"http\"", "[gateway.listener.proxy]: \"request\" is missing"),
        ("protocol = \"http\"\nrequest = \"guess\"", "request: \"guess\" is none"),
        ("protocol = \"http\"\nrequest = \"x-original\"\nprefix = \"/a\"", "prefix: only where"),
        ("protocol = \"http\"\nrequest = \"x-original-url\"\nprefix = \"/a\"", "prefix: only where"),
        (
            "protocol = \"http\"\nrequest = \"own\"\nprefix = \"a/\"",
            "prefix: \"a/\" is not a prefix of paths",
        ),
        (
            "protocol = \"http\"\nrequest = \"own\"\ntimeout = \"X-T\"",
            "timeout: \"X-T\" is not a header's name",
        ),
        ("request = \"own\"", "unknown key \"request\""),
        ("protocol = \"opa\"\n-policy", "\"paths\" is missing"),
        ("protocol = \"opa\"\npaths = { }\n-policy", "paths: names no path"),
        ("protocol = \"opa\"\npaths = { \"/a\" = \"jwt-gate\" }\n-policy", "paths: \"/a\" is no path"),
        (
            "protocol = \"opa\"\npaths = { \"a\" = \"jwt-gate\" }",
            "policy: a listener for OPA's clients has paths",
        ),
        ("-tenant", "\"tenant\" is missing"),
        ("tenant = \"green\"", "tenant: there is no tenant \"green\""),
        ("tenant = \"blue\"", "tenant \"blue\" has none of its policies"),
        ("policy = \"other\"", "none of its tenants has a policy \"other\""),
        ("tenant = { }", "tenant: expected a name, or a table with one of peer, context, header"),
        ("tenant = { context = \"a\", header = \"b\" }", "one of peer, context, header"),
        ("tenant = { context = \"a\" }", "tenant: \"among\" is missing"),
        ("tenant = { peer = { \"www\" = \"acme\" } }", "tenant: \"www\" is not a UID"),
        (
            "protocol = \"spoe\"\ntenant = { header = \"x\", among = [\"acme\"] }",
            "this protocol does not have a header: name an argument",
        ),
        (
            "protocol = \"http\"\nrequest = \"own\"\ntenant = { context = \"x\", among = [\"acme\"] }",
            "this protocol does not have a context: HTTP has none",
        ),
        ("deadline = \"2m\"", "deadline: \"2m\" is out of range"),
        ("max_body = \"1MiB\"", "max_body: \"1MiB\" is out of range"),
        ("max_connections = 0", "max_connections: 0 is out of range"),
    ] {
        let errors = site.errors(&with_listener(lines), &ordinary()).join("\n");
        assert!(errors.contains(expected), "{lines}\n{expected}:\n{errors}");
    }
    let many: String = (0..17)
        .map(|n| {
            format!(
                "[gateway.listener.l{n}]\nsocket = \"@/run/l{n}\"\nprotocol = \"spoe\"\ntenant = \"acme\"\npolicy = \"jwt-gate\"\n"
            )
        })
        .collect();
    let errors = site.errors(&(Site::sound() + GATEWAY + &many), &ordinary()).join("\n");
    assert!(errors.contains("more than 16 listeners"), "{errors}");
    let narrow = with_listener("").replace("threads = 2\n", "threads = 2\nconnections = 3\n");
    let errors = site.errors(&narrow, &ordinary());
    assert_eq!(errors.len(), 2, "{errors:?}");
    for (error, of) in
        errors.iter().zip(["and class.a.connections is 3;", "and frontend.max_connections_per_uid is 1;"])
    {
        assert!(
            error.contains("gateway: its threads, 1, have up to 6 connections there") && error.contains(of),
            "{error}"
        );
    }
    let enough = narrow.replace("connections = 3\n", "connections = 12\n");
    site.load(&enough, &ordinary()).expect("half of 12 for one UID, which is what it needs");
    let without = site.errors(&(Site::sound() + GATEWAY), &ordinary()).join("\n");
    assert!(without.contains("\"[gateway.listener.<name>]\" is missing"), "{without}");
}

#[test]
fn of_a_gateway_its_sockets_change_with_a_restart_only() {
    let site = Site::new();
    let none = site.load(&Site::sound(), &ordinary()).expect("sound");
    let some = site.load(&with_listener(""), &ordinary()).expect("sound");
    assert_eq!(none.fixed_parts_changed(&some), ["whether there is [gateway]"]);
    let changed = |lines: &str| {
        let next = site.load(&with_listener(lines), &ordinary()).expect("sound");
        some.fixed_parts_changed(&next)
    };
    let nothing = Vec::<String>::new();
    assert_eq!(changed("deadline = \"1s\"\nprotocol = \"spoe\"\npolicy = \"ip-allowlist\""), nothing);
    for lines in ["socket = \"@/run/other\"", "socket_mode = \"0666\"", "listen = \"127.0.0.1:9191\""] {
        assert_eq!(changed(lines), ["the socket of gateway.listener.proxy"], "{lines}");
    }
    let next = with_listener("").replace("listener.proxy", "listener.other");
    let next = site.load(&next, &ordinary()).expect("sound");
    assert_eq!(some.fixed_parts_changed(&next), ["the set of gateway.listener"]);
}

#[test]
fn the_documented_example_has_only_keys_that_exist() {
    let text = include_str!("../../../docs/portcullis.example.toml");
    let site = Site::new();
    let text = text
        .replace("/run/portcullis", "@/run")
        .replace("/var/lib/portcullis/store", "@/store")
        .replace("/var/lib/portcullis/state", "@/state")
        .replace("/etc/portcullis/trust.toml", "@/trust/trust.toml")
        .replace("/var/cache/portcullis/shared", "@/cache-a")
        .replace("/var/cache/portcullis/alone", "@/cache-b");
    site.load(&text, &ordinary()).expect("the example is sound");
}

/// A site with a directory of tenants, and the configuration that names it.
fn with_tenants(files: &[(&str, &str)]) -> (Site, String) {
    let site = Site::new();
    fs::create_dir(site.path("tenants.d")).expect("mkdir");
    site.chmod("tenants.d", 0o755);
    for (name, text) in files {
        fs::write(site.path("tenants.d").join(name), text).expect("write");
        site.chmod(&format!("tenants.d/{name}"), 0o644);
    }
    (site, Site::sound().replace("[frontend]", "tenants = \"@/tenants.d\"\n[frontend]"))
}

const FILED: &str = "state = \"active\"\nclass = \"a\"\npolicies = [\"gate\"]\nuids = [1002]\n";

#[test]
fn tenants_have_files_of_their_own_and_only_active_ones_are_served() {
    let in_state = |state: &str| FILED.replace("active", state);
    let (pending, suspended) = (in_state("pending"), in_state("suspended"));
    let failed = format!("cause = \"no class\"\n{}", in_state("failed").replace("\"a\"", "\"nowhere\""));
    let files = [
        ("c-d.toml", FILED),
        ("c.toml", FILED),
        ("waits.toml", pending.as_str()),
        ("rests.toml", suspended.as_str()),
        ("failed.toml", failed.as_str()),
        ("gone.toml", "state = \"removed\"\nwhatever = 1\n"),
        (".lock", ""),
        (".c.toml.77.tmp", "half a fi"),
    ];
    let (site, text) = with_tenants(&files);
    let config = site.load(&text, &ordinary()).expect("sound");
    let names = |names: &mut dyn Iterator<Item = &Tenant>| {
        names.map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&mut config.tenants.iter().map(|one| &one.name)), ["acme", "blue", "c", "c-d"]);
    assert_eq!(
        names(&mut config.filed.iter().map(|one| &one.name)),
        ["c", "c-d", "failed", "gone", "rests", "waits"]
    );
    let failed = config.filed.iter().find(|one| one.state == TenantState::Failed).expect("one");
    assert_eq!((failed.cause.as_deref(), failed.tenant.is_none()), (Some("no class"), true));
    let registry = config.registry_assignment(&books(&config), Isolation::SharedUid);
    assert_eq!(names(&mut registry.removed.iter()), ["gone"]);
    assert_eq!(registry.tenants.len(), 4);

    fs::create_dir(site.path("other.d")).expect("mkdir");
    let moved = site.load(&text.replace("/tenants.d", "/other.d"), &ordinary()).expect("sound");
    let changed = config.fixed_parts_changed(&moved);
    assert_eq!(changed, ["service.tenants"], "the sandbox is bound to it");
}

#[test]
fn a_name_has_one_place_and_one_that_was_removed_has_none() {
    let files = [("acme.toml", FILED), ("blue.toml", "state = \"removed\"\n"), ("new.toml", FILED)];
    let (site, text) = with_tenants(&files);
    let errors = site.errors(&text, &ordinary());
    let [acme, blue] = errors.as_slice() else { panic!("{errors:?}") };
    assert!(
        acme.ends_with("tenant \"acme\" is also in \"@/tenants.d/acme.toml\"; keep one of the two"),
        "{acme}"
    );
    assert!(
        blue.ends_with(
            "tenant \"blue\" was removed (\"@/tenants.d/blue.toml\" says so), and a name is never used again; choose \
             another name"
        ),
        "{blue}"
    );
}

#[test]
fn what_is_wrong_with_tenants_files_is_said_at_once_each_at_its_place() {
    let long = format!("{FILED}# {}", "x".repeat(70_000));
    let other = FILED.replace("[1002]", "[1002, 65534]");
    let files = [
        ("a.toml", other.as_str()),
        ("b.toml", "state = \"active\"\nclass = \"z\"\npolicies = []\nuids = [1]\ncolour = 1\n"),
        ("c.toml", "state = \"asleep\"\n"),
        ("d.toml", long.as_str()),
        ("e.txt", ""),
        ("F.toml", FILED),
        ("g.toml", FILED),
        ("other.toml", FILED),
    ];
    let (site, text) = with_tenants(&files);
    site.chmod("tenants.d/g.toml", 0o666);
    let text = text.replace("threads = 2", "threads = 0");
    let directory = site.directory.path().display().to_string();
    let all = site.load(&text, &ordinary()).expect_err("must be refused").to_string();
    let said: Vec<String> = all.lines().map(|line| line.replace(&directory, "@")).collect();
    let expected = [
        "@/portcullis.toml:20:11: threads: 0 is out of range",
        "@/tenants.d/F.toml:1:1: is no tenant's file: ",
        "@/tenants.d/a.toml:4:15: uids: 65534 stands for every user",
        "@/tenants.d/b.toml:2:9: class: there is no [class.z]",
        "@/tenants.d/b.toml:5:1: file: unknown key \"colour\"",
        "@/tenants.d/c.toml:1:9: state: \"asleep\" is no state; expected pending",
        "@/tenants.d/d.toml:1:1: read tenant \"@/tenants.d/d.toml\": longer than 65536 bytes",
        "@/tenants.d/e.txt:1:1: is no tenant's file; expected <tenant>.toml",
        "@/tenants.d/g.toml:1:1: open tenant \"@/tenants.d/g.toml\": others may write it (mode 0666)",
        "@/tenants.d/other.toml:1:1: other: ",
    ];
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.starts_with(expected), "{said:?}, expected {expected:?}");
    }
    let candidate = (site.path("tenants.d/h.toml"), FILED.replace("\"a\"", "\"z\""));
    let path = site.path("portcullis.toml");
    let (_, refused) = look_with(&path, &ordinary(), (&candidate.0, &candidate.1)).expect("what there is");
    let refused = refused.expect("no such class").to_string();
    assert!(
        refused.ends_with("h.toml:2:9: class: there is no [class.z]"),
        "only what is wrong with that one: {refused}"
    );
}

/// However exactly the files before it fill the room that there is.
#[test]
fn no_tenants_file_is_left_out_without_a_word() {
    let (site, text) = with_tenants(&[]);
    let gone = "state = \"removed\"\n#";
    let full = format!("{gone}{}", "x".repeat(65_536 - gone.len()));
    for number in 0..256 {
        let path = site.path(&format!("tenants.d/t{number}.toml"));
        fs::write(&path, &full).expect("write");
        site.chmod(&format!("tenants.d/t{number}.toml"), 0o644);
    }
    assert_eq!(site.load(&text, &ordinary()).expect("16 MiB are allowed: control").filed.len(), 256);
    // One more is refused before it is there, and after.
    let one_more = site.path("tenants.d/z.toml");
    let path = site.path("portcullis.toml");
    let (_, refused) = look_with(&path, &ordinary(), (&one_more, FILED)).expect("what there is");
    assert!(refused.expect("no room").to_string().contains("all tenants' files together would have"));
    fs::write(&one_more, "state = \"removed\"\n").expect("write");
    site.chmod("tenants.d/z.toml", 0o644);
    let said = site.load(&text, &ordinary()).expect_err("no room").to_string();
    assert!(said.lines().count() == 1 && said.contains("z.toml:1:1: all tenants' files together"), "{said}");
}

#[test]
fn no_file_is_added_beyond_those_that_are_read() {
    let filed = |number: usize| FiledTenant {
        name: format!("t{number}").parse().expect("name"),
        path: format!("/nowhere/t{number}.toml").into(),
        state: TenantState::Removed,
        class: None,
        cause: None,
        tenant: None,
    };
    let all: Vec<FiledTenant> = (0..places::TENANT_FILES_MAX).map(filed).collect();
    let new = Path::new("/nowhere/new.toml");
    let why = tenants::room(&all, new, FILED).expect_err("one too many").to_string();
    assert!(why.contains("there are 65536 files of tenants already"), "{why}");
    tenants::room(&all, &all[7].path, FILED).expect("it is there already");
    tenants::room(&all[1..], new, FILED).expect("the last one");
}

#[test]
fn a_directory_of_tenants_that_others_may_write_is_refused() {
    let (site, text) = with_tenants(&[("c.toml", FILED)]);
    site.chmod("tenants.d", 0o775);
    let errors = site.errors(&text, &ordinary());
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].contains("open tenants \"@/tenants.d\": others may write it (mode 0775)"),
        "{errors:?}"
    );
}

#[test]
fn ten_thousand_tenants_have_a_file_each_and_one_more_is_too_many() {
    let (site, text) = with_tenants(&[]);
    // With the two of the configuration.
    for number in 0..9_998 {
        let path = site.path(&format!("tenants.d/t{number}.toml"));
        fs::write(&path, FILED).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    }
    let config = site.load(&text, &ordinary()).expect("sound");
    assert_eq!(config.tenants.len(), 10_000);
    for (name, state) in [("u", "removed"), ("v", "suspended")] {
        let path = site.path(&format!("tenants.d/{name}.toml"));
        fs::write(&path, FILED.replace("active", state)).expect("write");
        site.chmod(&format!("tenants.d/{name}.toml"), 0o644);
    }
    site.load(&text, &ordinary()).expect("who is not served does not count");
    fs::write(site.path("tenants.d/v.toml"), FILED).expect("write");
    let errors = site.errors(&text, &ordinary());
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("more than 10000 are active"), "{errors:?}");
}

#[test]
fn a_gateways_threads_reach_all_of_a_class_within_reason() {
    let site = Site::new();
    let class = Site::sound().matches("threads = 2").count();
    assert_eq!(class, 1, "one class has a line for it");
    let machine = Surroundings { cores: 16, ..ordinary() };
    for (gateway, class, expected) in [
        ("", 16, (4, 4)),
        ("threads = 16\n", 16, (16, 1)),
        ("threads = 6\n", 16, (6, 3)),
        ("", 1, (4, 1)),
        ("threads = 1\n", 16, (1, 4)),
    ] {
        let text =
            with_listener("").replace("threads = 2\n", &format!("threads = {class}\nconnections = 512\n"));
        let text = text.replace("[gateway]\n", &format!("[gateway]\n{gateway}"));
        let config = site.load(&text, &machine).unwrap_or_else(|why| panic!("{gateway} {class}: {why}"));
        let told = config.gateway_assignment(Isolation::SharedUid).expect("one");
        assert_eq!((told.threads, told.classes[0].connections), expected, "{gateway} {class}");
    }
}

/// It may come back, and then the file has to be as sound as it is now.
#[test]
fn a_gateway_has_seats_for_who_is_suspended_too() {
    for (state, refused) in [("suspended", true), ("removed", false)] {
        let (site, text) = with_tenants(&[("rests.toml", FILED.replace("active", state).as_str())]);
        let text = text.replace("threads = 2\n", "threads = 2\nconnections = 3\n");
        let per_uid = "[frontend]\nmax_connections_per_uid = 100\n";
        let text = text.replace("[frontend]\n", per_uid)
            + GATEWAY
            + "[gateway.listener.proxy]\nsocket = \"@/run/proxy.sock\"\nprotocol = \"spoe\"\ntenant = \"rests\"\npolicy = \"gate\"\n";
        if refused {
            let errors = site.errors(&text, &ordinary());
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(
                errors[0].contains("up to 6 connections there")
                    && errors[0].contains("class.a.connections is 3;"),
                "{errors:?}"
            );
        } else {
            site.load(&text, &ordinary()).expect("it never comes back");
        }
    }
}
