//! A signature counts if a trusted key made it over exactly this bundle, in whichever form the ecosystem writes it; anything
//! else that is attached counts for nothing and stops nobody.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use base64ct::{Base64, Encoding};
use portcullis::artifact::envelope::pre_authentication_of;
use portcullis::artifact::{Digest, PublicKey, SigningKey};
use portcullis::signature::{
    ATTACHED_MAX, Anchors, BUILD_TYPE, BuildFacts, Evidence, GitSource, Material, SignError, Signer, Subject,
    attest, check, cosign, intoto, sign, sign_message, sigstore,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

fn subject() -> Subject<'static> {
    Subject::of(INDEX)
}

fn keys() -> &'static [SigningKey; 3] {
    static KEYS: OnceLock<[SigningKey; 3]> = OnceLock::new();
    KEYS.get_or_init(|| {
        [
            SigningKey::generate_ed25519().expect("key"),
            SigningKey::generate_p256().expect("key"),
            SigningKey::generate_ed25519().expect("key"),
        ]
    })
}

/// The first two keys are trusted, the third is not.
fn anchors() -> Anchors {
    Anchors { keys: keys()[..2].iter().map(SigningKey::public_key).collect(), keyless: None }
}

/// What was found with some keys is not looked for again with the same, in whatever order and however often they are named.
#[test]
fn anchors_are_told_apart_by_their_keys() {
    let of = |numbers: &[usize]| {
        let keys = numbers.iter().map(|number| keys()[*number].public_key()).collect();
        Anchors { keys, keyless: None }.digest()
    };
    assert_eq!(of(&[0, 1]), of(&[1, 0, 1]));
    for other in [&[][..], &[0], &[1], &[0, 2], &[0, 1, 2]] {
        assert_ne!(of(other), of(&[0, 1]), "{other:?}");
    }
}

fn signer(key: &SigningKey) -> Signer {
    Signer::Key(key.public_key().id())
}

fn facts() -> BuildFacts {
    BuildFacts {
        builder: "https://ci.example.test/runner".into(),
        build_type: BUILD_TYPE.into(),
        parameters: BTreeMap::from([
            ("policy".into(), "gate".into()),
            ("platforms".into(), "linux/amd64".into()),
        ]),
        source: Some(GitSource {
            repository: "https://example.test/acme/policies".into(),
            reference: Some("refs/tags/v3".into()),
            commit: "0123456789abcdef0123456789abcdef01234567".into(),
        }),
    }
}

/// What one sigstore bundle says of the subject.
fn evidence(bundle: &[u8]) -> Evidence {
    evidence_of(&subject(), bundle, &anchors())
}

fn evidence_of(subject: &Subject<'_>, bundle: &[u8], anchors: &Anchors) -> Evidence {
    let annotations = BTreeMap::new();
    let material = Material { media_type: sigstore::MEDIA_TYPE, bytes: bundle, annotations: &annotations };
    check(subject, &[material], anchors)
}

fn says_nothing(evidence: &Evidence) -> bool {
    evidence.signers.is_empty() && evidence.provenance.is_empty()
}

/// Asserts that it says nothing, for this reason.
fn refused(evidence: &Evidence, why: &str) {
    assert!(says_nothing(evidence), "{evidence:?}");
    assert!(evidence.disregarded[0].contains(why), "{why}: {evidence:?}");
}

#[test]
fn what_a_trusted_key_signed_counts_in_every_form_and_with_both_algorithms() {
    for key in &keys()[..2] {
        for signed in [sign(&subject(), key).unwrap(), sign_message(&subject(), key).unwrap()] {
            let found = evidence(&signed);
            assert_eq!((found.signers, found.disregarded), (vec![signer(key)], vec![]));
        }
        let found = evidence(&attest(&subject(), &facts(), key).unwrap());
        assert_eq!((found.signers, found.disregarded), (vec![], vec![]), "to say how is not to vouch");
        let built = &found.provenance[0];
        assert_eq!(built.signer, signer(key));
        assert_eq!(built.builder, "https://ci.example.test/runner");
        assert_eq!(built.repository.as_deref(), Some("git+https://example.test/acme/policies"));
        assert_eq!(built.reference.as_deref(), Some("refs/tags/v3"));
        assert_eq!(built.commit.as_deref(), Some("0123456789abcdef0123456789abcdef01234567"));
    }
}

