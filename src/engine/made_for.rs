//! What machine code says of itself: for which processor it was compiled, by which wasmtime, with which settings.
//!
//! The compiler writes all of its settings into a section of each `.cwasm`: a version, the target, every flag, every
//! tunable, the language. [`settings`](super::settings_digest) are known by the SHA-256 of that section, so a digest cannot
//! say one thing and the code be another. It is read here, before wasmtime sees a byte: wasmtime's own loader
//! compares the parts that it thinks matter, and names what differs in its own words.

use std::io;

use nix::sys::uio::pread;

use crate::artifact::{Digest, SealedBytes};
use crate::bundle::Platform;

use super::settings::{Metering, WASMTIME_VERSION, settings_digest, settings_digest_of};
use super::target::Target;

/// The section, as wasmtime names it.
const SECTION: &[u8] = b".wasmtime.engine";
/// Longest section, and longest table of sections, bytes. They take about 2 KiB each.
const READ_MAX: u64 = 64 << 10;
/// ELF: EM_X86_64 and EM_AARCH64.
const MACHINES: [(u16, Platform); 2] = [(62, Platform::LinuxAmd64), (183, Platform::LinuxArm64)];

/// What a `.cwasm` was made for, in its own words. Nothing vouches for them but who vouches for the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFor {
    /// None for a machine that is not known here.
    pub platform: Option<Platform>,
    /// In full: "48.0.8".
    pub wasmtime: String,
    /// Of every setting, see [`super::settings_digest`].
    pub settings: Digest,
}

