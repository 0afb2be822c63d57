//! What is asked, and what the answers have to be.

use std::time::{Duration, Instant};

use serde::Deserialize;

use super::DemoError;
use super::event::{Answered, Ending, Event, Keeping, Unexpected, micros};
use super::scene::{Scene, SceneError, TENANTS};
use crate::artifact::Digest;
use crate::client::{ClientError, Deadline, Question, blocking};
use crate::decision::{Decision, InvalidName, Outcome, PolicyName, Refusal, Stage, Tenant};

/// For questions that are answered in microseconds; a machine that compiles something meanwhile may take longer.
const UNHURRIED: Duration = Duration::from_secs(5);
/// What the policy that never answers is given.
const SHORT: Duration = Duration::from_millis(5);
/// Where all requests of the demo go to.
const HOST: &str = "api.example.test";
/// Of the policy `jwt-gate`, made for all to see. Its private keys are in the repository: never use them for anything.
const TOKENS: &str = include_str!("../../../policies/jwt-gate/fixtures/tokens.json");

/// One question of the script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) tenant: &'static str,
    pub(super) policy: &'static str,
    /// In words.
    what: &'static str,
    request: Request,
    deadline: Duration,
    expected: Expected,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    method: &'static str,
    path: &'static str,
    /// Name of one of [`TOKENS`].
    token: Option<&'static str>,
    /// Address the proxy accepted the connection from.
    source: &'static str,
}

/// How a question has to end. A denial for another reason is not the expected one.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Allowed,
    Denied(u16, &'static str),
    TimedOut,
    Trapped,
}

const GET_ORDERS: Request =
    Request { method: "GET", path: "/v1/orders", token: Some("demo-orders"), source: "10.1.2.3:50123" };

const fn with(token: &'static str) -> Request {
    Request { token: Some(token), ..GET_ORDERS }
}

const fn ask(
    (tenant, policy): (&'static str, &'static str),
    what: &'static str,
    request: Request,
    expected: Expected,
) -> Ask {
    Ask { tenant, policy, what, request, deadline: UNHURRIED, expected }
}

/// The mixed stream: the good, the bad, and what goes on right after the bad.
pub(super) fn mixed() -> Vec<Ask> {
    use Expected::{Allowed, Denied, TimedOut, Trapped};
    let (acme, bank) = (("acme", "jwt-gate"), ("bank", "jwt-gate"));
    let login = Request { method: "POST", path: "/v1/sessions", token: None, ..GET_ORDERS };
    let dots = Request { path: "/v1/orders/../admin", ..GET_ORDERS };
    let plain = Request { token: None, ..GET_ORDERS };
    let stranger = Request { source: "203.0.113.9:50123", ..plain };
    let spin = ask(("acme", "spin"), "any request, to a policy that never answers; 5 ms", plain, TimedOut);
    vec![
        ask(acme, "GET /v1/orders with a token for orders", GET_ORDERS, Allowed),
        ask(
            acme,
            "GET /v1/orders with a token for profiles",
            with("demo-profile"),
            Denied(403, "scope missing"),
        ),
        ask(bank, "GET /v1/orders with an expired token", with("demo-expired"), Denied(401, "token expired")),
        ask(
            bank,
            "GET /v1/orders with an attacker's signature",
            with("attacker"),
            Denied(401, "signature wrong"),
        ),
        ask(bank, "GET /v1/orders/../admin with a good token", dots, Denied(403, "path ambiguous")),
        ask(("bank", "ip-allowlist"), "any request from 10.1.2.3", plain, Allowed),
        ask(
            ("bank", "ip-allowlist"),
            "any request from 203.0.113.9",
            stranger,
            Denied(403, "source address not listed"),
        ),
        ask(("acme", "rate-class"), "POST /v1/sessions: what should it be counted as?", login, Allowed),
        Ask { deadline: SHORT, ..spin },
        ask(acme, "the same worker right after that", GET_ORDERS, Allowed),
        ask(("acme", "trap"), "any request, to a policy that crashes", plain, Trapped),
        ask(acme, "the same worker right after that", GET_ORDERS, Allowed),
    ]
}

/// For the policy that is tampered with.
pub(super) fn to_ip_allowlist(what: &'static str) -> Ask {
    let plain = Request { token: None, ..GET_ORDERS };
    ask(("bank", "ip-allowlist"), what, plain, Expected::Allowed)
}

/// For the burst, one for each tenant: short ones, so that the way there and back is seen.
pub(super) fn short() -> [Ask; 2] {
    let plain = Request { token: None, ..GET_ORDERS };
    [
        ask(("acme", "rate-class"), "GET /v1/orders", plain, Expected::Allowed),
        ask(("bank", "ip-allowlist"), "GET /v1/orders", plain, Expected::Allowed),
    ]
}

/// A client, and how much it has asked.
#[derive(Debug)]
pub(super) struct Asker {
    client: blocking::Client,
    asked: u64,
}

