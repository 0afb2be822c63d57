//! The trust policy says who may vouch for what: everything wrong with it is named at its place, whatever it does not say is
//! trust that is not given, and what is revoked or over counts for nothing.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::path::Path;
use std::sync::OnceLock;

use jiff::{SignedDuration, Timestamp};
use portcullis::artifact::envelope::{Envelope, Kind, Signature, pre_authentication_of};
use portcullis::artifact::{Digest, KeyId, Limits, PublicKey, SigningKey};
use portcullis::bundle::{CompiledFor, Platform, PolicyConfig};
use portcullis::decision::{PolicyName, Tenant, TrustClass};
use portcullis::signature::{Evidence, KEYLESS, Provenance, Signer};
use portcullis::trust::{
    Accepted, Candidate, NotSigned, Refusal, RevocationError, RevocationList, Revocations, Revokes,
    RotateError, TrustPolicy, rotate,
};
use proptest::prelude::*;

fn keys() -> &'static [SigningKey; 5] {
    static KEYS: OnceLock<[SigningKey; 5]> = OnceLock::new();
    KEYS.get_or_init(|| {
        [0, 1, 2, 3, 4].map(|number| match number % 2 {
            0 => SigningKey::generate_ed25519().expect("key"),
            _ => SigningKey::generate_p256().expect("key"),
        })
    })
}

const RELEASE: usize = 0;
const SECURITY: usize = 1;
const PLATFORM: usize = 2;
const CI: usize = 3;
/// Not in any trust policy here.
const STRANGER: usize = 4;

fn id(key: usize) -> KeyId {
    keys()[key].public_key().id()
}

fn pem(key: usize) -> String {
    keys()[key].public_key().to_pem().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-21T12:00:00Z")
}

/// The four signers, and rules behind them.
fn text(rules: &str) -> String {
    let signer = |name, key| format!("[signer.{name}]\nkey = \"\"\"\n{}\"\"\"\n\n", pem(key));
    let signers = [("release", RELEASE), ("security", SECURITY), ("platform", PLATFORM), ("ci", CI)];
    let signers: String = signers.map(|(name, key)| signer(name, key)).concat();
    format!("{signers}{rules}")
}

fn parse(text: &str) -> Result<TrustPolicy, String> {
    TrustPolicy::parse(Path::new("trust.toml"), text).map_err(|errors| errors.to_string())
}

fn policy(rules: &str) -> TrustPolicy {
    parse(&text(rules)).unwrap_or_else(|errors| panic!("{errors}"))
}

fn config() -> PolicyConfig {
    let digest = |text: &str| Digest::of(text.as_bytes());
    PolicyConfig {
        policy: PolicyName::new("gate").unwrap(),
        tenant: Tenant::new("acme").unwrap(),
        version: 7,
        world: "portcullis:policy@0.1.0".into(),
        imports: vec!["clock".into()],
        exports: vec!["decide".into()],
        limits: Limits::default(),
        metrics: vec![],
        data: vec![],
        confidential: None,
        source: digest("source"),
        compiled: vec![CompiledFor {
            platform: Platform::LinuxAmd64,
            cwasm: digest("cwasm"),
            wasmtime: "48.0.8".into(),
            engine: digest("engine"),
        }],
        rego: None,
        prepared: None,
    }
}

fn bundle() -> Digest {
    Digest::of(b"bundle index")
}

fn signed_by(signers: &[usize]) -> Evidence {
    Evidence { signers: signers.iter().map(|key| Signer::Key(id(*key))).collect(), ..Evidence::default() }
}

fn provenance(key: usize) -> Provenance {
    Provenance {
        signer: Signer::Key(id(key)),
        builder: "https://ci.example.test/runner".into(),
        repository: Some("git+https://example.test/acme/policies".into()),
        reference: Some("refs/tags/v3".into()),
        commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
    }
}

struct Case<'a> {
    config: PolicyConfig,
    class: &'a str,
    tenant: &'a str,
    revoked: Revocations,
    now: Timestamp,
}

impl Default for Case<'_> {
    fn default() -> Self {
        Self { config: config(), class: "web", tenant: "acme", revoked: Revocations::none(), now: now() }
    }
}

impl Case<'_> {
    fn evaluate(&self, policy: &TrustPolicy, evidence: &Evidence) -> Result<Accepted, Vec<Refusal>> {
        let (tenant, class) = (Tenant::new(self.tenant).unwrap(), TrustClass::new(self.class).unwrap());
        let candidate = Candidate { tenant: &tenant, class: &class, bundle: bundle(), config: &self.config };
        policy.evaluate(&candidate, evidence, &self.revoked, self.now)
    }

    fn refusals(&self, policy: &TrustPolicy, evidence: &Evidence) -> Vec<String> {
        let refusals = self.evaluate(policy, evidence).expect_err("accepted");
        refusals.iter().map(ToString::to_string).collect()
    }
}

fn accepted(policy: &TrustPolicy, evidence: &Evidence) -> Accepted {
    Case::default().evaluate(policy, evidence).unwrap_or_else(|refusals| panic!("{refusals:?}"))
}

fn refusal(policy: &TrustPolicy, evidence: &Evidence) -> String {
    Case::default().refusals(policy, evidence).join("\n")
}

#[test]
fn all_of_needs_each_of_them() {
    let policy = policy("[default]\nall_of = [\"release\", \"security\"]\ncapabilities = [\"clock\"]\n");
    let found = accepted(&policy, &signed_by(&[RELEASE, SECURITY]));
    assert_eq!((found.signers, found.until), (vec!["release".into(), "security".into()], None));
    assert_eq!(
        refusal(&policy, &signed_by(&[RELEASE])),
        "[default] needs signer \"security\", and it did not sign this bundle: sign the bundle with its key"
    );
    let refusals = Case::default().refusals(&policy, &signed_by(&[STRANGER, CI]));
    assert_eq!(refusals.len(), 2, "both are named: {refusals:?}");
    // Twice the same is not two.
    assert_eq!(Case::default().refusals(&policy, &signed_by(&[RELEASE, RELEASE])).len(), 1);
}

