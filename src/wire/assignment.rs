//! What a child is to do, out of the memfd that the supervisor left it or sent it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use serde::de::DeserializeOwned;

use super::control::ASSIGNMENT_MAX;
use super::frame::{self, DecodeError};

/// Bytes read at a time.
const READ_CHUNK: usize = 64 * 1024;

/// An assignment that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    #[error("read assignment: {0}")]
    Read(#[source] io::Error),
    #[error("read assignment: longer than {ASSIGNMENT_MAX} bytes")]
    TooLong,
    #[error("read assignment: {0}")]
    Decode(#[from] DecodeError),
}

/// Reads the supervisor's memfd from its beginning, wherever its offset is (`pread64`, nothing else).
///
/// # Errors
/// It cannot be read, is too long, or says something else.
pub fn read<T: DeserializeOwned>(memfd: OwnedFd) -> Result<T, AssignmentError> {
    let file = File::from(memfd);
    let mut bytes = Vec::new();
    let mut chunk = vec![0; READ_CHUNK];
    loop {
        let offset = u64::try_from(bytes.len()).map_err(|_| AssignmentError::TooLong)?;
        match file.read_at(&mut chunk, offset) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(AssignmentError::Read(error)),
        }
        if bytes.len() > ASSIGNMENT_MAX {
            return Err(AssignmentError::TooLong);
        }
    }
    Ok(frame::decode(&bytes)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn an_assignment_is_read_from_its_beginning_or_refused() {
        let expected: Vec<String> = (0..20_000).map(|i| format!("t{i}")).collect();
        let file = || File::from(memfd_create("a", MFdFlags::empty()).unwrap());
        let bytes = frame::encode(&expected, ASSIGNMENT_MAX).unwrap();
        assert!(bytes.len() > READ_CHUNK, "more than one read");
        let mut memfd = file();
        memfd.write_all(&bytes).unwrap();
        assert_eq!(read::<Vec<String>>(memfd.into()).unwrap(), expected);

        let mut memfd = file();
        memfd.write_all(&bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(read::<Vec<String>>(memfd.into()), Err(AssignmentError::Decode(_))));

        let memfd = file();
        memfd.set_len(ASSIGNMENT_MAX as u64 + 1).unwrap();
        assert!(matches!(read::<Vec<String>>(memfd.into()), Err(AssignmentError::TooLong)));
    }
}
