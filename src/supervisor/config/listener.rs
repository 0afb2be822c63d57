//! One of the gateway's listeners: `[gateway.listener.<name>]`.

use std::time::Duration;

use toml::de::DeValue;

use super::gateway::{GatewayListener, Place};
use super::read::{Reader, plain};
use super::telemetry::own_address;
use super::values::{grantable, grantable_id, mode, socket_path};
use super::{microseconds, places};
use crate::decision::PolicyName;
use crate::document::values::{boolean, duration, name, number, size, text};
use crate::document::{Found, Section};
use crate::wire::client::CLIENT_FRAME_MAX;
use crate::wire::gateway::{Binding, HttpForm, Listener, Original, SocketKind, Speaks};

const MICROSECOND: Duration = Duration::from_micros(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Room in a frame for what goes with a body: the request's headers, and names.
const BESIDE_BODY: u32 = 32 << 10;
/// The same where the file names a longer body.
const BESIDE_BODY_LEAST: u32 = 4 << 10;
/// Longest name of a listener, a header or a key, bytes.
const NAME_MAX: usize = 64;

impl<'d> Reader<'_, 'd> {
    pub(super) fn listener(&self, title: Found<&str>, mut section: Section<'d>) -> Option<GatewayListener> {
        let plain_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        if title.value.is_empty() || title.value.len() > NAME_MAX || !title.value.chars().all(plain_name) {
            let why = format!("listener: a name has 1 to {NAME_MAX} characters out of a-z 0-9 - _ .");
            self.complain(title.at, why);
        }
        let place = self.place(&mut section);
        let tcp = matches!(place, Some(Place::Tcp(_)));
        let peers = section.list("peers", grantable_id).unwrap_or_default();
        if tcp && let Some(first) = peers.first() {
            let why = "peers: who connects over TCP has no UID; make it a Unix socket".to_owned();
            self.complain(first.at, why);
        }
        let speaks = self.speaks(&mut section);
        let tenant = self.binding(&mut section, "tenant", tcp, speaks.as_ref());
        let policy = match &speaks {
            Some(Speaks::Opa { paths }) => {
                if section.has("policy") {
                    let why = "policy: a listener for OPA's clients has paths instead".to_owned();
                    self.complain(section.at(), why);
                    section.written("policy");
                }
                paths.first().map(|(_, policy)| Binding::Fixed(policy.clone()))
            }
            _ => self.binding(&mut section, "policy", tcp, speaks.as_ref()),
        };
        let deadline = section.defaulted("deadline", 50 * MILLISECOND, duration(100 * MICROSECOND..=MINUTE));
        let max_connections = section.defaulted("max_connections", 1024, number(1..=65536));
        let frame = u32::try_from(CLIENT_FRAME_MAX).unwrap_or(u32::MAX);
        let longest = frame.saturating_sub(BESIDE_BODY_LEAST);
        let max_body = section.defaulted("max_body", frame.saturating_sub(BESIDE_BODY), size(0..=longest));
        let details = section.defaulted("details", false, boolean);
        let section_at = section.at();
        section.finish();
        let (place, deadline) = (place?, deadline?.value);
        let socket = match place {
            Place::Unix(..) => SocketKind::Unix,
            Place::Tcp(_) => SocketKind::Tcp,
        };
        let (tenant, policy) = (tenant?, policy?);
        let peers = self.may_ask(section_at, plain(peers), [uids(&tenant), uids(&policy)]);
        let listener = Listener {
            name: title.value.to_owned(),
            socket,
            peers,
            speaks: speaks?,
            tenant,
            policy,
            deadline_us: microseconds(deadline),
            max_connections: max_connections?.value,
            max_body: max_body?.value,
            details: details?.value,
        };
        Some(GatewayListener { place, listener })
    }

    /// Who may connect: whoever is in every list that says so. Others could only keep places from those who may ask.
    fn may_ask(&self, at: usize, peers: Vec<u32>, tables: [Option<Vec<u32>>; 2]) -> Vec<u32> {
        let listed = (!peers.is_empty()).then_some(peers);
        let all = listed.into_iter().chain(tables.into_iter().flatten());
        let both =
            |one: Vec<u32>, other: Vec<u32>| one.into_iter().filter(|uid| other.contains(uid)).collect();
        match all.reduce(both) {
            None => Vec::new(),
            Some(none) if none.is_empty() => {
                self.complain(at, "peers: no UID is in all of peers and the tables of peers".to_owned());
                none
            }
            Some(some) => some,
        }
    }

    /// A Unix socket, or one for TCP on an address that only this machine reaches.
    fn place(&self, section: &mut Section<'d>) -> Option<Place> {
        let at = section.at();
        let one = section.has("socket") ^ section.has("listen");
        let socket = section.optional("socket", socket_path);
        let listen = section.optional("listen", own_address);
        let with_mode = section.has("socket_mode");
        let socket_mode = section.defaulted("socket_mode", 0o660, mode);
        if !one {
            self.complain(at, format!("{}: expected either \"socket\" or \"listen\"", section.title()));
            return None;
        }
        if let Some(socket) = socket {
            self.look(socket.at, places::socket_directory(&socket.value, self.owners));
            return Some(Place::Unix(socket.value, socket_mode?.value));
        }
        if with_mode && let Some(found) = socket_mode {
            self.complain(
                found.at,
                "socket_mode: every user of this machine reaches a TCP socket".to_owned(),
            );
        }
        listen.map(|listen| Place::Tcp(listen.value))
    }

    fn speaks(&self, section: &mut Section<'d>) -> Option<Speaks> {
        let protocol = section.required("protocol", text)?;
        match protocol.value {
            "envoy-grpc" => Some(Speaks::EnvoyGrpc),
            "spoe" => Some(Speaks::Spoe),
            "http" => self.http(section).map(Speaks::Http),
            "opa" => self.opa(section),
            other => {
                let why = format!("protocol: {other:?} is none; expected envoy-grpc, http, spoe or opa");
                self.complain(protocol.at, why);
                section.leave_rest();
                None
            }
        }
    }

    fn http(&self, section: &mut Section<'d>) -> Option<HttpForm> {
        let request = section.required("request", text);
        let prefix = section.optional("prefix", path_prefix);
        let client_address = section.optional("client_address", header_name);
        let timeout_ms = section.optional("timeout", header_name);
        let request = request?;
        let original = match request.value {
            "own" => Original::Own { prefix: prefix.map(|found| found.value).unwrap_or_default() },
            other @ ("x-original" | "x-original-url" | "x-forwarded") => {
                if let Some(found) = prefix {
                    let why = "prefix: only where the request is the proxy's \"own\"".to_owned();
                    self.complain(found.at, why);
                }
                match other {
                    "x-original" => Original::XOriginal,
                    "x-original-url" => Original::XOriginalUrl,
                    _ => Original::XForwarded,
                }
            }
            other => {
                let why = format!(
                    "request: {other:?} is none; expected own, x-original, x-original-url or x-forwarded"
                );
                self.complain(request.at, why);
                return None;
            }
        };
        Some(HttpForm {
            original,
            client_address: client_address.map(|found| found.value),
            timeout_ms: timeout_ms.map(|found| found.value),
        })
    }

    fn opa(&self, section: &mut Section<'d>) -> Option<Speaks> {
        let Some(paths) = section.section("paths") else {
            if !section.has("paths") {
                section.missing("paths");
            }
            return None;
        };
        let at = paths.at();
        let mut paths: Vec<_> = paths
            .entries(name::<PolicyName>)
            .into_iter()
            .map(|(path, policy)| {
                let parts: Vec<&str> = path.value.split('/').collect();
                let dots = |part: &&str| part.is_empty() || *part == "." || *part == "..";
                if parts.iter().any(dots) || !path.value.bytes().all(|byte| byte.is_ascii_graphic()) {
                    let why = format!(
                        "paths: {:?} is no path; write it as it stands behind /v1/data/, \"envoy/authz/allow\"",
                        path.value
                    );
                    self.complain(path.at, why);
                }
                (path.value.to_owned(), policy.value)
            })
            .collect();
        paths.sort();
        if paths.is_empty() {
            self.complain(at, "paths: names no path".to_owned());
            return None;
        }
        Some(Speaks::Opa { paths })
    }

    /// One name, or a table that says where it comes from.
    fn binding<T>(
        &self,
        section: &mut Section<'d>,
        key: &'static str,
        tcp: bool,
        speaks: Option<&Speaks>,
    ) -> Option<Binding<T>>
    where
        T: std::str::FromStr<Err: std::fmt::Display> + PartialEq,
    {
        let fixed = section.required(key, |value| match value.as_table() {
            Some(_) => Ok(None),
            None => name(value).map(Some),
        })?;
        if let Some(one) = fixed.value {
            return Some(Binding::Fixed(one));
        }
        let (mut table, at) = (section.section(key)?, fixed.at);
        let from = ["peer", "context", "header"].into_iter().filter(|one| table.has(one)).count();
        if from != 1 {
            self.complain(
                at,
                format!("{key}: expected a name, or a table with one of peer, context, header"),
            );
            table.leave_rest();
            table.finish();
            return None;
        }
        let binding = if table.has("peer") {
            if tcp {
                let why = format!("{key}: who connects over TCP has no UID; make it a Unix socket");
                self.complain(at, why);
            }
            self.by_peer(&mut table, key)
        } else {
            let (context, header) =
                (table.optional("context", context_key), table.optional("header", header_name));
            let among = plain(table.list("among", name).unwrap_or_default());
            if among.is_empty() {
                self.complain(at, format!("{key}: \"among\" is missing: the names that may come"));
            }
            let fits = match speaks {
                Some(Speaks::EnvoyGrpc) | None => true,
                Some(Speaks::Spoe) => context.is_some(),
                Some(Speaks::Http(_) | Speaks::Opa { .. }) => header.is_some(),
            };
            if !fits {
                let why = match header {
                    None => "a context: HTTP has none; name a header that the proxy sets on every request",
                    Some(_) => "a header: name an argument that the proxy sends, as a context",
                };
                self.complain(at, format!("{key}: this protocol does not have {why}"));
            }
            match (context, header) {
                (Some(key), None) => Some(Binding::Context { key: key.value, among }),
                (None, Some(name)) => Some(Binding::Header { name: name.value, among }),
                _ => None,
            }
        };
        table.finish();
        binding
    }

    fn by_peer<T>(&self, table: &mut Section<'d>, key: &str) -> Option<Binding<T>>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let peers = table.section("peer")?;
        let at = peers.at();
        let of = peers.entries(name::<T>).into_iter().filter_map(|(uid, one)| {
            let number = uid.value.parse::<u32>().ok().filter(|number| number.to_string() == uid.value);
            let number = match number.map(grantable) {
                Some(Ok(number)) => number,
                Some(Err(why)) => {
                    self.complain(uid.at, format!("{key}: {why}"));
                    return None;
                }
                None => {
                    self.complain(uid.at, format!("{key}: {:?} is not a UID", uid.value));
                    return None;
                }
            };
            Some((number, one.value))
        });
        let mut of: Vec<_> = of.collect();
        of.sort_by_key(|(uid, _)| *uid);
        if of.is_empty() {
            self.complain(at, format!("{key}: names no UID"));
        }
        Some(Binding::Peer(of))
    }
}

