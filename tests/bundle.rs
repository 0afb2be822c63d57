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

use std::fs;
use std::path::Path;

use portcullis::artifact::{Digest, Limits};
use portcullis::bundle::write::{self, NewAttachment};
use portcullis::bundle::{Annotations, Draft, DraftCompiled, Platform, media, open_path};
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
        source: format!("\0asm\x0d\0\x01\0 source of version {version}").repeat(8).into_bytes(),
        compiled: vec![code(Platform::LinuxArm64), code(Platform::LinuxAmd64)],
    }
}

fn signature(text: &str) -> NewAttachment {
    let annotations = Annotations::one("dev.sigstore.bundle.content", "dsse-envelope");
    NewAttachment::one(media::SIGSTORE_BUNDLE, text.as_bytes().to_vec(), annotations)
}

fn write_both(dir: &Path) -> [std::path::PathBuf; 2] {
    let paths = [dir.join("b"), dir.join("b.tar")];
    for path in &paths {
        write::create(&draft(3).assemble().unwrap(), path).unwrap();
        write::attach(path, &signature("one"), |_| false).unwrap();
    }
    paths
}

#[test]
fn what_is_written_is_read_as_a_folder_and_as_a_tar() {
    let dir = tempfile::tempdir().unwrap();
    let [folder, tar] = write_both(dir.path()).map(|path| {
        let layout = open_path(&path).unwrap();
        let bundle = layout.read().unwrap();
        layout.check_blobs(&bundle).unwrap();
        bundle
    });
    assert_eq!(folder, tar);
    assert_eq!(folder.attachments.len(), 1);
    assert_eq!(folder.config.imports, ["clock", "log"]);
    assert!(fs::read_dir(dir.path()).unwrap().count() == 2, "nothing unfinished is left");
}
