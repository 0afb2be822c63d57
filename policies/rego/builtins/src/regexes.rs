//! Regular expressions. Rust's and Go's are of one family; both take time in proportion to the text.

use regex::Regex;

use crate::arguments::Arguments;
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("regex.find_n", 3, find_n),
    pure("regex.replace", 3, replace),
    pure("regex.split", 2, split),
    pure("regex.template_match", 4, template_match),
];

/// Largest compiled expression, bytes.
const SIZE_MAX: usize = 1 << 20;

/// In Go, `\d`, `\w`, `\s` and `\b` are of ASCII, while `.` and classes are of characters.
fn compile(pattern: &str) -> Result<Regex, Failure> {
    let pattern = ascii_classes(pattern);
    let built = regex::RegexBuilder::new(&pattern).size_limit(SIZE_MAX).build();
    built.map_err(|error| Failure::new(format!("error parsing regexp: {error}")))
}

/// Writes Perl's classes out, so that they stand for what they stand for in Go.
fn ascii_classes(pattern: &str) -> String {
    let mut out = String::new();
    let mut chars = pattern.chars();
    let mut inside = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('d') => out.push_str(if inside { "0-9" } else { "[0-9]" }),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str(if inside { "0-9A-Za-z_" } else { "[0-9A-Za-z_]" }),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str(if inside { "\\t\\n\\f\\r " } else { "[\\t\\n\\f\\r ]" }),
                Some('S') => out.push_str("[^\\t\\n\\f\\r ]"),
                Some('b') if !inside => out.push_str("(?-u:\\b)"),
                Some('B') if !inside => out.push_str("(?-u:\\B)"),
                // A quotation, up to \E.
                Some('Q') => {
                    let rest = chars.as_str();
                    let (quoted, after) = rest.split_once("\\E").unwrap_or((rest, ""));
                    out.push_str(&regex::escape(quoted));
                    chars = after.chars();
                }
                Some(other) => {
                    out.push('\\');
                    out.push(other);
                }
                None => out.push('\\'),
            },
            '[' if inside => out.push_str(if chars.as_str().starts_with(':') { "[" } else { "\\[" }),
            '[' => {
                inside = true;
                out.push('[');
                // Where it comes first, a bracket closes nothing.
                for first in ['^', ']'] {
                    if chars.as_str().starts_with(first) {
                        chars.next();
                        out.push_str(if first == ']' { "\\]" } else { "^" });
                    }
                }
            }
            ']' if inside => {
                inside = out.ends_with(':');
                out.push(']');
            }
            '&' | '~' | '-' if inside && chars.as_str().starts_with(c) => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

fn find_n(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (regex, text, most) = (compile(arguments.string(0)?)?, arguments.string(1)?, arguments.small(2)?);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok(regex.find_iter(text).take(most).map(|found| found.as_str().into()).collect())
}

fn split(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (regex, text) = (compile(arguments.string(0)?)?, arguments.string(1)?);
    if !arguments.string(0)?.is_empty() && text.is_empty() {
        return Ok(Value::Array(vec!["".into()]));
    }
    // An empty match at either end separates nothing.
    let (mut parts, mut from) = (Vec::new(), 0);
    for found in regex.find_iter(text) {
        if found.end() == 0 || (found.is_empty() && found.start() == text.len()) {
            continue;
        }
        parts.push(text.get(from..found.start()).unwrap_or_default().into());
        from = found.end();
    }
    if from != text.len() || !parts.is_empty() || text.is_empty() {
        parts.push(text.get(from..).unwrap_or_default().into());
    }
    Ok(Value::Array(parts))
}

fn replace(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (text, pattern, value) = (arguments.string(0)?, arguments.string(1)?, arguments.string(2)?);
    Ok(compile(pattern)?.replace_all(text, value).into_owned().into())
}

fn template_match(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (template, text) = (arguments.string(0)?, arguments.string(1)?);
    let one = |index| {
        let mut chars = arguments.string(index)?.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.is_ascii() => Ok(c),
            _ => Err(Failure::new("delimiter has to be exactly one character long")),
        }
    };
    let (open, close) = (one(2)?, one(3)?);
    let unbalanced = || Failure::new("unbalanced braces");
    let (mut pattern, mut literal, mut inside, mut level) =
        (String::from("^"), String::new(), String::new(), 0_usize);
    for c in template.chars() {
        match (c, level) {
            (c, 0) if c == open => level = 1,
            (c, 0) if c == close => return Err(unbalanced()),
            (c, 0) => literal.push(c),
            (c, 1) if c == close => {
                compile(&inside)?;
                pattern.push_str(&format!("{}({inside})", regex::escape(&literal)));
                literal.clear();
                inside.clear();
                level = 0;
            }
            (c, _) => {
                level = if c == open {
                    level + 1
                } else if c == close {
                    level - 1
                } else {
                    level
                };
                inside.push(c);
            }
        }
    }
    if level != 0 {
        return Err(unbalanced());
    }
    pattern.push_str(&regex::escape(&literal));
    pattern.push('$');
    Ok(compile(&pattern)?.is_match(text).into())
}