#[test]
fn any_of_needs_as_many_as_it_says() {
    let policy = policy(
        "[default]\nany_of = { minimum = 2, signers = [\"release\", \"security\", \"platform\"] }\n\
         capabilities = [\"clock\"]\n",
    );
    for (first, second) in [(RELEASE, SECURITY), (SECURITY, PLATFORM), (PLATFORM, RELEASE)] {
        assert_eq!(accepted(&policy, &signed_by(&[first, second])).signers.len(), 2);
    }
    for evidence in
        [signed_by(&[RELEASE]), signed_by(&[RELEASE, RELEASE]), signed_by(&[RELEASE, STRANGER, CI])]
    {
        let said = refusal(&policy, &evidence);
        assert!(said.contains("needs 2 signers of its any_of, and 1 count"), "{said}");
        assert!(
            said.contains("\"security\": it did not sign") && said.contains("have more of them sign"),
            "{said}"
        );
    }
}

#[test]
fn the_most_specific_rule_holds_alone() {
    let policy = policy(
        "[default]\nall_of = [\"release\"]\ncapabilities = [\"clock\"]\n\
         [class.web]\nall_of = [\"platform\"]\ncapabilities = [\"clock\"]\n\
         [tenant.acme]\nall_of = [\"security\"]\n\
         [tenant.shut]\n",
    );
    let look = |tenant: &'static str, class: &'static str, signers: &[usize]| {
        let mut case = Case { tenant, class, ..Case::default() };
        case.config.tenant = Tenant::new(tenant).unwrap();
        case.evaluate(&policy, &signed_by(signers))
    };
    assert_eq!(look("other", "batch", &[RELEASE]).unwrap().rule, "[default]");
    assert_eq!(look("other", "web", &[PLATFORM]).unwrap().rule, "[class.web]");
    assert!(look("other", "web", &[RELEASE]).is_err(), "the default does not help a class that has its own");
    // A tenant's rule inherits nothing: no capabilities here.
    let refusals = look("acme", "web", &[SECURITY]).unwrap_err();
    assert!(
        matches!(&refusals[..], [Refusal::Capability { rule, .. }] if rule == "[tenant.acme]"),
        "{refusals:?}"
    );
    let refusals = look("shut", "web", &[RELEASE, SECURITY, PLATFORM]).unwrap_err();
    assert!(refusals.iter().any(|refusal| matches!(refusal, Refusal::NobodyTrusted { .. })), "{refusals:?}");
}

#[test]
fn without_a_rule_nobody_is_trusted() {
    for rules in ["", "[class.batch]\nall_of = [\"release\"]\n", "[tenant.other]\nall_of = [\"release\"]\n"] {
        let refusals = Case::default().evaluate(&policy(rules), &signed_by(&[RELEASE])).unwrap_err();
        assert!(matches!(&refusals[..], [Refusal::NoRule { .. }]), "{refusals:?}");
    }
    let empty = parse("").unwrap();
    assert!(Case::default().evaluate(&empty, &signed_by(&[RELEASE])).is_err());
}

#[test]
fn provenance_is_asked_for_in_its_own_words() {
    let policy = policy(
        "[default]\nall_of = [\"release\"]\ncapabilities = [\"clock\"]\n\
         [default.provenance]\nsigners = [\"ci\"]\nbuilder = \"https://ci.example.test/runner\"\n\
         repository = \"https://example.test/acme/*\"\nref = \"refs/tags/v*\"\n",
    );
    let with =
        |provenance: &[Provenance]| Evidence { provenance: provenance.to_vec(), ..signed_by(&[RELEASE]) };
    let found = accepted(&policy, &with(&[provenance(CI)]));
    assert_eq!((found.built_by.as_deref(), found.signers.len()), (Some("ci"), 1));

    assert!(refusal(&policy, &with(&[])).contains("none is attached: `portcullis policy attest`"));
    assert!(
        refusal(&policy, &with(&[provenance(RELEASE)])).contains("none is attached"),
        "not one that counts"
    );
    let changed = |change: fn(&mut Provenance)| {
        let mut changed = provenance(CI);
        change(&mut changed);
        changed
    };
    let wrong = [
        (changed(|p| p.builder = "https://ci.example.test/runner2".into()), "the builder is"),
        (
            changed(|p| p.repository = Some("git+https://example.test/acme-evil/x".into())),
            "the repository is",
        ),
        (changed(|p| p.repository = Some("git+https://example.test/acme/../x".into())), "the repository is"),
        (changed(|p| p.repository = None), "nothing of the repository"),
        (changed(|p| p.reference = Some("refs/heads/main".into())), "expected \"refs/tags/v*\""),
        (changed(|p| p.reference = None), "nothing of the ref"),
    ];
    for (wrong, why) in wrong {
        let said = refusal(&policy, &with(std::slice::from_ref(&wrong)));
        assert!(said.contains(why) && said.contains("build it as the rule says"), "{said}");
        // One that fits is enough, whatever else somebody says.
        accepted(&policy, &with(&[wrong, provenance(CI)]));
    }
    // To say how it was built is not to vouch for it.
    let only_built = Evidence { provenance: vec![provenance(CI)], ..Evidence::default() };
    assert!(refusal(&policy, &only_built).contains("needs signer \"release\""));
}

