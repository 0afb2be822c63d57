//! What a policy answered, in the words of a case: written down as what is expected, and compared with it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::text::Bytes;
use crate::decision::{CacheHint, CacheScope, Decision, HeaderValue, Outcome, Refusal, TrapKind};
use crate::engine::{HostCall, Notes};

/// An answer, expected or given. What is not there must not be in the answer either, but for `metadata`, `cache`, `log`
/// and `metrics`, which are compared where they are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub outcome: Ending,
    /// Of `deny`, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of `failure`: what the policy says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Of `trap`: which kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trap: Option<Trap>,
    /// Of `invalid_output` and `refused`: a part of what the host says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers_set: Headers,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers_append: Headers,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers_remove: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Lines of the log, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Vec<String>>,
    /// What was added to its counters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<BTreeMap<String, u64>>,
}

/// Why a policy could not decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub reason: String,
    /// Compared where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Allow,
    Deny,
    /// It says itself that it could not decide.
    Failure,
    Trap,
    Deadline,
    InvalidOutput,
    /// In any other way than the ones above.
    Refused,
}

/// [`TrapKind`] in the words of its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trap {
    Unreachable,
    OutOfBounds,
    Stack,
    Memory,
    Arithmetic,
    IndirectCall,
    Abi,
    Other,
    Fuel,
    HostCalls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    pub ttl_ms: u32,
    pub scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Request,
    Client,
    Path,
}

/// Headers in the order of their names. As JSON an object, or where a name comes twice a list of `["name", "value"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Bytes)>);

/// Where an answer is not the one that was expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which part of it: "outcome", "headers_set x-user".
    pub what: String,
    /// As JSON; nothing where it should not be there.
    pub expected: Option<Value>,
    pub found: Option<Value>,
}

impl Answer {
    /// What nobody has answered yet.
    pub(super) fn nothing() -> Self {
        Self {
            outcome: Ending::Refused,
            reason: None,
            trap: None,
            says: None,
            status: None,
            headers_set: Headers::default(),
            headers_append: Headers::default(),
            headers_remove: Vec::new(),
            body: None,
            metadata: None,
            cache: None,
            log: None,
            metrics: None,
            failure: None,
        }
    }

    /// All that can be said of a decision.
    #[must_use]
    pub fn of(decision: &Decision, notes: &Notes) -> Self {
        let obligations = &decision.obligations;
        let outcome = ending(&decision.outcome);
        let (mut reason, mut failure, mut trap, mut says) = (None, None, None, None);
        match &decision.outcome {
            Outcome::Allow => {}
            Outcome::Deny { reason: why } => reason = Some(why.clone()),
            Outcome::Refused(Refusal::Trap(kind)) => trap = Some(Trap::of(*kind)),
            Outcome::Refused(Refusal::PolicyFailed { reason, detail }) => {
                failure = Some(Failure { reason: reason.clone(), detail: Some(detail.clone()) });
            }
            Outcome::Refused(Refusal::Deadline(_)) => {}
            Outcome::Refused(refusal) => says = Some(refusal.to_string()),
        }
        let decided = !matches!(decision.outcome, Outcome::Refused(_));
        let metadata = obligations.metadata.iter().map(|one| (one.key.clone(), one.value.clone()));
        let log = notes.calls.iter().filter_map(|call| match call {
            HostCall::Log { message, .. } => Some(message.clone()),
            _ => None,
        });
        let mut metrics = BTreeMap::new();
        for call in &notes.calls {
            if let HostCall::Metric { name, value, counted: true } = call {
                let sum: &mut u64 = metrics.entry(name.clone()).or_default();
                *sum = sum.wrapping_add(*value);
            }
        }
        Self {
            outcome,
            reason,
            failure,
            trap,
            says,
            status: obligations.status,
            headers_set: Headers::of(&obligations.headers_set),
            headers_append: Headers::of(&obligations.headers_append),
            headers_remove: obligations.headers_remove.clone(),
            body: obligations.body.as_ref().map(|body| Bytes(body.to_vec())),
            metadata: decided.then(|| metadata.collect()),
            cache: decided.then(|| Cache::of(decision.cache)),
            log: Some(log.collect()),
            metrics: Some(metrics),
        }
    }

