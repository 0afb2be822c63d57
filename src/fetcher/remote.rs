//! One repository of one registry, over HTTP: where requests go, what goes with them, and how much of an answer is read.
//!
//! reqwest follows no redirect and knows no credentials here; both are decided in this file, for each request anew.

use std::io;
use std::time::Duration;

use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, WWW_AUTHENTICATE,
};
use reqwest::redirect::Policy;
use reqwest::{Body, Certificate, Client, Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::authenticate;
use super::error::{FetchError, causes, said};
use crate::bundle::Reference;
use crate::wire::fetch::{Action, Credentials, Task};

/// From the first packet to a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// Longest silence in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Answers that send a request on to somewhere else, in a row.
const REDIRECTS_MAX: usize = 5;
/// Of what a registry says about an error, bytes.
const ERROR_MAX: u64 = 16 << 10;

/// The port of what a registry sends us on to: storage, and who gives out tokens.
pub(super) const HTTPS_PORT: u16 = 443;

/// A repository, and what the registry has been told about who asks.
pub(super) struct Remote {
    client: Client,
    pub(super) origin: Url,
    pub(super) repository: String,
    pub(super) credentials: Credentials,
    pub(super) action: Action,
    authorization: Option<HeaderValue>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("registry of {0:?}: it makes no URL")]
    Url(String),
    #[error("read certificates: {0}; --ca takes a file with one or more in PEM")]
    Certificates(String),
    #[error("set up TLS: {0}; install the system's certificates (ca-certificates) or give some with --ca")]
    Tls(String),
}

/// A request that can be made again: with credentials, or elsewhere.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    /// "get blob sha256:.. from host", for errors.
    pub(super) what: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<&'a dyn Fn() -> io::Result<Body>>,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, url: Url, what: &'a str) -> Self {
        Self { method, url, what, headers: HeaderMap::new(), body: None }
    }

    pub(super) fn header(mut self, name: reqwest::header::HeaderName, value: &str) -> Self {
        // Nothing that could not be a header's value gets here: numbers, media types that were checked.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

/// The ports that Landlock lets the fetcher connect to.
pub(super) fn ports(task: &Task) -> Result<[u16; 2], ClientError> {
    let origin = origin(&task.reference, task.plain_http)?;
    Ok([origin.port_or_known_default().unwrap_or(HTTPS_PORT), HTTPS_PORT])
}

fn origin(reference: &Reference, plain: bool) -> Result<Url, ClientError> {
    let scheme = if plain { "http" } else { "https" };
    let text = format!("{scheme}://{}/", reference.registry());
    Url::parse(&text).map_err(|_| ClientError::Url(reference.to_string()))
}

impl Remote {
    /// Reads the certificates that are believed: those in `ca` and no others, or the system's. Connects nowhere.
    pub(super) fn new(task: &Task, ca: Option<&[u8]>) -> Result<Self, ClientError> {
        // An error means that there is one already, which is the same: nothing else is linked.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .https_only(!task.plain_http)
            .http1_only()
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_WITHIN)
            .read_timeout(SILENCE_MAX);
        match ca {
            Some(pem) => {
                let certificates = Certificate::from_pem_bundle(pem)
                    .map_err(|error| ClientError::Certificates(causes(&error)))?;
                if certificates.is_empty() {
                    return Err(ClientError::Certificates("there is none in the file".to_owned()));
                }
                builder = builder.tls_certs_only(certificates);
            }
            // Nobody's, so that a machine without any can talk to a registry beside it.
            None if task.plain_http => builder = builder.tls_certs_only([]),
            None => {}
        }
        Ok(Self {
            client: builder.build().map_err(|error| ClientError::Tls(causes(&error)))?,
            origin: origin(&task.reference, task.plain_http)?,
            repository: task.reference.repository().to_owned(),
            credentials: task.credentials.clone(),
            action: task.action,
            authorization: None,
        })
    }

    /// `/v2/<repository>/<rest>`
    pub(super) fn url(&self, rest: &str) -> Url {
        let mut url = self.origin.clone();
        url.set_path(&format!("/v2/{}/{rest}", self.repository));
        url
    }

    /// Makes a request: with credentials once they are asked for, and where a registry sends it on to.
    ///
    /// The answer is any but a redirect or a demand for credentials.
    pub(super) async fn send(&mut self, request: Request<'_>) -> Result<Response, FetchError> {
        let Request { method, mut url, what, headers, body } = request;
        let follows = matches!(method, Method::GET | Method::HEAD);
        let mut redirects = 0;
        let mut authenticated = false;
        loop {
            let mut builder = self.client.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(authorization) = self.authorization_for(&url) {
                builder = builder.header(AUTHORIZATION, authorization);
            }
            if let Some(body) = body {
                builder = builder
                    .body(body().map_err(|source| FetchError::Read { what: what.to_owned(), source })?);
            }
            let response = builder.send().await.map_err(|error| unreachable(what, &error))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && self.is_origin(&url) {
                if authenticated {
                    return Err(authenticate::denied(what, &self.credentials));
                }
                authenticated = true;
                let challenges =
                    response.headers().get_all(WWW_AUTHENTICATE).iter().cloned().collect::<Vec<_>>();
                // Read before the next request, or the connection cannot be used for it.
                let _ = read_bounded(response, ERROR_MAX, what).await;
                self.authorization = Some(authenticate::authenticate(self, &challenges, what).await?);
            } else if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                let to = self.next(&url, response.headers().get(LOCATION), what)?;
                redirects += 1;
                let refuse =
                    |why: String| FetchError::Redirect { what: what.to_owned(), to: shown(&to), why };
                if !follows {
                    return Err(refuse("which is not followed for what is sent".to_owned()));
                }
                if redirects > REDIRECTS_MAX {
                    return Err(refuse(format!("after {REDIRECTS_MAX} others before")));
                }
                url = to;
            } else {
                return Ok(response);
            }
        }
    }

    /// Where an answer points to, if that is somewhere to go.
    pub(super) fn next(&self, from: &Url, to: Option<&HeaderValue>, what: &str) -> Result<Url, FetchError> {
        let refuse =
            |to: String, why: &str| FetchError::Redirect { what: what.to_owned(), to, why: why.to_owned() };
        let text = to
            .and_then(|to| to.to_str().ok())
            .ok_or_else(|| refuse("nowhere".into(), "without a location"))?;
        let url = from.join(text).map_err(|_| refuse(said(text), "which is no URL"))?;
        self.permit(&url).map_err(|why| FetchError::Redirect {
            what: what.to_owned(),
            to: shown(&url),
            why,
        })?;
        Ok(url)
    }

    /// The registry itself, or somebody with TLS on a port that the sandbox has open.
    pub(super) fn permit(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("which has credentials in it".to_owned());
        }
        if self.is_origin(url) {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(format!("which is {}: only TLS is taken from there", said(url.scheme())));
        }
        let port = url.port_or_known_default();
        if port == Some(HTTPS_PORT) || port == self.origin.port_or_known_default() {
            Ok(())
        } else {
            Err("a port that the fetcher may not connect to: only the registry's own and 443".to_owned())
        }
    }

    /// Same scheme, host and port as the registry that was named. Credentials go nowhere else.
    pub(super) fn is_origin(&self, url: &Url) -> bool {
        url.origin() == self.origin.origin()
    }

    fn authorization_for(&self, url: &Url) -> Option<HeaderValue> {
        self.authorization.as_ref().filter(|_| self.is_origin(url)).cloned()
    }

    /// For requests to who gives out tokens: no redirect, no authorization but what is in `headers`.
    pub(super) async fn send_once(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<String>,
        what: &str,
    ) -> Result<Response, FetchError> {
        let mut builder = self.client.request(method, url).headers(headers);
        if let Some(body) = body {
            builder = builder.body(body);
        }
        builder.send().await.map_err(|error| unreachable(what, &error))
    }
}