/// Why code cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it is not machine code of a policy: {0}")]
    NotCode(&'static str),
    #[error("it cannot be read: {0}")]
    Read(String),
    #[error("it is compiled for another kind of machine, this host is {}", Platform::host())]
    Machine,
    #[error("it is compiled for {0}, this host is {host}", host = Platform::host())]
    Platform(Platform),
    #[error("it is compiled with wasmtime {0:?}, this is {WASMTIME_VERSION}")]
    Wasmtime(String),
    #[error("it is compiled for {target}, this host's processor lacks {}", .missing.join(", "))]
    Processor { target: Target, missing: Vec<&'static str> },
    #[error("it is compiled for {0}, this host compiles for {host}", host = Target::host())]
    OtherTarget(Target),
    #[error("it is compiled with engine settings {found}, these are {expected}")]
    Settings { found: Digest, expected: Digest },
    #[error("it {}, {}", counted(.0), "which is not what its manifest has a limit for; build it again")]
    Metering(Metering),
}

impl MadeFor {
    /// Reads it out of sealed code. Bounded, whatever the bytes are.
    ///
    /// # Errors
    /// When it is not code of ours at all.
    pub fn read(code: &SealedBytes) -> Result<Self, Unfit> {
        Self::read_from(|offset, buffer| {
            let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            let length = buffer.len();
            // Memory is never read in part but at its end.
            if pread(code, buffer, offset)? == length {
                Ok(())
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        })
    }

    /// The same out of memory.
    ///
    /// # Errors
    /// When it is not code of ours at all.
    pub fn of(code: &[u8]) -> Result<Self, Unfit> {
        Self::read_from(|offset, buffer| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(buffer.len());
            let part = code.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(part);
            Ok(())
        })
    }

    fn read_from(read: impl Fn(u64, &mut [u8]) -> io::Result<()>) -> Result<Self, Unfit> {
        let read = |offset: u64, length: u64, what: &'static str| {
            let length = usize::try_from(length.min(READ_MAX + 1)).unwrap_or(usize::MAX);
            if length as u64 > READ_MAX {
                return Err(Unfit::NotCode(what));
            }
            let mut buffer = vec![0; length];
            match read(offset, &mut buffer) {
                Ok(()) => Ok(buffer),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Unfit::NotCode(what)),
                Err(error) => Err(Unfit::Read(error.to_string())),
            }
        };
        let header = read(0, 64, "it is too short")?;
        // ELF, 64 bits, little-endian, version 1, and the operating system that wasmtime made up for itself.
        if !header.starts_with(b"\x7fELF\x02\x01\x01\xc8") {
            return Err(Unfit::NotCode("it does not begin as one does"));
        }
        let (table, entry, count, names) = (
            number(&header, 40, 8)?,
            number(&header, 58, 2)?,
            number(&header, 60, 2)?,
            number(&header, 62, 2)?,
        );
        if entry != 64 || names >= count {
            return Err(Unfit::NotCode("its table of sections is wrong"));
        }
        let sections = read(table, count * entry, "its table of sections is not there")?;
        // Of each: name at 0, offset at 24, size at 32.
        let place = |index: u64| -> Result<(u64, u64), Unfit> {
            Ok((number(&sections, index * entry + 24, 8)?, number(&sections, index * entry + 32, 8)?))
        };
        let (offset, size) = place(names)?;
        let names = read(offset, size, "its names of sections are not there")?;
        let mut found = None;
        for index in 0..count {
            let name = usize::try_from(number(&sections, index * entry, 4)?).unwrap_or(usize::MAX);
            let name = names.get(name..).and_then(|rest| rest.split(|byte| *byte == 0).next());
            // wasmtime takes the last one.
            if name == Some(SECTION) && found.replace(index).is_some() {
                return Err(Unfit::NotCode("it says twice what it is made for"));
            }
        }
        let (offset, size) = place(found.ok_or(Unfit::NotCode("it does not say what it is made for"))?)?;
        let section = read(offset, size, "what it is made for is not there")?;
        let machine = number(&header, 18, 2)?;
        Ok(Self {
            platform: MACHINES
                .iter()
                .find(|(of, _)| u64::from(*of) == machine)
                .map(|(_, platform)| *platform),
            wasmtime: version(&section).ok_or(Unfit::NotCode("it names no version"))?,
            settings: Digest::of(&section),
        })
    }

    /// May this host load it? The first thing that differs, in the order in which it helps to know.
    ///
    /// # Errors
    /// Says what it is made for, and what this host is.
    pub fn check(&self, metering: Metering) -> Result<(), Unfit> {
        match self.platform {
            None => return Err(Unfit::Machine),
            Some(platform) if platform != Platform::host() => return Err(Unfit::Platform(platform)),
            Some(_) => {}
        }
        if self.wasmtime != WASMTIME_VERSION {
            return Err(Unfit::Wasmtime(self.wasmtime.clone()));
        }
        if self.settings == settings_digest(metering) {
            return Ok(());
        }
        let kinds = Metering::ALL.into_iter().flat_map(|by| Target::ALL.map(|target| (target, by)));
        let known = kinds.into_iter().find(|(target, by)| settings_digest_of(*target, *by) == self.settings);
        let Some((target, by)) = known else {
            return Err(Unfit::Settings { found: self.settings, expected: settings_digest(metering) });
        };
        if by != metering {
            return Err(Unfit::Metering(by));
        }
        let missing = target.missing_here();
        Err(if missing.is_empty() {
            Unfit::OtherTarget(target)
        } else {
            Unfit::Processor { target, missing }
        })
    }
}

fn counted(by: &Metering) -> &'static str {
    match by {
        Metering::Off => "does not count its instructions",
        Metering::Fuel => "counts its instructions",
    }
}

