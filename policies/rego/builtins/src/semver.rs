//! Versions, by the rules of semver.org.

use std::cmp::Ordering;

use crate::arguments::Arguments;
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] =
    &[pure("semver.compare", 2, compare), pure("semver.is_valid", 1, is_valid)];

struct Version<'a> {
    numbers: [u64; 3],
    before: Vec<&'a str>,
}

/// A dotted list of identifiers, none of them empty.
fn identifiers(text: &str) -> Option<Vec<&str>> {
    let list: Vec<&str> = text.split('.').collect();
    let good = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    list.iter().all(good).then_some(list)
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    (digits && canonical).then(|| text.parse().ok()).flatten()
}

fn parse(text: &str) -> Option<Version<'_>> {
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    if let Some(build) = build {
        identifiers(build)?;
    }
    let (core, before) = text.split_once('-').map_or((text, None), |(core, before)| (core, Some(before)));
    let mut parts = core.split('.');
    let numbers = [number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?];
    if parts.next().is_some() {
        return None;
    }
    let before = before.map_or(Some(Vec::new()), identifiers)?;
    Some(Version { numbers, before })
}

fn compare(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let version = |index| {
        let text = arguments.string(index)?;
        parse(text).ok_or_else(|| Failure::new(format!("string {text} is not a valid SemVer")))
    };
    let (one, other) = (version(0)?, version(1)?);
    let order = one.numbers.cmp(&other.numbers).then_with(|| {
        match (one.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => before(&one.before, &other.before),
        }
    });
    Ok(Value::from(order as i64))
}

/// Numbers before words, numbers by value, and the longer list last.
fn before(one: &[&str], other: &[&str]) -> Ordering {
    let each = one.iter().zip(other).map(|(one, other)| match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one.cmp(&other),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => one.cmp(other),
    });
    each.fold(Ordering::Equal, Ordering::then).then(one.len().cmp(&other.len()))
}

fn is_valid(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(arguments.get(0)?.as_str().is_some_and(|text| parse(text).is_some()).into())
}
