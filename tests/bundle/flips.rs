//! One bit of one byte is another one: refused, and which check failed is named.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use portcullis::bundle::{BundleError, DataDraft, Draft, Kind, Refusal, SecretKey, write};
use portcullis::decision::{PolicyName, Tenant};
use portcullis::table::Builder;

use super::{blob_path, draft, read_path, written};

/// A check by its name: the variant, and for files the one below.
fn check(error: &BundleError) -> String {
    let name = |debug: String| debug.split([' ', '(', '{']).next().unwrap().to_owned();
    match error {
        BundleError::File(error) => format!("File/{}", name(format!("{:?}", error.why))),
        other => name(format!("{other:?}")),
    }
}

/// Flips one bit of each byte (every bit, if `every_bit`), reads the bundle, and puts the byte back.
fn flip(bundle: &Path, file: &Path, every_bit: bool, mut refused: impl FnMut(usize, BundleError)) -> usize {
    let bytes = fs::read(file).unwrap();
    let open = OpenOptions::new().write(true).open(file).unwrap();
    let mut flips = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let bits = if every_bit { 0..8 } else { at % 8..at % 8 + 1 };
        for bit in bits {
            open.write_all_at(&[byte ^ (1 << bit)], at as u64).unwrap();
            match read_path(bundle) {
                Err(error) => refused(at, error),
                Ok(_) => panic!("{}: bit {bit} of byte {at} was flipped and it was read", file.display()),
            }
            flips += 1;
        }
        open.write_all_at(&[*byte], at as u64).unwrap();
    }
    flips
}

#[test]
fn every_flipped_byte_of_a_bundle_is_refused_and_the_check_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b");
    let bundle = read_path(&path).expect("untouched it is read");
    let blob = |digest| blob_path(&path, digest);
    let attachment = &bundle.attachments[0];
    let json = [
        ("oci-layout", path.join("oci-layout")),
        ("index.json", path.join("index.json")),
        ("bundle index", blob(bundle.digest())),
        ("manifest linux/amd64", blob(bundle.compiled[0].manifest.digest)),
        ("manifest linux/arm64", blob(bundle.compiled[1].manifest.digest)),
        ("manifest source", blob(bundle.source_manifest.digest)),
        ("config", blob(bundle.config_blob.digest)),
        ("attached manifest", blob(attachment.manifest.digest)),
    ];
    let bytes = [
        ("cwasm linux/amd64", blob(bundle.compiled[0].cwasm.digest)),
        ("cwasm linux/arm64", blob(bundle.compiled[1].cwasm.digest)),
        ("source", blob(bundle.source.digest)),
        ("signature", blob(attachment.layers[0].digest)),
        ("attached config", blob(attachment.config.digest)),
    ];
    let (mut total, mut files) = (0, 0);
    for (every_bit, (what, file)) in
        json.into_iter().map(|file| (true, file)).chain(bytes.into_iter().map(|file| (false, file)))
    {
        let mut checks: BTreeMap<String, usize> = BTreeMap::new();
        let flips = flip(&path, &file, every_bit, |at, error| {
            let text = error.to_string();
            if file.starts_with(path.join("blobs")) {
                // The blob itself is named, and that its digest is wrong.
                let name = file.file_name().unwrap().to_str().unwrap();
                assert!(text.contains(name) && text.contains("has digest"), "{what}, byte {at}: {text}");
            }
            *checks.entry(check(&error)).or_default() += 1;
        });
        println!("{what}: {flips} flips, all refused: {checks:?}");
        if file.starts_with(path.join("blobs")) {
            assert_eq!(checks.keys().collect::<Vec<_>>(), ["File/Digest"]);
        }
        total += flips;
        files += 1;
    }
    // Every file that there is was among them.
    assert_eq!(files, 2 + fs::read_dir(path.join("blobs/sha256")).unwrap().count());
    assert_eq!(read_path(&path).expect("put back it is read"), bundle);
    println!("{total} flips in {files} files of a folder, all refused");
}

