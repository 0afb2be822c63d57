//! The same input gives the same bytes; what is there is replaced as a whole or not at all, and only if it is a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use portcullis::artifact::Digest;
use portcullis::bundle::write::{self, NewAttachment, NewLayer, WriteError};
use portcullis::bundle::{
    ATTACHED_MAX, ATTACHMENTS_MAX, Annotations, BundleError, Descriptor, DraftError, Platform, cosign_tag,
    media, open_path, sbom,
};

use super::{blob_path, draft, read_path, signature, written};

/// Every file below a folder and what is in it.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for below in ["", "blobs/sha256"] {
        for entry in fs::read_dir(folder.join(below)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let one = draft(3);
    let mut two = draft(3);
    two.compiled.reverse();
    two.imports.reverse();
    two.imports.push("log".into());
    let mut written = Vec::new();
    for (draft, name) in [(one, "one"), (two, "two")] {
        let (folder, tar) = (dir.path().join(name), dir.path().join(format!("{name}.tar")));
        let assembled = draft.assemble().unwrap();
        for path in [&folder, &tar] {
            let bundle = write::create(&assembled, path).unwrap();
            assert_eq!(bundle.digest(), assembled.digest());
            write::attach(path, &signature("signed"), |_| false).unwrap();
        }
        written.push((contents(&folder), fs::read(&tar).unwrap()));
    }
    assert!(written[0] == written[1], "two builds differ");
    // Through a tar and back, and once more.
    let (tar, folder) = (dir.path().join("two.tar"), dir.path().join("back"));
    let copy = |from: &Path, to: &Path| {
        let layout = open_path(from).unwrap();
        write::copy(&layout, &layout.read().unwrap(), to).unwrap()
    };
    assert_eq!(copy(&tar, &folder), copy(&folder, &dir.path().join("again.tar")));
    assert!(contents(&folder) == written[0].0);
    assert!(fs::read(dir.path().join("again.tar")).unwrap() == written[0].1);
    // Another input gives another digest.
    assert_ne!(draft(3).assemble().unwrap().digest(), draft(4).assemble().unwrap().digest());
}

#[test]
fn what_is_written_is_read_as_a_folder_and_as_a_tar() {
    let dir = tempfile::tempdir().unwrap();
    let [folder, tar] = ["b", "b.tar"].map(|name| read_path(&written(dir.path(), name)).unwrap());
    assert_eq!(folder, tar);
    assert_eq!(folder.config.imports, ["clock", "log"]);
    let platforms: Vec<_> = folder.compiled.iter().map(|code| code.platform).collect();
    assert_eq!(platforms, [Platform::LinuxAmd64, Platform::LinuxArm64]);
    let (said, code) = folder.compiled_for(Platform::LinuxArm64).unwrap();
    let sealed = open_path(&dir.path().join("b.tar")).unwrap().sealed(&code.cwasm).unwrap();
    assert_eq!((sealed.digest(), sealed.to_vec().unwrap()), (said.cwasm, draft(3).compiled[0].cwasm.clone()));
    let [attachment] = folder.attachments.as_slice() else { panic!("{:?}", folder.attachments) };
    assert_eq!(attachment.artifact_type, media::SIGSTORE_BUNDLE);
    let layout = open_path(&dir.path().join("b")).unwrap();
    assert_eq!(layout.bytes(&attachment.layers[0], 10).unwrap(), b"signed");
    assert!(layout.bytes(&attachment.layers[0], 5).unwrap_err().to_string().contains("at most 5 are read"));
    assert_eq!(names(dir.path()), ["b", "b.tar"], "nothing unfinished is left");
    // Without machine code it is a bundle too: hosts compile the source.
    let source_only = portcullis::bundle::Draft { compiled: Vec::new(), ..draft(3) };
    let path = dir.path().join("source");
    write::create(&source_only.assemble().unwrap(), &path).unwrap();
    assert!(read_path(&path).unwrap().compiled.is_empty());
}

