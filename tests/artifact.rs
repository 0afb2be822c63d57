//! What is loaded is what was signed: every other artifact is refused, before anything could reach the engine.
//! `verify` is given no engine, and only what it returns can be loaded.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use portcullis::artifact::envelope::{Envelope, Signature, pre_authentication};
use portcullis::artifact::{
    ARTIFACT_MAX, Architecture, Artifact, Digest, Expected, Limits, PublicKey, SIGNED_STATEMENT_MAX,
    SealedBytes, SigningKey, Statement, VerifyError, sign, store, verify,
};
use portcullis::bundle::Platform;
use portcullis::compile::{Built, Terms, build};
use portcullis::decision::{PolicyName, Tenant};
use portcullis::engine::{Metering, Target, WASMTIME_VERSION, WORLD, compiling_engine, settings_digest};

/// About the smallest policy there is: it always answers with the same 72 bytes.
fn smallest(answer_at: u32) -> Built {
    let module = format!(
        r#"(module
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
            (func (export "decide") (param i32) (result i32) (i32.const {answer_at})))"#
    );
    build(module.as_bytes(), Terms::default(), &[Platform::host()]).expect("build")
}

fn code(built: &Built) -> &[u8] {
    built.code_for(Platform::host()).expect("built for this host")
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(|| smallest(512))
}

fn statement() -> Statement {
    let built = built();
    Statement {
        policy: PolicyName::new("gate").unwrap(),
        tenant: Tenant::new("acme").unwrap(),
        version: 7,
        cwasm: Digest::of(code(built)),
        source: built.source,
        bundle: built.source,
        architecture: Architecture::host(),
        wasmtime: WASMTIME_VERSION.into(),
        engine: settings_digest(Metering::Off),
        world: WORLD.into(),
        imports: built.imports.clone(),
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
    }
}

fn keys() -> &'static [SigningKey; 2] {
    static KEYS: OnceLock<[SigningKey; 2]> = OnceLock::new();
    KEYS.get_or_init(|| {
        [SigningKey::generate_ed25519().expect("key"), SigningKey::generate_p256().expect("key")]
    })
}

fn sealed() -> SealedBytes {
    SealedBytes::of(code(built())).unwrap()
}

/// Verifies as policy "gate" of tenant "acme", at least version 7.
fn check(bytes: SealedBytes, signed: &[u8], keys: &[PublicKey]) -> Result<Artifact, VerifyError> {
    let (tenant, policy) = (Tenant::new("acme").unwrap(), PolicyName::new("gate").unwrap());
    verify(bytes, signed, keys, &Expected { tenant: &tenant, policy: &policy, minimum_version: 7 })
}

/// What `check` says about a statement that differs from the good one in one thing, and is signed.
fn refusal(change: impl FnOnce(&mut Statement)) -> VerifyError {
    let mut changed = statement();
    change(&mut changed);
    let key = &keys()[0];
    check(sealed(), &sign(&changed, key).unwrap(), &[key.public_key()]).expect_err("accepted")
}

#[test]
fn what_was_signed_is_accepted_with_both_algorithms() {
    for key in keys() {
        let signed = sign(&statement(), key).unwrap();
        let trusted = [keys()[1].public_key(), keys()[0].public_key()];
        let artifact = check(sealed(), &signed, &trusted).expect("good");
        assert_eq!(artifact.statement(), &statement());
        assert_eq!(artifact.signer(), &key.public_key().id());
        assert_eq!(artifact.bytes().to_vec().unwrap(), code(built()));
        assert_eq!(artifact.digest(), statement().cwasm);
    }
}