#[test]
fn the_same_key_and_bundle_give_the_same_bytes() {
    for key in keys() {
        assert_eq!(sign(&subject(), key).unwrap(), sign(&subject(), key).unwrap());
        assert_eq!(sign_message(&subject(), key).unwrap(), sign_message(&subject(), key).unwrap());
        assert_eq!(attest(&subject(), &facts(), key).unwrap(), attest(&subject(), &facts(), key).unwrap());
    }
}

/// Each byte with each of its bits changed, and all of them at once.
fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len()).flat_map(move |at| {
        let masks = (0..8).map(|bit| 1 << bit).chain([0xff]);
        masks.map(move |mask: u8| {
            let mut changed = bytes.to_vec();
            changed[at] ^= mask;
            (at, changed)
        })
    })
}

#[test]
fn every_changed_byte_of_a_signature_and_of_provenance_is_refused() {
    for key in &keys()[..2] {
        let algorithm = key.algorithm();
        for (what, signed) in [
            ("signature", sign(&subject(), key).unwrap()),
            ("signature of the bytes", sign_message(&subject(), key).unwrap()),
            ("provenance", attest(&subject(), &facts(), key).unwrap()),
        ] {
            assert!(!says_nothing(&evidence(&signed)), "the control");
            let mut refused = 0;
            for (at, changed) in flips(&signed) {
                let found = evidence(&changed);
                assert!(says_nothing(&found) && found.disregarded.len() == 1, "{what}, byte {at}: {found:?}");
                refused += 1;
            }
            println!("{what} by {algorithm:?}: {refused} changes of {} bytes, all refused", signed.len());
            assert_eq!(refused, 9 * signed.len());
        }
    }
}

#[test]
fn a_signature_speaks_of_one_bundle_by_one_key() {
    for key in &keys()[..2] {
        for signed in [sign(&subject(), key).unwrap(), sign_message(&subject(), key).unwrap()] {
            assert!(!says_nothing(&evidence(&signed)), "the control");
            let other = Subject::of(b"{}");
            refused(&evidence_of(&other, &signed, &anchors()), "and this bundle is");
            let only_the_stranger = Anchors { keys: vec![keys()[2].public_key()], keyless: None };
            refused(&evidence_of(&subject(), &signed, &only_the_stranger), "not trusted here");
            refused(&evidence_of(&subject(), &signed, &Anchors::default()), "not trusted here");
        }
        // The right digest beside bytes that do not have it: the message is what was signed.
        let lying = Subject { index: subject().index, bytes: b"{}" };
        let signed = sign_message(&subject(), key).unwrap();
        refused(&evidence_of(&lying, &signed, &anchors()), "does not match");
    }
    refused(&evidence(&sign(&subject(), &keys()[2]).unwrap()), "not trusted here");
}

/// What is done to a bundle before it is looked at.
type Change = fn(&mut Value);

/// A bundle with a statement as JSON, to be changed; signed by the first key.
struct Draft {
    payload_type: &'static str,
    statement: Value,
    hint: String,
    change: Change,
}

impl Draft {
    fn new() -> Self {
        let digest = hex::encode(subject().index.as_bytes());
        Self {
            payload_type: intoto::PAYLOAD_TYPE,
            statement: json!({
                "_type": "https://in-toto.io/Statement/v1",
                "subject": [{"name": "gate", "digest": {"sha256": digest}}],
                "predicateType": intoto::SIGN,
                "predicate": {},
            }),
            hint: sigstore::hint(&keys()[0].public_key().id()),
            change: |_| {},
        }
    }

    fn statement(change: impl FnOnce(&mut Value)) -> Self {
        let mut draft = Self::new();
        change(&mut draft.statement);
        draft
    }