/// Those that a table of peers has, if it is one.
fn uids<T>(binding: &Binding<T>) -> Option<Vec<u32>> {
    match binding {
        Binding::Peer(of) => Some(of.iter().map(|(uid, _)| *uid).collect()),
        Binding::Fixed(_) | Binding::Context { .. } | Binding::Header { .. } => None,
    }
}

/// The name of a header, lower case.
fn header_name(value: &DeValue<'_>) -> Result<String, String> {
    let written = text(value)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if written.is_empty() || written.len() > NAME_MAX || !written.bytes().all(plain) {
        return Err(format!("{written:?} is not a header's name; write it in lower case, a-z 0-9 - _"));
    }
    Ok(written.to_owned())
}

fn context_key(value: &DeValue<'_>) -> Result<String, String> {
    let written = text(value)?;
    if written.is_empty() || written.len() > NAME_MAX || !written.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(format!("{written:?} is not a key; write 1 to {NAME_MAX} characters without spaces"));
    }
    Ok(written.to_owned())
}

/// What a proxy puts before the paths it asks about.
fn path_prefix(value: &DeValue<'_>) -> Result<String, String> {
    let written = text(value)?;
    let plain = written.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%".contains(&byte));
    if !written.is_empty() && (!written.starts_with('/') || written.ends_with('/') || !plain) {
        return Err(format!("{written:?} is not a prefix of paths; write it like \"/authz\""));
    }
    Ok(written.to_owned())
}
