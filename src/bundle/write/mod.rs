//! Bundles onto the disk: a whole folder or a whole tar beside its place, brought to the disk, read back as a stranger's would
//! be, and renamed there. Whatever goes wrong and whenever the power fails, the old bundle is there or the new one.

mod attach;
mod inside;
mod place;
mod tarball;

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use attach::{NewAttachment, NewLayer, attach};
use inside::Inside;
use place::Place;

use super::form::FormError;
use super::layout::Member;
use super::read::OCI_LAYOUT;
use super::{Assembled, Bundle, BundleError, Descriptor, Layout, LayoutError, open_path};
use crate::artifact::{ARTIFACT_MAX, Digest};

/// Why a bundle was not written. What was there before is still there.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("write bundle {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("write bundle {path:?}: it is not the path of a file or a folder")]
    Name { path: PathBuf },
    #[error("write bundle {path:?}: somebody else is writing there; try again when they are done")]
    Busy { path: PathBuf },
    #[error(
        "write bundle {path:?}: what is there is no bundle and is not replaced ({why}); remove it or choose another name"
    )]
    NotOurs { path: PathBuf, why: String },
    #[error(
        "write bundle {path:?}: exchange it with the old one: {source}; remove the old one first, or write a .tar"
    )]
    Exchange { path: PathBuf, source: io::Error },
    #[error("write bundle {path:?}: {source}")]
    Form { path: PathBuf, source: FormError },
    #[error("write bundle {path:?}: it would not be read again: {source}")]
    ReadBack { path: PathBuf, source: Box<BundleError> },
    #[error("write bundle {path:?}: what was written is not what is read")]
    Differs { path: PathBuf },
    #[error(transparent)]
    Read(Box<BundleError>),
}

impl From<BundleError> for WriteError {
    fn from(error: BundleError) -> Self {
        Self::Read(Box::new(error))
    }
}

impl From<LayoutError> for WriteError {
    fn from(error: LayoutError) -> Self {
        BundleError::from(error).into()
    }
}

/// Writes a new bundle: a tar if `path` ends with ".tar", else a folder. Replaces a bundle, and nothing else.
///
/// # Errors
/// When something else is there, or when the file system says no.
pub fn create(assembled: &Assembled, path: &Path) -> Result<Bundle, WriteError> {
    let place = Place::lock(path)?;
    place.check_replaceable()?;
    put(place, path, &assembled.bundle, |blob| {
        Ok(Cow::Borrowed(assembled.blobs.get(&blob.digest).map(Vec::as_slice).unwrap_or_default()))
    })
}

/// Writes a bundle that was read to another place: what belongs to it and nothing else, each blob checked on its way. This is
/// also the way from a folder to a tar and back.
///
/// # Errors
/// When a blob is not what it should be, when something else than a bundle is there, or when the file system says no.
pub fn copy(layout: &Layout, bundle: &Bundle, path: &Path) -> Result<Bundle, WriteError> {
    let place = Place::lock(path)?;
    place.check_replaceable()?;
    put(place, path, bundle, |blob| layout.bytes(blob, ARTIFACT_MAX).map(Cow::Owned))
}

/// Makes a layout of a folder whose `blobs/sha256/` is complete: reads the bundle of this digest and what is attached to it,
/// every byte of it, and only if all of it is good writes `oci-layout` and `index.json`. For whoever fetched blobs one by one.
///
/// # Errors
/// When something is missing or does not fit together; then no index.json is written.
pub fn finish(folder: &Path, index: Digest, attached: &[Digest]) -> Result<Bundle, WriteError> {
    let _place = Place::lock(folder)?;
    let layout = open_path(folder)?;
    let bundle = layout.read_named(index, attached)?;
    layout.check_blobs(&bundle)?;
    name(&Inside::open(folder).map_err(|source| failed(folder, source))?, folder, &bundle)?;
    Ok(bundle)
}

/// Writes a bundle as a tar into a file that the caller made, each blob checked by whoever gives it. The caller brings it to
/// the disk and to its place.
///
/// # Errors
/// When a blob is not given, or when the file system says no.
pub fn tar_into(
    file: File,
    bundle: &Bundle,
    content: impl Fn(&Descriptor) -> Result<Vec<u8>, LayoutError>,
) -> Result<(), WriteError> {
    let path = Path::new("tar");
    let failed = |source| failed(path, source);
    let mut tar = tarball::into(file);
    tar.add(Member::Layout, OCI_LAYOUT).map_err(failed)?;
    tar.add(Member::Index, &index_json(path, bundle)?).map_err(failed)?;
    for blob in sorted(bundle) {
        tar.add(Member::Blob(blob.digest), &content(&blob)?).map_err(failed)?;
    }
    tar.finish().map_err(failed)
}

fn put<'a>(
    place: Place,
    path: &Path,
    bundle: &Bundle,
    content: impl Fn(&Descriptor) -> Result<Cow<'a, [u8]>, LayoutError>,
) -> Result<Bundle, WriteError> {
    let failed = |source| failed(path, source);
    let temporary = place.temporary().map_err(failed)?;
    if place.is_tar() {
        let mut tar = tarball::start(temporary.path()).map_err(failed)?;
        tar.add(Member::Layout, OCI_LAYOUT).map_err(failed)?;
        tar.add(Member::Index, &index_json(path, bundle)?).map_err(failed)?;
        for blob in sorted(bundle) {
            tar.add(Member::Blob(blob.digest), &content(&blob)?).map_err(failed)?;
        }
        tar.finish().map_err(failed)?;
    } else {
        let inside = Inside::make(temporary.path()).map_err(failed)?;
        for blob in sorted(bundle) {
            inside.put(Member::Blob(blob.digest), &content(&blob)?).map_err(failed)?;
        }
        name(&inside, temporary.path(), bundle)?;
    }
    let read_back =
        |source: BundleError| WriteError::ReadBack { path: path.into(), source: Box::new(source) };
    let written = open_path(temporary.path()).map_err(|error| read_back(error.into()))?;
    if written.read().map_err(read_back)? != *bundle {
        return Err(WriteError::Differs { path: path.into() });
    }
    written.check_blobs(bundle).map_err(read_back)?;
    place.take(temporary)?;
    Ok(bundle.clone())
}

/// `oci-layout` and `index.json`, each whole or not at all, the latter last and behind its blobs: it is what makes them count.
fn name(inside: &Inside, folder: &Path, bundle: &Bundle) -> Result<(), WriteError> {
    let failed = |source| failed(folder, source);
    let index = index_json(folder, bundle)?;
    inside.sync().map_err(failed)?;
    inside.put(Member::Layout, OCI_LAYOUT).map_err(failed)?;
    inside.put(Member::Index, &index).map_err(failed)
}

fn index_json(path: &Path, bundle: &Bundle) -> Result<Vec<u8>, WriteError> {
    bundle.layout_index().map_err(|source| WriteError::Form { path: path.into(), source })
}

fn sorted(bundle: &Bundle) -> Vec<Descriptor> {
    let mut blobs = bundle.blobs();
    blobs.sort_by_key(|blob| blob.digest);
    blobs
}

fn failed(path: &Path, source: io::Error) -> WriteError {
    WriteError::Write { path: path.into(), source }
}
