//! The project's own rules, where a compiler does not see them: who imports whom, where `unsafe` may be, how long a file
//! may get, what is linked into the process with privilege, and whether the documents speak of things that exist.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test says no by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// One process each, or one program that only makes files for them. None knows another; they meet in `wire`.
const ROLES: [&str; 9] =
    ["supervisor", "spawner", "registry", "builder", "frontend", "worker", "exporter", "gateway", "fetcher"];
/// What roles and people's programs are made from. None of these knows who uses it.
const SHARED: [&str; 15] = [
    "accounts",
    "artifact",
    "bundle",
    "compile",
    "decision",
    "document",
    "engine",
    "journal",
    "ledger",
    "otlp",
    "sandbox",
    "signature",
    "table",
    "trust",
    "wire",
];
/// The only files with an `unsafe` outside tests: what the kernel or wasmtime offers in no other way.
const UNSAFE: [&str; 18] = [
    "src/accounts/map.rs",
    "src/artifact/mapped.rs",
    "src/cli/attest/family.rs",
    "src/engine/load.rs",
    "src/engine/target.rs",
    "src/frontend/peer.rs",
    "src/journal/stderr.rs",
    "src/sandbox/allocator.rs",
    "src/sandbox/end.rs",
    "src/sandbox/launch.rs",
    "src/sandbox/panic.rs",
    "src/sandbox/promptness.rs",
    "src/spawner/child.rs",
    "src/supervisor/signals.rs",
    "src/supervisor/spawn.rs",
    "src/wire/channel.rs",
    "src/wire/polled.rs",
    "src/worker/ticker.rs",
];
/// Lines before a file's tests. What is longer has two subjects.
const LINES_MAX: usize = 460;
/// Names that say nothing of what is in a file.
const NAMELESS: [&str; 10] =
    ["utils", "util", "common", "helpers", "helper", "misc", "types", "traits", "prelude", "shared"];
