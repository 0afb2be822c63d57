//! What Envoy knows of a request beyond HTTP, by names.
//!
//! | name | value |
//! |---|---|
//! | `context.KEY` | of `context_extensions`, and the same as `KEY` |
//! | `tls.sni` | with `include_tls_session` |
//! | `http.protocol` | `HTTP/1.1`, `HTTP/2` |
//! | `source.service`, `source.certificate`, `source.label.KEY`, the same for `destination` | where Envoy sends them |
//! | `metadata.FILTER.KEY`, `route.metadata.FILTER.KEY` | dynamic metadata and the route's: text as it is, else as JSON |
//! | `envoy.partial-body` | `true` or `false`, with `with_request_body` |

use std::borrow::Cow;

use super::{Check, PARTIAL_BODY, text};
use crate::gateway::envoy::messages::{Field, Kind, ListValue, Metadata, Peer, Struct};
use crate::gateway::verdict::Down;

/// Beginnings of names that are given here: an extension that has one is not repeated without its prefix.
const OURS: [&str; 8] =
    ["context.", "destination.", "envoy.", "http.", "metadata.", "route.metadata.", "source.", "tls."];

/// An attribute that outlives what it was made from.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Cow<'static, str>,
    pub(super) value: String,
}

/// Those of a check, in a fixed order.
pub(super) fn of(check: &Check) -> Result<Vec<Named>, Down> {
    let mut list = List(Vec::new());
    let context = &check.context;
    // Policies for OPA's Envoy plugin look for them by their own names; the last of a name is what those see, so ours win.
    for entry in &context.context_extensions {
        let (key, value) =
            (text("context_extensions", &entry.key)?, text("context_extensions", &entry.value)?);
        if !OURS.iter().any(|ours| key.starts_with(ours)) {
            list.add(key.to_owned(), value);
        }
    }
    for entry in &context.context_extensions {
        let (key, value) =
            (text("context_extensions", &entry.key)?, text("context_extensions", &entry.value)?);
        list.add(format!("context.{key}"), value);
    }
    if let Some(tls) = &context.tls_session {
        list.add_if_any("tls.sni", text("SNI", &tls.sni)?);
    }
    list.add_if_any("http.protocol", text("protocol", &check.http.protocol)?);
    list.peer("source", context.source.as_ref())?;
    list.peer("destination", context.destination.as_ref())?;
    list.metadata("metadata", context.metadata_context.as_ref())?;
    list.metadata("route.metadata", context.route_metadata_context.as_ref())?;
    if let Some(partial) = check.header(PARTIAL_BODY) {
        list.add("envoy.partial-body", partial);
    }
    Ok(list.0)
}

struct List(Vec<Named>);

impl List {
    fn add(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        self.0.push(Named { name: name.into(), value: value.into() });
    }

    fn add_if_any(&mut self, name: impl Into<Cow<'static, str>>, value: &str) {
        if !value.is_empty() {
            self.add(name, value);
        }
    }

    fn peer(&mut self, which: &str, peer: Option<&Peer>) -> Result<(), Down> {
        let Some(peer) = peer else { return Ok(()) };
        for (what, value) in [("service", &peer.service), ("certificate", &peer.certificate)] {
            if !value.is_empty() {
                self.add(format!("{which}.{what}"), text(what, value)?);
            }
        }
        let mut labels = peer.labels.clone();
        super::sort(&mut labels, "labels")?;
        for label in &labels {
            self.add(format!("{which}.label.{}", text("labels", &label.key)?), text("labels", &label.value)?);
        }
        Ok(())
    }

    fn metadata(&mut self, which: &str, metadata: Option<&Metadata>) -> Result<(), Down> {
        let Some(metadata) = metadata else { return Ok(()) };
        let mut found = Vec::new();
        for filter in &metadata.filter_metadata {
            for Field { key, value } in filter.value.iter().flat_map(|of| &of.fields) {
                let (filter, key) = (text("metadata", &filter.key)?, text("metadata", key)?);
                let value = match value.as_ref().and_then(|value| value.kind.as_ref()) {
                    Some(Kind::String(string)) => text("metadata", string)?.to_owned(),
                    kind => json(kind)?,
                };
                found.push(Named { name: format!("{which}.{filter}.{key}").into(), value });
            }
        }
        // It comes as maps, without an order.
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if found.windows(2).any(|pair| matches!(pair, [a, b] if a.name == b.name)) {
            return Err(super::bad(format!("the check's {which} has two values by one name")));
        }
        self.0.append(&mut found);
        Ok(())
    }
}

fn json(kind: Option<&Kind>) -> Result<String, Down> {
    let mut out = String::new();
    write(kind, &mut out)?;
    Ok(out)
}

/// As deep as messages nest, which the decoder bounds.
fn write(kind: Option<&Kind>, out: &mut String) -> Result<(), Down> {
    match kind {
        None | Some(Kind::Null(_)) => out.push_str("null"),
        Some(Kind::Bool(is)) => out.push_str(if *is { "true" } else { "false" }),
        // JSON has no word for the others.
        Some(Kind::Number(number)) if number.is_finite() => out.push_str(&number.to_string()),
        Some(Kind::Number(_)) => out.push_str("null"),
        Some(Kind::String(string)) => write_string(text("metadata", string)?, out),
        Some(Kind::List(ListValue { values })) => {
            out.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(value.kind.as_ref(), out)?;
            }
            out.push(']');
        }
        Some(Kind::Struct(Struct { fields })) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|a, b| a.key.cmp(&b.key));
            out.push('{');
            for (index, Field { key, value }) in fields.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(text("metadata", key)?, out);
                out.push(':');
                write(value.as_ref().and_then(|value| value.kind.as_ref()), out)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn write_string(string: &str, out: &mut String) {
    // With the quotes.
    out.push_str(&serde_json::Value::from(string).to_string());
}
