//! From a verdict to the ACK that tells it: variables of HAProxy's transaction, set one after the other.
//!
//! The gate's own comes last: an answer that is cut off anywhere opens nothing. An answer is told as a whole. One that does
//! not fit, or that would have to call two things by one name, is told as a closed gate with nothing else.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{Ids, Kind, put_frame};
use super::request::HeadersAs;
use super::typed::{Typed, put_string, put_typed};
use crate::decision::{HeaderValue, Obligations};
use crate::gateway::verdict::{Code, Down, Gate, Verdict};

/// Longest name of a variable, bytes. HAProxy puts "txn.", the prefix and a dot before it, and has room for 63; that leaves
/// 14 for the prefix. Versions before 3.1 do not check it.
const NAME_MAX: usize = 44;
/// Longest reason, bytes; longer ones are cut: they are for a log.
const REASON_MAX: usize = 1024;
/// What the rest of a bare answer leaves for its reason in the smallest frame, bytes.
const SHORT_REASON_MAX: usize = 64;

/// How the answer to one question is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) ids: Ids,
    pub(super) headers_as: HeadersAs,
    /// Also which code decided, and how long it took.
    pub(super) details: bool,
    /// Largest frame, bytes.
    pub(super) frame_max: usize,
}

/// Appends the ACK.
pub(super) fn put_ack(out: &mut BytesMut, verdict: &Verdict, manner: Manner) {
    let why = match actions(verdict, manner) {
        Ok(actions) if ack(out, manner, &actions) => return,
        Ok(_) => "the answer does not fit max-frame-size".to_owned(),
        Err(why) => why,
    };
    let down = match &verdict.gate {
        Gate::Open => Down::new(Code::InvalidOutput, why),
        // Without the policy's own status: it may need what is left out, as a redirect does.
        Gate::Down(down) => Down { retry_after_ms: down.retry_after_ms, ..Down::new(down.code, why) },
    };
    let bare = Verdict {
        gate: Gate::Down(down),
        obligations: Obligations::default(),
        id: verdict.id,
        digest: None,
        timing: verdict.timing,
    };
    // The second one fits the smallest frame, whatever the ids; a test has the longest.
    for reason_max in [REASON_MAX, SHORT_REASON_MAX] {
        let mut actions = Actions::default();
        actions.outcome(&bare, reason_max);
        actions.set("allow", Typed::Bool(false));
        if ack(out, manner, &actions) {
            return;
        }
    }
}

fn ack(out: &mut BytesMut, manner: Manner, actions: &Actions) -> bool {
    put_frame(out, Kind::Ack, manner.ids, manner.frame_max, |out| out.put_slice(&actions.0))
}

fn actions(verdict: &Verdict, manner: Manner) -> Result<Actions, String> {
    let mut actions = Actions::default();
    actions.outcome(verdict, REASON_MAX);
    if manner.details {
        actions.details(verdict);
    }
    if !verdict.is_open() {
        actions.text("body", &verdict.body());
    }
    match manner.headers_as {
        HeadersAs::Variables => actions.variables(&verdict.obligations)?,
        HeadersAs::Lists => actions.lists(&verdict.obligations),
    }
    actions.set("allow", Typed::Bool(verdict.is_open()));
    Ok(actions)
}

/// Actions to set variables of a transaction, as they stand in a frame.
#[derive(Debug, Default)]
struct Actions(BytesMut);

impl Actions {
    fn set(&mut self, name: &str, value: Typed<'_>) {
        const SET_VAR: u8 = 1;
        const ARGUMENTS: u8 = 3;
        const TRANSACTION: u8 = 2;
        self.0.put_slice(&[SET_VAR, ARGUMENTS, TRANSACTION]);
        put_string(&mut self.0, name.as_bytes());
        put_typed(&mut self.0, value);
    }

    /// As text where it is some: HAProxy shows what is binary in hex.
    fn text(&mut self, name: &str, bytes: &[u8]) {
        let is_text = !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
        self.set(name, if is_text { Typed::Text(bytes) } else { Typed::Binary(bytes) });
    }