#[test]
fn every_changed_byte_of_the_artifact_is_refused() {
    let key = &keys()[0];
    let signed = sign(&statement(), key).unwrap();
    let trusted = [key.public_key()];
    let mut cwasm = code(built()).to_vec();
    for position in 0..cwasm.len() {
        let flip = 1 << (position % 8);
        cwasm[position] ^= flip;
        let result = check(SealedBytes::of(&cwasm).unwrap(), &signed, &trusted);
        assert!(matches!(result, Err(VerifyError::Digest { .. })), "byte {position}: {result:?}");
        cwasm[position] ^= flip;
    }
    check(SealedBytes::of(&cwasm).unwrap(), &signed, &trusted).expect("unchanged");
    println!("machine code: {} flips, one of each byte, all refused by the digest", cwasm.len());
}

#[test]
fn every_changed_byte_of_the_statement_is_refused() {
    let flips: [&[u8]; 2] = [&[0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff], &[0x01, 0x20]];
    let bytes = sealed();
    for (key, flips) in keys().iter().zip(flips) {
        let trusted = [key.public_key()];
        let mut signed = sign(&statement(), key).unwrap();
        for position in 0..signed.len() {
            for flip in flips {
                signed[position] ^= flip;
                let result = check(bytes.try_clone().unwrap(), &signed, &trusted);
                assert!(result.is_err(), "byte {position} changed by {flip:#04x} was accepted");
                signed[position] ^= flip;
            }
        }
        check(bytes.try_clone().unwrap(), &signed, &trusted).expect("unchanged");
        println!("statement: {} changes of {} bytes, all refused", signed.len() * flips.len(), signed.len());
    }
}

/// The engine itself would have taken it: nothing but the signature stands between a changed file and the processor.
#[test]
fn a_changed_artifact_is_one_that_the_engine_would_load() {
    let (honest, evil) = (code(built()), code(&smallest(600)).to_vec());
    assert_eq!(honest.len(), evil.len(), "the two policies differ in one constant");
    let engine = compiling_engine(Target::host(), Metering::Off).unwrap();
    #[expect(unsafe_code, reason = "the positive control is that the engine accepts it")]
    // SAFETY: the bytes come out of the compiler, and nothing of them is run.
    let loaded = unsafe { wasmtime::component::Component::deserialize(&engine, &evil) };
    loaded.expect("the engine loads it");

    let signed = sign(&statement(), &keys()[0]).unwrap();
    let result = check(SealedBytes::of(&evil).unwrap(), &signed, &[keys()[0].public_key()]);
    assert!(matches!(result, Err(VerifyError::Digest { .. })));
}

#[test]
fn truncation_and_extension_are_refused() {
    let key = &keys()[0];
    let trusted = [key.public_key()];
    let signed = sign(&statement(), key).unwrap();
    let cwasm = code(built());
    for len in (0..cwasm.len()).step_by(97).chain([cwasm.len() - 1]) {
        let result = check(SealedBytes::of(&cwasm[..len]).unwrap(), &signed, &trusted);
        assert!(matches!(result, Err(VerifyError::Digest { .. })), "{len} bytes");
    }
    let longer = [cwasm, &[0]].concat();
    let result = check(SealedBytes::of(&longer).unwrap(), &signed, &trusted);
    assert!(matches!(result, Err(VerifyError::Digest { .. })));

    let bytes = sealed();
    for len in 0..signed.len() {
        let result = check(bytes.try_clone().unwrap(), &signed[..len], &trusted);
        assert!(matches!(result, Err(VerifyError::Envelope(_))), "{len} bytes of the statement");
    }
    for more in [&b"\n"[..], b" ", b"\0", b"{}"] {
        let result = check(sealed(), &[&signed, more].concat(), &trusted);
        assert!(matches!(result, Err(VerifyError::Envelope(_))), "{more:?}");
    }
}

#[test]
fn sizes_are_checked_before_anything_else() {
    let long = vec![b' '; SIGNED_STATEMENT_MAX + 1];
    let error = check(sealed(), &long, &[]).unwrap_err();
    assert_eq!(error.to_string(), "signed statement is 65537 bytes long, at most 65536 are read");

    // A reader that never ends is left at the limit.
    let error = SealedBytes::read(std::io::repeat(0), ARTIFACT_MAX).unwrap_err();
    assert_eq!(error.to_string(), "read bytes to seal: more than 1073741824 bytes, which is the limit here");
}

