//! Amounts with a unit: `10K`, `1.5Gi`, `200MiB`.

use crate::arguments::Arguments;
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] =
    &[pure("units.parse", 1, parse), pure("units.parse_bytes", 1, parse_bytes)];

/// An amount in units of `10^-scale`.
struct Amount {
    digits: i128,
    scale: u32,
}

/// A decimal number and what follows it.
fn split(text: &str) -> Result<(Amount, &str), Failure> {
    let bad = || Failure::new("could not parse amount to a number");
    let numeric = |(index, c): (usize, char)| {
        let exponent = matches!(c, 'e' | 'E')
            && text.get(index + 1..).is_some_and(|rest| {
                let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
                rest.starts_with(|c: char| c.is_ascii_digit())
            });
        let sign = matches!(c, '+' | '-')
            && text.get(..index).is_some_and(|before| before.is_empty() || before.ends_with(['e', 'E']));
        !(c.is_ascii_digit() || c == '.' || exponent || sign)
    };
    let end = text.char_indices().find(|at| numeric(*at)).map_or(text.len(), |(index, _)| index);
    let (number, unit) = text.split_at_checked(end).ok_or_else(bad)?;
    if number.is_empty() {
        return Err(Failure::new("no amount provided"));
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| bad())?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if fraction.contains('.') {
        return Err(bad());
    }
    let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let scale = i32::try_from(fraction.len()).map_err(|_| bad())?.checked_sub(exponent).ok_or_else(bad)?;
    let amount = match u32::try_from(scale) {
        Ok(scale) => Amount { digits, scale },
        Err(_) => {
            let power = 10_i128.checked_pow(scale.unsigned_abs()).ok_or_else(bad)?;
            Amount { digits: digits.checked_mul(power).ok_or_else(bad)?, scale: 0 }
        }
    };
    Ok((amount, unit))
}

fn without_quotes(arguments: Arguments<'_>) -> Result<String, Failure> {
    let text = arguments.string(0)?.replace('"', "");
    if text.contains(' ') { Err(Failure::new("spaces not allowed in resource strings")) } else { Ok(text) }
}

fn unknown(unit: &str) -> Failure {
    Failure::new(format!("unit {unit} not recognized"))
}

/// How many powers of a thousand a letter stands for.
fn power(letter: char) -> Option<u32> {
    "kmgtpe".find(letter.to_ascii_lowercase()).and_then(|index| u32::try_from(index + 1).ok())
}

fn parse(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let text = without_quotes(arguments)?;
    let (mut amount, unit) = split(&text)?;
    let mut letters = unit.chars();
    let factor = match (letters.next(), letters.as_str()) {
        (None, _) => 1,
        // The one letter whose case matters: a thousandth, not a million.
        (Some('m'), "") => {
            amount.scale += 3;
            1
        }
        (Some(letter), "") => 1000_i128.pow(power(letter).ok_or_else(|| unknown(unit))?),
        (Some(letter), i) if i.eq_ignore_ascii_case("i") => {
            1024_i128.pow(power(letter).ok_or_else(|| unknown(unit))?)
        }
        _ => return Err(unknown(unit)),
    };
    number(&amount, factor)
}

fn number(amount: &Amount, factor: i128) -> Answer {
    let big = || Failure::new("amount too large");
    let digits = amount.digits.checked_mul(factor).ok_or_else(big)?;
    let divisor = 10_i128.checked_pow(amount.scale).ok_or_else(big)?;
    if digits % divisor == 0 {
        return Ok(Value::from(digits / divisor));
    }
    #[expect(clippy::cast_precision_loss, reason = "Rego's fractions are doubles here")]
    Ok(Value::from(digits as f64 / divisor as f64))
}

fn parse_bytes(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let text = without_quotes(arguments)?.to_ascii_lowercase();
    let (amount, unit) = split(&text)?;
    let mut letters = unit.strip_suffix('b').unwrap_or(unit).chars();
    let factor = match (letters.next(), letters.as_str()) {
        (None, _) if unit.is_empty() => 1,
        (Some(letter), "") => 1000_i128.pow(power(letter).ok_or_else(|| unknown(unit))?),
        (Some(letter), "i") => 1024_i128.pow(power(letter).ok_or_else(|| unknown(unit))?),
        _ => return Err(unknown(unit)),
    };
    let big = || Failure::new("amount too large");
    let digits = amount.digits.checked_mul(factor).ok_or_else(big)?;
    Ok(Value::from(digits / 10_i128.checked_pow(amount.scale).ok_or_else(big)?))
}