    fn outcome(&mut self, verdict: &Verdict, reason_max: usize) {
        let (word, status) = match &verdict.gate {
            Gate::Open => ("allow", 200),
            Gate::Down(down) => (down.code.word(), down.status),
        };
        self.set("outcome", Typed::Text(word.as_bytes()));
        self.set("status", Typed::Int32(status.into()));
        if let Some(id) = verdict.id {
            self.set("decision", Typed::Text(id.to_string().as_bytes()));
        }
        if let Gate::Down(down) = &verdict.gate {
            self.set("reason", Typed::Text(one_line(&down.reason, reason_max).as_bytes()));
            if let Some(wait) = down.retry_after_ms {
                self.set("retry_after_ms", Typed::Uint32(wait));
            }
        }
    }

    fn details(&mut self, verdict: &Verdict) {
        if let Some(digest) = &verdict.digest {
            self.set("digest", Typed::Text(digest.to_string().as_bytes()));
        }
        let timing = &verdict.timing;
        for (name, ns) in [
            ("queue_us", timing.queue_ns),
            ("instantiate_us", timing.instantiate_ns),
            ("run_us", timing.run_ns),
        ] {
            self.set(name, Typed::Uint64(ns / 1000));
        }
    }

    fn variables(&mut self, obligations: &Obligations) -> Result<(), String> {
        let mut named = Named::default();
        // Each replaces every header of its name, so the last one counts.
        for (index, header) in obligations.headers_set.iter().enumerate() {
            let later = obligations.headers_set.get(index + 1..).unwrap_or_default();
            if !later.iter().any(|later| later.name.eq_ignore_ascii_case(&header.name)) {
                named.add("header_", &header.name, header.value.clone())?;
            }
        }
        for header in &obligations.headers_append {
            named.append(header)?;
        }
        for name in &obligations.headers_remove {
            named.add_once("remove_", name)?;
        }
        for one in &obligations.metadata {
            named.add("meta_", &one.key, escaped(&one.value, b"%").into())?;
        }
        for (name, told) in &named.variables {
            match told {
                Told::Value(value) => self.text(name, value),
                Told::Lines { joined, .. } => self.text(name, joined),
                Told::Removed { .. } => self.set(name, Typed::Bool(true)),
            }
        }
        if !obligations.headers_remove.is_empty() {
            self.set("headers_remove", Typed::Text(obligations.headers_remove.join(",").as_bytes()));
        }
        Ok(())
    }

    fn lists(&mut self, obligations: &Obligations) {
        for (name, headers) in
            [("headers_set", &obligations.headers_set), ("headers_append", &obligations.headers_append)]
        {
            if !headers.is_empty() {
                let mut list = BytesMut::new();
                for header in headers {
                    put_string(&mut list, header.name.as_bytes());
                    put_string(&mut list, &header.value);
                }
                list.put_slice(&[0, 0]);
                self.set(name, Typed::Binary(&list));
            }
        }
        if !obligations.headers_remove.is_empty() {
            let mut list = BytesMut::new();
            for name in &obligations.headers_remove {
                put_string(&mut list, name.as_bytes());
            }
            list.put_u8(0);
            self.set("headers_remove", Typed::Binary(&list));
        }
        if !obligations.metadata.is_empty() {
            let pairs: Vec<_> = obligations
                .metadata
                .iter()
                .map(|one| format!("{}={}", escaped(&one.key, b"%&="), escaped(&one.value, b"%&=")))
                .collect();
            self.set("metadata", Typed::Text(pairs.join("&").as_bytes()));
        }
    }
}

/// Variables by their names, none of which may mean two things: "x-a" and "x_a" would.
#[derive(Debug, Default)]
struct Named {
    variables: BTreeMap<String, Told>,
    /// Cookies to be set so far.
    cookies: u32,
}

#[derive(Debug)]
enum Told {
    Value(Bytes),
    /// Several lines of one header, as HTTP lets them be one.
    Lines {
        of: String,
        joined: Bytes,
    },
    Removed {
        of: String,
    },
}

impl Named {
    fn add(&mut self, prefix: &str, called: &str, value: Bytes) -> Result<(), String> {
        self.put(variable(prefix, called)?, Told::Value(value))
    }

    /// A header may be named twice among those to be removed.
    fn add_once(&mut self, prefix: &str, called: &str) -> Result<(), String> {
        let (name, of) = (variable(prefix, called)?, called.to_ascii_lowercase());
        match self.variables.get(&name) {
            Some(Told::Removed { of: before }) if *before == of => Ok(()),
            _ => self.put(name, Told::Removed { of }),
        }
    }