impl Asker {
    pub(super) fn new(client: blocking::Client) -> Self {
        Self { client, asked: 0 }
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked
    }

    /// Somebody else asked so much.
    pub(super) fn count(&mut self, asked: u64) {
        self.asked += asked;
    }

    /// Connects, greets, and is handed to the worker of the tenant's class; its sign of life ends the time.
    pub(super) fn connect(&mut self, tenant: &'static str, within: Duration) -> Result<u64, DemoError> {
        let name = Tenant::new(tenant).map_err(SceneError::Name)?;
        let took = self.client.ping(&name, within);
        took.map(micros).map_err(|cause| DemoError::Connect { tenant, cause })
    }

    /// Asks, and compares the answer with the expected one.
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Event, DemoError> {
        let prepared = ask.prepare()?;
        let start = Instant::now();
        let answer = prepared.ask(&mut self.client, ask.deadline);
        let took = start.elapsed();
        self.asked += 1;
        Ok(Event::Decision(ask.answered(&answer, micros(took))))
    }
}

/// A question with all it borrows from.
pub(super) struct Prepared {
    tenant: Tenant,
    policy: PolicyName,
    request: Request,
    authorization: Option<String>,
    source: Option<std::net::SocketAddr>,
}

impl Prepared {
    pub(super) fn ask(
        &self,
        client: &mut blocking::Client,
        within: Duration,
    ) -> Result<Decision, ClientError> {
        let mut question = Question::http(self.request.method, "https", HOST, self.request.path)
            .header("user-agent", b"Mozilla/5.0");
        if let Some(authorization) = &self.authorization {
            question = question.header("authorization", authorization.as_bytes());
        }
        if let Some(source) = self.source {
            question = question.source(source);
        }
        // From when the worker reads it: on a busy machine the way there may take longer than a policy is to have, and what nobody
        // was asked about has no digest to show.
        let deadline = Deadline::Budget { us: u32::try_from(within.as_micros()).unwrap_or(u32::MAX) };
        client.decide(&self.tenant, &self.policy, deadline, question.input())
    }
}

impl Ask {
    /// Everything that is not part of asking.
    pub(super) fn prepare(&self) -> Result<Prepared, SceneError> {
        let names =
            || -> Result<_, InvalidName> { Ok((Tenant::new(self.tenant)?, PolicyName::new(self.policy)?)) };
        let (tenant, policy) = names()?;
        let authorization = self.request.token.and_then(token).map(|token| format!("Bearer {token}"));
        Ok(Prepared {
            tenant,
            policy,
            request: self.request,
            authorization,
            source: self.request.source.parse().ok(),
        })
    }

    pub(super) fn is_as_expected(&self, answer: &Result<Decision, ClientError>) -> bool {
        self.complaint(answer).is_none()
    }

    fn answered(&self, answer: &Result<Decision, ClientError>, micros: u64) -> Answered {
        let decision = answer.as_ref().ok();
        Answered {
            outcome: ending(answer),
            expected: self.expected.ending(),
            tenant: self.tenant,
            class: TENANTS.iter().find(|tenant| tenant.name == self.tenant).map_or("", |tenant| tenant.class),
            policy: self.policy,
            question: self.what,
            digest: decision.and_then(|decision| decision.digest),
            id: decision.and_then(|decision| decision.id),
            status: decision.and_then(|decision| decision.obligations.status),
            reason: reason(answer),
            micros,
            timing: decision.map(|decision| decision.timing),
            unexpected: Unexpected(self.complaint(answer).into_iter().collect()),
        }
    }

    fn complaint(&self, answer: &Result<Decision, ClientError>) -> Option<String> {
        let (found, reason) = (ending(answer), reason(answer));
        let status = answer.as_ref().ok().and_then(|decision| decision.obligations.status);
        let good = found == self.expected.ending()
            && match self.expected {
                Expected::Denied(expected, why) => status == Some(expected) && reason == why,
                Expected::Allowed | Expected::TimedOut | Expected::Trapped => true,
            };
        // Whatever a policy did, it is on record which one it was; but for a question that was late already when the
        // worker read it, no policy was looked up.
        let unread = Refusal::Deadline(Stage::Receipt);
        let unread = matches!(answer, Ok(decision) if decision.outcome == Outcome::Refused(unread));
        let nameless = digest(answer).is_none() && !unread;
        match (good, nameless) {
            (true, false) => None,
            (true, true) => Some("the answer does not name the policy that decided".to_owned()),
            (false, _) => Some(format!("expected {}", self.expected)),
        }
    }
}

impl Expected {
    fn ending(self) -> Ending {
        match self {
            Self::Allowed => Ending::Allowed,
            Self::Denied(..) => Ending::Denied,
            Self::TimedOut => Ending::TimedOut,
            Self::Trapped => Ending::Trapped,
        }
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::Denied(status, reason) => write!(f, "denied, {status} {reason}"),
            Self::TimedOut => f.write_str("refused at the deadline"),
            Self::Trapped => f.write_str("refused, the policy trapped"),
        }
    }
}

