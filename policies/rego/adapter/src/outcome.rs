//! The result of the policy as a decision. Only `true`, alone or as `allow` or `allowed`, lets a request through.

use rego_builtins::{Value, parse_json, write_json};

use crate::bindings::portcullis::policy::types::{
    CacheHint, CacheScope, Decision, Header, Metadatum, Obligations, Verdict,
};

/// What the operator reads where the policy gives no reason.
const UNDEFINED: &str = "undefined";
const DENIED: &str = "denied";

/// From what [`crate::opa::evaluate`] gave.
pub(crate) fn decision(results: &str) -> Decision {
    match results {
        r#"[{"result":true}]"# => plain(Verdict::Allow),
        r#"[{"result":false}]"# => plain(Verdict::Deny(DENIED.into())),
        "[]" => plain(Verdict::Deny(UNDEFINED.into())),
        results => parse_json(results)
            .map_err(|_| "result is no JSON".to_owned())
            .and_then(|results| structured(&results))
            .unwrap_or_else(|why| invalid(&why)),
    }
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

/// An answer that the host takes for invalid, whatever else it says, and prints: this world has no other way to say so.
fn invalid(why: &str) -> Decision {
    let mut decision = plain(Verdict::Deny(why.into()));
    decision.obligations.headers_set.push(Header { name: format!("rego: {why}"), value: Vec::new() });
    decision
}

fn structured(results: &Value) -> Result<Decision, String> {
    let Value::Array(results) = results else { return Err("no results".into()) };
    let [result] = results.as_slice() else { return Err("more than one result".into()) };
    let result = result.get("result").ok_or("no result")?;
    let Value::Object(fields) = result else {
        return match result {
            Value::Bool(true) => Ok(plain(Verdict::Allow)),
            Value::Bool(false) => Ok(plain(Verdict::Deny(DENIED.into()))),
            other => Err(format!("result is a {}", other.kind())),
        };
    };
    let mut decision = plain(Verdict::Deny(DENIED.into()));
    let (mut allowed, mut reason) = (None, None);
    let obligations = &mut decision.obligations;
    for (name, value) in fields {
        let wrong = || format!("{name} is a {}", value.kind());
        match name.as_str().unwrap_or_default() {
            "allow" | "allowed" => match value {
                Value::Bool(bool) if allowed.is_none_or(|other| other == *bool) => allowed = Some(*bool),
                _ => return Err(wrong()),
            },
            "reason" => reason = Some(value.as_str().ok_or_else(wrong)?.to_owned()),
            "headers" | "response_headers_to_add" => {
                obligations.headers_set.extend(headers(value).ok_or_else(wrong)?)
            }
            "request_headers_to_remove" => {
                let names = match value {
                    Value::Array(names) => {
                        names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                    }
                    _ => None,
                };
                obligations.headers_remove.extend(names.ok_or_else(wrong)?);
            }
            "http_status" | "status_code" | "status" => {
                let status = value.as_int().ok_or_else(wrong)?;
                obligations.status = Some(u16::try_from(status).map_err(|_| wrong())?);
            }
            "body" => obligations.body = Some(value.as_str().ok_or_else(wrong)?.as_bytes().to_vec()),
            "dynamic_metadata" => {
                let Value::Object(metadata) = value else { return Err(wrong()) };
                obligations.metadata.extend(
                    metadata.iter().map(|(key, value)| Metadatum { key: text(key), value: text(value) }),
                );
            }
            // What policies compute on the way, and what is for somebody else.
            _ => {}
        }
    }
    match allowed {
        Some(true) => decision.verdict = Verdict::Allow,
        Some(false) => decision.verdict = Verdict::Deny(reason.unwrap_or_else(|| DENIED.into())),
        None => return Err("neither allow nor allowed in result".into()),
    }
    Ok(decision)
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
