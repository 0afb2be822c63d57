//! Sorts requests into the classes that a rate limiter further on counts, and stops what no class should hold.
//!
//! The class goes out as `x-rate-class` and, as the number of tokens the request costs, `x-rate-weight`. Both replace
//! what the client may have sent.

#![no_std]

extern crate alloc;

use guest::{Answer, CacheScope, Decision, HttpRequest, Policy, Request};

/// What the limiter counts a request as.
struct Class {
    name: &'static str,
    weight: &'static str,
}

/// A class and when a request falls into it: if every condition holds.
struct Rule {
    class: Class,
    when: &'static [Condition],
}

enum Condition {
    Method(&'static [&'static str]),
    /// The path is this one or below it.
    Under(&'static str),
    /// The header is there exactly once and has this value; sent twice, it counts for nothing.
    Header(&'static str, &'static str),
    /// Some value of the header starts with this, in any case.
    HeaderStarts(&'static str, &'static str),
    NoHeader(&'static str),
}

use Condition::{Header, HeaderStarts, Method, NoHeader, Under};

/// The first rule whose conditions all hold decides; [`STANDARD`] if there is none.
const RULES: &[Rule] = &[
    rule("health", "0", &[Method(&["GET", "HEAD"]), Under("/healthz")]),
    rule("login", "20", &[Method(&["POST"]), Under("/v1/sessions")]),
    rule("export", "50", &[Under("/v1/exports")]),
    rule("batch", "10", &[Header("x-batch", "1"), Under("/v1")]),
    rule("script", "5", &[HeaderStarts("user-agent", "curl/")]),
    rule("script", "5", &[HeaderStarts("user-agent", "python-requests/")]),
    rule("script", "5", &[NoHeader("user-agent")]),
    rule("write", "3", &[Method(&["POST", "PUT", "PATCH", "DELETE"])]),
    rule("gold", "1", &[Header("x-plan", "gold")]),
];

const STANDARD: Class = Class { name: "standard", weight: "2" };

/// Methods that have no business at an API, whatever the rate.
const BARRED_METHODS: &[&str] = &["CONNECT", "TRACE", "TRACK"];

/// Header lines; more is someone who probes for limits.
const HEADERS_MAX: usize = 100;

struct RateClass;

impl Policy for RateClass {
    fn decide(request: Request) -> Answer {
        Ok(match request {
            Request::Http(request) => answer(&request),
            Request::Opaque(_) => Decision::deny(400, "expected an http request"),
        })
    }
}

guest::export!(RateClass);

fn answer(request: &HttpRequest) -> Decision {
    if BARRED_METHODS.contains(&&*request.method) {
        return Decision::deny(405, "method barred")
            .set_header("allow", "GET, HEAD, POST, PUT, PATCH, DELETE");
    }
    if request.headers.len() > HEADERS_MAX {
        return Decision::deny(431, "too many header lines");
    }
    let class = classify(request);
    Decision::allow()
        .set_header("x-rate-class", class.name)
        .set_header("x-rate-weight", class.weight)
        .metadata("rate-class", class.name)
        .cache(1_000, CacheScope::Request)
}

fn classify(request: &HttpRequest) -> &'static Class {
    RULES
        .iter()
        .find(|rule| rule.when.iter().all(|condition| condition.holds(request)))
        .map_or(&STANDARD, |rule| &rule.class)
}

impl Condition {
    fn holds(&self, request: &HttpRequest) -> bool {
        match *self {
            Method(methods) => methods.contains(&&*request.method),
            Under(prefix) => request.is_under(prefix),
            Header(name, value) => {
                let mut values = request.header(name);
                values.next() == Some(value.as_bytes()) && values.next().is_none()
            }
            HeaderStarts(name, start) => request.header(name).any(|value| {
                value.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
            }),
            NoHeader(name) => request.header(name).next().is_none(),
        }
    }
}

const fn rule(name: &'static str, weight: &'static str, when: &'static [Condition]) -> Rule {
    Rule { class: Class { name, weight }, when }
}