    /// What `found` has that was not expected, and what was and it does not have.
    #[must_use]
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let mut differences = Differences::default();
        differences.compare("outcome", &Some(self.outcome), &Some(found.outcome));
        differences.compare("reason", &self.reason, &found.reason);
        let reason = |answer: &Self| answer.failure.as_ref().map(|failure| failure.reason.clone());
        differences.compare("failure reason", &reason(self), &reason(found));
        let detail = |answer: &Self| answer.failure.as_ref().and_then(|failure| failure.detail.clone());
        if detail(self).is_some() {
            differences.compare("failure detail", &detail(self), &detail(found));
        }
        differences.compare("trap", &self.trap, &found.trap);
        if let Some(part) = &self.says
            && !found.says.as_ref().is_some_and(|says| says.contains(part))
        {
            differences.compare("says", &self.says, &found.says);
        }
        differences.compare("status", &self.status, &found.status);
        differences.headers("headers_set", &self.headers_set, &found.headers_set);
        differences.headers("headers_append", &self.headers_append, &found.headers_append);
        let list = |names: &Vec<String>| (!names.is_empty()).then(|| names.clone());
        differences.compare("headers_remove", &list(&self.headers_remove), &list(&found.headers_remove));
        differences.compare("body", &self.body, &found.body);
        if let Some(expected) = &self.metadata {
            let nothing = BTreeMap::new();
            let found = found.metadata.as_ref().unwrap_or(&nothing);
            let keys: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
            for key in keys {
                differences.compare(&format!("metadata {key}"), &expected.get(key), &found.get(key));
            }
        }
        if self.cache.is_some() {
            differences.compare("cache", &self.cache, &found.cache);
        }
        if self.log.is_some() {
            differences.compare("log", &self.log, &found.log);
        }
        if self.metrics.is_some() {
            differences.compare("metrics", &self.metrics, &found.metrics);
        }
        differences.0
    }
}

#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn compare<T: PartialEq + Serialize>(&mut self, what: &str, expected: &Option<T>, found: &Option<T>) {
        if expected != found {
            let json = |value: &Option<T>| value.as_ref().map(|value| json!(value));
            self.0.push(Difference { what: what.to_owned(), expected: json(expected), found: json(found) });
        }
    }

    fn headers(&mut self, list: &str, expected: &Headers, found: &Headers) {
        let names = |headers: &Headers| headers.0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let mut all: Vec<String> = [names(expected), names(found)].concat();
        all.sort_unstable();
        all.dedup();
        for name in all {
            let values = |headers: &Headers| -> Option<Value> {
                let of_name = headers.0.iter().filter(|(other, _)| *other == name);
                let values: Vec<&Bytes> = of_name.map(|(_, value)| value).collect();
                match values.as_slice() {
                    [] => None,
                    [one] => Some(json!(one)),
                    many => Some(json!(many)),
                }
            };
            self.compare(&format!("{list} {name}"), &values(expected), &values(found));
        }
    }
}

fn ending(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::Allow => Ending::Allow,
        Outcome::Deny { .. } => Ending::Deny,
        Outcome::Refused(Refusal::PolicyFailed { .. }) => Ending::Failure,
        Outcome::Refused(Refusal::Trap(_)) => Ending::Trap,
        Outcome::Refused(Refusal::Deadline(_)) => Ending::Deadline,
        Outcome::Refused(Refusal::InvalidOutput(_)) => Ending::InvalidOutput,
        Outcome::Refused(_) => Ending::Refused,
    }
}

impl Trap {
    fn of(kind: TrapKind) -> Self {
        match kind {
            TrapKind::Unreachable => Self::Unreachable,
            TrapKind::OutOfBounds => Self::OutOfBounds,
            TrapKind::Stack => Self::Stack,
            TrapKind::Memory => Self::Memory,
            TrapKind::Arithmetic => Self::Arithmetic,
            TrapKind::IndirectCall => Self::IndirectCall,
            TrapKind::Abi => Self::Abi,
            TrapKind::Other => Self::Other,
            TrapKind::Fuel => Self::Fuel,
            TrapKind::HostCalls => Self::HostCalls,
        }
    }
}

impl Cache {
    fn of(hint: CacheHint) -> Self {
        let scope = match hint.scope {
            CacheScope::Request => Scope::Request,
            CacheScope::Client => Scope::Client,
            CacheScope::Path => Scope::Path,
        };
        Self { ttl_ms: hint.ttl_ms, scope }
    }
}

impl Headers {
    fn of(headers: &[HeaderValue]) -> Self {
        Self::sorted(headers.iter().map(|one| (one.name.clone(), Bytes(one.value.to_vec()))).collect())
    }

    fn sorted(mut headers: Vec<(String, Bytes)>) -> Self {
        // Lines of one name stay in their order.
        headers.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self(headers)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let twice = self.0.iter().zip(self.0.iter().skip(1)).any(|((one, _), (next, _))| one == next);
        if twice {
            self.0.serialize(serializer)
        } else {
            serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
        }
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of headers, or a list of [\"name\", \"value\"]")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers: Vec<(String, Bytes)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Bytes>()? {
                    if headers.iter().any(|(other, _)| *other == name) {
                        return Err(de::Error::custom(format!(
                            "header {name:?} is there twice; write a list of [\"name\", \"value\"]"
                        )));
                    }
                    headers.push((name, value));
                }
                Ok(Headers::sorted(headers))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(header) = list.next_element::<(String, Bytes)>()? {
                    headers.push(header);
                }
                Ok(Headers::sorted(headers))
            }
        }
        deserializer.deserialize_any(Shape)
    }
}

