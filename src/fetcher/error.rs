//! What can go wrong between here and a registry, each said with its object, the cause and the way out.

use std::error::Error;
use std::io;

use crate::artifact::Digest;
use crate::wire::channel::{ReceiveError, SendError};

/// Longest text of a registry that is repeated, characters.
const SAID_MAX: usize = 200;

/// Why nothing was pulled or pushed. Texts of registries are escaped in here already.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{what}: {why}; {hint}")]
    Unreachable { what: String, why: String, hint: &'static str },
    #[error("{what}: the registry answers {status}{said}{hint}")]
    Status { what: String, status: u16, said: String, hint: &'static str },
    #[error("{what}: the registry does not accept {who}; {hint}")]
    Denied { what: String, who: String, hint: &'static str },
    #[error(
        "{what}: {why}; the registry or something before it is wrong, and no credentials were sent there"
    )]
    Challenge { what: String, why: String },
    #[error("{what}: the registry sends it on to {to}, {why}; pull from a registry that serves it itself")]
    Redirect { what: String, to: String, why: String },
    #[error(
        "{what}: more than {max} bytes, cut off there; the registry lies about its length or it is no bundle"
    )]
    TooLong { what: String, max: u64 },
    #[error(
        "{what}: the answer announces {announced} bytes, expected {expected}; the registry lies about its length"
    )]
    Length { what: String, announced: u64, expected: u64 },
    #[error(
        "{what}: ended after {have} of {expected} bytes; what is there is kept: run the same command again"
    )]
    Short { what: String, have: u64, expected: u64 },
    #[error("{what}: digest is {found}, expected {expected}; {hint}")]
    Digest { what: String, found: Digest, expected: Digest, hint: &'static str },
    #[error("{what}: encoded as {encoding}, which was not asked for; only plain bytes are taken")]
    Encoded { what: String, encoding: String },
    #[error("{what}: {why}")]
    NotABundle { what: String, why: String },
    #[error(
        "{what}: it is attached to {found}, expected {expected}; the registry lists what belongs to another"
    )]
    Subject { what: String, found: String, expected: Digest },
    #[error("write {what}: {source}{}", way_out(source))]
    Write { what: String, source: io::Error },
    #[error("read {what}: {source}")]
    Read { what: String, source: io::Error },
    #[error("hear the command: {0}")]
    Hear(#[from] ReceiveError),
    #[error("tell the command: {0}")]
    Tell(#[from] SendError),
    #[error("hear the command: {0}")]
    OutOfOrder(&'static str),
}

impl FetchError {
    /// Whether the same command may do better with what is there already.
    pub(super) fn again(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Short { .. } | Self::Write { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    pub(super) fn not_a_bundle(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::NotABundle { what: what.into(), why: why.into() }
    }
}

/// For `map_err`.
pub(super) fn write(what: &str) -> impl Fn(io::Error) -> FetchError {
    move |source| FetchError::Write { what: what.to_owned(), source }
}

/// For `map_err` after calls of nix.
pub(super) fn write_errno(what: &str) -> impl Fn(nix::Error) -> FetchError {
    move |errno| FetchError::Write { what: what.to_owned(), source: errno.into() }
}

/// For `map_err`.
pub(super) fn read(what: &str) -> impl Fn(io::Error) -> FetchError {
    move |source| FetchError::Read { what: what.to_owned(), source }
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; what is there is kept: make room and run the same command again"
        }
        _ => "",
    }
}

/// A text that somebody else wrote, short and without what could drive a terminal.
pub(super) fn said(text: &str) -> String {
    let mut said: String = text.chars().take(SAID_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SAID_MAX).is_some() {
        said.push_str("...");
    }
    said
}

/// An error and its causes: reqwest says the least important first.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    said(&texts.join(": "))
}