/// A little-endian number of so many bytes.
fn number(bytes: &[u8], at: u64, length: usize) -> Result<u64, Unfit> {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let part = bytes.get(at..at.saturating_add(length)).ok_or(Unfit::NotCode("it is cut off"))?;
    Ok(part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The section begins with a zero, the length of a version, and the version; ours is wasmtime's, a space, and more.
fn version(section: &[u8]) -> Option<String> {
    let (&[0, length], rest) = section.split_first_chunk()? else { return None };
    let text = std::str::from_utf8(rest.get(..usize::from(length))?).ok()?;
    let version = text.split(' ').next()?;
    (version.len() <= 32 && version.chars().all(|c| c.is_ascii_graphic())).then(|| version.to_owned())
}

#[cfg(feature = "compiler")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::compiling_engine;

    fn code(target: Target) -> Vec<u8> {
        compiling_engine(target, Metering::Off).unwrap().precompile_component(b"\0asm\x0d\0\x01\0").unwrap()
    }

    fn refused(code: &[u8]) -> Unfit {
        MadeFor::of(code).and_then(|made_for| made_for.check(Metering::Off)).expect_err("fits")
    }

    #[test]
    fn code_of_this_host_fits_and_other_code_is_named() {
        let here = code(Target::host());
        let made_for = MadeFor::of(&here).unwrap();
        assert_eq!(made_for.platform, Some(Platform::host()));
        assert_eq!(
            (made_for.wasmtime.as_str(), made_for.settings),
            (WASMTIME_VERSION, settings_digest(Metering::Off))
        );
        made_for.check(Metering::Off).unwrap();
        assert_eq!(MadeFor::read(&SealedBytes::of(&here).unwrap()).unwrap(), made_for);

        let other = Platform::ALL.into_iter().find(|platform| *platform != Platform::host()).unwrap();
        assert_eq!(refused(&code(Target::of(other))), Unfit::Platform(other));
        let same_machine =
            |target: &Target| target.platform() == Platform::host() && *target != Target::host();
        for target in Target::ALL.into_iter().filter(same_machine) {
            assert_eq!(refused(&code(target)), Unfit::OtherTarget(target));
        }
        // Another machine altogether: the one whose number is 0x3e + 1.
        let mut unknown = here.clone();
        unknown[18] ^= 1;
        assert_eq!(refused(&unknown), Unfit::Machine);
    }

    #[test]
    fn what_a_processor_lacks_is_named() {
        let unfit = Unfit::Processor { target: Target::Amd64V2, missing: vec!["popcnt", "sse4.2"] };
        let text = "it is compiled for linux/amd64 (x86-64-v2), this host's processor lacks popcnt, sse4.2";
        assert_eq!(unfit.to_string(), text);
    }

    #[test]
    fn code_that_counts_is_told_from_code_that_does_not() {
        let fuel = compiling_engine(Target::host(), Metering::Fuel).unwrap();
        let counts = MadeFor::of(&fuel.precompile_component(b"\0asm\x0d\0\x01\0").unwrap()).unwrap();
        counts.check(Metering::Fuel).unwrap();
        assert_eq!(counts.check(Metering::Off), Err(Unfit::Metering(Metering::Fuel)));
        let plain = MadeFor::of(&code(Target::host())).unwrap();
        let unfit = plain.check(Metering::Fuel).unwrap_err();
        assert!(unfit.to_string().starts_with("it does not count its instructions, "), "{unfit}");
    }

    /// Any setting: the digest covers each byte in which the compiler says what it did.
    #[test]
    fn a_changed_setting_is_another_digest() {
        let mut code = code(Target::host());
        let at = code.windows(9).position(|bytes| bytes == b"opt_level").unwrap();
        code[at + 11] ^= 1;
        assert!(matches!(refused(&code), Unfit::Settings { .. }));
        let text = refused(&code).to_string();
        assert!(text.starts_with("it is compiled with engine settings sha256:"), "{text}");
    }

    #[test]
    fn what_is_no_code_is_refused_and_reads_nothing_beyond_its_end() {
        assert_eq!(refused(b""), Unfit::NotCode("it is too short"));
        assert_eq!(refused(&[0; 1000]), Unfit::NotCode("it does not begin as one does"));
        assert!(matches!(refused(b"\0asm\x0d\0\x01\0"), Unfit::NotCode(_)));
        let whole = code(Target::host());
        // The table of sections is the last thing in the file.
        for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            assert!(matches!(refused(&whole[..length]), Unfit::NotCode(_)), "{length} bytes");
        }
        let table = usize::try_from(u64::from_le_bytes(whole[40..48].try_into().unwrap())).unwrap();
        for at in (0..64).chain(table..whole.len()) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                // Whatever comes out of it: no panic, and what is taken for fit has not changed where it matters.
                if let Ok(made_for) = MadeFor::of(&changed) {
                    assert!(
                        made_for.check(Metering::Off).is_err()
                            || made_for.settings == settings_digest(Metering::Off)
                    );
                }
            }
        }
    }
}
