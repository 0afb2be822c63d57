//! Layers that nobody reads who lacks the key: encrypted where they are stored and shipped, opened by the registry alone, into
//! sealed memory.
//!
//! ```text
//!  0  16  "portcullis-crypt"
//! 16   4  version: 1
//! 20  32  salt: HMAC(key, what it is, digest of the plain bytes), so that the same input gives the same bytes
//! 52      parts of 64 KiB, each with its 16-byte tag; the last one is shorter, or not
//! ```
//!
//! Each file has a key of its own, HMAC(key, salt), and each part a nonce of its own: its number, and whether it is the last. So
//! parts cannot be left out, doubled, cut off or put into another order. What the file is (kind, tenant, name, version, layer) goes into
//! every tag: a layer that was moved somewhere else does not open there.

use std::fmt;
use std::io::{self, Read};

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::PolicyConfig;
use crate::artifact::{Digest, SealError, SealedBytes};

/// In front of the key in its file.
const LABEL: &str = "portcullis-secret-v1 ";
/// Most keys in one file: the one in use and those before it.
const KEYS_MAX: usize = 16;
/// Longest file of keys, bytes.
pub const KEYS_FILE_MAX: usize = 4096;

const MAGIC: &[u8; 16] = b"portcullis-crypt";
const VERSION: u32 = 1;
const HEADER: usize = 52;
const PART: usize = 64 << 10;
const TAG: usize = 16;
/// A secret of 32 bytes.
#[derive(Clone)]
pub struct SecretKey(Zeroizing<[u8; 32]>);

/// What a key is called: the first 16 hexadecimal digits of a MAC that it makes. Says nothing of the key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretId(String);

/// The keys in a file, one a line: the first is the one in use, the others open what was encrypted before.
#[derive(Debug, Clone, Default)]
pub struct SecretKeys(Vec<SecretKey>);

/// A layer of a bundle, for what is encrypted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerOf<'a> {
    /// The table of a data snapshot, or the source of a policy.
    Source(&'a PolicyConfig),
    Code(&'a PolicyConfig, super::Platform),
}

/// Why an encrypted layer is not opened, or a file of keys is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfidentialError {
    #[error("it is confidential and encrypted with key {needed}, and {}; name the file of that key in [registry] secret", known_list(.known))]
    NoKey { needed: SecretId, known: Vec<SecretId> },
    #[error("encrypted layer does not begin as one")]
    Magic,
    #[error("encrypted layer has version {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("encrypted layer is cut off: {0} bytes are no whole number of parts")]
    CutOff(usize),
    #[error(
        "part {part} of the encrypted layer is not what was encrypted for this tenant, name and version: it was changed, cut off or moved"
    )]
    Changed { part: u32 },
    #[error("{0}")]
    Seal(#[source] SealError),
    #[error("encrypt: {0} bytes are more than can be")]
    TooLong(usize),
    #[error("make a secret: {0}")]
    Random(String),
    #[error(
        "file of secrets: line {line} is not \"{LABEL}\" and 64 hexadecimal digits; make one with `portcullis data keygen`"
    )]
    Key { line: usize },
    #[error("file of secrets has {0} keys, expected 1 to {KEYS_MAX}")]
    Keys(usize),
    #[error("id of a secret is not 16 hexadecimal digits")]
    Id,
}

impl SecretKey {
    /// A new one.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Self, ConfidentialError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut()).map_err(|error| ConfidentialError::Random(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// As it is in its file, with the end of the line.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let hex = Zeroizing::new(hex::encode(*self.0));
        Zeroizing::new(format!("{LABEL}{}\n", *hex))
    }

    #[must_use]
    pub fn id(&self) -> SecretId {
        let mac = self.mac(&[b"portcullis key id v1"]);
        SecretId(hex::encode(mac.get(..8).unwrap_or_default()))
    }

    /// In place of a digest that a guess could be compared with.
    #[must_use]
    pub fn blinded(&self, digest: &Digest) -> Digest {
        Digest::from_bytes(*self.mac(&[b"portcullis blind digest v1", digest.as_bytes()]))
    }

    fn mac(&self, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        // A key of any length is one.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_ref()) else {
            return Zeroizing::new([0; 32]);
        };
        for part in parts {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            mac.update(part);
        }
        Zeroizing::new(mac.finalize().into_bytes().into())
    }

    fn cipher(&self, salt: &[u8]) -> ChaCha20Poly1305 {
        let key = self.mac(&[b"portcullis file key v1", salt]);
        ChaCha20Poly1305::new(&Key::from(*key))
    }
}

