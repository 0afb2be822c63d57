//! Which requests may go through: reading may, but for what is below `/admin`.
//!
//! It is called once per request, in a fresh instance: nothing it writes to its memory is there the next time. What it
//! may use of the host is in `wit/policy.wit`, and reaches it as `guest::{clock, data, log, metric, random}`; whatever is used becomes
//! an import, which a trust policy has to permit.

#![no_std]

use guest::{Answer, Decision, HttpRequest, Policy, Request};

struct Gate;

impl Policy for Gate {
    fn decide(request: Request) -> Answer {
        match request {
            Request::Http(request) => Ok(decide_http(&request)),
            Request::Opaque(_) => Ok(Decision::deny(400, "expected an http request")),
        }
    }
}

guest::export!(Gate);

/// The status is what the client should see, the reason what the operator should.
fn decide_http(request: &HttpRequest) -> Decision {
    if request.is_under("/admin") {
        return Decision::deny(403, "nobody administers from outside");
    }
    match request.method.as_str() {
        "GET" | "HEAD" => Decision::allow(),
        _ => Decision::deny(405, "read only"),
    }
}
