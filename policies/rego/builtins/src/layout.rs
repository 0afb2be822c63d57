//! Dates as text, by Go's layouts: the reference time, Mon Jan 2 15:04:05 MST 2006, written as the text should look.

use std::fmt::Write as _;

/// A date and a time of day, with what is known of the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fields<'a> {
    pub(crate) year: i64,
    pub(crate) month: i64,
    pub(crate) day: i64,
    pub(crate) yearday: Option<i64>,
    pub(crate) weekday: usize,
    pub(crate) hour: i64,
    pub(crate) minute: i64,
    pub(crate) second: i64,
    pub(crate) nanosecond: i64,
    /// Seconds east of UTC.
    pub(crate) offset: i64,
    pub(crate) zone: &'a str,
}

pub(crate) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
pub(crate) const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The layouts that have names.
pub(crate) fn named(name: &str) -> &str {
    match name {
        "ANSIC" => "Mon Jan _2 15:04:05 2006",
        "UnixDate" => "Mon Jan _2 15:04:05 MST 2006",
        "RubyDate" => "Mon Jan 02 15:04:05 -0700 2006",
        "RFC822" => "02 Jan 06 15:04 MST",
        "RFC822Z" => "02 Jan 06 15:04 -0700",
        "RFC850" => "Monday, 02-Jan-06 15:04:05 MST",
        "RFC1123" => "Mon, 02 Jan 2006 15:04:05 MST",
        "RFC1123Z" => "Mon, 02 Jan 2006 15:04:05 -0700",
        "RFC3339" => RFC3339,
        "RFC3339Nano" | "" => "2006-01-02T15:04:05.999999999Z07:00",
        layout => layout,
    }
}

pub(crate) const RFC3339: &str = "2006-01-02T15:04:05Z07:00";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    Literal(&'a str),
    LongMonth,
    Month,
    NumMonth {
        zero: bool,
    },
    LongWeekday,
    Weekday,
    Day {
        pad: Option<char>,
    },
    Yearday {
        pad: char,
    },
    Hour24,
    Hour12 {
        zero: bool,
    },
    Minute {
        zero: bool,
    },
    Second {
        zero: bool,
    },
    LongYear,
    Year,
    Half {
        upper: bool,
    },
    Zone,
    /// `Z` instead of an offset of nothing, colons in between, minutes, seconds.
    Offset {
        z: bool,
        colon: bool,
        minutes: bool,
        seconds: bool,
    },
    /// Digits of a second behind a point or a comma; `trim` leaves zeroes at the end away.
    Fraction {
        digits: usize,
        trim: bool,
        sign: char,
    },
}

