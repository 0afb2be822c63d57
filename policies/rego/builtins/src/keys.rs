//! Public keys and shared secrets, from PEM or JSON Web Keys.

use ed25519_dalek::Verifier as _;
use p256::pkcs8::der::asn1::ObjectIdentifier;
use p256::pkcs8::der::{AnyRef, Decode, Document, Encode, Header, SliceReader, Tag, TagNumber};
use p256::pkcs8::{DecodePublicKey, SubjectPublicKeyInfoRef};
use rsa::{BoxedUint, Pkcs1v15Sign, Pss, RsaPublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512};

use crate::Failure;
use crate::crypto::{same, sha_mac};
use crate::encoding::base64url;
use crate::text::parse_json;
use crate::value::Value;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Hmac(u32),
    Pkcs1(u32),
    Pss(u32),
    Ecdsa(u32),
    EdDsa,
}

impl Algorithm {
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name == "EdDSA" {
            return Some(Self::EdDsa);
        }
        let (family, bits) = name.split_at_checked(2)?;
        let bits = match bits {
            "256" => 256,
            "384" => 384,
            "512" => 512,
            _ => return None,
        };
        match family {
            "HS" => Some(Self::Hmac(bits)),
            "RS" => Some(Self::Pkcs1(bits)),
            "PS" => Some(Self::Pss(bits)),
            "ES" => Some(Self::Ecdsa(bits)),
            _ => None,
        }
    }
}

enum Material {
    Rsa(Box<RsaPublicKey>),
    P256(Box<p256::ecdsa::VerifyingKey>),
    P384(Box<p384::ecdsa::VerifyingKey>),
    P521(Box<p521::ecdsa::VerifyingKey>),
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
    Secret(Vec<u8>),
}

pub(crate) struct Key {
    pub(crate) id: Option<String>,
    pub(crate) algorithm: Option<String>,
    material: Material,
}

impl Key {
    pub(crate) fn secret(secret: &[u8]) -> Self {
        Self { id: None, algorithm: None, material: Material::Secret(secret.to_vec()) }
    }

    /// True if `signature` over `signed` is this key's, by this algorithm and no other.
    pub(crate) fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm) {
            (Material::Secret(secret), Algorithm::Hmac(bits)) => {
                sha_mac(bits, secret, signed).is_some_and(|code| same(&code, signature))
            }
            (Material::Rsa(key), Algorithm::Pkcs1(bits)) => {
                let scheme = match bits {
                    256 => Pkcs1v15Sign::new::<Sha256>(),
                    384 => Pkcs1v15Sign::new::<Sha384>(),
                    _ => Pkcs1v15Sign::new::<Sha512>(),
                };
                key.verify(scheme, &digest(bits, signed), signature).is_ok()
            }
            (Material::Rsa(key), Algorithm::Pss(256)) => {
                key.verify(pss::<Sha256>(), &digest(256, signed), signature).is_ok()
            }
            (Material::Rsa(key), Algorithm::Pss(384)) => {
                key.verify(pss::<Sha384>(), &digest(384, signed), signature).is_ok()
            }
            (Material::Rsa(key), Algorithm::Pss(512)) => {
                key.verify(pss::<Sha512>(), &digest(512, signed), signature).is_ok()
            }
            (Material::P256(key), Algorithm::Ecdsa(256)) => {
                p256::ecdsa::Signature::from_slice(signature).is_ok_and(|s| key.verify(signed, &s).is_ok())
            }
            (Material::P384(key), Algorithm::Ecdsa(384)) => {
                p384::ecdsa::Signature::from_slice(signature).is_ok_and(|s| key.verify(signed, &s).is_ok())
            }
            (Material::P521(key), Algorithm::Ecdsa(512)) => {
                p521::ecdsa::Signature::from_slice(signature).is_ok_and(|s| key.verify(signed, &s).is_ok())
            }
            (Material::Ed25519(key), Algorithm::EdDsa) => {
                ed25519_dalek::Signature::from_slice(signature).is_ok_and(|s| key.verify(signed, &s).is_ok())
            }
            _ => false,
        }
    }
}

/// The salt is as long as its signer made it.
fn pss<D: Digest>() -> Pss<D> {
    let mut scheme = Pss::<D>::new();
    scheme.salt_len = None;
    scheme
}

fn digest(bits: u32, signed: &[u8]) -> Vec<u8> {
    match bits {
        256 => Sha256::digest(signed).to_vec(),
        384 => Sha384::digest(signed).to_vec(),
        _ => Sha512::digest(signed).to_vec(),
    }
}

