//! `portcullis decide`: one question from the shell.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::output;
use super::question::{QuestionArgs, QuestionError};
use super::terminal::printable;
use super::units::microseconds;
use crate::client::{ClientError, Deadline, Settings, blocking};
use crate::decision::{Decision, HeaderValue, Obligations, Outcome, PolicyName, Tenant, TraceContext};

/// Where the service listens for questions unless the flag or the environment says otherwise.
pub(super) const DEFAULT_SOCKET: &str = "/run/portcullis/decide.sock";

/// How long after the deadline the service's own words are waited for: whoever types this wants to read why it was
/// refused, and a busy machine may say so late.
const GRACE: Duration = Duration::from_secs(2);

/// Ask one question and print the answer.
///
/// The exit code is the answer: 0 allow, 1 deny, 2 refused (no policy said anything that counts), 3 the service could
/// not be reached or did not answer, 64 the question makes no sense. Only 0 opens a gate.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("asked").required(true).args(["url", "opaque", "json_input"])))]
pub(super) struct DecideArgs {
    /// The service's socket [default: $PORTCULLIS_SOCKET or /run/portcullis/decide.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Whose policy is asked
    #[arg(long)]
    tenant: Tenant,
    /// Which policy is asked
    #[arg(long)]
    policy: PolicyName,
    /// How long it may take, like 500us, 20ms or 1s; the policy's own limit without it
    #[arg(long, value_name = "TIME", value_parser = microseconds)]
    deadline: Option<u32>,
    /// The trace it belongs to, as a W3C traceparent
    #[arg(long, value_name = "TRACEPARENT")]
    traceparent: Option<TraceContext>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    question: QuestionArgs,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecideError {
    #[error(transparent)]
    Question(#[from] QuestionError),
    #[error("ask {socket:?}: the question does not say which host it is about; give it a \"url\"")]
    NoHost { socket: PathBuf },
    #[error("ask {socket:?}: {cause}")]
    Ask { socket: PathBuf, cause: ClientError },
    #[error("print the answer: {0}")]
    Print(#[source] io::Error),
}

impl DecideError {
    /// 64 where the question is at fault, 3 where the service is.
    #[must_use]
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Question(_) | Self::NoHost { .. } => 64,
            Self::Ask { cause: ClientError::TooLong | ClientError::BatchSize(_), .. } => 64,
            Self::Ask { .. } | Self::Print(_) => 3,
        }
    }
}

/// Asks, prints the answer to standard output, and gives the exit code that says the same.
pub(super) fn run(args: &DecideArgs) -> Result<ExitCode, DecideError> {
    let socket = args
        .socket
        .clone()
        .or_else(|| std::env::var_os("PORTCULLIS_SOCKET").map(PathBuf::from))
        .unwrap_or_else(|| DEFAULT_SOCKET.into());
    let question = args.question.read()?;
    if !question.is_addressed() {
        return Err(DecideError::NoHost { socket });
    }
    let mut client =
        blocking::Client::with_settings(&socket, Settings { grace: GRACE, ..Settings::default() });
    client.set_trace(args.traceparent);
    let start = Instant::now();
    let deadline =
        args.deadline.map_or(Deadline::Default, |us| Deadline::in_(Duration::from_micros(us.into())));
    let decision = client
        .decide(&args.tenant, &args.policy, deadline, &question.input())
        .map_err(|cause| DecideError::Ask { socket, cause })?;
    let took = start.elapsed();
    let text = if args.json { as_json(&decision, took) } else { for_people(&decision, took) };
    output::text(format_args!("{text}")).map_err(DecideError::Print)?;
    Ok(ExitCode::from(match decision.outcome {
        Outcome::Allow => 0,
        Outcome::Deny { .. } => 1,
        Outcome::Refused(_) => 2,
    }))
}

fn for_people(decision: &Decision, took: Duration) -> String {
    let timing = decision.timing;
    let us = |ns: u64| ns.div_ceil(1000);
    let last = format!(
        "  {} us here; there {} us queued, {} us to start, {} us to run, {} us of it in host functions\n",
        took.as_micros(),
        us(timing.queue_ns),
        us(timing.instantiate_ns),
        us(timing.run_ns),
        us(timing.host_ns)
    );
    described(decision) + &last
}

/// What was decided, in lines. What a policy wrote is escaped: it must not drive the terminal.
pub(super) fn described(decision: &Decision) -> String {
    let mut lines = vec![match &decision.outcome {
        Outcome::Allow => "allow".to_owned(),
        Outcome::Deny { reason } => format!("deny: {}", printable(reason)),
        Outcome::Refused(refusal) => format!("refused: {}", printable(&refusal.to_string())),
    }];
    let Obligations { status, headers_set, headers_append, headers_remove, body, metadata } =
        &decision.obligations;
    let header = |verb: &str, header: &HeaderValue| {
        let value = String::from_utf8_lossy(&header.value);
        format!("  {verb} header {}: {}", printable(&header.name), printable(&value))
    };
    lines.extend(status.map(|status| format!("  status {status}")));
    lines.extend(headers_set.iter().map(|set| header("set", set)));
    lines.extend(headers_append.iter().map(|append| header("append", append)));
    lines.extend(headers_remove.iter().map(|name| format!("  remove header {}", printable(name))));
    lines.extend(
        body.as_ref().map(|body| format!("  body \"{}\"", printable(&String::from_utf8_lossy(body)))),
    );
    lines.extend(
        metadata
            .iter()
            .map(|pair| format!("  metadata {} = {}", printable(&pair.key), printable(&pair.value))),
    );
    if decision.cache.ttl_ms > 0 {
        lines.push(format!("  cache for {} ms, scope {}", decision.cache.ttl_ms, decision.cache.scope));
    }
    lines.extend(decision.digest.map(|digest| format!("  policy {digest}")));
    lines.extend(decision.id.map(|id| format!("  decision {id}")));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn as_json(decision: &Decision, took: Duration) -> String {
    let mut answer = answer_json(decision);
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    if let Some(answer) = answer.as_object_mut() {
        answer.insert("round_trip_ns".to_owned(), took.into());
    }
    format!("{answer:#}\n")
}

/// What was decided, and where the time went.
pub(super) fn answer_json(decision: &Decision) -> Value {
    let (outcome, reason) = match &decision.outcome {
        Outcome::Allow => ("allow", None),
        Outcome::Deny { reason } => ("deny", Some(reason.clone())),
        Outcome::Refused(refusal) => ("refused", Some(refusal.to_string())),
    };
    let refusal = if let Outcome::Refused(refusal) = &decision.outcome { Some(refusal) } else { None };
    let obligations = &decision.obligations;
    let headers = |headers: &[HeaderValue]| -> Vec<_> {
        headers.iter().map(|set| json!([set.name, String::from_utf8_lossy(&set.value)])).collect()
    };
    json!({
        "outcome": outcome,
        "reason": reason,
        "refusal": refusal,
        "obligations": {
            "status": obligations.status,
            "headers_set": headers(&obligations.headers_set),
            "headers_append": headers(&obligations.headers_append),
            "headers_remove": obligations.headers_remove,
            "body": obligations.body.as_ref().map(|body| String::from_utf8_lossy(body)),
            "metadata": obligations.metadata.iter().map(|pair| json!([pair.key, pair.value])).collect::<Vec<_>>(),
        },
        "cache": { "ttl_ms": decision.cache.ttl_ms, "scope": decision.cache.scope.to_string() },
        "digest": decision.digest,
        "id": decision.id,
        "timing": decision.timing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Refusal;

    #[test]
    fn a_policy_cannot_drive_the_terminal() {
        let outcome = Outcome::Deny { reason: "\u{1b}[2J\nallow".to_owned() };
        let decision = Decision { outcome, ..Decision::refused(Refusal::Unavailable) };
        let text = for_people(&decision, Duration::ZERO);
        assert!(!text.contains('\u{1b}'), "{text:?}");
        assert!(text.starts_with("deny: ") && !text.contains("\nallow"), "{text:?}");
    }
}