#[test]
fn a_policy_may_ask_for_no_more_than_the_ceilings() {
    let policy = policy(
        "[default]\nall_of = [\"release\"]\ncapabilities = [\"clock\", \"log\"]\n\
         limits = { memory = \"4MiB\", output = \"64KiB\", deadline = \"1s\", table_elements = 10000, \
                    stack = \"64KiB\", host_calls = 9999, fuel = 1 }\n",
    );
    let mut case = Case::default();
    let limits = Limits { stack: 64 << 10, host_calls: 9999, fuel: Some(1), ..Limits::default() };
    case.config.limits = limits;
    case.evaluate(&policy, &signed_by(&[RELEASE])).unwrap();
    let mut case = Case::default();
    case.config.imports = vec!["clock".into(), "random".into()];
    case.config.limits = Limits {
        memory: (4 << 20) + 1,
        table_elements: 10_001,
        output: 65_537,
        deadline_us: 1_000_001,
        fuel: Some(2),
        ..Limits::default()
    };
    let refusals = case.refusals(&policy, &signed_by(&[RELEASE]));
    assert_eq!(
        refusals,
        [
            "policy imports \"random\", and [default] allows only clock, log: build it without, or allow it in capabilities",
            "policy asks for 4194305 bytes of memory, and [default] allows 4194304: build it with less, or raise limits",
            "policy asks for 10001 elements of tables, and [default] allows 10000: build it with less, or raise limits",
            "policy asks for 65537 bytes of output, and [default] allows 65536: build it with less, or raise limits",
            "policy asks for 1000001 microseconds for a decision, and [default] allows 1000000: build it with less, or \
             raise limits",
            "policy asks for 262144 bytes of stack, and [default] allows 65536: build it with less, or raise limits",
            "policy asks for 10000 host calls, and [default] allows 9999: build it with less, or raise limits",
            "policy asks for 2 instructions, and [default] allows 1: build it with less, or raise limits",
        ]
    );
    let mut case = Case::default();
    case.config.limits = Limits { stack: 64 << 10, host_calls: 9999, ..Limits::default() };
    assert_eq!(
        case.refusals(&policy, &signed_by(&[RELEASE])),
        [
            "policy does not count its instructions, and [default] allows 1: build it with --fuel, or raise limits"
        ]
    );
}

const MINIMAL: &str = "[default]\nall_of = [\"release\"]\ncapabilities = [\"clock\"]\n";

#[test]
fn versions_and_tenants_are_held_to() {
    let policy = policy(&format!("{MINIMAL}[minimum_version.acme]\ngate = 7\n"));
    accepted(&policy, &signed_by(&[RELEASE]));
    let mut case = Case::default();
    case.config.version = 6;
    let said = case.refusals(&policy, &signed_by(&[RELEASE]));
    assert_eq!(said, ["bundle has version 6, the trust policy wants at least 7: deliver a newer one"]);
    let mut case = Case::default();
    case.config.tenant = Tenant::new("other").unwrap();
    let said = case.refusals(&policy, &signed_by(&[RELEASE]));
    assert_eq!(said, ["bundle is for tenant \"other\", expected \"acme\": build it for that tenant"]);
    let (acme, gate) = (Tenant::new("acme").unwrap(), PolicyName::new("gate").unwrap());
    assert_eq!(policy.minimum_version(&acme, &gate), 7);
    assert_eq!(policy.minimum_version(&Tenant::new("x").unwrap(), &gate), 0);
}

#[test]
fn what_is_over_or_yet_to_come_does_not_count_and_until_says_when_it_ends() {
    let retired = |ends: &str| {
        let (new, old) = (pem(STRANGER), pem(RELEASE));
        format!(
            "[signer.release]\nkey = '''\n{new}'''\n[[signer.release.retired]]\nkey = '''\n{old}'''\n\
             not_after = {ends}\n[signer.security]\nkey = '''\n{}'''\nnot_after = 2028-01-01T00:00:00Z\n\
             not_before = 2026-06-01T00:00:00Z\n",
            pem(SECURITY)
        )
    };
    let rules = "[default]\nall_of = [\"release\", \"security\"]\ncapabilities = [\"clock\"]\n";
    let policy = parse(&format!("{}{rules}", retired("2027-01-01T00:00:00Z"))).unwrap();
    let old = accepted(&policy, &signed_by(&[RELEASE, SECURITY]));
    assert_eq!(old.until, Some(at("2027-01-01T00:00:00Z")), "as long as the old key counts");
    let both = accepted(&policy, &signed_by(&[RELEASE, STRANGER, SECURITY]));
    assert_eq!(
        both.until,
        Some(at("2028-01-01T00:00:00Z")),
        "the longest of each signer, the shortest of all"
    );

    let mut case = Case { now: at("2026-12-31T23:59:59Z"), ..Case::default() };
    case.evaluate(&policy, &signed_by(&[RELEASE, SECURITY])).unwrap();
    case.now = at("2027-01-01T00:00:00Z");
    let said = case.refusals(&policy, &signed_by(&[RELEASE, SECURITY]));
    assert_eq!(
        said,
        [
            "[default] needs signer \"release\", and it signed with a key that counted until 2027-01-01T00:00:00Z: sign the \
          bundle with its key"
        ]
    );
    case.evaluate(&policy, &signed_by(&[STRANGER, SECURITY])).unwrap();
    case.now = at("2026-05-31T23:59:59Z");
    let said = case.refusals(&policy, &signed_by(&[RELEASE, SECURITY]));
    assert!(said[0].contains("counts from 2026-06-01T00:00:00Z on"), "{said:?}");
    assert_eq!(policy.next_beginning(case.now), Some(at("2026-06-01T00:00:00Z")));
    assert_eq!(policy.next_beginning(now()), None);

    let policy = parse(&format!("expires = 2026-12-01T00:00:00Z\n{}", text(MINIMAL))).unwrap();
    assert_eq!(accepted(&policy, &signed_by(&[RELEASE])).until, Some(at("2026-12-01T00:00:00Z")));
    let case = Case { now: at("2026-12-01T00:00:00Z"), ..Case::default() };
    let said = case.refusals(&policy, &signed_by(&[RELEASE]));
    assert_eq!(said, ["trust policy expired at 2026-12-01T00:00:00Z: look through it and move \"expires\""]);
}

#[test]
fn any_of_holds_until_too_few_of_them_count() {
    let ends = [("release", RELEASE, 2027), ("security", SECURITY, 2028), ("platform", PLATFORM, 2029)];
    let signers: String = ends
        .map(|(name, key, year)| {
            format!("[signer.{name}]\nkey = '''\n{}'''\nnot_after = {year}-01-01T00:00:00Z\n", pem(key))
        })
        .concat();
    for (minimum, year) in [(1, 2029), (2, 2028), (3, 2027)] {
        let rules = format!(
            "[default]\ncapabilities = [\"clock\"]\n\
             any_of = {{ minimum = {minimum}, signers = [\"release\", \"security\", \"platform\"] }}\n"
        );
        let policy = parse(&format!("{signers}{rules}")).unwrap();
        let found = accepted(&policy, &signed_by(&[RELEASE, SECURITY, PLATFORM]));
        assert_eq!(found.until, Some(at(&format!("{year}-01-01T00:00:00Z"))), "{minimum} of 3");
    }
}

