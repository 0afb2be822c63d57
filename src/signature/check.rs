//! Each attachment by itself: does a trusted key's signature hold, and is it about this bundle?

use std::collections::{BTreeMap, BTreeSet};

use super::cosign::{self, SimpleSigningError};
use super::intoto::{self, PAYLOAD_TYPE as IN_TOTO, StatementError};
use super::provenance::PredicateJson;
use super::sigstore::{self, Bundle, ClaimedSigner, Content, SigstoreError};
use super::{Evidence, KeylessError, KeylessRoot, Provenance, Signer};
use crate::artifact::{Digest, KeyId, PublicKey};

/// Most attachments that are looked at. Whoever fills a store with more gets the bundle refused for want of signatures.
pub const ATTACHED_MAX: usize = 64;

/// Longest reason why one says nothing, characters.
const WHY_MAX: usize = 400;

/// The bundle that signatures have to be about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Of the bundle index.
    pub index: Digest,
    /// The bundle index itself.
    pub bytes: &'a [u8],
}

impl<'a> Subject<'a> {
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { index: Digest::of(bytes), bytes }
    }
}

/// One blob that is attached to a bundle, as somebody attached it.
#[derive(Debug, Clone, Copy)]
pub struct Material<'a> {
    pub media_type: &'a str,
    pub bytes: &'a [u8],
    /// Of the layer that names it.
    pub annotations: &'a BTreeMap<String, String>,
}

/// What signatures are checked against. Whose word counts for what is [`crate::trust`]'s to say.
#[derive(Debug, Clone, Default)]
pub struct Anchors {
    pub keys: Vec<PublicKey>,
    /// What identities are taken from, if any are.
    pub keyless: Option<KeylessRoot>,
}

impl Anchors {
    /// Of the keys in any order, of what identities are taken from, and of this program, since another one may know better
    /// what a good signature is: what was found with anchors of one digest is not looked for again with others of the same.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut parts: Vec<String> = self.keys.iter().map(|key| key.id().to_string()).collect();
        parts.sort();
        parts.dedup();
        parts.extend(self.keyless.iter().map(|root| root.digest().to_string()));
        parts.push(env!("CARGO_PKG_VERSION").to_owned());
        Digest::of(parts.join("\n").as_bytes())
    }
}