/// Reads an answer to its end, if that is no further than `max` bytes. What is longer is cut off there.
pub(super) async fn read_bounded(
    mut response: Response,
    max: u64,
    what: &str,
) -> Result<Vec<u8>, FetchError> {
    plain(&response, what)?;
    let too_long = || FetchError::TooLong { what: what.to_owned(), max };
    let max_bytes = usize::try_from(max).unwrap_or(usize::MAX);
    if announced(&response).is_some_and(|length| length > max) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(what, &error))? {
        if bytes.len().saturating_add(chunk.len()) > max_bytes {
            return Err(too_long());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What the header says, which need not be so.
pub(super) fn announced(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Nothing here is ever unpacked, so nothing can unpack to more than it is.
pub(super) fn plain(response: &Response, what: &str) -> Result<(), FetchError> {
    match response.headers().get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            let encoding = said(&String::from_utf8_lossy(encoding.as_bytes()));
            Err(FetchError::Encoded { what: what.to_owned(), encoding })
        }
        _ => Ok(()),
    }
}

/// An answer that is not the one hoped for, with what the registry says about it.
pub(super) async fn refused(response: Response, what: &str) -> FetchError {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: String,
        #[serde(default)]
        message: String,
    }

    let status = response.status();
    let bytes = read_bounded(response, ERROR_MAX, what).await.unwrap_or_default();
    let errors = serde_json::from_slice::<Errors>(&bytes).map(|body| body.errors).unwrap_or_default();
    let texts = errors.iter().map(|one| format!("{}: {}", one.code, one.message)).collect::<Vec<_>>();
    let said = if texts.is_empty() { String::new() } else { format!(" ({})", said(&texts.join(", "))) };
    let hint = match status {
        StatusCode::NOT_FOUND => "; check the repository, and the tag or digest",
        StatusCode::FORBIDDEN => "; these credentials may not do this: docker login with others",
        StatusCode::TOO_MANY_REQUESTS => "; too many requests: wait, then run the same command again",
        status if status.is_server_error() => "; it may work later: run the same command again",
        _ => "",
    };
    FetchError::Status { what: what.to_owned(), status: status.as_u16(), said, hint }
}

pub(super) fn unreachable(what: &str, error: &reqwest::Error) -> FetchError {
    // Its own text is the URL, which is in `what` as people know it.
    let why = std::error::Error::source(error).map_or_else(|| "the connection failed".to_owned(), causes);
    let hint = if why.contains("certificate") || why.contains("UnknownIssuer") {
        "give the registry's authority with --ca if it is your own"
    } else if error.is_connect() {
        "check the registry's name, the network, and --plain-http if it has no TLS"
    } else {
        "what is there is kept: run the same command again"
    };
    FetchError::Unreachable { what: what.to_owned(), why, hint }
}

/// A URL without what may be secret in it: signed ones carry their signature after the question mark.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    let _ = url.set_username("");
    let _ = url.set_password(None);
    said(url.as_str())
}