    fn bundle(&self) -> Value {
        let payload = serde_json::to_vec(&self.statement).unwrap();
        let signature = keys()[0].sign(&pre_authentication_of(self.payload_type, &payload));
        let mut bundle = json!({
            "mediaType": sigstore::MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": Base64::encode_string(&payload),
                "payloadType": self.payload_type,
                "signatures": [{"sig": Base64::encode_string(&signature)}],
            },
        });
        (self.change)(&mut bundle);
        bundle
    }

    fn evidence(&self) -> Evidence {
        evidence(&serde_json::to_vec(&self.bundle()).unwrap())
    }
}

#[test]
fn a_good_signature_over_something_else_says_nothing() {
    assert_eq!(Draft::new().evidence().signers, [signer(&keys()[0])], "the control");
    let other = hex::encode(Digest::of(b"other").as_bytes());
    let digest = hex::encode(subject().index.as_bytes());
    let cases: Vec<(Draft, &str)> = vec![
        (
            Draft { payload_type: "application/vnd.portcullis.statement.v0+json", ..Draft::new() },
            "payload type",
        ),
        (Draft { payload_type: "", ..Draft::new() }, "payload type"),
        (Draft::statement(|s| s["subject"][0]["digest"]["sha256"] = json!(other)), "and this bundle is"),
        (Draft::statement(|s| s["subject"] = json!([])), "about 0 subjects"),
        (
            Draft::statement(|s| {
                s["subject"] = json!([{"digest": {"sha256": digest}}, {"digest": {"sha256": other}}]);
            }),
            "about 2 subjects",
        ),
        (Draft::statement(|s| s["subject"][0]["digest"]["sha512"] = json!("00")), "several"),
        (Draft::statement(|s| s["subject"][0]["digest"] = json!({})), "no digest"),
        (Draft::statement(|s| s["subject"][0]["digest"] = json!({"sha512": digest})), "another digest"),
        (
            Draft::statement(|s| s["subject"][0]["digest"]["sha256"] = json!(digest.to_uppercase())),
            "hex digits",
        ),
        (Draft::statement(|s| s["_type"] = json!("https://in-toto.io/Statement/v0.1")), "Statement/v0.1"),
        (Draft::statement(|s| s["predicateType"] = json!("https://example.test/x")), "no rule asks for"),
        (Draft::statement(|s| s["predicateType"] = json!(intoto::PROVENANCE)), "not an in-toto statement"),
        (Draft::statement(|s| *s = json!("text")), "not an in-toto statement"),
    ];
    for (draft, why) in cases {
        refused(&draft.evidence(), why);
    }
    // Which of two digests of the same name counts, readers do not agree on.
    let twice = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","subject":[{{"digest":{{"sha256":"{digest}","sha256":"{other}"}}}}],
           "predicateType":"{}","predicate":{{}}}}"#,
        intoto::SIGN
    );
    let signature = keys()[0].sign(&pre_authentication_of(intoto::PAYLOAD_TYPE, twice.as_bytes()));
    let mut bundle = Draft::new().bundle();
    bundle["dsseEnvelope"]["payload"] = json!(Base64::encode_string(twice.as_bytes()));
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = json!(Base64::encode_string(&signature));
    refused(&evidence(bundle.to_string().as_bytes()), "several");
}