/// What a layout may begin with, longest first where one begins another.
const PARTS: [(&str, Part<'static>); 34] = [
    ("January", Part::LongMonth),
    ("Jan", Part::Month),
    ("Monday", Part::LongWeekday),
    ("Mon", Part::Weekday),
    ("MST", Part::Zone),
    ("002", Part::Yearday { pad: '0' }),
    ("01", Part::NumMonth { zero: true }),
    ("02", Part::Day { pad: Some('0') }),
    ("03", Part::Hour12 { zero: true }),
    ("04", Part::Minute { zero: true }),
    ("05", Part::Second { zero: true }),
    ("06", Part::Year),
    ("15", Part::Hour24),
    ("1", Part::NumMonth { zero: false }),
    ("2006", Part::LongYear),
    ("2", Part::Day { pad: None }),
    ("__2", Part::Yearday { pad: ' ' }),
    ("_2006", Part::Literal("_")),
    ("_2", Part::Day { pad: Some(' ') }),
    ("3", Part::Hour12 { zero: false }),
    ("4", Part::Minute { zero: false }),
    ("5", Part::Second { zero: false }),
    ("PM", Part::Half { upper: true }),
    ("pm", Part::Half { upper: false }),
    ("-07:00:00", Part::Offset { z: false, colon: true, minutes: true, seconds: true }),
    ("-070000", Part::Offset { z: false, colon: false, minutes: true, seconds: true }),
    ("-07:00", Part::Offset { z: false, colon: true, minutes: true, seconds: false }),
    ("-0700", Part::Offset { z: false, colon: false, minutes: true, seconds: false }),
    ("-07", Part::Offset { z: false, colon: false, minutes: false, seconds: false }),
    ("Z07:00:00", Part::Offset { z: true, colon: true, minutes: true, seconds: true }),
    ("Z070000", Part::Offset { z: true, colon: false, minutes: true, seconds: true }),
    ("Z07:00", Part::Offset { z: true, colon: true, minutes: true, seconds: false }),
    ("Z0700", Part::Offset { z: true, colon: false, minutes: true, seconds: false }),
    ("Z07", Part::Offset { z: true, colon: false, minutes: false, seconds: false }),
];

fn starts_lower(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// The part at the start of `layout`, and its length.
fn part(layout: &str) -> Option<(Part<'static>, usize)> {
    for (text, part) in PARTS {
        let Some(rest) = layout.strip_prefix(text) else { continue };
        // "Jan" of "Januar" and "Mon" of "Month" are words of somebody else.
        if matches!(part, Part::Month | Part::Weekday) && starts_lower(rest) {
            continue;
        }
        return Some((part, if text == "_2006" { 1 } else { text.len() }));
    }
    let sign = layout.chars().next().filter(|c| matches!(c, '.' | ','))?;
    let rest = layout.get(1..)?;
    for digit in ['0', '9'] {
        let digits = rest.len() - rest.trim_start_matches(digit).len();
        let ends = !rest.get(digits..)?.starts_with(|c: char| c.is_ascii_digit());
        if digits > 0 && ends {
            return Some((Part::Fraction { digits, trim: digit == '9', sign }, digits + 1));
        }
    }
    None
}

fn parts(layout: &str) -> Vec<Part<'_>> {
    let (mut parts, mut literal, mut at) = (Vec::new(), 0, 0);
    while let Some(rest) = layout.get(at..).filter(|rest| !rest.is_empty()) {
        match part(rest) {
            Some((found, len)) => {
                if literal < at {
                    parts.push(Part::Literal(layout.get(literal..at).unwrap_or_default()));
                }
                parts.push(found);
                at += len;
                literal = at;
            }
            None => at += rest.chars().next().map_or(1, char::len_utf8),
        }
    }
    if literal < at {
        parts.push(Part::Literal(layout.get(literal..at).unwrap_or_default()));
    }
    parts
}

fn name(names: &'static [&'static str], index: usize) -> &'static str {
    names.get(index).copied().unwrap_or("")
}

pub(crate) fn format(fields: &Fields<'_>, layout: &str) -> String {
    let mut out = String::new();
    for part in parts(layout) {
        write_part(&mut out, fields, part);
    }
    out
}

fn number(out: &mut String, number: i64, pad: Option<char>, width: usize) {
    let digits = number.to_string();
    if let Some(pad) = pad {
        out.extend(std::iter::repeat_n(pad, width.saturating_sub(digits.len())));
    }
    out.push_str(&digits);
}

fn write_part(out: &mut String, fields: &Fields<'_>, part: Part<'_>) {
    let zero = |zero: bool| zero.then_some('0');
    let month = name(&MONTHS, usize::try_from(fields.month - 1).unwrap_or(12));
    let weekday = name(&WEEKDAYS, fields.weekday);
    let hour12 = if fields.hour % 12 == 0 { 12 } else { fields.hour % 12 };
    match part {
        Part::Literal(text) => out.push_str(text),
        Part::LongMonth => out.push_str(month),
        Part::Month => out.push_str(month.get(..3).unwrap_or_default()),
        Part::LongWeekday => out.push_str(weekday),
        Part::Weekday => out.push_str(weekday.get(..3).unwrap_or_default()),
        Part::NumMonth { zero: pad } => number(out, fields.month, zero(pad), 2),
        Part::Day { pad } => number(out, fields.day, pad, 2),
        Part::Yearday { pad } => number(out, fields.yearday.unwrap_or(0), Some(pad), 3),
        Part::Hour24 => number(out, fields.hour, Some('0'), 2),
        Part::Hour12 { zero: pad } => number(out, hour12, zero(pad), 2),
        Part::Minute { zero: pad } => number(out, fields.minute, zero(pad), 2),
        Part::Second { zero: pad } => number(out, fields.second, zero(pad), 2),
        Part::LongYear => number(out, fields.year, Some('0'), 4),
        Part::Year => number(out, fields.year.rem_euclid(100), Some('0'), 2),
        Part::Half { upper } => out.push_str(match (fields.hour >= 12, upper) {
            (true, true) => "PM",
            (false, true) => "AM",
            (true, false) => "pm",
            (false, false) => "am",
        }),
        Part::Zone if fields.zone.starts_with(|c: char| c.is_ascii_alphabetic()) => out.push_str(fields.zone),
        Part::Zone => {
            let hours_only = fields.offset % 3600 == 0;
            write_offset(out, fields.offset, false, !hours_only, false);
        }
        Part::Offset { z: true, .. } if fields.offset == 0 => out.push('Z'),
        Part::Offset { colon, minutes, seconds, .. } => {
            write_offset(out, fields.offset, colon, minutes, seconds)
        }
        Part::Fraction { digits, trim, sign } => {
            let mut fraction = format!("{:09}", fields.nanosecond);
            fraction.extend(std::iter::repeat_n('0', digits.saturating_sub(9)));
            fraction.truncate(digits);
            let fraction = if trim { fraction.trim_end_matches('0') } else { &fraction };
            if !fraction.is_empty() {
                let _ = write!(out, "{sign}{fraction}");
            }
        }
    }
}

