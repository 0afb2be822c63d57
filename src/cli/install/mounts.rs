//! What is mounted below a directory. It is somebody else's: whoever removes the directory with everything in it would
//! empty a disk, or, by a bind mount, another directory.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const TABLE: &str = "/proc/self/mountinfo";

/// The first place at `path` or below it where something is mounted. `path` has no links on its way.
pub(super) fn first_within(path: &Path) -> io::Result<Option<PathBuf>> {
    let table = fs::read(TABLE)?;
    Ok(points(&table).find(|point| point.starts_with(path)))
}

/// The fifth word of each line.
fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    let words = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    words.map(|word| PathBuf::from(OsString::from_vec(unescaped(word))))
}

/// The kernel writes what would end a word or a line as a backslash and three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_the_kernel_writes_them() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 22 0:5 /x /var/a\\040b\\134c rw - tmpfs tmpfs rw\n\nnonsense\n";
        let all: Vec<PathBuf> = points(table).collect();
        assert_eq!(all, [PathBuf::from("/"), PathBuf::from("/var/a b\\c")]);
        assert_eq!(unescaped(b"a\\04"), b"a\\04");
    }

    #[test]
    fn what_is_mounted_is_found_and_what_is_beside_it_is_not() {
        assert_eq!(first_within(Path::new("/proc")).unwrap(), Some("/proc".into()));
        assert_eq!(first_within(Path::new("/pro")).unwrap(), None);
    }
}