#[test]
fn a_bundle_in_another_form_is_refused() {
    let cases: [(Change, &str); 19] = [
        (|b| b["dsseEnvelope"]["signatures"] = json!([]), "0 signatures"),
        (
            |b| {
                let one = b["dsseEnvelope"]["signatures"][0].clone();
                b["dsseEnvelope"]["signatures"] = json!(vec![one; 9]);
            },
            "9 signatures",
        ),
        (|b| b["dsseEnvelope"]["signatures"][0]["keyid"] = json!("somebody"), "not trusted here"),
        (|b| b["dsseEnvelope"]["signatures"][0]["cert"] = json!("x"), "unknown field"),
        (|b| b["dsseEnvelope"]["payloadType"] = json!("application/json"), "payload type"),
        (|b| b["dsseEnvelope"]["payload"] = json!("e30"), "not base64"),
        (|b| b["verificationMaterial"]["publicKey"]["hint"] = json!("somebody"), "not trusted here"),
        (
            |b| {
                let other = sigstore::hint(&keys()[1].public_key().id());
                b["verificationMaterial"]["publicKey"]["hint"] = json!(other);
            },
            "does not match",
        ),
        (|b| b["verificationMaterial"]["publicKey"] = json!(null), "no signer"),
        (|b| b["verificationMaterial"]["certificate"] = json!({"rawBytes": "AA=="}), "more than one"),
        (
            |b| {
                b["verificationMaterial"] = json!({"certificate": {"rawBytes": "AA=="}, "tlogEntries": []});
            },
            "certificate",
        ),
        (|b| b["verificationMaterial"]["more"] = json!(1), "unknown field"),
        (|b| b["more"] = json!(1), "unknown field"),
        (|b| b["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.2"), "version 0.3"),
        (|b| b["dsseEnvelope"] = json!(null), "no signature"),
        (
            |b| {
                b["messageSignature"] =
                    json!({"messageDigest": {"algorithm": "SHA2_256", "digest": ""}, "signature": ""});
            },
            "one of each",
        ),
        (
            |b| {
                b["dsseEnvelope"] = json!(null);
                b["messageSignature"] =
                    json!({"messageDigest": {"algorithm": "SHA2_512", "digest": ""}, "signature": ""});
            },
            "SHA2_512",
        ),
        (
            |b| {
                b["dsseEnvelope"] = json!(null);
                b["messageSignature"] =
                    json!({"messageDigest": {"algorithm": "SHA2_256", "digest": "AAAA"}, "signature": ""});
            },
            "32 bytes",
        ),
        (|b| *b = json!([]), "not a sigstore bundle"),
    ];
    for (change, why) in cases {
        refused(&Draft { change, ..Draft::new() }.evidence(), why);
    }
    // Longer than is read, though a good one is in it.
    let mut long = sign(&subject(), &keys()[0]).unwrap();
    long.resize(sigstore::BUNDLE_MAX, b' ');
    assert!(!says_nothing(&evidence(&long)), "the control: white space behind it is nobody's lie");
    long.push(b' ');
    refused(&evidence(&long), "at most");
    refused(&evidence(b""), "not a sigstore bundle");
}

/// Other tools write fields in another order, with white space, with a log entry, without a hint, with the key's name.
#[test]
fn what_other_tools_write_differently_is_accepted() {
    let changes: [fn(&mut Value); 5] = [
        |b| {
            b["verificationMaterial"]["tlogEntries"] =
                json!([{"logIndex": "1", "kindVersion": {"kind": "dsse"}}])
        },
        |b| b["verificationMaterial"]["timestampVerificationData"] = json!({"rfc3161Timestamps": []}),
        |b| b["verificationMaterial"]["publicKey"] = json!({}),
        |b| b["dsseEnvelope"]["signatures"][0]["keyid"] = json!(""),
        |b| b["dsseEnvelope"]["signatures"][0]["keyid"] = json!(keys()[0].public_key().id()),
    ];
    for change in changes {
        let bundle = Draft { change, ..Draft::new() }.bundle();
        let pretty = serde_json::to_vec_pretty(&bundle).unwrap();
        assert_eq!(evidence(&pretty).signers, [signer(&keys()[0])], "{bundle}");
    }
    let annotated = Draft::statement(|s| s["predicate"] = json!({"annotations": {"a": "b"}}));
    assert_eq!(annotated.evidence().signers, [signer(&keys()[0])]);
}