#[test]
fn everything_wrong_is_said_at_once_and_at_its_place() {
    let release = pem(RELEASE);
    let wrong = format!(
        "expires = 2027-01-01\n\
         typo = 1\n\
         [signer.release]\nkey = '''\n{release}'''\n\
         [signer.again]\nkey = '''\n{release}'''\n\
         [signer.neither]\n\
         [signer.both]\nkey = 'x'\nissuer = 'y'\nidentity = 'z'\n\
         [[signer.release.retired]]\nkey = '''\n{}'''\n\
         [default]\nall_of = []\n\
         [class.web]\nall_of = ['nobody']\nany_of = {{ minimum = 0, signers = ['release'] }}\n\
         [tenant.acme]\nall_of = ['release']\nany_of = {{ minimum = 2, signers = ['release'] }}\n\
         [tenant.one]\ncapabilities = ['clock']\n\
         [tenant.two]\nall_of = ['release', 'release']\ncapabilities = ['network']\n\
         [tenant.three]\nall_of = ['release']\nprovenance = {{ signers = ['release'], repository = 'https://example.test/acme*' }}\n\
         [tenant.UPPER]\nall_of = ['release']\nprovenance = {{ signers = ['release'] }}\n\
         [revocation]\nsigners = 'release'\n",
        pem(SECURITY)
    );
    let errors = parse(&wrong).unwrap_err();
    let lines: Vec<&str> = errors.lines().collect();
    // Line of each in the file, found by what is written there.
    let line = |written: &str| wrong.lines().position(|line| line.contains(written)).expect(written) + 1;
    let expected = [
        (line("expires"), "expires: 2027-01-01 is not a point in time"),
        (line("typo"), "file: unknown key \"typo\""),
        (line("[signer.again]") + 1, "is already a key of [signer.release]; [signer.again] needs its own"),
        (
            line("[signer.neither]"),
            "[signer.neither]: expected either \"key\", or \"issuer\" and \"identity\"",
        ),
        (line("[signer.both]"), "[signer.both]: expected either"),
        (line("key = 'x'"), "key: read public key"),
        (line("[[signer.release.retired]]"), "[signer.release.retired]: \"not_after\" is missing"),
        (line("[default]"), "[default]: all_of names nobody"),
        (line("'nobody'"), "all_of: there is no [signer.nobody]"),
        (line("minimum = 0"), "minimum: 0 is out of range"),
        (line("minimum = 2"), "signers: \"release\" is in all_of, and would count twice"),
        (line("minimum = 2"), "minimum: 2 of 1 signers can never be"),
        (line("[tenant.one]"), "[tenant.one]: trusts nobody"),
        (line("'release', 'release'"), "all_of: listed twice"),
        (
            line("'network'"),
            "there is no capability \"network\"; there are: clock, data, log, metric, random",
        ),
        (line("acme*"), "fits what is somebody else's"),
        (line("[tenant.UPPER]"), "name \"UPPER\""),
        (line("[tenant.UPPER]") + 2, "asks for nothing; write builder, repository or ref"),
        (line("signers = 'release'"), "signers: expected a list, found string"),
    ];
    for (line, what) in expected {
        let found =
            lines.iter().any(|said| said.starts_with(&format!("trust.toml:{line}:")) && said.contains(what));
        assert!(found, "line {line}: {what}\n{errors}");
    }
    assert_eq!(lines.len(), expected.len(), "{errors}");

    let errors = parse("[default\nall_of = 1").unwrap_err();
    assert!(errors.starts_with("trust.toml:1:"), "{errors}");
    parse(&"#".repeat(portcullis::trust::TRUST_MAX)).unwrap();
    assert!(parse(&"#".repeat(portcullis::trust::TRUST_MAX + 1)).unwrap_err().contains("at most"));
}

#[test]
fn keys_are_counted_once_wherever_they_stand() {
    let (release, security) = (pem(RELEASE), pem(SECURITY));
    for (other, place) in [
        (format!("[signer.b]\nkey = '''\n{release}'''\n"), "two names"),
        (
            format!(
                "[signer.b]\nkey = '''\n{security}'''\n[[signer.b.retired]]\nkey = '''\n{release}'''\n\
                 not_after = 2027-01-01T00:00:00Z\n"
            ),
            "retired under another name",
        ),
        (
            format!("[[signer.a.retired]]\nkey = '''\n{release}'''\nnot_after = 2027-01-01T00:00:00Z\n"),
            "retired and in use",
        ),
    ] {
        let errors = parse(&format!("[signer.a]\nkey = '''\n{release}'''\n{other}")).unwrap_err();
        assert!(errors.contains("is already a key of [signer.a]"), "{place}: {errors}");
    }
    // The control.
    parse(&format!("[signer.a]\nkey = '''\n{release}'''\n[signer.b]\nkey = '''\n{security}'''\n")).unwrap();
}

/// With the feature, tests/keyless.rs has the rest.
#[test]
fn identities_need_a_root_and_a_program_that_checks_them() {
    let signer = "[signer.ci]\nissuer = 'https://issuer.example.test'\nidentity = 'https://example.test/acme/x@refs/tags/*'\n";
    let said = parse(signer).unwrap_err();
    assert!(said.starts_with("trust.toml:3:12: identity: "), "{said}");
    let why =
        if KEYLESS { "no [keyless] with a trusted_root" } else { "build it with the feature \"keyless\"" };
    assert!(said.contains(why), "{said}");
    let said = parse(&format!("[keyless]\ntrusted_root = '{{}}'\n{signer}")).unwrap_err();
    let why = if KEYLESS { "not a trusted root" } else { "build it with the feature \"keyless\"" };
    assert!(said.starts_with("trust.toml:2:16: trusted_root: ") && said.contains(why), "{said}");
    assert_eq!(said.lines().count(), 1);
}