    fn append(&mut self, header: &HeaderValue) -> Result<(), String> {
        let of = header.name.to_ascii_lowercase();
        // Each of these is a line of its own, and no comma joins two.
        if of == "set-cookie" {
            self.cookies += 1;
            let called = if self.cookies == 1 { of } else { format!("{of}_{}", self.cookies) };
            return self.add("append_", &called, header.value.clone());
        }
        let name = variable("append_", &of)?;
        match self.variables.get_mut(&name) {
            Some(Told::Lines { of: before, joined }) if *before == of => {
                let comma: &[u8] = if of == "cookie" { b"; " } else { b", " };
                *joined = [&**joined, comma, &*header.value].concat().into();
                Ok(())
            }
            _ => self.put(name, Told::Lines { of, joined: header.value.clone() }),
        }
    }

    fn put(&mut self, name: String, told: Told) -> Result<(), String> {
        match self.variables.entry(name) {
            Entry::Vacant(place) => {
                place.insert(told);
                Ok(())
            }
            Entry::Occupied(there) => Err(format!("two things of the answer are called {}", there.key())),
        }
    }
}

/// What a header or a key is called as a variable.
fn variable(prefix: &str, called: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if called.is_empty() || prefix.len() + called.len() > NAME_MAX || !called.bytes().all(legal) {
        let shown: String = called.chars().take(48).collect();
        return Err(format!("{shown:?} cannot be a variable's name; ask with headers_as=str(lists)"));
    }
    Ok(format!("{prefix}{}", called.to_ascii_lowercase().replace('-', "_")))
}

