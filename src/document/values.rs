//! What single values may look like: numbers in a range, durations, sizes, names, points in time.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use toml::de::DeValue;

fn expected<T>(what: &str, value: &DeValue<'_>) -> Result<T, String> {
    Err(format!("expected {what}, found {}", value.type_str()))
}

pub fn text<'d>(value: &'d DeValue<'d>) -> Result<&'d str, String> {
    value.as_str().map_or_else(|| expected("a string", value), Ok)
}

pub fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().map_or_else(|| expected("true or false", value), Ok)
}

/// A whole number in a range.
pub fn number<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Result<T, String>
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
pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Result<Duration, String> {
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
pub fn size<T>(range: RangeInclusive<T>) -> impl Fn(&DeValue<'_>) -> Result<T, String>
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

/// A name as [`crate::decision`] has them.
pub fn name<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<T, String> {
    text(value)?.parse().map_err(|why: T::Err| why.to_string())
}

/// A point in time with its offset, `2027-01-01T00:00:00Z`.
pub fn timestamp(value: &DeValue<'_>) -> Result<Timestamp, String> {
    let Some(written) = value.as_datetime() else { return expected("a date with a time", value) };
    // Without an offset it would be another moment on each host.
    if written.date.is_none() || written.time.is_none() || written.offset.is_none() {
        return Err(format!("{written} is not a point in time; write it like 2027-01-01T00:00:00Z"));
    }
    written.to_string().parse().map_err(|_| format!("{written} is not a point in time that exists"))
}
