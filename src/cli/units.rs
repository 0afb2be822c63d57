//! Sizes and times as people write them: "4MiB", "100ms".

/// A size in bytes: digits, then nothing, "KiB", "MiB" or "GiB".
pub(super) fn bytes(text: &str) -> Result<u32, String> {
    let units = [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    parse(text, &units).ok_or_else(|| "expected a size below 4 GiB such as 65536, 64KiB or 4MiB".into())
}

/// A time in microseconds: digits, then "us", "ms" or "s".
pub(super) fn microseconds(text: &str) -> Result<u32, String> {
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    parse(text, &units).ok_or_else(|| "expected a time below 71 minutes such as 500us, 100ms or 2s".into())
}

fn parse(text: &str, units: &[(&str, u32)]) -> Option<u32> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(unit_at)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u32>().ok()?.checked_mul(*factor)
}

/// A size for people: the largest unit that leaves no remainder.
pub(super) fn show_bytes(bytes: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// A time for people: the largest unit that leaves no remainder.
pub(super) fn show_microseconds(us: u32) -> String {
    match us {
        us if us > 0 && us.is_multiple_of(1_000_000) => format!("{} s", us / 1_000_000),
        us if us > 0 && us.is_multiple_of(1000) => format!("{} ms", us / 1000),
        us => format!("{us} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_exactly() {
        for (text, value) in
            [("0", 0), ("65536", 65_536), ("64KiB", 65_536), ("4MiB", 4 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(bytes(text), Ok(value));
        }
        for (text, value) in [("500us", 500), ("100ms", 100_000), ("2s", 2_000_000)] {
            assert_eq!(microseconds(text), Ok(value));
        }
        for wrong in ["", "KiB", "4GiB", "4294967296", "1kb", "1 KiB", "-1", "+1", "1.5MiB", "ä", "1ä"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
        for wrong in ["", "100", "4295s", "1m", "1min", "ms"] {
            assert!(microseconds(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_and_times_are_shown_without_loss() {
        assert_eq!([0, 1000, 4 << 20, 3 << 10].map(show_bytes), ["0 bytes", "1000 bytes", "4 MiB", "3 KiB"]);
        assert_eq!(
            [0, 1500, 100_000, 2_000_000].map(show_microseconds),
            ["0 us", "1500 us", "100 ms", "2 s"]
        );
    }
}