/// Each byte of a key in the trust file, changed: an error at its place, or another key, which signed nothing.
#[test]
fn every_changed_byte_of_a_trusted_key_is_refused_or_a_key_that_signed_nothing() {
    for key in [RELEASE, SECURITY] {
        let rules = "[default]\nall_of = ['a']\ncapabilities = ['clock']\n";
        let whole = format!("[signer.a]\nkey = \"\"\"\n{}\"\"\"\n{rules}", pem(key));
        accepted(&parse(&whole).unwrap(), &signed_by(&[key]));
        let start = whole.find("\"\"\"").unwrap() + 3;
        let end = whole.rfind("\"\"\"").unwrap();
        let (mut refused, mut other_key) = (0, 0);
        for place in start..end {
            for mask in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                let mut bytes = whole.clone().into_bytes();
                bytes[place] ^= mask;
                // What is not text is refused before it comes here.
                let changed = String::from_utf8(bytes).map_err(|_| "not text".to_owned());
                match changed.and_then(|text| parse(&text)) {
                    Err(_) => refused += 1,
                    Ok(policy) => {
                        assert!(
                            Case::default().evaluate(&policy, &signed_by(&[key])).is_err(),
                            "byte {place}"
                        );
                        other_key += 1;
                    }
                }
            }
        }
        let algorithm = keys()[key].algorithm();
        println!("trusted key, {algorithm:?}: {refused} changes refused, {other_key} are other keys");
        assert_eq!(refused + other_key, 9 * (end - start));
    }
}

/// A list signed by a key: these things, at this version.
fn list(version: u64, things: &[Revokes]) -> RevocationList {
    let mut list = RevocationList::default();
    for thing in things {
        list = list.and(thing.clone(), "leaked", at("2026-11-20T10:00:00Z"));
    }
    RevocationList { version, ..list }
}

fn revoking() -> TrustPolicy {
    policy(&format!("{MINIMAL}[revocation]\nsigners = ['security', 'platform']\nminimum_version = 3\n"))
}

fn in_force(version: u64, things: &[Revokes]) -> Revocations {
    let signed = list(version, things).sign(&keys()[SECURITY]).unwrap();
    Revocations::none().verify(&signed, &revoking(), now()).unwrap()
}

#[test]
fn what_is_revoked_counts_no_more() {
    let policy = revoking();
    let look = |things: &[Revokes], evidence: &Evidence| {
        Case { revoked: in_force(3, things), ..Case::default() }.evaluate(&policy, evidence)
    };
    look(&[], &signed_by(&[RELEASE])).expect("the control");
    look(&[Revokes::Key(id(STRANGER)), Revokes::Digest(Digest::of(b"other"))], &signed_by(&[RELEASE]))
        .unwrap();
    let refusals = look(&[Revokes::Key(id(RELEASE))], &signed_by(&[RELEASE])).unwrap_err();
    let [Refusal::Missing { why: NotSigned::Revoked { reason, .. }, .. }] = &refusals[..] else {
        panic!("{refusals:?}")
    };
    assert_eq!(reason, "leaked");
    for (what, digest) in
        [("bundle", bundle()), ("source", config().source), ("machine code", config().compiled[0].cwasm)]
    {
        let refusals = look(&[Revokes::Digest(digest)], &signed_by(&[RELEASE])).unwrap_err();
        let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
        let said = refusal.to_string();
        assert_eq!(
            said,
            format!(
                "{what} {digest} was revoked on 2026-11-20T10:00:00Z: \"leaked\"; deliver a version without it"
            )
        );
    }
    // Where the trust policy wants a list, none is not enough.
    let refusals = Case::default().refusals(&policy, &signed_by(&[RELEASE]));
    assert!(refusals[0].contains("version 0 (0: there is none)"), "{refusals:?}");
}

#[test]
fn a_revoked_builder_builds_nothing() {
    let policy = policy(
        "[default]\nall_of = ['release']\ncapabilities = ['clock']\n\
         provenance = { signers = ['ci'], ref = 'refs/tags/*' }\n[revocation]\nsigners = ['security']\n",
    );
    let evidence = Evidence { provenance: vec![provenance(CI)], ..signed_by(&[RELEASE]) };
    accepted(&policy, &evidence);
    let case = Case { revoked: in_force(3, &[Revokes::Key(id(CI))]), ..Case::default() };
    let said = case.refusals(&policy, &evidence);
    assert!(said[0].contains("what signer \"ci\" says of it does not count"), "{said:?}");
}

#[test]
fn only_who_may_revokes_and_only_forward() {
    let policy = revoking();
    let none = Revocations::none();
    let things = [Revokes::Key(id(RELEASE))];
    let sign = |version, key: usize| list(version, &things).sign(&keys()[key]).unwrap();
    let verify = |before: &Revocations, bytes: &[u8]| before.verify(bytes, &policy, now());

    for may in [SECURITY, PLATFORM] {
        let found = verify(&none, &sign(3, may)).unwrap();
        assert_eq!((found.version(), found.len()), (3, 1));
        assert!(found.key(&id(RELEASE)).is_some() && found.key(&id(CI)).is_none());
    }
    for may_not in [RELEASE, CI, STRANGER] {
        let error = verify(&none, &sign(3, may_not)).unwrap_err();
        assert!(matches!(error, RevocationError::NotSigned { signatures: 1, .. }), "{error}");
        assert!(error.to_string().contains("security or platform"), "{error}");
    }
    let nobody = self::policy(MINIMAL).clone();
    assert!(matches!(none.verify(&sign(3, SECURITY), &nobody, now()), Err(RevocationError::NobodyMay)));

    // Versions only go up, from the least that the trust policy knows.
    assert!(matches!(
        verify(&none, &sign(2, SECURITY)),
        Err(RevocationError::Version { found: 2, least: 3 })
    ));
    let five = verify(&none, &sign(5, SECURITY)).unwrap();
    assert!(matches!(
        verify(&five, &sign(4, SECURITY)),
        Err(RevocationError::Version { found: 4, least: 5 })
    ));
    assert!(matches!(verify(&five, &sign(5, PLATFORM)), Err(RevocationError::SameVersion { version: 5 })));
    assert_eq!(verify(&five, &sign(5, SECURITY)).unwrap(), five, "the same again");
    assert_eq!(verify(&five, &sign(6, SECURITY)).unwrap().version(), 6);

    // What is in force stays, though its signer's time is over; what the state kept is the same as what was verified.
    let over = parse(&format!(
        "[signer.security]\nkey = '''\n{}'''\nnot_after = 2026-01-01T00:00:00Z\n[revocation]\nsigners = ['security']\n",
        pem(SECURITY)
    ))
    .unwrap();
    assert!(none.verify(&sign(5, SECURITY), &over, now()).is_err());
    assert_eq!(five.verify(&sign(5, SECURITY), &over, now()).unwrap(), five);
    assert_eq!(Revocations::kept(&sign(5, SECURITY)).unwrap(), five);

    // A key that is revoked revokes nobody, not even by a newer list.
    let without = in_force(5, &[Revokes::Key(id(SECURITY))]);
    assert!(matches!(verify(&without, &sign(6, SECURITY)), Err(RevocationError::NotSigned { .. })));
    assert_eq!(verify(&without, &sign(6, PLATFORM)).unwrap().version(), 6);
}

