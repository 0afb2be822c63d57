//! Points in time, nanoseconds since 1970, in any zone of the IANA database, which is linked in: no file is read.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

use crate::arguments::Arguments;
use crate::layout::{self, Fields, RFC3339, WEEKDAYS};
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] = &[
    pure("time.parse_rfc3339_ns", 1, |_, arguments| parse(RFC3339, arguments.string(0)?)),
    pure("time.parse_ns", 2, |_, arguments| parse(layout::named(arguments.string(0)?), arguments.string(1)?)),
    pure("time.parse_duration_ns", 1, parse_duration),
    pure("time.format", 1, format),
    pure("time.date", 1, date),
    pure("time.clock", 1, clock),
    pure("time.weekday", 1, weekday),
    pure("time.add_date", 4, add_date),
    pure("time.diff", 2, diff),
];

const SECOND: i128 = 1_000_000_000;

/// A point in time as somebody's clocks show it.
struct Local<'a> {
    ns: i128,
    zone: TimeZone,
    layout: &'a str,
    shown: DateTime,
    offset: i64,
    abbreviation: String,
}

impl<'a> Local<'a> {
    /// Nanoseconds, or an array of them, a zone, and a layout.
    fn of(value: &'a Value) -> Result<Self, Failure> {
        let wrong = || Failure::new("must be either number (ns) or [number (ns), string (tz)]");
        let word = |value: Option<&'a Value>| match value {
            None => Ok(""),
            Some(value) => value.as_str().ok_or_else(wrong),
        };
        let (number, zone, layout) = match value {
            Value::Number(_) => (value, "", ""),
            Value::Array(items) => {
                (items.first().ok_or_else(wrong)?, word(items.get(1))?, word(items.get(2))?)
            }
            _ => return Err(wrong()),
        };
        let Value::Number(number) = number else { return Err(wrong()) };
        let ns = number.as_int().ok_or_else(|| Failure::new("timestamp too big"))?;
        let zone = match zone {
            // A policy is nowhere.
            "" | "UTC" | "Local" => TimeZone::UTC,
            name => TimeZone::get(name).map_err(|_| Failure::new(format!("unknown time zone {name}")))?,
        };
        Self::at(ns, zone, layout)
    }

    fn at(ns: i128, zone: TimeZone, layout: &'a str) -> Result<Self, Failure> {
        if i64::try_from(ns).is_err() {
            return Err(Failure::new("timestamp too big"));
        }
        let timestamp = Timestamp::from_nanosecond(ns).map_err(|_| Failure::new("timestamp too big"))?;
        let info = zone.to_offset_info(timestamp);
        let (offset, abbreviation) = (info.offset(), info.abbreviation().to_owned());
        let shown = offset.to_datetime(timestamp);
        Ok(Self { ns, zone, layout, shown, offset: i64::from(offset.seconds()), abbreviation })
    }

    fn weekday(&self) -> usize {
        usize::try_from(self.shown.weekday().to_sunday_zero_offset()).unwrap_or(0)
    }
}

fn list(numbers: impl IntoIterator<Item = i64>) -> Value {
    numbers.into_iter().map(Value::from).collect()
}

fn out_of_range() -> Failure {
    Failure::new("time outside of valid range")
}

/// Nanoseconds of a date, which must be one that 64 bits can tell.
fn nanoseconds(date: DateTime, zone: &TimeZone) -> Answer {
    let zoned = date.to_zoned(zone.clone()).map_err(|_| out_of_range())?;
    safe(zoned.timestamp().as_nanosecond())
}

fn safe(ns: i128) -> Answer {
    i64::try_from(ns).map(Value::from).map_err(|_| out_of_range())
}

fn parse(layout: &str, text: &str) -> Answer {
    let wrong = || Failure::new(format!("parsing time {text:?} as {layout:?}: cannot parse"));
    let fields = layout::parse(layout, text).ok_or_else(wrong)?;
    let small = |number: i64| i8::try_from(number).map_err(|_| wrong());
    let year = i16::try_from(fields.year).map_err(|_| wrong())?;
    let date = Date::new(year, small(fields.month)?, small(fields.day)?).map_err(|_| wrong())?;
    let nanosecond = i32::try_from(fields.nanosecond).map_err(|_| wrong())?;
    let time = Time::new(small(fields.hour)?, small(fields.minute)?, small(fields.second)?, nanosecond);
    let datetime = date.to_datetime(time.map_err(|_| wrong())?);
    let utc = datetime.to_zoned(TimeZone::UTC).map_err(|_| out_of_range())?.timestamp().as_nanosecond();
    safe(utc - i128::from(fields.offset) * SECOND)
}