fn digest(answer: &Result<Decision, ClientError>) -> Option<Digest> {
    answer.as_ref().ok()?.digest
}

fn ending(answer: &Result<Decision, ClientError>) -> Ending {
    match answer.as_ref().map(|decision| &decision.outcome) {
        Ok(Outcome::Allow) => Ending::Allowed,
        Ok(Outcome::Deny { .. }) => Ending::Denied,
        Ok(Outcome::Refused(Refusal::Deadline(_))) => Ending::TimedOut,
        Ok(Outcome::Refused(Refusal::Trap(_))) => Ending::Trapped,
        Ok(Outcome::Refused(_)) => Ending::Refused,
        Err(_) => Ending::NoAnswer,
    }
}

/// The reason in words; of what is allowed, the headers that the proxy is told to set, else the metadata.
fn reason(answer: &Result<Decision, ClientError>) -> String {
    let decision = match answer {
        Ok(decision) => decision,
        Err(error) => return error.to_string(),
    };
    match &decision.outcome {
        Outcome::Deny { reason } => reason.clone(),
        Outcome::Refused(refusal) => refusal.to_string(),
        Outcome::Allow => {
            let obligations = &decision.obligations;
            let header = obligations
                .headers_set
                .first()
                .map(|header| format!("{}: {}", header.name, String::from_utf8_lossy(&header.value)));
            let metadatum = obligations.metadata.first().map(|pair| format!("{}: {}", pair.key, pair.value));
            header.or(metadatum).unwrap_or_default()
        }
    }
}

/// The token of that name, from the policy's own fixtures.
fn token(name: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Fixture {
        name: String,
        token: String,
    }
    let fixtures: Vec<Fixture> = serde_json::from_str(TOKENS).ok()?;
    fixtures.into_iter().find(|fixture| fixture.name == name).map(|fixture| fixture.token)
}

/// Lines for a shell that ask what the script asked. The tokens go to files: they are too long for a line.
pub(super) fn examples(scene: &Scene) -> Result<Keeping, SceneError> {
    for name in ["demo-orders", "demo-profile"] {
        scene.write(name, token(name).unwrap_or_default().as_bytes())?;
    }
    let (socket, operator_socket) = (scene.socket(), scene.operator_socket());
    let decide = |rest: String| format!("portcullis decide --socket {} {rest}", socket.display());
    let bearer = |name: &str| {
        let file = scene.path(name);
        let url = format!("--url https://{HOST}/v1/orders");
        format!("{url} -H \"authorization: Bearer $(cat {})\"", file.display())
    };
    let examples = vec![
        decide(format!("--tenant acme --policy jwt-gate {}", bearer("demo-orders"))),
        decide(format!("--tenant acme --policy jwt-gate {}", bearer("demo-profile"))),
        decide(format!("--tenant bank --policy ip-allowlist --url https://{HOST}/ --source 203.0.113.9")),
        decide(format!("--tenant acme --policy spin --url https://{HOST}/ --deadline 5ms --json")),
        format!("portcullis status --socket {}", operator_socket.display()),
    ];
    Ok(Keeping { socket, operator_socket, log: scene.log(), examples })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_of_the_script_is_there() {
        for ask in mixed() {
            if let Some(name) = ask.request.token {
                assert!(token(name).is_some_and(|token| token.split('.').count() == 3), "{name}");
            }
            assert!(ask.prepare().unwrap().source.is_some(), "{}", ask.what);
        }
    }

    #[test]
    fn nothing_but_the_expected_answer_passes() {
        let decision = |outcome, status| Decision {
            outcome,
            obligations: crate::decision::Obligations { status, ..Default::default() },
            digest: Some(Digest::of(b"x")),
            ..Decision::refused(Refusal::Unavailable)
        };
        let deny =
            |status, reason: &str| Ok(decision(Outcome::Deny { reason: reason.to_owned() }, Some(status)));
        let denied = ask(("a", "b"), "", GET_ORDERS, Expected::Denied(403, "scope missing"));
        assert!(denied.is_as_expected(&deny(403, "scope missing")));
        assert!(!denied.is_as_expected(&deny(403, "no such route")));
        assert!(!denied.is_as_expected(&deny(401, "scope missing")));
        assert!(!denied.is_as_expected(&Ok(decision(Outcome::Allow, None))));

        let allowed = Ask { expected: Expected::Allowed, ..denied };
        let nameless = Decision { digest: None, ..decision(Outcome::Allow, None) };
        assert!(allowed.is_as_expected(&Ok(decision(Outcome::Allow, None))));
        assert!(!allowed.is_as_expected(&Ok(nameless)));
        assert!(!allowed.is_as_expected(&Err(ClientError::Deadline)));
        let late = Err(ClientError::Deadline);
        assert!(
            !Ask { expected: Expected::TimedOut, ..denied }.is_as_expected(&late),
            "the service has to say so"
        );
    }
}
