//! From a reference to a whole layout: the index by its tag, and everything below by digest, so that a tag that moves
//! meanwhile changes nothing.
//!
//! All platforms are taken. A bundle's digest covers them all, and what signers signed is the whole: with a part left out,
//! whoever verifies could not tell what was left out from what was taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha2::Digest as _;

use super::error::{FetchError, said, write};
use super::folder::{Folder, Part};
use super::oci::{Descriptor, Index, Manifest};
use super::remote::{Remote, announced, plain, unreachable};
use super::report::Report;
use super::repository::{Name, Referrers, fallback_tag};
use crate::artifact::{ARTIFACT_MAX, Digest};
use crate::bundle::{ATTACHED_MANIFEST_MAX, ATTACHMENTS_MAX, MANIFEST_MAX, Reference, cosign_tag, media};
use crate::wire::fetch::{FromFetcher, OBJECTS_MAX, Pulled};

/// All objects of one bundle together, bytes.
const TOTAL_MAX: u64 = 4 * ARTIFACT_MAX as u64;
/// A list of what is attached, bytes: others may have put more there than is taken.
const LIST_MAX: u64 = 4 << 20;

/// What has been taken so far.
struct Pull<'a> {
    remote: &'a mut Remote,
    folder: Folder,
    report: &'a Report,
    reference: &'a Reference,
    objects: BTreeMap<Digest, u64>,
    received: u64,
    reused: u64,
}

/// Fills `folder` with all blobs that belong to a bundle.
pub(super) async fn pull(
    remote: &mut Remote,
    folder: Folder,
    report: &Report,
    reference: &Reference,
) -> Result<Pulled, FetchError> {
    let mut pull =
        Pull { remote, folder, report, reference, objects: BTreeMap::new(), received: 0, reused: 0 };
    let (bundle, bytes) = pull.top().await?;
    let what = format!("index {}", bundle.digest);
    let entries = Index::parse(&bytes, &what)?.manifests;
    let mut manifests = Vec::new();
    for entry in &entries {
        manifests.push(pull.manifest(entry, "manifest", MANIFEST_MAX).await?);
    }
    let attached = pull.attached(&bundle.digest).await?;
    let digests = attached.keys().copied().collect();
    manifests.extend(attached.into_values());
    for manifest in &manifests {
        for blob in manifest.blobs() {
            pull.blob(blob).await?;
        }
    }
    let blobs: BTreeSet<Digest> = pull.objects.keys().copied().collect();
    pull.folder.complete(&blobs)?;
    Ok(Pulled { bundle: bundle.digest, attached: digests, received: pull.received, reused: pull.reused })
}