#[test]
fn another_tenants_or_policys_statement_is_refused() {
    let error = refusal(|statement| statement.tenant = Tenant::new("globex").unwrap());
    assert!(matches!(error, VerifyError::Tenant { .. }));
    assert_eq!(error.to_string(), "statement is for tenant \"globex\", expected \"acme\"");

    let error = refusal(|statement| statement.policy = PolicyName::new("other").unwrap());
    assert!(matches!(error, VerifyError::Policy { .. }));
    assert_eq!(error.to_string(), "statement is for policy \"other\", expected \"gate\"");
}

#[test]
fn a_lower_version_is_refused_and_a_higher_one_is_not() {
    let error = refusal(|statement| statement.version = 6);
    assert!(matches!(error, VerifyError::Version { found: 6, minimum: 7 }), "{error}");
    let mut newer = statement();
    newer.version = u64::MAX;
    check(sealed(), &sign(&newer, &keys()[0]).unwrap(), &[keys()[0].public_key()]).expect("newer");
}

#[test]
fn what_was_compiled_for_something_else_is_refused() {
    let other = match Architecture::host() {
        Architecture::X86_64 => Architecture::Aarch64,
        Architecture::Aarch64 => Architecture::X86_64,
    };
    let error = refusal(|statement| statement.architecture = other);
    assert!(matches!(error, VerifyError::Architecture { .. }), "{error}");
    // The engine would take another patch release for its own.
    for version in ["48.0.7", "48.0.80", "49.0.0", "", "48"] {
        let error = refusal(|statement| statement.wasmtime = version.into());
        assert!(matches!(error, VerifyError::Wasmtime { .. }), "{error}");
    }
    let error = refusal(|statement| statement.engine = Digest::of(b"other settings"));
    assert!(matches!(error, VerifyError::Engine { .. }), "{error}");
    let error = refusal(|statement| statement.world = "portcullis:policy@0.2.0".into());
    assert!(matches!(error, VerifyError::World { .. }), "{error}");
    let error = refusal(|statement| statement.cwasm = Digest::of(b"other code"));
    assert!(matches!(error, VerifyError::Digest { .. }), "{error}");
}

#[test]
fn unsigned_and_signed_by_a_stranger_are_refused() {
    let [key, stranger] = keys();
    let signed = sign(&statement(), key).unwrap();
    let error = check(sealed(), &signed, &[stranger.public_key()]).unwrap_err();
    assert!(matches!(error, VerifyError::UnknownKey { .. }), "{error}");
    assert!(error.to_string().contains(key.public_key().id().as_str()));
    assert!(matches!(check(sealed(), &signed, &[]), Err(VerifyError::UnknownKey { .. })));

    let mut envelope = Envelope::from_bytes(&signed).unwrap();
    envelope.signatures.clear();
    let error = check(sealed(), &envelope.to_bytes().unwrap(), &[key.public_key()]).unwrap_err();
    assert!(matches!(error, VerifyError::Unsigned), "{error}");

    // A stranger's signature under a trusted key's name.
    let bytes = stranger.sign(&pre_authentication(&envelope.payload));
    envelope.signatures.push(Signature { key: key.public_key().id().to_string(), bytes });
    let error = check(sealed(), &envelope.to_bytes().unwrap(), &[key.public_key()]).unwrap_err();
    assert!(matches!(error, VerifyError::Signature { .. }), "{error}");
}

#[test]
fn a_signature_of_the_bare_payload_is_refused() {
    let key = &keys()[0];
    let mut envelope = Envelope::from_bytes(&sign(&statement(), key).unwrap()).unwrap();
    envelope.signatures[0].bytes = key.sign(&envelope.payload);
    let result = check(sealed(), &envelope.to_bytes().unwrap(), &[key.public_key()]);
    assert!(matches!(result, Err(VerifyError::Signature { .. })));
}