impl SecretKeys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// When a line is no key, or there is none.
    pub fn parse(text: &str) -> Result<Self, ConfidentialError> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let wrong = ConfidentialError::Key { line: number.saturating_add(1) };
            let digits = line.strip_prefix(LABEL).ok_or(wrong)?;
            let mut bytes = Zeroizing::new([0; 32]);
            let lower = !digits.bytes().any(|digit| digit.is_ascii_uppercase());
            if !lower || hex::decode_to_slice(digits, bytes.as_mut()).is_err() {
                return Err(ConfidentialError::Key { line: number.saturating_add(1) });
            }
            keys.push(SecretKey(bytes));
        }
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(ConfidentialError::Keys(keys.len()));
        }
        Ok(Self(keys))
    }

    /// The one in use.
    #[must_use]
    pub fn first(&self) -> Option<&SecretKey> {
        self.0.first()
    }

    /// The one of this name.
    ///
    /// # Errors
    /// When it is not there; says which are.
    pub fn named(&self, id: &SecretId) -> Result<&SecretKey, ConfidentialError> {
        self.0.iter().find(|key| key.id() == *id).ok_or_else(|| ConfidentialError::NoKey {
            needed: id.clone(),
            known: self.0.iter().map(SecretKey::id).collect(),
        })
    }
}

impl<'a> LayerOf<'a> {
    /// Of whose bundle it is.
    #[must_use]
    pub fn config(&self) -> &'a PolicyConfig {
        match self {
            Self::Source(config) | Self::Code(config, _) => config,
        }
    }

    /// What goes into every tag. Each text has its length in front, so that no two say the same.
    fn said(&self) -> Vec<u8> {
        let (config, layer) = match self {
            Self::Source(config) => (config, "source".to_owned()),
            Self::Code(config, platform) => (config, platform.to_string()),
        };
        let mut said = Vec::new();
        let version = config.version.to_string();
        let texts = [
            "portcullis layer v1",
            config.kind().name(),
            config.tenant.as_str(),
            config.policy.as_str(),
            &version,
            &layer,
        ];
        for text in texts {
            said.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            said.extend_from_slice(text.as_bytes());
        }
        said
    }
}

/// Encrypts a layer. The same bytes of the same layer give the same result.
///
/// # Errors
/// When there are more bytes than can be numbered.
pub fn encrypt(key: &SecretKey, layer: LayerOf<'_>, plain: &[u8]) -> Result<Vec<u8>, ConfidentialError> {
    let said = layer.said();
    let salt = key.mac(&[b"portcullis salt v1", &said, Digest::of(plain).as_bytes()]);
    let cipher = key.cipher(salt.as_ref());
    let count = plain.len().div_ceil(PART).max(1);
    let longer = HEADER.saturating_add(count.saturating_mul(TAG));
    let mut out = Vec::with_capacity(plain.len().saturating_add(longer));
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(salt.as_ref());
    for number in 0..count {
        let too_long = ConfidentialError::TooLong(plain.len());
        let Ok(number) = u32::try_from(number) else { return Err(too_long) };
        let start = (number as usize).saturating_mul(PART);
        let end = start.saturating_add(PART).min(plain.len());
        let mut part = plain.get(start..end).unwrap_or_default().to_vec();
        let nonce = nonce(number, end == plain.len());
        let tag = cipher.encrypt_inout_detached(&nonce, &said, InOutBuf::from(part.as_mut_slice()));
        out.extend_from_slice(&part);
        out.extend_from_slice(&tag.map_err(|_| too_long)?);
        part.zeroize();
    }
    Ok(out)
}

