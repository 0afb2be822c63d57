//! `portcullis decide`: one question from the shell.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use serde_json::json;

use super::output;
use super::question::{End, EndAddress, Http, Opaque, OwnedQuestion, Payload, Url};
use super::terminal::printable;
use super::units::microseconds;
use crate::client::{ClientError, Deadline, blocking};
use crate::decision::{Decision, HeaderValue, Obligations, Outcome, PolicyName, Tenant};
use crate::wire::client::CLIENT_FRAME_MAX;

/// Where the service listens for questions unless the flag or the environment says otherwise.
pub(super) const DEFAULT_SOCKET: &str = "/run/portcullis/decide.sock";

/// Ask one question and print the answer.
///
/// The exit code is the answer: 0 allow, 1 deny, 2 refused (no policy said anything that counts), 3 the service could
/// not be reached or did not answer, 64 the question makes no sense. Only 0 opens a gate.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("question").required(true).args(["url", "opaque", "json_input"])))]
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
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    /// Ask about an HTTP request to this URL
    #[arg(long, help_heading = "HTTP request")]
    url: Option<Url>,
    /// The request's method
    #[arg(long, default_value = "GET", requires = "url", help_heading = "HTTP request")]
    method: String,
    /// A header line, like 'authorization: Bearer x'; may be repeated
    #[arg(
        short = 'H',
        long = "header",
        value_name = "LINE",
        requires = "url",
        help_heading = "HTTP request"
    )]
    #[arg(value_parser = header_line)]
    headers: Vec<(String, String)>,
    /// File with the body, - for standard input
    #[arg(long, value_name = "FILE", requires = "url", help_heading = "HTTP request")]
    body: Option<PathBuf>,
    /// Where the request came from, like 192.0.2.7 or [2001:db8::7]:50123
    #[arg(long, value_name = "ADDRESS", requires = "url", help_heading = "HTTP request")]
    source: Option<EndAddress>,
    /// Who the proxy has authenticated there
    #[arg(long, value_name = "NAME", requires = "url", help_heading = "HTTP request")]
    source_principal: Option<String>,
    /// Where it goes
    #[arg(long, value_name = "ADDRESS", requires = "url", help_heading = "HTTP request")]
    destination: Option<EndAddress>,
    /// Who the proxy has authenticated there
    #[arg(long, value_name = "NAME", requires = "url", help_heading = "HTTP request")]
    destination_principal: Option<String>,
    /// What the proxy knows beyond HTTP, like tls.sni=api.acme.example; may be repeated
    #[arg(long = "attribute", value_name = "NAME=VALUE", requires = "url", help_heading = "HTTP request")]
    #[arg(value_parser = attribute)]
    attributes: Vec<(String, String)>,

    /// Ask about the bytes of this file, - for standard input
    #[arg(long, value_name = "FILE", help_heading = "Other questions")]
    opaque: Option<PathBuf>,
    /// What the bytes claim to be
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "",
        requires = "opaque",
        help_heading = "Other questions"
    )]
    content_type: String,
    /// Read the whole question as JSON from this file, - for standard input:
    /// {"http": {"url": .., "method": .., "headers": [[name, value], ..], "body": {"text": ..} or {"hex": ..},
    /// "source": {"address": .., "principal": ..}, "destination": .., "attributes": [[name, value], ..]}} or {"opaque": {"content_type": .., "bytes":
    /// {"text": ..} or {"hex": ..}}}
    #[arg(long, value_name = "FILE", help_heading = "Other questions")]
    json_input: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecideError {
    #[error("read {what} {path:?}: {cause}")]
    Read { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("read {what} {path:?}: it is larger than the {CLIENT_FRAME_MAX} bytes a question may have")]
    TooLong { what: &'static str, path: PathBuf },
    #[error("read question {path:?}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
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
            Self::Read { .. } | Self::TooLong { .. } | Self::Json { .. } => 64,
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
    let question = question(args)?;
    let mut client = blocking::Client::new(&socket);
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

fn question(args: &DecideArgs) -> Result<OwnedQuestion, DecideError> {
    if let Some(path) = &args.json_input {
        let json = read("question", path)?;
        return serde_json::from_slice(&json)
            .map_err(|cause| DecideError::Json { path: path.clone(), cause });
    }
    match (&args.url, &args.opaque) {
        (Some(url), _) => Ok(OwnedQuestion::Http(Http {
            method: args.method.clone(),
            url: url.clone(),
            headers: args.headers.clone(),
            body: args.body.as_ref().map(|path| read("body", path).map(Payload)).transpose()?,
            source: End { address: args.source, principal: args.source_principal.clone() },
            destination: End { address: args.destination, principal: args.destination_principal.clone() },
            attributes: args.attributes.clone(),
        })),
        (None, opaque) => {
            // The group makes clap refuse a command line with none of the three.
            let bytes = opaque.as_ref().map(|path| read("bytes", path)).transpose()?.unwrap_or_default();
            Ok(OwnedQuestion::Opaque(Opaque {
                content_type: args.content_type.clone(),
                bytes: Payload(bytes),
            }))
        }
    }
}

/// A whole file, or standard input for "-"; never more than a question may have.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, DecideError> {
    let failed = |cause| DecideError::Read { what, path: path.to_owned(), cause };
    let source: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut bytes = Vec::new();
    source.take(CLIENT_FRAME_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > CLIENT_FRAME_MAX {
        return Err(DecideError::TooLong { what, path: path.to_owned() });
    }
    Ok(bytes)
}

fn header_line(line: &str) -> Result<(String, String), String> {
    match line.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected 'name: value'".to_owned()),
    }
}

fn attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected 'name=value'".to_owned()),
    }
}

/// What a policy wrote is escaped: it must not drive the terminal.
fn for_people(decision: &Decision, took: Duration) -> String {
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
    let timing = decision.timing;
    let us = |ns: u64| ns.div_ceil(1000);
    lines.push(format!(
        "  {} us here; there {} us queued, {} us to start, {} us to run, {} us of it in host functions",
        took.as_micros(),
        us(timing.queue_ns),
        us(timing.instantiate_ns),
        us(timing.run_ns),
        us(timing.host_ns)
    ));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn as_json(decision: &Decision, took: Duration) -> String {
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
    let text = json!({
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
        "timing": decision.timing,
        "round_trip_ns": u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
    });
    format!("{text:#}\n")
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