#[test]
fn one_good_signature_by_a_trusted_key_is_enough() {
    let [key, stranger] = keys();
    let trusted = [key.public_key()];
    let mut envelope = Envelope::from_bytes(&sign(&statement(), key).unwrap()).unwrap();
    let message = pre_authentication(&envelope.payload);
    let other = Signature { key: stranger.public_key().id().to_string(), bytes: stranger.sign(&message) };
    envelope.signatures.insert(0, other);
    check(sealed(), &envelope.to_bytes().unwrap(), &trusted).expect("the second one is trusted");
    envelope.signatures.pop();
    assert!(check(sealed(), &envelope.to_bytes().unwrap(), &trusted).is_err());
}

/// Signed by a trusted key, but not a statement: a payload is only parsed after its signature is good, and then
/// strictly.
#[test]
fn a_signed_payload_that_is_no_statement_is_refused() {
    let key = &keys()[0];
    let good = serde_json::to_string(&statement()).unwrap();
    let payloads = [
        String::new(),
        "null".into(),
        good.replacen('{', r#"{"admin":true,"#, 1),
        good.replacen('{', r#"{"version":9,"#, 1),
        good.replace("\"version\":7", "\"version\":-7"),
        good.replace("\"version\":7", "\"version\":18446744073709551616"),
        good.replace("\"acme\"", "\"../acme\""),
        good.replace("sha256:", "SHA256:"),
        good.replace("x86_64", "riscv64").replace("aarch64", "riscv64"),
        format!("{good}{good}"),
    ];
    let seal = |payload: &str, signature: Vec<u8>| {
        let signature = Signature { key: key.public_key().id().to_string(), bytes: signature };
        Envelope { payload: payload.as_bytes().to_vec(), signatures: vec![signature] }.to_bytes().unwrap()
    };
    for payload in payloads {
        assert_ne!(payload, good);
        let signed = seal(&payload, key.sign(&pre_authentication(payload.as_bytes())));
        let result = check(sealed(), &signed, &[key.public_key()]);
        assert!(matches!(result, Err(VerifyError::Statement(_))), "{payload}: {result:?}");
        let result = check(sealed(), &seal(&payload, vec![0; 64]), &[key.public_key()]);
        assert!(matches!(result, Err(VerifyError::Signature { .. })), "parsed before trusted: {payload}");
    }
}

#[test]
fn signatures_have_one_form() {
    let message = b"message";
    let [ed25519, p256] = keys();

    // Ed25519: S + L is the same number modulo the group's order, in another form.
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut signature = ed25519.sign(message);
    ed25519.public_key().verify(message, &signature).expect("good");
    let mut carry = 0;
    for (byte, order) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    assert!(ed25519.public_key().verify(message, &signature).is_err());

    // P-256: the outer length in two bytes where one is enough, and something after the end.
    let signature = p256.sign(message);
    p256.public_key().verify(message, &signature).expect("good");
    let mut long = signature.clone();
    long.insert(1, 0x81);
    assert!(p256.public_key().verify(message, &long).is_err());
    assert!(p256.public_key().verify(message, &[&signature[..], &[0]].concat()).is_err());
    assert!(p256.public_key().verify(b"other", &signature).is_err());
}

#[test]
fn keys_survive_their_files_and_keep_their_secret() {
    for key in keys() {
        let pem = key.to_pem().unwrap();
        let again = SigningKey::from_pem(&pem).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        let public = key.public_key().to_pem().unwrap();
        assert_eq!(PublicKey::from_pem(&public).unwrap(), key.public_key());
        assert_eq!(key.public_key().id().as_str().len(), 64);

        assert_eq!(format!("{key:?}"), format!("SigningKey {{ algorithm: {:?}, .. }}", key.algorithm()));
        let wrong = SigningKey::from_pem(&public).unwrap_err().to_string();
        assert!(wrong.contains("BEGIN PRIVATE KEY"), "{wrong}");
        let wrong = PublicKey::from_pem(&pem).unwrap_err().to_string();
        assert!(wrong.contains("BEGIN PUBLIC KEY"), "{wrong}");
    }
    // The point of order 1: anyone can make signatures that are good for it.
    let weak = "-----BEGIN PUBLIC KEY-----\n\
                MCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\
                -----END PUBLIC KEY-----\n";
    let error = PublicKey::from_pem(weak).unwrap_err().to_string();
    assert!(error.contains("small order"), "{error}");
}

fn openssl(dir: &Path, arguments: &str) -> bool {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(dir)
        .output()
        .expect("the openssl command is needed for this test");
    output.status.success()
}

#[test]
fn openssl_reads_our_keys_and_checks_our_signatures() {
    for key in keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let envelope = Envelope::from_bytes(&sign(&statement(), key).unwrap()).unwrap();
        fs::write(file("message"), pre_authentication(&envelope.payload)).unwrap();
        fs::write(file("signature"), &envelope.signatures[0].bytes).unwrap();
        fs::write(file("pub.pem"), key.public_key().to_pem().unwrap()).unwrap();
        fs::write(file("key.pem"), key.to_pem().unwrap()).unwrap();
        let verify = "pkeyutl -verify -rawin -pubin -inkey pub.pem -in message -sigfile signature";
        assert!(openssl(dir.path(), verify), "{:?}", key.algorithm());
        assert!(openssl(dir.path(), "pkey -in key.pem -pubout -out again.pem"));
        assert_eq!(fs::read(file("again.pem")).unwrap(), fs::read(file("pub.pem")).unwrap());

        fs::write(file("message"), "something else").unwrap();
        assert!(!openssl(dir.path(), verify), "the check itself must be able to fail");
    }
}

#[test]
fn keys_and_signatures_made_by_openssl_are_taken() {
    for (make, sign_with) in [
        (
            "genpkey -algorithm ed25519 -out key.pem",
            "pkeyutl -sign -rawin -inkey key.pem -in message -out signature",
        ),
        (
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem",
            "dgst -sha256 -sign key.pem -out signature message",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        assert!(openssl(dir.path(), make));
        assert!(openssl(dir.path(), "pkey -in key.pem -pubout -out pub.pem"));
        let key = SigningKey::from_pem(&fs::read_to_string(file("key.pem")).unwrap()).expect(make);
        let public = PublicKey::from_pem(&fs::read_to_string(file("pub.pem")).unwrap()).expect(make);
        assert_eq!(key.public_key(), public);

        let payload = serde_json::to_vec(&statement()).unwrap();
        fs::write(file("message"), pre_authentication(&payload)).unwrap();
        assert!(openssl(dir.path(), sign_with));
        let bytes = fs::read(file("signature")).unwrap();
        let signatures = vec![Signature { key: public.id().to_string(), bytes }];
        let signed = Envelope { payload, signatures }.to_bytes().unwrap();
        check(sealed(), &signed, &[public]).expect(make);
    }
}

#[test]
fn keys_of_other_algorithms_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for make in [
        "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem",
        "genpkey -algorithm ed448 -out key.pem",
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem",
    ] {
        assert!(openssl(dir.path(), make));
        assert!(openssl(dir.path(), "pkey -in key.pem -pubout -out pub.pem"));
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let error = SigningKey::from_pem(&text("key.pem")).expect_err(make).to_string();
        assert!(error.starts_with("read signing key: "), "{error}");
        let error = PublicKey::from_pem(&text("pub.pem")).expect_err(make).to_string();
        assert!(error.starts_with("read public key: "), "{error}");
    }
}

#[test]
fn files_are_replaced_whole_and_no_unfinished_ones_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    store::replace(&path, b"one", 0o600).unwrap();
    store::replace(&path, b"two", 0o644).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);

    // A directory stands where the file has to go.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    store::replace(&path, b"three", 0o644).unwrap_err();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["file"]);
}
