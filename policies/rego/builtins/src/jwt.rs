//! JSON Web Tokens: signatures are checked by the algorithm that the function or the header names, never by another.

use std::collections::BTreeMap;

use base64ct::{Base64UrlUnpadded, Encoding as _};

use crate::arguments::Arguments;
use crate::crypto::sha_mac;
use crate::encoding::{base64url, hex, text};
use crate::keys::{self, Algorithm, Key};
use crate::text::{parse_json, write_json};
use crate::value::Value;
use crate::{Answer, Builtin, Capability, Failure, Host, pure, with};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("io.jwt.decode", 1, decode),
    with(Capability::Clock, "io.jwt.decode_verify", 2, decode_verify),
    pure("io.jwt.verify_rs256", 2, |_, arguments| verify(arguments, Algorithm::Pkcs1(256))),
    pure("io.jwt.verify_rs384", 2, |_, arguments| verify(arguments, Algorithm::Pkcs1(384))),
    pure("io.jwt.verify_rs512", 2, |_, arguments| verify(arguments, Algorithm::Pkcs1(512))),
    pure("io.jwt.verify_ps256", 2, |_, arguments| verify(arguments, Algorithm::Pss(256))),
    pure("io.jwt.verify_ps384", 2, |_, arguments| verify(arguments, Algorithm::Pss(384))),
    pure("io.jwt.verify_ps512", 2, |_, arguments| verify(arguments, Algorithm::Pss(512))),
    pure("io.jwt.verify_es256", 2, |_, arguments| verify(arguments, Algorithm::Ecdsa(256))),
    pure("io.jwt.verify_es384", 2, |_, arguments| verify(arguments, Algorithm::Ecdsa(384))),
    pure("io.jwt.verify_es512", 2, |_, arguments| verify(arguments, Algorithm::Ecdsa(512))),
    pure("io.jwt.verify_eddsa", 2, |_, arguments| verify(arguments, Algorithm::EdDsa)),
    pure("io.jwt.verify_hs256", 2, |_, arguments| verify_secret(arguments, 256)),
    pure("io.jwt.verify_hs384", 2, |_, arguments| verify_secret(arguments, 384)),
    pure("io.jwt.verify_hs512", 2, |_, arguments| verify_secret(arguments, 512)),
    pure("io.jwt.encode_sign", 3, encode_sign),
    pure("io.jwt.encode_sign_raw", 3, encode_sign_raw),
];

/// Tokens within tokens.
const NESTING_MAX: usize = 8;

struct Token<'a> {
    signed: &'a str,
    header: Value,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    fn parse(token: &'a str) -> Result<Self, Failure> {
        let (signed, header, payload, signature) = sections(token)?;
        let header = object(&text(base64url(header)?))?;
        Ok(Self { signed, header, payload, signature: base64url(signature)? })
    }

    fn word(&self, name: &str) -> Option<&str> {
        self.header.get(name)?.as_str()
    }

    fn payload(&self) -> Result<String, Failure> {
        base64url(self.payload).map(text)
    }

    fn is_nested(&self) -> bool {
        self.word("cty").is_some_and(|kind| kind.eq_ignore_ascii_case("JWT"))
    }

    /// Whether one of these keys signed it: the one that the header names, else any that may be used for its algorithm.
    fn is_signed(&self, keys: &[Key], algorithm: Algorithm) -> bool {
        let verifies = |key: &Key| key.verifies(algorithm, self.signed.as_bytes(), &self.signature);
        if let Some(id) = self.word("kid").filter(|id| !id.is_empty())
            && let Some(key) = keys.iter().find(|key| key.id.as_deref() == Some(id))
        {
            return verifies(key);
        }
        let fits = |key: &&Key| match key.algorithm.as_deref() {
            None | Some("") => true,
            name => name == self.word("alg"),
        };
        keys.iter().filter(fits).any(verifies)
    }
}

/// What is signed, and of what a token consists: header, payload, signature.
fn sections(token: &str) -> Result<(&str, &str, &str, &str), Failure> {
    let malformed = || Failure::new("encoded JWT must have 3 sections");
    let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    let (header, payload) = signed.split_once('.').ok_or_else(malformed)?;
    if payload.contains('.') { Err(malformed()) } else { Ok((signed, header, payload, signature)) }
}

fn object(json: &str) -> Result<Value, Failure> {
    match parse_json(json) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err(Failure::new("decoded JSON type was not an Object")),
        Err(why) => Err(Failure::new(format!("invalid JSON: {why}"))),
    }
}

fn decode(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let mut text = arguments.string(0)?.to_owned();
    for _ in 0..NESTING_MAX {
        let token = Token::parse(&text)?;
        let payload = token.payload()?;
        if token.word("cty") != Some("JWT") {
            let signature = hex(&token.signature);
            return Ok(Value::Array(vec![token.header, object(&payload)?, signature.into()]));
        }
        text = payload.trim_matches(['"', '\'']).to_owned();
    }
    Err(Failure::new("tokens nested too deep"))
}

fn verify(arguments: Arguments<'_>, algorithm: Algorithm) -> Answer {
    let token = Token::parse(arguments.string(0)?)?;
    let keys = keys::read(arguments.string(1)?)?;
    Ok(token.is_signed(&keys, algorithm).into())
}

fn verify_secret(arguments: Arguments<'_>, bits: u32) -> Answer {
    // Of the header nothing is needed, so it may be anything.
    let (signed, _, _, signature) = sections(arguments.string(0)?)?;
    let key = Key::secret(arguments.string(1)?.as_bytes());
    Ok(key.verifies(Algorithm::Hmac(bits), signed.as_bytes(), &base64url(signature)?).into())
}