fn write_offset(out: &mut String, offset: i64, colon: bool, minutes: bool, seconds: bool) {
    out.push(if offset < 0 { '-' } else { '+' });
    let offset = offset.abs();
    let colon = if colon { ":" } else { "" };
    let _ = write!(out, "{:02}", offset / 3600);
    if minutes {
        let _ = write!(out, "{colon}{:02}", offset / 60 % 60);
    }
    if seconds {
        let _ = write!(out, "{colon}{:02}", offset % 60);
    }
}

/// Takes a prefix of what is left of the text.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn take(&mut self, len: usize) -> Option<&'a str> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// `least` to `most` digits.
    fn digits(&mut self, least: usize, most: usize) -> Option<i64> {
        let count = self.0.bytes().take(most).take_while(u8::is_ascii_digit).count();
        (count >= least).then(|| self.take(count)?.parse().ok()).flatten()
    }

    fn one_of(&mut self, names: &[&str], short: bool) -> Option<usize> {
        let named = |name: &&str| {
            let name = if short { name.get(..3).unwrap_or(name) } else { name };
            self.0.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let index = names.iter().position(named)?;
        let len = names.get(index).map_or(0, |name| if short { 3 } else { name.len() });
        self.take(len)?;
        Some(index)
    }

    fn literal(&mut self, literal: &str) -> Option<()> {
        // A run of spaces stands for any run of them.
        for c in literal.chars() {
            if c == ' ' {
                if !self.0.is_empty() && !self.0.starts_with(' ') {
                    return None;
                }
                self.0 = self.0.trim_start_matches(' ');
            } else {
                self.0 = self.0.strip_prefix(c)?;
            }
        }
        Some(())
    }

    /// A point or a comma, and the digits behind it, as nanoseconds.
    fn fraction(&mut self, digits: Option<usize>) -> Option<i64> {
        self.0 = self.0.strip_prefix(['.', ','])?;
        let found = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let digits = digits.unwrap_or(found);
        let text = self.take(digits).filter(|_| digits > 0 && found >= digits)?;
        let mut nanoseconds: String = text.chars().take(9).collect();
        nanoseconds.extend(std::iter::repeat_n('0', 9_usize.saturating_sub(nanoseconds.len())));
        nanoseconds.parse().ok()
    }

    fn offset(&mut self, colon: bool, minutes: bool, seconds: bool) -> Option<i64> {
        let sign = match self.take(1)? {
            "+" => 1,
            "-" => -1,
            _ => return None,
        };
        let mut part = |wanted: bool, first: bool, below: i64| {
            if !wanted {
                return Some(0);
            }
            if colon && !first {
                self.0 = self.0.strip_prefix(':')?;
            }
            self.digits(2, 2).filter(|number| *number <= below)
        };
        let offset =
            part(true, true, 24)? * 3600 + part(minutes, false, 60)? * 60 + part(seconds, false, 60)?;
        Some(sign * offset)
    }
}