/// What a line of a log or a header can hold: control characters, and those of `also`, as "%" and two hex digits.
fn escaped(text: &str, also: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || u8::try_from(c).is_ok_and(|byte| also.contains(&byte)) {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                // Writing to a string does not fail.
                let _ = write!(out, "%{byte:02X}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The beginning of it, with spaces for what would end a line.
fn one_line(text: &str, max: usize) -> String {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::script::{Told as Shown, acked, hdrs};
    use super::*;
    use crate::artifact::Digest;
    use crate::decision::{DecisionId, Metadatum, Timing};

    fn manner(headers_as: HeadersAs, frame_max: usize) -> Manner {
        Manner { ids: Ids { stream: 7, frame: 2 }, headers_as, details: false, frame_max }
    }

    fn open(obligations: Obligations) -> Verdict {
        Verdict {
            gate: Gate::Open,
            obligations,
            id: Some(DecisionId::from_random([0xab; 16])),
            digest: None,
            timing: Timing::default(),
        }
    }

    fn denied(obligations: Obligations) -> Verdict {
        let mut down = Down::new(Code::Denied, "not\r\nyou");
        down.status = 451;
        down.retry_after_ms = Some(40);
        Verdict { gate: Gate::Down(down), ..open(obligations) }
    }

    fn told(verdict: &Verdict, manner: Manner) -> BTreeMap<String, Shown> {
        let mut out = BytesMut::new();
        put_ack(&mut out, verdict, manner);
        assert!(out.len() <= manner.frame_max + 4, "{} bytes", out.len());
        let (ids, told) = acked(&mut out);
        assert_eq!((ids, out.len()), (manner.ids, 0));
        assert_eq!(told.last().unwrap().0, "allow", "the gate's own is the last");
        let all = told.len();
        let told: BTreeMap<_, _> = told.into_iter().collect();
        assert_eq!(told.len(), all, "no name comes twice");
        told
    }

    fn header(name: &str, value: &str) -> HeaderValue {
        HeaderValue { name: name.into(), value: value.to_owned().into() }
    }

    fn text(text: &str) -> Shown {
        Shown::Text(text.into())
    }

    fn map<const N: usize>(all: [(&str, Shown); N]) -> BTreeMap<String, Shown> {
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn an_open_gate() {
        let id = "ab".repeat(16);
        let expected = [
            ("allow", Shown::Bool(true)),
            ("outcome", text("allow")),
            ("status", Shown::Int(200)),
            ("decision", text(&id)),
        ];
        let body = Obligations { body: Some("not for an open gate".into()), ..Obligations::default() };
        for headers_as in [HeadersAs::Variables, HeadersAs::Lists] {
            assert_eq!(told(&open(body.clone()), manner(headers_as, 256)), map(expected.clone()));
        }
    }

    #[test]
    fn a_closed_gate_for_every_code() {
        for code in Code::ALL {
            let verdict = Verdict::down(Down::new(*code, "why"));
            let expected = map([
                ("allow", Shown::Bool(false)),
                ("outcome", text(code.word())),
                ("status", Shown::Int(code.status().into())),
                ("reason", text("why")),
                ("body", text(&format!("{}\n", code.word()))),
            ]);
            assert_eq!(told(&verdict, manner(HeadersAs::Variables, 256)), expected);
        }
    }

    #[test]
    fn a_denial_with_a_body_and_headers() {
        let obligations = Obligations {
            headers_set: vec![header("WWW-Authenticate", "Bearer")],
            body: Some(Bytes::from_static(&[0xff, 0])),
            ..Obligations::default()
        };
        let mut verdict = denied(obligations);
        verdict.digest = Some(Digest::of(b"x"));
        verdict.timing = Timing { queue_ns: 1999, instantiate_ns: 2000, run_ns: 3_000_000, host_ns: 0 };
        let plain = told(&verdict, manner(HeadersAs::Variables, 1024));
        assert_eq!(
            plain,
            map([
                ("allow", Shown::Bool(false)),
                ("outcome", text("denied")),
                ("status", Shown::Int(451)),
                ("decision", text(&"ab".repeat(16))),
                ("reason", text("not  you")),
                ("retry_after_ms", Shown::Int(40)),
                ("body", Shown::Binary(vec![0xff, 0])),
                ("header_www_authenticate", text("Bearer")),
            ])
        );
        let mut detailed = told(&verdict, Manner { details: true, ..manner(HeadersAs::Variables, 1024) });
        for (name, value) in [
            ("digest", text(&Digest::of(b"x").to_string())),
            ("queue_us", Shown::Int(1)),
            ("instantiate_us", Shown::Int(2)),
            ("run_us", Shown::Int(3000)),
        ] {
            assert_eq!(detailed.remove(name), Some(value), "{name}");
        }
        assert_eq!(detailed, plain);
    }

    fn everything() -> Obligations {
        Obligations {
            status: None,
            headers_set: vec![header("X-User", "old"), header("x-user", "ann"), header("x.y_z", "")],
            headers_append: vec![
                header("via", "a"),
                header("Via", "b"),
                header("cookie", "a=1"),
                header("cookie", "b=2"),
                header("set-cookie", "a"),
                header("set-cookie", "b"),
            ],
            headers_remove: vec!["x-debug".into(), "X-Debug".into(), "te-st".into()],
            body: None,
            metadata: vec![Metadatum { key: "user.id".into(), value: "a&b=c%\r\né".into() }],
        }
    }

    #[test]
    fn headers_as_variables() {
        let mut told = told(&open(everything()), manner(HeadersAs::Variables, 1024));
        told.retain(|name, _| !["allow", "outcome", "status", "decision"].contains(&name.as_str()));
        let expected = map([
            ("header_x_user", text("ann")),
            ("header_x.y_z", text("")),
            ("append_via", text("a, b")),
            ("append_cookie", text("a=1; b=2")),
            ("append_set_cookie", text("a")),
            ("append_set_cookie_2", text("b")),
            ("remove_x_debug", Shown::Bool(true)),
            ("remove_te_st", Shown::Bool(true)),
            ("headers_remove", text("x-debug,X-Debug,te-st")),
            ("meta_user.id", text("a&b=c%25%0D%0Aé")),
        ]);
        assert_eq!(told, expected);
    }

    #[test]
    fn headers_as_lists() {
        let mut told = told(&open(everything()), manner(HeadersAs::Lists, 1024));
        told.retain(|name, _| !["allow", "outcome", "status", "decision"].contains(&name.as_str()));
        let binary = |bytes: &[u8]| Shown::Binary(bytes.to_vec());
        let set = hdrs(&[("X-User", b"old"), ("x-user", b"ann"), ("x.y_z", b"")]);
        let append = hdrs(&[
            ("via", b"a"),
            ("Via", b"b"),
            ("cookie", b"a=1"),
            ("cookie", b"b=2"),
            ("set-cookie", b"a"),
            ("set-cookie", b"b"),
        ]);
        let expected = map([
            ("headers_set", binary(&set)),
            ("headers_append", binary(&append)),
            ("headers_remove", binary(b"\x07x-debug\x07X-Debug\x05te-st\0")),
            ("metadata", text("user.id=a%26b%3Dc%25%0D%0Aé")),
        ]);
        assert_eq!(told, expected);
    }

    fn closed(obligations: Obligations, manner: Manner) -> Option<String> {
        let told = told(&open(obligations), manner);
        match (&told["allow"], &told["outcome"], told.get("reason")) {
            (Shown::Bool(true), ..) => None,
            (Shown::Bool(false), Shown::Text(code), Some(Shown::Text(reason))) => {
                assert_eq!((code.as_str(), &told["status"]), ("invalid_output", &Shown::Int(500)));
                assert_eq!(told.len(), 5, "nothing of the rest is told");
                Some(reason.clone())
            }
            _ => panic!("{told:?}"),
        }
    }

    #[test]
    fn what_has_no_name_of_its_own_closes_the_gate() {
        let set = |names: &[&str]| Obligations {
            headers_set: names.iter().map(|name| header(name, "1")).collect(),
            ..Obligations::default()
        };
        let append = |names: &[&str]| Obligations {
            headers_append: names.iter().map(|name| header(name, "1")).collect(),
            ..Obligations::default()
        };
        let remove = |names: &[&str]| Obligations {
            headers_remove: names.iter().map(ToString::to_string).collect(),
            ..Obligations::default()
        };
        let meta = |keys: &[&str]| Obligations {
            metadata: keys.iter().map(|key| Metadatum { key: (*key).into(), value: "1".into() }).collect(),
            ..Obligations::default()
        };
        let fits = "a".repeat(37);
        let variables = manner(HeadersAs::Variables, 1024);
        for (obligations, why) in [
            (set(&["x-a", "x-b"]), None),
            (set(&[&fits]), None),
            (set(&["x-a", "x_a"]), Some("are called header_x_a")),
            (set(&["x$a"]), Some("cannot be a variable's name")),
            (set(&[&format!("{fits}a")]), Some("cannot be a variable's name")),
            (append(&["x-a", "x_a"]), Some("are called append_x_a")),
            (append(&["set-cookie", "set-cookie", "set-cookie-2"]), Some("are called append_set_cookie_2")),
            (append(&["set-cookie-2", "set-cookie", "set-cookie"]), Some("are called append_set_cookie_2")),
            (remove(&["x-a", "x_a"]), Some("are called remove_x_a")),
            (meta(&["a", "a"]), Some("are called meta_a")),
            (meta(&["user id"]), Some("cannot be a variable's name")),
            (meta(&[""]), Some("cannot be a variable's name")),
        ] {
            let got = closed(obligations.clone(), variables);
            assert_eq!(got.is_some(), why.is_some(), "{got:?}");
            assert!(got.unwrap_or_default().contains(why.unwrap_or_default()), "{why:?}");
            assert_eq!(closed(obligations, manner(HeadersAs::Lists, 1024)), None, "lists take them all");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_as_a_closed_gate() {
        let value = |length| Obligations {
            headers_set: vec![header("x-a", &"v".repeat(length))],
            ..Obligations::default()
        };
        for headers_as in [HeadersAs::Variables, HeadersAs::Lists] {
            let manner = manner(headers_as, 16_380);
            assert_eq!(closed(value(16_000), manner), None);
            assert_eq!(
                closed(value(17_000), manner).as_deref(),
                Some("the answer does not fit max-frame-size")
            );
        }
        let page = Obligations { body: Some(vec![b'x'; 17_000].into()), ..Obligations::default() };
        let told = told(&denied(page), manner(HeadersAs::Variables, 16_380));
        assert_eq!(told["outcome"], text("denied"));
        assert_eq!(told["status"], Shown::Int(403), "a status that may need the rest is not told");
        assert_eq!(told["retry_after_ms"], Shown::Int(40));
        assert!(!told.contains_key("body"));
    }

    #[test]
    fn the_smallest_frame_has_room_for_every_closed_gate() {
        for code in Code::ALL {
            let mut down = Down::new(*code, "é".repeat(2000));
            (down.status, down.retry_after_ms) = (599, Some(u32::MAX));
            let verdict = Verdict { gate: Gate::Down(down), ..denied(everything()) };
            let ids = Ids { stream: u64::MAX, frame: u64::MAX };
            let manner = Manner { ids, details: true, ..manner(HeadersAs::Variables, 256) };
            assert_eq!(told(&verdict, manner)["outcome"], text(code.word()));
        }
    }
}
