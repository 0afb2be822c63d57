//! `portcullis trust rotate`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::read_text;
use crate::cli::{CommandResult, EXIT_CODES, files, output};
use crate::trust::rotate;

/// Longest overlap, days.
const DAYS_MAX: u32 = 3650;

/// Give a signer a new key, and the old one an end
///
/// Changes the file in its place; comments and everything else in it stay. Until the overlap is over both keys count, so what
/// the old one signed goes on; meanwhile sign it again with the new one:
/// `portcullis policy sign BUNDLE --key NEW --resign --signed-by OLD.pub`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(in crate::cli) struct Rotate {
    /// The trust policy
    trust: PathBuf,
    /// Whose key it is, by the name in the file
    #[arg(long, value_name = "NAME")]
    signer: String,
    /// The new public key
    #[arg(long, value_name = "PUB")]
    new: PathBuf,
    /// For how long the old key counts as well: 30d, 12h; 0d ends it now
    #[arg(long, value_name = "TIME", value_parser = overlap)]
    overlap: SignedDuration,
    /// Where to write it, if not in its place
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Rotate {
    pub(super) fn run(self) -> CommandResult {
        let text = read_text(&self.trust)?;
        let new = files::read_public_key(&self.new)?;
        let end = Timestamp::now().saturating_add(self.overlap)?;
        // Whole seconds: people read it.
        let end = Timestamp::from_second(end.as_second())?;
        let rotated = rotate(&self.trust, &text, &self.signer, &new, end)?;
        let out = self.out.as_ref().unwrap_or(&self.trust);
        files::write(out, rotated.text.as_bytes())?;
        if self.json {
            output::json(&json!({
                "path": out, "signer": self.signer, "old": rotated.old, "new": rotated.new,
                "old_until": rotated.old_until,
            }))?;
        } else {
            output::text(format_args!(
                "rotated   signer {} in {}\nnew key   {}\nold key   {}\n          counts until {}\n",
                self.signer,
                out.display(),
                rotated.new,
                rotated.old,
                rotated.old_until,
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn overlap(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("expected a time of at most {DAYS_MAX} days such as 30d, 12h or 0d");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at_checked(at).ok_or_else(wrong)?;
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        _ => return Err(wrong()),
    };
    let hours = number.parse::<u32>().ok().and_then(|number| number.checked_mul(hours)).ok_or_else(wrong)?;
    if hours > DAYS_MAX * 24 { Err(wrong()) } else { Ok(SignedDuration::from_hours(hours.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_days_or_hours() {
        for (text, hours) in [("30d", 720), ("12h", 12), ("0d", 0), ("3650d", 87_600)] {
            assert_eq!(overlap(text), Ok(SignedDuration::from_hours(hours)), "{text}");
        }
        for wrong in ["", "30", "d", "3651d", "-1d", "1w", "99999999999d", "1.5d", "1ä"] {
            assert!(overlap(wrong).is_err(), "{wrong:?}");
        }
    }
}