#[test]
fn provenance_names_one_source_or_none() {
    let provenance = |dependencies: Value| {
        let draft = Draft::statement(|s| {
            s["predicateType"] = json!(intoto::PROVENANCE);
            s["predicate"] = json!({
                "buildDefinition": {
                    "buildType": "https://actions.github.io/buildtypes/workflow/v1",
                    "externalParameters": {"workflow": {"ref": "refs/heads/main", "path": ".github/x.yml"}},
                    "internalParameters": {"github": {"event_name": "push"}},
                    "resolvedDependencies": dependencies,
                },
                "runDetails": {"builder": {"id": "https://github.com/actions/runner"}, "metadata": {"invocationId": "1"}},
            });
        });
        draft.evidence().provenance.remove(0)
    };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let git =
        |uri: &str, name: Option<&str>| json!({"uri": uri, "name": name, "digest": {"gitCommit": commit}});

    let found = provenance(json!([git("git+https://github.com/acme/policies@refs/tags/v1", None)]));
    assert_eq!(found.builder, "https://github.com/actions/runner");
    assert_eq!(found.repository.as_deref(), Some("git+https://github.com/acme/policies"));
    assert_eq!(found.reference.as_deref(), Some("refs/tags/v1"));
    assert_eq!(found.commit.as_deref(), Some(commit));

    let found = provenance(json!([git("git+ssh://git@example.test/acme", None)]));
    assert_eq!(found.repository.as_deref(), Some("git+ssh://git@example.test/acme"));
    assert_eq!(found.reference, None);

    // Whoever may push a branch may call it so; it is no tag, and no repository of that name.
    let found = provenance(json!([git("git+https://a.test/a@refs/heads/x@refs/tags/v1", None)]));
    assert_eq!((found.repository, found.reference), (None, None));

    let (one, other) = (git("git+https://a.test/a@refs/tags/v1", None), git("git+https://b.test/b", None));
    assert_eq!(provenance(json!([one, other])).repository, None, "which of the two?");
    let named = git("git+https://c.test/c@refs/tags/v1", Some("source"));
    assert_eq!(provenance(json!([one, named])).repository.as_deref(), Some("git+https://c.test/c"));
    assert_eq!(provenance(json!([named, named])).repository, None);
    assert_eq!(provenance(json!([{"uri": "pkg:cargo/serde@1", "digest": {}}])).repository, None);
    assert_eq!(provenance(json!([])).repository, None);
}

