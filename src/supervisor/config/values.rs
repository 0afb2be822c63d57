//! What single values may look like: numbers in a range, durations, sizes, modes, names, paths.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

/// The UID (and GID) that stands for "nobody" and for whatever has none here: never granted, never a role's.
const OVERFLOW_ID: u32 = 65534;

fn expected<T>(what: &str, value: &DeValue<'_>) -> Result<T, String> {
    Err(format!("expected {what}, found {}", value.type_str()))
}

pub(super) fn text<'d>(value: &'d DeValue<'d>) -> Result<&'d str, String> {
    value.as_str().map_or_else(|| expected("a string", value), Ok)
}

pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().map_or_else(|| expected("true or false", value), Ok)
}

/// A whole number in a range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Result<T, String>
where
    T: TryFrom<i128> + PartialOrd + Display,
{
    move |value| {
        let Some(integer) = value.as_integer() else { return expected("a whole number", value) };
        i128::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .and_then(|wide| T::try_from(wide).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                format!("{integer} is out of range, expected {} to {}", range.start(), range.end())
            })
    }
}

/// A number and a unit, `us`, `ms`, `s`, `m` or `h`, in a range.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Result<Duration, String> {
    move |value| {
        let written = text(value)?;
        let nonsense = || format!("{written:?} is not a duration; write a number and us, ms, s, m or h");
        let (number, unit) = number_and_unit(written).ok_or_else(nonsense)?;
        let micros = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return Err(nonsense()),
        };
        number
            .checked_mul(micros)
            .map(Duration::from_micros)
            .filter(|duration| range.contains(duration))
            .ok_or_else(|| {
                format!("{written:?} is out of range, expected {:?} to {:?}", range.start(), range.end())
            })
    }
}

/// A number and a unit, `B`, `KiB`, `MiB` or `GiB`, in a range of bytes.
pub(super) fn size<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Result<T, String>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    move |value| {
        let written = text(value)?;
        let nonsense = || format!("{written:?} is not a size; write a number and B, KiB, MiB or GiB");
        let (number, unit) = number_and_unit(written).ok_or_else(nonsense)?;
        let bytes: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(nonsense()),
        };
        number
            .checked_mul(bytes)
            .and_then(|bytes| T::try_from(bytes).ok())
            .filter(|bytes| range.contains(bytes))
            .ok_or_else(|| {
                format!("{written:?} is out of range, expected {} to {} bytes", range.start(), range.end())
            })
    }
}

fn number_and_unit(written: &str) -> Option<(u64, &str)> {
    let end = written.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = written.split_at(end);
    Some((number.parse().ok()?, unit))
}

/// Permission bits of a socket, octal in a string.
pub(super) fn mode(value: &DeValue<'_>) -> Result<u32, String> {
    let written = text(value)?;
    u32::from_str_radix(written, 8)
        .ok()
        .filter(|mode| *mode <= 0o777 && (3..=4).contains(&written.len()))
        .ok_or_else(|| format!("{written:?} is not a mode; write octal permission bits like \"0660\""))
}

/// A name as [`crate::decision`] has them.
pub(super) fn name<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<T, String> {
    text(value)?.parse().map_err(|why: T::Err| why.to_string())
}

/// An absolute path without `..`, which does not depend on where anybody stands.
pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let written = text(value)?;
    let path = PathBuf::from(written);
    if written.contains('\0') || !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("{written:?} is not an absolute path without \"..\""));
    }
    Ok(path)
}

/// Stands for the directory that systemd puts credentials into (`LoadCredential=`), at the start of a path.
const CREDENTIALS: &str = "$CREDENTIALS_DIRECTORY/";

/// A path, or one in the directory of the credentials.
pub(super) fn key_path(credentials: Option<&Path>) -> impl Fn(&DeValue<'_>) -> Result<PathBuf, String> {
    move |value| {
        let written = text(value)?;
        let Some(rest) = written.strip_prefix(CREDENTIALS) else { return path(value) };
        let Some(credentials) = credentials else {
            return Err(format!(
                "{written:?}: CREDENTIALS_DIRECTORY is not set; start with LoadCredential= in the unit, or write the \
                 key's own path"
            ));
        };
        let ordinary = Path::new(rest).components().all(|part| matches!(part, Component::Normal(_)));
        if rest.is_empty() || rest.contains('\0') || !ordinary || !credentials.is_absolute() {
            return Err(format!("{written:?} names no file in the directory of the credentials"));
        }
        Ok(credentials.join(rest))
    }
}

/// Longest path of a socket, bytes: `sun_path` is 108 with its end.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn socket_path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    let path = path(value)?;
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(format!("path of a socket is longer than {SOCKET_PATH_MAX} bytes"));
    }
    if path.file_name().is_none() {
        return Err(format!("{:?} names no file", path.display().to_string()));
    }
    Ok(path)
}

/// A UID or GID that a role may run as.
pub(super) fn role_id(value: &DeValue<'_>) -> Result<u32, String> {
    match grantable_id(value)? {
        0 => Err("0 is root; every role needs a UID and GID without privilege".to_owned()),
        id => Ok(id),
    }
}

/// A UID or GID that something may be granted to.
pub(super) fn grantable_id(value: &DeValue<'_>) -> Result<u32, String> {
    match number(0..=u32::MAX)(value)? {
        OVERFLOW_ID => {
            Err(format!("{OVERFLOW_ID} stands for every user that has no UID here; it is never granted"))
        }
        u32::MAX => Err(format!("{} is not a UID or GID", u32::MAX)),
        id => Ok(id),
    }
}
