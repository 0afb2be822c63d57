//! What OPA's Wasm modules leave to their host, to be run inside the sandbox beside the policy.
//!
//! Each family of functions is a feature, so that a policy is linked with those that it calls: `base` needs no large
//! crate; `tokens` are hashes, keys and JSON Web Tokens.
//!
//! [`find`] knows every function by its Rego name. A function gets [`Value`]s and gives one, or a [`Failure`], which in
//! Rego is undefined: the expression it stands in does not hold.

#![cfg_attr(
    not(all(feature = "base", feature = "regex", feature = "time", feature = "tokens", feature = "yaml")),
    allow(dead_code, reason = "families share what they are made of, and none uses all of it")
)]

mod arguments;
mod encoding;
mod format;
mod graph;
mod json;
mod net;
mod numbers;
mod semver;
mod strings;
mod text;
mod units;
mod uuid;
mod value;

#[cfg(feature = "tokens")]
mod crypto;
#[cfg(feature = "base")]
mod data;
#[cfg(feature = "tokens")]
mod jwt;
#[cfg(feature = "tokens")]
mod keys;
#[cfg(feature = "time")]
mod layout;
#[cfg(feature = "regex")]
mod regexes;
#[cfg(feature = "time")]
mod time;
#[cfg(feature = "yaml")]
mod yaml;

pub use encoding::{parse_query, unescape};
pub use text::{
    DEPTH_MAX, Unreadable, append_escaped, append_json, append_string, parse_json, parse_value, write_json,
    write_value,
};
pub use value::{Number, Value};

use arguments::Arguments;

/// What functions may ask of whoever runs the policy.
pub trait Host {
    /// When the request was received, nanoseconds since 1970.
    fn now_ns(&self) -> u64;
    /// 128 random bits, the same ones for the whole decision.
    fn seed(&self) -> [u8; 16];
    /// A line for the operator's log.
    fn log(&self, line: &str);
    /// What the tenant's data has under a key.
    #[cfg(feature = "base")]
    fn data(&self, _key: &str) -> Option<Vec<u8>> {
        None
    }
    /// Some of its entries whose keys begin with `prefix` and come after `after`, in their order; none where there are no more.
    #[cfg(feature = "base")]
    fn entries(&self, _prefix: &str, _after: Option<&str>) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }
}

/// Why a function has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub String);

impl Failure {
    fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

type Answer = Result<Value, Failure>;
type Function = fn(&dyn Host, Arguments<'_>) -> Answer;

/// A host capability of the policy's world that a function needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    Clock,
    Random,
    Log,
    Data,
}

/// One function.
#[derive(Clone, Copy)]
pub struct Builtin {
    pub name: &'static str,
    /// How many arguments it takes, without the result.
    pub arity: usize,
    pub capability: Option<Capability>,
    function: Function,
}

impl Builtin {
    /// # Errors
    /// If the function has no answer for these arguments.
    pub fn call(&self, host: &dyn Host, arguments: &[Value]) -> Answer {
        if arguments.len() != self.arity {
            return Err(Failure::new(format!("{} arguments, {} expected", arguments.len(), self.arity)));
        }
        (self.function)(host, Arguments(arguments))
    }
}

/// The function of this name.
#[must_use]
pub fn find(name: &str) -> Option<Builtin> {
    all().find(|builtin| builtin.name == name)
}

/// Everything that there is.
pub fn all() -> impl Iterator<Item = Builtin> {
    let tables: &[&[Builtin]] = &[
        #[cfg(feature = "base")]
        NOW,
        #[cfg(feature = "base")]
        data::FUNCTIONS,
        #[cfg(feature = "base")]
        encoding::FUNCTIONS,
        #[cfg(feature = "base")]
        graph::FUNCTIONS,
        #[cfg(feature = "base")]
        json::FUNCTIONS,
        #[cfg(feature = "base")]
        net::FUNCTIONS,
        #[cfg(feature = "base")]
        numbers::FUNCTIONS,
        #[cfg(feature = "base")]
        semver::FUNCTIONS,
        #[cfg(feature = "base")]
        strings::FUNCTIONS,
        #[cfg(feature = "base")]
        units::FUNCTIONS,
        #[cfg(feature = "base")]
        uuid::FUNCTIONS,
        #[cfg(feature = "tokens")]
        crypto::FUNCTIONS,
        #[cfg(feature = "tokens")]
        jwt::FUNCTIONS,
        #[cfg(feature = "regex")]
        regexes::FUNCTIONS,
        #[cfg(feature = "time")]
        time::FUNCTIONS,
        #[cfg(feature = "yaml")]
        yaml::FUNCTIONS,
    ];
    tables.iter().copied().flatten().copied().collect::<Vec<_>>().into_iter()
}

/// The clock is asked for by many policies that compute nothing with dates.
const NOW: &[Builtin] =
    &[with(Capability::Clock, "time.now_ns", 0, |host, _| Ok(i128::from(host.now_ns()).into()))];

const fn pure(name: &'static str, arity: usize, function: Function) -> Builtin {
    Builtin { name, arity, capability: None, function }
}

const fn with(capability: Capability, name: &'static str, arity: usize, function: Function) -> Builtin {
    Builtin { name, arity, capability: Some(capability), function }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().map(|builtin| builtin.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