/// What a token has to be to be believed.
struct Constraints<'a> {
    keys: Vec<Key>,
    /// Keys are secrets, so only algorithms with a secret may be used.
    secret: bool,
    algorithm: Option<&'a str>,
    issuer: Option<&'a str>,
    audience: Option<&'a str>,
    /// Nanoseconds since 1970.
    time: f64,
}

impl<'a> Constraints<'a> {
    fn of(object: &'a BTreeMap<Value, Value>, now: u64) -> Result<Self, Failure> {
        #[expect(clippy::cast_precision_loss, reason = "compared with seconds of a token")]
        let mut constraints = Self {
            keys: Vec::new(),
            secret: false,
            algorithm: None,
            issuer: None,
            audience: None,
            time: now as f64,
        };
        let mut kinds = 0;
        for (name, value) in object {
            let word =
                || value.as_str().ok_or_else(|| Failure::new(format!("{name} constraint: must be a string")));
            match name.as_str() {
                Some("cert") => (constraints.keys, kinds) = (keys::read(word()?)?, kinds + 1),
                Some("secret") => {
                    (constraints.keys, kinds) = (vec![Key::secret(word()?.as_bytes())], kinds + 1);
                    constraints.secret = true;
                }
                Some("alg") => constraints.algorithm = Some(word()?),
                Some("iss") => constraints.issuer = Some(word()?),
                Some("aud") => constraints.audience = Some(word()?),
                Some("time") => match value {
                    Value::Number(number) if number.as_float() >= 0.0 => constraints.time = number.as_float(),
                    _ => return Err(Failure::new("token time constraint: must be a number, not negative")),
                },
                _ => return Err(Failure::new(format!("unknown token validation constraint: {name}"))),
            }
        }
        match kinds {
            0 => Err(Failure::new("no key constraint")),
            1 => Ok(constraints),
            _ => Err(Failure::new("duplicate key constraints")),
        }
    }

    fn accepts(&self, token: &Token<'_>) -> bool {
        let Some(name) = token.word("alg") else { return false };
        // Extensions that have to be understood are not.
        let (Some(algorithm), None) = (Algorithm::named(name), token.header.get("crit")) else {
            return false;
        };
        self.algorithm.is_none_or(|wanted| wanted == name)
            && self.secret == matches!(algorithm, Algorithm::Hmac(_))
            && token.is_signed(&self.keys, algorithm)
    }

    fn accepts_claims(&self, payload: &Value) -> Result<bool, Failure> {
        let issuer = payload.get("iss").and_then(Value::as_str);
        if self.issuer.is_some_and(|wanted| issuer != Some(wanted)) {
            return Ok(false);
        }
        let heard = match (self.audience, payload.get("aud")) {
            (None, None) => true,
            (Some(wanted), Some(Value::String(audience))) => audience == wanted,
            (Some(wanted), Some(Value::Array(list))) => list.iter().any(|one| one.as_str() == Some(wanted)),
            // A token for somebody must not be taken by whoever does not ask for whom it is.
            _ => false,
        };
        let seconds = |name: &str| match payload.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number.as_float() * 1e9)),
            Some(_) => Err(Failure::new(format!("{name} value must be a number"))),
        };
        let expired = seconds("exp")?.is_some_and(|end| self.time >= end);
        let early = seconds("nbf")?.is_some_and(|start| self.time < start);
        Ok(heard && !expired && !early)
    }
}

fn decode_verify(host: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let constraints = Constraints::of(arguments.object(1)?, host.now_ns())?;
    let unverified = || Ok(Value::Array(vec![false.into(), Value::object([]), Value::object([])]));
    let mut text = arguments.string(0)?.to_owned();
    for _ in 0..NESTING_MAX {
        let token = Token::parse(&text)?;
        if !constraints.accepts(&token) {
            return unverified();
        }
        let payload = token.payload()?;
        if !token.is_nested() {
            let payload = object(&payload)?;
            if !constraints.accepts_claims(&payload)? {
                return unverified();
            }
            return Ok(Value::Array(vec![true.into(), token.header, payload]));
        }
        text = payload;
    }
    Err(Failure::new("tokens nested too deep"))
}

fn encode_sign(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    arguments.object(0)?;
    sign(arguments.get(0)?, &write_json(arguments.get(0)?), &write_json(arguments.get(1)?), arguments.get(2)?)
}

fn encode_sign_raw(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let json = |index| {
        let text = arguments.string(index)?;
        parse_json(text).map_err(|why| Failure::new(format!("invalid JSON: {why}")))
    };
    sign(&json(0)?, arguments.string(0)?, arguments.string(1)?, &json(2)?)
}

/// Signs with a secret. A policy that held a private key could say whatever its owner says, so there is nothing else.
fn sign(header: &Value, header_text: &str, payload: &str, key: &Value) -> Answer {
    let name = header.get("alg").and_then(Value::as_str).unwrap_or_default();
    let Some(Algorithm::Hmac(bits)) = Algorithm::named(name) else {
        return Err(Failure::new(format!("sign with {name:?}: only HS256, HS384 and HS512 are supported")));
    };
    let secret = keys::web_secret(key).ok_or_else(|| Failure::new("the key is no secret"))?;
    let encode = |text: &str| Base64UrlUnpadded::encode_string(text.as_bytes());
    let signed = format!("{}.{}", encode(header_text), encode(payload));
    let code = sha_mac(bits, &secret, signed.as_bytes()).ok_or_else(|| Failure::new("no such code"))?;
    Ok(format!("{signed}.{}", Base64UrlUnpadded::encode_string(&code)).into())
}