/// Opens an encrypted layer into sealed memory. What was hashed and what was opened are one and the same memory file.
///
/// # Errors
/// When there is no key for it, or any of it is not what was encrypted.
pub fn decrypt(
    keys: &SecretKeys,
    id: &SecretId,
    layer: LayerOf<'_>,
    sealed: &SealedBytes,
) -> Result<SealedBytes, ConfidentialError> {
    let key = keys.named(id)?;
    let mut reader = sealed.reader();
    let mut header = [0; HEADER];
    reader.read_exact(&mut header).map_err(|_| ConfidentialError::Magic)?;
    if header.get(..16) != Some(MAGIC.as_slice()) {
        return Err(ConfidentialError::Magic);
    }
    let version = header.get(16..20).and_then(|four| Some(u32::from_le_bytes(four.try_into().ok()?)));
    if version != Some(VERSION) {
        return Err(ConfidentialError::Version(version.unwrap_or(0)));
    }
    let left = sealed.len().saturating_sub(HEADER);
    if left < TAG || (1..TAG).contains(&(left % (PART + TAG))) {
        return Err(ConfidentialError::CutOff(left));
    }
    let cipher = key.cipher(header.get(20..).unwrap_or_default());
    let mut opener = Opener {
        reader,
        left,
        cipher,
        said: layer.said(),
        number: 0,
        open: Zeroizing::new(Vec::with_capacity(PART + TAG)),
        given: 0,
        changed: None,
    };
    let opened = SealedBytes::read(&mut opener, left);
    match (opened, opener.changed) {
        (_, Some(part)) => Err(ConfidentialError::Changed { part }),
        (Ok(opened), None) => Ok(opened),
        (Err(error), None) => Err(ConfidentialError::Seal(error)),
    }
}

/// Opens one part after the other, and gives out none that was not whole.
struct Opener<R> {
    reader: R,
    /// Bytes that were not read yet.
    left: usize,
    cipher: ChaCha20Poly1305,
    said: Vec<u8>,
    number: u32,
    open: Zeroizing<Vec<u8>>,
    given: usize,
    /// The part that did not open.
    changed: Option<u32>,
}

