//! Who may do what: roles by the identity that the proxy has authenticated, and rules by path and method.
//!
//! It is called once per request, in a fresh instance: nothing it writes to its memory is there the next time. What it
//! may use of the host is in `wit/policy.wit`, and reaches it as `guest::{clock, data, log, metric, random}`; whatever is
//! used becomes an import, which a trust policy has to permit.

#![no_std]

extern crate alloc;

use alloc::format;

use guest::{Answer, Decision, HttpRequest, Policy, Request};

struct Gate;

impl Policy for Gate {
    fn decide(request: Request) -> Answer {
        Ok(match request {
            Request::Http(request) => decide_http(&request),
            Request::Opaque(_) => Decision::deny(400, "expected an http request"),
        })
    }
}

guest::export!(Gate);

/// Which role an identity has that is this one or below it. The first that fits counts.
const ROLES: [(&str, &str); 3] = [
    ("spiffe://shop.example/web", "reader"),
    ("spiffe://shop.example/checkout", "writer"),
    ("spiffe://shop.example/ops", "admin"),
];

/// Who may use which method below which path. The first path that fits counts; what no rule names is nobody's.
const RULES: [Rule; 4] = [
    Rule { path: "/health", methods: &["GET"], roles: &["anyone"] },
    Rule { path: "/catalog", methods: &["GET", "HEAD"], roles: &["reader", "writer", "admin"] },
    Rule { path: "/orders", methods: &["GET", "POST"], roles: &["writer", "admin"] },
    Rule { path: "/admin", methods: &["GET", "POST", "PUT", "DELETE"], roles: &["admin"] },
];

struct Rule {
    path: &'static str,
    methods: &'static [&'static str],
    roles: &'static [&'static str],
}

fn decide_http(http: &HttpRequest) -> Decision {
    let Some(rule) = RULES.iter().find(|rule| http.is_under(rule.path)) else {
        return Decision::deny(404, "no rule for this path");
    };
    if !rule.methods.contains(&http.method.as_str()) {
        return Decision::deny(405, &format!("method not allowed below {}", rule.path));
    }
    let mut role = "anyone";
    if !rule.roles.contains(&role) {
        let Some(principal) = &http.source.principal else {
            return Decision::deny(401, "nobody is authenticated");
        };
        let Some(known) = role_of(principal) else {
            return Decision::deny(403, "identity has no role");
        };
        role = known;
        if !rule.roles.contains(&role) {
            return Decision::deny(403, &format!("role {role} may not use {}", rule.path));
        }
    }
    // What the client says of itself is not believed by anybody behind the proxy.
    Decision::allow().set_header("x-role", role).remove_header("x-forwarded-user").metadata("rule", rule.path)
}

fn role_of(principal: &str) -> Option<&'static str> {
    let is_under = |identity: &str| {
        principal.strip_prefix(identity).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ROLES.iter().find(|(identity, _)| is_under(identity)).map(|(_, role)| *role)
}