impl Pull<'_> {
    /// What the reference names.
    async fn top(&mut self) -> Result<(Descriptor, Vec<u8>), FetchError> {
        let what = format!("get {}", self.reference);
        let name = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => Name::Digest(digest),
            (None, Some(tag)) => Name::Tag(tag),
            (None, None) => return Err(FetchError::not_a_bundle(what, "neither tag nor digest")),
        };
        let fetched = self.remote.manifest(name, MANIFEST_MAX as u64, &what).await?;
        let size = fetched.bytes.len() as u64;
        let descriptor = Descriptor { media_type: media::OCI_INDEX.to_owned(), digest: fetched.digest, size };
        // Before it is written: what is no index is no bundle.
        Index::parse(&fetched.bytes, &what)?;
        self.take("index", &descriptor, &fetched.bytes)?;
        Ok((descriptor, fetched.bytes))
    }

    /// A manifest, from an earlier try or from the registry.
    async fn manifest(
        &mut self,
        descriptor: &Descriptor,
        kind: &str,
        max: usize,
    ) -> Result<Manifest, FetchError> {
        let what = format!("{kind} {}", descriptor.digest);
        if descriptor.media_type != media::OCI_MANIFEST {
            let (found, expected) = (said(&descriptor.media_type), media::OCI_MANIFEST);
            let why = format!("its media type is {found:?}, expected {expected:?}");
            return Err(FetchError::not_a_bundle(what, why));
        }
        if descriptor.size > max as u64 {
            return Err(FetchError::TooLong { what, max: max as u64 });
        }
        if self.objects.contains_key(&descriptor.digest)
            || self.folder.has(&descriptor.digest, descriptor.size)?
        {
            self.reuse(descriptor, kind, &what)?;
            return Manifest::parse(&self.folder.bytes(&descriptor.digest, max)?, &what);
        }
        let get = format!("get {what}");
        let fetched = self.remote.manifest(Name::Digest(&descriptor.digest), descriptor.size, &get).await?;
        let size = fetched.bytes.len() as u64;
        if size != descriptor.size {
            return Err(FetchError::Length { what: get, announced: size, expected: descriptor.size });
        }
        let manifest = Manifest::parse(&fetched.bytes, &what)?;
        self.take(kind, descriptor, &fetched.bytes)?;
        Ok(manifest)
    }

    /// Everything whose `subject` is the bundle, and cosign's older form, which has a tag instead.
    async fn attached(&mut self, bundle: &Digest) -> Result<BTreeMap<Digest, Manifest>, FetchError> {
        let what = format!("list what is attached to {bundle}");
        let listed = match self.remote.referrers(bundle, &what).await? {
            Referrers::Listed(listed) => listed,
            Referrers::NotKept => {
                let tag = fallback_tag(bundle);
                let what = format!("get {tag}, which lists what is attached");
                match self.remote.manifest_if_any(Name::Tag(&tag), LIST_MAX, &what).await? {
                    Some(fetched) => Index::parse(&fetched.bytes, &what)?.manifests,
                    None => Vec::new(),
                }
            }
        };
        let mut attached = BTreeMap::new();
        for descriptor in listed {
            let manifest = self.manifest(&descriptor, "attachment", ATTACHED_MANIFEST_MAX).await?;
            let subject = manifest.subject.as_ref().map(|subject| subject.digest);
            if subject != Some(*bundle) {
                let found = subject.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
                let what = format!("attachment {}", descriptor.digest);
                return Err(FetchError::Subject { what, found, expected: *bundle });
            }
            attached.insert(descriptor.digest, manifest);
        }
        let tag = cosign_tag(*bundle);
        let get = format!("get {tag}, which may hold signatures");
        if let Some(fetched) =
            self.remote.manifest_if_any(Name::Tag(&tag), ATTACHED_MANIFEST_MAX as u64, &get).await?
        {
            let manifest = Manifest::parse(&fetched.bytes, &format!("attachment {}", fetched.digest))?;
            let size = fetched.bytes.len() as u64;
            let descriptor =
                Descriptor { media_type: media::OCI_MANIFEST.to_owned(), digest: fetched.digest, size };
            self.take("attachment", &descriptor, &fetched.bytes)?;
            attached.insert(fetched.digest, manifest);
        }
        if attached.len() > ATTACHMENTS_MAX {
            let why =
                format!("there are {} attachments, at most {ATTACHMENTS_MAX} are taken", attached.len());
            return Err(FetchError::not_a_bundle(what, why));
        }
        Ok(attached)
    }

    /// A blob: from an earlier try, the rest of it, or all of it.
    async fn blob(&mut self, descriptor: &Descriptor) -> Result<(), FetchError> {
        let what = format!("blob {}", descriptor.digest);
        if self.objects.contains_key(&descriptor.digest)
            || self.folder.has(&descriptor.digest, descriptor.size)?
        {
            return self.reuse(descriptor, "blob", &what);
        }
        self.count(descriptor, &what)?;
        let mut part = self.folder.part(&descriptor.digest, descriptor.size)?;
        let resumed = part.have;
        self.begin("blob", descriptor, resumed)?;
        self.reused += resumed;
        match self.rest_of_blob(descriptor, &mut part).await {
            // What was there before may be what was wrong; from the start it is the registry.
            Err(FetchError::Digest { .. }) if resumed > 0 => {
                self.report.tell(&FromFetcher::Note(format!(
                    "{what}: what an earlier try left is wrong, begun anew"
                )))?;
                self.reused -= resumed;
                self.folder.discard_part(&descriptor.digest)?;
                part = self.folder.part(&descriptor.digest, descriptor.size)?;
                self.rest_of_blob(descriptor, &mut part).await?;
            }
            other => other?,
        }
        self.folder.finish(&descriptor.digest, part)?;
        self.finished(descriptor)
    }

    async fn rest_of_blob(&mut self, descriptor: &Descriptor, part: &mut Part) -> Result<(), FetchError> {
        let Descriptor { digest, size, .. } = descriptor;
        let what = format!("get blob {digest}");
        // What is whole but for its name is only hashed, which has been done.
        if part.have < *size || *size == 0 {
            let mut response = self.remote.blob(digest, part.have, &what).await?;
            plain(&response, &what)?;
            let asked = format!("bytes {}-", part.have);
            let continues = response.status() == StatusCode::PARTIAL_CONTENT
                && response
                    .headers()
                    .get(CONTENT_RANGE)
                    .is_some_and(|range| range.as_bytes().starts_with(asked.as_bytes()));
            if part.have > 0 && !continues {
                // It knows no ranges, or gives another: from the start.
                self.reused -= part.have;
                self.folder.discard_part(digest)?;
                *part = self.folder.part(digest, *size)?;
                if response.status() != StatusCode::OK {
                    response = self.remote.blob(digest, 0, &what).await?;
                    plain(&response, &what)?;
                }
            }
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                return Err(FetchError::Short { what, have: part.have, expected: *size });
            }
            let left = size - part.have;
            if let Some(announced) = announced(&response).filter(|announced| *announced != left) {
                return Err(FetchError::Length { what, announced, expected: left });
            }
            while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&what, &error))? {
                let length = chunk.len() as u64;
                if part.have.saturating_add(length) > *size {
                    self.folder.discard_part(digest)?;
                    return Err(FetchError::TooLong { what, max: *size });
                }
                part.file.write_all(&chunk).map_err(write(&digest.to_string()))?;
                part.hash.update(&chunk);
                part.have += length;
                self.received += length;
                self.report.progress(digest, part.have);
            }
        }
        if part.have < *size {
            return Err(FetchError::Short { what, have: part.have, expected: *size });
        }
        let found = Digest::from_bytes(part.hash.clone().finalize().into());
        if found != *digest {
            self.folder.discard_part(digest)?;
            let hint = "the registry serves other bytes than were pushed; nothing of them was kept";
            return Err(FetchError::Digest { what, found, expected: *digest, hint });
        }
        Ok(())
    }

    /// Something small that came at once.
    fn take(&mut self, kind: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<(), FetchError> {
        self.count(descriptor, &format!("{kind} {}", descriptor.digest))?;
        self.begin(kind, descriptor, 0)?;
        self.received += descriptor.size;
        self.folder.put(&descriptor.digest, bytes)?;
        self.finished(descriptor)
    }

    /// Each object counts once, before any of it is taken.
    fn count(&mut self, descriptor: &Descriptor, what: &str) -> Result<(), FetchError> {
        if descriptor.size > ARTIFACT_MAX as u64 {
            return Err(FetchError::TooLong { what: what.to_owned(), max: ARTIFACT_MAX as u64 });
        }
        self.objects.insert(descriptor.digest, descriptor.size);
        if self.objects.len() > OBJECTS_MAX {
            return Err(FetchError::not_a_bundle(what, format!("it has more than {OBJECTS_MAX} objects")));
        }
        let total = self.objects.values().fold(0_u64, |total, size| total.saturating_add(*size));
        if total > TOTAL_MAX {
            return Err(FetchError::TooLong { what: format!("{what}, with all before it"), max: TOTAL_MAX });
        }
        Ok(())
    }

    fn reuse(&mut self, descriptor: &Descriptor, kind: &str, what: &str) -> Result<(), FetchError> {
        match self.objects.get(&descriptor.digest) {
            Some(size) if *size == descriptor.size => Ok(()),
            Some(size) => {
                let why = format!("it is named with {size} and with {} bytes", descriptor.size);
                Err(FetchError::not_a_bundle(what, why))
            }
            None => {
                self.count(descriptor, what)?;
                self.reused += descriptor.size;
                self.begin(kind, descriptor, descriptor.size)?;
                self.finished(descriptor)
            }
        }
    }

    fn begin(&self, kind: &str, descriptor: &Descriptor, have: u64) -> Result<(), FetchError> {
        let what = kind.to_owned();
        let Descriptor { digest, size, .. } = descriptor;
        self.report.tell(&FromFetcher::Begins { what, digest: *digest, size: *size, have })
    }

    fn finished(&self, descriptor: &Descriptor) -> Result<(), FetchError> {
        self.report.tell(&FromFetcher::Finished { digest: descriptor.digest })
    }
}
