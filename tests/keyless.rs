//! Signatures by identities, checked offline against a pinned root: bundles that cosign and the public service made, from the
//! test data that the crate `sigstore-verify` brings with its sources.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use portcullis::artifact::{Digest, Limits, PublicKey};
use portcullis::bundle::PolicyConfig;
use portcullis::decision::{PolicyName, Tenant, TrustClass};
use portcullis::signature::{Anchors, Evidence, KeylessRoot, Material, Signer, Subject, check, sigstore};
use portcullis::trust::{Candidate, Revocations, TrustPolicy};
use serde_json::{Value, json};

const ISSUER: &str = "https://github.com/login/oauth";

/// A file of the crate's test data.
fn data(name: &str) -> Vec<u8> {
    file(&format!("sigstore-verify-0.15.1/test_data/{name}"))
}

/// A file of a crate, where cargo unpacked its sources.
fn file(name: &str) -> Vec<u8> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"));
    let sources =
        fs::read_dir(home.join("registry/src")).expect("sources of crates are missing; run: cargo fetch");
    let mut places = sources.map(|entry| entry.unwrap().path().join(name));
    let place = places.find(|place| place.exists()).expect("sigstore-verify is missing; run: cargo fetch");
    fs::read(place).unwrap()
}

/// The public service's own.
fn root() -> String {
    String::from_utf8(file("sigstore-trust-root-0.15.1/src/trusted_root.json")).unwrap()
}

fn anchors() -> Anchors {
    Anchors { keys: vec![], keyless: Some(KeylessRoot::from_json(&root()).unwrap()) }
}

fn look(subject: &[u8], bundle: &[u8], anchors: &Anchors) -> Evidence {
    let annotations = BTreeMap::new();
    let material = Material { media_type: sigstore::MEDIA_TYPE, bytes: bundle, annotations: &annotations };
    check(&Subject::of(subject), &[material], anchors)
}

fn blob() -> (Vec<u8>, Vec<u8>) {
    (data("bundles/cosign-v3-blob.txt"), data("bundles/cosign-v3-blob.sigstore.json"))
}

fn identity(evidence: &Evidence) -> String {
    match &evidence.signers[..] {
        [Signer::Identity { issuer, identity }] if issuer == ISSUER => identity.clone(),
        _ => panic!("{evidence:?}"),
    }
}

#[test]
fn what_cosign_signed_by_identity_counts_against_the_pinned_root_only() {
    let (artifact, bundle) = blob();
    assert!(identity(&look(&artifact, &bundle, &anchors())).contains('@'));

    let refused = |subject: &[u8], bundle: &[u8], anchors: &Anchors, why: &str| {
        let found = look(subject, bundle, anchors);
        assert!(found.signers.is_empty() && found.provenance.is_empty(), "{found:?}");
        assert!(found.disregarded[0].contains(why), "{why}: {found:?}");
    };
    refused(b"other", &bundle, &anchors(), "does not hold");
    refused(&artifact, &bundle, &Anchors::default(), "pins no root");
    let other_root = String::from_utf8(data("trusted_roots/scaffolding.json")).unwrap();
    let other_root = Anchors { keys: vec![], keyless: Some(KeylessRoot::from_json(&other_root).unwrap()) };
    refused(&artifact, &bundle, &other_root, "does not hold");
    // What was found with one root is looked for again with another: by this the registry tells them apart.
    let digests = [anchors(), other_root, Anchors::default()].map(|anchors| anchors.digest());
    assert!(digests[0] != digests[1] && digests[0] != digests[2], "{digests:?}");
    assert_eq!(digests[0], anchors().digest(), "the control: the same root");

    let changed = |change: fn(&mut Value)| {
        let mut changed: Value = serde_json::from_slice(&bundle).unwrap();
        change(&mut changed);
        changed.to_string().into_bytes()
    };
    let same = changed(|_| ());
    assert!(!look(&artifact, &same, &anchors()).signers.is_empty(), "the control: order is nobody's lie");
    refused(
        &artifact,
        &changed(|b| b["verificationMaterial"]["tlogEntries"] = json!([])),
        &anchors(),
        "does not hold",
    );
    let at = "/verificationMaterial/tlogEntries/0/integratedTime";
    assert!(serde_json::from_slice::<Value>(&bundle).unwrap().pointer(at).is_some());
    let other_time = changed(|b| {
        *b.pointer_mut("/verificationMaterial/tlogEntries/0/integratedTime").unwrap() = json!("1700000000");
    });
    refused(&artifact, &other_time, &anchors(), "does not hold");
    let other_digest = changed(|b| b["messageSignature"]["messageDigest"]["digest"] = json!("AAAA"));
    refused(&artifact, &other_digest, &anchors(), "32 bytes");
}

