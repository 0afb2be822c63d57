//! OPA's REST API, as far as it asks for decisions: `POST` and `GET /v1/data/<path>`, `POST /v0/data/<path>`, `POST /` and
//! `/health`. What it has besides is answered with an error that says why it is not here.
//!
//! ```text
//!  client --HTTP--> [target], [input] --Input::Opaque--> desk
//!         <--JSON-- [answer] <-------------Verdict--------+
//! ```

mod answer;
mod input;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use self::answer::{Manner, Refused, health, no_decision, tell};
use self::target::{Route, Version, Wishes};
use super::desk::{Bound, Desk, REACHED_WITHIN, Room, Terms};
use super::http::{Answers, Limits, Reply, Request, converse, one};
use super::verdict::{Code, Down};
use crate::decision::{Input, PolicyName, Tenant};
use crate::wire::gateway::{Binding, Speaks};

/// Serves one connection, until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, desk: Desk) {
    let closing = desk.closing();
    let rest = Rest { desk, health_within: REACHED_WITHIN };
    converse(stream, &rest, Limits::default(), closing).await;
}

#[derive(Debug)]
struct Rest {
    desk: Desk,
    /// How long a question for health takes, of however many tenants.
    health_within: Duration,
}

impl Answers for Rest {
    fn max_body(&self) -> usize {
        usize::try_from(self.desk.listener().max_body).unwrap_or(usize::MAX)
    }

    fn room(&self) -> &Arc<Room> {
        self.desk.room()
    }

    async fn answer(&self, request: Request<'_>, reply: &mut Reply) {
        match Route::of(request.method, request.target) {
            Ok(Route::Health) => self.health(&request, reply).await,
            Ok(Route::Data { version, path, wishes, input }) => {
                self.decide(request, (version, &path), wishes, input.as_deref(), reply).await;
            }
            Err(refused) => refused.tell(false, reply),
        }
    }

    fn refuse(&self, down: Down, reply: &mut Reply) {
        no_decision(&down, None, false, reply);
    }
}

impl Rest {
    async fn decide(
        &self,
        request: Request<'_>,
        (version, path): (Version, &str),
        wishes: Wishes,
        parameter: Option<&str>,
        reply: &mut Reply,
    ) {
        let policy = match self.policy(path) {
            Ok(policy) => policy,
            Err(refused) => return refused.tell(wishes.pretty, reply),
        };
        let input = match read(&request, version, parameter) {
            Ok(input) => input,
            Err(refused) => return refused.tell(wishes.pretty, reply),
        };
        let tenant = match self.desk.bind_tenant(|name| one(&request.lines, name)) {
            Ok(tenant) => tenant,
            Err(down) => return no_decision(&down, None, wishes.pretty, reply),
        };
        let bound = Bound { tenant, policy: policy.clone() };
        let trace = one(&request.lines, "traceparent").and_then(|trace| trace.parse().ok());
        let input = Input::Opaque { content_type: "application/json", bytes: input.as_bytes() };
        let verdict = self.desk.decide(&bound, Terms { within: None, trace }, &input).await;
        tell(&verdict, Manner { version, wishes, policy, took: request.began.elapsed() }, reply);
    }

    fn policy(&self, path: &str) -> Result<&PolicyName, Refused> {
        let paths: &[_] = match &self.desk.listener().speaks {
            Speaks::Opa { paths } => paths,
            _ => &[],
        };
        let named = paths.iter().find(|(known, _)| known == path).map(|(_, policy)| policy);
        named.ok_or_else(|| {
            Refused::undefined("no policy is bound to this path; add it to the listener's paths")
        })
    }

    /// Well is who can ask.
    async fn health(&self, request: &Request<'_>, reply: &mut Reply) {
        let down = timeout(self.health_within, self.reach(request)).await;
        let late =
            |_| Err(Down::new(Code::Unavailable, "the service has not answered for every tenant in time"));
        health(down.unwrap_or_else(late).err().as_ref(), false, reply);
    }

    async fn reach(&self, request: &Request<'_>) -> Result<(), Down> {
        for tenant in self.tenants(request)? {
            self.desk.reach(&tenant).await?;
        }
        Ok(())
    }

    /// Whose decisions this listener's clients ask for: all of them, where who looks after its health does not say.
    fn tenants(&self, request: &Request<'_>) -> Result<Vec<Tenant>, Down> {
        match &self.desk.listener().tenant {
            Binding::Header { name, among } if request.lines.iter().all(|line| line.name != name) => {
                Ok(among.clone())
            }
            _ => Ok(vec![self.desk.bind_tenant(|name| one(&request.lines, name))?]),
        }
    }
}

/// The input's bytes.
fn read<'a>(request: &Request<'a>, version: Version, parameter: Option<&'a str>) -> Result<&'a str, Refused> {
    let named = |name: &'static str| request.lines.iter().filter(move |line| line.name == name);
    if named("content-encoding").any(|line| !line.value.eq_ignore_ascii_case(b"identity")) {
        return Err(Refused::media_type(
            "content-encoding: send the body as it is; nothing is unpacked here",
        ));
    }
    if named("content-type")
        .any(|line| line.value.to_ascii_lowercase().windows(4).any(|part| part == b"yaml"))
    {
        return Err(Refused::media_type("content-type: send JSON; YAML is not read here"));
    }
    match (request.method, parameter, request.body) {
        ("GET", parameter, None) => input::of_whole("input", parameter.map(str::as_bytes)),
        ("GET", _, Some(_)) => Err(Refused::parameter("a GET has its input in the parameter, not in a body")),
        (_, Some(_), _) => Err(Refused::parameter("a POST has its input in the body, not in the parameter")),
        (_, None, body) if version == Version::V0 => input::of_whole("body", body),
        (_, None, body) => input::of_envelope(body),
    }
}
