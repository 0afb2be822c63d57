//! Files of cases, in the format of OPA's suite.

use std::path::Path;

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::{asked, folder, read};

pub(crate) struct Case {
    pub(crate) note: String,
    pub(crate) query: String,
    pub(crate) modules: Vec<String>,
    pub(crate) data: Option<Value>,
    pub(crate) input: Option<Value>,
    /// The bindings that the query must give.
    pub(crate) results: Option<Vec<Value>>,
    /// The code of the error that it must end in instead.
    pub(crate) error: Option<String>,
    /// Fields that say more than these.
    pub(crate) more: Vec<String>,
}

pub(crate) fn of_file(path: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
    let yaml = YamlLoader::load_from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let cases = yaml.first().and_then(|document| document["cases"].as_vec());
    cases.unwrap_or_else(|| panic!("{path:?} has no cases")).iter().map(case).collect()
}

fn case(yaml: &Yaml) -> Case {
    let known = [
        "note",
        "query",
        "modules",
        "data",
        "input",
        "want_result",
        "want_error",
        "want_error_code",
        "sort_bindings",
        "entrypoints",
        "plan",
    ];
    let fields = yaml.as_hash().unwrap();
    let field = |name: &str| Some(&yaml[name]).filter(|value| !value.is_badvalue()).map(json);
    let text = |name: &str| yaml[name].as_str().unwrap_or_default().to_owned();
    Case {
        note: text("note"),
        query: text("query"),
        modules: yaml["modules"]
            .as_vec()
            .into_iter()
            .flatten()
            .filter_map(|m| m.as_str().map(str::to_owned))
            .collect(),
        data: field("data"),
        input: field("input"),
        results: field("want_result").map(|results| results.as_array().cloned().unwrap_or_default()),
        error: field("want_error_code").and_then(|code| code.as_str().map(str::to_owned)),
        more: fields
            .keys()
            .filter_map(|key| key.as_str().map(str::to_owned))
            .filter(|key| !known.contains(&key.as_str()))
            .collect(),
    }
}

fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Boolean(bool) => (*bool).into(),
        Yaml::Integer(int) => (*int).into(),
        Yaml::Real(text) => {
            serde_json::from_str(text).unwrap_or_else(|_| yaml.as_f64().unwrap_or(0.0).into())
        }
        Yaml::String(text) => text.as_str().into(),
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::Hash(entries) => entries
            .iter()
            .map(|(key, value)| {
                let key = key.as_str().map_or_else(|| json(key).to_string(), str::to_owned);
                (key, json(value))
            })
            .collect(),
        Yaml::Null | Yaml::Alias(_) | Yaml::BadValue => Value::Null,
    }
}

/// Numbers are equal by what they are, however they are written; the members of what may have been a set in any order.
pub(crate) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || one.as_f64().zip(other.as_f64()).is_some_and(|(one, other)| one == other)
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len()
                && (one.iter().zip(other).all(|(one, other)| same(one, other))
                    || one.iter().all(|one| other.iter().any(|other| same(one, other))))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        (one, other) => one == other,
    }
}

fn family(name: &str) {
    together(&folder().join("cases").join(name));
}

/// Many cases that one module has, behind the entrypoint that `make.py` writes.
fn together(path: &Path) {
    let name = path.display();
    let cases = of_file(&path.with_extension("yaml"));
    let policy = asked::policy_of(&read(path.with_extension("wasm")), None, None);
    let results = asked::results(&asked::ask_document(&policy, "{}"));
    let mut wrong = Vec::new();
    for case in &cases {
        let found = results.get(&case.note);
        let expected = case.results.as_ref().unwrap().first().map(|result| &result["x"]);
        let equal = match (found, expected) {
            (Some(found), Some(expected)) => same(found, expected),
            (found, expected) => found.is_none() && expected.is_none(),
        };
        if !equal {
            wrong.push(format!("{}: gave {found:?}, expected {expected:?}", case.note));
        }
    }
    let unknown: Vec<_> =
        results.keys().filter(|note| !cases.iter().any(|case| case.note == **note)).collect();
    assert!(unknown.is_empty(), "module and cases differ, run make.py: {unknown:?}");
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    println!("{name}: {} cases", cases.len());
}

/// Whatever somebody else put together in the same way: a suite is run in minutes instead of hours.
#[test]
fn of_others() {
    let Some(others) = std::env::var_os("REGO_TOGETHER") else { return };
    let mut failed = 0;
    for entry in Path::new(&others).read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "wasm") {
            failed += usize::from(std::panic::catch_unwind(|| together(&entry)).is_err());
        }
    }
    assert_eq!(failed, 0, "see above");
}

#[test]
fn strings() {
    family("strings");
}

#[test]
fn numbers() {
    family("numbers");
}

#[test]
fn semver() {
    family("semver");
}

#[test]
fn time() {
    family("time");
}

#[test]
fn crypto() {
    family("crypto");
}

#[test]
fn encoding() {
    family("encoding");
}

#[test]
fn regex() {
    family("regex");
}

#[test]
fn net() {
    family("net");
}

#[test]
fn json_and_graphs() {
    family("json");
}

#[test]
fn uuid() {
    family("uuid");
}

#[test]
fn jwt() {
    family("jwt");
}

#[test]
fn there_are_cases_of_every_kind() {
    let files: Vec<_> =
        folder().join("cases").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let files: Vec<_> =
        files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "yaml")).collect();
    assert_eq!(files.len(), 11, "a file of cases is not run: {files:?}");
    let count: usize = files.iter().map(|path| of_file(path).len()).sum();
    assert!(count > 150, "{count} cases");
}
