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

use super::{Check, PARTIAL_BODY, text};
use crate::gateway::envoy::messages::{Field, Kind, ListValue, Metadata, Peer, Struct};
use crate::gateway::verdict::{Code, Down};

/// Beginnings of names that are given here: an extension that has one is not repeated without its prefix.
const OURS: [&str; 8] =
    ["context.", "destination.", "envoy.", "http.", "metadata.", "route.metadata.", "source.", "tls."];
/// Most attributes. A policy is given no more.
const MOST: usize = 256;
/// Most bytes of their names and values together. Each name of a field has its filter's name in it, so that a message of a
/// megabyte could say many gigabytes.
const BYTES_MAX: usize = 1 << 20;

/// An attribute that outlives what it was made from.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) value: String,
}

/// Those of a check, in a fixed order.
pub(super) fn of(check: &Check) -> Result<Vec<Named>, Down> {
    let mut list = List { named: Vec::new(), left: BYTES_MAX };
    let context = &check.context;
    // Policies for OPA's Envoy plugin look for them by their own names; the last of a name is what those see, so ours win.
    for entry in &context.context_extensions {
        let (key, value) =
            (text("context_extensions", &entry.key)?, text("context_extensions", &entry.value)?);
        if !OURS.iter().any(|ours| key.starts_with(ours)) {
            list.add(&[key], value)?;
        }
    }
    for entry in &context.context_extensions {
        let (key, value) =
            (text("context_extensions", &entry.key)?, text("context_extensions", &entry.value)?);
        list.add(&["context.", key], value)?;
    }
    if let Some(tls) = &context.tls_session {
        list.add_if_any(&["tls.sni"], text("SNI", &tls.sni)?)?;
    }
    list.add_if_any(&["http.protocol"], text("protocol", &check.http.protocol)?)?;
    list.peer("source", context.source.as_ref())?;
    list.peer("destination", context.destination.as_ref())?;
    list.metadata("metadata", context.metadata_context.as_ref())?;
    list.metadata("route.metadata", context.route_metadata_context.as_ref())?;
    if let Some(partial) = check.header(PARTIAL_BODY) {
        list.add(&["envoy.partial-body"], partial)?;
    }
    Ok(list.named)
}

struct List {
    named: Vec<Named>,
    /// Bytes that there is room for.
    left: usize,
}

impl List {
    /// Adds one, if there is room for it: that is seen before it is made.
    fn add(&mut self, name: &[&str], value: &str) -> Result<(), Down> {
        self.take_room(name, value.len())?;
        self.named.push(Named { name: name.concat(), value: value.to_owned() });
        Ok(())
    }

    fn add_if_any(&mut self, name: &[&str], value: &str) -> Result<(), Down> {
        if value.is_empty() { Ok(()) } else { self.add(name, value) }
    }

    fn take_room(&mut self, name: &[&str], value: usize) -> Result<(), Down> {
        if self.named.len() == MOST {
            return Err(Down::new(Code::TooLarge, format!("the check has more than {MOST} attributes")));
        }
        let bytes = name.iter().fold(value, |sum, part| sum.saturating_add(part.len()));
        self.left = self.left.checked_sub(bytes).ok_or_else(too_many_bytes)?;
        Ok(())
    }

    fn peer(&mut self, which: &str, peer: Option<&Peer>) -> Result<(), Down> {
        let Some(peer) = peer else { return Ok(()) };
        for (what, value) in [("service", &peer.service), ("certificate", &peer.certificate)] {
            self.add_if_any(&[which, ".", what], text(what, value)?)?;
        }
        let mut labels = peer.labels.clone();
        super::sort(&mut labels, "labels")?;
        for label in &labels {
            self.add(&[which, ".label.", text("labels", &label.key)?], text("labels", &label.value)?)?;
        }
        Ok(())
    }

    fn metadata(&mut self, which: &str, metadata: Option<&Metadata>) -> Result<(), Down> {
        let Some(metadata) = metadata else { return Ok(()) };
        let before = self.named.len();
        for filter in &metadata.filter_metadata {
            for Field { key, value } in filter.value.iter().flat_map(|of| &of.fields) {
                let name = [which, ".", text("metadata", &filter.key)?, ".", text("metadata", key)?];
                match value.as_ref().and_then(|value| value.kind.as_ref()) {
                    Some(Kind::String(string)) => self.add(&name, text("metadata", string)?)?,
                    kind => {
                        self.take_room(&name, 0)?;
                        let value = json(kind, self.left)?;
                        self.left = self.left.saturating_sub(value.len());
                        self.named.push(Named { name: name.concat(), value });
                    }
                }
            }
        }
        // It comes as maps, without an order.
        let found = self.named.get_mut(before..).unwrap_or_default();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        if found.windows(2).any(|pair| matches!(pair, [a, b] if a.name == b.name)) {
            return Err(super::bad(format!("the check's {which} has two values by one name")));
        }
        Ok(())
    }
}

fn too_many_bytes() -> Down {
    Down::new(Code::TooLarge, format!("the check's attributes have more than {BYTES_MAX} bytes together"))
}

/// As JSON, of at most `max` bytes.
fn json(kind: Option<&Kind>, max: usize) -> Result<String, Down> {
    let mut out = Json { text: String::new(), max };
    out.value(kind)?;
    Ok(out.text)
}

struct Json {
    text: String,
    max: usize,
}

impl Json {
    fn put(&mut self, text: &str) -> Result<(), Down> {
        if text.len() > self.max.saturating_sub(self.text.len()) {
            return Err(too_many_bytes());
        }
        self.text.push_str(text);
        Ok(())
    }

    /// As deep as messages nest, which the decoder bounds.
    fn value(&mut self, kind: Option<&Kind>) -> Result<(), Down> {
        match kind {
            None | Some(Kind::Null(_)) => self.put("null"),
            Some(Kind::Bool(is)) => self.put(if *is { "true" } else { "false" }),
            // JSON has no word for the others.
            Some(Kind::Number(number)) if number.is_finite() => self.put(&number.to_string()),
            Some(Kind::Number(_)) => self.put("null"),
            Some(Kind::String(string)) => self.string(text("metadata", string)?),
            Some(Kind::List(ListValue { values })) => {
                self.put("[")?;
                for (index, value) in values.iter().enumerate() {
                    self.put(if index > 0 { "," } else { "" })?;
                    self.value(value.kind.as_ref())?;
                }
                self.put("]")
            }
            Some(Kind::Struct(Struct { fields })) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by(|a, b| a.key.cmp(&b.key));
                self.put("{")?;
                for (index, Field { key, value }) in fields.into_iter().enumerate() {
                    self.put(if index > 0 { "," } else { "" })?;
                    self.string(text("metadata", key)?)?;
                    self.put(":")?;
                    self.value(value.as_ref().and_then(|value| value.kind.as_ref()))?;
                }
                self.put("}")
            }
        }
    }

    fn string(&mut self, string: &str) -> Result<(), Down> {
        if string.len() > self.max {
            return Err(too_many_bytes());
        }
        // With the quotes.
        self.put(&serde_json::Value::from(string).to_string())
    }
}