impl<R: Read> Opener<R> {
    fn next(&mut self) -> io::Result<()> {
        let len = self.left.min(PART + TAG);
        self.left = self.left.saturating_sub(len);
        self.open.clear();
        self.open.resize(len, 0);
        self.reader.read_exact(&mut self.open)?;
        let nonce = nonce(self.number, self.left == 0);
        let body = len.saturating_sub(TAG);
        let (text, tag) = self.open.split_at_mut_checked(body).ok_or(io::ErrorKind::InvalidData)?;
        let tag = Tag::try_from(&*tag).map_err(|_| io::ErrorKind::InvalidData)?;
        let opened = self.cipher.decrypt_inout_detached(&nonce, &self.said, InOutBuf::from(text), &tag);
        if opened.is_err() {
            self.changed = Some(self.number);
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.open.truncate(body);
        self.given = 0;
        self.number = self.number.checked_add(1).ok_or(io::ErrorKind::InvalidData)?;
        Ok(())
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.open.len() && self.left > 0 {
            self.next()?;
        }
        let rest = self.open.get(self.given..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.given = self.given.saturating_add(count);
        Ok(count)
    }
}

/// A part's number, and whether it is the last.
fn nonce(number: u32, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    let [a, b, c, d] = number.to_be_bytes();
    if let Some(end) = nonce.get_mut(7..) {
        end.copy_from_slice(&[a, b, c, d, u8::from(last)]);
    }
    Nonce::from(nonce)
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.id())
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SecretId {
    type Error = ConfidentialError;

    fn try_from(text: String) -> Result<Self, ConfidentialError> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(digit) { Ok(Self(text)) } else { Err(ConfidentialError::Id) }
    }
}

impl From<SecretId> for String {
    fn from(id: SecretId) -> Self {
        id.0
    }
}

fn known_list(known: &[SecretId]) -> String {
    match known {
        [] => "there is no key here".to_owned(),
        known => {
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            format!("here is only {}", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{DataDraft, Platform};
    use crate::decision::{PolicyName, Tenant};

    fn keys() -> SecretKeys {
        SecretKeys(vec![SecretKey::generate().unwrap(), SecretKey(Zeroizing::new([7; 32]))])
    }

    fn config(tenant: &str, name: &str, version: u64) -> PolicyConfig {
        let draft = DataDraft {
            name: PolicyName::new(name).unwrap(),
            tenant: Tenant::new(tenant).unwrap(),
            version,
            table: b"x".to_vec(),
        };
        draft.assemble(None).unwrap().bundle.config
    }

    /// Who guesses what is confidential cannot see in the manifest whether it is that.
    #[test]
    fn a_manifest_has_no_digest_of_what_is_confidential() {
        use crate::bundle::{Draft, PreparedConfig, RegoConfig, RegoResult};

        let config = config("acme", "gate", 3);
        let digests = ["module", "data", "component", "document"].map(|text| Digest::of(text.as_bytes()));
        let [module, data, component, document] = digests;
        let rego = RegoConfig {
            abi: "1.3".into(),
            entrypoint: "a/allow".into(),
            result: RegoResult::Any,
            builtins: vec![],
            module,
            data: Some(data),
            data_address: 0,
            heap_base: 0,
        };
        let draft = Draft {
            policy: config.policy.clone(),
            tenant: config.tenant.clone(),
            version: 3,
            world: crate::engine::WORLD.into(),
            imports: vec![],
            exports: vec!["decide".into()],
            limits: crate::artifact::Limits::default(),
            metrics: vec![],
            data: vec![],
            source: b"source".to_vec(),
            compiled: vec![],
            rego: Some(rego),
            prepared: Some(PreparedConfig { component, data: Some(document), taken: true }),
        };
        let said = |key: Option<&SecretKey>| {
            let draft = draft.clone();
            let assembled =
                key.map_or_else(|| draft.clone().assemble(), |key| draft.clone().assemble_confidential(key));
            serde_json::to_string(&assembled.unwrap().bundle.config).unwrap()
        };
        let keys = keys();
        let confidential = said(keys.first());
        for digest in digests {
            assert!(said(None).contains(&digest.to_string()), "control: {digest}");
            assert!(!confidential.contains(&digest.to_string()), "{digest}");
        }
        assert_eq!(confidential, said(keys.first()), "the same again");
    }

    #[test]
    fn what_was_encrypted_opens_again_whatever_its_length() {
        let (keys, config) = (keys(), config("acme", "prices", 3));
        for len in [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 17] {
            let plain: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
            for key in &keys.0 {
                let encrypted = encrypt(key, LayerOf::Source(&config), &plain).unwrap();
                assert_eq!(encrypted.len(), HEADER + len + TAG * len.div_ceil(PART).max(1));
                assert_eq!(
                    encrypted,
                    encrypt(key, LayerOf::Source(&config), &plain).unwrap(),
                    "the same again"
                );
                let sealed = SealedBytes::of(&encrypted).unwrap();
                let opened = decrypt(&keys, &key.id(), LayerOf::Source(&config), &sealed).unwrap();
                assert_eq!(opened.to_vec().unwrap(), plain);
                if len > 8 {
                    assert!(!encrypted.windows(8).any(|window| plain.windows(8).next() == Some(window)));
                }
            }
        }
    }

    #[test]
    fn every_flipped_byte_cut_and_exchange_is_refused() {
        let (keys, config) = (keys(), config("acme", "prices", 3));
        let key = &keys.0[1];
        let open = |bytes: &[u8]| {
            decrypt(&keys, &key.id(), LayerOf::Source(&config), &SealedBytes::of(bytes).unwrap())
        };
        let plain = vec![5_u8; 300];
        let good = encrypt(key, LayerOf::Source(&config), &plain).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let error = open(&bytes).unwrap_err();
            let expected = match at {
                0..16 => matches!(error, ConfidentialError::Magic),
                16..20 => matches!(error, ConfidentialError::Version(_)),
                _ => matches!(error, ConfidentialError::Changed { part: 0 }),
            };
            assert!(expected, "byte {at}: {error}");
        }
        for len in 0..good.len() {
            open(&good[..len]).expect_err("cut off");
        }
        open(&good).expect("control");
        // Whole parts: left out at the end, exchanged, doubled.
        let long = encrypt(key, LayerOf::Source(&config), &vec![5; 2 * PART + 9]).unwrap();
        let part = |number: usize| &long[HEADER + number * (PART + TAG)..][..PART + TAG];
        let (head, tail) = (&long[..HEADER], &long[HEADER + 2 * (PART + TAG)..]);
        for forged in [
            [head, part(0)].concat(),
            [head, part(0), part(1)].concat(),
            [head, part(1), part(0), tail].concat(),
            [head, part(0), part(0), tail].concat(),
            [head, part(0), part(1), part(1), tail].concat(),
            [head, tail].concat(),
        ] {
            assert!(matches!(open(&forged), Err(ConfidentialError::Changed { .. })));
        }
        open(&[head, part(0), part(1), tail].concat()).expect("control");
    }

    #[test]
    fn a_layer_opens_only_where_it_belongs_and_with_its_key() {
        let (keys, ours) = (keys(), config("acme", "prices", 3));
        let key = &keys.0[0];
        let sealed = SealedBytes::of(&encrypt(key, LayerOf::Source(&ours), b"secret").unwrap()).unwrap();
        let open = |keys: &SecretKeys, layer| decrypt(keys, &key.id(), layer, &sealed);
        open(&keys, LayerOf::Source(&ours)).expect("control");
        let others =
            [config("globex", "prices", 3), config("acme", "prizes", 3), config("acme", "prices", 4)];
        let mut policy = ours.clone();
        policy.world = crate::engine::WORLD.into();
        for other in others.iter().chain([&policy]) {
            let error = open(&keys, LayerOf::Source(other)).unwrap_err();
            assert!(matches!(error, ConfidentialError::Changed { part: 0 }), "{error}");
        }
        open(&keys, LayerOf::Code(&ours, Platform::LinuxAmd64)).expect_err("another layer");
        let error = open(&SecretKeys(vec![keys.0[1].clone()]), LayerOf::Source(&ours)).unwrap_err();
        assert!(error.to_string().contains(&format!("encrypted with key {}", key.id())), "{error}");
        let error = open(&SecretKeys::default(), LayerOf::Source(&ours)).unwrap_err();
        assert!(error.to_string().contains("there is no key here"), "{error}");
    }

    #[test]
    fn a_file_of_keys_has_one_form_and_is_shown_nowhere() {
        let keys = keys();
        let text: String = keys.0.iter().map(|key| key.to_text().to_string()).collect();
        let read = SecretKeys::parse(&text).unwrap();
        assert_eq!(read.0.len(), 2);
        assert_eq!(read.first().unwrap().id(), keys.0[0].id());
        let shown = format!("{read:?}");
        // The other one is random.
        let second = "07".repeat(32);
        assert!(shown.contains(&keys.0[1].id().to_string()) && !shown.contains(&second[..16]), "{shown}");
        for (wrong, why) in [
            ("", "has 0 keys"),
            ("\n", "line 1"),
            (&text.replace("v1", "v2"), "line 1"),
            (&text.replace(&second, &second[1..]), "line 2"),
            (&text.replace(&second, &second.replacen('7', "G", 1)), "line 2"),
            (&format!("{text}more"), "line 3"),
            (&text.repeat(9), "has 18 keys"),
        ] {
            let error = SecretKeys::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }
}