/// One bit of every byte: what changes the meaning is refused, and nothing names another signer.
#[test]
fn no_changed_byte_names_another_signer() {
    let (artifact, bundle) = blob();
    let (anchors, whole) = (anchors(), look(&artifact, &bundle, &self::anchors()));
    assert_eq!(whole.signers.len(), 1, "the control: {whole:?}");
    let (mut refused, mut same) = (0, 0);
    for place in 0..bundle.len() {
        let mut changed = bundle.clone();
        changed[place] ^= 1;
        let found = look(&artifact, &changed, &anchors);
        if found.signers.is_empty() {
            refused += 1;
        } else {
            assert_eq!(found.signers, whole.signers, "byte {place}");
            same += 1;
        }
    }
    println!("keyless bundle: {refused} changes of {} bytes refused, {same} change nothing", bundle.len());
    // White space, and what of a log entry stands there for people.
    assert!(same * 50 < refused, "{same} of {refused}");
}

#[test]
fn a_statement_about_something_else_says_nothing() {
    let bundle = data("bundles/conda-attestation.sigstore.json");
    let found = look(b"not the package", &bundle, &anchors());
    assert!(found.signers.is_empty() && found.disregarded[0].contains("does not hold"), "{found:?}");
    let package = data("bundles/signed-package-2.1.0-hb0f4dca_0.conda");
    let found = look(&package, &bundle, &anchors());
    assert!(
        found.signers.is_empty(),
        "its signature holds, and no rule asks for such a statement: {found:?}"
    );
    assert!(found.disregarded[0].contains("which no rule asks for"), "{found:?}");
}

/// A bundle by a key, with a log entry and a time stamp, as cosign wrote it.
#[test]
fn what_cosign_signed_by_key_counts() {
    let key = PublicKey::from_pem(&String::from_utf8(data("managed-key/key.pub")).unwrap()).unwrap();
    let (artifact, bundle) = (data("managed-key/artifact.txt"), data("managed-key/bundle.sigstore.json"));
    let anchors = Anchors { keys: vec![key.clone()], keyless: None };
    assert_eq!(look(&artifact, &bundle, &anchors).signers, [Signer::Key(key.id())]);
    assert!(look(b"other", &bundle, &anchors).signers.is_empty());
    assert!(look(&artifact, &bundle, &Anchors::default()).signers.is_empty());
}

#[test]
fn a_trust_policy_names_identities() {
    let (artifact, bundle) = blob();
    let found = look(&artifact, &bundle, &anchors());
    let who = identity(&found);
    let policy = |issuer: &str, identity: &str| {
        let text = format!(
            "[keyless]\ntrusted_root = '''\n{}'''\n[signer.somebody]\nissuer = '{issuer}'\nidentity = '{identity}'\n\
             [default]\nall_of = ['somebody']\n",
            root()
        );
        TrustPolicy::parse(Path::new("trust.toml"), &text).unwrap_or_else(|errors| panic!("{errors}"))
    };
    let config = PolicyConfig {
        policy: PolicyName::new("gate").unwrap(),
        tenant: Tenant::new("acme").unwrap(),
        version: 1,
        world: "portcullis:policy@0.1.0".into(),
        imports: vec![],
        exports: vec!["decide".into()],
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
        confidential: None,
        source: Digest::of(b"source"),
        compiled: vec![],
        rego: None,
        prepared: None,
    };
    let evaluate = |policy: &TrustPolicy| {
        let class = TrustClass::new("web").unwrap();
        let candidate = Candidate {
            tenant: &config.tenant,
            class: &class,
            bundle: Digest::of(&artifact),
            config: &config,
        };
        let evidence = look(&artifact, &bundle, &policy.anchors());
        policy.evaluate(&candidate, &evidence, &Revocations::none(), "2027-01-01T00:00:00Z".parse().unwrap())
    };
    assert_eq!(evaluate(&policy(ISSUER, &who)).unwrap().signers, ["somebody"]);
    for (issuer, identity) in
        [(ISSUER, "somebody@else.test"), ("https://accounts.example.test", who.as_str())]
    {
        assert!(evaluate(&policy(issuer, identity)).is_err());
    }
}
