//! What a registry can be asked, by the distribution specification: manifests, blobs, referrers.

use std::io;

use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, LINK, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};

use super::error::{FetchError, said};
use super::oci::{Descriptor, Index};
use super::remote::{Remote, Request, announced, read_bounded, refused};
use crate::artifact::Digest;
use crate::bundle::media;
use crate::wire::fetch::OBJECTS_MAX;

const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
/// What a registry says the digest is.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// A registry that keeps referrers itself says so when something with a subject is pushed.
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// An answer that is no manifest, bytes: a page of referrers.
const ANSWER_MAX: u64 = 4 << 20;
/// Pages of one list of referrers.
const PAGES_MAX: usize = 16;

/// How a manifest is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Name<'a> {
    Tag(&'a str),
    Digest(&'a Digest),
}

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest or an index, with the digest that its bytes really have.
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
}

/// What belongs to a manifest, and who said so.
pub(super) enum Referrers {
    Listed(Vec<Descriptor>),
    /// The registry has no such list; there may be a tag.
    NotKept,
}

/// The tag under which referrers of `subject` are listed where a registry has no list of its own.
pub(super) fn fallback_tag(subject: &Digest) -> String {
    subject.to_string().replace(':', "-")
}

impl Remote {
    /// A manifest or index of at most `max` bytes. `None`: there is none.
    pub(super) async fn manifest_if_any(
        &mut self,
        name: Name<'_>,
        max: u64,
        what: &str,
    ) -> Result<Option<Fetched>, FetchError> {
        let url = self.url(&format!("manifests/{name}"));
        let response = self.send(Request::new(Method::GET, url, what).header(ACCEPT, ACCEPTED)).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(refused(response, what).await),
        }
        let claimed = header(&response, &CONTENT_DIGEST).and_then(|claimed| claimed.parse::<Digest>().ok());
        let bytes = read_bounded(response, max, what).await?;
        let digest = Digest::of(&bytes);
        let expected = match name {
            Name::Digest(digest) => Some(*digest),
            // Another algorithm than ours says nothing here.
            Name::Tag(_) => claimed,
        };
        match expected {
            Some(expected) if expected != digest => Err(FetchError::Digest {
                what: what.to_owned(),
                found: digest,
                expected,
                hint: "the registry serves other bytes than it says; nothing was taken",
            }),
            _ => Ok(Some(Fetched { bytes, digest })),
        }
    }

    /// A manifest or index that has to be there.
    pub(super) async fn manifest(
        &mut self,
        name: Name<'_>,
        max: u64,
        what: &str,
    ) -> Result<Fetched, FetchError> {
        match self.manifest_if_any(name, max, what).await? {
            Some(fetched) => Ok(fetched),
            None => Err(FetchError::Status {
                what: what.to_owned(),
                status: 404,
                said: " (there is none)".to_owned(),
                hint: "; check the repository, and the tag or digest",
            }),
        }
    }

    /// The answer with a blob's bytes from `from` on.
    pub(super) async fn blob(
        &mut self,
        digest: &Digest,
        from: u64,
        what: &str,
    ) -> Result<Response, FetchError> {
        let mut request = Request::new(Method::GET, self.url(&format!("blobs/{digest}")), what);
        if from > 0 {
            request = request.header(RANGE, &format!("bytes={from}-"));
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(refused(response, what).await),
        }
    }

    /// Whether there is a blob already; what cannot be said is no.
    pub(super) async fn has_blob(
        &mut self,
        digest: &Digest,
        size: u64,
        what: &str,
    ) -> Result<bool, FetchError> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.send(Request::new(Method::HEAD, url, what)).await?;
        Ok(response.status() == StatusCode::OK && announced(&response).is_none_or(|length| length == size))
    }

    /// Sends a blob, whole, in one request.
    pub(super) async fn send_blob(
        &mut self,
        digest: &Digest,
        size: u64,
        body: &dyn Fn() -> io::Result<Body>,
        what: &str,
    ) -> Result<(), FetchError> {
        let begin = Request::new(Method::POST, self.url("blobs/uploads/"), what).header(CONTENT_LENGTH, "0");
        let response = self.send(begin).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(refused(response, what).await);
        }
        let mut url = self.next(&self.origin.clone(), response.headers().get(LOCATION), what)?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let _ = read_bounded(response, ANSWER_MAX, what).await;
        let mut request = Request::new(Method::PUT, url, what)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, &size.to_string());
        request.body = Some(body);
        let response = self.send(request).await?;
        if response.status() == StatusCode::CREATED { Ok(()) } else { Err(refused(response, what).await) }
    }

    /// Sends a manifest. Returns whether the registry keeps what it is attached to by itself.
    pub(super) async fn send_manifest(
        &mut self,
        name: Name<'_>,
        media_type: &str,
        bytes: &[u8],
        what: &str,
    ) -> Result<bool, FetchError> {
        let url = self.url(&format!("manifests/{name}"));
        let body = || Ok(Body::from(bytes.to_vec()));
        let mut request = Request::new(Method::PUT, url, what).header(CONTENT_TYPE, media_type);
        request.body = Some(&body);
        let response = self.send(request).await?;
        if response.status() != StatusCode::CREATED {
            return Err(refused(response, what).await);
        }
        let digest = Digest::of(bytes);
        if let Some(found) = header(&response, &CONTENT_DIGEST).and_then(|found| found.parse::<Digest>().ok())
            && found != digest
        {
            let hint = "the registry has stored other bytes than it was sent";
            return Err(FetchError::Digest { what: what.to_owned(), found, expected: digest, hint });
        }
        Ok(response.headers().contains_key(&OCI_SUBJECT))
    }

    /// What the registry lists as attached to `subject`.
    pub(super) async fn referrers(&mut self, subject: &Digest, what: &str) -> Result<Referrers, FetchError> {
        let mut url = self.url(&format!("referrers/{subject}"));
        let mut listed = Vec::new();
        for _ in 0..PAGES_MAX {
            let response = self
                .send(Request::new(Method::GET, url.clone(), what).header(ACCEPT, media::OCI_INDEX))
                .await?;
            match response.status() {
                StatusCode::OK => {}
                // 404 by the specification; the others are said by registries from before it.
                StatusCode::NOT_FOUND
                | StatusCode::BAD_REQUEST
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_IMPLEMENTED => return Ok(Referrers::NotKept),
                _ => return Err(refused(response, what).await),
            }
            let next = self.next_page(&url, &response, what)?;
            let bytes = read_bounded(response, ANSWER_MAX, what).await?;
            listed.extend(Index::parse(&bytes, what)?.manifests);
            match next {
                _ if listed.len() > OBJECTS_MAX => break,
                Some(next) => url = next,
                None => return Ok(Referrers::Listed(listed)),
            }
        }
        // A list without an end, or with one that is too far away, is not cut: what is left out could be a signature.
        let why = format!("it lists more than {OBJECTS_MAX} attachments or {PAGES_MAX} pages of them");
        Err(FetchError::not_a_bundle(what, why))
    }

    /// `Link: </v2/..>; rel="next"`
    fn next_page(&self, from: &Url, response: &Response, what: &str) -> Result<Option<Url>, FetchError> {
        let Some(link) = header(response, &LINK) else { return Ok(None) };
        let refuse =
            |why: &str| FetchError::not_a_bundle(what, format!("its next page is {}, {why}", said(link)));
        let target = link.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        let (target, _) =
            target.filter(|(_, rest)| rest.contains("next")).ok_or_else(|| refuse("not understood"))?;
        let url = from.join(target).map_err(|_| refuse("which is no URL"))?;
        if self.is_origin(&url) { Ok(Some(url)) } else { Err(refuse("which is not at the registry")) }
    }
}

fn header<'a>(response: &'a Response, name: &HeaderName) -> Option<&'a str> {
    let headers: &HeaderMap = response.headers();
    headers.get(name)?.to_str().ok()
}
