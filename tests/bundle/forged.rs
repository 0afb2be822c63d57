//! Whoever can write can also work out digests again. Every digest here is right; what is said in two places is not the same.

use std::fs;
use std::path::{Path, PathBuf};

use portcullis::artifact::Digest;
use portcullis::bundle::write;
use portcullis::bundle::{Descriptor, media};

use super::{draft, read_path};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One place in one file, and what stands there instead.
type Edit<'a> = (&'a str, &'a str, &'a str);

/// Writes every JSON by hand, with edits, and works out each digest from what came before.
struct Forge<'a> {
    folder: PathBuf,
    edits: &'a [Edit<'a>],
    used: Vec<usize>,
}

impl<'a> Forge<'a> {
    fn put(&mut self, what: &str, text: String) -> Descriptor {
        let text = self.edited(what, text);
        let descriptor = Descriptor::of("", text.as_bytes());
        let path = self.folder.join("blobs/sha256").join(hex::encode(descriptor.digest.as_bytes()));
        fs::write(path, text).unwrap();
        descriptor
    }

    fn edited(&mut self, what: &str, mut text: String) -> String {
        for (number, (_, from, to)) in self.edits.iter().enumerate().filter(|(_, edit)| edit.0 == what) {
            assert!(text.contains(from), "{what} has no {from:?}: {text}");
            text = text.replacen(from, to, 1);
            self.used.push(number);
        }
        text
    }
}

fn forge(dir: &Path, edits: &[Edit<'_>]) -> PathBuf {
    let folder = dir.join("forged");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    let mut forge = Forge { folder: folder.clone(), edits, used: Vec::new() };
    let draft = draft(3);
    let blob = |media_type: &str, d: &Descriptor| {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, d.digest, d.size)
    };
    let source = forge.put("source", String::from_utf8(draft.source).unwrap());
    let arm = forge.put("arm64", String::from_utf8(draft.compiled[0].cwasm.clone()).unwrap());
    let amd = forge.put("amd64", String::from_utf8(draft.compiled[1].cwasm.clone()).unwrap());
    let code = |platform: &str, d: &Descriptor| {
        let (cwasm, engine) = (d.digest, Digest::of(b"engine"));
        format!(
            r#"{{"platform":"linux/{platform}","cwasm":"{cwasm}","wasmtime":"48.0.8","engine":"{engine}"}}"#
        )
    };
    let limits = r#"{"memory":4194304,"table_elements":10000,"output":65536,"deadline_us":1000000}"#;
    let config = forge.put("config", format!(
        r#"{{"policy":"allow-acme","tenant":"acme","version":3,"world":"portcullis:policy@0.1.0","imports":["clock","log"],"exports":["decide"],"limits":{limits},"source":"{}","compiled":[{},{}]}}"#,
        source.digest, code("amd64", &amd), code("arm64", &arm)));
    let other = forge.put("other config", format!(
        r#"{{"policy":"allow-acme","tenant":"acme","version":4,"world":"portcullis:policy@0.1.0","imports":[],"exports":["decide"],"limits":{limits},"source":"{}","compiled":[{},{}]}}"#,
        source.digest, code("amd64", &amd), code("arm64", &arm)));
    let shown = |name: &str, d: &Descriptor| (name.to_owned(), d.digest, d.size);
    let names = [
        shown("SOURCE", &source),
        shown("AMD64", &amd),
        shown("ARM64", &arm),
        shown("CONFIG", &config),
        shown("OTHER", &other),
    ];
    // Edits may say "@AMD64" for the descriptor's digest and size.
    let with_names = |text: String, names: &[(String, Digest, u64)]| {
        names.iter().fold(text, |text, (name, digest, size)| {
            text.replace(&format!("@{name}"), &format!(r#""digest":"{digest}","size":{size}"#))
        })
    };
    let manifest = |forge: &mut Forge<'_>, what: &str, kind: &str, layer_type: &str, name: &str| {
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"{kind}","config":{{"mediaType":"{}",@CONFIG}},"layers":[{{"mediaType":"{layer_type}",@{name}}}]}}"#,
            media::CONFIG
        );
        let text = with_names(forge.edited(what, text), &names);
        forge.put("", text)
    };
    let amd_manifest = manifest(&mut forge, "manifest amd64", media::COMPILED, media::CWASM, "AMD64");
    let arm_manifest = manifest(&mut forge, "manifest arm64", media::COMPILED, media::CWASM, "ARM64");
    let source_manifest = manifest(&mut forge, "manifest source", media::SOURCE, media::WASM, "SOURCE");
    let names =
        [shown("MAMD64", &amd_manifest), shown("MARM64", &arm_manifest), shown("MSOURCE", &source_manifest)];
    let entry = |name: &str, architecture: &str| {
        format!(
            r#"{{"mediaType":"{MANIFEST}",@{name},"platform":{{"architecture":"{architecture}","os":"linux"}},"artifactType":"{}"}}"#,
            media::COMPILED
        )
    };
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","artifactType":"{}","manifests":[{},{},{{"mediaType":"{MANIFEST}",@MSOURCE,"artifactType":"{}"}}]}}"#,
        media::BUNDLE,
        entry("MAMD64", "amd64"),
        entry("MARM64", "arm64"),
        media::SOURCE
    );
    let text = with_names(forge.edited("bundle index", text), &names);
    let index = forge.put("", text);

    let empty = forge.put("empty", "{}".into());
    let signature = forge.put("signature", "signed".into());
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","artifactType":"{}","config":{},"layers":[{}],"subject":{}}}"#,
        media::SIGSTORE_BUNDLE,
        blob(media::OCI_EMPTY, &empty),
        blob(media::SIGSTORE_BUNDLE, &signature),
        blob(INDEX, &index),
    );
    let attached = forge.put("attached", text);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{INDEX}",@INDEX,"annotations":{{"{}":"3"}},"artifactType":"{}"}},{{"mediaType":"{MANIFEST}",@ATTACHED,"artifactType":"{}"}}]}}"#,
        media::REF_NAME,
        media::BUNDLE,
        media::SIGSTORE_BUNDLE
    );
    let names = [shown("INDEX", &index), shown("ATTACHED", &attached), shown("MSOURCE", &source_manifest)];
    let text = with_names(forge.edited("index.json", text), &names);
    fs::write(folder.join("index.json"), text).unwrap();
    let layout = forge.edited("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.into());
    fs::write(folder.join("oci-layout"), layout).unwrap();
    assert_eq!(forge.used.len(), edits.len(), "each edit was made: {edits:?}");
    folder
}