/// Whoever had a key for a day could otherwise leave nobody a next list, not even to revoke that key.
#[test]
fn a_list_too_far_ahead_is_refused_so_that_there_can_always_be_a_next_one() {
    const AHEAD: u64 = 1 << 32;
    let five = in_force(5, &[]);
    let sign = |version| list(version, &[]).sign(&keys()[SECURITY]).unwrap();
    let verify = |before: &Revocations, version| before.verify(&sign(version), &revoking(), now());
    for far in [5 + AHEAD + 1, u64::MAX - 1, u64::MAX] {
        let error = verify(&five, far).unwrap_err();
        assert!(matches!(error, RevocationError::Ahead { found, .. } if found == far), "{error}");
        assert!(error.to_string().contains(&format!("{} is the most that counts now", 5 + AHEAD)), "{error}");
    }
    // A jump is no harm: times in seconds will do, and so will the next after the largest.
    assert_eq!(verify(&five, 1_800_000_000).unwrap().version(), 1_800_000_000);
    let most = verify(&five, 5 + AHEAD).expect("the control");
    assert_eq!(verify(&most, 6 + AHEAD).unwrap().version(), 6 + AHEAD);
    // The first one counts from what the trust policy asks for.
    assert!(verify(&Revocations::none(), 3 + AHEAD).is_ok());
    assert!(verify(&Revocations::none(), 4 + AHEAD).is_err());
    let later = policy(&format!(
        "{MINIMAL}[revocation]\nsigners = ['security']\nminimum_version = {}\n",
        1_u64 << 40
    ));
    assert!(Revocations::none().verify(&sign((1 << 40) + 7), &later, now()).is_ok());
}

