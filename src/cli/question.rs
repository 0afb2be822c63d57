//! The flags that say what is asked: of a service, or of a policy that is tried.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::rehearsal::{Bytes, End, EndAddress, HeaderLines, Http, Opaque, QUESTION_MAX, Question, Url};

/// One question: by `url`, `opaque` or `json_input`. The command says that there has to be one.
#[derive(Debug, Args)]
pub(super) struct QuestionArgs {
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
    headers: Vec<HeaderLines>,
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

/// Why there is nothing to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum QuestionError {
    #[error("read {what} {path:?}: {cause}")]
    Read { what: &'static str, path: PathBuf, cause: io::Error },
    #[error("read {what} {path:?}: it is larger than the {QUESTION_MAX} bytes a question may have")]
    TooLong { what: &'static str, path: PathBuf },
    #[error("read question {path:?}: {cause}")]
    Json { path: PathBuf, cause: serde_json::Error },
}

impl QuestionArgs {
    /// Whether any of them is there.
    pub(super) fn is_asked(&self) -> bool {
        self.url.is_some() || self.opaque.is_some() || self.json_input.is_some()
    }

    /// Reads what the flags name.
    pub(super) fn read(&self) -> Result<Question, QuestionError> {
        if let Some(path) = &self.json_input {
            let json = read("question", path)?;
            return serde_json::from_slice(&json)
                .map_err(|cause| QuestionError::Json { path: path.clone(), cause });
        }
        let end =
            |address, principal: &Option<String>| End { address, port: None, principal: principal.clone() };
        match (&self.url, &self.opaque) {
            (Some(url), _) => Ok(Question::Http(Http {
                method: self.method.clone(),
                url: Some(url.clone()),
                scheme: None,
                host: None,
                path: None,
                query: None,
                headers: self.headers.clone(),
                body: self.body.as_ref().map(|path| read("body", path).map(Bytes)).transpose()?,
                source: end(self.source, &self.source_principal),
                destination: end(self.destination, &self.destination_principal),
                attributes: self.attributes.clone(),
            })),
            (None, opaque) => {
                // The group makes clap refuse a command line with none of the three.
                let bytes = opaque.as_ref().map(|path| read("bytes", path)).transpose()?.unwrap_or_default();
                Ok(Question::Opaque(Opaque { content_type: self.content_type.clone(), bytes: Bytes(bytes) }))
            }
        }
    }
}

/// A whole file, or standard input for "-"; never more than a question may have.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, QuestionError> {
    let failed = |cause| QuestionError::Read { what, path: path.to_owned(), cause };
    let source: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut bytes = Vec::new();
    source.take(QUESTION_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > QUESTION_MAX {
        return Err(QuestionError::TooLong { what, path: path.to_owned() });
    }
    Ok(bytes)
}

fn header_line(line: &str) -> Result<HeaderLines, String> {
    match line.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok(HeaderLines::new(name.trim().to_owned(), value.trim().to_owned()))
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