impl fmt::Display for Difference {
    /// One line: `status: expected 403, found nothing`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), Value::to_string);
        write!(f, "{}: expected {}, found {}", self.what, show(&self.expected), show(&self.found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Metadatum, Stage};

    fn answer(json: &str) -> Answer {
        serde_json::from_str(json).unwrap()
    }

    fn differences(expected: &str, found: &Answer) -> Vec<String> {
        answer(expected).differences(found).iter().map(ToString::to_string).collect()
    }

    fn given() -> Answer {
        let mut decision = Decision::refused(Refusal::Unavailable);
        decision.outcome = Outcome::Deny { reason: "no".into() };
        decision.obligations.status = Some(403);
        decision.obligations.headers_set = vec![
            HeaderValue { name: "b".into(), value: b"\xff".as_slice().into() },
            HeaderValue { name: "a".into(), value: "1".into() },
        ];
        decision.obligations.metadata = vec![Metadatum { key: "k".into(), value: "v".into() }];
        let line = HostCall::Log { level: crate::engine::LogLevel::Info, message: "line".into() };
        Answer::of(&decision, &Notes { calls: vec![line], ..Notes::default() })
    }

    #[test]
    fn an_answer_is_what_it_reads_as() {
        let given = given();
        let json = serde_json::to_string(&given).unwrap();
        assert_eq!(answer(&json), given, "{json}");
        assert!(given.differences(&given).is_empty());
        let twice = answer(r#"{"outcome": "allow", "headers_append": [["a", "2"], ["a", "1"]]}"#);
        assert_eq!(answer(&serde_json::to_string(&twice).unwrap()), twice);
    }

    #[test]
    fn what_is_not_asked_for_must_not_be_there_but_for_metadata_cache_and_log() {
        let least = r#"{"outcome": "deny", "reason": "no", "status": 403, "headers_set": {"a": "1", "b": {"hex": "ff"}}}"#;
        assert_eq!(differences(least, &given()), Vec::<String>::new());
        assert_eq!(
            differences(
                r#"{"outcome": "deny", "metrics": {}, "metadata": {"k": "w", "l": ""}, "log": [], "cache": {"ttl_ms": 1, "scope": "path"}}"#,
                &given()
            ),
            [
                "reason: expected nothing, found \"no\"",
                "status: expected nothing, found 403",
                "headers_set a: expected nothing, found \"1\"",
                "headers_set b: expected nothing, found {\"hex\":\"ff\"}",
                "metadata k: expected \"w\", found \"v\"",
                "metadata l: expected \"\", found nothing",
                r#"cache: expected {"scope":"path","ttl_ms":1}, found {"scope":"request","ttl_ms":0}"#,
                "log: expected [], found [\"line\"]",
            ]
        );
    }

    #[test]
    fn each_way_to_end_without_an_answer_is_told_apart() {
        let found = |refusal| Answer::of(&Decision::refused(refusal), &Notes::default());
        let trap = found(Refusal::Trap(TrapKind::OutOfBounds));
        assert_eq!(
            differences(r#"{"outcome": "trap", "trap": "out_of_bounds"}"#, &trap),
            Vec::<String>::new()
        );
        assert_eq!(
            differences(r#"{"outcome": "trap", "trap": "memory"}"#, &trap),
            ["trap: expected \"memory\", found \"out_of_bounds\""]
        );
        let failed = found(Refusal::PolicyFailed { reason: "no-data".into(), detail: "roles".into() });
        assert_eq!(
            differences(r#"{"outcome": "failure", "failure": {"reason": "no-data"}}"#, &failed),
            Vec::<String>::new()
        );
        assert_eq!(
            differences(r#"{"outcome": "failure", "failure": {"reason": "x", "detail": "y"}}"#, &failed),
            [
                "failure reason: expected \"x\", found \"no-data\"",
                "failure detail: expected \"y\", found \"roles\""
            ]
        );
        let late = found(Refusal::Deadline(Stage::Run));
        assert_eq!(differences(r#"{"outcome": "deadline"}"#, &late), Vec::<String>::new());
        assert_eq!(
            differences(r#"{"outcome": "allow"}"#, &late),
            ["outcome: expected \"allow\", found \"deadline\""]
        );
        let invalid = found(Refusal::InvalidOutput("status 999 is not 100 to 599".into()));
        assert_eq!(
            differences(r#"{"outcome": "invalid_output", "says": "status 999"}"#, &invalid),
            Vec::<String>::new()
        );
        assert_eq!(differences(r#"{"outcome": "invalid_output", "says": "status 998"}"#, &invalid).len(), 1);
    }

    #[test]
    fn unknown_words_are_refused() {
        for bad in [
            r#"{"outcome": "maybe"}"#,
            r#"{"outcome": "allow", "statsu": 1}"#,
            r#"{"outcome": "trap", "trap": "oom"}"#,
            r#"{"outcome": "allow", "headers_set": {"a": "1", "a": "2"}}"#,
            r#"{}"#,
        ] {
            assert!(serde_json::from_str::<Answer>(bad).is_err(), "{bad} was taken");
        }
    }
}