#[test]
fn facts_that_would_be_read_as_others_are_not_attested() {
    let key = &keys()[0];
    let refusal = |change: fn(&mut BuildFacts)| {
        let mut wrong = facts();
        change(&mut wrong);
        match attest(&subject(), &wrong, key) {
            Err(error @ SignError::Facts(_)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    attest(&subject(), &facts(), key).expect("the control");
    for (change, why) in [
        ((|f| f.builder = "runner".into()) as fn(&mut BuildFacts), "builder"),
        (|f| f.build_type = String::new(), "build type"),
        (|f| f.source.as_mut().unwrap().repository = "https://a.test/a@refs/tags/v9".into(), "repository"),
        (|f| f.source.as_mut().unwrap().repository = "https://a.test/a b".into(), "repository"),
        (|f| f.source.as_mut().unwrap().reference = Some("v3".into()), "ref"),
        (|f| f.source.as_mut().unwrap().commit = "HEAD".into(), "commit"),
    ] {
        let error = refusal(change);
        assert!(error.contains(why), "{why}: {error}");
    }
}

/// A payload as cosign signs it for an image, with the annotation that has its signature.
fn simple_signing(payload: &Value, key: &SigningKey) -> (Vec<u8>, BTreeMap<String, String>) {
    let payload = payload.to_string().into_bytes();
    let signature = Base64::encode_string(&key.sign(&payload));
    (payload, BTreeMap::from([("dev.cosignproject.cosign/signature".to_owned(), signature)]))
}

fn simple_payload(digest: Digest) -> Value {
    json!({
        "critical": {
            "identity": {"docker-reference": "registry.example.test/acme/gate"},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": {"creator": "somebody"},
    })
}

#[test]
fn cosigns_simple_signing_is_read() {
    let look = |payload: &[u8], annotations: &BTreeMap<String, String>| {
        check(
            &subject(),
            &[Material { media_type: cosign::MEDIA_TYPE, bytes: payload, annotations }],
            &anchors(),
        )
    };
    for key in &keys()[..2] {
        let (payload, annotations) = simple_signing(&simple_payload(subject().index), key);
        assert_eq!(look(&payload, &annotations).signers, [signer(key)]);
        let mut changes = 0;
        for (_, changed) in flips(&payload) {
            assert!(says_nothing(&look(&changed, &annotations)));
            changes += 1;
        }
        let signature = annotations.values().next().unwrap().clone();
        for (_, changed) in flips(signature.as_bytes()) {
            let Ok(changed) = String::from_utf8(changed) else { continue };
            let annotations = annotations.keys().map(|name| (name.clone(), changed.clone())).collect();
            assert!(says_nothing(&look(&payload, &annotations)));
            changes += 1;
        }
        println!("simple signing by {:?}: {changes} changes, all refused", key.algorithm());
    }
    let key = &keys()[0];
    let (payload, annotations) = simple_signing(&simple_payload(Digest::of(b"other")), key);
    refused(&look(&payload, &annotations), "and this bundle is");
    let mut other_type = simple_payload(subject().index);
    other_type["critical"]["type"] = json!("something else");
    let (payload, annotations) = simple_signing(&other_type, key);
    refused(&look(&payload, &annotations), "something else");
    let (payload, annotations) = simple_signing(&simple_payload(subject().index), &keys()[2]);
    refused(&look(&payload, &annotations), "matches no trusted key");
    let (payload, mut annotations) = simple_signing(&simple_payload(subject().index), key);
    refused(&look(&payload, &BTreeMap::new()), "no annotation");
    annotations.insert("dev.sigstore.cosign/certificate".into(), "x".into());
    refused(&look(&payload, &annotations), "certificate");
}

#[test]
fn what_is_broken_or_unknown_stops_nobody() {
    let none = BTreeMap::new();
    let good = sign(&subject(), &keys()[0]).unwrap();
    let stranger = sign(&subject(), &keys()[2]).unwrap();
    let material = |media_type, bytes| Material { media_type, bytes, annotations: &none };
    let attached = [
        material("application/spdx+json", b"{}".as_slice()),
        material(sigstore::MEDIA_TYPE, b"{"),
        material(sigstore::MEDIA_TYPE, &stranger),
        material(cosign::MEDIA_TYPE, b"{}"),
        material(sigstore::MEDIA_TYPE, &good),
        material(sigstore::MEDIA_TYPE, &good),
    ];
    let found = check(&subject(), &attached, &anchors());
    assert_eq!(found.signers, [signer(&keys()[0])], "once, though it is there twice");
    assert_eq!(found.disregarded.len(), 4);
    for (number, why) in
        (1..).zip(["no signature that is known", "not a sigstore", "not trusted", "no annotation"])
    {
        let said = &found.disregarded[number - 1];
        assert!(said.contains(&format!("attachment {number} ")) && said.contains(why), "{said}");
    }

    // A store that is filled up hides signatures, so the bundle is refused, but nobody's time is wasted.
    let mut many = vec![material("x", b"".as_slice()); ATTACHED_MAX];
    many.push(material(sigstore::MEDIA_TYPE, &good));
    let found = check(&subject(), &many, &anchors());
    assert!(says_nothing(&found) && found.disregarded.last().unwrap().contains("only the first"));
    many.remove(0);
    assert_eq!(check(&subject(), &many, &anchors()).signers.len(), 1, "the control");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_attachment_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..3usize) {
        let media_type = [sigstore::MEDIA_TYPE, cosign::MEDIA_TYPE, ""][kind];
        let annotations = BTreeMap::new();
        let found = check(&subject(), &[Material { media_type, bytes: &bytes, annotations: &annotations }], &anchors());
        prop_assert!(says_nothing(&found) && found.disregarded.len() == 1);
    }

    /// Pieces of a good bundle, cut out and put elsewhere: good only if it is the same again.
    #[test]
    fn no_mixture_of_good_bundles_counts(from in 0..4usize, to in 0..4usize, at in 0.0..1.0f64, len in 1..200usize) {
        let key = &keys()[0];
        let other = Subject::of(b"{\"other\":1}");
        let bundles = [
            sign(&subject(), key).unwrap(), sign(&other, key).unwrap(),
            attest(&other, &facts(), key).unwrap(), sign_message(&other, key).unwrap(),
        ];
        let (from, mut mixed) = (&bundles[from], bundles[to].clone());
        let least = from.len().min(mixed.len());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in it")]
        let at = (at * least as f64) as usize;
        let end = (at + len).min(least);
        mixed[at..end].copy_from_slice(&from[at..end]);
        prop_assert!(mixed == bundles[0] || says_nothing(&evidence(&mixed)));
    }
}

/// The ecosystem's own library, in a process of its own.
struct Interop {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Interop {
    fn start() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
        let installed = folder.join("node_modules/@sigstore/verify/package.json").exists();
        assert!(installed, "not installed; run: npm ci --ignore-scripts --prefix {}", folder.display());
        let mut child = Command::new("node")
            .arg(folder.join("sigstore.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is missing; run: apt-get install nodejs npm");
        let (requests, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, requests, answers }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests.as_mut().unwrap(), "{request}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).expect("an answer")
    }

    fn verify(&mut self, bundle: &[u8], key: &PublicKey) -> Value {
        self.ask(&json!({
            "op": "verify",
            "bundle": str::from_utf8(bundle).unwrap(),
            "key": key.to_pem().unwrap(),
            "artifact": Base64::encode_string(INDEX),
        }))
    }

    fn make(&mut self, key: &SigningKey, what: Value) -> Vec<u8> {
        let mut request = what;
        request["op"] = json!("make");
        request["key"] = json!(*key.to_pem().unwrap());
        let answer = self.ask(&request);
        assert_eq!(answer["ok"], true, "{answer}");
        answer["bundle"].as_str().unwrap().as_bytes().to_vec()
    }
}

impl Drop for Interop {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.child.wait();
    }
}

#[test]
fn the_ecosystems_library_accepts_what_we_sign_and_writes_it_the_same() {
    let mut library = Interop::start();
    let (ed25519, p256) = (&keys()[0], &keys()[1]);
    for (signed, key) in [
        (sign(&subject(), ed25519).unwrap(), ed25519),
        (sign(&subject(), p256).unwrap(), p256),
        (attest(&subject(), &facts(), ed25519).unwrap(), ed25519),
        (attest(&subject(), &facts(), p256).unwrap(), p256),
        // It knows messages by ECDSA only.
        (sign_message(&subject(), p256).unwrap(), p256),
    ] {
        let answer = library.verify(&signed, &key.public_key());
        assert_eq!(answer["ok"], true, "{answer}");
        let signed_text = str::from_utf8(&signed).unwrap();
        assert_eq!(answer["rewritten"].as_str().unwrap(), signed_text, "one form, the library's");
        // The controls: it does look.
        assert_eq!(library.verify(&signed, &keys()[2].public_key())["ok"], false);
        let mut bundle: Value = serde_json::from_slice(&signed).unwrap();
        let content = if bundle["dsseEnvelope"].is_null() { "messageSignature" } else { "dsseEnvelope" };
        let place = if content == "dsseEnvelope" {
            &mut bundle[content]["signatures"][0]["sig"]
        } else {
            &mut bundle[content]["signature"]
        };
        let mut signature = Base64::decode_vec(place.as_str().unwrap()).unwrap();
        signature[20] ^= 1;
        *place = json!(Base64::encode_string(&signature));
        assert_eq!(library.verify(bundle.to_string().as_bytes(), &key.public_key())["ok"], false);
    }
}

#[test]
fn what_the_ecosystems_library_makes_counts() {
    let mut library = Interop::start();
    let statement = serde_json::to_vec(&Draft::new().statement).unwrap();
    let other = serde_json::to_vec(&Draft::statement(|s| s["subject"] = json!([])).statement).unwrap();
    for key in &keys()[..2] {
        let payload = |payload: &[u8]| json!({"payload": Base64::encode_string(payload), "payloadType": intoto::PAYLOAD_TYPE});
        let made = library.make(key, payload(&statement));
        assert_eq!(evidence(&made).signers, [signer(key)], "{}", String::from_utf8_lossy(&made));
        let made = library.make(key, json!({"artifact": Base64::encode_string(INDEX)}));
        assert_eq!(evidence(&made).signers, [signer(key)]);
        let mut without_hint = payload(&statement);
        without_hint["keyHint"] = json!("");
        let made = library.make(key, without_hint);
        assert_eq!(evidence(&made).signers, [signer(key)]);

        refused(&evidence(&library.make(key, payload(&other))), "0 subjects");
        let made = library.make(key, json!({"artifact": Base64::encode_string(b"other")}));
        refused(&evidence(&made), "and this bundle is");
        let mut wrong_hint = payload(&statement);
        wrong_hint["keyHint"] = json!("x");
        refused(&evidence(&library.make(key, wrong_hint)), "not trusted here");
    }
    refused(
        &evidence(&library.make(&keys()[2], json!({"artifact": Base64::encode_string(INDEX)}))),
        "not trusted",
    );
}

fn openssl(dir: &Path, args: &[&str]) -> bool {
    let mut run = Command::new("openssl");
    run.args(args).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    run.status().expect("openssl is missing; run: apt-get install openssl").success()
}

/// OpenSSL knows neither DSSE nor bundles: it gets the bytes that are signed, and the signature.
#[test]
fn openssl_accepts_what_we_sign_and_what_it_signs_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    for key in &keys()[..2] {
        let ed25519 = key.public_key().algorithm() == portcullis::artifact::Algorithm::Ed25519;
        file("key.pem", key.to_pem().unwrap().as_bytes());
        file("pub.pem", key.public_key().to_pem().unwrap().as_bytes());
        let bundle: Value = serde_json::from_slice(&sign(&subject(), key).unwrap()).unwrap();
        let payload = Base64::decode_vec(bundle["dsseEnvelope"]["payload"].as_str().unwrap()).unwrap();
        let signature =
            Base64::decode_vec(bundle["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap()).unwrap();
        let mut message = format!("DSSEv1 28 application/vnd.in-toto+json {} ", payload.len()).into_bytes();
        message.extend_from_slice(&payload);
        file("message", &message);
        file("signature", &signature);
        let mut verify =
            vec!["pkeyutl", "-verify", "-pubin", "-inkey", "pub.pem", "-rawin", "-in", "message"];
        verify.extend(["-sigfile", "signature"]);
        if !ed25519 {
            verify.extend(["-digest", "sha256"]);
        }
        assert!(openssl(dir.path(), &verify));
        message.push(b'!');
        file("message", &message);
        assert!(!openssl(dir.path(), &verify), "the control");

        file("index", INDEX);
        let mut make =
            vec!["pkeyutl", "-sign", "-inkey", "key.pem", "-rawin", "-in", "index", "-out", "made"];
        if !ed25519 {
            make.extend(["-digest", "sha256"]);
        }
        assert!(openssl(dir.path(), &make));
        let made = std::fs::read(dir.path().join("made")).unwrap();
        let mut bundle = json!({
            "mediaType": sigstore::MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": sigstore::hint(&key.public_key().id())}},
            "messageSignature": {
                "messageDigest": {
                    "algorithm": "SHA2_256",
                    "digest": Base64::encode_string(subject().index.as_bytes()),
                },
                "signature": Base64::encode_string(&made),
            },
        });
        assert_eq!(evidence(bundle.to_string().as_bytes()).signers, [signer(key)]);
        let mut bad = made.clone();
        bad[20] ^= 1;
        bundle["messageSignature"]["signature"] = json!(Base64::encode_string(&bad));
        refused(&evidence(bundle.to_string().as_bytes()), "does not match");
    }
}