#[test]
fn only_a_bundle_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let next = draft(4).assemble().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["b", "b.tar"] {
        let path = written(dir.path(), name);
        assert_eq!(write::create(&next, &path).unwrap(), read_path(&path).unwrap());
        assert_eq!(read_path(&path).unwrap().config.version, 4);
    }
    type Before = fn(&Path);
    let cases: [(&str, Before, &str); 7] = [
        ("notes", |path| fs::create_dir(path).unwrap(), "is not there"),
        ("file", |path| fs::write(path, "mine").unwrap(), "has no end mark"),
        ("file.tar", |path| fs::write(path, "mine").unwrap(), "has no end mark"),
        ("link", |path| std::os::unix::fs::symlink("b", path).unwrap(), "is a link"),
        (
            "folder.tar",
            |path| {
                let b = written(path.parent().unwrap(), "c");
                fs::rename(b, path).unwrap()
            },
            "not replaced by a tar",
        ),
        (
            "with",
            |path| fs::write(written(path.parent().unwrap(), "with").join("notes"), "mine").unwrap(),
            r#""notes" is no part of a bundle"#,
        ),
        (
            "within",
            |path| {
                fs::write(written(path.parent().unwrap(), "within").join("blobs/sha256/x"), "mine").unwrap()
            },
            "is no part of a bundle",
        ),
    ];
    for (name, before, expected) in cases {
        let path = at(name);
        before(&path);
        let error = write::create(&next, &path).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, WriteError::NotOurs { .. }) && text.contains(expected), "{name}: {text}");
    }
    assert_eq!(fs::read(at("file")).unwrap(), b"mine");
    assert_eq!(fs::read(at("with/notes")).unwrap(), b"mine");
    assert!(names(dir.path()).iter().all(|name| !name.starts_with('.')), "nothing unfinished is left");
}

#[test]
fn whoever_comes_while_somebody_writes_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b");
    let lock = nix::fcntl::Flock::lock(
        fs::File::open(dir.path()).unwrap(),
        nix::fcntl::FlockArg::LockExclusiveNonblock,
    )
    .unwrap();
    let error = write::attach(&path, &signature("other"), |_| false).unwrap_err();
    assert!(matches!(error, WriteError::Busy { .. }), "{error}");
    assert!(matches!(write::create(&draft(4).assemble().unwrap(), &path), Err(WriteError::Busy { .. })));
    drop(lock);
    write::attach(&path, &signature("other"), |_| false).unwrap();
}

#[test]
fn attaching_keeps_the_digest_and_replaces_only_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "b.tar"] {
        let path = written(dir.path(), name);
        let digest = read_path(&path).unwrap().digest();
        let list = sbom::minimal(&read_path(&path).unwrap().config, digest, 0).unwrap();
        let bundle = write::attach(&path, &sbom::attachment(list).unwrap(), |_| false).unwrap();
        assert_eq!((bundle.digest(), bundle.attachments.len()), (digest, 2));
        // The same once more is the same.
        let again = write::attach(&path, &signature("signed"), |_| false).unwrap();
        assert_eq!(again, bundle);
        let signed = |text: &str| Digest::of(text.as_bytes());
        let replaced = write::attach(&path, &signature("signed again"), |old| {
            old.layers.iter().any(|layer| layer.digest == signed("signed"))
        })
        .unwrap();
        let kinds: Vec<_> = replaced.attachments.iter().map(|a| a.artifact_type.as_str()).collect();
        assert_eq!((kinds.len(), kinds.contains(&media::SBOM)), (2, true));
        assert_eq!(read_path(&path).unwrap(), replaced);
        if name == "b" {
            assert!(!blob_path(&path, signed("signed")).exists(), "what nobody names is gone");
            assert!(blob_path(&path, signed("signed again")).exists());
        }
        for number in replaced.attachments.len()..ATTACHMENTS_MAX {
            write::attach(&path, &signature(&number.to_string()), |_| false).unwrap();
        }
        let error = write::attach(&path, &signature("one more"), |_| false).unwrap_err();
        assert!(error.to_string().contains("lists 33 manifests, at most 32 are read"), "{error}");
        assert_eq!(read_path(&path).unwrap().attachments.len(), ATTACHMENTS_MAX);
    }
}

