//! `portcullis policy test`, `run` and `bench`, as people and build servers use them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::folder;

/// Longest that a program may be silent: only met when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where an answer is expected: a machine that stops for a second is not what is tested.
const PATIENT: [&str; 2] = ["--deadline", "60s"];

/// A policy with functions that have names: allows, unless the first byte of what is asked says otherwise.
const NAMED: &str = r#"(module
    (memory (export "memory") 2)
    (global $free (mut i32) (i32.const 4096))
    (func $allocate (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
        (global.set $free (i32.add (local.get $at) (local.get $size)))
        (local.get $at))
    (func $decide (export "decide") (param $request i32) (result i32)
        (if (i32.eq (i32.const 33) (i32.load8_u (i32.load offset=12 (local.get $request))))
            (then (call $seldom)))
        (call $busy (i32.const 500))
        (i32.const 1024))
    (func $busy (param $times i32)
        (loop $again
            (local.set $times (i32.sub (local.get $times) (i32.const 1)))
            (br_if $again (local.get $times))))
    (func $seldom (call $busy (i32.const 3)))
    (func $never unreachable))"#;

struct Desk(tempfile::TempDir);

impl Desk {
    /// A folder with a policy and these cases.
    fn new(policy: &Path, cases: &Value) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        fs::copy(policy, desk.path("policy.wasm")).unwrap();
        desk.cases(cases);
        desk
    }

    fn named() -> Self {
        let text = tempfile::NamedTempFile::new().unwrap();
        fs::write(text.path(), NAMED).unwrap();
        let opaque = |name: &str, text: &str| json!({"name": name, "input": {"opaque": {"text": text}}, "expect": {"outcome": "allow"}});
        let desk = Self::new(text.path(), &json!([opaque("plain", "?"), opaque("often", "seldom")]));
        // The text form as it is: whoever tries a policy need not make a module of it first.
        fs::write(
            desk.path("policy.wasm"),
            portcullis::compile::componentize_as(NAMED.as_bytes(), Some(portcullis::engine::World::V0_1))
                .unwrap(),
        )
        .unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts another file in the place of the cases, as editors do.
    fn cases(&self, cases: &Value) {
        fs::write(self.path("cases.new"), serde_json::to_vec_pretty(cases).unwrap()).unwrap();
        fs::rename(self.path("cases.new"), self.path("cases.json")).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        command(arguments).current_dir(self.0.path()).output().unwrap()
    }

    /// The same where an answer is expected.
    fn answered(&self, arguments: &[&str]) -> Output {
        self.run(&[arguments, &PATIENT].concat())
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("policy").args(arguments);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What another program's parser reads in a report.
fn junit_cases(report: &Path) -> Vec<Value> {
    const READ: &str = "import json, sys, xml.etree.ElementTree as tree\n\
        cases = [dict(case.attrib, failure=case.findtext('failure')) for case in tree.parse(sys.argv[1]).iter('testcase')]\n\
        print(json.dumps(cases))";
    let read = Command::new("python3").args(["-c", READ]).arg(report).output();
    let read = read.unwrap_or_else(|error| panic!("python3: {error}; apt-get install python3"));
    serde_json::from_slice(&read.stdout).unwrap_or_else(|error| panic!("{error}: {read:?}"))
}

fn gold(outcome: &str, status: Option<u16>) -> Value {
    json!([
        {"name": "gold", "clock": "2026-01-01T00:00:00Z",
         "input": {"http": {"path": "/v1/orders", "headers": [["user-agent", "Mozilla/5.0"], ["x-plan", "gold"]]}},
         "expect": {"outcome": outcome, "status": status, "headers_set": {"x-rate-class": "gold", "x-rate-weight": "1"}}},
        {"name": "barred", "input": {"http": {"method": "TRACE", "path": "/"}},
         "expect": {"outcome": "deny", "reason": "method barred", "status": 405,
                    "headers_set": {"allow": "GET, HEAD, POST, PUT, PATCH, DELETE"}}}
    ])
}

fn rate_class() -> PathBuf {
    folder().join("rate-class/rate-class.wasm")
}

#[test]
fn the_policies_that_are_here_pass_and_each_form_of_the_report_says_so() {
    let desk = tempfile::tempdir().unwrap();
    let junit = desk.path().join("report.xml");
    let arguments = ["test", "hash", "ip-allowlist", "jwt-gate", "rate-class", "--json", "--junit"];
    let output = command(&arguments).arg(&junit).args(PATIENT).current_dir(folder()).output().unwrap();
    let report = parsed(&output);
    assert_eq!((code(&output), &report["failed"]), (0, &json!(0)), "{}", complaint(&output));
    let passed = usize::try_from(report["passed"].as_u64().unwrap()).unwrap();
    assert!(passed > 150, "{passed}");
    let names: Vec<&str> = report["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["policy"]["policy"].as_str().unwrap())
        .collect();
    for expected in ["hash", "ip-allowlist", "jwt-gate", "rate-class"] {
        assert!(names.contains(&expected), "{names:?}");
    }
    let cases = junit_cases(&junit);
    assert_eq!(cases.len(), passed);
    assert!(cases.iter().all(|case| case["failure"].is_null() && case["line"] != "0"), "{cases:?}");
}

#[test]
fn a_case_that_differs_is_exit_code_1_and_the_difference_is_named() {
    let desk = Desk::new(&rate_class(), &gold("allow", Some(403)));
    let output = desk.answered(&["test", "--junit", "report.xml"]);
    let text = out(&output);
    assert_eq!(code(&output), 1, "{text}");
    assert!(text.contains("FAILED gold (./cases.json:"), "{text}");
    assert!(text.contains("status: expected 403, found nothing"), "{text}");
    assert!(!text.contains("FAILED barred") && text.contains("passed 1 of 2 cases"), "{text}");

    let report = parsed(&desk.answered(&["test", "--json"]));
    let case = &report["policies"][0]["cases"][0];
    assert_eq!(case["differences"], json!([{"what": "status", "expected": 403, "found": null}]));
    assert_eq!((&case["passed"], &report["failed"]), (&json!(false), &json!(1)));

    let cases = junit_cases(&desk.path("report.xml"));
    assert_eq!(cases.len(), 2);
    assert_eq!(cases[0]["name"], "gold");
    assert_eq!(cases[0]["failure"], "status: expected 403, found nothing");
    assert!(cases[1]["failure"].is_null(), "{cases:?}");

    let output = desk.answered(&["test", "--filter", "barred"]);
    assert_eq!((code(&output), out(&output).contains("1 left out")), (0, true), "{}", out(&output));
    desk.cases(&gold("allow", None));
    assert_eq!(code(&desk.answered(&["test"])), 0, "control: as it should be, it passes");
    // A folder of folders, all of them: one that nobody has built is not passed over.
    let above = tempfile::tempdir().unwrap();
    fs::create_dir(above.path().join("one")).unwrap();
    for file in ["policy.wasm", "cases.json"] {
        fs::copy(desk.path(file), above.path().join("one").join(file)).unwrap();
    }
    let test = || command(&["test"]).arg(above.path()).args(PATIENT).output().unwrap();
    assert!(out(&test()).contains("all as expected: 2 cases"), "{:?}", test());
    fs::remove_file(above.path().join("one/policy.wasm")).unwrap();
    assert_eq!(code(&test()), 2);
}

#[test]
fn what_cannot_be_tested_is_exit_code_2_with_the_reason() {
    let desk = Desk::new(&rate_class(), &gold("allow", None));
    fs::write(desk.path("cases.json"), "[{\"name\": \"a\",\n  \"imput\": {}}]").unwrap();
    let output = desk.run(&["test"]);
    assert_eq!(code(&output), 2);
    assert!(complaint(&output).contains("cases.json:2:9: unknown field `imput`"), "{}", complaint(&output));
    desk.cases(&gold("allow", None));
    assert_eq!(code(&desk.run(&["test", "--filter", "no such case"])), 2);
    let output = desk.run(&["test", "--memory", "64KiB"]);
    assert_eq!(code(&output), 2);
    assert!(complaint(&output).contains("its limit is 65536; raise --memory"), "{}", complaint(&output));
    fs::remove_file(desk.path("policy.wasm")).unwrap();
    let output = desk.run(&["test"]);
    assert_eq!(code(&output), 2);
    assert!(complaint(&output).contains("build it first"), "{}", complaint(&output));
    fs::remove_file(desk.path("cases.json")).unwrap();
    assert!(complaint(&desk.run(&["test"])).contains("there is no cases.json in it"));
}

#[test]
fn coverage_names_what_no_case_runs() {
    let desk = Desk::named();
    let report = parsed(&desk.run(&["test", "--coverage", "--json"]));
    let coverage = &report["policies"][0]["coverage"];
    let ran = |name: &str| {
        coverage["parts"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap()["ran"].clone()
    };
    assert_eq!(coverage["of"], "functions");
    assert_eq!(
        (ran("decide"), ran("busy"), ran("seldom"), ran("never")),
        (json!(true), json!(true), json!(false), json!(false))
    );
    let text = out(&desk.run(&["test", "--coverage"]));
    assert!(text.contains("no case runs never, seldom"), "{text}");
    // Of a module without names, only how many.
    let output =
        command(&["test", folder().join("rate-class").to_str().unwrap(), "--coverage"]).output().unwrap();
    assert!(out(&output).contains("functions, of which the module does not say"), "{}", out(&output));
}

/// A program that runs until the test is over, and its lines.
struct Watching(Child, mpsc::Receiver<Value>);

impl Watching {
    fn start(desk: &Desk) -> Self {
        let mut child = command(&["test", "--watch", "--json"])
            .args(PATIENT)
            .current_dir(desk.0.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self(child, lines)
    }

    fn next(&self) -> (u64, u64) {
        let report = self.1.recv_timeout(PATIENCE).unwrap();
        (report["passed"].as_u64().unwrap(), report["failed"].as_u64().unwrap())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_change_of_the_cases_or_of_the_policy_is_tested_at_once() {
    let desk = Desk::new(&rate_class(), &gold("allow", None));
    let watching = Watching::start(&desk);
    assert_eq!(watching.next(), (2, 0));
    desk.cases(&gold("deny", None));
    assert_eq!(watching.next(), (1, 1));
    desk.cases(&gold("allow", None));
    assert_eq!(watching.next(), (2, 0));
    fs::copy(folder().join("hostile/trap.wasm"), desk.path("policy.wasm")).unwrap();
    assert_eq!(watching.next(), (0, 2));
}

fn selective() -> PathBuf {
    folder().join("hostile/selective.wasm")
}

#[test]
fn one_question_is_answered_with_all_that_happened() {
    let desk = Desk::new(&selective(), &json!([]));
    fs::write(desk.path("question"), "log:a\u{1b}line").unwrap();
    let output = desk.answered(&["run", "policy.wasm", "--opaque", "question"]);
    let text = out(&output);
    assert_eq!(code(&output), 0, "{}", complaint(&output));
    assert!(text.starts_with("allow\n") && text.contains("log info: a\\u{1b}line"), "{text}");
    assert!(text.contains("host calls: 1 of log") && text.contains("instructions, counted"), "{text}");
    let answer = parsed(&desk.answered(&["run", "policy.wasm", "--opaque", "question", "--json"]));
    assert_eq!(answer["host_calls"], json!([{"log": {"level": "info", "message": "a\u{1b}line"}}]));
    assert!(answer["instructions"].as_u64().unwrap() > 100, "{answer}");
    assert_eq!(answer["policy"]["limits"]["memory"], 4 << 20);
    for (question, expected) in [("deny", 1), ("trap", 2)] {
        fs::write(desk.path("question"), question).unwrap();
        let output = desk.answered(&["run", "policy.wasm", "--opaque", "question"]);
        assert_eq!(code(&output), expected, "{question}");
    }
    fs::write(desk.path("question"), "spin").unwrap();
    let output = desk.run(&["run", "policy.wasm", "--opaque", "question", "--deadline", "5ms"]);
    assert_eq!(
        (code(&output), out(&output).contains("deadline passed (run)")),
        (2, true),
        "{}",
        out(&output)
    );
    let output = desk.run(&["run", "nothing.wasm", "--opaque", "question"]);
    assert_eq!(code(&output), 3, "{}", complaint(&output));
    assert_eq!(code(&desk.run(&["run", "policy.wasm"])), 64);
}

#[test]
fn what_was_recorded_is_played_again_and_differences_are_named() {
    let desk = Desk::new(&selective(), &json!([]));
    fs::write(desk.path("question"), "random").unwrap();
    let record = |seed: &str| {
        let arguments =
            ["run", "policy.wasm", "--opaque", "question", "--seed", seed, "--record", "record.json"];
        assert_eq!(code(&desk.answered(&arguments)), 0);
    };
    record("7");
    let replay = || desk.answered(&["run", "policy.wasm", "--replay", "record.json"]);
    let output = replay();
    assert_eq!((code(&output), out(&output).contains("the same as recorded")), (0, true), "{}", out(&output));

    let kept = fs::read_to_string(desk.path("record.json")).unwrap();
    let mut changed: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(changed["calls"].as_array().unwrap().len(), 3);
    changed["case"]["seed"] = json!(8);
    changed["calls"][2] = json!({"clock": {"ns": 1}});
    fs::write(desk.path("record.json"), changed.to_string()).unwrap();
    let output = replay();
    let text = out(&output);
    assert_eq!(code(&output), 4, "{text}");
    for expected in
        ["metadata first: expected", "metadata bytes: expected", "host call 3: expected {\"clock\""]
    {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    // What was recorded is a case as well.
    let recorded: Value = serde_json::from_str(&kept).unwrap();
    desk.cases(&json!([recorded["case"]]));
    assert_eq!(code(&desk.answered(&["test"])), 0);
    // Another policy is said to be one.
    fs::write(desk.path("record.json"), kept).unwrap();
    fs::copy(folder().join("hostile/trap.wasm"), desk.path("policy.wasm")).unwrap();
    let output = replay();
    assert_eq!(code(&output), 4);
    assert!(out(&output).contains("another one than the one that was recorded"), "{}", out(&output));
    assert!(out(&output).contains("outcome: expected \"allow\", found \"trap\""), "{}", out(&output));
}

#[test]
fn a_measurement_has_figures_of_both_engines_and_a_picture() {
    let desk = Desk::named();
    let measure = || {
        let output = desk.answered(&["bench", ".", "--runs", "300", "--flame", "flame.svg", "--json"]);
        assert_eq!(code(&output), 0, "{}", complaint(&output));
        (parsed(&output), fs::read_to_string(desk.path("flame.svg")).unwrap())
    };
    let (figures, picture) = measure();
    assert_eq!((&figures["cases"], &figures["refused"]), (&json!(2), &json!(0)));
    assert_eq!(figures["timing"]["engine"], "worker");
    let timing = &figures["timing"]["run_ns"];
    assert!(timing["p50"].as_u64().unwrap() <= timing["p99"].as_u64().unwrap(), "{figures}");
    // Five instructions a turn and a few around it.
    let least = figures["instructions"]["least"].as_u64().unwrap();
    assert!((2000..4000).contains(&least), "{figures}");
    assert_eq!((&figures["memory"]["most"], &figures["memory"]["limit"]), (&json!(2 << 16), &json!(4 << 20)));
    assert_eq!(figures["output"]["limit"], 64 << 10);
    // Nearly all of it goes where the loop is.
    let share = |picture: &str| {
        let hint = picture.split("<title>busy: ").nth(1).unwrap();
        hint.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(share(&picture) > 90.0, "{picture}");
    assert!(picture.contains("<title>decide: ") && !picture.contains("never"), "{picture}");
    // Nothing of it is left to chance.
    let (again, same) = measure();
    assert_eq!((&again["instructions"], same), (&figures["instructions"], picture));

    let text = out(&desk.answered(&["bench", ".", "--runs", "10"]));
    assert!(text.contains("In the engine that a worker has, 10 decisions:"), "{text}");
    assert!(text.contains("In an engine that counts:") && text.contains("of 64 KiB"), "{text}");
}

/// The request, the seed and the clock are the only things that could differ between two runs.
#[test]
fn a_bundle_is_tried_with_its_own_code_and_never_gets_more_than_it_asks_for() {
    let desk = Desk::new(
        &selective(),
        &json!([
            {"name": "within", "input": {"opaque": {"text": "memory:1000000"}}, "expect": {"outcome": "allow"}},
            {"name": "beyond", "input": {"opaque": {"text": "memory:3000000"}}, "expect": {"outcome": "trap", "trap": "memory"}},
        ]),
    );
    let build = [
        "build",
        "policy.wasm",
        "--tenant",
        "acme",
        "--policy",
        "gate",
        "--version",
        "7",
        "--memory",
        "2MiB",
        "-o",
        "gate",
    ];
    // The bundle as well, which gets no more time than it asks for either.
    assert_eq!(code(&desk.answered(&build)), 0);
    let report = parsed(&desk.answered(&["test", "gate", "--memory", "64MiB", "--json"]));
    let policy = &report["policies"][0]["policy"];
    assert_eq!(report["failed"], 0, "{report}");
    assert_eq!((&policy["version"], &policy["code"]), (&json!(7), &json!("as in the bundle")));
    assert_eq!(policy["limits"]["memory"], 2 << 20);
    // Control: the module by itself gets what is asked for here.
    let report = parsed(&desk.answered(&["test", "policy.wasm", "--memory", "64MiB", "--json"]));
    assert_eq!(
        (&report["failed"], &report["policies"][0]["cases"][1]["name"]),
        (&json!(1), &json!("beyond"))
    );
}