/// Edits, and the sentence that has to come.
const CASES: &[(&str, &[Edit<'_>], &str)] = &[
    // Layers and who says what they are.
    (
        "code of two platforms swapped in their manifests",
        &[("manifest amd64", "@AMD64", "@ARM64"), ("manifest arm64", "@ARM64", "@AMD64")],
        "code for linux/amd64 has digest",
    ),
    (
        "code and source swapped",
        &[("manifest amd64", "@AMD64", "@SOURCE"), ("manifest source", "@SOURCE", "@AMD64")],
        "source has digest",
    ),
    (
        "manifests of two platforms swapped",
        &[
            ("bundle index", "@MAMD64", "@X"),
            ("bundle index", "@MARM64", "@MAMD64"),
            ("bundle index", "@X", "@MARM64"),
        ],
        "code for linux/amd64 has digest",
    ),
    (
        "another source",
        &[
            ("config", r#""source":"sha256:"#, r#""source":"sha256:0"#),
            ("config", r#"","compiled""#, r#"0","compiled""#),
        ],
        "config is not what it should be",
    ),
    (
        "source as code",
        &[("manifest amd64", "cwasm.v1", "nothing")],
        r#"manifest of linux/amd64 has media type "application/vnd.portcullis.policy.nothing""#,
    ),
    (
        "code as source",
        &[("manifest source", media::WASM, media::CWASM)],
        r#"manifest of the source has media type "application/vnd.portcullis.policy.cwasm.v1""#,
    ),
    (
        "two layers",
        &[("manifest amd64", r#""layers":["#, r#""layers":[{"mediaType":"application/wasm",@SOURCE},"#)],
        "manifest of linux/amd64 has 2 layers, expected one",
    ),
    (
        "no layer",
        &[("manifest source", r#"{"mediaType":"application/wasm",@SOURCE}"#, "")],
        "manifest of the source has 0 layers",
    ),
    (
        "another config for one platform",
        &[("manifest arm64", "@CONFIG", "@OTHER")],
        "manifest of linux/arm64 has another config",
    ),
    (
        "another config for the source",
        &[("manifest source", "@CONFIG", "@OTHER")],
        "manifest of linux/amd64 has another config",
    ),
    (
        "annotations of a layer",
        &[("manifest amd64", "@AMD64", r#"@AMD64,"annotations":{"a":"b"}"#)],
        "annotations, platform or data of a blob",
    ),
    (
        "annotations of a manifest",
        &[("manifest amd64", "}]}", r#"}],"annotations":{"a":"b"}}"#)],
        "manifest of linux/amd64 has subject or annotations",
    ),
    (
        "schema 1 of a manifest",
        &[("manifest amd64", r#""schemaVersion":2"#, r#""schemaVersion":1"#)],
        "manifest of linux/amd64 has schema version 1",
    ),
    (
        "another kind of manifest",
        &[("manifest source", media::SOURCE, media::COMPILED)],
        r#"manifest of the source has artifact type Some("application/vnd.portcullis.policy.compiled.v1")"#,
    ),
    (
        "a manifest of docker's",
        &[("manifest amd64", MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")],
        r#"has media type "application/vnd.docker"#,
    ),
    (
        "a layer of 1 TiB",
        &[(
            "manifest amd64",
            "@AMD64",
            r#""digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":1099511627776"#,
        )],
        "manifest of linux/amd64 brings 1099511627776 bytes",
    ),
    (
        "white space in a manifest",
        &[("manifest amd64", r#""layers":["#, r#""layers": ["#)],
        "manifest of linux/amd64 is not in its one exact form",
    ),
    (
        "a field twice in a manifest",
        &[("manifest amd64", r#""schemaVersion":2"#, r#""schemaVersion":2,"schemaVersion":2"#)],
        "manifest of linux/amd64 is not what it should be: duplicate field `schemaVersion`",
    ),
    (
        "a field nobody knows in a manifest",
        &[("manifest amd64", r#""schemaVersion":2"#, r#""schemaVersion":2,"x":2"#)],
        "unknown field `x`",
    ),
    (
        "a blob from elsewhere",
        &[("manifest amd64", "@AMD64", r#"@AMD64,"urls":["http://x"]"#)],
        "unknown field `urls`",
    ),
    // The config.
    (
        "code that the config does not name",
        &[("config", r#"},{"platform":"linux/arm64""#, r#"}],"compiled_":[{"platform":"linux/arm64""#)],
        "config is not what it should be",
    ),
    (
        "platforms in another order",
        &[
            ("config", "linux/amd64", "linux/x"),
            ("config", "linux/arm64", "linux/amd64"),
            ("config", "linux/x", "linux/arm64"),
        ],
        "config has its platforms unsorted",
    ),
    (
        "imports in another order",
        &[("config", r#"["clock","log"]"#, r#"["log","clock"]"#)],
        "config has its imports unsorted",
    ),
    (
        "an import twice",
        &[("config", r#"["clock","log"]"#, r#"["log","log"]"#)],
        "config has its imports unsorted or twice",
    ),
    (
        "an export twice",
        &[("config", r#"["decide"]"#, r#"["decide","decide"]"#)],
        "config has its exports unsorted or twice",
    ),
    // All counters of all policies of a class are in its worker's status, which has to fit into messages.
    (
        "more counters than are counted",
        &[(
            "config",
            r#""source":"#,
            r#""metrics":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"],"source":"#,
        )],
        "config has 17 metrics",
    ),
    (
        "a counter whose name is none",
        &[("config", r#""source":"#, r#""metrics":["a\u001b[2J"],"source":"#)],
        "or one that is not called as a counter may be",
    ),
    (
        "a field nobody knows in the config",
        &[("config", r#""version":3"#, r#""version":3,"x":3"#)],
        "unknown field `x`",
    ),
    (
        "a field twice in the config",
        &[("config", r#""version":3"#, r#""version":3,"version":9"#)],
        "duplicate field `version`",
    ),
    (
        "white space in the config",
        &[("config", r#""version":3"#, r#""version": 3"#)],
        "config is not in its one exact form",
    ),
    (
        "a name that is none",
        &[("config", r#""tenant":"acme""#, r#""tenant":"../acme""#)],
        "config is not what it should be: name",
    ),
    (
        "a platform nobody knows",
        &[("config", "linux/arm64", "plan9/arm64")],
        "config is not what it should be: platform",
    ),
    // The bundle index.
    (
        "a platform twice",
        &[("bundle index", r#""architecture":"arm64""#, r#""architecture":"amd64""#)],
        "bundle index has platform linux/amd64 twice",
    ),
    ("a manifest twice", &[("bundle index", "@MARM64", "@MAMD64")], "bundle index lists sha256:"),
    (
        "platforms of the index in another order",
        &[
            ("bundle index", "@MAMD64", "@X"),
            ("bundle index", "@MARM64", "@MAMD64"),
            ("bundle index", "@X", "@MARM64"),
            ("bundle index", r#""architecture":"amd64""#, r#""architecture":"x""#),
            ("bundle index", r#""architecture":"arm64""#, r#""architecture":"amd64""#),
            ("bundle index", r#""architecture":"x""#, r#""architecture":"arm64""#),
        ],
        "bundle index is not sorted",
    ),
    (
        "a manifest without platform",
        &[("bundle index", r#""platform":{"architecture":"arm64","os":"linux"},"#, "")],
        "without a platform",
    ),
    (
        "a platform nobody knows in the index",
        &[("bundle index", r#""architecture":"arm64""#, r#""architecture":"riscv64""#)],
        r#"has platform platform "linux/riscv64" is not known"#,
    ),
    (
        "a source for a platform",
        &[("bundle index", r#"@MSOURCE"#, r#"@MSOURCE,"platform":{"architecture":"amd64","os":"linux"}"#)],
        "manifest of the source has platform",
    ),
    (
        "a manifest of an index",
        &[(
            "bundle index",
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json",@MSOURCE"#,
            r#"{"mediaType":"application/vnd.oci.image.index.v1+json",@MSOURCE"#,
        )],
        "manifest of the source has media type",
    ),
    (
        "an index of something else",
        &[("bundle index", media::BUNDLE, "application/vnd.other")],
        r#"bundle index has artifact type Some("application/vnd.other")"#,
    ),
    (
        "an index without a source",
        &[(
            "bundle index",
            r#",{"mediaType":"application/vnd.oci.image.manifest.v1+json",@MSOURCE,"artifactType":"application/vnd.portcullis.policy.source.v1"}"#,
            "",
        )],
        "manifest of the source has artifact type",
    ),
    (
        "an index with an annotation",
        &[("bundle index", "@MSOURCE", r#"@MSOURCE,"annotations":{"a":"b"}"#)],
        "manifest of the source has annotations or data",
    ),
    (
        "an empty index",
        &[("bundle index", r#""manifests":["#, r#""manifests":[],"x":["#)],
        "unknown field `x`",
    ),
    // index.json
    (
        "another tag",
        &[("index.json", r#"ref.name":"3""#, r#"ref.name":"4""#)],
        r#"index.json has tag Some("4") for the bundle, expected its version "3""#,
    ),
    (
        "no tag",
        &[("index.json", r#""annotations":{"org.opencontainers.image.ref.name":"3"},"#, "")],
        "index.json has tag None",
    ),
    (
        "a second annotation",
        &[("index.json", r#"ref.name":"3""#, r#"ref.name":"3","z":"z""#)],
        "index.json has tag",
    ),
    (
        "two tags",
        &[(
            "index.json",
            "@ATTACHED",
            r#"@ATTACHED,"annotations":{"org.opencontainers.image.ref.name":"3"}"#,
        )],
        "has a tag for attachment",
    ),
    (
        "an annotation of what is attached",
        &[("index.json", "@ATTACHED", r#"@ATTACHED,"annotations":{"a":"b"}"#)],
        "has annotations, platform or data",
    ),
    (
        "two bundles",
        &[(
            "index.json",
            r#"},{"mediaType":"application/vnd.oci.image.manifest.v1+json",@ATTACHED"#,
            r#"},{"mediaType":"application/vnd.oci.image.index.v1+json",@INDEX"#,
        )],
        r#"has media type "application/vnd.oci.image.index.v1+json""#,
    ),
    (
        "the same attached twice",
        &[(
            "index.json",
            "@ATTACHED",
            r#"@ATTACHED,"artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json"},{"mediaType":"application/vnd.oci.image.manifest.v1+json",@ATTACHED"#,
        )],
        "index.json lists sha256:",
    ),
    (
        "a manifest of the bundle attached",
        &[("index.json", "@ATTACHED", "@MSOURCE")],
        "does not say what it is about",
    ),
    (
        "another kind of bundle",
        &[("index.json", media::BUNDLE, "application/vnd.other")],
        r#"bundle index has artifact type Some("application/vnd.other")"#,
    ),
    (
        "another kind of attachment",
        &[("index.json", media::SIGSTORE_BUNDLE, media::SBOM)],
        r#"has artifact type Some("application/spdx+json"), expected "application/vnd.dev.sigstore"#,
    ),
    (
        "a type of its own",
        &[(
            "index.json",
            r#"index.v1+json","manifests""#,
            r#"index.v1+json","artifactType":"a","manifests""#,
        )],
        "index.json has artifactType",
    ),
    (
        "schema 3",
        &[("index.json", r#""schemaVersion":2"#, r#""schemaVersion":3"#)],
        "index.json has schema version 3",
    ),
    (
        "a digest that nobody has",
        &[(
            "index.json",
            "@ATTACHED",
            r#""digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":7"#,
        )],
        "is not there",
    ),
    (
        "a size that is not so",
        &[(
            "index.json",
            "@ATTACHED",
            r#""digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":7"#,
        )],
        "is 2 bytes long, expected 7",
    ),
    (
        "no manifests",
        &[("index.json", r#""manifests":[{"#, r#""manifests":[],"x":[{"#)],
        "index.json is not what it should be: unknown field `x`",
    ),
    (
        "another layout",
        &[("oci-layout", "1.0.0", "1.0.1")],
        "oci-layout is not that of image layout version 1.0.0",
    ),
    // What is attached.
    (
        "about another bundle",
        &[(
            "attached",
            r#"image.index.v1+json","digest":"sha256:"#,
            r#"image.index.v1+json","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","x":""#,
        )],
        "unknown field `x`",
    ),
    (
        "about a manifest",
        &[(
            "attached",
            r#""subject":{"mediaType":"application/vnd.oci.image.index.v1+json""#,
            r#""subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json""#,
        )],
        r#"has media type "application/vnd.oci.image.manifest.v1+json""#,
    ),
    (
        "schema 1 of what is attached",
        &[("attached", r#""schemaVersion":2"#, r#""schemaVersion":1"#)],
        "has schema version 1, expected 2",
    ),
    (
        "1 TiB attached",
        &[("attached", r#""size":6"#, r#""size":1099511627776"#)],
        "brings 1099511627778 bytes",
    ),
];

#[test]
fn what_is_said_in_two_places_has_to_be_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = read_path(&forge(dir.path(), &[])).expect("without edits it is good");
    let written = write::create(&draft(3).assemble().unwrap(), &dir.path().join("written")).unwrap();
    assert_eq!(bundle.digest(), written.digest(), "the forge writes the same form");
    for (what, edits, expected) in CASES {
        let error = match read_path(&forge(dir.path(), edits)) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{what}: it was read"),
        };
        assert!(error.contains(expected), "{what}: {error}");
    }
    println!("{} forged bundles, each refused by the check that was meant", CASES.len());
}

#[test]
fn what_is_attached_to_another_bundle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write::create(&draft(3).assemble().unwrap(), &one).unwrap();
    write::create(&draft(4).assemble().unwrap(), &two).unwrap();
    let from = write::attach(&one, &super::signature("x"), |_| false).unwrap();
    for blob in from.blobs() {
        let name = format!("blobs/sha256/{}", hex::encode(blob.digest.as_bytes()));
        fs::copy(one.join(&name), two.join(&name)).unwrap();
    }
    let own = read_path(&two).unwrap().digest();
    let attached = from.attachments[0].manifest.digest;
    let error = write::finish(&two, own, &[attached]).unwrap_err().to_string();
    assert_eq!(error, format!("attachment {attached} is about {}, which is not this bundle", from.digest()));
    // To its own bundle it is attached by the same call.
    write::finish(&two, from.digest(), &[attached]).unwrap();
}