#[test]
fn a_list_has_one_form() {
    let kind = Kind { payload_type: "application/vnd.portcullis.revocations.v1+json", longest: 1 << 20 };
    let signed = |kind: Kind, payload: &str, keys_used: &[usize]| {
        let sign = |key: &usize| Signature {
            key: id(*key).to_string(),
            bytes: keys()[*key].sign(&pre_authentication_of(kind.payload_type, payload.as_bytes())),
        };
        let signatures = keys_used.iter().map(sign).collect();
        Envelope { payload: payload.into(), signatures }.write(kind).unwrap()
    };
    let verify = |bytes: &[u8]| Revocations::none().verify(bytes, &revoking(), now());
    let entry = |what: &str, reason: &str| {
        format!(r#"{{"what":{what},"reason":"{reason}","date":"2026-11-20T10:00:00Z"}}"#)
    };
    let whole = |entries: &[String]| format!(r#"{{"version":3,"revoked":[{}]}}"#, entries.join(","));
    let key = format!(r#"{{"key":"{}"}}"#, id(RELEASE));
    let digest = format!(r#"{{"digest":"{}"}}"#, bundle());
    let good = whole(&[entry(&key, "x"), entry(&digest, "y")]);
    verify(&signed(kind, &good, &[SECURITY])).expect("the control");
    verify(&signed(kind, &good, &[STRANGER, RELEASE, SECURITY])).expect("one who may is enough");

    let statement = Kind { payload_type: "application/vnd.portcullis.statement.v0+json", ..kind };
    let error = verify(&signed(statement, &good, &[SECURITY])).unwrap_err().to_string();
    assert!(error.contains("has payload type"), "{error}");
    let error = verify(&signed(kind, &good, &[])).unwrap_err().to_string();
    assert!(error.contains("signed by no key that may revoke now"), "{error}");
    let error = verify(&signed(kind, &good, &[STRANGER; 9])).unwrap_err().to_string();
    assert!(error.contains("9 signatures"), "{error}");
    for (payload, why) in [
        (whole(&[entry(&digest, "y"), entry(&key, "x")]), "not in order"),
        (whole(&[entry(&key, "x"), entry(&key, "x")]), "there twice"),
        (whole(&[entry(&key, "")]), "empty"),
        (whole(&[entry(&key, &"x".repeat(201))]), "longer"),
        (whole(&[entry(&key, "a\\nb")]), "one line"),
        (whole(&[entry(r#"{"key":"abc"}"#, "x")]), "64 lower-case hex"),
        (whole(&[entry(r#"{"digest":"abc"}"#, "x")]), "hex digits"),
        (whole(&[entry(r#"{"other":"abc"}"#, "x")]), "unknown variant"),
        (good.replace(",\"date\"", ",\"more\":1,\"date\""), "unknown field"),
        (good.replacen('{', "{ ", 1), "exact form"),
        (good.replace("10:00:00Z", "10:00:00.0Z"), "exact form"),
        (good.replace("10:00:00Z", "12:00:00+02:00"), "exact form"),
        (format!("{good}{good}"), "trailing"),
        (good.replace("\"version\":3", "\"version\":-3"), "invalid"),
    ] {
        let error = verify(&signed(kind, &payload, &[SECURITY])).expect_err(&payload).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn every_changed_byte_of_a_revocation_list_is_refused() {
    let things = [Revokes::Key(id(RELEASE)), Revokes::Digest(bundle())];
    for key in [SECURITY, PLATFORM] {
        let signed = list(3, &things).sign(&keys()[key]).unwrap();
        let verify = |bytes: &[u8]| Revocations::none().verify(bytes, &revoking(), now());
        verify(&signed).expect("the control");
        let mut refused = 0;
        for place in 0..signed.len() {
            for mask in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                let mut changed = signed.clone();
                changed[place] ^= mask;
                verify(&changed).expect_err(&format!("byte {place}"));
                refused += 1;
            }
        }
        let algorithm = keys()[key].algorithm();
        println!(
            "revocation list by {algorithm:?}: {refused} changes of {} bytes, all refused",
            signed.len()
        );
        assert_eq!(refused, 9 * signed.len());
    }
}

#[test]
fn the_next_list_keeps_the_first_word_on_each() {
    let first =
        RevocationList::default().and(Revokes::Key(id(RELEASE)), "leaked", at("2026-01-01T00:00:00Z"));
    let second = first.and(Revokes::Digest(bundle()), "crashes", at("2026-02-01T00:00:00Z"));
    let third = second.and(Revokes::Key(id(RELEASE)), "again", at("2026-03-01T00:00:00Z"));
    assert_eq!((first.version, second.version, third.version), (1, 2, 3));
    assert_eq!(third.revoked, second.revoked);
    assert_eq!(
        third.revoked.iter().find(|entry| entry.what == Revokes::Key(id(RELEASE))).unwrap().reason,
        "leaked"
    );
    let signed = third.sign(&keys()[SECURITY]).unwrap();
    assert_eq!(RevocationList::peek(&signed).unwrap(), third);
    assert!(second.and(Revokes::Key(id(CI)), "two\nlines", now()).sign(&keys()[SECURITY]).is_err());
}

#[test]
fn a_rotated_key_overlaps_the_old_one_and_the_rest_of_the_text_stays() {
    let before = format!(
        "# Who may vouch.\n{}",
        text("# Rules.\n[default]   # everybody\nall_of = [\"release\"]\ncapabilities = [\"clock\"]\n")
    );
    let before =
        before.replacen("[signer.release]\n", "[signer.release]  # the release team\n# kept in a safe\n", 1);
    let (new, end) = (keys()[STRANGER].public_key(), at("2027-01-01T00:00:00Z"));
    let path = Path::new("trust.toml");
    let rotated = rotate(path, &before, "release", &new, end).unwrap();
    assert_eq!((rotated.old, rotated.new, rotated.old_until), (id(RELEASE), id(STRANGER), end));
    for kept in [
        "# Who may vouch.\n",
        "  # the release team\n# kept in a safe\nkey",
        "# Rules.\n[default]   # everybody\n",
    ] {
        assert!(rotated.text.contains(kept), "{}", rotated.text);
    }
    // Every line of before is there still, in its order.
    let mut lines = rotated.text.lines();
    for line in before.lines().filter(|line| !pem(RELEASE).contains(line)) {
        assert!(lines.any(|other| other == line), "{line}\n{}", rotated.text);
    }
    let policy = parse(&rotated.text).unwrap();
    assert_eq!(accepted(&policy, &signed_by(&[RELEASE])).until, Some(end));
    assert_eq!(accepted(&policy, &signed_by(&[STRANGER])).until, None);
    let case = Case { now: end, ..Case::default() };
    assert!(case.evaluate(&policy, &signed_by(&[RELEASE])).is_err());
    case.evaluate(&policy, &signed_by(&[STRANGER])).unwrap();

    // Once more, without a newline at the end; the key between gets its own end.
    let newest = SigningKey::generate_ed25519().unwrap().public_key();
    let text = rotated.text.trim_end();
    let again = rotate(path, text, "release", &newest, at("2027-06-01T00:00:00Z")).unwrap();
    let policy = parse(&again.text).unwrap();
    assert_eq!(accepted(&policy, &signed_by(&[RELEASE])).until, Some(end));
    assert_eq!(accepted(&policy, &signed_by(&[STRANGER])).until, Some(at("2027-06-01T00:00:00Z")));
}

#[test]
fn an_end_that_was_set_is_not_moved_back_by_rotation() {
    let (new, path) = (keys()[STRANGER].public_key(), Path::new("trust.toml"));
    let window = "not_before = 2026-01-01T00:00:00Z\nnot_after = 2026-12-01T00:00:00Z # soon\n";
    let before = format!("[signer.release]\nkey = '''\n{}'''\n{window}{MINIMAL}", pem(RELEASE));
    let rotated = rotate(path, &before, "release", &new, at("2027-01-01T00:00:00Z")).unwrap();
    assert_eq!(rotated.old_until, at("2026-12-01T00:00:00Z"));
    let policy = parse(&rotated.text).unwrap();
    assert_eq!(accepted(&policy, &signed_by(&[STRANGER])).until, None, "the end was the old key's");
    assert_eq!(accepted(&policy, &signed_by(&[RELEASE])).until, Some(at("2026-12-01T00:00:00Z")));
    let case = Case { now: at("2025-12-01T00:00:00Z"), ..Case::default() };
    assert!(case.evaluate(&policy, &signed_by(&[RELEASE])).is_err(), "its beginning too");
}

#[test]
fn what_cannot_be_rotated_is_said() {
    let (new, end, path) =
        (keys()[STRANGER].public_key(), at("2027-01-01T00:00:00Z"), Path::new("trust.toml"));
    let whole = text(MINIMAL);
    rotate(path, &whole, "release", &new, end).expect("the control");
    let refused =
        |text: &str, signer: &str, key: &PublicKey| rotate(path, text, signer, key, end).unwrap_err();
    assert!(matches!(refused("[x", "release", &new), RotateError::Policy(_)));
    assert!(matches!(refused(&whole, "nobody", &new), RotateError::NoSigner(_)));
    for known in [RELEASE, SECURITY] {
        let known = keys()[known].public_key();
        let error = refused(&whole, "release", &known);
        assert!(matches!(error, RotateError::KnownKey { .. }), "{error}");
    }
    let one_line = pem(RELEASE).replace('\n', "\\n");
    for other_form in [
        format!("[signer]\nrelease = {{ key = \"{one_line}\" }}\n{MINIMAL}"),
        format!(
            "[signer]\nrelease.key = \"{one_line}\"\nsecurity.key = '''\n{}'''\n{MINIMAL}",
            pem(SECURITY)
        ),
    ] {
        parse(&other_form).expect("it is a trust policy");
        let error = refused(&other_form, "release", &new);
        assert!(matches!(error, RotateError::Form(_)), "{error}");
    }
    let retired_only = format!(
        "[[signer.release.retired]]\nkey = '''\n{}'''\nnot_after = 2027-01-01T00:00:00Z\n",
        pem(RELEASE)
    );
    assert!(parse(&retired_only).unwrap_err().contains("expected either"));
}

/// Any rule over the four signers, with ends for their keys.
fn any_policy() -> impl Strategy<Value = String> {
    let names = || prop::sample::subsequence(vec!["release", "security", "platform", "ci"], 0..=4);
    let end = || prop::option::of(1..4000i64);
    (names(), 1..4usize, names(), any::<bool>(), [end(), end(), end(), end()], end()).prop_map(
        |(all_of, minimum, built_by, with_any, ends, expires)| {
            let time = |days: i64| now() + SignedDuration::from_hours(24 * (days - 1000));
            let mut text = expires.map_or_else(String::new, |days| format!("expires = {}\n", time(days)));
            let keys = [("release", RELEASE), ("security", SECURITY), ("platform", PLATFORM), ("ci", CI)];
            for ((name, key), end) in keys.into_iter().zip(ends) {
                text += &format!("[signer.{name}]\nkey = '''\n{}'''\n", pem(key));
                text += &end.map_or_else(String::new, |days| format!("not_after = {}\n", time(days)));
            }
            text += "[default]\n";
            let rest: Vec<&str> =
                keys.map(|(name, _)| name).into_iter().filter(|name| !all_of.contains(name)).collect();
            if !all_of.is_empty() {
                text += &format!("all_of = {all_of:?}\n");
            }
            if with_any && !rest.is_empty() {
                let minimum = minimum.min(rest.len());
                text += &format!("any_of = {{ minimum = {minimum}, signers = {rest:?} }}\n");
            }
            if text.ends_with("[default]\n") {
                return text;
            }
            text += "capabilities = ['clock']\n";
            if !built_by.is_empty() {
                text += &format!("provenance = {{ signers = {built_by:?}, ref = 'refs/tags/v*' }}\n");
            }
            text
        },
    )
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    let built = prop::collection::vec((0..5usize, any::<bool>()), 0..4);
    (prop::collection::vec(0..5usize, 0..6), built).prop_map(|(signers, built)| {
        let provenance = built.into_iter().map(|(key, good)| {
            let reference = if good { "refs/tags/v1" } else { "refs/heads/main" };
            Provenance { reference: Some(reference.into()), ..provenance(key) }
        });
        Evidence { provenance: provenance.collect(), ..signed_by(&signers) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was enough stays enough, for at least as long; so what is too little does not become enough by taking away.
    #[test]
    fn a_further_signature_never_turns_a_yes_into_a_no(
        text in any_policy(), less in any_evidence(), more in any_evidence(), revoke in prop::option::of(0..5usize),
    ) {
        let policy = parse(&text).unwrap();
        let both = Evidence {
            signers: [less.signers.clone(), more.signers].concat(),
            provenance: [less.provenance.clone(), more.provenance].concat(),
            disregarded: vec![],
        };
        let mut case = Case::default();
        if let Some(key) = revoke {
            case.revoked = in_force(3, &[Revokes::Key(id(key))]);
        }
        let (few, many) = (case.evaluate(&policy, &less), case.evaluate(&policy, &both));
        if let Ok(few) = few {
            let many = many.expect("more is no less");
            prop_assert!(few.signers.iter().all(|name| many.signers.contains(name)));
            prop_assert!(many.until.is_none() || few.until.is_some_and(|until| many.until >= Some(until)));
            // Until then it holds, and from then on it does not.
            if let Some(until) = few.until {
                case.now = until - SignedDuration::from_nanos(1);
                prop_assert!(case.evaluate(&policy, &less).is_ok());
                case.now = until;
                prop_assert!(case.evaluate(&policy, &less).is_err());
            }
        }
    }

    /// No name counts that is not in the rule and did not sign, and an empty rule accepts nothing.
    #[test]
    fn who_is_named_did_sign(text in any_policy(), evidence in any_evidence()) {
        let policy = parse(&text).unwrap();
        if let Ok(accepted) = Case::default().evaluate(&policy, &evidence) {
            prop_assert!(!accepted.signers.is_empty());
            let signed: Vec<_> = evidence.signers.iter().filter_map(|signer| policy.name_of(signer)).collect();
            prop_assert!(accepted.signers.iter().all(|name| signed.contains(&name.as_str())));
            prop_assert!(text.contains("all_of") || text.contains("any_of"));
        }
        prop_assert!(Case::default().evaluate(&policy, &Evidence::default()).is_err());
    }

    /// Pieces of a trust policy in any order: never a panic, and every error has its place.
    #[test]
    fn no_text_makes_it_panic(
        pieces in prop::collection::vec((0..12usize, ".{0,12}"), 0..12),
    ) {
        let known = [
            "[signer.a]\n", "key = \"\"\"\n", "\"\"\"\n", "[default]\n", "all_of = ['a']\n", "any_of = { minimum = 1",
            ", signers = ['a'] }\n", "[[signer.a.retired]]\n", "not_after = 2027-01-01T00:00:00Z\n", "[tenant.",
            "limits = { memory = '", "provenance = { ",
        ];
        let text: String = pieces.iter().map(|(piece, more)| format!("{}{more}", known[*piece])).collect();
        if let Err(errors) = parse(&text) {
            prop_assert!(errors.lines().all(|line| line.starts_with("trust.toml:")), "{errors}");
        }
        let new = keys()[STRANGER].public_key();
        let _ = rotate(Path::new("trust.toml"), &text, "a", &new, now());
    }
}
