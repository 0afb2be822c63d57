//! From descriptors to a registry: blobs, manifests, the index by its digest, what is attached, and the tag last. Whoever
//! pulls by the tag finds a bundle that is complete with its signatures, or the one from before.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use reqwest::Body;
use serde_json::Value;

use super::error::{FetchError, read, said};
use super::folder::STEP;
use super::oci::Index;
use super::remote::Remote;
use super::report::Report;
use super::repository::{Name, fallback_tag};
use crate::artifact::Digest;
use crate::bundle::{ATTACHED_MANIFEST_MAX, Reference, media};
use crate::wire::fetch::{FromFetcher, OBJECTS_MAX, Object, ObjectKind, ToFetcher};

/// Tries to add to a list that others may write at the same time.
const LIST_TRIES: usize = 4;
/// Such a list, bytes.
const LIST_MAX: u64 = 4 << 20;

/// Sends what the command hands over, in its order.
pub(super) async fn push(
    remote: &mut Remote,
    report: &Arc<Report>,
    reference: &Reference,
) -> Result<FromFetcher, FetchError> {
    let mut push = Push { remote, report, reference, sent: 0, reused: 0, to_list: Vec::new() };
    let mut bundle = None;
    for _ in 0..=OBJECTS_MAX {
        let (object, bytes) = match report.hear()? {
            (ToFetcher::Object(object), Some(bytes)) => (object, File::from(bytes)),
            (ToFetcher::NoMore, _) => {
                let bundle = bundle.ok_or(FetchError::OutOfOrder("it named no bundle"))?;
                return Ok(FromFetcher::Pushed { bundle, sent: push.sent, reused: push.reused });
            }
            _ => return Err(FetchError::OutOfOrder("it said what it may not say now")),
        };
        if let ObjectKind::Bundle { .. } = object.kind {
            bundle = Some(object.digest);
        }
        push.object(object, &bytes).await?;
    }
    Err(FetchError::OutOfOrder("it has too many objects"))
}

struct Push<'a> {
    remote: &'a mut Remote,
    report: &'a Arc<Report>,
    reference: &'a Reference,
    sent: u64,
    reused: u64,
    /// Descriptors of attachments that the registry does not list by itself.
    to_list: Vec<Value>,
}

impl Push<'_> {
    async fn object(&mut self, object: Object, bytes: &File) -> Result<(), FetchError> {
        let Object { digest, size, kind } = object;
        let name = match &kind {
            ObjectKind::Blob => "blob",
            ObjectKind::Manifest { .. } => "manifest",
            ObjectKind::Attached { .. } => "attachment",
            ObjectKind::Bundle { .. } => "index",
        };
        self.report.tell(&FromFetcher::Begins { what: name.to_owned(), digest, size, have: 0 })?;
        let what = format!("send {name} {digest}");
        match kind {
            ObjectKind::Blob => return self.blob(&digest, size, bytes, &what).await,
            ObjectKind::Manifest { media_type, tag } => {
                let bytes = manifest(bytes, &digest, &what)?;
                let name = tag.as_deref().map_or(Name::Digest(&digest), Name::Tag);
                self.remote.send_manifest(name, &media_type, &bytes, &what).await?;
            }
            ObjectKind::Attached { media_type, descriptor } => {
                let bytes = manifest(bytes, &digest, &what)?;
                let listed =
                    self.remote.send_manifest(Name::Digest(&digest), &media_type, &bytes, &what).await?;
                if !listed {
                    let descriptor = serde_json::from_str(&descriptor);
                    self.to_list
                        .push(descriptor.map_err(|_| FetchError::OutOfOrder("a descriptor is no JSON"))?);
                }
            }
            ObjectKind::Bundle { media_type } => {
                // Before the tag, so that nobody finds a bundle without its signatures under it.
                list(self.remote, self.report, &digest, &self.to_list).await?;
                let tag = self.reference.tag().ok_or(FetchError::OutOfOrder("its reference has no tag"))?;
                let bytes = manifest(bytes, &digest, &what)?;
                self.remote.send_manifest(Name::Tag(tag), &media_type, &bytes, &what).await?;
            }
        }
        // A manifest costs one request, with it or without.
        self.sent += size;
        self.report.tell(&FromFetcher::Finished { digest })
    }

    async fn blob(&mut self, digest: &Digest, size: u64, bytes: &File, what: &str) -> Result<(), FetchError> {
        if self.remote.has_blob(digest, size, what).await? {
            self.reused += size;
        } else {
            let body = || {
                let file = bytes.try_clone()?;
                let report = Arc::clone(self.report);
                Ok(Body::wrap_stream(Chunks { file, digest: *digest, at: 0, size, report }))
            };
            self.remote.send_blob(digest, size, &body, what).await?;
            self.sent += size;
        }
        self.report.tell(&FromFetcher::Finished { digest: *digest })
    }
}

