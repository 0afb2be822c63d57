//! `policies/jwt-gate/fixtures/tokens.json`: tokens, good and bad, and how each was made.

use ed25519_dalek::pkcs8::DecodePrivateKey;
use p256::ecdsa::signature::Signer;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::folder;

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Token {
    name: String,
    note: String,
    /// A key in `fixtures/`, `der:<key>`, `hmac:<key>` (the public half as a secret) or `none`.
    signed_by: String,
    header: String,
    claims: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<After>,
    token: String,
}

/// What is replaced once the token is signed.
#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct After {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claims: Option<String>,
    /// In hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// Both kinds of signature are deterministic, so every token can be made again.
#[test]
fn every_token_is_what_the_fixture_keys_sign() {
    let tokens = read();
    let minted: Vec<_> = tokens.iter().map(|token| Token { token: mint(token), ..token.clone() }).collect();
    if std::env::var_os("BLESS").is_some() {
        let json = serde_json::to_string_pretty(&minted).unwrap();
        std::fs::write(folder().join("jwt-gate/fixtures/tokens.json"), json + "\n").unwrap();
        return;
    }
    for (token, minted) in tokens.iter().zip(minted) {
        assert_eq!(token.token, minted.token, "{}: BLESS=1 cargo test --test policies writes it", token.name);
    }
}

fn read() -> Vec<Token> {
    serde_json::from_slice(&std::fs::read(folder().join("jwt-gate/fixtures/tokens.json")).unwrap()).unwrap()
}

fn mint(token: &Token) -> String {
    let signed = format!("{}.{}", base64url(token.header.as_bytes()), base64url(token.claims.as_bytes()));
    let after = token.after.as_ref();
    let header = after.and_then(|after| after.header.as_ref()).unwrap_or(&token.header);
    let claims = after.and_then(|after| after.claims.as_ref()).unwrap_or(&token.claims);
    let signature = match after.and_then(|after| after.signature.as_ref()) {
        Some(signature) => hex::decode(signature).unwrap(),
        None => sign(&token.signed_by, signed.as_bytes()),
    };
    format!("{}.{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()), base64url(&signature))
}

fn sign(with: &str, message: &[u8]) -> Vec<u8> {
    let pem =
        |key: &str| std::fs::read_to_string(folder().join(format!("jwt-gate/fixtures/{key}.pem"))).unwrap();
    let p256 = |key: &str| p256::ecdsa::SigningKey::from_pkcs8_pem(&pem(key)).unwrap();
    let es256 = |key: &str| -> p256::ecdsa::Signature { p256(key).sign(message) };
    match with.split_once(':') {
        None if with == "none" => Vec::new(),
        None if with.starts_with("ed25519") => {
            ed25519_dalek::SigningKey::from_pkcs8_pem(&pem(with)).unwrap().sign(message).to_vec()
        }
        None => es256(with).to_bytes().to_vec(),
        Some(("der", key)) => es256(key).to_der().as_bytes().to_vec(),
        Some(("hmac", key)) => {
            let public = p256(key).verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
            hmac_sha256(public.as_bytes(), message)
        }
        Some(_) => panic!("sign with {with:?}: not understood"),
    }
}

/// RFC 2104.
fn hmac_sha256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let secret = if secret.len() > 64 { Sha256::digest(secret).to_vec() } else { secret.to_vec() };
    let block = |pad: u8| -> Vec<u8> { (0..64).map(|at| secret.get(at).unwrap_or(&0) ^ pad).collect() };
    let inner = Sha256::new().chain_update(block(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block(0x5c)).chain_update(inner).finalize().to_vec()
}

fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let group = (0..3).fold(0, |group, at| group << 8 | usize::from(*chunk.get(at).unwrap_or(&0)));
            (0..=chunk.len()).map(move |at| char::from(LETTERS[group >> (18 - 6 * at) & 63]))
        })
        .collect()
}

#[test]
fn the_hmac_is_that_of_rfc_4231() {
    let mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
    assert_eq!(hex::encode(mac), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}
