//! Every case of `tests/rego/cases` that is one call with plain values, without a policy around it: what OPA gave.
//! All of them, compiled, run in the project's own `tests/rego`.
#![cfg(all(feature = "base", feature = "regex", feature = "time", feature = "tokens", feature = "yaml"))]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test panics")]

use std::path::Path;

use rego_builtins::{Host, Value, find, parse_json, parse_value, write_json};
use yaml_rust2::YamlLoader;

struct Nobody;

impl Host for Nobody {
    fn now_ns(&self) -> u64 {
        1_700_000_000_000_000_000
    }

    fn seed(&self) -> [u8; 16] {
        [7; 16]
    }

    fn log(&self, _: &str) {}
}

/// The function and the arguments of `name(1, "a")`. None for what is more than that.
fn call(expression: &str) -> Option<(&str, Vec<Value>)> {
    let (name, arguments) = expression.strip_suffix(')')?.split_once('(')?;
    match parse_value(&format!("[{arguments}]")).ok()? {
        Value::Array(arguments) => Some((name, arguments)),
        _ => None,
    }
}

#[test]
fn functions_give_what_opa_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/rego/cases");
    let (mut called, mut wrong) = (0, Vec::new());
    for entry in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let yaml = YamlLoader::load_from_str(&std::fs::read_to_string(&entry).unwrap()).unwrap();
        for case in yaml[0]["cases"].as_vec().unwrap() {
            let module = case["modules"][0].as_str().unwrap();
            let expression = module.trim_end().split_once("p := ").unwrap().1;
            let Some((name, arguments)) = call(expression) else { continue };
            let builtin = find(name).unwrap_or_else(|| panic!("{name} is unknown"));
            called += 1;
            let expected = case["want_result"].as_vec().unwrap().first().map(|result| json(&result["x"]));
            let found = builtin.call(&Nobody, &arguments);
            // Sets have become arrays in what OPA printed.
            let shown = found.as_ref().ok().map(|value| parse_json(&write_json(value)).unwrap());
            if shown != expected {
                wrong.push(format!("{expression}\n    gave {found:?}\n    expected {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {called}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(called > 90, "only {called} cases are plain calls");
}

fn json(yaml: &yaml_rust2::Yaml) -> Value {
    use yaml_rust2::Yaml;
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(bool) => (*bool).into(),
        Yaml::Integer(int) => (*int).into(),
        Yaml::Real(_) => yaml.as_f64().unwrap().into(),
        Yaml::String(text) => text.as_str().into(),
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::Hash(entries) => {
            Value::Object(entries.iter().map(|(key, value)| (json(key), json(value))).collect())
        }
        other => panic!("{other:?}"),
    }
}
