//! What a git checkout says of itself: for `attest --from-git`.
//!
//! Asked of the `git` that is installed. What it answers is what somebody who signs is about to vouch for, so anything
//! that is not plain (changes that are not committed, several tags, a password in an address) has to be settled first.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where some source is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkout {
    /// "https://example.test/acme/policies"; `None` if there is no remote called origin.
    pub(super) repository: Option<String>,
    /// "refs/tags/v3", else "refs/heads/main"; `None` if it is neither.
    pub(super) reference: Option<String>,
    /// Hex.
    pub(super) commit: String,
}

/// Why a checkout vouches for nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum GitError {
    #[error(
        "start git: {0}; install it (apt-get install git), or say the facts with --repository, --ref and --commit"
    )]
    Start(#[source] io::Error),
    #[error("ask git about {dir:?}: {said}")]
    Asked { dir: PathBuf, said: String },
    #[error(
        "read checkout {dir:?}: {count} files differ from its commit, {first:?} for one; commit or remove them first"
    )]
    Changed { dir: PathBuf, count: usize, first: String },
    #[error("read checkout {dir:?}: its commit has {count} tags; say which with --ref")]
    Tags { dir: PathBuf, count: usize },
    #[error(
        "read checkout {dir:?}: its origin is {url:?}, which nobody else could fetch from; say another with --repository"
    )]
    Local { dir: PathBuf, url: String },
}

/// Looks at a checkout in which everything is committed. `reference` and `repository` are what is known already.
pub(super) fn checkout(
    dir: &Path,
    repository: Option<String>,
    reference: Option<String>,
) -> Result<Checkout, GitError> {
    let commit = ask(dir, ["rev-parse", "--verify", "HEAD^{commit}"])?;
    let changed = ask(dir, ["status", "--porcelain=v1", "--untracked-files=normal"])?;
    if let Some(first) = changed.lines().next() {
        let first = first.get(3..).unwrap_or(first).to_owned();
        return Err(GitError::Changed { dir: dir.into(), count: changed.lines().count(), first });
    }
    let reference = match reference {
        Some(reference) => Some(reference),
        None => reference_of_head(dir)?,
    };
    let repository = match repository {
        Some(repository) => Some(repository),
        None => origin(dir)?,
    };
    Ok(Checkout { repository, reference, commit })
}

/// A tag says more than a branch, which moves on.
fn reference_of_head(dir: &Path) -> Result<Option<String>, GitError> {
    let tags = ask(dir, ["for-each-ref", "--points-at=HEAD", "--format=%(refname)", "refs/tags"])?;
    match tags.lines().collect::<Vec<_>>().as_slice() {
        [tag] => Ok(Some((*tag).to_owned())),
        // Not on a branch either: that is an answer, not a failure.
        [] => Ok(ask(dir, ["symbolic-ref", "--quiet", "HEAD"]).ok()),
        tags => Err(GitError::Tags { dir: dir.into(), count: tags.len() }),
    }
}

fn origin(dir: &Path) -> Result<Option<String>, GitError> {
    let Ok(url) = ask(dir, ["remote", "get-url", "origin"]) else { return Ok(None) };
    match as_uri(&url) {
        Some(uri) => Ok(Some(uri)),
        None => Err(GitError::Local { dir: dir.into(), url }),
    }
}

/// The address as a URI, without what is secret in it; nothing for a place on this machine.
fn as_uri(url: &str) -> Option<String> {
    if let Some((scheme, rest)) = url.split_once("://") {
        if !matches!(scheme, "https" | "http" | "ssh" | "git") {
            return None;
        }
        let (authority, path) = rest.split_once('/')?;
        // A user is part of an ssh address; anything else before the @ is a credential.
        let authority = match authority.rsplit_once('@') {
            Some((user, host)) if scheme == "ssh" => {
                format!("{}@{host}", user.split(':').next().unwrap_or_default())
            }
            Some((_, host)) => host.to_owned(),
            None => authority.to_owned(),
        };
        return Some(format!("{scheme}://{authority}/{path}"));
    }
    // git@example.test:acme/policies
    let (authority, path) = url.split_once(':')?;
    (!authority.contains('/')).then(|| format!("ssh://{authority}/{}", path.trim_start_matches('/')))
}

fn ask<const N: usize>(dir: &Path, arguments: [&str; N]) -> Result<String, GitError> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        // A repository's own configuration must not make git start something.
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
        .args(arguments.map(OsStr::new))
        .env("LC_ALL", "C")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .output()
        .map_err(GitError::Start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let said = if said.is_empty() { "it failed".to_owned() } else { said };
        return Err(GitError::Asked { dir: dir.into(), said: format!("{}: {said}", arguments.join(" ")) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_uris_and_hold_no_password() {
        for (url, uri) in [
            ("https://example.test/acme/p.git", Some("https://example.test/acme/p.git")),
            ("https://me:secret@example.test/acme/p", Some("https://example.test/acme/p")),
            ("ssh://git:x@example.test:22/acme/p", Some("ssh://git@example.test:22/acme/p")),
            ("git@example.test:acme/p.git", Some("ssh://git@example.test/acme/p.git")),
            ("/srv/git/p", None),
            ("file:///srv/git/p", None),
            ("../p:q", None),
        ] {
            assert_eq!(as_uri(url).as_deref(), uri, "{url}");
        }
    }
}
