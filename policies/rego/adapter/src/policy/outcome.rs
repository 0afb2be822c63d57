//! The result of the policy as a decision. Only `true`, alone or as `allow` or `allowed`, lets a request through.

use rego_builtins::{Value, parse_json, write_json};

use crate::bindings::portcullis::policy::types::{
    CacheHint, CacheScope, Decision, Failure, Header, Metadatum, Obligations, Verdict,
};

/// What the operator reads where the policy gives no reason.
const UNDEFINED: &str = "undefined";
const DENIED: &str = "denied";
/// What is counted where the policy gives what is no decision.
const INVALID: &str = "invalid-result";

/// What a result has to be, as the policy's manifest declares it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Any of the others.
    Any,
    /// `true` or `false`.
    Boolean,
    /// An object with `allow`.
    Object,
    /// What OPA's plugin for Envoy takes: true, false, or an object with `allowed`.
    Envoy,
}

#[derive(Clone, Copy)]
enum Field {
    Allow,
    Reason,
    Set,
    Append,
    Remove,
    Status,
    Body,
    Metadata,
}

/// Names of fields, and which mappings know them.
const FIELDS: [(&str, Field, &[Mapping]); 14] = [
    ("allow", Field::Allow, &[Mapping::Object]),
    ("allowed", Field::Allow, &[Mapping::Envoy]),
    ("reason", Field::Reason, &[Mapping::Object, Mapping::Envoy]),
    ("headers", Field::Set, &[Mapping::Object, Mapping::Envoy]),
    ("response_headers_to_add", Field::Set, &[Mapping::Envoy]),
    ("headers_append", Field::Append, &[Mapping::Object]),
    ("headers_remove", Field::Remove, &[Mapping::Object]),
    ("request_headers_to_remove", Field::Remove, &[Mapping::Envoy]),
    ("status", Field::Status, &[Mapping::Object]),
    ("status_code", Field::Status, &[Mapping::Object]),
    ("http_status", Field::Status, &[Mapping::Envoy]),
    ("body", Field::Body, &[Mapping::Object, Mapping::Envoy]),
    ("metadata", Field::Metadata, &[Mapping::Object]),
    ("dynamic_metadata", Field::Metadata, &[Mapping::Envoy]),
];

/// From what [`super::evaluate`] gave.
pub(crate) fn decision(results: &str, mapping: Mapping) -> Result<Decision, Failure> {
    let decision = match results {
        r#"[{"result":true}]"# if mapping != Mapping::Object => plain(Verdict::Allow),
        r#"[{"result":false}]"# if mapping != Mapping::Object => plain(Verdict::Deny(DENIED.into())),
        "[]" => plain(Verdict::Deny(UNDEFINED.into())),
        results => parse_json(results)
            .map_err(|_| "result is no JSON".to_owned())
            .and_then(|results| structured(&results, mapping))
            .map_err(|detail| Failure { reason: INVALID.into(), detail })?,
    };
    Ok(decision)
}

fn plain(verdict: Verdict) -> Decision {
    let obligations = Obligations {
        status: None,
        headers_set: Vec::new(),
        headers_append: Vec::new(),
        headers_remove: Vec::new(),
        body: None,
        metadata: Vec::new(),
    };
    Decision { verdict, obligations, cache: CacheHint { ttl_ms: 0, scope: CacheScope::Request } }
}

fn structured(results: &Value, mapping: Mapping) -> Result<Decision, String> {
    let Value::Array(results) = results else { return Err("no results".into()) };
    let [result] = results.as_slice() else { return Err("more than one result".into()) };
    let result = result.get("result").ok_or("no result")?;
    let fields = match result {
        Value::Object(fields) if mapping != Mapping::Boolean => fields,
        other => return Err(format!("result is a {}", other.kind())),
    };
    let mut decision = plain(Verdict::Deny(DENIED.into()));
    let (mut allowed, mut reason) = (None, None);
    let obligations = &mut decision.obligations;
    for (name, value) in fields {
        let name = name.as_str().unwrap_or_default();
        let known = FIELDS.iter().find(|(known, ..)| *known == name);
        // What policies compute on the way, and what is for somebody else, is none of ours.
        let Some((_, field, of)) = known else { continue };
        if mapping != Mapping::Any && !of.contains(&mapping) {
            continue;
        }
        let wrong = || format!("{name} is a {}", value.kind());
        match field {
            Field::Allow => match value {
                Value::Bool(bool) if allowed.is_none_or(|other| other == *bool) => allowed = Some(*bool),
                _ => return Err(wrong()),
            },
            Field::Reason => reason = Some(value.as_str().ok_or_else(wrong)?.to_owned()),
            Field::Set => obligations.headers_set.extend(headers(value).ok_or_else(wrong)?),
            Field::Append => obligations.headers_append.extend(headers(value).ok_or_else(wrong)?),
            Field::Remove => obligations.headers_remove.extend(names(value).ok_or_else(wrong)?),
            Field::Status => {
                let status = value.as_int().ok_or_else(wrong)?;
                obligations.status = Some(u16::try_from(status).map_err(|_| wrong())?);
            }
            Field::Body => obligations.body = Some(value.as_str().ok_or_else(wrong)?.as_bytes().to_vec()),
            Field::Metadata => {
                let Value::Object(metadata) = value else { return Err(wrong()) };
                obligations.metadata.extend(
                    metadata.iter().map(|(key, value)| Metadatum { key: text(key), value: text(value) }),
                );
            }
        }
    }
    match allowed {
        Some(true) => decision.verdict = Verdict::Allow,
        Some(false) => decision.verdict = Verdict::Deny(reason.unwrap_or_else(|| DENIED.into())),
        None => {
            return Err(match mapping {
                Mapping::Object => "no allow in result",
                Mapping::Envoy => "no allowed in result",
                _ => "neither allow nor allowed in result",
            }
            .into());
        }
    }
    Ok(decision)
}

fn names(value: &Value) -> Option<Vec<String>> {
    let Value::Array(names) = value else { return None };
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| write_json(value), str::to_owned)
}

/// One object of names and values, or several of them; a value may be a list.
fn headers(value: &Value) -> Option<Vec<Header>> {
    match value {
        Value::Array(list) => list.iter().map(headers).collect::<Option<Vec<_>>>().map(|list| list.concat()),
        Value::Object(object) => {
            let mut headers = Vec::new();
            for (name, value) in object {
                let values = match value {
                    Value::Array(values) => values.as_slice(),
                    value => core::slice::from_ref(value),
                };
                for value in values {
                    let value = match value {
                        Value::String(_) | Value::Number(_) | Value::Bool(_) => text(value).into_bytes(),
                        _ => return None,
                    };
                    headers.push(Header { name: name.as_str()?.to_owned(), value });
                }
            }
            Some(headers)
        }
        _ => None,
    }
}