/// For registries that keep no list of what is attached: an index under a tag made from the subject's digest. There is no
/// way to change it only if nobody else has, so it is read again after each write.
async fn list(
    remote: &mut Remote,
    report: &Report,
    subject: &Digest,
    attached: &[Value],
) -> Result<(), FetchError> {
    if attached.is_empty() {
        return Ok(());
    }
    let tag = fallback_tag(subject);
    let what = format!("list attachments under {tag}");
    report
        .tell(&FromFetcher::Note(format!("the registry keeps no referrers; they are listed under {tag}")))?;
    for _ in 0..LIST_TRIES {
        let there = remote.manifest_if_any(Name::Tag(&tag), LIST_MAX, &what).await?;
        let mut manifests = match &there {
            Some(fetched) => listed(&fetched.bytes, &what)?,
            None => Vec::new(),
        };
        let before = manifests.len();
        for descriptor in attached {
            if !manifests.iter().any(|other| other.get("digest") == descriptor.get("digest")) {
                manifests.push(descriptor.clone());
            }
        }
        if manifests.len() == before {
            return Ok(());
        }
        let index =
            serde_json::json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": manifests });
        remote.send_manifest(Name::Tag(&tag), media::OCI_INDEX, index.to_string().as_bytes(), &what).await?;
    }
    Err(FetchError::not_a_bundle(what, "somebody else goes on writing it; push again when they are done"))
}

/// The entries of a list, with all that others have written in them.
fn listed(bytes: &[u8], what: &str) -> Result<Vec<Value>, FetchError> {
    Index::parse(bytes, what)?;
    let mut index: Value = serde_json::from_slice(bytes).map_err(|error| {
        FetchError::not_a_bundle(what, format!("it is no JSON: {}", said(&error.to_string())))
    })?;
    match index.get_mut("manifests").map(Value::take) {
        Some(Value::Array(manifests)) => Ok(manifests),
        _ => Err(FetchError::not_a_bundle(what, "it has no list of manifests")),
    }
}

fn manifest(file: &File, digest: &Digest, what: &str) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let mut file = file;
    io::Seek::rewind(&mut file).map_err(read(what))?;
    file.take(ATTACHED_MANIFEST_MAX as u64 + 1).read_to_end(&mut bytes).map_err(read(what))?;
    if bytes.len() > ATTACHED_MANIFEST_MAX {
        return Err(FetchError::TooLong { what: what.to_owned(), max: ATTACHED_MANIFEST_MAX as u64 });
    }
    let found = Digest::of(&bytes);
    if found == *digest {
        Ok(bytes)
    } else {
        let hint = "the bundle has changed since it was looked at, or was damaged: build it again";
        Err(FetchError::Digest { what: what.to_owned(), found, expected: *digest, hint })
    }
}

/// A file in pieces, read as they are sent.
struct Chunks {
    file: File,
    digest: Digest,
    at: u64,
    size: u64,
    report: Arc<Report>,
}

impl Stream for Chunks {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
        if left == 0 {
            return Poll::Ready(None);
        }
        let mut buffer = vec![0; left.min(STEP)];
        let read = self.file.read_at(&mut buffer, self.at);
        Poll::Ready(Some(read.and_then(|count| {
            if count == 0 {
                return Err(io::Error::other("the file is shorter than it was"));
            }
            buffer.truncate(count);
            self.at += count as u64;
            self.report.progress(&self.digest, self.at);
            Ok(buffer.into())
        })))
    }
}
