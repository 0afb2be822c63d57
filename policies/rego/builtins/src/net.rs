//! Networks by their addresses. Nothing here reaches one: names are not looked up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::arguments::{Arguments, members};
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("net.cidr_is_valid", 1, is_valid),
    pure("net.cidr_expand", 1, expand),
    pure("net.cidr_contains_matches", 2, contains_matches),
    pure("net.cidr_merge", 1, merge),
];

/// Most addresses that one network is expanded to: what a /16 has.
const EXPAND_MAX: u128 = 1 << 16;

/// A range of addresses of one family, first and last included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Network {
    v6: bool,
    first: u128,
    last: u128,
}

fn bits(v6: bool) -> u32 {
    if v6 { 128 } else { 32 }
}

/// An address as a number. Go writes an IPv4 address that came as IPv6 as what it is.
fn number(address: IpAddr) -> (bool, u128) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (false, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (true, u128::from(v6)),
    }
}

fn address(v6: bool, number: u128) -> IpAddr {
    if v6 {
        Ipv6Addr::from(number).into()
    } else {
        Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
    }
}

/// Last address of a network of `prefix` bits that starts at `first`.
fn last(first: u128, host_bits: u32) -> u128 {
    first | 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
}

fn parse(text: &str) -> Result<Network, Failure> {
    let invalid = || Failure::new(format!("invalid CIDR address: {text}"));
    let (ip, prefix) = text.split_once('/').ok_or_else(invalid)?;
    let ip: IpAddr = ip.parse().map_err(|_| invalid())?;
    let digits = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix: u32 =
        Some(prefix).filter(|_| digits).and_then(|text| text.parse().ok()).ok_or_else(invalid)?;
    let (v6, value) = match ip {
        IpAddr::V4(v4) => (false, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (true, u128::from(v6)),
    };
    let host_bits = bits(v6).checked_sub(prefix).ok_or_else(invalid)?;
    let first = value & !last(0, host_bits);
    Ok(Network { v6, first, last: last(first, host_bits) })
}

/// A network, or one address.
fn parse_either(text: &str) -> Result<Network, Failure> {
    match text.parse() {
        Ok(ip) => {
            let (v6, value) = number(ip);
            Ok(Network { v6, first: value, last: value })
        }
        Err(_) => parse(text),
    }
}

fn is_valid(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(arguments.get(0)?.as_str().is_some_and(|text| parse(text).is_ok()).into())
}

fn expand(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let network = parse(arguments.string(0)?)?;
    if network.last - network.first >= EXPAND_MAX {
        return Err(Failure::new("net.cidr_expand: more than 65536 addresses"));
    }
    let all = (network.first..=network.last).map(|number| address(network.v6, number).to_string().into());
    Ok(Value::Set(all.collect()))
}

/// The networks of an operand, each with what it is called in the result.
fn named(value: &Value) -> Result<Vec<(Network, Value)>, Failure> {
    let wrong = || Failure::new("element must be string or non-empty array");
    let text = |value: &Value| match value {
        Value::String(text) => parse_either(text),
        Value::Array(items) => items.first().and_then(Value::as_str).ok_or_else(wrong).and_then(parse_either),
        _ => Err(wrong()),
    };
    match value {
        Value::String(_) => Ok(vec![(text(value)?, value.clone())]),
        Value::Array(items) => {
            (0_i64..).zip(items).map(|(index, item)| Ok((text(item)?, index.into()))).collect()
        }
        Value::Set(items) => items.iter().map(|item| Ok((text(item)?, item.clone()))).collect(),
        Value::Object(object) => object.iter().map(|(key, item)| Ok((text(item)?, key.clone()))).collect(),
        _ => Err(wrong()),
    }
}

fn contains_matches(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let (networks, candidates) = (named(arguments.get(0)?)?, named(arguments.get(1)?)?);
    let mut pairs = BTreeSet::new();
    for (network, name) in &networks {
        for (candidate, other) in &candidates {
            if network.v6 == candidate.v6
                && network.first <= candidate.first
                && candidate.last <= network.last
            {
                pairs.insert(Value::Array(vec![name.clone(), other.clone()]));
            }
        }
    }
    Ok(Value::Set(pairs))
}

fn merge(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let list = members(arguments.get(0)?).ok_or_else(|| Failure::new("operand must be an array"))?;
    let networks = list.into_iter().map(|item| {
        let text = item.as_str().ok_or_else(|| Failure::new("element must be string"))?;
        classful(text)
    });
    let mut networks = networks.collect::<Result<Vec<_>, _>>()?;
    networks.sort_unstable();
    let mut merged: Vec<Network> = Vec::new();
    for network in networks {
        match merged.last_mut() {
            Some(before) if before.v6 == network.v6 && network.first <= before.last.saturating_add(1) => {
                before.last = before.last.max(network.last);
            }
            _ => merged.push(network),
        }
    }
    Ok(Value::Set(merged.into_iter().flat_map(blocks).map(Value::from).collect()))
}

/// A network, or the one that an IPv4 address was in when networks had classes: that is what OPA takes it for.
fn classful(text: &str) -> Result<Network, Failure> {
    let Ok(ip) = text.parse::<IpAddr>() else { return parse(text) };
    let host_bits = match ip {
        IpAddr::V4(v4) => match v4.octets() {
            [0..=127, ..] => 24,
            [128..=191, ..] => 16,
            [192..=223, ..] => 8,
            _ => return Err(Failure::new("an address without a network")),
        },
        IpAddr::V6(_) => return Err(Failure::new("IPv6 invalid: needs prefix length")),
    };
    let first = number(ip).1 & !last(0, host_bits);
    Ok(Network { v6: false, first, last: last(first, host_bits) })
}

/// The fewest networks that make up a range.
fn blocks(range: Network) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut first = range.first;
    loop {
        let aligned = if first == 0 { bits(range.v6) } else { first.trailing_zeros().min(bits(range.v6)) };
        let host_bits =
            (0..=aligned).rev().find(|host_bits| last(first, *host_bits) <= range.last).unwrap_or(0);
        blocks.push(format!("{}/{}", address(range.v6, first), bits(range.v6) - host_bits));
        match last(first, host_bits).checked_add(1) {
            Some(next) if next <= range.last => first = next,
            _ => return blocks,
        }
    }
}