fn format(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let local = Local::of(arguments.get(0)?)?;
    let shown = local.shown;
    let fields = Fields {
        year: shown.year().into(),
        month: shown.month().into(),
        day: shown.day().into(),
        yearday: Some(shown.day_of_year().into()),
        weekday: local.weekday(),
        hour: shown.hour().into(),
        minute: shown.minute().into(),
        second: shown.second().into(),
        nanosecond: shown.subsec_nanosecond().into(),
        offset: local.offset,
        zone: &local.abbreviation,
    };
    Ok(layout::format(&fields, layout::named(local.layout)).into())
}

fn date(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let shown = Local::of(arguments.get(0)?)?.shown;
    Ok(list([shown.year().into(), shown.month().into(), shown.day().into()]))
}

fn clock(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let shown = Local::of(arguments.get(0)?)?.shown;
    Ok(list([shown.hour().into(), shown.minute().into(), shown.second().into()]))
}

fn weekday(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let local = Local::of(arguments.get(0)?)?;
    Ok(WEEKDAYS.get(local.weekday()).copied().unwrap_or_default().into())
}

/// The 31st of a month that has none is the first of the next: what is too much goes over.
fn add_date(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let local = Local::of(arguments.get(0)?)?;
    let (years, months, days) = (arguments.small(1)?, arguments.small(2)?, arguments.small(3)?);
    let shown = local.shown;
    let month = years
        .checked_mul(12)
        .and_then(|sum| sum.checked_add(months))
        .and_then(|sum| sum.checked_add(i64::from(shown.year()) * 12 + i64::from(shown.month()) - 1))
        .ok_or_else(out_of_range)?;
    let year = i16::try_from(month.div_euclid(12)).map_err(|_| out_of_range())?;
    let month = i8::try_from(month.rem_euclid(12) + 1).map_err(|_| out_of_range())?;
    let first = Date::new(year, month, 1).map_err(|_| out_of_range())?;
    let days = days.checked_add(i64::from(shown.day()) - 1).ok_or_else(out_of_range)?;
    // Beyond that no date is left, and spans have limits of their own.
    if days.unsigned_abs() > 10_000_000 {
        return Err(out_of_range());
    }
    let date = first.checked_add(jiff::Span::new().days(days)).map_err(|_| out_of_range())?;
    nanoseconds(date.to_datetime(shown.time()), &local.zone)
}

fn diff(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let one = Local::of(arguments.get(0)?)?;
    let other = Local::at(Local::of(arguments.get(1)?)?.ns, one.zone.clone(), "")?;
    let (from, to) = if one.ns > other.ns { (other.shown, one.shown) } else { (one.shown, other.shown) };
    let mut parts = [
        i64::from(to.year()) - i64::from(from.year()),
        i64::from(to.month()) - i64::from(from.month()),
        i64::from(to.day()) - i64::from(from.day()),
        i64::from(to.hour()) - i64::from(from.hour()),
        i64::from(to.minute()) - i64::from(from.minute()),
        i64::from(to.second()) - i64::from(from.second()),
    ];
    // What is missing is taken from the next larger unit, which of a month depends on the month.
    let sizes = [0, 12, i64::from(from.days_in_month()), 24, 60, 60];
    for index in (1..parts.len()).rev() {
        if let (Some(part), Some(size)) = (parts.get(index).copied(), sizes.get(index))
            && part < 0
        {
            parts.get_mut(index).map(|part| *part += size);
            parts.get_mut(index - 1).map(|part| *part -= 1);
        }
    }
    Ok(list(parts))
}

/// `1h30m`, `-1.5s`, `100ms`: numbers, each with its unit.
fn parse_duration(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let text = arguments.string(0)?;
    let wrong = || Failure::new(format!("time: invalid duration {text:?}"));
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0_i64.into());
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0_i128;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let (number, after) = rest.split_at_checked(end).ok_or_else(wrong)?;
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end).ok_or_else(wrong)?;
        rest = after;
        let unit = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(wrong());
        }
        let fraction: String = fraction.chars().take(18).collect();
        let digits: i128 = format!("0{whole}{fraction}").parse().map_err(|_| wrong())?;
        let scale = 10_i128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
        total += digits.checked_mul(unit).ok_or_else(wrong)? / scale;
    }
    i64::try_from(sign * total).map(Value::from).map_err(|_| wrong())
}
