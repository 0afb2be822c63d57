//! Credentials from where docker and its relatives keep them: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
//!
//! Helpers are run by this process, which is the user's: the fetcher only gets what comes out.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use serde::Deserialize;

use crate::bundle::Reference;
use crate::cli::terminal::printable;
use crate::wire::fetch::Credentials;

/// Largest config, bytes.
const CONFIG_MAX: usize = 1 << 20;
/// What a helper says as user name when the secret is a token.
const TOKEN_USER: &str = "<token>";
/// What helpers say when they have nothing.
const NOT_FOUND: &str = "credentials not found";

/// Why there are no credentials, where there should be some.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli::policy) enum CredentialsError {
    #[error("read docker config {path:?}: {why}")]
    Config { path: PathBuf, why: String },
    #[error(
        "ask docker-credential-{helper} for {registry}: {why}; log in again, or point DOCKER_CONFIG elsewhere"
    )]
    Helper { helper: String, registry: String, why: String },
}

/// What of docker's config concerns us; it has much more.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// What the user has for the registry of a reference; `Anonymous` where that is nothing.
pub(super) fn find(reference: &Reference) -> Result<Credentials, CredentialsError> {
    let folder = match (env::var_os("DOCKER_CONFIG"), env::var_os("HOME")) {
        (Some(folder), _) if !folder.is_empty() => PathBuf::from(folder),
        (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".docker"),
        _ => return Ok(Credentials::Anonymous),
    };
    let path = folder.join("config.json");
    let wrong = |why: String| CredentialsError::Config { path: path.clone(), why };
    match path.try_exists() {
        Ok(false) => return Ok(Credentials::Anonymous),
        Err(error) => return Err(wrong(error.to_string())),
        Ok(true) => {}
    }
    let text = crate::cli::files::read(&path, CONFIG_MAX).map_err(|error| wrong(error.to_string()))?;
    // Not serde's own words: they may quote a secret.
    let config: Config = serde_json::from_slice(&text).map_err(|error| {
        wrong(format!("line {}, column {}: not as docker writes it", error.line(), error.column()))
    })?;
    of(&config, reference.registry(), &wrong)
}

fn of(
    config: &Config,
    registry: &str,
    wrong: &dyn Fn(String) -> CredentialsError,
) -> Result<Credentials, CredentialsError> {
    let helper =
        config.cred_helpers.iter().find(|(name, _)| is_for(name, registry)).map(|(_, helper)| helper);
    if let Some(helper) = helper.or(config.creds_store.as_ref()) {
        let found = ask(helper, registry)?;
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    let Some((name, auth)) = config.auths.iter().find(|(name, _)| is_for(name, registry)) else {
        return Ok(Credentials::Anonymous);
    };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(token) = given(&auth.registrytoken) {
        return Ok(Credentials::Access { token });
    }
    if let Some(token) = given(&auth.identitytoken) {
        return Ok(Credentials::Identity { token });
    }
    if let (Some(user), Some(secret)) = (given(&auth.username), given(&auth.password)) {
        return Ok(Credentials::Password { user, secret });
    }
    let Some(encoded) = given(&auth.auth) else { return Ok(Credentials::Anonymous) };
    let decoded = Base64::decode_vec(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (user, secret) =
        pair.ok_or_else(|| wrong(format!("auth of {name:?} is not user:password in base64")))?;
    Ok(Credentials::Password { user: user.to_owned(), secret: secret.trim_end_matches('\0').to_owned() })
}

/// Names are hosts, or URLs from the time when registries had them.
fn is_for(name: &str, registry: &str) -> bool {
    let host = name.split_once("://").map_or(name, |(_, rest)| rest);
    host.split('/').next() == Some(registry)
}

fn ask(helper: &str, registry: &str) -> Result<Credentials, CredentialsError> {
    let failed = |why: String| CredentialsError::Helper {
        helper: printable(helper),
        registry: registry.to_owned(),
        why,
    };
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(legal) {
        return Err(failed("that is no name of a helper".to_owned()));
    }
    let broken = |error: io::Error| failed(error.to_string());
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(broken)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(registry.as_bytes()) {
            // It did not want to know; what it says instead is worth more.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(broken(error)),
            _ => {}
        }
    }
    let output = child.wait_with_output().map_err(broken)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains(NOT_FOUND) {
            return Ok(Credentials::Anonymous);
        }
        return Err(failed(format!("it ended with {}: {}", output.status, printable(said.trim()))));
    }
    let helped: Helped =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("its answer is not one".to_owned()))?;
    Ok(match (helped.username.as_str(), helped.secret) {
        (TOKEN_USER, token) => Credentials::Identity { token },
        (user, secret) => Credentials::Password { user: user.to_owned(), secret },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(text: &str, registry: &str) -> Credentials {
        let config: Config = serde_json::from_str(text).unwrap();
        let wrong = |why| CredentialsError::Config { path: "config.json".into(), why };
        of(&config, registry, &wrong).unwrap()
    }

    #[test]
    fn each_kind_and_each_name_of_a_registry() {
        let text = r#"{"auths": {
            "r.example:5000": {"auth": "YW5uOmh1bnRlcjI6eA=="},
            "https://old.example/v1/": {"username": "bob", "password": "pw"},
            "id.example": {"identitytoken": "idt", "auth": "PHRva2VuPjo="},
            "acc.example": {"registrytoken": "act"},
            "empty.example": {}
        }, "HttpHeaders": {"x": "y"}}"#;
        let password =
            |user: &str, secret: &str| Credentials::Password { user: user.into(), secret: secret.into() };
        assert_eq!(of_text(text, "r.example:5000"), password("ann", "hunter2:x"));
        assert_eq!(of_text(text, "old.example"), password("bob", "pw"));
        assert_eq!(of_text(text, "id.example"), Credentials::Identity { token: "idt".into() });
        assert_eq!(of_text(text, "acc.example"), Credentials::Access { token: "act".into() });
        // Another port and another host are somebody else.
        for other in ["empty.example", "r.example", "r.example:5001", "xr.example:5000", "example"] {
            assert_eq!(of_text(text, other), Credentials::Anonymous, "{other}");
        }
    }

    #[test]
    fn a_helper_that_is_a_path_is_not_run() {
        let error = ask("../../bin/sh", "r.example").unwrap_err().to_string();
        assert!(error.contains("that is no name of a helper"), "{error}");
    }
}