/// Reads a date. None where the text does not look like the layout, or names no day.
pub(crate) fn parse<'a>(layout: &str, text: &'a str) -> Option<Fields<'a>> {
    let mut text = Text(text);
    let mut fields = Fields {
        year: 0,
        month: 1,
        day: 1,
        yearday: None,
        weekday: 0,
        hour: 0,
        minute: 0,
        second: 0,
        nanosecond: 0,
        offset: 0,
        zone: "",
    };
    let (mut afternoon, mut dated) = (None, false);
    let parts = parts(layout);
    for (index, part) in parts.iter().enumerate() {
        match *part {
            Part::Literal(literal) => text.literal(literal)?,
            Part::LongMonth => fields.month = i64::try_from(text.one_of(&MONTHS, false)?).ok()? + 1,
            Part::Month => fields.month = i64::try_from(text.one_of(&MONTHS, true)?).ok()? + 1,
            Part::LongWeekday => fields.weekday = text.one_of(&WEEKDAYS, false)?,
            Part::Weekday => fields.weekday = text.one_of(&WEEKDAYS, true)?,
            Part::NumMonth { zero } => fields.month = text.digits(1 + usize::from(zero), 2)?,
            Part::Day { pad } => {
                if pad == Some(' ') {
                    text.0 = text.0.strip_prefix(' ').unwrap_or(text.0);
                }
                fields.day = text.digits(1 + usize::from(pad == Some('0')), 2)?;
                dated = true;
            }
            Part::Yearday { pad } => {
                let spaces = if pad == ' ' { text.0.len() - text.0.trim_start_matches(' ').len() } else { 0 };
                text.take(spaces)?;
                fields.yearday = Some(text.digits(3 - spaces.min(2), 3)?);
            }
            Part::Hour24 => fields.hour = text.digits(1, 2).filter(|hour| *hour < 24)?,
            Part::Hour12 { zero } => {
                fields.hour = text.digits(1 + usize::from(zero), 2).filter(|hour| *hour <= 12)?;
            }
            Part::Minute { zero } => {
                fields.minute = text.digits(1 + usize::from(zero), 2).filter(|m| *m < 60)?
            }
            Part::Second { zero } => {
                fields.second = text.digits(1 + usize::from(zero), 2).filter(|second| *second < 60)?;
                // A fraction may follow, whether the layout has one or not.
                let named = matches!(parts.get(index + 1), Some(Part::Fraction { .. }));
                let follows = text.0.starts_with(['.', ','])
                    && text.0.get(1..).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
                if !named && follows {
                    fields.nanosecond = text.fraction(None)?;
                }
            }
            Part::LongYear => fields.year = text.digits(4, 4)?,
            Part::Year => {
                let year = text.digits(2, 2)?;
                fields.year = if year >= 69 { 1900 + year } else { 2000 + year };
            }
            Part::Half { upper } => {
                afternoon = Some(match (text.take(2)?, upper) {
                    ("PM", true) | ("pm", false) => true,
                    ("AM", true) | ("am", false) => false,
                    _ => return None,
                });
            }
            Part::Zone => {
                let letters = text.0.bytes().take_while(u8::is_ascii_uppercase).count();
                fields.zone = text.take(letters).filter(|_| (3..=5).contains(&letters))?;
            }
            Part::Offset { z: true, .. } if text.0.starts_with('Z') => {
                text.take(1)?;
            }
            Part::Offset { colon, minutes, seconds, .. } => {
                fields.offset = text.offset(colon, minutes, seconds)?
            }
            Part::Fraction { digits, trim: false, .. } => fields.nanosecond = text.fraction(Some(digits))?,
            Part::Fraction { trim: true, .. } => {
                if text.0.starts_with(['.', ',']) {
                    fields.nanosecond = text.fraction(None)?;
                }
            }
        }
    }
    if let Some(afternoon) = afternoon {
        fields.hour = fields.hour % 12 + if afternoon { 12 } else { 0 };
    }
    let leap = fields.year % 4 == 0 && (fields.year % 100 != 0 || fields.year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if let Some(mut yearday) = fields.yearday.filter(|_| !dated) {
        fields.month = 1;
        for length in lengths {
            if yearday <= length {
                break;
            }
            yearday -= length;
            fields.month += 1;
        }
        fields.day = yearday;
    }
    let length = lengths.get(usize::try_from(fields.month - 1).ok()?)?;
    ((1..=*length).contains(&fields.day) && text.0.is_empty()).then_some(fields)
}