/// A power cut between any two writes of `attach` leaves what was there before, or what should be there.
#[test]
fn an_attachment_that_was_cut_off_leaves_the_old_list_or_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b");
    let (before, old) = (contents(&path), read_path(&path).unwrap());
    let new = write::attach(&path, &signature("another"), |old| !old.artifact_type.is_empty()).unwrap();
    let after = contents(&path);
    let blobs: Vec<_> = after.iter().filter(|(name, _)| !before.contains_key(*name)).collect();
    let gone: Vec<_> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert_eq!((blobs.len(), gone.len()), (2, 2), "a manifest and a layer came, two went");
    let restore = |files: &BTreeMap<String, Vec<u8>>| {
        fs::remove_dir_all(path.join("blobs/sha256")).unwrap();
        fs::create_dir(path.join("blobs/sha256")).unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(path.join(name), bytes).unwrap());
    };
    restore(&before);
    let mut states = 0;
    let mut expect = |expected| {
        assert_eq!(&read_path(&path).unwrap(), expected);
        states += 1;
    };
    expect(&old);
    for (name, bytes) in &blobs {
        let unfinished = path.join("blobs/sha256/.x.1.tmp");
        fs::write(&unfinished, &bytes[..1]).unwrap();
        expect(&old);
        fs::write(&unfinished, bytes).unwrap();
        fs::rename(&unfinished, path.join(name)).unwrap();
        expect(&old);
    }
    fs::write(path.join(".index.json.1.tmp"), &after["index.json"][..9]).unwrap();
    expect(&old);
    fs::write(path.join("index.json"), &after["index.json"]).unwrap();
    expect(&new);
    for name in gone {
        fs::remove_file(path.join(name)).unwrap();
        expect(&new);
    }
    fs::write(path.join("blobs/sha256/.y.1.tmp"), "x").unwrap();
    expect(&new);
    println!("{states} states between two writes: the old list or the new one");
    // What was left behind is in nobody's way.
    write::create(&draft(4).assemble().unwrap(), &path).unwrap();
    assert_eq!(names(&path), ["blobs", "index.json", "oci-layout"]);
}

#[test]
fn what_would_not_be_read_again_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut twice = draft(3);
    twice.compiled[0].platform = twice.compiled[1].platform;
    assert!(matches!(twice.assemble(), Err(DraftError::PlatformTwice(Platform::LinuxAmd64))));
    let mut same = draft(3);
    same.compiled[0].cwasm = same.compiled[1].cwasm.clone();
    assert!(matches!(same.assemble(), Err(DraftError::CodeTwice)));
    assert_eq!(
        portcullis::bundle::SOURCE_MAX,
        portcullis::compile::SOURCE_MAX,
        "what is compiled can be shipped"
    );
    for metrics in [(0..17).map(|n| format!("m{n}")).collect(), vec!["no counter".to_owned()]] {
        let draft = portcullis::bundle::Draft { metrics, ..draft(3) };
        assert!(matches!(draft.assemble(), Err(DraftError::Metrics(_))));
    }
    let most = portcullis::bundle::Draft { metrics: (0..16).map(|n| format!("m{n}")).collect(), ..draft(3) };
    most.assemble().expect("control");
    let empty = portcullis::bundle::Draft { source: Vec::new(), ..draft(3) };
    assert!(matches!(empty.assemble(), Err(DraftError::Empty { what: "source" })));
    let long = portcullis::bundle::Draft { source: vec![0; portcullis::bundle::SOURCE_MAX + 1], ..draft(3) };
    assert!(matches!(long.assemble(), Err(DraftError::TooLong { what: "source", .. })));
    for name in ["b", "b.tar"] {
        let path = written(dir.path(), name);
        let before = read_path(&path).unwrap();
        let large = NewAttachment::one(media::SBOM, vec![0; ATTACHED_MAX], Annotations::default());
        let error = write::attach(&path, &large, |_| false).unwrap_err();
        assert!(error.to_string().contains("brings 16777218 bytes"), "{error}");
        assert_eq!(read_path(&path).unwrap(), before);
    }
}

#[test]
fn blobs_that_were_fetched_become_a_layout_only_if_all_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = read_path(&written(dir.path(), "b")).unwrap();
    let fetched = dir.path().join("fetched");
    fs::create_dir_all(fetched.join("blobs/sha256")).unwrap();
    let attached: Vec<Digest> = bundle.attachments.iter().map(|a| a.manifest.digest).collect();
    for blob in bundle.blobs() {
        let error = write::finish(&fetched, bundle.digest(), &attached).unwrap_err();
        assert!(error.to_string().contains("is not there"), "{error}");
        assert!(!fetched.join("index.json").exists());
        fs::copy(blob_path(&dir.path().join("b"), blob.digest), blob_path(&fetched, blob.digest)).unwrap();
    }
    // A registry that lies about what is in a blob.
    let code = blob_path(&fetched, bundle.compiled[0].cwasm.digest);
    let good = fs::read(&code).unwrap();
    fs::write(&code, vec![b'x'; good.len()]).unwrap();
    assert!(
        write::finish(&fetched, bundle.digest(), &attached).unwrap_err().to_string().contains("has digest")
    );
    assert!(!fetched.join("index.json").exists());
    fs::write(&code, good).unwrap();
    assert_eq!(write::finish(&fetched, bundle.digest(), &attached).unwrap(), bundle);
    assert_eq!(contents(&fetched), contents(&dir.path().join("b")));
    // Another bundle's blobs in the same folder do no harm, and it is found by its digest.
    let other = written_beside(&fetched);
    let layout = open_path(&fetched).unwrap();
    assert_eq!(layout.read_named(other, &[]).unwrap().config.version, 9);
    assert_eq!(layout.read().unwrap(), bundle);
    let unknown = layout.read_named(Digest::of(b"unknown"), &[]).unwrap_err();
    assert!(unknown.to_string().contains("is not there"), "{unknown}");
}

