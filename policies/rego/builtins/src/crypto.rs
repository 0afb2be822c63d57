//! Hashes and message authentication codes.

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha256, Sha384, Sha512};

use crate::arguments::Arguments;
use crate::encoding::hex;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("crypto.md5", 1, |_, arguments| hash::<Md5>(arguments)),
    pure("crypto.sha1", 1, |_, arguments| hash::<Sha1>(arguments)),
    pure("crypto.sha256", 1, |_, arguments| hash::<Sha256>(arguments)),
    pure("crypto.hmac.md5", 2, |_, arguments| code(arguments, |key, text| mac::<Hmac<Md5>>(key, text))),
    pure("crypto.hmac.sha1", 2, |_, arguments| code(arguments, |key, text| mac::<Hmac<Sha1>>(key, text))),
    pure("crypto.hmac.sha256", 2, |_, arguments| code(arguments, |key, text| sha_mac(256, key, text))),
    pure("crypto.hmac.sha512", 2, |_, arguments| code(arguments, |key, text| sha_mac(512, key, text))),
    pure("crypto.hmac.equal", 2, equal),
];

fn hash<D: Digest>(arguments: Arguments<'_>) -> Answer {
    Ok(hex(&D::digest(arguments.string(0)?.as_bytes())).into())
}

fn mac<M: Mac + KeyInit>(key: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let mut mac = <M as KeyInit>::new_from_slice(key).ok()?;
    mac.update(text);
    Some(mac.finalize().into_bytes().to_vec())
}

/// HMAC over SHA-2 of this many bits.
pub(crate) fn sha_mac(bits: u32, key: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    match bits {
        256 => mac::<Hmac<Sha256>>(key, text),
        384 => mac::<Hmac<Sha384>>(key, text),
        512 => mac::<Hmac<Sha512>>(key, text),
        _ => None,
    }
}

fn code(arguments: Arguments<'_>, mac: impl Fn(&[u8], &[u8]) -> Option<Vec<u8>>) -> Answer {
    let (text, key) = (arguments.string(0)?, arguments.string(1)?);
    let code = mac(key.as_bytes(), text.as_bytes()).ok_or_else(|| Failure::new("no such code"))?;
    Ok(hex(&code).into())
}

fn equal(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    Ok(same(arguments.string(0)?.as_bytes(), arguments.string(1)?.as_bytes()).into())
}

/// Compares in a time that depends on the lengths only.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |all, (one, other)| all | (one ^ other)) == 0
}