/// Machine code of the supervisor, bytes, in the largest profile (dev). A fifth of a worker's.
const SUPERVISOR_CODE_MAX: u64 = 2 << 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder`, as its path in the repository.
fn files(folder: &str, extension: &str) -> Vec<String> {
    fn walk(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                // What cargo, git and npm keep here is not the project's.
                if !["target", ".git", "node_modules"].iter().any(|theirs| path.ends_with(theirs)) {
                    walk(&path, extension, found);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    assert!(!found.is_empty(), "no .{extension} in {folder}");
    let name = |path: PathBuf| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.into_iter().map(name).collect()
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// A source file without its comments and without the tests at its end.
fn code(path: &str) -> String {
    let text = text(path);
    let before_tests = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    before_tests
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The room a source file is in: `worker` for `src/worker/load.rs`.
fn room(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap();
    inside.split(['/', '.']).next().unwrap()
}

/// Every `word` of a text, where it stands by itself.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// How many `super::` lead from a file's module to the crate: 1 from `src/wire/mod.rs`, 2 from `src/wire/frame.rs`.
fn depth(path: &str) -> usize {
    path.strip_prefix("src/").unwrap().trim_end_matches("/mod.rs").split('/').count()
}

/// The rooms that a file's code names: `crate::wire::..`, `crate::{wire, engine::..}`, `super::super::wire`.
fn rooms_named(code: &str, depth: usize) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for start in ["crate::".to_owned(), "portcullis::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&start) {
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(group) => named.extend(first_names(group)),
                None => named.extend(words(rest).next().map(str::to_owned)),
            }
        }
    }
    named
}

/// Of the inside of `{a, b::c, d::{e, f}}`: a, b and d.
fn first_names(group: &str) -> BTreeSet<String> {
    let (mut depth, mut names, mut expected) = (0, BTreeSet::new(), true);
    let mut rest = group;
    while let Some(c) = rest.chars().next() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' => expected |= depth == 0,
            c if c.is_alphabetic() && expected && depth == 0 => {
                names.extend(words(rest).next().map(str::to_owned));
                expected = false;
            }
            _ => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    names
}

#[test]
fn no_room_imports_another_roles_folder() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    // Who uses the others.
    let above: Vec<&str> = ROLES.into_iter().chain(["client", "cli", "rehearsal"]).collect();
    // What proxies embed is the protocol, and the words it is made of.
    let of_client: Vec<&str> = above.iter().copied().chain(SHARED).collect();
    let words_of_the_protocol = ["decision", "wire"];
    for path in files("src", "rs") {
        let here = room(&path).to_owned();
        let forbidden: Vec<&str> = match here.as_str() {
            // Made from what roles are made from, and none of them: what runs here is the same code, not the same process.
            "rehearsal" => above.iter().copied().filter(|room| *room != "rehearsal").collect(),
            "client" => {
                of_client.iter().copied().filter(|room| !words_of_the_protocol.contains(room)).collect()
            }
            // It asks as proxies that embed the client do.
            "gateway" => above.iter().copied().filter(|room| *room != "client").collect(),
            known if ROLES.contains(&known) || SHARED.contains(&known) => above.clone(),
            _ => continue,
        };
        seen.insert(here.clone());
        for named in rooms_named(&code(&path), depth(&path)) {
            if named != here && forbidden.contains(&named.as_str()) {
                wrong.push(format!("{path} names {named}"));
            }
            // Whom to trust is one role's to know, and what people's commands show of it.
            let who = ["registry", "cli", "trust", "signature", "ledger"];
            if ["trust", "signature", "ledger"].contains(&named.as_str()) && !who.contains(&here.as_str()) {
                wrong.push(format!("{path} names {named}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let rooms: BTreeSet<String> =
        ROLES.iter().chain(&SHARED).chain(&["client", "rehearsal"]).map(ToString::to_string).collect();
    assert_eq!(seen, rooms, "every room was looked at");
}

#[test]
fn imports_are_found_in_every_form() {
    let named = |code: &str| rooms_named(code, 2).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(named("use crate::worker::load;"), "worker");
    assert_eq!(
        named("use crate::{artifact, wire::{frame, client}, worker::tickets};"),
        "artifact wire worker"
    );
    assert_eq!(named("use crate::{\n    engine::{Slice,\n evaluate},\n};"), "engine");
    assert_eq!(named("fn f() { super::super::worker::run(super::client::g()) }"), "worker");
    assert_eq!(named("let x = portcullis::compile::build(y);"), "compile");
    assert_eq!((depth("src/decision.rs"), depth("src/wire/mod.rs"), depth("src/wire/frame.rs")), (1, 1, 2));
}

#[test]
fn unsafe_is_where_it_is_listed_and_justified() {
    let with_unsafe: Vec<String> = files("src", "rs")
        .into_iter()
        .filter(|path| !path.ends_with("/tests.rs") && words(&code(path)).any(|word| word == "unsafe"))
        .collect();
    assert_eq!(with_unsafe, UNSAFE, "unsafe belongs in as few files as possible; is there no other way?");
    for path in UNSAFE {
        let text = text(path);
        assert!(
            text.contains("JUSTIFICATION:") && text.contains("SAFETY:"),
            "{path}: unsafe without its reasons"
        );
    }
}

#[test]
fn files_have_one_subject_and_say_which() {
    let mut wrong = Vec::new();
    for path in files("src", "rs") {
        let lines = code(&path).lines().count();
        if lines > LINES_MAX && !path.ends_with("/tests.rs") {
            wrong.push(format!("{path}: {lines} lines before its tests, at most {LINES_MAX}"));
        }
        for part in path.trim_end_matches(".rs").split('/') {
            if NAMELESS.contains(&part) {
                wrong.push(format!("{path}: \"{part}\" does not say what is in it"));
            }
        }
        let begins = text(&path);
        if !path.starts_with("src/bin/") && !path.ends_with("/tests.rs") && !begins.starts_with("//!") {
            wrong.push(format!("{path}: does not begin with what it is for"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn programs_are_three_lines() {
    for path in files("src/bin", "rs") {
        assert!(text(&path).lines().count() <= 4, "{path}: programs only call their room's main");
    }
}

/// What is linked into the two processes with privilege. The same symbols are looked for where they must be.
#[test]
fn who_has_privilege_links_no_runtime_no_compiler_and_no_engine() {
    let supervisor = Program::read(env!("CARGO_BIN_EXE_portcullis-supervisor"));
    let spawner = Program::read(env!("CARGO_BIN_EXE_portcullis-spawner"));
    let frontend = Program::read(env!("CARGO_BIN_EXE_portcullis-frontend"));
    let worker = Program::read(env!("CARGO_BIN_EXE_portcullis-worker"));
    let command = Program::read(env!("CARGO_BIN_EXE_portcullis"));
    // Wasmtime exports some functions for its machine code to call; the linker keeps those in every program of this
    // crate. Without an engine, which these make, nothing can call them.
    for (what, symbol, has_it) in [
        ("a compiler", "cranelift_codegen", &command),
        ("a maker of components", "wit_component", &command),
        ("a command line parser", "clap_builder", &command),
        ("an engine", "6engine6Engine3new", &worker),
        ("a loader of machine code", "9component9component9Component", &worker),
        ("an event loop", "5tokio7runtime", &frontend),
    ] {
        assert!(
            has_it.functions_with(symbol) > 0,
            "{symbol} is not found where it is: the test sees nothing"
        );
        let found = supervisor.functions_with(symbol);
        assert_eq!(found, 0, "the supervisor has {what}: {found} functions with {symbol}");
        let found = spawner.functions_with(symbol);
        assert_eq!(found, 0, "the spawner has {what}: {found} functions with {symbol}");
    }
    // Whoever changes UIDs does not even read the configuration.
    assert!(supervisor.functions_with("toml") > 0, "the test sees nothing");
    assert_eq!(spawner.functions_with("toml"), 0, "the spawner has a parser of the configuration");
    let gateway = Program::read(env!("CARGO_BIN_EXE_portcullis-gateway"));
    for (what, symbol) in [("a compiler", "cranelift_codegen"), ("an engine", "6engine6Engine3new")] {
        assert_eq!(frontend.functions_with(symbol), 0, "the frontend has {what}");
        assert_eq!(gateway.functions_with(symbol), 0, "the gateway has {what}");
    }
    assert_eq!(worker.functions_with("5tokio7runtime"), 0, "the worker has an event loop besides its own");
    let code = supervisor.code_bytes;
    assert!(
        code < SUPERVISOR_CODE_MAX,
        "{code} bytes of code in the supervisor, at most {SUPERVISOR_CODE_MAX}"
    );
    assert!(
        code * 5 < worker.code_bytes * 2,
        "{code} bytes in the supervisor, {} in a worker",
        worker.code_bytes
    );
}

/// Who speaks HTTP and TLS is one program, which is no part of the service and has neither engine nor compiler.
#[test]
fn only_the_fetcher_has_a_network() {
    let fetcher = Program::read(env!("CARGO_BIN_EXE_portcullis-fetcher"));
    for (what, symbol) in [("HTTP", "7reqwest"), ("TLS", "6rustls")] {
        assert!(
            fetcher.functions_with(symbol) > 0,
            "{symbol} is not found where it is: the test sees nothing"
        );
        for (name, program) in [
            ("command", env!("CARGO_BIN_EXE_portcullis")),
            ("supervisor", env!("CARGO_BIN_EXE_portcullis-supervisor")),
            ("spawner", env!("CARGO_BIN_EXE_portcullis-spawner")),
            ("frontend", env!("CARGO_BIN_EXE_portcullis-frontend")),
            ("worker", env!("CARGO_BIN_EXE_portcullis-worker")),
            ("registry", env!("CARGO_BIN_EXE_portcullis-registry")),
            ("builder", env!("CARGO_BIN_EXE_portcullis-builder")),
            ("exporter", env!("CARGO_BIN_EXE_portcullis-exporter")),
            ("gateway", env!("CARGO_BIN_EXE_portcullis-gateway")),
        ] {
            assert_eq!(Program::read(program).functions_with(symbol), 0, "the {name} has {what}");
        }
    }
    for (what, symbol) in [("a compiler", "cranelift_codegen"), ("an engine", "6engine6Engine3new")] {
        assert_eq!(fetcher.functions_with(symbol), 0, "the fetcher has {what}");
    }
}

/// What stands behind WASI is put into policies by the command that builds them; whoever runs them or builds them again has none.
#[test]
fn nobody_but_the_command_has_wasi() {
    let functions = |program| Program::read(program).functions_with("4wasi");
    assert!(functions(env!("CARGO_BIN_EXE_portcullis")) > 0, "the test sees nothing");
    for (name, program) in [
        ("worker", env!("CARGO_BIN_EXE_portcullis-worker")),
        ("builder", env!("CARGO_BIN_EXE_portcullis-builder")),
        ("registry", env!("CARGO_BIN_EXE_portcullis-registry")),
    ] {
        assert_eq!(functions(program), 0, "the {name} has WASI");
    }
    let lock = text("Cargo.lock");
    assert!(lock.contains("name = \"wasmtime\"\n"), "the test sees nothing");
    for one in ["wasmtime-wasi", "wasi-common", "wasmtime-wasi-io"] {
        assert!(!lock.contains(&format!("name = \"{one}\"\n")), "{one}");
    }
}

/// Policies of megabytes are built, not committed.
#[test]
fn committed_policies_are_small() {
    let committed = [files("policies", "wasm"), files("policies", "gz")].concat();
    assert!(committed.iter().any(|path| path == "policies/template/c/policy.wasm"), "{committed:?}");
    for path in committed {
        let size = fs::metadata(root().join(&path)).unwrap().len();
        assert!(size <= 1_000_000, "{path} has {size} bytes");
    }
}

/// What somebody wrote to say who is trusted is read by whoever goes by it, and by the command that checks it for people.
#[test]
fn only_the_registry_and_the_command_read_trust_policies() {
    let parser = "10portcullis5trust4read";
    for (name, program, has_it) in [
        ("registry", env!("CARGO_BIN_EXE_portcullis-registry"), true),
        ("command", env!("CARGO_BIN_EXE_portcullis"), true),
        ("supervisor", env!("CARGO_BIN_EXE_portcullis-supervisor"), false),
        ("spawner", env!("CARGO_BIN_EXE_portcullis-spawner"), false),
        ("frontend", env!("CARGO_BIN_EXE_portcullis-frontend"), false),
        ("worker", env!("CARGO_BIN_EXE_portcullis-worker"), false),
        ("builder", env!("CARGO_BIN_EXE_portcullis-builder"), false),
        ("fetcher", env!("CARGO_BIN_EXE_portcullis-fetcher"), false),
        ("gateway", env!("CARGO_BIN_EXE_portcullis-gateway"), false),
    ] {
        let found = Program::read(program).functions_with(parser);
        assert_eq!(found > 0, has_it, "the {name} has {found} functions of {parser}");
    }
}

/// As much of an ELF file as the test needs: sizes of code, names of functions.
struct Program {
    functions: Vec<String>,
    code_bytes: u64,
}

impl Program {
    fn read(path: &str) -> Self {
        let bytes = fs::read(path).unwrap();
        assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "{path}: ELF, 64 bits, little-endian");
        let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()) as usize;
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        // Section headers: 64 bytes each; type at 4, flags at 8, offset at 24, size at 32, link at 40.
        let header = |number: usize| u64_at(40) + number * u16_at(58);
        let sections = (0..u16_at(60)).map(header);
        // SHT_PROGBITS and SHF_EXECINSTR.
        let code = sections.clone().filter(|at| u32_at(at + 4) == 1 && u64_at(at + 8) & 4 != 0);
        let code_bytes = code.map(|at| u64_at(at + 32) as u64).sum();
        // SHT_SYMTAB; the linked section has the names.
        let table = sections.clone().find(|at| u32_at(at + 4) == 2);
        let table = table.unwrap_or_else(|| panic!("{path}: stripped, so nothing can be said of it"));
        let names = u64_at(header(u32_at(table + 40)) + 24);
        let symbols = (u64_at(table + 24)..u64_at(table + 24) + u64_at(table + 32)).step_by(24);
        // STT_FUNC, defined here.
        let functions = symbols.filter(|at| bytes[at + 4] & 15 == 2 && u16_at(at + 6) != 0).map(|at| {
            let name = &bytes[names + u32_at(at)..];
            String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap()).into_owned()
        });
        Self { functions: functions.collect(), code_bytes }
    }

    fn functions_with(&self, part: &str) -> usize {
        self.functions.iter().filter(|name| name.contains(part)).count()
    }
}

/// The project's own documents.
fn documents() -> Vec<String> {
    let documents = files("", "md");
    for expected in ["README.md", "docs/architecture.md", "docs/threats.md", ".github/SECURITY.md"] {
        assert!(documents.iter().any(|path| path == expected), "{expected} is missing");
    }
    documents
}

#[test]
fn documents_link_to_what_exists() {
    let mut wrong = Vec::new();
    let mut links = 0;
    for document in documents() {
        let text = prose(&text(&document));
        let folder = Path::new(&document).parent().unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap();
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { root().join(&document) } else { root().join(folder).join(path) };
            if !path.exists() {
                wrong.push(format!("{document}: {target} is not there"));
            } else if !heading.is_empty() && !headings(&path).contains(heading) {
                wrong.push(format!("{document}: {target} has no such heading"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(links > 20, "{links} links: the test does not see them");
}

#[test]
fn documents_name_files_that_exist() {
    let mut wrong = Vec::new();
    let mut named = 0;
    for document in documents() {
        let text = prose(&text(&document));
        for (number, path) in text.split('`').enumerate() {
            let ours = [
                "src/",
                "tests/",
                "docs/",
                "policies/",
                "sandbox/",
                "benches/",
                "systemd/",
                ".ci/",
                ".github/",
            ];
            let is_path = number % 2 == 1
                && ours.iter().any(|folder| path.starts_with(folder))
                && path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            if is_path {
                named += 1;
                // From the top, or from where the document is.
                let beside = root().join(&document).parent().unwrap().join(path);
                if !root().join(path).exists() && !beside.exists() {
                    wrong.push(format!("{document}: `{path}` is not there"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(named > 40, "{named} files named: the test does not see them");
}

/// A promise whose test is gone is an empty one.
#[test]
fn tests_that_the_threat_model_names_exist() {
    let mut tests = String::new();
    for path in files("tests", "rs").into_iter().chain(files("src", "rs")) {
        tests.push_str(&text(&path));
    }
    let exists =
        |name: &str| tests.contains(&format!("fn {name}(")) || tests.contains(&format!("::{name}\""));
    assert!(exists("tests_that_the_threat_model_names_exist") && !exists("there_is_no_such_test"));
    let threats = text("docs/threats.md");
    let promises = threats.lines().filter(|line| line.starts_with("| T")).collect::<Vec<_>>().join("\n");
    let names = promises.split('`').skip(1).step_by(2).filter(|name| {
        name.matches('_').count() >= 2
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    });
    let (found, missing): (Vec<&str>, Vec<&str>) = names.partition(|name| exists(name));
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(found.len() > 50, "{} tests named: the test does not see them", found.len());
}

/// Whoever reads bundles with other tools goes by the document.
#[test]
fn every_media_type_is_in_the_document_of_bundles() {
    let names = |text: &str| -> BTreeSet<String> {
        let part_of_a_name = |c: char| c.is_alphanumeric() || "/.+-".contains(c);
        let all = text.split(|c| !part_of_a_name(c)).filter(|name| name.starts_with("application/"));
        all.map(|name| name.trim_end_matches('.').to_owned()).collect()
    };
    let ours = names(&text("src/bundle/media.rs"));
    assert!(ours.contains("application/vnd.portcullis.policy.v1") && ours.len() > 10, "{ours:?}");
    let document = names(&text("docs/bundle.md"));
    assert_eq!(ours.difference(&document).collect::<Vec<_>>(), Vec::<&String>::new(), "not documented");
    assert_eq!(document.difference(&ours).collect::<Vec<_>>(), Vec::<&String>::new(), "no such type");
}

/// Who counts system calls reads this table.
#[test]
fn the_table_of_system_calls_is_what_the_profiles_have() {
    let document = text("sandbox/README.md");
    for role in ROLES {
        let counts = ["x86_64", "aarch64"].map(|arch| {
            let profile = text(&format!("sandbox/{arch}/{role}.json"));
            let calls = profile.split("\"syscall\": \"").skip(1);
            let calls: BTreeSet<&str> = calls.filter_map(|rest| rest.split('"').next()).collect();
            calls.len().to_string()
        });
        let row = document.lines().find(|line| line.starts_with(&format!("| {role} |"))).expect(role);
        let said: Vec<&str> = row.split('|').map(str::trim).skip(3).take(2).collect();
        assert_eq!(said, counts, "{role}");
    }
}

#[test]
fn the_map_of_the_source_has_every_room() {
    let map = text("docs/architecture.md");
    for path in files("src", "rs") {
        let folder = Path::new(&path).parent().unwrap().to_str().unwrap();
        let named = map.contains(&format!("`{folder}/`")) || map.contains(&format!("`{path}`"));
        assert!(named, "docs/architecture.md does not mention {path} or its folder");
    }
}

#[test]
fn ci_types_what_the_readme_says() {
    let readme = text("README.md");
    let ci = text(".ci/run");
    for command in ["cargo build --release && ./target/release/portcullis demo", "cargo test"] {
        let typed = readme.lines().any(|line| line.trim_start_matches("$ ") == command);
        assert!(typed, "README.md does not show `{command}` as a line to type");
    }
    let last = ci.lines().rfind(|line| !line.trim().is_empty()).unwrap();
    assert_eq!(
        last, "step 'README: cargo test' cargo test",
        "CI ends with the summary of README's test command"
    );
}

/// Without what stands in fenced blocks.
fn prose(document: &str) -> String {
    let mut fenced = false;
    let outside = document.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    outside.collect::<Vec<_>>().join("\n")
}

/// The anchors of a document's headings, as they are on its web page.
fn headings(document: &Path) -> BTreeSet<String> {
    let text = prose(&fs::read_to_string(document).unwrap());
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let titles =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles
        .map(|title| {
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
            let again = times.entry(anchor.clone()).or_default();
            *again += 1;
            if *again == 1 { anchor } else { format!("{anchor}-{}", *again - 1) }
        })
        .collect()
}