fn written_beside(folder: &Path) -> Digest {
    let dir = tempfile::tempdir().unwrap();
    let bundle = write::create(&draft(9).assemble().unwrap(), &dir.path().join("b")).unwrap();
    for blob in bundle.blobs() {
        fs::copy(blob_path(&dir.path().join("b"), blob.digest), blob_path(folder, blob.digest)).unwrap();
    }
    bundle.digest()
}

/// Written by other tools: fields in another order, an image's config, and no subject but a tag.
#[test]
fn cosigns_older_signatures_are_listed_under_their_tag() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b");
    let bundle = write::create(&draft(3).assemble().unwrap(), &path).unwrap();
    let put = |bytes: &[u8]| {
        let blob = Descriptor::of("", bytes);
        fs::write(blob_path(&path, blob.digest), bytes).unwrap();
        blob
    };
    let (config, payload) = (put(br#"{"architecture":""}"#), put(br#"{"critical":{}}"#));
    let manifest = |layer_type: &str| {
        format!(
            r#"{{ "layers": [{{"size":{},"mediaType":"{layer_type}","digest":"{}","annotations":{{"dev.cosignproject.cosign/signature":"c2ln"}}}}],
              "config": {{"size":{},"digest":"{}","mediaType":"application/vnd.oci.image.config.v1+json"}},
              "mediaType":"{}", "schemaVersion":2 }}"#,
            payload.size,
            payload.digest,
            config.size,
            config.digest,
            media::OCI_MANIFEST
        )
    };
    let signed = put(manifest(media::COSIGN_SIMPLE_SIGNING).as_bytes());
    let listed = write::finish(&path, bundle.digest(), &[signed.digest]).unwrap();
    let [attachment] = listed.attachments.as_slice() else { panic!("{:?}", listed.attachments) };
    assert_eq!(attachment.artifact_type, media::COSIGN_SIMPLE_SIGNING);
    assert_eq!(attachment.layers[0].annotations.get("dev.cosignproject.cosign/signature"), Some("c2ln"));
    assert_eq!(read_path(&path).unwrap(), listed);
    let index = fs::read_to_string(path.join("index.json")).unwrap();
    assert!(index.contains(&format!(r#""{}""#, cosign_tag(bundle.digest()))), "{index}");
    // The tag of another bundle's signatures.
    let other = cosign_tag(Digest::of(b"other"));
    fs::write(path.join("index.json"), index.replace(&cosign_tag(bundle.digest()), &other)).unwrap();
    assert!(matches!(read_path(&path), Err(BundleError::Surplus { .. })));
    // Anything else has to say what it is about.
    let nameless = put(manifest("text/plain").as_bytes());
    let error = write::finish(&path, bundle.digest(), &[nameless.digest]).unwrap_err();
    assert!(error.to_string().contains("does not say what it is about"), "{error}");
}

#[test]
fn an_attachment_may_have_several_layers() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), "b.tar");
    let layer = |text: &str| NewLayer {
        media_type: "text/plain".into(),
        bytes: text.as_bytes().to_vec(),
        annotations: Annotations::one("name", text),
    };
    let new = |count: usize| NewAttachment {
        artifact_type: "application/vnd.example".into(),
        layers: (0..count).map(|number| layer(&number.to_string())).collect(),
        annotations: Annotations::default(),
    };
    let bundle = write::attach(&path, &new(16), |old| old.artifact_type == media::SIGSTORE_BUNDLE).unwrap();
    assert_eq!(bundle.attachments[0].layers.len(), 16);
    assert_eq!(bundle.attachments[0].layers[7].annotations.get("name"), Some("7"));
    let error = write::attach(&path, &new(17), |_| false).unwrap_err().to_string();
    assert!(error.contains("has 17 layers of 16 at most"), "{error}");
}