#[test]
fn every_flipped_byte_of_a_tar_is_refused_or_means_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b.tar");
    let bundle = read_path(&path).expect("untouched it is read");
    let bytes = fs::read(&path).unwrap();
    let open = OpenOptions::new().write(true).open(&path).unwrap();
    let mut checks: BTreeMap<String, usize> = BTreeMap::new();
    for (at, byte) in bytes.iter().enumerate() {
        open.write_all_at(&[byte ^ (1 << (at % 8))], at as u64).unwrap();
        match read_path(&path) {
            Err(BundleError::File(error)) if matches!(error.why, Refusal::Tar(_)) => {
                let Refusal::Tar(why) = error.why else { unreachable!() };
                let why = format!("{why:?}");
                *checks.entry(why.split([' ', '{']).next().unwrap().to_owned()).or_default() += 1;
            }
            Err(error) => *checks.entry(check(&error)).or_default() += 1,
            // The number in a checksum field may be written in several ways, all of which are the same number.
            Ok(read) => {
                assert!((148..156).contains(&(at % 512)), "byte {at} was flipped and it was read");
                assert_eq!(read, bundle);
                *checks.entry("the same".into()).or_default() += 1;
            }
        }
        open.write_all_at(&[*byte], at as u64).unwrap();
    }
    println!("tar: {} flips: {checks:?}", bytes.len());
    let same = checks.get("the same").copied().unwrap_or_default();
    assert!(same < bytes.len() / 100, "{same} of {} flips mean the same", bytes.len());
    assert_eq!(read_path(&path).expect("put back it is read"), bundle);
}

#[test]
fn flips_all_over_large_code_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    let mut large: Draft = draft(3);
    large.compiled[0].cwasm =
        (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bundle = write::create(&large.assemble().unwrap(), &path).unwrap();
    let file = blob_path(&path, bundle.compiled[1].cwasm.digest);
    let bytes = fs::read(&file).unwrap();
    let open = OpenOptions::new().write(true).open(&file).unwrap();
    let mut flips = 0;
    for at in (0..bytes.len()).step_by(99_991).chain([bytes.len() - 1]) {
        open.write_all_at(&[bytes[at] ^ (1 << (at % 8))], at as u64).unwrap();
        let error = read_path(&path).expect_err("flipped");
        assert_eq!(check(&error), "File/Digest", "{error}");
        open.write_all_at(&[bytes[at]], at as u64).unwrap();
        flips += 1;
    }
    read_path(&path).expect("put back it is read");
    println!("{flips} flips in {} bytes of code, all refused", bytes.len());
}

/// The same of data, in plain and encrypted: config, manifest, index and table.
#[test]
fn every_flipped_byte_of_a_bundle_of_data_is_refused() {
    let secret = SecretKey::generate().unwrap();
    for secret in [None, Some(&secret)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let mut table = Builder::default();
        table.add("a", "1").unwrap();
        table.add("b", "a value that is a little longer").unwrap();
        let (name, tenant) = (PolicyName::new("prices").unwrap(), Tenant::new("acme").unwrap());
        let draft = DataDraft { name, tenant, version: 3, table: table.build() };
        write::create(&draft.assemble(secret).unwrap(), &path).unwrap();
        let bundle = read_path(&path).expect("untouched it is read");
        assert_eq!(bundle.config.kind(), Kind::Data);
        let blobs = bundle.blobs();
        assert_eq!(blobs.len(), 4, "config, table, manifest, index");
        let named = [path.join("oci-layout"), path.join("index.json")];
        let files = named.into_iter().chain(blobs.iter().map(|blob| blob_path(&path, blob.digest)));
        let mut flips = 0;
        for file in files {
            flips += flip(&path, &file, true, |_, _| {});
        }
        assert!(flips > 8000, "{flips}");
        read_path(&path).expect("and again when all is back");
    }
}

/// Right digests do not make a policy of data, nor data of a policy.
#[test]
fn the_kinds_are_told_apart_by_their_media_types() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b");
    let mut policy = draft(3);
    policy.world = "portcullis:table@1".into();
    let error = write::create(&policy.assemble().unwrap(), &path).unwrap_err().to_string();
    assert!(error.contains("it would not be read again"), "{error}");
}
