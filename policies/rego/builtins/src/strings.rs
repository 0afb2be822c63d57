//! Strings: `sprintf`, searching, templates, and what is left of Rego's own functions about itself.

use crate::arguments::Arguments;
use crate::text::write_json;
use crate::value::Value;
use crate::{Answer, Builtin, Capability, Failure, Host, format, pure, with};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("sprintf", 2, sprintf),
    pure("strings.any_prefix_match", 2, any_prefix_match),
    pure("strings.any_suffix_match", 2, any_suffix_match),
    pure("strings.count", 2, count),
    pure("strings.render_template", 2, render_template),
    pure("indexof_n", 2, indexof_n),
    pure("glob.quote_meta", 1, quote_meta),
    pure("opa.runtime", 0, runtime),
    with(Capability::Log, "trace", 1, trace),
    with(Capability::Log, "internal.print", 1, print),
];

fn sprintf(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(format::sprintf(arguments.string(0)?, arguments.array(1)?).into())
}

fn any_prefix_match(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (strings, prefixes) = (arguments.strings(0)?, arguments.strings(1)?);
    Ok(strings.iter().any(|string| prefixes.iter().any(|prefix| string.starts_with(prefix))).into())
}

fn any_suffix_match(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (strings, suffixes) = (arguments.strings(0)?, arguments.strings(1)?);
    Ok(strings.iter().any(|string| suffixes.iter().any(|suffix| string.ends_with(suffix))).into())
}

fn count(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (string, search) = (arguments.string(0)?, arguments.string(1)?);
    // Of nothing there is one before each character and one at the end.
    let count = if search.is_empty() { string.chars().count() + 1 } else { string.matches(search).count() };
    Ok(i64::try_from(count).unwrap_or(i64::MAX).into())
}

fn indexof_n(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (string, search) = (arguments.string(0)?, arguments.string(1)?);
    if search.is_empty() {
        return Err(Failure::new("empty search character"));
    }
    let starts = string
        .char_indices()
        .enumerate()
        .filter(|(_, (at, _))| string.get(*at..).is_some_and(|rest| rest.starts_with(search)));
    Ok(starts.map(|(index, _)| Value::from(i64::try_from(index).unwrap_or(i64::MAX))).collect())
}

fn quote_meta(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let mut quoted = String::new();
    for c in arguments.string(0)?.chars() {
        if "*?\\[]{}".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    Ok(quoted.into())
}

/// A policy learns nothing of where it runs.
fn runtime(_: &dyn Host, _: Arguments<'_>) -> Answer {
    Ok(Value::object([]))
}

fn trace(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    host.log(arguments.string(0)?);
    Ok(true.into())
}

/// Its argument is an array of sets: each operand of `print` has all the values that it can have.
fn print(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let mut lines = vec![String::new()];
    for operand in arguments.array(0)? {
        let values = crate::arguments::members(operand).unwrap_or_default();
        let values: Vec<String> = match values.as_slice() {
            [] => vec!["<undefined>".to_owned()],
            values => values
                .iter()
                .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                .collect(),
        };
        lines = lines
            .iter()
            .flat_map(|line| {
                values.iter().map(
                    move |value| {
                        if line.is_empty() { value.clone() } else { format!("{line} {value}") }
                    },
                )
            })
            .take(16)
            .collect();
    }
    lines.iter().for_each(|line| host.log(line));
    Ok(true.into())
}

/// Text with `{{.name}}` in it. Of Go's templates only that: a path of names, and nothing that computes.
fn render_template(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let variables = arguments.get(1)?;
    arguments.object(1)?;
    let mut rendered = String::new();
    let mut rest = arguments.string(0)?;
    while let Some((before, inside)) = rest.split_once("{{") {
        rendered.push_str(before);
        let (action, after) =
            inside.split_once("}}").ok_or_else(|| Failure::new("template: unclosed action"))?;
        let path = action.trim().strip_prefix('.');
        let path = path.ok_or_else(|| Failure::new("template: only names of variables are supported"))?;
        let mut value = variables;
        for name in path.split('.').filter(|name| !name.is_empty()) {
            if !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
                return Err(Failure::new("template: only names of variables are supported"));
            }
            value = value
                .get(name)
                .ok_or_else(|| Failure::new(format!("template: map has no entry for key {name:?}")))?;
        }
        match value {
            Value::String(string) => rendered.push_str(string),
            Value::Null => rendered.push_str("<no value>"),
            Value::Bool(_) | Value::Number(_) => rendered.push_str(&write_json(value)),
            _ => return Err(Failure::new("template: only strings, numbers and booleans are supported")),
        }
        rest = after;
    }
    rendered.push_str(rest);
    Ok(rendered.into())
}
