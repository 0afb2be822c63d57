//! `sprintf` as Go's `fmt` does it. Rego gives it integers, floats and strings; whatever else there is comes as its text.

use crate::text::append_string;
use crate::value::{Number, Value};

/// Widest field. Go refuses at a million; nobody pads a policy's text that far.
const WIDTH_MAX: usize = 10_000;

enum Argument {
    Int(i128),
    Float(f64),
    Text(String),
}

impl Argument {
    fn of(value: &Value) -> Self {
        match value {
            Value::Number(Number::Int(int)) => Self::Int(*int),
            Value::Number(Number::Float(float)) => match Number::Float(*float).as_int() {
                Some(int) => Self::Int(int),
                None => Self::Float(*float),
            },
            Value::String(string) => Self::Text(string.clone()),
            other => Self::Text(other.to_string()),
        }
    }

    /// Its type as Go names it, for what it says about wrong verbs.
    fn kind(&self) -> &'static str {
        match self {
            Self::Int(int) if i64::try_from(*int).is_ok() => "int",
            Self::Int(_) => "*big.Int",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
        }
    }

    fn plain(&self) -> String {
        match self {
            Self::Int(int) => int.to_string(),
            Self::Float(float) => general(*float, None, false),
            Self::Text(text) => text.clone(),
        }
    }
}

#[derive(Default)]
struct Flags {
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

pub(crate) fn sprintf(format: &str, values: &[Value]) -> String {
    let arguments: Vec<Argument> = values.iter().map(Argument::of).collect();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let (mut next, mut reordered) = (0_usize, false);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = Flags::default();
        while let Some(flag) = chars.peek() {
            match flag {
                '+' => flags.plus = true,
                '-' => flags.minus = true,
                '#' => flags.sharp = true,
                ' ' => flags.space = true,
                '0' => flags.zero = true,
                _ => break,
            }
            chars.next();
        }
        let mut bad_index = index(&mut chars, &mut next, &mut reordered, arguments.len());
        if chars.peek() == Some(&'*') {
            chars.next();
            match star(&arguments, &mut next) {
                Some(width) => {
                    flags.minus |= width < 0;
                    flags.width = usize::try_from(width.unsigned_abs()).ok();
                }
                None => out.push_str("%!(BADWIDTH)"),
            }
        } else {
            flags.width = digits(&mut chars);
        }
        if chars.peek() == Some(&'.') {
            chars.next();
            bad_index |= index(&mut chars, &mut next, &mut reordered, arguments.len());
            if chars.peek() == Some(&'*') {
                chars.next();
                match star(&arguments, &mut next) {
                    Some(precision) => flags.precision = usize::try_from(precision).ok(),
                    None => out.push_str("%!(BADPREC)"),
                }
            } else {
                flags.precision = Some(digits(&mut chars).unwrap_or(0));
            }
        }
        bad_index |= index(&mut chars, &mut next, &mut reordered, arguments.len());
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
        } else if bad_index {
            out.push_str(&format!("%!{verb}(BADINDEX)"));
        } else if let Some(argument) = arguments.get(next) {
            next += 1;
            one(&mut out, argument, verb, &flags);
        } else {
            out.push_str(&format!("%!{verb}(MISSING)"));
        }
    }
    if !reordered && next < arguments.len() {
        let extra: Vec<_> = arguments
            .iter()
            .skip(next)
            .map(|argument| format!("{}={}", argument.kind(), argument.plain()))
            .collect();
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// An explicit `[n]`. True if it is not an index of an argument.
fn index(chars: &mut Chars<'_>, next: &mut usize, reordered: &mut bool, arguments: usize) -> bool {
    if chars.peek() != Some(&'[') {
        return false;
    }
    chars.next();
    *reordered = true;
    let number = digits(chars);
    let closed = chars.peek() == Some(&']');
    if closed {
        chars.next();
    }
    match number {
        Some(number) if closed && (1..=arguments).contains(&number) => {
            *next = number - 1;
            false
        }
        _ => true,
    }
}

fn digits(chars: &mut Chars<'_>) -> Option<usize> {
    let mut number = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        number = Some((number.unwrap_or(0) * 10 + digit as usize).min(WIDTH_MAX));
    }
    number
}