/// Every key in a certificate, a public key in PEM, a JSON Web Key or a set of those.
pub(crate) fn read(text: &str) -> Result<Vec<Key>, Failure> {
    if text.trim_start().starts_with("-----BEGIN") {
        let wrong = |what: &str| Failure::new(format!("failed to parse a PEM {what}"));
        let (label, document) = Document::from_pem(text.trim()).map_err(|_| wrong("block"))?;
        let material = match label {
            "CERTIFICATE" => certificate(document.as_bytes()).ok_or_else(|| wrong("certificate"))?,
            "PUBLIC KEY" => subject_key(document.as_bytes()).ok_or_else(|| wrong("public key"))?,
            _ => return Err(Failure::new("failed to extract a Key from the PEM certificate")),
        };
        return Ok(vec![Key { id: None, algorithm: None, material }]);
    }
    let json =
        parse_json(text).map_err(|why| Failure::new(format!("failed to parse a JWK key (set): {why}")))?;
    let one = |value: &Value| {
        let word = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let material = web_key(value).ok_or_else(|| Failure::new("failed to parse a JWK key (set)"))?;
        Ok(Key { id: word("kid"), algorithm: word("alg"), material })
    };
    match json.get("keys") {
        Some(Value::Array(keys)) => {
            let keys: Vec<Key> = keys.iter().map(one).collect::<Result<_, _>>()?;
            let known =
                |key: &Key| key.algorithm.as_deref().is_none_or(|name| Algorithm::named(name).is_some());
            Ok(keys.into_iter().filter(known).collect())
        }
        _ => Ok(vec![one(&json)?]),
    }
}

/// The subject's key of an X.509 certificate. Nothing else of it is looked at, and its signature is not checked: the
/// policy trusts it by naming it.
fn certificate(der: &[u8]) -> Option<Material> {
    let certificate = AnyRef::from_der(der).ok()?;
    let mut reader = SliceReader::new(certificate.value()).ok()?;
    let tbs = AnyRef::decode(&mut reader).ok()?;
    let mut fields = SliceReader::new(tbs.value()).ok()?;
    // An optional version, then serial number, algorithm, issuer, validity, subject.
    let version = Tag::ContextSpecific { constructed: true, number: TagNumber(0) };
    if Header::peek(&mut fields).ok()?.tag() == version {
        AnyRef::decode(&mut fields).ok()?;
    }
    for _ in 0..5 {
        AnyRef::decode(&mut fields).ok()?;
    }
    subject_key(&AnyRef::decode(&mut fields).ok()?.to_der().ok()?)
}

fn subject_key(der: &[u8]) -> Option<Material> {
    let info = SubjectPublicKeyInfoRef::from_der(der).ok()?;
    let curve = || info.algorithm.parameters?.decode_as::<ObjectIdentifier>().ok();
    let bytes = info.subject_public_key.as_bytes()?;
    match info.algorithm.oid {
        RSA => Some(Material::Rsa(Box::new(RsaPublicKey::from_public_key_der(der).ok()?))),
        EC if curve() == Some(P256) => p256_key(bytes),
        EC if curve() == Some(P384) => p384_key(bytes),
        EC if curve() == Some(P521) => p521_key(bytes),
        ED25519 => ed25519_key(bytes),
        _ => None,
    }
}

fn p256_key(point: &[u8]) -> Option<Material> {
    Some(Material::P256(Box::new(p256::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?)))
}

fn p384_key(point: &[u8]) -> Option<Material> {
    Some(Material::P384(Box::new(p384::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?)))
}

fn p521_key(point: &[u8]) -> Option<Material> {
    Some(Material::P521(Box::new(p521::ecdsa::VerifyingKey::from_sec1_bytes(point).ok()?)))
}

fn ed25519_key(bytes: &[u8]) -> Option<Material> {
    let key = ed25519_dalek::VerifyingKey::from_bytes(bytes.try_into().ok()?).ok()?;
    Some(Material::Ed25519(Box::new(key)))
}

/// One JSON Web Key.
fn web_key(value: &Value) -> Option<Material> {
    let word = |name: &str| value.get(name)?.as_str();
    let bytes = |name: &str| base64url(word(name)?).ok();
    let point = || {
        let (x, y) = (bytes("x")?, bytes("y")?);
        Some([&[4], x.as_slice(), y.as_slice()].concat())
    };
    match (word("kty")?, word("crv").unwrap_or_default()) {
        ("RSA", _) => {
            let (n, e) = (
                BoxedUint::from_be_slice_vartime(&bytes("n")?),
                BoxedUint::from_be_slice_vartime(&bytes("e")?),
            );
            Some(Material::Rsa(Box::new(RsaPublicKey::new(n, e).ok()?)))
        }
        ("EC", "P-256") => p256_key(&point()?),
        ("EC", "P-384") => p384_key(&point()?),
        ("EC", "P-521") => p521_key(&point()?),
        ("OKP", "Ed25519") => ed25519_key(&bytes("x")?),
        ("oct", _) => Some(Material::Secret(bytes("k")?)),
        _ => None,
    }
}

/// The secret of a JSON Web Key of that kind.
pub(crate) fn web_secret(value: &Value) -> Option<Vec<u8>> {
    match web_key(value)? {
        Material::Secret(secret) => Some(secret),
        _ => None,
    }
}
