//! How a registry learns who asks: Basic, or a token that somebody it names gives out for the same credentials.

use base64ct::{Base64, Encoding};
use http_auth::parser::ChallengeParser;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::error::{FetchError, said};
use super::remote::{Remote, read_bounded, refused};
use crate::wire::fetch::{Action, Credentials};

/// An answer with a token in it, bytes.
const TOKEN_MAX: u64 = 64 << 10;

/// What a registry wants.
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// A token: which name it has depends on the registry.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Answers a demand for credentials with the header for the next try.
pub(super) async fn authenticate(
    remote: &Remote,
    challenges: &[HeaderValue],
    what: &str,
) -> Result<HeaderValue, FetchError> {
    if let Credentials::Access { token } = &remote.credentials {
        return header(&format!("Bearer {token}"), what);
    }
    match parse(challenges, what)? {
        Challenge::Basic => match basic(&remote.credentials) {
            Some(text) => header(&text, what),
            None => Err(denied(what, &remote.credentials)),
        },
        Challenge::Bearer { realm, service } => {
            let token = token(remote, &realm, service.as_deref(), what).await?;
            header(&format!("Bearer {token}"), what)
        }
    }
}

/// Nothing that we have is good enough.
pub(super) fn denied(what: &str, credentials: &Credentials) -> FetchError {
    let (who, hint) = match credentials {
        Credentials::Anonymous => (
            "anonymous requests".to_owned(),
            "docker login, or point DOCKER_CONFIG at a config with credentials",
        ),
        Credentials::Password { user, .. } => {
            (format!("the password of {:?}", said(user)), "docker login again, as somebody who may do this")
        }
        Credentials::Identity { .. } | Credentials::Access { .. } => {
            ("the token in the docker config".to_owned(), "docker login again, as somebody who may do this")
        }
    };
    FetchError::Denied { what: what.to_owned(), who, hint }
}

fn parse(challenges: &[HeaderValue], what: &str) -> Result<Challenge, FetchError> {
    let wrong = |why: String| FetchError::Challenge { what: what.to_owned(), why };
    let mut basic = false;
    for value in challenges {
        let text = value
            .to_str()
            .map_err(|_| wrong("it asks for credentials in a header that is no text".into()))?;
        for challenge in ChallengeParser::new(text).flatten() {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm")
                    .ok_or_else(|| wrong("it asks for a token and not where from".into()))?;
                return Ok(Challenge::Bearer { realm, service: parameter("service") });
            }
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
        }
    }
    if basic {
        Ok(Challenge::Basic)
    } else {
        Err(wrong("it asks for credentials of a kind that is not known".into()))
    }
}

async fn token(
    remote: &Remote,
    realm: &str,
    service: Option<&str>,
    what: &str,
) -> Result<String, FetchError> {
    let wrong = |why: String| FetchError::Challenge { what: what.to_owned(), why };
    let mut url =
        Url::parse(realm).map_err(|_| wrong(format!("it sends for a token to {:?}", said(realm))))?;
    remote.permit(&url).map_err(|why| wrong(format!("it sends for a token to {}, {why}", said(realm))))?;
    let rights = match remote.action {
        Action::Pull => "pull",
        Action::Push => "pull,push",
    };
    let scope = format!("repository:{}:{rights}", remote.repository);
    let mut headers = HeaderMap::new();
    let (method, body) = match &remote.credentials {
        Credentials::Identity { token } => {
            // The URL only encodes the form.
            let mut form = remote.origin.clone();
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("client_id", "portcullis")
                .append_pair("scope", &scope)
                .append_pair("refresh_token", token);
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            (Method::POST, form.query().map(str::to_owned))
        }
        credentials => {
            if let Some(text) = basic(credentials) {
                headers.insert(AUTHORIZATION, header(&text, what)?);
            }
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            url.query_pairs_mut().append_pair("scope", &scope);
            (Method::GET, None)
        }
    };
    let what = &format!("{what}: get a token from {}", said(url.host_str().unwrap_or_default()));
    let response = remote.send_once(method, url, headers, body, what).await?;
    if matches!(response.status().as_u16(), 401 | 403) {
        return Err(denied(what, &remote.credentials));
    }
    if !response.status().is_success() {
        return Err(refused(response, what).await);
    }
    let bytes = read_bounded(response, TOKEN_MAX, what).await?;
    let token =
        serde_json::from_slice::<Token>(&bytes).ok().and_then(|token| token.token.or(token.access_token));
    token.ok_or_else(|| FetchError::Challenge {
        what: what.to_owned(),
        why: "there is no token in its answer".into(),
    })
}

fn basic(credentials: &Credentials) -> Option<String> {
    match credentials {
        Credentials::Password { user, secret } => {
            Some(format!("Basic {}", Base64::encode_string(format!("{user}:{secret}").as_bytes())))
        }
        _ => None,
    }
}

fn header(text: &str, what: &str) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| FetchError::Challenge {
        what: what.to_owned(),
        why: "the token has characters that no header may have".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}