fn star(arguments: &[Argument], next: &mut usize) -> Option<i64> {
    let argument = arguments.get(*next)?;
    *next += 1;
    match argument {
        Argument::Int(int) => i64::try_from(*int).ok().filter(|int| int.unsigned_abs() <= WIDTH_MAX as u64),
        _ => None,
    }
}

fn one(out: &mut String, argument: &Argument, verb: char, flags: &Flags) {
    let formatted = match argument {
        Argument::Int(int) => integer(*int, verb, flags),
        Argument::Float(float) => floating(*float, verb, flags),
        Argument::Text(text) => textual(text, verb, flags).map(|text| (String::new(), text)),
    };
    match (formatted, verb) {
        (Some((sign, body)), _) => pad(out, &sign, &body, flags, !matches!(argument, Argument::Text(_))),
        (None, 'T') => pad(out, "", argument.kind(), flags, false),
        (None, _) => out.push_str(&format!("%!{verb}({}={})", argument.kind(), argument.plain())),
    }
}

/// Puts sign and body into the width. Zeroes go between them.
fn pad(out: &mut String, sign: &str, body: &str, flags: &Flags, number: bool) {
    let length = sign.chars().count() + body.chars().count();
    let missing = flags.width.unwrap_or(0).saturating_sub(length);
    let zero = flags.zero && !flags.minus && (!number || flags.precision.is_none() || body.contains('.'));
    if flags.minus {
        out.push_str(sign);
        out.push_str(body);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if zero {
        out.push_str(sign);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(body);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(sign);
        out.push_str(body);
    }
}

fn sign_of(negative: bool, flags: &Flags) -> String {
    if negative {
        "-"
    } else if flags.plus {
        "+"
    } else if flags.space {
        " "
    } else {
        ""
    }
    .to_owned()
}

fn integer(int: i128, verb: char, flags: &Flags) -> Option<(String, String)> {
    let magnitude = int.unsigned_abs();
    let (prefix, digits) = match verb {
        'd' | 'v' => ("", magnitude.to_string()),
        // Go's large integers are strings as well.
        's' if i64::try_from(int).is_err() => ("", magnitude.to_string()),
        'b' => ("0b", format!("{magnitude:b}")),
        'o' => ("0", format!("{magnitude:o}")),
        'O' => ("", format!("0o{magnitude:o}")),
        'x' => ("0x", format!("{magnitude:x}")),
        'X' => ("0X", format!("{magnitude:X}")),
        'c' | 'q' | 'U' => {
            let c = u32::try_from(int).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
            return Some((
                String::new(),
                match verb {
                    'c' => c.to_string(),
                    'q' => format!("'{}'", if c == '\'' { "\\'".to_owned() } else { c.to_string() }),
                    _ => format!("U+{:04X}", u32::from(c)),
                },
            ));
        }
        _ => return None,
    };
    let precision = flags.precision.unwrap_or(0);
    let digits = if flags.precision == Some(0) && int == 0 { String::new() } else { digits };
    let digits = format!("{}{digits}", "0".repeat(precision.saturating_sub(digits.len())));
    let mut sign = sign_of(int < 0, flags);
    if flags.sharp {
        sign.push_str(prefix);
    }
    Some((sign, digits))
}

fn floating(float: f64, verb: char, flags: &Flags) -> Option<(String, String)> {
    let magnitude = float.abs();
    let body = match verb {
        'v' | 'g' => general(magnitude, flags.precision, false),
        'G' => general(magnitude, flags.precision, true),
        'f' | 'F' => format!("{magnitude:.*}", flags.precision.unwrap_or(6)),
        'e' => exponent(&format!("{magnitude:.*e}", flags.precision.unwrap_or(6))),
        'E' => exponent(&format!("{magnitude:.*e}", flags.precision.unwrap_or(6))).to_uppercase(),
        _ => return None,
    };
    Some((sign_of(float.is_sign_negative(), flags), body))
}

/// Rust writes `1.5e7` and `1e-7`, Go `1.5e+07` and `1e-07`.
fn exponent(text: &str) -> String {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// `%g`: the shorter of both forms.
pub(crate) fn general(float: f64, precision: Option<usize>, upper: bool) -> String {
    let scientific = match precision {
        None => format!("{float:e}"),
        Some(precision) => format!("{float:.*e}", precision.max(1) - 1),
    };
    let (mantissa, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i64 = power.parse().unwrap_or(0);
    // Digits that say nothing are not shown.
    let mantissa = if precision.is_some() && mantissa.contains('.') {
        mantissa.trim_end_matches('0').trim_end_matches('.')
    } else {
        mantissa
    };
    let shown = mantissa.bytes().filter(u8::is_ascii_digit).count();
    // With no precision given the choice between both forms is that of a precision of 6.
    let limit = i64::try_from(precision.map_or(6, |precision| precision.max(1))).unwrap_or(i64::MAX);
    let text = if power < -4 || power >= limit {
        exponent(&format!("{mantissa}e{power}"))
    } else {
        let after = usize::try_from(i64::try_from(shown).unwrap_or(0) - 1 - power).unwrap_or(0);
        format!("{float:.after$}")
    };
    if upper { text.to_uppercase() } else { text }
}

fn textual(text: &str, verb: char, flags: &Flags) -> Option<String> {
    let cut: String = match flags.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.to_owned(),
    };
    Some(match verb {
        's' | 'v' => cut,
        'q' => quoted(&cut),
        'x' => hex(&cut, flags, "0x", |byte| format!("{byte:02x}")),
        'X' => hex(&cut, flags, "0X", |byte| format!("{byte:02X}")),
        _ => return None,
    })
}

fn hex(text: &str, flags: &Flags, prefix: &str, digits: impl Fn(u8) -> String) -> String {
    let bytes: Vec<String> = text.bytes().map(digits).collect();
    let prefix = if flags.sharp { prefix } else { "" };
    if flags.space {
        format!("{prefix}{}", bytes.join(&format!(" {prefix}")))
    } else {
        format!("{prefix}{}", bytes.concat())
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    // A string takes whatever is written to it.
    append_string(&mut out, text);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_value;

    /// What Go 1.25 prints, by OPA's `sprintf`.
    #[test]
    fn formats_as_go_does() {
        for (format, values, expected) in [
            ("%s is %d", r#"["a", 3]"#, "a is 3"),
            ("%v %v %v", r#"[[1,"x"], {"k": true}, null]"#, r#"[1, "x"] {"k": true} null"#),
            ("%5d|%-5d|%05d|%+d", "[42, 42, 42, 42]", "   42|42   |00042|+42"),
            ("%x %X %o %b %#x", "[255, 255, 8, 5, 255]", "ff FF 10 101 0xff"),
            ("%.2f %f %e %g", "[3.14159, 1.5, 1234.5, 0.00001]", "3.14 1.500000 1.234500e+03 1e-05"),
            ("%q", r#"["a\"b"]"#, r#""a\"b""#),
            ("%5s|%-5s|%.2s", r#"["ab","ab","abc"]"#, "   ab|ab   |ab"),
            ("%d %d", "[1]", "1 %!d(MISSING)"),
            ("%d", "[1, \"x\"]", "1%!(EXTRA string=x)"),
            ("%d", "[\"x\"]", "%!d(string=x)"),
            ("%s", "[5]", "%!s(int=5)"),
            ("%s", "[123456789123456789123]", "123456789123456789123"),
            ("100%%", "[]", "100%"),
            ("%[2]s %[1]s", r#"["a","b"]"#, "b a"),
            ("%*d", "[5, 42]", "   42"),
            ("%c%U", "[65, 9731]", "AU+2603"),
            ("%", "[]", "%!(NOVERB)"),
            ("%v", "[1.5]", "1.5"),
        ] {
            let Value::Array(values) = parse_value(values).unwrap() else { panic!() };
            assert_eq!(sprintf(format, &values), expected, "{format}");
        }
    }
}