/// Why an attachment says nothing.
#[derive(Debug, thiserror::Error)]
enum Disregarded {
    #[error("is no signature that is known here")]
    Unknown,
    #[error("{0}")]
    Sigstore(#[from] SigstoreError),
    #[error("statement {0}")]
    Statement(#[from] StatementError),
    #[error("{0}")]
    SimpleSigning(#[from] SimpleSigningError),
    #[error(
        "is signed by a key that is not trusted here (it says {0:?}); add that key to the trust policy or sign with a trusted one"
    )]
    UnknownKey(String),
    #[error("its signature matches no trusted key: it was changed after signing, or is by somebody else")]
    NoKey,
    #[error("its signature by key {} does not match: it was changed after signing", .0.short())]
    BadSignature(KeyId),
    #[error("has payload type {0:?}, expected {IN_TOTO:?}")]
    PayloadType(String),
    #[error("makes a statement of type {0:?}, which no rule asks for")]
    PredicateType(String),
    #[error("says nothing: it has no predicate")]
    NoPredicate,
    #[error("is about {found}, and this bundle is {expected}")]
    Digest { found: Digest, expected: Digest },
    #[error("{0}")]
    Keyless(#[from] KeylessError),
}

/// What a good signature says of the bundle.
enum Said {
    Vouched(Signer),
    Built(Provenance),
}

/// Which of the trusted keys signed exactly this bundle, and what they say of how it was built. What does not hold is
/// left out and named; it never hides what does.
#[must_use]
pub fn check(subject: &Subject<'_>, attached: &[Material<'_>], anchors: &Anchors) -> Evidence {
    let (mut signers, mut provenance, mut disregarded) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (number, material) in (1..).zip(attached.iter().take(ATTACHED_MAX)) {
        match look(subject, material, anchors) {
            Ok(Said::Vouched(signer)) => {
                signers.insert(signer);
            }
            Ok(Said::Built(built)) if provenance.contains(&built) => {}
            Ok(Said::Built(built)) => provenance.push(built),
            Err(why) => {
                let shown: String = material.media_type.chars().take(80).collect();
                disregarded.push(shortened(&format!("attachment {number} ({shown:?}) {why}")));
            }
        }
    }
    if attached.len() > ATTACHED_MAX {
        let all = attached.len();
        disregarded.push(format!("of {all} attachments only the first {ATTACHED_MAX} were looked at"));
    }
    Evidence { signers: signers.into_iter().collect(), provenance, disregarded }
}

/// It may quote what a stranger wrote, and is written down.
fn shortened(why: &str) -> String {
    why.chars().take(WHY_MAX).collect()
}

fn look(subject: &Subject<'_>, material: &Material<'_>, anchors: &Anchors) -> Result<Said, Disregarded> {
    match material.media_type {
        sigstore::MEDIA_TYPE => sigstore_bundle(subject, material.bytes, anchors),
        cosign::MEDIA_TYPE => simple_signing(subject, material, &anchors.keys),
        _ => Err(Disregarded::Unknown),
    }
}

fn sigstore_bundle(subject: &Subject<'_>, bytes: &[u8], anchors: &Anchors) -> Result<Said, Disregarded> {
    let bundle = Bundle::from_bytes(bytes)?;
    let ClaimedSigner::Key { hint } = &bundle.signer else {
        return keyless(subject, bytes, &bundle.content, anchors.keyless.as_ref());
    };
    match &bundle.content {
        Content::Message { digest, signature } => {
            if *digest != subject.index {
                return Err(Disregarded::Digest { found: *digest, expected: subject.index });
            }
            let key = who_signed(&[hint.as_str()], subject.bytes, signature, &anchors.keys)?;
            Ok(Said::Vouched(Signer::Key(key)))
        }
        Content::Statement(signed) => {
            if signed.payload_type != IN_TOTO {
                return Err(Disregarded::PayloadType(signed.payload_type.chars().take(80).collect()));
            }
            // Signature first: nothing of the payload is parsed that no trusted key stands for.
            let names = [hint.as_str(), signed.key.as_str()];
            let key = who_signed(&names, &signed.message(), &signed.signature, &anchors.keys)?;
            statement(subject, &signed.payload, Signer::Key(key))
        }
    }
}

fn keyless(
    subject: &Subject<'_>,
    bytes: &[u8],
    content: &Content,
    root: Option<&KeylessRoot>,
) -> Result<Said, Disregarded> {
    let signer = root.ok_or(KeylessError::NoRoot)?.who_signed(bytes, subject.bytes)?;
    match content {
        Content::Message { digest, .. } if *digest != subject.index => {
            Err(Disregarded::Digest { found: *digest, expected: subject.index })
        }
        Content::Message { .. } => Ok(Said::Vouched(signer)),
        Content::Statement(signed) if signed.payload_type != IN_TOTO => {
            Err(Disregarded::PayloadType(signed.payload_type.chars().take(80).collect()))
        }
        Content::Statement(signed) => statement(subject, &signed.payload, signer),
    }
}

/// What a payload says whose signature is good.
fn statement(subject: &Subject<'_>, payload: &[u8], signer: Signer) -> Result<Said, Disregarded> {
    let predicate_type = intoto::predicate_type(payload, &subject.index)?;
    match predicate_type.as_str() {
        intoto::SIGN => Ok(Said::Vouched(signer)),
        intoto::PROVENANCE => {
            let predicate = intoto::predicate::<PredicateJson>(payload, &subject.index)?;
            Ok(Said::Built(predicate.ok_or(Disregarded::NoPredicate)?.read(signer)))
        }
        other => Err(Disregarded::PredicateType(other.chars().take(80).collect())),
    }
}

fn simple_signing(
    subject: &Subject<'_>,
    material: &Material<'_>,
    keys: &[PublicKey],
) -> Result<Said, Disregarded> {
    if material.bytes.len() > cosign::PAYLOAD_MAX {
        return Err(SimpleSigningError::TooLong(material.bytes.len()).into());
    }
    let signature = cosign::signature(material.annotations)?;
    let key = who_signed(&[], material.bytes, &signature, keys)?;
    cosign::is_about(material.bytes, &subject.index)?;
    Ok(Said::Vouched(Signer::Key(key)))
}

/// The trusted key whose signature it is. A name that is given must be that key's; without one, every key is tried.
fn who_signed(
    names: &[&str],
    message: &[u8],
    signature: &[u8],
    keys: &[PublicKey],
) -> Result<KeyId, Disregarded> {
    let names: Vec<&str> = names.iter().copied().filter(|name| !name.is_empty()).collect();
    let is_called =
        |key: &PublicKey, name: &str| name == key.id().as_str() || name == sigstore::hint(&key.id());
    let mut candidates = keys.iter().filter(|key| names.iter().all(|name| is_called(key, name))).peekable();
    match (names.first(), candidates.peek()) {
        (Some(name), None) => Err(Disregarded::UnknownKey(name.chars().take(80).collect())),
        (Some(_), Some(key)) => match key.verify(message, signature) {
            Ok(()) => Ok(key.id()),
            Err(_) => Err(Disregarded::BadSignature(key.id())),
        },
        (None, _) => candidates
            .find(|key| key.verify(message, signature).is_ok())
            .map(PublicKey::id)
            .ok_or(Disregarded::NoKey),
    }
}
