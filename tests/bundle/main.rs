//! Bundles: what is written is read, twice the same, and whatever was changed, swapped, or is no file at all is refused by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test says no by panicking"
)]

mod flips;
mod forged;
mod places;
mod tars;
mod writing;

use std::path::{Path, PathBuf};

use portcullis::artifact::{Digest, Limits};
use portcullis::bundle::write::{self, NewAttachment};
use portcullis::bundle::{
    Annotations, Bundle, BundleError, Draft, DraftCompiled, Layout, Platform, media, open_path,
};
use portcullis::decision::{PolicyName, Tenant};

/// A small policy for both platforms. Nothing here is compiled: a bundle does not know what code is.
fn draft(version: u64) -> Draft {
    let code = |platform: Platform| DraftCompiled {
        platform,
        cwasm: format!("machine code for {platform}, version {version}").repeat(8).into_bytes(),
        wasmtime: "48.0.8".into(),
        engine: Digest::of(b"engine"),
    };
    Draft {
        policy: PolicyName::new("allow-acme").unwrap(),
        tenant: Tenant::new("acme").unwrap(),
        version,
        world: "portcullis:policy@0.1.0".into(),
        imports: vec!["log".into(), "clock".into()],
        exports: vec!["decide".into()],
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
        source: format!("\0asm\x0d\0\x01\0 source of version {version}").repeat(8).into_bytes(),
        compiled: vec![code(Platform::LinuxArm64), code(Platform::LinuxAmd64)],
        rego: None,
        prepared: None,
    }
}

fn signature(text: &str) -> NewAttachment {
    let annotations = Annotations::one("dev.sigstore.bundle.content", "dsse-envelope");
    NewAttachment::one(media::SIGSTORE_BUNDLE, text.as_bytes().to_vec(), annotations)
}

/// A bundle with something attached, at `<dir>/<name>`.
fn written(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    write::create(&draft(3).assemble().unwrap(), &path).unwrap();
    write::attach(&path, &signature("signed"), |_| false).unwrap();
    path
}

/// Every byte of it, as a registry looks at it.
fn read_whole(layout: &Layout) -> Result<Bundle, BundleError> {
    let bundle = layout.read()?;
    layout.check_blobs(&bundle)?;
    Ok(bundle)
}

fn read_path(path: &Path) -> Result<Bundle, BundleError> {
    read_whole(&open_path(path)?)
}

fn blob_path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("blobs/sha256").join(hex::encode(digest.as_bytes()))
}
